"""`python -m lungkit.phantom`: write a sample of simulated tissue."""

import sys

from lungkit.phantom.sample import main

sys.exit(main())
