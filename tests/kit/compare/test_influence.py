"""Influences are the derivatives of scikit-learn's scores by the weight of each image."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.compare.influence import influence


def score(name, probabilities, labels, weights):
    from sklearn import metrics

    said, there = probabilities.argmax(1), np.unique(labels)
    every = np.arange(probabilities.shape[1])
    if name == "accuracy":
        return metrics.accuracy_score(labels, said, sample_weight=weights)
    if name == "balanced_accuracy":
        return metrics.recall_score(labels, said, labels=there, average="macro",
                                    sample_weight=weights)
    if name == "macro_f1":
        return metrics.f1_score(labels, said, labels=every, average="macro", zero_division=0,
                                sample_weight=weights)
    if name == "weighted_f1":
        return metrics.f1_score(labels, said, labels=every, average="weighted", zero_division=0,
                                sample_weight=weights)
    if name == "kappa_quadratic":
        return metrics.cohen_kappa_score(labels, said, labels=every, weights="quadratic",
                                         sample_weight=weights)
    if name == "grade_closeness":
        return 1 - metrics.mean_absolute_error(labels, said, sample_weight=weights) / 2
    if name == "auroc":
        return np.mean([metrics.roc_auc_score(labels == k, probabilities[:, k],
                                              sample_weight=weights) for k in there])
    if name == "auprc_weighted":
        return metrics.average_precision_score(labels[:, None] == there, probabilities[:, there],
                                               average="weighted", sample_weight=weights)
    tumour = labels != 0
    if name == "sensitivity":
        return np.average(said[tumour] != 0, weights=weights[tumour])
    return np.average(said[~tumour] == 0, weights=weights[~tumour])


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1", "weighted_f1",
                                  "auroc", "auprc_weighted", "kappa_quadratic", "grade_closeness",
                                  "sensitivity", "specificity"])
@pytest.mark.parametrize("case", ["smooth", "tied", "a class nobody has"])
def test_an_influence_is_the_derivative_by_the_weight(name, case):
    rng = np.random.default_rng(len(case))
    probabilities, labels = rng.dirichlet(np.ones(3), 24), rng.integers(0, 3, 24)
    if case == "tied":
        probabilities = np.round(probabilities, 1)
    if case.startswith("a class"):
        labels %= 2
    if name == "kappa_quadratic":  # of random answers it would be cut at 0
        probabilities[:12] = 0.9 * np.eye(3)[labels[:12]] + 0.1 * probabilities[:12]
    found, step = influence(name, probabilities, labels, 0), 1e-5
    for image in (*range(0, 24, 5), int(np.argmax(np.abs(found)))):
        ends = []
        for sign in (1, -1):
            weights = np.ones(24)
            weights[image] += sign * step
            ends.append(score(name, probabilities, labels, weights))
        assert found[image] == pytest.approx((ends[0] - ends[1]) / 2 / step, abs=1e-8)
    assert found.sum() == pytest.approx(0, abs=1e-12)


def test_of_one_class_there_is_nothing_to_rank():
    assert not influence("auroc", np.full((4, 2), 0.5), np.zeros(4, int)).any()


def test_a_kappa_that_is_cut_at_0_is_moved_by_no_image():
    assert not influence("kappa_quadratic", np.eye(3)[[2, 1, 0]], np.arange(3)).any()
    assert not influence("kappa_quadratic", np.eye(3)[[1, 1]], np.ones(2, int)).any()


def test_a_score_without_influences_is_not_made_up():
    with pytest.raises(KeyError):
        influence("dice", np.full((4, 2), 0.5), np.zeros(4, int))
