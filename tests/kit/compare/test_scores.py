"""Scores by name and in words."""

from __future__ import annotations

import pytest

from lungkit.compare import scores
from lungkit.run.faults import Fault


@pytest.mark.parametrize(("metric", "words"), [
    ("accuracy_real", "accuracy on real test images"),
    ("accuracy_own", "accuracy on its own test images"), ("accuracy", "accuracy"),
    ("balanced_accuracy_real", "balanced accuracy on real test images"),
    ("auroc_own", "AUROC on its own test images"), ("macro_f1", "macro F1"),
    ("weighted_f1_real", "weighted F1 on real test images"),
    ("kappa_quadratic_real", "quadratic-weighted kappa on real test images"),
    ("grade_closeness", "closeness of grades"),
    ("ap50_real", "AP50 on real test images"), ("dice_real", "Dice on real test images")])
def test_a_metric_in_words(metric, words):
    assert scores.metric_words(metric) == words


def test_a_heading_keeps_the_capitals_within():
    assert scores.capital("macro F1") == "Macro F1" and scores.capital("AUROC") == "AUROC"


def test_only_accuracies_are_shares_of_test_images():
    assert [name for name in ("accuracy", "accuracy_real", "accuracy_own", "balanced_accuracy_real",
                              "auroc_real") if scores.is_accuracy(name)] == [
        "accuracy", "accuracy_real", "accuracy_own"]


@pytest.mark.parametrize("asked", [None, "accuracy"])
def test_where_no_score_is_shared_none_is_chosen(asked):
    with pytest.raises(Fault, match="share no score on both test splits"):
        scores.choose(asked, [])
