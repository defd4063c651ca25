"""Tables of nodules and boxes: what is understood, and what spreadsheets do to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lungkit.ct import tables
from lungkit.ct.tables import Box
from lungkit.run.faults import Fault

DATA = Path(os.environ.get("CT_DATA") or "no-ct-data")
HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm"


def written(tmp_path, *lines, header=HEADER):
    path = tmp_path / "t.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_a_table_by_either_names(tmp_path):
    path = written(tmp_path, "1.2,1,-2.5,3,6,[4; 2],ade,p7", header="Series,x,y,z,Diameter_mm,"
                   "mal_details,histology,patient_id")
    [(series, [found])] = tables.read_findings(path).items()
    assert series == "1.2" and found.centre_mm == (1, -2.5, 3) and found.diameter_mm == 6
    assert (found.grades, found.label, found.patient, found.line) == ((4, 2), "ade", "p7", 2)


@pytest.mark.parametrize(("line", "words"), [
    ("1.2,1,2,3,-1", "line 2: diameter -1 mm"), ("1.2,1,2,3,0", "diameter 0"),
    ("1.23E+45,1,2,3,5", "a spreadsheet has rounded"), (",1,2,3,5", "no series"),
    ("1.2,\"1,5\",2,3,5", "decimals with a point"), ("1.2,nan,2,3,5", "not a number"),
    ("1.2,1,2,3", "cells"), ("1.2,1,2,3,5,6", "cells")])
def test_a_row_that_cannot_be_meant_is_named(tmp_path, line, words):
    with pytest.raises(Fault, match=words) as fault:
        tables.read_findings(written(tmp_path, line))
    assert "t.csv" in str(fault.value)


def test_every_bad_row_is_named_at_once_and_missing_columns_too(tmp_path):
    with pytest.raises(Fault, match="line 2.*line 4"):
        tables.read_findings(written(tmp_path, "1,1,2,3,-1", "1,1,2,3,4", "1,x,2,3,4"))
    with pytest.raises(Fault, match="lacks columns for z, diameter"):
        tables.read_findings(written(tmp_path, header="series,x,y"))
    with pytest.raises(Fault, match="grades go from 1 to 5"):
        tables.read_findings(written(tmp_path, "1,1,2,3,4,6", header=HEADER + ",grade"))


def test_an_irrelevant_finding_may_be_of_unknown_size(tmp_path):
    path = written(tmp_path, "1.2,1,2,3,-1")
    assert tables.read_findings(path, ignored=True)["1.2"][0].diameter_mm == tables.UNKNOWN_MM


def test_patients_are_read_past_an_unquoted_decimal_comma(tmp_path):
    path = written(tmp_path, "1.5,LIDC,A7,9 MB,./x", "1.6,LIDC,A8,15,82 MB,./y",
                   header="Series UID,Collection,Subject ID,File Size,File Location")
    assert tables.read_patients(path) == {"1.5": "A7", "1.6": "A8"}
    late = written(tmp_path, "CT,15,82 MB,A8,1.6",
                   header="Modality,File Size,Patient Id,Series UID")
    assert tables.read_patients(late) == {"1.6": "A8"}
    assert tables.read_patients(written(tmp_path, "1.6", header="Series UID")) == {}


TWO_WAYS = {
    "two equal columns": (tables.read_patients, "series,patient,notes,patient", "1.5,A,x,B",
                          "has the column 'patient' more than once"),
    "two columns in two cases": (tables.read_patients, "Series,PATIENT,series", "1.5,A,1.6",
                                 "has the column 'Series' more than once"),
    "two patients of a series": (tables.read_patients, "series,patient", "1.5,A\n1.5,B",
                                 "the series 1.5 is of 'A' and of 'B'"),
    "a rounded series": (tables.read_patients, "series,patient", "1.5,A\n1.23E+45,B",
                         "line 3: series 1.23E"),
    "findings": (tables.read_findings, HEADER + ",coordx", "1.5,1,2,3,4,5",
                 "'coordX' and 'coordx', which are one"),
    "candidates": (tables.read_candidates, "seriesuid,coordX,coordY,coordZ,class,Class",
                   "1.5,1,2,3,0,1", "'class' and 'Class', which are one"),
    "diagnoses": (tables.read_diagnoses, "patient_id,diagnosis", "P1,1\nP1,2",
                  "the patient P1 is of diagnosis '1' and of '2'")}


@pytest.mark.parametrize(("read", "header", "lines", "words"), TWO_WAYS.values(), ids=TWO_WAYS)
def test_what_could_be_taken_two_ways_is_refused(tmp_path, read, header, lines, words):
    with pytest.raises(Fault) as fault:
        read(written(tmp_path, lines, header=header))
    assert words in str(fault.value) and "t.csv" in str(fault.value)


def test_the_same_said_twice_is_said_once_and_other_columns_do_not_matter(tmp_path):
    path = written(tmp_path, "1.5,A,x,y", "1.5,A,x,z", ",B,,", header="series,patient,note,note")
    assert tables.read_patients(path) == {"1.5": "A"}
    assert tables.read_patients(written(tmp_path, "A,A", header="patient,patient")) == {}


def test_boxes_of_one_tumour_are_linked_over_slices():
    a, b = Box("A", (0, 0, 10, 10)), Box("A", (30, 0, 40, 10))
    chains = tables.link_boxes({3: [a, b], 4: [a], 6: [a], 9: [a], 5: [Box("G", (0, 0, 9, 9))]})
    assert [(label, sorted(chain)) for label, chain in chains] == [
        ("A", [3, 4, 6]), ("A", [3]), ("G", [5]), ("A", [9])]


@pytest.mark.parametrize(("text", "words"), [
    ("<annotation><object><name>A</name><bndbox><xmin>5</xmin><ymin>1</ymin><xmax>5</xmax>"
     "<ymax>9</ymax></bndbox></object></annotation>", "no area"),
    ("<annotation><object><name>A</name></object></annotation>", "no whole PASCAL VOC"),
    ("<annotation>", "no whole PASCAL VOC")])
def test_a_box_that_is_none_is_refused(tmp_path, text, words):
    (tmp_path / "1.2.xml").write_text(text)
    with pytest.raises(Fault, match=words):
        tables.read_boxes(tmp_path / "1.2.xml")


@pytest.mark.skipif(not DATA.is_dir(), reason="needs CT_DATA: the folder of CT for tests")
def test_luna16s_tables_and_nbias_metadata_are_read():
    folder = DATA / "luna16_csv"
    found = tables.read_findings(folder / "annotations.csv")
    assert sum(map(len, found.values())) == 1186
    with pytest.raises(Fault, match="diameter -1"):
        tables.read_findings(folder / "annotations_excluded.csv")
    ignored = tables.read_findings(folder / "annotations_excluded.csv", ignored=True)
    assert sum(map(len, ignored.values())) == 36378
    rated = tables.read_findings(folder / "annotations_with_malignancy.csv")
    assert all(each.grades for row in rated.values() for each in row)
    patients = tables.read_patients(DATA / "lung_pet_ct_dx_meta" / "metadata.csv")
    assert len(patients) > 300 and set(map(len, patients.values())) == {len("Lung_Dx-A0001")}
