"""Paint simulated tissue: a scene of cells and fibres as a stained tile with its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np  # OpenCV is imported where it is used: --help must not wait for it

from lungkit.phantom.morphology import CELLS, SLIDE
from lungkit.phantom.outlines import label_map, outlines, separate, visible

CLASSES = ("lung_aca", "lung_n", "lung_scc")
CANVAS_PX = 336  # the smallest raster drawn; smaller images are its area averages
FLUORESCENCE, SIBLING = 1, 2  # last word of the seeds of what is drawn beside a tile
RED_CELL = np.array([0.05, 0.85, 0.52], np.float32)  # haemoglobin with eosin: redder than eosin


@dataclass(frozen=True)
class Tile:
    """One tile and its truth; H = W = image_size, covering 180 um."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    nuclei: np.ndarray  # int32 [H, W], 0 background, 1..N as visible
    centroids: np.ndarray  # float32 [N, 2], (x, y) px of what is visible; row i is label i + 1
    tissue: np.ndarray  # bool [H, W], false in air; blood and macrophages in air are tissue
    tumour: np.ndarray  # bool [H, W], tumour epithelium with its keratin; none in lung_n
    label: str
    patient: int


@dataclass(frozen=True)
class Slide:
    """How one patient's slide was stained and scanned."""

    stains: np.ndarray  # float32 [3, 3], rows haematoxylin, eosin, red cells; columns R, G, B
    strength: np.ndarray  # float32 [3], factor on each concentration
    light: np.ndarray  # float32 [3], bare glass, 0..1
    blur_um: float
    grain: float  # deviation of camera noise, 0..1
    mottle: float  # uneven staining and lighting across a tile


def draw_slide(rng):
    """Draw one patient's slide."""
    haematoxylin = [SLIDE.haematoxylin_red.draw(rng), 0, SLIDE.haematoxylin_blue.draw(rng)]
    eosin = [SLIDE.eosin_red.draw(rng), 0, SLIDE.eosin_blue.draw(rng)]
    for vector in (haematoxylin, eosin):
        vector[1] = np.sqrt(1 - vector[0] ** 2 - vector[2] ** 2)
    light = SLIDE.light.draw(rng) * np.clip(SLIDE.light_tint.draw(rng, 3), 0.92, 1.01)
    strength = [one.draw(rng) for one in (SLIDE.haematoxylin_strength, SLIDE.eosin_strength,
                                          SLIDE.red_cell_strength)]
    return Slide(stains=np.array([haematoxylin, eosin, RED_CELL], np.float32),
                 strength=np.array(strength, np.float32), light=light.astype(np.float32),
                 blur_um=SLIDE.blur_um.draw(rng), grain=SLIDE.grain.draw(rng),
                 mottle=SLIDE.mottle.draw(rng))


class _Texture(NamedTuple):
    """Noise of three scales and pixel coordinates in um, all float32 [size, size]."""

    fine: np.ndarray
    medium: np.ndarray
    coarse: np.ndarray
    x: np.ndarray
    y: np.ndarray


def _enlarged(padded, size, blur, width):
    """Crop a padded field to the tile and turn it into a soft mask float32 [size, size], 0..1."""
    import cv2

    from lungkit.phantom.tissue import PAD_PX

    tile = cv2.GaussianBlur(np.float32(padded), (0, 0), blur)[PAD_PX:-PAD_PX, PAD_PX:-PAD_PX]
    tile = cv2.resize(tile, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.clip(tile / width + 0.5, 0, 1)


def _stroma(scene, rng, texture, size, scale):
    """Haematoxylin and eosin of connective tissue: wavy fibres."""
    import cv2

    from lungkit.phantom import tissue

    fibres = tissue.noise(rng, 2.6, size, stretch=9)
    turn, wave = rng.uniform(0, np.pi), tissue.noise(rng, 50, size) * 9
    c, s = float(np.cos(turn)), float(np.sin(turn))
    fibres = cv2.remap(fibres, (c * texture.x - s * texture.y + wave) * scale,
                       (s * texture.x + c * texture.y + wave) * scale, cv2.INTER_LINEAR,
                       borderMode=cv2.BORDER_REFLECT)
    eosin = scene.stroma_eosin * (1 + 0.15 * fibres + 0.10 * texture.medium + 0.16 * texture.coarse)
    return 0.12 * (1 + 0.25 * texture.medium + 0.3 * texture.coarse), eosin


def _cytoplasm(scene, rng, texture, cells, size, scale):
    """Haematoxylin and eosin of epithelium: one territory per tumour cell, with a border."""
    import cv2

    from lungkit.phantom import tissue

    own = np.stack([cells["x"], cells["y"]], 1)[cells["owner"] == tissue.TUMOUR]
    at = np.clip(np.round(own * scale - 0.5).astype(int), 0, size - 1)
    seeds = np.ones((size, size), np.uint8)
    seeds[at[:, 1], at[:, 0]] = 0
    _, nearest = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5,
                                                  labelType=cv2.DIST_LABEL_PIXEL)
    owner = np.zeros(nearest.max() + 1, int)  # OpenCV numbers the seeds by row, we by cell
    owner[nearest[at[:, 1], at[:, 0]]] = np.arange(len(own))
    tone = np.exp(rng.normal(0, 0.13, len(own))).astype(np.float32)
    keratinised = rng.random(len(own)) < scene.keratinised
    tone[keratinised] *= 1.6
    border = cv2.morphologyEx(nearest.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    border = cv2.GaussianBlur(border.astype(np.float32), (0, 0), 0.45 * scale)
    foam = texture.medium + 0.5 * texture.coarse
    vacuoles = np.clip(2 * (foam - 2.6 + 1.6 * scene.vacuoles), 0, 1)
    clear = 1 - 0.7 * vacuoles - (0.3 * border if scene.border_eosin < 0 else 0)
    eosin = scene.cytoplasm_eosin * tone[owner][nearest]
    eosin *= 1 + 0.12 * (texture.fine + texture.medium)
    haematoxylin = scene.cytoplasm_haematoxylin * (
        1 + 0.12 * texture.fine + 0.2 * texture.medium + 0.2 * texture.coarse)
    haematoxylin *= np.where(keratinised, 0.6, 1).astype(np.float32)[owner][nearest]
    return haematoxylin * clear, (eosin + 2 * scene.border_eosin * border) * clear


def _keratinise(scene, texture, epithelium, haematoxylin, eosin, scale):
    """Paint the pearls of a scene, concentric keratin, into haematoxylin and eosin in place."""
    size = len(eosin)
    for pearl_x, pearl_y, radius in scene.pearls:
        low = np.clip((np.array([pearl_y, pearl_x]) - radius - 12) * scale, 0, size).astype(int)
        high = np.clip((np.array([pearl_y, pearl_x]) + radius + 12) * scale, 0, size).astype(int)
        near = np.s_[low[0]:high[0], low[1]:high[1]]
        fine, medium, coarse, px, py = (values[near] for values in texture)
        ring = np.hypot(px - pearl_x, py - pearl_y) + 2.2 * coarse + 0.8 * medium
        inside = np.clip((radius - ring) / 5, 0, 1) * epithelium[near]
        lamella = np.sin(ring * (2 * np.pi / 4.5) + coarse)
        keratin = scene.cytoplasm_eosin + 0.3 + 0.16 * lamella + 0.06 * fine
        eosin[near] += inside * (keratin - eosin[near])
        haematoxylin[near] += inside * (0.10 + 0.05 * lamella - haematoxylin[near])


class Painted(NamedTuple):
    """What a scene looks like before it is stained and seen; float32 [size, size] if not said.

    Soft masks are 0..1, amounts are optical densities along the stain's vector.
    """

    concentration: np.ndarray  # float32 [size, size, 3], haematoxylin, eosin, red cells
    labels: np.ndarray  # int32, nuclei
    tissue_mask: np.ndarray  # bool
    epithelium_mask: np.ndarray  # bool
    scene: object  # tissue.Scene
    cells: np.ndarray  # tissue.CELL [N], row i is label i + 1
    chromatin: np.ndarray  # haematoxylin of nuclei, nucleoli left out
    nucleoli: np.ndarray  # 0 or 1
    epithelium: np.ndarray  # soft mask
    air: np.ndarray  # soft mask
    eosin: np.ndarray  # of stroma and cytoplasm, before nuclei and free cells cover them
    foam: np.ndarray  # soft mask of macrophages
    red: np.ndarray  # amount of red cells


def _chromatin(texture, labels, cells, centre, scale):
    """Haematoxylin of nuclei [size, size]: rim and clumps; and where the nucleoli are."""
    import cv2

    edge = cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    depth = cv2.distanceTransform(((labels > 0) & ~edge).astype(np.uint8), cv2.DIST_L2, 3)
    rim = np.exp(depth * (-1 / (0.7 * scale)))
    density, vesicle = (np.r_[0, cells[name]].astype(np.float32)[labels]
                        for name in ("density", "vesicle"))
    clumps = np.clip(0.6 * texture.fine + 0.55 * texture.medium, -1.2, 1.5)
    density *= 1 + vesicle * (0.55 * rim - 0.5) + (0.1 + 0.22 * vesicle) * clumps
    nucleoli = np.zeros(labels.shape, np.float32)
    for cell, (x, y) in zip(cells, centre):
        if cell["nucleolus"]:
            aside = np.array([np.cos(9 * cell["x"]), np.sin(9 * cell["y"])])  # as good as random
            where = np.array([x, y]) + 0.35 * cell["b"] * scale * aside
            radius = (0.35 + 0.085 * (cell["a"] + cell["b"])) * scale  # grows with the nucleus
            where = np.round(where * 16).astype(int).tolist()
            cv2.circle(nucleoli, where, round(radius * 16), 1.0, -1, cv2.LINE_8, 4)
    nucleoli *= labels > 0
    return density, nucleoli


def _paint(scene, rng, size) -> Painted:
    """Paint a scene on a raster of size px."""
    import cv2

    from lungkit.phantom import tissue

    scale = size / tissue.FIELD_UM
    y, x = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / scale
    texture = _Texture(*(tissue.noise(rng, step, size) for step in (1.3, 3.5, 18)), x, y)
    air = _enlarged(scene.air, size, 1.0, 1.4)
    epithelium = _enlarged(scene.epithelium - 0.5, size, 1.0, 0.5)
    cells = separate(scene.nuclei, tissue.FIELD_UM)
    labels = label_map(outlines(rng, cells, scale), size)
    labels, centre, kept = visible(labels, len(cells), 4 * scale ** 2)  # 4 um2: less is a sliver
    cells = cells[kept]

    haematoxylin, eosin = _stroma(scene, rng, texture, size, scale)
    if (cells["owner"] == tissue.TUMOUR).any() and scene.epithelium.any():
        inner = _cytoplasm(scene, rng, texture, cells, size, scale)
        haematoxylin += epithelium * (inner[0] - haematoxylin)
        eosin += epithelium * (inner[1] - eosin)
    _keratinise(scene, texture, epithelium, haematoxylin, eosin, scale)
    ooze = texture.coarse + 0.5 * texture.medium + 2 * scene.debris
    ooze = 0.22 * air * np.clip(ooze - 1.6, 0, 1)
    haematoxylin = haematoxylin * (1 - air) + 0.3 * ooze
    eosin = eosin * (1 - air) + ooze * (1 + 0.4 * texture.fine)

    protein = eosin.copy()
    bodies = cells[cells["owner"] == tissue.MACROPHAGE]
    for axis in ("a", "b"):
        bodies[axis] *= CELLS.macrophage_body.value
    body = label_map(outlines(rng, bodies, scale), size) > 0
    foam = cv2.GaussianBlur(body.astype(np.float32), (0, 0), 0.5 * scale)
    eosin += foam * (0.42 * (1 + 0.3 * texture.fine + 0.2 * texture.medium) - eosin)
    haematoxylin += foam * (0.22 * (1 + 0.3 * texture.medium) - haematoxylin)
    discs = separate(scene.red_cells, tissue.FIELD_UM)
    discs_at = label_map(outlines(rng, discs, scale), size)
    red = np.r_[0, discs["density"]].astype(np.float32)[discs_at]
    red = cv2.GaussianBlur(red, (0, 0), 0.35 * scale)

    chromatin, nucleoli = _chromatin(texture, labels, cells, centre, scale)
    dark = chromatin + nucleoli * 0.8 * np.clip(1.8 - chromatin, 0, None)
    nucleus = cv2.GaussianBlur((labels > 0).astype(np.float32), (0, 0), 0.25 * scale)
    bare = np.clip(1 - red, 0, 1)
    haematoxylin *= bare * (1 - nucleus)
    haematoxylin += cv2.GaussianBlur(dark, (0, 0), 0.25 * scale)
    eosin = eosin * bare * (1 - 0.55 * nucleus) + 0.25 * nucleoli
    painted = cv2.merge([haematoxylin, eosin, red * (1 - nucleus)])
    tissue_mask = (air < 0.5) | (labels > 0) | body | (discs_at > 0)
    return Painted(np.maximum(painted, 0), labels, tissue_mask, (epithelium > 0.5) & (air < 0.5),
                   scene, cells, chromatin, nucleoli, epithelium, air, protein, foam, red)


def draw_tile(label: str, *, patient: int, index: int, seed: int = 0,
              image_size: int = 224) -> Tile:
    """Draw tile `index` of a class and patient; it depends on (seed, patient, label, index) alone.

    The field of view is 180 um at any image_size: the same tissue, drawn at 336 px or more.
    """
    return draw_painted(label, patient, index, seed, image_size)[0]


def draw_fluorescence(label: str, *, patient: int, index: int, seed: int = 0,
                      image_size: int = 224, num_planes: int = 1) -> np.ndarray:
    """Draw the fluorescence image uint16 [Z, C, H, W] of what `draw_tile` shows, Z = num_planes.

    The channels are `lungkit.phantom.fluorescence.CHANNELS`.
    """
    painted = draw_painted(label, patient, index, seed, image_size)[1]
    return photograph(painted, label, patient, index, seed, image_size, num_planes)


def photograph(painted, label, patient, index, seed, image_size, num_planes):
    """Fluorescence image uint16 [Z, C, H, W] of painted tissue."""
    from lungkit.phantom import fluorescence

    # a patient's own stream has one number more than there are classes and no index
    of_patient = np.random.default_rng([seed, patient, len(CLASSES), 0, FLUORESCENCE])
    rng = np.random.default_rng([seed, patient, CLASSES.index(label), index, FLUORESCENCE])
    return fluorescence.draw_channels(painted, fluorescence.draw_staining(of_patient), rng,
                                      image_size=image_size, num_planes=num_planes)


def draw_painted(label, patient, index, seed, image_size) -> tuple[Tile, Painted]:
    """Draw a tile, and what it was painted from."""
    import cv2

    from lungkit.phantom import tissue

    draw_scene = {"lung_aca": tissue.adenocarcinoma, "lung_n": tissue.benign,
                  "lung_scc": tissue.squamous}
    of_patient = np.random.default_rng([seed, patient])
    person, slide = tissue.draw_biology(of_patient), draw_slide(of_patient)
    rng = np.random.default_rng([seed, patient, CLASSES.index(label), index])
    strength = slide.strength * np.exp(SLIDE.thickness.draw(rng, 3))  # sections differ in thickness
    size = max(CANVAS_PX, image_size)
    painted = _paint(draw_scene[label](rng, person), rng, size)
    mottle = 1 + slide.mottle * tissue.noise(rng, 70, size)
    density = cv2.transform(painted.concentration, np.float32(slide.stains.T * strength))
    density *= mottle[..., None]
    density = cv2.GaussianBlur(density, (0, 0), slide.blur_um * size / tissue.FIELD_UM)
    light = cv2.resize(cv2.exp(-density), (image_size, image_size), interpolation=cv2.INTER_AREA)
    light *= slide.light * (1 + 0.02 * tissue.noise(rng, 120, image_size)[..., None])
    light += slide.grain * rng.standard_normal(light.shape, np.float32)  # last: depends on size
    middle = ((np.arange(image_size) + 0.5) * size / image_size).astype(int)
    at = np.ix_(middle, middle)
    nuclei, centroids, _ = visible(painted.labels[at], int(painted.labels.max()), 1)
    image = np.uint8(np.clip(np.round(255 * light), 0, 255))
    tile = Tile(image, nuclei, centroids.astype(np.float32), painted.tissue_mask[at],
                painted.epithelium_mask[at] & (label != "lung_n"), label, patient)
    return tile, painted
