"""Simulated chest CT on disk: four formats of one truth, whole, resumed and the same for ever."""

from __future__ import annotations

import csv
import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from lungkit.ct import images, studies, truth
from lungkit.ct.annotations import find_annotations
from lungkit.phantom.thorax import anatomy, dicom, lidc, nodules, readers, sample, scans, vessels
from lungkit.phantom.thorax.nodules import Law
from lungkit.phantom.thorax.sample import FORMATS, main, write_sample
from lungkit.phantom.thorax.scene import Grid
from lungkit.run.journal import ResultJournal

NIH = "{http://www.nih.gov}"

TINY = {"num_patients": 6, "nodules_per_patient": 2, "image_size": 36, "num_slices": 10,
        "field_mm": 100.0}


@pytest.fixture(scope="module")
def sample_dir(tmp_path_factory):
    """Six patients, seven scans, all formats. Read only."""
    path = tmp_path_factory.mktemp("thorax") / "sample"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vessels, "POINTS", 40)
        write_sample(path, formats=FORMATS, **TINY)
    return path


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def scans_of(sample_dir):
    return table(sample_dir / "truth" / "scans.csv")


def nifti(path):
    """(HU or labels [Z, Y, X] in LPS with rising axes, centre of the first voxel in mm)."""
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.as_closest_canonical(nibabel.load(path))
    values = np.asarray(image.dataobj).T[:, ::-1, ::-1]
    far = image.affine @ [values.shape[2] - 1, values.shape[1] - 1, 0, 1]
    return values, np.array([-far[0], -far[1], far[2]])


def dicom_volumes(folder):
    """{series UID: (HU [Z, Y, X], centre of the first voxel, headers from the lowest up)}."""
    pydicom = pytest.importorskip("pydicom")
    found = defaultdict(list)
    for path in folder.rglob("*.dcm"):
        data = pydicom.dcmread(path)
        found[data.SeriesInstanceUID].append(data)
    volumes = {}
    for series, files in found.items():
        if files[0].Modality == "CT":
            files.sort(key=lambda data: float(data.ImagePositionPatient[2]))
            volumes[series] = (np.stack([
                data.pixel_array.astype(int) * int(data.RescaleSlope) + int(data.RescaleIntercept)
                for data in files]), np.array(files[0].ImagePositionPatient, float), files)
    return volumes


@pytest.fixture(scope="module")
def lidc_volumes(sample_dir):
    return dicom_volumes(sample_dir / "LIDC-IDRI")


def centre_of(mask):
    """Column, row, slice of the middle of the largest box."""
    ends = {z: np.argwhere(plane) for z, plane in enumerate(mask) if plane.any()}
    area = {z: np.prod(np.ptp(at, 0) + 1) for z, at in ends.items()}
    equal = [z for z, each in area.items() if each == max(area.values())]
    index = equal[(len(equal) - 1) // 2]
    return np.array([*(ends[index].min(0) + np.ptp(ends[index], 0) / 2)[::-1], index])


def case_of(scan):
    number = int(scan["scan"][-1]) - 1
    return f"lung_{int(scan['patient']):03d}" + (str(number) if number else "")


# ------------------------------------------------------------------ one truth

def test_four_formats_show_the_same_voxels_in_the_same_place(sample_dir, lidc_volumes):
    itk = pytest.importorskip("SimpleITK")
    twins = dicom_volumes(sample_dir / "Lung-PET-CT-Dx")
    turned = 0
    assert len(lidc_volumes) == 7 and len(twins) == 14
    for scan in scans_of(sample_dir):
        hu, origin, _ = lidc_volumes[scan["series_uid"]]
        assert hu.shape == (10, 36, 36) and hu.std() > 200
        path, = (sample_dir / "LUNA16").glob(f"subset*/{scan['series_uid']}.mhd")
        image = itk.ReadImage(str(path))
        turned += image.GetDirection()[0] < 0
        upright = itk.DICOMOrient(image, "LPS")
        found, first = nifti(sample_dir / "Task06_Lung" / "imagesTr" / f"{case_of(scan)}.nii.gz")
        twin, corner, _ = twins[scan["series_uid"]]
        for values, place in ((itk.GetArrayFromImage(upright), upright.GetOrigin()),
                              (found, first), (twin, corner)):
            np.testing.assert_array_equal(values, hu)
            np.testing.assert_allclose(place, origin, atol=1e-3)
    assert turned == 3  # patients 3 and 6, who has two scans


def test_labels_and_boxes_and_points_are_the_consensus(sample_dir, lidc_volumes):
    findings = defaultdict(list)
    for row in table(sample_dir / "LUNA16" / "annotations.csv"):
        findings[row["seriesuid"]].append([float(row[f"coord{axis}"]) for axis in "XYZ"])
    nodules = defaultdict(dict)
    for row in table(sample_dir / "truth" / "nodules.csv"):
        nodules[row["scan"]][int(row["nodule"])] = row
    compared = 0
    for scan in scans_of(sample_dir):
        labels, origin = nifti(sample_dir / "truth" / "labels" / f"{scan['scan']}.nii.gz")
        kept = [number for number, row in nodules[scan["scan"]].items()
                if int(row["num_readers"]) >= 3 and float(row["consensus_mm"]) >= 3]
        cancer, _ = nifti(sample_dir / "Task06_Lung" / "labelsTr" / f"{case_of(scan)}.nii.gz")
        np.testing.assert_array_equal(cancer, np.isin(labels, kept))
        steps = np.array([float(scan["spacing_mm"])] * 2 + [float(scan["step_mm"])])
        centres = [centre_of(labels == number) * steps + origin for number in kept]
        np.testing.assert_allclose(np.reshape(findings[scan["series_uid"]], (-1, 3)),
                                   np.reshape(centres, (-1, 3)), atol=1e-3)
        for index, header in enumerate(lidc_volumes[scan["series_uid"]][2]):
            path = list((sample_dir / "Lung-PET-CT-Dx" / "Annotation").glob(
                f"*/{header.SOPInstanceUID}.xml"))
            boxes = sorted(
                tuple(int(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
                for each in path for box in ElementTree.parse(each).iter("bndbox"))
            wanted = []
            for number in kept:
                rows, columns = np.nonzero(labels[index] == number)
                if len(rows):
                    wanted.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            assert boxes == sorted(wanted)
            compared += len(boxes)
    assert compared > 20


def nodules_of(root, series_of, tmp_path):
    """{(series, slice, row, column of the image's middle): {slice: box}} of nodules that count."""
    annotations = find_annotations(root, None, None)
    with ResultJournal(tmp_path / root.name, "test", keep=False) as journal:
        kept, _ = studies.choose(studies.survey(root, annotations, journal, map))
    found = {}
    for scan in kept:
        for each in scan.annotated.nodules:
            index = each.largest_slice()
            at = [round(value, 5) for value in images.section_centre(each, index)]
            if scan.annotated.source == "boxes" or truth.dropped(each, truth.Rule()) is None:
                found[(series_of.get(scan.name, scan.name), index, *at)] = {
                    int(z): each.box(z) for z in each.slices()}
    return found


@pytest.mark.parametrize("round_nodules", [False, True])
def test_four_formats_say_of_every_nodule_the_same_place_and_boxes(
        sample_dir, tmp_path, monkeypatch, round_nodules):
    """By the readers of ct_seg.py; a ball has the boxes of nodules that are balls, and of no other.
    """
    sample = sample_dir
    if round_nodules:
        sample = tmp_path / "round"
        monkeypatch.setattr(vessels, "POINTS", 40)
        write_sample(sample, formats=FORMATS, **TINY | {"num_patients": 3}, round_nodules=True)
    series_of = {case_of(scan): scan["series_uid"] for scan in scans_of(sample)}
    assert sample == sample_dir or not set(series_of.values()) & {
        scan["series_uid"] for scan in scans_of(sample_dir)}
    found = {folder: nodules_of(sample / folder, series_of, tmp_path)
             for folder in ("LIDC-IDRI", "LUNA16", "Task06_Lung", "Lung-PET-CT-Dx")}
    wanted = found.pop("LIDC-IDRI")
    assert len(wanted) >= 4 and all(each.keys() == wanted.keys() for each in found.values())
    balls = found["LUNA16"] if round_nodules else found.pop("LUNA16")
    assert all(each == wanted for each in found.values())
    assert (balls == wanted) == round_nodules


def voxels_of(nodule, slices, shape):
    """What one reader's outlines enclose: strictly inside those of the nodule, not of its holes.

    slices: {SOP UID: (index, z in mm)}.
    """
    voxels = np.zeros(shape, bool)
    for roi in nodule.iter(f"{NIH}roi"):
        index, height = slices[roi.findtext(f"{NIH}imageSOP_UID")]
        assert float(roi.findtext(f"{NIH}imageZposition")) == pytest.approx(height)
        points = np.array([[int(edge.findtext(f"{NIH}{axis}Coord")) for axis in "xy"]
                           for edge in roi.iter(f"{NIH}edgeMap")], np.int32)
        part = np.zeros(shape[1:], np.uint8)
        cv2.fillPoly(part, [points], 1)
        part[points[:, 1], points[:, 0]] = 0
        voxels[index][part > 0] = roi.findtext(f"{NIH}inclusion") == "TRUE"
    return voxels


def test_a_hole_that_a_reader_cuts_out_is_an_outline_of_its_own():
    grid = Grid(48, 0.8, 20, 1.25, 1.25, (40.0, -20.0, -12.0))
    rng = np.random.default_rng(3)
    cavity = dataclasses.replace(
        nodules.draw_nodule(rng, 5, Law(), "isolated", (59.0, 0.0, 0.0), 20.0), cavity=0.45,
        attached="isolated")
    marks = readers.read(rng, anatomy.draw_chest(rng), (cavity,), grid, np.zeros((0, 3)))
    scan = SimpleNamespace(marks=marks, grid=grid, series_uid="2.25.1", study_uid="2.25.2")
    root = ElementTree.fromstring(lidc.message(scan, range(4), "2001-01-01"))
    slices = {dicom.sop_uid("2.25.1", index): (index, -12 + 1.25 * index) for index in range(20)}
    written = list(root.iter(f"{NIH}unblindedReadNodule"))
    assert len(written) == len(marks) > 2
    assert sum(mark.holes.any() for mark in marks) > 1
    for element, mark in zip(written, marks):
        wanted = np.zeros((20, 48, 48), bool)
        part = tuple(slice(at, at + size) for at, size in zip(mark.corner, mark.mask.shape))
        wanted[part] = mark.solid()
        np.testing.assert_array_equal(voxels_of(element, slices, wanted.shape), wanted)


def test_lidcs_outlines_give_the_consensus_back(sample_dir, lidc_volumes):
    """The rule: strictly inside the edge map, holes taken out, voxels of half of the readers."""
    for scan in scans_of(sample_dir):
        hu, _, headers = lidc_volumes[scan["series_uid"]]
        slices = {header.SOPInstanceUID: (index, float(header.ImagePositionPatient[2]))
                  for index, header in enumerate(headers)}
        path, = (sample_dir / "LIDC-IDRI").rglob(f"{scan['scan']}.xml")
        truth, _ = nifti(sample_dir / "truth" / "labels" / f"{scan['scan']}.nii.gz")
        votes, readers = np.zeros((int(truth.max()) + 1, *hu.shape), int), Counter()
        for session in ElementTree.parse(path).getroot().iter(f"{NIH}readingSession"):
            for nodule in session.iter(f"{NIH}unblindedReadNodule"):
                if nodule.find(f"{NIH}characteristics") is None:
                    continue
                voxels = voxels_of(nodule, slices, hu.shape)
                number = Counter(truth[voxels].tolist())
                number.pop(0, None)
                if number:
                    votes[number.most_common(1)[0][0]] += voxels
                    readers[number.most_common(1)[0][0]] += 1
        assert readers
        for number, count in readers.items():
            np.testing.assert_array_equal(2 * votes[number] >= count, truth == number)


# ------------------------------------------------------------------ what real trees hold

def test_the_traps_of_the_real_sets_are_there(sample_dir):
    def count(pattern):
        return len(list(sample_dir.glob(pattern)))

    assert count("LIDC-IDRI/THORAX-0006/*") == 2  # a patient with two scans
    assert count("LIDC-IDRI/THORAX-0004/*/*/*.xml") == 2  # an older XML beside
    assert count("LIDC-IDRI/THORAX-0001/*-DX/*/*.dcm") == 1
    assert count("Task06_Lung/imagesTr/._lung_*.nii.gz") == 7
    assert count("LUNA16/seg-lungs-LUNA16/*.mhd") == 7
    excluded = table(sample_dir / "LUNA16" / "annotations_excluded.csv")
    assert {"-1"} < {row["diameter_mm"] for row in excluded}
    listed = json.loads((sample_dir / "Task06_Lung" / "dataset.json").read_text())
    assert len(listed["training"]) == listed["numTraining"] == 7
    kernels = {(data[2][0].StudyInstanceUID, data[2][0].ConvolutionKernel)
               for data in dicom_volumes(sample_dir / "Lung-PET-CT-Dx").values()}
    assert max(Counter(study for study, _ in kernels).values()) == 2
    assert count("Lung-PET-CT-Dx/Lung-PET-CT-Dx/*/*/4.*/*.dcm") == 7  # PET


def test_lung_masks_are_luna16s(sample_dir, lidc_volumes):
    itk = pytest.importorskip("SimpleITK")
    seen = set()
    for scan in scans_of(sample_dir):
        path = sample_dir / "LUNA16" / "seg-lungs-LUNA16" / f"{scan['series_uid']}.mhd"
        labels = itk.GetArrayFromImage(itk.DICOMOrient(itk.ReadImage(str(path)), "LPS"))
        hu, origin, _ = lidc_volumes[scan["series_uid"]]
        seen |= set(np.unique(labels).tolist())
        assert np.median(hu[(labels == 3) | (labels == 4)]) < -750
        x = origin[0] + np.nonzero(labels == 3)[2] * float(scan["spacing_mm"])
        assert (x > 0).all()  # 3 is the left lung, and x goes to the left
    assert {0, 3, 4} <= seen <= {0, 3, 4, 5}


# ------------------------------------------------------------------ whole, resumed, the same

def hashes(path):
    return json.loads((path / "sample.json").read_text())["files"]


def test_a_killed_run_goes_on_with_the_scans_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(vessels, "POINTS", 20)
    options = {"formats": ["luna16"], **TINY, "num_patients": 3, "num_slices": 4}
    write_sample(tmp_path / "whole", **options)
    made, make_scan = [], scans.make_scan

    def killed(plan, patient, number, **more):
        if patient == 2 and "killed" not in made:
            made.append("killed")
            raise KeyboardInterrupt
        made.append(patient)
        return make_scan(plan, patient, number, **more)

    monkeypatch.setattr(scans, "make_scan", killed)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "cut", **options)
    assert not (tmp_path / "cut").exists()
    lost, = (tmp_path / ".cut.partial" / "LUNA16" / "subset0").glob("*.raw")
    lost.write_bytes(lost.read_bytes()[:100])  # written, but never flushed
    write_sample(tmp_path / "cut", **options)
    assert made == [0, 1, "killed", 0, 2]
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    on_disk = {str(path.relative_to(tmp_path / "cut"))
               for path in (tmp_path / "cut").rglob("*") if path.is_file()}
    assert on_disk == {*hashes(tmp_path / "cut"), "sample.json"}


def test_no_byte_depends_on_the_number_of_processes(tmp_path, monkeypatch, forked_workers):
    monkeypatch.setattr(vessels, "POINTS", 20)
    common = ["--num-patients", "2", "--nodules-per-patient", "1", "--image-size", "32",
              "--num-slices", "4"]
    for name, more in (("one", []), ("two", ["--workers", "2"])):
        assert main(["--output", str(tmp_path / name), *common, *more]) == 0
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_every_seed_and_patient_and_scan_is_another_draw(monkeypatch):
    monkeypatch.setattr(vessels, "POINTS", 20)
    plan = scans.Plan(0, 6, 1, 32, 4, None, Law(), False)
    made = [scans.make_scan(*item) for item in (
        (plan, 5, 0), (plan, 5, 1), (plan, 4, 0), (dataclasses.replace(plan, seed=1), 5, 0))]
    assert len({scan.series_uid for scan in made}) == 4
    assert len({scan.hu.tobytes() for scan in made}) == 4
    again = scans.make_scan(plan, 5, 0, with_twin=True)  # nothing else that is made matters
    np.testing.assert_array_equal(again.hu, made[0].hu)


def test_options_that_leave_nothing_or_differ_are_refused(tmp_path, capsys, sample_dir):
    assert main(["--output", str(tmp_path / "a"), "--size-matched", "--size-only"]) == 2
    assert "together they leave nothing" in capsys.readouterr().err
    assert main(["--output", str(tmp_path / "a"), "--image-size", "31"]) == 2
    assert main(["--output", str(sample_dir), "--seed", "3"]) == 2
    assert "made with other options" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert sample.build_parser().parse_args(["--output", "x"]).formats == ["lidc"]
