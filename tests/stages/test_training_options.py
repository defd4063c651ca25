"""The options of a CNN's training: each reaches it, is among what decides it, and resumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_cnn_classify import CLASSES, classify, content, make_dataset, read, stop_at, trainings

from lungkit.learn import cnns, training_options
from lungkit.learn.classify_training import drop_before_head, optimizer_of
from lungkit.learn.settings import SETTINGS
from lungkit.run import files

__all__ = ["trainings"]  # a fixture
pytestmark = pytest.mark.usefixtures("found_once")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Classes of 4, 8 and 12 training images."""
    counts = dict(zip(CLASSES, (4, 8, 12), strict=True))
    return make_dataset(tmp_path_factory.mktemp("run") / "real", num_train=counts)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A state dict of the small CNN."""
    import torch

    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.manual_seed(3)
    torch.save(cnns.small_cnn(3).state_dict(), path)
    return path


GIVEN = [("optimizer", "sgd"), ("weight_decay", 0.2), ("label_smoothing", 0.0), ("dropout", 0.5),
         ("augment", 2.0), ("balance", "sampler"), ("mixup", 0.4), ("cutmix", 1.0),
         ("unfreeze", "moderate"), ("layer_decay", 0.7), ("tta", "eight")]


def test_every_option_is_looked_at_here():
    assert [name for name, _ in GIVEN] == list(training_options.NAMES)


@pytest.mark.parametrize(("name", "value"), GIVEN)
def test_an_option_reaches_the_training_and_decides_it(real, weights, trainings, tmp_path, capsys,
                                                       name, value):
    option = ["--" + name.replace("_", "-"), str(value)]
    usual = ["--" + name.replace("_", "-"), str(SETTINGS[name].default)]
    if name in training_options.OF_WEIGHTS:
        usual += ["--weights", str(weights)]
        option += ["--weights", str(weights)]
    assert classify(real, real, tmp_path, *usual, repeats="1") == 0
    assert name not in {*read(tmp_path, "real")["settings"], *trainings[0]["identity"]}
    assert classify(real, real, tmp_path, *option, repeats="1") == 2
    assert f"{name}: None there, {value!r} now" in capsys.readouterr().err
    assert classify(real, real, tmp_path, *option, "--overwrite", repeats="1") == 0
    assert read(tmp_path, "real")["settings"][name] == value
    first, second = trainings
    assert second["identity"][name] == second["settings"][name] == value
    assert np.array_equal(first["start"], second["start"])  # no other draw is moved by it
    assert np.array_equal(first["plan"]["symmetry"], second["plan"]["symmetry"]) == (
        name != "balance")


def test_classes_are_balanced_by_the_images_of_the_repeat(real, trainings, tmp_path):
    for balance in ("none", "sampler", "upsample", "loss"):
        assert classify(real, real, tmp_path / balance, "--balance", balance, repeats="1") == 0
    counts = [np.bincount(each["labels"][each["plan"]["index"].ravel()]).tolist()
              for each in trainings]
    assert counts[0] == counts[3] == [8, 16, 24] and counts[1] == [16] * 3
    assert counts[2] != counts[0] and "copied" in trainings[2]["plan"]
    assert trainings[3]["plan"]["class_weights"].tolist() == pytest.approx([2, 1, 2 / 3])
    assert not {"copied", "class_weights"} & {*trainings[0]["plan"], *trainings[1]["plan"]}


@pytest.mark.parametrize(("name", "value", "words"), [
    ("--balance", "smote", "invalid choice"), ("--mixup", "-1", "is not in 0 to 10"),
    ("--dropout", "1", "is not in 0 to 0.9"), ("--cutmix", "much", "is not a number")])
def test_a_bad_option_is_one_line(real, tmp_path, capsys, name, value, words):
    assert classify(real, real, tmp_path / "r", name, value) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "r").exists()


@pytest.mark.parametrize("option", [["--balance", "upsample"], ["--cutmix", "1"],
                                    ["--augment", "0.5"], ["--tta", "flips"],
                                    ["--unfreeze", "none"]])
def test_what_changes_images_is_not_of_features(real, tmp_path, capsys, option):
    assert classify(real, real, tmp_path / "r", "--weights", "imagenet-lite0", "--frozen",
                    *option) == 2
    error = capsys.readouterr().err
    assert "--frozen trains a head on features" in error and option[0] in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("option", "value"), [("--unfreeze", "none"), ("--layer-decay", "0.8")])
def test_unfreezing_is_of_weights(real, tmp_path, capsys, option, value):
    assert classify(real, real, tmp_path / "r", option, value) == 2
    error = capsys.readouterr().err
    assert f"{option}: of a network that starts from --weights" in error
    assert error.count("\n") == 1 and not (tmp_path / "r").exists()


def test_a_repeat_with_every_option_resumes_to_the_same_bytes(real, weights, tmp_path, monkeypatch):
    more = [word for name, value in [*GIVEN[1:5], *GIVEN[6:], ("balance", "upsample"),
                                     ("weights", weights)]
            for word in ("--" + name.replace("_", "-"), str(value))]
    assert classify(real, real, tmp_path / "whole", *more, repeats="1") == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert classify(real, real, tmp_path / "cut", *more, repeats="1") == 75
    assert classify(real, real, tmp_path / "cut", *more, repeats="1") == 0
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_optimisers_are_those_named():
    import torch

    how = training_options.complete({"weight_decay": 0.2})
    for name, kind, decay in (("adamw", torch.optim.AdamW, 0.2), ("adam", torch.optim.Adam, 0),
                              ("sgd", torch.optim.SGD, 0.2)):
        made = optimizer_of([torch.nn.Parameter(torch.zeros(1))], {**how, "optimizer": name}, 0.3)
        assert type(made) is kind
        assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.3, decay)
        assert made.defaults.get("nesterov", name != "sgd")


def test_dropout_is_of_what_the_head_is_shown_and_only_in_training():
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(3, 1000), torch.nn.Linear(1000, 2))
    seen, inputs = [], torch.ones(1, 3)
    model = drop_before_head(model, 0.25)
    model[1].register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    hidden = model[0](inputs)
    for training in (True, False):
        model.train(training)(inputs)
    zeros = seen[0] == 0
    assert 0.2 < zeros.float().mean() < 0.3
    assert torch.allclose(seen[0][~zeros], hidden[~zeros] / 0.75)
    assert torch.equal(seen[1], hidden)


def test_val_and_both_tests_are_averaged_as_their_own_dataset_allows(real, tmp_path, monkeypatch):
    import torch

    from cnn_classify import Bench

    arm = make_dataset(tmp_path / "arm", num_train=4, seed=1, symmetries=2)
    bench = Bench(arm, real, torch.device("cpu"))
    seen = []

    def predict(model, images, device, turns, symmetries):
        seen.append((len(images), turns, symmetries))
        return np.eye(3, dtype=np.float32)[bench.labels["own"][:len(images)].numpy()]

    monkeypatch.setattr("cnn_classify.predict", predict)
    bench.test(None, "flips")
    assert seen == [(12, (0, 1), 2), (12, (0, 2, 4, 6), 8), (9, (0, 1), 2)]  # own, real, val


@pytest.mark.parametrize(("symmetries", "name", "words"), [
    (1, "flips", "in one orientation only: leave it out"), (1, "eight", "in one orientation only"),
    (2, "eight", "in two orientations only: give --tta flips")])
def test_images_that_may_not_be_turned_so_are_one_line(tmp_path, capsys, symmetries, name, words):
    data = make_dataset(tmp_path / "real", num_train=4, symmetries=symmetries)
    for more in ([], ["--dry-run"]):
        assert classify(data, data, tmp_path / "r", "--tta", name, *more) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and not (tmp_path / "r").exists()


# ------------------------------------------------------------------ --settings

def best(path, settings, **more):
    path.write_text(json.dumps({"settings": settings, **more}))
    return ["--settings", str(path)]


def test_a_file_of_settings_means_its_options(real, weights, trainings, tmp_path, capsys):
    settings = {"model": "small", "weights": str(weights), "batch_size": 4, "learning_rate": 0.01,
                "balance": "sampler", "mixup": 0.2, "optimizer": "adamw"}
    given = best(tmp_path / "best.json", settings, fingerprint=real.fingerprint, looked_at=9)
    classify_as_given(real, tmp_path / "r", *given)
    record = read(tmp_path / "r", "real")["settings"]
    assert trainings[0]["plan"]["index"].shape == (6, 4)
    assert {name: record.get(name) for name in ("batch_size", "learning_rate", "balance", "mixup",
                                                "optimizer")} == {
        "batch_size": 4, "learning_rate": 0.01, "balance": "sampler", "mixup": 0.2,
        "optimizer": None}
    assert record["weights_sha256"] == files.sha256_file(weights)
    said = capsys.readouterr().err
    assert "the command line holds" not in said
    options = [word for name, value in settings.items()
               for word in ("--" + name.replace("_", "-"), str(value))]
    classify_as_given(real, tmp_path / "r", *options)  # and they are the same results
    assert "already complete" in capsys.readouterr().out and len(trainings) == 1


def test_what_is_given_holds_over_the_file_and_is_said_in_a_line(real, trainings, tmp_path, capsys):
    given = best(tmp_path / "best.json", {"batch_size": 4, "mixup": 0.2, "dropout": 0.1})
    classify_as_given(real, tmp_path / "r", *given, "--mixup", "0", "--batch-size", "6")
    record = read(tmp_path / "r", "real")["settings"]
    assert record["batch_size"] == 6 and "mixup" not in record and record["dropout"] == 0.1
    line, = [line for line in capsys.readouterr().err.splitlines() if "command line" in line]
    assert "batch_size 6, not 4" in line and "mixup 0.0, not 0.2" in line and "dropout" not in line


def classify_as_given(real, results, *more):
    """Of `classify`, without its batch size."""
    from cnn_classify import main

    assert main(["--data", str(real.path), "--real", str(real.path), "--results", str(results),
                 "--repeats", "1", "--steps", "6", "--device", "cpu", *more]) == 0


@pytest.mark.parametrize(("settings", "more", "status", "words"), [
    ({"mixup": 0.2}, {"fingerprint": "0" * 64}, 2, "were found in another dataset"),
    ({"mixup": 0.2, "momentum": 0.9}, {}, 1, "there is no setting 'momentum'"),
    ({"mixup": "much"}, {}, 1, "mixup 'much' is not a number"),
    ({"unfreeze": "none"}, {}, 2, "of a network that starts from --weights"),
    (None, {}, 1, 'holds no "settings"')])
def test_settings_that_cannot_be_taken_are_one_line(real, tmp_path, capsys, settings, more, status,
                                                    words):
    given = best(tmp_path / "best.json", settings, **more)
    assert classify(real, real, tmp_path / "r", *given) == status
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "r").exists()
