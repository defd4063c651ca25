"""Make the images of one scan: read it, find its lungs, cut, window, encode.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from lungkit.ct.crops import Field, Picture, picture
from lungkit.ct.lung_mask import Lungs, find_lungs
from lungkit.ct.nodules import Nodule, sphere
from lungkit.ct.plan import Item, Job
from lungkit.ct.truth import round_grade
from lungkit.data.png import encode_png
from lungkit.formats.volumes import Volume

FAR_MM = 10.0           # ours: healthy lung keeps so far from the edge of every finding
TRIES = 200             # ours: places tried for a healthy image
LEAST_LUNG = 0.02       # ours: share of a slice's body that must be lung for it to be one of lung
LEAST_LUNG_CROP = 0.25  # ours: share of a healthy crop that must be lung


@dataclass(frozen=True)
class Recipe:
    """What is asked of an image. view: crop or slice.

    healthy: lung, healthy crops are of any place in it; candidates, of those that a detector
    proposed and that are no nodule.
    """

    view: str
    field: Field
    seed: int
    healthy: str = "lung"


@dataclass(frozen=True)
class Made:
    """An image, encoded, or why there is none."""

    item: Item
    image: bytes = b""
    masks: dict | None = None
    columns: dict | None = None
    reason: str | None = None


def make_images(job: Job, recipe: Recipe) -> list[Made]:
    """The images of one scan. Raises Fault where it cannot be read."""
    volume = job.scan.load()
    if job.scan.kind == "picture":
        return [_picture(job, job.items[0], volume, recipe)]
    lungs = find_lungs(volume)
    taken: set = {item.slice_index for item in job.items if item.slice_index is not None}
    doubtful = ignored_of(job)
    return [_make(job, item, volume, lungs, recipe, taken, doubtful) for item in job.items]


def ignored_of(job: Job) -> list[Nodule]:
    """What of a scan is neither a nodule that counts nor healthy, as nodules.

    Nodules of too few readers or too small, as they were outlined, and irrelevant findings, as
    balls: a detector that finds one is neither right nor wrong.
    """
    annotated, geometry = job.scan.annotated, job.scan.geometry
    return [nodule for nodule in annotated.nodules if nodule not in job.counted] + [
        sphere(geometry, geometry.to_world(place.voxel), place.diameter_mm, name="")
        for place in annotated.ignored if geometry.holds(np.array(place.voxel))]


def _make(job: Job, item: Item, volume: Volume, lungs: Lungs, recipe: Recipe,
          taken: set, doubtful: list[Nodule]) -> Made:
    index, centre = item.slice_index, lungs.centre()
    if item.nodule is None and index is None:
        rng = random.Random(f"{recipe.seed}/{job.scan.name}/{item.number}")
        half_mm = recipe.field.side_mm / 2
        place = (healthy_slice(job, lungs, rng, taken) if recipe.view == "slice" else
                 proposed_place(job, half_mm, rng, taken) if recipe.healthy == "candidates" else
                 healthy_place(job, half_mm, lungs, rng))
        if place is None:
            return Made(item, reason="no healthy lung found")
        index, centre = (place[0], place[1:]) if recipe.view == "crop" else (place, centre)
    elif recipe.view == "crop":
        centre = section_centre(job.counted[item.nodule], index)
    elif not has_lung(lungs, index) and item.nodule is None:
        return Made(item, reason="a slice without lung")
    made = picture(volume, lungs, index, centre, list(job.counted), recipe.field, doubtful)
    return _encoded(job, item, volume, index, made, centre)


def _picture(job: Job, item: Item, volume: Volume, recipe: Recipe) -> Made:
    """A picture already cut: all of it where its spacing is unknown, else the recipe's field."""
    _, rows, columns = volume.hu.shape
    field = recipe.field if job.scan.spacing_known else replace(recipe.field,
                                                                side_mm=max(rows, columns))
    masked = [nodule for nodule in job.counted if nodule.truth == "mask"]
    centre = (rows - 1) / 2, (columns - 1) / 2
    return _encoded(job, item, volume, 0, picture(volume, None, 0, centre, masked, field), centre)


def section_centre(nodule: Nodule, index: int) -> tuple[float, float]:
    """Row and column, in voxels, of the middle of a nodule's box on a slice; of a ball its centre.

    Not the mean of its voxels, which a box does not know.
    """
    if nodule.truth == "sphere":
        return nodule.centre[1:]
    x0, y0, x1, y1 = nodule.box(index)
    return float(y0 + y1) / 2, float(x0 + x1) / 2


def has_lung(lungs: Lungs, index: int) -> bool:
    """Whether a slice shows lung enough."""
    body, lung = lungs.plane(index)
    return bool(lung.sum() >= LEAST_LUNG * max(1, body.sum()) and lung.any())


def findings(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Every finding of a scan, nodules and what is to be ignored: z y x [N, 3] and radii in mm."""
    found = [(n.centre, n.diameter_mm) for n in job.scan.annotated.nodules]
    found += [(p.voxel, p.diameter_mm) for p in job.scan.annotated.ignored]
    return (np.array([at for at, _ in found], float).reshape(-1, 3),
            np.array([mm / 2 for _, mm in found], float))


def is_healthy(job: Job, voxel: np.ndarray, half_mm: float) -> bool:
    """Whether a place is far from every finding, and no nodule shows in the crop around it.

    voxel: z y x; half_mm: half the side of the crop.
    """
    at, radius = findings(job)
    spacing = np.array(job.scan.geometry.spacing_mm)
    away = np.abs(at - voxel) * spacing
    far = np.linalg.norm(away, axis=1) - radius >= FAR_MM
    count = len(job.scan.annotated.nodules)  # they come first
    beside = (away[:count, 1:] - radius[:count, None]).max(1) > half_mm
    above = away[:count, 0] - radius[:count] > spacing[0]
    return bool(far.all() and (beside | above).all())


def healthy_place(job: Job, half_mm: float, lungs: Lungs, rng: random.Random
                  ) -> tuple[int, float, float] | None:
    """z, row, column in voxels of a healthy place in the lung; None: none was found."""
    inside = np.flatnonzero(lungs.lung)
    if not len(inside):
        return None
    factor, depth = np.array(lungs.factor), job.scan.geometry.shape[0]
    for _ in range(TRIES):
        cell = np.array(np.unravel_index(inside[rng.randrange(len(inside))], lungs.lung.shape))
        voxel = (cell + 0.5) * factor - 0.5
        voxel[0] = min(round(voxel[0]), depth - 1)
        around = lungs.lung[cell[0], max(0, cell[1] - 8):cell[1] + 9, max(0, cell[2] - 8):
                            cell[2] + 9]
        if around.mean() >= LEAST_LUNG_CROP and is_healthy(job, voxel, half_mm):
            return int(voxel[0]), float(voxel[1]), float(voxel[2])
    return None


def proposed_place(job: Job, half_mm: float, rng: random.Random, taken: set
                   ) -> tuple[int, float, float] | None:
    """As `healthy_place`, one of the scan's candidates that no image has yet; None: none is left.

    A candidate may lie in anything but a nodule, a vessel above all; findings to be ignored are
    not healthy, however they were proposed.
    """
    candidates = job.scan.annotated.candidates
    order = list(range(0 if candidates is None else len(candidates)))
    rng.shuffle(order)
    for index in order:
        voxel = candidates[index]
        if ("candidate", index) not in taken and job.scan.geometry.holds(voxel) \
                and is_healthy(job, voxel, half_mm):
            taken.add(("candidate", index))
            return int(round(voxel[0])), float(voxel[1]), float(voxel[2])
    return None


def healthy_slice(job: Job, lungs: Lungs, rng: random.Random, taken: set) -> int | None:
    """A slice with lung and without a finding that no image has yet; None: there is none."""
    at, radius = findings(job)
    step = job.scan.geometry.spacing_mm[0]
    free = [z for z in range(job.scan.geometry.shape[0]) if z not in taken and has_lung(lungs, z)
            and (np.abs(at[:, 0] - z) * step > radius + step).all()]
    if not free:
        return None
    taken.add(chosen := rng.choice(free))
    return chosen


def _encoded(job: Job, item: Item, volume: Volume, index: int, made: Picture,
             centre: tuple[float, float]) -> Made:
    scan, geometry = job.scan, volume.geometry
    boxes = "; ".join(" ".join(f"{value:.2f}" for value in box) for box in made.boxes)
    columns = {
        "patient": scan.patient, "study": scan.study, "series": scan.name, "slice_index": index,
        "z_mm": f"{geometry.to_world((index, 0, 0))[2]:.3f}",
        "centre_row": f"{centre[0]:.4f}", "centre_column": f"{centre[1]:.4f}",
        "spacing_mm": f"{geometry.spacing_mm[1]:.4g}",
        "thickness_mm": f"{scan.thickness_mm or geometry.spacing_mm[0]:.4g}",
        "kernel": scan.kernel, "manufacturer": scan.manufacturer, "boxes": boxes,
        "brightness": f"{made.grey.mean(dtype=float):.3f}",
        "contrast": f"{made.grey.std(dtype=float):.3f}"}
    if item.nodule is not None:
        nodule = job.counted[item.nodule]
        columns |= describe(nodule)
        if scan.spacing_known and nodule.truth != "unknown":
            _, row_mm, column_mm = geometry.spacing_mm
            area = nodule.mask[index - nodule.start[0]].sum() * row_mm * column_mm
            columns["area_mm2"] = f"{area:.3f}"
    return Made(item, encode_png(made.grey),
                {kind: encode_png(mask) for kind, mask in made.masks.items()}, columns)


def describe(nodule: Nodule) -> dict[str, object]:
    """Columns of metadata.csv and nodules.csv about a nodule; None: unknown."""
    grades = nodule.grades
    return {"nodule_id": nodule.name,
            "diameter_mm": f"{nodule.diameter_mm:.3f}" if nodule.diameter_mm else None,
            "grade": None if nodule.grade is None else round_grade(nodule.grade),
            "grade_median": None if nodule.grade is None else f"{nodule.grade:g}",
            "grade_min": f"{min(grades):g}" if grades else None,
            "grade_max": f"{max(grades):g}" if grades else None,
            "num_readers": nodule.readers,
            "texture": None if nodule.texture is None else f"{nodule.texture:.3g}",
            "pathology": nodule.pathology or None}
