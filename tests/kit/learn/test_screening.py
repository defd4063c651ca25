"""Screening: which networks are looked at, what they cost, and how the choice is told."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from lungkit.learn import cnns, heads, screening
from lungkit.learn.fold_training import parameters
from lungkit.learn.screening import Candidate
from lungkit.learn.search_records import Records
from lungkit.run.faults import BadOptions


@pytest.fixture(autouse=True)
def cached(monkeypatch):
    """ImageNet's weights of every network that has some, as if they were there."""
    monkeypatch.setattr(cnns, "imagenet_weights", lambda models: {
        name: Path(f"/weights/{name}.pth") for name in models})


@pytest.mark.parametrize(("backbones", "weights", "mode", "found"), [
    (None, "imagenet-lite0", "both",
     ["efficientnet_lite0-features", "efficientnet_lite0-finetune", "small-scratch"]),
    (["small", "efficientnet_lite0"], "imagenet-lite0", "features",
     ["small-scratch", "efficientnet_lite0-features"]),
    (["resnet18", "resnet18", "small"], "imagenet", "finetune",
     ["resnet18-finetune", "small-scratch"]),
    (["resnet18"], "none", "both", ["resnet18-scratch"]),
])
def test_what_is_looked_at(backbones, weights, mode, found):
    assert [each.name for each in screening.candidates(backbones, weights, mode)] == found


def test_all_networks_are_looked_at_where_none_is_named():
    found = screening.candidates(None, "imagenet", "finetune")
    assert len(found) == 7 and {each.backbone for each in found} == set(cnns.MODELS)
    assert [each.weights_path for each in found if each.mode == "scratch"] == [None]


@pytest.mark.parametrize(("backbones", "weights", "mode", "words"), [
    (None, "none", "features", "looks at features of pretrained weights"),
    (["small"], "imagenet", "features", "not small alone"),
    (["resnet18"], "imagenet-lite0", "both", "there are none of resnet18"),
])
def test_no_network_stands_in_for_one_whose_weights_are_not_there(backbones, weights, mode, words):
    with pytest.raises(BadOptions, match=words):
        screening.candidates(backbones, weights, mode)


def test_a_candidate_is_trained_as_its_options_would_train_it():
    lite, resnet = (Candidate(name, "features", Path("w")) for name in
                    ("efficientnet_lite0", "resnet18"))
    assert lite.options("imagenet-lite0") == ["--model", "efficientnet_lite0", "--weights",
                                              "imagenet-lite0", "--frozen"]
    assert Candidate("small", "scratch", None).options("imagenet") == ["--model", "small"]
    assert resnet.learning_rate == heads.PEAK_RATE
    assert Candidate("resnet18", "finetune", Path("w")).learning_rate == 1e-3


def test_a_network_is_as_large_as_it_is():
    assert parameters("small", 3, frozen=False) == (
        sum(each.numel() for each in cnns.build_model("small", 3, None).parameters()),) * 2
    whole, trained = parameters("efficientnet_lite0", 3, frozen=True)
    assert whole > 3e6 and trained == 1280 * 3 + 3


def test_each_candidate_is_trained_on_every_fold_in_its_own_way(tmp_path):
    seen = []

    def train_fold(name, fold, settings, **how):
        seen.append((name, fold, settings["learning_rate"], how["weights_path"],
                     how["extractor"] and how["extractor"].name))
        return {"fold": fold}

    bench = SimpleNamespace(device=None, folds=[0, 1], train_fold=train_fold)
    file = tmp_path / "w"
    file.touch()
    found = [Candidate("small", "scratch", None), *(
        Candidate("resnet18", mode, file) for mode in ("features", "finetune"))]
    records = Records(tmp_path / "s", {})
    done = screening.screen(bench, found, records, {"steps": 2, "batch_size": 4})
    assert seen == [(name, fold, rate, weights, features) for name, rate, weights, features in (
        ("small-scratch", 2e-3, None, None),
        ("resnet18-features", heads.PEAK_RATE, file, "torchvision/resnet18"),
        ("resnet18-finetune", 1e-3, file, None)) for fold in (0, 1)]
    assert done["resnet18-features"] == [
        {"backbone": "resnet18", "mode": "features", "fold": fold} for fold in (0, 1)]


def test_other_weights_are_another_screening(tmp_path):
    found = []
    for content in (b"a", b"b"):
        (tmp_path / "w").write_bytes(content)
        found.append(screening.identity({"data": "d"}, [
            Candidate("resnet18", "finetune", tmp_path / "w"), SMALL])["candidates"])
    one, other = found
    assert one["small-scratch"] is other["small-scratch"] is None
    assert one["resnet18-finetune"] != other["resnet18-finetune"]


SMALL, FROZEN, FINE = (Candidate("small", "scratch", None),
                       Candidate("resnet18", "features", Path("w")),
                       Candidate("resnet18", "finetune", Path("w")))


@pytest.mark.parametrize(("small", "frozen", "fine", "chosen", "words"), [
    ([0.5, 0.6], [0.8, 0.9], [0.5, 0.6], "features", "is the best of 3 looked at, by more than"),
    ([0.8, 0.85], [0.8, 0.9], [0.5, 0.6], "scratch",
     "small-scratch .* is within noise of the best of 3 looked at, resnet18-features"),
    ([0.5, 0.6], [0.8, 0.9], [0.82, 0.9], "features", "is within noise of the best"),
    ([0.8, 0.9], [0.8, 0.88], [0.5, 0.6], "scratch",
     "the cheapest within noise: one standard error does not tell it from resnet18-features"),
])
def test_the_choice_is_the_smallest_within_noise_and_says_so(small, frozen, fine, chosen, words):
    done = {each.name: [{"scores": {"auroc": score}, "elapsed_sec": 1.0} for score in scores]
            for each, scores in ((SMALL, small), (FROZEN, frozen), (FINE, fine))}
    found = screening.conclude([SMALL, FROZEN, FINE], done, 2, metric="auroc", weights="imagenet")
    assert found["chosen"]["mode"] == chosen and found["looked_at"] == 3
    assert re.search(words, found["reason"])
    assert found["within_noise"] == ("within noise" in found["reason"])
    assert screening.table(found)[1].startswith(found["best"].partition("-")[0])
