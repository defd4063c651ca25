"""Write scans as LUNA16 is published: MetaImage volumes in ten subsets, tables, lung masks.

Coordinates are LPS mm. In every third patient the image is stored turned by half a turn, with a
TransformMatrix that says so, as some of LUNA16's are: |x - origin| is no index there. Nodules with
three readers or more are in annotations.csv, at the middle of their largest box; all other
findings are in annotations_excluded.csv, where -1 is a diameter that nobody measured.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from lungkit.phantom.thorax.scans import Scan

FOLDER = "LUNA16"
FINDING = "seriesuid,coordX,coordY,coordZ,diameter_mm"
TABLES = {"annotations.csv": FINDING, "annotations_excluded.csv": FINDING,
          "candidates_V2.csv": "seriesuid,coordX,coordY,coordZ,class"}
NUM_SUBSETS, LEAST_READERS, LEAST_MM = 10, 3, 3.0
NEGATIVES = 12  # candidates of a scan that are no nodule


def files(scan: Scan) -> Iterator[tuple[str, bytes]]:
    """Paths below FOLDER and contents of one scan's files."""
    place = f"subset{scan.patient % NUM_SUBSETS}/{scan.series_uid}"
    yield from _image(place, scan, scan.hu.astype("<i2"), "MET_SHORT", packed=False)
    yield from _image(f"seg-lungs-LUNA16/{scan.series_uid}", scan, scan.labels, "MET_UCHAR",
                      packed=True)


def _image(place: str, scan: Scan, values: np.ndarray, kind: str, *, packed: bool
           ) -> Iterator[tuple[str, bytes]]:
    origin, turned = np.array(scan.grid.origin_mm), scan.patient % 3 == 2
    spacing = np.array([scan.grid.spacing_mm, scan.grid.spacing_mm, scan.grid.step_mm])
    matrix = "1 0 0 0 1 0 0 0 1"
    if turned:
        values, matrix = values[:, ::-1, ::-1], "-1 0 0 0 -1 0 0 0 1"
        origin = origin + spacing * ((scan.grid.size - 1) * np.array([1, 1, 0]))
    content = np.ascontiguousarray(values).tobytes()
    name = f"{scan.series_uid}.{'zraw' if packed else 'raw'}"
    size = ""
    if packed:
        content = zlib.compress(content, 1)
        size = f"CompressedDataSize = {len(content)}\n"
    numbers = [" ".join(f"{each:.10g}" for each in row) for row in (origin, spacing)]
    header = ("ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
              f"CompressedData = {packed}\n{size}TransformMatrix = {matrix}\n"
              f"Offset = {numbers[0]}\nCenterOfRotation = 0 0 0\nAnatomicalOrientation = RAI\n"
              f"ElementSpacing = {numbers[1]}\n"
              f"DimSize = {scan.grid.size} {scan.grid.size} {scan.grid.num_slices}\n"
              f"ElementType = {kind}\nElementDataFile = {name}\n")
    yield f"{place}.mhd", header.encode()
    yield f"{place.rpartition('/')[0]}/{name}", content


def rows(scan: Scan) -> dict[str, list[str]]:
    """Lines of the tables in TABLES."""
    steps = np.array([scan.grid.spacing_mm, scan.grid.spacing_mm, scan.grid.step_mm])

    def line(at_px, last) -> str:
        place = np.asarray(at_px, float) * steps + scan.grid.origin_mm
        return ",".join([scan.series_uid, *(f"{each:.7f}" for each in place), last])

    found: dict[str, list[str]] = {name: [] for name in TABLES}
    for nodule in scan.consensus:
        kept = nodule.num_readers >= LEAST_READERS and nodule.diameter_mm >= LEAST_MM
        table = "annotations.csv" if kept else "annotations_excluded.csv"
        found[table].append(line(nodule.centre_px(), f"{nodule.diameter_mm:.9g}"))
        if kept:
            found["candidates_V2.csv"].append(line(nodule.centre_px(), "1"))
    agreed = {nodule.nodule for nodule in scan.consensus}
    for place in sorted({mark.at_px for mark in scan.marks
                         if mark.kind != "outlined" and mark.nodule not in agreed}):
        found["annotations_excluded.csv"].append(line(place, "-1"))
    rng = np.random.default_rng(list(scan.series_uid.encode()))
    inside = np.argwhere((scan.labels == 3) | (scan.labels == 4))
    taken = [np.array(nodule.centre_px()) for nodule in scan.consensus]
    for index in rng.permutation(len(inside))[:NEGATIVES]:
        place = inside[index][::-1]
        if all(np.linalg.norm((place - other) * steps) > 25 for other in taken):
            found["candidates_V2.csv"].append(line(place, "0"))
    return found


def closing(scans: list[str]) -> Iterator[tuple[str, bytes]]:
    yield from ()
