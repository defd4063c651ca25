"""Simulated tissue: repeatable draws, exact truth, classes that differ, whole samples."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pandas as pd
import pytest

from lungkit import phantom
from lungkit.phantom import CLASSES, SAMPLE_STREAM, draw_tile, main, write_sample

RUIFROK = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])


def haematoxylin(image):
    """Deconvolve with the published vectors, not with the patient's own: float [H, W]."""
    density = -np.log((image.astype(float) + 1) / 256)
    return (density.reshape(-1, 3) @ np.linalg.inv(RUIFROK))[:, 0].reshape(image.shape[:2])


def some_tiles(label, count=8, **options):
    return [draw_tile(label, patient=patient, index=0, **options) for patient in range(count)]


@pytest.mark.parametrize("label", CLASSES)
def test_a_tile_depends_on_its_numbers_alone(label):
    first = draw_tile(label, patient=3, index=5, seed=1, image_size=64)
    draw_tile(label, patient=4, index=0)  # nothing drawn in between matters
    again = draw_tile(label, patient=3, index=5, seed=1, image_size=64)
    for name in ("image", "nuclei", "centroids", "tissue"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    for other in (dict(patient=4, index=5, seed=1), dict(patient=3, index=6, seed=1),
                  dict(patient=3, index=5, seed=2)):
        assert (draw_tile(label, image_size=64, **other).image != first.image).any(), other


@pytest.mark.parametrize("label", CLASSES)
@pytest.mark.parametrize("image_size", [64, 224, 400])
def test_truth_is_what_is_visible(label, image_size):
    for tile in some_tiles(label, 3, image_size=image_size):
        count = len(tile.centroids)
        assert count > 5
        assert tile.image.shape == (image_size, image_size, 3) and tile.image.dtype == np.uint8
        assert tile.nuclei.shape == tile.tissue.shape == (image_size, image_size)
        assert tile.tissue.dtype == bool and tile.centroids.dtype == np.float32
        np.testing.assert_array_equal(np.unique(tile.nuclei), np.arange(count + 1))
        for number, (x, y) in enumerate(tile.centroids, 1):
            ys, xs = np.nonzero(tile.nuclei == number)
            np.testing.assert_allclose([x, y], [xs.mean(), ys.mean()], atol=1e-3)
            assert tile.nuclei[round(float(y)), round(float(x))] == number
        assert tile.tissue[tile.nuclei > 0].all()


@pytest.mark.parametrize("label", CLASSES)
def test_labelled_pixels_are_dark_with_haematoxylin(label):
    contrast = []
    for tile in some_tiles(label):
        stain, inside = haematoxylin(tile.image), tile.nuclei > 0
        around = cv2.dilate(inside.astype(np.uint8), np.ones((7, 7))) > 0
        contrast.append(stain[inside].mean() - stain[around & ~inside].mean())
        shifted = np.roll(inside, (9, 9), (0, 1))  # the masks lie on the nuclei, not near them
        assert stain[inside].mean() > stain[shifted].mean() + 0.08, tile.patient
    assert min(contrast) > 0.1


def test_no_dark_nucleus_is_missing_from_the_truth():
    for label in CLASSES:
        for tile in some_tiles(label, 4):
            stain = cv2.GaussianBlur(haematoxylin(tile.image), (0, 0), 2)
            inside = tile.nuclei > 0
            far = cv2.dilate(inside.astype(np.uint8), np.ones((7, 7))) == 0
            if far.any():
                darkest = np.percentile(stain[far], 99)
                assert darkest < np.percentile(stain[inside], 75), (label, tile.patient)


def test_tissue_is_not_bare_glass():
    for label in CLASSES:
        for tile in some_tiles(label, 4):
            if 0.05 < tile.tissue.mean() < 0.95:
                grey = tile.image.mean(-1)
                assert np.median(grey[~tile.tissue]) > np.median(grey[tile.tissue]) + 15


def test_classes_have_their_morphology():
    tiles = {label: some_tiles(label, 12) for label in CLASSES}
    air, area, covered = {}, {}, {}
    for label, drawn in tiles.items():
        assert 30 < np.mean([len(tile.centroids) for tile in drawn]) < 600
        air[label] = np.mean([1 - tile.tissue.mean() for tile in drawn])
        covered[label] = np.mean([(tile.nuclei > 0).mean() for tile in drawn])
        areas_px = [np.bincount(tile.nuclei.ravel())[1:] for tile in drawn]
        area[label] = np.median(np.concatenate(areas_px))
    assert air["lung_n"] > 1.2 * max(air["lung_aca"], air["lung_scc"])
    assert min(area["lung_aca"], area["lung_scc"]) > 1.8 * area["lung_n"]
    assert min(covered["lung_aca"], covered["lung_scc"]) > 1.3 * covered["lung_n"]


def test_stain_belongs_to_the_patient():
    """Mean colour varies more between patients than a patient's tiles of one class do."""
    def colour(patient, index):
        tile = draw_tile("lung_scc", patient=patient, index=index, image_size=64)
        density = -np.log((tile.image.astype(float) + 1) / 256)[tile.tissue].mean(0)
        return density / np.linalg.norm(density)

    drawn = np.array([[colour(patient, index) for index in range(3)] for patient in range(10)])
    between, within = drawn.mean(1).var(0).sum(), drawn.var(1).mean(0).sum()
    assert between > 2 * within
    assert len({tuple(np.round(row, 4)) for row in drawn.mean(1)}) == 10


@pytest.mark.parametrize("label", CLASSES)
def test_every_size_shows_the_same_field_of_view(label):
    large, middle, small = (draw_tile(label, patient=2, index=1, image_size=size)
                            for size in (512, 224, 64))
    assert abs(len(large.centroids) - len(middle.centroids)) <= 0.03 * len(large.centroids) + 2
    for tile, size in ((middle, 224), (small, 64)):
        shrunk = cv2.resize(large.image, (size, size), interpolation=cv2.INTER_AREA)
        same = np.corrcoef(shrunk.ravel(), tile.image.ravel())[0, 1]
        assert same > 0.93, (size, same)
    there, here = (large.centroids[:, None] + 0.5) / 512, (middle.centroids + 0.5) / 224
    nearest = np.linalg.norm(there - here, axis=2).min(1)
    assert np.percentile(nearest, 95) < 1 / 224


SMALL = dict(num_patients=4, tiles_per_patient=3, image_size=48, seed=7)
ARGUMENTS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def test_sample_layout(tmp_path):
    write_sample(tmp_path / "s", **SMALL)
    groups = pd.read_csv(tmp_path / "s/groups.csv")
    assert list(groups.columns) == ["file_name", "label", "group"] and len(groups) == 12
    assert groups.groupby("label").size().to_dict() == dict(lung_aca=4, lung_n=4, lung_scc=4)
    assert (groups.groupby("group")["label"].nunique() == 2).all()  # patients span classes
    centroids = pd.read_csv(tmp_path / "s/truth/centroids.csv")
    for row in groups.itertuples():
        assert row.file_name.startswith(row.label + "/")
        paths = [tmp_path / "s" / part / row.file_name
                 for part in ("images", "truth/nuclei", "truth/tissue")]
        image, nuclei, tissue = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths)
        patient, index = int(row.group[-3:]), int(row.file_name[-8:-4])
        tile = draw_tile(row.label, patient=patient, index=index, seed=SAMPLE_STREAM + 7, image_size=48)
        np.testing.assert_array_equal(image[..., ::-1], tile.image)
        np.testing.assert_array_equal(nuclei, tile.nuclei)
        assert nuclei.dtype == np.uint16 and set(np.unique(tissue)) <= {0, 255}
        listed = centroids[centroids.file_name == row.file_name][["centroid_x_px", "centroid_y_px"]]
        np.testing.assert_allclose(listed, tile.centroids, atol=1e-3)
    manifest = json.loads((tmp_path / "s/sample.json").read_text())
    assert set(manifest["files"]) == set(contents(tmp_path / "s")) - {"sample.json"}
    assert manifest["parameters"] == SMALL


def test_default_sample_is_balanced():
    plan = phantom.plan_sample(20, 15)
    assert len(set(plan)) == len(plan)
    assert [sum(label == row[0] for row in plan) for label in CLASSES] == [100, 100, 100]


def test_same_command_finds_it_complete_and_other_options_are_refused(tmp_path, capsys):
    command = ["--output", str(tmp_path / "s"), *ARGUMENTS]
    assert main(command) == 0
    made = contents(tmp_path / "s")
    capsys.readouterr()
    assert main(command) == 0
    assert "already complete" in "".join(capsys.readouterr())
    assert main([*command, "--seed=8"]) == 2
    assert "seed: 7 there, 8 now" in capsys.readouterr().err
    assert main(["--output", str(tmp_path / "t"), "--num-pat", "4"]) == 2  # no guessed options
    assert contents(tmp_path / "s") == made and not (tmp_path / "t").exists()


def test_killed_and_run_again_gives_the_same_bytes(tmp_path):
    write_sample(tmp_path / "whole", **SMALL)
    target = tmp_path / "s"
    command = [sys.executable, "-m", "lungkit.phantom", "--output", str(target), *ARGUMENTS]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while child.poll() is None and len(list(tmp_path.glob(".s.partial/images/*/*.png"))) < 2:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    (tmp_path / ".s.partial/images/lung_aca/.patient000_0000.1.tmp.png").write_bytes(b"torn")
    assert not target.exists(), "a killed run must publish nothing"
    assert main(command[3:]) == 0
    assert contents(target) == contents(tmp_path / "whole")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".s")] == []


def test_help_does_not_wait_for_heavy_imports():
    code = ("import sys, lungkit.phantom; "
            "sys.exit(any(name in sys.modules for name in ('cv2', 'scipy', 'torch', 'pandas')))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
