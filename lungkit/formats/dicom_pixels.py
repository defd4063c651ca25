"""Pixels of a CT series of DICOM files as HU, by pydicom: a frame at a time, by its own slope.

pydicom's own rescaling knows only what the top of a header says, not the groups of a frame.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lungkit.formats.dicom import Series, Slice, headers
from lungkit.formats.volumes import Geometry, Turn, Volume, check_hu, to_hu
from lungkit.run.faults import Fault

DECODERS = {            # of transfer syntaxes that pydicom alone does not decode
    "1.2.840.10008.1.2.4.50": "pylibjpeg and pylibjpeg-libjpeg, or python-gdcm",
    "1.2.840.10008.1.2.4.51": "pylibjpeg and pylibjpeg-libjpeg, or python-gdcm",
    "1.2.840.10008.1.2.4.57": "python-gdcm",
    "1.2.840.10008.1.2.4.70": "python-gdcm",
    "1.2.840.10008.1.2.4.80": "python-gdcm, or pyjpegls",
    "1.2.840.10008.1.2.4.81": "python-gdcm, or pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg and pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg and pylibjpeg-openjpeg"}


def read_series(series: Series) -> Volume:
    """int16 HU of a series that is whole. Raises Fault, which names the file."""
    return read_files([each.path for each in series.slices], series.geometry, series.turn,
                      series.frames)


def read_files(paths: Sequence[Path], geometry: Geometry, turn: Turn,
               frames: Sequence[int] = ()) -> Volume:
    """int16 HU of the images of one series in the order of their places, as `examine` gives them.

    frames: which frame of its file each image is, where files hold several. Raises Fault, which
    names the file.
    """
    places: dict[Path, dict[int, int]] = {}  # of each file: {frame: where in the volume}
    for number, path in enumerate(paths):
        places.setdefault(path, {})[frames[number] if frames else 0] = number
    hu = None
    for path, of_frame in places.items():
        wanted = sorted(of_frame)
        for frame, pixels in zip(wanted, _pixels(path, wanted if frames else None)):
            if hu is None:
                hu = np.empty((len(paths), *pixels.shape), np.int16)
            hu[of_frame[frame]] = pixels
    try:
        check_hu(float(hu.min()), float(hu.max()))
    except Fault as fault:
        raise Fault(f"{paths[0].parent}: {fault}") from None
    return Volume(turn(hu), geometry)


def _pixels(path: Path, frames: list[int] | None) -> Iterator[np.ndarray]:
    """int16 HU [rows, columns] of frames of a file, each by its slope and intercept."""
    for stored, header in _stored(path, frames):
        try:
            yield to_hu(stored, header.slope, header.intercept)
        except Fault as fault:
            raise Fault(f"{path}: {fault}") from None


def _stored(path: Path, frames: list[int] | None) -> Iterator[tuple[np.ndarray, Slice]]:
    """Stored values [rows, columns] and the header of frames of a file; None: it is one image."""
    import pydicom

    syntax = pydicom.uid.UID("")
    try:
        data = pydicom.dcmread(path, stop_before_pixels=frames is not None)
        syntax, of_file = data.file_meta.TransferSyntaxUID, headers(path, data)
        if frames is None:
            yield data.pixel_array, of_file[0]
        else:  # of a path, which it reads a frame at a time
            stored = pydicom.pixels.iter_pixels(path, indices=frames)
            yield from ((values, of_file[frame]) for frame, values in zip(frames, stored))
    except RuntimeError as error:  # pydicom's, where no decoder is installed
        packages = DECODERS.get(str(syntax), "a decoder that pydicom names")
        raise Fault(f"{path} is compressed ({syntax.name}): install {packages}, or decompress it "
                    f"({str(error).splitlines()[0]})") from None
    except Exception as error:  # a damaged file may raise anything at all
        raise Fault(f"{path}: its pixels are cut short or damaged ({str(error).splitlines()[0]}): "
                    "get the file again") from None
