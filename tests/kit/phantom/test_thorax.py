"""Simulated chest CT: organs, nodules, scanners and readers are what their laws say."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from lungkit.phantom.thorax import anatomy, lidc, nodules, readers, scanner, scans, scene, vessels
from lungkit.phantom.thorax.nodules import GRADES, Law
from lungkit.phantom.thorax.scene import Grid, Scene

EMPTY = np.zeros(0, vessels.BRANCH)
CALM = np.zeros((64, 64, 64), np.float32)


def chest_of(seed=0, **changed):
    return dataclasses.replace(anatomy.draw_chest(np.random.default_rng(seed)), **changed)


def ball(centre_mm=(0.0, 0.0, 0.0), diameter_mm=20.0, **changed):
    """A smooth solid sphere."""
    drawn = nodules.draw_nodule(np.random.default_rng(0), 3, Law(), "isolated", centre_mm,
                                diameter_mm)
    return dataclasses.replace(drawn, **({
        "weights": np.zeros_like(drawn.weights), "radius_mm": diameter_mm / 2, "softness": 0.0,
        "texture": nodules.SOLID, "calcified": "absent", "cavity": 0.0, "solid_hu": 30.0,
        "spicules": EMPTY} | changed))


PLAIN_BALL = ball()
NOWHERE = np.zeros((0, 3))


def shares_of(ranges):
    return np.array([np.mean(ranges == 0), np.mean(ranges == 1), np.mean(ranges == 2),
                     np.mean(ranges >= 3)])


# ------------------------------------------------------------------ anatomy and partial volume

@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", [48, 160])
def test_organs_have_their_attenuation_at_any_size(seed, size):
    chest = chest_of(seed, emphysema=0.0, fat=32.0)
    grid = Grid(size, 400 / size, 1, 1.0, 1.0, (-200 + 200 / size, -200 + 200 / size, -40.0))
    image = next(scene.slices(Scene(chest, EMPTY, EMPTY, (), CALM), grid))
    xs, ys, _ = grid.axes()
    x, y = np.meshgrid(xs, ys)
    deep = 400 / size + 2

    def median_where(inside):
        assert inside.sum() > 3
        return float(np.median(image[inside]))

    at = (*anatomy.to_patient(chest, x, y), np.full_like(x, -40))
    lung = (anatomy.lungs(chest, *at) < -deep) & (np.abs(anatomy.fissures(*at)) > 6)
    assert median_where(lung & (np.abs(y) < 12)) == pytest.approx(chest.lung_hu, abs=12)
    assert median_where(anatomy.great_vessels(chest, *at) < -deep - 6) == pytest.approx(
        chest.blood_hu, abs=1)
    skin = anatomy.body(chest, *at)
    assert median_where((skin > deep) & (y < 0)) == scene.AIR_HU
    wall = anatomy.cavity(chest, *at)
    fat = (skin < -deep - 3) & (anatomy.muscles(chest, *at, wall) > deep) & (wall > 22)
    assert median_where(fat) == pytest.approx(scene.FAT_HU, abs=5)
    assert image.max() > 250  # bone


def test_lungs_lie_on_their_sides_and_stop_at_heart_and_wall():
    chest = chest_of(3)
    for side in (-1, 1):
        points = vessels.lung_points(np.random.default_rng(0), chest, side, 200)
        x, y, z = points.T
        assert (np.sign(x) == side).all()
        assert (anatomy.cavity(chest, x, y, z) < 0).all()
        assert (anatomy.great_vessels(chest, x, y, z) > 0).mean() > 0.98
        assert (anatomy.diaphragm(chest, x, y, z) > 0).all()


def test_vessels_and_nodules_turn_with_the_patient(monkeypatch):
    monkeypatch.setattr(vessels, "POINTS", 60)
    chest = chest_of(2, turn=0.5)
    blood, airways = vessels.draw_trees(np.random.default_rng(0), chest)
    rng = np.random.default_rng(1)
    drawn = [nodules.place(rng, chest, blood, [], "isolated", 4.0, (-150, -150, -60),
                           (150, 150, 40)) for _ in range(5)]
    for points in (blood["stop"][blood["served"] < 0.02], np.float32(drawn)):
        x, y, z = points.T
        assert (anatomy.lungs(chest, *anatomy.to_patient(chest, x, y), z) < 0).mean() > 0.97
    assert len(airways) > 10


@pytest.mark.parametrize("spacing_mm", [0.7, 1.6])
def test_a_nodule_fills_its_volume_in_partial_volumes(spacing_mm):
    size = int(40 / spacing_mm)
    axis = (np.arange(size, dtype=np.float32) - size / 2) * spacing_mm
    drawn = nodules.draw_nodule(np.random.default_rng(7), 4, Law(), "isolated", (0.3, -0.2, 0.1),
                                14.0)
    for one in (ball((0.3, -0.2, 0.1), 14.0),
                dataclasses.replace(drawn, softness=0.0, spicules=EMPTY, cavity=0.0,
                                    calcified="absent", texture=nodules.SOLID, solid_hu=30.0)):
        hu = np.full((size,) * 3, -870.0, np.float32)
        nodules.paint(hu, one, axis, axis, axis, spacing_mm)
        filled = (hu + 870).sum() / 900 * spacing_mm ** 3
        ways = np.random.default_rng(1).standard_normal((4000, 3)).astype(np.float32)
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
        true = 4 / 3 * np.pi * np.mean(
            (one.radius_mm * nodules._relative(ways, one.axes, one.degrees, one.weights)) ** 3)
        assert filled == pytest.approx(true, rel=0.04)


def test_a_diameter_is_that_of_the_circle_as_large_as_the_middle_slice():
    axis = np.arange(-30, 30, 0.25, dtype=np.float32)
    for seed in range(6):
        drawn = nodules.draw_nodule(np.random.default_rng(seed), 5, Law(), "isolated", (0, 0, 0),
                                    18.0)
        outside, _ = nodules.distance(drawn, axis[None, :], axis[:, None], np.float32(0))
        area = (outside < 0).sum() * 0.25 ** 2
        assert 2 * np.sqrt(area / np.pi) == pytest.approx(18.0, rel=0.01)


def test_a_thin_vessel_fills_its_thickness_of_a_voxel_and_a_thick_one_all():
    axis = np.arange(-8, 8, 1.0, dtype=np.float32)
    for radius, most in ((0.2, 0.4), (3.0, 1.0)):
        row = np.array([((-20, 0, 0), (20, 0, 0), (radius, radius), 1.0)], vessels.BRANCH)
        cover = np.zeros((16, 16, 16), np.float32)
        vessels.paint(cover, row, axis, axis, axis, 1.0)
        assert cover.max() == pytest.approx(most, abs=1e-3)


def test_daughters_obey_murrays_law_and_every_point_is_served():
    points = vessels.lung_points(np.random.default_rng(0), chest_of(), 1, 64)
    tree = vessels._grow(np.random.default_rng(1), points, (38, 6, -6), (54, 12, -20), 6.4)
    radius = {tuple(np.round(row["stop"], 3)): row["radius"][1] for row in tree
              if row["served"] > 1.5 / 64}
    cubes: dict = {}
    for row in tree:
        cubes.setdefault(tuple(np.round(row["start"], 3)), []).append(row["served"] * 6.4 ** 3)
    forks = [(radius[at], sum(below)) for at, below in cubes.items() if at in radius]
    assert len(forks) == 63
    for mother, below in forks:
        assert mother ** 3 == pytest.approx(below, rel=1e-3)


# ------------------------------------------------------------------ grades

def test_diameters_have_the_medians_of_their_grades_unless_matched():
    rng = np.random.default_rng(0)
    for grade, median in zip(GRADES, nodules.MEDIAN_MM):
        drawn = [nodules.draw_diameter(rng, grade, Law()) for _ in range(3000)]
        assert np.median(drawn) == pytest.approx(median, rel=0.03)
        matched = [nodules.draw_diameter(rng, grade, Law(size=False)) for _ in range(3000)]
        assert np.median(matched) == pytest.approx(nodules.MATCHED_MM, rel=0.03)


@pytest.mark.parametrize(("looks", "told"), [(True, True), (False, False)])
def test_looks_tell_grades_apart_with_overlap_unless_only_size_does(looks, told):
    rng = np.random.default_rng(0)

    def some(grade):
        drawn = [nodules.draw_nodule(rng, grade, Law(looks=looks), "isolated", (0, 0, 0), 9.0)
                 for _ in range(150)]
        return (np.array([each.spiculation for each in drawn]),
                np.mean([each.calcified != "absent" for each in drawn]))

    (low, calcified_low), (high, calcified_high) = some(1), some(5)
    assert (high.mean() - low.mean() > 0.5) == told
    assert (calcified_low - calcified_high > 0.2) == told
    low, high = some(2)[0], some(4)[0]
    assert np.mean(low[:, None] > high[None]) > 0.02  # they overlap


def plan_of(**changed):
    options = {"seed": 0, "num_patients": 200, "nodules_per_patient": 3, "image_size": 32,
               "num_slices": 8, "field_mm": None, "law": Law(), "confounded": False}
    return scans.Plan(**(options | changed))


def test_grades_are_equally_frequent_and_their_order_is_the_seeds():
    grades = [grade for patient in range(200) for grade in plan_of().grades(patient)]
    assert np.bincount(grades)[1:].tolist() == [120] * 5
    assert grades != [grade for patient in range(200) for grade in plan_of(seed=1).grades(patient)]


@pytest.mark.parametrize("confounded", [False, True])
def test_only_where_confounded_does_a_scanner_tell_the_grade(confounded):
    plan = plan_of(confounded=confounded)
    malignant = np.array([np.mean(plan.grades(patient)) > 3 for patient in range(200)])
    of_ge = np.array([plan.scanner(patient, 0).manufacturer.startswith("GE")
                      for patient in range(200)])
    agreement = np.mean(malignant == of_ge)
    assert agreement == 0 if confounded else 0.4 < agreement < 0.6


def test_every_eighth_patient_has_two_scans_of_the_same_nodules():
    plan = plan_of(num_patients=14)
    assert [item for item in plan.scans() if item[1]] == [(5, 1), (13, 1)]
    laid_out, grids = scans.draw_scene(plan, 5)
    assert len(grids) == 2
    for grid in grids:
        for nodule in laid_out.nodules:
            at = grid.index_of(nodule.centre_mm)
            assert (at > 0).all() and (at < (31, 31, 7)).all()


# ------------------------------------------------------------------ scanners

@pytest.mark.parametrize("device", [scanner.SCANNERS[0], scanner.SCANNERS[4]])
def test_noise_has_its_deviation_and_a_ramp_for_a_spectrum(device):
    flat = np.full((256, 256), 40.0, np.float32)
    rng = np.random.default_rng(0)
    image = scanner.expose(flat, device, device.spacing_mm, rng, whole=False).astype(float)
    assert image.mean() == pytest.approx(40, abs=0.5)
    assert image.std() == pytest.approx(device.noise_hu, rel=0.03)
    power = np.abs(np.fft.fft2(image - image.mean())) ** 2
    freq = np.hypot(*np.meshgrid(*[np.fft.fftfreq(256, device.spacing_mm)] * 2))
    rings = [power[(freq > low) & (freq <= high)].mean()
             for low, high in ((0.01, 0.03), (0.05, 0.07), (0.13, 0.15))]
    assert rings[1] / rings[0] == pytest.approx(3, rel=0.35)
    assert rings[2] > 1.3 * rings[1]
    coarse = scanner.expose(flat, device, 5 * device.spacing_mm, rng, whole=False)
    assert coarse.std() < 0.75 * device.noise_hu


def test_a_sharp_kernel_overshoots_at_an_edge_and_a_soft_one_does_not():
    step = np.where(np.arange(128) < 64, -900.0, 50.0).astype(np.float32)[None].repeat(128, 0)
    for device, overshoots in ((scanner.SCANNERS[0], True), (scanner.SCANNERS[4], False)):
        quiet = dataclasses.replace(device, noise_hu=0.0)
        image = scanner.expose(step, quiet, 0.7, np.random.default_rng(0), whole=False)
        assert (image[64, 60:70].max() > 90) == overshoots


def test_outside_a_round_field_lies_what_the_maker_puts_there():
    device = scanner.SCANNERS[0]
    image = scanner.expose(np.zeros((64, 64), np.float32), device, 1.0, np.random.default_rng(0))
    assert image[0, 0] == device.circle_hu == -3024 and image[32, 32] > -1024


# ------------------------------------------------------------------ readers

def test_readers_disagree_on_grades_as_lidcs_do():
    """Ranges of two to four ratings: 0 in 26 %, 1 in 32 %, 2 in 31 %, 3 or 4 in 12 % of nodules."""
    rng, ranges = np.random.default_rng(0), []
    for number in range(1500):
        one = dataclasses.replace(PLAIN_BALL, grade=1 + number % 5)
        plain = rng.random() < readers.PLAIN_SHARE
        count = rng.choice([2, 3, 4], p=[0.12, 0.24, 0.64])
        given = [readers._ratings(rng, one, plain)["malignancy"] for _ in range(count)]
        assert set(given) <= set(GRADES)
        ranges.append(max(given) - min(given))
    np.testing.assert_allclose(shares_of(np.array(ranges)), (0.26, 0.32, 0.31, 0.12), atol=0.05)


def test_small_nodules_are_missed_more_and_the_smallest_are_points():
    chest, kinds = chest_of(), {}
    grid = Grid(64, 0.8, 24, 1.25, 1.25, (40.0, -25.0, -15.0))
    for diameter in (2.2, 3.6, 16.0):
        one = ball((65.0, 0.0, 0.0), diameter)
        marks = [mark for seed in range(25) for mark in readers.read(
            np.random.default_rng(seed), chest, (one,), grid, NOWHERE)]
        kinds[diameter] = [sum(mark.kind == kind for mark in marks)
                           for kind in ("outlined", "point", "other")]
    assert kinds[16.0][0] > 94 and sum(kinds[16.0][1:]) == 0
    assert 0.65 < sum(kinds[3.6]) / 100 < 0.87
    assert kinds[2.2][0] < 6 and kinds[2.2][1] > 2 * kinds[2.2][2] > 0


def test_outlines_scatter_around_the_nodule_by_about_a_pixel():
    chest, spacing = chest_of(), 0.7
    grid = Grid(64, spacing, 24, 1.25, 1.25, (40.0, -22.0, -15.0))
    one = ball((62.0, 0.0, 0.0), 14.0)
    found = []
    for seed in range(15):
        marks = readers.read(np.random.default_rng(seed), chest, (one,), grid, NOWHERE)
        found += [2 * np.sqrt(mark.mask.sum((1, 2)).max() / np.pi) * spacing for mark in marks]
        agreed, = readers.agree(marks, spacing)
        assert agreed.num_readers == len(marks)
        np.testing.assert_array_equal(
            agreed.mask, np.mean([mark.mask for mark in marks], 0) >= 0.5)
    assert np.mean(found) == pytest.approx(14.0, abs=0.5)
    assert 0.3 < np.std(found) / spacing < 1.5


def test_a_nodule_that_is_made_round_is_a_ball_of_its_diameter():
    drawn = nodules.draw_nodule(np.random.default_rng(1), 5, Law(), "isolated", (0, 0, 0), 12.0)
    found = nodules.rounded(dataclasses.replace(drawn, cavity=0.4, elongation=0.3))
    assert (found.radius_mm, found.elongation, found.lobulation, found.spiculation,
            found.cavity) == (6.0, 0, 0, 0, 0)
    assert not found.weights.any() and len(found.spicules) == 0


def test_a_round_nodule_is_outlined_as_the_ball_that_its_section_is_the_middle_of():
    grid = Grid(40, 0.8, 28, 1.25, 1.25, (0.0, 0.0, 0.0))
    for diameter in np.linspace(3.3, 25, 60):
        one = readers.whole_ball(ball((16.3, 15.9, 15.2), diameter), grid)
        away = np.sqrt(sum(np.square(axis - at).reshape(shape) for axis, at, shape in zip(
            grid.axes(), one.centre_mm, [(-1,), (-1, 1), (-1, 1, 1)])))
        wide = 2 * np.sqrt((away < one.radius_mm).sum((1, 2)).max() / np.pi) * grid.spacing_mm
        np.testing.assert_array_equal(away < one.radius_mm, away < wide / 2)
        assert wide == pytest.approx(diameter, abs=0.8)
        assert grid.index_of(one.centre_mm) == pytest.approx([20, 20, 12])


@pytest.mark.parametrize("seed", range(6))
def test_strictly_inside_an_outline_lies_the_mask(seed):
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.standard_normal((40, 40)), (0, 0), 3)
    mask = readers._close((noise > 0.02)[None] & np.pad(np.ones((1, 32, 32), bool),
                                                        ((0, 0), (4, 4), (4, 4))))[0]
    inside = np.zeros((40, 40), np.uint8)
    for points in lidc.outlines(mask):
        part = np.zeros((40, 40), np.uint8)
        cv2.fillPoly(part, [points.astype(np.int32)], 1)
        part[points[:, 1], points[:, 0]] = 0
        inside |= part
    assert mask.any()
    np.testing.assert_array_equal(inside.astype(bool), mask)
