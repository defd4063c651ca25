"""Two samples, and the p of a rank sum by going through all: of the test and of its stage."""

from __future__ import annotations

import itertools

import numpy as np

X, Y = [0.62, 0.71, 0.68, 0.75, 0.80, 0.77], [0.555, 0.601, 0.663, 0.587, 0.734, 0.648]


def enumerate_p(a, b):
    """(p_greater, p_less, smallest tail) of the rank sum by going through every allotment."""
    from scipy.stats import rankdata

    ranks = rankdata(np.round([*a, *b], 9))
    sums = [sum(ranks[list(chosen)]) for chosen in
            itertools.combinations(range(len(ranks)), len(a))]
    observed = sum(ranks[:len(a)])
    greater = sum(s >= observed - 1e-9 for s in sums) / len(sums)
    less = sum(s <= observed + 1e-9 for s in sums) / len(sums)
    extreme = min(sum(abs(s - max(sums)) < 1e-9 for s in sums),
                  sum(abs(s - min(sums)) < 1e-9 for s in sums)) / len(sums)
    return greater, less, extreme
