"""What is read of every training, and what stops it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lungkit.compare.evidence import NoEvidence, calibration_error, read_evidence
from lungkit.compare.results import read_results
from lungkit.run.faults import Fault
from simulated_results import Truth, simulate

TRUTHS = {"real": Truth(0.9), "gan": Truth(0.7)}


@pytest.fixture
def tree(tmp_path):
    return simulate(TRUTHS, seed=0, repeats=3, replicates=2, groups=4).write(tmp_path / "results")


def read(tree, metric="accuracy_real", benign=None):
    return read_evidence(tree, read_results(tree), metric, benign)


def npz(tree, arm="gan", replicate=1, repeat=2) -> Path:
    return tree / f"{arm}/replicate_{replicate:03d}/repeat_{repeat:04d}.npz"


def change(path, **arrays):
    with np.load(path) as file:
        content = {**dict(file), **arrays}
    np.savez(path, **{name: value for name, value in content.items() if value is not None})


def test_the_answers_of_every_training_by_group(tree):
    found = read(tree)
    assert [split.replicates for split in found.splits] == [[0], [1]]
    assert len(found.groups) == 24 and found.groups[0] == "r0g000"
    assert np.bincount(found.strata).tolist() == [8, 8, 8]
    answers = found.arms["gan"][1]
    assert answers.trainings == [(1, 0), (1, 1), (1, 2)]
    with np.load(npz(tree)) as file:
        said, labels, groups = (file["real_probabilities"].argmax(1), file["real_labels"],
                                file["real_groups"])
    for place, name in enumerate(found.splits[1].groups):
        of_group = groups == name
        matrix = np.zeros((3, 3), int)
        np.add.at(matrix, (labels[of_group], said[of_group]), 1)
        assert (answers.confusion[2][place] == matrix).all()
        assert answers.influence[2][place] == pytest.approx(
            ((said == labels)[of_group] - (said == labels).mean()).sum() / len(labels))
    assert found.splits[0].groups_per_class == {"class0": 4, "class1": 4, "class2": 4}
    first, second = found.trainings("gan")
    assert first.influence.shape == (3, 24) and not first.influence[:, 12:].any()
    assert not second.influence[:, :12].any() and second.values.tolist() == answers.values


def test_several_sets_on_one_split_are_its_units():
    made = simulate(TRUTHS, seed=0, repeats=3, replicates=2, groups=4)
    for row in made.rows:  # both replicates test on one split
        row["real_fingerprint"] = "real0"
        if row["dataset"] == "real":
            row["dataset_fingerprint"] = "real0"
    for name, _, _ in made.arrays:
        for repeat in range(3):
            made.arrays[name, 1, repeat]["real_groups"] = made.arrays[name, 0, 0]["real_groups"]
    found = read_evidence(Path("results"), made.found(), "accuracy_real", None, made.read)
    [real], [gan] = found.trainings("real"), found.trainings("gan")
    assert len(real.values) == 6 and len(gan.values) == 2  # one set of real, two of gan
    assert gan.values[0] == pytest.approx(np.mean(found.arms["gan"][0].values[:3]))
    assert gan.influence[1] == pytest.approx(np.mean(found.arms["gan"][0].influence[3:], axis=0))


@pytest.mark.parametrize(("edit", "words"), [
    (lambda tree: npz(tree).unlink(), "gan/replicate_001/repeat_0002.npz is not there"),
    (lambda tree: change(npz(tree), real_groups=None), "repeat_0002.npz lacks real_groups"),
])
def test_without_the_answers_by_group_there_is_no_evidence(tree, edit, words):
    edit(tree)
    with pytest.raises(NoEvidence, match=words):
        read(tree)


@pytest.mark.parametrize("metric", ["accuracy_own", "accuracy", "dice_real", "sensitivity_real"])
def test_some_scores_have_no_value_by_real_test_image(tree, metric):
    with pytest.raises(NoEvidence):
        read(tree, metric)


@pytest.mark.parametrize(("arrays", "words"), [
    ({"real_probabilities": np.full((36, 3), 1 / 3, np.float32)}, "its record says"),
    ({"real_labels": np.zeros(36, int)}, "was tested on other images, groups or classes"),
    ({"real_groups": np.full(36, "g")}, "was tested on other images, groups or classes"),
    ({"classes": np.array(["a", "b", "c"])}, "was tested on other images, groups or classes"),
    ({"real_probabilities": np.zeros((35, 3))}, "was tested on other images, groups or classes"),
])
def test_answers_that_disagree_with_their_record_or_the_others_are_refused(tree, arrays, words):
    change(npz(tree), **arrays)
    with pytest.raises(Fault, match=words):
        read(tree)


def test_half_a_file_is_refused(tree):
    npz(tree).write_bytes(npz(tree).read_bytes()[:200])
    with pytest.raises(Fault, match="repeat_0002.npz is no whole .npz"):
        read(tree)


def test_images_without_a_group_are_counted(tree):
    for path in tree.glob("*/*/*.npz"):
        with np.load(path) as file:
            groups = file["real_groups"].astype("<U20")
            groups[:5] = file["real_file_names"][:5]
        change(path, real_groups=groups)
    assert [split.unknown for split in read(tree).splits] == [5, 5]


def test_a_group_with_images_of_two_classes_is_drawn_with_the_class_of_most(tree):
    for path in tree.glob("*/*/*.npz"):
        with np.load(path) as file:
            groups = np.where(file["real_groups"] == "r0g000", "r0g001", file["real_groups"])
            groups[-1] = "r0g001"
        change(path, real_groups=groups)
    found = read(tree)
    counts = found.splits[0].counts[found.splits[0].groups.index("r0g001")]
    assert counts.tolist() == [3, 3, 1]
    assert found.strata[found.groups.index("r0g001")] == 0
    assert found.splits[0].groups_per_class["class1"] == 4


def test_a_class_of_one_group_is_drawn_with_the_class_of_most():
    made = simulate(TRUTHS, seed=0, repeats=2, groups=4)
    for arrays in made.arrays.values():  # all of class1 but one group come with class0's
        for group, other in ((4, 3), (7, 6), (10, 9)):
            groups = arrays["real_groups"]
            groups[groups == f"r0g{group:03d}"] = f"r0g{other:03d}"
    found = read_evidence(Path("results"), made.found(), "accuracy_real", None, made.read)
    assert found.strata[found.groups.index("r0g001")] != 1
    assert min(np.bincount(found.strata)[np.unique(found.strata)]) > 1


def test_the_calibration_error_by_hand():
    confidence = np.repeat([0.9, 0.6], 50)
    right = np.repeat([True, False, True, False], [40, 10, 30, 20])
    shuffled = np.random.default_rng(0).permutation(50)
    # within bins of ten alike, 0.9 against 0.8 and 0.6 against 0.6, on average
    assert calibration_error(np.array([0.9] * 10), np.array([True] * 8 + [False] * 2)) \
        == pytest.approx((8 * 0.1 + 2 * 0.9) / 10)
    found = calibration_error(confidence, np.concatenate([right[:50][shuffled],
                                                          right[50:][shuffled]]))
    assert 0.05 <= found < 0.25
    assert calibration_error(np.array([0.7]), np.array([True])) == pytest.approx(0.3)
