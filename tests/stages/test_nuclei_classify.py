"""nuclei_classify.py: honest folds and draws, the result contract, its place in a comparison."""

from __future__ import annotations

import copy
import dataclasses
import json
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
from lungkit.compare import results
from lungkit.data import result
from lungkit.data.dataset import Dataset, Row, open_dataset
from lungkit.data.manifest import DEFAULTS
from lungkit.nuclei.features import IMAGES_FILE
from lungkit.run.faults import Fault
from result_trees import arrays_of, keys_of, keys_on_page, write_repeat

pytest.importorskip("sklearn", reason="requirements.txt has scikit-learn")
pytestmark = pytest.mark.usefixtures("found_once")
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
    there = result.read_records(result.replicate_dir(output, "nuclei", 0))
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
    # (1 - 1/4)^4, but 2 at least
    assert np.mean(np.array(counts) == 0) == pytest.approx(0.3, abs=0.06)
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


def test_folds_are_five_at_most_and_drawn_by_their_seed():
    groups, labels = grouped(30)
    first, again, other = (nuclei_classify.split_folds(groups, labels, seed) for seed in (0, 0, 1))
    assert len(first) == 5
    checked = [[check.tolist() for _, check in folds] for folds in (first, again, other)]
    assert checked[0] == checked[1] != checked[2]


def test_a_gap_is_filled_by_the_median_of_what_the_model_is_fitted_to():
    gap = np.nan
    values = np.array([[0.0, gap], [1.0, gap], [50.0, gap], [gap, gap]])  # a column without any
    for candidate in nuclei_classify.CANDIDATES[3:5]:
        model = nuclei_classify.fit(candidate, values, np.array([0, 0, 1, 1]), np.ones(4), 0)
        told = [model.predict_proba([[value, 3.0]])[0] for value in (gap, 1.0)]
        assert np.array_equal(*told)
        assert model.named_steps["model"].n_features_in_ == 2


def test_the_unit_of_a_feature_does_not_matter():
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(30, 3)), np.arange(30) % 3
    values += labels[:, None]
    for candidate in nuclei_classify.CANDIDATES[:2]:
        told = [nuclei_classify.fit(candidate, values * unit, labels, np.ones(30), 0)
                .predict_proba(values * unit) for unit in (1.0, [1e4, 1.0, 1e-4])]
        np.testing.assert_allclose(*told, atol=1e-3)


def test_a_forest_is_grown_by_its_seed():
    groups, labels = grouped(9)
    values = np.random.default_rng(0).normal(size=(36, 4))
    told = [nuclei_classify.fit(("forest", {"min_samples_leaf": 1}), values, labels, np.ones(36),
                                seed).predict_proba(values) for seed in (0, 0, 1)]
    assert np.array_equal(told[0], told[1]) and not np.array_equal(told[0], told[2])


class Knows:
    """A model that answers by a table {first feature: class}, sure of itself to a given degree."""

    def __init__(self, answers, sure=lambda value: 0.9):
        self.answers, self.sure = answers, sure

    def predict(self, values):
        return np.array([self.answers[value] for value in values[:, 0]])

    def predict_proba(self, values):
        sure = np.array([self.sure(value) for value in values[:, 0]])
        told = np.repeat((1 - sure)[:, None] / 2, 3, axis=1)
        told[np.arange(len(values)), self.predict(values)] = sure
        return told


def test_cross_validated_accuracy_counts_an_image_as_often_as_it_is_drawn(monkeypatch):
    groups, labels = grouped()
    values, times = np.arange(48.0)[:, None], np.arange(48) // 4 % 5
    right = {candidate: np.random.default_rng(k).random(48) < 0.5 for k, candidate in
             enumerate(map(str, nuclei_classify.CANDIDATES))}

    def fit(candidate, values, fitted_labels, fitted_times, seed):
        inside = values[:, 0].astype(int)
        assert fitted_labels.tolist() == labels[inside].tolist()
        assert fitted_times.tolist() == times[inside].tolist()
        assert len(set(groups[inside])) == 9  # three of the twelve groups are left out
        said = {k: label if ok or k in inside else (label + 1) % 3
                for k, (label, ok) in enumerate(zip(labels, right[str(candidate)]))}
        return Knows(said)

    monkeypatch.setattr(nuclei_classify, "fit", fit)
    best, accuracies = nuclei_classify.choose(values, labels, groups, times, 0)
    assert accuracies == pytest.approx([np.average(each, weights=times) for each in right.values()])
    assert best == int(np.argmax(accuracies))


def test_of_equally_accurate_candidates_the_simplest_is_chosen(monkeypatch):
    groups, labels = grouped()
    monkeypatch.setattr(nuclei_classify, "fit", lambda *_: Knows(dict(enumerate(labels))))
    best, accuracies = nuclei_classify.choose(
        np.arange(48.0)[:, None], labels, groups, np.ones(48), 0)
    assert set(accuracies) == {1.0}
    assert nuclei_classify.CANDIDATES[best] == ("logistic", {"C": 0.01})


@pytest.mark.parametrize("benign, score, called", [(0.5, 0.5, False), (0.4375, 0.5625, True)])
def test_tumour_is_called_where_benign_is_below_one_half(benign, score, called):
    told = nuclei_classify.malignancy(np.array([[score, benign], [0.0, 1.0]]), np.array([0, 1]), 1)
    assert told["sensitivity"] == called and told["specificity"] == 1
    assert told["balanced_accuracy"] == (called + 1) / 2


def test_malignancy_counts_every_class_but_benign_as_tumour():
    probabilities = np.array([[0.3, 0.4, 0.3], [0.1, 0.8, 0.1], [0.45, 0.1, 0.45], [0.0, 0.2, 0.8]])
    told = nuclei_classify.malignancy(probabilities, np.array([1, 1, 0, 2]), 1)
    assert told == {"balanced_accuracy": 0.75, "sensitivity": 1, "specificity": 0.5, "auroc": 1}


# ------------------------------------------------------------------ one repeat, followed by spies

CLASSES = ["a", "b", "c"]
GROUPS = {"train": 4, "val": 2, "test": 2}  # of each class, of two images


def tiny_rows(groups: dict = GROUPS) -> list[Row]:
    rows = []
    for split, num_groups in groups.items():
        for k in range(3 * num_groups * 2):
            label = CLASSES[k // 2 % 3]
            rows.append(Row(f"{split}/{label}/{len(rows):06d}.png", label, split,
                            group=f"{split}{k // 2}"))
    return rows


def dataset(name: str, rows: list[Row], warnings: tuple = ()) -> Dataset:
    return Dataset(Path(name), {**DEFAULTS, "name": name, "classes": CLASSES, "image_size": 64,
                                "parents": [],
                                "fingerprint": name, "warnings": list(warnings)}, rows)


@pytest.fixture
def tiny_bench(monkeypatch):
    """Make a bench whose only feature is the number of an image; list what is fitted."""
    def make(*, groups=GROUPS, rows=None, real_rows=None, features=None, benign=None):
        rows = rows or tiny_rows(groups)
        table = features or {row.file_name: [float(k)] for k, row in enumerate(rows)}
        monkeypatch.setattr(nuclei_classify, "read_image_features", lambda *_: table)
        return nuclei_classify.Bench(dataset("voronoi", rows, ["of the features", "of both"]),
                                     dataset("real", real_rows or rows, ["of both", "of real"]),
                                     "nuclei", benign)
    return make


def followed(monkeypatch, bench, directory, *, final=("train",), on_all=("train",),
             sure=lambda value: 0.9, **identity) -> tuple[dict, list]:
    """Run a repeat whose models know the named splits by heart and are wrong on the others.

    Returns the record and every fit as (numbers of the images, labels, times, seed).
    """
    fits = []

    def fit(candidate, values, labels, times, seed):
        fits.append((values[:, 0].astype(int).tolist(), labels.tolist(), times.tolist(), seed))
        known = on_all if len(values) == len(bench.values["train"]) else final
        return Knows({value[0]: label if split in known else (label + 1) % 3
                      for split in GROUPS for value, label in
                      zip(bench.values[split], bench.labels[split])}, sure)

    monkeypatch.setattr(nuclei_classify, "fit", fit)
    asked = {"dataset": "nuclei", "seed": 0, "replicate": 0, "repeat": 0, **identity}
    bench.run_repeat(asked, directory)
    return result.read_records(directory)[asked["repeat"]], fits


@pytest.mark.parametrize("final, on_all, wanted", [
    (["val"], ["train"], {"val": 1, "own": 0, "real": 0, "all_groups": 0}),
    (["test"], ["val"], {"val": 0, "own": 1, "real": 1, "all_groups": 0}),
    (["train"], ["test"], {"val": 0, "own": 0, "real": 0, "all_groups": 1})])
def test_an_accuracy_is_that_of_its_own_model_on_its_own_split(
        tiny_bench, monkeypatch, tmp_path, final, on_all, wanted):
    record, _ = followed(monkeypatch, tiny_bench(), tmp_path, final=final, on_all=on_all)
    assert {name: record[f"accuracy_{name}"] for name in wanted} == wanted
    assert record["real"] == record["own"] and record["own"]["num_images"] == 12
    assert record["scores"]["real"] == record["scores"]["own"]
    with np.load(tmp_path / "repeat_0000.npz") as arrays:
        said = arrays["real_probabilities"].argmax(1)
        assert (said == arrays["real_labels"]).mean() == wanted["real"]


def test_nothing_is_fitted_to_val_or_test_and_the_draw_is(tiny_bench, monkeypatch, tmp_path):
    bench = tiny_bench()
    record, fits = followed(monkeypatch, bench, tmp_path)
    *folds, (drawn, _, times, _), (every, _, once, _) = fits
    assert every == list(range(24)) and once == [1] * 24
    assert sum(times) == record["num_train_images"] == 24 and min(times) > 0 and max(times) > 1
    assert len(drawn) == record["num_distinct_images"] < record["num_pool_images"] == 24
    assert record["num_groups"] == 12
    drawn_times = dict(zip(drawn, times))
    for images, labels, fold_times, _ in fits[:-1]:
        assert [drawn_times[k] for k in images] == fold_times
        assert labels == [k // 2 % 3 for k in images]
    assert all(len(images) < len(drawn) for images, *_ in folds)
    assert {seed for *_, seed in fits} == {fits[0][-1]}


def test_train_loss_is_of_the_drawn_images_as_often_as_drawn(tiny_bench, monkeypatch, tmp_path):
    record, fits = followed(monkeypatch, tiny_bench(), tmp_path,
                            sure=lambda value: 0.5 + value / 100)
    drawn, _, times, _ = fits[-2]
    assert record["train_loss"] == pytest.approx(
        sum(n * -np.log(0.5 + k / 100) for k, n in zip(drawn, times)) / 24)


def test_the_record_says_what_it_is_and_the_warnings_of_both_datasets(
        tiny_bench, monkeypatch, tmp_path):
    record, _ = followed(monkeypatch, tiny_bench(), tmp_path)
    assert record["warnings"] == ["of the features", "of both", "of real"]
    assert record["kind"] == "baseline" and "malignancy" not in record
    assert [(each["name"], each["splits"]) for each in record["trained_on"]] == \
        [("voronoi", ["train", "val"])]


def test_a_bench_holds_the_features_as_measured(tiny_bench):
    """Whatever they are filled or scaled by is learnt later, from what a model is fitted to."""
    values = {split: each.tolist() for split, each in tiny_bench().values.items()}
    numbers = [[float(k)] for k in range(48)]
    assert values == {"train": numbers[:24], "val": numbers[24:36], "test": numbers[36:]}


def test_tumour_is_told_from_the_named_class(tiny_bench, monkeypatch, tmp_path):
    # a, which is no benign class here, is taken for a with a probability of a tenth only
    record, _ = followed(monkeypatch, tiny_bench(benign="b"), tmp_path, final=["test"],
                         sure=lambda value: 0.9 if value // 2 % 3 else 0.1)
    told = record["malignancy"]
    assert (told["benign"], told["specificity"], told["sensitivity"]) == ("b", 1, 1)


def test_no_two_repeats_or_replicates_share_a_draw(tiny_bench, monkeypatch, tmp_path):
    fits = [followed(monkeypatch, tiny_bench(), tmp_path / f"{seed}{replicate}", seed=seed,
                     replicate=replicate)[1] for seed in (0, 1) for replicate in (0, 1)]
    assert len({repr(each[-2][:3]) for each in fits}) == len({each[-2][-1] for each in fits}) == 4
    again = followed(monkeypatch, tiny_bench(), tmp_path / "again", seed=1, replicate=1)[1]
    assert again == fits[-1]


def test_without_group_ids_every_image_is_its_own_group(tiny_bench):
    rows = [dataclasses.replace(row, group="") for row in tiny_rows()]
    assert len(set(tiny_bench(rows=rows).groups)) == len(tiny_bench().groups) == 24
    assert len(set(tiny_bench().groups)) == 12


@pytest.mark.parametrize(("given", "said"), [
    ({"groups": {**GROUPS, "train": 1}}, "class a has 1 group in the train split"),
    ({"real_rows": tiny_rows({**GROUPS, "test": 1})}, "has other test images than real"),
    ({"real_rows": [dataclasses.replace(row, label="a") for row in tiny_rows()]},
     "has other test images than real"),
    ({"features": {row.file_name: [0.0] for row in tiny_rows()[:-2]}}, "lacks 2 images")])
def test_a_baseline_on_other_ground_than_the_cnns_is_refused(tiny_bench, given, said):
    with pytest.raises(Fault, match=said):
        tiny_bench(**given)


@pytest.mark.parametrize("asked, named, wanted", [
    (None, [], None), (None, ["n"], "n"), (None, ["n", "m"], None), ("m", ["n"], "m"),
    ("m", [], "m")])
def test_benign_is_as_asked_or_as_the_real_dataset_says(asked, named, wanted):
    assert nuclei_classify.benign_class(asked, {"parameters": {"benign": named}}) == wanted
    assert nuclei_classify.benign_class(asked, {}) == asked


def test_what_decides_a_repeat():
    data = {"fingerprint": "images", "features": {IMAGES_FILE: {"sha256": "table"}},
            "image_size": 64, "classes": CLASSES}
    real = {"fingerprint": "real", "classes": CLASSES}
    found = nuclei_classify.identify(Path("x"), data, real, range(2, 4), baseline="nuclei",
                                     replicate=5, seed=10, benign="a")
    assert [(each["repeat"], each["seed"]) for each in found] == [(2, 12), (3, 13)]
    for each in found:
        assert (each["dataset_fingerprint"], each["real_fingerprint"]) == ("table", "real")
        assert each["replicate"] == 5
        assert each["settings"] == {"recipe": 1, "folds": 5, "trees": nuclei_classify.TREES,
                                    "benign": "a", "image_size": 64}


# ------------------------------------------------------------------ the records

def test_records_keep_the_result_contract(made, voronoi, real_dataset):
    real, rows = open_dataset(real_dataset), read(made)
    assert [(row["repeat"], row["seed"]) for row in rows] == [(0, 0), (1, 1), (2, 2)]
    for row in rows:
        assert row["kind"] == "baseline" and row["dataset"] == "nuclei"
        assert row["accuracy_own"] == row["accuracy_real"] == \
            row["scores"]["real"]["accuracy"]
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
        tested = real.select("test")
        assert arrays["real_file_names"].tolist() == [row.file_name for row in tested]
        assert arrays["real_groups"].tolist() == [row.group for row in tested]
        probabilities, labels = arrays["real_probabilities"], arrays["real_labels"]
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == labels).mean() == rows[1]["accuracy_real"]
    assert len({row["train_loss"] for row in rows}) == 3, "repeats are trainings of their own"


def test_the_page_lists_every_key_of_a_baseline_and_no_other(made):
    of_cnns = {f"settings.{name}" for name in ("steps", "batch_size", "learning_rate",
                                               "weights_sha256")}
    assert keys_of(read(made)[0]) == \
        keys_on_page("The record") - of_cnns | keys_on_page("Of a baseline")
    assert arrays_of(made / "nuclei/replicate_000/repeat_0000.json") == keys_on_page("The .npz")


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
    assert nuclei_classify.main(arguments(voronoi, real_dataset, tmp_path, "--repeats", "1")) == 0
    other, = read(tmp_path)
    straight = read(made)[0]
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


def test_of_older_results_it_is_looked_for_leaks(made, voronoi, real_dataset, tmp_path, capsys):
    output = shutil.copytree(made, tmp_path / "results")
    shutil.rmtree(output / ".leaks")
    for path in output.rglob("repeat_*.json"):
        path.write_text(json.dumps({name: value for name, value in json.loads(
            path.read_text()).items() if name != "leaks"}))
    for searched in (1, 0):
        assert nuclei_classify.main(arguments(voronoi, real_dataset, output)) == 0
        said = capsys.readouterr()
        assert "already complete" in said.out and said.err.count("looking among") == searched


def test_other_options_are_refused_and_overwrite_redoes(
        made, voronoi, real_dataset, tmp_path, capsys):
    output = tmp_path / "results"
    shutil.copytree(made, output)
    other = arguments(voronoi, real_dataset, output, "--seed", "7")
    assert nuclei_classify.main(other) == 2
    assert "seed: 0 there, 7 now" in capsys.readouterr().err
    assert nuclei_classify.main([*other, "--overwrite"]) == 0
    assert [row["seed"] for row in read(output)] == [7, 8, 9]


@pytest.mark.parametrize("changed", ["dataset_fingerprint", "real_fingerprint"])
def test_results_of_another_version_of_a_dataset_are_not_complete(
        made, voronoi, real_dataset, tmp_path, capsys, changed):
    paths = {}
    for name, path in (("voronoi", voronoi), ("real", real_dataset)):
        paths[name] = tmp_path / name
        paths[name].mkdir()
        manifest = json.loads((path / "dataset.json").read_text())
        if changed == "real_fingerprint" and name == "real":
            manifest["fingerprint"] = "0" * 64
        if changed == "dataset_fingerprint" and name == "voronoi":
            manifest["features"][IMAGES_FILE]["sha256"] = "0" * 64
        (paths[name] / "dataset.json").write_text(json.dumps(manifest))
    before = content(made)
    assert nuclei_classify.main(arguments(paths["voronoi"], paths["real"], made)) == 2
    assert f"{changed}: " in capsys.readouterr().err and content(made) == before


def test_values_of_val_and_test_have_no_part_in_the_fit(
        made, voronoi, real_dataset, tmp_path, monkeypatch):
    """Neither in the filling of gaps, nor in the scaling, nor in the choice."""
    bench_init = nuclei_classify.Bench.__init__

    def other_values(self, *given):
        bench_init(self, *given)
        for split in ("val", "test"):
            self.values[split] = 1e3 - self.values[split]

    monkeypatch.setattr(nuclei_classify.Bench, "__init__", other_values)
    assert nuclei_classify.main(arguments(voronoi, real_dataset, tmp_path, "--repeats", "1")) == 0
    row, = read(tmp_path)
    for name in ("train_loss", "chosen", "candidates", "accuracy_cross_validated"):
        assert row[name] == read(made)[0][name]
    assert row["real"] != read(made)[0]["real"]


def test_an_arm_named_nuclei_is_told_where_it_has_results(voronoi, real_dataset, tmp_path, capsys):
    write_repeat(result.replicate_dir(tmp_path, "nuclei", 0), dataset="nuclei")
    assert nuclei_classify.main(arguments(voronoi, real_dataset, tmp_path, "--overwrite")) == 2
    error = capsys.readouterr().err
    assert "results of another kind (cnn, not baseline)" in error and error.count("\n") == 1


def test_dry_run_writes_nothing(voronoi, real_dataset, tmp_path, capsys):
    assert nuclei_classify.main(arguments(voronoi, real_dataset, tmp_path / "out",
                                          "--dry-run")) == 0
    assert "pending 3 of 3" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_killed_or_stopped_and_run_again_gives_the_same_bytes(
        made, voronoi, real_dataset, tmp_path):
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)):
        output = tmp_path / str(int(number))
        call = arguments(voronoi, real_dataset, output)
        directory = result.replicate_dir(output, "nuclei", 0)
        pid = fork(lambda: nuclei_classify.main(call))
        assert signal_when(pid, lambda: (directory / "repeat_0000.json").exists(), number) == status
        assert len(read(output)) < 3, "it was complete before it could be stopped"
        assert nuclei_classify.main(call) == 0
        for row, again in zip(read(made), read(output)):
            assert {**row, "run": 0} == {**again, "run": 0}
        assert [path.name for path in output.rglob(".*")] == [".leaks"], "leftovers"


def test_bad_input_is_one_line(made, voronoi, real_dataset, tmp_path, capsys):
    def fault(*argv: str) -> tuple[int, str]:
        status = nuclei_classify.main(list(argv))
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("nuclei_classify.py: error: ")
        return status, error

    out = str(tmp_path / "out")
    status, error = fault("--features", str(real_dataset), "--real", str(real_dataset),
                          "--results", out)
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
        cnn = copy.deepcopy(row) | {"dataset": dataset, "dataset_fingerprint": dataset,
                                    "seed": repeat, "repeat": repeat, "model": "small",
                                    "device": "cuda", "settings": {"steps": 9}, **changed}
        cnn.pop("kind")
        cnn.pop("malignancy")
        place = result.replicate_dir(tree, dataset, 0)
        place.mkdir(parents=True, exist_ok=True)
        result.repeat_path(place, repeat).write_text(json.dumps(cnn))


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
    path = result.repeat_path(result.replicate_dir(tree, dataset, 0), 1)
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(Fault, match=said):
        results.read_results(tree)


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
