#!/usr/bin/env python
"""Score the detection of nuclei on simulated tissue, whose truth is exact.

Reads   nothing: tiles are drawn, on seeds that neither the fit (below 50) nor the choice of any
        constant (below 100) has seen.
Prints  per class and side of the image: precision, recall and F1 of centroids, and ms an image.

A found centroid and a true one match within 6 px at 224 px (4.8 um; in proportion at other sides),
one to one (Hungarian assignment); counts are summed over the tiles of a class. "strict" demands
every true nucleus. "evaluable" neither demands nor counts as false those of which less than 9 um2
is visible, the detector's least nucleus: remains of overlapped and border-cut ones, which
annotators leave out as well. `--lc25000` times real images, of which nobody knows the truth.

    OMP_NUM_THREADS=1 python benchmarks/nuclei_f1.py | tee benchmarks/nuclei_f1.txt
    python benchmarks/nuclei_f1.py --lc25000 DIR --pictures docs
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from lungkit.histology.background import enhance_grey
from lungkit.nuclei.detect import FIELD_UM, MIN_AREA_UM2, detect_nuclei
from lungkit.phantom import paint
from lungkit.run import cli, faults
from lungkit.run.system_files import listed

FIRST_SEED = 1000
PICTURED = {"lung_aca": 396, "lung_n": 104, "lung_scc": 146}  # places by name; ours
REACH_UM = 6 / 224 * FIELD_UM


def match(found: np.ndarray, truth: np.ndarray, reach_px: float) -> np.ndarray:
    """Indices of true nuclei found, one to one: [M] of truth [N, 2] for found [K, 2]."""
    from scipy.optimize import linear_sum_assignment

    gap = np.hypot(*(found[:, None] - truth[None]).transpose(2, 0, 1))
    cost = np.where(gap <= reach_px, gap, 1e6)
    rows, columns = linear_sum_assignment(cost)
    return columns[cost[rows, columns] < 1e6]


def count(tile: paint.Tile, found: np.ndarray, px_per_um: float) -> np.ndarray:
    """int [2, 3]: strict and evaluable; hits, found, true."""
    area = np.bincount(tile.nuclei.ravel(), minlength=len(tile.centroids) + 1)[1:]
    large = area >= MIN_AREA_UM2 * px_per_um**2
    hit = match(found, tile.centroids, REACH_UM * px_per_um)
    on_small = int((~large[hit]).sum())
    return np.array([[len(hit), len(found), len(area)],
                     [len(hit) - on_small, len(found) - on_small, int(large.sum())]])


def fluorescence(label: str, which: dict) -> np.ndarray:
    """The DAPI channel of a tile as tumor_seg.py writes it, uint8 [S, S, 3]."""
    grey, _ = enhance_grey(paint.draw_fluorescence(label, **which)[0, 0])
    return np.repeat(grey[..., None], 3, axis=2)


def score(label: str, size: int, num_tiles: int, modality: str) -> str:
    """One line of the table."""
    counts, elapsed_sec = np.zeros((2, 3), int), []
    for seed in range(FIRST_SEED, FIRST_SEED + num_tiles):
        which = {"patient": seed % 7, "index": seed % 3, "seed": seed, "image_size": size}
        tile = paint.draw_tile(label, **which)
        image = tile.image if modality == "he" else fluorescence(label, which)
        start = time.perf_counter()
        nuclei = detect_nuclei(image, modality=modality)
        elapsed_sec.append(time.perf_counter() - start)
        counts += count(tile, nuclei.centroids, size / FIELD_UM)
    shown = "  ".join(f"{hits / found:9.3f} {hits / true:6.3f} {2 * hits / (found + true):5.3f}"
                      for hits, found, true in counts.tolist())
    return (f"{modality:12} {size:4} {label:8} {num_tiles:5} {counts[0, 2]:7}  {shown}  "
            f"{np.median(elapsed_sec) * 1e3:5.1f}")


def time_real(folder: Path, num_images: int) -> None:
    """Print the milliseconds an image of LC25000 takes."""
    from lungkit.formats.images import decode_image

    for label in paint.CLASSES:
        paths = listed(folder / "lung_image_sets" / label)
        elapsed_sec, found = [], []
        for path in paths[::max(1, len(paths) // num_images)][:num_images]:
            image = decode_image(path.read_bytes())
            start = time.perf_counter()
            found.append(len(detect_nuclei(image)))
            elapsed_sec.append(time.perf_counter() - start)
        print(f"LC25000 {label:8} {len(found)} images, median {np.median(found):.0f} nuclei, "
              f"{np.median(elapsed_sec) * 1e3:.1f} ms an image")


def picture(image: np.ndarray, zoom: int = 2) -> np.ndarray:
    """An image beside itself with the outlines of its nuclei, uint8 [zoom S, 2 zoom S, 3]."""
    import cv2

    large = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    labels = detect_nuclei(image).labels.repeat(zoom, 0).repeat(zoom, 1)
    outlined = large.copy()
    inside = labels > 0
    for axis in (0, 1):
        edge = np.diff(labels, axis=axis, append=np.take(labels, [-1], axis)) != 0
        outlined[edge & (inside | np.roll(inside, -1, axis))] = (255, 230, 0)
    return np.concatenate([large, outlined], axis=1)


def draw_pictures(folder: Path, output_dir: Path) -> None:
    """Write nuclei_<class>.jpg of the PICTURED images of LC25000."""
    from PIL import Image

    from lungkit.formats.images import decode_image

    for label, position in PICTURED.items():
        path = listed(folder / "lung_image_sets" / label)[position]
        Image.fromarray(picture(decode_image(path.read_bytes()))).save(
            output_dir / f"nuclei_{label}.jpg", quality=82)


def run(*, num_tiles: int, lc25000: Path | None, pictures: Path | None) -> None:
    """Print the table, or draw the pictures."""
    import cv2

    cv2.setNumThreads(1)
    if pictures:
        if not lc25000:
            raise faults.BadOptions("--pictures needs --lc25000: the folder with the images")
        draw_pictures(lc25000, pictures)
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one used; "
          f"seeds {FIRST_SEED}-{FIRST_SEED + num_tiles - 1}")
    print("                                              strict: P      R    F1   evaluable: P"
          "      R    F1     ms")
    print("modality     side class    tiles  nuclei")
    detect_nuclei(paint.draw_tile("lung_n", patient=0, index=0).image)  # imports
    for modality, size in (("he", 224), ("he", 64), ("he", 512), ("fluorescence", 224)):
        for label in paint.CLASSES:
            print(score(label, size, num_tiles, modality), flush=True)
    if lc25000:
        time_real(lc25000, 60)


def build_parser() -> argparse.ArgumentParser:
    """Options of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-tiles", type=cli.positive_int, default=80, metavar="N",
                        help="tiles a class (default: %(default)s)")
    parser.add_argument("--lc25000", type=Path, default=os.environ.get("LC25000"), metavar="DIR",
                        help="folder that holds lung_image_sets (default: $LC25000)")
    parser.add_argument("--pictures", type=Path, metavar="DIR",
                        help="only write nuclei_<class>.jpg of one LC25000 image a class to DIR")
    return parser


if __name__ == "__main__":
    sys.exit(cli.main(build_parser(), run, None))
