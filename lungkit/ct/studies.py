"""Every series below a folder: read as a scan, or left out and why; one series of each scan.

The rule of `choose`: of series of one patient, study and frame of reference the one with most
nodules annotated, then the thinnest slices, then the most slices, then the lowest series number.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lungkit.ct.annotations import (
    VOLUMES,
    Annotated,
    Annotations,
    annotate,
    is_labels,
    stamp_of,
    stem_of,
)
from lungkit.ct.folders import walk
from lungkit.formats import dicom, dicom_pixels, metaimage, nifti
from lungkit.formats.volumes import Geometry, Turn, Volume
from lungkit.run.faults import Fault, check_stop, several
from lungkit.run.files import sha256
from lungkit.run.journal import ResultJournal
from lungkit.run.progress import Progress, say

COLUMNS = ("series", "patient", "study", "kept", "reason", "notes", "format", "where", "slices",
           "rows", "columns", "spacing_mm", "thickness_mm", "step_mm", "kernel", "manufacturer",
           "contrast", "nodules", "annotation")
RULE = ("one series of each patient, study and frame of reference: most nodules annotated, then "
        "the thinnest slices, then the most slices, then the lowest series number")


@dataclass(frozen=True)
class Scan:
    """One series that can be read. patient "": unknown.

    files: of each slice below the input, in order, or the one of a volume; frames: which frame of
    its file each slice is, () where a file holds one.
    """

    name: str
    patient: str
    study: str
    frame: str
    kind: str                   # dicom, metaimage, nifti
    root: Path
    files: tuple[str, ...]
    geometry: Geometry
    turn: Turn | None
    thickness_mm: float | None
    kernel: str
    manufacturer: str
    contrast: bool
    number: int
    file_bytes: int
    annotated: Annotated
    notes: tuple[str, ...] = ()
    spacing_known: bool = True
    frames: tuple[int, ...] = ()

    def load(self) -> Volume:
        """Its int16 HU. Raises Fault."""
        paths = [self.root / name for name in self.files]
        if self.kind == "dicom":
            return dicom_pixels.read_files(paths, self.geometry, self.turn, self.frames)
        return (metaimage.read_metaimage if self.kind == "metaimage" else nifti.read_nifti)(
            paths[0])


@dataclass(frozen=True)
class Left:
    """A series or file that is not used. broken: it was meant to be, and cannot be read."""

    name: str
    where: str
    reason: str
    broken: bool = False
    patient: str = ""
    study: str = ""
    scan: Scan | None = None


# ------------------------------------------------------------------ the survey

def survey(root: Path, annotations: Annotations, journal: ResultJournal, mapped: Callable
           ) -> list[Scan | Left]:
    """Every series below a folder, annotated, or why it is left out.

    A folder that the journal has is not looked at again, unless a file in it or any annotation has
    changed. One that holds something broken is: it may have been mended.
    """
    folders = [each for each in walk(root) if each[1]]
    seen = [journal.get(str(path), _stamp(path, names, root, annotations))
            for path, names in folders]
    pending = [number for number, each in enumerate(seen) if each is None]
    if len(pending) < len(folders):
        say(f"ct_seg: {len(folders) - len(pending)} of {len(folders)} folders were looked at "
            "before")
    progress = Progress("looking at series", len(folders), done=len(folders) - len(pending))
    for number, found in zip(pending, mapped(partial(survey_folder, root=root,
                                                     annotations=annotations),
                                             [folders[number] for number in pending])):
        seen[number] = found
        if not any(isinstance(each, Left) and each.broken for each in found):
            path, names = folders[number]
            journal.add(str(path), _stamp(path, names, root, annotations), found)
        progress.update(progress.done + 1)
        check_stop()
    return [each for found in seen for each in found]


def _stamp(path: Path, names: list[str], root: Path, annotations: Annotations) -> tuple[str, ...]:
    files = repr([stamp_of(path / name) for name in names])
    return str(root), annotations.stamp, sha256(files.encode())


def survey_folder(folder: tuple[Path, list[str]], root: Path, annotations: Annotations
                  ) -> list[Scan | Left]:
    """The scans in one folder (path, names of files), annotated, and what in it is left out."""
    path, names = folder
    names = [name for name in names if not name.startswith("._")]
    found: list[Scan | Left] = [_volume(path / name, root, annotations) for name in names
                                if name.lower().endswith(VOLUMES) and not is_labels(path / name)]
    headers = [dicom.read_slices(path / name) for name in names
               if not name.lower().endswith(dicom.OTHERS) and name != "DICOMDIR"]
    found += [Left(path.name, path.relative_to(root).as_posix(), each, broken=True)
              for each in headers if isinstance(each, str)]
    for series in dicom.gather(one for each in headers if not isinstance(each, str)
                               for one in each):
        found.append(_series(series, root, annotations))
    return found


def _volume(path: Path, root: Path, annotations: Annotations) -> Scan | Left:
    name, where = stem_of(path), path.relative_to(root).as_posix()
    if "seg-lungs" in path.parent.name.lower():
        return Left(name, where, "a lung mask, not a scan")
    module = metaimage if path.name.lower().endswith(metaimage.SUFFIXES) else nifti
    try:
        geometry = module.read_geometry(path)
        if module is metaimage:
            metaimage.check_size(path)
        size = (metaimage.data_path(path) if module is metaimage else path).stat().st_size
        annotated = annotate(annotations, name, geometry)
    except Fault as fault:
        return Left(name, where, str(fault), broken=True)
    kind = "metaimage" if module is metaimage else "nifti"
    known = annotated.patient or (name if annotated.source == "labels" else "")
    return Scan(name, known, name, name, kind, root, (where,), geometry, None, None, "", "", False,
                0, size, annotated, annotated.notes)


def _series(series: dicom.Series, root: Path, annotations: Annotations) -> Scan | Left:
    one = series.first
    where = one.path.parent.relative_to(root).as_posix()
    left = Left(one.series, where, "", patient=one.patient, study=one.study)
    if series.reason:
        return replace(left, reason=series.reason)
    if series.fault:
        return replace(left, reason=f"{where}: series {one.series}: {series.fault}", broken=True)
    normal_z = 2  # of positions: examined series are axial
    images = Counter(each.sop_uid for each in series.slices)  # frames of a file share its number
    places = {each.sop_uid: (number, each.position_mm[normal_z])
              for number, each in enumerate(series.slices) if images[each.sop_uid] == 1}
    if boxed := sorted((images.keys() - places.keys()) & annotations.boxes.keys()):
        return replace(left, broken=True, reason=f"{annotations.boxes[boxed[0]]}: boxes on a file "
                       "of many frames do not say on which: give the images one by one")
    try:
        annotated = annotate(annotations, one.series, series.geometry, turn=series.turn,
                             places=places, thickness_mm=one.thickness_mm or 0.0)
    except Fault as fault:
        return replace(left, reason=str(fault), broken=True)
    return Scan(one.series, annotated.patient or one.patient, one.study,
                one.frame or one.study, "dicom", root,
                tuple(each.path.relative_to(root).as_posix() for each in series.slices),
                series.geometry, series.turn, one.thickness_mm, one.kernel, one.manufacturer,
                one.contrast, one.number,
                sum(os.stat(path).st_size for path in {s.path for s in series.slices}),
                annotated, (*series.notes, *annotated.notes), frames=series.frames)


# ------------------------------------------------------------------ one series of each scan

def choose(found: list[Scan | Left], *, skip_broken: bool = False
           ) -> tuple[list[Scan], list[Left]]:
    """The scans that are used, by name, and everything that is not. Raises Fault.

    skip_broken: leave out what cannot be read instead of refusing all.
    """
    left = [each for each in found if isinstance(each, Left)]
    broken = [each.reason for each in left if each.broken]
    scans = [each for each in found if isinstance(each, Scan)]
    places: dict[str, list[str]] = {}
    for scan in scans:
        places.setdefault(scan.name, []).append(scan.files[0])
    twice = {name: files for name, files in places.items() if len(files) > 1}
    broken += [f"series {name} lies in several places ({', '.join(sorted(files)[:3])}): put it "
               "into one" for name, files in twice.items()]
    if broken and not skip_broken:
        raise Fault(f"{len(broken)} series cannot be used: {several(broken)}: mend or remove them, "
                    "or leave them out with --skip-broken")
    left += [Left(s.name, s.files[0], "lies in several places", True, s.patient, s.study, s)
             for s in scans if s.name in twice]
    best: dict[tuple, list[Scan]] = {}
    for scan in scans:
        if scan.name not in twice:
            best.setdefault((scan.patient, scan.study, scan.frame), []).append(scan)
    kept = []
    for same in best.values():
        same.sort(key=_worth)
        kept.append(same[0])
        left += [Left(s.name, s.files[0], f"another series of one scan: {same[0].name} is kept",
                      False, s.patient, s.study, s) for s in same[1:]]
    if not kept:
        why = Counter(each.reason for each in left)
        raise Fault("no chest CT found" + (f": {several([f'{n} x {w}' for w, n in why.items()])}"
                                           if why else ": give a folder of DICOM, MetaImage or "
                                           "NIfTI files"))
    kept.sort(key=lambda scan: scan.name)
    return kept, sorted(left, key=lambda each: (each.where, each.name))


def _worth(scan: Scan) -> tuple:
    """What `choose` sorts by: the best first."""
    return (-len(scan.annotated.nodules), scan.thickness_mm or scan.geometry.spacing_mm[0],
            -scan.geometry.shape[0], scan.number, scan.name)


def check_tables(scans: list[Scan], annotations: Annotations, *, patients_given: bool) -> None:
    """Raise Fault where a table of nodules, or one of patients that was given, is of no scan."""
    names = {scan.name for scan in scans}
    of = {"nodules": annotations.table if any(s.annotated.source == "table" for s in scans)
          else None, "patients": annotations.patients if patients_given else None}
    for what, table in of.items():
        if table is not None and not names & set(table):
            raise Fault(f"the table of {what} names none of these scans: its first series is "
                        f"{min(table, default='missing')!r}, that of the scans {min(names)!r}")


def check_patients(scans: list[Scan]) -> list[Scan]:
    """Scans with a patient each; a volume file of unknown patient is its own.

    Raises Fault where DICOM says nothing, or the same of all: a split by it would mean nothing.
    """
    empty = [scan.name for scan in scans if scan.kind == "dicom" and not scan.patient]
    if empty:
        raise Fault(f"{len(empty)} of {len(scans)} series have no PatientID (first: {empty[0]}): "
                    "say whose they are with --patients CSV (series,patient)")
    said = {scan.patient for scan in scans}
    if len(scans) > 2 and len(said) == 1 and "" not in said:
        raise Fault(f"all {len(scans)} scans are of one patient, {said.pop()!r} (anonymised?): say "
                    "whose they are with --patients CSV (series,patient)")
    return [replace(scan, patient=scan.patient or scan.name) for scan in scans]


def with_diagnoses(scans: list[Scan], of_patient: dict[str, str]) -> list[Scan]:
    """Scans whose nodules bear the diagnosis of their patient. Raises Fault if it is of no one."""
    if not {scan.patient for scan in scans} & set(of_patient):
        raise Fault("the table of diagnoses names no patient of these scans: "
                    f"{sorted(of_patient)[:3]}, but here {scans[0].patient!r}")
    return [replace(scan, annotated=replace(scan.annotated, nodules=tuple(
        replace(nodule, pathology=of_patient.get(scan.patient, "0"))
        for nodule in scan.annotated.nodules))) for scan in scans]


def table(scans: list[Scan], left: list[Left], others: list[tuple[str, str]]) -> str:
    """studies.csv: a line of every series and every file of annotation that is not used."""
    text = io.StringIO()
    lines = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    lines.writeheader()
    for scan in scans:
        lines.writerow(_line(scan) | {"kept": 1, "reason": ""})
    for each in left:
        line = _line(each.scan) if each.scan else {"series": each.name, "patient": each.patient,
                                                   "study": each.study, "where": each.where}
        lines.writerow(line | {"kept": 0, "reason": each.reason})
    for name, why in others:
        lines.writerow({"series": "", "where": name, "kept": 0, "reason": why})
    return text.getvalue()


def _line(scan: Scan) -> dict:
    depth, rows, columns = scan.geometry.shape
    step, row_mm, _ = scan.geometry.spacing_mm
    return {"series": scan.name, "patient": scan.patient, "study": scan.study,
            "notes": "; ".join(scan.notes), "format": scan.kind,
            "where": Path(scan.files[0]).parent.as_posix() if scan.kind == "dicom"
            else scan.files[0], "slices": depth, "rows": rows, "columns": columns,
            "spacing_mm": f"{row_mm:.4g}", "thickness_mm": scan.thickness_mm or "",
            "step_mm": f"{step:.4g}", "kernel": scan.kernel, "manufacturer": scan.manufacturer,
            "contrast": int(scan.contrast), "nodules": len(scan.annotated.nodules),
            "annotation": scan.annotated.source}
