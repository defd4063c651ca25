"""Are copies of test images found, and fresh tiles left alone? Rates and seconds of the search.

  python benchmarks/leaks.py                            simulated tiles
  LC25000=DIR python benchmarks/leaks.py                real ones, too (DIR holds groups.csv)
  python benchmarks/leaks.py --sizes                    seconds only
  python benchmarks/leaks.py --slices DIR               whole slices of CT, a dataset of ct_seg.py

leak      lungkit.audit.leaks: test images of which an arm of fresh tiles and one changed copy of
          each was found to hold a copy
fresh     the same where the arm holds tiles of other source tiles (LC25000) or other tissue only
Every rate with its 95 % Wilson interval; those of the audit for copies of training images:
benchmarks/memorisation.py. The last output: benchmarks/leaks.txt.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lungkit.audit import copies, leaks, signature  # noqa: E402
from lungkit.audit.detail import detail_agreement  # noqa: E402
from lungkit.audit.registration import register  # noqa: E402
from lungkit.compare.rank_sum import wilson_interval  # noqa: E402
from lungkit.data.dataset import open_dataset  # noqa: E402
from lungkit.data.png import three_channels  # noqa: E402
from lungkit.phantom.paint import CLASSES, draw_tile  # noqa: E402

SIZES = (64, 224)
TILES = {64: 600, 224: 300}      # simulated: half are asked about, half are fresh
TIMED = {64: 1000, 256: 1000}    # images on either side
PATIENTS = 30


# ------------------------------------------------------------------ images

def read_lc25000(root: Path, size: int) -> list[np.ndarray]:
    """One image of every source tile, in an order that mixes the classes."""
    first: dict[str, str] = {}
    with open(root / "groups.csv", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            first.setdefault(row["group"], row["file_name"])
    images = [cv2.imread(str(root / "lung_image_sets" / first[group]))[..., ::-1]
              for group in sorted(first, key=lambda group: zlib.crc32(group.encode()))]
    return [cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images]


def simulate(number: int, size: int, seed: int = 0) -> np.ndarray:
    patient, rest = number % PATIENTS, number // PATIENTS
    return draw_tile(CLASSES[rest % len(CLASSES)], patient=patient, index=rest, seed=seed,
                     image_size=size).image


# ------------------------------------------------------------------ changes

def warp(image: np.ndarray, matrix) -> np.ndarray:
    return cv2.warpAffine(image, np.float32(matrix), image.shape[1::-1], flags=cv2.INTER_CUBIC,
                          borderMode=cv2.BORDER_REFLECT_101)


def turn(image: np.ndarray, degrees: float) -> np.ndarray:
    return warp(image, cv2.getRotationMatrix2D(((len(image) - 1) / 2,) * 2, degrees, 1))


def shift(image: np.ndarray, share: float) -> np.ndarray:
    step = round(share * len(image))
    return warp(image, [[1, 0, step], [0, 1, step]])


def crop(image: np.ndarray, share: float) -> np.ndarray:
    kept = round(share * len(image))
    start = (len(image) - kept) // 2
    return cv2.resize(image[start:start + kept, start:start + kept], image.shape[1::-1],
                      interpolation=cv2.INTER_CUBIC)


def add_hue(image: np.ndarray, step: int) -> np.ndarray:
    """Of OpenCV's 180 steps of hue."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + step) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def restain(image: np.ndarray) -> np.ndarray:
    return np.uint8(np.clip(image * np.array([1.1, 0.9, 1.05]) - 8, 0, 255))


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "hue + 10": lambda image: add_hue(image, 10),
    "shift 6 %": lambda image: shift(image, 0.06),
    "crop 80 %": lambda image: crop(image, 0.8),
    "turned by 10 degrees": lambda image: turn(image, 10),
    "turned by 20 degrees": lambda image: turn(image, 20),
    "quarter turn, mirrored": lambda image: np.rot90(image)[:, ::-1],
    "JPEG of quality 50": lambda image: compress(image, 50),
    "re-stained": restain,
}

SLICE_CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{what: CHANGES[what] for what in list(CHANGES)[1:-1]},
    "half the pixels": lambda image: cv2.resize(
        cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        image.shape[1::-1], interpolation=cv2.INTER_CUBIC),
    "another window": lambda image: np.uint8(np.clip((image - 30.0) * 1.4, 0, 255)),
    "noise": lambda image: np.uint8(np.clip(
        image + np.random.default_rng(0).normal(0, 8, image.shape[:2])[..., None], 0, 255)),
}


# ------------------------------------------------------------------ rates

def rate(hits: int, n: int) -> str:
    low, high = wilson_interval(hits / n, n)
    return f"{100 * hits / n:6.1f} ({100 * low:4.1f}-{100 * high:5.1f})"


def copies_among(asked: list, others: list) -> dict[int, int]:
    return {i: j for i, j, _ in copies.registered_among(asked, others)}


def measure(name: str, images: list[np.ndarray]) -> None:
    half = len(images) // 2
    asked, fresh = images[:half], images[half:2 * half]
    asked_signatures, fresh_signatures = (list(map(signature.describe, each))
                                          for each in (asked, fresh))
    print(f"\n{name}, n {half}\n{'%':28}{'leak':>20}")
    for what, change in CHANGES.items():
        changed = [np.ascontiguousarray(change(image)) for image in asked]
        found = copies_among(
            asked_signatures, fresh_signatures + list(map(signature.describe, changed)))
        right = sum(found.get(i) == half + i for i in range(half))
        print(f"{what:28}{rate(right, half):>20}", flush=True)
    flagged = len(copies_among(asked_signatures, fresh_signatures))
    print(f"{'fresh':28}{rate(flagged, half):>20}", flush=True)


def measure_slices(path: Path) -> None:
    """Whole slices: details of strangers that register well, and of changed copies."""
    real = open_dataset(path)
    draw = np.random.default_rng(0)

    def some(rows: list, number: int) -> list[np.ndarray]:
        chosen = draw.choice(len(rows), min(number, len(rows)), replace=False)
        return [three_channels(real.image(rows[i])) for i in chosen]

    tested = some(real.select("test"), 150)
    trained = some(leaks.training_rows(real), 1200)
    asked, others = ([signature.describe(each) for each in part] for part in (tested, trained))
    print(f"\n{len(tested)} test and {len(trained)} training slices of {real.image_size} px\n"
          f"{'agreement, details: median (least, most)':56}{'said to be copies':>18}", flush=True)

    def show(what: str, pairs: list[tuple[np.ndarray, np.ndarray]], agreement: list[float]) -> None:
        details = [detail_agreement(*pair) for pair in pairs]
        said = sum(a >= leaks.SLICE_AGREEMENT and d >= leaks.SLICE_DETAIL
                   for a, d in zip(agreement, details))
        print(f"{what:24}" + "  ".join(f"{np.median(each):.2f} ({min(each):.2f}, {max(each):.2f})"
                                       for each in (agreement, details))
              + f"{rate(said, len(pairs)):>24}", flush=True)

    found = list(copies.registered_among(asked, others, least_agreement=0.9))
    show("strangers from 0.90", [(tested[i], trained[j]) for i, j, _ in found],
         [agreement for *_, agreement in found])
    for what, change in SLICE_CHANGES.items():
        changed = [np.ascontiguousarray(change(image)) for image in tested[:40]]
        show(what, list(zip(tested, changed)),
             [register(one, signature.describe(other)).agreement
              for one, other in zip(asked, changed)])


def measure_seconds(size: int, number: int) -> None:
    """Fresh tiles on both sides, quarters of larger ones: what an arm without a leak costs.

    Drawn at 64 px and enlarged: a signature looks at 160 px whatever came.
    """
    def cut(seed: int) -> list[np.ndarray]:
        wide = [simulate(i, 128, seed) for i in range(-(-number // 4))]
        quarters = [image[y:y + 64, x:x + 64] for image in wide for y in (0, 64) for x in (0, 64)]
        return [cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
                for image in quarters[:number]]

    test, trained = cut(1), cut(2)
    start = time.process_time()
    signatures = [list(map(signature.describe, each)) for each in (test, trained)]
    middle = time.process_time()
    found = copies_among(*signatures)
    end = time.process_time()
    print(f"{number} x {number} images of {size} px: signatures {middle - start:.1f} s, search "
          f"{end - middle:.1f} s of one core; {len(found)} fresh ones flagged", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lc25000", type=Path, default=os.environ.get("LC25000") or None,
                        metavar="DIR", help="default: the environment variable LC25000")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, choices=SIZES,
                        metavar="PX", help="of the rates (default: all)")
    parser.add_argument("--slices", type=Path, metavar="DIR",
                        help="a dataset of whole slices of CT: these alone")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    if args.slices:
        measure_slices(args.slices)
        return
    for size in args.sizes:
        if args.lc25000:
            measure(f"LC25000, one image a source tile, {size} px",
                    read_lc25000(args.lc25000, size))
        measure(f"Simulated tissue of {PATIENTS} patients, {size} px",
                [simulate(number, size) for number in range(TILES[size])])
    print()
    for size, number in TIMED.items():
        measure_seconds(size, number)


if __name__ == "__main__":
    main()
