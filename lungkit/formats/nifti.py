"""NIfTI volumes, by nibabel: RAS millimetres become LPS, axes x y z become z, y, x.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from lungkit.formats.volumes import SLAB, Geometry, Turn, Volume, canonical, read_turned
from lungkit.run.faults import Fault

SUFFIXES = (".nii", ".nii.gz")
LPS = np.array([-1.0, -1.0, 1.0])  # of RAS
FORMS_AGREE_MM = 1.0               # ours: farther apart at a corner, the two forms contradict
PACKED = 3                         # gzip's level, of 9; ours


def _open(path: Path):
    import nibabel

    if path.name.startswith("._"):
        raise Fault(f"{path} is an AppleDouble file, no volume: delete the ._ files")
    try:
        image = nibabel.load(path)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError,
            OSError, EOFError, zlib.error) as error:
        raise Fault(f"{path} is no whole NIfTI file ({error}): copy it again") from None
    if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a subclass
        raise Fault(f"{path} is a {type(image).__name__}, not NIfTI")
    return image


def _layout(path: Path, image) -> tuple[Geometry, Turn]:
    shape = image.shape
    if len(shape) != 3:
        raise Fault(f"{path}: {len(shape)} dimensions ({' x '.join(map(str, shape))}): expected "
                    "one volume; split it")
    header = image.header
    if header["qform_code"] > 0 and header["sform_code"] > 0:
        corners = np.array([[x, y, z, 1] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1)
                            for z in (0, shape[2] - 1)])
        apart = np.abs(corners @ (header.get_qform() - header.get_sform()).T).max()
        if apart > FORMS_AGREE_MM:
            raise Fault(f"{path}: its qform and sform place voxels {apart:.1f} mm apart: keep the "
                        "one that is right")
    elif header["qform_code"] == 0 and header["sform_code"] == 0:
        raise Fault(f"{path}: neither qform nor sform says where the patient's sides are: set one")
    affine = _decimal(image.affine)
    try:
        return canonical(shape, affine[:3, 3] * LPS, (affine[:3, :3] * LPS[:, None]).T)
    except Fault as fault:
        raise Fault(f"{path}: {fault}") from None


def _decimal(affine: np.ndarray) -> np.ndarray:
    """The decimals that a header's single precision stands for: 0.7, which it keeps as 0.69999999.

    Without it the crops of one scan differ by format.
    """
    return np.array([[float(str(value)) for value in row] for row in affine.astype(np.float32)])


def read_geometry(path: Path) -> Geometry:
    """Where the voxels of a NIfTI file lie; its voxels are not read. Raises Fault."""
    return read_layout(path)[0]


def read_layout(path: Path) -> tuple[Geometry, Turn]:
    """The same, and how the file's axes x, y, z become z, y, x."""
    return _layout(path, _open(path))


def _values(path: Path, image) -> np.ndarray:
    """Stored values scaled, [X, Y, Z] as in the file: int16 where they are whole, else float32."""
    slope, inter = (float(value) for value in (image.dataobj.slope, image.dataobj.inter))
    try:
        raw = image.dataobj.get_unscaled()
        if slope == 1 and inter == 0:
            return np.asarray(raw)
        scaled = np.empty(raw.shape, np.int16 if raw.dtype.kind in "iu" and slope.is_integer()
                          and inter.is_integer() else np.float32)
        for start in range(0, raw.shape[2], SLAB):
            part = np.s_[:, :, start:start + SLAB]
            scaled[part] = raw[part] * slope + inter
        return scaled
    except (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise Fault(f"{path}: its voxels are cut short or damaged ({error}): copy it again"
                    ) from None


def read_nifti(path: Path) -> Volume:
    """int16 HU of a NIfTI file. Raises Fault, which names the file."""
    image = _open(path)
    geometry, turn = _layout(path, image)
    return read_turned(path, lambda each: _values(each, image), turn, geometry)


def read_labels(path: Path) -> tuple[np.ndarray, Geometry]:
    """The values of a NIfTI file of labels, canonical [Z, Y, X]. Raises Fault."""
    image = _open(path)
    geometry, turn = _layout(path, image)
    values = _values(path, image)
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        raise Fault(f"{path}: labels must be whole numbers")
    return turn(values), geometry


def encode_nifti(values: np.ndarray, geometry: Geometry) -> bytes:
    """A volume [Z, Y, X] at its place as a gzipped NIfTI-1 file, whose axes are x, y, z.

    Of an array along other axes those of the file are the same ones, the last one first. The same
    values give the same bytes.
    """
    import nibabel

    affine = np.eye(4)
    affine[:3, :3] = geometry.steps_mm[::-1].T * LPS[:, None]
    affine[:3, 3] = geometry.origin_mm * LPS
    image = nibabel.Nifti1Image(np.ascontiguousarray(values.T), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), PACKED, mtime=0)
