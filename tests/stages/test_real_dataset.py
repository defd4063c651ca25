"""The real dataset can be trusted: no leak, folds, quality, regions, scale, any worker count."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tumor_seg
from lungkit.data.dataset import open_dataset
from lungkit.data.png import decode_png, encode_png
from lungkit.phantom import paint, sample

pytestmark = pytest.mark.usefixtures("found_once")


def make(tree: Path, output: Path, *options: object) -> int:
    return tumor_seg.main(["--input", str(tree), "--output", str(output), "--image-size", "32",
                           *map(str, options)])


def files_of(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*"))
            if p.is_file() and p.name != "progress.jsonl"}


@pytest.fixture(scope="module")
def with_copies(tmp_path_factory) -> Path:
    """4 patients, 3 tiles each, and two augmented copies of every tile; truth/siblings.csv."""
    path = tmp_path_factory.mktemp("copies") / "sample"
    sample.write_sample(path, num_patients=4, tiles_per_patient=3, image_size=160, seed=11,
                         siblings=2)
    return path


@pytest.fixture(scope="module")
def half(sample_dir, tmp_path_factory) -> Path:
    """The images of the first 6 patients of `sample_dir`, 6 a class. Read only."""
    path = tmp_path_factory.mktemp("half") / "images"
    shutil.copytree(sample_dir / "images", path,
                    ignore=shutil.ignore_patterns("patient00[6-9]*", "patient01*"))
    return path


# ------------------------------------------------------------------ no leak

def test_no_copy_lies_on_another_side_than_its_original(with_copies, tmp_path):
    """No group ids at all: turned, flipped, rescaled, re-compressed copies are found."""
    assert make(with_copies / "images", tmp_path / "real") == 0
    dataset = open_dataset(tmp_path / "real")
    with open(with_copies / "truth" / "siblings.csv", newline="") as file:
        original = {row["file_name"]: row["sibling_of"] for row in csv.DictReader(file)}
    split, group = ({row.source: getattr(row, what) for row in dataset.rows}
                    for what in ("split", "group"))
    assert len(split) == 36
    pairs = [(name, of) for name, of in original.items() if name != of]
    assert len(pairs) == 24
    assert [pair for pair in pairs if split[pair[0]] != split[pair[1]]] == []
    assert len(set(group.values())) > 6  # and unrelated tiles were not thrown together
    assert any(line.startswith("groups found only: ") for line in dataset.warnings)


def test_copies_join_the_groups_that_the_user_gave(with_copies, tmp_path, capsys):
    """A CSV that puts each file in a group of its own is joined, unless it is to be trusted."""
    names = sorted(p.relative_to(with_copies / "images").as_posix()
                   for p in (with_copies / "images").rglob("*.*"))
    groups = tmp_path / "groups.csv"
    groups.write_text("file_name,label,group\n" + "".join(
        f"{name},{name.split('/')[0]},{name}\n" for name in names))
    assert make(with_copies / "images", tmp_path / "joined", "--groups", groups) == 0
    joined = open_dataset(tmp_path / "joined")
    assert len({row.group for row in joined.rows}) <= 12
    assert any(line.startswith("groups joined: ") for line in joined.warnings)
    assert make(with_copies / "images", tmp_path / "kept", "--groups", groups,
                "--trust-groups") == 0
    assert len({row.group for row in open_dataset(tmp_path / "kept").rows}) == 36
    assert make(with_copies / "images", tmp_path / "x", "--trust-groups") == 2
    assert "without groups to trust" in capsys.readouterr().err


def test_groups_from_the_file_name_span_classes(half, tmp_path, capsys):
    tree = half
    assert make(tree, tmp_path / "real", "--group-regex", r"patient\d+") == 0
    rows = open_dataset(tmp_path / "real").rows
    assert {row.group for row in rows} == {f"patient{i:03d}" for i in range(6)}
    assert all(row.group in row.source for row in rows)
    assert make(tree, tmp_path / "x", "--group-regex", "(") == 2
    assert make(tree, tmp_path / "x", "--group-regex", "TCGA-..-....") == 1
    assert "matches nothing in 18 of 18 names" in capsys.readouterr().err
    assert make(tree, tmp_path / "x", "--group-regex", "p", "--groups", "g.csv") == 2


def test_folds_test_every_image_once(half, tmp_path):
    tested, validated = [], []
    for number in (1, 2, 3):
        assert make(half, tmp_path / f"{number}", "--group-regex", r"patient\d+",
                    "--fold", f"{number}/3") == 0
        dataset = open_dataset(tmp_path / f"{number}")
        tested += [row.source for row in dataset.select("test")]
        validated.append({row.source for row in dataset.select("val")})
        group_of = {split: {row.group for row in dataset.select(split)} for split in dataset.counts}
        assert not group_of["train"] & group_of["test"] and not group_of["val"] & group_of["test"]
    assert len(tested) == len(set(tested)) == 18 == len(set.union(*validated))
    for bad in ("0/3", "4/3", "1/2", "a/b", "1"):
        assert make(half, tmp_path / "x", "--fold", bad) == 2


def test_more_folds_than_groups_says_how_many_are_needed(sample_dir, tmp_path, capsys):
    assert make(sample_dir / "images", tmp_path / "x", "--group-regex", r"patient\d+",
                "--fold", "1/9") == 1
    assert "at least 9 groups" in capsys.readouterr().err


# ------------------------------------------------------------------ what is said of it

def test_the_manifest_holds_the_confounding_report(real_dataset):
    manifest = json.loads((real_dataset / "dataset.json").read_text())
    report = manifest["confounding"]
    assert report["groups_given"] == "csv+auto" and report["groups"] == 12
    assert set(report["classes"]) == {"lung_aca", "lung_n", "lung_scc"}
    families = report["trivial"]["families"]
    assert "mean colour" in families and "mean colour after normalisation" in families
    assert all(0 <= found["balanced_accuracy"] <= 1 for found in families.values()
               if not found["constant"])


def test_a_source_that_gives_the_class_away_is_a_named_warning(sample_dir, tmp_path):
    """One class saved as JPEG, the others as PNG: compression tells it."""
    from PIL import Image

    tree = tmp_path / "in"
    shutil.copytree(sample_dir / "images", tree)
    for path in (tree / "lung_n").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    assert make(tree, tmp_path / "real", "--group-regex", r"patient\d+") == 0
    named = [line.split(":")[0] for line in open_dataset(tmp_path / "real").warnings]
    assert "one source dominates" in named
    assert "trivial statistics predict the class" in named


# ------------------------------------------------------------------ quality, region, scale

def test_bad_tiles_are_dropped_named_and_shown(half, tmp_path, capsys):
    import cv2

    tree = tmp_path / "in"
    shutil.copytree(half, tree)
    path = sorted((tree / "lung_scc").iterdir())[0]
    sharp = decode_png(path.read_bytes())
    (tree / "lung_scc" / "blurred.png").write_bytes(encode_png(cv2.GaussianBlur(sharp, (0, 0), 4)))
    inked = sharp.copy()
    cv2.line(inked, (0, 20), (111, 90), (20, 40, 160), 14)
    (tree / "lung_scc" / "inked.png").write_bytes(encode_png(inked))
    (tree / "lung_n" / "glass.png").write_bytes(encode_png(np.full_like(sharp, 244)))
    assert make(tree, tmp_path / "real") == 0
    dataset = open_dataset(tmp_path / "real")
    with open(tmp_path / "real" / "qc.csv", newline="") as file:
        rows = {row["file_name"]: row for row in csv.DictReader(file)}
    assert len(rows) == 21
    reasons = {name: row["reason"] for name, row in rows.items() if row["reason"]}
    assert reasons["lung_scc/blurred.png"] == "out of focus"
    assert reasons["lung_scc/inked.png"] == "coloured ink"
    assert reasons["lung_n/glass.png"] == "blank"
    assert {row.source for row in dataset.rows} == set(rows) - set(reasons)
    assert {entry["reason"] for entry in dataset.manifest["dropped"]} == set(reasons.values())
    sheet = decode_png((tmp_path / "real" / "qc.png").read_bytes())
    assert len(sheet) > (3 + len(set(reasons.values()))) * 90  # a row for each class and reason
    assert make(tree, tmp_path / "all", "--no-quality-control", "--region", "all") == 0
    assert len(open_dataset(tmp_path / "all").rows) == 21


def test_region_tumour_takes_tiles_by_the_map_and_spares_benign_classes(sample_dir, tmp_path,
                                                                        capsys):
    tree, by_patient = sample_dir / "images", ["--group-regex", r"patient\d+"]
    assert make(tree, tmp_path / "x", "--region", "tumour", "--benign", "lung_x") == 2
    assert make(tree, tmp_path / "real", "--region", "tumour", "--benign", "lung_n",
                *by_patient) == 0
    dataset = open_dataset(tmp_path / "real")
    taken = {row.source for row in dataset.rows}
    with open(tmp_path / "real" / "qc.csv", newline="") as file:
        dropped = [row for row in csv.DictReader(file)
                   if row["reason"].endswith("of its tissue is tumour")]
    assert {row["label"] for row in dropped} <= {"lung_aca", "lung_scc"}
    assert sum(name.startswith("lung_n/") for name in taken) == 12

    def share(name: str) -> float:
        tumour, tissue = (decode_png((sample_dir / "truth" / kind / name).read_bytes()) > 0
                          for kind in ("tumour", "tissue"))
        return (tumour & tissue).sum() / max(tissue.sum(), 1)

    cancer = [name for name in taken if not name.startswith("lung_n/")]
    assert np.mean([share(name) for name in cancer]) > 0.5
    if dropped:
        assert np.mean([share(row["file_name"]) for row in dropped]) < \
            np.mean([share(name) for name in cancer])


def test_the_tumour_map_is_a_mask_of_the_dataset(real_dataset):
    dataset = open_dataset(real_dataset)
    for row in dataset.rows:
        mask = dataset.mask("tumour", row)
        assert mask.shape == (64, 64) and set(np.unique(mask)) <= {0, 255}
    share = {label: np.mean([dataset.mask("tumour", row).mean() / 255 for row in dataset.rows
                             if row.label == label]) for label in dataset.classes}
    assert min(share["lung_aca"], share["lung_scc"]) > share["lung_n"]


def test_any_number_of_workers_gives_the_same_bytes(half, tmp_path, forked_workers):
    options = ["--group-regex", r"patient\d+", "--stain-normalisation", "reinhard"]
    assert make(half, tmp_path / "one", *options) == 0
    assert make(half, tmp_path / "two", *options, "--workers", 2) == 0
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    manifests = [json.loads(files.pop("dataset.json")) for files in (one, two)]
    assert one == two and manifests[0] | {"name": ""} == manifests[1] | {"name": ""}


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_white_constant_and_odd_sized_images_are_kept_and_counted(half, tmp_path, method):
    tree = tmp_path / "in"
    shutil.copytree(half, tree)
    odd = {"white": np.full((97, 131, 3), (255, 255, 254)),
           "black": np.full((33, 57, 3), (0, 0, 3)),
           "pink": np.full((20, 301, 3), (230, 150, 190)), "tiny": np.full((16, 17, 3), 128)}
    for name, image in odd.items():
        (tree / "lung_n" / f"{name}.png").write_bytes(encode_png(image.astype(np.uint8)))
    assert make(tree, tmp_path / "real", "--stain-normalisation", method, "--no-quality-control",
                "--region", "all") == 0
    dataset = open_dataset(tmp_path / "real")
    assert {f"lung_n/{name}.png" for name in odd} <= {row.source for row in dataset.rows}
    assert sum(dataset.manifest["stain"]["short"].values()) >= 2  # at least white and black


def test_fluorescence_by_channel_name_and_z_stack(tmp_path):
    sample.write_sample(tmp_path / "sample", num_patients=6, tiles_per_patient=3, image_size=96,
                         seed=5, fluorescence=True, z_planes=2)
    tree = tmp_path / "sample" / "images_fluorescence"
    assert make(tree, tmp_path / "x") == 1  # which channel?
    assert make(tree, tmp_path / "real", "--channel", "dapi", "--group-regex", r"patient\d+") == 0
    dataset = open_dataset(tmp_path / "real")
    assert dataset.manifest["modality"] == "fluorescence"
    assert dataset.um_per_px * dataset.image_size == pytest.approx(180, abs=1)
    assert np.median([np.median(dataset.image(row)) for row in dataset.rows]) < 100


def test_mpp_cuts_tiles_of_one_field_whatever_the_resolution(half, tmp_path):
    tree, options = half, ["--group-regex", r"patient\d+", "--mpp", 2]
    assert make(tree, tmp_path / "x", *options) == 1  # PNG does not say its resolution
    assert make(tree, tmp_path / "real", *options, "--source-mpp", 180 / 112) == 0
    dataset = open_dataset(tmp_path / "real")
    assert dataset.um_per_px * dataset.image_size == pytest.approx(64, abs=1)
    assert len(dataset.rows) > 18  # 64 of 180 um: up to four tiles an image
    assert make(tree, tmp_path / "x", *options, "--tile-size", 40) == 2


def test_whole_slides_become_tiles_of_one_field_and_stay_whole(tmp_path, capsys):
    """SVS, OME-TIFF and plain pyramids side by side: a slide is a group, glass is left out."""
    from test_slides import MPP, write_ome, write_pyramid, write_svs

    tree = tmp_path / "in"
    writers = {"svs": write_svs, "ome.tif": write_ome, "tif": write_pyramid}
    for number, label in enumerate(("lung_n", "lung_scc")):
        for slide, (suffix, write) in enumerate(writers.items()):
            picture = np.full((768, 1536, 3), (243, 241, 244), np.uint8)
            tile = paint.draw_tile(label, patient=3 * number + slide, index=0, seed=21,
                                   image_size=360)
            picture[40:400, 100:460] = tile.image
            picture[370:730, 1000:1360] = tile.image[::-1]
            path = tree / label / f"{slide}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, picture)
    assert make(tree, tmp_path / "real") == 0
    dataset = open_dataset(tmp_path / "real")
    assert dataset.um_per_px * dataset.image_size == pytest.approx(180, rel=0.02)
    assert dataset.manifest["modality"] == "he"
    by_slide = {row.source: {r.split for r in dataset.rows if r.source == row.source}
                for row in dataset.rows}
    assert len(by_slide) == 6 and all(len(splits) == 1 for splits in by_slide.values())
    assert 12 <= len(dataset.rows) <= 6 * 6  # of 2 x 4 squares a slide, 4 to 6 touch tissue
    assert max(dataset.image(row).mean() for row in dataset.rows) < 250  # glass: 255
    assert make(tree, tmp_path / "few", "--tiles-per-slide", 1, "--mpp", 8 * MPP) == 0
    few = open_dataset(tmp_path / "few")
    assert few.um_per_px * few.image_size == pytest.approx(128) and len(few.rows) == 6
    assert make(tree, tmp_path / "x", "--mpp", MPP / 4) == 1
    assert "too coarse" in capsys.readouterr().err


# ------------------------------------------------------------------ what an interruption leaves

def test_tiles_of_another_plan_are_never_mixed_in(half, tmp_path, monkeypatch):
    """Stopped, then run by a version that splits otherwise: nothing of the first plan stays."""
    from lungkit.data.writer import DatasetWriter

    options, add = ["--group-regex", r"patient\d+"], DatasetWriter.add

    def stopping(self, *args, **columns):
        add(self, *args, **columns)
        if len(self.records) == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(DatasetWriter, "add", stopping)
    with pytest.raises(KeyboardInterrupt):
        make(half, tmp_path / "real", *options)
    assert len(list((tmp_path / ".real.partial").rglob("0*.png"))) >= 10
    monkeypatch.setattr(DatasetWriter, "add", add)
    split = tumor_seg.split_groups
    monkeypatch.setattr(tumor_seg, "split_groups", lambda items, seed, fold: split(items, 99, fold))
    assert make(half, tmp_path / "real", *options) == 0
    dataset = open_dataset(tmp_path / "real")
    assert len(dataset.rows) == len({row.source for row in dataset.rows}) == 18


# ------------------------------------------------------------------ warnings with a name

def test_what_misleads_is_a_named_warning(sample_dir, tmp_path):
    """Half of one class is glass; copies under another label; unknown resolution; cut pictures."""
    tree = tmp_path / "in"
    shutil.copytree(sample_dir / "images", tree)
    for path in sorted((tree / "lung_n").iterdir())[:6]:
        path.write_bytes(encode_png(np.full((112, 112, 3), (244, 243, 246), np.uint8)))
    first, second = sorted((tree / "lung_scc").iterdir())[:2]
    flipped = decode_png(first.read_bytes())[:, ::-1]
    (tree / "lung_aca" / "flipped.png").write_bytes(encode_png(np.ascontiguousarray(flipped)))
    pair = np.hstack([decode_png(path.read_bytes()) for path in (first, second)])
    (tree / "lung_scc" / "wide.png").write_bytes(encode_png(pair))
    assert make(tree, tmp_path / "real") == 0
    warnings = dict(line.split(": ", 1) for line in open_dataset(tmp_path / "real").warnings)
    assert "50% of the tiles of 'lung_n' but 0%" in warnings["dropped unevenly"]
    assert "flipped.png" in warnings["copies with different labels"]
    assert warnings["parts not compared"] and warnings["resolution unknown"]
    assert make(tree, tmp_path / "known", "--source-mpp", 1.6) == 0
    assert "resolution unknown" not in " ".join(open_dataset(tmp_path / "known").warnings)
