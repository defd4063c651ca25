"""Every odd input of CT that is known: refused in one line, or taken as the pages say.

What REFUSED spoils ends with one line that says what, where and what to do, exit 1 and nothing
published. What TAKEN spoils becomes a dataset; where the spoiling should not matter its images are
those of the same scans unspoilt, and what is left out or doubtful is named.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ct_seg
from arms import content
from ct_files import (
    CHEST_STEP,
    ball,
    chest,
    join_frames,
    mark,
    mark_of,
    outline,
    roi,
    scene,
    set_tags,
    slices_of,
    write_luna,
    write_nifti,
    write_patient,
    write_pictures,
    write_series,
    write_xml,
)
from lungkit.data.dataset import open_dataset

LEFT, RIGHT = (3, 30, 18), (5, 28, 46)
SHAPE = (12, 64, 64)
HEADER = "series,x,y,z,diameter_mm"
NOTES = "P1/study/series/notes.xml"
TREES = ("dicom", "luna", "msd", "pictures")


@pytest.fixture(scope="session")
def trees(tmp_path_factory) -> dict[str, Path]:
    """Whole inputs, by kind: three patients, the least that can be split; 18 pictures. Read only.

    Every patient has a benign and a malignant nodule.
    """
    root = tmp_path_factory.mktemp("inputs")
    for number in range(3):
        write_patient(root / "dicom", number, [(LEFT, 5, 1), (RIGHT, 9, 5)])
        for folder, values in (("imagesTr", chest()), ("labelsTr", ONE_VALUE)):
            write_nifti(root / "msd" / folder / f"lung_{number}.nii.gz", values, step=CHEST_STEP)
    write_luna(root / "luna")
    write_pictures(root / "pictures")
    return {name: root / name for name in TREES}


OPTIONS = {"dicom": [], "luna": [], "msd": ["--labels", "presence"],
           "pictures": ["--images", "{}/manifest.csv"]}


def made(kind, tree, output, *more) -> int:
    given = [each.format(tree) for each in [*OPTIONS[kind], *more]]
    return ct_seg.main(["--input", str(tree), "--output", str(output), "--image-size", "16",
                        *given])


def pixels(output) -> dict[str, str]:
    return {name: sha for name, sha in content(output).items()
            if name.endswith(".png") and name != "qc.png"}


@pytest.fixture(scope="session")
def unspoilt(trees, tmp_path_factory) -> dict[str, dict[str, str]]:
    """The images of the inputs as they are."""
    root = tmp_path_factory.mktemp("unspoilt")
    for kind in TREES[:3]:
        assert made(kind, trees[kind], root / kind) == 0
    return {kind: pixels(root / kind) for kind in TREES[:3]}


# ------------------------------------------------------------------ DICOM

def tags(**values):
    def spoil(tree):
        for path in slices_of(tree):
            set_tags(path, **values)
    return spoil


def tag_of_one(**values):
    return lambda tree: set_tags(slices_of(tree)[2], **values)


def all_patients(**values):
    def spoil(tree):
        for path in tree.rglob("*.dcm"):
            set_tags(path, **values)
    return spoil


def without(name):
    def spoil(tree):
        import pydicom

        data = pydicom.dcmread(path := slices_of(tree)[1])
        delattr(data, name)
        data.save_as(path)
    return spoil


def twice(tree):
    import pydicom

    one, other = slices_of(tree)[2:4]
    set_tags(one, ImagePositionPatient=pydicom.dcmread(other).ImagePositionPatient)


def tilt(tree):
    import pydicom

    for path in slices_of(tree):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        set_tags(path, ImagePositionPatient=[x, y + float(z + 300) / 5, z])


def stored(change):
    """Change the stored values of every slice of a patient; those of HU -1024 are 0."""
    def spoil(tree):
        import pydicom

        for path in slices_of(tree):
            data = pydicom.dcmread(path)
            data.PixelData = change(np.frombuffer(data.PixelData, "<i2")).astype("<i2").tobytes()
            data.save_as(path)
    return spoil


def cut(tree):
    path = slices_of(tree)[2]
    path.write_bytes(path.read_bytes()[:-500])


def jpeg_lossless(tree):
    import pydicom

    data = pydicom.dcmread(path := slices_of(tree)[2])
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + b"\0" * 20])
    data.save_as(path)


def joined(tree):
    """P1's images as the frames of one file."""
    paths = slices_of(tree)
    return join_frames(paths, paths[0].parent / "all.dcm")


def joined_and_boxed(tree):
    import pydicom

    (tree / NOTES).unlink()
    (tree / f"{pydicom.dcmread(joined(tree)).SOPInstanceUID}.xml").write_text(
        "<annotation><object><name>A</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax>"
        "<ymax>9</ymax></bndbox></object></annotation>")


def slope_of_a_slice(tree):
    import pydicom

    data = pydicom.dcmread(path := slices_of(tree)[4])
    data.PixelData = (np.frombuffer(data.PixelData, "<i2") * 2).astype("<i2").tobytes()
    data.RescaleSlope = 0.5
    data.save_as(path)


def scout(tree):
    set_tags(next(path for path in slices_of(tree) if path.stem.endswith("-00")),
             ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])


def second_series(tree):
    """Another kernel of P1's scan, its files in the folder of the first."""
    for path in write_series(tree / "P1/more", chest(), step=CHEST_STEP, patient="P1",
                             study="1.2.1", series="1.2.3.77", frame="1.9.1"):
        path.rename(slices_of(tree)[0].parent / f"second{path.name}")


MODALITIES = ("RTSTRUCT", "SEG", "PT", "DX")


def other_modalities(tree):
    for number, modality in enumerate(MODALITIES):
        write_series(tree / "P1" / modality, scene(), patient="P1", series=f"1.7.{number}",
                     Modality=modality)


def sagittal(tree):
    write_series(tree / "P1/sagittal", scene(), patient="P1", series="1.8", rows=(0, 1, 0),
                 columns=(0, 0, -1))


# ------------------------------------------------------------------ NIfTI and MetaImage

def image(values=None, cut=0, **how):
    """lung_0 of the Decathlon, written otherwise."""
    def spoil(tree):
        path = tree / "imagesTr" / "lung_0.nii.gz"
        write_nifti(path, chest() if values is None else values, step=CHEST_STEP, **how)
        path.write_bytes(path.read_bytes()[:path.stat().st_size - cut])
    return spoil


def labels(values, **how):
    return lambda tree: write_nifti(tree / "labelsTr" / "lung_0.nii.gz", values,
                                    **{"step": CHEST_STEP, **how})


def resaved(change):
    """lung_0 as nibabel saves it changed."""
    def spoil(tree):
        import nibabel

        path = tree / "imagesTr" / "lung_0.nii.gz"
        before = nibabel.load(path)
        after = change(nibabel, np.asarray(before.dataobj), before)
        path.unlink()
        nibabel.save(after, path)
    return spoil


def contradicting(nibabel, values, before):
    after = nibabel.Nifti1Image(values, before.affine, before.header)
    after.set_qform(np.diag([1, 1, 3, 1]), 1)
    return after


def doubled_labels(tree):
    (tree / "masks").mkdir()
    shutil.copy(tree / "labelsTr/lung_0.nii.gz", tree / "masks/lung_0.nii.gz")


def luna(**how):
    return lambda tree: write_luna(tree, **how)


def flipped(tree):
    from ct_files import ORIGIN, write_mhd

    write_mhd(tree / "a.mhd", np.ascontiguousarray(chest()[:, ::-1, ::-1]), step=CHEST_STEP,
              matrix=np.diag([-1, -1, 1]), origin=np.array(ORIGIN) + [2 * 63, 2 * 63, 0])


def apple_double(folder):
    return lambda tree: (tree / folder / "._lung_0.nii.gz").write_bytes(b"\0\5\26\7")


# ------------------------------------------------------------------ XML and tables

MARKS = mark_of(ball(SHAPE, LEFT, 5), 1, "1.2.3.1")
BOTH = MARKS + mark_of(ball(SHAPE, RIGHT, 9), 5, "1.2.3.1", "2")
ONE_VALUE = (ball(SHAPE, LEFT, 5) | ball(SHAPE, RIGHT, 9)).astype(np.uint8)
TWO_VALUES = ONE_VALUE + ball(SHAPE, RIGHT, 9)


def xml(*sessions, **how):
    return lambda tree: write_xml(tree / NOTES, list(sessions), "1.2.3.1", **how)


def section(**how):
    return mark(roi(3, outline(ball(SHAPE, LEFT, 5)[3]), **how), 3)


def written(name, *lines):
    return lambda tree: (tree / name).write_text("\n".join(lines) + "\n")


def table(*lines, header=HEADER):
    """A table of nodules instead of the XML."""
    def spoil(tree):
        for path in tree.rglob("*.xml"):
            path.unlink()
        written("t.csv", header, *lines)(tree)
    return spoil


def nbia(tree):
    """What NBIA writes beside the scans; the headers say nothing."""
    all_patients(PatientID="")(tree)
    written("metadata.csv", "Series UID,Collection,Subject ID,File Size,File Location",
            *(f"1.2.3.{n},Lung,Lung_Dx-A{n},15,82 MB,./x" for n in range(3)))(tree)


def only_benign(tree):
    for number in range(3):
        write_patient(tree, number, [(LEFT, 5, 1)])


def malignant_in_one(tree):
    for number in (1, 2):
        write_patient(tree, number, [(LEFT, 5, 1)])


def one_scanner_a_class(tree):
    for number in range(6):
        write_patient(tree, number, [(RIGHT, 9, 1 + 4 * (number % 2))],
                      Manufacturer=("SIM", "ACME")[number % 2],
                      ConvolutionKernel=("B30f", "B70f")[number % 2])


def emptied(tree):
    shutil.rmtree(tree)
    tree.mkdir()


# ------------------------------------------------------------------ pictures

def picture(values, name="3.png"):
    """Another picture of that name, as PIL or OpenCV writes it."""
    def spoil(tree):
        import cv2
        from PIL import Image

        path = tree / "images" / name
        (tree / "masks" / name).unlink()
        if values.dtype == np.uint16:
            assert cv2.imwrite(str(path), values)
        else:
            Image.fromarray(values).save(path, format="PNG")
    return spoil


def grey(*shape):
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


def jpeg_inside(tree):
    from PIL import Image

    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(tree / "images/3.png", format="JPEG")


REFUSED = {
    "dicom": {
        "missing slice": (lambda t: slices_of(t)[3].unlink(), "uneven distances"),
        "duplicate position": (twice, "two different images"),
        "two series under one number": (tag_of_one(FrameOfReferenceUID="1.8"), "mixed"),
        "no RescaleIntercept": (without("RescaleIntercept"), "no RescaleIntercept"),
        "gantry tilt": (tilt, "gantry tilt"),
        "frames that nothing places": (tags(NumberOfFrames=3), "does not say where each lies"),
        "outlines of a file of many frames": (joined, "does not hold"),
        "boxes on a file of many frames": (joined_and_boxed, "do not say on which"),
        "JPEG lossless without a decoder": (jpeg_lossless, "install python-gdcm"),
        "pixels cut short": (cut, "cut short or damaged"),
        "no PatientID": (tags(PatientID=""), "no PatientID"),
        "one PatientID for all": (all_patients(PatientID="anonymous"), "'anonymous'"),
        "sagittal alone": (all_patients(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
                           "is sagittal, not axial"),
        "PET alone": (all_patients(Modality="PT"), "is PT, not CT"),
        "HU cut to a window before": (stored(lambda v: v.clip(24, 1424)), "cut to a window"),
        "slope and intercept lost": (stored(lambda v: v + 1024), "no air, so not HU"),
        "outline of another scan": (xml(section(sop="1.9")), "does not hold"),
        "z off by a slice": (xml(section(series="1.2.3.1", z_mm=-290)), "do not match"),
        "malignancy 6": (xml(MARKS.replace("<malignancy>1", "<malignancy>6")), "malignancy 6"),
        "XML torn": (written(NOTES, "<LidcReadMessage><SeriesInstanceUid>1.2.3.1"
                                    "</SeriesInstanceUid>"), "no whole XML"),
        "one class": (only_benign, "1 class (benign) where two are needed"),
        "a class in one split alone": (malignant_in_one, "no image for malignant in "),
        "nothing": (emptied, "no chest CT found")},
    "msd": {
        "labels of another shape": (labels(np.ones((12, 64, 63), np.uint8)), "not of one scan"),
        "labels elsewhere": (labels(ONE_VALUE, origin=(0, 0, 0)), "elsewhere"),
        "labels of two values": (labels(TWO_VALUES), "one value besides 0"),
        "labels twice": (doubled_labels, "are labels of one scan"),
        "4-D": (resaved(lambda n, v, b: n.Nifti1Image(np.stack([v, v], 3), b.affine)),
                "4 dimensions"),
        "HU / 1000": (image((chest() / 1000).astype(np.float32)), "divided by 1000"),
        "qform and sform disagree": (resaved(contradicting), "its qform and sform"),
        "gz cut short": (image(cut=4000), "cut short")},
    "luna": {
        ".raw missing": (lambda t: (t / "a.raw").unlink(), "are missing"),
        ".raw of the wrong size": (luna(cut=100), "copy it again"),
        ".zraw cut short": (luna(compressed=True, cut=100), "cut short"),
        "sheared": (luna(matrix=[[1, 0, 0], [0, 1, 0], [0, .2, 1]]), "gantry tilt"),
        "a second table of nodules": (written("annotations_2.csv", HEADER, "a,24,67,-292,10"),
                                      "a second table of nodules"),
        "a column in two cases": (written("annotations.csv", HEADER + ",X", "a,24,67,-292,10,24"),
                                  "'x' and 'X', which are one"),
        "no table names a scan": (written("annotations.csv", HEADER, "q,24,67,-292,10"),
                                  "names none of these scans"),
        "two patients of a series": (written("who.csv", "series,patient", "a,P1", "a,P2"),
                                     "the series a is of 'P1' and of 'P2'"),
        "two columns of patients": (written("who.csv", "series,patient,Patient", "a,P1,P2"),
                                    "has the column 'patient' more than once"),
        "two tables of patients": (lambda t: (written("who.csv", "series,patient", "a,P1")(t),
                                              written("whose.csv", "series,patient", "a,P2")(t)),
                                   "the series a is, by another table, of 'P1'"),
        "patients of a rounded series": (written("who.csv", "series,patient", "1.23E+45,P1"),
                                         "line 2: series 1.23E+45")},
    "pictures": {
        "RGB": (picture(grey(40, 40, 3)), "has colours"),
        "RGBA with alpha": (picture(grey(40, 40, 4)), "3.png"),
        "16-bit PNG": (picture(np.full((40, 40), 3000, np.uint16)), "16 bits"),
        "missing": (lambda t: (t / "images/3.png").unlink(), "3.png is missing"),
        "no picture, whatever its suffix": (
            lambda t: (t / "images/3.png").write_bytes(b"GIF89a"), "whatever its name says"),
        "mask of another size": (lambda t: shutil.copy(t / "masks/3.png", t / "masks/0.png"),
                                 "its picture 37 x 40"),
        "grade 7": (written("manifest.csv", "file,grade", "3.png,7"), "grades go from 1 to 5"),
        "listed twice": (written("manifest.csv", "file,grade", "3.png,2", "3.png,2"),
                         "listed 2 times"),
        "no label": (written("manifest.csv", "file,who", "3.png,2"), "label or grade"),
        "unknown parent": (written("manifest.csv", "file,grade,parent", "3.png,2,x"),
                           "not in the table"),
        "a column in two cases": (written("manifest.csv", "file,grade,Grade", "3.png,2,5"),
                                  "'grade' and 'Grade', which are one")}}


def rows_of(table: dict) -> list:
    return [pytest.param(kind, *row, id=f"{kind}: {name}") for kind, rows in table.items()
            for name, row in rows.items()]


def refusal(kind, tree, output, capfd, *more) -> str:
    """The one line that a refused input ends with."""
    assert made(kind, tree, output, *more) == 1
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith("ct_seg.py: error: ")
    assert sum(line.startswith("ct_seg.py: error") for line in said) == 1
    assert not output.exists()
    return said[-1]


@pytest.mark.parametrize(("kind", "spoil", "words"), rows_of(REFUSED))
def test_a_bad_input_is_one_line_and_exit_1_and_nothing_is_published(trees, tmp_path, capfd, kind,
                                                                     spoil, words):
    shutil.copytree(trees[kind], tmp_path / "in")
    spoil(tmp_path / "in")
    said = refusal(kind, tmp_path / "in", tmp_path / "out" / "real", capfd)
    assert words in said, said


TABLES = {
    "diameter -1": ("1.2.3.0,0,0,-295,-1", "diameter -1"),
    "a series that a spreadsheet rounded": ("1.23E+45,0,0,-295,5", "spreadsheet has rounded"),
    "outside the volume": ("1.2.3.1,900,0,-295,5", "outside the volume"),
    "decimal comma": ("1.2.3.0,\"1,5\",0,-295,5", "decimals with a point"),
    "decimal comma unquoted": ("1.2.3.0,1,5,0,-295,5", "cells")}


@pytest.mark.parametrize(("line", "words"), TABLES.values(), ids=TABLES)
def test_a_bad_table_is_one_line(trees, tmp_path, capfd, line, words):
    shutil.copytree(trees["dicom"], tmp_path / "in")
    table(line)(tmp_path / "in")
    said = refusal("dicom", tmp_path / "in", tmp_path / "out" / "real", capfd, "--nodules",
                   "{}/t.csv")
    assert words in said, said


# ------------------------------------------------------------------ taken

def same(made) -> bool:
    return made.pixels == made.unspoilt


def warned(words):
    return lambda made: any(words in each for each in made.data.warnings)


def named(*reasons):
    """Left out by these reasons, and the images as ever."""
    return lambda made: same(made) and set(reasons) <= {
        row["reason"] for row in made.studies if row["kept"] == "0"}


def noted(words):
    return lambda made: any(words in row["notes"] for row in made.studies if row["kept"] == "1")


def shape_of(name, *shape):
    def check(made):
        from lungkit.data.png import decode_png

        file = decode_png((made.tree / "images" / name).read_bytes())
        return file.shape[:2] == shape and name in {row.source for row in made.data.rows}
    return check


TAKEN = {
    "dicom": {
        "slope of a slice differs": (slope_of_a_slice, same),
        "scout inside": (scout, noted("1 scout images left out")),
        "two series in one folder": (second_series, named(
            "another series of one scan: 1.2.3.1 is kept")),
        "RTSTRUCT, SEG, PET and DX beside": (other_modalities, named(
            *(f"is {modality}, not CT images" for modality in MODALITIES))),
        "sagittal beside": (sagittal, named("is sagittal, not axial")),
        "film message": (lambda t: write_xml(t / "film.xml", [], root="IdriReadMessage"),
                         named("is about chest films, not CT")),
        "namespace absent": (xml(*[BOTH] * 4, namespace=False), same),
        "outline of two points": (xml(*[BOTH] * 3, BOTH + mark(
            roi(2, [(20, 20), (21, 20)], "1.2.3.1"), 3)), noted("encloses no voxel")),
        "malignancy 0": (xml(*[BOTH] * 3, BOTH.replace("<malignancy>1", "<malignancy>0")),
                         noted("1 marks with malignancy 0, taken as not rated")),
        "three readers": (xml(*[BOTH] * 3), noted("3 reading sessions, not 4")),
        "NBIA's decimal comma": (nbia, lambda made: {row.group for row in made.data.rows} == {
            f"Lung_Dx-A{n}" for n in range(3)}),
        "patient in two classes": (lambda t: None, warned("patients of several classes")),
        "one scanner a class": (one_scanner_a_class, lambda made: all(
            warned(words)(made) for words in ("manufacturer 'ACME'", "kernel 'B70f'")))},
    "msd": {
        "labels 0 and 255": (labels(ONE_VALUE * 255), same),
        "._ file": (apple_double("imagesTr"), named("AppleDouble file")),
        "._ file of labels": (apple_double("labelsTr"), named("AppleDouble file")),
        "turned": (image(order="PIR"), same)},
    "luna": {
        "big-endian": (luna(big=True), same), "compressed": (luna(compressed=True), same),
        "flipped matrix": (flipped, same),
        "a copy of the table": (
            lambda t: shutil.copy(t / "annotations.csv", t / "annotations2.csv"),
            named("a copy of another table")),
        "unknown diameters of irrelevant findings": (
            written("annotations_excluded.csv", HEADER, "a,24,67,-275,-1"), same)},
    "pictures": {
        "50 x 47": (picture(grey(50, 47)), shape_of("3.png", 50, 47)),
        "suffix lies": (jpeg_inside, lambda made: "3.png" in {r.source for r in made.data.rows})}}


@pytest.mark.parametrize(("kind", "spoil", "check"), rows_of(TAKEN))
def test_what_is_odd_but_harmless_is_taken_and_named(trees, unspoilt, tmp_path, kind, spoil, check):
    shutil.copytree(trees[kind], tree := tmp_path / "in")
    spoil(tree)
    output = tmp_path / "out" / "real"
    assert made(kind, tree, output) == 0
    with open(output / "studies.csv", newline="") as file:
        studies = list(csv.DictReader(file))
    assert check(SimpleNamespace(tree=tree, data=open_dataset(output), studies=studies,
                                 pixels=pixels(output), unspoilt=unspoilt.get(kind)))
