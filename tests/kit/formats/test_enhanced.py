"""Enhanced multi-frame CT: the same volume as its images one by one, and the same refusals."""

from __future__ import annotations

import numpy as np
import pytest

from ct_files import join_frames, scene, write_series
from lungkit.formats import dicom, dicom_pixels
from lungkit.run.faults import Fault

AXES = {"supine": {}, "prone": {"rows": (-1, 0, 0), "columns": (0, -1, 0)},
        "feet first": {"rows": (-1, 0, 0), "columns": (0, 1, 0)},
        "rows down": {"rows": (0, 1, 0), "columns": (1, 0, 0)}}
SLOPES = [1, 2, 1, 4, 0.5, 1]


def only(root) -> dicom.Series:
    read = [dicom.read_slices(path) for path in sorted(root.rglob("*.dcm"))]
    assert not [each for each in read if isinstance(each, str)]
    (series,) = dicom.gather(one for each in read for one in each)
    return series


@pytest.mark.parametrize("how", AXES.values(), ids=AXES)
def test_frames_are_the_images_that_they_were(tmp_path, how):
    """Whatever their order in the file, each by its own slope: pydicom's rescaling knows none."""
    hu = (scene() // 4) * 4
    paths = write_series(tmp_path, hu, slopes=SLOPES, **how)
    one_by_one = only(tmp_path)
    volume = dicom_pixels.read_series(one_by_one)
    join_frames([paths[n] for n in (4, 0, 5, 1, 3, 2)], tmp_path / "all.dcm")
    series = only(tmp_path)
    assert (series.reason, series.fault, series.notes) == (None, None, ())
    assert len({each.path for each in series.slices}) == 1 and len(set(series.frames)) == 6
    found = dicom_pixels.read_series(series)
    assert np.array_equal(found.hu, volume.hu) and series.turn == one_by_one.turn
    assert found.geometry.shape == volume.geometry.shape
    assert np.array_equal(found.geometry.origin_mm, volume.geometry.origin_mm)
    assert np.array_equal(found.geometry.steps_mm, volume.geometry.steps_mm)
    assert (series.first.kernel, series.first.thickness_mm) == ("B30f", 2.0)


def test_simpleitk_reads_the_same_where_it_can(tmp_path):
    """Frames in order and one slope for all, which is what it knows."""
    SimpleITK = pytest.importorskip("SimpleITK")
    path = join_frames(write_series(tmp_path, scene()), tmp_path / "all.dcm")
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "LPS")
    volume = dicom_pixels.read_series(only(tmp_path))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), volume.hu)
    assert np.allclose(image.GetOrigin(), volume.geometry.origin_mm)
    assert np.allclose(image.GetSpacing()[::-1], volume.geometry.spacing_mm)


def test_what_a_frame_says_is_before_what_all_say_and_the_file(tmp_path):
    def otherwise(data):
        data.RescaleSlope, data.RescaleIntercept = 7, 7  # beside the groups
        data.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [
            data.PerFrameFunctionalGroupsSequence[1].PixelValueTransformationSequence[0]]

    hu = (scene() // 4) * 4
    join_frames(write_series(tmp_path, hu, slopes=SLOPES), tmp_path / "all.dcm", otherwise)
    assert np.array_equal(dicom_pixels.read_series(only(tmp_path)).hu, hu)


def test_one_series_may_be_cut_into_several_files(tmp_path):
    hu = scene()
    paths = write_series(tmp_path, hu)
    join_frames([paths[n] for n in (1, 4, 2)], tmp_path / "a.dcm")
    join_frames([paths[n] for n in (5, 0)], tmp_path / "b.dcm")  # and one image beside them
    series = only(tmp_path)
    assert np.array_equal(dicom_pixels.read_series(series).hu, hu)
    assert len({each.path for each in series.slices}) == 3


def test_a_scout_among_the_frames_is_left_out_and_the_others_are_still_themselves(tmp_path):
    def localizer(number, data):
        if number == 0:
            data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    hu = scene()
    join_frames(write_series(tmp_path, hu, change=localizer), tmp_path / "all.dcm")
    series = only(tmp_path)
    assert series.notes == ("1 scout images left out",) and series.frames == (1, 2, 3, 4, 5)
    assert np.array_equal(dicom_pixels.read_series(series).hu, hu[1:])


# ------------------------------------------------------------------ refusals

def of_frame(number, macro, name, value):
    def change(data):
        [item] = data.PerFrameFunctionalGroupsSequence[number][macro].value
        setattr(item, name, value)
    return change


def tilted(data):
    for number, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = [x, y + number * 0.5, z]


def two_spacings(data):
    shared = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    for number, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        group.PixelMeasuresSequence = [item := shared[0].__class__()]
        item.PixelSpacing = [1, 1 + number // 3]


def without_groups(data):
    del data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence


def without_rescaling(data):
    del data.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence


PLACE = "PlanePositionSequence", "ImagePositionPatient"
ODD = {
    "a frame missing": (of_frame(3, *PLACE, [-12.0, 7.5, -293.5]), "uneven distances"),
    "a place twice": (of_frame(3, *PLACE, [-12.0, 7.5, -296.0]), "two different images"),
    "gantry tilt": (tilted, "gantry tilt of 14"),
    "two spacings": (two_spacings, "2 pixel spacings"),
    "no position": (of_frame(3, *PLACE, None), "1 of 6 images lack position"),
    "no intercept": (without_rescaling, "6 of 6 images have no RescaleIntercept"),
    "no groups": (without_groups, "holds 6 frames and does not say where each lies")}


@pytest.mark.parametrize(("change", "words"), ODD.values(), ids=ODD)
def test_a_broken_file_says_what_is_wrong(tmp_path, change, words):
    join_frames(write_series(tmp_path, scene()), tmp_path / "all.dcm", change)
    series = only(tmp_path)
    assert series.geometry is None and series.reason is None and words in series.fault


def test_frames_that_are_not_described_are_damage(tmp_path):
    def fewer(data):
        del data.PerFrameFunctionalGroupsSequence[-1]

    path = join_frames(write_series(tmp_path, scene()), tmp_path / "all.dcm", fewer)
    assert "all.dcm: damaged header (6 frames, but 5 are described)" in dicom.read_slices(path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def compressed(path):
    import pydicom

    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + b"\0" * 20] * 6)
    data.save_as(path)


@pytest.mark.parametrize(("spoil", "words"), [
    (cut, "all.dcm: its pixels are cut short or damaged"),
    (compressed, "all.dcm is compressed .JPEG Lossless.*install python-gdcm")])
def test_pixels_that_cannot_be_read_are_named(tmp_path, spoil, words):
    spoil(join_frames(write_series(tmp_path, scene()), tmp_path / "all.dcm"))
    with pytest.raises(Fault, match=words):
        dicom_pixels.read_series(only(tmp_path))
