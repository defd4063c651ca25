"""Copy audit: does a generated set repeat its training images? Calibrated on real-to-real.

Alike is the largest correlation of thumbnails over all orientations the dataset allows, so coarse
that blur hardly raises it. A generated image counts as a near copy when it comes closer to a
training image than half way from what training images of different groups (patients, tiles) reach,
at the 99th percentile, to identity. Judging by distances within the real data: Meehan et al. 2020,
arXiv:2004.05675; thumbnail and half way are ours, set on simulated tissue: blurred fresh tiles stay
below, blurred and re-stained copies above. A thumbnail does not see a copy that was turned a
little, cropped, shifted or changed in hue: so an image that registers with a training image
(lungkit.audit.copies) is a near copy too. Rates of both: benchmarks/leaks.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from lungkit.audit.copies import copies_among
from lungkit.audit.signature import describe
from lungkit.data.dataset import Dataset
from lungkit.data.orientations import orient
from lungkit.data.png import three_channels
from lungkit.run.faults import check_stop

THUMBNAIL_PX = 8
PERCENTILE = 99.0        # of the real-to-real likeness
LARGEST_SHARE = 0.02     # ours: above it the set carries a warning
MOST_IMAGES = 2000       # looked at, evenly spaced: the share needs no more


def thumbnails(images: Iterable[np.ndarray]) -> np.ndarray:
    """N of uint8 [S, S, channels] -> float32 [N, D], each of mean 0 and length 1."""
    import cv2

    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    small = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images])
    flat = small.reshape(len(small), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def likeness(queries: Iterable[np.ndarray], images: np.ndarray,
             apart: np.ndarray | None = None, *, symmetries: int = 8) -> np.ndarray:
    """Largest correlation of each query image with one of `images` in any orientation, float32 [N].

    apart: bool [N, M], pairs to leave out. symmetries: how many orientations are looked at.
    """
    asked = thumbnails(queries)
    best = np.full(len(asked), -1, np.float32)
    for which in range(symmetries):
        found = asked @ thumbnails(orient(images, which, symmetries, axes=(1, 2))).T
        if apart is not None:
            found[apart] = -1
        best = np.maximum(best, found.max(1))
    return best


def audit(real: Dataset, generated: Iterable[np.ndarray]) -> dict:
    """Audit images uint8 [S, S, channels] against real/train; none is kept but as a signature.

    Returns {images, share_near_copies, share_registered, likeness_median, real_likeness_median,
    threshold}: registered ones are among the near copies. Raises Stopped after a signal.
    """
    images, _ = real.load("train")
    groups = np.array([row.group or row.file_name for row in real.select("train")])
    picks = np.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).astype(int)
    apart = groups[picks, None] == groups[None]
    between = likeness((images[pick] for pick in picks), images, apart, symmetries=real.symmetries)
    threshold = (float(np.percentile(between, PERCENTILE)) + 1) / 2
    asked = []
    found = likeness(_described(generated, asked), images, symmetries=real.symmetries)
    trained = []
    deque(_described(images, trained), maxlen=0)
    registered = np.zeros(len(found), bool)
    registered[list(copies_among(asked, trained))] = True
    return {"images": len(found),
            "share_near_copies": round(float(((found > threshold) | registered).mean()), 4),
            "share_registered": round(float(registered.mean()), 4),
            "likeness_median": round(float(np.median(found)), 4),
            "real_likeness_median": round(float(np.median(between)), 4),
            "threshold": round(threshold, 4)}


def _described(images: Iterable[np.ndarray], signatures: list) -> Iterator[np.ndarray]:
    """Yield the images as they are, and add the signature of each to `signatures`."""
    for image in images:
        check_stop()
        signatures.append(describe(three_channels(image)))
        yield image


def warnings_of(name: str, audited: dict) -> list[str]:
    """The warning that an audit gives rise to, if any, for the final report."""
    if audited["share_near_copies"] <= LARGEST_SHARE:
        return []
    return [f"copies: {audited['share_near_copies']:.0%} of the images of {name} are copies of a "
            "training image, or far more alike to one than training images of different groups are "
            "to one another: the generator may have memorised them"]
