"""Fluorescence saved as colour: told from stained tissue on a bright ground, its channel chosen.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from lungkit.formats.channels import Unreadable, channel_words, find_channel
from lungkit.histology.background import has_bright_ground

# Of the brightest channel: half of a fluorescence picture is darker than a quarter of its signal,
# however it was exposed. Ours: of LC25000 even the darkest quarter is above 0.69 of the signal, at
# any exposure; half of a scanned DAPI is below 0.06.
DARK_HALF = 0.25
TOP_PERCENT = 99.8
LIT = 0.1             # ours: a channel with less of the strongest one's signal is cross-talk
ONE_STAIN = 0.95      # ours: correlation above which two channels show one stain in a mixed colour
NAMES = ["red", "green", "blue"]


def is_dark_field(image) -> bool:
    """Whether uint8 [H, W, 3] shows light on a dark ground, and no bright ground anywhere."""
    import numpy as np

    brightest = image[::4, ::4].max(2)  # a sixteenth of an overview is enough
    half, top = np.percentile(brightest, [50, TOP_PERCENT])
    return bool(half < DARK_HALF * top and not has_bright_ground(image))


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
