"""Write scans as Lung-PET-CT-Dx is published: each in two kernels, with PASCAL VOC boxes.

The two series of a study show the same rays: their boxes are drawn one after the other and agree
about as well as that data set's do (intersection over union 0.76 in the median). The subject's
letter is the histology of the patient's largest nodule. A PET image lies in the tree, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lungkit.phantom.thorax import dicom
from lungkit.phantom.thorax.luna16 import LEAST_MM, LEAST_READERS
from lungkit.phantom.thorax.scans import Scan, uid

FOLDER = "Lung-PET-CT-Dx"
TABLES = {"metadata.csv": "Series UID,Collection,3rd Party Analysis,Data Description URI,"
                          "Subject ID,Study UID,Study Description,Study Date,Series Description,"
                          "Manufacturer,Modality,SOP Class Name,SOP Class UID,Number of Images,"
                          "File Size,File Location,Download Timestamp"}


def subject(scan: Scan) -> str:
    """Letter and number, as the Annotation folder names the patient."""
    largest = max(scan.nodules, key=lambda nodule: nodule.diameter_mm, default=None)
    return f"{largest.histology if largest else 'A'}{scan.patient + 1:04d}"


def _series(scan: Scan) -> list[tuple[str, np.ndarray, object, int, bool]]:
    """(series UID, HU, scanner, number, whether its boxes are drawn anew) of the two kernels."""
    return [(scan.series_uid, scan.hu, scan.scanner, 2, False),
            (uid(scan.series_uid, "twin"), scan.twin_hu, scan.twin, 3, True)]


def _folder(scan: Scan, number: int, series_uid: str) -> str:
    study = f"01-01-20{scan.number:02d}-NA-Chest-{scan.study_uid[-5:]}"
    return (f"Lung-PET-CT-Dx/Lung_Dx-{subject(scan)}/{study}/"
            f"{number}.000000-{scan.scanner.thickness_mm:g}mm-{series_uid[-5:]}")


def files(scan: Scan) -> Iterator[tuple[str, bytes]]:
    """Paths below FOLDER and contents of one scan's files."""
    who = f"Lung_Dx-{subject(scan)}"
    for series_uid, hu, device, number, anew in _series(scan):
        folder = _folder(scan, number, series_uid)
        description = f"{device.thickness_mm:g}mm"
        for instance, content in dicom.ct_files(scan, hu, device, who, series_uid, number,
                                                description, implicit=True):
            yield f"{folder}/1-{instance:02d}.dcm", content
        for index, boxes in boxes_of(scan, anew).items():
            yield (f"Annotation/{subject(scan)}/{dicom.sop_uid(series_uid, index)}.xml",
                   _voc(scan, boxes))
    pet = uid(scan.study_uid, "PT")
    yield (f"{_folder(scan, 4, pet)}/1-1.dcm",
           dicom.other_image(scan, who, "PT", 4, implicit=True))


def boxes_of(scan: Scan, anew: bool = False) -> dict[int, list[tuple[int, int, int, int]]]:
    """{slice: boxes x0 y0 x1 y1, pixels, half open} of nodules with enough readers.

    anew: as a second look would draw them.
    """
    rng, found = np.random.default_rng(list(scan.series_uid.encode())), {}
    for nodule in scan.consensus:
        if nodule.num_readers < LEAST_READERS or nodule.diameter_mm < LEAST_MM:
            continue
        for number in range(len(nodule.mask)):
            box = nodule.box(number)
            if box is None:
                continue
            if anew:
                sides = np.array([box[2] - box[0], box[3] - box[1]] * 2)
                moved = np.rint(np.array([-0.4, -0.4, 0.4, 0.4])
                                + rng.normal(0, 0.05 * sides + 0.25)).astype(int)
                x0, y0, x1, y1 = (int(each) for each in np.array(box) + moved)
                box = (max(x0, 0), max(y0, 0), max(x1, x0 + 1), max(y1, y0 + 1))
            found.setdefault(nodule.corner[0] + number, []).append(box)
    return dict(sorted(found.items()))


def _voc(scan: Scan, boxes) -> bytes:
    size = scan.grid.size
    objects = "".join(
        f"  <object>\n    <name>{subject(scan)[0]}</name>\n    <pose>Unspecified</pose>\n"
        "    <truncated>0</truncated>\n    <Difficult>0</Difficult>\n    <bndbox>\n"
        f"      <xmin>{x0}</xmin>\n      <ymin>{y0}</ymin>\n      <xmax>{x1}</xmax>\n"
        f"      <ymax>{y1}</ymax>\n    </bndbox>\n  </object>\n" for x0, y0, x1, y1 in boxes)
    return ('<annotation verified="no">\n  <folder>Unknow</folder>\n  <filename>Unknow</filename>\n'
            "  <path>Unknow</path>\n  <source>Unknow<database>Unknown</database>\n  </source>\n"
            f"  <size>\n    <width>{size}</width>\n    <height>{size}</height>\n"
            "    <depth>1</depth>\n  </size>\n  <segmented>0</segmented>\n"
            f"{objects}</annotation>").encode()


def rows(scan: Scan) -> dict[str, list[str]]:
    """Lines of the tables in TABLES."""
    lines = []
    for series_uid, hu, device, number, _ in _series(scan):
        lines.append(",".join([
            series_uid, "Lung-PET-CT-Dx", "null", "simulated", f"Lung_Dx-{subject(scan)}",
            scan.study_uid, "Chest", f"01-01-20{scan.number:02d}", f"{device.thickness_mm:g}mm",
            device.manufacturer, "CT", "CT Image Storage", dicom.CT_IMAGE, str(len(hu)),
            f"{hu.nbytes / 1e6:.2f} MB", f"./{_folder(scan, number, series_uid)}",
            "2001-01-01T00:00:00.000"]))
    return {"metadata.csv": lines}


def closing(scans: list[str]) -> Iterator[tuple[str, bytes]]:
    yield from ()
