"""Contact sheets: which images are shown, where, and how large."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest

from lungkit.compare import contact_sheet
from lungkit.compare.contact_sheet import grid, labelled_grid
from lungkit.data.png import decode_png
from lungkit.data.writer import DatasetWriter
from lungkit.run.output import Output

CLASSES = ["b", "a"]  # label order is not the alphabet's
NUMBERS = {"train": {"b": 9, "a": 3}, "val": {"b": 1, "a": 1}, "test": {"b": 2, "a": 2}}


def tile(index: int, size: int) -> np.ndarray:
    """One colour with a dark corner to the upper right, so that place and orientation show."""
    image = np.full((size, size, 3), (index, 200 - index, 50), np.uint8)
    image[0, -1] = 0
    return image


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """{image size: dataset}; image i of the whole dataset is tile(i)."""
    made = {}
    for size in (8, 60, 96, 224):
        path = tmp_path_factory.mktemp("datasets") / "real"
        index = 0
        with DatasetWriter(Output(path, "dataset.json", {}), stage="test", classes=CLASSES,
                           image_size=size) as writer:
            for split, classes in NUMBERS.items():
                for label, number in classes.items():
                    for _ in range(number):
                        writer.add(split, label, index, tile(index, size), group=f"g{index}")
                        index += 1
            writer.publish(parents=[], seed=0)
        made[size] = path
    return made


def sheet(path, output, *more):
    assert contact_sheet.main(["--dataset", str(path), "--output", str(output), *more]) == 0
    return decode_png(output.read_bytes())


def shown(image, side, gap=4):
    """The number of the tile in each place, None where the sheet is white."""
    rows = []
    for top in range(gap, len(image), side + gap):
        places = [image[top + 1:top + side, left + 1:left + side, 0]
                  for left in range(gap, image.shape[1], side + gap)]
        rows.append([int(each[-1, -1]) if each.min() < 255 else None for each in places])
    return rows


@pytest.mark.parametrize(("more", "expected"), [
    ([], [[*range(9)], [9, 10, 11, *[None] * 6]]),
    (["--columns", "3"], [[0, 4, 8], [9, 10, 11]]),       # the first, the middle, the last
    (["--columns", "4"], [[0, 2, 5, 8], [9, 10, 11, None]]),
    (["--columns", "1"], [[0], [9]]),
    (["--split", "val"], [[12], [13]]),
    (["--split", "test"], [[14, 15], [16, 17]])])
def test_evenly_spaced_images_of_one_split_a_row_per_class_in_label_order(
        datasets, tmp_path, more, expected):
    assert shown(sheet(datasets[96], tmp_path / "s.png", *more), 96) == expected


@pytest.mark.parametrize(("size", "scale"), [(8, 12), (60, 2), (96, 1), (224, 1)])
def test_small_images_are_enlarged_by_a_whole_number_without_blur(datasets, tmp_path, size, scale):
    image = sheet(datasets[size], tmp_path / "s.png", "--columns", "2")
    side = size * scale
    assert image.shape == (2 * (side + 4) + 4, 2 * (side + 4) + 4, 3)
    first = image[4:4 + side, 4:4 + side]
    assert np.array_equal(first, tile(0, size).repeat(scale, 0).repeat(scale, 1))


def test_the_same_command_writes_the_same_picture_and_nothing_else(datasets, tmp_path, capsys):
    path = tmp_path / "sheets" / "real.PNG"
    sheet(datasets[8], path)
    first = path.read_bytes()
    assert capsys.readouterr().out == f"{path}\n"
    sheet(datasets[8], path)
    assert path.read_bytes() == first and list(path.parent.iterdir()) == [path]


def test_twelve_images_a_class_are_shown_unless_told(datasets, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(contact_sheet, "write_contact_sheet",
                        lambda dataset, path, **more: asked.update(more))
    assert contact_sheet.main(["--dataset", str(datasets[8]),
                               "--output", str(tmp_path / "s.png")]) == 0
    assert asked == {"split": "train", "columns": 12}


@pytest.mark.parametrize(("options", "status", "words"), [
    (["--output", "s.jpg"], 2, "expected a name that ends in .png"),
    (["--output", "s.png", "--columns", "0"], 2, "0 is not at least 1"),
    (["--output", "s.png", "--split", "all"], 2, "invalid choice: 'all'"),
    (["--output", "s.png", "--col", "3"], 2, "unrecognized arguments: --col"),
    ([], 2, "--output")])
def test_bad_options_write_nothing(datasets, tmp_path, monkeypatch, capsys, options, status, words):
    monkeypatch.chdir(tmp_path)
    assert contact_sheet.main(["--dataset", str(datasets[8]), *options]) == status
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_dataset_that_is_not_what_it_says_is_not_shown(datasets, tmp_path, capsys):
    shutil.copytree(datasets[8], tmp_path / "real")
    manifest = json.loads((tmp_path / "real/dataset.json").read_text())
    (tmp_path / "real/dataset.json").write_text(json.dumps(manifest | {"fingerprint": "x"}))
    assert contact_sheet.main(["--dataset", str(tmp_path / "real"),
                               "--output", str(tmp_path / "s.png")]) == 1
    assert "the fingerprint differs" in capsys.readouterr().err
    assert not (tmp_path / "s.png").exists()


# ------------------------------------------------------------------ the grid

def test_rows_of_unlike_length_are_set_on_white_with_gaps():
    rows = [np.stack([tile(k, 5) for k in (1, 2, 3)]), np.stack([tile(4, 5)])]
    found = grid(rows, gap_px=2)
    expected = np.full((16, 23, 3), 255, np.uint8)
    for number, (top, left) in {1: (2, 2), 2: (2, 9), 3: (2, 16), 4: (9, 2)}.items():
        expected[top:top + 5, left:left + 5] = tile(number, 5)
    assert found.dtype == np.uint8 and np.array_equal(found, expected)


@pytest.mark.parametrize("shape", [(3, 5, 5, 1), (3, 5, 5)])
def test_grey_images_are_shown_as_they_are(shape):
    grey = np.arange(75, dtype=np.uint8).reshape(shape)
    rows = [grey, grey[:1]]
    as_rgb = [row.reshape(-1, 5, 5, 1).repeat(3, -1) for row in rows]
    assert np.array_equal(grid(rows, scale=2), grid(as_rgb, scale=2))
    named = {"": list(grey)}
    assert np.array_equal(labelled_grid(named), labelled_grid({"": list(as_rgb[0])}))


def test_a_grey_dataset_is_shown(tmp_path):
    values = {"b": 40, "a": 200}
    with DatasetWriter(Output(tmp_path / "ct", "dataset.json", {}), stage="test", classes=CLASSES,
                       image_size=96, channels=1) as writer:
        for index, (split, label) in enumerate(itertools.product(NUMBERS, CLASSES)):
            writer.add(split, label, index, np.full((96, 96, 1), values[label], np.uint8),
                       group=f"g{index}")
        writer.publish(parents=[], seed=0)
    image = sheet(tmp_path / "ct", tmp_path / "s.png")
    assert image.shape == (204, 104, 3) and shown(image, 96) == [[40], [200]]
    assert (image == image[..., :1]).all()


def test_every_row_has_its_own_name_in_the_margin():
    rows = {"kept": [tile(1, 40), tile(2, 40)], "dropped: blur": [tile(3, 40)], "": [tile(4, 40)]}
    found = labelled_grid(rows, margin_px=120)
    plain = grid([np.stack(images) for images in rows.values()])
    assert np.array_equal(found[:, 120:], plain)
    ink = [(np.nonzero(part.min((0, 2)) < 128)[0], np.nonzero(part.min((1, 2)) < 128)[0])
           for part in np.array_split(found[:, :120], 3)]
    assert len(ink[2][0]) == 0  # no name, no ink
    widths = [columns.max() - columns.min() for columns, _ in ink[:2]]
    assert widths[1] > 2 * widths[0]
    for _, lines in ink[:2]:
        assert 10 < lines.mean() < 34  # beside the middle of its row
