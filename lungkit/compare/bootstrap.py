"""Level B: means and their differences when test groups and trainings are both samples.

Every training of an arm is tested on every test group: trainings x groups are crossed, as readers
and cases are in the reading studies of radiology, with trainings nested in their arm and groups
shared by the arms. A draw of the crossed bootstrap takes groups, by class, and trainings, by arm,
each with replacement (Owen 2007, the pigeonhole bootstrap). In the limit of many draws its
variance of a mean is, up to factors of n / (n - 1), groups + trainings + 3 x residual, where the
truth has 1 x residual. So the interval is a t interval on the components themselves: groups +
trainings - residual (Gallas 2006; Hillis 2014), never below either, plus UNSEEN for groups of a
kind that the sample has none of; degrees of freedom by Satterthwaite 1946. The draws' own interval
is reported beside. benchmarks/verdict_simulations.txt has the coverage of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lungkit.compare.rank_sum import wilson_interval

DRAWS = 2000
SEED = 20071  # of the draws: the same results give the same interval
CELLS = 2**22  # draws x groups held at a time: 32 MB
# of a group's weight squared, added to the variance. Ours, chosen by simulation: near 100 % few
# groups fail, and a sample that holds none of them shows no variance either. Without it arms at
# the margin passed as equivalent in up to 22 % of samples at 99.5 %, 11 % at 98 %
UNSEEN = 0.1


@dataclass(frozen=True)
class Trainings:
    """One arm on one split of real, R trainings tested on G groups."""

    values: np.ndarray     # float64 [R], the score of each
    influence: np.ndarray  # float64 [R, G]: of every group on it, see influence.py


@dataclass(frozen=True)
class Mean:
    """A mean, or a difference of two, with what its variance consists of."""

    value: float
    se: float
    df: float
    groups: float          # variance by the test groups, of a difference: arm x group
    trainings: float       # by the trainings, of both arms
    residual: float        # counted in both of these

    def interval(self, confidence: float) -> tuple[float, float]:
        half = self.half_width(confidence)
        return self.value - half, self.value + half

    def half_width(self, confidence: float) -> float:
        return t_quantile((1 + confidence) / 2, self.df) * self.se

    def p_above(self, bound: float) -> float:
        """One-sided p of "the value is `bound` or less"; 0.5 at the bound."""
        return t_tail(self.value - bound, self.se, self.df)


def t_quantile(share: float, df: float) -> float:
    """Of Student's t; df inf: of the normal distribution."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(share) if math.isinf(df) else stdtrit(df, share))


def t_tail(distance: float, se: float, df: float) -> float:
    """P(t > distance / se). Without any variance: 0, 0.5 or 1 by the sign of the distance."""
    from scipy.special import ndtr, stdtr

    if se == 0:
        return 0.5 - 0.5 * float(np.sign(distance))
    ratio = -distance / se
    return float(ndtr(ratio) if math.isinf(df) else stdtr(df, ratio))


def crossed_mean(arm: Sequence[Trainings], strata: np.ndarray,
                 against: Sequence[Trainings] | None = None) -> Mean:
    """The mean of an arm, or arm - against, over splits, and its variance.

    arm, against: one Trainings a split, over the same G groups; a group that a split does not
    test has influence 0 there. strata: int [G], the class by which groups are drawn. Needs two
    trainings of each arm on each split and two groups in each stratum.
    """
    arms = [arm] if against is None else [arm, against]
    value, by_group = 0.0, np.zeros(len(strata))
    parts, residual = [], 0.0
    for sign, of_arm in zip((1, -1), arms):
        for one in of_arm:
            share, count = 1 / len(of_arm), len(one.values)
            value += sign * share * float(one.values.mean())
            by_group += sign * share * one.influence.mean(0)
            parts.append((share**2 * float(one.values.var(ddof=1)) / count, count - 1))
            left = _centred(one.influence, strata)
            left -= left.mean(0)
            residual += share**2 * float(_spread(left**2, strata).sum()) / count / (count - 1)
    by_stratum = _spread(_centred(by_group, strata)**2, strata)
    counts = np.bincount(strata)
    parts += [(float(part), int(count) - 1)
              for part, count in zip(by_stratum, counts[counts > 0])]
    groups = float(by_stratum.sum())
    trainings = sum(part for part, _ in parts[:-len(by_stratum)])
    variance = max(groups + trainings - residual, groups, trainings) + UNSEEN / len(strata)**2
    spread = sum(part**2 / freedom for part, freedom in parts)
    df = max(1.0, variance**2 / spread) if spread else float(len(strata) - 1)
    return Mean(value, math.sqrt(variance), df, groups, trainings, residual)


def _centred(influence: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Float [..., G] less the mean of its stratum."""
    member = np.eye(strata.max() + 1)[strata]
    return influence - (influence @ member / np.maximum(1, member.sum(0)))[..., strata]


def _spread(squares: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Of squares float [..., G] the sum of each stratum that there is, times n / (n - 1)."""
    counts = np.bincount(strata)
    sums = np.bincount(strata, squares.reshape(-1, len(strata)).sum(0))
    return (sums * counts / np.maximum(1, counts - 1))[counts > 0]


# ------------------------------------------------------------------ the draws

def crossed_draws(arms: dict[str, Sequence[Trainings]], strata: np.ndarray, *,
                  draws: int = DRAWS, seed: int = SEED) -> dict[str, np.ndarray]:
    """The mean of every arm in every draw, float64 [draws]; the same groups for all arms."""
    rng = np.random.default_rng(seed)
    means = {name: np.empty(draws) for name in arms}
    step = max(1, CELLS // len(strata))
    for begin in range(0, draws, step):
        size = min(step, draws - begin)
        extra = group_weights(strata, size, rng) - 1
        for name, of_arm in arms.items():
            means[name][begin:begin + size] = sum(_draw(one, extra, rng) for one in of_arm) \
                / len(of_arm)
    return means


def group_weights(strata: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often every group is drawn, float64 [draws, G]: as many of each stratum as there are."""
    weights = np.zeros((draws, len(strata)))
    for k in np.unique(strata):
        [places] = np.nonzero(strata == k)
        weights[:, places] = rng.multinomial(len(places), np.full(len(places), 1 / len(places)),
                                             draws)
    return weights


def _draw(one: Trainings, extra: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean over trainings drawn anew, of the groups drawn once more than once."""
    count = len(one.values)
    times = rng.multinomial(count, np.full(count, 1 / count), len(extra)) / count
    return (times * (one.values + extra @ one.influence.T)).sum(1)


# ------------------------------------------------------------------ shares of images

def share_interval(mean: Mean, confidence: float, num_groups: int) -> tuple[float, float]:
    """Wilson's interval of a share with the effective sample size of its variance.

    The size at which a simple sample would have this variance, times (z / t)^2 for the degrees of
    freedom (Korn and Graubard 1998); the number of groups where all are 0 or all are 1.
    """
    share = min(1.0, max(0.0, mean.value))
    z = t_quantile((1 + confidence) / 2, math.inf)
    if mean.se == 0 or share in (0.0, 1.0):
        size = float(num_groups)
    else:
        t = t_quantile((1 + confidence) / 2, mean.df)
        size = share * (1 - share) / mean.se**2 * (z / t)**2
    return wilson_interval(share, size, z)
