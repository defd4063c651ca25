"""Folds inside a train split, the scores of each, and the choice by one standard error.

Folds keep a group on one side and classes in proportion (scikit-learn's StratifiedGroupKFold). The
standard error is that of the mean over folds, whose training images overlap: no estimate of it
without bias exists (Bengio and Grandvalet 2004), and it is used as a yardstick only. The rule of
one standard error: the cheapest of those whose mean is not further below the best one's than the
best one's standard error (Breiman et al. 1984, section 3.4.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lungkit.data.dataset import Row
from lungkit.run.faults import Fault, several

MOST_DRAWS, DRAW_STEP = 100, 1009  # ours; a step apart, for seed + 1 is another search's first


@dataclass(frozen=True)
class Fold:
    """The images of one fold by number: trained on and held out, int64 sorted."""

    trained: np.ndarray
    held_out: np.ndarray


def group_names(rows: Sequence[Row]) -> np.ndarray:
    """The group of each image; one without an id is its own."""
    return np.array([row.group or row.file_name for row in rows])


def grouped_folds(labels: np.ndarray, groups: np.ndarray, classes: Sequence[str], folds: int,
                  seed: int) -> list[Fold]:
    """`folds` folds of the images; no group is on both sides of one, no side lacks a class.

    labels: int [N], into classes; groups: str [N]. Of few groups a division may leave a class out
    on a side: it is drawn again. Raises Fault where a class has fewer groups than there are folds,
    or MOST_DRAWS divisions leave one out.
    """
    numbers = [len(np.unique(groups[labels == k])) for k in range(len(classes))]
    few = [f"{label} has {number}" for label, number in zip(classes, numbers) if number < folds]
    if few:
        raise Fault(f"{folds} folds need as many groups of every class in train: {several(few)}: "
                    f"give --folds {max(2, min(numbers))} or images of more groups")
    for draw in range(MOST_DRAWS):
        found = _divide(labels, groups, folds, seed + DRAW_STEP * draw)
        lack = _lack(found, labels, classes)
        if not lack:
            return found
    raise Fault(f"{lack}, nor has any of {MOST_DRAWS} divisions all classes on both sides: its "
                "groups lie unevenly: give fewer --folds or images of more groups")


def _divide(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[Fold]:
    from sklearn.model_selection import StratifiedGroupKFold

    # which divides by class and group alone: the images themselves are not needed
    divided = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(
        np.zeros(len(labels)), labels, groups)
    return [Fold(np.sort(trained), np.sort(held_out)) for trained, held_out in divided]


def _lack(found: Sequence[Fold], labels: np.ndarray, classes: Sequence[str]) -> str:
    """Which classes the first uneven fold lacks, in words; empty where none does."""
    for number, fold in enumerate(found, 1):
        for images, side in ((fold.held_out, "holds out"), (fold.trained, "trains on")):
            there = set(labels[images].tolist())
            if lacking := [label for k, label in enumerate(classes) if k not in there]:
                only = " (one class only)" if len(there) == 1 else ""
                return (f"fold {number} of {len(found)} {side} no image of {several(lacking)}"
                        f"{only}")
    return ""


# ------------------------------------------------------------------ scores and choice

def mean_of(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores)


def standard_error(scores: Sequence[float]) -> float:
    """Of the mean of two scores or more: their standard deviation / sqrt(n)."""
    return float(np.std(scores, ddof=1)) / math.sqrt(len(scores))


@dataclass(frozen=True)
class Choice:
    """What the rule of one standard error says of candidates by name."""

    chosen: str
    best: str
    error: float        # the best one's standard error
    alike: list[str]    # within it of the best, the best itself left out; best mean first

    @property
    def within_noise(self) -> bool:
        return bool(self.alike)


def choose(scores: dict[str, Sequence[float]], costs: dict[str, tuple]) -> Choice:
    """The cheapest of what is within one standard error of the best.

    scores: by candidate, of the same folds. costs: what is compared first decides first; of two of
    one cost and of one mean the first given is taken.
    """
    means = {name: mean_of(each) for name, each in scores.items()}
    best = max(means, key=means.__getitem__)
    error = standard_error(scores[best])
    alike = [name for name in sorted(means, key=lambda name: -means[name])
             if name != best and means[name] >= means[best] - error]
    return Choice(min([best, *alike], key=costs.__getitem__), best, error, alike)


def shown(scores: Sequence[float]) -> str:
    """Mean and standard error as they are printed."""
    return f"{mean_of(scores):.3f} +- {standard_error(scores):.3f}"
