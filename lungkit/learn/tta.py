"""Test-time augmentation: an image's probabilities are the mean over its flips or turns.

Only as its dataset says that an image stays valid (lungkit.data.orientations): tissue and crops of
nodules eight ways, slices of a chest left to right at most. Averaged over orientations: Wang et al.
2018 (arXiv:1807.07356).

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from lungkit.data.orientations import ALLOWED
from lungkit.run.faults import BadOptions

NONE, FLIPS, EIGHT = "none", "flips", "eight"
HALF_TURNS = 2  # a turn by so many quarters leaves rows rows


def turns(tta: str, symmetries: int) -> tuple[int, ...]:
    """The orientations to average over, in 0..symmetries-1 of `orientations.orient`.

    tta: none, flips (rows stay rows) or eight. symmetries: of the dataset. Raises BadOptions where
    its images may not be turned so.
    """
    if tta == NONE:
        return (0,)
    if tta == EIGHT and symmetries != 8:
        raise BadOptions("--tta eight: the images are valid in "
                         f"{'one orientation' if symmetries == 1 else 'two orientations'} only: "
                         + ("leave it out" if symmetries == 1 else "give --tta flips"))
    if symmetries == 1:
        raise BadOptions("--tta flips: the images are valid in one orientation only: leave it out")
    return tuple(which for which, number in enumerate(ALLOWED[symmetries])
                 if tta == EIGHT or number % HALF_TURNS == 0)
