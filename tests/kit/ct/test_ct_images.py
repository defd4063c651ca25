"""Lungs, fields and windows, nodules of less than contours, and healthy places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ct_files import CHEST_STEP, ball, chest
from lungkit.ct import crops, images, lung_mask, nodules
from lungkit.ct.annotations import Annotated, Place
from lungkit.ct.crops import Field
from lungkit.ct.plan import Item, Job
from lungkit.ct.studies import Scan
from lungkit.formats.volumes import Geometry, Volume

SHAPE = (8, 64, 64)
GEOMETRY = Geometry(SHAPE, np.array([-5.0, 7, -300]),
                    np.array([[0, 0, 2.5], [0, 2, 0], [2, 0, 0.0]]))
FIELD = Field(32.0, 32, (-1000.0, 400.0))


def volume_of(*balls, shape=SHAPE) -> Volume:
    return Volume(chest(balls, shape), GEOMETRY)


# ------------------------------------------------------------------ lungs

def test_lungs_are_the_air_in_the_body_and_take_in_nodules_at_their_edge():
    plain, lump = volume_of(), volume_of(((4, 30, 9), 5))
    found = lung_mask.find_lungs(lump)
    assert found.lung.shape == (8, 64, 64) and found.factor == (1, 1, 1)
    inside = ((np.indices(SHAPE)[1] - 30) / 17) ** 2 + ((np.indices(SHAPE)[2] - 18) / 11) ** 2 <= 1
    nodule = ball(SHAPE, (4, 30, 9), 5) & inside
    assert found.lung[nodule].mean() > 0.6  # which a threshold alone leaves out
    reference = lung_mask.find_lungs(plain).lung
    assert (reference ^ found.lung).mean() < 0.002
    assert not reference[:, 48, 32].any() and not reference[:, :5].any()  # spine, room air
    row, column = found.centre()
    assert row == pytest.approx(30, abs=1.5) and column == pytest.approx(32, abs=1.5)


def test_a_scan_without_lung_has_none():
    hu = np.full(SHAPE, -1000, np.int16)
    assert not lung_mask.find_lungs(Volume(hu, GEOMETRY)).lung.any()
    hu[:, 10:50, 10:50] = 40
    found = lung_mask.find_lungs(Volume(hu, GEOMETRY))
    assert found.body.any() and not found.lung.any()
    row, column = found.centre()
    assert row == pytest.approx(29.5, abs=1) and column == pytest.approx(29.5, abs=1)


# ------------------------------------------------------------------ fields and windows

@pytest.mark.parametrize(("hu", "grey"), [(-2000, 0), (-1000, 0), (400, 255), (3000, 255),
                                          (-300, 128), (-995, 1)])
def test_the_window_is_fixed(hu, grey):
    assert crops.to_grey(np.array([hu]), (-1000, 400))[0] == grey


def test_a_field_of_the_scans_own_pixels_is_the_scan():
    plane = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    field = Field(20.0, 10, (0, 1))
    found = crops.sample(plane, field, (30.5, 20.5), (2.0, 2.0), -1)
    assert np.allclose(found, plane[26:36, 16:26])


def test_a_coarser_pixel_is_the_mean_of_what_it_covers_and_outside_is_outside():
    plane = np.zeros((64, 64), np.float32)
    plane[3::4] = 100  # of four rows one
    field = Field(32.0, 4, (0, 1))  # 8 mm a pixel, of 2 mm
    assert np.allclose(crops.sample(plane, field, (31.5, 31.5), (2.0, 2.0), -1), 25, atol=1)
    corner = crops.sample(plane, field, (0.0, 0.0), (2.0, 2.0), -7)
    assert (corner[0] == -7).all() and (corner[:, 0] == -7).all() and corner[3, 3] > 20


def test_a_millimetre_is_as_many_pixels_in_every_scan():
    fine, coarse = np.zeros((100, 100)), np.zeros((50, 50))
    fine[40:60, 40:60], coarse[20:30, 20:30] = 1, 1  # 20 x 20 mm at 1 and at 2 mm
    field = Field(40.0, 40, (0, 1))
    a = crops.sample(fine, field, (49.5, 49.5), (1.0, 1.0), 0)
    b = crops.sample(coarse, field, (24.5, 24.5), (2.0, 2.0), 0)
    assert (a > 0.5).sum() == (b > 0.5).sum() == 400


def test_masks_boxes_and_layout_lie_on_the_nodule():
    volume = volume_of(((4, 30, 20), 7))
    mask = ball(SHAPE, (4, 30, 20), 7)
    nodule = nodules.trimmed(nodules.Nodule("0", (0, 0, 0), mask, (4.0, 30.0, 20.0), 14.0, "mask"))
    lungs = lung_mask.find_lungs(volume)
    made = crops.picture(volume, lungs, 4, (31.0, 21.0), [nodule], FIELD)
    [(x0, y0, x1, y1)] = made.boxes
    rows, columns = np.nonzero(mask[4])
    scale, middle = 2.0, 16.0
    assert x0 == pytest.approx((columns.min() - 0.5 - 21) * scale + middle)
    assert y1 == pytest.approx((rows.max() + 0.5 - 31) * scale + middle)
    ys, xs = np.nonzero(made.masks["nodule"])
    assert abs(xs.min() - x0) <= 1 and abs(ys.max() + 1 - y1) <= 1
    assert set(np.unique(made.masks["nodule"])) == {0, 255}
    assert (made.masks["layout"][made.masks["nodule"] > 0] == 5).all()
    assert {2, 5} <= set(np.unique(made.masks["layout"])) <= set(range(len(crops.LAYOUT)))
    assert made.grey[made.masks["nodule"] > 0].mean() > made.grey[made.masks["layout"] == 2].mean()
    assert crops.picture(volume, lungs, 0, (31.0, 21.0), [nodule], FIELD).boxes == []


def test_a_nodule_smaller_than_a_pixel_has_a_pixel():
    volume = volume_of()
    tiny = nodules.sphere(GEOMETRY, GEOMETRY.to_world((4, 30, 20)), 1.0, name="0")
    made = crops.picture(volume, lung_mask.find_lungs(volume), 4, (32, 32), [tiny],
                         Field(128.0, 8, (-1000, 400)))
    assert (made.masks["nodule"] > 0).sum() == 1


def test_what_is_neither_a_nodule_that_counts_nor_healthy_is_marked_where_it_shows():
    counts, other = (nodules.sphere(GEOMETRY, GEOMETRY.to_world(at), 9.0, name=str(at))
                     for at in ((4, 30, 20), (4, 36, 24)))
    job = job_of(None, [counts, other], [Place((4.0, 30.0, 21.0), 3.0), Place((4.0, 24, 18), 3.0),
                                         Place((-9.0, 30.0, 20.0), 3.0)])  # the last outside
    job = replace(job, counted=(counts,))
    doubtful = images.ignored_of(job)
    assert [each.name for each in doubtful] == ["(4, 36, 24)", "", ""]
    volume = volume_of()
    lungs = lung_mask.find_lungs(volume)
    masks = crops.picture(volume, lungs, 4, (31.0, 21.0), [counts], FIELD, doubtful).masks
    ignored, nodule = masks["ignored"] > 0, masks["nodule"] > 0
    assert ignored[26, 22] and ignored[2, 10] and nodule[14, 14] and not (ignored & nodule).any()
    plain = crops.picture(volume, lungs, 4, (31.0, 21.0), [counts], FIELD).masks
    assert (plain["nodule"] == masks["nodule"]).all() and "ignored" not in plain
    assert "ignored" not in crops.picture(volume, lungs, 0, (31.0, 21.0), [counts], FIELD,
                                          doubtful).masks


# ------------------------------------------------------------------ nodules of less than contours

def test_a_sphere_is_smaller_on_its_outer_slices():
    found = nodules.sphere(GEOMETRY, GEOMETRY.to_world((4, 30, 20)), 14.0, name="0")
    assert np.array_equal(found.mask, ball(SHAPE, (4, 30, 20), 7)[
        tuple(slice(s, s + n) for s, n in zip(found.start, found.mask.shape))])
    area = found.mask.sum((1, 2))
    assert found.largest_slice() == 4 and area[0] < area[len(area) // 2]


@pytest.mark.parametrize(("at", "index"), [((3.6, 30.4, 20.2), 4), ((3.4, 30.4, 20.2), 3),
                                           ((-0.4, 1.2, 0.3), 0), ((7.4, 62.9, 63.4), 7)])
def test_a_ball_is_shown_on_its_own_slice_around_its_own_centre(at, index):
    """Not around the middle of those of its voxels that the volume holds."""
    found = nodules.sphere(GEOMETRY, GEOMETRY.to_world(at), 7.0, name="0")
    assert found.largest_slice() == index
    assert images.section_centre(found, index) == pytest.approx(at[1:])


def test_an_outline_is_shown_where_its_box_is_largest_around_the_middle_of_that():
    """Not where it covers most, nor around the mean of its voxels: a box would not know either."""
    mask = np.zeros((3, 6, 9), bool)
    mask[0, :5, :5] = True                      # most voxels
    mask[1, 0, :9] = mask[1, :6, 0] = True      # the largest box
    found = nodules.Nodule("0", (2, 10, 20), mask, (3.0, 12.0, 22.0), 9.0, "contour")
    assert found.largest_slice() == 3
    assert images.section_centre(found, 3) == (12.5, 24.0)
    boxed = nodules.from_boxes(GEOMETRY, {z: found.box(z) for z in (2, 3)}, name="0")
    assert boxed.largest_slice() == 3 and images.section_centre(boxed, 3) == (12.5, 24.0)


@pytest.mark.parametrize("sides", [(1, 1), (2, 1), (2, 9), (12, 2), (5, 8)], ids=str)
def test_an_ellipse_touches_all_four_edges_of_its_box(sides):
    box = (9.5, 19.5, 9.5 + sides[0], 19.5 + sides[1])
    assert nodules.from_boxes(GEOMETRY, {3: box}, name="0").box(3) == box


def test_ellipses_fill_boxes_and_labels_fall_apart_into_nodules():
    found = nodules.from_boxes(GEOMETRY, {3: (9.5, 19.5, 19.5, 25.5), 4: (9.5, 19.5, 15.5, 25.5)},
                               name="0")
    assert found.box(3) == (9.5, 19.5, 19.5, 25.5) and found.largest_slice() == 3
    assert found.diameter_mm == pytest.approx(2 * np.sqrt(10 * 6))
    labels = np.zeros(SHAPE, np.uint8)
    labels[ball(SHAPE, (2, 20, 20), 5) | ball(SHAPE, (5, 40, 40), 5)] = 1
    assert [n.centre for n in nodules.from_labels(labels, GEOMETRY)] == [(2, 20, 20), (5, 40, 40)]
    assert nodules.from_labels(labels, GEOMETRY, 2) == []


# ------------------------------------------------------------------ healthy lung

def job_of(volume, findings=(), ignored=(), count=1) -> Job:
    scan = Scan("1.2", "p", "s", "f", "dicom", None, (), GEOMETRY, None, 2.5, "", "", False, 1, 1,
                Annotated("lidc", tuple(findings), tuple(ignored)))
    items = tuple(Item(n, "no_nodule", None, None) for n in range(count))
    return Job(scan, "train", tuple(findings), items)


@pytest.mark.parametrize("side", ["nodule", "ignored"])
def test_healthy_places_keep_far_from_every_finding(side):
    import random

    volume = volume_of()
    at, mm = (4.0, 30.0, 18.0), 20.0  # the middle of one lung
    nodule = nodules.sphere(GEOMETRY, GEOMETRY.to_world(at), mm, name="0")
    job = job_of(volume, [nodule]) if side == "nodule" else job_of(volume, [], [Place(at, mm)])
    lungs = lung_mask.find_lungs(volume)
    for number in range(30):
        z, row, column = images.healthy_place(job, 16.0, lungs, random.Random(number))
        away = np.abs(np.array([z, row, column]) - at) * CHEST_STEP
        assert np.linalg.norm(away) >= mm / 2 + images.FAR_MM
        if side == "nodule":  # which must not show in the crop, either
            assert away[1:].max() > mm / 2 + 16 or away[0] > mm / 2
        assert lungs.lung[z, round(row), round(column)]


def test_there_may_be_no_healthy_lung():
    import random

    volume = volume_of()
    job = job_of(volume, [], [Place((4.0, 30.0, 32.0), 300.0)])
    lungs = lung_mask.find_lungs(volume)
    assert images.healthy_place(job, 16.0, lungs, random.Random(0)) is None
    assert images.healthy_slice(job, lungs, random.Random(0), set()) is None
    free = {images.healthy_slice(job_of(volume), lungs, random.Random(0), taken)
            for taken in ({0, 1, 2, 3, 4, 5, 6},)}
    assert free == {7}
