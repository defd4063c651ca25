"""CT series of DICOM files, by pydicom: headers first, pixels when a series is wanted.

Slices are ordered by their position along the normal of their plane, never by file name or
instance number. Slope and intercept are each file's own.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lungkit.formats.volumes import Geometry, Turn, Volume, canonical, check_hu, to_hu
from lungkit.run.faults import Fault

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
TAGS = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID",
        "FrameOfReferenceUID", "Modality", "ImageType", "ImageOrientationPatient",
        "ImagePositionPatient", "PixelSpacing", "Rows", "Columns", "RescaleSlope",
        "RescaleIntercept", "SliceThickness", "ConvolutionKernel", "Manufacturer",
        "ContrastBolusAgent", "NumberOfFrames", "SeriesNumber", "SeriesDescription",
        "SamplesPerPixel", "StudyDate", "AcquisitionNumber"]
OTHERS = (".xml", ".csv", ".txt", ".json", ".png", ".jpg", ".jpeg", ".gz", ".nii", ".mhd", ".raw",
          ".mha", ".zraw", ".xls", ".xlsx", ".pdf", ".md", ".zip", ".html", ".npy", ".py", ".db")
SAME_PLANE = 1e-3       # of a direction cosine
SAME_PLACE_MM = 0.01    # closer slices are one place twice
UNEVEN = 0.1            # ours: of a slice distance, more is a gap
TILT_DEG = 1.0          # ours: between the way from slice to slice and the slices' normal
DECODERS = {            # of transfer syntaxes that pydicom alone does not decode
    "1.2.840.10008.1.2.4.50": "pylibjpeg and pylibjpeg-libjpeg, or python-gdcm",
    "1.2.840.10008.1.2.4.51": "pylibjpeg and pylibjpeg-libjpeg, or python-gdcm",
    "1.2.840.10008.1.2.4.57": "python-gdcm",
    "1.2.840.10008.1.2.4.70": "python-gdcm",
    "1.2.840.10008.1.2.4.80": "python-gdcm, or pyjpegls",
    "1.2.840.10008.1.2.4.81": "python-gdcm, or pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg and pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg and pylibjpeg-openjpeg"}


@dataclass(frozen=True)
class Slice:
    """What the header of one file says; None or "" where it does not."""

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


# ------------------------------------------------------------------ headers

def read_slice(path: Path) -> Slice | str | None:
    """The header of a file: None if it is not DICOM, a sentence if it is a damaged one."""
    import pydicom

    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
        return _slice(path, data)
    except Exception as error:  # a damaged file may raise anything at all
        return f"{path}: damaged header ({error})"


def _slice(path: Path, data) -> Slice:
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
        text("Manufacturer"), bool(text("ContrastBolusAgent")),
        int(number("NumberOfFrames") or 1), int(number("SeriesNumber") or 0),
        text("SeriesDescription"))


def gather(slices: Iterable[Slice]) -> list[Series]:
    """Series of those files, ordered and examined, by SeriesInstanceUID."""
    found: dict[str, list[Slice]] = {}
    for each in slices:
        found.setdefault(each.series, []).append(each)
    return [examine(found[uid]) for uid in sorted(found)]


# ------------------------------------------------------------------ geometry

def not_a_scan(slices: list[Slice]) -> str | None:
    """Why files of one series are no axial CT volume; None: they may be one."""
    one = slices[0]
    if one.sop_class == ENHANCED_CT or one.frames > 1:
        return ("is an Enhanced multi-frame CT, which is not read: convert it to single-frame "
                "files or to NIfTI")
    if one.modality != "CT" or one.sop_class != CT:
        return f"is {one.modality or 'of no modality'}, not CT images"
    return None


def examine(slices: list[Slice]) -> Series:
    """Order the slices of one series and find what is wrong with them."""
    unordered = Series(tuple(sorted(slices, key=lambda s: str(s.path))))
    if reason := not_a_scan(slices):
        return replace(unordered, reason=reason)
    notes = []
    whole = [s for s in slices if len(s.orientation) == 6 and len(s.position_mm) == 3
             and len(s.spacing_mm) == 2]
    kept = [s for s in whole if "LOCALIZER" not in s.kind]
    if not kept:
        return replace(unordered, reason="is a scout (localizer), not a volume" if whole
                       else "holds no images with a position")
    if len(whole) < len(slices):
        return replace(unordered, fault=f"{len(slices) - len(whole)} of {len(slices)} files lack "
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
        raise Fault(f"{len(none)} of {len(slices)} files have no RescaleIntercept "
                    f"({none[0].path.name}): without it their values are not HU")


def _some(values: Iterable) -> str:
    return ", ".join(sorted(map(str, values))[:3])


def _without_doubles(slices: list[Slice], place: np.ndarray, notes: list[str]
                     ) -> tuple[list[Slice], np.ndarray]:
    """Drop files of the same instance; raise Fault where two images lie in one place."""
    kept, again, twice = [0], 0, []
    for i in range(1, len(slices)):
        if place[i] - place[kept[-1]] > SAME_PLACE_MM:
            kept.append(i)
        elif slices[i].sop_uid == slices[kept[-1]].sop_uid:
            again += 1
        else:
            twice.append(f"{slices[kept[-1]].path.name} and {slices[i].path.name}")
    if twice:
        raise Fault(f"{len(twice)} places hold two different images ({twice[0]}): two "
                    "reconstructions under one number?")
    if again:
        notes.append(f"{again} copies of files left out")
    return [slices[i] for i in kept], place[kept]


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


# ------------------------------------------------------------------ pixels

def read_series(series: Series) -> Volume:
    """int16 HU of a series that is whole. Raises Fault, which names the file."""
    return read_files([each.path for each in series.slices], series.geometry, series.turn)


def read_files(paths: Sequence[Path], geometry: Geometry, turn: Turn) -> Volume:
    """int16 HU of the files of one series in the order of their places, as `examine` gives them.

    Raises Fault, which names the file.
    """
    hu = None
    for number, path in enumerate(paths):
        pixels = _pixels(path)
        if hu is None:
            hu = np.empty((len(paths), *pixels.shape), np.int16)
        hu[number] = pixels
    try:
        check_hu(float(hu.min()), float(hu.max()))
    except Fault as fault:
        raise Fault(f"{paths[0].parent}: {fault}") from None
    return Volume(turn(hu), geometry)


def _pixels(path: Path) -> np.ndarray:
    """int16 HU [rows, columns] of one file, by its own slope and intercept."""
    import pydicom

    try:
        data = pydicom.dcmread(path)
        syntax = data.file_meta.TransferSyntaxUID
        stored, header = data.pixel_array, _slice(path, data)
    except RuntimeError as error:  # pydicom's, where no decoder is installed
        packages = DECODERS.get(str(syntax), "a decoder that pydicom names")
        raise Fault(f"{path} is compressed ({syntax.name}): install {packages}, or decompress it "
                    f"({str(error).splitlines()[0]})") from None
    except Exception as error:  # a damaged file may raise anything at all
        raise Fault(f"{path}: its pixels are cut short or damaged ({str(error).splitlines()[0]}): "
                    "get the file again") from None
    try:
        return to_hu(stored, header.slope, header.intercept)
    except Fault as fault:
        raise Fault(f"{path}: {fault}") from None
