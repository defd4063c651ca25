"""Draw lung nodules: size and looks by suspicion of malignancy, shape, place and attenuation.

A surface is r(direction) = R exp(sum of zonal harmonics about random axes), which together span
the spherical harmonics of those degrees: degrees 2 and 3 make it oval, 4 to 7 lobulate it. Spicules
are thin cones around it. The grade is LIDC's malignancy, 1 to 5. Diameters have LIDC's medians by
grade and its spread within one (668 nodules of LIDC-IDRI crops: logarithmic deviation 0.25 to
0.36); looks follow the grade with as much overlap, given the size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lungkit.phantom.thorax import vessels
from lungkit.phantom.thorax.anatomy import Chest, lungs, to_patient

GRADES = (1, 2, 3, 4, 5)
MEDIAN_MM = (5.7, 5.3, 6.1, 10.5, 17.7)  # of LIDC's nodules by median grade
SPREAD = 0.32  # deviation of a diameter's logarithm within a grade
MATCHED_MM, MATCHED_SPREAD = 8.5, 0.4  # of every grade where size must tell nothing
RANGE_MM = (3.3, 34.0)
SOLID, PART_SOLID, GROUND_GLASS = 5, 3, 1  # LIDC's texture scale
CALCIFIED = {"popcorn": 1, "laminated": 2, "solid": 3, "central": 5, "absent": 6}  # LIDC's codes
SOLID_HU, GLASS_HU, CAVITY_HU = 32.0, -600.0, -960.0
ATTACHED = ("isolated", "vessel", "pleura")
HISTOLOGY = "ABEG"  # adenocarcinoma, small cell, large cell, squamous: letters of Lung-PET-CT-Dx
LETTERS = (0.62, 0.1, 0.04, 0.24)  # their shares, near that data set's


@dataclass(frozen=True)
class Nodule:
    """One nodule. Degrees are 0 to 1; diameter_mm is of the circle as large as its middle slice."""

    grade: int
    diameter_mm: float
    centre_mm: tuple[float, float, float]
    attached: str
    texture: int
    calcified: str
    spiculation: float
    lobulation: float
    softness: float  # how wide the margin is
    elongation: float
    cavity: float  # radius of the hole as a share of the nodule's
    solid_hu: float
    histology: str
    axes: np.ndarray  # float32 [K, 3], of the zonal harmonics
    degrees: np.ndarray  # int [K]
    weights: np.ndarray  # float32 [K]
    radius_mm: float
    spicules: np.ndarray  # vessels.BRANCH [N]


@dataclass(frozen=True)
class Law:
    """What may tell grades apart; a control switches one off."""

    size: bool = True
    looks: bool = True


def draw_nodule(rng: np.random.Generator, grade: int, law: Law, attached: str, centre_mm,
                diameter_mm: float) -> Nodule:
    """Draw the looks of a nodule whose place and size are known."""
    shown = (grade - 1) / 4 if law.looks else rng.choice(5) / 4
    degree = np.clip(shown + rng.normal(0, 0.5, 3), 0, 1)  # spiculation, lobulation, margin
    kind = rng.random()
    glass, part = 0.05 + 0.09 * shown, 0.04 + 0.2 * shown
    texture = GROUND_GLASS if kind < glass else PART_SOLID if kind < glass + part else SOLID
    calcified, pattern = "absent", rng.choice(4)
    if texture == SOLID and rng.random() < 0.6 * (1 - shown) ** 2:
        calcified = ("popcorn", "laminated", "solid", "central")[pattern]
    cavity = rng.uniform(0.35, 0.5) if rng.random() < 0.15 * shown else 0.0
    elongation = float(rng.beta(2, 4))
    degrees = np.array([2, 2, 3, 4, 5, 5, 6, 7])
    axes = rng.standard_normal((len(degrees), 3)).astype(np.float32)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    spread = np.where(degrees < 4, 0.06 + 0.2 * elongation, 0.015 + 0.15 * degree[1])
    weights = (spread * rng.choice([-1, 1], len(degrees)) * rng.uniform(0.4, 1, len(degrees))
               ).astype(np.float32)
    turn = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    around = np.stack([np.cos(turn), np.sin(turn), np.zeros(180)], 1).astype(np.float32)
    middle = np.sqrt(np.mean(_relative(around, axes, degrees, weights) ** 2))
    radius = diameter_mm / 2 / float(middle)
    return Nodule(
        grade=grade, diameter_mm=diameter_mm, centre_mm=tuple(float(each) for each in centre_mm),
        attached=attached, texture=texture, calcified=calcified, spiculation=float(degree[0]),
        lobulation=float(degree[1]), softness=float(degree[2]), elongation=elongation,
        cavity=cavity if diameter_mm > 12 and texture == SOLID else 0.0,
        solid_hu=rng.normal(SOLID_HU, 10), histology=str(rng.choice(list(HISTOLOGY), p=LETTERS)),
        axes=axes, degrees=degrees, weights=weights, radius_mm=radius,
        spicules=_draw_spicules(rng, centre_mm, radius, float(degree[0])))


def rounded(nodule: Nodule) -> Nodule:
    """The same nodule as a ball, without spicules and cavity."""
    return replace(nodule, weights=np.zeros_like(nodule.weights), radius_mm=nodule.diameter_mm / 2,
                   spicules=nodule.spicules[:0], spiculation=0.0, lobulation=0.0, elongation=0.0,
                   cavity=0.0)


def draw_diameter(rng: np.random.Generator, grade: int, law: Law) -> float:
    """Draw a diameter in mm by grade, or one of all grades alike where size shall tell nothing."""
    median, spread = (MEDIAN_MM[grade - 1], SPREAD) if law.size else (MATCHED_MM, MATCHED_SPREAD)
    return float(np.clip(median * np.exp(spread * rng.standard_normal()), *RANGE_MM))


def _draw_spicules(rng, centre_mm, radius_mm: float, spiculation: float) -> np.ndarray:
    count = int(max(0.0, spiculation - 0.3) * 34)
    ways = rng.standard_normal((count, 3))
    ways[:, 2] *= 0.7
    ways /= np.linalg.norm(ways, axis=1, keepdims=True) + 1e-9
    spicules = np.zeros(count, vessels.BRANCH)
    length = rng.uniform(0.3, 1.2, count) * (2.5 + 0.8 * radius_mm) * spiculation
    spicules["start"] = centre_mm + ways * radius_mm * 0.75
    spicules["stop"] = centre_mm + ways * (radius_mm + length)[:, None]
    spicules["radius"] = np.stack([np.full(count, 0.6 + 0.09 * radius_mm),
                                   np.full(count, 0.25)], 1)
    return spicules


def _relative(ways: np.ndarray, axes, degrees, weights) -> np.ndarray:
    """Surface over radius in unit directions [..., 3]."""
    total = np.zeros(ways.shape[:-1], np.float32)
    for axis, degree, weight in zip(axes, degrees, weights):
        at = ways[..., 0] * axis[0] + ways[..., 1] * axis[1] + ways[..., 2] * axis[2]
        below, here = np.ones_like(at), at
        for order in range(2, int(degree) + 1):  # Bonnet's recursion of the Legendre polynomials
            below, here = here, ((2 * order - 1) * at * here - (order - 1) * below) / order
        total += weight * here
    return np.exp(total)


def distance(nodule: Nodule, x, y, z) -> tuple[np.ndarray, np.ndarray]:
    """(distance to the surface in mm, negative inside; distance from the centre over the surface's)

    Arrays that broadcast. The distance is along the ray from the centre.
    """
    dx, dy, dz = np.broadcast_arrays(*(np.asarray(each, np.float32) - np.float32(at)
                                       for each, at in zip((x, y, z), nodule.centre_mm)))
    away = np.sqrt(dx * dx + dy * dy + dz * dz)
    ways = np.stack([dx, dy, dz], -1) / np.maximum(away, 1e-6)[..., None]
    surface = nodule.radius_mm * _relative(ways, nodule.axes, nodule.degrees, nodule.weights)
    return away - surface, away / surface


def reach_mm(nodule: Nodule) -> float:
    """A radius that holds the nodule without its spicules."""
    return float(nodule.radius_mm * np.exp(np.abs(nodule.weights).sum()))


def window(nodule: Nodule, axes, margin_mm: float) -> tuple[slice, ...]:
    """The part [Z, Y, X] of a grid of `axes` (x, y, z) that holds the nodule and a margin."""
    reach = min(reach_mm(nodule), 1.7 * nodule.radius_mm) + margin_mm
    return tuple(slice(*np.searchsorted(axis, (at - reach, at + reach)))
                 for axis, at in list(zip(axes, nodule.centre_mm))[::-1])


def paint(hu: np.ndarray, nodule: Nodule, xs, ys, zs, width_mm: float) -> None:
    """Paint a nodule with its spicules into HU float32 [Z, Y, X]; it never darkens but a cavity."""
    if nodule.texture == SOLID and len(nodule.spicules):
        cover = np.zeros_like(hu)
        vessels.paint(cover, nodule.spicules, xs, ys, zs, width_mm)
        hu += cover * np.maximum(nodule.solid_hu - hu, 0)
    part = window(nodule, (xs, ys, zs), 3.0)
    view = hu[part]
    if not view.size:
        return
    at = (xs[part[2]], ys[part[1]][:, None], zs[part[0]][:, None, None])
    outside, relative = distance(nodule, *at)
    blurred = width_mm + 1.6 * nodule.softness * (nodule.texture != GROUND_GLASS) + (
        2.0 * (nodule.texture != SOLID))
    share = np.clip(0.5 - outside / blurred, 0, 1)
    inside = _inside_hu(nodule, relative, [(each - np.float32(centre)) / nodule.radius_mm
                                           for each, centre in zip(at, nodule.centre_mm)])
    if nodule.attached != "pleura" and nodule.texture == SOLID:
        view += share * (inside - view)  # nothing but lung and vessels lies there
    else:
        view += share * np.maximum(inside - view, 0)
    if nodule.cavity:
        hole = np.clip(0.5 - (relative - nodule.cavity) * nodule.radius_mm / width_mm, 0, 1)
        view += hole * (CAVITY_HU - view)


def _inside_hu(nodule: Nodule, relative: np.ndarray, offset: list) -> np.ndarray:
    """Attenuation by the distance from the centre over the surface's, and x, y, z over the radius.
    """
    hu = np.full(relative.shape, nodule.solid_hu, np.float32)
    if nodule.texture != SOLID:
        hu[:] = GLASS_HU
        if nodule.texture == PART_SOLID:
            hu += np.clip((0.55 - relative) * 8, 0, 1) * (nodule.solid_hu - 40 - GLASS_HU)
        return hu
    if nodule.calcified == "central":
        hu += np.clip((0.5 - relative) * 8, 0, 1) * 600
    elif nodule.calcified == "solid":
        hu += 380
    elif nodule.calcified == "laminated":
        hu += 450 * np.clip(1 - np.abs(relative - 0.6) * 5, 0, 1)
    elif nodule.calcified == "popcorn":
        grains = np.sin(4 * offset[0] + 1) * np.sin(4 * offset[1] + 2) * np.sin(4 * offset[2])
        hu += 420 * np.clip(4 * grains, 0, 1) * (relative < 0.85)
    return hu


# ------------------------------------------------------------------ places

def place(rng: np.random.Generator, chest: Chest, branches: np.ndarray, taken: list, attached: str,
          radius_mm: float, low_mm, high_mm):
    """A centre [3] between the corners low_mm and high_mm for a nodule, or None if none is found.

    It lies in the lung, away from large vessels unless it hangs on one, and from what is `taken`,
    a list of (centre, radius).
    """
    points = rng.uniform(low_mm, high_mm, (1500, 3))
    if attached == "vessel":
        ends = branches["stop"][(branches["radius"][:, 1] > 0.7) & (branches["radius"][:, 1] < 2.2)]
        ends = ends[((ends > low_mm) & (ends < high_mm)).all(1)]
        if len(ends):
            points = np.clip(ends[rng.permutation(len(ends))]
                             + rng.normal(0, 0.3 * radius_mm, (len(ends), 3)), low_mm, high_mm)
    x, y, z = points.T.astype(np.float32)
    wall = lungs(chest, *to_patient(chest, x, y), z)
    if attached == "pleura":
        points = points[(wall < -0.5 * radius_mm) & (wall > -0.75 * radius_mm)]
    else:
        points = points[wall < -radius_mm - 3]
    large = branches[branches["radius"][:, 0] > (3.0 if attached == "vessel" else 1.6)]
    for point in points[:200]:
        if any(np.linalg.norm(point - other) < radius_mm + size + 6 for other, size in taken):
            continue
        along = large["stop"] - large["start"]
        share = np.clip(((point - large["start"]) * along).sum(1)
                        / np.maximum((along * along).sum(1), 1e-6), 0, 1)
        away = np.linalg.norm(large["start"] + share[:, None] * along - point, axis=1)
        if len(large) and (away - large["radius"][:, 0]).min() < radius_mm * 0.9 + 1.5:
            continue
        return point
    return None
