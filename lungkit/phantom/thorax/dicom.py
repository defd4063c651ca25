"""Write slices as DICOM files, deterministic to the byte, with what readers of CT need."""

from __future__ import annotations

import io

import numpy as np

from lungkit.phantom.thorax.scans import Scan, Scanner, uid

CT_IMAGE, DX_IMAGE, PET_IMAGE = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1.1",
                                 "1.2.840.10008.5.1.4.1.1.128")
INTERCEPT = {"TOSHIBA": 0}  # of stored values; all others add 1024
PADDING = -2000  # a GE scanner's stored value outside the round field


def sop_uid(series_uid: str, index: int) -> str:
    """The SOP instance UID of a slice, counted from the lowest."""
    return uid(series_uid, index)


def encode(data, *, implicit: bool = False) -> bytes:
    """A pydicom Dataset as the bytes of a file; `implicit`: without value representations."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else (
        ExplicitVRLittleEndian)
    data.file_meta.ImplementationClassUID = uid("lungkit")
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def common(scan: Scan, patient_id: str, series_uid: str, number: int, description: str):
    """What all images of a series share, a pydicom Dataset."""
    from pydicom.dataset import Dataset

    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 100"
    data.StudyDate = data.SeriesDate = data.ContentDate = f"20{scan.number:02d}0101"
    data.StudyTime = data.ContentTime = "120000"
    data.AccessionNumber = data.ReferringPhysicianName = data.StudyID = ""
    data.PatientName = data.PatientID = patient_id
    data.PatientBirthDate = data.PatientSex = ""
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = "simulated: nobody was scanned"
    data.StudyInstanceUID = scan.study_uid
    data.SeriesInstanceUID = series_uid
    data.FrameOfReferenceUID = uid(scan.study_uid, "frame")
    data.PositionReferenceIndicator = ""
    data.SeriesNumber, data.AcquisitionNumber = number, 1
    data.StudyDescription, data.SeriesDescription = "Chest", description
    data.BodyPartExamined = "CHEST"
    return data


def _ct(data, scan: Scan, device: Scanner) -> None:
    """Enter what all slices of a CT series share."""
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.SOPClassUID, data.Modality = CT_IMAGE, "CT"
    data.Manufacturer, data.ManufacturerModelName = device.manufacturer, device.model
    data.PatientPosition = "HFS"
    data.KVP, data.XRayTubeCurrent, data.GantryDetectorTilt = "120", 200, "0"
    if scan.contrast:
        data.ContrastBolusAgent = "simulated"
    data.SliceThickness = f"{device.thickness_mm:g}"
    data.ConvolutionKernel = device.kernel
    data.ReconstructionDiameter = f"{scan.grid.size * scan.grid.spacing_mm:.6g}"
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing = [f"{scan.grid.spacing_mm:.8g}"] * 2
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows = data.Columns = scan.grid.size
    data.BitsAllocated = 16
    padded = device.circle_hu is not None and device.circle_hu < -1024
    signed = padded or device.manufacturer in INTERCEPT
    data.BitsStored, data.HighBit = (16, 15) if signed else (12, 11)
    data.PixelRepresentation = int(signed)
    if padded:
        data.PixelPaddingValue = PADDING
    data.RescaleIntercept = f"{-1024 if device.manufacturer not in INTERCEPT else 0}"
    data.RescaleSlope, data.RescaleType = "1", "HU"
    data.WindowCenter, data.WindowWidth = "-600", "1600"


def ct_files(scan: Scan, hu: np.ndarray, device: Scanner, patient_id: str, series_uid: str,
             number: int, description: str, *, implicit: bool = False):
    """(instance number, bytes) of every slice of a CT series, the highest slice first."""
    data = common(scan, patient_id, series_uid, number, description)
    _ct(data, scan, device)
    x, y, z = scan.grid.origin_mm
    kind = "<i2" if data.PixelRepresentation else "<u2"
    for instance, index in enumerate(range(len(hu) - 1, -1, -1), 1):
        height = round(z + index * scan.grid.step_mm, 4)
        data.SOPInstanceUID = sop_uid(series_uid, index)
        data.InstanceNumber = instance
        data.ImagePositionPatient = [f"{x:.8g}", f"{y:.8g}", f"{height:.8g}"]
        data.SliceLocation = f"{height:.8g}"
        stored = hu[index].astype(np.int32) - int(data.RescaleIntercept)
        data.PixelData = stored.astype(kind).tobytes()
        yield instance, encode(data, implicit=implicit)


def other_image(scan: Scan, patient_id: str, modality: str, number: int, *,
                implicit: bool = False) -> bytes:
    """One small image that is no CT: a chest film ("DX") or a slice of PET ("PT")."""
    data = common(scan, patient_id, uid(scan.study_uid, modality), number, modality)
    data.SOPClassUID = DX_IMAGE if modality == "DX" else PET_IMAGE
    data.Modality, data.Manufacturer = modality, scan.scanner.manufacturer
    data.SOPInstanceUID, data.InstanceNumber = uid(scan.study_uid, modality, 0), 1
    data.ImageType = ["ORIGINAL", "PRIMARY"]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows = data.Columns = 32
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    if modality == "PT":
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [f"{each:.8g}" for each in scan.grid.origin_mm]
        data.PixelSpacing = ["10", "10"]
        data.RescaleIntercept, data.RescaleSlope = "0", "1.7"
    data.PixelData = np.arange(32 * 32, dtype="<u2").tobytes()
    return encode(data, implicit=implicit)
