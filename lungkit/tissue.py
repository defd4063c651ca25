"""Lay out simulated lung tissue: where air, epithelium, stroma, nuclei and red cells are.

Everything here is geometry in micrometres, on a fixed grid and independent of the size of the
image; `lungkit.phantom` stains it and takes the picture. All three classes come from one
construction, the distance to the walls of a warped Voronoi diagram. The morphology follows the WHO
Classification of Thoracic Tumours (5th ed., 2021):

- benign: the walls are alveolar septa with capillaries, pneumocytes and lymphocytes, the rest air;
- adenocarcinoma: the walls are stroma, lined by a band of columnar tumour cells around a lumen
  (acinar; lepidic or papillary when the lumina are wide), or filled with them (solid);
- squamous: the walls are stroma between solid nests with intercellular borders and keratin pearls.

The classes overlap on purpose: solid adenocarcinoma and squamous nests without keratin, lepidic
adenocarcinoma and septa with reactive pneumocytes, collapsed or fibrotic lung without air.

Padded fields are float32 [272, 272], indexed [y, x]; distances are signed, in um.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

FIELD_UM = 180.0  # side of a tile: red cells, 6 um in fixed tissue, are 1/30 of an LC25000 tile
LAYOUT_PX = 224  # grid cells along a tile
LAYOUT_UM = FIELD_UM / LAYOUT_PX
PAD_PX = 24  # the layout reaches beyond the tile: structures are cut at its border, not bent
SIDE_PX = LAYOUT_PX + 2 * PAD_PX

CELL = np.dtype([(name, np.float32) for name in (
    "x", "y", "a", "b", "angle",  # centre and semi-axes in um, radians
    "density", "vesicle",  # haematoxylin; 0 evenly dark to 1 pale with a dark rim
    "nucleolus", "owner")])  # 0 or 1; FREE, TUMOUR (has a cytoplasm territory) or MACROPHAGE
FREE, TUMOUR, MACROPHAGE = 0, 1, 2


@dataclass(frozen=True)
class Biology:
    """What the tiles of one patient share. Shares and degrees are in 0..1 unless said otherwise."""

    nuclear_size: float  # factor on tumour nuclei, about 1
    pleomorphism: float  # log standard deviation of tumour nuclear size
    nucleoli: float
    vesicular: float
    keratin: float
    differentiation: float  # low: adenocarcinoma is mostly solid
    inflammation: float


@dataclass
class Scene:
    """One laid-out tile. Amounts of stain are optical densities along the stain vector."""

    air: np.ndarray  # padded signed field, > 0 where there is no tissue
    epithelium: np.ndarray  # padded bool
    nuclei: np.ndarray  # CELL [N], in order of precedence where two overlap
    red_cells: np.ndarray  # CELL [M]
    pearls: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))  # x, y, radius in um
    stroma_eosin: float = 0.5
    cytoplasm_eosin: float = 0.4
    cytoplasm_haematoxylin: float = 0.25
    border_eosin: float = 0.0  # extra at cell borders; negative: pale borders
    keratinised: float = 0.0  # share of single cells with dense eosinophilic cytoplasm
    vacuoles: float = 0.0
    debris: float = 0.0  # protein and mucus in air spaces


def draw_biology(rng):
    """Draw one patient's biology. Ranges are ours, set by eye beside LC25000."""
    return Biology(
        nuclear_size=float(np.exp(rng.normal(0, 0.13))), pleomorphism=rng.uniform(0.08, 0.3),
        nucleoli=rng.beta(1.5, 2), vesicular=rng.uniform(0.1, 0.9), keratin=rng.beta(1.2, 1.6),
        differentiation=rng.beta(1.6, 1.2), inflammation=rng.beta(1.2, 4))


# --- fields and points ----------------------------------------------------------------------------

def noise(rng, scale_um, size=LAYOUT_PX, stretch=1.0, field_um=FIELD_UM):
    """Smooth noise float32 [size, size] of about unit deviation; the same picture at any size."""
    rows, cols = (max(2, round(field_um / step)) + 3 for step in (scale_um, scale_um * stretch))
    grid = rng.standard_normal((rows, cols), np.float32) / 0.75  # cubic enlargement loses a quarter
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def _padded_noise(rng, scale_um):
    return noise(rng, scale_um, SIDE_PX, field_um=SIDE_PX * LAYOUT_UM)


def _at(values, points_um):
    """Values of a padded field at points [N, 2] (x, y)."""
    index = np.round(points_um / LAYOUT_UM - 0.5).astype(int) + PAD_PX
    return values[tuple(np.clip(index, 0, SIDE_PX - 1).T[::-1])]


def _lattice(rng, spacing_um, jitter=0.2):
    """Points [N, 2] of a jittered hexagonal lattice over the padded tile, in random order."""
    start = -PAD_PX * LAYOUT_UM - rng.uniform(0, 1, 2) * spacing_um
    stop = FIELD_UM + PAD_PX * LAYOUT_UM
    grid = np.stack(np.meshgrid(np.arange(start[0], stop, spacing_um),
                                np.arange(start[1], stop, spacing_um * 0.866)), -1)
    grid[1::2, :, 0] += spacing_um / 2
    points = grid.reshape(-1, 2)
    return rng.permutation(points + rng.normal(0, jitter * spacing_um, points.shape))


def _wall_distance(rng, spacing_um, warp_um, merged, rounding_um=2.0):
    """Distance to the walls of a warped Voronoi diagram, of whose cells a share is merged."""
    index = np.round(_lattice(rng, spacing_um, 0.22) / LAYOUT_UM).astype(int) + PAD_PX
    index = index[((index >= 0) & (index < SIDE_PX)).all(1)]
    seeds = np.ones((SIDE_PX, SIDE_PX), np.uint8)
    seeds[index[:, 1], index[:, 0]] = 0
    _, cells = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5,
                                               labelType=cv2.DIST_LABEL_PIXEL)
    joined = np.arange(cells.max() + 1)
    chosen = rng.random(joined.size) < merged
    joined[chosen] = rng.permutation(joined)[chosen]
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX].astype(np.float32)
    dx, dy = ((_padded_noise(rng, 45) + 0.3 * _padded_noise(rng, 16)) * (warp_um / LAYOUT_UM)
              for _ in range(2))
    cells = cv2.remap(joined[cells].astype(np.float32), x + dx, y + dy, cv2.INTER_NEAREST,
                      borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.dilate(cells, np.ones((3, 3))) == cells
    distance = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5) * LAYOUT_UM
    distance = np.minimum(distance, FIELD_UM)  # without any wall OpenCV answers 3e38
    return cv2.GaussianBlur(distance, (0, 0), rounding_um / LAYOUT_UM)


def _along(values, level, spacing_um, rng):
    """Points [N, 2] at even steps along the level lines of a padded field."""
    lines, _ = cv2.findContours((values > level).astype(np.uint8), cv2.RETR_LIST,
                                cv2.CHAIN_APPROX_NONE)
    points = [np.zeros((0, 2))]
    for line in lines:
        line = np.vstack([line[:, 0], line[:1, 0]]).astype(float)
        arc = np.r_[0, np.cumsum(np.hypot(*np.diff(line, axis=0).T))] * LAYOUT_UM
        steps = np.arange(rng.uniform(0, spacing_um), arc[-1], spacing_um)
        steps += rng.normal(0, 0.12 * spacing_um, steps.size)
        points.append(np.stack([np.interp(steps, arc, line[:, axis]) for axis in (0, 1)], 1))
    return (np.concatenate(points) - PAD_PX + 0.5) * LAYOUT_UM


def _direction(values):
    """Angle in radians of the level lines of a padded field."""
    smooth = cv2.GaussianBlur(values, (0, 0), 3)
    return np.arctan2(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), -cv2.Sobel(smooth, cv2.CV_32F, 0, 1))


# --- cells ----------------------------------------------------------------------------------------

def _cells(rng, points, radius_um, elongation, angle, density, *, spread=0.12, vesicle=0.0,
           nucleolus=0.0, owner=FREE):
    """Cells at points [N, 2]; elongation is a / b, spread the log deviation of their size."""
    cells = np.zeros(len(points), CELL)
    cells["x"], cells["y"] = points[:, 0], points[:, 1]
    size = radius_um * np.exp(rng.normal(0, spread, len(points)))
    shape = np.sqrt(elongation * np.exp(rng.normal(0, 0.15, len(points))))
    cells["a"], cells["b"] = size * shape, size / shape
    cells["angle"] = angle
    cells["density"] = density * np.exp(rng.normal(0, 0.14, len(points)))
    cells["vesicle"] = np.clip(vesicle + rng.normal(0, 0.15, len(points)), 0, 1)
    cells["nucleolus"] = rng.random(len(points)) < nucleolus
    cells["owner"] = owner
    return cells


def _patchy(rng, where, spacing_um, share, patch_um=38):
    """Points of a dense lattice inside a padded mask, in patches that cover about a share of it."""
    points, chance = _lattice(rng, spacing_um), _padded_noise(rng, patch_um)
    luck = rng.random(len(points))
    return points[_at(where, points) & (_at(chance, points) > 2.2 - 3.8 * share) & (luck < 0.8)]


def _inflammation(rng, where, share):
    """Lymphocytes: round dark nuclei of 6-7 um."""
    return _cells(rng, _patchy(rng, where, 7.4, share), 2.9, 1.1, rng.uniform(0, np.pi), 1.9,
                  spread=0.1, vesicle=0.1)


def _fibroblasts(rng, where, flow):
    """Spindle nuclei along the fibres."""
    points = _lattice(rng, 15, 0.3)
    points = points[_at(where, points) & (rng.random(len(points)) < 0.5)]
    angle = _at(flow, points) + rng.normal(0, 0.25, len(points))
    return _cells(rng, points, 2.6, 3.2, angle, 1.45, spread=0.18, vesicle=0.15)


def _blood(rng, where, share, spacing_um=6.6):
    """Red cells of about 6 um."""
    points = _patchy(rng, where, spacing_um, share)
    return _cells(rng, points, 2.75, 1.3, rng.uniform(0, np.pi, len(points)), 1.6, spread=0.13)


def _tumour_surroundings(rng, person, depth, air, flow):
    """Stroma nuclei and blood around tumour: (nuclei, red cells)."""
    stroma = depth < -1
    nuclei = [_inflammation(rng, stroma, 0.12 + 0.6 * person.inflammation),
              _fibroblasts(rng, stroma, flow)]
    blood = [_blood(rng, depth < -2, rng.beta(1, 4)), _blood(rng, air > 3, rng.beta(1, 5))]
    return nuclei, np.concatenate(blood)


def _torn(rng, air):
    """Open a quarter of tumour tiles at one side: the edge of the specimen, or a cleft."""
    y, x = (np.mgrid[:SIDE_PX, :SIDE_PX].astype(np.float32) - SIDE_PX / 2) * LAYOUT_UM
    turn, offset = rng.uniform(0, 2 * np.pi), rng.uniform(5, 80)
    edge = x * float(np.cos(turn)) + y * float(np.sin(turn)) - offset
    edge += 9 * _padded_noise(rng, 30)
    return np.maximum(air, edge) if rng.random() < 0.3 else air


# --- the three classes ----------------------------------------------------------------------------

def benign(rng, person):
    """Lung without tumour: aerated, or scarred, inflamed or collapsed."""
    kind = rng.choice(["aerated", "scarred", "inflamed", "collapsed"], p=[0.45, 0.18, 0.19, 0.18])
    spacing = {"collapsed": rng.uniform(28, 46)}.get(kind, rng.uniform(55, 105))
    thickness = {"aerated": rng.uniform(3, 7.5), "scarred": rng.uniform(10, 30),
                 "inflamed": rng.uniform(5, 14), "collapsed": rng.uniform(5, 9)}[kind]
    wall = _wall_distance(rng, spacing, rng.uniform(5, 12), rng.uniform(0.15, 0.5))
    air = wall - thickness * np.clip(1 + 0.45 * _padded_noise(rng, 28), 0.05, 2.5)
    septa, flow = air < 0, _direction(wall)

    points = _lattice(rng, 8.4, 0.22)
    share = 0.3 if kind == "scarred" else 0.45
    points = points[_at(septa, points) & (rng.random(len(points)) < share)]
    angle = _at(flow, points) + rng.normal(0, 0.35, len(points))
    nuclei = [_cells(rng, points, 2.8, 1.6, angle, 1.6, spread=0.2, vesicle=0.2)]
    # type II pneumocytes line the septa, crowded where reactive
    reactive = _along(air, -2.6, rng.uniform(8, 30), rng)
    reactive = reactive[rng.random(len(reactive)) < rng.beta(0.6, 2.2)]
    nuclei.insert(0, _cells(rng, reactive, rng.uniform(3.2, 4.6), 1.2, 0.0, 1.4, vesicle=0.45,
                            nucleolus=0.25, owner=TUMOUR if rng.random() < 0.3 else FREE))
    if kind != "aerated":
        nuclei += [_inflammation(rng, septa, {"inflamed": rng.uniform(0.35, 0.7)}.get(kind, 0.15)),
                   _fibroblasts(rng, septa, flow)]
    points = _lattice(rng, 26, 0.3)
    points = points[(_at(air, points) > 5) & (rng.random(len(points)) < rng.beta(0.7, 5))]
    nuclei.append(_cells(rng, points, 3.6, 1.2, 0.0, 1.3, vesicle=0.4, owner=MACROPHAGE))
    capillaries = _blood(rng, septa & (air > -9), rng.uniform(0.2, 0.65), 5.8)
    return Scene(air, np.zeros_like(septa), np.concatenate(nuclei),
                 np.concatenate([_blood(rng, air > 3, rng.beta(1, 4)), capillaries]),
                 stroma_eosin=rng.uniform(0.35, 0.7), debris=rng.beta(1, 5))


def adenocarcinoma(rng, person):
    """Glands: acinar, lepidic or papillary (wide lumina on thin cores), or solid."""
    share = np.array([1.0, 0.6, 1.1 * (1.1 - person.differentiation)])
    kind = rng.choice(["acinar", "lepidic", "solid"], p=share / share.sum())
    radius = 5.3 * person.nuclear_size * float(np.exp(rng.normal(0, 0.07)))
    spacing = {"acinar": rng.uniform(55, 100), "lepidic": rng.uniform(60, 120),
               "solid": rng.uniform(80, 190)}
    stroma = {"acinar": rng.uniform(2, 14), "lepidic": rng.uniform(2, 7),
              "solid": rng.uniform(2, 12)}
    height = {"acinar": rng.uniform(2.3, 3.8), "lepidic": rng.uniform(1.6, 2.8), "solid": np.inf}
    wall = _wall_distance(rng, spacing[kind], rng.uniform(4, 10), rng.uniform(0.05, 0.4), 4.0)
    depth = wall - stroma[kind] * np.clip(1 + 0.6 * _padded_noise(rng, 42), 0.05, 3)
    flow = _direction(wall)
    if kind == "solid":  # at most a few small lumina
        small = (_padded_noise(rng, 20) - rng.uniform(1.6, 3.5)) * 8
        air = np.where(depth > 6, small, -5).astype(np.float32)
        points = [_lattice(rng, rng.uniform(2.3, 3.1) * radius, 0.24)]
    else:
        air = depth - height[kind] * radius * np.clip(1 + 0.28 * _padded_noise(rng, 24), 0.4, 2)
        rows = np.arange(0.8, 6, 1.8) * radius  # pseudostratified rows from the basement membrane
        points = [_along(depth, row, 1.85 * radius, rng) for row in rows]
        points = [row[rng.random(len(row)) < (0.95 if rank == 0 else 0.7)]
                  for rank, row in enumerate(points)]
    air = _torn(rng, air)
    points = np.concatenate(points)
    points = points + rng.normal(0, 0.16 * radius, points.shape)
    points = points[(_at(depth, points) > 0.3 * radius) & (_at(air, points) < -0.6 * radius)]
    upright = _at(flow, points) + np.pi / 2 + rng.normal(0, 0.4, len(points))
    tumour = _cells(rng, points, radius, rng.uniform(1.05, 1.7), upright, 1.35,
                    spread=person.pleomorphism, vesicle=person.vesicular,
                    nucleolus=0.15 + 0.7 * person.nucleoli, owner=TUMOUR)
    nuclei, blood = _tumour_surroundings(rng, person, depth, air, flow)
    return Scene(air, (depth > 0) & (air < 0), np.concatenate([tumour, *nuclei]), blood,
                 stroma_eosin=rng.uniform(0.35, 0.7), cytoplasm_eosin=rng.uniform(0.25, 0.55),
                 cytoplasm_haematoxylin=rng.uniform(0.12, 0.38),
                 border_eosin=min(rng.normal(-0.02, 0.05), 0.04),
                 keratinised=0.02, vacuoles=rng.beta(1.2, 3), debris=rng.beta(1, 3))


def squamous(rng, person):
    """Solid nests of polygonal or spindle cells, some keratinising."""
    radius = 5.1 * person.nuclear_size * float(np.exp(rng.normal(0, 0.07)))
    wall = _wall_distance(rng, rng.uniform(70, 190), rng.uniform(5, 12), rng.uniform(0.1, 0.5))
    depth = wall - rng.uniform(2, 14) * np.clip(1 + 0.6 * _padded_noise(rng, 42), 0.05, 3)
    flow = _direction(wall)
    air = (_padded_noise(rng, 30) - rng.uniform(1.7, 4.0)) * 8
    if rng.random() < 0.35:  # retraction clefts around nests
        cleft = rng.uniform(1, 5) * np.clip(1 + _padded_noise(rng, 40), 0, 2)
        air = np.maximum(air, cleft - np.abs(depth + 2))
    air = _torn(rng, air)
    nests = (depth > 0) & (air < 0)
    keratin = person.keratin * rng.uniform(0.3, 1.6)
    pearls = _lattice(rng, rng.uniform(55, 95), 0.2)
    pearls = pearls[(_at(depth, pearls) > 12) & (rng.random(len(pearls)) < keratin)]
    pearls = np.c_[pearls, rng.uniform(9, 26, len(pearls))]

    points = _lattice(rng, radius * rng.uniform(2.4, 3.7), 0.22)
    points = points[(_at(depth, points) > 0.4 * radius) & (_at(air, points) < -2)
                    & (rng.random(len(points)) < 0.95)]
    stream = rng.integers(0, 2) * _at(flow, points) + _at(_padded_noise(rng, 90), points)
    stream += rng.normal(0, 0.35, len(points))
    tumour = _cells(rng, points, radius, rng.uniform(1.05, 1.8), stream, 1.35,
                    spread=person.pleomorphism, vesicle=person.vesicular,
                    nucleolus=0.1 + 0.6 * person.nucleoli, owner=TUMOUR)
    for x, y, size in pearls:  # flattened around a pearl, lost within it
        dx, dy = tumour["x"] - x, tumour["y"] - y
        gap = np.hypot(dx, dy) / size
        near = gap < 1.6
        tumour["angle"][near] = np.arctan2(dy, dx)[near] + np.pi / 2
        tumour["b"][near] *= np.clip(gap[near] - 0.5, 0.45, 1)
        tumour = tumour[gap > 0.7]
    nuclei, blood = _tumour_surroundings(rng, person, depth, air, flow)
    return Scene(air, nests, np.concatenate([tumour, *nuclei]), blood, pearls,
                 stroma_eosin=rng.uniform(0.35, 0.7), cytoplasm_eosin=rng.uniform(0.28, 0.62),
                 cytoplasm_haematoxylin=rng.uniform(0.12, 0.38),
                 border_eosin=min(rng.normal(-0.05, 0.06), 0.04),
                 keratinised=0.02 + 0.15 * keratin, vacuoles=rng.beta(1, 4), debris=rng.beta(1, 3))
