#!/usr/bin/env python
"""Time the Voronoi arm beside matplotlib's drawing and a loop over labels, all in one run.

Reads   nothing: the images are simulated tissue; or --real, a dataset made by tumor_seg.py.
Prints  milliseconds (processor time) an image and ratios at each size; then voronoi_seg.py as a
        whole command: one process and two, time and memory against the number of images.

One image at a time, from the centres of its nuclei to a picture uint8 [S, S, 3]:

ours         exact cells, mean colours, borders (voronoi_seg.py's functions)
matplotlib   scipy.spatial.Voronoi, voronoi_plot_2d, and every bounded cell filled with its mean
             colour (computed beforehand, for nothing); Agg, savefig to RGBA at the same size
lines        the same without filling, beside our borders alone
loop         cKDTree query of every pixel, skimage.measure.regionprops, the mean intensity written
             into each region's pixels, skimage.segmentation.find_boundaries
fill         that loop's filling alone, beside ours, cells given

Each goes over all images in turn, in several rounds, so a busy machine slows all; ratios are of
the medians.

    OMP_NUM_THREADS=1 python benchmarks/voronoi.py | tee benchmarks/voronoi.txt
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

import voronoi_seg
from lungkit.data.dataset import MANIFEST, open_dataset
from lungkit.data.writer import DatasetWriter
from lungkit.nuclei.detect import detect_nuclei
from lungkit.nuclei.voronoi import borders, voronoi_labels
from lungkit.phantom import paint
from lungkit.run.output import Output

HOW = {"modality": "he", "solidity": 0.75, "field_um": 180.0}


# ------------------------------------------------------------------ one image

def ours(image: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    cells = voronoi_labels(centroids, len(image))
    return voronoi_seg.fill(voronoi_seg.cell_means(image, cells), cells, borders(cells))


def our_lines(image: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return voronoi_seg.rule(voronoi_labels(centroids, len(image)))


def our_fill(image: np.ndarray, cells: np.ndarray) -> np.ndarray:
    return voronoi_seg.fill(voronoi_seg.cell_means(image, cells), cells)


def drawn_by_matplotlib(image: np.ndarray, centroids: np.ndarray,
                        colours: np.ndarray | None) -> np.ndarray:
    import matplotlib.pyplot as plt
    from scipy.spatial import Voronoi, voronoi_plot_2d

    size = len(image)
    figure = plt.figure(figsize=(size / 100, size / 100), dpi=100)
    axes = figure.add_axes([0, 0, 1, 1])
    axes.axis("off")
    diagram = Voronoi(centroids)
    if colours is not None:
        for point, region in enumerate(diagram.point_region):
            corners = diagram.regions[region]
            if corners and -1 not in corners:
                axes.fill(*diagram.vertices[corners].T, color=colours[point])
    voronoi_plot_2d(diagram, ax=axes, show_points=False, show_vertices=False)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=100)
    plt.close(figure)
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(size, size, 4)[..., :3]


def fill_by_loop(image: np.ndarray, cells: np.ndarray) -> np.ndarray:
    from skimage.measure import regionprops

    picture = np.empty_like(image)
    for region in regionprops(cells + 1, intensity_image=image):
        picture[tuple(region.coords.T)] = np.round(region.intensity_mean)
    return picture


def loop(image: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree
    from skimage.segmentation import find_boundaries

    y, x = np.mgrid[:len(image), :len(image)]
    cells = cKDTree(centroids).query(np.stack([x, y], axis=-1))[1]
    picture = fill_by_loop(image, cells)
    picture[find_boundaries(cells, mode="inner")] = 0
    return picture


def times_ms(calls: dict, images: list[tuple], rounds: int) -> dict[str, float]:
    """Median over rounds of each call's milliseconds an image; the calls take turns.

    Processor time: all are of one thread, and other work on the machine is not theirs.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            for given in images:
                call(*given)
            taken[name].append(1e3 * (time.process_time() - start) / len(images))
    return {name: float(np.median(each[1:])) for name, each in taken.items()}  # the first imports


def bench_images(images: list[np.ndarray], rounds: int) -> None:
    size, given = len(images[0]), []
    for image in images:
        centroids = detect_nuclei(image, **HOW).centroids.astype(np.float64)
        cells = voronoi_labels(centroids, size)
        assert (our_fill(image, cells) == fill_by_loop(image, cells)).mean() > 0.999, \
            "they draw different pictures"
        colours = voronoi_seg.cell_means(image, cells)
        assert len(colours) == len(centroids)
        given.append((image, centroids, colours / 255, cells))
    counts = [len(each[1]) for each in given]
    took = times_ms({
        "ours": lambda image, points, *_: ours(image, points),
        "matplotlib": lambda image, points, colours, _: drawn_by_matplotlib(image, points, colours),
        "our lines": lambda image, points, *_: our_lines(image, points),
        "lines": lambda image, points, *_: drawn_by_matplotlib(image, points, None),
        "loop": lambda image, points, *_: loop(image, points),
        "our fill": lambda image, _, __, cells: our_fill(image, cells),
        "fill": lambda image, _, __, cells: fill_by_loop(image, cells),
        "detection": lambda image, *_: detect_nuclei(image, **HOW),
        "arm": lambda image, *_: voronoi_seg.draw(image, render="mean-borders", **HOW)},
        given, rounds)
    print(f"{size} px, {len(images)} images of {min(counts)} to {max(counts)} nuclei, "
          f"{rounds} rounds")
    print(f"  cells, colours, borders   ours {took['ours']:7.2f} ms   matplotlib "
          f"{took['matplotlib']:7.2f} ms   {took['matplotlib'] / took['ours']:6.1f} times"
          f"   loop {took['loop']:7.2f} ms   {took['loop'] / took['ours']:6.1f} times")
    print(f"  borders only              ours {took['our lines']:7.2f} ms   matplotlib "
          f"{took['lines']:7.2f} ms   {took['lines'] / took['our lines']:6.1f} times")
    print(f"  colours only              ours {took['our fill']:7.2f} ms   loop       "
          f"{took['fill']:7.2f} ms   {took['fill'] / took['our fill']:6.1f} times")
    print(f"  with detection and every feature measured {took['arm']:7.2f} ms (detection "
          f"{took['detection']:.2f}); matplotlib's drawing alone takes "
          f"{took['matplotlib'] / took['arm']:.1f} times as long, detection and that drawing "
          f"{(took['detection'] + took['matplotlib']) / took['arm']:.1f} times", flush=True)


# ------------------------------------------------------------------ the whole command

def write_real(path: Path, tiles: list[np.ndarray], number: int) -> None:
    """`number` images in three classes: the tiles, turned, flipped and rolled."""
    rng = np.random.default_rng(0)
    with DatasetWriter(Output(path, MANIFEST, {}), stage="benchmark", classes=sorted(paint.CLASSES),
                       image_size=len(tiles[0])) as writer:
        for index in range(number):
            tile = np.rot90(tiles[index % len(tiles)], int(rng.integers(4)))[::rng.choice([1, -1])]
            tile = np.roll(tile, rng.integers(0, len(tile), 2), (0, 1))
            writer.add(("train", "val", "test")[index // 3 % 3], writer.classes[index % 3], index,
                       np.ascontiguousarray(tile))
        writer.publish(parents=[], seed=0)


def run_command(real: Path, output: Path, workers: int) -> tuple[float, float]:
    """Seconds and peak MB (of the parent) of voronoi_seg.py."""
    start = time.perf_counter()
    stage = subprocess.Popen([sys.executable, ROOT / "voronoi_seg.py", "--real", real,
                              "--output", output, "--workers", str(workers), "--overwrite"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(stage.pid, 0)
    assert status == 0, "voronoi_seg.py failed"
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def bench_command(tiles: list[np.ndarray], numbers: list[int]) -> None:
    print(f"voronoi_seg.py on {len(tiles[0])} px: seconds (ms an image), peak memory of the parent")
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            real = Path(folder) / str(number) / "real"
            write_real(real, tiles, number)
            took = [run_command(real, real.parent / "voronoi", workers) for workers in (1, 2)]
            shown = "   ".join(f"workers {workers} {sec:7.1f} s ({1e3 * sec / number:5.1f}) "
                               f"{mb:4.0f} MB" for workers, (sec, mb) in zip((1, 2), took))
            print(f"  {number:6d} images   {shown}   {took[0][0] / took[1][0]:.2f} times",
                  flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--real", type=Path, metavar="DIR", help="a real dataset, for its own size")
    parser.add_argument("--sizes", type=int, nargs="*", default=[224, 64], metavar="PX")
    parser.add_argument("--images", type=int, default=9, metavar="N",
                        help="images timed one by one")
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument("--numbers", type=int, nargs="*", default=[250, 500, 1000, 2000],
                        metavar="N", help="images of the whole command")
    options = parser.parse_args()
    import cv2
    import matplotlib
    matplotlib.use("Agg")
    cv2.setNumThreads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, one thread each; simulated tissue unless "
          "said otherwise")
    for size in options.sizes:
        tiles = [paint.draw_tile(label, patient=patient, index=0, seed=0, image_size=size).image
                 for patient in range(max(1, options.images // 3)) for label in paint.CLASSES]
        bench_images(tiles, options.rounds)
        if options.numbers:
            bench_command(tiles, options.numbers)
    if options.real is not None:
        data = open_dataset(options.real)
        rows = data.select("train")[::max(1, len(data.select("train")) // options.images)]
        print(f"real images ({', '.join(data.classes)})")
        bench_images([data.image(row) for row in rows[:options.images]], options.rounds)


if __name__ == "__main__":
    main()
