"""Tables of nodules: LUNA16's, the user's own, and the boxes of Lung-PET-CT-Dx.

A table is a CSV of a finding a row: its series (or file), the centre in LPS millimetres, and the
diameter. A list of irrelevant findings says where not to look: they are neither nodules nor healthy
lung.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungkit.run.faults import Fault, several
from lungkit.run.tables import in_any_case, read_table

NAMES = {  # what a column may be called, in any case
    "series": ("seriesuid", "series", "series_uid", "seriesinstanceuid", "file", "file_name"),
    "x": ("coordx", "x_mm", "x"), "y": ("coordy", "y_mm", "y"), "z": ("coordz", "z_mm", "z"),
    "diameter": ("diameter_mm", "diameter"), "grades": ("mal_details", "grades", "grade",
                                                        "malignancy"),
    "label": ("label", "histology", "class"), "patient": ("patient", "patient_id", "patientid"),
    "name": ("nodule_id", "nodule", "name")}
NEEDED = ("series", "x", "y", "z", "diameter")
SERIES_COLUMNS = ("series uid", "seriesuid", "series_uid", "series")
PATIENT_COLUMNS = ("patient id", "subject id", "patient_id", "patient", "subject")
UNKNOWN_MM = 3.0        # taken for an irrelevant finding of unknown diameter (-1 in LUNA16)


@dataclass(frozen=True)
class Finding:
    """One row: place in mm (x y z), diameter, and what else the table says; line of the file."""

    centre_mm: tuple[float, float, float]
    diameter_mm: float
    grades: tuple[float, ...] = ()
    label: str = ""
    patient: str = ""
    name: str = ""
    line: int = 0


def is_findings(path: Path) -> bool:
    """Whether a CSV has the columns of a table of findings, by its first line."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = re.split(r"[,;\t]", file.readline().strip())
    return set(NEEDED) <= set(_understood({name.strip(' "').lower(): name for name in header}))


def _understood(lower: dict[str, str]) -> dict[str, str]:
    """{our name: column} of those columns that are understood, of those of a header."""
    return {ours: lower[name] for ours, names in NAMES.items()
            for name in names[::-1] if name in lower}


def read_findings(path: Path, *, ignored: bool = False) -> dict[str, list[Finding]]:
    """{series: findings} of a CSV. Raises Fault with every row that cannot be meant.

    ignored: a list of irrelevant findings, whose diameter may be unknown (-1).
    """
    table = read_table(path)
    known = _understood(in_any_case(path, table.columns))
    missing = [name for name in NEEDED if name not in known]
    if missing:
        raise Fault(f"{path} lacks columns for {', '.join(missing)}: expected "
                    f"{', '.join(NAMES[name][0] for name in NEEDED)} (separated by commas)")
    found: dict[str, list[Finding]] = {}
    faults: list[str] = []
    for line, row in table.rows:
        try:
            series = _series(row, known["series"])
            found.setdefault(series, []).append(_finding(row, known, line, ignored))
        except ValueError as error:
            faults.append(f"line {line}: {error}")
    if faults:
        raise Fault(f"{path}: {several(faults)}")
    return found


def _series(row: dict, column: str) -> str:
    return series_named(row[column] or "")


def series_named(cell: str) -> str:
    """The series that a cell names. Raises ValueError where it names none."""
    series = cell.strip()
    if re.fullmatch(r"\d([.,]\d+)?E\+?\d+", series, re.IGNORECASE):
        raise ValueError(f"series {series} is a number that a spreadsheet has rounded: export the "
                         "table again with the series as text")
    if not series:
        raise ValueError("no series")
    return series


def _finding(row: dict, known: dict[str, str], line: int, ignored: bool) -> Finding:
    def number(name: str) -> float:
        text = (row[known[name]] or "").strip()
        try:
            value = float(text)
        except ValueError:
            why = "; write decimals with a point" if "," in text else ""
            raise ValueError(f"{known[name]} {text!r} is not a number{why}") from None
        if not np.isfinite(value):
            raise ValueError(f"{known[name]} {text!r} is not a number")
        return value

    def text(name: str) -> str:
        return (row[known[name]] or "").strip() if name in known else ""

    diameter = number("diameter")
    if diameter <= 0:
        if not ignored:
            raise ValueError(f"diameter {diameter:g} mm; findings of unknown size belong in a "
                             "table of irrelevant ones")
        diameter = UNKNOWN_MM
    grades = tuple(float(part) for part in re.findall(r"\d+(?:\.\d+)?", text("grades")))
    if any(not 1 <= grade <= 5 for grade in grades):
        raise ValueError(f"{known['grades']} {text('grades')!r}: grades go from 1 to 5")
    return Finding((number("x"), number("y"), number("z")), diameter, grades, text("label"),
                   text("patient"), text("name"), line)


def is_candidates(path: Path) -> bool:
    """Whether a CSV is LUNA16's list of candidates (class 0 or 1), by its name and first line."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = [name.strip(' "').lower() for name in re.split(r"[,;\t]", file.readline().strip())]
    return path.name.lower().startswith("candidates") and {"seriesuid", "coordx", "coordy",
                                                           "coordz", "class"} <= set(header)


def read_candidates(path: Path) -> dict[str, np.ndarray]:
    """{series: float32 [N, 3], x y z in mm} of the candidates that are no nodule (class 0)."""
    table = read_table(path)
    names = in_any_case(path, table.columns)
    found: dict[str, list] = {}
    for line, row in table.rows:
        try:
            if int(float(row[names["class"]])) == 0:
                found.setdefault(_series(row, names["seriesuid"]), []).append(
                    [float(row[names[axis]]) for axis in ("coordx", "coordy", "coordz")])
        except ValueError as error:
            raise Fault(f"{path}: line {line}: {error}") from None
    return {series: np.array(points, np.float32) for series, points in found.items()}


def read_patients(path: Path) -> dict[str, str]:
    """{series: patient} of a CSV with a column for each; {} where it has not both. Raises Fault.

    NBIA writes file sizes with a decimal comma unquoted, so that rows have a value too many in the
    middle: columns are counted from the nearer end.
    """
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = list(csv.reader(file))
    lower = [name.strip().lower() for name in rows[0]] if rows else []
    series, patient = (next((lower.index(name) for name in names if name in lower), None)
                       for names in (SERIES_COLUMNS, PATIENT_COLUMNS))
    if series is None or patient is None:
        return {}
    twice = [rows[0][at].strip() for at in (series, patient) if lower.count(lower[at]) > 1]
    if twice:
        raise Fault(f"{path} has the column {twice[0]!r} more than once: remove or rename all but "
                    "one")
    width = len(lower)

    def cell(row: list[str], column: int) -> str:
        late = column >= width / 2
        return row[column - width if late else column].strip()

    found: dict[str, str] = {}
    for line, row in enumerate(rows[1:], 2):
        if len(row) >= width and (name := cell(row, series)):
            try:
                series_named(name)
            except ValueError as error:
                raise Fault(f"{path}: line {line}: {error}") from None
            note_once(path, found, name, cell(row, patient), "the series {} is of")
    return found


def note_once(path: Path, found: dict[str, str], name: str, said: str, what: str) -> None:
    """Note what is said of a name. Raises Fault where something else was said of it before."""
    if (before := found.setdefault(name, said)) != said:
        raise Fault(f"{path}: {what.format(name)} {before!r} and of {said!r}: one line for each")


def read_diagnoses(path: Path) -> dict[str, str]:
    """{patient: 0 unknown, 1 benign, 2 primary cancer, 3 metastasis}, as LIDC-IDRI's table says.

    Columns patient_id (or patient) and diagnosis. Raises Fault.
    """
    table = read_table(path, ["diagnosis"])
    lower = in_any_case(path, table.columns)
    column = next((lower[name] for name in PATIENT_COLUMNS if name in lower), None)
    if column is None:
        raise Fault(f"{path} has no column patient_id")
    found: dict[str, str] = {}
    for _, row in table.rows:
        note_once(path, found, row[column].strip(), row["diagnosis"].strip(),
                  "the patient {} is of diagnosis")
    wrong = [(line, row["diagnosis"]) for line, row in table.rows
             if row["diagnosis"].strip() not in ("0", "1", "2", "3")]
    if wrong:
        raise Fault(f"{path}: line {wrong[0][0]}: diagnosis {wrong[0][1]!r}: 0 unknown, 1 benign, "
                    "2 primary cancer or 3 metastasis")
    return found


# ------------------------------------------------------------------ Lung-PET-CT-Dx

@dataclass(frozen=True)
class Box:
    """A box on one image, x0 y0 x1 y1 in pixel edges (0 is the left edge of the first pixel)."""

    label: str
    edges: tuple[float, float, float, float]


def read_boxes(path: Path) -> list[Box]:
    """The boxes of a PASCAL VOC file. Raises Fault, which names the file."""
    try:
        root = ElementTree.parse(path).getroot()
        boxes = []
        for each in root.iter("object"):
            box = each.find("bndbox")
            edges = tuple(float(box.findtext(name)) for name in ("xmin", "ymin", "xmax", "ymax"))
            boxes.append(Box((each.findtext("name") or "").strip(), edges))
    except (ElementTree.ParseError, TypeError, ValueError, AttributeError) as error:
        raise Fault(f"{path} is no whole PASCAL VOC file ({error}): get it again") from None
    wrong = [box for box in boxes if box.edges[0] >= box.edges[2] or box.edges[1] >= box.edges[3]]
    if wrong:
        raise Fault(f"{path}: box {wrong[0].edges} has no area")
    return boxes


def link_boxes(boxes: dict[int, list[Box]], most_gap: int = 2
               ) -> list[tuple[str, dict[int, tuple]]]:
    """Boxes of one class that overlap on neighbouring slices: [(class, {slice: edges})].

    most_gap: so many slices a tumour may lack a box and be one still.
    """
    chains: list[tuple[str, dict[int, tuple]]] = []
    for index in sorted(boxes):
        for box in boxes[index]:
            for label, chain in chains:
                last = max(chain)
                x0, y0, x1, y1 = chain[last]
                if label == box.label and 0 < index - last <= most_gap and \
                        min(x1, box.edges[2]) > max(x0, box.edges[0]) and \
                        min(y1, box.edges[3]) > max(y0, box.edges[1]):
                    chain[index] = box.edges
                    break
            else:
                chains.append((box.label, {index: box.edges}))
    return chains
