"""Simulated tissue: repeatable draws, exact truth, classes that differ, whole samples."""

import functools
import hashlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import find_objects

from arms import fork, signal_when
from lungkit.formats import tiff
from lungkit.formats.images import pixel_size_um
from lungkit.phantom import augment, fluorescence, morphology, outlines, paint, sample, tissue
from lungkit.phantom.paint import CLASSES, draw_tile
from lungkit.phantom.sample import SAMPLE_STREAM, main, write_sample

RUIFROK = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])


def haematoxylin(image):
    """Deconvolve with the published vectors, not with the patient's own: float [H, W]."""
    density = -np.log((image.astype(float) + 1) / 256)
    return (density.reshape(-1, 3) @ np.linalg.inv(RUIFROK))[:, 0].reshape(image.shape[:2])


ROOT = Path(__file__).resolve().parents[3]
# hashes of what these tiles showed before their parameters were named (commit f994541)
GOLDEN = {"lung_aca": ["277daa3f4137", "dc159dfa4d04", "932d76947ed2"],
          "lung_n": ["506624645545", "d2ab01eccd5c", "38a79feb4945"],
          "lung_scc": ["b31028cafe51", "1714a20dc1ae", "c2f75f73d606"]}


@pytest.mark.parametrize("label", CLASSES)
def test_draws_are_those_of_earlier_versions(label):
    """Truth, not pixels: samples, base models and detectors tuned on them stay what they were."""
    for patient in range(3):
        tile = draw_tile(label, patient=patient, index=patient, seed=SAMPLE_STREAM, image_size=96)
        truth = (np.int32(tile.nuclei), np.round(tile.centroids * 8).astype(np.int32),
                 tile.tissue, tile.tumour)
        found = hashlib.sha256(b"".join(values.tobytes() for values in truth)).hexdigest()[:12]
        assert found == GOLDEN[label][patient], patient


@functools.cache
def one_tile(label, patient, image_size):
    return draw_tile(label, patient=patient, index=0, image_size=image_size)


def some_tiles(label, count=8, image_size=224):
    return [one_tile(label, patient, image_size) for patient in range(count)]


@pytest.fixture
def coarse(monkeypatch):
    """Tiles are drawn at their own size, five times as fast: for rules on more than pixels."""
    monkeypatch.setattr(paint, "CANVAS_PX", 48)


@pytest.mark.parametrize("label", CLASSES)
def test_a_tile_depends_on_its_numbers_alone(label, coarse):
    first = draw_tile(label, patient=3, index=5, seed=1, image_size=64)
    draw_tile(label, patient=4, index=0, image_size=64)  # nothing drawn in between matters
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
        for number, ((x, y), box) in enumerate(zip(tile.centroids, find_objects(tile.nuclei)), 1):
            ys, xs = np.nonzero(tile.nuclei[box] == number)
            middle = [box[1].start + xs.mean(), box[0].start + ys.mean()]
            np.testing.assert_allclose([x, y], middle, atol=1e-3)
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


def test_stain_belongs_to_the_patient(coarse):
    """Mean colour varies more between patients than a patient's tiles of one class do."""
    def colour(patient, index):
        tile = draw_tile("lung_scc", patient=patient, index=index, image_size=64)
        density = -np.log((tile.image.astype(float) + 1) / 256)[tile.tissue].mean(0)
        return density / np.linalg.norm(density)

    drawn = np.array([[colour(patient, index) for index in range(2)] for patient in range(8)])
    between, within = drawn.mean(1).var(0).sum(), drawn.var(1).mean(0).sum()
    assert between > 2 * within
    assert len({tuple(np.round(row, 4)) for row in drawn.mean(1)}) == 8


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


SMALL = dict(num_patients=2, tiles_per_patient=3, image_size=48, seed=7)
ARGUMENTS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def test_sample_layout(tmp_path, coarse):
    write_sample(tmp_path / "s", **SMALL)
    groups = pd.read_csv(tmp_path / "s/groups.csv")
    assert list(groups.columns) == ["file_name", "label", "group"] and len(groups) == 6
    assert groups.groupby("label").size().to_dict() == dict(lung_aca=2, lung_n=2, lung_scc=2)
    assert (groups.groupby("group")["label"].nunique() == 2).all()  # patients span classes
    centroids = pd.read_csv(tmp_path / "s/truth/centroids.csv")
    for row in groups.itertuples():
        assert row.file_name.startswith(row.label + "/")
        paths = [tmp_path / "s" / part / row.file_name
                 for part in ("images", "truth/nuclei", "truth/tissue")]
        image, nuclei, tissue = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths)
        patient, index = int(row.group[-3:]), int(row.file_name[-8:-4])
        tile = draw_tile(row.label, patient=patient, index=index, seed=SAMPLE_STREAM + 7,
                         image_size=48)
        np.testing.assert_array_equal(image[..., ::-1], tile.image)
        np.testing.assert_array_equal(nuclei, tile.nuclei)
        assert nuclei.dtype == np.uint16 and set(np.unique(tissue)) <= {0, 255}
        listed = centroids[centroids.file_name == row.file_name][["centroid_x_px", "centroid_y_px"]]
        np.testing.assert_allclose(listed, tile.centroids, atol=1e-3)
    manifest = json.loads((tmp_path / "s/sample.json").read_text())
    assert set(manifest["files"]) == set(contents(tmp_path / "s")) - {"sample.json"}
    assert manifest["parameters"] == SMALL


def test_default_sample_is_balanced():
    plan = sample.plan_sample(20, 15)
    assert len(set(plan)) == len(plan)
    assert [sum(label == row[0] for row in plan) for label in CLASSES] == [100, 100, 100]


def test_same_command_finds_it_complete_and_other_options_are_refused(tmp_path, capsys, coarse):
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


def test_killed_and_run_again_gives_the_same_bytes(tmp_path, coarse):
    write_sample(tmp_path / "whole", **SMALL)
    target = tmp_path / "s"
    command = ["--output", str(target), *ARGUMENTS]
    assert signal_when(fork(lambda: main(command)), lambda: len(list(
        tmp_path.glob(".s.partial/images/*/*.png"))) >= 2) == -signal.SIGKILL
    (tmp_path / ".s.partial/images/lung_aca/.patient000_0000.1.tmp.png").write_bytes(b"torn")
    assert not target.exists(), "a killed run must publish nothing"
    assert main(command) == 0
    assert contents(target) == contents(tmp_path / "whole")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".s")] == []


def test_help_does_not_wait_for_heavy_imports():
    code = ("import sys, lungkit.phantom; "
            "sys.exit(any(name in sys.modules for name in ('cv2', 'scipy', 'torch', 'pandas')))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- parameters -----------------------------------------------------------------------------------

def test_the_documented_parameters_are_those_drawn_from():
    text = (ROOT / "docs/simulated_tissue.md").read_text(encoding="utf-8")
    table = morphology.markdown_table()
    assert table in text, ("make docs/simulated_tissue.md again: python -c 'from lungkit.phantom "
                           "import morphology; print(morphology.markdown_table())'")
    for key, source in morphology.SOURCES.items():
        assert f"| {key} | {source} |" in text, key


def test_every_parameter_is_used_and_has_a_source():
    code = "".join((ROOT / "lungkit/phantom" / name).read_text()
                   for name in ("tissue.py", "paint.py"))
    for group, name, parameter in morphology.named_parameters():
        assert parameter.source in morphology.SOURCES, name
        assert group == "patient" or f".{name.split(':')[0]}" in code, (group, name)
    assert set(vars(morphology.PATIENT)) == set(tissue.Biology.__annotations__)


def test_parameters_draw_what_they_say():
    rng = np.random.default_rng(0)
    for _, name, parameter in morphology.named_parameters():
        first, second = parameter.numbers[0], parameter.numbers[-1]
        drawn = np.array([parameter.draw(rng) for _ in range(400)])
        if parameter.kind == "fixed":
            assert (drawn == first).all() and parameter.value == first, name
        elif parameter.kind == "uniform":
            assert first <= drawn.min() < drawn.max() <= second, name
            assert abs(drawn.mean() - (first + second) / 2) < 0.1 * (second - first), name
        else:
            values, centre, spread = drawn, first, second
            if parameter.kind == "log-normal":
                values, centre = np.log(drawn), np.log(first)
            elif parameter.kind == "beta":
                centre = first / (first + second)
                spread = np.sqrt(centre * (1 - centre) / (first + second + 1))
            assert abs(values.mean() - centre) < 0.25 * spread, name
            assert 0.8 < values.std() / spread < 1.2, name
    with pytest.raises(TypeError):
        _ = morphology.PATIENT.pleomorphism.value


# --- independent draws ----------------------------------------------------------------------------

def test_two_seeds_share_no_tile(coarse):
    plan = sample.plan_sample(2, 3)
    drawn = [draw_tile(label, patient=patient, index=index, seed=SAMPLE_STREAM + seed,
                       image_size=24) for seed in (0, 1) for label, patient, index in plan]
    assert len({tile.image.tobytes() for tile in drawn}) == 2 * len(plan)
    assert len({tile.centroids.tobytes() for tile in drawn}) == 2 * len(plan)


def test_patients_are_independent_of_one_another_and_of_the_seed():
    def patients(seed):
        return np.array([list(vars(tissue.draw_biology(
            np.random.default_rng([SAMPLE_STREAM + seed, patient]))).values())
            for patient in range(400)])

    first, other = patients(0), patients(1)
    for column in range(first.shape[1]):
        values = first[:, column]
        for related in (values[1:], other[:-1, column], first[:-1, (column + 1) % first.shape[1]]):
            assert abs(np.corrcoef(values[:-1], related)[0, 1]) < 0.2, column  # 4 deviations of 0


def test_tiles_of_a_thousand_pixels_and_more():
    tile = draw_tile("lung_aca", patient=1, index=1, image_size=1040)
    small = draw_tile("lung_aca", patient=1, index=1, image_size=224)
    assert tile.image.shape == (1040, 1040, 3)
    assert abs(len(tile.centroids) - len(small.centroids)) <= 0.05 * len(small.centroids) + 2
    np.testing.assert_array_equal(np.unique(tile.nuclei), np.arange(len(tile.centroids) + 1))


# --- fluorescence ---------------------------------------------------------------------------------

def in_fluorescence(label, patient):
    """The tile and its channels float [C, H, W], above the camera's offset."""
    tile, painted = paint.draw_painted(label, patient, 1, 0, 224)
    planes = paint.photograph(painted, label, patient, 1, 0, 224, 1)
    assert planes.dtype == np.uint16 and planes.shape[1:] == (4, 224, 224)
    return tile, planes.astype(float) - fluorescence.OFFSET_ADU


@pytest.mark.parametrize("label", CLASSES)
def test_fluorescence_shows_the_same_tissue(label):
    for patient in (0, 1, 2):
        tile, planes = in_fluorescence(label, patient)
        dapi, keratin, _, autofluorescence = planes[0]
        inside = cv2.erode((tile.nuclei > 0).astype(np.uint8), np.ones((3, 3))) > 0
        outside = cv2.dilate((tile.nuclei > 0).astype(np.uint8), np.ones((9, 9))) == 0
        assert np.median(dapi[inside]) > 4 * np.median(dapi[outside])
        per_nucleus = [np.median(dapi[tile.nuclei == k]) for k in np.unique(tile.nuclei)[1:]]
        assert np.mean(np.array(per_nucleus) > 2 * np.median(dapi[outside])) > 0.9
        stroma = tile.tissue & ~tile.tumour & outside
        if label != "lung_n":
            plasm = tile.tumour & outside
            assert np.median(keratin[plasm]) > 3 * np.median(keratin[~tile.tissue & outside])
            if plasm.sum() > 200 and stroma.sum() > 2000:
                assert np.median(keratin[plasm]) > 2 * np.median(keratin[stroma])
        if stroma.sum() > 2000 < (~tile.tissue).sum():
            fibres, air = (np.median(autofluorescence[at]) for at in (stroma, ~tile.tissue))
            assert fibres > 2 * air


def test_lymphocytes_wear_cd45():
    painted = next(painted for patient in range(9)
                   if (painted := paint.draw_painted("lung_scc", patient, 1, 0, 224)[1])
                   and (painted.cells["owner"] == tissue.LYMPHOCYTE).sum() > 8)
    cd45 = fluorescence.dyes(painted)[fluorescence.CHANNELS.index("CD45")]
    owner = np.r_[0, painted.cells["owner"]][painted.labels]
    ring = {kind: (cv2.dilate((owner == kind).astype(np.uint8), np.ones((3, 3))) > 0)
            & (painted.labels == 0) for kind in (tissue.LYMPHOCYTE, tissue.TUMOUR)}
    apart = ring[tissue.TUMOUR] & ~ring[tissue.LYMPHOCYTE]
    assert cd45[ring[tissue.LYMPHOCYTE]].mean() > 10 * cd45[apart].mean()


def test_the_camera_counts_photons():
    for electrons in (20.0, 400.0, 5000.0):
        seen = fluorescence.camera(np.full((200, 200), electrons), np.random.default_rng(0))
        seen = (seen - fluorescence.OFFSET_ADU) * fluorescence.ELECTRONS_PER_ADU
        variance = electrons + fluorescence.READ_NOISE_E ** 2
        variance += fluorescence.ELECTRONS_PER_ADU ** 2 / 12  # rounding to grey levels
        assert abs(seen.mean() - electrons) < 5 * np.sqrt(variance / seen.size)
        assert 0.95 < seen.var() / variance < 1.05
    assert fluorescence.camera(np.full((2, 2), 1e9), np.random.default_rng(0)).max() == 65535


def test_a_point_is_blurred_as_the_optics_say():
    scale, size = 8.0, 257
    dye = np.zeros((4, size, size), np.float32)
    dye[:, size // 2, size // 2] = 1
    layers = np.zeros((fluorescence.NUM_LAYERS, size, size), np.float32)
    layers[0] = 1  # all DNA at 0.5 um
    planes = fluorescence.focus(dye, layers, 3, scale)
    np.testing.assert_allclose(planes.sum((2, 3)), 1, atol=1e-3)  # no light is lost
    offset = np.arange(size) - size // 2
    for plane, height in zip(planes, fluorescence.plane_heights_um(3)):
        width = np.sqrt((plane[0].sum(0) * offset ** 2).sum()) / scale
        assert abs(width - fluorescence.blur_sigma_um(461, height - 0.5)) < 0.02
    assert abs(fluorescence.blur_sigma_um(500, 0) - 0.225 * 0.5 / 0.75) < 1e-9
    # 2 um off focus a cone of asin(0.75 / 1.5) = 30 degrees is a disc of 1.155 um radius
    assert abs(fluorescence.blur_sigma_um(500, 2) - np.hypot(0.15, 1.1547 / 2)) < 1e-4


def test_light_is_uneven_and_belongs_to_the_patient():
    staining = fluorescence.Staining(np.ones(4), 0.2, np.array([0.4, 0.6]))
    light = fluorescence.illumination(staining, 100)
    assert abs(light.max() - 1) < 1e-3 and abs(light.min() - 0.8) < 1e-3
    assert np.unravel_index(light.argmax(), light.shape) in {(59, 39), (59, 40), (60, 39), (60, 40)}
    planes = [in_fluorescence("lung_n", patient)[1][0, 0] for patient in (0, 0, 1)]
    np.testing.assert_array_equal(planes[0], planes[1])
    assert (planes[0] != planes[2]).any()


def test_every_fluorescence_image_has_its_own_noise(monkeypatch):
    streams = []
    monkeypatch.setattr(fluorescence, "draw_channels",
                        lambda painted, staining, rng, **_: streams.append(rng.random()))
    base = dict(label="lung_n", patient=1, index=1, seed=1, image_size=24)
    for other in ({}, {"label": "lung_aca"}, {"patient": 2}, {"index": 2}, {"seed": 2}):
        paint.draw_fluorescence(**{**base, **other})
    assert len(set(streams)) == 5
    tile_stream = np.random.default_rng([1, 1, CLASSES.index("lung_n"), 1])
    assert tile_stream.random() not in streams


def test_ome_tiff_is_standard(tmp_path, coarse):
    tifffile = pytest.importorskip("tifffile")
    options = {**SMALL, "fluorescence": True}
    write_sample(tmp_path / "flat", **options)
    write_sample(tmp_path / "stack", **options, z_planes=3)
    name = "lung_aca/patient000_0000"
    for folder, axes, shape in (("flat", "CYX", (4, 48, 48)), ("stack", "ZCYX", (3, 4, 48, 48))):
        files = sorted((tmp_path / folder / "images_fluorescence").rglob("*.ome.tif"))
        stems = [str(path.relative_to(tmp_path / folder / "images_fluorescence"))[:-8]
                 for path in files]
        images = (tmp_path / folder / "images").rglob("*.png")
        assert stems == sorted(str(path.relative_to(tmp_path / folder / "images"))[:-4]
                               for path in images)
        with tifffile.TiffFile(tmp_path / folder / f"images_fluorescence/{name}.ome.tif") as file:
            series = file.series[0]
            assert file.is_ome and series.axes == axes and series.shape == shape
            assert series.dtype == np.uint16
            pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
            np.testing.assert_array_equal(np.squeeze(paint.draw_fluorescence(
                "lung_aca", patient=0, index=0, seed=SAMPLE_STREAM + 7, image_size=48,
                num_planes=shape[0] if len(shape) == 4 else 1)), series.asarray())
        assert [channel["Name"] for channel in pixels["Channel"]] == list(fluorescence.CHANNELS)
        assert abs(pixels["PhysicalSizeX"] - tissue.FIELD_UM / 48) < 1e-9
        assert pixels["PhysicalSizeXUnit"] == "µm"
        assert pixels.get("PhysicalSizeZ") == (1 if axes == "ZCYX" else None)
    flat, stack = contents(tmp_path / "flat"), contents(tmp_path / "stack")
    shared = [path for path in flat if not path.startswith(("images_f", "sample.json"))]
    assert all(flat[path] == stack[path] for path in shared)  # the same H&E and truth
    assert main(["--output", str(tmp_path / "x"), *ARGUMENTS, "--z-planes=3"]) == 2


# --- siblings and processes -----------------------------------------------------------------------

def test_siblings_are_their_originals_moved():
    image = draw_tile("lung_aca", patient=0, index=1, image_size=160).image
    rng = np.random.default_rng(0)
    for _ in range(12):
        change = augment.draw_change(rng)
        made = cv2.imdecode(np.frombuffer(augment.make_sibling(image, change), np.uint8),
                            cv2.IMREAD_COLOR)[..., ::-1]
        side = made.shape[0]
        assert made.shape == (side, side, 3) and abs(side - 160 * change.scale) <= 0.5
        made = made[::-1 if change.flip_y else 1, ::-1 if change.flip_x else 1]
        # put back: enlarge the original's middle into the sibling with OpenCV's own rotation
        inner = 160 / (np.cos(np.radians(abs(change.turn_deg)))
                       + np.sin(np.radians(abs(change.turn_deg))))
        move = cv2.getRotationMatrix2D((79.5, 79.5), change.turn_deg, side / inner)
        move[:, 2] += (side - 1) / 2 - 79.5
        expected = cv2.warpAffine(image, move, (side, side), borderValue=(255, 0, 255))
        assert (expected != (255, 0, 255)).any(2).all()  # nothing from outside the original
        blurred = [cv2.GaussianBlur(one, (0, 0), 1.5).ravel() for one in (made, expected)]
        assert np.corrcoef(*blurred)[0, 1] > 0.98, change
    drawn = [augment.draw_change(rng) for _ in range(300)]
    assert 23 < max(abs(change.turn_deg) for change in drawn) <= 25
    assert all(0.4 < np.mean([getattr(change, flip) for change in drawn]) < 0.6
               for flip in ("flip_x", "flip_y"))


def test_siblings_are_listed_with_their_originals(tmp_path, coarse):
    write_sample(tmp_path / "s", **SMALL, siblings=2)
    groups = pd.read_csv(tmp_path / "s/groups.csv").set_index("file_name")
    related = pd.read_csv(tmp_path / "s/truth/siblings.csv")
    images = {str(path.relative_to(tmp_path / "s/images")): path
              for path in (tmp_path / "s/images").rglob("*.*")}
    assert set(images) == set(groups.index) == set(related.file_name) and len(images) == 18
    assert (related.groupby("sibling_of").size() == 3).all()
    for row in related.itertuples():
        assert groups.group[row.file_name] == groups.group[row.sibling_of]
        assert groups.label[row.file_name] == groups.label[row.sibling_of]
        original = row.file_name == row.sibling_of
        assert row.file_name.endswith(".png") if original else row.jpeg_quality >= 70
    assert len({path.read_bytes() for path in images.values()}) == 18
    changed = related[related.file_name != related.sibling_of]
    assert changed.turn_deg.nunique() == 12  # every sibling has a change of its own


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path, coarse, forked_workers):
    options = dict(num_patients=2, tiles_per_patient=3, image_size=32, fluorescence=True,
                   siblings=1)
    write_sample(tmp_path / "one", **options)
    write_sample(tmp_path / "two", **options, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


# --- the slide and its light ----------------------------------------------------------------------

def fixed(number):
    return morphology.Parameter("fixed", (number,), "", "", "ours")


def test_a_slides_stain_vectors_are_of_unit_length_and_near_the_published():
    for seed in range(40):
        slide = paint.draw_slide(np.random.default_rng(seed))
        (red, _, blue), (eosin_red, _, eosin_blue), red_cells = slide.stains
        assert 0.55 <= red <= 0.69 and 0.10 <= blue <= 0.28
        assert 0.04 <= eosin_red <= 0.24 and 0.06 <= eosin_blue <= 0.28
        np.testing.assert_allclose(np.linalg.norm(slide.stains, axis=1), 1, atol=0.01)
        np.testing.assert_array_equal(red_cells, paint.RED_CELL)
        assert (0.79 <= slide.light).all() and (slide.light <= 1).all()
        assert 0.25 <= slide.blur_um <= 0.8 and 0.004 <= slide.grain <= 0.015
        assert 0.02 <= slide.mottle <= 0.12


def test_concentrations_become_light_by_beer_and_lamberts_law(monkeypatch):
    stains = np.array([[0.6, 0.7, 0.3], [0.1, 0.9, 0.2], [0.05, 0.85, 0.52]], np.float32)
    strength, light = np.array([1.2, 0.8, 0.5], np.float32), np.array([0.9, 0.95, 0.99], np.float32)
    amounts = np.array([0.5, 0.3, 0.4])
    empty = np.zeros((336, 336), np.float32)

    def painted(scene, rng, size):
        concentration = np.zeros((size, size, 3), np.float32)
        concentration[size // 2:] = amounts  # the lower half
        return paint.Painted(concentration, np.int32(empty), empty == 0, empty > 0, scene,
                               *[empty] * 8)

    monkeypatch.setattr(paint, "_paint", painted)
    monkeypatch.setattr(paint, "draw_slide", lambda rng: paint.Slide(
        stains, strength, light, blur_um=0.01, grain=0.0, mottle=0.0))
    monkeypatch.setattr(paint.SLIDE, "thickness", fixed(np.zeros(3)))
    noise = tissue.noise
    monkeypatch.setattr(tissue, "noise", lambda rng, scale, *a, **k: noise(rng, scale, *a, **k)
                        * (scale < 120))  # lighting is even
    image = draw_tile("lung_n", patient=0, index=0, image_size=168).image
    np.testing.assert_array_equal(image[10, 10], np.round(255 * light))
    expected = light * np.exp(-(amounts * strength) @ stains)
    np.testing.assert_allclose(image[150, 10], 255 * expected, atol=0.51)


def seen_by(monkeypatch, module, name, draws):
    """The states in which `module.name` is given its rng, and what it answers, over `draws`."""
    answers, original = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda rng: answers.append(original(rng)) or answers[-1])
    for draw in draws:
        draw()
    return [tuple(np.concatenate([np.ravel(value) for value in vars(one).values()]))
            for one in answers]


@pytest.mark.parametrize(("module", "name"), [(tissue, "draw_biology"), (paint, "draw_slide"),
                                              (fluorescence, "draw_staining")])
def test_biology_and_stains_are_the_patients_whatever_the_class_and_tile(monkeypatch, module, name):
    monkeypatch.setattr(fluorescence, "draw_channels", lambda *_, **__: None)

    def draw(label, patient, index, seed):
        return lambda: paint.draw_fluorescence(label, patient=patient, index=index, seed=seed,
                                                 image_size=24)

    same = [draw("lung_aca", 1, 0, 5), draw("lung_n", 1, 0, 5), draw("lung_scc", 1, 2, 5)]
    other = [draw("lung_n", 2, 0, 5), draw("lung_n", 1, 0, 6)]
    found = seen_by(monkeypatch, module, name, [*same, *other])
    assert len(set(found[:3])) == 1 and len(set(found)) == 3


def test_a_third_of_a_patients_tiles_are_without_tumour_and_diseases_alternate():
    plan = sample.plan_sample(3, 7)
    for patient, disease in enumerate(("lung_aca", "lung_scc", "lung_aca")):
        own = [(label, index) for label, who, index in plan if who == patient]
        assert own == [("lung_n", 0), ("lung_n", 1), *[(disease, index) for index in range(5)]]


@pytest.mark.parametrize(("first", "second", "covers"), [
    ((20, 20), (24, 20), True), ((20, 20), (29, 20), False)])
def test_of_two_nuclei_that_overlap_much_the_later_is_dropped_else_it_lies_below(first, second,
                                                                                 covers):
    cells = np.zeros(3, tissue.CELL)
    cells["a"], cells["b"] = 5, 5
    for cell, (x, y) in zip(cells, (first, second, (300, 20))):  # the last lies outside
        cell["x"], cell["y"] = x, y
    kept = outlines.separate(cells, 180.0)
    assert kept["x"].tolist() == ([20] if covers else [20, 29])
    square = np.array([[0, 0], [8, 0], [8, 8], [0, 8]]) * 16  # 1/16 px
    labels = outlines.label_map(np.int32([square + 32, square + 96]), 20)
    assert (labels[2:11, 2:11] == 1).all() and (labels[6:15, 11:15] == 2).all()


def test_a_tile_of_one_nucleus_shows_it_where_the_truth_says(monkeypatch):
    def scene(rng, person):
        cells = np.zeros(1, tissue.CELL)
        cells["x"], cells["y"], cells["a"], cells["b"], cells["density"] = 120, 45, 9, 5, 1.6
        field = np.full((tissue.SIDE_PX, tissue.SIDE_PX), -5, np.float32)
        return tissue.Scene(field, field > 0, cells, np.zeros(0, tissue.CELL))

    monkeypatch.setattr(tissue, "benign", scene)
    tile = draw_tile("lung_n", patient=0, index=0, image_size=180)
    assert len(tile.centroids) == 1 and tile.nuclei.max() == 1
    np.testing.assert_allclose(tile.centroids[0], [119.5, 44.5], atol=1)  # (x, y), 1 um a px
    rows, columns = np.nonzero(tile.nuclei)
    assert np.ptp(columns) > 1.3 * np.ptp(rows)  # its long axis lies along x
    assert (tile.nuclei > 0).sum() == pytest.approx(np.pi * 45, rel=0.25)
    stain = cv2.GaussianBlur(haematoxylin(tile.image), (0, 0), 3)
    y, x = np.unravel_index(stain.argmax(), stain.shape)
    assert np.hypot(x - 119.5, y - 44.5) < 5 and tile.tissue.all() and not tile.tumour.any()


# --- the microscope, exactly ----------------------------------------------------------------------

def test_every_channel_is_blurred_by_its_own_wavelength():
    assert fluorescence.CHANNELS == ("DAPI", "panCK", "CD45", "AF")
    assert fluorescence.EMISSION_NM == (461, 570, 690, 520)
    scale, size = 8.0, 161
    dye = np.zeros((4, size, size), np.float32)
    dye[:, size // 2, size // 2] = 1
    layers = np.full((4, size, size), 0.25, np.float32)
    plane, offset = fluorescence.focus(dye, layers, 1, scale)[0], np.arange(size) - size // 2
    for channel, emission in enumerate(fluorescence.EMISSION_NM):
        width = (plane[channel].sum(0) * offset ** 2).sum() / scale ** 2
        expected = np.mean([fluorescence.blur_sigma_um(emission, 2 - height) ** 2
                            for height in (0.5, 1.5, 2.5, 3.5)])
        assert width == pytest.approx(expected, rel=0.05)
    np.testing.assert_array_equal(fluorescence.plane_heights_um(3), [1, 2, 3])


def test_light_is_dye_by_exposure_with_autofluorescence_and_stray_light(monkeypatch):
    monkeypatch.setattr(fluorescence, "dyes", lambda painted: None)
    monkeypatch.setattr(fluorescence, "_layers", lambda painted, rng: None)
    dye = np.array([0.5, 0.4, 0.3, 0.2], np.float32)
    monkeypatch.setattr(fluorescence, "focus", lambda *_: np.tile(dye[:, None, None], (2, 1, 8, 8)))
    monkeypatch.setattr(fluorescence, "camera", lambda electrons, rng: electrons)
    painted = type("Painted", (), {"labels": np.zeros((8, 8))})
    staining = fluorescence.Staining(np.array([1.0, 2.0, 0.5, 1.5]), 0.0, np.array([0.5, 0.5]))
    seen = fluorescence.draw_channels(painted, staining, None, image_size=8, num_planes=2)
    assert seen.shape == (2, 4, 8, 8)
    expected = (dye + np.array([0.1, 0.1, 0.05, 0]) * 0.2) * [2000, 3200, 800, 1800] + 40
    expected = np.broadcast_to(expected[:, None, None], seen.shape)
    np.testing.assert_allclose(seen, expected, rtol=1e-5)


def test_dyes_lie_where_they_bind():
    size = 48
    flat = np.zeros((size, size), np.float32)
    labels = np.int32(flat)
    labels[10:20, 10:20], labels[30:40, 30:40] = 1, 2
    cells = np.zeros(2, tissue.CELL)
    cells["owner"] = tissue.TUMOUR, tissue.LYMPHOCYTE
    left = flat.copy()
    left[:, :24] = 1
    nucleoli = flat.copy()
    nucleoli[15, 15] = 1
    red = flat.copy()
    red[:6, :6] = 1
    scene = type("Scene", (), {"epithelium": np.ones((4, 4), bool)})
    painted = paint.Painted(None, labels, None, None, scene, cells, 1.4 * (labels > 0), nucleoli,
                              epithelium=left, air=flat, eosin=flat + 0.5, foam=flat, red=red)
    dapi, keratin, cd45, af = fluorescence.dyes(painted)
    np.testing.assert_allclose(dapi[labels > 0].reshape(2, -1).max(1), 1, rtol=1e-5)
    assert dapi[15, 15] == pytest.approx(0.4) and not dapi[labels == 0].any()
    assert keratin[44, 5] == pytest.approx(1) and not keratin[:, 24:].any()
    assert keratin[2, 2] == 0  # red cells lie over it
    assert cd45[29, 35] > 0.3 and cd45[9, 15] == 0  # around lymphocytes only
    assert af[44, 44] == pytest.approx(0.6) and af[44, 5] == pytest.approx(0.1)
    assert af[2, 2] == pytest.approx(1.0)


def test_a_nucleus_fills_the_layers_of_its_own_height():
    cells = np.zeros(3, tissue.CELL)
    cells["b"] = 9.0, 0.6, 0.1
    painted = type("Painted", (), {"cells": cells, "labels": np.array([[0, 1, 2, 3]])})
    heights = type("Rng", (), {"uniform": staticmethod(lambda *_: np.array([2.0, 0.4, 3.6]))})
    shares = fluorescence._layers(painted, heights)[:, 0]
    assert shares.T.tolist() == [[0] * 4, [0.25] * 4, [0.25, 0, 0, 0], [0, 0, 0, 0.25]]


def test_resolution_is_in_the_tags_of_the_ome_tiff_too():
    tifffile = pytest.importorskip("tifffile")
    content = fluorescence.encode_ome_tiff(np.zeros((1, 4, 24, 24), np.uint16), "a", 12.0)
    assert pixel_size_um(content) == pytest.approx(0.5)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        assert tiff._tagged_pixel_um(file) == pytest.approx((0.5, 0.5))
    assert content == fluorescence.encode_ome_tiff(np.zeros((1, 4, 24, 24), np.uint16), "a", 12.0)
    assert content != fluorescence.encode_ome_tiff(np.zeros((1, 4, 24, 24), np.uint16), "b", 12.0)


def test_a_sibling_is_saved_at_the_size_and_quality_drawn():
    from PIL import Image

    image = draw_tile("lung_n", patient=0, index=1, image_size=64).image
    for quality in (70, 95):
        content = augment.make_sibling(image, augment.Change(0.0, True, False, 1.25, quality))
        expected = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        made, wanted = (Image.open(io.BytesIO(one)) for one in (content, expected))
        assert made.quantization == wanted.quantization and made.size == (80, 80)
    drawn = [augment.draw_change(np.random.default_rng(seed)) for seed in range(200)]
    scales, qualities = [one.scale for one in drawn], [one.jpeg_quality for one in drawn]
    assert 0.75 <= min(scales) < 0.78 and 1.22 < max(scales) <= 1.25
    assert min(qualities) == 70 and max(qualities) == 95
