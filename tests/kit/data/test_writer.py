"""Datasets of other forms than RGB with one label: grey, further labels, masks of two kinds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lungkit.data.dataset import SPLITS, inherited, open_dataset
from lungkit.data.png import read_header
from lungkit.data.writer import DatasetWriter
from lungkit.run.faults import Fault
from lungkit.run.files import write_json
from lungkit.run.output import Output

GREY_CT = {"modality": "ct", "um_per_px": 700.0, "symmetries": 2,
           "intensity": {"unit": "HU", "window": [-1000, 400]}}
GRADES = {"grade": {"kind": "ordinal", "values": [1, 2, 3]},
          "size_mm": {"kind": "number", "values": [0, 30]}}


def picture(index: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (8, 8, channels), np.uint8)


def cell_labels(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (8, 8), np.uint8)


def write(path: Path, *, channels: int = 3, targets: dict | None = None, columns=lambda index: {},
          masks=lambda index: {}, forms: dict | None = None, **more: object):
    """A dataset of two classes with two images a class and split."""
    with DatasetWriter(Output(path, "dataset.json", {}), stage="test", classes=["a", "b"],
                       image_size=8, channels=channels, targets=targets,
                       mask_forms=forms) as writer:
        for index in range(12):
            writer.add(SPLITS[index % 3], "ab"[index // 3 % 2], index, picture(index, channels),
                       masks=masks(index), **columns(index))
        return writer.publish(parents=[], seed=0, **more)


def write_graded(path: Path, **cell: str):
    return write(path, targets=GRADES,
                 columns=lambda index: {"grade": index % 3 + 1, "size_mm": 2.5 * index, **cell})


def write_two_kinds(path: Path):
    """Tissue is of every image, cells of those of class a alone."""
    return write(path, forms={"cells": "labels"}, masks=lambda index: {
        "tissue": np.full((8, 8), 255, np.uint8),
        **({"cells": cell_labels(index)} if index // 3 % 2 == 0 else {})})


def faults_of(path: Path) -> str:
    with pytest.raises(Fault) as error:
        open_dataset(path)
    return str(error.value)


def change(path: Path, **keys: object) -> None:
    manifest = json.loads((path / "dataset.json").read_text())
    write_json(path / "dataset.json", manifest | keys)


# ------------------------------------------------------------------ grey

def test_grey_images_are_grey_on_disk_and_have_one_channel_in_memory(tmp_path):
    write(tmp_path / "ct", channels=1, **GREY_CT)
    opened = open_dataset(tmp_path / "ct")
    images, labels = opened.load("val", "b")
    assert opened.channels == 1 and images.shape == (2, 8, 8, 1) and labels.tolist() == [1, 1]
    row = opened.select("val", "b")[0]
    assert np.array_equal(images[0], picture(4, 1)) and opened.image(row).shape == (8, 8, 1)
    assert read_header((opened.path / row.file_name).read_bytes()) == (8, 8, 8, 0)
    assert (opened.modality, opened.um_per_px, opened.symmetries) == ("ct", 700.0, 2)
    assert opened.intensity == {"unit": "HU", "window": [-1000, 400]} and opened.bits == 8
    assert inherited(opened) == GREY_CT


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_other_number_of_channels_is_a_fault(channels, tmp_path):
    write(tmp_path / "x", channels=channels)
    change(tmp_path / "x", channels=4 - channels)
    wanted = "an RGB" if channels == 1 else "a grey"
    assert f"not {wanted} PNG of 8 x 8" in faults_of(tmp_path / "x")
    with pytest.raises(AssertionError):
        with DatasetWriter(Output(tmp_path / "y", "dataset.json", {}), stage="test", classes=["a"],
                           image_size=8, channels=channels) as writer:
            writer.add("train", "a", 0, picture(0, 4 - channels))


# ------------------------------------------------------------------ further labels

def test_further_labels_are_columns_that_the_manifest_describes(tmp_path):
    write_graded(tmp_path / "x")
    opened = open_dataset(tmp_path / "x")
    assert opened.targets == GRADES
    assert [row.extra for row in opened.select("val", "a")] == [
        {"grade": "2", "size_mm": "2.5"}, {"grade": "2", "size_mm": "17.5"}]


@pytest.mark.parametrize(("cell", "words"), [
    ({"grade": "4"}, "grade '4' is not of [1, 2, 3]"),
    ({"size_mm": "31"}, "size_mm '31' is not of [0, 30]"),
    ({"size_mm": "big"}, "size_mm 'big' is not of"),
    ({"size_mm": "nan"}, "size_mm 'nan' is not of"),
    ({"grade": "", "size_mm": ""}, None)])
def test_a_value_that_its_target_does_not_have_is_a_fault(cell, words, tmp_path):
    write_graded(tmp_path / "x", **cell)
    if words is None:
        open_dataset(tmp_path / "x")
    else:
        assert words in faults_of(tmp_path / "x")


def test_none_is_an_empty_cell(tmp_path):
    write_graded(tmp_path / "x", grade=None, size_mm=0, group=None)
    for row in open_dataset(tmp_path / "x").rows:
        assert (row.group, row.extra) == ("", {"grade": "", "size_mm": "0"})


def test_a_target_without_its_column_is_a_fault(tmp_path):
    write(tmp_path / "x", targets=GRADES, columns=lambda index: {"grade": 1})
    assert "no column 'size_mm', which is a target" in faults_of(tmp_path / "x")


# ------------------------------------------------------------------ masks

def test_masks_have_a_form_and_a_number_and_may_hold_labels(tmp_path):
    write_two_kinds(tmp_path / "x")
    opened = open_dataset(tmp_path / "x")
    assert opened.masks == {"cells": "labels", "tissue": "binary"}
    assert opened.manifest["mask_counts"] == {"cells": 6, "tissue": 12}
    row = opened.select("train", "a")[0]
    assert np.array_equal(opened.mask("cells", row), cell_labels(int(row.stem)))


@pytest.mark.parametrize(("harm", "words"), [
    (lambda root: (root / "tissue/a/000001.png").unlink(), "masks/tissue/a/000001.png: missing"),
    (lambda root: (root / "cells/a/000001.png").unlink(),
     "masks/cells: 5 masks of images, 6 were written"),
    (lambda root: (root / "tissue/a/000001.png").write_bytes(b"torn"),
     "masks/tissue/a/000001.png: no whole PNG, not a grey PNG of 8 x 8"),
    (lambda root: (root / "cells/a/000001.png").write_bytes(
        (root.parent / "val/a/000001.png").read_bytes()), "colour type 2, not a grey PNG"),
    (lambda root: (root / "fat").mkdir(), "masks/fat: a kind that the manifest does not declare")])
def test_what_is_wrong_with_a_mask_is_named(harm, words, tmp_path):
    write_two_kinds(tmp_path / "x")
    harm(tmp_path / "x" / "masks")
    assert words in faults_of(tmp_path / "x")


# ------------------------------------------------------------------ the manifest

@pytest.mark.parametrize(("keys", "words"), [
    ({"channels": 2}, "channels 2"), ({"bits": 16}, "bits 16"), ({"symmetries": 4}, "symmetries 4"),
    ({"modality": "mri"}, "modality 'mri'"), ({"masks": {"m": "soft"}}, "mask 'm' 'soft'"),
    ({"targets": {"label": {"kind": "class", "values": ["x"]}}}, "target 'label'"),
    ({"targets": {"t": {"kind": "rank", "values": [1]}}}, "target 't'"),
    ({"targets": {"t": {"kind": "class"}}}, "target 't'")])
def test_what_this_version_cannot_read_is_named(keys, words, tmp_path):
    write(tmp_path / "x")
    change(tmp_path / "x", **keys)
    assert f"has what this version cannot read: {words}" in faults_of(tmp_path / "x")


def test_a_folder_that_was_renamed_is_refused_by_both_names_and_a_link_to_it_is_not(tmp_path):
    write(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    assert open_dataset(tmp_path / "link").name == "real"
    (tmp_path / "real").rename(tmp_path / "real_old")
    message = faults_of(tmp_path / "real_old")
    assert "renamed after it was made" in message and "rename the folder to real" in message


def test_a_dataset_moved_away_and_linked_back_under_its_name_is_read(tmp_path, monkeypatch):
    write(tmp_path / "real")
    (tmp_path / "real").rename(tmp_path / "scratch_17")
    (tmp_path / "real").symlink_to("scratch_17")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "real", Path("real")):
        assert open_dataset(path).name == "real"
    (tmp_path / "other").symlink_to("real")
    assert "renamed after it was made" in faults_of(tmp_path / "other")


# ------------------------------------------------------------------ version 1

V1 = Path(__file__).parents[2] / "fixtures" / "v1" / "datasets"


@pytest.mark.parametrize(("name", "masks"), [
    ("real", {"tissue": "binary", "tumour": "binary"}), ("voronoi", {"nuclei": "binary"})])
def test_a_dataset_of_version_1_opens_as_one_of_version_2(name, masks):
    assert json.loads((V1 / name / "dataset.json").read_text())["schema"] == "lungkit.dataset/1"
    opened = open_dataset(V1 / name)
    assert (opened.channels, opened.bits, opened.symmetries) == (3, 8, 8)
    assert (opened.modality, opened.intensity, opened.targets) == ("he", None, {})
    assert opened.um_per_px == 90 / 16 and opened.masks == masks
    assert "field_um" not in opened.manifest
    assert opened.load("train")[0].shape == (6, 16, 16, 3)


def test_a_dataset_of_version_1_may_have_been_renamed(tmp_path):
    shutil.copytree(V1 / "real", tmp_path / "real_old")
    assert open_dataset(tmp_path / "real_old").name == "real"


def test_a_dataset_made_from_one_of_version_1_is_of_version_2(tmp_path):
    import voronoi_seg

    argv = ["--real", str(V1 / "real"), "--output", str(tmp_path / "voronoi")]
    assert voronoi_seg.main(argv) == 0
    made, before = open_dataset(tmp_path / "voronoi"), open_dataset(V1 / "voronoi")
    assert json.loads((made.path / "dataset.json").read_text())["schema"] == "lungkit.dataset/2"
    assert made.fingerprint == before.fingerprint, "the same diagrams as version 1 drew"
    assert made.um_per_px == before.um_per_px
