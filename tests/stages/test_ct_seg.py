"""ct_seg.py from end to end on tiny chests; what it has to refuse: test_ct_bad_inputs.py."""

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
    join_frames,
    mark,
    outline,
    roi,
    set_tags,
    slices_of,
    write_luna,
    write_mhd,
    write_nifti,
    write_patient,
    write_pictures,
    write_series,
    write_xml,
)
from lungkit.data.dataset import open_dataset

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
    families = manifest["confounding"]["trivial"]["families"]
    assert families["nodule size"]["balanced_accuracy"] > 0.9
    assert {"scanner", "kernel", "slice thickness", "pixel spacing", "length of the scan",
            "contrast agent", "file size", "image size", "file type"} < families.keys()
    assert any(each.startswith("size tells the class") for each in manifest["warnings"])


def test_it_is_the_same_by_any_number_of_processes_and_again(lidc_tree, real, tmp_path,
                                                             forked_workers):
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


def test_killed_in_the_survey_no_header_is_read_again(lidc_tree, real, tmp_path, monkeypatch):
    from lungkit.ct import studies
    from lungkit.formats import dicom
    from lungkit.run.faults import Stopped

    tree, read, header = tmp_path / "in", [], dicom.read_slices
    shutil.copytree(lidc_tree, tree)
    files = sorted(tree.rglob("*.dcm"))
    monkeypatch.setattr(dicom, "read_slices", lambda path: read.append(path) or header(path))

    def killed_at(count):
        def look():
            if len(read) >= count:
                raise Stopped("stopped by a test")
        monkeypatch.setattr(studies, "check_stop", look)
        return made(tree, tmp_path / "real")

    assert killed_at(40) == 75 and 40 <= len(read) < len(files)
    before = list(read)
    assert killed_at(60) == 75 and len(read) == len(set(read)) > len(before)
    os.utime(before[0])  # as if it had been mended: its folder is looked at again, no other
    assert killed_at(999) == 0
    again = [path for path in before if read.count(path) > 1]
    assert again and {path.parent for path in again} == {before[0].parent}
    assert sorted({*read}) == files
    ours, theirs = content(tmp_path / "real"), content(real)
    assert ours.pop("dataset.json") and theirs.pop("dataset.json") and ours == theirs
    assert not list(tmp_path.glob(".real*"))


def test_another_annotation_is_another_survey(lidc_tree, tmp_path, monkeypatch):
    from lungkit.ct import studies
    from lungkit.formats import dicom
    from lungkit.run.faults import Stopped

    tree, read, header = tmp_path / "in", [], dicom.read_slices
    shutil.copytree(lidc_tree, tree)
    monkeypatch.setattr(dicom, "read_slices", lambda path: read.append(path) or header(path))

    def stop():
        raise Stopped("stopped by a test")

    monkeypatch.setattr(studies, "check_stop", stop)
    for _ in range(3):
        assert made(tree, tmp_path / "real") == 75
    first = len(read)
    os.utime(next(tree.glob("P4/*/*/*.xml")))
    for _ in range(3):
        assert made(tree, tmp_path / "real") == 75
    assert 0 < first and read[first:] == read[:first]


TASKS = {
    "grade 3 is benign": (["--benign-max", "3"], {"benign", "malignant"}),
    "presence": (["--labels", "presence"], {"no_nodule", "nodule"}),
    "slices": (["--view", "slice", "--labels", "presence"], {"no_nodule", "nodule"}),
    "slices, binary": (["--view", "slice", "--slices-per-nodule", "2", "--symmetries", "2"],
                       {"benign", "malignant"})}


@pytest.mark.parametrize(("more", "classes"), TASKS.values(), ids=TASKS)
def test_every_task_of_one_input_has_one_split(lidc_tree, real, tmp_path, more, classes):
    output = tmp_path / "real"
    code = made(lidc_tree, output, *more)
    assert code == 0
    data = open_dataset(output)
    assert set(data.classes) == classes
    assert (output / "split.csv").read_bytes() == (real / "split.csv").read_bytes()
    assert data.symmetries == (2 if "--symmetries" in more else 1 if "slice" in more else 8)
    split_of = {(row.extra["series"], row.extra["nodule_id"]): row.split for row in data.rows}
    assert all(split_of[row.extra["series"], row.extra["nodule_id"]] == row.split
               for row in data.rows)  # however many slices of it there are


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


def test_all_slices_of_the_splits_asked_for_are_there_for_figures_by_volume(
        lidc_tree, tmp_path, capsys):
    assert made(lidc_tree, tmp_path / "real", "--view", "slice", "--labels", "presence",
                "--all-slices", "val", "test") == 0
    data = open_dataset(tmp_path / "real")
    slices: dict[tuple, list] = {}
    for row in data.rows:
        slices.setdefault((row.split, row.extra["series"]), []).append(
            int(row.extra["slice_index"]))
    for (split, _), each in slices.items():
        assert (sorted(each) == list(range(12))) == (split != "train")
    for row in data.select("test"):
        assert (row.label == "nodule") == bool((data.mask("nodule", row) > 0).any())
    assert made(lidc_tree, tmp_path / "real", "--view", "slice", "--labels", "presence",
                "--all-slices", "test", "val", "test") == 0
    assert "already complete" in capsys.readouterr().out


def test_irrelevant_findings_are_masked_and_slices_that_show_them_are_named(tmp_path):
    tree, place = write_luna(tmp_path / "in"), (10, 30, 46)  # two slices above the last nodule's
    at = ",".join(map(str, np.add(ORIGIN, np.multiply(place, CHEST_STEP)[::-1])))
    (tree / "annotations_excluded.csv").write_text("\n".join(
        ["seriesuid,coordX,coordY,coordZ,diameter_mm", *(f"{name},{at},-1" for name in "abc")]))
    assert made(tree, tmp_path / "real", "--view", "slice", "--labels", "presence", "--image-size",
                "64", "--field-mm", "128", "--all-test-slices") == 0
    data = open_dataset(tmp_path / "real")
    shown = [row for row in data.rows if data.mask_path("ignored", row).exists()]
    assert [(row.split, row.label) for row in shown] == [("test", "no_nodule")]
    assert {row.extra["slice_index"] for row in shown} == {str(place[0])}
    assert any(each.startswith("doubtful images: 1 ") for each in data.warnings)


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
    """DICOM, in one file or many, MetaImage, flipped too, and NIfTI with one table of nodules."""
    table = ["series,x,y,z,diameter_mm,grade,patient"]
    trees = {name: tmp_path / name for name in ("dicom", "enhanced", "mhd", "flipped", "nifti")}
    for number in range(3):
        uid, patient = f"1.2.3.{number}", f"P{number}"
        hu = chest([(LEFT, 5), (RIGHT, 9)], seed=number)
        paths = [write_series(trees[name] / patient, hu, step=CHEST_STEP, patient=patient,
                              series=uid, study=uid, frame=uid) for name in ("dicom", "enhanced")]
        join_frames(paths[1], trees["enhanced"] / patient / "all.dcm")
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
    assert all(each == found["dicom"] for each in found.values())
    assert len(found["dicom"]) == 6 * 4


STEP = (2.5, 2.01, 2.01)  # which single precision, NIfTI's, does not hold exactly
ROUND, CUT = (3, 30, 18), (7, 28, 46)


def truths() -> list[np.ndarray]:
    """bool [Z, Y, X] of two nodules, one round, one cut off at one side."""
    cut = ball(SHAPE, CUT, 6, STEP)
    cut[:, :, CUT[2] + 1:] = False
    return [ball(SHAPE, ROUND, 5, STEP), cut]


def write_as_lidc(tree, number, hu):
    uid = f"1.2.3.{number}"
    write_series(tree / uid, hu, step=STEP, patient=uid, series=uid, study=uid, frame=uid)
    rois = "".join(mark("".join(roi(z, outline(mask[z]), uid, ORIGIN[2] + STEP[0] * z)
                                for z in np.flatnonzero(mask.any((1, 2)))), 3, str(n))
                   for n, mask in enumerate(truths()))
    write_xml(tree / uid / "notes.xml", [rois] * 4, uid)


def write_as_luna16(tree, number, hu):
    write_mhd(tree / f"{number}.mhd", hu, step=STEP)
    lines = [] if number else ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    for mask in truths():
        area = mask.sum((1, 2))
        z = area.argmax()
        y, x = np.ptp(np.argwhere(mask[z]), 0) / 2 + np.argwhere(mask[z]).min(0)
        at = np.array(ORIGIN) + [2.01 * x, 2.01 * y, 2.5 * z]
        mm = 2 * np.sqrt(area.max() * 2.01 ** 2 / np.pi)
        lines.append(",".join([str(number), *(f"{v:.7f}" for v in at), f"{mm:.7f}"]))
    with open(tree / "annotations.csv", "a") as file:
        file.writelines(f"{line}\n" for line in lines)


def write_as_msd(tree, number, hu):
    write_nifti(tree / "imagesTr" / f"{number}.nii.gz", hu, step=STEP)
    write_nifti(tree / "labelsTr" / f"{number}.nii.gz", sum(truths()).astype(np.uint8), step=STEP,
                order="LPS")


def write_as_petct(tree, number, hu):
    uid = f"1.2.3.{number}"
    write_series(tree / uid, hu, step=STEP, patient=uid, series=uid, study=uid, frame=uid)
    for z in range(SHAPE[0]):
        boxes = ""
        for mask in truths():
            ys, xs = np.nonzero(mask[z])
            boxes += "" if not len(ys) else (
                f"<object><name>A</name><bndbox><xmin>{xs.min()}</xmin><ymin>{ys.min()}</ymin>"
                f"<xmax>{xs.max() + 1}</xmax><ymax>{ys.max() + 1}</ymax></bndbox></object>")
        if boxes:
            path = tree / "Annotation" / uid / f"{uid}.{z + 1}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"<annotation>{boxes}</annotation>")


SOURCES = {"lidc": write_as_lidc, "luna16": write_as_luna16, "msd": write_as_msd,
           "petct": write_as_petct}


def shown(output) -> dict[tuple[str, str], tuple]:
    """{(number of the patient, slice): (image, boxes)} of the images of nodules."""
    data = open_dataset(output)
    return {(row.extra["series"][-1], row.extra["slice_index"]): (
        data.image(row), np.array([[float(v) for v in box.split()]
                                   for box in row.extra["boxes"].split("; ")]))
            for row in data.rows if row.label == "nodule"}


@pytest.mark.parametrize("view", ["crop", "slice"])
def test_four_sources_of_one_truth_show_the_same(tmp_path, view):
    """To the pixel, and boxes to half of one, but for the edges of a nodule that is no ball."""
    found = {}
    for name, write in SOURCES.items():
        (tree := tmp_path / name).mkdir()
        for number in range(3):
            write(tree, number, chest([(ROUND, 5), (CUT, 6)], SHAPE, seed=number))
        assert made(tree, tmp_path / f"of_{name}" / "real", "--view", view, "--labels",
                    "presence", *(["--field-mm", 32] if view == "crop" else [])) == 0
        found[name] = shown(tmp_path / f"of_{name}" / "real")
    assert sorted(found["lidc"]) == sorted((str(n), str(at[0])) for n in range(3)
                                           for at in (ROUND, CUT))
    for name, images in found.items():
        assert images.keys() == found["lidc"].keys()
        for key, (image, boxes) in images.items():
            uneven = key[1] == str(CUT[0])
            wanted, edges = found["lidc"][key]
            assert np.array_equal(image, wanted), (name, key)
            if not (name == "luna16" and uneven):
                assert np.abs(boxes - edges).max() <= 0.5, (name, key)


def test_healthy_crops_may_be_of_candidates(tmp_path, capfd):
    tree = write_luna(tmp_path / "in")
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


# ------------------------------------------------------------------ options

def test_broken_series_may_be_left_out_by_name(lidc_tree, tmp_path):
    shutil.copytree(lidc_tree, tmp_path / "in")
    slices_of(tmp_path / "in", "P3")[3].unlink()
    assert made(tmp_path / "in", tmp_path / "out" / "real", "--skip-broken") == 0
    rows = rows_of(tmp_path / "out" / "real" / "studies.csv")
    [broken] = [row for row in rows if row["series"] == "1.2.3.3"]
    assert broken["kept"] == "0" and "uneven distances" in broken["reason"]


OPTIONS = [["--window", "400", "-1000"], ["--benign-max", "4"],
           ["--view", "slice", "--symmetries", "8"], ["--all-slices", "val"], ["--all-test-slices"],
           ["--split-from", "x.csv", "--fold", "1/3"], ["--images", "x.csv", "--view", "slice"],
           ["--images", "x.csv", "--window", "-500", "500"]]


@pytest.mark.parametrize("more", OPTIONS, ids=" ".join)
def test_options_that_contradict_each_other_are_exit_2(lidc_tree, tmp_path, more):
    assert made(lidc_tree, tmp_path / "real", *more) == 2
    assert made(lidc_tree, lidc_tree / "real") == 2


# ------------------------------------------------------------------ pictures cut from scans

@pytest.fixture
def cut_pictures(tmp_path) -> Path:
    return write_pictures(tmp_path / "in")


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


@pytest.mark.parametrize("window", [(-1000, 400), (-800, 300)], ids=str)
def test_pictures_without_spacing_show_all_of_themselves_and_may_have_a_window(
        cut_pictures, tmp_path, window):
    table = cut_pictures / "manifest.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join(",".join([*line[:4], *line[6:]]) for line in lines))
    assert made(cut_pictures, tmp_path / "real", "--images", table, "--image-size", 40,
                "--input-window", *window, "--window", *window) == 0
    data = open_dataset(tmp_path / "real")
    assert data.um_per_px is None and data.intensity["window"] == [*window]
    from lungkit.data.png import decode_png

    for row in data.rows:
        file = decode_png((cut_pictures / "images" / row.source).read_bytes())
        if file.shape == (40, 40):
            assert np.array_equal(data.image(row)[..., 0], file)
    assert any(each.startswith("field unknown") for each in data.warnings)


# ------------------------------------------------------------------ real data

@pytest.mark.skipif(not DATA.is_dir(), reason="needs CT_DATA: the folder of CT for tests")
def test_two_kernels_of_one_scan_are_one_series_and_named(tmp_path):
    from lungkit.ct import studies
    from lungkit.ct.annotations import find_annotations
    from lungkit.run.journal import ResultJournal

    root = DATA / "lung_pet_ct_dx_A0001"
    annotations = find_annotations(root, None, None)
    with ResultJournal(tmp_path / "journal", "test", keep=False) as journal:
        [kept], left = studies.choose(studies.survey(root, annotations, journal, map))
    [other] = [each for each in left if each.scan]
    assert {kept.kernel, other.scan.kernel} == {"B", "L"} and not any(e.broken for e in left)
    assert other.reason == f"another series of one scan: {kept.name} is kept"
    table = {row["series"]: row for row in csv.DictReader(
        studies.table([kept], left, annotations.others).splitlines())}
    assert (table[kept.name]["kept"], table[other.name]["kept"]) == ("1", "0")
    [tumour] = kept.annotated.nodules
    assert tumour.label == "A" and kept.patient == "Lung_Dx-A0001"


@pytest.mark.skipif(not DATA.is_dir(), reason="needs CT_DATA: the folder of CT for tests")
def test_the_decathlons_apple_double_files_are_named_and_no_scans(tmp_path, capfd):
    from lungkit.ct.annotations import find_annotations

    root = DATA / "msd_manifest"
    assert sorted(find_annotations(root, None, None).others) == [
        (name, "AppleDouble file") for name in ("._dataset.json", "._imagesTr", "._imagesTs",
                                                "._labelsTr")]
    assert made(root, tmp_path / "real") == 1
    assert "no chest CT found" in capfd.readouterr().err.splitlines()[-1]


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
