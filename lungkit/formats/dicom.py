"""CT series of DICOM files by their headers: which images, in what order, where they lie.

Slices are ordered by their position along the normal of their plane, never by file name, instance
number or place in a multi-frame file. Their pixels: lungkit.formats.dicom_pixels.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lungkit.formats import enhanced
from lungkit.formats.volumes import Geometry, Turn, canonical
from lungkit.run.faults import Fault

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
CONVERTED_CT = "1.2.840.10008.5.1.4.1.1.2.2"  # legacy converted enhanced: the same groups
TAGS = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID",
        "FrameOfReferenceUID", "Modality", "ImageType", "ImageOrientationPatient",
        "ImagePositionPatient", "PixelSpacing", "Rows", "Columns", "RescaleSlope",
        "RescaleIntercept", "SliceThickness", "ConvolutionKernel", "Manufacturer",
        "ContrastBolusAgent", "NumberOfFrames", "SeriesNumber", "SeriesDescription",
        "SamplesPerPixel", "StudyDate", "AcquisitionNumber", "ContrastBolusAgentSequence",
        enhanced.SHARED, enhanced.PER_FRAME]
OTHERS = (".xml", ".csv", ".txt", ".json", ".png", ".jpg", ".jpeg", ".gz", ".nii", ".mhd", ".raw",
          ".mha", ".zraw", ".xls", ".xlsx", ".pdf", ".md", ".zip", ".html", ".npy", ".py", ".db")
SAME_PLANE = 1e-3       # of a direction cosine
SAME_PLACE_MM = 0.01    # closer slices are one place twice
UNEVEN = 0.1            # ours: of a slice distance, more is a gap
TILT_DEG = 1.0          # ours: between the way from slice to slice and the slices' normal


@dataclass(frozen=True)
class Slice:
    """What the header of one image says; None or "" where it does not.

    frame_index: of a frame of a multi-frame file, from 0; None: the file is one image.
    """

    path: Path
    sop_class: str
    sop_uid: str
    series: str
    study: str
    patient: str
    frame: str                       # of reference
    modality: str
    kind: tuple[str, ...]            # ImageType
    orientation: tuple[float, ...]   # of rows, then columns
    position_mm: tuple[float, ...]
    spacing_mm: tuple[float, ...]    # between rows, between columns
    size: tuple[int, int]            # rows, columns
    slope: float
    intercept: float | None
    thickness_mm: float | None
    kernel: str
    manufacturer: str
    contrast: bool
    frames: int
    number: int                      # of the series
    description: str
    frame_index: int | None = None


@dataclass(frozen=True)
class Series:
    """Files of one SeriesInstanceUID, in the order of their places where `geometry` is known.

    reason: why it is no axial CT volume ("PET", "scout"); fault: why it is a broken one; None:
    neither. notes: what was left out of it. turn: from [file order Z, rows, columns] to the array.
    """

    slices: tuple[Slice, ...]
    geometry: Geometry | None = None
    turn: Turn | None = None
    reason: str | None = None
    fault: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Slice:
        return self.slices[0]

    @property
    def frames(self) -> tuple[int, ...]:
        """The frame of its file that each slice is; () where every file is one image."""
        found = [each.frame_index for each in self.slices]
        return () if found == [None] * len(found) else tuple(each or 0 for each in found)


# ------------------------------------------------------------------ headers

def read_slices(path: Path) -> list[Slice] | str:
    """The header of each image in a file: none if it is not DICOM, a sentence if it is damaged."""
    import pydicom

    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                return []
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
        return headers(path, data)
    except Exception as error:  # a damaged file may raise anything at all
        return f"{path}: damaged header ({error})"


def headers(path: Path, data) -> list[Slice]:
    """The header of each image in a file that was read as `data`, in the file's order."""
    return [_slice(path, header, number if header is not data else None)
            for number, header in enumerate(enhanced.frames(data))]


def _slice(path: Path, data, frame_index: int | None) -> Slice:
    def text(name: str) -> str:
        value = data.get(name)
        return "" if value is None else str(value).strip()

    def numbers(name: str) -> tuple[float, ...]:
        return tuple(float(value) for value in data.get(name) or ())

    def number(name: str) -> float | None:
        value = data.get(name)
        return None if value is None or value == "" else float(value)

    kernel = data.get("ConvolutionKernel")
    kernel = kernel if isinstance(kernel, str) or kernel is None else "/".join(map(str, kernel))
    return Slice(
        path, text("SOPClassUID"), text("SOPInstanceUID"), text("SeriesInstanceUID"),
        text("StudyInstanceUID"), text("PatientID"), text("FrameOfReferenceUID"), text("Modality"),
        tuple(map(str, data.get("ImageType") or ())), numbers("ImageOrientationPatient"),
        numbers("ImagePositionPatient"), numbers("PixelSpacing"),
        (int(data.get("Rows") or 0), int(data.get("Columns") or 0)),
        1.0 if number("RescaleSlope") is None else number("RescaleSlope"),
        number("RescaleIntercept"), number("SliceThickness"), (kernel or "").strip(),
        text("Manufacturer"),
        bool(text("ContrastBolusAgent") or data.get("ContrastBolusAgentSequence")),
        int(number("NumberOfFrames") or 1), int(number("SeriesNumber") or 0),
        text("SeriesDescription"), frame_index)


def gather(slices: Iterable[Slice]) -> list[Series]:
    """Series of those images, ordered and examined, by SeriesInstanceUID."""
    found: dict[str, list[Slice]] = {}
    for each in slices:
        found.setdefault(each.series, []).append(each)
    return [examine(found[uid]) for uid in sorted(found)]


# ------------------------------------------------------------------ geometry

def not_a_scan(slices: list[Slice]) -> str | None:
    """Why images of one series are no axial CT volume; None: they may be one."""
    one = slices[0]
    if one.modality != "CT" or one.sop_class not in (CT, ENHANCED_CT, CONVERTED_CT):
        return f"is {one.modality or 'of no modality'}, not CT images"
    return None


def examine(slices: list[Slice]) -> Series:
    """Order the slices of one series and find what is wrong with them."""
    unordered = Series(tuple(sorted(slices, key=lambda s: str(s.path))))
    if reason := not_a_scan(slices):
        return replace(unordered, reason=reason)
    many = [s for s in slices if s.frames > 1]
    if many:
        return replace(unordered, fault=f"{many[0].path.name} holds {many[0].frames} frames and "
                       "does not say where each lies (no functional groups): get single images")
    notes = []
    whole = [s for s in slices if len(s.orientation) == 6 and len(s.position_mm) == 3
             and len(s.spacing_mm) == 2]
    kept = [s for s in whole if "LOCALIZER" not in s.kind]
    if not kept:
        return replace(unordered, reason="is a scout (localizer), not a volume" if whole
                       else "holds no images with a position")
    if len(whole) < len(slices):
        return replace(unordered, fault=f"{len(slices) - len(whole)} of {len(slices)} images lack "
                       "position, orientation or pixel spacing")
    plane = Counter(tuple(np.round(s.orientation, 2)) for s in kept).most_common(1)[0][0]
    flat = [s for s in kept if np.abs(np.subtract(s.orientation, plane)).max() < 0.02]
    if len(flat) < len(slices):
        notes.append(f"{len(slices) - len(flat)} scout images left out")
    try:
        return _ordered(flat, notes)
    except NotAxial as reason:
        return replace(unordered, reason=str(reason))
    except Fault as fault:
        return replace(unordered, fault=str(fault))


class NotAxial(Exception):
    """A volume, but of other planes."""


def _ordered(slices: list[Slice], notes: list[str]) -> Series:
    one = slices[0]
    row, column = np.array(one.orientation[:3]), np.array(one.orientation[3:])
    normal = np.cross(row, column)
    if np.abs(normal).argmax() != 2:
        raise NotAxial(f"is {('sagittal', 'coronal')[np.abs(normal).argmax()]}, not axial")
    _check_alike(slices)
    place = np.array([s.position_mm for s in slices]) @ normal
    order = np.argsort(place, kind="stable")
    slices, place = [slices[i] for i in order], place[order]
    slices, place = _without_doubles(slices, place, notes)
    if len(slices) < 2:
        raise NotAxial("is a single image, not a volume")
    step = _check_steps(place)
    first, last = (np.array(s.position_mm) for s in (slices[0], slices[-1]))
    way = last - first
    tilt = np.degrees(np.arccos(min(1.0, way @ normal / np.linalg.norm(way))))
    if tilt > TILT_DEG:
        raise Fault(f"gantry tilt of {tilt:.1f} degrees: from slice to slice it does not go along "
                    "their normal; resample it to a straight grid first")
    between_rows, between_columns = one.spacing_mm
    steps = np.stack([normal * step, column * between_rows, row * between_columns])
    geometry, turn = canonical((len(slices), *one.size), first, steps)
    return Series(tuple(slices), geometry, turn, notes=tuple(notes))


def _check_alike(slices: list[Slice]) -> None:
    """Raise Fault where slices of one series differ in what a volume has once."""
    for what, values in {
            "sizes": {s.size for s in slices},
            "pixel spacings": {tuple(np.round(s.spacing_mm, 4)) for s in slices},
            "planes": {tuple(np.round(s.orientation, 3) + 0.0) for s in slices},
            "frames of reference": {s.frame for s in slices},
            "patients": {s.patient for s in slices}}.items():
        if len(values) > 1:
            raise Fault(f"its slices have {len(values)} {what} ({_some(values)}): two series mixed "
                        "under one number?")
    none = [s for s in slices if s.intercept is None]
    if none:
        raise Fault(f"{len(none)} of {len(slices)} images have no RescaleIntercept "
                    f"({none[0].path.name}): without it their values are not HU")


def _some(values: Iterable) -> str:
    return ", ".join(sorted(map(str, values))[:3])


def _without_doubles(slices: list[Slice], place: np.ndarray, notes: list[str]
                     ) -> tuple[list[Slice], np.ndarray]:
    """Drop copies of the same image; raise Fault where two images lie in one place."""
    kept, again, twice = [0], 0, []
    for i in range(1, len(slices)):
        if place[i] - place[kept[-1]] > SAME_PLACE_MM:
            kept.append(i)
        elif _instance(slices[i]) == _instance(slices[kept[-1]]):
            again += 1
        else:
            twice.append(f"{slices[kept[-1]].path.name} and {slices[i].path.name}")
    if twice:
        raise Fault(f"{len(twice)} places hold two different images ({twice[0]}): two "
                    "reconstructions under one number?")
    if again:
        notes.append(f"{again} copies of files left out")
    return [slices[i] for i in kept], place[kept]


def _instance(each: Slice) -> tuple[str, int | None]:
    return each.sop_uid, each.frame_index


def _check_steps(place: np.ndarray) -> float:
    """The distance from slice to slice. Raises Fault where one is missing."""
    steps = np.diff(place)
    step = float(np.median(steps))
    wrong = np.flatnonzero(np.abs(steps - step) > UNEVEN * step)
    if len(wrong):
        at = wrong[0]
        missing = max(0, round(steps[at] / step) - 1)
        raise Fault(f"{len(wrong)} uneven distances between slices, the first from "
                    f"{place[at]:.1f} to {place[at + 1]:.1f} mm where {step:g} mm is usual "
                    f"({missing} slices missing): get the series again, whole")
    return float((place[-1] - place[0]) / (len(place) - 1))
