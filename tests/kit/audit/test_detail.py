"""Two chests are alike but for their vessels: whole slices are copies by these alone."""

from __future__ import annotations

import numpy as np
import pytest

from chests import CHANGES, SIZE, chest, turned
from lungkit.audit import leaks
from lungkit.audit.detail import detail_agreement
from lungkit.audit.registration import register
from lungkit.audit.signature import describe
from lungkit.data.dataset import open_dataset
from lungkit.data.writer import DatasetWriter
from lungkit.run.output import Output


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


def test_what_one_does_not_show_says_nothing():
    image = chest(3)[..., 0]
    part = np.ascontiguousarray(image[32:-32, 32:-32])     # less than half of what is compared
    assert min(detail_agreement(image, part), detail_agreement(part, image)) > leaks.SLICE_DETAIL
    oblong = np.ascontiguousarray(image[24:-24])
    assert detail_agreement(image, oblong) > leaks.SLICE_DETAIL


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
