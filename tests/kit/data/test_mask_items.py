"""Which pixels are foreground, and which images are scored as one volume."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.data import cache, mask_items
from lungkit.data.dataset import open_dataset
from lungkit.data.mask_items import Target
from lungkit.data.png import encode_png
from lungkit.data.writer import DatasetWriter
from lungkit.nuclei import statistics
from lungkit.run.faults import Fault
from lungkit.run.output import Output

SIZE = 8
# series, slices of the test split: whole, with a gap, one alone
SERIES = {"A": (4, 5, 6, 7), "B": (1, 2, 5), "C": (3,)}


def make_dataset(path, view="slice", test=SERIES, val=(1, 2), um_per_px=500.0, **options):
    """Slices of scans 2.5 mm apart, numbered against their z; the brightness of each is its own."""
    index = 0
    with DatasetWriter(Output(path, "dataset.json", {"view": view}), stage="test",
                       classes=["healthy", "nodule"], image_size=SIZE, channels=1) as writer:
        for split, series in (("train", {"T": (1, 2)}), ("val", {"V": val}), ("test", test)):
            for name, slices in series.items():
                for z in reversed(slices):  # not in the order of the scan
                    image = np.full((SIZE, SIZE, 1), 10 * z, np.uint8)
                    mask = np.zeros((SIZE, SIZE), np.uint8)
                    mask[z % SIZE, :2] = 255
                    writer.add(split, writer.classes[z % 2], index, image, group=f"patient {name}",
                               masks={"nodule": mask}, series=name, slice_index=z,
                               z_mm=100 - 2.5 * z, thickness_mm=3.5)
                    index += 1
        writer.publish(parents=[], seed=0, modality="ct", um_per_px=um_per_px, **options)
    return open_dataset(path)  # with the columns of its table


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("scans") / "real")


def items(data, split="test"):
    known = np.ones(len(data.select(split)), bool)
    return {item.name: item for item in mask_items.items_of(data, split, known)}


def test_slices_of_a_series_are_one_volume_in_the_order_of_the_scan(scans):
    found, rows = items(scans), scans.select("test")
    assert {name: item.slices for name, item in found.items()} == SERIES
    for name, item in found.items():
        assert [int(rows[i].extra["slice_index"]) for i in item.images] == list(SERIES[name])
        assert {rows[i].extra["series"] for i in item.images} == {name}
        assert item.group == f"patient {name}"
    assert [found[name].has_gaps for name in SERIES] == [False, True, False]
    assert {item.spacing_mm for name, item in found.items() if name != "C"} == {(2.5, 0.5, 0.5)}
    assert found["C"].spacing_mm == (3.5, 0.5, 0.5)


def test_crops_are_scored_one_by_one(tmp_path):
    data = make_dataset(tmp_path / "real", view="crop")
    found = items(data)
    assert list(found) == [row.file_name for row in data.select("test")]
    assert {item.spacing_mm for item in found.values()} == {(0.5, 0.5)}
    assert not any(item.has_gaps for item in found.values())


def test_spacing_that_is_not_known_is_none(tmp_path):
    assert {item.spacing_mm for item in items(
        make_dataset(tmp_path / "real", um_per_px=None)).values()} == {None}


def test_val_is_chosen_by_image_by_image_where_it_lacks_slices(scans, tmp_path):
    known = np.ones(2, bool)
    assert [item.slices for item in mask_items.items_to_choose_by(scans, known)] == [(1, 2)]
    gaps = make_dataset(tmp_path / "real", val=(1, 4))
    found = mask_items.items_to_choose_by(gaps, known)
    assert [item.name for item in found] == [row.file_name for row in gaps.select("val")]
    assert all(item.slices is None and item.spacing_mm == (0.5, 0.5) for item in found)


def test_a_slice_that_is_there_twice_is_a_fault(tmp_path):
    data = make_dataset(tmp_path / "real", test={"A": (4, 5, 5)})
    with pytest.raises(Fault, match="series A has slice 5 more than once"):
        items(data)


def test_a_volume_without_masks_is_none(scans):
    known = np.array([row.extra["series"] != "B" for row in scans.select("test")])
    assert {item.name for item in mask_items.items_of(scans, "test", known)} == {"A", "C"}


def test_neighbours_are_the_slices_beside_and_where_there_is_none_the_nearest(scans):
    rows = scans.select("test")
    place = {(row.extra["series"], int(row.extra["slice_index"])): i for i, row in enumerate(rows)}
    index = mask_items.neighbours(scans, "test", 2)
    for series, z, wanted in (("A", 6, (4, 5, 6, 7, 7)), ("A", 4, (4, 4, 4, 5, 6)),
                              ("B", 2, (1, 1, 2, 2, 2)), ("C", 3, (3,) * 5)):
        assert index[place[series, z]].tolist() == [place[series, other] for other in wanted]
    assert mask_items.neighbours(scans, "test", 0).tolist() == [[i] for i in range(len(rows))]


def test_foreground_is_255_or_what_is_named():
    mask = np.array([[0, 255], [0, 255]], np.uint8)
    assert (mask_items.foreground(mask, Target("x"), "x.png") == (mask == 255)).all()
    labels = np.array([[0, 1, 2, 5]], np.uint8)
    named = mask_items.foreground(labels, Target("x", (2, 5)), "x.png")
    assert named.tolist() == [[False, False, True, True]]
    with pytest.raises(Fault, match="x.png holds 1; 2; 5 where"):
        mask_items.foreground(labels, Target("x"), "x.png")


def test_large_masks_are_mapped_and_the_same(scans, monkeypatch):
    small, known = mask_items.load_masks(scans, "test", Target("nodule"))
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 1)
    mapped, again = mask_items.load_masks(scans, "test", Target("nodule"))
    assert np.array_equal(small, mapped) and not mapped.flags.writeable
    assert known.all() and again.all() and small.sum() == 2 * len(known)


def test_what_is_kept_of_a_dataset_stays_whatever_else_is_kept_of_it(scans, monkeypatch):
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 1)
    readings = (lambda: scans.load("test")[0],
                lambda: mask_items.load_masks(scans, "test", Target("nodule"))[0],
                lambda: mask_items.load_masks(scans, "val", Target("nodule", (255,)))[0],
                lambda: statistics.of_rows(scans, scans.select("val"), "val"))
    first = [np.array(reading()) for reading in readings]
    monkeypatch.setattr(cache, "build", lambda path, *_, **__: pytest.fail(f"{path} is gone"))
    for reading, was in zip(readings, first):
        assert np.array_equal(reading(), was, equal_nan=was.dtype.kind == "f")


def test_masks_that_were_changed_are_read_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "IN_MEMORY_BYTES", 1)
    data = make_dataset(tmp_path / "real")
    before, _ = mask_items.load_masks(data, "test", Target("nodule"))
    row = data.select("test")[0]
    data.mask_path("nodule", row).write_bytes(encode_png(255 - data.mask("nodule", row)))
    after, _ = mask_items.load_masks(data, "test", Target("nodule"))
    assert np.array_equal(after[0], 1 - before[0]) and np.array_equal(after[1:], before[1:])
    assert len(list(tmp_path.glob(".real.cache/*/*.npy"))) == 1, "the older ones are kept"


def test_missing_slices_and_tests_without_a_healthy_image_are_said(scans):
    truth = mask_items.read_truth(scans, scans, Target("nodule"))
    found = mask_items.warnings_of(truth, {"real": list(items(scans).values())})
    assert "missing slices: 1 of 3 volumes of the test split" in found[0]
    assert "foreground in every test image of real" in found[1] and len(found) == 2


@pytest.mark.parametrize(("slices", "gaps"), [((1, 2, 3), False), ((1, 2, 4), True), ((3,), False)])
def test_one_slice_that_is_not_there_is_a_gap(slices, gaps):
    item = mask_items.Item("x", "g", tuple(range(len(slices))), slices, None)
    assert item.has_gaps is gaps
