"""One small dataset from the command line, held against the same steps taken by hand."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_confounding import plain_report
from test_tumor_seg import tissue, write

import tumor_seg
from lungkit.audit import confounding
from lungkit.audit.warnings import confounding_warnings
from lungkit.data import splits
from lungkit.data.dataset import open_dataset
from lungkit.data.png import decode_png
from lungkit.formats.sources import Source
from lungkit.histology import background, originals, stain, tiles
from lungkit.histology.originals import Cut
from lungkit.histology.tumour_map import tumour_mask
from lungkit.run.files import sha256

SIZE, UM_PER_PX = 64, 0.5
TINTS = ((0.97, 0.93, 0.88), (0.9, 0.95, 0.99))  # of the light of either class
GIVEN = ("--image-size", SIZE, "--source-mpp", UM_PER_PX, "--seed", 3)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Two classes of five pictures of two tiles, 10 px off the left edge; one tile is glass."""
    root = tmp_path_factory.mktemp("cut") / "in"
    for number, label in enumerate("ab"):
        for index in range(5):
            image = np.full((64, 148, 3), 255, np.uint8)
            image[:, 10:138] = tissue(50 * number + index, 64, 128)
            if (label, index) == ("b", 2):
                image[:, 74:] = 255
            write(root / label / f"{index}.png", np.uint8(image * TINTS[number]))
    (root.parent / "groups.csv").write_text("file_name,label,group\n" + "".join(
        f"{label}/{i}.png,{label},{label}{i}\n" for label in "ab" for i in range(5)))
    return root


def run(tree: Path, output: str, *options: object) -> int:
    return tumor_seg.main(["--input", str(tree), "--output", str(tree.parent / output),
                           *map(str, options)])


@pytest.fixture(scope="module")
def made(tree):
    """The dataset, and the specimens that the confounding report was made of."""
    specimens, report = [], confounding.report
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confounding, "report", lambda found, *rest: specimens.extend(found)
                      or report(found, *rest))
        assert run(tree, "real", *GIVEN) == 0
    return open_dataset(tree.parent / "real"), specimens


def qc(dataset) -> list[dict]:
    with open(dataset.path / "qc.csv", newline="") as file:
        return list(csv.DictReader(file))


def tiles_of(dataset) -> list[tuple]:
    """(row of the dataset, row of qc.csv) of every tile kept, by number."""
    kept = [row for row in qc(dataset) if not row["reason"]]
    rows = sorted(dataset.rows, key=lambda row: row.stem)
    assert len(rows) == len(kept) == 19
    return list(zip(rows, kept))


def flat_of(tree: Path, name: str) -> np.ndarray:
    """The whole picture, white-balanced on its own background."""
    image = decode_png((tree / name).read_bytes())
    return background.balance_white(image, background.background_light(image))


# ------------------------------------------------------------------ the dataset

def test_the_seed_reaches_the_split_the_rows_and_the_manifest(made):
    dataset, _ = made
    items = [(row.group, row.label) for row in dataset.rows]
    split_of = {row.group: row.split for row in dataset.rows}
    assert split_of == splits.split_groups(items, 3) != splits.split_groups(items, 0)
    assert {row.seed for row in dataset.rows} == {"3"} and dataset.manifest["seed"] == 3


def test_every_tile_is_its_square_of_the_picture_brought_to_the_reference(made, tree):
    """Balanced by the light of the whole picture, whose stain is measured, as train's is."""
    dataset, _ = made
    method = stain.METHODS["macenko"]
    own = {row.source: method.estimate(flat_of(tree, row.source)) for row in dataset.rows}
    reference = method.reference([own[name] for name in sorted(
        {row.source for row in dataset.select("train")})])
    assert dataset.manifest["stain"]["reference"] == stain.describe(reference)
    changed = 0
    for row, said in tiles_of(dataset):
        top, left, side = (int(said[name]) for name in ("top_px", "left_px", "side_px"))
        assert (row.source, row.label) == (said["file_name"], said["label"])
        assert (top, side) == (0, SIZE) and left in (10, 74)
        flat = flat_of(tree, row.source)[:, left:left + side]
        expected = method.normalise(flat, own[row.source], reference)
        np.testing.assert_array_equal(dataset.image(row), expected)
        changed += not np.array_equal(expected, flat)
    assert changed > 10


def test_the_masks_of_a_tile_are_of_its_own_square(made, tree):
    dataset, _ = made
    shares = set()
    for row, said in tiles_of(dataset):
        left = int(said["left_px"])
        flat = flat_of(tree, row.source)[:, left:left + SIZE]
        tissue_there = background.tissue_mask(flat)
        np.testing.assert_array_equal(dataset.mask("tissue", row), 255 * tissue_there)
        if row.split == "test":
            tumour_there = tumour_mask(flat, field_um=SIZE * UM_PER_PX)
            np.testing.assert_array_equal(dataset.mask("tumour", row), 255 * tumour_there)
        assert row.extra["tissue_fraction"] == f"{float(said['tissue_fraction']):.4f}"
        assert abs(float(said["tissue_fraction"]) - tissue_there.mean()) < 0.05
        shares.add(row.extra["tissue_fraction"])
    assert len(shares) > 10


def test_a_reason_reaches_the_table_with_its_tile_and_the_manifest_with_its_class(made):
    dataset, _ = made
    rows = qc(dataset)
    assert [(r["file_name"], r["left_px"], r["reason"]) for r in rows if r["reason"]] == [
        ("b/2.png", "74", "blank")]
    assert len(rows) == 20 and dataset.manifest["dropped"] == [
        {"reason": "blank", "count": 1, "by_class": {"b": 1}, "examples": ["b/2.png"]}]
    assert (dataset.path / "qc.png").exists()


def test_scale_and_kind_of_image_are_recorded(made):
    manifest = made[0].manifest
    assert manifest["um_per_px"] == UM_PER_PX and manifest["modality"] == "he"
    assert manifest["confounding"]["groups_given"] == "auto"
    assert manifest["parents"] == [] and manifest["stain"]["images"] == 10


def test_unknown_groups_are_refused_or_said_of_every_result(tree, capsys):
    text = (tree.parent / "groups.csv").read_text()
    table = tree.parent / "unknown.csv"
    table.write_text(text.replace("a,a0", "a,nan").replace("b,b3", "b,nan"))
    options = ("--groups", table, "--trust-groups", "--region", "all", "--no-quality-control",
               "--stain-normalisation", "none", "--image-size", 16)
    assert run(tree, "unknown", *options) == 1
    assert "2 of 10 images have no group" in capsys.readouterr().err
    assert not (tree.parent / "unknown").exists()
    assert run(tree, "unknown", *options, "--unknown-groups", "own") == 0
    assert "warning: unknown groups: 2 of 10 images" in capsys.readouterr().err
    dataset = open_dataset(tree.parent / "unknown")
    assert dataset.warnings[0].startswith("unknown groups: 2 of 10 images")
    assert {row.group for row in dataset.rows if row.source in ("a/0.png", "b/3.png")} == {
        "a/0.png", "b/3.png"}


def test_warnings_of_the_confounding_report_reach_the_dataset(made):
    dataset, _ = made
    found = [line.split(":")[0] for line in confounding_warnings(dataset.manifest["confounding"])]
    assert sorted(found) == ["few groups", "few groups", "groups found only",
                             "trivial statistics predict the class"]
    assert sorted(line.split(":")[0] for line in dataset.warnings) == sorted(
        [*found, "one rule drops much", "parts not compared"])


def test_specimens_hold_the_original_before_and_its_own_tiles_after(made, tree):
    dataset, specimens = made
    written = {}
    for row in dataset.rows:
        written.setdefault(row.source, []).append(tiles.statistics(dataset.image(row)))
    assert [s.source_name for s in specimens] == sorted(written)
    assert Counter(s.tiles for s in specimens) == {2: 9, 1: 1}
    for specimen in specimens:
        content = (tree / specimen.source_name).read_bytes()
        image = decode_png(content)
        assert (specimen.file_bytes, specimen.sha256) == (len(content), sha256(content))
        assert specimen.look == (148, 64, ".png", "colour")
        assert specimen.mean_rgb == pytest.approx(image.mean((0, 1)), abs=1e-6)
        assert (*specimen.mean_rgb, specimen.brightness, specimen.contrast) == pytest.approx(
            tiles.statistics(image))
        assert specimen.after == pytest.approx(np.mean(written[specimen.source_name], axis=0))


def test_source_bits_reach_the_pixels(tmp_path):
    import cv2

    path = tmp_path / "dim.png"
    cv2.imwrite(str(path), tissue(1, 64).astype(np.uint16) * 16)  # 12 bits of 16, blue first
    for bits, most in ((12, 255), (16, 16)):
        recipe = tiles.Recipe(Cut(32), source_bits=bits)
        with originals.open_original(path, **recipe.reading) as original:
            assert most // 2 < original.overview().max() <= most
    assert "--source-bits" in tiles.examine(Source(path, "a/dim.png", "a"), tiles.Recipe(Cut(32)))


# ------------------------------------------------------------------ options

@pytest.mark.parametrize("name, options", [
    ("seed", ["--seed", 4]), ("fold", ["--fold", "1/3"]), ("image_size", ["--image-size", 32]),
    ("source_mpp", ["--source-mpp", 0.6]), ("mpp", ["--mpp", 0.5]), ("channel", ["--channel", 0]),
    ("tile_size", ["--tile-size", 40]), ("tiles_per_slide", ["--tiles-per-slide", 5]),
    ("region", ["--region", "all"]), ("benign", ["--benign", "a"]),
    ("min_tissue", ["--min-tissue", 0.2]), ("pages_are", ["--pages-are", "planes"]),
    ("source_bits", ["--source-bits", 12]), ("unknown_groups", ["--unknown-groups", "own"]),
    ("quality_control", ["--no-quality-control"]), ("groups", ["--groups", "CSV"]),
    ("group_regex", ["--group-regex", r"\d"]),
    ("stain_normalisation", ["--stain-normalisation", "none"]),
    ("trust_groups", ["--trust-groups", "--groups", "CSV"])])
def test_every_option_that_decides_a_tile_is_remembered(made, tree, capsys, name, options):
    assert run(tree, "real", *GIVEN, *[tree.parent / "groups.csv" if o == "CSV" else o
                                       for o in options]) == 2
    assert f"{name}: " in capsys.readouterr().err


def test_a_csv_of_groups_is_known_by_what_it_says(tmp_path):
    def identity(name: str, text: str) -> dict:
        (tmp_path / name).write_text(text)
        return tumor_seg.identity({"groups": str(tmp_path / name), "group_regex": None,
                                   "fold": None}, tiles.Recipe(Cut(32)), [])

    one, same, other = (identity(name, f"path,group\na/0.png,{group}\n")
                        for name, group in (("one", 1), ("same", 1), ("other", 2)))
    assert one == same and one != other


@pytest.mark.parametrize("options", [["--workers", 2], ["--preset", "full"], ["--groups", "auto"],
                                     ["--dry-run"]])
def test_options_that_decide_no_tile_leave_it_complete(made, tree, capsys, options):
    assert run(tree, "real", *GIVEN, *options) == 0
    assert "already complete" in capsys.readouterr().out


@pytest.fixture
def planned(monkeypatch, capsys):
    """A dry run: what it says, the group and split of every original, and how groups were given."""
    asked = []
    monkeypatch.setattr(confounding, "report", lambda *of: asked.append(of) or plain_report())

    def plan(tree: Path, *options: object) -> tuple:
        assert run(tree, "other", *options, "--dry-run") == 0
        specimens, split_of, given, _ = asked[-1]
        return (capsys.readouterr().out,
                {s.source_name: (s.group, split_of[s.group]) for s in specimens}, given)

    return plan


def test_a_preset_fills_what_is_not_given(tree, planned):
    assert "of 256 px" in planned(tree, "--preset", "full")[0]


@pytest.fixture(scope="module")
def sparse(tree) -> Path:
    """As `tree`, with a picture of which 3 % is tissue."""
    root = tree.parent / "sparse" / "in"
    shutil.copytree(tree, root)
    image = np.full((64, 64, 3), 250, np.uint8)
    image[4:16, 4:16] = tissue(7)[4:16, 4:16] // 2
    share = background.tissue_mask(image).mean()
    assert 0.025 < share < 0.045
    write(root / "a" / "sparse.png", image)
    return root


@pytest.mark.parametrize("options, tiles", [
    ([], 19), (["--region", "all"], 20), (["--min-tissue", 0.02], 20),
    (["--no-quality-control"], 19), (["--no-quality-control", "--region", "all"], 21)])
def test_how_much_tissue_is_asked_of_a_tile(sparse, planned, options, tiles):
    assert f"would write {tiles} tiles of 64 px" in planned(sparse, *options)[0]


@pytest.mark.parametrize("options, expected, given", [
    (["--groups", "CSV"], lambda name: name[0] + name[2], "csv+auto"),
    (["--groups", "CSV", "--trust-groups"], lambda name: name[0] + name[2], "csv"),
    (["--group-regex", r"(\d)\.png"], lambda name: name[2], "regex+auto"), ([], str, "auto")])
def test_groups_are_obeyed_and_how_they_were_given_is_said(tree, planned, options, expected, given):
    options = [tree.parent / "groups.csv" if o == "CSV" else o for o in options]
    _, found, said = planned(tree, *options, "--seed", 2)
    assert said == given and {name: group for name, (group, _) in found.items()} == {
        name: expected(name) for name in found}
    items = [(group, name[0]) for name, (group, _) in found.items()
             for _ in range(1 + (name != "b/2.png"))]
    assert {group: split for group, split in found.values()} == splits.split_groups(items, 2)


def test_the_seed_draws_the_tiles_of_a_slide_and_the_region_says_how_much_tissue(tree, monkeypatch):
    cuts = []

    def survey(found, recipe, journal, mapped):
        cuts.append(recipe.cut)
        raise KeyboardInterrupt

    monkeypatch.setattr(tumor_seg, "survey", survey)
    for options in (["--seed", 5, "--tiles-per-slide", 9, "--mpp", 0.5], ["--region", "all"]):
        with pytest.raises(KeyboardInterrupt):
            run(tree, "slides", *options)
    assert cuts == [Cut(64, None, 0.5, 0.25, 9, 5), Cut(64, None, None, 0, None, 0)]
