"""The copy audit: it sees copies, turned and re-encoded ones too, and no ghosts."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit import copy_audit
from lungkit.dataset import DatasetWriter, open_dataset
from lungkit.files import Output
from lungkit.phantom import CLASSES, draw_tile


def tiles(number: int, first: int) -> np.ndarray:
    return np.stack([draw_tile(CLASSES[i % 3], patient=i, index=i, seed=first, image_size=64).image
                     for i in range(number)])


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    output = Output(tmp_path_factory.mktemp("x") / "real", "dataset.json", {})
    images = tiles(60, 1)
    with DatasetWriter(output, stage="test", classes=["a"], image_size=64) as writer:
        for index, image in enumerate(images):
            writer.add(("val", "test", "train")[min(index, 2)], "a", index, image, group=f"g{index}")
        writer.publish(parents=[], seed=0)
    return open_dataset(output.output_dir)


def test_independent_tissue_is_no_copy(real):
    audited = copy_audit.audit(real, tiles(60, 2))
    assert audited["share_near_copies"] <= 0.1 and audited["images"] == 60
    assert audited["likeness_median"] == pytest.approx(audited["real_likeness_median"], abs=0.1)


def test_copies_are_seen_turned_blurred_and_restained(real):
    import cv2

    images, _ = real.load("train")
    turned = np.rot90(images, 1, (1, 2))[:, :, ::-1]
    worn = np.stack([cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), 1.5) for image in turned])
    worn = (worn * 0.8 + 30).astype(np.uint8)
    audited = copy_audit.audit(real, worn)
    assert audited["share_near_copies"] >= 0.95
    assert "memorised" in copy_audit.warnings_of("prompt", audited)[0]


def test_siblings_in_one_group_do_not_hide_copies(real):
    """Training images that repeat within their group must not raise the threshold."""
    images, _ = real.load("train")
    apart = np.eye(len(images), dtype=bool)
    assert copy_audit.likeness(images, images).min() > 0.999
    assert copy_audit.likeness(images, images, apart).max() < 0.999


def test_blur_alone_is_not_taken_for_copying(real):
    import cv2

    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 2) for image in tiles(60, 3)])
    assert copy_audit.warnings_of("x", copy_audit.audit(real, blurred)) == []
