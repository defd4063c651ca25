"""Do the fine structures of two images agree, once one is laid over the other?

Two chests are alike in all that a thumbnail shows, so that slices of two patients register well;
their vessels are not. One image is laid over the other by matched features, refined by the
correlation of their greys (Evangelidis and Psarakis 2008, doi 10.1109/TPAMI.2008.113); what is
finer than FINE_PX is then correlated block by block.
"""

from __future__ import annotations

import numpy as np

from lungkit.audit.registration import register
from lungkit.audit.signature import Signature, describe

FINE_PX = 2.0    # ours, at the working size: deviation of the Gaussian that is taken away
BLOCKS = 8       # ours: a side, of 20 px
FLAT = 4.0       # ours: grey levels; blocks of less deviation show noise
ROUNDS, CLOSE = 50, 1e-4    # of the refinement, at most; when it is done


def detail_agreement(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of fine structures that three in four blocks reach: -1 to 1.

    one, other: uint8 [H, W, 3] or [H, W]. -1 where one cannot be laid over the other.
    """
    import cv2

    signatures = describe(one), describe(other)
    affine = register(*signatures).affine
    if affine is None:
        return -1.0
    a, b = (_grey(*each) for each in zip((one, other), signatures))
    back = cv2.invertAffineTransform(affine).astype(np.float32)
    try:
        _, back = cv2.findTransformECC(
            b, a, back, cv2.MOTION_AFFINE,
            (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, ROUNDS, CLOSE), None, 5)
    except cv2.error:  # it found nothing better
        back = cv2.invertAffineTransform(affine).astype(np.float32)

    def laid(values):
        return cv2.warpAffine(values, back, b.shape[::-1], borderMode=cv2.BORDER_REFLECT,
                              flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)

    inside = cv2.warpAffine(np.ones_like(a), back, b.shape[::-1],
                            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP) > 0.99
    found = _correlations(_fine(laid(a)), _fine(b), inside)
    return float(np.percentile(found, 25)) if found else -1.0


def _grey(image: np.ndarray, signature: Signature) -> np.ndarray:
    """float32 [h, w] at the working size of its signature."""
    import cv2

    grey = image if image.ndim == 2 else cv2.cvtColor(
        np.ascontiguousarray(image[..., :3]), cv2.COLOR_RGB2GRAY)
    smaller = signature.size[0] < grey.shape[1]
    return cv2.resize(grey, signature.size, interpolation=cv2.INTER_AREA if smaller
                      else cv2.INTER_CUBIC).astype(np.float32)


def _fine(image: np.ndarray) -> np.ndarray:
    import cv2

    return image - cv2.GaussianBlur(image, (0, 0), FINE_PX)


def _correlations(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> list[float]:
    """Of every block, of which half lies inside and that is not flat in both."""
    found = []
    rows, columns = (np.linspace(0, side, BLOCKS + 1).astype(int) for side in a.shape)
    for top, bottom in zip(rows, rows[1:]):
        for left, right in zip(columns, columns[1:]):
            block = np.s_[top:bottom, left:right]
            if inside[block].mean() < 0.5:
                continue
            x, y = (each[block][inside[block]] for each in (a, b))
            if max(x.std(), y.std()) >= FLAT:
                x, y = x - x.mean(), y - y.mean()
                found.append(float((x * y).sum() / max(np.sqrt((x * x).sum() * (y * y).sum()),
                                                       1e-6)))
    return found
