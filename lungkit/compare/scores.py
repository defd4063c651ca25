"""The scores a comparison can be of: their names in records, their words for readers.

A score's name is <name>_<split>, e.g. auroc_real: on the real test images, which all datasets
share, or auroc_own: on the test split of the dataset itself. A CSV has one score, accuracy.
"""

from __future__ import annotations

from lungkit.data.result import ORDINAL_SCORES, SCORES, TUMOUR_SCORES
from lungkit.run.faults import BadOptions, Fault

WORDS = {"macro_f1": "macro F1", "weighted_f1": "weighted F1", "auroc": "AUROC",
         "auprc_weighted": "weighted AUPRC", "kappa_quadratic": "quadratic-weighted kappa",
         "grade_closeness": "closeness of grades",
         "auprc_baseline": "AUPRC by prevalence", "sensitivity": "sensitivity for tumour",
         "specificity": "specificity for tumour", "ap50": "AP50", "dice": "Dice"}
SPLIT_WORDS = {"real": "on real test images", "own": "on its own test images"}


def parts(metric: str) -> tuple[str, str | None]:
    """The name and the test split of a score: ("auroc", "real"); a CSV's has no split, None."""
    name, _, split = metric.rpartition("_")
    return (name, split) if split in SPLIT_WORDS else (metric, None)


def is_accuracy(metric: str) -> bool:
    """Whether the values are shares of test images: they have a chance level and an interval."""
    return parts(metric)[0] == "accuracy"


def on_grid(metric: str) -> bool:
    """Whether the values are shares of test images, or means of one share a class."""
    return parts(metric)[0] in ("accuracy", "balanced_accuracy")


def metric_words(metric: str) -> str:
    """E.g. "macro F1 on real test images"; of a name without a split, the name alone."""
    name, split = parts(metric)
    words = WORDS.get(name, name.replace("_", " "))
    return f"{words} {SPLIT_WORDS[split]}" if split else words


def capital(words: str) -> str:
    """The words as a heading: "Macro F1", not "Macro f1"."""
    return words[:1].upper() + words[1:]


def known(names: set[str] | None = None) -> list[str]:
    """The scores of these names on both splits, accuracies first; None: those of every task."""
    if names is None:
        names = {name for of_task in SCORES.values() for name in of_task} | {
            *ORDINAL_SCORES, *TUMOUR_SCORES}
    return [f"{name}_{split}" for name in sorted(names, key=lambda name: (name != "accuracy", name))
            for split in SPLIT_WORDS]


def choose(asked: str | None, offered: list[str]) -> str:
    """The score that --metric means: of no split, that on the real test images. None: the first.

    Raises BadOptions for one that is not offered, Fault where none is.
    """
    if not offered:
        raise Fault("the results share no score on both test splits: nothing can be compared")
    if asked is None:
        return offered[0]
    for metric in (asked, f"{asked}_real"):
        if metric in offered:
            return metric
    raise BadOptions(f"--metric {asked} is not a score of all these results; there are "
                     f"{', '.join(offered)}")
