"""Frames of an enhanced multi-frame DICOM file, each asked as the header of a single image is.

What differs between frames is in the item of each in PerFrameFunctionalGroupsSequence, what is
common to all in SharedFunctionalGroupsSequence, every value inside the macro that it belongs to
(DICOM PS3.3, C.7.6.16; of CT: A.38).

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
MACROS = {  # what a single image says at its top: the macro, and its name there
    "ImagePositionPatient": ("PlanePositionSequence", "ImagePositionPatient"),
    "ImageOrientationPatient": ("PlaneOrientationSequence", "ImageOrientationPatient"),
    "PixelSpacing": ("PixelMeasuresSequence", "PixelSpacing"),
    "SliceThickness": ("PixelMeasuresSequence", "SliceThickness"),
    "RescaleSlope": ("PixelValueTransformationSequence", "RescaleSlope"),
    "RescaleIntercept": ("PixelValueTransformationSequence", "RescaleIntercept"),
    "ConvolutionKernel": ("CTReconstructionSequence", "ConvolutionKernel"),
    "ImageType": ("CTImageFrameTypeSequence", "FrameType")}


class Frame:
    """The header of one frame: its own group, then the shared one, then what the file says."""

    def __init__(self, data, shared, own) -> None:
        self._data, self._groups = data, (own, shared)

    def get(self, name: str) -> object | None:
        """The value of a keyword; None where nothing says it."""
        if name == "NumberOfFrames":
            return 1
        macro, inner = MACROS.get(name, ("", ""))
        for group in self._groups if macro else ():
            for item in group.get(macro) or ():
                if (value := item.get(inner)) is not None:
                    return value
        return self._data.get(name)


def frames(data) -> list:
    """The headers of a file's images in its order: Frames, or `data` itself of a single image.

    data: a pydicom Dataset. A file of several frames without functional groups is one, too: nothing
    says where its frames lie. Raises ValueError where groups and frames differ in number.
    """
    shared, own = ((data.get(name) or []) for name in (SHARED, PER_FRAME))
    if not shared and not own:
        return [data]
    count = int(data.get("NumberOfFrames") or 1)
    if own and len(own) != count:
        raise ValueError(f"{count} frames, but {len(own)} are described")
    return [Frame(data, shared[0] if shared else {}, each) for each in own or [{}] * count]
