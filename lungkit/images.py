"""Decode a user's image file: PNG, JPEG or TIFF, 8 or 16 bit, grey, colour or multi-channel.

A file is taken by its content, not by its suffix. What cannot be decoded whole is refused with
a reason (Unreadable); nothing is guessed and no missing part is filled in.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")  # in any case
MAX_PIXELS = 200_000_000  # height x width in the header; larger is refused undecoded
MIN_SIDE_PX = 16          # ours: below this there is no texture left to classify

_GREY, _RGB = (0, 1), 2  # TIFF photometric: white is zero, black is zero; RGB
# what tifffile merely logs: pages are missing, or the description of the channels (tag 270) is
_FATAL = ("page offset", "corrupt", "TiffTag 270 ")
# array operations that undo TIFF/EXIF orientation 2..8
_UPRIGHT = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
            5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
            7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, 1)}


class Unreadable(ValueError):
    """Why a file is not a usable image, as the end of the sentence "<file> ...": "is empty"."""


def decode_image(content: bytes, channel: int | None = None) -> np.ndarray:
    """Decode a whole image file.

    channel: 0-based channel or page of a multi-channel image; None where there is one image only.
    Returns uint8 [H, W, 3] RGB, or for a grey image or a chosen channel its values as stored,
    [H, W] of uint8, uint16 or float32. Transparency is laid on white, orientation is applied,
    and colour images without colour are returned grey. Raises Unreadable.
    """
    if not content:
        raise Unreadable("is empty (0 bytes)")
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        if b"IEND\xaeB`\x82" not in content:  # Pillow does not miss it
            raise Unreadable("is truncated")
        image = _decode_with_pillow(content)
    elif content[:3] == b"\xff\xd8\xff":
        image = _decode_with_pillow(content)
    elif content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _decode_tiff(content, channel)
    else:
        raise Unreadable("is not a PNG, JPEG or TIFF image, whatever its name says")
    return _pick_channel(image, channel)


def _check_size(height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE_PX:
        raise Unreadable(f"is {width} x {height} pixels, less than {MIN_SIDE_PX} a side")
    if height * width > MAX_PIXELS:
        raise Unreadable(f"claims {width} x {height} pixels, more than the "
                         f"{MAX_PIXELS // 10**6} megapixels allowed: cut it into tiles first")


def _pick_channel(image: np.ndarray, channel: int | None) -> np.ndarray:
    """The chosen channel of uint8 [H, W, 3] or of a grey image; without a choice the image."""
    count = image.shape[2] if image.ndim == 3 else 1
    if channel is not None and channel >= count:
        raise Unreadable(f"has no channel {channel}: it has {_channel_words(count)}")
    if image.ndim == 2:
        return image
    if channel is not None:
        return np.ascontiguousarray(image[..., channel])
    red, green, blue = (image[..., i] for i in range(3))
    grey = np.array_equal(red, green) and np.array_equal(red, blue)
    return np.ascontiguousarray(red if grey else image)


def _channel_words(count: int, names: list[str] | None = None) -> str:
    if names and len(names) == count:
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
            _check_size(image.height, image.width)
            image.load()
            image = ImageOps.exif_transpose(image)
            return _flatten(image)
    except Unreadable:
        raise
    except Exception as error:  # a damaged file may raise anything at all, struct.error included
        reason = "truncated" if "truncated" in str(error) else f"damaged ({error})"
        raise Unreadable(f"is {reason}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _flatten(image) -> np.ndarray:
    """A Pillow image of any mode as grey or RGB, transparency on white."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow reads some as 32-bit
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return np.asarray(image.convert("L"))
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _on_white(rgba: np.ndarray) -> np.ndarray:
    """Lay uint8 [H, W, 4] on white: uint8 [H, W, 3]."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return (255 - (alpha * (255 - rgba[..., :3].astype(np.uint16)) + 127) // 255).astype(np.uint8)


# ------------------------------------------------------------------ TIFF

def _decode_tiff(content: bytes, channel: int | None) -> np.ndarray:
    import tifffile

    try:
        with _complaints() as complaints, tifffile.TiffFile(io.BytesIO(content)) as file:
            page, series = file.pages[0], file.series[0]  # further series: previews, pyramid levels
            pages = series.pages[:]
            len(file.pages)  # walks the chain of directories to its end
            if any(fatal in said for said in complaints for fatal in _FATAL):
                raise Unreadable("is truncated")
            _check_size(page.imagelength, page.imagewidth)
            for one in pages:
                ends = [o + n for o, n in zip(one.dataoffsets, one.databytecounts)] if one else [0]
                if not ends or max(ends) > len(content):
                    raise Unreadable("is truncated")
            axes = series.axes
            orientation = page.tags.get("Orientation")
            photometric = int(page.photometric)
            if photometric == _RGB and "S" in axes and len(pages) == 1:
                image = _tiff_colour(content, series)
            elif photometric not in (*_GREY, _RGB):  # palette, CMYK, YCbCr: Pillow knows them
                image = _tiff_other(content)
            else:
                return _upright(_tiff_channel(content, file, channel), orientation)
    except Unreadable:
        raise
    except Exception as error:  # a damaged file may raise anything at all
        raise Unreadable(f"is truncated or damaged ({error})") from None
    return _upright(_pick_channel(image, channel), orientation)


@contextlib.contextmanager
def _complaints():
    """Collect what tifffile logs: of a chain of pages that ends too early it only complains."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("tifffile")
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _upright(image: np.ndarray, tag) -> np.ndarray:
    turn = _UPRIGHT.get(int(tag.value) if tag else 1)
    return np.ascontiguousarray(turn(image)) if turn else image


def _tiff_colour(content: bytes, series) -> np.ndarray:
    """uint8 [H, W, 3] of an RGB or RGBA TIFF."""
    try:
        image = series.asarray()
        if series.axes.index("S") == 0:
            image = np.moveaxis(image, 0, -1)
    except ValueError:  # a compression tifffile cannot undo alone (LZW): libtiff inside OpenCV can
        image = _libtiff(content)[0][..., [2, 1, 0, 3][:series.shape[series.axes.index("S")]]]
    if image.dtype == np.uint16:
        image = ((image.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if image.dtype != np.uint8 or image.shape[2] not in (3, 4):
        raise Unreadable(f"holds colour as {image.shape[2]} x {image.dtype}; "
                         "save it as 8 or 16-bit RGB")
    return _on_white(image) if image.shape[2] == 4 else image


def _tiff_other(content: bytes) -> np.ndarray:
    from PIL import Image

    image = Image.open(io.BytesIO(content), formats=("TIFF",))
    image.load()
    return _flatten(image)


def _tiff_channel(content: bytes, file, channel: int | None) -> np.ndarray:
    """[H, W] of uint8, uint16 or float32: the grey image, or its chosen channel or page."""
    series, page = file.series[0], file.pages[0]
    stack = [(axis, length) for axis, length in zip(series.axes, series.shape)
             if axis not in "YX" and length > 1]
    if len(stack) > 1:
        sizes = " x ".join(f"{length} {axis}" for axis, length in stack)
        raise Unreadable(f"is a stack of {sizes} planes; export one plane or one projection "
                         "per channel")
    count = stack[0][1] if stack else 1
    names = re.findall(r'<Channel\b[^>]*?\bName="([^"]*)"', file.ome_metadata or "")
    if channel is None and count > 1:
        raise Unreadable(f"holds {count} channels: choose one with --channel "
                         f"({_channel_words(count, names)})")
    if channel is not None and channel >= count:
        raise Unreadable(f"has no channel {channel}: it has {_channel_words(count, names)}")
    try:
        image = series.asarray()
        if stack:
            image = np.take(image, channel, axis=series.axes.index(stack[0][0]))
    except ValueError:  # as in _tiff_colour
        planes = _libtiff(content)
        image = planes[channel or 0] if len(planes) > 1 else planes[0]
        if image.ndim == 3:
            image = image[..., channel or 0]
    image = np.squeeze(image)
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    if image.dtype.kind == "f":
        image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise Unreadable("holds NaN or infinite values")
    elif image.dtype not in (np.uint8, np.uint16):
        raise Unreadable(f"holds {image.dtype} values; save it as 8 or 16 bit")
    if int(page.photometric) == 0:  # white is zero
        top = image.max() if image.dtype.kind == "f" else np.iinfo(image.dtype).max
        image = top - image
    return image


def _libtiff(content: bytes) -> list[np.ndarray]:
    """Every page as OpenCV decodes it: colour is BGR or BGRA."""
    import cv2

    done, planes = cv2.imdecodemulti(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if not done or not planes:
        raise Unreadable("is damaged, or compressed in a way that is not supported: "
                         "save it uncompressed or with deflate")
    return list(planes)
