"""What every reader shares: what cannot be read, sizes, channels by number or name, alpha, bits.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_PIXELS = 200_000_000  # height x width in the header; larger is refused undecoded
MIN_SIDE_PX = 16          # ours: below this there is no texture left to classify
DARK_BITS = 14            # ours: 16-bit colour that needs no more is a quarter of white at the most
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2  # TIFF 6.0, ExtraSamples; 1: alpha is multiplied in


class Unreadable(ValueError):
    """Why a file is not a usable image, as the end of the sentence "<file> ...": "is empty"."""


def check_size(height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE_PX:
        raise Unreadable(f"is {width} x {height} pixels, less than {MIN_SIDE_PX} a side")
    if height * width > MAX_PIXELS:
        raise Unreadable(f"claims {width} x {height} pixels, more than the "
                         f"{MAX_PIXELS // 10**6} megapixels allowed: cut it into tiles first")


def pick_channel(image: np.ndarray, channel: int | str | None) -> np.ndarray:
    """The chosen channel of uint8 [H, W, 3] or of a grey image; without a choice the image."""
    names = ["red", "green", "blue"] if image.ndim == 3 else None
    chosen = find_channel(channel, image.shape[2] if image.ndim == 3 else 1, names)
    if image.ndim == 2:
        return image
    if chosen is not None:
        return np.ascontiguousarray(image[..., chosen])
    for some in (image[::16, ::16], image):  # of most images a few pixels tell that they are colour
        red, green, blue = (some[..., i] for i in range(3))
        if not (np.array_equal(red, green) and np.array_equal(red, blue)):
            return np.ascontiguousarray(image)
    return np.ascontiguousarray(red)


def find_channel(channel: int | str | None, count: int, names: list[str] | None) -> int | None:
    """The 0-based number of a channel given by number or name. A name goes before a number."""
    if isinstance(channel, str):
        wanted = channel.strip().casefold()
        found = [i for i, name in enumerate(names or ()) if name.strip().casefold() == wanted]
        if len(found) > 1:
            raise Unreadable(f"has {len(found)} channels named {channel!r}: choose by number "
                             f"({channel_words(count, names)})")
        if not found and not (wanted.isascii() and wanted.isdigit()):
            raise Unreadable(f"has no channel {channel!r}: it has {channel_words(count, names)}")
        channel = found[0] if found else int(wanted)
    if channel is not None and not 0 <= channel < count:
        raise Unreadable(f"has no channel {channel}: it has {channel_words(count, names)}")
    return channel


def channel_words(count: int, names: list[str] | None = None) -> str:
    if names:
        return ", ".join(f"{i} ({name})" for i, name in enumerate(names))
    return "channel 0 only" if count == 1 else f"channels 0 to {count - 1}"


def flatten(image) -> np.ndarray:
    """A Pillow image of any mode as grey or RGB, transparency on white."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow reads some as 32-bit
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return np.asarray(image.convert("L"))
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def on_white(rgba: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    """Lay uint8 [H, W, 4] on white: uint8 [H, W, 3]. premultiplied: alpha is in its colours."""
    alpha = rgba[..., 3:].astype(np.uint16)
    if premultiplied:
        return np.minimum(rgba[..., :3] + (255 - alpha), 255).astype(np.uint8)
    return (255 - (alpha * (255 - rgba[..., :3].astype(np.uint16)) + 127) // 255).astype(np.uint8)


def without_extras(pixels: np.ndarray, extras: Sequence[int]) -> np.ndarray:
    """uint8 [H, W, 3] of colour and further samples, [H, W, 3 + n] of uint8.

    extras: what TIFF's ExtraSamples says of each: alpha is laid on white; what is no alpha, such as
    infra-red, is left out. Raises Unreadable of a sample that nothing says what it is.
    """
    if not extras and pixels[..., 3:].min() == 255:
        return np.ascontiguousarray(pixels[..., :3])  # whatever they are, they take nothing away
    if len(extras) != pixels.shape[2] - 3:
        raise Unreadable(f"holds {pixels.shape[2]} samples a pixel and does not say what those "
                         "after red, green and blue are (ExtraSamples): save it as RGB")
    odd = [kind for kind in extras if kind not in (UNSPECIFIED, ASSOCIATED, UNASSOCIATED)]
    alphas = [i for i, kind in enumerate(extras) if kind != UNSPECIFIED]
    if odd or len(alphas) > 1:
        raise Unreadable(f"holds samples of the kinds {', '.join(str(int(e)) for e in extras)} "
                         "(ExtraSamples) after red, green and blue; at most one may be alpha, 1 or "
                         "2, the others are 0: save it as RGB")
    if not alphas:
        return np.ascontiguousarray(pixels[..., :3])
    return on_white(pixels[..., [0, 1, 2, 3 + alphas[0]]], extras[alphas[0]] == ASSOCIATED)


def to_8_bits(colour: np.ndarray, said: int | None, bits: int | None) -> np.ndarray:
    """uint16 [H, W, 3 + n] as uint8, by the bits of its values that are in use.

    said: bits, as the file has it, unless its values contradict it. bits: as the user has it; None:
    16, unless the picture would be so dark that a camera of fewer bits is likelier (Unreadable).
    Samples after the first three that need more bits than these have 16.
    """
    most = int(colour[..., :3].max())
    if said and not most >> said:
        bits = said
    elif bits and most >> bits:
        raise Unreadable(f"holds values up to {most}, more than {bits} bits: change --source-bits")
    elif not bits and 0 < most < 1 << DARK_BITS:
        raise Unreadable(f"holds 16-bit colour of values up to {most} only, {most.bit_length()} "
                         "bits: say how many are in use with --source-bits (12 of many cameras, 16 "
                         "if it is as dark as that)")
    tops = np.full(colour.shape[2], (1 << (bits or 16)) - 1, np.uint32)
    tops[3:][colour[..., 3:].max((0, 1)) > tops[3:]] = 65535
    return ((colour.astype(np.uint32) * 255 + tops // 2) // tops).astype(np.uint8)
