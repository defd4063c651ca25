"""nuclei_classify.py: honest folds and draws, the result contract, and its place in a comparison."""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nuclei_classify
import voronoi_seg
from arms import content, fork, signal_when
from lungkit import records, results
from lungkit.cli import Fault
from lungkit.dataset import open_dataset
from lungkit.nuclear_features import IMAGES_FILE

pytest.importorskip("sklearn", reason="requirements.txt has scikit-learn")
SCRIPT = Path(nuclei_classify.__file__)


@pytest.fixture(scope="module", autouse=True)
def small_forests():
    patch = pytest.MonkeyPatch()
    patch.setattr(nuclei_classify, "TREES", 10)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def voronoi(real_dataset, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("classify") / "voronoi"
    assert voronoi_seg.main(["--real", str(real_dataset), "--output", str(output)]) == 0
    return output


def arguments(voronoi: Path, real: Path, output: Path, *more: str) -> list[str]:
    return ["--features", str(voronoi), "--real", str(real), "--results", str(output),
            "--repeats", "3", "--benign", "lung_n", *more]


@pytest.fixture(scope="module")
def made(voronoi, real_dataset) -> Path:
    output = voronoi.parent / "results"
    assert nuclei_classify.main(arguments(voronoi, real_dataset, output)) == 0
    return output


def read(output: Path) -> list[dict]:
    there = records.read_records(records.replicate_dir(output, "nuclei", 0))
    return [there[repeat] for repeat in sorted(there)]


# ------------------------------------------------------------------ draws, folds, choice

def grouped(num_groups: int = 12, per_group: int = 4) -> tuple[np.ndarray, np.ndarray]:
    groups = np.repeat([f"g{i}" for i in range(num_groups)], per_group)
    return groups, np.repeat(np.arange(num_groups) % 3, per_group)


def test_whole_groups_are_drawn_as_many_as_there_are_in_each_class():
    groups, labels = grouped()
    counts = []
    for seed in range(50):
        times = nuclei_classify.draw_groups(groups, labels, np.random.default_rng(seed))
        assert all(len(set(times[groups == group])) == 1 for group in groups)
        assert [times[labels == label].sum() for label in range(3)] == [16, 16, 16]
        assert all(len(set(groups[(times > 0) & (labels == label)])) > 1 for label in range(3))
        counts.append(times)
    assert np.mean(np.array(counts) == 0) == pytest.approx(0.3, abs=0.06)  # (1 - 1/4)^4, but 2 at least
    assert len({tuple(times) for times in counts}) > 40


def test_no_group_is_on_both_sides_of_a_fold():
    groups, labels = grouped()
    folds = nuclei_classify.split_folds(groups, labels, 0)
    assert len(folds) == 4  # a class has so many groups
    assert sorted(np.concatenate([check for _, check in folds])) == list(range(48))
    for fit, check in folds:
        assert not set(groups[fit]) & set(groups[check])
        assert set(labels[fit]) == {0, 1, 2}


@pytest.mark.parametrize("lopsided", [False, True])
def test_few_groups_that_span_classes_can_be_folded(lopsided, monkeypatch):
    """scikit-learn 1.7, of Python 3.10, finds no folds here whose fit holds every class."""
    groups = np.array([4, 2, 4, 3, 3, 1, 3, 0, 2])
    labels = np.repeat([0, 1, 2], 3)
    if lopsided:  # as it does, whatever the version
        monkeypatch.setattr("sklearn.model_selection.StratifiedGroupKFold.split",
                            lambda *_: iter([(np.arange(6), np.arange(6, 9))]))
    folds = nuclei_classify.split_folds(groups, labels, 0)
    assert folds
    for fit, check in folds:
        assert set(labels[fit]) == {0, 1, 2} and not set(groups[fit]) & set(groups[check])


def test_siblings_do_not_help_the_choice():
    """Noise that is alike within a group predicts nothing of other groups."""
    groups, labels = grouped(30, 10)
    noise = np.random.default_rng(0).normal(size=(30, 6))
    values = np.repeat(noise, 10, axis=0) + np.random.default_rng(1).normal(0, 0.01, (300, 6))
    _, accuracies = nuclei_classify.choose(values, labels, groups, np.ones(300), 0)
    assert max(accuracies) < 0.6
    alone = np.arange(300).astype(str)
    assert max(nuclei_classify.choose(values, labels, alone, np.ones(300), 0)[1]) > 0.9


def test_an_image_counts_as_often_as_it_is_drawn():
    values, labels = np.array([[0.0], [1.0], [1.0]]), np.array([0, 0, 1])
    for candidate in nuclei_classify.CANDIDATES[3:5]:
        few, many = (nuclei_classify.fit(candidate, values, labels, np.array([1, 1, times]), 0)
                     .predict_proba([[1.0]])[0, 1] for times in (1, 50))
        assert many > few + 0.2


def test_malignancy_counts_every_class_but_benign_as_tumour():
    probabilities = np.array([[0.3, 0.4, 0.3], [0.1, 0.8, 0.1], [0.45, 0.1, 0.45], [0.0, 0.2, 0.8]])
    told = nuclei_classify.malignancy(probabilities, np.array([1, 1, 0, 2]), 1)
    assert told == {"balanced_accuracy": 0.75, "sensitivity": 1, "specificity": 0.5, "auroc": 1}


# ------------------------------------------------------------------ the records

def test_records_keep_the_result_contract(made, voronoi, real_dataset):
    real, rows = open_dataset(real_dataset), read(made)
    assert [row["repeat"] for row in rows] == [0, 1, 2] and [row["seed"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["kind"] == "baseline" and row["dataset"] == "nuclei"
        assert row["accuracy_own"] == row["accuracy_real"] == row["real"]["accuracy"]
        assert row["real_fingerprint"] == real.fingerprint
        assert row["real"]["num_images"] == len(real.select("test"))
        seen = {entry["name"]: entry["splits"] for entry in row["trained_on"]}
        assert seen["real"] == ["train", "val"]
        assert row["num_train_images"] == row["num_pool_images"] == len(real.select("train"))
        assert 0 < row["num_distinct_images"] < row["num_pool_images"]
        best = max(row["candidates"], key=lambda each: each["accuracy"])
        assert {**row["chosen"], "accuracy": row["accuracy_cross_validated"]} == best
        assert 0 <= row["malignancy"]["auroc"] <= 1 and row["malignancy"]["benign"] == "lung_n"
    with np.load(made / "nuclei" / "replicate_000" / "repeat_0001.npz") as arrays:
        assert arrays["real_file_names"].tolist() == [row.file_name for row in real.select("test")]
        probabilities, labels = arrays["real_probabilities"], arrays["real_labels"]
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == labels).mean() == rows[1]["accuracy_real"]
    assert len({row["train_loss"] for row in rows}) == 3, "repeats are trainings of their own"


def test_nuclei_tell_the_simulated_classes_apart(made):
    assert np.mean([row["accuracy_all_groups"] for row in read(made)]) > 0.5  # chance is a third
    assert np.mean([row["malignancy"]["auroc"] for row in read(made)]) > 0.7


def test_test_labels_have_no_part_in_the_fit(made, voronoi, real_dataset, tmp_path, monkeypatch):
    """With the labels of val and test changed, the fitted models are the same."""
    bench_init = nuclei_classify.Bench.__init__

    def turned(self, *given):
        bench_init(self, *given)
        for split in ("val", "test"):
            self.labels[split] = (self.labels[split] + 1) % 3

    monkeypatch.setattr(nuclei_classify.Bench, "__init__", turned)
    assert nuclei_classify.main(arguments(voronoi, real_dataset, tmp_path / "out")) == 0
    for straight, other in zip(read(made), read(tmp_path / "out")):
        for name in ("train_loss", "chosen", "candidates"):
            assert straight[name] == other[name]
        assert straight["real"]["confusion_matrix"] != other["real"]["confusion_matrix"]


# ------------------------------------------------------------------ the stage

def test_again_is_complete_and_quick(made, voronoi, real_dataset):
    before = content(made)
    # another number of trees would be another recipe: ask with this process's
    code = ("import sys, nuclei_classify as n; n.TREES = 10; status = n.main(sys.argv[1:]); "
            "heavy = {'sklearn', 'scipy', 'torch', 'cv2', 'skimage', 'pandas'} & set(sys.modules); "
            "assert not heavy, heavy; sys.exit(status)")
    user_sec = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    answer = subprocess.run([sys.executable, "-c", code, *arguments(voronoi, real_dataset, made)],
                            capture_output=True, text=True, cwd=SCRIPT.parent)
    assert answer.returncode == 0 and "already complete" in answer.stdout, answer.stderr
    assert "tumour against lung_n" in answer.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - user_sec < 0.8
    assert content(made) == before


def test_other_options_are_refused_and_overwrite_redoes(made, voronoi, real_dataset, tmp_path, capsys):
    output = tmp_path / "results"
    shutil.copytree(made, output)
    other = arguments(voronoi, real_dataset, output, "--seed", "7")
    assert nuclei_classify.main(other) == 2
    assert "seed: 0 there, 7 now" in capsys.readouterr().err
    assert nuclei_classify.main([*other, "--overwrite"]) == 0
    assert [row["seed"] for row in read(output)] == [7, 8, 9]


def test_dry_run_writes_nothing(voronoi, real_dataset, tmp_path, capsys):
    assert nuclei_classify.main(arguments(voronoi, real_dataset, tmp_path / "out", "--dry-run")) == 0
    assert "pending 3 of 3" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_killed_or_stopped_and_run_again_gives_the_same_bytes(made, voronoi, real_dataset, tmp_path):
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)):
        output = tmp_path / str(int(number))
        call = arguments(voronoi, real_dataset, output)
        directory = records.replicate_dir(output, "nuclei", 0)
        pid = fork(lambda: nuclei_classify.main(call))
        assert signal_when(pid, lambda: (directory / "repeat_0000.json").exists(), number) == status
        assert len(read(output)) < 3, "it was complete before it could be stopped"
        assert nuclei_classify.main(call) == 0
        for row, again in zip(read(made), read(output)):
            assert {**row, "run": 0} == {**again, "run": 0}
        assert not list(output.rglob(".*")), "leftovers"


def test_bad_input_is_one_line(made, voronoi, real_dataset, tmp_path, capsys):
    def fault(*argv: str) -> tuple[int, str]:
        status = nuclei_classify.main(list(argv))
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("nuclei_classify.py: error: ")
        return status, error

    out = str(tmp_path / "out")
    status, error = fault("--features", str(real_dataset), "--real", str(real_dataset), "--results", out)
    assert status == 1 and IMAGES_FILE in error and "voronoi_seg.py" in error
    status, error = fault(*arguments(voronoi, real_dataset, Path(out), "--benign", "healthy"))
    assert status == 2 and "healthy" in error and "lung_n" in error
    status, error = fault(*arguments(voronoi, real_dataset, voronoi / "results"))
    assert status == 2 and "--results" in error
    broken = tmp_path / "voronoi"
    shutil.copytree(voronoi, broken)
    table = (broken / IMAGES_FILE).read_text()
    (broken / IMAGES_FILE).write_text(table.replace("1", "2"))
    status, error = fault(*arguments(broken, real_dataset, Path(out)))
    assert status == 1 and "altered" in error
    assert not Path(out).exists()


def test_a_dataset_that_saw_test_images_is_refused(voronoi, real_dataset, tmp_path, capsys):
    leaking = tmp_path / "voronoi"
    shutil.copytree(voronoi, leaking)
    manifest = json.loads((leaking / "dataset.json").read_text())
    manifest["parents"][0]["splits"]["train"] = ["train", "test"]
    (leaking / "dataset.json").write_text(json.dumps(manifest))
    assert nuclei_classify.main(arguments(leaking, real_dataset, tmp_path / "out")) == 1
    assert "saw test images" in capsys.readouterr().err


# ------------------------------------------------------------------ one arm of the comparison

def add_cnn(tree: Path, row: dict, dataset: str, **changed) -> None:
    """A CNN's records beside the baseline's, of the same real test images."""
    for repeat in range(3):
        cnn = copy.deepcopy(row) | {"dataset": dataset, "dataset_fingerprint": dataset, "seed": repeat,
                                    "repeat": repeat, "model": "small", "device": "cuda",
                                    "settings": {"steps": 9}, **changed}
        cnn.pop("kind")
        cnn.pop("malignancy")
        place = records.replicate_dir(tree, dataset, 0)
        place.mkdir(parents=True, exist_ok=True)
        records.repeat_path(place, repeat).write_text(json.dumps(cnn))


def test_the_comparison_takes_it_as_one_more_arm_and_says_what_it_is(made, tmp_path, capsys):
    import wilcoxon_test

    tree = tmp_path / "results"
    shutil.copytree(made, tree)
    for name in ("real", "voronoi"):
        add_cnn(tree, read(made)[0], name)
    found = results.read_results(tree)
    assert found.datasets == ["real", "nuclei", "voronoi"] and found.baselines == ["nuclei"]
    assert found.settings == {"model": "small", "steps": 9}
    assert not [text for text in found.warnings if text.startswith("mixed")]
    assert wilcoxon_test.main([str(tree), "--output", str(tmp_path / "comparison")]) == 0
    assert "nuclei" in capsys.readouterr().out
    page = (tmp_path / "comparison" / "report.html").read_text()
    assert "<b>nuclei</b> (classical baseline, no CNN)" in page
    assert "<b>voronoi</b>: " in page
    assert "nuclei: a classical baseline, no CNN." in page
    assert "nuclei tells tumour from lung_n" in page


@pytest.mark.parametrize(("dataset", "changed", "said"), [
    ("voronoi", {"settings": {"steps": 10}}, "settings is not one in all results \\("),
    ("nuclei", {"model": "another"}, "model is not one in all results of nuclei"),
    ("nuclei", {"kind": "cnn"}, "kind is not one in nuclei"),
    ("nuclei", {"kind": "oracle"}, "kind 'oracle'"),
    ("nuclei", {"real_fingerprint": "other"}, "real_fingerprint is not one")])
def test_only_a_baselines_settings_are_its_own(made, tmp_path, dataset, changed, said):
    tree = tmp_path / "results"
    shutil.copytree(made, tree)
    for name in ("real", "voronoi"):
        add_cnn(tree, read(made)[0], name)
    path = records.repeat_path(records.replicate_dir(tree, dataset, 0), 1)
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(Fault, match=said):
        results.read_results(tree)


def test_help_says_what_it_reads_and_needs_no_library():
    answer = subprocess.run(
        [sys.executable, "-c", "import sys, nuclei_classify; nuclei_classify.main(['--help']); "
         "print([m for m in ('sklearn', 'scipy', 'torch', 'cv2') if m in sys.modules])"],
        cwd=SCRIPT.parent, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})
    assert answer.stdout.rstrip().endswith("[]"), answer.stderr
    assert "Reads" in answer.stdout and "Exit status" in answer.stdout


def test_no_draw_lacks_a_class_that_is_a_majority_nowhere():
    """Patients of six benign and three tumour tiles; one class is the majority of one group."""
    groups = np.repeat([f"p{i}" for i in range(6)], 9)
    labels = np.tile([0] * 6 + [1] * 3, 6)
    labels[-9:] = 2
    labels[-18:-15] = 2
    drawn = set()
    for seed in range(100):
        times = nuclei_classify.draw_groups(groups, labels, np.random.default_rng(seed))
        assert all(len(set(groups[(times > 0) & (labels == label)])) >= 2 for label in range(3))
        drawn |= set(groups[times > 0])
    assert drawn == set(groups)
    labels[-18:-15] = 0  # now one group alone holds class 2
    with pytest.raises(Fault, match="add images of other patients"):
        nuclei_classify.draw_groups(groups, labels, np.random.default_rng(0))
