"""The scores of a test split, by scikit-learn."""

from __future__ import annotations

import numpy as np

from lungkit.data import size_bands
from lungkit.data.dataset import Row


def score_classes(tested: dict[str, tuple[np.ndarray, np.ndarray, list[Row]]],
                  classes: list[str], *, ordinal: bool = False
                  ) -> tuple[dict, dict[str, np.ndarray]]:
    """What a record and its .npz hold of the two test splits.

    tested: {own, real: (probabilities float [N, C], labels int [N], rows)}, the rows in the same
    order. An image without a group id is its own group. ordinal: the classes are grades, in order
    (`Dataset.is_ordinal`).
    """
    record, arrays = {"task": "classify", "scores": {}}, {"classes": np.array(classes)}
    for split, (probabilities, labels, rows) in tested.items():
        scores, about = split_metrics(probabilities, labels, classes)
        if ordinal:
            graded, error = ordinal_metrics(labels, probabilities.argmax(1), len(classes))
            scores, about = scores | graded, about | error
        diameters = size_bands.diameters_mm(rows)
        if diameters is not None:
            about["by_size"] = by_size(probabilities, labels, diameters)
            arrays[f"{split}_{size_bands.COLUMN}"] = diameters
        record["scores"][split], record[split] = scores, about
        record[f"accuracy_{split}"] = scores["accuracy"]
        arrays |= {f"{split}_probabilities": probabilities, f"{split}_labels": labels,
                   f"{split}_file_names": np.array([row.file_name for row in rows]),
                   f"{split}_groups": np.array([row.group or row.file_name for row in rows])}
    return record, arrays


def split_metrics(probabilities: np.ndarray, labels: np.ndarray,
                  classes: list[str]) -> tuple[dict[str, float], dict]:
    """Class probabilities float [N, C] against labels int [N]: the scores, and what they are of.

    The scores are those of "classify". balanced_accuracy: mean recall of the classes there are.
    macro_f1: mean over all classes; one that is neither there nor said counts as 0. weighted_f1:
    F1 of each class, weighted by its share of images. auroc: unweighted mean over the classes
    there are of one against the rest. auprc_weighted: average precision of each class, weighted by
    its share of images; auprc_baseline, which is no score, is what guessing by that share would
    give. confusion_matrix: a row per true class.
    """
    from sklearn.metrics import (
        accuracy_score,
        average_precision_score,
        confusion_matrix,
        f1_score,
        recall_score,
    )

    every, said = np.arange(len(classes)), probabilities.argmax(1)
    present = np.unique(labels)
    share = np.bincount(labels) / len(labels)
    one_hot = labels[:, None] == present
    scores = {
        "accuracy": accuracy_score(labels, said),
        # its own function warns of a class that is said and not there
        "balanced_accuracy": recall_score(labels, said, labels=present, average="macro"),
        "macro_f1": f1_score(labels, said, labels=every, average="macro", zero_division=0),
        "weighted_f1": f1_score(labels, said, labels=every, average="weighted", zero_division=0),
        "auroc": mean_auroc(probabilities, labels),
        "auprc_weighted": average_precision_score(one_hot, probabilities[:, present],
                                                  average="weighted")}
    return ({name: float(value) for name, value in scores.items()},
            {"num_images": len(labels), "classes": list(classes),
             "auprc_baseline": float((share**2).sum()),
             "confusion_matrix": confusion_matrix(labels, said, labels=every).tolist()})


def ordinal_metrics(labels: np.ndarray, said: np.ndarray,
                    num_classes: int) -> tuple[dict[str, float], dict[str, float]]:
    """True grades int [N] against those said: the scores of ordinal classes, and their error.

    Grades are 0..num_classes-1, neighbours one apart. The error is mean_absolute_error, in grades,
    and kappa_uncut: Cohen's kappa with quadratic weights (Cohen 1968), which is below 0 where the
    grades said are further from the true ones than grades drawn in the same shares would be; 0
    where all are one grade. As scores: kappa_quadratic, the same cut at 0, for worse than chance
    is no less use than chance; grade_closeness, 1 - error / the largest there can be.
    """
    away = np.abs(labels - said)
    by_chance = np.mean((labels[:, None] - np.arange(num_classes))**2
                        @ np.bincount(said, minlength=num_classes)) / len(said)
    kappa = 1 - np.mean(away**2) / by_chance if by_chance else 0.0
    error = float(away.mean())
    return ({"kappa_quadratic": max(0.0, float(kappa)),
             "grade_closeness": 1 - error / (num_classes - 1)},
            {"kappa_uncut": float(kappa), "mean_absolute_error": error})


def by_size(probabilities: np.ndarray, labels: np.ndarray, diameters: np.ndarray) -> list[dict]:
    """What the images of each size band score: {band, num_images, accuracy, largest_class, auroc}.

    diameters: float [N] in mm, NaN: of no band. largest_class: the share of the band's largest
    class, which always saying it would score. None: no image, or, of auroc, one class only.
    """
    bands, found = size_bands.band_of(diameters), []
    for place, band in enumerate(size_bands.BANDS):
        told, true = probabilities[bands == place], labels[bands == place]
        found.append({
            "band": band, "num_images": len(true),
            "accuracy": float(np.mean(told.argmax(1) == true)) if len(true) else None,
            "largest_class": float(np.bincount(true).max() / len(true)) if len(true) else None,
            "auroc": mean_auroc(told, true) if len(np.unique(true)) > 1 else None})
    return found


def mean_auroc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The unweighted mean of `auroc` over the classes there are, each against the rest."""
    return float(np.mean([auroc(probabilities[:, k], labels == k) for k in np.unique(labels)]))


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive scores above a negative), ties counted half (Hanley and McNeil 1982)."""
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        return 0.5  # one class only: nothing to rank
    return float(roc_auc_score(positive, scores))
