"""Do the fine structures of two images agree, once one is laid over the other?

Two chests are alike in all that a thumbnail shows, so that slices of two patients register well;
their vessels are not. One image is laid over the other by matched features, refined by the
correlation of their greys (Evangelidis and Psarakis 2008, doi 10.1109/TPAMI.2008.113); what is
finer than FINE_PX is then correlated block by block.
"""

from __future__ import annotations

import numpy as np

from lungkit.audit.registration import correlate_blocks, register
from lungkit.audit.signature import at_work, describe

FINE_PX = 2.0    # ours, at the working size: deviation of the Gaussian that is taken away
BLOCKS = 8       # ours: a side, of 20 px
ROUNDS, CLOSE = 50, 1e-4    # of the refinement, at most; when it is done


def detail_agreement(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of fine structures that three in four blocks reach: -1 to 1.

    one, other: uint8 [H, W, 3] or [H, W]. -1 where one cannot be laid over the other.
    """
    import cv2

    affine = register(describe(one), describe(other)).affine
    if affine is None:
        return -1.0
    a, b = (at_work(image).astype(np.float32) for image in (one, other))
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
    found = correlate_blocks(_fine(laid(a)), _fine(b), inside, BLOCKS)
    return float(np.percentile(found, 25)) if len(found) else -1.0


def _fine(image: np.ndarray) -> np.ndarray:
    import cv2

    return image - cv2.GaussianBlur(image, (0, 0), FINE_PX)
