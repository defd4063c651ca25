"""Whether one image maps onto another: matched features, an affine map, correlated thumbnails.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lungkit.audit.signature import MIRROR, THUMB_PX, Signature, unpack

LIKENESS = 0.80         # ours: cosine of two descriptors that match
NEAR_PX = 15.0          # at WORK_PX: a match agrees with another's similarity; stretch needs room
NEAR_GROWTH = 0.7       # the same of their logarithms of scale: a factor 2
NEAR_COSINE = 0.8       # and of their angles: 37 degrees
TOLERANCES_PX = (10.0, 6.0, 4.0, 4.0)  # the same, of affine maps refined in turn
STRETCH = (0.31, 3.2)   # least and most of an affine map along any axis
ANISOTROPY = 2.0        # most: 4:3 originals made square are 1.33
LEAST_INLIERS = 8       # ours: 2,000 unrelated pairs of one class had 7 at most
LEAST_AGREEMENT = 0.7   # ours: 99.8 % of LC25000's copies have 0.86, strangers with one mark 0.64
BLOCKS = 4              # ours: a side; of 56 px in an image of 224
FLAT = 4.0              # ours: grey levels; blocks of less contrast (background) say nothing
LEAST_OVERLAP = 0.4     # ours: copies on LC25000 share at least 0.65, its neighbours often 0.1-0.3


@dataclass(frozen=True)
class Registration:
    """How well one image maps onto another."""

    inliers: int       # features that agree, in different places
    agreement: float   # correlation of the thumbnails where they overlap: -1 to 1, the least of
    #                    the whole's and the median block's, which a mark on both does not raise
    overlap: float     # share of the image that shows less tissue which the other shows too
    # [2, 3], from one's pixels to the other's, both at their working sizes
    affine: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def are_copies(self) -> bool:
        return (self.inliers >= LEAST_INLIERS and self.agreement >= LEAST_AGREEMENT
                and self.overlap >= LEAST_OVERLAP)


UNRELATED = Registration(0, 0.0, 0.0)


def register(one: Signature, other: Signature) -> Registration:
    """Map one image, or its mirror image, onto another and measure how well they agree."""
    if min(len(one.codes), len(other.codes)) < LEAST_INLIERS:
        return UNRELATED
    a, b = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6)
            for part in (unpack(one.codes), unpack(other.codes)))
    places = one.places.astype(np.float64), other.places.astype(np.float64)
    fits = []
    for mirrored in (False, True):
        likeness = (a[:, MIRROR] if mirrored else a) @ b.T
        best, row = likeness.argmax(1), np.arange(len(a))
        rows = np.flatnonzero((likeness.argmax(0)[best] == row) & (likeness[row, best] > LIKENESS))
        fits.append(_fit(places[0][rows], places[1][best[rows]], mirrored))
    inliers, affine = max(fits, key=lambda fit: fit[0])
    if inliers < LEAST_INLIERS:
        return Registration(inliers, 0.0, 0.0)
    return Registration(inliers, *_compare(one, other, affine), affine)


def _fit(p: np.ndarray, q: np.ndarray, mirrored: bool) -> tuple[int, np.ndarray | None]:
    """Affine map [2, 3] of most of the places p [M, 4] onto q, and how many of them agree."""
    if len(p) < LEAST_INLIERS:
        return 0, None
    sign = -1 if mirrored else 1
    start, end = p[:, 0] + sign * 1j * p[:, 1], q[:, 0] + 1j * q[:, 1]
    turn = np.radians(q[:, 3] - sign * p[:, 3])
    spin = q[:, 2] / p[:, 2] * np.exp(1j * turn)  # the similarity that each match proposes
    error = np.multiply.outer(spin, start) - end + (end - spin * start)[:, None]
    growth, unit = np.log(q[:, 2] / p[:, 2]), spin / np.abs(spin)
    near = ((error.real ** 2 + error.imag ** 2 < NEAR_PX ** 2)
            & (np.abs(growth - growth[:, None]) < NEAR_GROWTH)
            & (np.multiply.outer(unit, unit.conj()).real > NEAR_COSINE))
    support = near.sum(1)
    inside = near[support.argmax()]
    source, target = np.c_[p[:, :2], np.ones(len(p))], q[:, :2]
    for tolerance in TOLERANCES_PX:
        if inside.sum() < LEAST_INLIERS:
            return int(inside.sum()), None
        x = source[inside]
        try:
            affine = np.linalg.solve(x.T @ x, x.T @ target[inside])
        except np.linalg.LinAlgError:  # all in one line
            return 0, None
        inside = ((source @ affine - target) ** 2).sum(1) < tolerance ** 2
    most, least = np.linalg.svd(affine[:2], compute_uv=False)
    if (least < STRETCH[0] or most > STRETCH[1] or most > ANISOTROPY * least
            or np.linalg.det(affine[:2]) * sign < 0):
        return 0, None
    distinct = [len({*map(tuple, np.round(side[inside, :2] / 2).tolist())}) for side in (p, q)]
    return min(distinct), affine.T


def _compare(one: Signature, other: Signature, affine: np.ndarray) -> tuple[float, float]:
    """Agreement and overlap of one, mapped by affine [2, 3], with the other."""
    import cv2

    step_one, step_other = np.array(one.size) / THUMB_PX, np.array(other.size) / THUMB_PX
    warp = np.empty((2, 3))  # of thumbnails; their pixel centres are at (t + 0.5) step - 0.5
    warp[:, :2] = affine[:, :2] * step_one / step_other[:, None]
    origin = affine[:, :2] @ (step_one / 2 - 0.5) + affine[:, 2]
    warp[:, 2] = (origin + 0.5) / step_other - 0.5
    shape = (THUMB_PX, THUMB_PX)
    mask = cv2.warpAffine(np.full(shape, 255, np.uint8), warp, shape) == 255
    overlap = min(1.0, float(mask.mean()) / min(1.0, abs(float(np.linalg.det(warp[:, :2])))))
    if not mask.any():
        return 0.0, 0.0
    a = cv2.warpAffine(one.thumb, warp, shape).astype(np.float64)
    b = other.thumb.astype(np.float64)
    whole = _correlate(a[mask][None], b[mask][None], np.ones((1, int(mask.sum()))))[0]
    blocks = correlate_blocks(a, b, mask, BLOCKS)
    return min(float(whole), float(np.median(blocks)) if len(blocks) else -1.0), overlap


def correlate_blocks(a: np.ndarray, b: np.ndarray, mask: np.ndarray, blocks: int) -> np.ndarray:
    """Correlations of a and b, [H, W], where the mask is, in each of `blocks` x `blocks` parts.

    What is left over at the right and below is not looked at. Of blocks that are no blank.
    """
    height, width = (side // blocks for side in a.shape)
    return _correlate(*(values[:blocks * height, :blocks * width].astype(np.float64)
                        .reshape(blocks, height, blocks, width).swapaxes(1, 2)
                        .reshape(blocks * blocks, -1) for values in (a, b, mask)))


def _correlate(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Correlations of the rows of a and b, [N, P], where the mask is 1, of rows that are no blank.
    """
    count = mask.sum(1, keepdims=True)
    a, b = ((values - (values * mask).sum(1, keepdims=True) / np.maximum(count, 1)) * mask
            for values in (a, b))
    variance = (a * a).sum(1), (b * b).sum(1)
    worth = ((count[:, 0] >= mask.shape[1] / 2)
             & (np.maximum(*variance) > FLAT ** 2 * count[:, 0]))
    product = (a * b).sum(1)[worth]
    return product / np.sqrt(np.maximum((variance[0] * variance[1])[worth], 1e-6))


def register_pair(item: tuple) -> Registration:
    return register(*item)
