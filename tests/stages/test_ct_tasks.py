"""The four tasks of CT, crop and slice, binary and five grades: scan to record to comparison."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import cnn_classify
import ct_seg
import wilcoxon_test
from ct_files import CHEST_STEP, ORIGIN, chest, write_mhd
from lungkit.data import metrics, size_bands
from lungkit.data.dataset import open_dataset
from lungkit.data.result import ORDINAL_SCORES, SCORES
from result_trees import arrays_of, keys_of, keys_on_page

PATIENTS = 9
# voxel, radius in mm and grade of the nodules of each patient: each largest in a slice of its own
NODULES = (((2, 30, 18), 2.5, 1), ((4, 26, 46), 3.5, 2), ((6, 32, 18), 5.0, 3),
           ((8, 28, 46), 7.0, 4), ((10, 30, 18), 9.0, 5))
TASKS = [f"{view}-{labels}" for view in ("crop", "slice") for labels in ("binary", "grade")]


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Nine chests with a nodule of every grade, MetaImage and a table. Read only."""
    root = tmp_path_factory.mktemp("scans")
    lines = ["file,x,y,z,diameter_mm,grade"]
    for number in range(PATIENTS):
        write_mhd(root / f"P{number}.mhd", chest([each[:2] for each in NODULES], seed=number),
                  step=CHEST_STEP)
        for (z, row, column), radius, grade in NODULES:
            x, y, z = (o + s * v for o, s, v in zip(ORIGIN, CHEST_STEP[::-1], (column, row, z)))
            lines.append(f"P{number},{x},{y},{z},{2 * radius},{grade}")
    (root / "nodules.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def runs(scans, tmp_path_factory) -> dict[str, Path]:
    """A run of every task: real, and two trainings on it. Read only.

    No training takes place: what is scored is an untrained CNN. No copies are looked for: all
    chests are one.
    """
    passed = {"recipe": 1, "passed": True, "num_training_images": 1, "num_test_images": 1}
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn_classify, "train", lambda *_, **__: 0.5)
        patch.setattr(cnn_classify.leaks, "require", lambda *_, **__: [passed])
        patch.setenv("OMP_NUM_THREADS", "1")
        for task in TASKS:
            root = found[task] = tmp_path_factory.mktemp(task)
            real, (view, labels) = root / "datasets/real", task.split("-")
            assert ct_seg.main(["--input", str(scans), "--nodules", str(scans / "nodules.csv"),
                                "--view", view, "--labels", labels, "--image-size", "16",
                                "--output", str(real)]) == 0
            assert cnn_classify.main([
                "--data", str(real), "--real", str(real), "--results", str(root / "results"),
                "--repeats", "2", "--steps", "3", "--batch-size", "4", "--device", "cpu"]) == 0
    return found


@pytest.fixture
def two_arms(runs, tmp_path) -> Path:
    """Results of five grades of real, and the same once more as those of an arm "gan"."""
    results = tmp_path / "results"
    shutil.copytree(runs["crop-grade"] / "results", results)
    shutil.copytree(results / "real", results / "gan")
    for path in results.glob("gan/*/*.json"):
        record = json.loads(path.read_text())
        seen = [{"name": "gan", "fingerprint": "gan", "splits": ["train", "val"]},
                {**record["trained_on"][0], "splits": ["train"]}]
        path.write_text(json.dumps(record | {"dataset": "gan", "dataset_fingerprint": "gan",
                                             "trained_on": seen}))
    return results


def path_of(run) -> Path:
    return run / "results/real/replicate_000/repeat_0000.json"


def record_of(run) -> dict:
    return json.loads(path_of(run).read_text())


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_classes_symmetries_and_sizes(runs, task):
    view, labels = task.split("-")
    record, data = record_of(runs[task]), open_dataset(runs[task] / "datasets/real")
    classes = {"binary": ["benign", "malignant"],
               "grade": [f"grade_{n}" for n in range(1, 6)]}[labels]
    assert record["real"]["classes"] == classes == data.classes
    assert record["settings"]["augmentation"] == "hu"
    assert record["settings"].get("symmetries", 8) == data.symmetries == {
        "crop": 8, "slice": 1}[view]
    rows = data.select("test")
    bands = [each["num_images"] for each in record["real"]["by_size"]]
    each_grade = len(rows) // len([grade for *_, grade in NODULES if labels == "grade"
                                   or grade != 3])
    assert bands == [each_grade, each_grade, each_grade * (2 if labels == "grade" else 1),
                     each_grade]
    with np.load(path_of(runs[task]).with_suffix(".npz")) as arrays:
        assert arrays["real_diameter_mm"].tolist() == [
            pytest.approx(float(row.extra["diameter_mm"])) for row in rows]
        again = metrics.by_size(arrays["real_probabilities"], arrays["real_labels"],
                                arrays["real_diameter_mm"])
    assert record["real"]["by_size"] == record["own"]["by_size"] == again


@pytest.mark.parametrize("task", TASKS)
def test_grades_alone_have_the_scores_of_grades(runs, task):
    record = record_of(runs[task])
    graded = task.endswith("grade")
    wanted = {*SCORES["classify"], *(ORDINAL_SCORES if graded else ())}
    assert set(record["scores"]["own"]) == set(record["scores"]["real"]) == wanted
    assert ("mean_absolute_error" in record["real"]) == graded


def test_the_page_lists_every_key_of_a_record_of_ct_and_no_other(runs):
    record = record_of(runs["crop-grade"])
    here = {"<split>.by_size", "<split>.kappa_uncut", "<split>.mean_absolute_error"}
    assert keys_of(record) - {"settings.augmentation"} == keys_on_page("The record") | here
    assert set(record["scores"]["real"]) == \
        keys_on_page("The scores of `classify`") | keys_on_page("Of grades")
    assert arrays_of(path_of(runs["crop-grade"])) == \
        keys_on_page("The .npz") | {f"<split>_{size_bands.COLUMN}"}


def test_arms_are_compared_by_kappa_and_shown_by_size(runs, two_arms, tmp_path, capsys):
    output = tmp_path / "comparison"
    assert wilcoxon_test.main([str(two_arms), "--output", str(output), "--metric",
                               "kappa_quadratic"]) == 0
    assert "uadratic-weighted kappa on real test images" in capsys.readouterr().out
    page = (output / "report.html").read_text()
    for words in ("Mean absolute error, grades", "<h2>By size</h2>", "8 to 15 mm",
                  "Closeness of grades", "Weighted F1"):
        assert words in page
    with open(output / "accuracies.csv", newline="") as file:
        first = next(csv.DictReader(file))
    record = record_of(runs["crop-grade"])
    for name in (*ORDINAL_SCORES, "weighted_f1"):
        assert float(first[f"{name}_real"]) == record["scores"]["real"][name]
    assert float(first["accuracy_8_to_15_mm_real"]) == record["real"]["by_size"][2]["accuracy"]
    with open(output / "sizes.csv", newline="") as file:
        assert [(line["dataset"], line["name"]) for line in csv.DictReader(file)] == [
            (arm, band) for arm in ("real", "gan") for band in size_bands.BANDS]


def test_what_not_all_records_have_is_not_compared_and_stops_else(two_arms, tmp_path, capsys):
    """Records of before a score and sizes were made are read beside later ones."""
    for path in two_arms.glob("gan/*/*.json"):
        record = json.loads(path.read_text())
        for split in ("own", "real"):
            del record[split]["by_size"]
            for name in ("weighted_f1", *ORDINAL_SCORES):
                del record["scores"][split][name]
        path.write_text(json.dumps(record))
        with np.load(path.with_suffix(".npz")) as file:
            arrays = {name: file[name] for name in file if "diameter" not in name}
        np.savez(path.with_suffix(".npz"), **arrays)
    assert wilcoxon_test.main([str(two_arms), "--output", str(tmp_path / "c")]) == 0
    assert wilcoxon_test.main([str(two_arms), "--output", str(tmp_path / "d"), "--metric",
                               "kappa_quadratic"]) == 2
    assert "kappa_quadratic is not a score of all these results" in capsys.readouterr().err
