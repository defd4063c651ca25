"""Scans with their nodules in nnU-Net's raw layout: at their places, for each of its readers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ct_seg
from ct_files import CHEST_STEP, ORIGIN, chest, write_mhd
from lungkit.ct.plan import Job
from lungkit.run.faults import Stopped
from lungkit.run.output import Output

RADIUS_MM = 7.0
PATIENTS = 6


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> tuple[Path, dict[str, tuple]]:
    """Six chests with a nodule each, of grades 1 and 5 in turn, and where each lies in LPS mm."""
    root, places = tmp_path_factory.mktemp("scans"), {}
    lines = ["file,x,y,z,diameter_mm,grade"]
    for number in range(PATIENTS):
        voxel = (6 + number % 3, 26 + number, 46 if number % 2 else 18)
        places[f"P{number}"] = tuple(o + s * v for o, s, v in
                                     zip(ORIGIN, CHEST_STEP[::-1], voxel[::-1]))
        sign = 1 if number else -1  # the first is stored from the left and the back
        matrix = [(sign, 0, 0), (0, sign, 0), (0, 0, 1)]
        hu = chest([(voxel, RADIUS_MM)], seed=number)
        origin = ORIGIN
        if not number:
            hu = hu[:, ::-1, ::-1]
            last = [(length - 1) * step for length, step in
                    zip(hu.shape[:0:-1], CHEST_STEP[:0:-1])]
            origin = (ORIGIN[0] + last[0], ORIGIN[1] + last[1], ORIGIN[2])
        write_mhd(root / f"P{number}.mhd", np.ascontiguousarray(hu), step=CHEST_STEP,
                  origin=origin, matrix=matrix)
        lines.append(",".join(map(str, (f"P{number}", *places[f"P{number}"], 2 * RADIUS_MM,
                                        1 + 4 * (number % 2)))))
    (root / "nodules.csv").write_text("\n".join(lines))
    return root, places


def run(scans, real, *more):
    return ct_seg.main(["--input", str(scans), "--nodules", str(scans / "nodules.csv"), "--output",
                        str(real), "--seed", "1", *more])


@pytest.fixture(scope="module")
def written(scans, tmp_path_factory) -> tuple[Path, Path]:
    """The dataset, made before, and the layout, asked for after it."""
    root = tmp_path_factory.mktemp("made")
    assert run(scans[0], root / "real") == 0
    made_at = (root / "real/dataset.json").stat().st_mtime_ns
    assert run(scans[0], root / "real", "--nnunet", str(root / "nnunet")) == 0
    assert (root / "real/dataset.json").stat().st_mtime_ns == made_at
    return root / "real", root / "nnunet"


def cases(folder):
    with open(folder / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_layout_is_what_nnunet_reads(written):
    real, folder = written
    split_of = {row["patient"]: row["split"] for row in
                csv.DictReader((real / "split.csv").read_text().splitlines())}
    manifest = json.loads((folder / "dataset.json").read_text())
    assert manifest["channel_names"] == {"0": "CT"} and manifest["file_ending"] == ".nii.gz"
    assert manifest["labels"] == {"background": 0, "nodule": 1}
    assert manifest["numTraining"] == len(list((folder / "imagesTr").iterdir()))
    [fold] = json.loads((folder / "splits_final.json").read_text())
    assert len(cases(folder)) == PATIENTS
    for row in cases(folder):
        assert row["split"] == split_of[row["patient"]]
        side = "Ts" if row["split"] == "test" else "Tr"
        assert (folder / f"images{side}/{row['case']}_0000.nii.gz").is_file()
        assert (folder / f"labels{side}/{row['case']}.nii.gz").is_file()
        assert (row["case"] in fold["train"]) == (row["split"] == "train")
        assert (row["case"] in fold["val"]) == (row["split"] == "val")
    assert len(list(folder.rglob("*.nii.gz"))) == 2 * PATIENTS


@pytest.mark.parametrize("reader", ["nibabel", "SimpleITK"])
def test_voxels_and_nodules_lie_where_the_scan_has_them(reader, scans, written):
    source, places = scans
    sitk = pytest.importorskip("SimpleITK")
    for row in cases(written[1]):
        side = "Ts" if row["split"] == "test" else "Tr"
        files = (written[1] / f"images{side}/{row['case']}_0000.nii.gz",
                 written[1] / f"labels{side}/{row['case']}.nii.gz")
        before = sitk.DICOMOrient(sitk.ReadImage(str(source / f"{row['series']}.mhd")), "LPS")
        if reader == "SimpleITK":
            image, labels = (sitk.ReadImage(str(file)) for file in files)
            hu, found = (sitk.GetArrayFromImage(each) for each in (image, labels))
            centre = image.TransformContinuousIndexToPhysicalPoint(
                [float(axis.mean()) for axis in np.nonzero(found)][::-1])
            assert np.allclose(image.GetOrigin(), before.GetOrigin(), atol=1e-3)
        else:
            import nibabel
            image, labels = (nibabel.load(file) for file in files)
            assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
            hu, found = (np.asarray(each.dataobj).transpose(2, 1, 0) for each in (image, labels))
            middle = [float(axis.mean()) for axis in np.nonzero(found)][::-1]
            centre = nibabel.affines.apply_affine(image.affine, middle) * (-1, -1, 1)
            assert np.array_equal(image.affine, labels.affine)
        assert np.array_equal(hu, sitk.GetArrayFromImage(before)) and hu.dtype == np.int16
        assert np.allclose(centre, places[row["series"]], atol=max(CHEST_STEP) / 2)
        assert set(np.unique(found)) == {0, 1}
        ball = found.sum() * np.prod(CHEST_STEP) / (4 / 3 * np.pi * RADIUS_MM**3)
        assert 0.8 < ball < 1.2


def test_what_is_neither_a_nodule_nor_healthy_is_the_label_that_nnunet_ignores(tmp_path):
    import nibabel

    from lungkit.ct import nnunet
    from lungkit.ct.annotations import Annotated, Place
    from lungkit.ct.nodules import sphere
    from lungkit.formats.volumes import Geometry, Volume

    geometry = Geometry((4, 20, 20), np.zeros(3), np.fliplr(np.eye(3)))
    counted = sphere(geometry, (5, 5, 2), 4.0, name="1")
    scan = SimpleNamespace(
        annotated=Annotated("table", (counted,), (Place((2.0, 14.0, 14.0), 3.0),
                                                  Place((2.0, 5.0, 7.0), 3.0))),
        geometry=geometry, name="a", patient="p",
        load=lambda: Volume(np.zeros(geometry.shape, np.int16), geometry))
    for counts in ((counted,), ()):
        jobs = [Job(scan, "train", counts, ())]
        target = Output(tmp_path / str(len(counts)), "dataset.json", {})
        nnunet.export(target, jobs, lambda work, items, **_: map(work, items))
        found = json.loads((target.output_dir / "dataset.json").read_text())["labels"]
        assert found == {"background": 0, "nodule": 1, "ignore": 2}
        labels = np.asarray(nibabel.load(
            target.output_dir / "labelsTr/scan_0000.nii.gz").dataobj).transpose(2, 1, 0)
        values = [labels[2, y, x] for y, x in ((5, 5), (5, 7), (14, 14), (9, 9))]
        assert values == ([1, 1, 2, 0] if counts else [2, 2, 2, 0])


def test_again_it_is_complete_and_elsewhere_made_from_what_is_there(scans, written, tmp_path,
                                                                     monkeypatch, capfd):
    from lungkit.ct import nnunet
    real, folder = written
    assert run(scans[0], real, "--nnunet", str(folder)) == 0
    assert "already complete" in capfd.readouterr().out
    write, count = nnunet.write_case, []

    def stop_at_three(item, folder):
        count.append(item[0])
        if len(count) == 3:
            raise Stopped("killed")
        write(item, folder)

    monkeypatch.setattr(nnunet, "write_case", stop_at_three)
    assert run(scans[0], real, "--nnunet", str(tmp_path / "other")) == 75
    assert not (tmp_path / "other").exists()
    assert run(scans[0], real, "--nnunet", str(tmp_path / "other")) == 0
    assert len(count) == 3 + PATIENTS - 2
    for file in folder.rglob("*.*"):
        other = tmp_path / "other" / file.relative_to(folder)
        assert other.read_bytes() == file.read_bytes() or file.name == "dataset.json"


def test_a_layout_in_the_input_or_of_pictures_is_refused(scans, tmp_path, capfd):
    for place, words in ((scans[0] / "x", "and --input"), (tmp_path / "real", "--output"),
                         (tmp_path / "real/x", "--output")):
        assert run(scans[0], tmp_path / "real", "--nnunet", str(place)) == 2
        said = capfd.readouterr().err
        assert "--nnunet" in said and words in said and "lie one inside the other" in said
    assert run(scans[0], tmp_path / "real", "--nnunet", str(tmp_path / "x"), "--images",
               str(scans[0] / "nodules.csv")) == 2
    assert "is of scans, not of --images" in capfd.readouterr().err
