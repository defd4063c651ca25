"""A nodule of a scan, whoever annotated it: where, how large, what its readers said.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from lungkit.formats.volumes import Geometry
from lungkit.run.faults import Fault


@dataclass(frozen=True, eq=False)
class Nodule:
    """Voxels and labels of one nodule; "" or () or None is unknown.

    start: z y x of mask's first voxel in the volume; mask: bool [d, h, w]; centre: z y x in voxels;
    diameter_mm: mean of the readers', or as a table gives it; grades: malignancy 1-5 of each reader
    who rated it; texture: mean of 1 (ground glass) to 5 (solid); agreement: mean Dice of pairs of
    readers; readers: how many marked it; truth: what the voxels come from, contour, sphere, mask or
    box; label: a class that the source names, such as a histology; pathology: 0 unknown, 1 benign,
    2 primary cancer, 3 metastasis.
    """

    name: str
    start: tuple[int, int, int]
    mask: np.ndarray
    centre: tuple[float, float, float]
    diameter_mm: float
    truth: str
    grades: tuple[float, ...] = ()
    readers: int | None = None
    texture: float | None = None
    agreement: float | None = None
    label: str = ""
    pathology: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def grade(self) -> float | None:
        """The median of the grades, half steps kept."""
        return float(np.median(self.grades)) if self.grades else None

    def slices(self) -> np.ndarray:
        """Indices of the volume's slices that show it."""
        return self.start[0] + np.flatnonzero(self.mask.any((1, 2)))

    def largest_slice(self) -> int:
        """The slice on which its box is largest, the middle one of equals; of a ball its centre's.

        By the box, so that outlines, labels and boxes of one nodule say the same.
        """
        shown = self.slices()
        if self.truth == "sphere":
            return int(shown[np.abs(shown - self.centre[0]).argmin()])
        area = np.array([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in map(self.box, shown)])
        best = shown[area == area.max()]
        return int(best[(len(best) - 1) // 2])

    def box(self, index: int) -> tuple[float, float, float, float] | None:
        """x0 y0 x1 y1 of its voxels on a slice, edges in voxel coordinates; None: not on it."""
        z = index - self.start[0]
        if not 0 <= z < len(self.mask) or not self.mask[z].any():
            return None
        rows = np.flatnonzero(self.mask[z].any(1)) + self.start[1]
        columns = np.flatnonzero(self.mask[z].any(0)) + self.start[2]
        return (columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5)


def trimmed(nodule: Nodule) -> Nodule:
    """The same nodule, its mask cut to the smallest box that holds it."""
    spans = [np.flatnonzero(nodule.mask.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    cut = tuple(slice(span[0], span[-1] + 1) for span in spans)
    return replace(nodule, mask=nodule.mask[cut],
                   start=tuple(int(first + span[0]) for first, span in zip(nodule.start, spans)))


# ------------------------------------------------------------------ voxels from less than contours

def sphere(geometry: Geometry, centre_mm: np.ndarray, diameter_mm: float, **about) -> Nodule:
    """A ball around `centre_mm` (x y z) as a nodule: on each slice the disc that the ball shows.

    Raises Fault where its centre lies outside the volume.
    """
    centre = geometry.to_voxels(centre_mm)
    if not geometry.holds(centre):
        raise Fault(f"its centre {np.round(centre_mm, 1).tolist()} mm lies outside the volume "
                    f"(voxel z y x {np.round(centre).astype(int).tolist()} of {geometry.shape})")
    spacing, radius = np.array(geometry.spacing_mm), diameter_mm / 2
    low = np.maximum(np.floor(centre - radius / spacing), 0).astype(int)
    high = np.minimum(np.ceil(centre + radius / spacing), np.array(geometry.shape) - 1).astype(int)
    grid = np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high)), indexing="ij")
    distance = sum(((axis - c) * s) ** 2 for axis, c, s in zip(grid, centre, spacing))
    mask = distance <= radius ** 2
    if not mask.any():  # smaller than a voxel
        mask = distance == distance.min()
    return trimmed(Nodule(start=tuple(map(int, low)), mask=mask, centre=tuple(map(float, centre)),
                          diameter_mm=float(diameter_mm), truth="sphere", **about))


def from_boxes(geometry: Geometry, boxes: dict[int, tuple[float, float, float, float]],
               **about) -> Nodule:
    """A nodule of boxes {slice: (x0, y0, x1, y1)} in voxel edges: an ellipse fills each.

    It has voxels at all four edges of the box, however slender that is. Its diameter is the
    geometric mean of the sides of the largest box.
    """
    first, last = min(boxes), max(boxes)
    mask = np.zeros((last - first + 1, *geometry.shape[1:]), bool)
    rows, columns = np.ogrid[:geometry.shape[1], :geometry.shape[2]]
    for index, (x0, y0, x1, y1) in boxes.items():
        across, down = (x1 - x0) / 2, (y1 - y0) / 2
        aside, below = np.abs(columns - (x0 + x1) / 2), np.abs(rows - (y0 + y1) / 2)
        mask[index - first] = ((aside / across) ** 2 + (below / down) ** 2 <= 1) | (
            (aside < across) & (below < down) & ((aside <= 0.5) | (below <= 0.5)))
    if not mask.any():
        raise Fault("its boxes hold no voxel of the volume")
    index = max(boxes, key=lambda i: (boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1]))
    x0, y0, x1, y1 = boxes[index]
    _, row_mm, column_mm = geometry.spacing_mm
    return trimmed(Nodule(start=(first, 0, 0), mask=mask,
                          centre=(float(index), (y0 + y1) / 2, (x0 + x1) / 2),
                          diameter_mm=float(np.sqrt((x1 - x0) * column_mm * (y1 - y0) * row_mm)),
                          truth="box", **about))


def from_labels(labels: np.ndarray, geometry: Geometry, value: int = 1) -> list[Nodule]:
    """Nodules of a label volume [Z, Y, X]: connected voxels of `value`, diagonal ones included.

    Diameter: of the disc of the largest section's area.
    """
    from scipy import ndimage

    slices = np.flatnonzero((labels == value).any((1, 2)))
    if not len(slices):
        return []
    first = int(slices[0])
    found, count = ndimage.label(labels[first:slices[-1] + 1] == value, np.ones((3, 3, 3)))
    _, row_mm, column_mm = geometry.spacing_mm
    nodules = []
    for number, span in enumerate(ndimage.find_objects(found), 1):
        mask = found[span] == number
        start = (span[0].start + first, span[1].start, span[2].start)
        area = mask.sum((1, 2)).max() * row_mm * column_mm
        nodules.append(Nodule(str(number), start, mask, centroid(mask, start),
                              float(2 * np.sqrt(area / np.pi)), "mask"))
    return nodules


def centroid(mask: np.ndarray, start: tuple[int, int, int]) -> tuple[float, float, float]:
    """z y x of the mean voxel of a mask in the volume."""
    return tuple(float(value) for value in np.argwhere(mask).mean(0) + start)
