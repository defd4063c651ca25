"""Decode a user's image file: PNG, JPEG or TIFF, 8 or 16 bit, grey, colour or multi-channel.

A file is taken by its content, not by its suffix. What cannot be decoded whole is refused with
a reason (Unreadable); nothing is guessed and no missing part is filled in. Slides that are too
large to be decoded whole are read by `lungkit.formats.slides`, TIFF by `lungkit.formats.tiff`.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import io
import warnings

import numpy as np

from lungkit.formats.channels import Unreadable, check_size, flatten, pick_channel, to_8_bits
from lungkit.formats.jpeg import check_jpeg, decode_rgb

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")  # in any case
Z_PROJECTIONS = ("max", "mean")  # of focal planes; max is the field's convention for fluorescence
PAGES_ARE = ("channels", "planes")  # what the grey pages of a TIFF are that does not say it itself

ORIENTATION = 0x0112  # EXIF's tag; 1: upright
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF


def decode_image(content: bytes, channel: int | str | None = None,
                 z_projection: str = "max", pages_are: str = "channels",
                 source_bits: int | None = None) -> np.ndarray:
    """Decode a whole image file.

    channel: of a multi-channel image its channel or page, a 0-based number or (in any case) the
        name the file gives it, or red, green, blue; None where there is one image only.
    z_projection: one of Z_PROJECTIONS, what becomes of several focal planes.
    pages_are: one of PAGES_ARE, the grey pages of a TIFF that does not say: channels or focal
        planes.
    source_bits: in use in 16-bit colour that does not say; None: 16, if it is not too dark for it.
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
        image = _decode_with_pillow(content, source_bits)
    elif content[:3] == b"\xff\xd8\xff":
        image = _decode_with_pillow(content, source_bits)
    elif content[:4] in TIFF_STARTS:
        from lungkit.formats.tiff import decode_tiff

        return decode_tiff(content, channel, z_projection, pages_are, source_bits)
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


# ------------------------------------------------------------------ PNG and JPEG

def _decode_with_pillow(content: bytes, source_bits: int | None) -> np.ndarray:
    """uint8 [H, W, 3], or [H, W] of uint8 or uint16."""
    from PIL import Image, ImageOps

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is checked below
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "TIFF"))
            check_size(image.height, image.width)
            if image.format in ("JPEG", "MPO"):  # the latter has a second picture behind its end
                upright = image.mode == "RGB" and image.getexif().get(ORIENTATION, 1) == 1
                if upright and (pixels := decode_rgb(content)) is not None:
                    return pixels
                check_jpeg(content)
            image.load()
            if image.format == "PNG" and content[24] == 16 and image.mode in ("RGB", "RGBA", "LA"):
                image = _deep_png(content, image, source_bits)
            image = ImageOps.exif_transpose(image)
            return flatten(image)
    except Unreadable:
        raise
    except Exception as error:  # a damaged file may raise anything at all, struct.error included
        reason = "truncated" if "truncated" in str(error) else f"damaged ({error})"
        raise Unreadable(f"is {reason}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _deep_png(content: bytes, image, source_bits: int | None):
    """A Pillow image of a PNG of 16-bit colour, of which Pillow drops the lower 8 bits."""
    import cv2
    from PIL import Image

    if "transparency" in image.info:  # one colour, which the upper bits tell as well
        return image
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    shallow = to_8_bits(pixels[..., [2, 1, 0, 3][:pixels.shape[2]]], None, source_bits)
    deep = Image.fromarray(shallow)
    deep.info["exif"] = image.getexif().tobytes()
    return deep
