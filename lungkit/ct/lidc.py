"""LIDC-IDRI annotations: XML to marks of readers, marks to nodules by consensus.

Armato et al. 2011, "The Lung Image Database Consortium (LIDC) and Image Database Resource
Initiative (IDRI)", Med Phys 38:915. A contour lies on the first voxels outside the nodule; contours
with inclusion FALSE are holes. A reader's nodule numbers mean nothing to the other readers: marks
belong together by where they are (`clusters`), as in pylidc (Hancock & Magnan 2016, J Med Imaging
3:044504).

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lungkit.ct.nodules import Nodule, centroid
from lungkit.run.faults import Fault

CT_MESSAGE, FILM_MESSAGE = "LidcReadMessage", "IdriReadMessage"
CHARACTERISTICS = ("subtlety", "internalStructure", "calcification", "sphericity", "margin",
                   "lobulation", "spiculation", "texture", "malignancy")
SESSIONS = 4            # readers of a scan, by the protocol
SHRINK, LEAST_MM = 0.9, 0.1  # pylidc's: steps of the tolerance, and where it gives up
CONSENSUS = 0.5         # share of the readers that a voxel needs: pylidc's and the field's default


@dataclass(frozen=True)
class Contour:
    """One outline: points int [N, 2] in x y of the file's pixels, counted from 0."""

    sop_uid: str
    z_mm: float
    inclusion: bool
    points: np.ndarray


@dataclass(frozen=True)
class Mark:
    """What one reader said of one nodule: rated and outlined, or a point for one below 3 mm."""

    session: int
    name: str
    ratings: dict[str, int]
    contours: tuple[Contour, ...]

    @property
    def is_point(self) -> bool:
        """One that has no rating, or no outline of two points."""
        return not self.ratings or max(len(np.unique(c.points, axis=0)) for c in self.contours) < 2


@dataclass(frozen=True)
class Reading:
    """One XML file of CT."""

    path: Path
    series: str
    study: str
    time: str           # of service, sortable
    sessions: int
    marks: tuple[Mark, ...]
    non_nodules: tuple[tuple[str, float, int, int], ...]  # SOP UID, z, x, y of each

    @property
    def notes(self) -> list[str]:
        notes = []
        if self.sessions != SESSIONS:
            notes.append(f"{self.path.name}: {self.sessions} reading sessions, not {SESSIONS}")
        zero = sum(mark.ratings.get("malignancy") == 0 for mark in self.marks)
        if zero:
            notes.append(f"{self.path.name}: {zero} marks with malignancy 0, taken as not rated")
        return notes


# ------------------------------------------------------------------ XML

def message_of(path: Path) -> str | None:
    """The name of an XML file's root without its namespace; None where there is none."""
    with open(path, "rb") as file:
        start = file.read(4096)
    found = re.search(rb"<([A-Za-z_][\w.-]*:)?([A-Za-z_][\w.-]*)[\s>/]",
                      re.sub(rb"<!--.*?-->|<\?.*?\?>|<!DOCTYPE[^>]*>", b"", start, flags=re.S))
    return found[2].decode() if found else None


def read_xml(path: Path) -> Reading:
    """Parse a LidcReadMessage, with or without its namespace. Raises Fault, which names the file.

    Where and what an outline is of is not checked here: `nodules_of` knows the scan.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise Fault(f"{path} is no whole XML ({error}): get it again") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag == FILM_MESSAGE:
        raise Fault(f"{path} is about chest films ({FILM_MESSAGE}), not CT: leave it out")
    header = root.find("ResponseHeader")
    if root.tag != CT_MESSAGE or header is None:
        raise Fault(f"{path} is no {CT_MESSAGE}, but {root.tag}: leave it out")

    def of(name: str) -> str:
        return (header.findtext(name) or "").strip()

    series = of("SeriesInstanceUid") or of("SeriesInstanceUID")
    if not series:
        raise Fault(f"{path} does not say of which series it is (SeriesInstanceUid)")
    sessions = root.findall("readingSession")
    try:
        marks = tuple(_mark(number, nodule) for number, session in enumerate(sessions)
                      for nodule in session.findall("unblindedReadNodule"))
        others = tuple(_non_nodule(each) for session in sessions
                       for each in session.findall("nonNodule"))
    except (ValueError, TypeError, AttributeError) as error:
        raise Fault(f"{path}: a mark lacks its numbers ({error})") from None
    wrong = [m for m in marks if not 0 <= m.ratings.get("malignancy", 1) <= 5]
    if wrong:
        raise Fault(f"{path}: nodule {wrong[0].name!r} has malignancy "
                    f"{wrong[0].ratings['malignancy']}, which goes from 1 to 5")
    return Reading(path, series, of("StudyInstanceUID"), f"{of('DateService')} {of('TimeService')}",
                   len(sessions), marks, others)


def _mark(session: int, nodule) -> Mark:
    ratings = nodule.find("characteristics")
    contours = []
    for roi in nodule.findall("roi"):
        points = [(int(p.findtext("xCoord")), int(p.findtext("yCoord")))
                  for p in roi.findall("edgeMap")]
        contours.append(Contour((roi.findtext("imageSOP_UID") or "").strip(),
                                float(roi.findtext("imageZposition")),
                                roi.findtext("inclusion").strip().upper() == "TRUE",
                                np.array(points, int).reshape(-1, 2)))
    if not contours:
        raise ValueError("a nodule without any roi")
    found = {} if ratings is None else {
        name: int(ratings.findtext(name)) for name in CHARACTERISTICS
        if (ratings.findtext(name) or "").strip()}
    return Mark(session, (nodule.findtext("noduleID") or "").strip(), found, tuple(contours))


def _non_nodule(each) -> tuple[str, float, int, int]:
    at = each.find("locus")
    return ((each.findtext("imageSOP_UID") or "").strip(), float(each.findtext("imageZposition")),
            int(at.findtext("xCoord")), int(at.findtext("yCoord")))


def latest(readings: list[Reading]) -> tuple[Reading, list[str]]:
    """Of several readings of one series the one served last, by name where equal, and a note."""
    best = max(readings, key=lambda reading: (reading.time, str(reading.path)))
    others = [r.path.name for r in readings if r is not best]
    return best, [f"{len(readings)} XML files: {best.path.name} is the later one, "
                  f"{', '.join(others)} left out"] if others else []


# ------------------------------------------------------------------ voxels

def fill(points: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels strictly inside an outline: bool [h, w], and x y of its first pixel.

    points: int [N, 2] in x y, closed or not.
    """
    import cv2

    low = points.min(0)
    width, height = points.max(0) - low + 1
    inside = np.zeros((height, width), np.uint8)
    outline = (points - low).astype(np.int32).reshape(1, -1, 1, 2)
    cv2.fillPoly(inside, outline, 1)
    cv2.polylines(inside, outline, True, 0)
    return inside.astype(bool), (int(low[0]), int(low[1]))


def mask_of(mark: Mark, slice_of: Callable[[Contour], int]
            ) -> tuple[np.ndarray, tuple[int, int, int]] | None:
    """The voxels of one mark, bool [d, h, w], and z y x of the first; None where it has none.

    slice_of: the number of a contour's slice. Voxels run z, file row, file column.
    """
    points = np.concatenate([contour.points for contour in mark.contours])
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    numbers = [slice_of(contour) for contour in mark.contours]
    start = min(numbers)
    mask = np.zeros((max(numbers) - start + 1, y1 - y0 + 1, x1 - x0 + 1), bool)
    for inclusion in (True, False):  # holes last
        for number, contour in zip(numbers, mark.contours):
            if contour.inclusion is inclusion:
                inside, (x, y) = fill(contour.points)
                part = mask[number - start, y - y0:, x - x0:][:inside.shape[0], :inside.shape[1]]
                part[inside] = inclusion
    return (mask, (start, int(y0), int(x0))) if mask.any() else None


def clusters(voxels_mm: list[np.ndarray], sessions: list[int], tolerance_mm: float
             ) -> tuple[list[list[int]], bool]:
    """Marks that are of one nodule: lists of indices, and whether no session has two in one.

    voxels_mm: float [N, 3] of each mark. Single linkage of marks nearer than the tolerance, which
    shrinks until no cluster holds two marks of one session, or none is left.
    """
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    count = len(voxels_mm)
    trees = [cKDTree(voxels) for voxels in voxels_mm]
    boxes = [(v.min(0), v.max(0)) for v in voxels_mm]
    apart = np.full((count, count), np.inf)
    for i in range(count):
        for j in range(i):
            gap = np.maximum(boxes[i][0] - boxes[j][1], boxes[j][0] - boxes[i][1]).clip(0)
            if np.linalg.norm(gap) <= tolerance_mm:
                apart[i, j] = apart[j, i] = trees[j].query(
                    voxels_mm[i], distance_upper_bound=tolerance_mm * 1.001 + 1e-6)[0].min()
    while True:
        number, member = connected_components(apart <= tolerance_mm, directed=False)
        found = [np.flatnonzero(member == n).tolist() for n in range(number)]
        clean = all(len({sessions[i] for i in group}) == len(group) for group in found)
        if clean or tolerance_mm * SHRINK < LEAST_MM:
            return found, clean
        tolerance_mm *= SHRINK


def apart(group: list[int], centres_mm: np.ndarray, radii_mm: np.ndarray, sessions: list[int]
          ) -> list[list[int]]:
    """A cluster that holds two marks of one session, which touch, as nodules that do not.

    Centres closer than the sum of their radii are joined, as LUNA16's were (Setio et al. 2017, Med
    Image Anal 42:1), the nearest first, and never two of one session.
    """
    parts = {index: {index} for index in group}
    pairs = [(float(np.linalg.norm(centres_mm[i] - centres_mm[j])), i, j)
             for i in group for j in group if i < j]
    for distance, i, j in sorted(pairs):
        joined = parts[i] | parts[j]
        if distance < radii_mm[i] + radii_mm[j] \
                and len({sessions[k] for k in joined}) == len(joined):
            parts |= dict.fromkeys(joined, joined)
    return [list(part) for part in sorted({tuple(sorted(each)) for each in parts.values()})]


# ------------------------------------------------------------------ consensus

def nodules_of(reading: Reading, place_of: dict[str, tuple[int, float]],
               spacing_mm: tuple[float, float, float], thickness_mm: float
               ) -> tuple[list[Nodule], list[str]]:
    """The nodules that the readers of a scan outlined, by consensus, and notes.

    place_of: {SOP UID: (slice number, its z in mm)}; spacing_mm: of z, y, x; thickness_mm: of a
    slice, the tolerance of `clusters`. Voxels run z, file row, file column. Points (< 3 mm) and
    non-nodules are no nodules. Raises Fault where an outline is of no slice of this scan.
    """
    notes, marks, masks = list(reading.notes), [], []
    for mark in reading.marks:
        if mark.is_point:
            continue
        found = mask_of(mark, lambda contour: _slice_of(reading, contour, place_of, spacing_mm[0]))
        if found is None:
            notes.append(f"{reading.path.name}: nodule {mark.name!r} of session {mark.session + 1} "
                         "encloses no voxel")
        else:
            marks.append(mark)
            masks.append(found)
    if not marks:
        return [], notes
    where = [(np.argwhere(mask) + start) * spacing_mm for mask, start in masks]
    sessions = [mark.session for mark in marks]
    groups, clean = clusters(where, sessions, thickness_mm)
    if not clean:
        notes.append(f"{reading.path.name}: outlines of one reader touch: joined to those of "
                     "others by their centres")
        centres = np.array([voxels.mean(0) for voxels in where])
        radii = np.array([_diameter_mm(mask, spacing_mm) / 2 for mask, _ in masks])
        groups = [part for group in groups for part in apart(group, centres, radii, sessions)]
    found = [consensus([marks[i] for i in group], [masks[i] for i in group], spacing_mm)
             for group in groups]
    found.sort(key=lambda nodule: nodule.centre)
    return [replace(nodule, name=str(number)) for number, nodule in enumerate(found)], notes


def _slice_of(reading: Reading, contour: Contour, place_of: dict, step_mm: float) -> int:
    if contour.sop_uid not in place_of:
        raise Fault(f"{reading.path}: an outline is of image {contour.sop_uid}, which the series "
                    f"{reading.series} does not hold: is the series whole?")
    number, z_mm = place_of[contour.sop_uid]
    if abs(z_mm - contour.z_mm) > step_mm / 2:
        raise Fault(f"{reading.path}: an outline says z {contour.z_mm:g} mm of an image at "
                    f"{z_mm:g} mm ({contour.sop_uid}): annotation and images do not match")
    return number


def consensus(marks: list[Mark], masks: list[tuple[np.ndarray, tuple[int, int, int]]],
              spacing_mm: tuple[float, float, float]) -> Nodule:
    """One nodule of its readers' voxels: those of at least half of the readers who marked it.

    Where no voxel has half of them, those that most of them have.
    """
    starts = np.array([start for _, start in masks])
    ends = np.array([np.add(start, mask.shape) for mask, start in masks])
    low = starts.min(0)
    readers = sorted({mark.session for mark in marks})
    votes = np.zeros((len(readers), *(ends.max(0) - low)), bool)
    for mark, (mask, start) in zip(marks, masks):
        at = tuple(slice(s, s + n) for s, n in zip(np.array(start) - low, mask.shape))
        votes[(readers.index(mark.session), *at)] |= mask
    share = votes.mean(0)
    agreed = share >= min(CONSENSUS, share.max())
    spans = [np.flatnonzero(agreed.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    agreed = agreed[tuple(slice(s[0], s[-1] + 1) for s in spans)]
    start = tuple(int(first + span[0]) for first, span in zip(low, spans))
    rated = [mark.ratings for mark in marks]
    textures = [r["texture"] for r in rated if r.get("texture")]
    return Nodule("", start, agreed, centroid(agreed, start),
                  float(np.mean([_diameter_mm(each, spacing_mm) for each in votes])), "contour",
                  grades=tuple(r["malignancy"] for r in rated if r.get("malignancy")),
                  readers=len(readers), texture=float(np.mean(textures)) if textures else None,
                  agreement=_agreement(votes))


def _diameter_mm(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """Of the disc of the largest section's area."""
    return float(2 * np.sqrt(mask.sum((1, 2)).max() * spacing_mm[1] * spacing_mm[2] / np.pi))


def _agreement(votes: np.ndarray) -> float | None:
    """Mean Dice of every pair of readers' voxels; None of one reader."""
    flat = votes.reshape(len(votes), -1).astype(np.float64)
    common = flat @ flat.T
    size = np.diag(common)
    dice = 2 * common / (size[:, None] + size[None])
    pairs = dice[np.triu_indices(len(votes), 1)]
    return float(pairs.mean()) if len(pairs) else None
