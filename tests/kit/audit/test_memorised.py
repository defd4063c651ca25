"""The copy audit: it sees copies, turned and re-encoded ones too, and no ghosts."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from lungkit.audit import memorised
from lungkit.data.dataset import open_dataset
from lungkit.data.writer import DatasetWriter
from lungkit.phantom.paint import CLASSES, draw_tile
from lungkit.run.output import Output


@functools.cache
def tiles(number: int, first: int) -> np.ndarray:
    return np.stack([draw_tile(CLASSES[i % 3], patient=i, index=i, seed=first, image_size=64).image
                     for i in range(number)])


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    output = Output(tmp_path_factory.mktemp("x") / "real", "dataset.json", {})
    images = tiles(24, 1)
    with DatasetWriter(output, stage="test", classes=["a"], image_size=64) as writer:
        for index, image in enumerate(images):
            writer.add(("val", "test", "train")[min(index, 2)], "a", index, image,
                       group=f"g{index}")
        writer.publish(parents=[], seed=0)
    return open_dataset(output.output_dir)


def test_independent_tissue_is_no_copy(real):
    audited = memorised.audit(real, tiles(24, 2))
    assert audited["share_near_copies"] <= 0.1 and audited["images"] == 24
    assert audited["likeness_median"] == pytest.approx(audited["real_likeness_median"], abs=0.1)


def test_copies_are_seen_turned_blurred_and_restained(real):
    import cv2

    images, _ = real.load("train")
    turned = np.rot90(images, 1, (1, 2))[:, :, ::-1]
    worn = np.stack([cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), 1.5)
                     for image in turned])
    worn = (worn * 0.8 + 30).astype(np.uint8)
    audited = memorised.audit(real, worn)
    assert audited["share_near_copies"] >= 0.95
    assert "memorised" in memorised.warnings_of("prompt", audited)[0]


CHANGES = {"10 degrees": (10, 1.0, 0), "20 degrees": (-20, 1.0, 0), "cropped": (0, 1.25, 0),
           "shifted": (0, 1.0, 4)}


def test_small_changes_do_not_hide_a_copy(real):
    import cv2

    images, _ = real.load("train")
    for name, (degrees, scale, shift) in CHANGES.items():
        matrix = cv2.getRotationMatrix2D((31.5, 31.5), degrees, scale)
        matrix[:, 2] += shift
        changed = [cv2.warpAffine(image, matrix, (64, 64), borderMode=cv2.BORDER_REFLECT_101)
                   for image in images[:6]]
        audited = memorised.audit(real, changed)
        assert audited["share_near_copies"] == audited["share_registered"] == 1, name


def test_siblings_in_one_group_do_not_hide_copies(real):
    """Training images that repeat within their group must not raise the threshold."""
    images, _ = real.load("train")
    apart = np.eye(len(images), dtype=bool)
    assert memorised.likeness(images, images).min() > 0.999
    assert memorised.likeness(images, images, apart).max() < 0.999


def test_blur_alone_is_not_taken_for_copying(real):
    import cv2

    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 2) for image in tiles(24, 2)])
    assert memorised.warnings_of("x", memorised.audit(real, blurred)) == []


# ------------------------------------------------------------------ exact cases

def coarse(number: int, first: int = 0) -> np.ndarray:
    """Images of 8 x 8 random fields of 4 px, so that a thumbnail is the image: [N, 32, 32, 3]."""
    fields = [np.random.default_rng(first + i).integers(0, 256, (8, 8, 3), np.uint8)
              for i in range(number)]
    return np.stack(fields).repeat(4, 1).repeat(4, 2)


def real_of(path, train: np.ndarray, groups: list[str], others: np.ndarray | None = None):
    """A dataset of one class with these training images, and two others for val and test."""
    others = coarse(2, 900) if others is None else others
    with DatasetWriter(Output(path / "real", "dataset.json", {}), stage="test", classes=["a"],
                       image_size=32) as writer:
        for index, (image, group) in enumerate(zip(train, groups, strict=True)):
            writer.add("train", "a", index, image, group=group)
        for index, split in enumerate(("val", "test")):
            writer.add(split, "a", len(train) + index, others[index], group=f"other{index}")
        writer.publish(parents=[], seed=0)
    return open_dataset(path / "real")


def correlations(images: np.ndarray) -> np.ndarray:
    """The largest correlation of each pair over quarter turns and mirrors, float [N, N]; 0 on the
    diagonal."""
    best = np.full((len(images), len(images)), -1.0)
    fields = images[:, ::4, ::4].astype(float)
    for k in range(4):
        for mirrored in (False, True):
            turned = np.rot90(fields, k, (1, 2))
            turned = turned[:, ::-1] if mirrored else turned
            table = np.corrcoef(fields.reshape(len(images), -1), turned.reshape(len(images), -1))
            best = np.maximum(best, table[:len(images), len(images):])
    return best - np.diag(np.diag(best))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_a_copy_is_seen_in_every_orientation_and_no_other_channel_order(quarter_turns, mirrored):
    images = coarse(3)
    turned = np.rot90(images, quarter_turns, (1, 2))
    turned = np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)
    assert memorised.likeness(turned, images).min() == pytest.approx(1, abs=1e-5)
    assert memorised.likeness(np.ascontiguousarray(turned[..., ::-1]), images).max() < 0.9


def test_likeness_is_the_correlation_of_thumbnails():
    images = coarse(12)
    apart = np.eye(12, dtype=bool)
    expected = correlations(images).max(1)
    assert memorised.likeness(images, images, apart) == pytest.approx(expected, abs=1e-3)
    brighter = (images * 0.5 + 60).astype(np.uint8)
    assert memorised.likeness(brighter, images).min() > 0.999
    assert np.isfinite(memorised.likeness(np.zeros((1, 32, 32, 3), np.uint8), images)).all()


@pytest.mark.parametrize(("number", "siblings"), [(150, 1), (12, 3)])
def test_the_threshold_is_half_way_from_the_99th_percentile_of_other_groups_to_identity(
        number, siblings, tmp_path):
    """However many siblings a group holds, they must not raise it; nor must one odd pair."""
    images = coarse(number)
    images[1] = images[0] * 0.6 + images[1] * 0.4
    groups = [f"g{i}" for i in range(number)]
    real = real_of(tmp_path, np.concatenate([images] * siblings), groups * siblings)
    audited = memorised.audit(real, images[:3])
    between = np.repeat(correlations(images).max(1), siblings)
    assert audited["threshold"] == pytest.approx((np.percentile(between, 99) + 1) / 2, abs=1e-4)
    assert audited["real_likeness_median"] == pytest.approx(np.median(between), abs=1e-3)
    assert audited["share_near_copies"] == 1 and audited["likeness_median"] == 1


def test_images_without_a_group_are_groups_of_their_own(tmp_path):
    images = coarse(12)
    known = memorised.audit(real_of(tmp_path / "a", images, [f"g{i}" for i in range(12)]), images)
    assert memorised.audit(real_of(tmp_path / "b", images, [""] * 12), images) == known


def test_only_copies_of_training_images_count(tmp_path):
    train, others = coarse(12), coarse(2, 500)
    real = real_of(tmp_path, train, [f"g{i}" for i in range(12)], others)
    asked = np.concatenate([train[:1], others, coarse(1, 700)])
    audited = memorised.audit(real, asked)
    assert audited["images"] == 4 and audited["share_near_copies"] == 0.25


def test_of_many_training_images_evenly_spaced_ones_are_compared_with_all(tmp_path, monkeypatch):
    images = coarse(12)
    real = real_of(tmp_path, images, [f"g{i}" for i in range(12)])
    monkeypatch.setattr(memorised, "MOST_IMAGES", 3)
    between = correlations(images).max(1)[[0, 5, 11]]
    audited = memorised.audit(real, images)
    assert audited["real_likeness_median"] == pytest.approx(np.median(between), abs=1e-3)
    assert audited["images"] == 12 and audited["share_near_copies"] == 1


@pytest.mark.parametrize(("share", "words"), [
    (0.0, None), (0.02, None), (0.021, "2%"), (0.3, "30%"), (1.0, "100%")])
def test_above_two_in_a_hundred_near_copies_the_set_carries_a_warning(share, words):
    warnings = memorised.warnings_of("prompt", {"share_near_copies": share})
    assert bool(warnings) == (words is not None)
    for warning in warnings:
        assert warning.startswith(f"copies: {words} of the images of prompt ")


def test_the_share_counts_the_images_above_the_threshold(tmp_path):
    images = coarse(12)
    fresh = coarse(1, 800)[0]
    faded = np.stack([(images[0] * share + fresh * (1 - share)).astype(np.uint8)
                      for share in np.linspace(0, 1, 21)])
    audited = memorised.audit(real_of(tmp_path, images, [f"g{i}" for i in range(12)]), faded)
    above = memorised.likeness(faded, images) > audited["threshold"]
    assert 3 < above.sum() < 15
    assert audited["share_near_copies"] == pytest.approx(above.mean(), abs=1e-4)
