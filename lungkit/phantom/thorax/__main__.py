"""`python -m lungkit.phantom.thorax`: write a sample of simulated chest CT."""

import sys

from lungkit.phantom.thorax.sample import main

sys.exit(main())
