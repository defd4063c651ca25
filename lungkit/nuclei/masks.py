"""Which pixels of a dataset's images are nuclei: by its masks, or found where it has none of them.

Real tissue has masks of tissue and tumour, and none of nuclei. Those that are found are by the
rules of lungkit/nuclei/detect.py: nobody outlined them, and who uses them says so by its RECIPE.

Feeds cnn_explain.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lungkit.data import mask_items
from lungkit.data.dataset import Dataset
from lungkit.data.manifest import side_um
from lungkit.data.png import three_channels
from lungkit.nuclei.detect import FIELD_UM, METHODS, detect_nuclei
from lungkit.run.faults import BadOptions, check_stop

KIND = "nuclei"


def are_found(manifest: dict) -> bool:
    """Whether the nuclei of a dataset are found in its images, for it holds no masks of them."""
    return KIND not in manifest["masks"]


def choose(manifest: dict, labels: Sequence[int], where: Path) -> mask_items.Target:
    """The target: of masks of label values any label, unless some are named.

    Raises BadOptions where the images show no nuclei, or labels are named and there are none.
    """
    if not are_found(manifest):
        is_labels = manifest["masks"][KIND] != mask_items.BINARY
        every = range(1, 256) if is_labels and not labels else labels
        return mask_items.choose(manifest["masks"], KIND, every, where)
    if manifest["modality"] == "ct":
        raise BadOptions(f"--mask {KIND}: {where} is of CT, which shows no nuclei")
    if labels:
        raise BadOptions(f"--labels is of masks of label values, and {where} has no masks of "
                         "nuclei, which are found in its images: leave it out")
    return mask_items.Target(KIND)


def find(data: Dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """As `mask_items.load_masks`: uint8 [N, S, S], 1 in a nucleus that is found, and all known."""
    detect = partial(detect_nuclei, field_um=side_um(data.manifest) or FIELD_UM,
                     modality=data.modality if data.modality in METHODS else "auto")
    rows = data.select(split)
    masks = np.zeros((len(rows), data.image_size, data.image_size), np.uint8)
    for mask, row in zip(masks, rows):
        check_stop()
        mask[:] = detect(three_channels(data.image(row))).labels > 0
    return masks, np.ones(len(rows), bool)
