"""Write scans as the Medical Segmentation Decathlon's Task06_Lung is published: NIfTI and labels.

The label is the readers' consensus on nodules with three readers or more. Every other image is
stored with x and y falling, as Decathlon's are not alike either; the affine says so. The `._` files
are what a Macintosh's tar leaves beside every file.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import numpy as np

from lungkit.phantom.thorax.luna16 import LEAST_MM, LEAST_READERS
from lungkit.phantom.thorax.scans import Scan

FOLDER = "Task06_Lung"
TABLES: dict[str, str] = {}
APPLE_DOUBLE = (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + b"\x00\x02" + bytes(137))


def case(scan: Scan) -> str:
    return f"lung_{scan.patient + 1:03d}" + ("" if scan.number == 0 else f"{scan.number}")


def files(scan: Scan) -> Iterator[tuple[str, bytes]]:
    """Paths below FOLDER and contents of one scan's files."""
    for folder, values in (("imagesTr", scan.hu), ("labelsTr", labels(scan))):
        yield f"{folder}/{case(scan)}.nii.gz", encode(scan, values)
        yield f"{folder}/._{case(scan)}.nii.gz", APPLE_DOUBLE


def labels(scan: Scan) -> np.ndarray:
    """uint8 [Z, Y, X]: 1 where the consensus is a nodule of enough readers."""
    found = np.zeros(scan.hu.shape, np.uint8)
    for nodule in scan.consensus:
        if nodule.num_readers >= LEAST_READERS and nodule.diameter_mm >= LEAST_MM:
            part = tuple(slice(at, at + size) for at, size in
                         zip(nodule.corner, nodule.mask.shape))
            found[part][nodule.mask] = 1
    return found


def encode(scan: Scan, values: np.ndarray) -> bytes:
    """A volume [Z, Y, X] on the scan's grid as a gzipped NIfTI file."""
    import nibabel

    steps = np.array([scan.grid.spacing_mm, scan.grid.spacing_mm, scan.grid.step_mm])
    origin = np.array(scan.grid.origin_mm) * (-1, -1, 1)  # LPS to RAS
    direction = np.array([-1, -1, 1])
    if scan.patient % 2 == 0:  # x and y rise with the index
        values = values[:, ::-1, ::-1]
        origin[:2] -= steps[:2] * (scan.grid.size - 1)
        direction = np.ones(3)
    affine = np.diag([*(steps * direction), 1])
    affine[:3, 3] = origin
    image = nibabel.Nifti1Image(np.ascontiguousarray(values.T), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 1, mtime=0)


def rows(scan: Scan) -> dict[str, list[str]]:
    return {}


def closing(scans: list[str]) -> Iterator[tuple[str, bytes]]:
    """dataset.json, with Decathlon's own spelling; scans: what `case` says of each."""
    training = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
                for name in scans]
    content = {"name": "Lung", "description": "Lung and cancer segmentation",
               "reference": "simulated", "licence": "none", "relase": "1.0",
               "tensorImageSize": "3D", "modality": {"0": "CT"},
               "labels": {"0": "background", "1": "cancer"}, "numTraining": len(training),
               "numTest": 0, "training": training, "test": []}
    yield "dataset.json", (json.dumps(content, indent=1) + "\n").encode()
    for name in ("dataset.json", "imagesTr", "labelsTr"):
        yield f"._{name}", APPLE_DOUBLE
