"""Masks with the scores that MONAI gives them, to check ours against an independent hand.

MONAI takes seconds to import, so that its figures are kept: monai_scores.json beside this file.

    pip install monai==1.6.1 && python tests/kit/data/monai_scores.py     # writes them again
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

KEPT = Path(__file__).with_suffix(".json")
TOLERANCE_MM = 2.0


def ellipsoid(shape, centre, radii_mm, spacing_mm) -> np.ndarray:
    """bool of `shape`: voxels whose centres lie within radii_mm of centre, in voxels."""
    grid = np.indices(shape)
    return sum(((axis - at) * mm / radius)**2 for axis, at, mm, radius in
               zip(grid, centre, spacing_mm, radii_mm)) <= 1


def cases() -> Iterator[tuple[str, np.ndarray, np.ndarray, tuple[float, ...]]]:
    """(name, what is said, what is true, mm along each axis), bool [Z, Y, X] or [Y, X]."""
    shape, mm = (10, 24, 26), (2.5, 0.7, 0.8)
    ball = ellipsoid(shape, (5, 12, 13), (6, 6, 6), mm)
    yield "equal", ball, ball, mm
    yield "shifted", np.roll(ball, (1, 3, -2), (0, 1, 2)), ball, mm
    yield "smaller", ellipsoid(shape, (5, 12, 13), (4, 3, 5), mm), ball, mm
    small = ellipsoid(shape, (2, 4, 4), (3, 2, 2), mm)
    yield "one of two lesions", ball, ball | small, mm
    yield "one in vain", ball | small, ball, mm
    hollow = ball & ~ellipsoid(shape, (5, 12, 13), (3, 3, 3), mm)
    yield "hollow", hollow, ball, mm
    edge = ellipsoid(shape, (0, 0, 25), (8, 6, 6), mm)
    yield "at the edge", edge, np.roll(edge, 2, 1), mm
    slab = np.zeros(shape, bool)
    slab[4, 3:20, 3:22] = True
    yield "a slab of one slice", slab, np.roll(slab, 2, 0), (3.0, 1.0, 1.0)
    far = np.zeros((2, *shape), bool)
    far[0, 1, 2, 3] = far[1, 8, 20, 21] = True
    yield "single voxels far apart", far[0], far[1], mm
    rng = np.random.default_rng(5)
    for number, (share, said_share) in enumerate(((0.5, 0.5), (0.1, 0.1), (0.02, 0.1))):
        noise = rng.random((2, *shape))
        yield f"noise {number}", noise[0] < said_share, noise[1] < share, (1.25, 0.6, 0.9)
    for number in range(3):
        centres, radii = rng.uniform(4, 7, (2, 3)) * (1, 3, 3), rng.uniform(3, 8, (2, 3))
        blobs = [ellipsoid(shape, at, radius, (1.5, 1.0, 0.5)) & (rng.random(shape) < 0.95)
                 for at, radius in zip(centres, radii)]
        yield f"blobs {number}", *blobs, (1.5, 1.0, 0.5)
    disc = ellipsoid((40, 36), (20, 18), (12, 9), (1.5, 0.75))
    yield "discs", np.roll(disc, (2, 5), (0, 1)), disc, (1.5, 0.75)
    noise = rng.random((2, 40, 36))
    yield "noise of a slice", noise[0] < 0.3, noise[1] < 0.2, (0.5, 2.0)
    yield "nothing said", ~ball & ball, ball, mm
    yield "said in vain", ball, ~ball & ball, mm
    yield "nothing at all", ~ball & ball, ~ball & ball, mm


def scores_of_monai(said: np.ndarray, true: np.ndarray, spacing_mm) -> dict[str, float | None]:
    """MONAI's Dice, surface Dice by voxels and 95 % Hausdorff distance; None: not defined."""
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    pair = [torch.from_numpy(mask)[None, None].float() for mask in (said, true)]
    found = {"dice": compute_dice(*pair),
             "surface_dice": compute_surface_dice(*pair, [TOLERANCE_MM], include_background=True,
                                                  spacing=spacing_mm),
             "hd95_mm": compute_hausdorff_distance(*pair, include_background=True, percentile=95,
                                                   spacing=spacing_mm)}
    return {name: float(value) if math.isfinite(value) else None for name, value in found.items()}


if __name__ == "__main__":
    KEPT.write_text(json.dumps({name: scores_of_monai(said, true, spacing_mm)
                                for name, said, true, spacing_mm in cases()}, indent=1) + "\n")
