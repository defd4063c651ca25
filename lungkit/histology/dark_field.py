"""Fluorescence saved as colour: told from stained tissue on a bright ground, its channel chosen.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from lungkit.formats.channels import Unreadable, channel_words, find_channel
from lungkit.histology.background import has_bright_ground

# Of the brightest channel: a quarter of a fluorescence picture is nearly black and half of it
# darker than its signal, however it was exposed. Ours: LC25000's quartile is at 0.69 of the highest
# value and above, at any exposure; simulated DAPI and a scanned one are at 0.05 and below.
DARK_QUARTER, DARK_HALF = 0.25, 0.5
TOP_PERCENT = 99.8
LIT = 0.1             # ours: a channel with less of the strongest one's signal is cross-talk
ONE_STAIN = 0.95      # ours: correlation above which two channels show one stain in a mixed colour
NAMES = ["red", "green", "blue"]


def is_dark_field(image) -> bool:
    """Whether uint8 [H, W, 3] shows light on a dark ground, and no bright ground anywhere."""
    import numpy as np

    brightest = image[::4, ::4].max(2)  # a sixteenth of an overview is enough
    quarter, half, top = np.percentile(brightest, [25, 50, TOP_PERCENT])
    return bool(quarter < DARK_QUARTER * top and half < DARK_HALF * top
                and not has_bright_ground(image))


def choose_channel(image, channel: int | str | None) -> int:
    """The channel 0..2 of uint8 [H, W, 3] fluorescence that is asked for, or the one that is lit.

    Raises Unreadable where several show different things and none is asked for.
    """
    import numpy as np

    asked = find_channel(channel, 3, NAMES)
    if asked is not None:
        return asked
    pixels = image[::2, ::2].reshape(-1, 3).astype(np.float32)
    signal = np.subtract(*np.percentile(pixels, [TOP_PERCENT, 50], axis=0))
    strongest = int(signal.argmax())
    lit = [i for i in range(3) if signal[i] > 0 and signal[i] >= LIT * signal[strongest]]
    if any(np.corrcoef(pixels[:, i], pixels[:, strongest])[0, 1] < ONE_STAIN for i in lit):
        raise Unreadable("shows fluorescence in several colours: choose one with --channel, "
                         f"{channel_words(3, NAMES)}")
    return strongest
