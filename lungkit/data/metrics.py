"""The scores of a test split."""

from __future__ import annotations

import numpy as np


def split_metrics(probabilities: np.ndarray, labels: np.ndarray, classes: list[str]) -> dict:
    """Metrics of class probabilities float [N, C] against labels int [N].

    auroc: unweighted mean over classes of one against the rest. auprc_weighted: average
    precision of each class weighted by its share of images; auprc_baseline is what guessing by
    that share would give. macro_f1 and balanced_accuracy are means over classes.
    """
    num_classes = len(classes)
    confusion = confusion_matrix(labels, probabilities.argmax(1), num_classes)
    right, true, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    present = true > 0
    share = true / true.sum()
    one_hot = labels[:, None] == np.arange(num_classes)
    aucs = [auroc(probabilities[:, k], one_hot[:, k]) for k in np.flatnonzero(present)]
    precisions = [average_precision(probabilities[:, k], one_hot[:, k])
                  for k in np.flatnonzero(present)]
    return {"num_images": int(true.sum()),
            "accuracy": float(right.sum() / true.sum()),
            "balanced_accuracy": float((right[present] / true[present]).mean()),
            "macro_f1": float((2 * right / np.maximum(true + said, 1)).mean()),
            "auroc": float(np.mean(aucs)),
            "auprc_weighted": float(np.dot(share[present], precisions)),
            "auprc_baseline": float((share**2).sum()),
            "confusion_matrix": confusion.tolist(),
            "classes": list(classes)}


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int [C, C]: rows are the true class, columns the predicted one."""
    flat = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive scores above a negative), ties counted half (Hanley and McNeil 1982)."""
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    midranks = (last - (size - 1) / 2)[group]
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return 0.5  # one class only: nothing to rank
    u = midranks[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(u / (num_positive * num_negative))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Sum of precision x gain in recall over the thresholds, as scikit-learn defines it."""
    _, group = np.unique(-scores, return_inverse=True)
    hits = np.bincount(group, weights=positive)
    precision = np.cumsum(hits) / np.cumsum(np.bincount(group))
    return float((precision * hits).sum() / positive.sum())
