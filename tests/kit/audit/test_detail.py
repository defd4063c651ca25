"""Two chests are alike but for their vessels: whole slices are copies by these alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lungkit.audit import leaks
from lungkit.audit.detail import detail_agreement
from lungkit.audit.registration import register
from lungkit.audit.signature import describe
from lungkit.data.dataset import open_dataset
from lungkit.data.writer import DatasetWriter
from lungkit.run.output import Output

SIZE = 256


def chest(patient: int) -> np.ndarray:
    """uint8 [S, S, 1]: one body, ribs, heart and spine of all, vessels of the patient's own."""
    def oval(image, at, axes, grey, turned=0):
        cv2.ellipse(image, at, axes, turned, 0, 360, grey, -1, cv2.LINE_AA)

    image = np.zeros((SIZE, SIZE), np.uint8)
    oval(image, (128, 128), (118, 92), 150)
    for side in (-1, 1):
        oval(image, (128 + side * 55, 125), (45, 70), 20)
        for number in range(7):
            angle = np.radians(-75 + 25 * number)
            at = 128 + side * int(104 * np.cos(angle)), 128 + int(80 * np.sin(angle))
            oval(image, at, (9, 3), 250, int(np.degrees(angle)) * side + 90)
    oval(image, (128, 95), (30, 34), 160)
    oval(image, (128, 185), (15, 12), 240)
    rng = np.random.default_rng(patient)
    for side in (-1, 1):
        for _ in range(40):
            at = (128 + side * int(rng.uniform(30, 85)), int(rng.uniform(75, 175)))
            oval(image, at, (int(rng.integers(1, 5)), 1), int(rng.integers(90, 170)),
                 int(rng.integers(180)))
    noisy = cv2.GaussianBlur(image, (0, 0), 0.7) + np.random.default_rng(99).normal(
        0, 4, image.shape)
    return np.uint8(np.clip(noisy, 0, 255))[..., None]


def turned(image, degrees=10):
    matrix = cv2.getRotationMatrix2D(((SIZE - 1) / 2,) * 2, degrees, 1)
    return cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC)[..., None]


def compressed(image):
    held = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    return cv2.imdecode(held, cv2.IMREAD_GRAYSCALE)[..., None]


CHANGES = {
    "turned": turned, "re-encoded": compressed,
    "mirrored": lambda image: compressed(np.ascontiguousarray(image[:, ::-1])),
    "a quarter turn, mirrored": lambda image: np.ascontiguousarray(np.rot90(image)[:, ::-1]),
    "cropped": lambda image: cv2.resize(image[20:-20, 20:-20], (SIZE, SIZE))[..., None],
    "darker": lambda image: np.uint8(image * 0.7),
}


def dataset(path, train, test):
    with DatasetWriter(Output(path, "dataset.json", {}), stage="test", classes=["a"], channels=1,
                       image_size=SIZE) as writer:
        for split, images in {"train": train, "val": [chest(90)], "test": test}.items():
            for index, image in enumerate(images):
                writer.add(split, "a", index, image)
        writer.publish(parents=[], seed=0, modality="ct")
    return open_dataset(path)


def test_strangers_register_as_well_as_copies_and_differ_in_detail():
    one, other = chest(1)[..., 0], chest(2)[..., 0]
    alike = register(describe(one), describe(other))
    assert alike.are_copies and alike.agreement >= leaks.SLICE_AGREEMENT
    assert detail_agreement(one, other) < leaks.SLICE_DETAIL - 0.1


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_agrees_in_detail(change):
    image = chest(3)
    changed = CHANGES[change](image)
    assert detail_agreement(image[..., 0], changed[..., 0]) > leaks.SLICE_DETAIL
    colour = np.repeat(image, 3, 2)
    assert detail_agreement(colour, changed[..., 0]) > leaks.SLICE_DETAIL


def test_what_cannot_be_laid_over_does_not_agree():
    assert detail_agreement(chest(3)[..., 0], np.full((SIZE, SIZE), 7, np.uint8)) == -1


def test_a_slice_of_another_patient_is_no_leak_and_a_changed_copy_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(leaks, "shows_slices", lambda _: True)
    trained = [chest(5), turned(chest(6)), chest(7)]
    real = dataset(tmp_path / "real", trained, [chest(8), chest(6), chest(9)])
    assert leaks.find_leaks(real, real) == {
        "test/a/000001.png": ("train/a/000001.png", leaks.COPY)}
    monkeypatch.setattr(leaks, "SLICE_DETAIL", -1)      # without: patients are taken for copies
    assert len(leaks.find_leaks(real, real)) == 3
