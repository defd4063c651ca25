"""Which of several ways to draw a set is best, by figures alone: KID, its spread, and the rule.

Of the candidates whose label fidelity is within one standard error of the highest (the rule of
Breiman et al. 1984, Classification and Regression Trees, section 3.4.3) the one of least KID is
taken, if it is shown to be better than the given one in either figure; else the given one stays.
Candidates draw from the same noise and are compared as pairs. No image is seen here.

Feeds lungkit.generate.sampling_choice.RECIPE: raise it when another candidate is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lungkit.audit.fidelity import FEWEST_GROUPS, HALVES, Compared

ALPHA = 0.05  # of leaving the given one for what is no better


@dataclass(frozen=True)
class Figures:
    """What is known of a candidate by the n images that it drew.

    right: of how many the class meant was said. p_label, p_kid: one-sided, of its being as good by
    chance where it is no better than the given one; None: of that itself, or not known.
    """

    n: int
    right: int
    kid: float
    p_label: float | None = None
    p_kid: float | None = None

    def is_better(self, level: float) -> bool:
        """Whether either figure is shown to be better than the given candidate's."""
        return any(p is not None and p <= level for p in (self.p_label, self.p_kid))


def decide(found: Sequence[Figures]) -> tuple[int, str]:
    """The place of the candidate to draw with, of two or more, and why; the given one is first.

    Bonferroni over candidates and figures.
    """
    level = ALPHA / (2 * (len(found) - 1))
    best = max(found, key=lambda each: each.right)
    near = [place for place, each in enumerate(found)
            if each.right >= best.right - best.n * standard_error(best.right, best.n)]
    shown = [place for place in near if place == 0 or found[place].is_better(level)]

    def kid(place: int) -> float:
        return found[place].kid

    chosen = min(shown, key=kid, default=0)
    if chosen:
        return chosen, "least KID within one standard error of the highest label fidelity"
    if near and min(near, key=kid) == 0:
        return 0, "the given one is best"
    return 0, "within noise: none is shown to be better than the given one, which stays"


def standard_error(right: int, n: int) -> float:
    """Of a share right / n, with two of each added (Agresti and Coull 1998): never 0."""
    share = (right + 2) / (n + 4)
    return math.sqrt(share * (1 - share) / (n + 4))


def sign_test(gained: int, lost: int) -> float:
    """The exact one-sided p of so many pairs gained beside so many lost, 1 where there are none."""
    pairs = gained + lost
    return sum(math.comb(pairs, number) for number in range(gained, pairs + 1)) / 2**pairs


# ------------------------------------------------------------------ the figures

def distances(reference: Sequence[np.ndarray], groups: Sequence[np.ndarray],
              drawn: Sequence[Sequence[np.ndarray]], seed: int = 0
              ) -> tuple[np.ndarray, np.ndarray | None]:
    """KID of K candidates by class, [K, classes], and of halves of all sides, [HALVES, K, classes].

    reference, groups: of each class features [N, D] and str [N]; drawn: of each candidate features
    [M, D] a class. A half is of whole groups and of the same images of every candidate, so that two
    candidates are compared as pairs; halves vary about the whole as in audit/fidelity.py. None:
    some class has fewer than FEWEST_GROUPS groups.
    """
    rng = np.random.default_rng(seed)
    indexed = [np.unique(each, return_inverse=True)[1] for each in groups]
    is_spread = min(index.max() + 1 for index in indexed) >= FEWEST_GROUPS

    def half(number: int) -> np.ndarray:
        return rng.permutation(number)[:number // 2]

    sides = []
    for index, images in zip(indexed, drawn[0], strict=True):
        some, others = (np.ones((1 + HALVES * is_spread, number), bool)
                        for number in (len(index), len(images)))
        for row in range(1, len(some)):  # the first is the whole
            some[row] = np.isin(index, half(index.max() + 1))
            others[row] = np.isin(np.arange(len(images)), half(len(images)))
        sides.append((some, others))
    found = np.array([[discrepancies(Compared(held, images), *side) for held, images, side in zip(
        reference, candidate, sides, strict=True)] for candidate in drawn])
    return found[..., 0], np.moveaxis(found[..., 1:], -1, 0) if is_spread else None


def discrepancies(compared: Compared, some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`discrepancy` of S parts at once, float [S]: bool [S, N] of the reference, [S, M] of images.

    All of a side's sums are one product of matrices.
    """
    kernel, number = (compared.products / compared.width + 1) ** 3, compared.num_reference
    some, others = some.astype(float), others.astype(float)
    own = 0.0
    for each, each_kernel in ((some, kernel[:number, :number]), (others, kernel[number:, number:])):
        sizes = each.sum(1)
        own = own + (((each @ each_kernel) * each).sum(1) - each @ np.diag(each_kernel)) / (
            sizes * (sizes - 1))
    between = ((some @ kernel[:number, number:]) * others).sum(1)
    return own - 2 * between / (some.sum(1) * others.sum(1))


def figures_of(right: np.ndarray, values: np.ndarray, halves: np.ndarray | None) -> list[Figures]:
    """Of every candidate, the given one first; right: bool [K, images], paired by their noise.

    values [K, classes] and halves [HALVES, K, classes] of `distances`.
    """
    kid = values.mean(1)
    found = [Figures(right.shape[1], int(right[0].sum()), float(kid[0]))]
    for place in range(1, len(right)):
        p_kid = None
        if halves is not None:
            apart = (halves[:, place] - halves[:, 0]).mean(1).std()
            p_kid = NormalDist().cdf(float((kid[place] - kid[0]) / max(apart, 1e-12)))
        gained, lost = ((one & ~other).sum() for one, other in (
            (right[place], right[0]), (right[0], right[place])))
        found.append(Figures(right.shape[1], int(right[place].sum()), float(kid[place]),
                             sign_test(int(gained), int(lost)), p_kid))
    return found
