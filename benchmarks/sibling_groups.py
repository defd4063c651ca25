#!/usr/bin/env python
"""Measure how well, and how fast, copies of one image are grouped (lungkit/audit/copies.py).

    python benchmarks/sibling_groups.py --lc25000 DIR [--lc25000-768 DIR] \
        | tee benchmarks/sibling_groups.txt                  (about a quarter of an hour)
    python benchmarks/sibling_groups.py                      simulated tiles only; longer

LC25000: the folder with lung_image_sets/ and groups.csv, whose groups (source tiles) are the truth
(Batchkala et al., doi 10.1007/978-3-031-73748-0_2). Most thresholds were set on the half of the
groups whose name has an even CRC-32, but misses and false links of all were looked at before the
index was widened and the least overlap raised: the other half is no untouched test. Pairwise: of
all pairs of one source tile, how many got one group (recall); of all pairs given one group, how
many are of one source tile (precision). Leak: the share of test images with a true sibling in train
once our groups are split 60/20/20, by lungkit/data/splits.py (mean of 20 seeds; these differ
little in where they put groups of an odd size, so that one missed sibling may never be seen) and by
independent draws of a part for each group (mean and worst of 500). For reference, SIFT with RANSAC
on the colour-nearest candidates was measured at recall 0.95 and precision 0.78.

Curve: files on disk -> groups, decoding included, in a fresh process per size, 2 workers. Up to
2,250 images these are LC25000 itself, whole groups at a time; more are augmented copies of it.
CPU seconds are of all processes; memory is the main process's peak and each worker's, added.
"""

import argparse
import collections
import functools
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from lungkit.audit import copies, signature
from lungkit.data.splits import SPLIT_SHARES, SPLITS, split_groups
from lungkit.phantom.paint import CLASSES, draw_tile
from lungkit.run.tables import read_table
from lungkit.run.workers import mapper

SIZES = (1000, 2250, 15000)
SPLIT_SEEDS = 20
DRAWS = 500
COPIES = 6              # of each simulated tile, itself included
TILES = 150             # simulated, in the table of simulated copies
PATIENTS = 10


# ------------------------------------------------------------------ images

def read_groups(root: Path) -> list[tuple[str, str]]:
    """(path, source tile) of every image of groups.csv."""
    return [(str(root / "lung_image_sets" / row["file_name"]), row["group"])
            for _, row in read_table(root / "groups.csv", ("file_name", "group")).rows]


def read_image(path: str) -> np.ndarray:
    return np.ascontiguousarray(cv2.imread(path)[..., ::-1])


def describe_file(path: str) -> signature.Signature:
    return signature.describe(read_image(path))


def simulate(number: int, num_patients: int = PATIENTS) -> np.ndarray:
    """Simulated tile of a number: the patient, class and index follow from it."""
    patient, rest = number % num_patients, number // num_patients
    return draw_tile(CLASSES[rest % len(CLASSES)], patient=patient, index=rest).image


def vary(image: np.ndarray, rng) -> np.ndarray:
    """A copy as tools make them: turned by up to 25 degrees, flipped, a quarter turn, rescaled by
    0.8-1.2 and cropped, recoloured by a few percent, JPEG of quality 60-95."""
    side = image.shape[0]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2,) * 2, rng.uniform(-25, 25), 1)
    border = (cv2.BORDER_REFLECT_101, cv2.BORDER_CONSTANT)[rng.integers(2)]
    image = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=border)
    image = image[::rng.choice((-1, 1)), ::rng.choice((-1, 1))]
    image = np.rot90(image, rng.integers(2))
    kept = int(side * rng.uniform(0.8, 1))
    y, x = rng.integers(side - kept + 1, size=2)
    scaled = round(kept * rng.uniform(0.8, 1.2))
    image = cv2.resize(np.ascontiguousarray(image[y:y + kept, x:x + kept]), (scaled, scaled),
                       interpolation=cv2.INTER_AREA)
    image = np.uint8(np.clip(image * rng.uniform(0.95, 1.05, 3) + rng.uniform(-8, 8), 0, 255))
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))]
    return cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)


def write_set(size: int, folder: Path, root: Path | None, workers: int) -> list[tuple[str, str]]:
    """At least `size` images as files: (path, group). Real up to what there is, then copies."""
    if root:
        table = sorted(read_groups(root), key=lambda row: (zlib.crc32(row[1].encode()), row))
        if size <= len(table):
            return table[:size]
        sources, groups = zip(*table)
    else:
        numbers = range(-(-size // COPIES))
        sources = [str(number) for number in numbers]
        groups = sources
    jobs = [(i, sources[i % len(sources)], str(folder / f"{i:06d}.jpg")) for i in range(size)]
    with mapper(workers) as mapped:
        list(mapped(functools.partial(write_copy, real=bool(root), num=len(sources)), jobs))
    return [(path, groups[i % len(groups)]) for i, _, path in jobs]


def write_copy(job: tuple, *, real: bool, num: int) -> None:
    number, source, path = job
    image = read_image(source) if real else simulate(int(source), num_patients=50)
    image = vary(image, np.random.default_rng(number)) if number >= num else image
    cv2.imwrite(path, image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])


# ------------------------------------------------------------------ scores

def num_pairs(groups) -> int:
    return sum(n * (n - 1) // 2 for n in collections.Counter(groups).values())


def score(truth: list[str], found: list[int]) -> tuple[float, float]:
    """Pairwise recall and precision."""
    both = num_pairs(zip(truth, found))
    return both / num_pairs(truth), both / max(1, num_pairs(found))


def share_leaked(truth: list[str], where: list[str]) -> float:
    train = {t for t, part in zip(truth, where) if part == "train"}
    test = [t for t, part in zip(truth, where) if part == "test"]
    return sum(t in train for t in test) / len(test)


def leak(truth: list[str], found: list[int], labels: list[str]) -> str:
    """Percent of test images with a true sibling in train: our splits, drawn ones, the worst."""
    ours, drawn = [], []
    for seed in range(SPLIT_SEEDS):
        split = split_groups([(str(group), label) for group, label in zip(found, labels)], seed)
        ours.append(share_leaked(truth, [split[str(group)] for group in found]))
    for seed in range(DRAWS):
        parts = np.random.default_rng(seed).choice(SPLITS, len(found), p=SPLIT_SHARES)
        drawn.append(share_leaked(truth, [parts[group] for group in found]))
    return "".join(f"{100 * value:8.2f}" for value in (np.mean(ours), np.mean(drawn), max(drawn)))


# ------------------------------------------------------------------ tables

def measure_lc25000(root: Path, originals: Path | None, mapped) -> None:
    table = read_groups(root)
    signatures = list(mapped(describe_file, [path for path, _ in table]))
    truth = [group for _, group in table]
    labels = [group.rsplit("-", 1)[0] for group in truth]
    even = [zlib.crc32(group.encode()) % 2 == 0 for group in truth]
    print(f"LC25000, {len(table)} images of {len(set(truth))} source tiles\n"
          f"{'':24}{'images':>7}{'recall':>9}{'precision':>11}{'leak %':>8}{'drawn':>8}"
          f"{'worst':>8}")
    for name, part in (("half the thresholds saw", even),
                       ("the other half", [not e for e in even]),
                       ("all", [True] * len(even))):
        chosen = [i for i, keep in enumerate(part) if keep]
        found = copies.link([signatures[i] for i in chosen], mapped)
        of = [truth[i] for i in chosen]
        recall, precision = score(of, found)
        leaked = leak(of, found, [labels[i] for i in chosen])
        print(f"{name:24}{len(chosen):7}{recall:9.4f}{precision:11.4f}{leaked}")
    leaked = leak(truth, list(range(len(truth))), labels)
    print(f"{'each file its own group':24}{len(truth):7}{0:9.4f}{'-':>11}{leaked}")
    joined: dict[tuple, list] = {}
    for i, j, how in copies.find_pairs(signatures, mapped):
        if truth[i] != truth[j]:
            joined.setdefault(tuple(sorted((truth[i], truth[j]))), []).append(how)
    print("\nSource tiles joined against groups.csv: links, and medians of what they share")
    for pair, hows in sorted(joined.items()):
        overlap, agreement, inliers = (np.median([getattr(how, key) for how in hows])
                                       for key in ("overlap", "agreement", "inliers"))
        print(f"  {' + '.join(pair):32}{len(hows):3} links, overlap {overlap:.2f}, correlation "
              f"{agreement:.3f}, {inliers:.0f} features")
    if originals:
        paths = sorted(originals.glob("*/*.jpeg"))
        known = {"/".join(Path(path).parts[-2:]): i for i, (path, _) in enumerate(table)}
        group = copies.link(signatures + [describe_file(str(path)) for path in paths], mapped)
        same = [(known["/".join(path.parts[-2:])], len(table) + k) for k, path in enumerate(paths)
                if "/".join(path.parts[-2:]) in known]
        met = [{truth[i] for i in range(len(table)) if group[i] == group[len(table) + k]}
               for k in range(len(paths))]
        print(f"\n{len(paths)} images at 768 px: {len(same)} are in the 224 px set too, of these "
              f"{sum(group[i] == group[j] for i, j in same)} have one group with their rescaled "
              f"copy;\n{sum(map(bool, met))} have a group with any, "
              f"{sum(len(tiles) > 1 for tiles in met)} of them with several source tiles")


def measure_simulated(mapped) -> None:
    tiles = [simulate(number) for number in range(TILES)]
    images = [vary(tile, np.random.default_rng([number, k])) if k else tile
              for number, tile in enumerate(tiles) for k in range(COPIES)]
    truth = [str(i // COPIES) for i in range(len(images))]
    labels = [CLASSES[int(t) // PATIENTS % len(CLASSES)] for t in truth]
    found = copies.link([signature.describe(image) for image in images], mapped)
    recall, precision = score(truth, found)
    print(f"\nSimulated: {TILES} unrelated tiles of {PATIENTS} patients, {COPIES - 1} copies of "
          f"each\n{'':24}{len(images):7}{recall:9.4f}{precision:11.4f}"
          f"{leak(truth, found, labels)}")


def measure_once(size: int, root: Path | None, workers: int) -> dict:
    """Time, memory and scores at one size, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        if size > 2250 or not root:  # made by another process, so that memory is ours alone
            listed = subprocess.run(
                [sys.executable, __file__, "--write", folder, "--sizes", str(size), "--workers",
                 str(workers), *(["--lc25000", str(root)] if root else [])],
                check=True, stdout=subprocess.PIPE).stdout
            table = json.loads(listed)
        else:
            table = write_set(size, Path(folder), root, workers)
        before, start = os.times(), time.perf_counter()
        with mapper(workers) as mapped:
            signatures = list(mapped(describe_file, [path for path, _ in table]))
        described, middle = os.times(), time.perf_counter()
        with mapper(workers) as mapped:  # others, for only ended ones are in os.times
            found = copies.link(signatures, mapped)
        after, end = os.times(), time.perf_counter()
    recall, precision = score([group for _, group in table], found)
    own, child = (resource.getrusage(who).ru_maxrss / 2 ** 10
                  for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"images": len(table), "describe_sec": middle - start, "link_sec": end - middle,
            "describe_cpu_sec": sum(described[:4]) - sum(before[:4]),
            "link_cpu_sec": sum(after[:4]) - sum(described[:4]),
            "main_mb": own, "worker_mb": child, "recall": recall, "precision": precision}


def measure_curve(sizes: list[int], root: Path | None, workers: int) -> None:
    print(f"\n{workers} workers; load of the machine {os.getloadavg()[0]:.1f} on "
          f"{os.cpu_count()} cores\n{'':8}{'seconds':>18}{'CPU seconds':>20}{'memory, MB':>22}\n"
          f"{'images':>8}{'describe':>10}{'link':>8}{'describe':>12}{'link':>8}{'main':>8}"
          f"{'worker':>8}{'all':>6}{'recall':>9}{'precision':>11}")
    rows = []
    for size in sizes:
        done = subprocess.run(
            [sys.executable, __file__, "--one", "--sizes", str(size), "--workers", str(workers),
             *(["--lc25000", str(root)] if root else [])], check=True, stdout=subprocess.PIPE)
        row = json.loads(done.stdout)
        rows.append(row)
        print(f"{row['images']:8}{row['describe_sec']:10.1f}{row['link_sec']:8.1f}"
              f"{row['describe_cpu_sec']:12.1f}{row['link_cpu_sec']:8.1f}{row['main_mb']:8.0f}"
              f"{row['worker_mb']:8.0f}{row['main_mb'] + workers * row['worker_mb']:6.0f}"
              f"{row['recall']:9.4f}{row['precision']:11.4f}", flush=True)
    for name in ("describe_cpu_sec", "link_cpu_sec"):
        for one, other in itertools.pairwise(rows):
            power = np.log(other[name] / one[name]) / np.log(other["images"] / one["images"])
            print(f"{name} grows with images ** {power:.2f} from {one['images']} to "
                  f"{other['images']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lc25000", type=Path, default=os.environ.get("LC25000") or None,
                        metavar="DIR", help="default: the environment variable LC25000")
    parser.add_argument("--lc25000-768", type=Path, metavar="DIR",
                        help="some of its images at 768 px, <class>/<name>.jpeg")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="INT")
    parser.add_argument("--workers", type=int, default=2, metavar="INT")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    root = Path(args.lc25000) if args.lc25000 else None
    cv2.setNumThreads(1)
    if args.write:
        print(json.dumps(write_set(args.sizes[0], args.write, root, args.workers)))
    elif args.one:
        print(json.dumps(measure_once(args.sizes[0], root, args.workers)))
    else:
        with mapper(args.workers) as mapped:
            if root:
                measure_lc25000(root, args.lc25000_768, mapped)
            measure_simulated(mapped)
        measure_curve(args.sizes, root, args.workers)


if __name__ == "__main__":
    main()
