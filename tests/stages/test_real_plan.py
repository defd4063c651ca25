"""What the real stage decides of each tile and plans for all of them, piece by piece."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_tumor_seg import tissue, write

import tumor_seg
from lungkit.audit import confounding, survey
from lungkit.data import splits
from lungkit.formats import sources
from lungkit.histology import background, quality, stain, tiles
from lungkit.histology.originals import FIELD_UM, Cut
from lungkit.run.faults import Fault
from lungkit.run.workers import in_this_process

FINE = quality.Quality(tissue=0.5, contrast=0.2, structure=float("nan"), sharpness=0.6, ink=0.0,
                       red_ink=0.0, black=0.0, brightest=1.0, saturated_white=0.0,
                       saturated_black=0.0)
KEPT = survey.Tile((0, 0, 64), FINE, None)


def original(name: str, *tiles: survey.Tile, **change) -> survey.Original:
    source = sources.Source(Path(name), name, name.split("/")[0])
    made = survey.Original(source, name, 1000, (64, 64, ".png", "colour"),
                              (1.0, 2.0, 3.0, 4.0, 5.0), 0.8, np.full(3, 250.0), None, False,
                              tiles or (KEPT,), None)
    return replace(made, **change)


def two_classes(count: int = 10, **change) -> list[survey.Original]:
    return [original(f"{label}/{i}.png", **change) for label in "ab" for i in range(count)]


@pytest.fixture
def planned(monkeypatch):
    """make_plan of fabricated originals, of which the `links` are said to be copies."""
    def make(originals, group_of=None, given="csv", *, links=(), seed=0, fold=None,
             trust_groups=False, method="macenko"):
        monkeypatch.setattr(tumor_seg, "find_copies", lambda originals, mapped: list(links))
        return tumor_seg.make_plan(
            originals, group_of or {o.source.name: o.source.name for o in originals}, given,
            seed=seed, fold=fold, trust_groups=trust_groups, method=method, mapped=in_this_process)

    return make


# ------------------------------------------------------------------ groups and splits

@pytest.mark.parametrize("fold", [None, (1, 3), (3, 4)])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_split_is_that_of_the_groups_by_tiles_with_this_seed_and_fold(planned, seed, fold):
    originals = [original(f"{label}/{i}.png", *[KEPT] * (1 + i % 5)) for label in "ab"
                 for i in range(20)]
    group_of = {o.source.name: f"p{int(o.source.path.stem) % 13}" for o in originals}
    items = [(group_of[o.source.name], o.source.label) for o in originals for _ in o.kept]
    plan = planned(originals, group_of, seed=seed, fold=fold)
    assert plan.split_of == splits.split_groups(items, seed, fold)
    assert plan.split_of != splits.split_groups(items, seed + 1, fold)
    splits_of_patient = {(group_of[o.source.name], plan.split(o)) for o in originals}
    assert len(splits_of_patient) == 13  # no patient lies on two sides, in whatever class


def test_tiles_that_were_dropped_count_for_no_split_and_no_group(planned):
    dropped = survey.Tile((0, 0, 64), FINE, "blank")
    originals = [*two_classes(), original("a/x.png", dropped), original("b/y.png", KEPT, dropped)]
    plan = planned(originals)
    assert "a/x.png" not in plan.group_of and len(plan.originals) == 21
    assert sum(plan.count_tiles().values()) == 21
    assert sum(plan.count_groups()["train"].values()) == sum(
        split == "train" for split in plan.split_of.values())
    table = plan.count_groups()
    assert list(table) == ["train", "val", "test"]
    assert {label: sum(table[split][label] for split in table) for label in "ab"} == {
        "a": 10, "b": 11}


def test_a_group_of_two_classes_is_counted_in_both(planned):
    originals = two_classes()
    plan = planned(originals, {o.source.name: o.source.path.stem for o in originals})
    assert plan.count_groups() == {"train": {"a": 6, "b": 6}, "val": {"a": 2, "b": 2},
                                   "test": {"a": 2, "b": 2}}


@pytest.mark.parametrize("trust", [False, True])
def test_copies_join_groups_unless_these_are_trusted_and_equal_files_always_do(planned, trust):
    originals = [replace(o, sha256="same") if o.source.name in ("a/1.png", "b/2.png") else o
                 for o in two_classes()]
    plan = planned(originals, links=[("a/3.png", "b/4.png")], trust_groups=trust)
    group = plan.group_of
    assert group["a/1.png"] == group["b/2.png"]
    assert (group["a/3.png"] == group["b/4.png"]) == (not trust)
    assert plan.joined == (1 if trust else 2)


@pytest.mark.parametrize("given, trust, recorded", [
    ("csv", False, "csv+auto"), ("csv", True, "csv"), ("regex", False, "regex+auto"),
    ("auto", False, "auto")])
def test_how_groups_came_about_is_recorded(planned, given, trust, recorded):
    assert planned(two_classes(), given=given, trust_groups=trust).groups_given == recorded


def test_copies_under_two_labels_are_listed_but_for_equal_files(planned):
    originals = [replace(o, sha256="same") if o.source.name in ("a/1.png", "b/1.png") else o
                 for o in two_classes()]
    links = [("a/1.png", "b/1.png"), ("a/2.png", "b/2.png"), ("a/3.png", "a/4.png")]
    assert planned(originals, links=links).crossed == [("a/2.png", "b/2.png")]


def test_copies_are_pairs_with_the_first_of_their_group(monkeypatch):
    monkeypatch.setattr("lungkit.audit.copies.link", lambda signatures, mapped: [0, 1, 0, 3, 1, 0])
    found = tumor_seg.find_copies([original(f"a/{i}.png") for i in range(6)], in_this_process)
    assert found == [("a/0.png", "a/2.png"), ("a/1.png", "a/4.png"), ("a/0.png", "a/5.png")]


def test_a_class_that_lost_every_tile_is_a_fault_that_names_the_commonest_reason(planned):
    dropped = [survey.Tile((0, 0, 64), FINE, why)
               for why in ("blank", "coloured ink", "coloured ink")]
    with pytest.raises(Fault, match=r"every tile of 'c' was dropped \(coloured ink\)"):
        planned([*two_classes(), original("c/1.png", *dropped)])


# ------------------------------------------------------------------ the reference

def strong(value: float) -> stain.Stains:
    return stain.Stains(np.array([[0.65, 0.1], [0.7, 0.95], [0.3, 0.3]]), np.full(2, value))


def test_the_reference_is_measured_on_the_originals_of_train(planned):
    originals = [replace(o, stains=strong(1 + i / 10)) for i, o in enumerate(two_classes())]
    for fold in (None, (2, 3)):
        plan = planned(originals, fold=fold)
        trained = [o.stains.strength[0] for o in originals if plan.split(o) == "train"]
        assert 0 < len(trained) < 20
        assert plan.reference.strength[0] == pytest.approx(np.median(trained))
        others = [replace(o, stains=o.stains if plan.split(o) == "train" else strong(50))
                  for o in originals]
        assert planned(others, fold=fold).reference.strength[0] == plan.reference.strength[0]
    assert planned(originals, method="none").reference is None


# ------------------------------------------------------------------ numbers

class Written:
    """A writer that has some tiles, and notes what it was asked for."""

    def __init__(self, *numbers: int) -> None:
        self.numbers, self.asked = numbers, {}

    def has(self, split: str, label: str, number: int) -> bool:
        self.asked[number] = split, label
        return number in self.numbers


def numbered(plan, *written) -> list[tuple]:
    return [(job.original.source.name, number, tile.box)
            for job in tumor_seg.pending_jobs(Written(*written), plan)
            for number, tile in job.tiles.items()]


def test_tiles_are_numbered_by_class_and_name_and_never_by_split(planned):
    kept, dropped = (survey.Tile((0, i, 64), FINE, why) for i, why in ((1, None), (2, "blank")))
    originals = [o if i % 4 else replace(o, tiles=(KEPT, dropped, kept))
                 for i, o in enumerate(two_classes())]
    plans = [planned(originals, seed=seed) for seed in (0, 1)]
    assert plans[0].split_of != plans[1].split_of
    expected = [(o.source.name, tile.box) for o in originals for tile in o.kept]
    assert numbered(plans[0]) == numbered(plans[1]) == [
        (name, number, box) for number, (name, box) in enumerate(expected)]
    assert numbered(plans[0], 0, 3) == [entry for entry in numbered(plans[0])
                                        if entry[1] not in (0, 3)]
    writer = Written()
    tumor_seg.pending_jobs(writer, plans[0])
    assert writer.asked == {number: (plans[0].split_of[name], name[0])
                            for number, (name, _) in enumerate(expected)}


def test_many_tiles_of_one_original_are_shared_out_32_at_a_time(planned):
    tiles = [survey.Tile((0, 64 * i, 64), FINE, None) for i in range(70)]
    plan = planned([original("a/0.png", *tiles), *two_classes()[1:]])
    jobs = tumor_seg.pending_jobs(Written(5), plan)
    assert [len(job.tiles) for job in jobs[:4]] == [32, 32, 5, 1]
    assert [number for job in jobs for number in job.tiles] == [*range(5), *range(6, 89)]
    assert all(job.original.tiles == () for job in jobs)


def test_the_digest_changes_with_all_that_decides_a_tile(planned):
    originals = [replace(o, stains=strong(1)) for o in two_classes()]
    first = planned(originals)
    changed = [
        planned(originals, seed=1), planned(originals, fold=(1, 3)),
        planned([replace(originals[0], sha256="other"), *originals[1:]]),
        planned([replace(originals[0], tiles=(replace(KEPT, box=(0, 1, 64)),)), *originals[1:]]),
        planned(originals[1:]),
        planned([replace(o, stains=strong(2)) for o in originals]),
        replace(first, group_of=first.group_of | {"a/0.png": first.group_of["a/1.png"]})]
    digests = [plan.digest(stain.describe(plan.reference)) for plan in (first, *changed)]
    assert len(set(digests)) == len(digests)
    assert planned(originals).digest(stain.describe(first.reference)) == digests[0]


# ------------------------------------------------------------------ what could give a class away

def test_a_specimen_is_what_was_measured_before_any_change(planned):
    originals = two_classes()
    originals[3] = replace(originals[3], tiles=(KEPT, KEPT), file_bytes=77, sha256="s",
                           look=(90, 64, ".jpg", "grey"), statistics=(9.0, 8.0, 7.0, 6.0, 5.5))
    plan = planned(originals, {o.source.name: o.source.path.stem for o in originals})
    after = {"a/3.png": (0.1, 0.2, 0.3, 0.4, 0.5)}
    specimens = plan.specimens(after)
    assert specimens[3] == confounding.Specimen(
        "a", "3", "a/3.png", "s", (90, 64, ".jpg", "grey"), 77, (9.0, 8.0, 7.0), 6.0, 5.5,
        after=(0.1, 0.2, 0.3, 0.4, 0.5), tiles=2)
    assert specimens[4].after is None and specimens[4].tiles == 1 and len(specimens) == 20


def test_statistics_are_mean_colour_and_the_mean_and_spread_of_grey():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2], image[2:] = (30, 60, 120), (90, 120, 180)
    assert tiles.statistics(image) == pytest.approx((60, 90, 150, 100, 30), abs=0.1)
    grey = np.repeat(np.uint8([[10, 50]]), 4, 1)
    assert tiles.statistics(grey) == pytest.approx((30, 30, 30, 30, 20))


# ------------------------------------------------------------------ one tile

class FakePicture:
    """A picture of known scale; `judge` asks it for no pixels."""

    bright, um_per_px = False, 0.25


@pytest.fixture
def judged(monkeypatch):
    """judge() of a tile of 100 px read at 50, whose quality and share of tumour are given."""
    def judge(measured=FINE, share=0.3, label="a", um_per_px=0.25, **options):
        asked = []
        monkeypatch.setattr(quality, "measure", lambda flat, mask, scale: asked.append(scale)
                            or measured)
        monkeypatch.setattr(tiles, "tumour_share",
                            lambda flat, mask, um_per_px: asked.append(um_per_px) or share)
        picture = FakePicture()
        picture.um_per_px = um_per_px
        tile = tiles.judge(tissue(1)[:50, :50], (3, 4, 100), np.full(3, 255.0), picture, label,
                               tiles.Recipe(Cut(64), **options))
        assert tile.measured == measured and tile.box == (3, 4, 100)
        return tile.reason, asked

    return judge


def test_a_tile_is_measured_in_micrometres_a_pixel_as_read(judged):
    assert judged() == (None, [0.5])
    assert judged(region="tumour")[1] == [0.5, 0.5]
    assert judged(um_per_px=None, region="tumour")[1] == [None, None]


def test_only_region_tumour_asks_for_tumour_and_benign_classes_are_spared(judged):
    why = "less than 0.5 of its tissue is tumour"
    assert judged(region="tumour")[0] == why
    assert judged(region="tumour", benign=("b",))[0] == why
    assert judged(region="tumour", benign=("a", "b"))[0] is None
    assert judged(region="tumour", share=0.5)[0] is None
    assert judged(region="tissue")[0] is None and judged(region="all")[0] is None


def test_quality_comes_before_the_region_and_may_be_left_to_the_share_of_tissue(judged):
    inked, empty = replace(FINE, ink=0.9), replace(FINE, tissue=0.04, ink=0.9)
    assert judged(inked, region="tumour") == ("coloured ink", [0.5])
    assert judged(inked, quality_control=False)[0] is None
    assert judged(empty, quality_control=False)[0] == "too little tissue"
    assert judged(empty, quality_control=False, limits=quality.Limits(min_tissue=0.04))[0] is None


def test_grey_tiles_hold_no_tumour_and_colour_ones_their_share_of_tissue(monkeypatch):
    found = np.zeros((20, 20), bool)
    found[:10] = True
    monkeypatch.setattr(tiles, "tumour_map", lambda flat, um_per_px: found)
    mask = np.zeros((40, 40), bool)
    mask[:, :20] = mask[:10, 20:] = True
    assert tiles.tumour_share(np.zeros((40, 40), np.uint8), mask, None) == 0
    assert tiles.tumour_share(np.zeros((40, 40, 3), np.uint8), mask, None) == 0.6


@pytest.mark.parametrize("um_per_px, side, field_um", [(0.25, 300, 75), (None, 300, FIELD_UM),
                                                   (1.0, 60, 60)])
def test_the_tumour_map_is_of_the_tiles_field_at_224_px_at_most(monkeypatch, um_per_px, side,
                                                                field_um):
    asked = []
    monkeypatch.setattr(tiles, "tumour_mask", lambda image, field_um: asked.append(
        (image.shape, field_um)))
    tiles.tumour_map(np.zeros((side, side, 3), np.uint8), um_per_px)
    assert asked == [((min(side, 224),) * 2 + (3,), field_um)]


def test_a_mask_is_set_where_half_of_a_pixel_is():
    mask = np.zeros((8, 8), bool)
    mask[0, 0] = mask[0, 2:4] = mask[4:7, 4:6] = True
    found = tiles.mask_to(mask, 4)
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 255}
    assert np.argwhere(found > 0).tolist() == [[0, 1], [2, 2], [3, 2]]
    assert tiles.mask_to(mask, 8).sum() == 255 * mask.sum()


def test_a_tile_is_averaged_to_size_and_grey_becomes_three_equal_channels():
    tile = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    found = tiles.bring_to(tile, 16)
    assert found.shape == (16, 16, 3) and (found == found[..., :1]).all()
    np.testing.assert_allclose(found[..., 0], tile.reshape(16, 4, 16, 4).mean((1, 3)), atol=0.51)
    assert tiles.bring_to(tile[:20, :20], 40).shape == (40, 40, 3)


# ------------------------------------------------------------------ slides and pictures examined

def test_a_slides_stain_is_measured_on_its_kept_tiles_and_its_light_on_all_of_it(monkeypatch):
    """Sixty tiles, every other one glass: of 48 evenly spaced ones those with tissue are pooled."""
    tint, seen, reads = (0.9, 0.95, 0.85), [], []

    class Slide(FakePicture):
        is_slide, colour, size, sha256, file_bytes = True, True, (64, 3840), "s", 5

        def overview(self):
            image = np.full((64, 64, 3), 255) * tint
            image[:20, :20] = tissue(3)[:20, :20]
            return image.astype(np.uint8)

        def boxes(self, cut):
            return [(0, 64 * i, 64) for i in range(60)]

        def read(self, box, most_px):
            reads.append(most_px)
            image = np.full((64, 64, 3), 255) if box[1] % 128 else tissue(box[1])
            return (image * tint).astype(np.uint8)

    @contextlib.contextmanager
    def open_original(path, **reading):
        yield Slide()

    monkeypatch.setattr(tiles, "open_original", open_original)
    monkeypatch.setitem(stain.METHODS, "macenko", stain.Method(
        lambda pixels: seen.append(pixels) or "measured", None, None))
    source = sources.Source(Path("a/s.svs"), "a/s.svs", "a")
    found = tiles.examine(source, tiles.Recipe(Cut(64), quality_control=False))
    assert found.stains == "measured" and set(reads) == {tiles.WORK_PX}
    np.testing.assert_allclose(found.light, np.trunc(255 * np.array(tint)), atol=1)
    assert [tile.reason for tile in found.tiles] == [None, "too little tissue"] * 30
    picked = np.linspace(0, 59, 48).round().astype(int)
    kept = [i for i in picked if i % 2 == 0]
    flat = [background.balance_white((tissue(64 * i) * tint).astype(np.uint8), found.light)
            for i in kept]
    np.testing.assert_array_equal(seen[0], np.concatenate(flat).reshape(-1, 3))


def test_an_edited_original_is_examined_again_and_the_others_are_not(tmp_path, monkeypatch):
    found = [sources.Source(write(tmp_path / f"a/{i}.png", tissue(i)), f"a/{i}.png", "a")
             for i in range(3)]
    seen, kept = [], {}

    class Kept:
        def get(self, name, stamp):
            return kept.get((name, stamp))

        def add(self, name, stamp, result):
            kept[name, stamp] = result

    def examine(source, recipe):
        seen.append(source.name)
        return original(source.name)

    def surveyed():
        seen.clear()
        made = tumor_seg.survey(found, None, Kept(), in_this_process)
        assert [o.source.name for o in made] == ["a/0.png", "a/1.png", "a/2.png"]
        return list(seen)

    monkeypatch.setattr(tumor_seg, "examine", examine)
    assert surveyed() == ["a/0.png", "a/1.png", "a/2.png"] and surveyed() == []
    write(found[1].path, tissue(9))
    assert surveyed() == ["a/1.png"]
