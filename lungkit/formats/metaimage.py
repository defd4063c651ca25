"""MetaImage: a header of text lines (.mhd, .mha) and raw voxels beside or behind it.

Format: https://itk.org/Wiki/ITK/MetaIO/Documentation. Positions are LPS millimetres.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from lungkit.formats.volumes import Geometry, Turn, Volume, canonical, read_turned
from lungkit.run.faults import Fault

SUFFIXES = (".mhd", ".mha")
TYPES = {"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2",
         "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4",
         "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"}
HEADER_BYTES = 1 << 16
NAMES = {"position": "offset", "origin": "offset", "rotation": "transformmatrix",
         "orientation": "transformmatrix", "elementbyteordermsb": "binarydatabyteordermsb"}


def read_header(path: Path) -> tuple[dict[str, str], int]:
    """The header's values by lower-case name, and how many bytes it has. Raises Fault."""
    with open(path, "rb") as file:
        start = file.read(HEADER_BYTES)
    fields, at = {}, 0
    while b"\n" in start[at:]:
        end = start.index(b"\n", at) + 1
        name, equals, value = start[at:end].decode("latin-1").partition("=")
        if not equals:
            break
        at = end
        name = name.strip().lower()
        fields[NAMES.get(name, name)] = value.strip()
        if name == "elementdatafile":
            break
    missing = [name for name in ("dimsize", "elementtype", "elementdatafile") if name not in fields]
    if missing:
        raise Fault(f"{path} is no MetaImage header: it lacks {', '.join(missing)}")
    return fields, at


def _numbers(path: Path, fields: dict, name: str, default: str) -> np.ndarray:
    try:
        return np.array([float(part) for part in fields.get(name, default).split()])
    except ValueError:
        raise Fault(f"{path}: {name} {fields[name]!r} is not a row of numbers") from None


def _layout(path: Path, fields: dict) -> tuple[Geometry, Turn]:
    size = _numbers(path, fields, "dimsize", "").astype(int)
    channels = _numbers(path, fields, "elementnumberofchannels", "1")[0]
    if len(size) != 3 or channels != 1 or (size < 1).any():
        raise Fault(f"{path}: {len(size)} dimensions, {channels:g} values a voxel: expected one "
                    "volume of single values")
    if fields["elementtype"] not in TYPES:
        raise Fault(f"{path}: element type {fields['elementtype']} is not one of numbers")
    spacing = _numbers(path, fields, "elementspacing" if "elementspacing" in fields
                       else "elementsize", "1 1 1")
    offset = _numbers(path, fields, "offset", "0 0 0")
    matrix = _numbers(path, fields, "transformmatrix", "1 0 0 0 1 0 0 0 1")
    if (len(spacing), len(offset), len(matrix)) != (3, 3, 9):
        raise Fault(f"{path}: spacing, offset and matrix need 3, 3 and 9 numbers")
    steps = matrix.reshape(3, 3) * spacing[:, None]  # row i: where axis i (x, y, z of file) leads
    try:
        return canonical(tuple(size[::-1]), offset, steps[::-1])
    except Fault as fault:
        raise Fault(f"{path}: {fault}") from None


def read_geometry(path: Path) -> Geometry:
    """Where the voxels of a MetaImage lie; its voxels are not read. Raises Fault."""
    return read_layout(path)[0]


def read_layout(path: Path) -> tuple[Geometry, Turn]:
    """The same, and how the file's axes, z before y and x, become z, y, x."""
    return _layout(path, read_header(path)[0])


def data_path(path: Path) -> Path:
    """The file that holds the voxels. Raises Fault if it is missing."""
    name = read_header(path)[0]["elementdatafile"]
    if name == "LOCAL":
        return path
    if name.startswith("LIST") or "%" in name:
        raise Fault(f"{path}: voxels in several files (ElementDataFile = {name}): join them first")
    raw = path.parent / name
    if not raw.is_file():
        raise Fault(f"{path}: its voxels, {name}, are missing: put the file beside it")
    return raw


def check_size(path: Path) -> None:
    """Raise Fault unless there are as many bytes of voxels as the header says; not of packed."""
    fields, header_bytes = read_header(path)
    raw, wanted = data_path(path), _kind(fields).itemsize * int(np.prod(_size(path, fields)))
    skip = header_bytes if raw == path else max(0, int(float(fields.get("headersize", 0))))
    found = raw.stat().st_size - skip
    if not _is_packed(fields) and found != wanted:
        raise Fault(f"{path}: {raw.name} holds {found} bytes, {wanted} belong to "
                    f"{fields['dimsize']} of {fields['elementtype']}: copy it again")


def read_raw(path: Path) -> np.ndarray:
    """The stored values, [Z, Y, X] in the file's own order. Raises Fault."""
    check_size(path)
    fields, header_bytes = read_header(path)
    size, kind, raw = _size(path, fields), _kind(fields), data_path(path)
    skip = header_bytes if raw == path else max(0, int(float(fields.get("headersize", 0))))
    if _is_packed(fields):
        content = _inflate(path, raw.read_bytes()[skip:])
        if len(content) != int(np.prod(size)) * kind.itemsize:
            raise Fault(f"{path}: {raw.name} unpacks to {len(content)} bytes, which are not "
                        f"{fields['dimsize']} of {fields['elementtype']}: copy it again")
        values = np.frombuffer(content, kind)
    else:
        values = np.fromfile(raw, kind, offset=skip)
    return values.reshape(size).astype(kind.newbyteorder("="), copy=False)


def _size(path: Path, fields: dict) -> np.ndarray:
    """Voxels along z, y, x of the file."""
    return _numbers(path, fields, "dimsize", "").astype(int)[::-1]


def _kind(fields: dict) -> np.dtype:
    big = fields.get("binarydatabyteordermsb", "False").lower() == "true"
    return np.dtype((">" if big else "<") + TYPES[fields["elementtype"]])


def _is_packed(fields: dict) -> bool:
    return fields.get("compresseddata", "False").lower() == "true"


def _inflate(path: Path, content: bytes) -> bytes:
    try:
        return zlib.decompress(content, 47)  # zlib or gzip, whichever it says
    except zlib.error as error:
        raise Fault(f"{path}: its compressed voxels are damaged or cut short ({error})") from None


def read_metaimage(path: Path) -> Volume:
    """int16 HU of a MetaImage. Raises Fault, which names the file."""
    geometry, turn = _layout(path, read_header(path)[0])
    return read_turned(path, read_raw, turn, geometry)


def read_labels(path: Path) -> tuple[np.ndarray, Geometry]:
    """The values of a MetaImage of labels, canonical [Z, Y, X]. Raises Fault."""
    geometry, turn = _layout(path, read_header(path)[0])
    return turn(read_raw(path)), geometry
