"""Pretrained weights of the CNN stage: fine-tuned, or frozen under a head of each repeat's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_cnn_classify import classify, content, make_arm, make_dataset, read

import cnn_classify
from lungkit.learn import cnns, features, heads, pretrained
from lungkit.learn.batches import normalise, scale_for
from lungkit.run.faults import Fault
from lungkit.run.files import sha256_file

PACKAGED = ["--weights", "imagenet-lite0"]
FEW = {"num_val": 1, "num_test": 1}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("run") / "real", num_train=3, **FEW)


@pytest.fixture(scope="module")
def frozen(real):
    """Two repeats of a head on real's features."""
    results = real.path.parent / "results"
    assert classify(real, real, results, *PACKAGED, "--frozen", steps=20) == 0
    return results


def test_a_frozen_result_says_what_it_is_of(frozen):
    for repeat in (0, 1):
        record = read(frozen, "real", repeat)
        assert record["model"] == "efficientnet_lite0" and record["settings"]["frozen"] is True
        assert record["settings"]["learning_rate"] == heads.PEAK_RATE
        assert record["settings"]["weights_sha256"] == sha256_file(pretrained.weights_path())
        assert record["train_loss"] < 0.95  # of three classes told by nothing: 1.10


def test_repeats_have_heads_of_their_own_and_the_same_ones_again(real, frozen, tmp_path):
    found = content(frozen)
    said = [np.load(path)["real_probabilities"] for path in sorted(frozen.glob("*/*/*.npz"))]
    assert len(said) == 2 and not np.array_equal(*said)
    assert classify(real, real, tmp_path, *PACKAGED, "--frozen", steps=20) == 0
    assert content(tmp_path) == found


def test_features_are_worked_out_once_for_all_repeats_and_all_commands(
        real, frozen, tmp_path, monkeypatch):
    monkeypatch.setattr(features.Extractor, "inputs", None)
    assert classify(real, real, tmp_path, *PACKAGED, "--frozen", repeats="3", steps=2) == 0


def test_a_head_is_trained_on_what_its_repeat_drew(real, tmp_path, monkeypatch):
    pool = make_arm(real, tmp_path / "pool", num_train=6, seed=1, **FEW)
    seen = []
    build = heads.build
    monkeypatch.setattr(heads, "build",
                        lambda some, classes: seen.append(some.numpy()) or build(some, classes))
    assert classify(pool, real, tmp_path / "r", *PACKAGED, "--frozen", steps=2) == 0
    all_of_it = features.Extractor().of_split(pool, "train")
    assert [len(some) for some in seen] == [9, 9]
    together = np.concatenate(seen)  # the draws of a pool of two share no image
    assert np.array_equal(np.unique(together, axis=0), np.unique(all_of_it, axis=0))


def test_a_head_is_trained_on_the_features_of_the_network_named(real, tmp_path, monkeypatch):
    def far_enough(*given):
        raise Fault(f"asked for {given}")

    torch.save(cnns.build_model("mobilenet_v3_large", 2, None).state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr(cnn_classify, "Extractor", far_enough)
    with pytest.raises(Fault, match=r"\('torchvision/mobilenet_v3_large', PosixPath\('.*/w.pt'\)"):
        cnn_classify.run(**vars(cnn_classify.build_parser().parse_args([
            "--data", str(real.path), "--real", str(real.path), "--results", str(tmp_path / "r"),
            "--model", "mobilenet_v3_large", "--weights", str(tmp_path / "w.pt"), "--frozen",
            "--device", "cpu"])))


def test_features_are_standardised_by_those_trained_on():
    some = torch.randn(50, 4) * torch.tensor([1.0, 5, 0, 100]) + 3
    standardise = heads.build(some, 2)[0]
    found = standardise(some)
    assert found[:, [0, 1, 3]].mean(0).abs().max() < 1e-5 and not found[:, 2].any()
    assert torch.allclose(found[:, [0, 1, 3]].std(0), torch.ones(3))


@pytest.mark.parametrize(("more", "words"), [
    (["--frozen"], "give --weights imagenet-lite0"),
    (["--frozen", "--model", "small", "--weights", "FILE"], "give --weights imagenet-lite0"),
    ([*PACKAGED, "--model", "small"], "are of --model efficientnet_lite0, not of small")])
def test_options_that_do_not_go_together(real, tmp_path, capsys, more, words):
    (tmp_path / "w.pt").write_bytes(b"")
    more = [str(tmp_path / "w.pt") if each == "FILE" else each for each in more]
    assert classify(real, real, tmp_path / "r", *more) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "r").exists()


def test_fine_tuning_starts_from_the_packaged_weights_and_changes_them(real, tmp_path, monkeypatch):
    seen = []
    train = cnn_classify.train

    def noted(model, *rest, **more):
        seen.append([each.detach().clone() for each in model.parameters()])
        loss = train(model, *rest, **more)
        seen.append([each.detach().clone() for each in model.parameters()])
        return loss

    monkeypatch.setattr(cnn_classify, "train", noted)
    assert classify(real, real, tmp_path, *PACKAGED, repeats="1", steps=2) == 0
    state = pretrained.in_timms_words(torch.load(pretrained.weights_path(), weights_only=True))
    assert torch.equal(seen[0][0], state["conv_stem.weight"])
    assert not torch.equal(seen[0][0], seen[1][0])
    record = read(tmp_path, "real")
    assert record["model"] == "efficientnet_lite0" and "frozen" not in record["settings"]
    assert record["settings"]["learning_rate"] == cnns.MODELS[cnns.LITE0][1]


@pytest.mark.parametrize(("side", "seen"), [(32, 128), (127, 128), (128, 128), (160, 160)])
def test_lite0_sees_small_images_enlarged(side, seen):
    model = cnns.build_model(cnns.LITE0, 3, None).eval()
    sizes = []
    model.conv_stem.register_forward_pre_hook(lambda layer, inputs: sizes.append(inputs[0].shape))
    with torch.inference_mode():
        model(torch.zeros(1, 3, side, side))
    assert sizes == [(1, 3, seen, seen)]


def test_lite0_is_shown_the_pixels_that_its_weights_expect():
    model = cnns.build_model(cnns.LITE0, 3, None)
    white = torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)
    assert normalise(white, *scale_for(model, "cpu")).flatten().tolist() == pytest.approx([1] * 3)
    usual = normalise(white, *scale_for(torch.nn.Identity(), "cpu")).flatten().tolist()
    assert usual == pytest.approx([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225])
