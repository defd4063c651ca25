"""Draw simulated H&E lung tissue in three classes, with exact ground truth.

Haematoxylin and eosin concentration maps become light by Beer-Lambert (Ruifrok and Johnston 2001).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLASSES = ("lung_aca", "lung_n", "lung_scc")

FIELD_UM = 180.0  # side of a tile, as LC25000's: its red cells (6 um when fixed) are 1/30 of a tile
LAYOUT_PX = 224  # tissue is laid out on this grid, so the layout does not depend on image_size
LAYOUT_UM = FIELD_UM / LAYOUT_PX
PAD_PX = 24  # the layout reaches this far beyond the tile: structures are cut, never bent, at its border
CANVAS_PX = 448  # the smallest raster drawn; smaller images are its area averages
RED_CELL = np.array([0.08, 0.84, 0.54], np.float32)


@dataclass(frozen=True)
class Tile:
    image: np.ndarray
    nuclei: np.ndarray
    centroids: np.ndarray
    tissue: np.ndarray
    label: str
    patient: int


@dataclass(frozen=True)
class Patient:
    stains: np.ndarray
    strength: np.ndarray
    light: np.ndarray
    blur_um: float
    noise: float
    size: float
    pleomorphism: float
    nucleoli: float
    vesicular: float
    keratin: float
    differentiation: float
    inflammation: float


def draw_patient(patient, seed):
    rng = np.random.default_rng([seed, patient, 101])
    stains = np.array([[0.650, 0.704, 0.286], [0.092, 0.954, 0.283]])
    stains = np.clip(stains + rng.normal(0, [[0.06], [0.05]], (2, 3)), 0.02, None)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    return Patient(
        stains=stains.astype(np.float32),
        strength=np.exp(rng.normal(0, [0.22, 0.3])).astype(np.float32),
        light=(rng.uniform(0.86, 0.99) * np.clip(1 + rng.normal(0, 0.03, 3), 0.9, 1.02)).astype(np.float32),
        blur_um=rng.uniform(0.3, 0.9),
        noise=rng.uniform(0.004, 0.015),
        size=np.exp(rng.normal(0, 0.12)),
        pleomorphism=rng.uniform(0.08, 0.3),
        nucleoli=rng.beta(1.5, 2),
        vesicular=rng.uniform(0.1, 0.9),
        keratin=rng.beta(1.2, 1.5),
        differentiation=rng.beta(1.6, 1.2),
        inflammation=rng.beta(1.2, 4),
    )


# --- layout -------------------------------------------------------------------------------------

def _noise(rng, scale_um, field_um=FIELD_UM, size=LAYOUT_PX, stretch=1.0):
    """Smooth unit-variance noise float32 [size, size] with features of about scale_um."""
    import cv2

    rows, cols = (max(2, round(field_um / s)) + 3 for s in (scale_um, scale_um * stretch))
    grid = rng.standard_normal((rows, cols)).astype(np.float32)
    field = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return field / 0.75


def _pad_noise(rng, scale_um):
    return _noise(rng, scale_um, FIELD_UM + 2 * PAD_PX * LAYOUT_UM, LAYOUT_PX + 2 * PAD_PX)


def _lattice(rng, spacing_um, jitter):
    """Jittered hexagonal lattice float64 [N, 2] in um over the padded field."""
    low, high = -PAD_PX * LAYOUT_UM, FIELD_UM + PAD_PX * LAYOUT_UM
    step = spacing_um * np.sqrt(3) / 2
    start = low + rng.uniform(-1, 0, 2) * spacing_um
    ys = np.arange(start[1], high, step)
    xs = np.arange(start[0], high, spacing_um)
    grid = np.stack(np.meshgrid(xs, ys), -1)
    grid[1::2, :, 0] += spacing_um / 2
    points = grid.reshape(-1, 2) + rng.normal(0, jitter * spacing_um, (grid.size // 2, 2))
    return rng.permutation(points)


def _at(field, points_um):
    """Values of a padded layout field at points in um."""
    index = np.clip(np.round(points_um / LAYOUT_UM - 0.5).astype(int) + PAD_PX, 0, field.shape[0] - 1)
    return field[index[:, 1], index[:, 0]]


def _walls(rng, spacing_um, warp_um, merge):
    """Distance in um to the walls between the cells of a warped, partly merged Voronoi diagram."""
    import cv2

    side = LAYOUT_PX + 2 * PAD_PX
    seeds = _lattice(rng, spacing_um, 0.22)
    index = np.round(seeds / LAYOUT_UM).astype(int) + PAD_PX
    inside = ((index >= 0) & (index < side)).all(1)
    index = index[inside]
    canvas = np.full((side, side), 255, np.uint8)
    canvas[index[:, 1], index[:, 0]] = 0
    _, cells = cv2.distanceTransformWithLabels(canvas, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    group = np.arange(cells.max() + 1)
    joined = rng.random(group.size) < merge
    group[joined] = rng.permutation(group)[joined]
    cells = group[cells].astype(np.float32)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    dx, dy = (_pad_noise(rng, 45) * warp_um + _pad_noise(rng, 16) * warp_um * 0.3 for _ in range(2))
    cells = cv2.remap(cells, x + dx / LAYOUT_UM, y + dy / LAYOUT_UM, cv2.INTER_NEAREST,
                      borderMode=cv2.BORDER_REPLICATE)
    wall = cv2.dilate(cells, np.ones((3, 3))) != cells
    distance = cv2.distanceTransform((~wall).astype(np.uint8), cv2.DIST_L2, 5) * LAYOUT_UM
    return cv2.GaussianBlur(np.minimum(distance, FIELD_UM), (0, 0), 2.5)  # no wall at all: far from one


def _along(field, level, spacing_um, rng):
    """Points [N, 2] in um at even steps along the level lines of a padded field."""
    import cv2

    lines, _ = cv2.findContours((field > level).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    points = []
    for line in lines:
        line = line[:, 0].astype(float)
        if len(line) < 8:
            continue
        line = np.vstack([line, line[:1]])
        arc = np.r_[0, np.cumsum(np.hypot(*np.diff(line, axis=0).T))] * LAYOUT_UM
        at = np.arange(rng.uniform(0, spacing_um), arc[-1], spacing_um)
        at = at + rng.normal(0, 0.12 * spacing_um, at.size)
        points.append(np.stack([np.interp(at, arc, line[:, k]) for k in (0, 1)], 1))
    if not points:
        return np.zeros((0, 2))
    return (np.concatenate(points) - PAD_PX + 0.5) * LAYOUT_UM


NUCLEUS = np.dtype([(n, np.float32) for n in
                    ("x", "y", "a", "b", "angle", "density", "vesicle", "nucleolus", "cell")])


def _nuclei(rng, points, a, b, angle, density, vesicle=0.0, nucleolus=0.0, cell=0.0, spread=0.12):
    """Nuclei at points: semi-axes a >= b in um, spread is the log deviation of their size."""
    out = np.zeros(len(points), NUCLEUS)
    out["x"], out["y"] = points.T if len(points) else (0, 0)
    size = np.exp(rng.normal(0, spread, len(points)))
    shape = np.exp(rng.normal(0, 0.1, len(points)))
    out["a"], out["b"] = a * size * shape, b * size / shape
    out["angle"] = angle
    out["density"] = density * np.exp(rng.normal(0, 0.14, len(points)))
    out["vesicle"] = np.clip(vesicle + rng.normal(0, 0.15, len(points)), 0, 1)
    out["nucleolus"] = rng.random(len(points)) < nucleolus
    out["cell"] = cell
    return out


def _tangent(field):
    """Direction in radians along the level lines of a padded field."""
    import cv2

    smooth = cv2.GaussianBlur(field, (0, 0), 3)
    gx, gy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    return np.arctan2(gx, -gy)


@dataclass
class Scene:
    air: np.ndarray
    epithelium: np.ndarray
    nuclei: np.ndarray
    red_cells: np.ndarray
    pearls: np.ndarray
    flow: np.ndarray
    cyto_eosin: float = 0.4
    cyto_haem: float = 0.3
    border: float = 0.0
    stroma_eosin: float = 0.5
    keratin: float = 0.0
    vacuoles: float = 0.0
    debris: float = 0.0


def _stroma_nuclei(rng, where, flow, person, lymphocytes):
    """Fibroblasts along the fibres and clustered lymphocytes where the padded mask is true."""
    spots = _lattice(rng, 13, 0.25)
    spots = spots[_at(where, spots) & (rng.random(len(spots)) < 0.5)]
    spindle = _nuclei(rng, spots, 5.0, 1.4, _at(flow, spots) + rng.normal(0, 0.25, len(spots)), 1.5, 0.1,
                      spread=0.2)
    spots = _lattice(rng, 7.6, 0.12)
    crowd = _at(_pad_noise(rng, 40), spots)
    spots = spots[_at(where, spots) & (crowd > 1.6 - 2.2 * lymphocytes) & (rng.random(len(spots)) < 0.8)]
    small = _nuclei(rng, spots, 3.0, 2.7, rng.uniform(0, np.pi, len(spots)), 2.0, 0.05, spread=0.08)
    return np.concatenate([small, spindle])


def _blood(rng, where, share, spacing=6.5):
    """Red cells, clustered where the padded mask is true; share is about the covered part."""
    spots = _lattice(rng, spacing, 0.17)
    crowd = _at(_pad_noise(rng, 35), spots)
    spots = spots[_at(where, spots) & (crowd > 1.9 - 3.2 * share) & (rng.random(len(spots)) < 0.75)]
    return _nuclei(rng, spots, 3.1, 2.4, rng.uniform(0, np.pi, len(spots)), 1.0, spread=0.12)


def _benign(rng, person):
    kind = rng.choice(4, p=[0.55, 0.15, 0.18, 0.12])  # alveolar, fibrosis, inflamed, collapsed
    spacing = [rng.uniform(60, 110), rng.uniform(60, 95), rng.uniform(60, 100), rng.uniform(32, 50)][kind]
    wall = _walls(rng, spacing, rng.uniform(5, 11), rng.uniform(0.15, 0.5))
    thick = [rng.uniform(3.0, 5.5), rng.uniform(9, 18), rng.uniform(5, 10), rng.uniform(4.5, 7)][kind]
    field = wall - thick * np.clip(1 + 0.45 * _pad_noise(rng, 28), 0.05, 2.5)
    tissue, flow = field < 0, _tangent(wall)
    spots = _lattice(rng, 8.2, 0.2)
    keep = _at(tissue, spots) & (rng.random(len(spots)) < [0.62, 0.35, 0.5, 0.6][kind])
    spots = spots[keep]
    lining = _nuclei(rng, spots, 3.7, 2.3, _at(flow, spots) + rng.normal(0, 0.3, len(spots)), 1.7, 0.2,
                     nucleolus=0.05, spread=0.2)
    groups = [lining]
    if kind in (1, 2):
        groups.append(_stroma_nuclei(rng, tissue, flow, person, [0.2, 0.2, 0.75, 0][kind]))
    macro = _lattice(rng, 26, 0.3)
    macro = macro[(_at(field, macro) > 5) & (rng.random(len(macro)) < rng.beta(1, 5))]
    groups.append(_nuclei(rng, macro, 3.8, 3.3, 0.0, 1.4, 0.4, cell=2))
    blood = _blood(rng, field > 3, rng.beta(1, 3.5))
    capillaries = _blood(rng, (field < 0) & (field > -thick), rng.uniform(0.3, 0.75), 5.5)
    return Scene(field, np.zeros_like(tissue), np.concatenate(groups), np.concatenate([blood, capillaries]),
                 np.zeros((0, 3)), flow, stroma_eosin=rng.uniform(0.4, 0.65), debris=rng.beta(1, 6))


def _adeno(rng, person):
    weights = np.array([0.5, 0.25, 0.5 * (1.4 - person.differentiation)]) * [1, 1, 1]
    kind = rng.choice(3, p=weights / weights.sum())  # acinar, lepidic or papillary, solid
    size = 5.6 * person.size * np.exp(rng.normal(0, 0.06))
    spacing = [rng.uniform(55, 95), rng.uniform(70, 120), rng.uniform(90, 170)][kind]
    wall = _walls(rng, spacing, rng.uniform(4, 10), rng.uniform(0.1, 0.4))
    stroma = [rng.uniform(4, 14), rng.uniform(2.5, 7), rng.uniform(3, 10)][kind] * np.clip(
        1 + 0.5 * _pad_noise(rng, 40), 0.1, 3)
    depth = wall - stroma
    height = [rng.uniform(2.6, 4.2), rng.uniform(2.0, 3.2), 40][kind] * size * np.clip(
        1 + 0.25 * _pad_noise(rng, 30), 0.4, 2)
    air = depth - height
    if kind == 2:
        air = (_pad_noise(rng, 22) - rng.uniform(1.5, 3.2)) * 8 - 6 * (depth < 4)
    epithelium, flow = (depth > 0) & (air < 0), _tangent(wall)
    rows = []
    if kind < 2:
        row = 0.75 * size
        while row < 5 * size:
            ring = _along(depth, row, 1.75 * size, rng)
            ring = ring + rng.normal(0, 0.16 * size, ring.shape)
            fit = _at(air, ring) < -0.8 * size
            first = row < size
            rows.append(ring[fit & (rng.random(len(ring)) < (0.95 if first else 0.6))])
            row += 2.0 * size
    else:
        spots = _lattice(rng, 2.55 * size, 0.13)
        rows.append(spots[(_at(depth, spots) > 0.5 * size) & (_at(air, spots) < -2) & (
            rng.random(len(spots)) < 0.93)])
    spots = np.concatenate(rows)
    upright = _at(flow, spots) + np.pi / 2 + rng.normal(0, 0.35, len(spots))
    ratio = rng.uniform(1.05, 1.5) if kind < 2 else rng.uniform(1.05, 1.25)
    tumour = _nuclei(rng, spots, size * ratio ** 0.5, size / ratio ** 0.5, upright, 1.25,
                     person.vesicular, 0.2 + 0.7 * person.nucleoli, 1, person.pleomorphism)
    other = _stroma_nuclei(rng, depth < -1, flow, person, person.inflammation + 0.15)
    blood = np.concatenate([_blood(rng, depth < -2, rng.beta(1.2, 4)), _blood(rng, air > 3, rng.beta(1, 7))])
    return Scene(air, epithelium, np.concatenate([tumour, other]), blood, np.zeros((0, 3)), flow,
                 cyto_eosin=rng.uniform(0.3, 0.55), cyto_haem=rng.uniform(0.15, 0.4),
                 border=rng.normal(0, 0.04), stroma_eosin=rng.uniform(0.4, 0.65),
                 keratin=0.02, vacuoles=rng.beta(1.3, 3), debris=rng.beta(1, 3))


def _squamous(rng, person):
    size = 5.4 * person.size * np.exp(rng.normal(0, 0.06))
    spacing = rng.uniform(80, 190)
    wall = _walls(rng, spacing, rng.uniform(5, 12), rng.uniform(0.1, 0.5))
    stroma = rng.uniform(2, 12) * np.clip(1 + 0.6 * _pad_noise(rng, 45), 0.0, 3)
    depth, flow = wall - stroma, _tangent(wall)
    air = (_pad_noise(rng, 30) - rng.uniform(1.8, 3.5)) * 8
    air = np.where(depth > 0, np.minimum(air, 6 - depth), air)  # clefts
    epithelium = (depth > 0) & (air < 0)
    keratin = person.keratin * rng.uniform(0.4, 1.2)
    pearls = _lattice(rng, rng.uniform(60, 95), 0.2)
    pearls = pearls[(_at(depth, pearls) > 12) & (rng.random(len(pearls)) < keratin)]
    pearls = np.c_[pearls, rng.uniform(14, 30, len(pearls))]
    spots = _lattice(rng, size * rng.uniform(2.5, 3.4), 0.13)
    spots = spots[(_at(depth, spots) > 0.4 * size) & (_at(air, spots) < -2) & (rng.random(len(spots)) < 0.95)]
    stream = _at(flow, spots) * rng.integers(0, 2) + _at(_pad_noise(rng, 90), spots)
    ratio = rng.uniform(1.1, 2.0)
    tumour = _nuclei(rng, spots, size * ratio ** 0.5, size / ratio ** 0.5, stream + rng.normal(0, 0.3, len(spots)),
                     1.25, person.vesicular, 0.1 + 0.5 * person.nucleoli, 1, person.pleomorphism)
    for x, y, radius in pearls:
        gap = np.hypot(tumour["x"] - x, tumour["y"] - y)
        tumour = tumour[gap > 0.62 * radius]
        gap = np.hypot(tumour["x"] - x, tumour["y"] - y)
        near = gap < 1.5 * radius
        around = np.arctan2(tumour["y"] - y, tumour["x"] - x) + np.pi / 2
        tumour["angle"][near] = around[near]
        tumour["a"][near] *= 1.1
        tumour["b"][near] *= 0.6
    other = _stroma_nuclei(rng, depth < -1, flow, person, person.inflammation + 0.15)
    blood = np.concatenate([_blood(rng, depth < -2, rng.beta(1.2, 4)), _blood(rng, air > 3, rng.beta(1, 7))])
    return Scene(air, epithelium, np.concatenate([tumour, other]), blood, pearls, flow,
                 cyto_eosin=rng.uniform(0.4, 0.65), cyto_haem=rng.uniform(0.15, 0.4),
                 border=rng.normal(0.06, 0.06) - 0.1, stroma_eosin=rng.uniform(0.4, 0.65),
                 keratin=0.02 + 0.15 * keratin, vacuoles=rng.beta(1, 6), debris=rng.beta(1, 4))


# --- rendering ----------------------------------------------------------------------------------

def _outlines(rng, cells, scale):
    """Polygons int32 [N, 24, 2] in 1/16 px: ellipses bent by low harmonics."""
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    bend = 1 + sum(rng.normal(0, 0.09 / k, (len(cells), 1)) * np.cos(k * turn + rng.uniform(0, 7, (len(cells), 1)))
                   for k in (2, 3, 4))
    u, v = cells["a"][:, None] * np.cos(turn) * bend, cells["b"][:, None] * np.sin(turn) * bend
    c, s = np.cos(cells["angle"])[:, None], np.sin(cells["angle"])[:, None]
    xy = np.stack([cells["x"][:, None] + c * u - s * v, cells["y"][:, None] + s * u + c * v], -1)
    return np.round((xy * scale - 0.5) * 16).astype(np.int32)


def _prune(cells):
    """Drop nuclei far outside the tile, and of two that overlap much the later one."""
    from scipy.spatial import cKDTree

    reach = np.maximum(cells["a"], cells["b"])
    seen = ((cells["x"] > -reach) & (cells["x"] < FIELD_UM + reach)
            & (cells["y"] > -reach) & (cells["y"] < FIELD_UM + reach))
    cells = cells[seen]
    if not len(cells):
        return cells
    points = np.stack([cells["x"], cells["y"]], 1)
    pairs = cKDTree(points).query_pairs(2 * float(reach.max()), output_type="ndarray")
    radius = np.sqrt(cells["a"] * cells["b"])
    gap = np.hypot(*(points[pairs[:, 0]] - points[pairs[:, 1]]).T)
    pairs = np.sort(pairs[gap < 0.82 * (radius[pairs[:, 0]] + radius[pairs[:, 1]])], axis=1)
    dropped = np.zeros(len(cells), bool)
    for first, second in pairs[np.argsort(pairs[:, 0], kind="stable")]:
        if not dropped[first]:
            dropped[second] = True
    return cells[~dropped]


def _label_map(polygons, size):
    import cv2

    labels = np.zeros((size, size), np.int32)
    for i in range(len(polygons), 0, -1):  # earlier nuclei lie on top
        cv2.fillPoly(labels, [polygons[i - 1]], i, cv2.LINE_8, 4)
    return labels


def _centroids(labels, count):
    """Centroids float64 [count, 2] (x, y) and areas [count] of labels 1..count."""
    ys, xs = np.nonzero(labels)
    ids = labels[ys, xs]
    area = np.bincount(ids, minlength=count + 1)[1:]
    sums = np.stack([np.bincount(ids, v, count + 1)[1:] for v in (xs, ys)], 1)
    return sums / np.maximum(area, 1)[:, None], area


def _soft(mask_field, size, width_um):
    """Crop a padded signed field (um) to the tile, enlarge it, and turn it into a soft mask in 0..1."""
    import cv2

    tile = np.ascontiguousarray(mask_field[PAD_PX:-PAD_PX, PAD_PX:-PAD_PX], np.float32)
    tile = cv2.resize(tile, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.clip(tile / width_um + 0.5, 0, 1)


def _render(scene, person, rng, size):
    """Concentration maps and truth of a scene on a raster of size px."""
    import cv2

    scale = size / FIELD_UM
    cells = _prune(scene.nuclei)
    labels = _label_map(_outlines(rng, cells, scale), size)
    centre, area = _centroids(labels, len(cells))
    air = _soft(cv2.GaussianBlur(scene.air, (0, 0), 1.2), size, 1.2)
    epi = _soft(cv2.GaussianBlur(scene.epithelium.astype(np.float32), (0, 0), 1.0) - 0.5, size, 0.5)
    fine, mid, coarse = (_noise(rng, s, size=size) for s in (1.3, 3.5, 18))

    # connective tissue: fibres along one direction, bent
    fibre = _noise(rng, 2.6, size=size, stretch=9)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    turn, wave = rng.uniform(0, np.pi), _noise(rng, 50, size=size) * 9 * scale
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    fibre = cv2.remap(fibre, c * x - s * y + wave, s * x + c * y + wave, cv2.INTER_LINEAR,
                      borderMode=cv2.BORDER_REFLECT)
    eosin = scene.stroma_eosin * (1 + 0.22 * fibre + 0.12 * mid + 0.15 * coarse)
    haem = 0.13 * (1 + 0.25 * mid + 0.3 * coarse)

    # epithelium: one territory per cell
    own = np.flatnonzero(cells["cell"] == 1)
    if len(own):
        seeds = np.full((size, size), 255, np.uint8)
        at = np.clip(np.round(np.stack([cells["x"], cells["y"]], 1)[own] * scale).astype(int), 0, size - 1)
        seeds[at[:, 1], at[:, 0]] = 0
        _, cell = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
        count = cell.max() + 1
        tone = np.exp(rng.normal(0, 0.14, len(own) + 1)).astype(np.float32)[:count]
        keratin = (rng.random(len(own) + 1) < scene.keratin)[:count]
        tone[keratin] *= 1.7
        edge = cv2.morphologyEx(cell.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
        edge = cv2.GaussianBlur(edge.astype(np.float32), (0, 0), 0.45 * scale)
        vacuole = np.clip((mid + 0.5 * coarse - 2.6 + 1.6 * scene.vacuoles) * 2, 0, 1)
        cyto_e = scene.cyto_eosin * tone[cell] * (1 + 0.12 * fine + 0.12 * mid) + scene.border * edge * 2
        cyto_h = scene.cyto_haem * (1 + 0.12 * fine + 0.2 * mid + 0.2 * coarse) * (1 - 0.3 * keratin[cell])
        clear = 1 - 0.75 * vacuole - 0.25 * edge * (scene.border < 0)
        eosin += epi * (cyto_e * clear - eosin)
        haem += epi * (cyto_h * clear - haem)

    for px, py, radius in scene.pearls:
        gap = np.hypot(x / scale - px, y / scale - py) + 1.6 * coarse + 0.8 * mid
        inside = np.clip((radius - gap) / 4, 0, 1) * epi
        rings = np.sin(gap * 2 * np.pi / 4.2 + coarse)
        eosin += inside * (0.95 + 0.2 * rings - eosin)
        haem += inside * (0.12 + 0.04 * rings - haem)

    keep = 1 - air
    ooze = np.clip(coarse + 0.5 * mid + 2 * scene.debris - 1.6, 0, 1) * air * 0.25
    eosin, haem = eosin * keep + ooze * (1 + 0.4 * fine), haem * keep + 0.3 * ooze

    # macrophages float in air: foamy cytoplasm
    foam = cells[cells["cell"] == 2].copy()
    if len(foam):
        foam["a"], foam["b"] = foam["a"] * 2.1, foam["b"] * 2.1
        body = (_label_map(_outlines(rng, foam, scale), size) > 0).astype(np.float32)
        body = cv2.GaussianBlur(body, (0, 0), 0.5 * scale)
        eosin += body * (0.42 * (1 + 0.3 * fine + 0.2 * mid) - eosin)
        haem += body * (0.22 * (1 + 0.3 * mid) - haem)

    # red cells lie beneath nuclei
    disc = _prune(scene.red_cells)
    reds = _label_map(_outlines(rng, disc, scale), size)
    tone = np.r_[0, np.exp(rng.normal(0, 0.15, len(disc)))].astype(np.float32)
    red = cv2.GaussianBlur(tone[reds], (0, 0), 0.35 * scale)
    pale = np.clip(red, 0, 1)
    eosin, haem = eosin * (1 - pale), haem * (1 - pale)

    # nuclei: dark rim, vesicular or dense inside, chromatin clumps, nucleoli
    centre_ok = labels[tuple(np.round(np.where(area[:, None] > 0, centre, 0)).astype(int).T[::-1])] == np.arange(
        1, len(cells) + 1)
    visible = centre_ok & (area >= 4 * scale * scale * 0.8)
    lut = np.r_[0, np.where(visible, np.cumsum(visible), 0)].astype(np.int32)
    labels = lut[labels]
    cells, centre = cells[visible], centre[visible]
    look = np.zeros((4, len(cells) + 1), np.float32)
    look[0, 1:], look[1, 1:] = cells["density"], cells["vesicle"]
    solid = (labels > 0).astype(np.uint8)
    step = cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    inner = cv2.distanceTransform(solid * (~step).astype(np.uint8), cv2.DIST_L2, 3) / scale
    vesicle = look[1][labels]
    rim = np.exp(-inner / 0.7)
    clump = np.clip(0.6 * fine + 0.55 * mid, -1.2, 1.5)
    density = look[0][labels] * (1 - vesicle * 0.5 + vesicle * 0.55 * rim + (0.1 + 0.22 * vesicle) * clump)
    spots = np.zeros((size, size), np.float32)
    for one, (cx, cy) in zip(cells[cells["nucleolus"] > 0], centre[cells["nucleolus"] > 0]):
        shift = 0.35 * one["b"] * scale
        where = (int((cx + np.cos(one["x"] * 9) * shift) * 16), int((cy + np.sin(one["y"] * 9) * shift) * 16))
        cv2.circle(spots, where, int(0.16 * (one["a"] + one["b"]) * 0.75 * scale * 16), 1.0, -1, cv2.LINE_8, 4)
    spots *= solid
    density += spots * (1.9 - density) * 0.8
    cover = cv2.GaussianBlur(solid.astype(np.float32), (0, 0), 0.25 * scale)
    density = cv2.GaussianBlur(density, (0, 0), 0.25 * scale)
    haem = haem * (1 - cover) + density
    eosin = eosin * (1 - 0.55 * cover) + 0.25 * spots
    red = red * (1 - cover)
    tissue = (air < 0.5) | (solid > 0)
    return np.maximum(haem, 0), np.maximum(eosin, 0), red, labels, tissue


def draw_tile(label, *, patient, index, seed=0, image_size=224):
    import cv2

    person = draw_patient(patient, seed)
    rng = np.random.default_rng([seed, patient, CLASSES.index(label), index])
    scene = {"lung_n": _benign, "lung_aca": _adeno, "lung_scc": _squamous}[label](rng, person)
    size = max(CANVAS_PX, image_size)
    haem, eosin, red, labels, tissue = _render(scene, person, rng, size)
    strength = person.strength * np.exp(rng.normal(0, [0.06, 0.08])).astype(np.float32)
    density = (haem[..., None] * (strength[0] * person.stains[0])
               + eosin[..., None] * (strength[1] * person.stains[1]) + red[..., None] * RED_CELL * 0.9)
    density = cv2.GaussianBlur(density, (0, 0), person.blur_um * size / FIELD_UM)
    light = person.light * (1 + 0.02 * _noise(rng, 120, size=size))[..., None]
    image = light * np.exp(-density)
    image = cv2.resize(image, (image_size, image_size), interpolation=cv2.INTER_AREA)
    grain = np.random.default_rng([seed, patient, CLASSES.index(label), index, 1])
    image = image + person.noise * grain.standard_normal(image.shape, np.float32)
    pick = ((np.arange(image_size) + 0.5) * size / image_size).astype(int)
    labels = labels[np.ix_(pick, pick)]
    present = np.bincount(labels.ravel()) > 0
    present[0] = False
    labels = np.where(present, np.cumsum(present), 0).astype(np.int32)[labels]
    centre, _ = _centroids(labels, int(present.sum()))
    return Tile(np.clip(np.round(image * 255), 0, 255).astype(np.uint8), labels, centre.astype(np.float32),
                tissue[np.ix_(pick, pick)], label, patient)
