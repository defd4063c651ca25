"""Datasets of tiny CT crops whose classes differ in what a test asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lungkit.data.writer import DatasetWriter
from lungkit.run.output import Output

SIDE = 32  # pixels, of 1 mm
SPLIT_OF = ("train", "train", "train", "train", "val", "test")  # of each six patients


def write_crops(path: Path, *, classes=("benign", "malignant"), num_patients: int = 12,
                radius: Callable = lambda label, rng: 5.0, noise: Callable = lambda label: 0,
                bare: Callable = lambda label, number: False, view: str = "crop", beside: int = 0,
                unmasked: Callable = lambda number: False, labels: str = "binary",
                seed: int = 0) -> Path:
    """A dataset of modality ct at `path`: a crop a class of each patient, classes balanced.

    radius(class, the patient's rng): of the disc in pixels; noise(class): standard deviation of
    its grey; bare(class, number): an image without a nodule; beside: radius of a second, brighter
    nodule in the corner; unmasked(number): an image whose mask is unknown.
    """
    rng, number = np.random.default_rng(seed), 0
    rows, columns = np.indices((SIDE, SIDE))
    options = {"view": view, "labels": labels, "seed": seed}
    with DatasetWriter(Output(path, "dataset.json", options), stage="ct_seg", channels=1,
                       classes=list(classes), image_size=SIDE,
                       targets={"diameter_mm": {"kind": "number", "values": []}}) as writer:
        for patient in range(num_patients):
            for label in classes:
                size = radius(label, np.random.default_rng([seed, patient]))
                mask = (rows - 16) ** 2 + (columns - 16) ** 2 <= size**2
                grey = np.kron(rng.uniform(0, 120, (8, 8)), np.ones((SIDE // 8,) * 2))  # no copies
                grey[mask] = 180 + rng.normal(0, 1 + noise(label), mask.sum())
                about = {"diameter_mm": f"{2 * size:.3f}", "area_mm2": f"{mask.sum():.3f}"}
                if bare(label, number):
                    mask[:], about = False, {"diameter_mm": None}
                if beside:
                    other = (rows - 6) ** 2 + (columns - 6) ** 2 <= beside**2
                    grey[other], mask = 250, mask | other
                writer.add(SPLIT_OF[patient % 6], label, number,
                           np.uint8(np.clip(grey, 0, 255))[..., None],
                           masks={} if unmasked(number) else {"nodule": mask * np.uint8(255)},
                           group=f"P{patient}", **about)
                number += 1
        writer.publish(parents=[], seed=seed, modality="ct", um_per_px=1000.0, symmetries=8,
                       intensity={"unit": "HU", "window": [-1000, 400]},
                       truth={"labels": labels})
    return path
