"""What is said of the originals: each tile with its reason, each warning at its threshold."""

from __future__ import annotations

import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest
from test_confounding import plain_report

from lungkit.data.png import decode_png
from lungkit.histology import qc_report, stain
from lungkit.histology.quality import Quality

FINE = Quality(0.5, 0.2, 0.6, 0.6, 0.01, 0.004, 0.005, 1.0, 0.02, 0.03)


def tile(reason=None, box=(0, 0, 64), **measured):
    values = {**vars(FINE), **measured}
    return SimpleNamespace(box=box, measured=Quality(**values), reason=reason)


def original(name: str, *tiles, um_per_px=0.8, light=(250, 250, 250), bright=False, stains=None):
    return SimpleNamespace(source=SimpleNamespace(name=name, label=name.split("/")[0]),
                           tiles=tiles, kept=[t for t in tiles if t.reason is None],
                           um_per_px=um_per_px, light=light, bright=bright, stains=stains)


def plan(originals, *, joined=0, groups_given="csv+auto", crossed=(), reference=None):
    return SimpleNamespace(originals=[o for o in originals if o.kept], joined=joined,
                           groups_given=groups_given, crossed=list(crossed), reference=reference)


def warned(originals, report=None, image_size=64, **of_plan) -> dict[str, str]:
    lines = qc_report.warn(plan(originals, **of_plan), report or plain_report(), originals,
                           image_size)
    return dict(line.split(": ", 1) for line in lines)


CALM = [original(f"{label}/{i}.png", tile()) for label in "ab" for i in range(10)]


# ------------------------------------------------------------------ the table and the sheet

def test_the_table_has_a_line_for_every_tile_with_its_own_reason_and_figures():
    rows = list(csv.DictReader(io.StringIO(qc_report.table([
        original("a/x.png", tile("blank", (3, 70, 64), tissue=0.001), tile(box=(3, 6, 64))),
        original("b/y,z.png", tile("coloured ink", ink=0.4))]))))
    assert [(r["file_name"], r["label"], r["reason"]) for r in rows] == [
        ("a/x.png", "a", "blank"), ("a/x.png", "a", ""), ("b/y,z.png", "b", "coloured ink")]
    assert [(r["top_px"], r["left_px"], r["side_px"]) for r in rows] == [
        ("3", "70", "64"), ("3", "6", "64"), ("0", "0", "64")]
    assert [r["tissue_fraction"] for r in rows] == ["0.0010", "0.5000", "0.5000"]
    assert {name: rows[2][name] for name in (
        "contrast_od", "structure_fraction", "sharpness", "ink_fraction",
        "red_ink_fraction", "black_fraction", "brightest_fraction",
        "saturated_white_fraction", "saturated_black_fraction")} == {
        "contrast_od": "0.2000", "structure_fraction": "0.6000", "sharpness": "0.6000",
        "ink_fraction": "0.4000", "red_ink_fraction": "0.0040", "black_fraction": "0.0050",
        "brightest_fraction": "1.0000",
        "saturated_white_fraction": "0.0200", "saturated_black_fraction": "0.0300"}


def test_what_is_dropped_is_counted_by_reason_and_class():
    found = qc_report.count_dropped(
        [original("a/x.png", tile("blank"), tile("blank"), tile()),
         original("b/y.png", tile("blank"), tile("coloured ink")), original("b/small.png")],
        ["b/notes.txt", "b/more.txt"])
    assert found == [
        {"reason": "blank", "count": 3, "by_class": {"a": 2, "b": 1},
         "examples": ["a/x.png", "b/y.png"]},
        {"reason": "coloured ink", "count": 1, "by_class": {"b": 1}, "examples": ["b/y.png"]},
        {"reason": qc_report.NO_TILE, "count": 1, "by_class": {"b": 1},
         "examples": ["b/small.png"]},
        {"reason": "not an image file", "count": 2, "by_class": {"b": 2},
         "examples": ["b/notes.txt", "b/more.txt"]}]


def test_the_sheet_shows_kept_tiles_by_class_and_dropped_ones_by_reason(monkeypatch):
    shown, asked = {}, []

    def look_at(original, tiles):
        asked.append(original.source.name)
        return [(original.source.name, tile.reason) for tile in tiles]

    def labelled_grid(rows, margin_px):
        shown.update(rows)
        assert margin_px >= 8 * max(map(len, rows))
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr("lungkit.compare.contact_sheet.labelled_grid", labelled_grid)
    many = [original(f"a/{i:02d}.png", tile(), tile("coloured ink")) for i in range(25)]
    png = qc_report.sheet([*many, original("b/x.png", tile("blank"), tile())], look_at)
    assert len(asked) == len(set(asked)) > qc_report.SHEET_COLUMNS, "opened more than once"
    assert decode_png(png).shape == (4, 4, 3)
    assert list(shown) == ["kept: a (25)", "kept: b (1)", "dropped: blank (1; 50% of b)",
                           "dropped: coloured ink (25; 50% of a)"]
    assert shown["dropped: blank (1; 50% of b)"] == [("b/x.png", "blank")]
    row = shown["dropped: coloured ink (25; 50% of a)"]
    assert len(row) == qc_report.SHEET_COLUMNS and {reason for _, reason in row} == {"coloured ink"}
    assert (row[0][0], row[-1][0]) == ("a/00.png", "a/24.png")


@pytest.mark.parametrize("items, most, picked", [
    (range(10), 4, [0, 3, 6, 9]), (range(3), 4, [0, 1, 2]), (range(0), 4, []),
    (range(5), 1, [0])])
def test_some_are_evenly_spread_over_all(items, most, picked):
    assert qc_report.spread(list(items), most) == picked


# ------------------------------------------------------------------ warnings

def test_calm_originals_warn_of_nothing():
    assert warned(CALM) == {}


def test_warnings_of_confounding_are_among_them():
    report = plain_report(a={"groups": 2}, told={"balanced_accuracy": 0.9, "p": 0.01})
    assert set(warned(CALM, report)) == {"few groups", "trivial statistics predict the class"}


def test_joined_groups_are_warned_of_where_the_user_named_them():
    assert set(warned(CALM, joined=1)) == {"groups joined"}
    assert warned(CALM, joined=1)["groups joined"].startswith("1 groups held a copy")
    assert set(warned(CALM, joined=3, groups_given="csv")) == {"groups joined"}
    assert warned(CALM, joined=3, groups_given="auto") == {}


def test_copies_under_another_label_are_warned_of_and_named():
    line = warned(CALM, crossed=[("a/1.png", "b/2.png"), ("a/3.png", "b/4.png")])[
        "copies with different labels"]
    assert line.startswith("2 images") and "'a/1.png' = 'b/2.png'" in line


def test_parts_are_warned_of_only_where_groups_were_found():
    cut = [*CALM, original("a/wide.png", tile(), tile(box=(0, 64, 64)))]
    assert warned(cut, groups_given="auto")["parts not compared"].count("; 1 were cut") == 1
    assert warned(cut) == {} and warned(CALM, groups_given="auto") == {}


def test_uneven_dropping_is_warned_of_beyond_a_tenth():
    def lost(number):
        return [original(f"{label}/{i}.png", tile("blank" if label == "b" and i < number else None))
                for label in "ab" for i in range(20)]

    assert "dropped unevenly" not in warned(lost(2))
    line = warned(lost(3))["dropped unevenly"]
    assert line.startswith("15% of the tiles of 'b' but 0% of 'a'")
    half = [original(f"{label}/{i}.png", tile("blank" if i < 10 else None))
            for label in "ab" for i in range(20)]
    assert "dropped unevenly" not in warned(half)


def slide(name: str, kept: int, **dropped: int):
    """An original of so many tiles kept and dropped; a reason is written with _ for blanks."""
    return original(name, *[tile()] * kept, *[tile(reason.replace("_", " "))
                                              for reason, n in dropped.items() for _ in range(n)])


@pytest.mark.parametrize("originals, said", [
    ([slide("a/0.svs", 97, coloured_ink=3)], None),                       # 3 % is not more than 3 %
    ([slide("a/0.svs", 96, coloured_ink=4)],
     "'coloured ink' drops 4% of the class 'a' (4 of 100 tiles), 4% of the slide 'a/0.svs' "
     "(4 of 100 tiles): "),
    ([slide("a/0.svs", 96, coloured_ink=4), slide("a/1.svs", 100)],       # 2 % of the class
     "'coloured ink' drops 4% of the slide 'a/0.svs' (4 of 100 tiles): "),
    ([slide("a/0.svs", 99), *[slide(f"a/{i}.svs", 18, out_of_focus=1) for i in range(1, 4)]],
     None),                                                     # slides of 19 tiles have no share
    ([slide("a/0.png", 9), slide("a/1.png", 0, blank=1), slide("b/0.png", 10)],
     "'blank' drops 10% of the class 'a' (1 of 10 tiles): "),
    ([slide("a/0.svs", 400), *[slide(f"a/{i}.svs", 20 + i, blank=5) for i in range(1, 7)]],
     "'blank' drops 5% of the class 'a' (30 of 571 tiles), 19% of the slide 'a/1.svs' (5 of 26 "
     "tiles), 19% of the slide 'a/2.svs' (5 of 27 tiles), 18% of the slide 'a/3.svs' (5 of 28 "
     "tiles), more than 3% of 3 other slides: "),
    ([slide("a/0.svs", 50, less_than_half_of_its_tissue_is_tumour=50)], None)])  # as it was asked
def test_a_rule_that_drops_more_than_3_percent_of_a_class_or_slide_is_named(originals, said):
    line = warned([*originals, *[original(f"c/{i}.png", tile()) for i in range(10)]]).get(
        "one rule drops much")
    assert line is None if said is None else line.startswith(said)


def test_each_rule_that_drops_much_is_said():
    found = [line for line in qc_report.warn(
        plan([slide("a/0.svs", 80, blank=10, too_dark=10)]), plain_report(),
        [slide("a/0.svs", 80, blank=10, too_dark=10)], 64) if line.startswith("one rule")]
    assert [line.split("'")[1] for line in found] == ["blank", "too dark"]


def test_fluorescence_among_stained_tissue_is_warned_of():
    dark = [original(f"a/dark{i}.png", tile(), light=None) for i in range(3)]
    assert warned([*CALM, *dark])["mixed modalities"].startswith(
        "20 images are he, 3 images are fluorescence:")
    assert "mixed modalities" not in warned(dark)


def test_the_share_dropped_counts_tiles_and_not_originals():
    found = qc_report.shares_dropped([original("a/0.png", tile(), tile("blank"), tile("blank")),
                                      original("a/1.png", tile()), original("b/0.png")])
    assert found == {"a": 0.5, "b": 0.0}


def test_enlarged_tiles_are_warned_of():
    small = [*CALM, original("a/small.png", tile(box=(0, 0, 63)), tile("blank", (0, 63, 63)))]
    assert warned(small, image_size=64)["tiles enlarged"].startswith("1 tiles")
    assert warned(CALM, image_size=64) == {}


def test_unknown_and_mixed_resolution_is_warned_of():
    unknown = [*CALM, original("a/x.png", tile(), um_per_px=None)]
    assert set(warned(unknown)) == {"resolution unknown"}
    assert warned(unknown)["resolution unknown"].startswith("1 images")
    assert warned([*CALM, original("a/x.png", tile(), um_per_px=0.87)]) == {}
    line = warned([*CALM, original("a/x.png", tile(), um_per_px=0.9)])["mixed magnification"]
    assert line.startswith("tiles cover 51 to 58 um")


# ------------------------------------------------------------------ for the manifest

def test_the_resolution_is_of_the_median_tile_kept_and_none_where_one_is_unknown():
    fields = [original(f"a/{i}.png", tile(box=(0, 0, side)), um_per_px=0.5)
              for i, side in enumerate((100, 120, 400))]
    assert qc_report.describe_scale(fields, 50)["um_per_px"] == 60 / 50
    many = original("a/9.png", *[tile(box=(0, 0, 400))] * 4, tile("blank", (0, 0, 1)),
                    um_per_px=0.5)
    assert qc_report.describe_scale([*fields, many], 50)["um_per_px"] == 200 / 50
    unknown = original("a/x.png", tile(), um_per_px=None)
    assert qc_report.describe_scale([*fields, unknown], 50)["um_per_px"] is None


@pytest.mark.parametrize("kinds, modality", [
    ([{}], "he"), ([{"light": None}], "fluorescence"), ([{"light": None, "bright": True}], None),
    ([{}, {"light": None}], None), ([{"light": None}, {"light": None, "bright": True}], None)])
def test_the_modality_is_said_where_all_originals_share_one(kinds, modality):
    originals = [original(f"a/{i}.png", tile(), **kind) for i, kind in enumerate(kinds)]
    assert qc_report.describe_scale(originals, 50)["modality"] == modality


def test_the_stain_is_described_with_what_falls_short_of_it():
    reference = stain.Stains(np.array([[0.6, 0.1], [0.7, 0.9], [0.3, 0.2]]), np.array([1.5, 0.9]))
    mixture = stain.Mixture(np.ones((3, 9), np.float16))
    originals = [original("a/0.png", tile(), stains=reference),
                 original("a/1.png", tile(), stains=mixture), original("a/2.png", tile()),
                 original("a/3.png", tile(), light=None)]
    found = qc_report.describe_stain(plan(originals, reference=reference), "macenko")
    assert found["method"] == "macenko" and found["images"] == 3
    assert sorted(found["short"].values()) == [1, 1]
    assert found["reference"] == {"matrix": [[0.6, 0.1], [0.7, 0.9], [0.3, 0.2]],
                                  "strength": [1.5, 0.9]}
    for method, given in (("none", originals), ("macenko", originals[3:])):
        assert qc_report.describe_stain(plan(given, reference=reference), method) == {
            "method": method, "images": 0, "short": {}, "reference": None}
