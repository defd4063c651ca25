"""The feature extractor: what it shows its network, and that it works out nothing twice."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from arms import fork, signal_when
from lungkit.data.dataset import open_dataset
from lungkit.data.writer import DatasetWriter
from lungkit.learn import features, pretrained
from lungkit.learn.features import Extractor
from lungkit.run.faults import BadOptions
from lungkit.run.files import sha256_file
from lungkit.run.output import Output

SMALL = "test_efficientnet"  # timm's own for tests: 160 px, 0.4 M weights


def write(path, *, channels=3, first=0):
    output = Output(path, "dataset.json", {"first": first}, overwrite=True)
    with DatasetWriter(output, stage="test", classes=["a", "b"], image_size=16,
                       channels=channels) as writer:
        for index in range(12):
            image = np.random.default_rng(first + index).integers(0, 256, (16, 16, channels),
                                                                  np.uint8)
            writer.add(("train", "val", "test")[index % 3], "ab"[index // 3 % 2], index, image)
        return writer.publish(parents=[], seed=0)


def weights_of(path, seed):
    torch.manual_seed(seed)
    torch.save(pretrained.build(SMALL, 7).state_dict(), path)
    return path


@pytest.fixture
def small(tmp_path):
    """An extractor of few weights, from a file."""
    return Extractor(SMALL, weights_of(tmp_path / "w.pt", 0))


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "real")


@pytest.fixture(scope="module")
def lite0():
    return Extractor()


def files_of(data):
    return sorted(path.name for path in data.path.parent.glob(f".{data.name}.cache/*/*"))


# ------------------------------------------------------------------ what the network is shown

def test_bytes_become_the_numbers_that_the_packaged_weights_expect(lite0):
    shown = lite0.inputs(np.full((1, 224, 224, 3), (0, 127, 255), np.uint8))
    assert shown.shape == (1, 3, 224, 224)
    for channel, wanted in zip(shown[0], (-127 / 128, 0.0, 1.0)):
        assert torch.allclose(channel, torch.tensor(wanted), atol=1e-6)


@pytest.mark.parametrize("side", [64, 300])
def test_images_are_resized_as_pil_resizes_them(side, lite0):
    image = photographs.chelsea()[:side, :side]
    wanted = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC), float)
    found = lite0.inputs(image[None])[0].permute(1, 2, 0).numpy() * 128 + 127
    assert abs(found - wanted).max() < 1.5  # of 255; bytes are rounded twice on their way


def test_other_networks_are_shown_what_timm_says_of_them(small):
    config = small.network.pretrained_cfg
    shown = small.inputs(np.full((1, 160, 160, 3), 255, np.uint8))[0, :, 0, 0]
    assert shown.tolist() == pytest.approx(
        [(1 - mean) / std for mean, std in zip(config["mean"], config["std"])])


def test_grey_images_have_the_features_of_the_same_in_three_channels(lite0):
    grey = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    found = lite0.features(grey)
    assert found.shape == (2, 1280) and found.dtype == np.float32
    assert np.allclose(found, lite0.features(grey.repeat(3, 3)), atol=1e-5)


def test_the_features_are_pooled_of_the_packaged_weights(lite0):
    """By hand, of one image: the mean over places of what the last convolution says."""
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    network = pretrained.build(pretrained.LITE0, 1000)
    state = torch.load(pretrained.weights_path(), weights_only=True)
    network.load_state_dict(pretrained.in_timms_words(state))
    batch = torch.tensor((image.transpose(2, 0, 1)[None] - 127.0) / 128, dtype=torch.float32)
    with torch.inference_mode():
        wanted = network.eval().forward_features(batch).mean((2, 3))[0]
    assert np.allclose(lite0.features([image])[0], wanted, atol=1e-4)


def test_an_images_features_do_not_depend_on_its_batch(small, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    together = small.features(images)
    monkeypatch.setattr(features, "BATCH_SIZE", 2)
    assert np.allclose(small.features(iter(images)), together, atol=1e-5)
    assert small.features([]).shape == (0, small.width)


# ------------------------------------------------------------------ what is kept

def test_a_split_has_the_features_of_its_images_in_order(data, small):
    found = small.of_split(data, "train")
    assert np.array_equal(found, small.features(data.load("train")[0]))
    assert len(np.unique(found, axis=0)) == 4


def test_a_split_is_worked_out_once_and_read_afterwards(data, small, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 3)
    found = small.of_split(data, "train")
    monkeypatch.setattr(Extractor, "inputs", None)
    again = Extractor(SMALL, small.weights_path)
    assert np.array_equal(again.of_split(data, "train"), found)
    assert len(files_of(data)) == 2  # of four images


def test_other_weights_other_images_and_other_splits_have_files_of_their_own(data, small, tmp_path):
    other = Extractor(SMALL, weights_of(tmp_path / "other.pt", 1))
    found = {small.of_split(data, "train").tobytes(), other.of_split(data, "train").tobytes(),
             small.of_split(data, "val").tobytes()}
    assert len(found) == 3 and len(files_of(data)) == 3
    found.add(small.of_split(write(data.path, first=100), "train").tobytes())
    assert len(found) == 4


def test_packaged_features_that_are_there_need_no_network(data, lite0, monkeypatch):
    found = lite0.of_split(data, "val")
    monkeypatch.setattr(pretrained, "build", None)
    assert np.array_equal(Extractor().of_split(data, "val"), found)


def test_a_kill_leaves_the_parts_that_are_whole(data, small, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 2)
    wanted = small.features(data.load("train")[0])
    rows = Extractor.rows

    def slow(self, images):
        for row in rows(self, images):
            time.sleep(0.1)
            yield row

    monkeypatch.setattr(Extractor, "rows", slow)
    pid = fork(lambda: small.of_split(data, "train") is None)
    status = signal_when(pid, lambda: any("0001" in name for name in files_of(data)))
    assert status == -signal.SIGKILL
    monkeypatch.setattr(Extractor, "rows", rows)
    assert np.array_equal(small.of_split(data, "train"), wanted)
    assert len(files_of(data)) == 2


def test_no_normalisation_is_left_to_be_worked_out(lite0):
    from torch.nn import BatchNorm2d
    assert not [each for each in lite0.network.modules() if isinstance(each, BatchNorm2d)]


def test_what_decides_the_features_is_said(lite0):
    assert lite0.identity == {"network": "tf_efficientnet_lite0", "recipe": features.RECIPE,
                              "weights_sha256": sha256_file(pretrained.weights_path())}


@pytest.mark.parametrize(("more", "words"), [
    ({"name": "resnet18"}, "resnet18 needs weights from a file"),
    ({"weights_path": "no/such.pt"}, "are not a file")])
def test_an_extractor_that_cannot_be_is_refused(more, words, tmp_path):
    if "weights_path" in more:
        more = {"weights_path": tmp_path / more["weights_path"]}
    with pytest.raises(BadOptions, match=words):
        Extractor(**more)


def test_one_channel_and_an_opened_dataset_are_taken(tmp_path, small):
    write(tmp_path / "grey", channels=1)
    assert small.of_split(open_dataset(tmp_path / "grey"), "test").shape == (4, small.width)
