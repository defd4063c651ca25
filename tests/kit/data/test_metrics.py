"""The scores of a test split: by hand, and against what was computed by hand before."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from lungkit.data import metrics, size_bands
from lungkit.data.dataset import Row
from lungkit.data.result import ORDINAL_SCORES, SCORES

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
    assert found["weighted_f1"] == pytest.approx((3 * 4 / 5 + 2 * 2 / 4 + 2 / 3) / 6)
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
    found = {"recall": [], "f1": [], "auroc": [], "precision": [], "share": [], "weight": []}
    for k in range(num_classes):
        true, told = labels == k, np.array(said) == k
        both = 2 * (true & told).sum()
        found["f1"].append(both / max(1, true.sum() + told.sum()))
        found["weight"].append(true.mean())
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
            "macro_f1": np.mean(found["f1"]),
            "weighted_f1": np.dot(found["weight"], found["f1"]), "auroc": np.mean(found["auroc"]),
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


# ------------------------------------------------------------------ grades

def test_grades_are_scored_by_how_far_they_are_off():
    # true 0 1 2 3 4; said 0 1 2 3 0: one off by four of four
    scores, about = metrics.ordinal_metrics(np.arange(5), np.array([0, 1, 2, 3, 0]), 5)
    assert tuple(scores) == ORDINAL_SCORES
    assert about["mean_absolute_error"] == pytest.approx(4 / 5)
    assert scores["grade_closeness"] == pytest.approx(1 - 4 / 5 / 4)
    # observed 16 / 5; by chance the mean of (i - k)^2 with k of 0, 0, 1, 2, 3: 30/5, 14/5, ...
    by_chance = np.mean([(i - k)**2 for i in range(5) for k in (0, 0, 1, 2, 3)])
    assert scores["kappa_quadratic"] == about["kappa_uncut"] == pytest.approx(
        1 - 16 / 5 / by_chance)


@pytest.mark.parametrize("case", range(12))
def test_kappa_and_error_are_those_of_scikit_learn(case):
    from sklearn.metrics import cohen_kappa_score, mean_absolute_error

    rng = np.random.default_rng(case)
    labels = rng.integers(0, 5 - (case % 3 == 0), 30)  # of one grade nobody
    said = np.clip(labels + rng.integers(-2, 3, 30), 0, 4)
    scores, about = metrics.ordinal_metrics(labels, said, 5)
    assert about["kappa_uncut"] == pytest.approx(
        cohen_kappa_score(labels, said, weights="quadratic", labels=range(5)), abs=1e-12)
    assert about["mean_absolute_error"] == pytest.approx(mean_absolute_error(labels, said))
    assert all(type(value) is float and 0 <= value <= 1 for value in scores.values())


def test_worse_than_chance_is_no_less_than_chance_and_one_grade_agrees_with_nothing():
    scores, about = metrics.ordinal_metrics(np.arange(5), np.arange(5)[::-1], 5)
    assert about["kappa_uncut"] == pytest.approx(-1) and scores["kappa_quadratic"] == 0
    scores, about = metrics.ordinal_metrics(np.full(4, 2), np.full(4, 2), 5)
    assert about["kappa_uncut"] == 0 and scores == {"kappa_quadratic": 0, "grade_closeness": 1}
    scores, about = metrics.ordinal_metrics(np.arange(5), np.full(5, 1), 5)
    assert about["kappa_uncut"] == pytest.approx(0)  # the same grade of all images: chance


# ------------------------------------------------------------------ sizes

@pytest.mark.parametrize(("diameter", "band"), [
    (0.1, 0), (5.999, 0), (6, 1), (7.999, 1), (8, 2), (14.999, 2), (15, 3), (60, 3), (np.nan, -1)])
def test_a_band_holds_its_lower_edge(diameter, band):
    assert size_bands.band_of(np.array([diameter], np.float32)).tolist() == [band]


def test_what_a_band_scores_is_of_its_images_alone():
    diameters = np.array([4, 5, 5.5, 6, 7, 7, 7.9, 20, np.nan], np.float32)
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 0])
    malignant = np.array([.1, .2, .9, .1, .6, .4, .8, .3, .9])
    found = metrics.by_size(np.stack([1 - malignant, malignant], 1), labels, diameters)
    assert found == [
        {"band": "below 6 mm", "num_images": 3, "accuracy": 2 / 3, "largest_class": 1,
         "auroc": None},
        {"band": "6 to 8 mm", "num_images": 4, "accuracy": 2 / 4, "largest_class": 1 / 2,
         "auroc": 3 / 4},
        {"band": "8 to 15 mm", "num_images": 0, "accuracy": None, "largest_class": None,
         "auroc": None},
        {"band": "from 15 mm", "num_images": 1, "accuracy": 0, "largest_class": 1, "auroc": None}]


def test_a_record_of_nodules_says_its_scores_by_size_and_of_grades_their_distance():
    rows = [Row(f"test/a/{k}.png", "a", "test", extra={"diameter_mm": mm} if mm else {})
            for k, mm in enumerate(("7.25", "", None))]
    tested = (np.eye(3)[[0, 1, 1]], np.arange(3), rows)
    plain = (np.eye(3)[[0, 1, 1]], np.arange(3), [rows[2]] * 3)
    record, arrays = metrics.score_classes({"own": plain, "real": tested}, CLASSES, ordinal=True)
    assert set(record["real"]) - set(record["own"]) == {"by_size"}
    assert [each["num_images"] for each in record["real"]["by_size"]] == [0, 1, 0, 0]
    np.testing.assert_array_equal(arrays["real_diameter_mm"],
                                  np.array([7.25, np.nan, np.nan], np.float32))
    assert "own_diameter_mm" not in arrays
    for split in ("own", "real"):
        assert set(record["scores"][split]) == {*SCORES["classify"], *ORDINAL_SCORES}
        assert record[split]["mean_absolute_error"] == pytest.approx(1 / 3)
    unordered, _ = metrics.score_classes({"own": plain, "real": plain}, CLASSES)
    assert set(unordered["scores"]["real"]) == set(SCORES["classify"])


# ------------------------------------------------------------------ records

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
