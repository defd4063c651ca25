"""ct_seg.py from end to end on tiny chests, and every input it has to refuse."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import ct_seg
from arms import content, fork, signal_when
from ct_files import (
    CHEST_STEP,
    ORIGIN,
    ball,
    chest,
    mark,
    mark_of,
    outline,
    roi,
    scene,
    write_mhd,
    write_nifti,
    write_patient,
    write_series,
    write_xml,
)
from lungkit.data.dataset import open_dataset
from lungkit.data.png import encode_png

DATA = Path(os.environ.get("CT_DATA") or "no-ct-data")
LEFT, RIGHT = (3, 30, 18), (5, 28, 46)
TINY = ["--image-size", "16"]
SHAPE = (12, 64, 64)


def made(source, output, *more) -> int:
    return ct_seg.main(["--input", str(source), "--output", str(output), *TINY, *map(str, more)])


def rows_of(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def lidc_tree(tmp_path_factory) -> Path:
    """Six patients with a small benign and a large malignant nodule, one of grade 3, one film.

    P0 has a second study, P1 two kernels of one scan. Read only.
    """
    root = tmp_path_factory.mktemp("lidc")
    for number in range(6):
        write_patient(root, number, [(LEFT, 5, 1 + number % 2), (RIGHT, 9, 4 + number % 2)])
    write_patient(root, 20, [(LEFT, 6, 3)])
    again, _ = write_patient(root / "second", 30, [(LEFT, 5, 1)])
    for path in (root / "second").rglob("*.dcm"):
        set_tags(path, PatientID="P0")
    uid = "1.2.3.1"
    write_series(root / "P1" / "study" / "sharp", chest([(LEFT, 5), (RIGHT, 9)]), step=CHEST_STEP,
                 patient="P1", study="1.2.1", series="1.2.3.77", frame="1.9.1",
                 ConvolutionKernel="B70f", SeriesNumber=9)
    write_xml(root / "film.xml", [], root="IdriReadMessage")
    assert (root / "P1" / "study" / "series").is_dir() and uid != again
    return root


def set_tags(path, **tags):
    import pydicom

    data = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path)


@pytest.fixture(scope="session")
def real(lidc_tree, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "real"
    assert made(lidc_tree, path) == 0
    return path


# ------------------------------------------------------------------ the dataset

def test_the_dataset_keeps_the_contract_and_says_how_it_was_made(real):
    data = open_dataset(real)
    assert (data.channels, data.modality, data.symmetries) == (1, "ct", 8)
    assert data.classes == ["benign", "malignant"] and data.image_size == 16
    assert data.intensity == {"unit": "HU", "window": [-1000.0, 400.0]}
    assert data.um_per_px == 64 / 16 * 1000
    assert data.masks == {"nodule": "binary", "lung": "binary", "layout": "labels"}
    truth = data.manifest["truth"]
    assert (truth["benign_max"], truth["malignant_min"], truth["min_readers"]) == (2, 4, 3)
    assert {"reason": "grade between 2 and 4", "count": 1} in data.manifest["dropped"]
    assert Counter(row.label for row in data.rows) == {"benign": 7, "malignant": 6}
    one = data.rows[0]
    assert float(one.extra["diameter_mm"]) > 3 and one.extra["num_readers"] == "4"
    assert data.targets["grade"] == {"kind": "ordinal", "values": [1, 2, 3, 4, 5]}
    assert {row.extra["grade"] for row in data.rows} == {"1", "2", "4", "5"}
    assert one.extra["kernel"] == "B30f" and len(one.extra["boxes"].split(" ")) == 4
    for row in data.rows:
        nodule, layout = data.mask("nodule", row), data.mask("layout", row)
        assert nodule[8, 8] == 255 and layout[8, 8] == 5  # a crop has its nodule in the middle


def test_no_patient_is_on_two_sides_two_scans_or_not(real):
    data = open_dataset(real)
    splits: dict[str, set] = {}
    for row in data.rows:
        splits.setdefault(row.group, set()).add(row.split)
    assert all(len(each) == 1 for each in splits.values())
    assert Counter(row.group for row in data.rows)["P0"] == 3
    table = {row["patient"]: row["split"] for row in rows_of(real / "split.csv")}
    assert all(table[row.group] == row.split for row in data.rows)
    assert set(table) == {f"P{n}" for n in (*range(6), 20)}


def test_every_series_and_every_file_is_kept_or_named(real):
    rows = rows_of(real / "studies.csv")
    assert Counter(row["kept"] for row in rows) == {"1": 8, "0": 2}
    left = {row["where"]: row["reason"] for row in rows if row["kept"] == "0"}
    assert left["film.xml"] == "is about chest films, not CT"
    [sharp] = [row for row in rows if row["series"] == "1.2.3.77"]
    assert sharp["reason"] == "another series of one scan: 1.2.3.1 is kept"
    assert sharp["kernel"] == "B70f"


def test_nodules_csv_says_of_every_nodule_its_class_or_why_it_has_none(real):
    rows = rows_of(real / "nodules.csv")
    assert len(rows) == 14
    [three] = [row for row in rows if row["patient"] == "P20"]
    assert three["label"] == "" and three["reason"] == "grade between 2 and 4"
    assert three["grade_median"] == "3" and float(three["agreement"]) == 1
    one = next(row for row in rows if row["patient"] == "P3" and row["label"] == "benign")
    z, row, column = LEFT
    assert float(one["x_mm"]) == pytest.approx(ORIGIN[0] + column * 2)
    assert float(one["z_mm"]) == pytest.approx(ORIGIN[2] + z * 2.5)


def test_size_alone_is_named_where_it_tells_the_class(real):
    manifest = json.loads((real / "dataset.json").read_text())
    assert manifest["confounding"]["trivial"]["families"]["nodule size"]["balanced_accuracy"] > 0.9
    assert any(each.startswith("size tells the class") for each in manifest["warnings"])


def test_a_scanner_that_tells_the_class_is_named(tmp_path):
    for number in range(6):
        ill = number % 2
        write_patient(tmp_path / "in", number, [(RIGHT, 9, 5 if ill else 1)],
                      Manufacturer="ACME" if ill else "SIM", ConvolutionKernel="B70f" if ill else
                      "B30f")
    assert made(tmp_path / "in", tmp_path / "real") == 0
    data = open_dataset(tmp_path / "real")
    families = data.manifest["confounding"]["trivial"]["families"]
    assert families["scanner"]["balanced_accuracy"] == families["kernel"]["balanced_accuracy"] == 1
    for kind in ("manufacturer 'ACME'", "kernel 'B70f'"):
        assert any(each.startswith("one source dominates") and kind in each
                   for each in data.warnings)


def test_it_is_the_same_by_any_number_of_processes_and_again(lidc_tree, real, tmp_path):
    assert made(lidc_tree, tmp_path / "real", "--workers", 2) == 0
    ours, theirs = content(tmp_path / "real"), content(real)
    for each in (ours, theirs):
        each.pop("dataset.json")
    assert ours == theirs


def test_killed_anywhere_it_goes_on(lidc_tree, real, tmp_path, monkeypatch):
    output = tmp_path / "real"
    arguments = ["--input", str(lidc_tree), "--output", str(output), *TINY]
    child = fork(lambda: ct_seg.main(arguments))
    signal_when(child, lambda: len(list(tmp_path.rglob("train/*/0*.png"))) > 2)
    from lungkit.ct import images

    again, make = [], images.make_images
    monkeypatch.setattr(images, "make_images", lambda job, recipe: again.append(job) or make(
        job, recipe))
    assert made(lidc_tree, output) == 0
    assert 0 < len(again) < 7  # of seven scans with an image, those that lacked one
    ours, theirs = content(output), content(real)
    for each in (ours, theirs):
        each.pop("dataset.json")
    assert ours == theirs


TASKS = {
    "grade 3 is benign": (["--benign-max", "3"], {"benign", "malignant"}),
    "presence": (["--labels", "presence"], {"no_nodule", "nodule"}),
    "slices": (["--view", "slice", "--labels", "presence"], {"no_nodule", "nodule"}),
    "slices, binary": (["--view", "slice", "--slices-per-nodule", "2"], {"benign", "malignant"})}


@pytest.mark.parametrize(("more", "classes"), TASKS.values(), ids=TASKS)
def test_every_task_of_one_input_has_one_split(lidc_tree, real, tmp_path, more, classes):
    output = tmp_path / "real"
    code = made(lidc_tree, output, *more)
    assert code == 0
    data = open_dataset(output)
    assert set(data.classes) == classes
    assert (output / "split.csv").read_bytes() == (real / "split.csv").read_bytes()
    assert data.symmetries == (1 if "slice" in more else 8)


def test_a_class_that_a_split_lacks_is_named_before_an_image_is_made(lidc_tree, tmp_path, capfd):
    assert made(lidc_tree, tmp_path / "real", "--labels", "grade", "--dry-run") == 1
    assert "no image for grade_3 in " in capfd.readouterr().err.splitlines()[-1]


def test_presence_has_as_much_healthy_lung_without_a_nodule(lidc_tree, tmp_path):
    assert made(lidc_tree, tmp_path / "real", "--labels", "presence") == 0
    data = open_dataset(tmp_path / "real")
    counts = Counter(row.label for row in data.rows)
    assert counts["nodule"] == 14 and 10 <= counts["no_nodule"] <= 14
    for row in data.rows:
        assert (data.mask("nodule", row) > 0).any() == (row.label == "nodule")
        if row.label == "no_nodule":
            assert row.extra["nodule_id"] == ""


def test_all_slices_of_test_are_there_for_figures_by_volume(lidc_tree, tmp_path):
    assert made(lidc_tree, tmp_path / "real", "--view", "slice", "--labels", "presence",
                "--all-test-slices") == 0
    data = open_dataset(tmp_path / "real")
    slices: dict[str, list] = {}
    for row in data.select("test"):
        slices.setdefault(row.extra["series"], []).append(int(row.extra["slice_index"]))
    assert all(sorted(each) == list(range(12)) for each in slices.values())
    for row in data.select("test"):
        assert (row.label == "nodule") == bool((data.mask("nodule", row) > 0).any())


def test_a_split_may_be_given(lidc_tree, tmp_path):
    split = tmp_path / "split.csv"
    patients = [f"P{n}" for n in (*range(6), 20)]
    split.write_text("patient,split\n" + "".join(
        f"{name},{'val' if n < 2 else 'test' if n < 4 else 'train'}\n"
        for n, name in enumerate(patients)))
    assert made(lidc_tree, tmp_path / "real", "--split-from", split) == 0
    data = open_dataset(tmp_path / "real")
    assert {row.group for row in data.select("val")} == {"P0", "P1"}
    split.write_text("patient,split\nP0,val\n")
    assert made(lidc_tree, tmp_path / "other", "--split-from", split) == 1


def test_a_diagnosis_is_a_column_beside_the_grade(lidc_tree, tmp_path, capfd):
    (tmp_path / "d.csv").write_text("patient_id,diagnosis\nP1,2\nP2,1\n")
    assert made(lidc_tree, tmp_path / "real", "--diagnoses", tmp_path / "d.csv") == 0
    said = {row.group: row.extra["pathology"] for row in open_dataset(tmp_path / "real").rows}
    assert (said["P0"], said["P1"], said["P2"]) == ("0", "2", "1")
    for text, words in (("patient_id,diagnosis\nP1,9\n", "diagnosis '9'"),
                        ("patient_id,diagnosis\nQ1,1\n", "no patient of these scans")):
        (tmp_path / "d.csv").write_text(text)
        assert made(lidc_tree, tmp_path / "other", "--diagnoses", tmp_path / "d.csv") == 1
        assert words in capfd.readouterr().err.splitlines()[-1]


def test_a_dry_run_writes_nothing(lidc_tree, tmp_path, capfd):
    assert made(lidc_tree, tmp_path / "real", "--dry-run") == 0
    assert "would write 13 images" in capfd.readouterr().out and not list(tmp_path.iterdir())


# ------------------------------------------------------------------ one truth, four formats

def test_four_formats_of_one_scan_are_one_dataset(lidc_tree, tmp_path):
    """DICOM, MetaImage (flipped too) and NIfTI with one table of nodules give the same pixels."""
    table = ["series,x,y,z,diameter_mm,grade,patient"]
    trees = {name: tmp_path / name for name in ("dicom", "mhd", "flipped", "nifti")}
    for number in range(3):
        uid, patient = f"1.2.3.{number}", f"P{number}"
        hu = chest([(LEFT, 5), (RIGHT, 9)], seed=number)
        write_series(trees["dicom"] / patient, hu, step=CHEST_STEP, patient=patient, series=uid,
                     study=uid, frame=uid)
        write_mhd(trees["mhd"] / f"{uid}.mhd", hu, step=CHEST_STEP)
        last = np.array(ORIGIN) + [2 * 63, 2 * 63, 0]
        write_mhd(trees["flipped"] / f"{uid}.mhd", np.ascontiguousarray(hu[:, ::-1, ::-1]),
                  step=CHEST_STEP, matrix=np.diag([-1, -1, 1]), origin=last)
        write_nifti(trees["nifti"] / f"{uid}.nii.gz", hu, step=CHEST_STEP, order="RAS")
        for (z, y, x), radius, grade in ((LEFT, 5, 1), (RIGHT, 9, 5)):
            at = np.array(ORIGIN) + [2 * x, 2 * y, 2.5 * z]
            table.append(",".join(map(str, [uid, *at, 2 * radius, grade, patient])))
    (tmp_path / "nodules.csv").write_text("\n".join(table))
    found = {}
    for name, tree in trees.items():
        output = tmp_path / f"of_{name}" / "real"
        assert made(tree, output, "--nodules", tmp_path / "nodules.csv") == 0
        found[name] = {path: sha for path, sha in content(output).items()
                       if path.endswith("png") and path != "qc.png"}
    assert found["dicom"] == found["mhd"] == found["flipped"] == found["nifti"]
    assert len(found["dicom"]) == 6 * 4


def test_healthy_crops_may_be_of_candidates(tmp_path, capfd):
    (tree := tmp_path / "in").mkdir()
    mhd()(tree)
    far, near = "24,67,-275", "26,67,-292"  # in the lung with a nodule; at the nodule
    lines = [f"{name},{place},0" for name in "abc" for place in (far, near)]
    (tree / "annotations_excluded.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,diameter_mm\na,24,67,-275,-1\n")
    options = ["--labels", "presence", "--healthy", "candidates"]
    assert made(tree, tmp_path / "out" / "real", *options) == 1
    assert "no candidates*.csv" in capfd.readouterr().err.splitlines()[-1]
    (tree / "candidates_V2.csv").write_text("\n".join(
        ["seriesuid,coordX,coordY,coordZ,class", *lines, "b,80,63,-287,1"]))
    from lungkit.ct.annotations import find_annotations
    from lungkit.ct.folders import walk
    from lungkit.ct.images import proposed_place
    from lungkit.ct.plan import Job
    from lungkit.ct.studies import Scan, survey_folder

    annotations = find_annotations(tree, None, None)
    scans = [each for folder in walk(tree) for each in survey_folder(folder, tree, annotations)]
    assert len(scans) == 3 and all(isinstance(each, Scan) for each in scans)
    import random

    places = {scan.name: [proposed_place(Job(scan, "train", (), ()), 16, random.Random(n), taken)
                          for n in range(2)] for scan in scans for taken in (set(),)}
    assert places["b"] == places["c"] == [(10, 29.75, 18.0), None]  # far once; near is a nodule
    assert places["a"] == [None, None]  # to be ignored there


def test_labels_and_boxes_find_the_same_nodules(tmp_path):
    mask = ball(SHAPE, LEFT, 5) | ball(SHAPE, RIGHT, 9)
    for number in range(3):
        hu = chest([(LEFT, 5), (RIGHT, 9)], seed=number)
        write_nifti(tmp_path / "msd" / "imagesTr" / f"lung_{number}.nii.gz", hu, step=CHEST_STEP)
        write_nifti(tmp_path / "msd" / "labelsTr" / f"lung_{number}.nii.gz",
                    mask.astype(np.uint8), step=CHEST_STEP)
        uid = f"1.2.3.{number}"
        write_series(tmp_path / "voc" / f"P{number}", hu, step=CHEST_STEP, patient=f"P{number}",
                     series=uid, study=uid, frame=uid)
        for z in range(12):
            boxes = ""
            for one, name in ((ball(SHAPE, LEFT, 5), "A"), (ball(SHAPE, RIGHT, 9), "B")):
                if one[z].any():
                    ys, xs = np.nonzero(one[z])
                    boxes += (f"<object><name>{name}</name><bndbox><xmin>{xs.min()}</xmin><ymin>"
                              f"{ys.min()}</ymin><xmax>{xs.max() + 1}</xmax><ymax>{ys.max() + 1}"
                              "</ymax></bndbox></object>")
            folder = tmp_path / "voc" / "Annotation" / f"P{number}"
            folder.mkdir(parents=True, exist_ok=True)
            if boxes:
                (folder / f"{uid}.{z + 1}.xml").write_text(f"<annotation>{boxes}</annotation>")
    (tmp_path / "msd" / "imagesTr" / "._lung_0.nii.gz").write_bytes(b"\0\5\26\7")
    boxes = {}
    for name, more in (("msd", ["--labels", "presence"]), ("voc", ["--labels", "histology"])):
        assert made(tmp_path / name, tmp_path / name / ".." / f"of_{name}" / "real", *more) == 0
        data = open_dataset(tmp_path / f"of_{name}" / "real")
        boxes[name] = sorted(row.extra["boxes"] for row in data.rows if row.label != "no_nodule")
    assert open_dataset(tmp_path / "of_voc" / "real").classes == ["A", "B"]
    assert boxes["msd"] == boxes["voc"] and len(boxes["msd"]) == 6
    left = rows_of(tmp_path / "of_msd" / "real" / "studies.csv")
    assert "AppleDouble file" in [row["reason"] for row in left]


# ------------------------------------------------------------------ bad inputs

@pytest.fixture(scope="session")
def small_tree(tmp_path_factory) -> Path:
    """Three patients, the least that can be split. Read only."""
    root = tmp_path_factory.mktemp("small")
    for number in range(3):
        write_patient(root, number, [(LEFT, 5, 1), (RIGHT, 9, 5)])
    return root


def slices(tree, patient="P1") -> list[Path]:
    return sorted((tree / patient).rglob("*.dcm"))


def tags(**values):
    def spoil(tree):
        for path in slices(tree):
            set_tags(path, **values)
    return spoil


def tag_of_one(**values):
    return lambda tree: set_tags(slices(tree)[2], **values)


def without(name):
    def spoil(tree):
        import pydicom

        data = pydicom.dcmread(slices(tree)[1])
        delattr(data, name)
        data.save_as(slices(tree)[1])
    return spoil


def twice(tree):
    import pydicom

    one, other = slices(tree)[2:4]
    set_tags(one, ImagePositionPatient=pydicom.dcmread(other).ImagePositionPatient)


def tilt(tree):
    import pydicom

    for path in slices(tree):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        set_tags(path, ImagePositionPatient=[x, y + float(z + 300) / 5, z])


def all_patients(**values):
    def spoil(tree):
        for number in range(3):
            for path in slices(tree, f"P{number}"):
                set_tags(path, **values)
    return spoil


def cut(tree):
    path = slices(tree)[2]
    path.write_bytes(path.read_bytes()[:-500])


def windowed(tree):
    import pydicom

    for path in slices(tree):
        data = pydicom.dcmread(path)
        stored = np.clip(np.frombuffer(data.PixelData, "<i2"), 24, 1424).astype("<i2")
        data.PixelData = stored.tobytes()
        data.save_as(path)


def jpeg_lossless(tree):
    import pydicom

    path = slices(tree)[2]
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + b"\0" * 20])
    data.save_as(path)


def xml(*sessions, **how):
    return lambda tree: write_xml(tree / "P1" / "study" / "series" / "notes.xml", list(sessions),
                                  "1.2.3.1", **how)


def only_one_class(tree):
    for number in range(3):
        write_patient(tree, number, [(LEFT, 5, 1)])


def empty(tree):
    shutil.rmtree(tree)
    tree.mkdir()


def mhd(**how):
    """Three MetaImages with LUNA16's table, the first as the arguments spoil it."""
    def spoil(tree):
        empty(tree)
        lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm,grade"]
        for name in "abc":
            write_mhd(tree / f"{name}.mhd", chest(), step=CHEST_STEP,
                      **(how if name == "a" else {}))
            lines += [f"{name},24,67,-292,10,1", f"{name},80,63,-287,18,5"]
        (tree / "annotations.csv").write_text("\n".join(lines))
    return spoil


def mhd_without_raw(tree):
    mhd()(tree)
    (tree / "a.raw").unlink()


def msd(image=None, labels=None, cut=0, **how):
    """Three NIfTI images and a table of grades; the arguments spoil the first, or label it."""
    def spoil(tree):
        mhd()(tree)
        for path in (*tree.glob("*.mhd"), *tree.glob("*.raw")):
            path.unlink()
        for name in "abc":
            bad = name == "a"
            write_nifti(tree / "imagesTr" / f"{name}.nii.gz",
                        image if bad and image is not None else chest(), step=CHEST_STEP)
            if labels is not None and bad:
                write_nifti(tree / "labelsTr" / f"{name}.nii.gz", labels,
                            **{"step": CHEST_STEP, **how})
        path = tree / "imagesTr" / "a.nii.gz"
        path.write_bytes(path.read_bytes()[:len(path.read_bytes()) - cut])
    return spoil


MARKS = mark_of(ball(SHAPE, LEFT, 5), 1, "1.2.3.1")
ONE_VALUE = ball(SHAPE, LEFT, 5).astype(np.uint8)
TWO_VALUES = ONE_VALUE + 2 * ball(SHAPE, RIGHT, 5).astype(np.uint8)
BAD = {
    "missing slice": (lambda t: slices(t)[3].unlink(), "uneven distances"),
    "place twice": (twice, "two different images"),
    "two series under one number": (tag_of_one(FrameOfReferenceUID="1.8"), "mixed"),
    "no intercept": (without("RescaleIntercept"), "no RescaleIntercept"),
    "gantry tilt": (tilt, "gantry tilt"),
    "pixels cut short": (cut, "cut short or damaged"),
    "JPEG lossless without a decoder": (jpeg_lossless, "python-gdcm"),
    "cut to a window": (windowed, "cut to a window"),
    "no PatientID": (tags(PatientID=""), "no PatientID"),
    "one PatientID for all": (all_patients(PatientID="anonymous"), "'anonymous'"),
    "multi-frame alone": (all_patients(NumberOfFrames=3), "Enhanced multi-frame"),
    "sagittal alone": (all_patients(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "sagittal"),
    "PET alone": (all_patients(Modality="PT"), "is PT, not CT"),
    "XML of another scan": (xml(mark(roi(3, outline(ball(SHAPE, LEFT, 5)[3]), sop="1.9"), 3)),
                            "does not hold"),
    "z off by a slice": (xml(mark(roi(3, outline(ball(SHAPE, LEFT, 5)[3]), "1.2.3.1",
                                      z_mm=-290), 3)), "do not match"),
    "malignancy 6": (xml(MARKS.replace("<malignancy>1", "<malignancy>6")), "malignancy 6"),
    "XML torn": (lambda t: (t / "P1/study/series/notes.xml").write_text(
        "<LidcReadMessage><SeriesInstanceUid>1.2.3.1</SeriesInstanceUid>"), "no whole XML"),
    "one class": (only_one_class, "1 class"),
    "empty": (empty, "no chest CT found"),
    "MetaImage without voxels": (mhd_without_raw, "are missing"),
    "MetaImage of the wrong size": (mhd(cut=100), "copy it again"),
    "MetaImage cut when compressed": (mhd(compressed=True, cut=100), "cut short"),
    "MetaImage sheared": (mhd(matrix=[[1, 0, 0], [0, 1, 0], [0, .2, 1]]), "gantry tilt"),
    "NIfTI cut short": (msd(cut=4000), "cut short"),
    "NIfTI of thousandths": (msd(image=(chest() / 1000).astype(np.float32)), "divided by 1000"),
    "labels of another shape": (msd(labels=np.ones((12, 64, 63), np.uint8)), "not of one scan"),
    "labels elsewhere": (msd(labels=ONE_VALUE, origin=(0, 0, 0)), "elsewhere"),
    "labels of two values": (msd(labels=TWO_VALUES), "one value besides 0")}


@pytest.mark.parametrize(("spoil", "words"), BAD.values(), ids=BAD)
def test_a_bad_input_is_one_line_and_exit_1_and_nothing_is_published(small_tree, tmp_path, capfd,
                                                                     spoil, words):
    tree, output = tmp_path / "in", tmp_path / "out" / "real"
    shutil.copytree(small_tree, tree)
    spoil(tree)
    assert made(tree, output) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith("ct_seg.py: error: ") and words in said[-1], said[-1]
    assert sum(line.startswith("ct_seg.py: error") for line in said) == 1
    assert not output.exists()


ALLOWED = {
    "slopes that differ": tag_of_one(RescaleSlope=1.0000001),
    "a scout inside": lambda t: set_tags(
        next(path for path in slices(t) if path.stem.endswith("-00")),
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    "another modality beside": lambda t: write_series(t / "P1" / "pet", scene(), patient="P1",
                                                      series="1.7", Modality="PT"),
    "a patient in two classes": lambda t: None}


@pytest.mark.parametrize("spoil", ALLOWED.values(), ids=ALLOWED)
def test_what_is_odd_but_harmless_is_taken(small_tree, tmp_path, spoil):
    shutil.copytree(small_tree, tmp_path / "in")
    spoil(tmp_path / "in")
    assert made(tmp_path / "in", tmp_path / "out" / "real") == 0
    assert any(each.startswith("patients of several classes")
               for each in open_dataset(tmp_path / "out" / "real").warnings)


def test_broken_series_may_be_left_out_by_name(lidc_tree, tmp_path):
    shutil.copytree(lidc_tree, tmp_path / "in")
    slices(tmp_path / "in", "P3")[3].unlink()
    assert made(tmp_path / "in", tmp_path / "out" / "real", "--skip-broken") == 0
    rows = rows_of(tmp_path / "out" / "real" / "studies.csv")
    [broken] = [row for row in rows if row["series"] == "1.2.3.3"]
    assert broken["kept"] == "0" and "uneven distances" in broken["reason"]


TABLES = {
    "diameter -1": ("1.2.3.0,0,0,-295,-1", "diameter -1"),
    "a rounded number": ("1.23E+45,0,0,-295,5", "spreadsheet has rounded"),
    "outside": ("1.2.3.1,900,0,-295,5", "outside the volume"),
    "decimal comma": ("1.2.3.0,\"1,5\",0,-295,5", "decimals with a point"),
    "a decimal comma unquoted": ("1.2.3.0,1,5,0,-295,5", "cells")}


@pytest.mark.parametrize(("line", "words"), TABLES.values(), ids=TABLES)
def test_a_bad_table_is_one_line(small_tree, tmp_path, capfd, line, words):
    (tmp_path / "t.csv").write_text(f"series,x,y,z,diameter_mm\n{line}\n")
    for path in (tree := tmp_path / "in", ):
        shutil.copytree(small_tree, path)
        for notes in path.rglob("*.xml"):
            notes.unlink()
    assert made(tree, tmp_path / "out" / "real", "--nodules", tmp_path / "t.csv") == 1
    assert words in capfd.readouterr().err.splitlines()[-1] and not (tmp_path / "out").exists()


OPTIONS = [["--window", "400", "-1000"], ["--benign-max", "4"],
           ["--view", "slice", "--symmetries", "8"], ["--all-test-slices"],
           ["--split-from", "x.csv", "--fold", "1/3"], ["--images", "x.csv", "--view", "slice"],
           ["--images", "x.csv", "--window", "-500", "500"]]


@pytest.mark.parametrize("more", OPTIONS, ids=" ".join)
def test_options_that_contradict_each_other_are_exit_2(lidc_tree, tmp_path, more):
    assert made(lidc_tree, tmp_path / "real", *more) == 2
    assert made(lidc_tree, lidc_tree / "real") == 2


# ------------------------------------------------------------------ pictures cut from scans

@pytest.fixture
def cut_pictures(tmp_path) -> Path:
    """Pictures of eight patients with masks; two of them copies, of equal bytes and by parent."""
    from lungkit.run.files import write_bytes

    rng, lines = np.random.default_rng(0), ["file,malignancy_ratings,patient_id,copy_of,"
                                            "pixel_spacing_mm,max_diam_mm,n_raters"]
    for number in range(16):
        grade, radius = (1, 3) if number % 2 else (5, 8)
        rows, columns = np.indices((40, 40 if number else 37))
        mask = (rows - 20) ** 2 + (columns - 20) ** 2 <= radius ** 2
        grey = np.uint8(np.clip(rng.normal(30, 5, mask.shape) + 150 * mask, 0, 255))
        write_bytes(tmp_path / "in" / "images" / f"{number}.png", encode_png(grey))
        write_bytes(tmp_path / "in" / "masks" / f"{number}.png", encode_png(mask * np.uint8(255)))
        lines.append(f"{number}.png,{grade} {grade} {grade},Q{number // 2},,0.8,{1.6 * radius},3")
    shutil.copy(tmp_path / "in/images/1.png", tmp_path / "in/images/20.png")
    shutil.copy(tmp_path / "in/masks/1.png", tmp_path / "in/masks/20.png")
    turned = np.rot90(np.uint8(rng.integers(0, 99, (40, 40))))
    write_bytes(tmp_path / "in/images/21.png", encode_png(np.ascontiguousarray(turned)))
    lines += ["20.png,1 1 1,Q20,,0.8,4.8,3", "21.png,5 5 5,Q21,4.png,0.8,9,3"]
    (tmp_path / "in" / "manifest.csv").write_text("\n".join(lines))
    return tmp_path / "in"


def test_pictures_with_a_table_become_a_dataset(cut_pictures, tmp_path):
    assert made(cut_pictures, tmp_path / "real", "--images", cut_pictures / "manifest.csv",
                "--field-mm", 16) == 0
    data = open_dataset(tmp_path / "real")
    assert data.um_per_px == 1000 and data.intensity is None
    assert len(data.rows) == 18 and data.masks == {"nodule": "binary"}
    group = {row.source: row.group for row in data.rows}
    assert group["20.png"] == group["1.png"] == "Q0"  # of equal bytes
    assert group["21.png"] == group["4.png"] == "Q2"  # by its parent
    large = next(row for row in data.rows if row.label == "malignant" and row.source == "2.png")
    found = (data.mask("nodule", large) > 0).sum()
    assert found == pytest.approx(np.pi * 6.4 ** 2, rel=0.1)  # at 1 mm a pixel
    assert any(each.startswith("HU unknown") for each in data.warnings)


def test_pictures_without_spacing_show_all_of_themselves_and_may_have_a_window(cut_pictures,
                                                                               tmp_path):
    table = cut_pictures / "manifest.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join(",".join([*line[:4], *line[6:]]) for line in lines))
    assert made(cut_pictures, tmp_path / "real", "--images", table, "--image-size", 40,
                "--input-window", -1000, 400) == 0
    data = open_dataset(tmp_path / "real")
    assert data.um_per_px is None and data.intensity["window"] == [-1000.0, 400.0]
    from lungkit.data.png import decode_png

    for row in data.rows:
        file = decode_png((cut_pictures / "images" / row.source).read_bytes())
        if file.shape == (40, 40):
            assert np.array_equal(data.image(row)[..., 0], file)
    assert any(each.startswith("field unknown") for each in data.warnings)


def colour(folder):
    from PIL import Image

    Image.fromarray(np.uint8(np.random.default_rng(0).integers(0, 255, (40, 40, 3)))).save(
        folder / "images" / "3.png")


def deep(folder):
    import cv2

    cv2.imwrite(str(folder / "images" / "3.png"), np.full((40, 40), 3000, np.uint16))


@pytest.mark.parametrize(("spoil", "words"), [
    (colour, "has colours"), (deep, "16 bits"),
    (lambda f: (f / "images/3.png").unlink(), "3.png is missing"),
    (lambda f: (f / "images/3.png").write_bytes(b"GIF89a"), "whatever its name says"),
    (lambda f: shutil.copy(f / "masks/3.png", f / "masks/0.png"), "its picture 37 x 40"),
    (lambda f: (f / "manifest.csv").write_text("file,grade\n3.png,7\n"), "grades go from 1 to 5"),
    (lambda f: (f / "manifest.csv").write_text("file,grade\n3.png,2\n3.png,2\n"), "listed 2 times"),
    (lambda f: (f / "manifest.csv").write_text("file,who\n3.png,2\n"), "label or grade"),
    (lambda f: (f / "manifest.csv").write_text("file,grade,parent\n3.png,2,x\n"), "not in the")])
def test_a_bad_picture_is_one_line(cut_pictures, tmp_path, capfd, spoil, words):
    spoil(cut_pictures)
    assert made(cut_pictures, tmp_path / "real", "--images", cut_pictures / "manifest.csv") == 1
    assert words in capfd.readouterr().err.splitlines()[-1] and not (tmp_path / "real").exists()


# ------------------------------------------------------------------ real data

@pytest.mark.skipif(not DATA.is_dir(), reason="needs CT_DATA: the folder of CT for tests")
def test_two_kernels_of_one_scan_are_one_series_and_named(tmp_path, capfd):
    made(DATA / "lung_pet_ct_dx_A0001", tmp_path / "real", "--labels", "histology", "--dry-run")
    said = capfd.readouterr().err
    assert "left out 1: another series of one scan" in said


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs CT_DATA: the folder of CT for tests")
def test_every_turned_copy_of_luna16_is_with_its_parent(tmp_path):
    folder = DATA / "luna16_candidates_50px"
    copies = {row["file"]: row["rotated_copy_of"] for row in rows_of(folder / "manifest.csv")}
    assert made(folder, tmp_path / "real", "--images", folder / "manifest.csv", "--labels",
                "presence", "--input-window", -1000, 400) == 0
    data = open_dataset(tmp_path / "real")
    split = {row.source: row.split for row in data.rows}
    joined = [split[name] == split[parent] for name, parent in copies.items() if parent]
    assert len(joined) == 1064 and all(joined)
