"""Exact rank-sum tests under ties, shifts with intervals, margins, Holm: pure numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

EXACT_LIMIT = 200   # n_a + n_b up to which the distribution is exact (half a second each there)
TIE_TOLERANCE = 1e-9  # 0.9 - 0.85 and 0.85 - 0.8 differ in the last bit, yet are one tie


@dataclass(frozen=True)
class RankSum:
    """One rank-sum test of a against b."""

    u: float           # pairs with a above b, ties counted half
    p_greater: float   # one-sided: a tends to be above b
    p_less: float
    p_two_sided: float  # twice the smaller tail, at most 1
    p_smallest: float   # the smallest two-sided p any allotment of these values can give
    exact: bool


def doubled_midranks(values):
    """Twice the midrank of each value: integers, also under ties."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    new_value = np.diff(np.asarray(values)[order]) > TIE_TOLERANCE
    group = np.concatenate([[0], np.cumsum(new_value)])
    last = np.cumsum(np.bincount(group))
    doubled = np.empty(len(order), dtype=np.int64)
    doubled[order] = (last - np.bincount(group) + 1 + last)[group]
    return doubled


@lru_cache(maxsize=64)
def subset_sum_counts(scores: tuple[int, ...], size: int):
    """How many subsets of `size` of these sorted scores have sum 0, 1, 2, ...

    The shift algorithm (Streitberg and Roehmel 1986): a score either shifts a sum or does not.
    Float64 holds the counts exactly up to 2^53 and to 13 digits beyond.
    """
    import numpy as np

    counts = np.zeros((size + 1, sum(scores[len(scores) - size:]) + 1))
    counts[0, 0] = 1
    for i, score in enumerate(scores):
        low = max(1, size - (len(scores) - 1 - i))  # smaller subsets can no longer be filled
        high = min(size, i + 1)
        width = sum(scores[i + 1 - high:i + 1]) + 1
        counts[low:high + 1, score:width] += counts[low - 1:high, :width - score]
    return counts[size].copy()  # a view would keep the whole table


def rank_sum_test(a, b) -> RankSum:
    """Test whether a and b come from one distribution, given the pooled values with their ties."""
    import numpy as np

    doubled = doubled_midranks(np.concatenate([a, b]))
    num_a, num_b = len(a), len(b)
    total = num_a + num_b
    u = (int(doubled[:num_a].sum()) - num_a * (num_a + 1)) / 2
    if total <= EXACT_LIMIT:
        scores = doubled - doubled.min()
        step = max(1, int(np.gcd.reduce(scores)))
        scores //= step
        counts = subset_sum_counts(tuple(np.sort(scores).tolist()), num_a)
        observed, possible = int(scores[:num_a].sum()), counts.nonzero()[0]
        subsets = counts.sum()
        p_less, p_greater = counts[:observed + 1].sum() / subsets, counts[observed:].sum() / subsets
        extreme = min(counts[possible[0]], counts[possible[-1]]) / subsets
    else:
        ties = np.unique(doubled, return_counts=True)[1].astype(float)
        variance = num_a * num_b / 12 * (total + 1 - (ties**3 - ties).sum() / (total * (total - 1)))
        sd = math.sqrt(variance)

        def upper_tail(distance: float) -> float:
            """Normal, with continuity and tie correction."""
            return 0.5 * math.erfc((distance - 0.5) / sd / math.sqrt(2)) if sd else 1.0

        mean = num_a * num_b / 2
        p_greater, p_less, extreme = (upper_tail(u - mean), upper_tail(mean - u), upper_tail(mean))
    return RankSum(u, float(p_greater), float(p_less), min(1.0, float(2 * min(p_less, p_greater))),
                   min(1.0, float(2 * extreme)), total <= EXACT_LIMIT)


def shift_with_interval(a, b, alpha: float, grid: float = 0) -> tuple[float, float, float]:
    """Hodges-Lehmann shift a - b and the interval of shifts the two-sided test does not reject.

    A larger assumed shift lowers the ranks of a and raises those of b, so it can only raise
    P(sum >= observed) for every allotment: the one-sided p is monotone in the shift, with ties
    too, the set is an interval, and bisection over the pairwise differences finds its end.
    An end that no data of this size could exclude is infinite.

    grid: the step between possible values, 0 where there is none. On a grid only its points are
    tested and each stands for the half step around it; shifts between two points would break
    all ties of one of them (coverage 87 % instead of 95 % with 60 images and n = 10).
    """
    import numpy as np

    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    differences = np.sort(np.subtract.outer(a, b).ravel())
    return (float(np.median(differences)), _lowest_kept_shift(a, b, alpha, grid),
            -_lowest_kept_shift(b, a, alpha, grid))


def _lowest_kept_shift(a, b, alpha: float, grid: float) -> float:
    """The infimum of the shifts d at which "a - d is above b" has one-sided p > alpha / 2."""
    import numpy as np

    points = np.sort(np.subtract.outer(a, b).ravel())
    points = points[np.concatenate([[True], np.diff(points) > TIE_TOLERANCE])]

    def kept(place: int) -> bool:
        """Odd places are the points, even ones the gaps below and between them."""
        index = place // 2
        if place % 2:
            shift = points[index]
        elif place == 0:
            shift = points[0] - 1
        else:
            shift = (points[index - 1] + points[index]) / 2
        return rank_sum_test(a - shift, b).p_greater > alpha / 2

    if kept(0):
        return -math.inf
    rejected, accepted = 0, 2 * len(points)  # above every point p is 1
    while accepted - rejected > 1:
        middle = (rejected + accepted) // 2
        rejected, accepted = (rejected, middle) if kept(middle) else (middle, accepted)
    # kept from a point on, or from the gap above a point: there the grid's next point is the first
    return float(points[(accepted - 1) // 2]) + (grid / 2 if accepted % 2 == 0 else -grid / 2)


def margin_on_grid(margin: float, step: float) -> float:
    """The largest whole number of steps within the margin; step 0 means no grid.

    Accuracies are whole numbers of test images. A margin between two of them would break the
    ties at the next lower one in favour of equivalence: with 60 images and 2 points, 14 to 26 %
    of samples that far apart were called equivalent instead of 5 % (benchmarks/rank_sum_size.txt
    has both). By the monotonicity above a smaller margin only errs on the safe side.
    """
    return math.floor(margin / step + 1e-6) * step if step else margin


def margin_tests(a, b, margin: float) -> tuple[float, float]:
    """p that a is not worse than b by `margin` or more, and the same of b against a.

    Both small: equivalent (two one-sided tests, Schuirmann 1987), for shifted distributions.
    """
    import numpy as np

    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return rank_sum_test(a + margin, b).p_greater, rank_sum_test(b + margin, a).p_greater


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment (1979), in the given order."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def smallest_p(num_a: int, num_b: int) -> float:
    """The smallest two-sided p of the exact test without ties: complete separation."""
    return min(1.0, 2 / math.comb(num_a + num_b, num_a))


def n_needed(num_pairs: int, alpha: float) -> int:
    """The smallest n per dataset at which complete separation is significant after Holm."""
    n = 2
    while smallest_p(n, n) * num_pairs > alpha:
        n += 1
    return n


def wilson_interval(share: float, num_images: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a proportion (1927), of 95 % unless z says otherwise.

    num_images: of a simple random sample; that with the same variance for another one.
    """
    middle = (share + z * z / (2 * num_images)) / (1 + z * z / num_images)
    half = z / (1 + z * z / num_images) * math.sqrt(
        share * (1 - share) / num_images + z * z / (4 * num_images**2))
    return max(0.0, middle - half), min(1.0, middle + half)
