"""The scores of a test split: by hand, and against what was computed by hand before."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from lungkit.data import metrics
from lungkit.data.dataset import Row
from lungkit.data.result import SCORES

CLASSES = ["a", "b", "c"]


def scored(probabilities, labels, classes=CLASSES) -> dict:
    scores, about = metrics.split_metrics(np.array(probabilities), np.array(labels), classes)
    assert tuple(scores) == SCORES["classify"]
    assert all(type(value) is float and 0 <= value <= 1 for value in scores.values())
    return {**scores, **about}


def test_metrics_by_hand():
    # true 0 0 0 1 1 2; said 0 0 1 1 2 2
    found = scored([[.8, .1, .1], [.6, .3, .1], [.3, .5, .2],
                    [.2, .7, .1], [.4, .1, .5], [.1, .2, .7]], [0, 0, 0, 1, 1, 2])
    assert found["confusion_matrix"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found["num_images"] == 6 and found["accuracy"] == pytest.approx(4 / 6)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    # class 0: 8 of 9 pairs right; class 1: 4.5 of 8 (a tie at .1); class 2: 5 of 5
    assert found["auroc"] == pytest.approx((8 / 9 + 4.5 / 8 + 1) / 3)
    # class 0: hits at ranks 1, 2, 4; class 1: at rank 1, then both ties at .1 close at rank 6
    first, second = (1 + 1 + 3 / 4) / 3, (1 + 2 / 6) / 2
    assert found["auprc_weighted"] == pytest.approx(first / 2 + second / 3 + 1 / 6)
    assert found["auprc_baseline"] == pytest.approx(1 / 4 + 1 / 9 + 1 / 36)


def test_a_class_nobody_has_counts_in_macro_f1_alone():
    found = scored(np.full((4, 3), 1 / 3), [0, 0, 1, 1])
    assert found["accuracy"] == 0.5 and found["balanced_accuracy"] == 0.5
    assert found["auroc"] == 0.5 and found["auprc_weighted"] == found["auprc_baseline"] == 0.5
    assert found["macro_f1"] == pytest.approx(2 / 3 / 3)  # a: 2 of 2, 2 of 4; b and c: 0


def test_means_over_classes_weigh_a_rare_class_as_much_as_a_common_one():
    # 6 of class a, all right; 2 of class b, one right; 1 of class c, said to be a
    said = np.array([0] * 6 + [1, 0] + [0])
    found = scored(np.eye(3)[said], [0] * 6 + [1] * 2 + [2])
    assert found["accuracy"] == pytest.approx(7 / 9)
    assert found["balanced_accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found["macro_f1"] == pytest.approx((12 / 14 + 2 / 3 + 0) / 3)
    # ties count half: a 6 x (1 of 3 below, 2 tied), b 2 x 7 pairs, c 1 x 8 all tied
    assert found["auroc"] == pytest.approx(((6 + 6) / 18 + 10.5 / 14 + 0.5) / 3)
    assert found["auprc_baseline"] == pytest.approx((36 + 4 + 1) / 81)
    # a: 6 of 8 said; b: one alone, then 2 of 9; c: 1 of 9
    assert found["auprc_weighted"] == pytest.approx(
        6 / 9 * 6 / 8 + 2 / 9 * (1 + 2 / 9) / 2 + 1 / 9 * 1 / 9)
    assert found["confusion_matrix"] == [[6, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert found["classes"] == CLASSES


@pytest.mark.parametrize("scores, wanted", [
    ([0.1, 0.2, 0.8, 0.9], 1), ([0.9, 0.8, 0.2, 0.1], 0), ([0.5] * 4, 0.5),
    ([0.1, 0.5, 0.5, 0.9], 0.875)])
def test_auroc_is_the_share_of_pairs_in_order(scores, wanted):
    assert metrics.auroc(np.array(scores), np.array([False, False, True, True])) == wanted
    assert metrics.auroc(np.array(scores), np.ones(4, bool)) == 0.5  # nothing to rank


def by_hand(probabilities, labels, num_classes) -> dict:
    """The definitions, slowly: ties of two images of one class against the rest count half."""
    said = [int(np.argmax(each)) for each in probabilities]
    found = {"recall": [], "f1": [], "auroc": [], "precision": [], "share": []}
    for k in range(num_classes):
        true, told = labels == k, np.array(said) == k
        both = 2 * (true & told).sum()
        found["f1"].append(both / max(1, true.sum() + told.sum()))
        if not true.any():
            continue
        found["recall"].append((true & told).sum() / true.sum())
        score = probabilities[:, k]
        pairs = [(p > q) + (p == q) / 2 for p in score[true] for q in score[~true]]
        found["auroc"].append(np.mean(pairs) if pairs else 0.5)
        hits = [(true & (score >= p)).sum() / (score >= p).sum() for p in score[true]]
        found["precision"].append(np.mean(hits))
        found["share"].append(true.mean())
    return {"accuracy": np.mean(labels == said), "balanced_accuracy": np.mean(found["recall"]),
            "macro_f1": np.mean(found["f1"]), "auroc": np.mean(found["auroc"]),
            "auprc_weighted": np.dot(found["share"], found["precision"])}


@pytest.mark.parametrize("case", range(24))
def test_scores_are_their_definitions_to_the_last_digits_and_nothing_is_warned_of(case):
    rng = np.random.default_rng(case)
    num_classes, num_images = int(rng.integers(2, 5)), int(rng.integers(1, 40))
    probabilities = rng.dirichlet(np.ones(num_classes), num_images)
    if case % 2:
        probabilities = np.round(probabilities, 1)  # ties
    labels = rng.integers(0, num_classes - (case % 3 == 0), num_images)  # of one class nobody
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scored(probabilities.astype(np.float32), labels, list(range(num_classes)))
    wanted = by_hand(probabilities.astype(np.float32), labels, num_classes)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-12, rel=0)


def test_a_record_gets_scores_and_its_npz_the_group_of_every_test_image():
    rows = [Row(f"test/a/{k}.png", CLASSES[k], "test", group=group)
            for k, group in enumerate(("p1", "p1", ""))]
    own, real = np.eye(3)[[0, 1, 2]], np.eye(3)[[0, 0, 0]]
    labels = np.arange(3)
    record, arrays = metrics.score_classes(
        {"own": (own, labels, rows), "real": (real, labels, rows[::-1])}, CLASSES)
    assert record["task"] == "classify"
    assert record["accuracy_own"] == record["scores"]["own"]["accuracy"] == 1
    assert record["accuracy_real"] == record["scores"]["real"]["accuracy"] == 1 / 3
    assert set(record["own"]) == {"num_images", "classes", "auprc_baseline", "confusion_matrix"}
    assert arrays["own_groups"].tolist() == ["p1", "p1", "test/a/2.png"]  # alone: its own group
    assert arrays["real_groups"].tolist() == ["test/a/2.png", "p1", "p1"]
    assert arrays["real_file_names"].tolist() == [row.file_name for row in rows[::-1]]
    assert arrays["real_probabilities"] is real and arrays["own_labels"] is labels
