"""Leaks by content: test images are found among training images, whatever was done to them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from lungkit.audit import copies, leaks, registration
from lungkit.data.dataset import open_dataset, parent_of
from lungkit.data.writer import DatasetWriter
from lungkit.phantom.paint import CLASSES, draw_tile
from lungkit.run.faults import Fault
from lungkit.run.output import Output, release, try_lock

SIZE = 64


@cache
def tile(number: int) -> np.ndarray:
    return draw_tile(CLASSES[number % 3], patient=number, index=number, image_size=SIZE).image


def warp(image, matrix):
    return cv2.warpAffine(image, np.float32(matrix), (SIZE, SIZE), flags=cv2.INTER_CUBIC,
                          borderMode=cv2.BORDER_REFLECT_101)


def turned(image, degrees):
    return warp(image, cv2.getRotationMatrix2D(((SIZE - 1) / 2,) * 2, degrees, 1))


def more_hue(image):
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + 10) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def compressed(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 1)


CHANGES = {
    "as it is": (lambda image: image, leaks.FILE),
    "a quarter turn": (lambda image: np.rot90(image), leaks.PIXELS),
    "mirrored, upside down": (lambda image: np.rot90(image, 2)[:, ::-1], leaks.PIXELS),
    "10 degrees": (lambda image: turned(image, 10), leaks.COPY),
    "20 degrees": (lambda image: turned(image, -20), leaks.COPY),
    "cropped": (lambda image: cv2.resize(image[6:57, 6:57], (SIZE, SIZE)), leaks.COPY),
    "shifted": (lambda image: warp(image, [[1, 0, 4], [0, 1, 4]]), leaks.COPY),
    "re-encoded": (compressed, leaks.COPY),
    "hue": (more_hue, leaks.COPY),
    "re-stained": (lambda image: np.uint8(np.clip(image * [1.1, .9, 1.05] - 8, 0, 255)),
                   leaks.COPY),
    "mirrored, re-encoded": (lambda image: compressed(image[:, ::-1]), leaks.COPY),
}


def write(path: Path, images: dict[str, list[np.ndarray]], parents=()) -> Path:
    channels = images["test"][0].shape[2]
    with DatasetWriter(Output(path, "dataset.json", {}), stage="test", classes=["a"],
                       image_size=SIZE, channels=channels) as writer:
        for split, own in images.items():
            for index, image in enumerate(own):
                writer.add(split, "a", index, np.ascontiguousarray(image))
        writer.publish(parents=list(parents), seed=0)
    return path


def arm(path: Path, train: list[np.ndarray], real, **splits):
    parents = [parent_of(real, {split: ["train"] for split in ("train", "val", "test")})]
    others = {"val": [tile(40)], "test": [tile(41)]} | splits
    return open_dataset(write(path, {"train": train, **others}, parents))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return open_dataset(write(tmp_path_factory.mktemp("x") / "real", {
        "train": [tile(0), tile(1)], "val": [tile(2)], "test": [tile(n) for n in range(3, 8)]}))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What is found where an arm holds each change of one test image of its own, and no other."""
    folder = tmp_path_factory.mktemp("changes")
    images = [tile(50 + n) for n in range(len(CHANGES) + 2)]
    real = open_dataset(write(folder / "real", {
        "train": [tile(0)], "val": [tile(2)], "test": images}))
    changed = [change(image) for image, (change, _) in zip(images, CHANGES.values())]
    return leaks.find_leaks(arm(folder / "arm", [tile(20), *changed, tile(21)], real), real)


@pytest.mark.parametrize("name", CHANGES)
def test_a_copy_is_found_and_its_kind_is_said(name, found):
    number = list(CHANGES).index(name)
    assert found[f"test/a/{number:06d}.png"] == (f"train/a/{number + 1:06d}.png", CHANGES[name][1])
    assert len(found) == len(CHANGES), "and no other"


def test_what_is_not_trained_on_or_is_other_tissue_is_no_leak(real, tmp_path):
    own_test = [real.image(row) for row in real.select("test")]
    trained = [real.image(row) for row in real.select("train")]
    clean = arm(tmp_path / "clean", [*trained, tile(20), tile(21)], real, test=own_test)
    assert leaks.find_leaks(clean, real) == {} == leaks.find_leaks(real, real)


def test_val_counts_as_training(real, tmp_path):
    leak = arm(tmp_path / "arm", [tile(20)], real, val=[turned(tile(3), 15)])
    assert leaks.find_leaks(leak, real) == {
        "test/a/000000.png": ("val/a/000000.png", leaks.COPY)}


def test_a_blank_image_is_nobodys_copy_and_a_nearly_blank_one_is_found(real, tmp_path):
    blank = np.full((SIZE, SIZE, 3), 230, np.uint8)
    spot = blank.copy()
    cv2.circle(spot, (20, 40), 9, (90, 60, 120), -1)
    pale = open_dataset(write(tmp_path / "real", {
        "train": [tile(0)], "val": [tile(1)], "test": [blank, spot]}))
    copies = arm(tmp_path / "arm", [blank, np.uint8(spot[::-1] * 0.9)], pale)
    assert leaks.find_leaks(copies, pale) == {
        "test/a/000001.png": ("train/a/000001.png", leaks.COPY)}
    assert leaks.same_files(copies, pale) == {}


def test_a_grey_copy_of_a_colour_image_is_found(real, tmp_path):
    grey = [cv2.cvtColor(tile(n), cv2.COLOR_RGB2GRAY)[..., None] for n in (4, 20, 21)]
    found = leaks.find_leaks(
        arm(tmp_path / "arm", grey[:2], real, val=grey[1:2], test=grey[2:]), real)
    assert found == {"test/a/000001.png": ("train/a/000000.png", leaks.COPY)}


@pytest.mark.parametrize(("modality", "agreement", "is_copy", "slices"), [
    ("he", 0.86, True, False), ("ct", 0.86, False, False), ("ct", 0.96, True, False),
    ("ct", 0.96, False, True), ("ct", 0.98, True, True)])
def test_chests_of_two_patients_are_alike_and_no_copies(tmp_path, monkeypatch, modality, agreement,
                                                       is_copy, slices):
    """0.86 of one rib beside one lung in LIDC; 0.7 is enough in tissue, whole slices need more."""
    monkeypatch.setattr(leaks, "shows_slices", lambda _: slices)
    monkeypatch.setattr(leaks, "detail_agreement", lambda *_: 0.9 if slices else 0)
    real = open_dataset(write(tmp_path / "real", {
        "train": [tile(0)], "val": [tile(1)], "test": [turned(tile(0), 10)]}))
    real.modality = modality
    alike = registration.Registration(8, agreement, 0.94)
    monkeypatch.setattr(copies, "register_pair", lambda _: alike)
    assert bool(leaks.find_leaks(real, real)) == is_copy


def test_an_outcome_of_ct_by_tissues_measure_is_not_believed(real, pair, tmp_path, monkeypatch):
    made = leaks.outcome(pair[1], real)
    path = leaks.outcome_path(pair[1], real, tmp_path)
    path.parent.mkdir()
    old = {name: value for name, value in made.items() if name != "least_agreement"}
    path.write_text(json.dumps(old))
    assert leaks.read_outcome(path, pair[1], real)["passed"] is False
    monkeypatch.setattr(real, "modality", "ct")
    assert leaks.read_outcome(path, pair[1], real) is None


# ------------------------------------------------------------------ once for all, and what follows

@pytest.fixture(scope="module")
def pair(real, tmp_path_factory):
    """Two arms: a clean one, and one that holds two test images."""
    folder = tmp_path_factory.mktemp("arms")
    return (arm(folder / "clean", [tile(20)], real),
            arm(folder / "leaky", [tile(20), turned(tile(3), 15), tile(4)], real))


def test_a_clean_arm_is_searched_once_and_its_record_says_so(real, pair, tmp_path, monkeypatch):
    searched = []
    find = leaks.find_leaks
    monkeypatch.setattr(leaks, "find_leaks", lambda *which: searched.append(1) or find(*which))
    said = {"recipe": leaks.RECIPE, "passed": True, "num_training_images": 2, "num_test_images": 5}
    for _ in range(2):
        assert leaks.require([(pair[0], real)], tmp_path) == [said]
    assert len(searched) == 1
    monkeypatch.setattr(leaks, "RECIPE", leaks.RECIPE + 1)
    leaks.require([(pair[0], real)], tmp_path)
    assert len(searched) == 2


def test_a_leak_is_one_line_that_names_images_and_is_kept_beside_the_results(real, pair, tmp_path):
    for _ in range(2):
        with pytest.raises(Fault, match="leaky trains on 2 of the 5 test images") as fault:
            leaks.require([(pair[0], real), (pair[1], real)], tmp_path)
    assert "train/a/000001.png is a copy of test/a/000000.png" in str(fault.value)
    assert "train/a/000002.png is the same file as test/a/000001.png" in str(fault.value)
    kept = json.loads(leaks.outcome_path(pair[1], real, tmp_path).read_text())
    assert not kept["passed"] and kept["found"] == {
        leaks.FILE: 1, leaks.PIXELS: 0, leaks.COPY: 1}


def test_of_real_itself_the_line_says_how_to_make_it_anew(tmp_path):
    again = open_dataset(write(tmp_path / "real", {
        "train": [tile(3)], "val": [tile(2)], "test": [turned(tile(3), 10)]}))
    with pytest.raises(Fault, match="make it again by --groups"):
        leaks.require([(again, again)], tmp_path / "results")


def test_a_dry_run_writes_nothing_and_goes_by_hashes_or_what_is_known(real, pair, tmp_path):
    copied = arm(tmp_path / "arm", [turned(tile(3), 15)], real)
    assert leaks.require([(copied, real)], tmp_path / "r", dry_run=True) == [{}]
    with pytest.raises(Fault, match="1 of the 5"):
        leaks.require([(pair[1], real)], tmp_path / "r", dry_run=True)
    assert not (tmp_path / "r").exists()
    with pytest.raises(Fault):
        leaks.require([(copied, real)], tmp_path / "r")
    with pytest.raises(Fault, match="is a copy of"):
        leaks.require([(copied, real)], tmp_path / "r", dry_run=True)


def test_an_outcome_of_other_datasets_or_a_torn_one_is_not_believed(real, pair, tmp_path):
    path = leaks.outcome_path(pair[0], real, tmp_path)
    path.parent.mkdir()
    for text in ("{", json.dumps({"images": {}}), json.dumps(
            leaks.outcome(pair[0], real) | {"real_fingerprint": "another"})):
        path.write_text(text)
        assert leaks.read_outcome(path, pair[0], real) is None
    assert leaks.require([(pair[0], real)], tmp_path)[0]["passed"]


def test_what_another_process_searches_is_waited_for_last(real, pair, tmp_path, monkeypatch):
    path = leaks.outcome_path(pair[0], real, tmp_path)
    held = try_lock(path)
    order = []

    def find(data, _):
        order.append(data.name)
        if data.name == "other":
            release(held, path)
        return {}

    monkeypatch.setattr(leaks, "find_leaks", find)
    other = arm(tmp_path / "other", [tile(22)], real)
    leaks.require([(pair[0], real), (other, real)], tmp_path)
    assert order == ["other", "clean"]
    assert [name.name for name in path.parent.glob(".*")] == [], "locks"
