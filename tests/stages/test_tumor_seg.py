"""The real stage: tiles, tissue, stain, splits by group, resuming, and bad input."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import tumor_seg
from arms import killed_while_writing
from lungkit.data import splits
from lungkit.data.dataset import open_dataset
from lungkit.data.png import decode_png, encode_png
from lungkit.formats import sources
from lungkit.formats.groups import read_groups
from lungkit.histology import background, density, originals, stain, tiles

pytestmark = pytest.mark.usefixtures("found_once")

LC25000 = Path(os.environ.get("LC25000") or "no-lc25000")  # its folder: the tests on it run


def tissue(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Stained-looking noise uint8 [H, W, 3]: violet blobs on pink on white; quick to draw."""
    import cv2

    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((height, width)).astype(np.float32)
    field = cv2.GaussianBlur(noise, (0, 0), 3) * 10
    density = (np.clip(field, 0, 2)[..., None] * (0.65, 0.70, 0.29)
               + np.clip(field + 1, 0, 1)[..., None] * (0.09, 0.45, 0.15))
    return np.clip(250 * np.exp(-density), 0, 255).astype(np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(image))
    return path


@pytest.fixture
def tree(tmp_path) -> Path:
    """Two classes of six small images each."""
    for number, label in enumerate(("a", "b")):
        for index in range(6):
            write(tmp_path / "in" / label / f"{index}.png", tissue(10 * number + index))
    return tmp_path / "in"


def run(tree: Path, *options: object, output: str = "real") -> int:
    return tumor_seg.main(["--input", str(tree), "--output", str(tree.parent / output),
                           "--image-size", "32", *map(str, options)])


def write_groups(tree: Path, rows: list[tuple]) -> Path:
    path = tree.parent / "groups.csv"
    path.write_text("\n".join(["file_name,label,group", *map(",".join, rows), ""]), "utf-8")
    return path


def refused(capsys, tree: Path, *options: object, status: int = 1, output: str = "real") -> str:
    """Run, expect a refusal in one line with nothing published, and return the line."""
    capsys.readouterr()
    assert run(tree, *options, output=output) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert not (tree.parent / output / "dataset.json").exists()
    assert not list(tree.parent.glob(".*.partial"))
    return lines[0]


def files_of(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*"))
            if p.is_file() and p.name != "progress.jsonl"}


def test_what_a_system_left_in_the_input_is_said(tree, capsys):
    for name in ("a/@eaDir/0.png/thumb.png", "b/@eaDir/1.png/thumb.png", "b/._0.png", ".DS_Store"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"x")
    assert run(tree, "--dry-run") == 0
    assert ("skipped 4 files and folders of the system, or hidden: 2 '@eaDir', 1 '.DS_Store', "
            "1 '._*'") in capsys.readouterr().err


# ------------------------------------------------------------------ the dataset

def test_sample_becomes_a_dataset(real_dataset, sample_dir):
    dataset = open_dataset(real_dataset)
    assert dataset.classes == ["lung_aca", "lung_n", "lung_scc"]
    assert dataset.counts == {"train": dict.fromkeys(dataset.classes, 8),
                              "val": dict.fromkeys(dataset.classes, 2),
                              "test": dict.fromkeys(dataset.classes, 2)}
    with open(sample_dir / "groups.csv", newline="") as file:
        group = {row["file_name"]: row["group"] for row in csv.DictReader(file)}
    for row in dataset.rows:
        assert row.group == group[row.source]
        assert 0.05 <= float(row.extra["tissue_fraction"]) <= 1 and row.seed == "0"
    assert len({row.stem for row in dataset.rows}) == len(dataset.rows)
    split_of = {(row.group, row.split) for row in dataset.rows}
    assert len(split_of) == len({group for group, _ in split_of})
    manifest = dataset.manifest
    assert manifest["parents"] == [] and manifest["dropped"] == []
    assert sum(manifest["groups"]["train"].values()) == len(
        {(r.label, r.group) for r in dataset.rows if r.split == "train"})


def test_tissue_masks_agree_with_the_truth(real_dataset, sample_dir):
    import cv2

    dataset = open_dataset(real_dataset)
    agree = []
    for row in dataset.rows:
        truth = decode_png((sample_dir / "truth/tissue" / row.source).read_bytes())
        truth = cv2.resize(truth, (64, 64), interpolation=cv2.INTER_AREA) > 127
        mask = dataset.mask("tissue", row)
        assert set(np.unique(mask)) <= {0, 255}
        agree.append(((mask > 0) == truth).mean())
    assert np.mean(agree) > 0.93 and min(agree) > 0.7


def test_oblong_images_are_cut_not_squashed(tree):
    wide = np.concatenate([tissue(90), tissue(91), tissue(92)[:, :20]], 1)  # 148 x 64: two squares
    write(tree / "a" / "wide.png", wide)
    assert run(tree, "--stain-normalisation", "none", "--image-size", 64) == 0
    dataset = open_dataset(tree.parent / "real")
    rows = [row for row in dataset.rows if row.source == "a/wide.png"]
    assert len(rows) == 2 and len({(row.group, row.split) for row in rows}) == 1
    for row, left in zip(sorted(rows, key=lambda r: r.stem), (10, 74)):
        np.testing.assert_array_equal(dataset.image(row), wide[:, left:left + 64])


def test_tile_size_is_in_source_pixels(tree):
    assert run(tree, "--tile-size", 30) == 0
    assert Counter(r.source for r in open_dataset(tree.parent / "real").rows)["a/0.png"] == 4
    assert originals.tile_boxes(64, 70, 30) == [(2, 5, 30), (2, 35, 30), (32, 5, 30), (32, 35, 30)]


def test_area_resampling_keeps_the_mean(tree):
    assert run(tree, "--stain-normalisation", "none", "--image-size", 16) == 0
    dataset = open_dataset(tree.parent / "real")
    for row in dataset.rows[:4]:
        source = decode_png((tree / row.source).read_bytes())
        expected = source.reshape(16, 4, 16, 4, 3).mean((1, 3))
        np.testing.assert_allclose(dataset.image(row), expected, atol=0.51)


def test_tiles_without_tissue_are_dropped_and_counted(tree, capsys):
    white = np.full((64, 128, 3), 245, np.uint8)
    white[:, 64:] = tissue(77)
    write(tree / "b" / "half.png", white)
    (tree / "b" / "notes.txt").write_text("stained on Monday")
    assert run(tree) == 0
    dataset = open_dataset(tree.parent / "real")
    assert len([row for row in dataset.rows if row.source == "b/half.png"]) == 1
    reasons = {entry["reason"]: entry for entry in dataset.manifest["dropped"]}
    assert reasons["blank"]["by_class"] == {"b": 1}
    assert reasons["blank"]["examples"] == ["b/half.png"]
    assert reasons["not an image file"]["examples"] == ["b/notes.txt"]
    assert "dropped 1: blank" in capsys.readouterr().err


def test_a_class_without_tissue_is_a_fault(tree, capsys):
    for path in (tree / "b").iterdir():
        write(path, np.full((64, 64, 3), 250, np.uint8))
    assert "every tile of 'b' was dropped" in refused(capsys, tree)


def test_names_sizes_suffixes_and_links_that_are_not_bad_input(tree, tmp_path):
    from PIL import Image

    Image.fromarray(tissue(50, 80, 64)).save(tree / "a" / "with space.JPG", "JPEG")
    Image.fromarray(tissue(51, 64, 96)).save(tree / "b" / "größe 日本.TIFF", "TIFF")
    write(tree / "a" / "patient 7" / "slide,2" / "x.PNG", tissue(52, 40, 40))
    elsewhere = write(tmp_path / "store" / "y.png", tissue(53)).parent
    (tree / "b" / "linked").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(elsewhere)
    (tree / ".hidden").mkdir()
    (tree / "b" / "._0.png").write_bytes(b"what macOS leaves")
    for path in tree.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert run(tree) == 0
    found = {row.source for row in open_dataset(tree.parent / "real").rows}
    assert found >= {"a/with space.JPG", "b/größe 日本.TIFF", "a/patient 7/slide,2/x.PNG",
                     "b/linked/y.png"}
    assert len(found) == 16


def test_input_may_be_one_folder_above_the_class_folders(tree):
    (tree.parent / "above").mkdir()
    tree.rename(tree.parent / "above" / "lung_image_sets")
    assert run(tree.parent / "above") == 0
    dataset = open_dataset(tree.parent / "real")
    assert dataset.classes == ["a", "b"] and dataset.rows[0].source.startswith("a/")


# ------------------------------------------------------------------ grey and fluorescence

def spots(seed: int) -> np.ndarray:
    """uint16 [64, 64]: bright discs on a dark, uneven, noisy background."""
    import cv2

    rng = np.random.default_rng(seed)
    image = np.tile(np.linspace(300, 900, 64, dtype=np.float32), (64, 1))
    for x, y in rng.integers(6, 58, (8, 2)):
        cv2.circle(image, (int(x), int(y)), 4, 2500.0, -1)
    return (image + rng.normal(0, 40, image.shape)).clip(0).astype(np.uint16)


def test_a_channel_of_16_bit_microscopy(tmp_path, capsys):
    import tifffile

    for label, start in (("a", 0), ("b", 20)):
        for index in range(4):
            path = tmp_path / "in" / label / f"{index}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            stack = np.stack([np.zeros((64, 64), np.uint16) + 7, spots(start + index)])
            tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "CYX"})
    line = refused(capsys, tmp_path / "in")
    assert "8 of 8 images" in line and "channels 0 to 1" in line and "and 3 more" in line
    assert "no channel 2" in refused(capsys, tmp_path / "in", "--channel", 2)
    assert run(tmp_path / "in", "--channel", 1, "--image-size", 64) == 0
    dataset = open_dataset(tmp_path / "real")
    assert dataset.manifest["stain"]["images"] == 0
    for row in dataset.rows:
        image, mask = dataset.image(row), dataset.mask("tissue", row)
        assert (image[..., 0] == image[..., 1]).all() and image.max() >= 250
        assert np.median(image) < 60  # the background is even and dark
        assert 0.05 < (mask > 0).mean() < 0.35  # discs, not the bright side of the gradient
        assert image[mask > 0].mean() > 150


def test_dark_cells_on_bright_grey_are_the_tissue(tree):
    for path in tree.rglob("*.png"):
        write(path, (255 - spots(int(path.stem) + 50) // 12).astype(np.uint8))
    assert run(tree, "--image-size", 64) == 0
    dataset = open_dataset(tree.parent / "real")
    for row in dataset.rows:
        image, mask = dataset.image(row), dataset.mask("tissue", row) > 0
        assert 0.05 < mask.mean() < 0.5 and image[mask].mean() < image[~mask].mean() - 60


def test_an_uneven_dark_background_is_evened():
    slope = np.tile(np.arange(64, dtype=np.uint16) * 40, (64, 1))
    image, bright = background.enhance_grey(spots(4) + slope)
    assert not bright
    quiet = [np.median(image[:, :12]), np.median(image[:, -12:])]
    assert abs(quiet[0] - quiet[1]) < 40


def test_an_even_grey_image_keeps_its_tone():
    for value, tone in ((255, 255), (250, 255), (0, 0), (7, 0)):
        even = np.full((64, 64), value, np.uint8)
        image, bright = background.enhance_grey(even)
        assert (image == tone).all() and bright == (tone == 255)


def test_grey_with_bright_background_keeps_its_order():
    dark_cells = 60000 - spots(1) * 10
    image, bright = background.enhance_grey(dark_cells)
    assert bright and image.dtype == np.uint8
    assert image[dark_cells > 50000].mean() > 150 > image[dark_cells < 40000].mean()
    flat, _ = background.enhance_grey(np.full((64, 64), 9, np.uint16))
    assert len(np.unique(flat)) == 1 and not background.tissue_mask(flat).any()


# ------------------------------------------------------------------ stain

H_AND_E = np.array([[0.65, 0.09], [0.70, 0.95], [0.29, 0.28]])
H_AND_E = H_AND_E / np.linalg.norm(H_AND_E, axis=0)


def stained(matrix, strength, seed=0):
    """A picture uint8 [128, 128, 3] of two stains with known densities, pure ones included."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, (128, 128))
    amount = np.stack([np.where(kind == 0, 0, 1), np.where(kind == 1, 0, 1)], -1)
    amount = amount * rng.uniform(0.2, 1, (128, 128, 2)) * np.array(strength)
    amount[kind == 3] = 0
    return np.clip(255 * np.exp(-amount @ matrix.T) + 0.5, 0, 255).astype(np.uint8), amount


def find(image):
    return stain.estimate_stains(density.optical_density(image).reshape(-1, 3))


def test_macenko_finds_known_stains():
    image, _ = stained(H_AND_E, (1.5, 0.9))
    found = find(image)
    for index in (0, 1):
        assert np.degrees(np.arccos(min(1, found.matrix[:, index] @ H_AND_E[:, index]))) < 3
    np.testing.assert_allclose(found.strength, (1.5, 0.9), rtol=0.1)


def test_normalising_makes_two_laboratories_alike():
    other = H_AND_E + [[0.1, 0.08], [-0.1, -0.1], [0.05, 0.1]]
    other = other / np.linalg.norm(other, axis=0)
    ours, _ = stained(H_AND_E, (1.5, 0.9))
    theirs, _ = stained(other, (1.1, 1.2))
    moved = stain.normalise_stains(theirs, find(theirs), find(ours))
    before = np.abs(theirs.astype(float) - ours).mean()
    assert np.abs(moved.astype(float) - ours).mean() < before / 3
    same = stain.normalise_stains(ours, find(ours), find(ours))
    assert np.abs(same.astype(float) - ours).mean() < 1.5


def test_stains_that_cannot_be_told_apart_are_not_estimated():
    one, _ = stained(H_AND_E[:, [0, 0]], (1, 1))
    for image in (one, np.full((64, 64, 3), 240, np.uint8)):
        assert find(image) is None


def test_background_becomes_white_whatever_its_tint():
    for tint in ((233, 202, 191), (222, 210, 245), (180, 210, 250)):
        image, amount = stained(H_AND_E, (1.5, 0.9))
        image[:40] = 255
        image = (image * (np.array(tint) / 255)).astype(np.uint8)
        white = background.balance_white(image, background.background_light(image))
        assert white[:38].min() > 240
    dense, _ = stained(H_AND_E, (1.5, 0.9))
    dense = np.minimum(dense, 150)
    assert (background.background_light(dense) == 255).all()


def test_normalising_is_for_the_pixels_written(tree):
    """A blue tint over one class is taken away, and is kept by --stain-normalisation none."""
    for path in (tree / "b").iterdir():
        write(path, (decode_png(path.read_bytes()) * (0.72, 0.82, 1.0)).astype(np.uint8))
    gap = {}
    for method in ("macenko", "none"):
        assert run(tree, "--stain-normalisation", method, output=method) == 0
        dataset = open_dataset(tree.parent / method)
        images, labels = dataset.load("train")
        colours = [images[labels == k].reshape(-1, 3).mean(0) for k in (0, 1)]
        gap[method] = np.abs(colours[0] - colours[1])[0]
        assert dataset.manifest["stain"]["images"] == (12 if method == "macenko" else 0)
    assert gap["macenko"] < 20 < 40 < gap["none"]


def test_pale_and_colourless_tissue_is_tissue():
    image = np.full((64, 64, 3), 255, np.uint8)
    image[10:30, 10:30] = 195           # grey, dense enough
    image[35:55, 35:55] = (255, 215, 250)  # pale, coloured
    mask = background.tissue_mask(image)
    assert mask[12:28, 12:28].all() and mask[37:53, 37:53].all() and mask.mean() < 0.25


def test_the_reference_comes_from_training_images_only(tree):
    """Other colours in val and test change no training image and no reference."""
    assert run(tree) == 0
    first = open_dataset(tree.parent / "real")
    stains = []
    for row in first.select("train"):
        pixels = decode_png((tree / row.source).read_bytes())
        stains.append(find(background.balance_white(pixels, background.background_light(pixels))))
    reference = stain.reference_stains([found for found in stains if found])
    recorded = first.manifest["stain"]["reference"]["matrix"]
    np.testing.assert_allclose(recorded, reference.matrix, atol=1e-4)
    for row in first.select("val") + first.select("test"):
        path = tree / row.source
        write(path, 255 - (255 - decode_png(path.read_bytes())) // 2)
    assert run(tree, output="second") == 0
    second = open_dataset(tree.parent / "second")
    assert {r.source: r.sha256 for r in first.select("train")} == {
        r.source: r.sha256 for r in second.select("train")}
    assert {r.source: r.sha256 for r in first.select("test")} != {
        r.source: r.sha256 for r in second.select("test")}


# ------------------------------------------------------------------ groups and splits

def test_groups_span_classes_and_never_splits():
    rng = np.random.default_rng(0)
    items = [(f"p{rng.integers(40)}", "abc"[rng.integers(3)]) for _ in range(900)]
    chosen = splits.split_groups(items, seed=5)
    table = Counter((label, chosen[group]) for group, label in items)
    for label in "abc":
        total = sum(table[label, split] for split in splits.SPLITS)
        for split, share in zip(splits.SPLITS, splits.SPLIT_SHARES):
            assert abs(table[label, split] / total - share) < 0.04
    assert chosen == splits.split_groups(items[::-1], seed=5)
    assert chosen != splits.split_groups(items, seed=6)


@pytest.mark.parametrize("sizes", [(10, 10, 10), (96, 2, 2), (1, 1, 1, 50), (5,) * 7])
def test_every_split_gets_a_group_however_few(sizes):
    items = [(f"{a}{i}", a) for a in "ab" for i, n in enumerate(sizes) for _ in range(n)]
    chosen = splits.split_groups(items, seed=0)
    assert len({(label, chosen[group]) for group, label in items}) == 6


def test_groups_csv_is_obeyed_and_identical_images_join_groups(tree, capsys):
    for index in range(6):
        write(tree / "a" / f"n{index}.png", tissue(200 + index))
    shutil.copy(tree / "a" / "0.png", tree / "a" / "again.png")
    names = sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*.png"))
    pairs = {f"a/{i}.png": f"pair{i // 2}" for i in range(6)}
    groups = write_groups(tree, [(name, name[0], pairs.get(name, name)) for name in names])
    assert run(tree, "--groups", groups) == 0
    dataset = open_dataset(tree.parent / "real")
    group = {row.source: row.group for row in dataset.rows}
    assert group["a/0.png"] == group["a/1.png"] == group["a/again.png"] != group["a/2.png"]
    assert any(line.startswith("groups joined: 1 groups") for line in dataset.warnings)
    assert not any("No group ids" in line for line in dataset.warnings)


def test_warnings_name_what_could_mislead(tree):
    assert run(tree) == 0
    warnings = " ".join(open_dataset(tree.parent / "real").warnings)
    assert "No group ids were given" in warnings and "'a' has 6 groups only" in warnings


# ------------------------------------------------------------------ running again

def test_the_same_command_again_is_complete_and_other_options_are_refused(tree, capsys):
    assert run(tree) == 0
    before = files_of(tree.parent / "real")
    start = time.perf_counter()
    assert run(tree) == 0
    assert time.perf_counter() - start < 1
    assert "already complete" in capsys.readouterr().out
    assert run(tree, "--seed", 1) == 2
    assert "seed: 0 there, 1 now" in capsys.readouterr().err
    write(tree / "a" / "0.png", tissue(99))
    assert run(tree) == 2
    assert "input:" in capsys.readouterr().err
    assert files_of(tree.parent / "real") == before
    assert run(tree, "--overwrite") == 0
    assert files_of(tree.parent / "real") != before


def test_an_edited_image_of_the_same_size_is_noticed(tree):
    from PIL import Image

    path = tree / "a" / "big.tif"
    for change in (0, 1):  # in its middle: uncompressed, 48 kB in either case
        pixels = tissue(5, 128, 128)
        pixels[60:68] += np.uint8(change)
        Image.fromarray(pixels).save(path)
        assert run(tree) == (2 if change else 0)


def test_dry_run_checks_and_writes_nothing(tree, capsys):
    assert run(tree, "--dry-run") == 0
    assert "would write 12 tiles of 32 px (train 8, val 2, test 2)" in capsys.readouterr().out
    assert [p.name for p in tree.parent.iterdir()] == ["in"]
    (tree / "a" / "0.png").write_bytes(b"")
    assert run(tree, "--dry-run") == 1


def test_killed_and_rerun_gives_the_same_bytes(tree, monkeypatch):
    """kill -9 in the middle of the writing, then the same command."""
    from lungkit.data.writer import DatasetWriter

    assert run(tree, output="whole") == 0
    assert killed_while_writing(lambda: run(tree, output="cut"), 5) == -signal.SIGKILL
    assert not (tree.parent / "cut").exists() and (tree.parent / ".cut.partial").exists()
    written, add = [], DatasetWriter.add
    monkeypatch.setattr(DatasetWriter, "add", lambda *a, **k: (written.append(a), add(*a, **k)))
    assert run(tree, output="cut") == 0
    assert len(written) == 7
    whole, cut = files_of(tree.parent / "whole"), files_of(tree.parent / "cut")
    manifests = [json.loads(files.pop("dataset.json")) for files in (whole, cut)]
    assert whole == cut
    assert manifests[0] | {"name": ""} == manifests[1] | {"name": ""}


def test_a_signal_stops_between_items_and_the_rest_follows(tree, monkeypatch):
    from lungkit.data.writer import DatasetWriter

    original = DatasetWriter.add

    def add(self, *args, **columns):
        original(self, *args, **columns)
        if len(self.records) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(DatasetWriter, "add", add)
    assert run(tree) == 75
    monkeypatch.setattr(DatasetWriter, "add", original)
    assert run(tree) == 0
    assert len(open_dataset(tree.parent / "real").rows) == 12


# ------------------------------------------------------------------ bad input

def test_every_unusable_image_is_named_at_once(tree, capsys):
    (tree / "a" / "0.png").write_bytes(b"")
    (tree / "a" / "1.png").write_bytes((tree / "a" / "1.png").read_bytes()[:-200])
    (tree / "b" / "text.jpg").write_text("hello")
    line = refused(capsys, tree)
    assert "3 of 13 images" in line and "a/0.png is empty" in line
    assert "a/1.png is truncated" in line and "b/text.jpg is not a PNG, JPEG or TIFF" in line


def test_absurd_dimensions_are_refused_before_decoding(tree, capsys):
    from test_images import png_header

    (tree / "a" / "bomb.png").write_bytes(png_header(200_000, 200_000))
    assert "a/bomb.png claims 200000 x 200000 pixels" in refused(capsys, tree)


def test_class_folders(tree, capsys):
    shutil.rmtree(tree / "b")
    assert "one class only ('a')" in refused(capsys, tree)
    (tree / "empty").mkdir()
    assert "'empty' holds no PNG, JPEG, TIFF or slide" in refused(capsys, tree)
    shutil.rmtree(tree / "a")
    shutil.rmtree(tree / "empty")
    assert "no class folders" in refused(capsys, tree)
    for split in ("Train", "test"):
        write(tree / split / "x.png", tissue(0))
    assert "'Train', 'test'" in refused(capsys, tree)
    assert "is not a directory" in refused(capsys, tree / "nowhere")


def test_too_few_groups(tree, capsys):
    for index in (2, 3, 4, 5):
        (tree / "b" / f"{index}.png").unlink()
    line = refused(capsys, tree)
    assert "at least 3 groups" in line and "'b' has 2" in line


def test_line_breaks_in_names_stay_on_one_line(tree, capsys):
    (tree / "a" / "0.png").rename(tree / "a" / "two\nlines.png")
    assert r"'a/two\nlines.png'" in refused(capsys, tree)


def test_unreadable_directory(tree, capsys, monkeypatch):
    write(tree / "a" / "locked" / "x.png", tissue(1))
    real = os.scandir

    def scandir(path="."):  # root may read everything, so chmod would prove nothing
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    line = refused(capsys, tree)
    assert "locked' cannot be read (Permission denied)" in line


def test_output_and_input_must_not_hold_each_other(tree, capsys):
    for output in (tree / "out", tree, tree.parent, tree / ".." / "in" / "a" / "b"):
        assert tumor_seg.main(["--input", str(tree), "--output", str(output)]) == 2
        assert "lie one inside the other" in capsys.readouterr().err
    (tree.parent / "link").symlink_to(tree)
    assert tumor_seg.main(["--input", str(tree), "--output", str(tree.parent / "link" / "x")]) == 2
    assert len(files_of(tree)) == 12


def test_groups_csv_faults(tree, capsys):
    names = [f"{label}/{i}.png" for label in "ab" for i in range(6)]
    rows = [(name, name[0], name) for name in names]
    cases = {
        "1 images not listed: 'b/5.png'": rows[:-1],
        "6 files listed that are not among the images: 'c/0.png', 'c/1.png', 'c/2.png', 'c/3.png', "
        "'c/4.png' and 1 more": rows + [
            (f"c/{i}.png", "a", "x") for i in range(6)],
        "1 labels that are not the image's class folder: 'a/0.png'": [
            ("a/0.png", "b", "g")] + rows[1:],
        "groups.csv (1 ''): 'a/0.png'": [("a/0.png", "a", " ")] + rows[1:],
        "1 files listed in two groups: 'a/0.png'": rows + [("a/0.png", "a", "other")],
    }
    for message, table in cases.items():
        assert message in refused(capsys, tree, "--groups", write_groups(tree, table))
    write_groups(tree, []).write_text("name;group\n")
    line = refused(capsys, tree, "--groups", tree.parent / "groups.csv")
    assert "lacks the column file_name, label: it has name, group" in line
    refused(capsys, tree, "--groups", tree.parent / "none.csv")


def test_groups_csv_spellings_that_are_not_faults(tree):
    (tree / "a" / "0.png").rename(tree / "a" / "Gro\u0308ße.png")  # decomposed on disk
    names = ["a/Gr\u00f6ße.png"] + [f"{label}/{i}.png" for label in "ab" for i in range(6)][1:]
    found = sources.find_sources(tree)[0]
    path = tree.parent / "groups.csv"
    path.write_text("\ufefffile_name,label,group\r\n" + "".join(
        f".\\{name},{name[0]},{name}\r\n".replace("/", "\\") if i else f"{name},{name[0]},first\r\n"
        for i, name in enumerate(names)), "utf-8")
    groups = read_groups(path, found)
    assert len(groups) == 12 and groups["a/Gro\u0308ße.png"] == "first"


@pytest.mark.parametrize("options", [
    ["--min-tissue", "2"], ["--channel", "-1"], ["--tile-size", "0"], ["--no-such-option"],
    ["--stain", "none"]])
def test_bad_options(tree, options):
    assert run(tree, *options) == 2


@pytest.mark.skipif(not LC25000.is_dir(), reason="needs LC25000: set LC25000 to its folder")
def test_lc25000_loses_no_image_for_lack_of_tissue():
    for label in ("lung_aca", "lung_n", "lung_scc"):
        paths = sorted((LC25000 / "lung_image_sets" / label).iterdir())[::50]
        for path in paths:
            source = sources.Source(path, path.name, label)
            found = tiles.examine(source, tiles.Recipe(originals.Cut(64)))
            assert len(found.kept) == 1
            if label == "lung_n":
                assert found.kept[0].measured.tissue < 0.98  # its air is not taken for tissue
