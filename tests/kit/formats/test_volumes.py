"""CT volumes of MetaImage and NIfTI against SimpleITK and nibabel, and what is refused."""

from __future__ import annotations

import gzip
import itertools
import shutil

import numpy as np
import pytest

from ct_files import ORIGIN, STEP, scene, write_mhd, write_nifti
from lungkit.formats import metaimage, nifti
from lungkit.formats.volumes import canonical, check_hu, to_hu
from lungkit.run.faults import Fault


def itk(path):
    """int16 [Z, Y, X] and its physical point of voxel z y x, by SimpleITK, brought to LPS axes."""
    SimpleITK = pytest.importorskip("SimpleITK")
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "LPS")
    return (SimpleITK.GetArrayFromImage(image), np.array(image.GetOrigin()),
            np.array(image.GetSpacing())[::-1])


FLIPS = [np.diag(signs) for signs in itertools.product((1, -1), repeat=3)]
TURNS = [np.eye(3)[list(order)] for order in itertools.permutations(range(3))]


@pytest.mark.parametrize("matrix", [*FLIPS, *TURNS[1:], TURNS[2] @ FLIPS[3]],
                         ids=lambda m: "".join(map("{:g}".format, m.ravel())))
def test_a_metaimage_of_any_matrix_is_simpleitks(tmp_path, matrix):
    path = write_mhd(tmp_path / "a.mhd", scene(), matrix=matrix)
    volume = metaimage.read_metaimage(path)
    pixels, origin, spacing = itk(path)
    assert np.array_equal(volume.hu, pixels)
    assert np.allclose(volume.geometry.origin_mm, origin)
    assert np.allclose(volume.geometry.spacing_mm, spacing)
    assert volume.geometry.shape == metaimage.read_geometry(path).shape == volume.hu.shape


@pytest.mark.parametrize("how", [{"big": True}, {"compressed": True}, {"local": True},
                                 {"compressed": True, "local": True}], ids=str)
def test_a_metaimage_of_any_coding_is_the_same(tmp_path, how):
    path = write_mhd(tmp_path / ("a.mha" if how.get("local") else "a.mhd"), scene(), **how)
    assert np.array_equal(metaimage.read_metaimage(path).hu, scene())
    assert np.array_equal(itk(path)[0], scene())


@pytest.mark.parametrize("order", ["RAS", "LPS", "LAS", "RPI", "PIR", "SAL"])
def test_a_nifti_of_any_orientation_is_one_volume_and_simpleitks(tmp_path, order):
    path = write_nifti(tmp_path / "a.nii.gz", scene(), order=order)
    volume = nifti.read_nifti(path)
    assert np.array_equal(volume.hu, scene())
    assert np.allclose(volume.geometry.origin_mm, ORIGIN, atol=1e-4)
    assert np.allclose(volume.geometry.spacing_mm, STEP, atol=1e-4)
    pixels, origin, _ = itk(path)
    assert np.array_equal(pixels, volume.hu)
    assert np.allclose(origin, volume.geometry.origin_mm, atol=1e-4)


def test_a_nifti_says_the_decimals_that_were_written(tmp_path):
    """Its header holds 0.7 as 0.69999999, which would make other crops than those of DICOM."""
    path = write_nifti(tmp_path / "a.nii", scene(), step=(1.3, 0.7421875, 0.7), origin=(0.1, 7, -3))
    geometry = nifti.read_geometry(path)
    assert geometry.spacing_mm == (1.3, 0.7421875, 0.7)
    assert np.abs(geometry.origin_mm - [0.1, 7, -3]).max() < 1e-12


def test_a_nifti_with_a_slope_is_scaled(tmp_path):
    hu = scene()
    path = write_nifti(tmp_path / "a.nii", (hu + 1024).astype(np.uint16), slope=(1, -1024))
    assert np.array_equal(nifti.read_nifti(path).hu, hu)


def test_world_and_voxels_go_both_ways(tmp_path):
    path = write_mhd(tmp_path / "a.mhd", scene(), matrix=TURNS[3] @ FLIPS[5])
    geometry = metaimage.read_geometry(path)
    points = np.random.default_rng(0).normal(size=(5, 3)) * 20
    assert np.allclose(geometry.to_world(geometry.to_voxels(points)), points)
    z, y, x = geometry.steps_mm
    assert z[2] > 0 and y[1] > 0 and x[0] > 0


def test_turned_coordinates_find_their_voxel():
    array = np.arange(24).reshape(2, 3, 4)
    steps = np.array([[0, -2.0, 0], [0, 0, -1.5], [1.0, 0, 0]])  # y backwards, z downwards, x
    geometry, turn = canonical(array.shape, np.zeros(3), steps)
    turned = turn(array)
    assert turned.shape == geometry.shape
    for index in np.ndindex(array.shape):
        at = turn.point(np.array(index), geometry.shape).astype(int)
        assert turned[tuple(at)] == array[index]
        assert np.allclose(geometry.to_world(at), np.array(index) @ steps)


# ------------------------------------------------------------------ refusals

def cut_gzip(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", scene((8, 40, 40)))
    path.write_bytes(path.read_bytes()[:-3000])
    return path


def contradicting(tmp_path):
    import nibabel

    path = write_nifti(tmp_path / "a.nii", scene())
    image = nibabel.load(path)
    image.set_qform(np.diag([1, 1, 3, 1]), 1)
    nibabel.save(image, tmp_path / "b.nii")
    return tmp_path / "b.nii"


def four_dimensions(tmp_path):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.eye(4)),
                 tmp_path / "a.nii")
    return tmp_path / "a.nii"


def apple_double(tmp_path):
    (tmp_path / "._a.nii.gz").write_bytes(b"\0\5\26\7")
    return tmp_path / "._a.nii.gz"


def no_raw(tmp_path):
    path = write_mhd(tmp_path / "a.mhd", scene())
    path.with_suffix(".raw").unlink()
    return path


def sheared(tmp_path):
    return write_mhd(tmp_path / "a.mhd", scene(), matrix=[[1, 0, 0], [0, 1, 0], [0, 0.2, 1]])


def oblique(tmp_path):
    cos, sin = np.cos(0.2), np.sin(0.2)  # 11.5 degrees about x
    return write_mhd(tmp_path / "a.mhd", scene(), matrix=[[1, 0, 0], [0, cos, sin], [0, -sin, cos]])


def with_nan(tmp_path):
    values = scene().astype(np.float32)
    values[0, 0, 0] = np.nan
    return write_nifti(tmp_path / "a.nii", values)


def damaged_gzip(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(b"not a nifti" * 100))
    return path


@pytest.mark.parametrize(("make", "words"), [
    (cut_gzip, "cut short"), (contradicting, "qform and sform"), (four_dimensions, "4 dimensions"),
    (apple_double, "AppleDouble"), (no_raw, "a.raw, are missing"), (sheared, "gantry tilt"),
    (oblique, "oblique"), (with_nan, "no numbers"), (damaged_gzip, "no whole NIfTI"),
    (lambda t: write_mhd(t / "a.mhd", scene(), cut=10), "copy it again"),
    (lambda t: write_mhd(t / "a.mhd", scene(), compressed=True, cut=10), "cut short"),
    (lambda t: write_nifti(t / "a.nii", (scene() / 1000).astype(np.float32)), "divided by 1000"),
    (lambda t: write_nifti(t / "a.nii", np.clip(scene(), -1000, 400)), "cut to a window"),
    (lambda t: write_nifti(t / "a.nii", scene() + np.int16(1024)), "no air"),
    (lambda t: write_nifti(t / "a.nii", scene(), sform=False), "")])
def test_a_volume_that_cannot_be_believed_is_refused_in_one_line(tmp_path, make, words):
    path = make(tmp_path)
    if words:
        with pytest.raises(Fault, match=words) as fault:
            (metaimage.read_metaimage if path.suffix == ".mhd" else nifti.read_nifti)(path)
        assert path.name in str(fault.value) and "\n" not in str(fault.value)
    else:  # nibabel's own affine sets one of the two forms: fine
        nifti.read_nifti(path)


@pytest.mark.parametrize(("least", "most"), [(0, 1), (-1000, 400), (-3, 2000), (-1, 3)])
def test_values_that_are_no_hu_are_named(least, most):
    with pytest.raises(Fault):
        check_hu(least, most)
    check_hu(-1024, 3071)
    check_hu(-3024, 1800)


def test_values_become_hu_by_slab_as_at_once():
    raw = np.arange(40 * 3 * 2, dtype=np.uint16).reshape(40, 3, 2)
    assert np.array_equal(to_hu(raw, 1, -1024), raw.astype(int) - 1024)
    assert np.array_equal(to_hu(raw, 0.5, -10.2), np.rint(raw * 0.5 - 10.2))
    with pytest.raises(Fault, match="no HU"):
        to_hu(raw, 1000, 0)


def test_a_header_alone_is_read_where_the_voxels_are_not_there(tmp_path):
    path = write_mhd(tmp_path / "x" / "a.mhd", scene())
    shutil.copy(path, tmp_path / "b.mhd")
    assert metaimage.read_geometry(tmp_path / "b.mhd").shape == scene().shape
