"""Contact sheets: a dataset as one picture, a row of examples per class.

Reads   DATASET, any dataset of a run.
Writes  OUTPUT, a PNG: evenly spaced images of one split, one row per class in label order.

Running the same command again writes the same picture.
Exit statuses: 0 complete, 1 bad data or failed run, 2 bad options.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from lungkit.data.dataset import SPLITS, Dataset, open_dataset
from lungkit.data.png import encode_png
from lungkit.run import cli, faults
from lungkit.run.files import write_bytes


def grid(rows: list[np.ndarray], *, scale: int = 1, gap_px: int = 4) -> np.ndarray:
    """Tile rows of images on white, enlarged `scale` times (nearest), as uint8 [H, W, 3].

    rows: uint8 [N_i, S, S, 3], or of grey images [N_i, S, S, 1] or [N_i, S, S].
    """
    rows = [row.reshape(*row.shape[:3], -1).repeat(scale, 1).repeat(scale, 2) for row in rows]
    side = rows[0].shape[1]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (side + gap_px) + gap_px, columns * (side + gap_px) + gap_px, 3),
                    255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            top, left = gap_px + r * (side + gap_px), gap_px + c * (side + gap_px)
            sheet[top:top + side, left:left + side] = image
    return sheet


def labelled_grid(rows: dict[str, list[np.ndarray]], *, margin_px: int = 230) -> np.ndarray:
    """`grid` of rows of uint8 [S, S, 3] images with the rows' names in the margin to the left."""
    import cv2

    sheet = grid([np.stack(images) for images in rows.values()])
    margin = np.full((len(sheet), margin_px, 3), 255, np.uint8)
    height = len(sheet) / len(rows)
    for number, name in enumerate(rows):
        at = (8, round((number + 0.5) * height))
        cv2.putText(margin, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([margin, sheet], axis=1)


def write_contact_sheet(dataset: Dataset, path: Path, *, split: str = "train",
                        columns: int = 12) -> None:
    """Write evenly spaced images of `split`, one row per class in label order, as a PNG."""
    rows = []
    for label in dataset.classes:
        found = dataset.select(split, label)
        picked = np.linspace(0, len(found) - 1, min(columns, len(found))).astype(int)
        rows.append(np.stack([dataset.image(found[i]) for i in picked]))
    scale = max(1, round(96 / dataset.image_size))
    write_bytes(path, encode_png(grid(rows, scale=scale)))


def run(*, dataset: Path, output: Path, split: str, columns: int) -> None:
    if output.suffix.lower() != ".png":
        raise faults.BadOptions(f"--output {output}: expected a name that ends in .png")
    write_contact_sheet(open_dataset(dataset), output, split=split, columns=columns)
    print(output)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("python -m lungkit.compare.contact_sheet", __doc__)
    parser.add_argument("--dataset", type=cli.directory, required=True, metavar="DIR",
                        help="the dataset to show")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG",
                        help="the picture to write")
    parser.add_argument("--split", choices=SPLITS, default="train", help="split to show")
    parser.add_argument("--columns", type=cli.positive_int, default=12, metavar="INT",
                        help="images per class")
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
