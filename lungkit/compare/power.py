"""What a comparison of so many repeats, replicates and test groups could show. Pure numbers.

The difference of two arms' mean scores is taken as normal around its true value, its standard
error as estimated with `df` degrees of freedom, as the t intervals of the comparison take them.
Then the chance of every word is one integral over the error's own distribution: of a difference
the power of the t test, of equivalence that of two one-sided tests (Owen 1965; Phillips 1990).

    level  standard error squared               degrees of freedom
    A      2 seed^2 / (N R)                     2 R (N - 1)
    B      2 seed^2 / (N R) + group^2 / G       Satterthwaite's
    C      replicate^2 (1 / R + overlap)        R - 1

N repeats in each of R replicates, G effective test groups of one split (further splits test further
groups: B errs on the safe side). overlap: images tested on / trained on, for replicates train on
much the same images (Nadeau and Bengio 2003); 0 where they share none.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from lungkit.compare.rank_sum import smallest_p

GROUPS_OF_B = 10     # test groups of a class from which level B speaks of new patients
REPLICATES_OF_C = 3  # from which level C estimates
REPLICATES_TESTED = 6  # from which level C tests by sign flips as well
WANTED = 0.8         # the usual power asked of a plan (Cohen 1988)
FAILING = 0.1        # the share of failing trainings that must be excluded: ours, one in ten
CELLS = 400          # of the integral: 1e-4 in the power


def trainings_needed(alpha: float) -> int:
    """Trainings of an arm from which "equivalent" and "not worse" are said of it: 29 at 5 %.

    A training that fails, once in a while, moves the mean further than any margin, and no variance
    of those that did not shows it. Of fewer trainings more than alpha of all samples would hold
    none of the failures of an arm in which FAILING do.
    """
    return math.ceil(math.log(alpha) / math.log(1 - FAILING))


@dataclass(frozen=True)
class Deviations:
    """Standard deviations, in the score: 0.02 is two points."""

    seed: float       # between trainings of one arm on one dataset
    group: float      # between test groups, of the difference of two arms on each
    replicate: float  # between replicates, of the difference of two arms' means
    source: str       # where they are from, in words


@dataclass(frozen=True)
class Size:
    """What a comparison has of each."""

    repeats: int
    replicates: int
    groups: dict[str, int]   # test groups by class; empty: not known
    num_synthetic: int       # arms of the first family, each against real
    num_pairs: int           # of the rank-sum table, all with all

    @property
    def effective_groups(self) -> float:
        """Test groups that a mean over classes of equal weight rests on; 0: not known."""
        if not all(self.groups.values()) or not self.groups:
            return 0.0
        return len(self.groups)**2 / sum(1 / count for count in self.groups.values())

    @property
    def levels(self) -> list[str]:
        """The levels that so much reaches, the highest last."""
        has_groups = bool(self.groups) and min(self.groups.values()) >= GROUPS_OF_B
        return ["A", *"B"[:has_groups], *"C"[:self.replicates >= REPLICATES_OF_C]]


def standard_error(level: str, size: Size, of: Deviations, overlap: float) -> tuple[float, float]:
    """The standard error of a difference of two arms at a level, and its degrees of freedom."""
    trainings = 2 * of.seed**2 / size.repeats / size.replicates
    freedom = 2 * size.replicates * (size.repeats - 1)
    if level == "A":
        return math.sqrt(trainings), freedom
    if level == "C":
        return of.replicate * math.sqrt(1 / size.replicates + overlap), size.replicates - 1
    groups = of.group**2 / size.effective_groups
    of_groups = sum(size.groups.values()) - len(size.groups)
    variance = trainings + groups
    spread = trainings**2 / max(freedom, 1) + groups**2 / max(of_groups, 1)
    return math.sqrt(variance), variance**2 / spread if spread else freedom


@functools.lru_cache(maxsize=64)
def _half_widths(side: float, df: float):
    """Equally likely half widths of an interval, float [CELLS], in standard errors. Read only."""
    import numpy as np
    from scipy.stats import chi2, t

    places = (np.arange(CELLS) + 0.5) / CELLS
    return t.ppf(1 - side, df) * np.sqrt(chi2.ppf(places, df) / df)


def chance(shift: float, se: float, df: float, *, low: float, high: float, side: float) -> float:
    """P(low < estimate - half and estimate + half < high), half = the t quantile of `side` x SE.

    shift: the true difference; side: one-sided level of each end. low -inf or high inf: that end
    is free. Of df < 1 there is no interval, and the chance is 0.
    """
    import numpy as np
    from scipy.stats import norm

    if df < 1:
        return 0.0
    if se == 0:
        return float(low < shift < high)
    half = _half_widths(side, df)
    inside = norm.cdf((high - shift) / se - half) - norm.cdf((low - shift) / se + half)
    return float(np.clip(inside, 0, 1).mean())


def outcomes(level: str, size: Size, of: Deviations, *, alpha: float, margin: float, effect: float,
             overlap: float = 0.0) -> dict:
    """What `size` can show at a level: its `chances`, and the smallest difference shown.

    detectable: the difference shown with the chance WANTED; None above 1.
    """
    se, df = standard_error(level, size, of, overlap)
    one = alpha / 2 / max(1, size.num_synthetic)
    return {"standard_error": se, "df": df,
            **chances(level, size, of, alpha=alpha, margin=margin, effect=effect, overlap=overlap),
            "detectable": _detectable(lambda shift: _differs(shift, se, df, one))}


def chances(level: str, size: Size, of: Deviations, *, alpha: float, margin: float, effect: float,
            overlap: float = 0.0) -> dict[str, float]:
    """The chance 0..1 of each word at a level.

    Levels are divided by Bonferroni over the pairs: Holm's first step, what the pair that is
    hardest to show is tested at. difference: of a pair that truly differs by `effect`, as better or
    worse; equivalent, not_worse: of truly equal arms, within `margin`, 0 where there are fewer than
    `trainings_needed`.
    """
    se, df = standard_error(level, size, of, overlap)
    one = alpha / 2 / max(1, size.num_synthetic)
    enough = size.repeats * size.replicates >= trainings_needed(alpha)
    return {"difference": _differs(effect, se, df, one),
            "equivalent": enough * chance(0, se, df, low=-margin, high=margin,
                                          side=alpha / max(1, size.num_synthetic)),
            "not_worse": enough * chance(0, se, df, low=-margin, high=math.inf, side=one)}


def _differs(shift: float, se: float, df: float, side: float) -> float:
    """The chance that a true difference `shift` is shown, whichever way."""
    return (chance(shift, se, df, low=0, high=math.inf, side=side)
            + chance(shift, se, df, low=-math.inf, high=0, side=side))


def table_p(size: Size) -> float:
    """The smallest two-sided p after Holm that any data can give in the rank-sum table.

    Its values are repeats; of several replicates, their means.
    """
    n = size.repeats if size.replicates == 1 else size.replicates
    return min(1.0, size.num_pairs * smallest_p(n, n))


def sign_flip_p(size: Size) -> float | None:
    """The smallest two-sided p after Holm of the exact sign-flip test; None where it is not made.

    It stands beside the t interval of level C, which decides.
    """
    if size.replicates < REPLICATES_TESTED:
        return None
    return min(1.0, size.num_synthetic * 2 / 2**size.replicates)


def _detectable(differs) -> float | None:
    """The smallest true difference that is shown with the chance WANTED, to a tenth of a point."""
    if differs(1.0) < WANTED:
        return None
    low, high = 0.0, 1.0
    while high - low > 0.0005:
        middle = (low + high) / 2
        low, high = (low, middle) if differs(middle) >= WANTED else (middle, high)
    return round(high, 3)
