"""The InstanSeg backend, with TorchScript models that keep InstanSeg's contract.

The published weights are not at hand here: that they load and run is not tested.
"""

from __future__ import annotations

import functools
import pickle
import warnings
import zipfile

import numpy as np
import pytest

from lungkit.nuclei import instanseg
from lungkit.nuclei.detect import FIELD_UM, detect_nuclei
from lungkit.run import faults

torch = pytest.importorskip("torch")

GROUND, NUCLEUS = (225, 150, 190), (90, 60, 140)


class Threshold(torch.nn.Module):
    """Smooths by a convolution, thresholds, and labels what is connected, as its InstanSeg would.

    Like InstanSeg's models it knows its pixel size, clamps its input in place, takes
    target_segmentation, and returns float labels [1, C, H, W].
    """

    def __init__(self, pixel_size: float = 0.5, cells_and_nuclei: bool = False, mode: str = ""):
        super().__init__()
        self.pixel_size = pixel_size
        self.cells_and_nuclei = cells_and_nuclei
        self.mode = mode
        self.smooth = torch.nn.Conv2d(3, 1, 3, padding=1, bias=False)
        torch.nn.init.constant_(self.smooth.weight, 1 / 27)

    def forward(self, x: torch.Tensor,
                target_segmentation: torch.Tensor = torch.tensor([1, 1])) -> torch.Tensor:  # noqa: B008
        x.clamp_(-2, 3)
        if self.mode == "fails":
            raise RuntimeError("no such layer")
        inside = (self.smooth(x) < 0.5).float()
        labels = torch.arange(1, inside.numel() + 1, device=x.device).float().view_as(inside)
        labels = labels * inside
        for _ in range(64):
            spread = torch.nn.functional.max_pool2d(labels, 3, 1, 1)
            labels = spread * inside
        if self.mode == "flat":
            return labels[0, 0]
        if self.mode == "probability":
            return labels / 1000 + 0.25
        if self.mode == "empty":
            return labels * 0
        if self.cells_and_nuclei:
            if int(target_segmentation[1]) == 1:  # cells too: not how to ask for nuclei
                return torch.stack([inside[0, 0] * 0 + 1, labels[0, 0]])[None]
            return labels
        return labels


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """A file of weights by the options of its model; read only, and scripted once."""
    @functools.cache
    def saved(**options):
        path = tmp_path_factory.mktemp("weights") / "instanseg.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(Threshold(**options)).save(str(path))
        return path

    return saved


def picture(size: int, centres_um: list, radius_um: float) -> np.ndarray:
    """Discs of haematoxylin on eosin in a field of FIELD_UM, uint8 [size, size, 3]."""
    y, x = (np.mgrid[:size, :size] + 0.5) * FIELD_UM / size
    image = np.full((size, size, 3), GROUND, np.uint8)
    for cx, cy in centres_um:
        image[np.hypot(x - cx, y - cy) <= radius_um] = NUCLEUS
    return image


CENTRES_UM = [(30, 40), (100, 60), (60, 130), (150, 150)]


@pytest.mark.parametrize("size", [64, 224, 360, 600])
def test_nuclei_come_back_at_the_scale_of_the_image(save, size):
    image = picture(size, CENTRES_UM, 6)
    nuclei = instanseg.load_detector(save(), "cpu")(image)
    expected = np.array(CENTRES_UM) * size / FIELD_UM - 0.5
    assert nuclei.labels.shape == (size, size) and nuclei.labels.dtype == np.int32
    assert nuclei.centroids.dtype == nuclei.areas_px.dtype == np.float32
    gap = np.hypot(*(nuclei.centroids[:, None] - expected).transpose(2, 0, 1))
    assert len(nuclei) == 4 and gap.min(axis=0).max() < 0.006 * size
    assert nuclei.areas_px / (size / FIELD_UM) ** 2 == pytest.approx(np.pi * 36, rel=0.25)
    for label, (x, y) in enumerate(np.round(nuclei.centroids).astype(int), 1):
        assert nuclei.labels[y, x] == label


def test_the_model_sees_its_own_pixel_size_and_full_contrast():
    image = picture(224, CENTRES_UM, 6)
    image[0, 0] = 0  # a speck of dust must not set the scale
    seen = instanseg.prepare(image, FIELD_UM, 0.5)
    assert seen.shape == (3, 360, 360) and seen.dtype == np.float32
    for plane in seen:
        assert np.percentile(plane, (0.1, 99.9)) == pytest.approx([0, 1], abs=1e-5)
    assert seen[0, 80, 60] < 0.05 and seen[0, 10, 10] > 0.95
    assert instanseg.prepare(image, 224 * 0.5, 0.5).shape == (3, 224, 224)
    assert np.isfinite(instanseg.prepare(np.full((64, 64, 3), 7, np.uint8), FIELD_UM, 0.5)).all()


def test_pixels_are_those_of_instanseg_where_nothing_is_resampled():
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    seen = instanseg.prepare(image, 64.0, 0.5)
    for k in range(3):
        low, high = np.percentile(image[..., k], (0.1, 99.9))
        np.testing.assert_allclose(seen[k], (image[..., k] - low) / (high - low), atol=1e-6)


def test_nuclei_are_asked_for_where_the_model_has_cells_too(save):
    nuclei = instanseg.load_detector(save(cells_and_nuclei=True), "cpu")(
        picture(360, CENTRES_UM, 6))
    assert len(nuclei) == 4


def test_a_model_without_pixel_size_is_taken_for_half_a_um(save):
    detector = instanseg.load_detector(save(pixel_size=float("nan")), "cpu")
    assert detector.pixel_size_um == 0.5
    assert instanseg.load_detector(save(pixel_size=0.25), "cpu").pixel_size_um == 0.25


def test_small_and_empty_images(save):
    detector = instanseg.load_detector(save(mode="empty"), "cpu")
    nuclei = detector(picture(32, CENTRES_UM, 6), field_um=16.0)
    assert len(nuclei) == 0 and not nuclei.labels.any() and nuclei.labels.shape == (32, 32)


def test_more_than_255_nuclei(save):
    at = (np.arange(18) + 0.5) * 10
    image = picture(360, [(x, y) for x in at for y in at], 3)
    nuclei = instanseg.load_detector(save(), "cpu")(image)
    assert len(nuclei) == nuclei.labels.max() == 324


def test_the_detector_goes_to_other_processes_as_its_path(save):
    detector = instanseg.load_detector(save(), "cpu")
    copy = pickle.loads(pickle.dumps(detector))
    image = picture(224, CENTRES_UM, 6)
    np.testing.assert_array_equal(copy(image).labels, detector(image).labels)
    assert len(pickle.dumps(detector)) < 1000


def test_without_weights_it_is_the_usual_detector():
    assert instanseg.load_detector() is detect_nuclei


@pytest.mark.parametrize("content", ["text", "checkpoint", "nothing", "missing", "folder"])
def test_what_is_no_torchscript_is_said_in_one_line(tmp_path, content):
    path = tmp_path / "weights.pt"
    if content == "text":
        path.write_text("hello")
    elif content == "checkpoint":
        torch.save({"weight": torch.zeros(2)}, path)
    elif content == "nothing":
        path.write_bytes(b"")
    elif content == "folder":
        path.mkdir()
    with pytest.raises(faults.Fault, match="instanseg.pt") as fault:
        instanseg.load_detector(path, "cpu")
    assert "\n" not in str(fault.value) and str(path) in str(fault.value)


@pytest.mark.parametrize(("mode", "says"), [
    ("fails", "no such layer"), ("flat", r"got \[360, 360\]"), ("probability", "not whole")])
def test_what_the_model_does_wrong_is_said_in_one_line(save, mode, says):
    detector = instanseg.load_detector(save(mode=mode), "cpu")
    with pytest.raises(faults.Fault, match=says) as fault:
        detector(picture(224, CENTRES_UM, 6))
    assert "\n" not in str(fault.value) and "InstanSeg" in str(fault.value)


def test_a_device_that_is_not_there_is_a_bad_option(save):
    with pytest.raises(faults.BadOptions, match="--device"):
        instanseg.load_detector(save(), "tpu")


class Plain(torch.nn.Module):
    """Returns prepared labels, in channel `at` of `channels`; the others hold one large region."""

    def __init__(self, labels: np.ndarray, channels: int = 1, at: int = 0):
        super().__init__()
        self.pixel_size = 0.5
        self.cells_and_nuclei = False
        self.labels = torch.nn.Parameter(torch.from_numpy(labels.astype(np.float32)), False)
        self.channels, self.at = channels, at
        self.drop = torch.nn.Dropout(1.0)

    def forward(self, x: torch.Tensor, target_segmentation: torch.Tensor) -> torch.Tensor:
        found = torch.ones(1, self.channels, x.shape[2], x.shape[3])
        found[0, self.at] = self.drop(self.labels[:x.shape[2], :x.shape[3]])
        return found


def saved(path, module) -> instanseg.InstanSeg:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module.train()).save(str(path))
    return instanseg.load_detector(path, "cpu")


def regions(size: int = 360) -> np.ndarray:
    """A square of 12 px, numbered 7, and an L of 20 px that fills 0.87 of its hull, numbered 3."""
    labels = np.zeros((size, size))
    labels[20:32, 50:62] = 7
    labels[70:90, 30:50] = 3
    labels[70:80, 30:40] = 0
    return labels


def test_nuclei_are_the_first_channel_of_a_model_that_no_longer_trains(tmp_path):
    detector = saved(tmp_path / "a.pt", Plain(regions(), channels=2))
    nuclei = detector(np.zeros((360, 360, 3), np.uint8))
    np.testing.assert_allclose(nuclei.centroids[1], [55.5, 25.5])  # Dropout drops nothing
    assert nuclei.areas_px.tolist() == [300, 144]
    assert nuclei.labels.max() == 2


@pytest.mark.parametrize(("solidity", "count"), [(0.75, 2), (0.9, 1)])
def test_the_models_nuclei_have_the_solidity_asked_for(tmp_path, solidity, count):
    detector = saved(tmp_path / "a.pt", Plain(regions()))
    assert len(detector(np.zeros((360, 360, 3), np.uint8), solidity=solidity)) == count


def test_an_image_of_nothing_but_nuclei_has_no_background(tmp_path):
    labels = np.arange(1, 37).reshape(6, 6).repeat(24, 0).repeat(24, 1)
    detector = saved(tmp_path / "a.pt", Plain(labels))
    nuclei = detector(np.zeros((144, 144, 3), np.uint8), field_um=72.0)
    assert len(nuclei) == 36 and (nuclei.labels > 0).all()


def test_a_small_image_is_enlarged_at_its_far_sides_only(save):
    image = picture(64, [(70, 30)], 12)
    detector = instanseg.load_detector(save(), "cpu")
    nuclei = detector(image, field_um=32.0)  # 64 px of 0.5 um: 64 more are mirrored
    assert nuclei.labels.shape == (64, 64) and len(nuclei) == 1
    np.testing.assert_allclose(nuclei.centroids[0], np.array([70, 30]) * 64 / 180 - 0.5, atol=0.5)


@pytest.mark.parametrize(("field_um", "side"), [
    (112.0, 224), (113.0, 224), (111.0, 224), (114.0, 228), (224.0, 448)])
def test_an_image_within_a_hundredth_of_the_models_scale_is_left_as_it_is(field_um, side):
    seen = instanseg.prepare(np.zeros((224, 224, 3), np.uint8), field_um, 0.5)
    assert seen.shape == (3, side, side)


@pytest.mark.parametrize(("change", "whole"), [
    (lambda content: content, True), (lambda content: content[:-100], False),
    (lambda content: content[:len(content) // 2], False), (lambda content: b"", False),
    (lambda content: b"<!DOCTYPE html>", False), (None, False)],
    ids=["whole", "cut", "half", "empty", "a web page", "a zip of something else"])
def test_a_file_of_weights_is_checked_without_running_it(change, whole, save, tmp_path,
                                                         monkeypatch):
    path = tmp_path / "instanseg.pt"
    if change:
        path.write_bytes(change(save().read_bytes()))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("notes.txt", "x")
    monkeypatch.setattr(torch.jit, "load", None)
    if whole:
        instanseg.check_file(path)
        instanseg.check_file(None)
    else:
        with pytest.raises(faults.Fault, match="not a TorchScript file, or cut short; give the"):
            instanseg.check_file(path)
