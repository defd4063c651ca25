"""Masks found on slices, written as NIfTI on the grids of the scans that the slices are of.

`scans.json` of a dataset holds the grid of every scan as its file has it, axes as NIfTI orders
them; its table where each slice lies (series, slice_index, centre_row, centre_column). A mask has
the scan's own axes, so that it lies on the scan in any viewer, whatever way up the file is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lungkit.ct.crops import along
from lungkit.data.dataset import Dataset, Row
from lungkit.data.mask_items import Item, shows_slices
from lungkit.data.repeats import Repeats
from lungkit.data.result import masks_dir
from lungkit.formats import metaimage, nifti
from lungkit.formats.volumes import Geometry, Turn, canonical
from lungkit.run.faults import BadOptions, Fault
from lungkit.run.files import read_json, write_bytes, write_json

if TYPE_CHECKING:
    from lungkit.ct.studies import Scan

NAME = "scans.json"


# ------------------------------------------------------------------ grids of scans

def write_grids(folder: Path, scans: Iterable[Scan]) -> None:
    """Keep where the voxels of scans lie; of volume files their headers are read. Raises Fault."""
    write_json(folder / NAME, {scan.name: _grid(scan) for scan in scans})


def _grid(scan: Scan) -> dict:
    turn, order = scan.turn, -1  # arrays of slices and of MetaImage run z, y, x
    if scan.kind in ("nifti", "metaimage"):
        module, order = (nifti, 1) if scan.kind == "nifti" else (metaimage, -1)
        turn = module.read_layout(scan.root / scan.files[0])[1]
    grid = turn.grid(scan.geometry)
    return {"shape": list(grid.shape[::order]), "origin_mm": grid.origin_mm.tolist(),
            "steps_mm": grid.steps_mm[::order].tolist()}


@dataclass(frozen=True)
class Scans:
    """Where the slices of a split lie: its rows, the grid of each series, millimetres a pixel."""

    rows: list[Row]
    grids: dict[str, tuple[Geometry, Turn]]
    mm_per_px: float


def open_scans(data: Dataset, split: str = "test") -> Scans:
    """Raises Fault where a dataset does not say where its images lie in scans."""
    path, rows = data.path / NAME, data.select(split)
    if not shows_slices(data):
        raise Fault(f"--nifti: {data.path} does not show whole slices of scans (ct_seg.py --view "
                    "slice), so that no mask of a scan can be put together: leave it out")
    if data.um_per_px is None or not path.is_file() or not all(
            row.extra.get("centre_row") and row.extra.get("centre_column") for row in rows):
        raise Fault(f"--nifti: {data.path} does not say where its slices lie in their scans: make "
                    "it again by ct_seg.py with --overwrite")
    held, names = read_json(path), {row.extra["series"] for row in rows}
    if strange := sorted(name for name in names if name != Path(name).name):
        raise Fault(f"--nifti: series {strange[0]!r} of {data.path} cannot be the name of a file: "
                    "leave --nifti out")
    lacking = sorted(names - held.keys())
    if lacking:
        raise Fault(f"{path} lacks series {lacking[0]}: make the dataset again with --overwrite")
    return Scans(rows, {name: canonical(each["shape"], each["origin_mm"], each["steps_mm"])
                        for name, each in held.items()}, data.um_per_px / 1000)


def check_kept(asked: Iterable[Repeats]) -> None:
    """Raise BadOptions where a complete repeat, whose network is gone, left no masks of scans."""
    for repeats in asked:
        for each in repeats.identities:
            if each not in repeats.pending and not masks_dir(repeats.directory,
                                                             each["repeat"]).is_dir():
                raise BadOptions(f"--nifti: repeat {each['repeat']} of {repeats.directory} was "
                                 "made without: give another --results")


# ------------------------------------------------------------------ masks

def write_mask(folder: Path, scans: Scans, item: Item, levels: np.ndarray, found: np.ndarray,
               least: int) -> None:
    """Write folder/<series>.nii.gz, what was found in a volume, on its scan's grid: uint8, 0 and 1.

    levels: uint8 [n, S, S] of the item's slices; found: bool, where it is said to be, at levels of
    `least` and more. Slices that the item lacks, and what lies outside its images, are 0.
    """
    geometry, turn = scans.grids[item.name]
    mask = np.zeros(geometry.shape, np.uint8)
    dropped = (levels >= least) & ~found  # components that are too small
    for z, place, plane in zip(item.slices, item.images, np.where(dropped, 0, levels)):
        row = scans.rows[place].extra
        mask[z] = _on_grid(plane, geometry, scans.mm_per_px, (
            float(row["centre_row"]), float(row["centre_column"]))) >= least
    grid = turn.grid(geometry)
    write_bytes(folder / f"{item.name}.nii.gz", nifti.encode_nifti(turn.back(mask).T, Geometry(
        grid.shape[::-1], grid.origin_mm, grid.steps_mm[::-1])))


def _on_grid(plane: np.ndarray, geometry: Geometry, mm_per_px: float,
             centre: tuple[float, float]) -> np.ndarray:
    """float32 [Y, X] of a plane [S, S] around `centre` at a slice's voxels, bilinear; else 0."""
    rows, columns = (
        np.float32((np.arange(number) - at) * mm / mm_per_px + len(plane) / 2 - 0.5)
        for number, at, mm in zip(geometry.shape[1:], centre, geometry.spacing_mm[1:]))
    return along(along(plane.astype(np.float32), rows, 0.0).T, columns, 0.0).T
