"""Pictures already cut from scans, with a table of what they show: as scans of one slice.

What was lost when they were cut is not made up: without a window their grey is not HU, without a
pixel spacing their field is in pixels, without lungs around there is no layout.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from lungkit.ct.annotations import Annotated
from lungkit.ct.nodules import Nodule, centroid
from lungkit.ct.plan import Item, Job, Plan, classes_of
from lungkit.ct.studies import Scan
from lungkit.ct.truth import Rule, class_of, dropped
from lungkit.data.splits import merge_groups
from lungkit.formats.channels import Unreadable
from lungkit.formats.images import decode_image
from lungkit.formats.volumes import Geometry, Volume
from lungkit.run.faults import Fault, several
from lungkit.run.files import sha256
from lungkit.run.tables import in_any_case, read_table

NAMES = {  # what a column may be called
    "file": ("file", "file_name", "image"), "label": ("label", "class"),
    "grades": ("malignancy_ratings", "grades", "malignancy", "grade"),
    "patient": ("patient", "patient_id", "group"),
    "parent": ("parent", "copy_of", "rotated_copy_of"),
    "spacing": ("pixel_spacing_mm", "spacing_mm"),
    "thickness": ("slice_thickness_mm", "thickness_mm"),
    "diameter": ("diameter_mm", "max_diam_mm"), "readers": ("n_raters", "num_readers")}
MASKS = "masks"         # a folder beside the table: masks by the pictures' names
IMAGES = "images"       # a folder that a table may leave out of the names


@dataclass(frozen=True)
class PictureScan(Scan):
    """A picture as a scan of one slice; window: HU of grey 0 and 255."""

    window: tuple[float, float] = (-1000.0, 400.0)

    def load(self) -> Volume:
        grey = read_grey(self.root / self.files[0])
        low, high = self.window
        hu = np.rint(grey / 255.0 * (high - low) + low).astype(np.int16)
        return Volume(hu[None], self.geometry)


def read_grey(path: Path) -> np.ndarray:
    """uint8 [H, W] of a grey picture of 8 bits. Raises Fault, which names the file."""
    try:
        image = decode_image(path.read_bytes())
    except FileNotFoundError:
        raise Fault(f"{path} is missing") from None
    except Unreadable as error:
        raise Fault(f"{path} {error}") from None
    if image.ndim == 3:
        raise Fault(f"{path} has colours, so it was drawn upon, or is no CT: leave it out")
    if image.dtype != np.uint8:
        raise Fault(f"{path} has {8 * image.dtype.itemsize} bits, and who knows which are HU: give "
                    "the scan, or pictures of 8 bits of one window")
    return image


# ------------------------------------------------------------------ the table

def read_pictures(table: Path, root: Path, window: tuple[float, float], mapped
                  ) -> tuple[list[PictureScan], list[tuple[str, str]]]:
    """The pictures that a table names, by name, and links (name, parent's name) of copies.

    Raises Fault with everything that is wrong with them.
    """
    read = read_table(table)
    lower = in_any_case(table, read.columns)
    known = {ours: lower[name] for ours, names in NAMES.items()
             for name in names[::-1] if name in lower}
    if "file" not in known or not {"label", "grades"} & set(known):
        raise Fault(f"{table} needs a column file, and label or grade")
    rows = [{ours: row[column].strip() for ours, column in known.items()} | {"line": line}
            for line, row in read.rows]
    names = Counter(row["file"] for row in rows)
    faults = [f"{name} is listed {n} times" for name, n in names.items() if n > 1]
    scans = []
    for found in mapped(partial(_examine, root=root, window=window), rows):
        if isinstance(found, str):
            faults.append(found)
        else:
            scans.append(found)
    links = [(row["file"], row["parent"]) for row in rows if row.get("parent")]
    faults += [f"{name}: its parent {parent!r} is not in the table" for name, parent in links
               if parent not in names]
    if faults:
        raise Fault(f"{table}: {several(faults)}")
    return sorted(scans, key=lambda scan: scan.name), links


def _examine(row: dict, root: Path, window: tuple[float, float]) -> PictureScan | str:
    try:
        return _picture(row, root, window)
    except (Fault, ValueError) as fault:
        return f"line {row['line']}: {fault}"


def _picture(row: dict, root: Path, window: tuple[float, float]) -> PictureScan:
    name = row["file"]
    file = name if (root / name).exists() else f"{IMAGES}/{name}"
    grey = read_grey(root / file)
    spacing = float(row.get("spacing") or 0)
    mm = spacing or 1.0
    geometry = Geometry((1, *grey.shape), np.zeros(3),
                        np.array([[0, 0, 1.0], [0, mm, 0], [mm, 0, 0]]))
    grades = tuple(float(part) for part in re.findall(r"\d+(?:\.\d+)?", row.get("grades", "")))
    if any(not 1 <= grade <= 5 for grade in grades):
        raise Fault(f"grade {row['grades']!r}: grades go from 1 to 5")
    mask, diameter = _mask(root / MASKS / name, grey.shape), float(row.get("diameter") or 0)
    truth = "unknown" if mask is None else "mask"
    if mask is None:
        mask = np.zeros(grey.shape, bool)
        mask[grey.shape[0] // 2, grey.shape[1] // 2] = True
    nodule = Nodule("0", (0, 0, 0), mask[None], centroid(mask[None], (0, 0, 0)),
                    diameter, truth, grades=grades, label=row.get("label", ""),
                    readers=int(row["readers"]) if row.get("readers") else
                    len(grades) if len(grades) > 1 else None)
    thickness = row.get("thickness")
    return PictureScan(name, row.get("patient", ""), "", "", "picture", root, (file,), geometry,
                       None, float(thickness) if thickness else None, "", "", False, 0,
                       (root / file).stat().st_size, Annotated("table", (nodule,)), (),
                       spacing > 0, window=window)


def _mask(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    if not path.exists():
        return None
    mask = read_grey(path)
    if mask.shape != shape:
        raise Fault(f"{path} is {mask.shape[1]} x {mask.shape[0]}, its picture {shape[1]} x "
                    f"{shape[0]}")
    return mask > 127 if mask.max() > 1 else mask > 0


# ------------------------------------------------------------------ the plan

def group(scans: list[PictureScan], links: list[tuple[str, str]]) -> list[PictureScan]:
    """The same with their groups as patients: by patient, by copy and by equal bytes.

    A picture of unknown patient is a group of its own.
    """
    hashes = {scan.name: sha256((scan.root / scan.files[0]).read_bytes()) for scan in scans}
    group_of, _ = merge_groups({scan.name: scan.patient or scan.name for scan in scans}, links,
                               hashes=hashes)
    return [replace(scan, patient=group_of[scan.name]) for scan in scans]


def plan_pictures(scans: list[PictureScan], rule: Rule, split_of: dict[str, str],
                  stratum_of: dict[str, list[str]]) -> Plan:
    """An image of every picture that has a class. Raises Fault where a class would be empty."""
    plan, labelled = Plan([], split_of, stratum_of, []), []
    for scan in scans:
        nodule = scan.annotated.nodules[0]
        if rule.labels in ("presence", "histology"):
            label, why = nodule.label or None, "no label"
        else:
            label, why = class_of(nodule, rule)
        known = replace(nodule, diameter_mm=nodule.diameter_mm or np.inf)
        if (small := dropped(known, rule)) or label is None:
            plan.drop(scan, nodule, small or why)
        else:
            labelled.append((scan, label))
    plan.jobs = [Job(scan, split_of[scan.patient], scan.annotated.nodules,
                     (Item(number, label, 0, 0),))
                 for number, (scan, label) in enumerate(labelled)]
    plan.classes = classes_of(plan, rule)
    return plan
