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

from lungkit.phantom.morphology import ADENOCARCINOMA, BENIGN, CELLS, PATIENT, SQUAMOUS

FIELD_UM = 180.0  # side of a tile: red cells, 6 um in fixed tissue, are 1/30 of an LC25000 tile
LAYOUT_PX = 224  # grid cells along a tile
LAYOUT_UM = FIELD_UM / LAYOUT_PX
PAD_PX = 24  # the layout reaches beyond the tile: structures are cut at its border, not bent
SIDE_PX = LAYOUT_PX + 2 * PAD_PX

CELL = np.dtype([(name, np.float32) for name in (
    "x", "y", "a", "b", "angle",  # centre and semi-axes in um, radians
    "density", "vesicle",  # haematoxylin; 0 evenly dark to 1 pale with a dark rim
    "nucleolus", "owner")])  # 0 or 1; FREE, TUMOUR (has a cytoplasm territory), ...
FREE, TUMOUR, MACROPHAGE, LYMPHOCYTE = 0, 1, 2, 3


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
    """Draw one patient's biology."""
    return Biology(**{name: float(one.draw(rng)) for name, one in vars(PATIENT).items()})


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

def _cells(rng, points, radius_um, elongation, angle, density, *, spread=CELLS.spread.value,
           vesicle=0.0, nucleolus=0.0, owner=FREE):
    """Cells at points [N, 2]; elongation is a / b, spread the log deviation of their size."""
    cells = np.zeros(len(points), CELL)
    cells["x"], cells["y"] = points[:, 0], points[:, 1]
    size = radius_um * np.exp(rng.normal(0, spread, len(points)))
    shape = rng.normal(0, CELLS.elongation_spread.value, len(points))
    shape = np.sqrt(elongation * np.exp(shape))
    cells["a"], cells["b"] = size * shape, size / shape
    cells["angle"] = angle
    cells["density"] = density * np.exp(
        rng.normal(0, CELLS.density_spread.value, len(points)))
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
    """Lymphocytes: small, round, dark nuclei."""
    points = _patchy(rng, where, CELLS.lymphocyte_spacing_um.value, share)
    return _cells(rng, points, CELLS.lymphocyte_radius_um.value, 1.1, rng.uniform(0, np.pi), 1.9,
                  spread=0.1, vesicle=0.1, owner=LYMPHOCYTE)


def _fibroblasts(rng, where, flow):
    """Spindle nuclei along the fibres."""
    points = _lattice(rng, CELLS.fibroblast_spacing_um.value, 0.3)
    points = points[_at(where, points) & (rng.random(len(points)) < 0.5)]
    angle = _at(flow, points) + rng.normal(0, 0.25, len(points))
    return _cells(rng, points, CELLS.fibroblast_radius_um.value, CELLS.fibroblast_elongation.value,
                  angle, 1.45, spread=0.18, vesicle=0.15)


def _blood(rng, where, share, spacing_um=CELLS.red_cell_spacing_um.value):
    """Red cells, in patches."""
    points = _patchy(rng, where, spacing_um, share)
    turned = rng.uniform(0, np.pi, len(points))
    return _cells(rng, points, CELLS.red_cell_radius_um.value, 1.3, turned, 1.6, spread=0.13)


def _tumour_surroundings(rng, person, depth, air, flow):
    """Stroma nuclei and blood around tumour: (nuclei, red cells)."""
    stroma = depth < -1
    nuclei = [_inflammation(rng, stroma, 0.12 + 0.6 * person.inflammation),
              _fibroblasts(rng, stroma, flow)]
    blood = [_blood(rng, depth < -2, rng.beta(1, 4)), _blood(rng, air > 3, rng.beta(1, 5))]
    return nuclei, np.concatenate(blood)


def _torn(rng, air):
    """Open some tumour tiles at one side: the edge of the specimen, or a cleft."""
    y, x = (np.mgrid[:SIDE_PX, :SIDE_PX].astype(np.float32) - SIDE_PX / 2) * LAYOUT_UM
    turn, offset = rng.uniform(0, 2 * np.pi), rng.uniform(5, 80)
    edge = x * float(np.cos(turn)) + y * float(np.sin(turn)) - offset
    edge += 9 * _padded_noise(rng, 30)
    return np.maximum(air, edge) if rng.random() < CELLS.torn_share.value else air


# --- the three classes ----------------------------------------------------------------------------

def _each(parameters, rng):
    """Draw every kind of a parameter, so that the draw does not depend on the kind that is used."""
    return {kind: one.draw(rng) for kind, one in parameters.items()}


def benign(rng, person):
    """Lung without tumour: aerated, or scarred, inflamed or collapsed."""
    of = BENIGN
    kind = rng.choice(list(of.share), p=[share.value for share in of.share.values()])
    spacing = _each(of.alveolus_um, rng)
    thickness = _each(of.septum_um, rng)[kind]
    wall = _wall_distance(rng, spacing.get(kind, spacing["other"]), of.alveolus_warp_um.draw(rng),
                          of.alveolus_merged.draw(rng))
    air = wall - thickness * np.clip(1 + 0.45 * _padded_noise(rng, 28), 0.05, 2.5)
    septa, flow = air < 0, _direction(wall)

    points = _lattice(rng, of.nucleus_spacing_um.value, 0.22)
    taken = of.nucleus_taken.get(kind, of.nucleus_taken["other"]).value
    points = points[_at(septa, points) & (rng.random(len(points)) < taken)]
    angle = _at(flow, points) + rng.normal(0, 0.35, len(points))
    nuclei = [_cells(rng, points, of.nucleus_radius_um.value, of.nucleus_elongation.value, angle,
                     1.6, spread=of.nucleus_spread.value, vesicle=0.2)]
    # type II pneumocytes line the septa, crowded where reactive
    reactive = _along(air, -2.6, of.pneumocyte_spacing_um.draw(rng), rng)
    reactive = reactive[rng.random(len(reactive)) < of.pneumocyte_reactive.draw(rng)]
    radius = of.pneumocyte_radius_um.draw(rng)
    nuclei.insert(0, _cells(rng, reactive, radius, 1.2, 0.0, 1.4, vesicle=0.45,
                            nucleolus=of.pneumocyte_nucleolus.value,
                            owner=TUMOUR if rng.random() < 0.3 else FREE))
    if kind != "aerated":
        share = _each(of.lymphocytes, rng)
        nuclei += [_inflammation(rng, septa, share.get(kind, share["other"])),
                   _fibroblasts(rng, septa, flow)]
    points = _lattice(rng, of.macrophage_spacing_um.value, 0.3)
    points = points[(_at(air, points) > 5)
                    & (rng.random(len(points)) < of.macrophages.draw(rng))]
    nuclei.append(_cells(rng, points, CELLS.macrophage_radius_um.value,
                         CELLS.macrophage_elongation.value, 0.0, 1.3, vesicle=0.4,
                         owner=MACROPHAGE))
    capillaries = _blood(rng, septa & (air > -9), of.capillaries.draw(rng),
                         of.capillary_spacing_um.value)
    return Scene(air, np.zeros_like(septa), np.concatenate(nuclei),
                 np.concatenate([_blood(rng, air > 3, of.blood_in_air.draw(rng)), capillaries]),
                 stroma_eosin=of.stroma_eosin.draw(rng), debris=of.debris.draw(rng))


def adenocarcinoma(rng, person):
    """Glands: acinar, lepidic or papillary (wide lumina on thin cores), or solid."""
    of = ADENOCARCINOMA
    weight = np.array([one.value for one in of.weight.values()])
    weight[list(of.weight).index("solid")] *= 1.1 - person.differentiation
    kind = rng.choice(list(of.weight), p=weight / weight.sum())
    radius = of.nucleus_radius_um.value * person.nuclear_size * float(
        of.nucleus_size_of_tile.draw(rng))
    spacing, stroma, height = (_each(one, rng) for one in (of.gland_um, of.stroma_um, of.height))
    wall = _wall_distance(rng, spacing[kind], of.warp_um.draw(rng), of.merged.draw(rng), 4.0)
    depth = wall - stroma[kind] * np.clip(1 + 0.6 * _padded_noise(rng, 42), 0.05, 3)
    flow = _direction(wall)
    if kind == "solid":  # at most a few small lumina
        small = (_padded_noise(rng, 20) - of.small_lumen.draw(rng)) * 8
        air = np.where(depth > 6, small, -5).astype(np.float32)
        points = [_lattice(rng, of.solid_spacing.draw(rng) * radius, 0.24)]
    else:
        air = depth - height[kind] * radius * np.clip(1 + 0.28 * _padded_noise(rng, 24), 0.4, 2)
        rows = np.arange(0.8, 6, 1.8) * radius  # pseudostratified rows from the basement membrane
        points = [_along(depth, row, of.row_spacing.value * radius, rng) for row in rows]
        points = [row[rng.random(len(row)) < of.row_taken["other" if rank else "first"].value]
                  for rank, row in enumerate(points)]
    air = _torn(rng, air)
    points = np.concatenate(points)
    points = points + rng.normal(0, 0.16 * radius, points.shape)
    points = points[(_at(depth, points) > 0.3 * radius) & (_at(air, points) < -0.6 * radius)]
    upright = _at(flow, points) + np.pi / 2 + rng.normal(0, 0.4, len(points))
    nucleolus = of.nucleolus_least.value + of.nucleolus_more.value * person.nucleoli
    tumour = _cells(rng, points, radius, of.nucleus_elongation.draw(rng), upright,
                    of.nucleus_density.value, spread=person.pleomorphism,
                    vesicle=person.vesicular, nucleolus=nucleolus, owner=TUMOUR)
    nuclei, blood = _tumour_surroundings(rng, person, depth, air, flow)
    return Scene(air, (depth > 0) & (air < 0), np.concatenate([tumour, *nuclei]), blood,
                 stroma_eosin=of.stroma_eosin.draw(rng),
                 cytoplasm_eosin=of.cytoplasm_eosin.draw(rng),
                 cytoplasm_haematoxylin=of.cytoplasm_haematoxylin.draw(rng),
                 border_eosin=min(of.border_eosin.draw(rng), 0.04),
                 keratinised=of.keratinised.value, vacuoles=of.vacuoles.draw(rng),
                 debris=of.debris.draw(rng))


def squamous(rng, person):
    """Solid nests of polygonal or spindle cells, some keratinising."""
    of = SQUAMOUS
    radius = of.nucleus_radius_um.value * person.nuclear_size * float(
        of.nucleus_size_of_tile.draw(rng))
    wall = _wall_distance(rng, of.nest_um.draw(rng), of.warp_um.draw(rng), of.merged.draw(rng))
    depth = wall - of.stroma_um.draw(rng) * np.clip(1 + 0.6 * _padded_noise(rng, 42), 0.05, 3)
    flow = _direction(wall)
    air = (_padded_noise(rng, 30) - of.necrosis.draw(rng)) * 8
    if rng.random() < of.cleft_share.value:  # retraction clefts around nests
        cleft = of.cleft_um.draw(rng) * np.clip(1 + _padded_noise(rng, 40), 0, 2)
        air = np.maximum(air, cleft - np.abs(depth + 2))
    air = _torn(rng, air)
    nests = (depth > 0) & (air < 0)
    keratin = person.keratin * of.keratin_of_tile.draw(rng)
    pearls = _lattice(rng, of.pearl_spacing_um.draw(rng), 0.2)
    pearls = pearls[(_at(depth, pearls) > 12) & (rng.random(len(pearls)) < keratin)]
    pearls = np.c_[pearls, of.pearl_radius_um.draw(rng, len(pearls))]

    points = _lattice(rng, radius * of.nucleus_spacing.draw(rng), 0.22)
    points = points[(_at(depth, points) > 0.4 * radius) & (_at(air, points) < -2)
                    & (rng.random(len(points)) < 0.95)]
    stream = rng.integers(0, 2) * _at(flow, points) + _at(_padded_noise(rng, 90), points)
    stream += rng.normal(0, 0.35, len(points))
    nucleolus = of.nucleolus_least.value + of.nucleolus_more.value * person.nucleoli
    tumour = _cells(rng, points, radius, of.nucleus_elongation.draw(rng), stream,
                    of.nucleus_density.value, spread=person.pleomorphism,
                    vesicle=person.vesicular, nucleolus=nucleolus, owner=TUMOUR)
    for x, y, size in pearls:  # flattened around a pearl, lost within it
        dx, dy = tumour["x"] - x, tumour["y"] - y
        gap = np.hypot(dx, dy) / size
        near = gap < 1.6
        tumour["angle"][near] = np.arctan2(dy, dx)[near] + np.pi / 2
        tumour["b"][near] *= np.clip(gap[near] - 0.5, 0.45, 1)
        tumour = tumour[gap > 0.7]
    nuclei, blood = _tumour_surroundings(rng, person, depth, air, flow)
    return Scene(air, nests, np.concatenate([tumour, *nuclei]), blood, pearls,
                 stroma_eosin=of.stroma_eosin.draw(rng),
                 cytoplasm_eosin=of.cytoplasm_eosin.draw(rng),
                 cytoplasm_haematoxylin=of.cytoplasm_haematoxylin.draw(rng),
                 border_eosin=min(of.border_eosin.draw(rng), 0.04),
                 keratinised=of.keratinised_least.value + of.keratinised_more.value * keratin,
                 vacuoles=of.vacuoles.draw(rng), debris=of.debris.draw(rng))
