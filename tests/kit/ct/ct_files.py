"""Tiny CT files of every format, written by hand: what the readers are tested on."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

STEP = (2.0, 0.8, 0.7)          # mm along z, y, x
ORIGIN = (-12.0, 7.5, -300.0)   # mm, x y z of the first voxel


def scene(shape=(6, 12, 10), seed=0) -> np.ndarray:
    """int16 HU [Z, Y, X] that no flip or turn leaves as it is: air, tissue, a bright corner."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-1050, -800, shape).astype(np.int16)
    hu[:, shape[1] // 3:, : shape[2] // 2] += 900
    hu[shape[0] // 2:, 0, 0] = 1200
    return hu


# ------------------------------------------------------------------ MetaImage

def write_mhd(path: Path, array: np.ndarray, *, step=STEP, origin=ORIGIN,
              matrix=((1, 0, 0), (0, 1, 0), (0, 0, 1)), big=False, compressed=False, local=False,
              cut=0) -> Path:
    """A MetaImage of the array [Z, Y, X] in file order; matrix: rows are where x, y, z lead."""
    kinds = {"i2": "MET_SHORT", "u2": "MET_USHORT", "f4": "MET_FLOAT", "u1": "MET_UCHAR"}
    content = array.astype(array.dtype.newbyteorder(">" if big else "<")).tobytes()
    content = zlib.compress(content) if compressed else content
    content = content[:len(content) - cut]
    raw = "LOCAL" if local else path.stem + (".zraw" if compressed else ".raw")
    fields = {
        "ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": big,
        "CompressedData": compressed,
        **({"CompressedDataSize": len(content)} if compressed else {}),
        "TransformMatrix": " ".join(f"{v:g}" for v in np.asarray(matrix, float).ravel()),
        "Offset": " ".join(f"{v:g}" for v in origin),
        "ElementSpacing": " ".join(f"{v:g}" for v in step[::-1]),
        "DimSize": " ".join(map(str, array.shape[::-1])),
        "ElementType": kinds[array.dtype.str[1:]], "ElementDataFile": raw}
    text = "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text + (content if local else b""))
    if not local:
        (path.parent / raw).write_bytes(content)
    return path


# ------------------------------------------------------------------ NIfTI

def write_nifti(path: Path, array: np.ndarray, *, step=STEP, origin=ORIGIN, order="RAS",
                slope=None, sform=True) -> Path:
    """A NIfTI file of canonical int16 [Z, Y, X], stored along axes such as "RAS", "LPS", "PIR"."""
    import nibabel

    affine = np.diag([-step[2], -step[1], step[0], 1.0])  # LPS millimetres are -x, -y in RAS
    affine[:3, 3] = np.array(origin) * [-1, -1, 1]
    image = nibabel.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(order))
    image = image.as_reoriented(turn)
    image = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine)
    if sform:
        image.set_sform(image.affine, 1)
        image.set_qform(image.affine, 1)
    if slope is not None:
        image.header.set_slope_inter(*slope)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


# ------------------------------------------------------------------ DICOM

def write_series(folder: Path, hu: np.ndarray, *, step=STEP, origin=ORIGIN, patient="p1",
                 study="1.2.3", series="1.2.3.4", frame="1.2.3.9", rows=(1, 0, 0),
                 columns=(0, 1, 0), intercept=-1024, slopes=None, skip=(), change=None,
                 **tags) -> list[Path]:
    """A series of one file a slice [Z, Y, X], file names in an order that is not the slices'.

    skip: slices that are not written; slopes: of each slice; change: called with number and
    dataset before a file is written; tags: more of every file's. SOP UIDs are <series>.<slice>.
    """
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    folder.mkdir(parents=True, exist_ok=True)
    normal, paths = np.cross(rows, columns), []
    for number, image in enumerate(hu):
        if number in skip:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"{series}.{number + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        path = folder / f"{(number * 7 + 3) % 100:02d}-{number}.dcm"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"{series}.{number+1}"
        data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID = patient, study, series
        data.FrameOfReferenceUID, data.Modality = frame, "CT"
        data.ImageType, data.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 100 - number
        data.ImageOrientationPatient = [*map(float, (*rows, *columns))]
        data.ImagePositionPatient = [float(v) for v in np.array(origin) + normal * step[0] * number]
        data.PixelSpacing, data.SliceThickness = [step[1], step[2]], step[0]
        data.Rows, data.Columns = image.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        slope = slopes[number] if slopes else 1
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
        data.Manufacturer, data.ConvolutionKernel = "SIM", "B30f"
        stored = np.rint((image.astype(float) - intercept) / slope).astype("<i2")
        data.PixelData = stored.tobytes()
        for name, value in tags.items():
            setattr(data, name, value)
        if change:
            change(number, data)
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
