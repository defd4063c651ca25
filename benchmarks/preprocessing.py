#!/usr/bin/env python
"""Time the preprocessing of images beside a plain torchstain loop, in one run; judge the judge.

    OMP_NUM_THREADS=1 python benchmarks/preprocessing.py | tee benchmarks/preprocessing.txt
    LC25000=<its folder> OMP_NUM_THREADS=1 python benchmarks/preprocessing.py --image-size 64 256

Reads   LC25000's lung_image_sets (environment variable LC25000: the folder that holds it), or
        else simulated tissue, written as JPEG of 224 px.
Prints  four parts, to standard output:

1. Milliseconds an image of each of our steps, in one process.
2. The same images through our steps (decode, background, tissue, stain, quality; and, after the
   reference is known, decode, tissue, normalise, resize, save); through the same without tissue
   mask and quality control, which is what the plain loop does ("same"); and through a plain loop
   (PIL opens, torchstain's Macenko fitted on one image normalises, PIL resizes and saves): one
   process and one thread each, in turn, so that a busy machine slows all. "plain" calls torchstain
   as its README does; "lean" switches off the separate images of the two stains, which nothing
   here needs. Theirs balances no background, drops no tile and takes its reference from one image.
3. The command tumor_seg.py as a whole at growing numbers of images: seconds and peak memory; and
   with one and two processes where it has --workers.
4. The quality control: what it keeps of sharp tiles and drops of degraded ones.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cv2
import numpy as np

from lungkit.data.png import encode_png
from lungkit.formats.images import decode_image
from lungkit.histology import background, stain
from lungkit.histology.quality import measure, reason
from lungkit.run import cli
from lungkit.run.system_files import listed
from lungkit.run.workers import mapper

CLASSES = ("lung_aca", "lung_n", "lung_scc")
LC25000 = os.environ.get("LC25000")


# ------------------------------------------------------------------ images

def draw_jpeg(job: tuple[str, int, int, int, Path]) -> None:
    from lungkit.phantom.paint import draw_tile

    label, patient, index, side_px, path = job
    image = draw_tile(label, patient=patient, index=index, seed=99, image_size=side_px).image
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])


def find_images(folder: Path, num_images: int, side_px: int) -> list[Path]:
    """Paths of real images, evenly from the classes, or of simulated ones written to folder."""
    if LC25000:
        root = Path(LC25000)
        root = root / "lung_image_sets" if (root / "lung_image_sets").is_dir() else root
        of_class = [listed(root / label) for label in CLASSES]
        return [path for row in zip(*of_class, strict=False) for path in row][:num_images]
    jobs = [(CLASSES[i % 3], i // 3 % 40, i // 120, side_px,
             folder / CLASSES[i % 3] / f"{i:05d}.jpeg") for i in range(num_images)]
    with mapper(os.cpu_count() or 1) as parallel:
        list(parallel(draw_jpeg, jobs))
    return [path for *_, path in jobs]


def as_input(paths: list[Path], folder: Path) -> Path:
    """A tree of class folders with links to the images, for the stage's --input."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in paths:
        link = folder / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return folder


# ------------------------------------------------------------------ ours and theirs

class Clock:
    """Seconds by step, summed."""

    def __init__(self) -> None:
        self.seconds: Counter = Counter()
        self.last = time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] += now - self.last
        self.last = now

    def start(self) -> None:
        self.last = time.perf_counter()


def run_ours(paths: list[Path], output: Path, image_size: int, clock: Clock, *,
             same_work: bool = False) -> float:
    """Both passes over the images, as the stage does; seconds.

    same_work: no more than the plain loop does, that is no tissue mask and no quality control.
    """
    method, begin = stain.METHODS["macenko"], time.perf_counter()
    surveyed = []
    clock.start()
    for path in paths:
        image = decode_image(path.read_bytes())
        clock("decode, twice")
        image = shrink(image)
        light = background.background_light(image)
        clock("background light")
        white = background.balance_white(image, light)
        clock("white balance, twice")
        own, why = method.estimate(white), None
        clock("stain estimate")
        if not same_work:
            mask = background.tissue_mask(white)
            clock("tissue, twice")
            why = reason(measure(white, mask))
            clock("quality")
        surveyed.append((light, own, why))
    reference = method.reference([own for _, own, _ in surveyed])
    clock.start()
    for number, (path, (light, own, why)) in enumerate(zip(paths, surveyed, strict=True)):
        if why:
            continue
        image = shrink(decode_image(path.read_bytes()))
        clock("decode, twice")
        white = background.balance_white(image, light)
        clock("white balance, twice")
        tile = resized(method.normalise(white, own, reference), image_size)
        clock("normalise, resize")
        if not same_work:
            resized(np.uint8(background.tissue_mask(white)), image_size)
            clock("tissue, twice")
        (output / f"{number:06d}.png").write_bytes(encode_png(tile))
        clock("save")
    return time.perf_counter() - begin


def shrink(image):
    """To the stage's working size, as it does before anything is measured."""
    from lungkit.histology.originals import shrink
    from lungkit.histology.tiles import WORK_PX

    return shrink(image, WORK_PX)


def resized(image, image_size: int):
    way = cv2.INTER_AREA if image.shape[0] > image_size else cv2.INTER_CUBIC
    return cv2.resize(image, (image_size, image_size), interpolation=way)


def run_plain(paths: list[Path], output: Path, image_size: int, *, stains: bool = True) -> float:
    """The plain loop over the images; seconds."""
    import torch
    from PIL import Image
    from torchstain.torch.normalizers.macenko import TorchMacenkoNormalizer

    def load(path):
        return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)

    begin = time.perf_counter()
    normalizer = TorchMacenkoNormalizer()
    normalizer.fit(load(paths[0]))
    for number, path in enumerate(paths):
        moved, _, _ = normalizer.normalize(load(path), stains=stains)
        image = Image.fromarray(moved.to(torch.uint8).numpy())
        image.resize((image_size, image_size)).save(output / f"{number:06d}.png")
    return time.perf_counter() - begin


def compare(paths: list[Path], image_sizes: list[int], rounds: int, folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    outputs = {name: folder / name for name in ("ours", "same", "plain", "lean")}
    for output in outputs.values():
        output.mkdir()
    for image_size in image_sizes:
        run_ours(paths[:20], outputs["ours"], image_size, Clock())
        run_plain(paths[:20], outputs["plain"], image_size)
        seconds, clock = {name: [] for name in outputs}, Clock()
        for _ in range(rounds):
            seconds["ours"].append(run_ours(paths, outputs["ours"], image_size, clock))
            seconds["same"].append(run_ours(paths, outputs["same"], image_size, Clock(),
                                            same_work=True))
            seconds["plain"].append(run_plain(paths, outputs["plain"], image_size))
            seconds["lean"].append(run_plain(paths, outputs["lean"], image_size, stains=False))
        print(f"\n{len(paths)} images to {image_size} px, one thread, {rounds} rounds in turn; "
              "ms an image of the median round (fastest-slowest)")
        ours, same = (statistics.median(seconds[name]) for name in ("ours", "same"))
        for name, values in seconds.items():
            each = [1000 * value / len(paths) for value in values]
            print(f"  {name:<6} {statistics.median(each):7.2f}  ({min(each):.2f}-{max(each):.2f})"
                  f"   {statistics.median(values) / ours:5.2f} times ours"
                  f"   {statistics.median(values) / same:5.2f} times same")
        print("  ours: " + ", ".join(f"{step} {1000 * value / rounds / len(paths):.2f}"
                                     for step, value in clock.seconds.items()))


# ------------------------------------------------------------------ the whole command

def run_command(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak memory in MB, of the largest process, of a command that succeeds."""
    measured = subprocess.run(  # through a process of its own: what it reports is this child's
        [sys.executable, "-c", "import resource, subprocess, sys, time\n"
         "t = time.perf_counter()\n"
         "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
         "print(time.perf_counter() - t,"
         " resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)", *command],
        capture_output=True, text=True)
    if measured.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{measured.stderr[-2000:]}")
    seconds, memory = measured.stdout.split()
    return float(seconds), float(memory)


def time_stage(paths: list[Path], numbers: list[int], image_size: int, folder: Path) -> None:
    stage = [sys.executable, str(ROOT / "tumor_seg.py")]
    has_workers = "--workers" in subprocess.run([*stage, "--help"], capture_output=True,
                                                text=True).stdout
    print(f"\ntumor_seg.py as a whole, {image_size} px"
          + ("" if has_workers else " (it has no --workers: one process)"))
    print(f"  {'images':>7} {'processes':>9} {'seconds':>8} {'ms/image':>8} {'peak MB':>8}")
    for number in numbers:
        tree = as_input(paths[:number], folder / "input")
        seconds = {}
        for workers in ([1, 2] if has_workers else [1]):
            command = [*stage, "--input", str(tree), "--output", str(folder / "real"),
                       "--image-size", str(image_size), "--overwrite"]
            command += ["--workers", str(workers)] if has_workers else []
            seconds[workers], memory = run_command(command)
            print(f"  {len(paths[:number]):>7} {workers:>9} {seconds[workers]:>8.2f} "
                  f"{1000 * seconds[workers] / len(paths[:number]):>8.2f} {memory:>8.0f}")
        if has_workers:
            print(f"  two processes: {seconds[1] / seconds[2]:.2f} times one")


# ------------------------------------------------------------------ quality control

def verdict(image) -> str:
    white = background.balance_white(image, background.background_light(image))
    return reason(measure(white, background.tissue_mask(white))) or "kept"


def judge(paths: list[Path]) -> None:
    images = [decode_image(path.read_bytes()) for path in paths]
    degraded = {"as they are": lambda image: image}
    degraded |= {f"blurred, {sigma:g} px at 224": lambda image, sigma=sigma: cv2.GaussianBlur(
        image, (0, 0), sigma * len(image) / 224) for sigma in (1, 1.5, 2, 2.5, 3, 4)}
    degraded |= {f"exposed {times:g} times": lambda image, times=times: np.uint8(
        np.clip(image * float(times), 0, 255)) for times in (0.15, 0.5, 1.3, 2, 2.5)}
    print(f"\nQuality control of {len(images)} images, shares in percent")
    for words, degrade in degraded.items():
        count = Counter(verdict(degrade(image)) for image in images)
        print(f"  {words:<24} " + ", ".join(f"{why} {100 * n / len(images):.1f}"
                                            for why, n in count.most_common()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=cli.positive_int, default=300, metavar="N",
                        help="images of the comparison with torchstain")
    parser.add_argument("--side", type=cli.positive_int, default=224, metavar="PX",
                        help="side of the simulated images")
    parser.add_argument("--image-size", type=cli.positive_int, nargs="+", default=[64, 256],
                        metavar="PX", help="sides of the images written")
    parser.add_argument("--rounds", type=cli.positive_int, default=3, metavar="N")
    parser.add_argument("--stage-images", type=cli.non_negative_int, nargs="+",
                        default=[200, 1000, 2250], metavar="N",
                        help="numbers of images of the whole command; 0 leaves it out")
    parser.add_argument("--quality", action="store_true", help="judge the quality control only")
    options = parser.parse_args()
    numbers = [number for number in options.stage_images if number and not options.quality]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = find_images(folder / "drawn", max([options.images, *numbers]), options.side)
        what = "LC25000" if LC25000 else "simulated tissue"
        side_px = decode_image(paths[0].read_bytes()).shape[0]
        print(f"{what}, {len(paths)} images of {side_px} px; {os.cpu_count()} cores "
              f"{platform.machine()}; OpenCV {cv2.__version__}")
        if not options.quality:
            compare(paths[:options.images], options.image_size, options.rounds, folder)
            if numbers:
                time_stage(paths, numbers, options.image_size[0], folder)
        judge(paths)


if __name__ == "__main__":
    main()
