#!/usr/bin/env python
"""Measure the rules of lungkit.histology.quality: what they drop of good tissue, and of bad.

    LC25000=DIR LC25000_768=DIR SLIDES=DIR OMP_NUM_THREADS=1 python benchmarks/quality_rules.py \\
        | tee benchmarks/quality_rules.txt

Reads   LC25000 (environment variable: the folder of groups.csv and lung_image_sets), a file of each
        source tile; LC25000_768, class folders of the same set at native size; SLIDES, the folder
        of CMU-1-Small-Region.svs (OpenSlide's test data, skin, green margin ink) and
        test3-DAPI-2-(387).ndpi (slideio's, fluorescence). What is not given is left out. Simulated
        tissue is drawn, on seeds that chose no limit.
Prints  1. of good tissue the share that is dropped, by set and rule, with Wilson's 95 % interval;
        2. of strokes of ink drawn over good tissue those dropped, by colour and density;
        3. of the tiles of the skin slide on which ink is seen by eye, those found;
        4. what becomes of blurred, dark, folded and badly exposed tissue.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from lungkit.histology import background, quality, stain
from lungkit.histology.originals import Cut, open_original
from lungkit.histology.tiles import balanced
from lungkit.histology.tissue_grid import MIN_TISSUE
from lungkit.run import cli

CLASSES = ("lung_aca", "lung_n", "lung_scc")
FIRST_PATIENT = 500
# (left, top) of the skin slide's tiles of 128 px at 0.5 um on which green ink is plain, and on
# which there is a trace of it: by one pair of eyes, on a sheet that was sorted by the rule
PLAIN = {(918, 139), (918, 267), (918, 395), (918, 523), (1046, 267), (1174, 267), (1174, 651),
         (1430, 779), (1430, 907), (1558, 651), (1558, 779), (1558, 1035), (1558, 1163),
         (1558, 1547), (1558, 1803), (1558, 1931), (1686, 1035), (1686, 1163), (1686, 1803),
         (1686, 1931), (1686, 2443), (1686, 2571), (1686, 2699), (1686, 2827), (1814, 1291),
         (1814, 2187), (1814, 2315)}
TRACES = {(918, 651), (918, 907), (1046, 139), (1046, 395), (1046, 523), (1174, 139), (1174, 523),
          (1174, 779), (1174, 1547), (1302, 395), (1302, 651), (1302, 779), (1302, 1675),
          (1430, 395), (1430, 523), (1430, 651), (1430, 1035), (1430, 1163), (1558, 907),
          (1558, 2827), (1686, 1291), (1686, 1419), (1686, 2315)}
INKS = {"blue": (35, 60, 150), "light blue": (60, 110, 190), "green": (20, 110, 80),
        "light green": (60, 160, 110), "teal": (0, 140, 140), "red": (200, 25, 45),
        "dark red": (150, 10, 30), "orange": (240, 120, 30), "yellow": (250, 220, 60),
        "violet": (90, 40, 140), "black": (30, 30, 35)}
STROKE_UM = 36  # a fifth of an LC25000 tile: the edge of a stroke of a millimetre
# other laboratories' stains: densities of haematoxylin and eosin in red, green, blue; None: own
STAINS = {"Ruifrok's vectors": ((.65, .70, .29), (.07, .99, .11)),
          "blue haematoxylin": ((.74, .62, .25), (.15, .95, .25)),
          "red eosin": (None, (.05, .85, .52))}


# ------------------------------------------------------------------ tiles

def lc25000(folder: Path) -> list[tuple]:
    """(white-balanced tile, um a pixel or None) of a file of each source tile."""
    first = {}
    with open(folder / "groups.csv", newline="") as file:
        for row in csv.DictReader(file):
            first.setdefault((row["label"], row["group"]), row["file_name"])
    return pictures(folder / "lung_image_sets" / name for _, name in sorted(first.items()))


def pictures(paths: Iterable[Path]) -> list[tuple]:
    tiles = []
    for path in paths:
        with open_original(path) as picture:
            tile = picture.read(picture.boxes(Cut(224))[0], 512)
            light = background.background_light(picture.overview())
            tiles.append((background.balance_white(tile, light), None))
    return tiles


def simulated(number: int) -> list[tuple]:
    from lungkit.phantom.paint import draw_tile

    tiles = [draw_tile(CLASSES[3 * i // number], patient=FIRST_PATIENT + i, index=0, seed=11).image
             for i in range(number)]
    return [(background.balance_white(tile, background.background_light(tile)), None)
            for tile in tiles]


def slide(path: Path, cut: Cut) -> dict[tuple[int, int], tuple]:
    """{(left, top): (tile, um a pixel)} of a slide, colour white-balanced."""
    with open_original(path) as picture:
        light = background.background_light(picture.overview()) if picture.colour else None
        tiles = {}
        for box in picture.boxes(cut):
            pixels = picture.read(box, 512)
            tiles[box[1], box[0]] = (balanced(pixels, light, False)[0],
                                     picture.um_per_px * box[2] / len(pixels))
    return tiles


# ------------------------------------------------------------------ what is done to them
# each: (tile, um a pixel or None, seed, how much) -> the tile, or None where it cannot be done

def density(tile) -> np.ndarray:
    return -np.log(np.maximum(tile, 1) / 255)


def as_it_is(tile, um_per_px, seed, _) -> np.ndarray:
    return tile


def thicker(tile, um_per_px, seed, times: float) -> np.ndarray:
    return np.uint8(255 * np.exp(-times * density(tile)))


def exposed(tile, um_per_px, seed, times: float) -> np.ndarray:
    return np.uint8(np.clip(tile * times, 0, 255))


def restained(tile, um_per_px, seed, vectors: tuple) -> np.ndarray | None:
    """The tile in other stains' colours; None where its own two cannot be told apart."""
    own = stain.METHODS["macenko"].estimate(tile)
    if not isinstance(own, stain.Stains):
        return None
    new = np.array([own.matrix[:, i] if vector is None else vector / np.linalg.norm(vector)
                    for i, vector in enumerate(vectors)])
    amounts = np.maximum(density(tile).reshape(-1, 3) @ np.linalg.pinv(own.matrix.T), 0)
    return np.uint8(255 * np.exp(-amounts @ new)).reshape(tile.shape)


def inked(tile, um_per_px, seed, ink: tuple) -> np.ndarray:
    """A stroke through the tile; ink absorbs, and lies on the glass out of focus."""
    colour, strength = ink
    side = len(tile)
    width = round(STROKE_UM / (um_per_px or 180 / side))
    ends = np.random.default_rng(seed).integers(0, side, (2, 2))
    ends[:, 0] = 0, side - 1
    stroke = cv2.polylines(np.zeros((side, side), np.float32), [ends], False, 1.0, width)
    stroke = cv2.GaussianBlur(stroke, (0, 0), width / 20)[..., None]
    return np.uint8(tile * (1 - stroke + stroke * (np.array(colour) / 255) ** strength))


def folded(tile, um_per_px, seed, _) -> np.ndarray:
    """A quarter of the tile lies double: the densities of two layers add up."""
    side = len(tile)
    at = int(np.random.default_rng(seed).integers(0, 3 * side // 4))
    layers = density(tile)
    layers[:, at:at + side // 4] += layers[::-1, at:at + side // 4].copy()
    return np.uint8(255 * np.exp(-layers))


def blurred(tile, um_per_px, seed, sigma_um: float) -> np.ndarray:
    return cv2.GaussianBlur(tile, (0, 0), sigma_um / (um_per_px or 180 / len(tile)))


# ------------------------------------------------------------------ what is said of them

def judged(tile, um_per_px: float | None) -> str | None:
    mask = background.tissue_mask(tile)
    return quality.reason(quality.measure(tile, mask, scale=um_per_px))


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's interval (1927) of 95 % of a share."""
    z2, p = 1.96 ** 2, hits / n
    middle, half = p + z2 / (2 * n), (z2 * (p * (1 - p) / n + z2 / (4 * n * n))) ** 0.5
    return max(0.0, (middle - half) / (1 + z2 / n)), min(1.0, (middle + half) / (1 + z2 / n))


def show(name: str, reasons: list[str | None]) -> None:
    found, n = Counter(filter(None, reasons)), len(reasons)
    lost = sum(found.values())
    low, high = wilson(lost, n)
    by_rule = ", ".join(f"{rule} {count}" for rule, count in found.most_common())
    print(f"  {name:<52} {lost:4} of {n:4}  {lost / n:6.1%} ({low:.1%}-{high:.1%})  {by_rule}",
          flush=True)


def each(tiles: list[tuple], change: Callable, how_much: object = None) -> list[str | None]:
    """The reasons of the tiles when changed; what cannot be changed is left out."""
    made = [(change(tile, um_per_px, i, how_much), um_per_px)
            for i, (tile, um_per_px) in enumerate(tiles)]
    return [judged(tile, um_per_px) for tile, um_per_px in made if tile is not None]


def report(sets: dict[str, list[tuple]], skin: dict, dapi: list[tuple], most: int) -> None:
    print("\n1. Good tissue that is dropped")
    unseen = []
    for name, tiles in sets.items():
        found = each(tiles, as_it_is)
        show(name, found)
        unseen += found if name != "LC25000" else []
    show("all but LC25000, which chose the limits", unseen)
    some = {name: tiles[::max(1, len(tiles) // most)] for name, tiles in sets.items()}
    seen = next(iter(some))
    for name, vectors in STAINS.items():
        show(f"{seen}, {name}", each(some[seen], restained, vectors))
    for name, tiles in some.items():
        for times in (0.5, 1.6, 2.2):
            show(f"{name}, {times:g} times as thick", each(tiles, thicker, times))
    if dapi:
        show("DAPI slide, with nuclei enough", [
            why for why in each(dapi, as_it_is) if why != "too little tissue"])

    print("\n2. Strokes of ink drawn over good tissue, 36 um wide, that are dropped")
    for ink, colour in INKS.items():
        for strength, words in ((1.0, "dense"), (0.5, "half as dense")):
            for name, tiles in some.items():
                show(f"{ink}, {words}; {name}", each(
                    tiles, inked, (colour, strength)))

    if skin:
        print("\n3. Green margin ink of the skin slide, 128 px at 0.5 um, seen by eye")
        for name, among in (("plain", PLAIN), ("a trace", TRACES),
                            ("none", set(skin) - PLAIN - TRACES)):
            show(name, [judged(*skin[place]) for place in sorted(among)])

    print("\n4. Bad tissue that is dropped")
    for name, tiles in (some | ({"DAPI slide": dapi} if dapi else {})).items():
        for sigma_um in (0.8, 1.2, 1.6, 2.0, 2.4, 3.2):
            show(f"blurred, sigma {sigma_um:g} um; {name}", each(tiles, blurred, sigma_um))
    for name, tiles in some.items():
        show(f"folded; {name}", each(tiles, folded))
        for times in (0.15, 0.5, 2.0):
            show(f"exposed {times:g} times; {name}", each(tiles, exposed, times))


def run(*, most: int, simulated_tiles: int) -> None:
    def given(name: str) -> Path | None:
        return Path(os.environ[name]) if os.environ.get(name) else None

    sets: dict[str, list[tuple]] = {}
    if folder := given("LC25000"):
        sets["LC25000"] = lc25000(folder)
    if folder := given("LC25000_768"):
        sets["LC25000 at 768 px"] = pictures(sorted(folder.glob("*/*.jpeg")))
    skin, dapi = {}, []
    if folder := given("SLIDES"):
        skin = slide(folder / "CMU-1-Small-Region.svs", Cut(128, mpp=0.5, min_tissue=MIN_TISSUE))
        sets["skin slide without ink"] = [tile for place, tile in skin.items()
                                          if place not in PLAIN | TRACES]
        dapi = list(slide(folder / "test3-DAPI-2-(387).ndpi",
                          Cut(224, min_tissue=MIN_TISSUE)).values())
    sets["simulated"] = simulated(simulated_tiles)
    print("; ".join(f"{name}: {len(tiles)} tiles" for name, tiles in sets.items())
          + f"; OpenCV {cv2.__version__}")
    report(sets, skin, dapi, most)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=cli.positive_int, default=60, metavar="N",
                        help="tiles of a set that are changed, about (default 60)")
    parser.add_argument("--simulated-tiles", type=cli.positive_int, default=400, metavar="N",
                        help="simulated tiles (default 400)")
    return cli.main(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
