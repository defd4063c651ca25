"""cnn_search.py: screening and tuning inside the train split, and nothing outside it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_cnn_classify import make_dataset

import cnn_classify
import cnn_search
from lungkit.learn import cnns, fold_training, imagenet, tuning
from lungkit.learn.fold_training import Bench
from lungkit.learn.loop import Diverged
from lungkit.learn.settings import read_settings

SCREEN = ["--backbones", "small", "--weights", "none"]
TUNE = ["--trials", "2", "--search", "learning_rate", "dropout"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A dataset whose val and test images nobody can read: files lie in their folders' place."""
    path = make_dataset(tmp_path_factory.mktemp("run") / "real", num_train=4).path
    for folder in ("val", "test"):
        shutil.rmtree(path / folder)
        (path / folder).write_text("not to be opened")
    return path


def search(command, data, output, *more, steps=2, folds=2):
    return cnn_search.main([command, "--data", str(data), "--output", str(output), "--steps",
                            str(steps), "--batch-size", "4", "--folds", str(folds), "--device",
                            "cpu", *map(str, more)])


@pytest.fixture(scope="module")
def screened(data):
    output = data.parent / "screened"
    assert search("screen", data, output, *SCREEN) == 0
    return output


@pytest.fixture(scope="module")
def tuned(data):
    output = data.parent / "tuned"
    assert search("tune", data, output, *TUNE) == 0
    return output


@pytest.fixture
def trainings(monkeypatch):
    """The trainings that take place, in order; none does: a fold scores by its number."""
    seen = []

    def train_fold(self, name, number, settings, **more):
        seen.append({"name": name, "fold": number, "settings": settings, **more})
        scores = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "auroc",
                                "auprc_weighted"), 0.5 + number / 10)
        return {"scores": scores, "train_loss": 0.5, "fold": number, "num_train_images": 1,
                "num_held_out_images": 1, "elapsed_sec": 0.0}

    monkeypatch.setattr(Bench, "train_fold", train_fold)
    return seen


def content(output):
    return {path.name: path.read_bytes() for path in sorted(output.glob("*")) if path.is_file()
            and path.suffix != ".log"}


def test_a_screening_writes_a_row_for_each_training_and_its_choice(screened):
    with open(screened / "screen.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["backbone"], row["mode"], row["fold"]) for row in rows] == [
        ("small", "scratch", "1"), ("small", "scratch", "2")]
    assert all(0 <= float(row["auprc_weighted"]) <= 1 for row in rows)
    assert sum(int(row["num_held_out_images"]) for row in rows) == 12
    found = json.loads((screened / "screen.json").read_text())
    assert found["looked_at"] == 1 and found["chosen"]["options"] == ["--model", "small"]
    assert found["candidates"][0]["folds"] == [float(row["auprc_weighted"]) for row in rows]


def test_best_settings_are_those_of_a_trial_and_can_be_read(tuned):
    best = json.loads((tuned / "best.json").read_text())
    with open(tuned / "trials.csv", newline="") as file:
        row = list(csv.DictReader(file))[best["trial"]]
    settings = read_settings(tuned / "best.json")
    assert settings == best["settings"] and settings["model"] == "small"
    assert float(row["learning_rate"]) == settings["learning_rate"]
    assert float(row["mean"]) == best["score"] and best["looked_at"] == 2
    assert settings["batch_size"] == 4 and "2 looked at" in best["reason"]


@pytest.mark.parametrize(("command", "options"), [("screen", SCREEN), ("tune", TUNE)])
def test_what_is_done_is_kept_and_a_rerun_ends_with_the_same(command, options, data, screened,
                                                             tuned, trainings):
    output = {"screen": screened, "tune": tuned}[command]
    before = content(output)
    assert search(command, data, output, *options) == 0
    assert not trainings and content(output) == before


def test_a_training_draws_the_same_wherever_it_takes_place(data, tuned, tmp_path):
    for name in ("trial0001-fold2", "again0000-fold1"):  # as if another process came to it first
        assert (tuned / "trainings" / f"{name}.json").exists()
    assert search("tune", data, tmp_path / "t", *TUNE) == 0
    for path in sorted((tuned / "trainings").glob("*.json")):
        once, again = (json.loads((root / "trainings" / path.name).read_text())
                       for root in (tuned, tmp_path / "t"))
        assert once["scores"] == again["scores"] and once["train_loss"] == again["train_loss"]


def test_two_trials_of_the_same_settings_are_two_trainings(data):
    bench = Bench(cnn_search.open_train(data, data.parent / "x"), 2, 0,
                  cnn_search.use_device("cpu"))
    losses = {bench.train_fold(name, fold, {"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
                               model="small", weights_path=None, checkpoint_path=None)["train_loss"]
              for name, fold in (("trial0001", 0), ("trial0002", 0), ("trial0001", 1))}
    assert len(losses) == 3


def test_a_fold_is_trained_on_its_images_and_scored_on_those_held_out(data, monkeypatch):
    bench = Bench(cnn_search.open_train(data, data.parent / "x"), 2, 0,
                  cnn_search.use_device("cpu"))
    drawn, shown = [], []
    plan_batches = fold_training.plan_batches
    monkeypatch.setattr(fold_training, "plan_batches", lambda images, *more: drawn.append(images)
                        or plan_batches(images, *more))
    monkeypatch.setattr(fold_training, "train", lambda *_, **__: 0.5)
    monkeypatch.setattr(fold_training, "PREDICTED", 4)  # in two parts

    def predict(network, images, device):
        shown.append(images.numpy())
        return np.eye(3)[[int(each.mean((0, 1)).argmax()) for each in shown[-1]]]

    monkeypatch.setattr(fold_training, "predict", predict)
    record = bench.train_fold("t", 1, {"steps": 1, "batch_size": 2, "learning_rate": 1.0},
                              model="small", weights_path=None)
    fold = bench.folds[1]
    assert drawn[0].tolist() == fold.trained.tolist()
    assert [len(part) for part in shown] == [3, 3]
    assert np.array_equal(np.concatenate(shown), bench.images.numpy()[fold.held_out])
    assert record["scores"]["accuracy"] == 1  # the colour tells the class
    assert (record["num_train_images"], record["num_held_out_images"]) == (6, 6)


def test_a_fold_is_trained_as_its_settings_say(data, monkeypatch, tmp_path):
    """Its plan, its training, its dropout, the weights it begins from, what it would resume."""
    import torch

    bench = Bench(cnn_search.open_train(data, data.parent / "x"), 2, 0,
                  cnn_search.use_device("cpu"))
    torch.manual_seed(7)
    state = cnns.build_model("small", 3, None).state_dict()
    torch.save(state, tmp_path / "w.pt")
    seen = []
    monkeypatch.setattr(fold_training, "train", lambda network, images, labels, plan, **how:
                        seen.append((network, plan, how)) or 0.5)
    settings = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "mixup": 0.3, "dropout": 0.4}
    for name in ("t", "u", "t"):
        bench.train_fold(name, 1, settings, model="small", weights_path=tmp_path / "w.pt")
    (network, plan, how), (other, other_plan, _), (again, again_plan, _) = seen
    assert "share" in plan and plan["index"].shape == (3, 4)
    assert how["settings"] == settings and how["learning_rate"] == 0.01
    assert how["identity"] == {"name": "t", "fold": 1, "seed": 0, **settings}
    assert torch.equal(network[0].weight, state["0.weight"]) and network[-1]._forward_pre_hooks
    # and what it draws is its own: its head, which no file holds, and its order
    assert not torch.equal(network[-1].weight, other[-1].weight)
    assert (plan["symmetry"] != other_plan["symmetry"]).any()
    assert torch.equal(network[-1].weight, again[-1].weight)
    assert np.array_equal(plan["symmetry"], again_plan["symmetry"])


def test_a_head_is_trained_on_features_of_its_network_standardised_by_its_own_images(data,
                                                                                    monkeypatch):
    bench = Bench(cnn_search.open_train(data, data.parent / "x"), 2, 0,
                  cnn_search.use_device("cpu"))
    seen = []
    monkeypatch.setattr(fold_training, "train", lambda network, inputs, *_, **__:
                        seen.append((network, inputs)) or 0.5)
    for number in (1, 2):
        features = np.random.default_rng(number).normal(size=(12, 3)).astype(np.float32)
        bench.train_fold("t", 1, {"steps": 1, "batch_size": 2, "learning_rate": 1.0},
                         model="small", weights_path=None, extractor=SimpleNamespace(
                             name=str(number), of_split=lambda *_: features))
        network, inputs = seen[-1]
        assert np.array_equal(inputs.numpy(), features)
        assert network[0].mean.numpy() == pytest.approx(
            features[bench.folds[1].trained].mean(0), abs=1e-6)


def test_a_trial_is_trained_as_it_says_on_the_first_folds_and_again_on_others(data, tmp_path,
                                                                             trainings):
    assert search("tune", data, tmp_path / "t", *TUNE) == 0
    first, *_ = trainings
    assert first["name"] == "trial0000" and first["folds"] is None
    assert first["settings"] == {"steps": 2, "batch_size": 4, "learning_rate": 2e-3, "dropout": 0.0}
    again = [each for each in trainings if each["name"].startswith("again")]
    bench = Bench(cnn_search.open_train(data, tmp_path), 2, 0)
    assert len(again) == 2 and all(each["folds"] is not None for each in again)
    assert any((one.held_out != two.held_out).any()
               for one, two in zip(again[0]["folds"], bench.folds))


def test_a_diverged_trial_ends_nothing(data, tmp_path, trainings, monkeypatch):
    train_fold = Bench.train_fold

    def diverges(self, name, *rest, **more):
        if name == "trial0001":
            raise Diverged("the loss is not finite")
        return train_fold(self, name, *rest, **more)

    monkeypatch.setattr(Bench, "train_fold", diverges)
    assert search("tune", data, tmp_path / "t", *TUNE, "--trials", 3) == 0
    best = json.loads((tmp_path / "t" / "best.json").read_text())
    assert (best["looked_at"], best["diverged"]) == (3, 1)


def test_more_trials_are_added_to_a_search(data, tmp_path, trainings):
    assert search("tune", data, tmp_path / "t", *TUNE) == 0
    trainings.clear()
    assert search("tune", data, tmp_path / "t", *TUNE, "--trials", 3) == 0
    assert [each["name"] for each in trainings] == ["trial0002"] * 2
    assert json.loads((tmp_path / "t" / "best.json").read_text())["looked_at"] == 3


def test_what_is_there_of_a_search_of_more_trials_is_not_pending(data, tuned, capsys):
    assert search("tune", data, tuned, *TUNE, "--trials", 1, "--dry-run") == 0
    assert "found 2, pending 0 of 2 trainings" in capsys.readouterr().err


def test_screening_has_the_score_that_decides_from_what_is_there(data, screened, trainings):
    assert search("screen", data, screened, *SCREEN, "--metric", "accuracy") == 0
    assert json.loads((screened / "screen.json").read_text())["metric"] == "accuracy"
    assert not trainings
    assert search("screen", data, screened, *SCREEN) == 0


# ------------------------------------------------------------------ what is refused, in one line

def refusal(capsys, status, code):
    error = capsys.readouterr().err
    assert status == code and error.splitlines()[-1].startswith("cnn_search.py: error: ")
    assert error.count("error: ") == 1
    return error.splitlines()[-1]


@pytest.mark.parametrize(("more", "folds", "words"), [
    (["--seed", "1"], 2, "seed: 0 there, 1 now"),
    ([], 3, "folds: 2 there, 3 now"),
    (["--backbones", "small", "resnet18"], 2, "candidates: "),
])
def test_a_search_of_other_options_is_refused(more, folds, words, data, screened, trainings,
                                              capsys):
    before = content(screened)
    said = refusal(capsys, search("screen", data, screened, *SCREEN, *more, folds=folds), 2)
    assert "holds another search" in said and words in said and content(screened) == before


@pytest.mark.parametrize(("name", "value", "words"), [
    ("--steps", 3, "steps: 2 there, 3 now"), ("--batch-size", 6, "batch_size: 4 there, 6 now"),
    ("--metric", "auroc", "metric: 'auprc_weighted' there, 'auroc' now"),
    ("--search", "dropout", "searched: ['learning_rate', 'dropout'] there, ['dropout'] now"),
    ("--model", "resnet18", "model: 'small' there, 'resnet18' now"),
    ("--weights", "w.pt", "weights_sha256: None there, 'e3b0c442")])
def test_a_tuning_of_other_options_is_refused(name, value, words, data, tuned, trainings, tmp_path,
                                              monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("w.pt").touch()
    said = refusal(capsys, search("tune", data, tuned, *TUNE, name, value), 2)
    assert words in said and not trainings


def test_a_search_of_other_data_is_refused_or_discarded_by_overwrite(data, tuned, tmp_path, capsys,
                                                                     trainings):
    other = make_dataset(tmp_path / "other", num_train=4, seed=7).path
    shutil.copytree(tuned, tmp_path / "t")
    said = refusal(capsys, search("tune", other, tmp_path / "t", *TUNE), 2)
    assert "data: " in said and not trainings
    assert search("tune", other, tmp_path / "t", *TUNE, "--overwrite") == 0
    assert len(trainings) >= 6


def test_a_journal_that_was_copied_from_another_search_is_refused(data, tuned, tmp_path, capsys):
    (tmp_path / "t").mkdir()
    for name in ("search.json", tuning.JOURNAL):
        shutil.copy(tuned / name, tmp_path / "t" / name)
    identity = json.loads((tmp_path / "t" / "search.json").read_text())
    (tmp_path / "t" / "search.json").write_text(json.dumps({**identity, "seed": 1}))
    said = refusal(capsys, search("tune", data, tmp_path / "t", *TUNE, "--seed", 1), 2)
    assert "journal of another search" in said


@pytest.mark.parametrize(("command", "more", "folds", "code", "words"), [
    ("screen", SCREEN, 5, 1, "a has 4; b has 4; c has 4: give --folds 4"),
    ("screen", [*SCREEN, "--mode", "features"], 2, 2, "looks at features of pretrained weights"),
    ("screen", ["--backbones", "resnet18", "--weights", "imagenet"], 2, 2,
     "those of resnet18 are not in"),
    ("tune", [*TUNE, "--weights", "imagenet"], 2, 2, "needs the --model"),
    ("tune", [*TUNE, "--weights", "nowhere.pth"], 2, 2, "is not a file"),
    ("tune", [*TUNE, "--batch-size", "1"], 2, 2, "batch normalisation"),
    ("tune", [*TUNE, "--folds", "1"], 2, 2, "at least 2 folds"),
    ("tune", ["--trials", "2", "--search", "steps"], 2, 2, "invalid choice: 'steps'"),
])
def test_bad_options_end_before_anything_runs(command, more, folds, code, words, data, tmp_path,
                                              trainings, monkeypatch, capsys):
    monkeypatch.setattr(imagenet, "folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(imagenet, "url_of", lambda model: (tmp_path / "no.pth").as_uri())
    status = search(command, data, tmp_path / "s", *more, folds=folds)
    error = capsys.readouterr().err
    assert status == code and words in error.splitlines()[-1]
    assert not trainings and not (tmp_path / "s").exists()


def test_a_directory_of_something_else_is_left_alone(data, tmp_path, capsys, trainings):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    said = refusal(capsys, search("tune", data, tmp_path / "mine", *TUNE, "--overwrite"), 1)
    assert "it is not a search's" in said and not trainings
    said = refusal(capsys, search("tune", data, data / "search", *TUNE), 2)
    assert "lie in one another" in said


def test_a_candidate_that_diverges_is_one_line_that_names_it(data, tmp_path, monkeypatch, capsys):
    def diverges(*_, **__):
        raise Diverged("the loss is not finite: lower --learning-rate")

    monkeypatch.setattr(Bench, "train_fold", diverges)
    said = refusal(capsys, search("screen", data, tmp_path / "s", *SCREEN), 1)
    assert "small-scratch-fold1 diverged" in said and "leave small out" in said
    assert "--learning-rate" not in said  # which a screening has not


def test_a_dry_run_says_what_is_pending_and_writes_nothing(data, tmp_path, trainings, capsys):
    assert search("screen", data, tmp_path / "s", *SCREEN, "--dry-run") == 0
    said = capsys.readouterr().err
    assert "12 training images of 12 groups in 2 folds; found 0, pending 2 of 2" in said
    assert not trainings and list(tmp_path.iterdir()) == []


def test_what_is_searched_by_default_is_all_that_can_make_a_difference():
    of_weights = cnn_search.searched_names(None, True)
    assert set(of_weights) == set(cnn_search.SEARCHABLE) and "unfreeze" in of_weights
    assert cnn_search.searched_names(None, False) == [
        name for name in of_weights if name != "unfreeze"]


def test_the_presets_are_those_of_the_stage_whose_training_is_searched():
    assert cnn_search.PRESETS == cnn_classify.PRESETS


def test_best_settings_name_weights_that_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").write_bytes(b"")
    assert [cnn_search.as_given(each) for each in (None, Path("imagenet"), Path("w.pt"))] == [
        None, "imagenet", str(tmp_path / "w.pt")]
