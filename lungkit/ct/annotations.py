"""Whatever is written about the scans of a folder: found once, then asked for by scan.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lungkit.ct import lidc, tables
from lungkit.ct.folders import walk
from lungkit.ct.nodules import Nodule, from_boxes, from_labels, sphere
from lungkit.formats import metaimage, nifti
from lungkit.formats.volumes import Geometry, Turn
from lungkit.run.faults import Fault, several
from lungkit.run.files import sha256_file

LABEL_FOLDERS = ("labelstr", "labels", "masks", "segmentations")
POINT_MM = 3.0          # LIDC: a point is a nodule below 3 mm
OTHER_MM = 10.0         # ours: a reader's non-nodule has no size; healthy lung keeps so far off
VOLUMES = (*metaimage.SUFFIXES, *nifti.SUFFIXES)


@dataclass(frozen=True)
class Place:
    """A finding that is no nodule to learn from, nor healthy: z y x in voxels, and its size."""

    voxel: tuple[float, float, float]
    diameter_mm: float


@dataclass(frozen=True)
class Annotated:
    """What is known of one scan. source: lidc, table, boxes, labels, or "" where nothing is."""

    source: str
    nodules: tuple[Nodule, ...] = ()
    ignored: tuple[Place, ...] = ()
    patient: str = ""
    notes: tuple[str, ...] = ()
    candidates: np.ndarray | None = None  # z y x in voxels [N, 3]: proposed, and no nodule


@dataclass
class Annotations:
    """Files of annotation, by what they are of. stamp: changes when any of these files does."""

    readings: dict[str, list[Path]] = field(default_factory=dict)   # LIDC XML by series
    boxes: dict[str, Path] = field(default_factory=dict)            # VOC by SOP UID
    labels: dict[str, Path] = field(default_factory=dict)           # label volumes by stem
    table: dict[str, list[tables.Finding]] | None = None
    ignored: dict[str, list[tables.Finding]] = field(default_factory=dict)
    candidates: dict[str, np.ndarray] = field(default_factory=dict) # that are no nodule, in mm
    patients: dict[str, str] = field(default_factory=dict)          # by series
    others: list[tuple[str, str]] = field(default_factory=list)     # (file, why it is left out)
    stamp: str = ""
    hashes: set[str] = field(default_factory=set)                   # of tables


def stem_of(path: Path) -> str:
    """A volume's name without its suffix, .nii.gz being one."""
    return re.sub(r"\.(nii\.gz|nii|mhd|mha)$", "", path.name, flags=re.IGNORECASE)


def is_labels(path: Path) -> bool:
    """Whether a volume lies where labels do, by the name of its folder."""
    return path.parent.name.lower() in LABEL_FOLDERS


# ------------------------------------------------------------------ finding

def find_annotations(root: Path, table: Path | None, patients: Path | None) -> Annotations:
    """Look through a folder; a table given by the user is used instead of those found.

    Raises Fault with everything that is broken.
    """
    found, faults, digest = Annotations(), [], hashlib.sha256()
    for folder, names in walk(root):
        for path in (folder / name for name in names):
            if path.name.lower().endswith((".xml", ".csv")) or is_labels(path):
                digest.update(repr(stamp_of(path)).encode())
            try:
                _note(found, path, root, with_tables=table is None, with_patients=patients is None)
            except Fault as fault:
                faults.append(str(fault))
    for given in (table, patients):
        digest.update(repr(given and stamp_of(given)).encode())
    found.stamp = digest.hexdigest()
    if table is not None:
        found.table = tables.read_findings(table)
    if patients is not None:
        found.patients = tables.read_patients(patients)
        if not found.patients:
            raise Fault(f"{patients} has not both a column of series and one of patients")
    if faults:
        raise Fault(several(faults))
    return found


def stamp_of(path: Path) -> tuple[str, int, int]:
    """What changes when a file does."""
    status = os.stat(path)
    return str(path), status.st_size, status.st_mtime_ns


def _note(found: Annotations, path: Path, root: Path, *, with_tables: bool, with_patients: bool
          ) -> None:
    lower, name = path.name.lower(), path.relative_to(root).as_posix()
    if lower.startswith("._"):
        found.others.append((name, "AppleDouble file"))
    elif lower.endswith(".xml"):
        _note_xml(found, path, name)
    elif lower.endswith(".csv"):
        if (content := sha256_file(path)) in found.hashes:
            found.others.append((name, "a copy of another table"))
            return
        found.hashes.add(content)
        _note_table(found, path, name, with_tables=with_tables, with_patients=with_patients)
    elif lower.endswith(VOLUMES) and is_labels(path):
        if (before := found.labels.setdefault(stem_of(path), path)) != path:
            raise Fault(f"{path} and {before} are labels of one scan, by their name: remove one")


def _note_table(found: Annotations, path: Path, name: str, *, with_tables: bool,
                with_patients: bool) -> None:
    lower = path.name.lower()
    if tables.is_candidates(path):
        if found.candidates:
            found.others.append((name, "a second list of candidates"))
        else:
            found.candidates = tables.read_candidates(path)
    elif not tables.is_findings(path):
        for series, patient in (tables.read_patients(path) if with_patients else {}).items():
            tables.note_once(path, found.patients, series, patient,
                             "the series {} is, by another table, of")
    elif not with_tables:
        found.others.append((name, "another table was given"))
    elif "excluded" in lower or lower.startswith("annotations"):
        ignored = "excluded" in lower
        if found.ignored if ignored else found.table is not None:
            raise Fault(f"{path} is a second table of "
                        f"{'irrelevant findings' if ignored else 'nodules'}: name the nodules that "
                        "are meant with --nodules")
        if ignored:
            found.ignored = tables.read_findings(path, ignored=True)
        else:
            found.table = tables.read_findings(path)
    else:
        found.others.append((name, "not read: name a table of nodules with --nodules"))


def _note_xml(found: Annotations, path: Path, name: str) -> None:
    message = lidc.message_of(path)
    if message == lidc.CT_MESSAGE:
        with open(path, encoding="utf-8", errors="replace") as file:
            series = re.search(r"<(?:\w+:)?SeriesInstanceU[iI][dD]>\s*([\d.]+)", file.read(8192))
        if series is None:
            raise Fault(f"{path} does not say of which series it is (SeriesInstanceUid)")
        found.readings.setdefault(series[1], []).append(path)
    elif message == lidc.FILM_MESSAGE:
        found.others.append((name, "is about chest films, not CT"))
    elif message == "annotation":
        before = found.boxes.setdefault(path.stem, path)
        if before.read_bytes() != path.read_bytes():
            raise Fault(f"{path} and {before} are boxes of one image, and differ: remove one")
    else:
        found.others.append((name, f"XML of {message or 'nothing'}, not an annotation of CT"))


# ------------------------------------------------------------------ of one scan

def annotate(found: Annotations, name: str, geometry: Geometry, *, turn: Turn | None = None,
             places: dict[str, tuple[int, float]] | None = None, thickness_mm: float = 0.0
             ) -> Annotated:
    """What the annotations say of one scan. Raises Fault where they cannot be of it.

    name: its series UID or its file's stem. Of a DICOM series also: turn, places {SOP UID: (number
    of its file in order, z in mm)}, and the thickness of a slice.
    """
    patient = found.patients.get(name, "")
    if name in found.readings and places is not None:
        return _of_readings(found, name, geometry, turn, places, thickness_mm, patient)
    if places and (boxed := [uid for uid in places if uid in found.boxes]):
        return _of_boxes(found, boxed, geometry, turn, places, patient)
    if name in found.labels:
        return _of_labels(found.labels[name], geometry, patient)
    if found.table is not None:
        return _of_table(found, name, geometry, patient)
    return Annotated("", patient=patient)


def _of_readings(found: Annotations, name: str, geometry: Geometry, turn: Turn,
                 places: dict, thickness_mm: float, patient: str) -> Annotated:
    reading, notes = lidc.latest([lidc.read_xml(path) for path in found.readings[name]])
    step = geometry.spacing_mm
    nodules, more = lidc.nodules_of(reading, places, step, thickness_mm or step[0])
    points = [(mark.contours[0], POINT_MM) for mark in reading.marks if mark.is_point]
    at = [((places[c.sop_uid][0], *c.points[0][::-1]), mm) for c, mm in points
          if c.sop_uid in places]
    at += [((places[uid][0], y, x), OTHER_MM) for uid, _, x, y in reading.non_nodules
           if uid in places]
    ignored = tuple(Place(tuple(map(float, turn.point(np.array(index), geometry.shape))), mm)
                    for index, mm in at)
    turned = tuple(_turned(nodule, turn, geometry) for nodule in nodules)
    outside = [n.name for n in turned if min(n.start) < 0 or any(
        s + d > size for s, d, size in zip(n.start, n.mask.shape, geometry.shape))]
    if outside:
        raise Fault(f"{reading.path}: nodule {outside[0]} lies outside the images of {name}")
    return Annotated("lidc", turned, ignored, patient, (*notes, *more))


def _turned(nodule: Nodule, turn: Turn, geometry: Geometry) -> Nodule:
    """A nodule of the files' axes in those of the volume."""
    ends = np.array([nodule.start, np.add(nodule.start, nodule.mask.shape) - 1])
    start = turn.point(ends, geometry.shape).min(0)
    centre = turn.point(np.array(nodule.centre), geometry.shape)
    return replace(nodule, mask=turn(nodule.mask), start=tuple(map(int, start)),
                   centre=tuple(map(float, centre)))


def _of_boxes(found: Annotations, uids: list[str], geometry: Geometry, turn: Turn, places: dict,
              patient: str) -> Annotated:
    boxes: dict[int, list[tables.Box]] = {}
    for uid in uids:
        for box in tables.read_boxes(found.boxes[uid]):
            x0, y0, x1, y1 = np.array(box.edges) - 0.5  # from edges to centres of voxels
            ends = turn.point(np.array([(places[uid][0], y0, x0), (places[uid][0], y1, x1)]),
                              geometry.shape)
            (_, top, left), (_, bottom, right) = ends.min(0), ends.max(0)
            if top < -1 or left < -1 or bottom > geometry.shape[1] or right > geometry.shape[2]:
                raise Fault(f"{found.boxes[uid]}: box {box.edges} lies outside its image")
            boxes.setdefault(int(ends[0][0]), []).append(
                tables.Box(box.label, (left, top, right, bottom)))
    nodules = [from_boxes(geometry, chain, name=str(number), label=label)
               for number, (label, chain) in enumerate(tables.link_boxes(boxes))]
    return Annotated("boxes", tuple(nodules), patient=patient)


def _of_labels(path: Path, geometry: Geometry, patient: str) -> Annotated:
    read = metaimage.read_labels if path.name.lower().endswith(metaimage.SUFFIXES) \
        else nifti.read_labels
    labels, place = read(path)
    if labels.shape != geometry.shape:
        raise Fault(f"{path}: labels {labels.shape}, its scan {geometry.shape} (z y x): not of one "
                    "scan, or resampled")
    if not place.same_place(geometry):
        raise Fault(f"{path}: its labels lie elsewhere than its scan (affine): copy the scan's")
    values = np.unique(labels)
    values = values[values != 0]
    if len(values) > 1:
        raise Fault(f"{path}: labels {values[:5].tolist()}: one value besides 0 is expected, the "
                    "nodule")
    nodules = from_labels(labels, geometry, int(values[0])) if len(values) else []
    return Annotated("labels", tuple(nodules), patient=patient)


def _of_table(found: Annotations, name: str, geometry: Geometry, patient: str) -> Annotated:
    def of(findings: dict, make: Callable) -> list:
        return [make(number, each) for number, each in enumerate(findings.get(name, ()))]

    def nodule(number: int, each: tables.Finding) -> Nodule:
        try:
            return sphere(geometry, np.array(each.centre_mm), each.diameter_mm,
                          name=each.name or str(number), grades=each.grades, label=each.label,
                          readers=len(each.grades) if len(each.grades) > 1 else None)
        except Fault as fault:
            raise Fault(f"line {each.line} of the table of nodules, of {name}: {fault}") from None

    nodules = of(found.table, nodule)
    ignored = of(found.ignored, lambda _, each: Place(
        tuple(map(float, geometry.to_voxels(each.centre_mm))), each.diameter_mm))
    said = {each.patient for each in found.table.get(name, ()) if each.patient}
    if len(said) > 1:
        raise Fault(f"the table of nodules names {len(said)} patients of {name}: "
                    f"{', '.join(sorted(said)[:3])}")
    candidates = geometry.to_voxels(found.candidates[name]) if name in found.candidates else None
    return Annotated("table", tuple(nodules), tuple(ignored), patient or "".join(said),
                     candidates=candidates)
