"""Lay out a chest: signed distances to its organs at any points, in millimetres.

The axes are the patient's: x to the left, y to the back, z to the head; the origin lies at the
carina, halfway between front and back of the lungs. Nobody lies quite straight: `to_patient` and
`to_scanner` turn between these axes and the scanner's, which are DICOM's. A distance is negative
inside. Organs are superellipses, ellipsoids, capsules and shells joined by smooth minima, so that a
distance is exact at a sphere and good to a few per cent near any wall, which is what partial volume
needs of it.

Sizes follow the two chests of public CT that the pictures were held against; see
docs/simulated_thorax.md. Everything takes arrays that broadcast; float32 stays float32, which makes
a plane in half the time, so numbers here are Python's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RIB_PITCH_MM = 24.0
VERTEBRA_MM = 25.0  # a vertebra with its disc
SPINE_Y_MM = 56.0  # centre of the vertebral bodies
NUM_RIBS = 12
WALL_MM = 25.0  # of the chest without its fat


@dataclass(frozen=True)
class Chest:
    """What the scene of one patient is made from; lengths in mm, attenuation in HU."""

    half_width: float  # of the lungs together, where they are widest
    half_depth: float
    fat: float  # under the skin
    breast: float  # 0 none, 1 large
    heart: float  # factor on its size
    aorta: float  # radius
    blood_hu: float  # 40 without contrast agent, 120 to 250 with it
    lung_hu: float  # halfway between front and back
    gravity: float  # HU that the lung gains a centimetre towards the back
    marrow_hu: float
    diaphragm: float  # height of the right dome
    rib_phase: float  # of the ribs along z, and of the vertebrae
    tilt: float  # of the ribs: fall from the back to the front
    apex: float  # height of the lungs' top
    emphysema: float  # share of the upper lung with holes, 0 in most
    turn: float  # radians about z that the patient lies turned
    uneven: float  # by what share the right half of the chest is wider than the left

    def width_mm(self) -> float:
        """From arm to arm below the shoulders."""
        return 2 * (self.half_width + WALL_MM + 0.9 * self.fat)


def draw_chest(rng: np.random.Generator) -> Chest:
    """Draw one patient's chest."""
    size = rng.normal(1, 0.05)
    enhanced = rng.random() < 0.5
    return Chest(
        half_width=122 * size * rng.normal(1, 0.03), half_depth=97 * size * rng.normal(1, 0.05),
        fat=float(np.clip(rng.lognormal(np.log(12), 0.5), 4, 34)),
        breast=rng.uniform(0.4, 1) if rng.random() < 0.45 else 0.0,
        heart=rng.normal(1, 0.07), aorta=rng.normal(13, 1.2),
        blood_hu=rng.uniform(110, 210) if enhanced else 42.0,
        lung_hu=rng.normal(-878, 14), gravity=rng.uniform(0, 7),
        marrow_hu=rng.normal(190, 40),
        diaphragm=rng.normal(-108, 9), rib_phase=rng.uniform(-12, 12), tilt=rng.normal(78, 8),
        apex=rng.normal(98, 6), emphysema=rng.uniform(0.1, 0.5) if rng.random() < 0.2 else 0.0,
        turn=float(np.clip(rng.normal(0, 0.05), -0.12, 0.12)), uneven=rng.normal(0.02, 0.02))


def to_patient(chest: Chest, x, y):
    """x and y of the patient from those of the scanner."""
    cos, sin = math.cos(chest.turn), math.sin(chest.turn)
    return cos * x + sin * y, cos * y - sin * x


def to_scanner(chest: Chest, points: np.ndarray) -> np.ndarray:
    """Points [..., 3] of the patient in the scanner's axes."""
    cos, sin = math.cos(chest.turn), math.sin(chest.turn)
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    return np.stack([cos * x - sin * y, cos * y + sin * x, z], -1)


# ------------------------------------------------------------------ shapes

def smooth_min(first, second, width):
    """Minimum of two distances, rounded where they differ by less than `width` mm."""
    near = np.maximum(width - np.abs(first - second), 0)
    return np.minimum(first, second) - near * near * (0.25 / width)


def smooth_max(first, second, width):
    return -smooth_min(-first, -second, width)


def ellipsoid(x, y, z, centre, radii):
    """Distance to an ellipsoid, to first order: (f - 1) f / |grad f|."""
    u, v, w = ((each - at) / radius for each, at, radius in zip((x, y, z), centre, radii))
    near = np.sqrt(u * u + v * v + w * w)
    slope = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2)
    return near * (near - 1) / (slope + 1e-6)


def ellipse(x, y, centre, radii, turn_deg=0.0):
    """Distance to an elliptic cylinder along z, to first order."""
    cos, sin = math.cos(math.radians(turn_deg)), math.sin(math.radians(turn_deg))
    dx, dy = x - centre[0], y - centre[1]
    u, v = (cos * dx + sin * dy) / radii[0], (cos * dy - sin * dx) / radii[1]
    near = np.sqrt(u * u + v * v)
    return near * (near - 1) / (np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2) + 1e-6)


def segment(x, y, start, stop, radius):
    """Distance to a capsule in the plane, [2] points, infinitely long along z."""
    along = [float(last - first) for first, last in zip(start, stop)]
    share = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1])
                    / sum(each * each for each in along), 0, 1)
    return np.hypot(x - start[0] - share * along[0], y - start[1] - share * along[1]) - radius


def capsule(x, y, z, start, stop, radius):
    """Distance to a capsule in space, [3] points."""
    along = [float(last - first) for first, last in zip(start, stop)]
    dx, dy, dz = x - start[0], y - start[1], z - start[2]
    share = np.clip((dx * along[0] + dy * along[1] + dz * along[2])
                    / sum(each * each for each in along), 0, 1)
    return np.sqrt((dx - share * along[0]) ** 2 + (dy - share * along[1]) ** 2
                   + (dz - share * along[2]) ** 2) - radius


def _superellipse(x, y, half_x, half_y, power=2.5):
    """Distance along the ray from the centre to a superellipse."""
    near = (np.abs(x / half_x) ** power + np.abs(y / half_y) ** power) ** (1 / power)
    return np.hypot(x, y) * (1 - 1 / np.maximum(near, 1e-3))


# ------------------------------------------------------------------ walls

def _section(chest: Chest, z):
    """(half width, half depth, centre along y) of the chest's inside at a height."""
    rise = np.clip((z + 25) / (chest.apex + 40), 0, 1)
    taper = np.sqrt(np.maximum(1 - rise ** 2.2, 0))
    half_y = chest.half_depth * (0.52 + 0.48 * taper)
    # the back stays where it is; the front slopes back to the neck
    return chest.half_width * (0.6 + 0.4 * taper), half_y, (chest.half_depth - half_y) * 0.8


def cavity(chest: Chest, x, y, z):
    """Distance to the inner wall of the chest, ignoring what stands in it."""
    half_x, half_y, centre = _section(chest, z)
    back = y - centre
    lean = np.clip(back / half_y, -1, 1)
    # behind the sternum the chest is narrower than at the back
    sides = half_x * (1 + 0.10 * lean) * (1 - chest.uneven * np.tanh(x / 40))
    return _superellipse(x, back, sides, half_y * (1 + 0.02 * lean))


def mediastinum(chest: Chest, x, y, z):
    """Distance to what parts the two lungs: heart, vessels and their fat, and the spine."""
    size, front = chest.heart, -chest.half_depth
    heart = smooth_min(
        ellipsoid(x, y, z, (38, front + 58, -66), (56 * size, 44 * size, 48 * size)),
        ellipsoid(x, y, z, (-4, front + 60, -54), (40 * size, 44 * size, 46 * size)), 12.0)
    vessels = ellipse(x, y, (6, front + 66 + 0.22 * z), (34 - 0.06 * z, 40 - 0.12 * z))
    middle = np.abs(x - 3) - np.where(y < 0, 2.5 + 0.05 * np.abs(z), 8.0)
    spine = ellipse(x, y, (0, SPINE_Y_MM + 14), (25, 34))
    aorta = np.hypot(x - 19, y - 27) - chest.aorta - 2
    hilum = np.minimum(
        ellipsoid(x, y, z, (-34, 3, -18), (13, 10, 22)),
        ellipsoid(x, y, z, (38, 7, -12), (12, 10, 20)))
    core = smooth_min(smooth_min(heart, np.maximum(vessels, -z - 40), 10.0), middle, 8.0)
    return smooth_min(smooth_min(core, hilum, 14.0),
                      smooth_min(spine, np.maximum(aorta, z - 26), 7.0), 8.0)


def diaphragm(chest: Chest, x, y, z):
    """Distance to the domes: positive above, where the lung is."""
    left = x > 0
    top = chest.diaphragm - np.where(left, 9, 0)
    away = ((x - np.where(left, 66, -62)) / 62) ** 2 + ((y + 12) / 78) ** 2
    return (z - top + 34 * np.minimum(away, 2.2)) * 0.8


def lungs(chest: Chest, x, y, z):
    """Distance to the lungs: inside the chest, beside the mediastinum, above the diaphragm."""
    top = chest.apex - 40 * (((np.abs(x) - 47) / 50) ** 2 + ((y - 16) / 66) ** 2)
    wall = smooth_max(cavity(chest, x, y, z), (z - top) * 0.7, 6.0)
    wall = smooth_max(wall, -diaphragm(chest, x, y, z), 5.0)
    return smooth_max(wall, -mediastinum(chest, x, y, z), 4.0)


def body(chest: Chest, x, y, z):
    """Distance to the skin."""
    half_x, half_y, centre = _section(chest, z)
    shoulders = 0.5 + 0.5 * np.tanh((z - 40) / 28)
    sides = 0.3 * half_x + 0.7 * chest.half_width + WALL_MM + chest.fat * 0.9 + 12 * shoulders
    depth = half_y + WALL_MM + chest.fat * 0.8
    angle = np.arctan2(x, y)
    bumps = (2.2 * np.cos(2 * angle + 0.02 * z) + 1.5 * np.cos(3 * angle + chest.rib_phase)
             + 5 * np.exp(-((angle / 0.12) ** 2)))  # the groove along the spine
    wall = _superellipse(x, y - 6 - centre, sides, depth, 2.25) + bumps
    if chest.breast:
        size = 0.6 + 0.4 * chest.breast
        breasts = ellipsoid(np.abs(x), y, z, (76, -chest.half_depth - 16, -36),
                            (66 * size, 44 * size, 62 * size))
        wall = smooth_min(wall, breasts, 26.0)
    return wall


def muscles(chest: Chest, x, y, z, wall):
    """Distance to muscle of the chest wall; wall: `cavity` at the same points."""
    side = np.abs(x)
    layer = wall - 13 - 2 * np.cos(2 * np.arctan2(x, y))
    erector = ellipse(side, y, (27, chest.half_depth + 3), (25, 17))
    latissimus = ellipse(side, y, (chest.half_width + 13, 34), (9, 44), 8)
    _, half_y, centre = _section(chest, z)
    pectoral = ellipse(side, y, (66, centre - half_y - 6 + 0.12 * np.maximum(-z, 0)),
                       (56, 11 + 0.08 * np.clip(z + 20, -60, 60)), 16)
    shoulder = _scapula(chest, side, y, z) - 12
    return np.minimum(np.minimum(np.minimum(layer, erector), np.minimum(latissimus, pectoral)),
                      shoulder)


# ------------------------------------------------------------------ bones

def _scapula(chest: Chest, side, y, z):
    """Distance to the shoulder blade, a bent plate behind the upper ribs."""
    low = np.clip((z + 75) / 60, 0.15, 1)
    root = (chest.half_width * 0.74 + 1, chest.half_depth + 10)
    length = 46 * float(np.mean(low))
    bend = (root[0] + 0.5 * length + 2, root[1] - 0.4 * length)
    tip = (root[0] + 0.92 * length, root[1] - length)
    plate = np.minimum(segment(side, y, root, bend, 1.9), segment(side, y, bend, tip, 2.6))
    ridge = segment(side, y, bend, (tip[0] + 8, tip[1] + 24), 2.2)
    plate = np.where(z > 5, np.minimum(plate, ridge), plate)
    return np.maximum(plate, (-75 - z))


def _ribs(chest: Chest, x, y, z, wall):
    """(distance to ribs, share of cartilage): each falls along the wall from back to front."""
    turn = np.arctan2(np.abs(x), y - 20) / np.pi  # 0 behind, 1 in front
    z = z + 0.05 * x  # nobody lies quite straight
    fall = chest.tilt * turn * (1 + 0.35 * (1 - turn))
    top = 86 + chest.rib_phase
    number = np.clip(np.round((top - z - fall) / RIB_PITCH_MM), 0, NUM_RIBS - 1)
    height = (z + fall - top + number * RIB_PITCH_MM) / 6.2
    depth = (wall - 6.8) / 4.0
    away = np.sqrt(height * height + depth * depth)
    ends = np.maximum((0.13 - turn), (turn - 0.93)) * 200
    return np.maximum((away - 1) * 4.2, ends), np.clip((turn - 0.76) * 40, 0, 1)


def _vertebrae(chest: Chest, x, y, z):
    """Distances to vertebrae (body, arch, transverse and spinous process), marrow and discs."""
    level = (z + 0.05 * x + chest.rib_phase + 1000 * VERTEBRA_MM) % VERTEBRA_MM - VERTEBRA_MM / 2
    waist = 1.6 * np.cos(2 * np.pi * level / (VERTEBRA_MM - 5))
    centre = ellipse(x, y, (0, SPINE_Y_MM), (18.5, 14.5)) + waist
    canal = np.hypot(x, y - SPINE_Y_MM - 22) - 8.6
    centre = smooth_max(centre, -canal + 1.5, 2.0)
    arch = np.maximum(np.abs(np.hypot(x / 1.15, y - SPINE_Y_MM - 22) - 11.5) - 2.6,
                      np.abs(level) - 9)
    side = np.abs(x)
    wings = np.maximum(segment(side, y, (11, SPINE_Y_MM + 25), (35, SPINE_Y_MM + 35), 4.4),
                       np.abs(level - 3) - 6)
    thorn = np.maximum(segment(x, y, (0, SPINE_Y_MM + 35), (0, SPINE_Y_MM + 55), 3.2),
                       np.abs(level + 4) - 8)
    disc = np.abs(np.abs(level) - VERTEBRA_MM / 2) - 2.6
    processes = np.minimum(np.minimum(arch, wings), thorn)
    # the plates at a vertebra's ends are thinner than a slice: marrow reaches the disc
    return (np.minimum(np.maximum(centre, -disc), processes), np.minimum(centre, processes),
            np.maximum(centre, disc))


def bones(chest: Chest, x, y, z, wall):
    """Distances to bone, to bone that holds marrow, and to cartilage; wall: `cavity` there."""
    ribs, soft = _ribs(chest, x, y, z, wall)
    spine, spongy, discs = _vertebrae(chest, x, y, z)
    _, half_y, centre = _section(chest, z)
    breast_bone = _superellipse(x, y - centre + half_y + 9, 17 + 0.1 * np.clip(z + 40, 0, 120),
                                6.5, 3.0)
    breast_bone = np.maximum(breast_bone, -z - 75)
    cartilage = np.minimum(np.where(soft > 0.5, ribs, 99.0), discs)
    others = np.minimum(np.where(soft > 0.5, 99.0, ribs), breast_bone)
    blades = _scapula(chest, np.abs(x), y, z)
    return np.minimum(np.minimum(others, spine), blades), np.minimum(others, spongy), cartilage


# ------------------------------------------------------------------ what blood flows in

def great_vessels(chest: Chest, x, y, z):
    """Distance to heart, aorta, pulmonary arteries and caval veins."""
    size, front, radius = chest.heart, -chest.half_depth, chest.aorta
    heart = smooth_min(
        ellipsoid(x, y, z, (38, front + 58, -68), (52 * size, 40 * size, 43 * size)),
        ellipsoid(x, y, z, (-4, front + 60, -56), (35 * size, 39 * size, 41 * size)), 6.0)
    root, bend = (4, front + 58, -30), (0, front + 58, 14)
    over, down = (16, 24, 24), (19, 27, 8)
    found = smooth_min(heart, capsule(x, y, z, root, bend, radius + 2), 3.0)
    for start, stop, thick in (
            (bend, (6, front + 72, 26), radius + 1), ((6, front + 72, 26), over, radius),
            (over, down, radius), (down, (14, 31, -200), radius - 1),
            ((22, front + 50, -34), (26, front + 72, -10), 13),  # pulmonary trunk
            ((26, front + 72, -10), (46, 6, -8), 11), ((24, front + 74, -12), (-40, 2, -14), 10),
            ((-21, front + 64, 70), (-20, front + 70, -34), 9),  # superior caval vein
            ((-3, front + 76, 24), (-16, front + 66, 120), 6),  # branches of the arch
            ((6, front + 84, 26), (10, front + 80, 120), 5),
            ((14, front + 96, 26), (24, front + 92, 120), 5),
            ((-10, front + 66, 60), (24, front + 56, 82), 6),
            ((12, 10, -32), (-38, 12, -30), 9), ((12, 10, -32), (42, 14, -28), 9)):
        found = np.minimum(found, capsule(x, y, z, start, stop, thick))
    return found


def gullet(x, y, z):
    """Distance to the oesophagus."""
    return np.hypot((x - 5) / 1.4, y - 30 + 0.05 * np.clip(z, -80, 0)) - 5.2


def table(chest: Chest, x, y):
    """Distance to the patient table, a bent board that holds the back."""
    top = chest.half_depth + 28 + chest.fat * 0.8 + 5 - 0.0011 * x * x
    return np.maximum(np.maximum(top - y, y - top - 22 + 0.0006 * x * x), np.abs(x) - 205)


def fissures(x, y, z):
    """Distance to the planes between the lobes, bent: oblique on both sides, one more right."""
    bend = 5 * np.sin(x / 23) + 4 * np.cos(z / 31)
    oblique = (z + 12 + 0.95 * (y + np.where(x > 0, 2, 10)) + bend) * 0.72
    minor = np.where((x < 0) & (oblique < 0), z + 22 + 0.08 * y + 0.6 * bend, 99.0)
    return np.minimum(np.abs(oblique), np.abs(minor))
