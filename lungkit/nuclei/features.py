"""Features of nuclei: shape, stain and neighbourhood of each, and their summaries per image.

FEATURES are measured of every nucleus, in micrometres where they have a unit. Shape is that of
the nucleus's pixels as skimage.measure.regionprops has it: perimeter by Benkrid, Crookes and
Benkrid (2000), eccentricity of the ellipse of the same second moments; solidity is the share of
pixels of the digital convex hull, as detection filters by. Area comes from the detection, which is
finer than the pixels. Cells are those of lungkit.nuclei.voronoi.

The image's border cuts nuclei and cells: `touches_border` and `cell_touches_border` say which
(0 or 1). Such a nucleus counts for number, density, stain and spacing, but not in the summaries
of size and shape; such a cell is not in those of cell area and neighbours. What cannot be
measured is NaN, and an empty cell in the files: the shape of a nucleus too small to own a pixel,
the haematoxylin of fluorescence, the neighbour of a nucleus that is alone.

features.csv has a line per nucleus, image_features.csv one per image, both sorted by file name.

Feeds voronoi_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from lungkit.nuclei.detect import Nuclei, haematoxylin
from lungkit.nuclei.voronoi import cell_areas_px, count_neighbours, touches_border
from lungkit.run.faults import Fault
from lungkit.run.files import atomic_path, sha256_file
from lungkit.run.journal import Journal
from lungkit.run.tables import read_table

NUCLEI_FILE, IMAGES_FILE = "features.csv", "image_features.csv"
# feature: the flag of the nuclei it is not summarised over, or None
FEATURES = {"area_um2": "touches_border", "perimeter_um": "touches_border",
            "eccentricity": "touches_border", "solidity": "touches_border",
            "haematoxylin_od": None, "cell_area_um2": "cell_touches_border",
            "num_neighbours": "cell_touches_border", "nearest_neighbour_um": None}
FLAGS = ("touches_border", "cell_touches_border")
NUCLEUS_COLUMNS = ("nucleus", "centroid_x_px", "centroid_y_px", *FEATURES, *FLAGS)
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}
SUMMARIES = ("mean", "sd", *QUANTILES)
LAYOUT = ("num_nuclei", "density_per_mm2", "nuclear_area_fraction", "clark_evans")
IMAGE_COLUMNS = (*LAYOUT, *(f"{name}_{word}" for name in FEATURES for word in SUMMARIES))


# ------------------------------------------------------------------ of each nucleus

def measure_nuclei(nuclei: Nuclei, cells: np.ndarray, image: np.ndarray | None, *,
                   um_per_px: float) -> dict[str, np.ndarray]:
    """NUCLEUS_COLUMNS but `nucleus` of N nuclei, each float64 [N].

    cells: int32 [S, S], `voronoi_labels` of the centroids. image: uint8 [S, S, 3], stained with
    haematoxylin and eosin; None: not so stained.
    haematoxylin_od is the mean over the nucleus in natural optical density.
    """
    count = len(nuclei)
    shape = measure_shapes(nuclei.labels, count)
    pixels = np.bincount(nuclei.labels.ravel(), minlength=count + 1)[1:]
    stain = np.full(count, np.nan)
    if image is not None:
        sums = np.bincount(nuclei.labels.ravel(), haematoxylin(image).ravel(), count + 1)[1:]
        stain = np.divide(sums, pixels, out=stain, where=pixels > 0)
    centroids = nuclei.centroids.astype(np.float64).reshape(-1, 2)
    return {"centroid_x_px": centroids[:, 0], "centroid_y_px": centroids[:, 1],
            "area_um2": nuclei.areas_px.astype(np.float64) * um_per_px**2,
            "perimeter_um": shape["perimeter_px"] * um_per_px,
            "eccentricity": shape["eccentricity"], "solidity": shape["solidity"],
            "haematoxylin_od": stain,
            "cell_area_um2": cell_areas_px(cells, count) * um_per_px**2,
            "num_neighbours": count_neighbours(cells, count).astype(np.float64),
            "nearest_neighbour_um": nearest_neighbours(centroids) * um_per_px,
            "touches_border": touches_border(nuclei.labels, count + 1)[1:].astype(np.float64),
            "cell_touches_border": touches_border(cells, max(count, 1))[:count].astype(np.float64)}


def measure_shapes(labels: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Perimeter, eccentricity and solidity of labels 1..count of int [H, W], float64 [count].

    NaN for a label without pixels.
    """
    ys, xs = np.nonzero(labels)
    ids = labels[ys, xs] - 1
    order = np.argsort(ids, kind="stable")  # by label, row, column
    ys, xs, ids = ys[order], xs[order], ids[order]
    areas = np.bincount(ids, minlength=count)
    there = areas > 0
    shape = {"perimeter_px": perimeters(labels, count),
             "eccentricity": eccentricities(ys, xs, ids, areas),
             "solidity": np.divide(areas, hull_areas(ys, xs, ids, count), where=there,
                                   out=np.full(count, np.nan))}
    return {name: np.where(there, values, np.nan) for name, values in shape.items()}


def perimeters(labels: np.ndarray, count: int) -> np.ndarray:
    """Perimeters in px of labels 1..count, float64 [count].

    A pixel of the outline (one with another label above, below or beside it) counts 1, sqrt(2) or
    their mean, by how the outline goes on from it: Benkrid, Crookes and Benkrid, Design and FPGA
    implementation of a perimeter estimator, Proc. Irish Machine Vision 2000, as scikit-image does.
    """
    framed = np.pad(labels, 1)
    straight, slant = (-1, 1, -framed.shape[1], framed.shape[1]), \
        (-framed.shape[1] - 1, -framed.shape[1] + 1, framed.shape[1] - 1, framed.shape[1] + 1)
    flat = framed.ravel()
    at = np.flatnonzero(flat)
    own = flat[at]
    inner = np.ones(len(at), bool)
    for step in straight:
        inner &= flat[at + step] == own
    at, own = at[~inner], own[~inner]
    outline = np.zeros_like(flat)
    outline[at] = own
    beside = sum((outline[at + step] == own).astype(np.int8) for step in straight)
    across = sum((outline[at + step] == own).astype(np.int8) for step in slant)
    length = np.zeros((5, 5))  # by the number of neighbours beside and across
    length[2:4, :3] = 1
    length[0, 2] = length[1, 3] = np.sqrt(2)
    length[1, 1:3] = (1 + np.sqrt(2)) / 2
    return np.bincount(own - 1, length[beside, across], count)


def eccentricities(ys: np.ndarray, xs: np.ndarray, ids: np.ndarray,
                   areas: np.ndarray) -> np.ndarray:
    """Eccentricity of the ellipse with each region's second moments; 0 round, near 1 long."""
    count, sizes = len(areas), np.maximum(areas, 1)
    dy = ys - (np.bincount(ids, ys, count) / sizes)[ids]
    dx = xs - (np.bincount(ids, xs, count) / sizes)[ids]
    yy, xx, xy = (np.bincount(ids, values, count) / sizes for values in (dy * dy, dx * dx, dx * dy))
    half, root = (xx + yy) / 2, np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    ratio = np.divide(half - root, half + root, out=np.ones(count), where=half + root > 0)
    return np.sqrt(1 - np.clip(ratio, 0, 1))


def hull_areas(ys: np.ndarray, xs: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """Pixels within each region's convex hull, float64 [count]; exact by Pick's theorem.

    The regions' pixels come by label, row and column: only the ends of their rows matter.
    """
    import cv2

    areas = np.zeros(count)
    if len(ids) == 0:
        return areas
    new_row = np.flatnonzero((np.diff(ys, prepend=-1) != 0) | (np.diff(ids, prepend=-1) != 0))
    ends = np.concatenate([new_row, np.append(new_row[1:], len(ys)) - 1])
    ends = ends[np.argsort(ids[ends], kind="stable")]
    points = np.stack([xs[ends], ys[ends]], axis=1).astype(np.int32)
    starts = np.searchsorted(ids[ends], np.arange(count + 1))
    for label in np.flatnonzero(np.diff(starts)):
        hull = cv2.convexHull(points[starts[label]:starts[label + 1]])[:, 0]
        steps = np.abs(hull - np.concatenate([hull[1:], hull[:1]]))
        areas[label] = cv2.contourArea(hull) + np.gcd(steps[:, 0], steps[:, 1]).sum() / 2 + 1
    return areas


def nearest_neighbours(centroids: np.ndarray) -> np.ndarray:
    """Distance of each of `centroids` float64 [N, 2] to the nearest other; NaN where alone."""
    from scipy.spatial import cKDTree

    if len(centroids) < 2:
        return np.full(len(centroids), np.nan)
    return cKDTree(centroids).query(centroids, k=2)[0][:, 1]


# ------------------------------------------------------------------ of the image

def summarise(features: dict[str, np.ndarray], *, field_um: float) -> dict[str, float]:
    """IMAGE_COLUMNS of an image of `field_um` a side with the nuclei of `measure_nuclei`."""
    count, field_um2 = len(features["area_um2"]), field_um**2
    values = {"num_nuclei": count, "density_per_mm2": count / field_um2 * 1e6,
              "nuclear_area_fraction": features["area_um2"].sum() / field_um2,
              "clark_evans": clark_evans(features["nearest_neighbour_um"], field_um)}
    for name, flag in FEATURES.items():
        counted = features[name] if flag is None else features[name][features[flag] == 0]
        values |= {f"{name}_{word}": value for word, value in
                   zip(SUMMARIES, _summary(np.sort(counted[~np.isnan(counted)])))}
    return values


def _summary(ordered: np.ndarray) -> list[float]:
    """SUMMARIES of sorted float64 [N], NaN of nothing; quantiles as numpy interpolates them."""
    if len(ordered) == 0:
        return [np.nan] * len(SUMMARIES)
    places = [share * (len(ordered) - 1) for share in QUANTILES.values()]
    lower = [ordered[int(place)] for place in places]
    upper = [ordered[min(int(place) + 1, len(ordered) - 1)] for place in places]
    return [float(ordered.mean()), float(ordered.std()),
            *(float(low + (place % 1) * (high - low))
              for place, low, high in zip(places, lower, upper))]


def clark_evans(nearest_um: np.ndarray, field_um: float) -> float:
    """Mean distance to the nearest neighbour over what chance gives: < 1 clustered, > 1 regular.

    Clark and Evans, Ecology 35(4), 1954. A nucleus at the border may have its nearest neighbour
    outside, so chance in a bounded field is farther than in the plane: Donnelly's correction, in
    Hodder (ed.), Simulation studies in archaeology, 1978. NaN for less than two nuclei.
    """
    count = len(nearest_um)
    if count < 2:
        return np.nan
    expected_um = 0.5 * np.sqrt(field_um**2 / count) \
        + (0.0514 + 0.041 / np.sqrt(count)) * 4 * field_um / count
    return float(nearest_um.mean() / expected_um)


# ------------------------------------------------------------------ files

def as_text(value: float) -> str:
    """Six significant digits; nothing for NaN."""
    return "" if np.isnan(value) else f"{value:.6g}"


def nucleus_lines(features: dict[str, np.ndarray]) -> list[str]:
    """A CSV line of NUCLEUS_COLUMNS for each nucleus, numbered from 1 as in the labels."""
    columns = [features[name].tolist() for name in NUCLEUS_COLUMNS[1:]]
    return [",".join([str(number), *map(as_text, values)])
            for number, values in enumerate(zip(*columns), start=1)]


def feature_record(nuclei: list[str], image: dict[str, float]) -> dict:
    """What `write_tables` needs of an image: its `nucleus_lines` and its `summarise`."""
    return {"nuclei": nuclei, "image": [as_text(image[name]) for name in IMAGE_COLUMNS]}


def write_tables(log: Journal, directory: Path, file_names: list[str]) -> dict[str, dict]:
    """Write both tables of these images, sorted: {file: {rows, sha256}}.

    log: `feature_record` of each image by file name.
    """
    rows = {NUCLEI_FILE: 0, IMAGES_FILE: 0}
    with atomic_path(directory / NUCLEI_FILE) as nuclei_path, \
            atomic_path(directory / IMAGES_FILE) as images_path, \
            open(nuclei_path, "w", encoding="utf-8") as nuclei, \
            open(images_path, "w", encoding="utf-8") as images:
        nuclei.write(",".join(("file_name", *NUCLEUS_COLUMNS)) + "\n")
        images.write(",".join(("file_name", *IMAGE_COLUMNS)) + "\n")
        for name in sorted(file_names):
            record = log.get(name)
            quoted = _quoted(name)
            nuclei.writelines(f"{quoted},{line}\n" for line in record["nuclei"])
            images.write(",".join([quoted, *record["image"]]) + "\n")
            rows[NUCLEI_FILE] += len(record["nuclei"])
            rows[IMAGES_FILE] += 1
    return {name: {"rows": number, "sha256": sha256_file(directory / name)}
            for name, number in rows.items()}


def _quoted(name: str) -> str:
    """A file name as a CSV field: a class may have a comma."""
    field = io.StringIO()
    csv.writer(field, lineterminator="").writerow([name])
    return field.getvalue()


def read_image_features(directory: Path, manifest: dict) -> dict[str, list[float]]:
    """The values of IMAGE_COLUMNS by file name of a dataset made by voronoi_seg.py; checked."""
    path = directory / IMAGES_FILE
    known = manifest.get("features", {}).get(IMAGES_FILE)
    if known is None or not path.is_file():
        raise Fault(f"{directory} holds no {IMAGES_FILE}: make it with voronoi_seg.py "
                    "(--overwrite, if it is of an older version)")
    if sha256_file(path) != known["sha256"]:
        raise Fault(f"{path} was altered since the dataset was made: restore it or make the "
                    "dataset again with --overwrite")
    columns, rows = read_table(path, ["file_name"])
    if columns != ["file_name", *IMAGE_COLUMNS]:
        raise Fault(f"{path} has other columns than this version measures: make the dataset "
                    "again with --overwrite")
    return {row["file_name"]: [float(row[name] or "nan") for name in IMAGE_COLUMNS]
            for _, row in rows}
