"""Tiny CT files of every format, written by hand: what the readers are tested on."""

from __future__ import annotations

import shutil
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
        path = folder / f"{(number * 7 + 3) % 10}-{number:02d}.dcm"
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


MACROS = {  # of an enhanced file: what of a single image lies in which functional group
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "CTImageFrameTypeSequence": ("ImageType",)}


def join_frames(paths: list[Path], target: Path, change=None) -> Path:
    """One Enhanced CT file of the images in `paths`, which are deleted; frames in their order.

    What is alike in all is in the shared group. change: called with the dataset at the end.
    """
    import pydicom
    from pydicom.dataset import Dataset

    images = [pydicom.dcmread(path) for path in paths]
    data = images[0].copy()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    data.NumberOfFrames = len(images)
    data.PixelData = b"".join(image.PixelData for image in images)
    shared, groups = Dataset(), [Dataset() for _ in images]
    for macro, names in MACROS.items():
        macros = []
        for image in images:
            macros.append(item := Dataset())
            for name in names:
                if name in image:
                    setattr(item, "FrameType" if name == "ImageType" else name, image[name].value)
        if all(item == macros[0] for item in macros):
            setattr(shared, macro, macros[:1])
        else:
            for group, item in zip(groups, macros):
                setattr(group, macro, [item])
        for name in {*names} - {"ImageType"}:
            if name in data:
                delattr(data, name)
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = groups
    for path in paths:
        path.unlink()
    if change:
        change(data)
    data.save_as(target, enforce_file_format=True)
    return target


# ------------------------------------------------------------------ a chest and its readers

CHEST_STEP = (2.5, 2.0, 2.0)


def ball(shape, centre, radius_mm, step=CHEST_STEP) -> np.ndarray:
    """bool [Z, Y, X]: the voxels within radius_mm of centre (z y x in voxels)."""
    grid = np.indices(shape)
    return sum(((axis - c) * s) ** 2 for axis, c, s in zip(grid, centre, step)) <= radius_mm ** 2


def chest(nodules=(), shape=(12, 64, 64), seed=0) -> np.ndarray:
    """int16 HU [Z, Y, X]: a body, a spine, two lungs, and balls (centre, radius_mm) of 50 HU."""
    rng = np.random.default_rng(seed)
    _, rows, columns = np.indices(shape) * 64 / shape[1]  # one chest, however fine
    hu = np.full(shape, -1000.0)
    hu[((rows - 32) / 24) ** 2 + ((columns - 32) / 30) ** 2 <= 1] = 40
    for middle in (18, 46):
        hu[((rows - 30) / 17) ** 2 + ((columns - middle) / 11) ** 2 <= 1] = -850
    hu[(rows - 48) ** 2 + (columns - 32) ** 2 <= 9] = 700
    for centre, radius_mm in nodules:
        hu[ball(shape, centre, radius_mm)] = 50
    return np.rint(hu + rng.normal(0, 15, shape)).astype(np.int16)


def outline(mask: np.ndarray) -> np.ndarray:
    """int [N, 2] x y: the first pixels outside a section, in order, as LIDC's readers draw."""
    import cv2

    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    found, _ = cv2.findContours(cv2.dilate(mask.astype(np.uint8), cross), cv2.RETR_EXTERNAL,
                                cv2.CHAIN_APPROX_NONE)
    return max(found, key=len)[:, 0, :]


def roi(number: int, points, series="1.2.3.4", z_mm=None, inclusion="TRUE", sop=None) -> str:
    z_mm = ORIGIN[2] + CHEST_STEP[0] * number if z_mm is None else z_mm
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>"
                    for x, y in points)
    return (f"<roi><imageZposition>{z_mm}</imageZposition><imageSOP_UID>"
            f"{sop or f'{series}.{number + 1}'}</imageSOP_UID><inclusion>{inclusion}</inclusion>"
            f"{edges}</roi>")


def mark(rois: str, malignancy=None, name="1", texture=5) -> str:
    rated = "" if malignancy is None else (
        f"<characteristics><subtlety>3</subtlety><texture>{texture}</texture><malignancy>"
        f"{malignancy}</malignancy></characteristics>")
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{rated}{rois}</unblindedReadNodule>"


def mark_of(mask: np.ndarray, malignancy: int, series="1.2.3.4", name="1") -> str:
    """A reader's mark of the very voxels of a mask [Z, Y, X]."""
    return mark("".join(roi(z, outline(mask[z]), series) for z in np.flatnonzero(mask.any((1, 2)))),
                malignancy, name)


def non_nodule(number: int, x: int, y: int, series="1.2.3.4") -> str:
    return (f"<nonNodule><nonNoduleID>9</nonNoduleID><imageZposition>"
            f"{ORIGIN[2] + CHEST_STEP[0] * number}</imageZposition><imageSOP_UID>{series}."
            f"{number + 1}</imageSOP_UID><locus><xCoord>{x}</xCoord><yCoord>{y}</yCoord></locus>"
            "</nonNodule>")


def write_xml(path: Path, sessions: list[str], series="1.2.3.4", *, root="LidcReadMessage",
              namespace=True, date="2006-01-01") -> Path:
    """An LIDC XML file; sessions: what each reader wrote."""
    spaced = ' xmlns="http://www.nih.gov"' if namespace else ""
    body = "".join(f"<readingSession>{each}</readingSession>" for each in sessions)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} uid="1"{spaced}>'
                    f"<ResponseHeader><SeriesInstanceUid>{series}</SeriesInstanceUid>"
                    f"<StudyInstanceUID>1.2.3</StudyInstanceUID><DateService>{date}</DateService>"
                    f"<TimeService>10:00:00</TimeService></ResponseHeader>{body}</{root}>")
    return path


def write_patient(root: Path, number: int, nodules: list[tuple], *, shape=(12, 64, 64),
                  readers=4, **how) -> tuple[str, np.ndarray]:
    """A patient's series with XML beside it: its SeriesInstanceUID and HU.

    nodules: (centre z y x in voxels, radius_mm, malignancy) of each.
    """
    uid = f"1.2.3.{number}"
    hu = chest([each[:2] for each in nodules], shape, seed=number)
    folder = root / f"P{number}" / "study" / "series"
    write_series(folder, hu, step=CHEST_STEP, patient=f"P{number}", study=f"1.2.{number}",
                 series=uid, frame=f"1.9.{number}", **how)
    marks = "".join(mark_of(ball(shape, centre, radius_mm), grade, uid, str(n))
                    for n, (centre, radius_mm, grade) in enumerate(nodules))
    write_xml(folder / "notes.xml", [marks] * readers, uid)
    return uid, hu


def slices_of(tree: Path, patient="P1") -> list[Path]:
    """The DICOM files of a patient that `write_patient` wrote."""
    return sorted((tree / patient).rglob("*.dcm"))


def set_tags(path: Path, **tags) -> None:
    import pydicom

    data = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path)


# ------------------------------------------------------------------ LUNA16, and pictures

def write_luna(tree: Path, **of_first) -> Path:
    """Three MetaImages, a b c, with LUNA16's table; of_first: how `write_mhd` writes a."""
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm,grade"]
    for name in "abc":
        write_mhd(tree / f"{name}.mhd", chest(), step=CHEST_STEP,
                  **(of_first if name == "a" else {}))
        lines += [f"{name},24,67,-292,10,1", f"{name},80,63,-287,18,5"]
    (tree / "annotations.csv").write_text("\n".join(lines))
    return tree


def write_pictures(folder: Path) -> Path:
    """Pictures of eight patients with masks; two of them copies, of equal bytes and by parent."""
    from lungkit.data.png import encode_png
    from lungkit.run.files import write_bytes

    rng, lines = np.random.default_rng(0), ["file,malignancy_ratings,patient_id,copy_of,"
                                            "pixel_spacing_mm,max_diam_mm,n_raters"]
    for number in range(16):
        grade, radius = (1, 3) if number % 2 else (5, 8)
        rows, columns = np.indices((40, 40 if number else 37))
        mask = (rows - 20) ** 2 + (columns - 20) ** 2 <= radius ** 2
        grey = np.uint8(np.clip(rng.normal(30, 5, mask.shape) + 150 * mask, 0, 255))
        write_bytes(folder / "images" / f"{number}.png", encode_png(grey))
        write_bytes(folder / "masks" / f"{number}.png", encode_png(mask * np.uint8(255)))
        lines.append(f"{number}.png,{grade} {grade} {grade},Q{number // 2},,0.8,{1.6 * radius},3")
    shutil.copy(folder / "images/1.png", folder / "images/20.png")
    shutil.copy(folder / "masks/1.png", folder / "masks/20.png")
    turned = np.rot90(np.uint8(rng.integers(0, 99, (40, 40))))
    write_bytes(folder / "images/21.png", encode_png(np.ascontiguousarray(turned)))
    lines += ["20.png,1 1 1,Q20,,0.8,4.8,3", "21.png,5 5 5,Q21,4.png,0.8,9,3"]
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder
