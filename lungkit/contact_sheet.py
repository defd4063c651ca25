"""Contact sheets: a dataset as one picture, a row of examples per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lungkit.dataset import Dataset, encode_png
from lungkit.files import write_bytes


def grid(rows: list[np.ndarray], *, scale: int = 1, gap_px: int = 4) -> np.ndarray:
    """Tile rows of uint8 [N_i, S, S, 3] images on white, enlarged `scale` times (nearest)."""
    rows = [row.repeat(scale, 1).repeat(scale, 2) for row in rows]
    side = rows[0].shape[1]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (side + gap_px) + gap_px, columns * (side + gap_px) + gap_px, 3),
                    255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = gap_px + r * (side + gap_px), gap_px + c * (side + gap_px)
            sheet[top:top + side, left:left + side] = image
    return sheet


def write_contact_sheet(dataset: Dataset, path: Path, *, split: str = "train",
                        columns: int = 12) -> None:
    """Write evenly spaced images of `split`, one row per class in label order, as a PNG."""
    rows = []
    for label in dataset.classes:
        found = dataset.select(split, label)
        picked = [found[i] for i in np.linspace(0, len(found) - 1, min(columns, len(found))).astype(int)]
        rows.append(np.stack([dataset.image(row) for row in picked]))
    scale = max(1, round(96 / dataset.image_size))
    write_bytes(path, encode_png(grid(rows, scale=scale)))
