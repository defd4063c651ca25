"""Plan a sample's scans and make one: patient, scanner, grid, nodules, images and readings.

Every draw depends on (seed, patient, purpose) alone, so a scan is the same whichever process makes
it and whichever formats it is written in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from lungkit.phantom.thorax import anatomy, nodules, readers, scanner, scene, vessels
from lungkit.phantom.thorax.nodules import GRADES, Law
from lungkit.phantom.thorax.scanner import SCANNERS, Scanner
from lungkit.phantom.thorax.scene import Grid, Scene
from lungkit.run.seeds import stream

CHEST, PROTOCOL, NODULES, NOISE, READING, ORDER = range(6)  # purposes of draws
EVERY_TWICE, TWICE = 8, 5  # patient 5, 13, 21 ... has two scans, as 8 of LIDC's 1,010 have
ATTACHED_SHARE = (0.52, 0.2, 0.28)  # isolated, at a vessel, at the pleura
TINY_MM = (1.6, 2.8)  # of nodules that are too small to be outlined
FREE_MM = 14.0  # a whole field is chosen to hold the patient's width and this much air
CROP_MM = 32.0  # nodules keep this far from the border of a small field, so that a crop is whole
LEFT, RIGHT, TRACHEA = 3, 4, 5  # labels of LUNA16's lung masks
SECOND_KERNEL = ("A", 2.1, 0.0)  # name, blur, edges: the soft twin of a scan


@dataclass(frozen=True)
class Plan:
    """Options that decide what is drawn; see the command's help."""

    seed: int
    num_patients: int
    nodules_per_patient: int
    image_size: int
    num_slices: int
    field_mm: float | None  # None: the scanner's whole field
    law: Law
    confounded: bool
    round_nodules: bool = False

    def draws(self, patient: int, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([stream("thorax", self.seed), patient, *purpose])

    def scans(self) -> list[tuple[int, int]]:
        """(patient, scan) of all scans, numbered from 0."""
        return [(patient, number) for patient in range(self.num_patients)
                for number in range(1 + (patient % EVERY_TWICE == TWICE))]

    def grades(self, patient: int) -> list[int]:
        """Grades of a patient's nodules: all grades equally often over the sample.

        Confounded: those of even patients are benign, those of odd ones malignant.
        """
        if self.confounded:
            of = (4, 5) if patient % 2 else (1, 2)
            rng = self.draws(patient, ORDER)
            return [int(grade) for grade in rng.choice(of, self.nodules_per_patient)]
        first = patient * self.nodules_per_patient
        return [int(self.draws(number // 5, ORDER).permutation(GRADES)[number % 5])
                for number in range(first, first + self.nodules_per_patient)]

    def scanner(self, patient: int, number: int) -> Scanner:
        """The scanner of a scan; only where confounded does it depend on the patient's grades."""
        of = SCANNERS
        if self.confounded:
            of = [each for each in SCANNERS if (each.manufacturer[0] == "G") != bool(patient % 2)]
        shares = np.array([each.share for each in of])
        rng = self.draws(patient, PROTOCOL, number)
        return of[int(rng.choice(len(of), p=shares / shares.sum()))]

    def grid(self, patient: int, chest: anatomy.Chest, device: Scanner) -> Grid:
        """Where a scan's voxels lie: around the chest's middle, or a small field in one lung."""
        rng = self.draws(patient, PROTOCOL, 99)
        if self.field_mm is None:
            field = max(512 * device.spacing_mm, chest.width_mm() + FREE_MM)
            middle = np.array([0.0, 4.0]) + rng.normal(0, 4, 2)
        else:
            field = self.field_mm
            middle = np.array([rng.choice([-1, 1]) * 0.56 * chest.half_width, 2.0])
        spacing = round(field / self.image_size, 6)
        height = self.num_slices * device.step_mm
        bottom = (chest.apex - 20 + chest.diaphragm) / 2 - height / 2
        half = spacing * (self.image_size - 1) / 2
        return Grid(self.image_size, spacing, self.num_slices, device.step_mm,
                    device.thickness_mm, (round(float(middle[0]) - half, 4),
                                          round(float(middle[1]) - half, 4),
                                          round(bottom, 2)))


@dataclass(frozen=True)
class Scan:
    """One scan of a patient with all that is known of it. HU are int16 [Z, Y, X], z to the head."""

    patient: int
    number: int  # of the patient's scans, from 0
    series_uid: str
    study_uid: str
    scanner: Scanner
    grid: Grid
    contrast: bool
    nodules: tuple
    marks: list
    consensus: list
    hu: np.ndarray
    twin_hu: np.ndarray | None  # the same rays by a second kernel, if asked for
    twin: Scanner
    labels: np.ndarray  # uint8 [Z, Y, X]: LUNA16's lung mask

    @property
    def name(self) -> str:
        """For file names: unique in the sample."""
        return f"thorax{self.patient + 1:04d}_{self.number + 1}"


def uid(*parts) -> str:
    """A DICOM UID that depends on `parts` alone: a UUID's, below the root 2.25 (PS3.5 B.2)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
    return f"2.25.{int(digest[:32], 16)}"


def draw_scene(plan: Plan, patient: int) -> tuple[Scene, list[Grid]]:
    """One patient's chest with its nodules, and the grids of the scans that show them all."""
    rng = plan.draws(patient, CHEST)
    chest = anatomy.draw_chest(rng)
    blood, airways = vessels.draw_trees(rng, chest)
    grids = [plan.grid(patient, chest, plan.scanner(who, number))
             for who, number in plan.scans() if who == patient]
    found = draw_nodules(plan, patient, chest, np.concatenate([blood, airways]), grids)
    return Scene(chest, blood, airways, found, scene.draw_texture(rng)), grids


def draw_nodules(plan: Plan, patient: int, chest, branches, grids: list[Grid]) -> tuple:
    """The nodules of a patient: those planned, then up to two below 3 mm."""
    rng = plan.draws(patient, NODULES)
    corners = [np.array([(axis[0], axis[-1]) for axis in grid.axes()]) for grid in grids]
    low, high = (np.max([each[:, 0] for each in corners], 0),
                 np.min([each[:, 1] for each in corners], 0))
    inset = np.minimum(CROP_MM, 0.3 * (high - low))
    inset[2] = min(9.0, inset[2])
    if plan.field_mm is None:
        inset[:2] = 0.06 * (high - low)[:2]
    found, taken = [], []
    grades = plan.grades(patient) + [2] * int(rng.integers(0, 3))
    for number, grade in enumerate(grades):
        tiny = number >= plan.nodules_per_patient
        diameter = rng.uniform(*TINY_MM) if tiny else nodules.draw_diameter(rng, grade, plan.law)
        attached = rng.choice(nodules.ATTACHED, p=ATTACHED_SHARE)
        for way in ("isolated",) if plan.round_nodules else (attached, "isolated", "pleura"):
            centre = nodules.place(rng, chest, branches, taken, str(way), diameter / 2,
                                   low + inset, high - inset)
            if centre is not None:
                break
        if centre is None:  # no room is left for it
            continue
        nodule = nodules.draw_nodule(rng, grade, plan.law, str(way), centre, diameter)
        if tiny:
            nodule = replace(nodule, spicules=nodule.spicules[:0], texture=nodules.SOLID)
        found.append(nodules.rounded(nodule) if plan.round_nodules else nodule)
        taken.append((centre, diameter / 2))
    return tuple(found)


def make_scan(plan: Plan, patient: int, number: int, *, with_twin: bool = False) -> Scan:
    """Draw, picture and read one scan."""
    laid_out, grids = draw_scene(plan, patient)
    device, grid = plan.scanner(patient, number), grids[number]
    kernel, blur_mm, edges = SECOND_KERNEL
    twin = replace(device, kernel=kernel, blur_mm=blur_mm, edges=edges,
                   noise_hu=device.noise_hu * 0.6)
    noise = [plan.draws(patient, NOISE, number, which) for which in (0, 1)]
    whole = plan.field_mm is None
    shape = (grid.num_slices, grid.size, grid.size)
    hu, twin_hu = np.empty(shape, np.int16), np.empty(shape, np.int16) if with_twin else None
    for index, plane in enumerate(scene.slices(laid_out, grid)):
        hu[index] = scanner.expose(plane, device, grid.spacing_mm, noise[0], whole=whole)
        if with_twin:
            twin_hu[index] = scanner.expose(plane, twin, grid.spacing_mm, noise[1], whole=whole)
    forks = laid_out.blood[np.abs(laid_out.blood["radius"][:, 1] - 1.4) < 0.6]["stop"]
    inside = np.abs(grid.index_of(forks) / (np.array(shape[::-1]) - 1) - 0.5).max(1) < 0.45
    marks = readers.read(plan.draws(patient, READING, number), laid_out.chest, laid_out.nodules,
                         grid, forks[inside], alike=plan.round_nodules)
    key = (plan.seed, patient, number, *vars(plan.law).values(), plan.confounded, plan.image_size,
           plan.num_slices, plan.field_mm, plan.nodules_per_patient,
           *(["round"] if plan.round_nodules else []))
    return Scan(patient, number, uid("series", *key), uid("study", *key), device, grid,
                laid_out.chest.blood_hu > 100, laid_out.nodules, marks,
                readers.agree(marks, grid.spacing_mm), hu, twin_hu, twin,
                label_lungs(laid_out, grid))


def label_lungs(laid_out: Scene, grid: Grid) -> np.ndarray:
    """Lungs and windpipe as an automatic method finds them, uint8 [Z, Y, X]: by LUNA16's numbers.

    Nodules at the pleura are left out of the lung, as they often are there.
    """
    xs, ys, zs = grid.axes()
    x, y = anatomy.to_patient(laid_out.chest, xs[None, :], ys[:, None])
    labels = np.zeros((len(zs), len(ys), len(xs)), np.uint8)
    side = np.where(x > 0, LEFT, RIGHT)
    for index, z in enumerate(zs):
        labels[index] = np.where(anatomy.lungs(laid_out.chest, x, y, z) < 0, side, 0)
    for nodule in laid_out.nodules:
        if nodule.attached == "pleura":
            part = nodules.window(nodule, (xs, ys, zs), 0)
            away, _ = nodules.distance(nodule, xs[part[2]], ys[part[1]][:, None],
                                       zs[part[0]][:, None, None])
            labels[part][away < 0] = 0
    stems = laid_out.airways[laid_out.airways["radius"][:, 0] > 5]
    for index in range(len(zs)):  # one at a time: floats of a whole scan are large
        cover = np.zeros((1, *labels.shape[1:]), np.float32)
        vessels.paint(cover, stems, xs, ys, zs[index:index + 1], grid.spacing_mm)
        labels[index][cover[0] > 0.5] = TRACHEA
    return labels
