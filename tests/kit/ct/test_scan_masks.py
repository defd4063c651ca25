"""Masks put back into scans: on the grid of every kind of file, as two other readers see it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import ct_seg
from ct_files import CHEST_STEP, ORIGIN, ball, chest, write_mhd, write_nifti, write_series
from lungkit.ct import scan_masks
from lungkit.data import mask_items
from lungkit.data.dataset import open_dataset
from lungkit.formats.volumes import canonical
from lungkit.run.faults import Fault

CENTRE, RADIUS_MM = (6, 26, 46), 6.0
SERIES = {"mhd": "flipped", "nifti": "turned", "dicom": "1.2.3.4"}
TURNED = (-1, -1, 1)  # stored from the left and the back


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A chest as three kinds of files, a truth beside each, written alike; the dataset of them."""
    root = tmp_path_factory.mktemp("scans")
    hu, truth = chest([(CENTRE, RADIUS_MM)]), ball((12, 64, 64), CENTRE, RADIUS_MM)
    truth[[4, 8]] = False  # sections too small to be images of it
    end = (ORIGIN[0] + 63 * CHEST_STEP[2], ORIGIN[1] + 63 * CHEST_STEP[1], ORIGIN[2])
    for folder, values in (("in", hu), ("true", truth.astype(np.int16))):
        write_mhd(root / folder / "flipped.mhd", np.ascontiguousarray(values[:, ::-1, ::-1]),
                  step=CHEST_STEP, origin=end, matrix=np.diag(TURNED))
        write_nifti(root / folder / "turned.nii.gz", values, step=CHEST_STEP, order="PIR")
        write_series(root / folder / "dicom", values, step=CHEST_STEP)
    x, y, z = (o + s * v for o, s, v in zip(ORIGIN, CHEST_STEP[::-1], CENTRE[::-1]))
    (root / "in/nodules.csv").write_text("".join(
        ["series,x,y,z,diameter_mm,patient\n", *(
            f"{name},{x},{y},{z},{2 * RADIUS_MM},{name}\n" for name in SERIES.values())]))
    (root / "in/patients.csv").write_text("series,patient\n" + "".join(
        f"{name},{name}\n" for name in SERIES.values()))
    (root / "split.csv").write_text("patient,split\n" + "".join(
        f"{name},{split}\n" for name, split in zip(SERIES.values(), ("train", "val", "test"))))
    # 63 px of 126 mm: a pixel is a voxel, and their centres are one
    assert ct_seg.main(["--input", str(root / "in"), "--output", str(root / "real"), "--nodules",
                        str(root / "in/nodules.csv"), "--patients", str(root / "in/patients.csv"),
                        "--split-from", str(root / "split.csv"), "--view", "slice", "--labels",
                        "presence", "--slices-per-nodule", "9", "--image-size", "63",
                        "--field-mm", "126"]) == 0
    return root


@pytest.fixture(scope="module")
def written(scans, tmp_path_factory):
    """The folder of masks of all three, of the truth of the dataset."""
    folder, data = tmp_path_factory.mktemp("masks"), open_dataset(scans / "real")
    for split in ("train", "val", "test"):
        masks, known = mask_items.load_masks(data, split, mask_items.Target("nodule"))
        [item] = mask_items.items_of(data, split, known)
        truth = masks[list(item.images)] > 0
        scan_masks.write_mask(folder, scan_masks.open_scans(data, split), item,
                              truth * np.uint8(255), truth, 128)
    return folder


@pytest.mark.parametrize("kind", SERIES)
def test_a_mask_of_the_truth_is_the_truth_s_voxels_on_the_grid_of_the_file(kind, scans, written):
    sitk = pytest.importorskip("SimpleITK")

    def read(folder):
        if kind != "dicom":
            [path] = scans.glob(f"{folder}/{SERIES[kind]}.*[dz]")
            return sitk.ReadImage(str(path))
        return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(
            str(scans / folder / "dicom")))

    found, scan = sitk.ReadImage(str(written / f"{SERIES[kind]}.nii.gz")), read("in")
    for what in ("Size", "Origin", "Spacing", "Direction"):
        assert np.allclose(getattr(found, f"Get{what}")(), getattr(scan, f"Get{what}")(),
                           atol=1e-4), what
    assert np.array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(read("true")))
    assert sitk.GetArrayFromImage(found).sum() > 50


def test_nibabel_sees_the_affine_of_the_source(scans, written):
    import nibabel

    found, scan, truth = (nibabel.load(folder / "turned.nii.gz")
                          for folder in (written, scans / "in", scans / "true"))
    assert np.array_equal(found.affine, scan.affine) and found.get_data_dtype() == np.uint8
    assert np.array_equal(found.get_qform(), scan.get_qform())
    assert np.array_equal(np.asarray(found.dataobj), np.asarray(truth.dataobj))


def one(levels, found, least, *, spacing=(1.0, 1.0), slices=(1,), mm_per_px=1.0, tmp_path):
    """[Z, Y, X] of a scan of three slices of 8 x 8 around whose middle the images lie."""
    import nibabel

    grid = canonical((8, 8, 3), (0, 0, 0), np.diag([spacing[1], spacing[0], 2.0]))
    row = SimpleNamespace(extra={"centre_row": "3.5", "centre_column": "3.5"})
    item = mask_items.Item("s", "g", tuple(range(len(slices))), slices, None)
    scan_masks.write_mask(tmp_path, scan_masks.Scans([row] * len(slices), {"s": grid}, mm_per_px),
                          item, levels, found, least)
    return np.asarray(nibabel.load(tmp_path / "s.nii.gz").dataobj).T


def test_probabilities_are_interpolated_and_what_was_too_small_stays_out(tmp_path):
    levels = np.zeros((1, 4, 4), np.uint8)
    levels[0, 1:3, 1:3], levels[0, 0, 3] = 200, 250
    found = levels > 150
    found[0, 0, 3] = False  # a component that was too small
    mask = one(levels, found, 100, mm_per_px=2.0, tmp_path=tmp_path)
    assert not mask[[0, 2]].any()  # slices that no image shows
    wanted = np.zeros((8, 8), bool)
    wanted[2:6, 2:6] = True
    assert np.array_equal(mask[1] > 0, wanted)


def test_what_lies_outside_the_image_is_not_found(tmp_path):
    full = np.full((1, 4, 4), 255, np.uint8)
    mask = one(full, full > 0, 128, tmp_path=tmp_path)
    wanted = np.zeros((8, 8), bool)
    wanted[2:6, 2:6] = True
    assert np.array_equal(mask[1] > 0, wanted)


def test_rows_and_columns_may_be_of_other_lengths(tmp_path):
    levels = np.zeros((1, 4, 4), np.uint8)
    levels[0, 1:3, 0:4] = 255
    mask = one(levels, levels > 0, 128, spacing=(2.0, 1.0), mm_per_px=2.0, tmp_path=tmp_path)
    wanted = np.zeros((8, 8), bool)
    wanted[3:5, :] = True
    assert np.array_equal(mask[1] > 0, wanted)


@pytest.mark.parametrize(("change", "words"), [
    (lambda data: data.rows[0].extra.pop("centre_row"), "does not say where its slices lie"),
    (lambda data: setattr(data, "um_per_px", None), "does not say where its slices lie"),
    (lambda data: data.manifest["parameters"].update(view="crop"), "does not show whole slices"),
    (lambda data: [row.extra.update(series="other") for row in data.rows], "lacks series other"),
    (lambda data: data.rows[0].extra.update(series="../x"), "'../x' .* cannot be the name of a")])
def test_a_dataset_that_does_not_know_its_scans_is_one_line(change, words, scans):
    data = open_dataset(scans / "real")
    data.rows.sort(key=lambda row: row.split != "test")
    change(data)
    with pytest.raises(Fault, match=words):
        scan_masks.open_scans(data)
