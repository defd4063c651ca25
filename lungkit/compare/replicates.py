"""Level C: replicates of the whole pipeline as blocks. Pure numbers.

A replicate has its own split of the real images and its own training of every generator. All arms
of one share the split, so the differences within it are paired; between them everything varies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from lungkit.compare.bootstrap import Mean, Trainings

TO_ESTIMATE, TO_TEST = 3, 6  # replicates: 2^6 sign flips give a two-sided p of 0.03
MOST_FLIPPED = 16            # replicates up to which all sign flips are gone through


def paired_mean(differences: Sequence[float], overlap: float) -> Mean:
    """The mean of one difference a replicate, with the variance of overlapping training sets.

    The usual 1 / K becomes 1 / K + tested / trained, since replicates of one pool of images train
    on much the same ones (Nadeau and Bengio 2003; of folds: Bouckaert and Frank 2004).
    overlap: images tested on / images trained on; 0 for independent replicates.
    """
    values = np.asarray(differences, float)
    variance = float(values.var(ddof=1)) * (1 / len(values) + overlap)
    return Mean(float(values.mean()), math.sqrt(variance), len(values) - 1, 0.0, variance, 0.0)


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """The exact two-sided p of "each difference could as well have the other sign" (Fisher 1935).

    None where there are too few replicates to test, or too many to go through.
    """
    values = np.asarray(differences, float)
    if not TO_TEST <= len(values) <= MOST_FLIPPED:
        return None
    signs = np.array(list(itertools.product((1, -1), repeat=len(values) - 1)))
    sums = np.abs(values[0] + signs @ values[1:])  # the other half mirrors this one
    return float((sums >= abs(values.sum()) - 1e-12).mean())


def seeds_mean(arm: Sequence[np.ndarray], against: Sequence[np.ndarray]) -> Mean:
    """Level A: the difference of the means over splits when only the trainings vary.

    arm, against: float [R] a split, two trainings or more in each. With one split this is Welch's
    interval (1947).
    """
    parts, value = [], 0.0
    for sign, of_arm in ((1, arm), (-1, against)):
        for values in of_arm:
            value += sign * float(np.mean(values)) / len(of_arm)
            parts.append((float(np.var(values, ddof=1)) / len(values) / len(of_arm)**2,
                          len(values) - 1))
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / freedom for part, freedom in parts)
    df = max(1.0, variance**2 / spread) if spread else float(sum(count for _, count in parts))
    return Mean(value, math.sqrt(variance), df, 0.0, variance, 0.0)


# ------------------------------------------------------------------ where the variance is from

def set_variance(per_split: Sequence[tuple[list[str], np.ndarray]]) -> tuple[float, int] | None:
    """The variance between an arm's generated sets on one split, and how many sets there are.

    per_split: the set each training is of, and its score. Method of moments, not below 0; None
    where no split has two sets.
    """
    found, number = [], 0
    for names, values in per_split:
        sets = [values[[name == one for name in names]] for one in dict.fromkeys(names)]
        number += len(sets)
        if len(sets) > 1:
            within = np.mean([one.var(ddof=1) / len(one) if len(one) > 1 else 0 for one in sets])
            found.append(max(0.0, float(np.var([one.mean() for one in sets], ddof=1) - within)))
    return (float(np.mean(found)), number) if found else None


def between_splits(differences: Sequence[float], within: Sequence[Mean]) -> float:
    """The variance of one replicate's difference that its trainings and test groups do not explain.

    Method of moments, not below 0: what another split and other trainings of the generator add.
    """
    explained = np.mean([max(0.0, one.groups + one.trainings - one.residual) for one in within])
    return max(0.0, float(np.var(differences, ddof=1) - explained))


def pooled_sd(trainings: Sequence[Trainings]) -> float:
    """The standard deviation between trainings within a split."""
    squares = sum(float(((one.values - one.values.mean())**2).sum()) for one in trainings)
    freedom = sum(len(one.values) - 1 for one in trainings)
    return math.sqrt(squares / freedom) if freedom else 0.0
