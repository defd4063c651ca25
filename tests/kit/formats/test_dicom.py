"""DICOM series: order, HU and place against SimpleITK; what is no scan, and what is broken."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ct_files import scene, write_series
from lungkit.formats import dicom, dicom_pixels
from lungkit.run.faults import Fault

DATA = Path(os.environ.get("CT_DATA", ""))  # scans of real patients, not ours to ship


def series_of(root) -> list[dicom.Series]:
    read = [dicom.read_slices(path) for path in sorted(root.rglob("*.dcm"))]
    assert not [each for each in read if isinstance(each, str)]
    return dicom.gather(one for each in read for one in each)


def only(root) -> dicom.Series:
    (series,) = series_of(root)
    return series


def itk(series):
    SimpleITK = pytest.importorskip("SimpleITK")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(s.path) for s in series.slices])
    image = SimpleITK.DICOMOrient(reader.Execute(), "LPS")
    return (SimpleITK.GetArrayFromImage(image), np.array(image.GetOrigin()),
            np.array(image.GetSpacing())[::-1])


AXES = {"supine": {}, "prone": {"rows": (-1, 0, 0), "columns": (0, -1, 0)},
        "feet first": {"rows": (-1, 0, 0), "columns": (0, 1, 0)},
        "rows down": {"rows": (0, 1, 0), "columns": (1, 0, 0)}}


@pytest.mark.parametrize("how", AXES.values(), ids=AXES)
def test_a_series_of_any_position_is_simpleitks(tmp_path, how):
    write_series(tmp_path, scene(), **how)
    series = only(tmp_path)
    assert (series.reason, series.fault) == (None, None)
    volume = dicom_pixels.read_series(series)
    pixels, origin, spacing = itk(series)
    assert np.array_equal(volume.hu, pixels)
    assert np.allclose(volume.geometry.origin_mm, origin)
    assert np.allclose(volume.geometry.spacing_mm, spacing)
    one = series.slices[0]  # of the file: its first pixel lies where the file says
    at = series.turn.point(np.array([0, 0, 0]), volume.geometry.shape)
    assert np.allclose(volume.geometry.to_world(at), one.position_mm)


def test_every_file_has_its_own_slope_and_intercept(tmp_path):
    hu = (scene() // 4) * 4
    write_series(tmp_path, hu, slopes=[1, 2, 1, 4, 0.5, 1])
    assert np.array_equal(dicom_pixels.read_series(only(tmp_path)).hu, hu)


def test_two_series_in_one_folder_are_two(tmp_path):
    write_series(tmp_path, scene(), series="1.2.5")
    write_series(tmp_path / "again", scene(seed=1), series="1.2.4")
    assert [each.first.series for each in series_of(tmp_path)] == ["1.2.4", "1.2.5"]
    assert all(each.geometry for each in series_of(tmp_path))


def localizer(number, data):
    if number == 5:
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def test_a_scout_and_a_second_copy_are_left_out_and_named(tmp_path):
    paths = write_series(tmp_path, scene(), change=localizer)
    (tmp_path / "copy.dcm").write_bytes(paths[1].read_bytes())
    series = only(tmp_path)
    assert series.geometry.shape == (5, 12, 10)
    assert series.notes == ("1 scout images left out", "1 copies of files left out")


def setting(name, value, only_of=None):
    def change(number, data):
        if only_of in (None, number):
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)
    return change


def tilted(number, data):
    x, y, z = data.ImagePositionPatient
    data.ImagePositionPatient = [x, y + number * 0.5, z]


ODD = {
    "no intercept": ({"change": setting("RescaleIntercept", None, 2)}, "no RescaleIntercept"),
    "a slice missing": ({"skip": (3,)}, r"1 uneven distances.*\(1 slices missing\)"),
    "a place twice": ({"change": lambda n, d: n == 3 and setattr(
        d, "ImagePositionPatient", [-12.0, 7.5, -296.0])}, "two different images"),
    "gantry tilt": ({"change": tilted}, "gantry tilt of 14"),
    "two frames of reference": ({"change": setting("FrameOfReferenceUID", "1.9", 1)}, "mixed"),
    "two patients": ({"change": setting("PatientID", "other", 1)}, "2 patients"),
    "two spacings": ({"change": setting("PixelSpacing", [1, 1], 1)}, "2 pixel spacings"),
    "no position": ({"change": setting("ImagePositionPatient", None, 1)}, "lack position")}
OTHER = {
    "PET": ({"Modality": "PT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"}, "is PT, not CT"),
    "segmentation": ({"Modality": "SEG"}, "is SEG"),
    "structures": ({"Modality": "RTSTRUCT"}, "is RTSTRUCT"), "film": ({"Modality": "DX"}, "is DX"),
    "sagittal": ({"rows": (0, 1, 0), "columns": (0, 0, -1)}, "is sagittal"),
    "coronal": ({"rows": (1, 0, 0), "columns": (0, 0, -1)}, "is coronal"),
    "scout": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "is a scout"),
    "one image": ({"skip": (0, 1, 2, 3, 4)}, "single image")}


@pytest.mark.parametrize(("how", "words"), ODD.values(), ids=ODD)
def test_a_broken_series_says_what_is_wrong(tmp_path, how, words):
    import re

    write_series(tmp_path, scene(), **how)
    series = only(tmp_path)
    assert series.geometry is None and series.reason is None
    assert re.search(words, series.fault)


@pytest.mark.parametrize(("how", "words"), OTHER.values(), ids=OTHER)
def test_what_is_no_axial_ct_is_told_from_what_is_broken(tmp_path, how, words):
    write_series(tmp_path, scene(), **how)
    series = only(tmp_path)
    assert series.fault is None and words in series.reason


def cut(paths):
    paths[2].write_bytes(paths[2].read_bytes()[:-40])


def compressed(paths):
    import pydicom

    data = pydicom.dcmread(paths[2])
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + b"\0" * 20])
    data.save_as(paths[2])


def windowed(paths):
    import pydicom

    for path in paths:
        data = pydicom.dcmread(path)
        hu = np.frombuffer(data.PixelData, "<i2") - 1024
        data.PixelData = (np.clip(hu, -1000, 400) + 1024).astype("<i2").tobytes()
        data.save_as(path)


@pytest.mark.parametrize(("spoil", "words"), [
    (cut, "cut short or damaged"), (compressed, "JPEG Lossless.*install python-gdcm"),
    (windowed, "cut to a window")])
def test_pixels_that_cannot_be_read_are_named(tmp_path, spoil, words):
    spoil(write_series(tmp_path, scene()))
    with pytest.raises(Fault, match=words):
        dicom_pixels.read_series(only(tmp_path))


def test_what_is_no_dicom_is_no_slice(tmp_path):
    (tmp_path / "notes").write_bytes(b"x" * 200)
    (tmp_path / "torn.dcm").write_bytes(b"\0" * 128 + b"DICM\x02\0\0\0UL\x04\0\xff")
    assert dicom.read_slices(tmp_path / "notes") == []
    torn = dicom.read_slices(tmp_path / "torn.dcm")
    assert isinstance(torn, str) or [each.series for each in torn] == [""]


# ------------------------------------------------------------------ real scans

STAGED = {"dicom_ct_series": [((40, 512, 512), "B70f", 3.0)],
          "lung_pet_ct_dx_A0001": [((35, 512, 512), "B", 5.0), ((35, 512, 512), "L", 5.0)]}


@pytest.mark.parametrize("name", STAGED)
def test_real_scans_are_read_in_order_with_sane_hu(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"needs {name} below the folder that CT_DATA names")
    found = series_of(DATA / name)
    assert sorted((s.geometry.shape, s.first.kernel, s.geometry.spacing_mm[0])
                  for s in found) == STAGED[name]
    for series in found:
        z = [each.position_mm[2] for each in series.slices]
        assert z == sorted(z)
    volume = dicom_pixels.read_series(found[0])
    assert np.array_equal(volume.hu, itk(found[0])[0])
    values = volume.hu[:, ::4, ::4]
    lung = (values > -950) & (values < -700)   # as much lung as a chest has, fat and muscle
    soft = (values > -150) & (values < 120)
    assert values.min() == -1024 and 0.05 < lung.mean() < 0.4 and 0.1 < soft.mean() < 0.6
