"""Decode a user's image file: PNG, JPEG or TIFF, 8 or 16 bit, grey, colour or multi-channel.

A file is taken by its content, not by its suffix. What cannot be decoded whole is refused with
a reason (Unreadable); nothing is guessed and no missing part is filled in. Slides that are too
large to be decoded whole are read by `lungkit.formats.slides`, TIFF files by `lungkit.formats.tiff`.
"""

from __future__ import annotations

import io
import warnings

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")  # in any case
MAX_PIXELS = 200_000_000  # height x width in the header; larger is refused undecoded
MIN_SIDE_PX = 16          # ours: below this there is no texture left to classify
Z_PROJECTIONS = ("max", "mean")  # of focal planes; max is the field's convention for fluorescence
PAGES_ARE = ("channels", "planes")  # what the grey pages of a TIFF are that does not say it itself

ORIENTATION = 0x0112  # EXIF's tag; 1: upright
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF


class Unreadable(ValueError):
    """Why a file is not a usable image, as the end of the sentence "<file> ...": "is empty"."""


def decode_image(content: bytes, channel: int | str | None = None,
                 z_projection: str = "max", pages_are: str = "channels") -> np.ndarray:
    """Decode a whole image file.

    channel: of a multi-channel image its channel or page, a 0-based number or (in any case) the
        name the file gives it, or red, green, blue; None where there is one image only.
    z_projection: one of Z_PROJECTIONS, what becomes of several focal planes.
    pages_are: one of PAGES_ARE, the grey pages of a TIFF that does not say: channels or focal
        planes.
    Returns uint8 [H, W, 3] RGB, or for a grey image or a chosen channel its values as stored,
    [H, W] of uint8, uint16 or float32. Transparency is laid on white, orientation is applied,
    and colour images without colour are returned grey. Raises Unreadable.
    """
    for value, known in ((z_projection, Z_PROJECTIONS), (pages_are, PAGES_ARE)):
        if value not in known:
            raise ValueError(f"{value!r} is none of {', '.join(known)}")
    if not content:
        raise Unreadable("is empty (0 bytes)")
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        if b"IEND\xaeB`\x82" not in content:  # Pillow does not miss it
            raise Unreadable("is truncated")
        image = _decode_with_pillow(content)
    elif content[:3] == b"\xff\xd8\xff":
        image = _decode_with_pillow(content)
    elif content[:4] in TIFF_STARTS:
        from lungkit.formats.tiff import decode_tiff

        return decode_tiff(content, channel, z_projection, pages_are)
    else:
        raise Unreadable("is not a PNG, JPEG or TIFF image, whatever its name says")
    return pick_channel(image, channel)


def pixel_size_um(content: bytes) -> float | None:
    """Side of a pixel in um where a TIFF says so plausibly; None otherwise and of PNG and JPEG."""
    if content[:4] not in TIFF_STARTS:
        return None
    import tifffile

    from lungkit.formats.tiff import complaints, tiff_pixel_size_um

    try:
        with complaints(), tifffile.TiffFile(io.BytesIO(content)) as file:
            return tiff_pixel_size_um(file)
    except Exception:  # a damaged file may raise anything at all; decode_image says what is wrong
        return None


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


# ------------------------------------------------------------------ PNG and JPEG

def _decode_with_pillow(content: bytes) -> np.ndarray:
    """uint8 [H, W, 3], or [H, W] of uint8 or uint16."""
    from PIL import Image, ImageOps

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is checked below
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF"))
            check_size(image.height, image.width)
            if (quick := _decode_with_opencv(content, image)) is not None:
                return quick
            image.load()
            image = ImageOps.exif_transpose(image)
            return flatten(image)
    except Unreadable:
        raise
    except Exception as error:  # a damaged file may raise anything at all, struct.error included
        reason = "truncated" if "truncated" in str(error) else f"damaged ({error})"
        raise Unreadable(f"is {reason}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decode_with_opencv(content: bytes, image) -> np.ndarray | None:
    """uint8 [H, W, 3] of an upright colour JPEG that ends as it should; None of any other file.

    `image`: the same file opened by Pillow. The pixels are Pillow's (both have libjpeg-turbo) in
    half the time; but OpenCV fills in what is cut off, so that other files are left to Pillow.
    """
    import cv2

    if (image.format != "JPEG" or image.mode != "RGB" or not content.endswith(b"\xff\xd9")
            or image.getexif().get(ORIENTATION, 1) != 1):
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    return pixels if pixels is not None and pixels.shape[1::-1] == image.size else None


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
