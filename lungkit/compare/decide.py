"""From intervals and p-values to one word a pair, family by family. Pure numbers.

The primary question is asked one-sided at alpha / 2, so that it agrees with the two-sided
interval (ICH E9, 1998): is the arm worse than real by the margin or more? Equivalence is two
one-sided tests at alpha each, which is the 1 - 2 alpha interval inside the margin (Schuirmann
1987). Holm's adjustment (1979) is over the pairs of a family, for each of the three tests.
"""

from __future__ import annotations

from lungkit.compare.answer import (
    BETTER,
    EQUIVALENT,
    INCONCLUSIVE,
    NOT_WORSE,
    OUT_OF_REACH,
    OUTSIDE,
    PRIMARY,
    SECOND,
    WORSE,
    Estimate,
)
from lungkit.compare.bootstrap import Mean
from lungkit.compare.power import trainings_needed
from lungkit.compare.rank_sum import holm


def estimate(level: str, mean: Mean, *, alpha: float, margin: float, n_arm: int, n_against: int,
             num_trainings: int, num_groups: int | None = None, p_sign_flip: float | None = None,
             drawn: tuple[float, float] | None = None) -> Estimate:
    """A pair at one level, not yet judged: the p-values after Holm are those before."""
    low, high = mean.interval(1 - alpha)
    low_equivalence, high_equivalence = mean.interval(1 - 2 * alpha)
    above, below = mean.p_above(-margin), 1 - mean.p_above(margin)
    p_difference = 2 * min(mean.p_above(0), 1 - mean.p_above(0))
    return Estimate(
        level, mean.value, mean.se, mean.df, low, high, low_equivalence, high_equivalence, above,
        above, p_difference, p_difference, max(above, below), max(above, below), p_sign_flip,
        mean.half_width(1 - 2 * alpha), n_arm, n_against, num_trainings, num_groups,
        *(drawn or (None, None)))


def judge(estimates: list[Estimate], family: str, *, alpha: float, margin: float) -> None:
    """Adjust the estimates of one family at one level over each other, and decide each."""
    if family != OUTSIDE:
        for name in ("p_not_worse", "p_difference", "p_equivalent"):
            adjusted = holm([getattr(each, name) for each in estimates])
            for each, p in zip(estimates, adjusted):
                setattr(each, f"{name}_holm", p)
    for each in estimates:
        each.decision = decision(each, family, alpha=alpha, margin=margin)


def decision(found: Estimate, family: str, *, alpha: float, margin: float) -> str:
    """One of DECISIONS. Whether an arm is not worse is asked of it against real alone.

    That an arm may do as well is said of no fewer trainings than exclude that one in ten fails.
    """
    differs = found.p_difference_holm <= alpha
    enough = found.num_trainings >= trainings_needed(alpha)
    if differs and found.difference > 0:
        return BETTER
    if enough and found.p_equivalent_holm <= alpha:
        return EQUIVALENT
    if enough and family != SECOND and found.p_not_worse_holm <= alpha / 2:
        return NOT_WORSE
    if differs:
        return WORSE
    in_reach = enough and found.smallest_margin < margin
    return INCONCLUSIVE if in_reach else OUT_OF_REACH


def family_of(arm: str, against: str, outside: set[str], reference: str) -> str:
    """Which family the pair belongs to; `outside`: the baselines and controls."""
    if {arm, against} & outside:
        return OUTSIDE
    return PRIMARY if reference in (arm, against) else SECOND
