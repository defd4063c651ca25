"""The scores of a test split, by scikit-learn."""

from __future__ import annotations

import numpy as np

from lungkit.data.dataset import Row


def score_classes(tested: dict[str, tuple[np.ndarray, np.ndarray, list[Row]]],
                  classes: list[str]) -> tuple[dict, dict[str, np.ndarray]]:
    """What a record and its .npz hold of the two test splits.

    tested: {own, real: (probabilities float [N, C], labels int [N], rows)}, the rows in the same
    order. An image without a group id is its own group.
    """
    record, arrays = {"task": "classify", "scores": {}}, {"classes": np.array(classes)}
    for split, (probabilities, labels, rows) in tested.items():
        record["scores"][split], record[split] = split_metrics(probabilities, labels, classes)
        record[f"accuracy_{split}"] = record["scores"][split]["accuracy"]
        arrays |= {f"{split}_probabilities": probabilities, f"{split}_labels": labels,
                   f"{split}_file_names": np.array([row.file_name for row in rows]),
                   f"{split}_groups": np.array([row.group or row.file_name for row in rows])}
    return record, arrays


def split_metrics(probabilities: np.ndarray, labels: np.ndarray,
                  classes: list[str]) -> tuple[dict[str, float], dict]:
    """Class probabilities float [N, C] against labels int [N]: the scores, and what they are of.

    The scores are those of "classify". balanced_accuracy: mean recall of the classes there are.
    macro_f1: mean over all classes; one that is neither there nor said counts as 0. auroc:
    unweighted mean over the classes there are of one against the rest. auprc_weighted: average
    precision of each class, weighted by its share of images; auprc_baseline, which is no score,
    is what guessing by that share would give. confusion_matrix: a row per true class.
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
        "auroc": np.mean([auroc(probabilities[:, k], labels == k) for k in present]),
        "auprc_weighted": average_precision_score(one_hot, probabilities[:, present],
                                                  average="weighted")}
    return ({name: float(value) for name, value in scores.items()},
            {"num_images": len(labels), "classes": list(classes),
             "auprc_baseline": float((share**2).sum()),
             "confusion_matrix": confusion_matrix(labels, said, labels=every).tolist()})


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive scores above a negative), ties counted half (Hanley and McNeil 1982)."""
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        return 0.5  # one class only: nothing to rank
    return float(roc_auc_score(positive, scores))
