"""voronoi_seg.py: cells, colours, and the dataset contract on the way from real."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import voronoi_seg
from arms import killed_while_writing
from lungkit.data.dataset import MANIFEST, SPLITS, check_same_task, open_dataset
from lungkit.data.writer import DatasetWriter
from lungkit.nuclei.detect import SOLIDITY, Nuclei, detect_nuclei
from lungkit.nuclei.features import IMAGE_COLUMNS, read_image_features
from lungkit.nuclei.voronoi import (
    borders,
    cell_areas_px,
    count_neighbours,
    touches_border,
    voronoi_labels,
)
from lungkit.phantom import paint
from lungkit.run.output import Output

SIZE = 64
SCRIPT = Path(voronoi_seg.__file__)


def write_real(path: Path, draw, per_class: int = 5, **manifest: object) -> Path:
    """A real dataset whose item i is draw(label, i), in 3 classes over the three splits."""
    with DatasetWriter(Output(path, MANIFEST, {}), stage="test", classes=sorted(paint.CLASSES),
                       image_size=SIZE) as writer:
        for index in range(per_class * 3):
            label = writer.classes[index // per_class]
            split = ("train", "val", "test", "train", "train")[index % 5]
            writer.add(split, label, index, draw(label, index), group=f"{label}-{index % 5}",
                       source="drawn")
        writer.publish(parents=[], seed=0, **manifest)
    return path


def tissue(label: str, index: int) -> np.ndarray:
    return paint.draw_tile(label, patient=index % 2, index=index, seed=2, image_size=SIZE).image


@pytest.fixture(scope="module", autouse=True)
def nuclei_found_once(finders):
    """Of each image, however many tests draw it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(voronoi_seg.draw.__kwdefaults__, "detect", finders["detect_nuclei"])
        yield


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    return write_real(tmp_path_factory.mktemp("voronoi") / "real", tissue)


@pytest.fixture(scope="module")
def made(real) -> Path:
    output = real.parent / "voronoi"
    assert voronoi_seg.main(["--real", str(real), "--output", str(output)]) == 0
    return output


def contents(dataset: Path) -> dict[str, str]:
    """Hash of every file but the log of progress, which holds times."""
    return {file.relative_to(dataset).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(dataset.rglob("*"))
            if file.is_file() and file.name != "progress.jsonl"}


# ------------------------------------------------------------------ the cells

def nearest_by_brute_force(points: np.ndarray, size: int) -> np.ndarray:
    """argmin takes the lowest index of equal distances."""
    y, x = np.mgrid[:size, :size]
    return ((x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2).argmin(-1)


# sub-pixel, on pixel centres and half-way (ties), beyond the image, near and very far
coordinates = st.one_of(st.floats(-3, 90, allow_nan=False, width=32), st.integers(-4, 90),
                        st.integers(-9, 180).map(lambda half: half / 2), st.floats(-1e6, 1e6))
layouts = st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(layouts, st.integers(1, 90), st.integers(0, 3))
def test_each_pixel_belongs_to_its_nearest_centroid(points, size, copies):
    points = np.array(points + points[:copies], np.float64)
    cells = voronoi_labels(points, size)
    assert cells.shape == (size, size) and cells.dtype == np.int32
    np.testing.assert_array_equal(cells, nearest_by_brute_force(points, size))


@pytest.mark.parametrize("size", [64, 112])
def test_ties_of_a_lattice_go_to_the_lowest_index(size):
    at = np.arange(0, size, 8) + 3.5  # every border runs through pixel centres, or between them
    points = np.stack(np.meshgrid(at, at + 0.5), -1).reshape(-1, 2)
    for order in (points, points[::-1], np.random.default_rng(0).permutation(points)):
        np.testing.assert_array_equal(voronoi_labels(order, size),
                                      nearest_by_brute_force(order, size))


def test_many_centroids():
    points = np.random.default_rng(3).uniform(0, 200, (600, 2)).astype(np.float32)
    np.testing.assert_array_equal(voronoi_labels(points, 200),
                                  nearest_by_brute_force(points.astype(float), 200))


def test_without_centroids_the_image_is_one_cell():
    assert (voronoi_labels(np.zeros((0, 2), np.float32), 7) == 0).all()


def test_neighbours_are_those_of_the_diagram():
    from scipy.spatial import Voronoi

    points = np.random.default_rng(5).uniform(0, 400, (60, 2))
    cells = voronoi_labels(points, 400)
    diagram = Voronoi(points)
    certain, possible = np.zeros((2, 60, 60), bool)
    for (a, b), ends in zip(diagram.ridge_points, diagram.ridge_vertices):
        possible[a, b] = possible[b, a] = True
        line = diagram.vertices[ends] if -1 not in ends else np.full((2, 2), np.inf)
        inside = ((line > 2) & (line < 397)).all()  # a ridge shorter than a pixel may be missed
        certain[a, b] = certain[b, a] = inside and np.hypot(*(line[1] - line[0])) > 3
    found = np.zeros((60, 60), bool)
    for one, other in ((cells[1:], cells[:-1]), (cells[:, 1:], cells[:, :-1])):
        found[one, other] = found[other, one] = True
    np.fill_diagonal(found, False)
    assert certain.sum() > 200 and not (certain & ~found).any()
    np.testing.assert_array_equal(count_neighbours(cells, 60), found.sum(1))
    assert (found & ~possible).sum() <= 4, "pixels of cells that meet in a corner may touch"


def test_geometry_of_cells():
    cells = np.repeat(np.repeat([[0, 1, 1], [0, 2, 4], [3, 3, 3]], 2, 0), 3, 1).astype(np.int32)
    assert cell_areas_px(cells, 6).tolist() == [12, 12, 6, 18, 6, 0]
    assert count_neighbours(cells, 6).tolist() == [3, 3, 4, 3, 3, 0]
    assert touches_border(cells, 6).tolist() == [True, True, False, True, True, False]
    assert count_neighbours(np.zeros((4, 4), np.int32), 1).tolist() == [0]
    middle = np.zeros((9, 9), np.int32)
    middle[0, 4], middle[8, 4], middle[4, 0], middle[4, 8], middle[4, 4] = 1, 2, 3, 4, 5
    assert touches_border(middle, 6).tolist() == [True] * 5 + [False]


# ------------------------------------------------------------------ the drawing

def test_each_cell_has_its_mean_colour():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    cells = np.random.default_rng(1).integers(0, 300, (9, 9)).astype(np.int32)
    cells[0] = 7
    picture = voronoi_seg.fill(voronoi_seg.cell_means(image, cells), cells)
    for cell in np.unique(cells):
        expected = np.round(image[cells == cell].mean(axis=0))
        assert (picture[cells == cell] == expected).all()


@settings(max_examples=150, deadline=None)
@given(st.tuples(*[st.floats(-50, 150)] * 4), st.integers(3, 100))
def test_a_border_of_two_cells_is_one_pixel_thick(four, size):
    points = np.array(four).reshape(2, 2)
    cells = voronoi_labels(points, size)
    line = borders(cells)
    if np.hypot(*(points[1] - points[0])) < 0.1:
        return  # nothing is flat or steep
    dx, dy = np.abs(points[1] - points[0])
    along = line if dx >= dy else line.T  # steep: one pixel in every row that it crosses
    crossed = np.array([row.min() != row.max() for row in (cells if dx >= dy else cells.T)])
    inside = along.sum(axis=1)
    assert (inside[crossed] == 1).all()
    assert inside.max() <= 1


@settings(max_examples=100, deadline=None)
@given(layouts, st.integers(3, 90))
def test_borders_part_all_cells_and_are_thick_only_where_three_meet(points, size):
    cells = voronoi_labels(np.array(points, np.float64), size)
    line = borders(cells)
    for one, other, a, b in ((cells[1:], cells[:-1], line[1:], line[:-1]),
                             (cells[:, 1:], cells[:, :-1], line[:, 1:], line[:, :-1])):
        assert (a | b)[one != other].all(), "two cells touch without a border between them"
    blocks = line[1:, 1:] & line[1:, :-1] & line[:-1, 1:] & line[:-1, :-1]
    for y, x in np.argwhere(blocks):
        around = cells[max(y - 1, 0):y + 3, max(x - 1, 0):x + 3]
        assert len(np.unique(around)) > 2, "a border of two cells is two pixels thick"


def test_borders_are_where_the_cells_differ():
    cells = np.zeros((8, 8), np.int32)
    cells[:, 4:] = 1
    cells[5:] += 2
    line = borders(cells)
    assert line[:5, 3].all() and line[4].all() and line[5:, 3].all() and line.sum() == 15
    assert not borders(np.zeros((5, 5), np.int32)).any()


@pytest.mark.parametrize("render", sorted(voronoi_seg.RENDERS))
def test_renders(real, render):
    data = open_dataset(real)
    image = data.image(data.rows[0])
    drawn = voronoi_seg.draw(image, render=render, modality="he", solidity=0.75, field_um=180.0)
    picture = drawn.picture
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert set(np.unique(drawn.mask)) == {0, 255} and drawn.summary["num_nuclei"] > 10
    colours = len(np.unique(picture.reshape(-1, 3), axis=0))
    assert colours > 2 if "mean" in render or "feature" in render else colours == 2
    black = (picture == 0).all(-1).mean()
    assert black == 0 if render == "mean" else 0 < black < 0.5


def test_feature_colours_have_a_fixed_range():
    column, low, high = voronoi_seg.COLOURED["area"]
    values = np.array([low - 5, low, (low + high) / 2, high, high + 99, np.nan])
    colours = voronoi_seg.feature_colours("area", {column: values})
    viridis = [(68, 1, 84), (68, 1, 84), (33, 145, 140), (253, 231, 37), (253, 231, 37)]
    assert np.abs(colours[:5].astype(int) - viridis).max() <= 2  # van der Walt and Smith's values
    assert (colours[5] == voronoi_seg.UNKNOWN).all()
    assert (voronoi_seg.feature_colours("area", {column: np.zeros(0)}) == voronoi_seg.UNKNOWN).all()


# ------------------------------------------------------------------ each drawing, pixel by pixel

TINY_UM = 36.0  # of 12 px: 3 um a px


def three_nuclei(image, *, modality, solidity, field_um):
    """Nuclei of 2 x 2, 3 x 1 and 1 px, whose centres lie at no pixel's."""
    labels = np.zeros(image.shape[:2], np.int32)
    labels[2:4, 1:3], labels[8, 4:7], labels[3, 10] = 1, 2, 3
    return Nuclei(labels, np.array([[1.6, 2.7], [5.2, 8.4], [10, 3]], np.float32),
                  np.array([4, 3, 1], np.float32))


def tiny(render: str, modality: str = "he") -> tuple[np.ndarray, np.ndarray, voronoi_seg.Drawing]:
    """A random image of 12 px, its cells by brute force, and its drawing."""
    image = np.random.default_rng(3).integers(60, 200, (12, 12, 3), np.uint8)
    cells = nearest_by_brute_force(np.array([[1.6, 2.7], [5.2, 8.4], [10, 3]], np.float32), 12)
    return image, cells, voronoi_seg.draw(image, render=render, modality=modality, solidity=0.5,
                                          field_um=TINY_UM, detect=three_nuclei)


def lines(cells: np.ndarray) -> np.ndarray:
    """Pixels that lie beside one of a higher cell, looked at one by one."""
    found = np.zeros(cells.shape, bool)
    for y, x in np.ndindex(cells.shape):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < len(cells) and 0 <= u < len(cells) and cells[v, u] > cells[y, x]:
                found[y, x] = True
    return found


@pytest.mark.parametrize("render", ["mean", "borders", "mean-borders", "centroids",
                                    "borders-centroids"])
def test_a_drawing_is_what_its_name_says_in_every_pixel(render):
    image, cells, drawn = tiny(render)
    expected = np.full((12, 12, 3), 255)
    if "mean" in render:
        for cell in range(3):
            expected[cells == cell] = np.round(image[cells == cell].mean(0))
    if "borders" in render:
        expected[lines(cells)] = 0
    if "centroids" in render:
        for x, y in ((2, 3), (5, 8), (10, 3)):
            expected[y, x] = 0
    np.testing.assert_array_equal(drawn.picture, expected)
    assert lines(cells).any()


@pytest.mark.parametrize(("name", "column", "low", "high"), [
    ("area", "area_um2", 0, 250), ("eccentricity", "eccentricity", 0.3, 1),
    ("solidity", "solidity", 0.8, 1), ("haematoxylin", "haematoxylin_od", 0.6, 2),
    ("cell-area", "cell_area_um2", 0, 2000), ("neighbours", "num_neighbours", 2, 9),
    ("nearest-neighbour", "nearest_neighbour_um", 4, 30)])
def test_a_cell_has_the_colour_of_the_feature_of_its_own_nucleus(name, column, low, high):
    import cv2

    _, cells, drawn = tiny(f"feature:{name}")
    levels = np.arange(256, dtype=np.uint8)[:, None]
    table = cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    values = drawn.features[column]
    assert len(set(values)) > 1 or name in ("solidity", "neighbours")
    for cell, value in enumerate(values):
        colour = table[round(255 * min(max((value - low) / (high - low), 0), 1))]
        assert (drawn.picture[(cells == cell) & ~lines(cells)] == colour).all()
    assert (drawn.picture[lines(cells)] == 0).all()
    assert set(voronoi_seg.COLOURED) == {render[8:] for render in voronoi_seg.RENDERS
                                         if render.startswith("feature:")}


def test_a_centroid_beyond_the_border_is_drawn_on_it():
    features = {"centroid_x_px": np.array([-0.6, 11.7]), "centroid_y_px": np.array([4.4, 12.0])}
    picture = voronoi_seg.dot(np.full((12, 12, 3), 255, np.uint8), features)
    assert np.argwhere(picture[..., 0] == 0).tolist() == [[4, 0], [11, 11]]


def test_a_drawing_is_measured_in_micrometres_and_masks_its_nuclei():
    image, cells, drawn = tiny("mean")
    assert drawn.features["area_um2"].tolist() == [36, 27, 9]
    assert drawn.features["cell_area_um2"].tolist() == [9 * (cells == k).sum() for k in range(3)]
    assert drawn.summary["num_nuclei"] == 3
    assert drawn.summary["nuclear_area_fraction"] == pytest.approx(8 / 144)
    assert drawn.mask.dtype == np.uint8
    expected = np.zeros((12, 12))
    expected[2:4, 1:3] = expected[8, 4:7] = expected[3, 10] = 255
    np.testing.assert_array_equal(drawn.mask, expected)


def test_haematoxylin_is_measured_of_stained_images_only():
    assert np.isfinite(tiny("mean")[2].features["haematoxylin_od"]).all()
    assert np.isnan(tiny("mean", "fluorescence")[2].features["haematoxylin_od"]).all()


@pytest.mark.parametrize("render", sorted(voronoi_seg.RENDERS))
def test_without_nuclei_an_image_is_one_cell(render):
    image = np.random.default_rng(3).integers(60, 200, (12, 12, 3), np.uint8)
    nothing = Nuclei(np.zeros((12, 12), np.int32), np.zeros((0, 2), np.float32),
                     np.zeros(0, np.float32))
    drawn = voronoi_seg.draw(image, render=render, modality="he", solidity=0.5, field_um=TINY_UM,
                             detect=lambda image, **_: nothing)
    colour = (np.round(image.mean((0, 1))) if "mean" in render else
              voronoi_seg.UNKNOWN if "feature" in render else 255)
    assert (drawn.picture == colour).all() and not drawn.mask.any()
    assert drawn.summary["num_nuclei"] == 0


# ------------------------------------------------------------------ how it is drawn

class Votes:
    """A real dataset that holds only what choosing a modality may look at."""

    def __init__(self, train: list[str], modality: str | None = None) -> None:
        self.train, self.modality, self.seen = train, modality, []

    def select(self, split: str) -> list[int]:
        assert split == "train", "val and test are not looked at"
        return list(range(len(self.train)))

    def image(self, row: int) -> np.ndarray:
        self.seen.append(row)
        return np.full((4, 4, 3), {"he": 220, "fluorescence": 20}[self.train[row]], np.uint8)


@pytest.mark.parametrize(("asked", "real", "expected", "looked"), [
    ("he", Votes(["fluorescence"], modality="fluorescence"), "he", 0),
    ("auto", Votes(["he"], modality="fluorescence"), "fluorescence", 0),
    ("auto", Votes(["fluorescence"] * 2 + ["he"], modality="ct"), "fluorescence", 3),
    ("auto", Votes(["he", "fluorescence"]), "he", 2),
    ("auto", Votes(["he"] * 90 + ["fluorescence"] * 111), "fluorescence", 60)])
def test_the_modality_is_asked_recorded_or_most_of_trains_images(asked, real, expected, looked):
    assert voronoi_seg.choose_modality(real, asked) == expected
    assert len(set(real.seen)) == len(real.seen) == looked


@pytest.fixture(scope="module")
def blank(tmp_path_factory) -> Path:
    """A real dataset of even images whose manifest says how large their field is."""
    return write_real(tmp_path_factory.mktemp("blank") / "real",
                      lambda label, i: np.full((SIZE, SIZE, 3), 100 + 9 * i, np.uint8),
                      um_per_px=96 / SIZE)


@pytest.mark.parametrize(("options", "expected"), [
    ([], {"field_um": 96.0, "solidity": SOLIDITY, "render": "mean-borders", "modality": "he"}),
    (["--field-um", "250", "--solidity", "0.6", "--render", "borders", "--modality",
      "fluorescence"],
     {"field_um": 250.0, "solidity": 0.6, "render": "borders", "modality": "fluorescence"})])
def test_images_are_drawn_as_asked_and_in_reals_field(blank, tmp_path, monkeypatch, options,
                                                      expected):
    asked, draw_row = [], voronoi_seg.draw_row
    monkeypatch.setattr(voronoi_seg, "draw_row",
                        lambda row, **how: asked.append(how) or draw_row(row, **how))
    argv = ["--real", str(blank), "--output", str(tmp_path / "out"), *options]
    assert voronoi_seg.main(argv) == 0 and len(asked) == 15
    for how in asked:
        assert {name: how[name] for name in expected} == expected
    manifest = open_dataset(tmp_path / "out").manifest
    assert manifest["um_per_px"] == expected["field_um"] / SIZE
    assert manifest["modality"] == expected["modality"]
    for name in ("field_um", "solidity", "render"):
        assert manifest["parameters"][name] == expected[name]


def test_the_detector_is_given_what_was_asked():
    given = {}

    def detect(image, **how):
        given.update(how)
        return three_nuclei(image, **how)

    voronoi_seg.draw(np.full((12, 12, 3), 90, np.uint8), render="mean", modality="fluorescence",
                     solidity=0.6, field_um=TINY_UM, detect=detect)
    assert given == {"modality": "fluorescence", "solidity": 0.6, "field_um": TINY_UM}


@pytest.mark.parametrize("changed", ["RECIPE", "NUCLEI_RECIPE"])
def test_diagrams_of_another_recipe_are_not_complete(blank, tmp_path, monkeypatch, capsys, changed):
    argv = ["--real", str(blank), "--output", str(tmp_path / "out")]
    assert voronoi_seg.main(argv) == 0
    monkeypatch.setattr(voronoi_seg, changed, getattr(voronoi_seg, changed) + 1)
    assert voronoi_seg.main(argv) == 2
    assert "recipe" in capsys.readouterr().err


def test_the_tables_hold_every_image_of_every_split_by_its_own_name(real, made):
    data, manifest = open_dataset(real), open_dataset(made).manifest
    table = read_image_features(made, manifest)
    assert list(table) == sorted(row.file_name for row in data.rows)
    assert {name.split("/")[0] for name in table} == set(SPLITS)
    for row in data.rows:
        drawn = voronoi_seg.draw(data.image(row), render="mean", modality="he", solidity=SOLIDITY,
                                 field_um=180.0)
        found = dict(zip(IMAGE_COLUMNS, table[row.file_name]))
        for name in ("num_nuclei", "area_um2_mean", "haematoxylin_od_p50", "clark_evans"):
            assert found[name] == pytest.approx(drawn.summary[name], rel=1e-4), row.file_name
    lines = (made / "features.csv").read_text().splitlines()[1:]
    assert len(lines) == sum(values[IMAGE_COLUMNS.index("num_nuclei")] for values in table.values())
    assert {line.split(",")[0] for line in lines} == set(table)


# ------------------------------------------------------------------ the dataset

def test_splits_labels_groups_and_names_are_those_of_real(real, made):
    data, diagrams = open_dataset(real), open_dataset(made)
    assert [(r.file_name, r.label, r.split, r.group) for r in diagrams.rows] == \
        [(r.file_name, r.label, r.split, r.group) for r in data.rows]
    assert all(row.source == row.file_name for row in diagrams.rows)
    assert diagrams.name == "voronoi" and diagrams.image_size == SIZE
    assert diagrams.manifest["parents"] == [{"name": "real", "fingerprint": data.fingerprint,
                                             "splits": {split: [split] for split in SPLITS}}]
    check_same_task(diagrams, data)
    assert len({row.sha256 for row in diagrams.rows}) == len(diagrams.rows)


def test_masks_and_counts_are_those_of_the_nuclei(real, made):
    data, diagrams = open_dataset(real), open_dataset(made)
    counts: dict[str, list[int]] = {}
    for row, drawn in zip(data.rows, diagrams.rows):
        nuclei = detect_nuclei(data.image(row))
        assert int(drawn.extra["num_nuclei"]) == len(nuclei) > 0
        assert ((diagrams.mask("nuclei", drawn) == 255) == (nuclei.labels > 0)).all()
        counts.setdefault(row.label, []).append(len(nuclei))
    for label, seen in diagrams.manifest["nuclei"].items():
        assert seen["images"] == 5 and seen["median_count"] == np.median(counts[label])
        assert (seen["min_count"], seen["max_count"]) == (min(counts[label]), max(counts[label]))
    assert diagrams.warnings == [] and diagrams.manifest["modality"] == "he"


def few(label: str, index: int) -> np.ndarray:
    """lung_aca: 0 to 4 nuclei; the other classes: tissue."""
    if label != "lung_aca":
        return tissue(label, index)
    y, x = np.mgrid[:SIZE, :SIZE]
    image = np.full((SIZE, SIZE, 3), (225, 150, 190), np.uint8)
    for cx, cy in [(12, 12), (50, 20), (20, 50), (46, 48)][:index]:
        image[np.hypot(x - cx, y - cy) < 3] = (90, 60, 140)
    return image


def test_images_of_few_nuclei_are_drawn_counted_and_reported(tmp_path, capsys):
    write_real(tmp_path / "real", few)
    assert voronoi_seg.main(["--real", str(tmp_path / "real"), "--output", str(tmp_path / "out"),
                             "--render", "mean"]) == 0
    diagrams = open_dataset(tmp_path / "out")
    rows = sorted((row for row in diagrams.rows if row.label == "lung_aca"),
                  key=lambda row: row.stem)
    assert [int(row.extra["num_nuclei"]) for row in rows] == [0, 1, 2, 3, 4]
    cells = [len(np.unique(diagrams.image(row).reshape(-1, 3), axis=0)) for row in rows]
    assert cells[:2] == [1, 1] and cells[2] <= 2
    seen = diagrams.manifest["nuclei"]
    assert (seen["lung_aca"]["fewer_than_four"], seen["lung_aca"]["without_nuclei"]) == (4, 1)
    assert seen["lung_scc"]["fewer_than_four"] == 0
    assert len(diagrams.warnings) == 1 and diagrams.warnings[0].startswith("lung_aca: 4 of 5")
    shown = capsys.readouterr()
    assert "lung_aca" in shown.out and "4 images with fewer than 4" in shown.out
    assert "warning: lung_aca: 4 of 5" in shown.err


def test_one_modality_for_all_images(tmp_path):
    write_real(tmp_path / "real", lambda label, index: 255 - tissue(label, index))
    assert voronoi_seg.main(["--real", str(tmp_path / "real"),
                             "--output", str(tmp_path / "a")]) == 0
    assert open_dataset(tmp_path / "a").manifest["modality"] == "fluorescence"
    assert voronoi_seg.main(["--real", str(tmp_path / "real"), "--output", str(tmp_path / "b"),
                             "--modality", "he"]) == 0
    a, b = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
    assert b.manifest["modality"] == "he" and a.fingerprint != b.fingerprint


# ------------------------------------------------------------------ the stage

def test_complete_and_other_options(real, made, capsys):
    before = contents(made)
    assert voronoi_seg.main(["--real", str(real), "--output", str(made), "--workers", "2"]) == 0
    assert "already complete" in capsys.readouterr().out
    assert voronoi_seg.main(["--real", str(real), "--output", str(made), "--render", "mean"]) == 2
    assert "render: 'mean-borders' there, 'mean' now" in capsys.readouterr().err
    assert contents(made) == before


def test_overwrite_makes_it_anew(real, tmp_path):
    argv = ["--real", str(real), "--output", str(tmp_path / "out")]
    assert voronoi_seg.main(argv) == 0
    first = open_dataset(tmp_path / "out").fingerprint
    assert voronoi_seg.main([*argv, "--render", "borders", "--overwrite"]) == 0
    assert open_dataset(tmp_path / "out").fingerprint != first


def test_dry_run_writes_nothing(real, tmp_path, capsys):
    assert voronoi_seg.main(["--real", str(real), "--output", str(tmp_path / "out"),
                             "--dry-run"]) == 0
    assert "found 15 images in 3 classes, pending 15" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_two_workers_make_the_same_bytes(real, made, tmp_path, forked_workers):
    output = tmp_path / "voronoi"
    assert voronoi_seg.main(["--real", str(real), "--output", str(output), "--workers", "2"]) == 0
    assert contents(output) == contents(made)


def test_what_a_kill_left_half_written_is_not_published(real, made, tmp_path):
    left = tmp_path / ".voronoi.partial" / "masks" / "nuclei" / "lung_n" / ".000007.1234.tmp.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    output = tmp_path / "voronoi"
    assert voronoi_seg.main(["--real", str(real), "--output", str(output)]) == 0
    assert contents(output) == contents(made)


def test_stopped_by_a_signal_then_resumed(real, made, tmp_path, monkeypatch, capsys):
    output = tmp_path / "voronoi"
    draw_row, drawn = voronoi_seg.draw_row, []

    def stop_at_fourth(row, **how):
        drawn.append(row)
        if len(drawn) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw_row(row, **how)

    monkeypatch.setattr(voronoi_seg, "draw_row", stop_at_fourth)
    argv = ["--real", str(real), "--output", str(output)]
    assert voronoi_seg.main(argv) == 75
    assert not output.exists() and "again to resume" in capsys.readouterr().err
    assert voronoi_seg.main(argv) == 0
    assert len(drawn) == 15
    assert contents(output) == contents(made)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_then_resumed(real, made, tmp_path, workers):
    output = tmp_path / "voronoi"
    argv = ["--real", str(real), "--output", str(output)]
    status = killed_while_writing(lambda: voronoi_seg.main([*argv, "--workers", str(workers)]), 3)
    assert status == -signal.SIGKILL and not output.exists()
    assert len((tmp_path / ".voronoi.partial" / ".records.jsonl").read_text().splitlines()) == 3
    assert voronoi_seg.main(argv) == 0
    assert contents(output) == contents(made)


# ------------------------------------------------------------------ bad input

def one_line_fault(capsys) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("voronoi_seg.py: error: "), error
    return error


def test_no_dataset(tmp_path, capsys):
    (tmp_path / "real").mkdir()
    for name, said in (("nowhere", "not a directory"), ("real", "no dataset.json")):
        assert voronoi_seg.main(["--real", str(tmp_path / name),
                                 "--output", str(tmp_path / "out")]) == 1
        assert said in one_line_fault(capsys)
    assert not (tmp_path / "out").exists()


def even_greys(path):
    """A real dataset whose images are each of one grey."""
    return write_real(path, lambda label, i: np.full((SIZE, SIZE, 3), 15 * i, np.uint8))


def test_an_altered_image(tmp_path, capsys):
    real = even_greys(tmp_path / "real")
    name = json.loads((real / MANIFEST).read_text())["classes"][0]
    file = sorted((real / "train" / name).iterdir())[0]
    file.write_bytes(file.read_bytes()[:-20])
    assert voronoi_seg.main(["--real", str(real), "--output", str(tmp_path / "out")]) == 1
    assert file.name in one_line_fault(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["real", "real/voronoi", "."])
def test_output_and_real_in_one_another(tmp_path, capsys, where):
    real = even_greys(tmp_path / "real")
    before = contents(real)
    assert voronoi_seg.main(["--real", str(real), "--output", str(tmp_path / where)]) == 2
    assert "--output" in one_line_fault(capsys)
    assert contents(real) == before


@pytest.mark.parametrize("wrong", [["--rendr", "mean"], ["--render", "oil"], ["--solidity", "1.5"],
                                   ["--workers", "0"], ["--field-um", "nan"]])
def test_bad_options(real, tmp_path, wrong, capsys):
    assert voronoi_seg.main(["--real", str(real), "--output", str(tmp_path / "out"), *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err


def test_nuclei_may_be_found_by_a_model(real, made, tmp_path, capsys):
    """--nuclei-weights is an InstanSeg model; another file's content is another option."""
    from test_instanseg import Threshold

    torch = pytest.importorskip("torch")
    weights = tmp_path / "instanseg.pt"
    torch.jit.script(Threshold()).save(str(weights))
    command = ["--real", str(real), "--output", str(tmp_path / "out"),
               "--nuclei-weights", str(weights)]
    assert voronoi_seg.main([*command, "--device", "tpu"]) == 2
    assert "--device 'tpu'" in capsys.readouterr().err
    assert voronoi_seg.main([*command, "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert len(found["parameters"]["nuclei_weights"]) == 64
    assert found["nuclei"] != json.loads((made / "dataset.json").read_text())["nuclei"]
    weights.write_bytes(b"no model")
    assert voronoi_seg.main(command) == 2
    for dry in ([], ["--dry-run"]):
        assert voronoi_seg.main([*command[:3], str(tmp_path / "x"), *command[4:], *dry]) == 1
        assert "not a TorchScript file" in capsys.readouterr().err
    assert voronoi_seg.main([*command[:5], str(tmp_path / "none.pt")]) == 1
    assert "is not a file" in capsys.readouterr().err
