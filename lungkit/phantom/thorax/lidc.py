"""Write scans as LIDC-IDRI is published: DICOM series with the readers' XML beside them.

An outline is the first pixels outside; a hole's (inclusion FALSE) the last of the nodule around it:
strictly inside lies what is meant. Below 3 mm a mark is one point without grades. The first patient
has a chest film in the tree, the fourth an older XML of half the readers, which the newer replaces.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from lungkit.phantom.thorax import dicom
from lungkit.phantom.thorax.readers import CROSS, NUM_READERS, SCALES, Mark
from lungkit.phantom.thorax.scans import Scan

FOLDER = "LIDC-IDRI"
TABLES: dict[str, str] = {}
FILMED, READ_TWICE = 0, 3  # patients with a chest film, with two XML files


def patient_id(scan: Scan) -> str:
    return f"THORAX-{scan.patient + 1:04d}"


def files(scan: Scan) -> Iterator[tuple[str, bytes]]:
    """Paths below FOLDER and contents of one scan's files."""
    who = patient_id(scan)
    study = f"{who}/01-01-20{scan.number:02d}-{scan.study_uid[-5:]}"
    series = f"{study}/3.000000-{scan.series_uid[-5:]}"
    for instance, content in dicom.ct_files(scan, scan.hu, scan.scanner, who, scan.series_uid, 3,
                                            "CHEST"):
        yield f"{series}/1-{instance:03d}.dcm", content
    yield f"{series}/{scan.name}.xml", message(scan, range(NUM_READERS), "2001-02-01")
    if scan.patient == READ_TWICE:
        yield f"{series}/{scan.name}_older.xml", message(scan, range(2), "2001-01-01")
    if scan.patient == FILMED:
        yield f"{study}-DX/1.000000-NA/1-1.dcm", dicom.other_image(scan, who, "DX", 1)


def rows(scan: Scan) -> dict[str, list[str]]:
    return {}


def closing(scans: list[str]) -> Iterator[tuple[str, bytes]]:
    yield from ()


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of a mask bool [Y, X], int [N, 2] in x y: the first pixels outside each part."""
    grown = cv2.dilate(np.pad(mask, 2).astype(np.uint8), CROSS)
    found, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [points[:, 0] - 2 for points in found]


def message(scan: Scan, sessions, day: str) -> bytes:
    """The LidcReadMessage of some of a scan's readers."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>',
             f'<LidcReadMessage uid="{scan.series_uid}.0" xmlns="http://www.nih.gov" '
             'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">',
             "<ResponseHeader>", "<Version>1.8</Version>",
             "<TaskDescription>Second unblinded read</TaskDescription>",
             f"<SeriesInstanceUid>{scan.series_uid}</SeriesInstanceUid>",
             f"<DateService>{day}</DateService>", "<TimeService>12:00:00</TimeService>",
             "<ResponseDescription>1 - Reading complete</ResponseDescription>",
             f"<StudyInstanceUID>{scan.study_uid}</StudyInstanceUID>", "</ResponseHeader>"]
    for session in sessions:
        lines += ["<readingSession>", "<annotationVersion>3.12</annotationVersion>",
                  "<servicingRadiologistID>anon</servicingRadiologistID>"]
        for number, mark in enumerate(scan.marks):
            if mark.reader == session:
                lines += _mark(scan, mark, f"{session + 1}{number:04d}")
        lines.append("</readingSession>")
    return "\n".join([*lines, "</LidcReadMessage>", ""]).encode()


def _place(scan: Scan, index: int) -> list[str]:
    height = round(scan.grid.origin_mm[2] + index * scan.grid.step_mm, 4)
    return [f"<imageZposition>{height:.8g}</imageZposition>",
            f"<imageSOP_UID>{dicom.sop_uid(scan.series_uid, index)}</imageSOP_UID>"]


def _roi(scan: Scan, index: int, points, inclusion: bool) -> list[str]:
    edges = [f"<edgeMap>\n<xCoord>{x}</xCoord>\n<yCoord>{y}</yCoord>\n</edgeMap>"
             for x, y in points]
    return ["<roi>", *_place(scan, index),
            f"<inclusion>{str(inclusion).upper()}</inclusion>", *edges, "</roi>"]


def _mark(scan: Scan, mark: Mark, name: str) -> list[str]:
    x, y, index = mark.at_px
    if mark.kind == "other":
        return ["<nonNodule>", f"<nonNoduleID>{name}</nonNoduleID>", *_place(scan, index),
                f"<locus>\n<xCoord>{x}</xCoord>\n<yCoord>{y}</yCoord>\n</locus>", "</nonNodule>"]
    lines = ["<unblindedReadNodule>", f"<noduleID>{name}</noduleID>"]
    if mark.kind == "point":
        return [*lines, *_roi(scan, index, [(x, y)], True), "</unblindedReadNodule>"]
    lines += ["<characteristics>", *(f"<{scale}>{mark.ratings[scale]}</{scale}>"
                                     for scale in SCALES), "</characteristics>"]
    first, row, column = mark.corner
    for number in np.flatnonzero(mark.mask.any((1, 2))):
        for plane, inclusion in ((mark.mask[number], True), (mark.holes[number], False)):
            for points in outlines(plane):
                closed = np.concatenate([points, points[:1]]) + (column, row)
                lines += _roi(scan, first + int(number), closed.tolist(), inclusion)
    return [*lines, "</unblindedReadNodule>"]
