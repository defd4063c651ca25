#!/usr/bin/env python
"""Time unet_segment.py's training beside a plain MONAI loop, in one run, and weigh its memory.

Reads   nothing: images with a bright disc each are drawn, and written as PNGs for MONAI.
Prints  steps/s of both and their ratio, whole steps and batches alone; peak memory by --memory.

Plain is what MONAI's tutorials show: CacheDataset of what LoadImaged and ScaleIntensityd give, a
DataLoader, dictionary transforms with the same moves as ours (flip, Rand2DElasticd, which turns,
shears, scales, shifts and bends in one resampling, gamma, noise, each of them always), AdamW, the
loss read after every step, float32. Same network, of PyTorch's own layers alone, same batch, loss
and number of steps. Rounds alternate and
ratios are of medians; seconds are the processor's on the CPU, the clock's on a GPU. What MONAI
caches is made before its first step and not counted. Needs `pip install monai`.

    OMP_NUM_THREADS=1 python benchmarks/segmentation_throughput.py \\
        | tee benchmarks/segmentation_throughput.txt
    python benchmarks/segmentation_throughput.py --device cuda --image-size 256 --batch-size 32 \\
        --widths 32 64 128 256 --workers 16 --steps 200
    OMP_NUM_THREADS=1 python benchmarks/segmentation_throughput.py --memory 200 2000 \\
        | tee -a benchmarks/segmentation_throughput.txt

--memory: peak anonymous memory (RssAnon of /proc) of unet_segment.py itself on datasets of so many
images of 256 px; the search for copies of test images is left out, which is timed elsewhere.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from large_split import peak_of

from lungkit.data.png import encode_png
from lungkit.data.writer import DatasetWriter
from lungkit.learn.device import use_device
from lungkit.run import cli
from lungkit.run.output import Output

MEMORY_PX = 256
TESTED = 32  # more than are predicted at a time


def draw(number: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [S, S] with noise and a disc, and the disc, bool [S, S]."""
    rng = np.random.default_rng(number)
    rows, columns = np.indices((image_size,) * 2)
    at = rng.uniform(0.2, 0.8, 2) * image_size
    mask = np.hypot(rows - at[0], columns - at[1]) < image_size / 10
    small = rng.integers(0, 120, (image_size // 4,) * 2, dtype=np.uint8)
    return small.repeat(4, 0).repeat(4, 1) + mask * np.uint8(100), mask


def clock(device) -> float:
    """Seconds of the processor, or of the clock once a GPU has done its work."""
    if device.type != "cuda":
        return time.process_time()
    import torch
    torch.cuda.synchronize()
    return time.perf_counter()


def new_model(options, device):
    import torch

    from lungkit.learn.unet import UNet

    torch.manual_seed(0)
    return UNet(1, options.widths).to(device)


# ------------------------------------------------------------------ two loops

class Ours:
    """The stage's own training."""

    def __init__(self, options, drawn: list, device) -> None:
        import torch

        from lungkit.data.mask_items import Item
        from lungkit.learn.segment_batches import Pairs, lesions_of

        images, masks = (np.stack(each) for each in zip(*drawn))
        self.options, self.device, self.masks = options, device, masks.astype(np.uint8)
        self.lesions = lesions_of([Item("", "", (i,), None, None) for i in range(len(masks))],
                                  self.masks)
        self.pairs = Pairs(torch.from_numpy(images[..., None]).to(device),
                           torch.from_numpy(self.masks).to(device),
                           torch.arange(len(drawn), device=device)[:, None])

    def batches(self):
        from lungkit.learn import segment_batches

        options = self.options
        plan = segment_batches.plan_batches(
            np.arange(len(self.masks)), self.lesions, steps=options.steps,
            batch_size=options.batch_size, oversample=1 / 3, hard_negatives=0.0,
            size=options.image_size, patch_size=options.image_size, symmetries=8,
            rng=np.random.default_rng(0))
        return segment_batches.Batches(self.pairs, plan, options.image_size, self.device)

    def make_batches(self) -> None:
        batch_at = self.batches()
        for step in range(self.options.steps):
            batch_at(step)

    def train(self) -> None:
        from lungkit.learn import segment_batches, segment_training as training, unet

        model = new_model(self.options, self.device).to(
            memory_format=segment_batches.memory_format(self.device))
        training.train(model, self.batches(), unet.dice_focal_loss, steps=self.options.steps,
                       learning_rate=1e-3, what="ours", identity={}, checkpoint_path=None)


class Monai:
    """The loop of MONAI's tutorials."""

    def __init__(self, options, drawn: list, folder: Path, device) -> None:
        from monai import data, transforms

        self.options, self.device = options, device
        size, files = options.image_size, []
        for number, (image, mask) in enumerate(drawn):
            names = {"image": folder / f"{number}.png", "label": folder / f"{number}_mask.png"}
            names["image"].write_bytes(encode_png(image))
            names["label"].write_bytes(encode_png(mask * np.uint8(255)))
            files.append({name: str(path) for name, path in names.items()})
        both, modes = ["image", "label"], ["bilinear", "nearest"]
        dataset = data.CacheDataset(files, transforms.Compose([
            transforms.LoadImaged(both, ensure_channel_first=True),
            transforms.ScaleIntensityd(both),
            transforms.RandFlipd(both, prob=0.5, spatial_axis=0),
            transforms.Rand2DElasticd(
                both, spacing=(size / 4,) * 2, magnitude_range=(0, 0.04 * size), prob=1.0,
                rotate_range=np.pi, shear_range=0.1, translate_range=0.1 * size, scale_range=0.2,
                mode=modes, padding_mode="reflection"),
            transforms.RandAdjustContrastd("image", prob=1.0, gamma=(0.74, 1.35)),
            transforms.RandGaussianNoised("image", prob=1.0, std=0.05)]), progress=False)
        self.loader = data.DataLoader(
            dataset, batch_size=options.batch_size, shuffle=True, drop_last=True,
            num_workers=options.workers, pin_memory=device.type == "cuda",
            persistent_workers=options.workers > 0)

    def steps(self):
        """Batches until there were as many as asked for."""
        step = 0
        while step < self.options.steps:
            for batch in self.loader:
                yield batch["image"].to(self.device), batch["label"].to(self.device)
                step += 1
                if step == self.options.steps:
                    break

    def make_batches(self) -> None:
        for _ in self.steps():
            pass

    def train(self) -> None:
        import torch

        from lungkit.learn import unet

        model = new_model(self.options, self.device)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with mock.patch.object(unet, "enlarge", partial(
                torch.nn.functional.interpolate, mode="bilinear")):
            for images, labels in self.steps():
                loss = unet.dice_focal_loss(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()


def compare(options) -> None:
    device = use_device(options.device)
    drawn = [draw(number, options.image_size) for number in range(options.images)]
    print(f"{options.images} images of {options.image_size} px, batch {options.batch_size}, widths "
          f"{' '.join(map(str, options.widths))}, {options.rounds} rounds of {options.steps} steps "
          f"after one to warm up, {device}, {options.workers} workers of MONAI's", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        loops = {"ours": Ours(options, drawn, device),
                 "MONAI": Monai(options, drawn, Path(folder), device)}
        spent = {(what, name): [] for what in ("train", "make_batches") for name in loops}
        for number in range(options.rounds + 1):
            for what, name in spent:
                start = clock(device)
                getattr(loops[name], what)()
                if number:
                    spent[what, name].append(clock(device) - start)
    for what, words in (("train", "whole steps"), ("make_batches", "batches alone")):
        rates = {name: options.steps / statistics.median(spent[what, name]) for name in loops}
        print(f"{words:14s}" + "  ".join(f"{name} {rate:.2f} /s" for name, rate in rates.items())
              + f"  ours / MONAI {rates['ours'] / rates['MONAI']:.2f}")


# ------------------------------------------------------------------ memory

def write(path: Path, num_images: int) -> None:
    """A dataset of MEMORY_PX px with masks, of which TESTED are val and as many test."""
    if (path / "dataset.json").exists():
        return
    with DatasetWriter(Output(path, "dataset.json", {"images": num_images}), stage="benchmark",
                       channels=1, classes=["a", "b"], image_size=MEMORY_PX) as writer:
        for number in range(num_images):
            image, mask = draw(number, MEMORY_PX)
            writer.add("val" if number < TESTED else "test" if number < 2 * TESTED else "train",
                       "ab"[number % 2], number, image[..., None],
                       masks={"nodule": mask * np.uint8(255)})
        writer.publish(parents=[], seed=0, modality="ct")


def peak_mb(data: Path, results: Path) -> float:
    """MB of anonymous memory at most, of one repeat of the stage in a process of its own."""
    argv = ["--data", str(data), "--real", str(data), "--results", str(results), "--repeats", "1",
            "--steps", "30", "--batch-size", "4", "--widths", "8", "16", "--learning-rate", "0.02",
            "--no-mirror", "--device", "cpu"]
    program = ("import sys, unet_segment; from lungkit.audit import leaks; "
               "leaks.require = lambda pairs, *given, **more: [None for _ in pairs]; "
               f"sys.exit(unet_segment.main({argv!r}))")
    return peak_of(program)[0]


def weigh(options) -> None:
    with tempfile.TemporaryDirectory() as made:
        work = options.work or Path(made)
        for number in options.memory:
            write(work / str(number) / "real", number)
            peak = peak_mb(work / str(number) / "real", Path(made) / f"results{number}")
            print(f"memory: {number} images of {MEMORY_PX} px with masks "
                  f"({2 * number * MEMORY_PX**2 / 1e6:.0f} MB): at most {peak:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=cli.positive_int, default=64, metavar="PX")
    parser.add_argument("--widths", type=cli.positive_int, nargs="+", default=[16, 32, 64],
                        metavar="CHANNELS")
    parser.add_argument("--batch-size", type=cli.positive_int, default=8, metavar="IMAGES")
    parser.add_argument("--images", type=cli.positive_int, default=64, metavar="N")
    parser.add_argument("--steps", type=cli.positive_int, default=10, metavar="N")
    parser.add_argument("--rounds", type=cli.positive_int, default=5, metavar="N")
    parser.add_argument("--workers", type=cli.non_negative_int, default=0, metavar="N",
                        help="MONAI's DataLoader's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory", type=cli.positive_int, nargs="+", metavar="IMAGES",
                        help="weigh memory at these sizes instead")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where its datasets are kept")
    options = parser.parse_args()
    if options.memory:
        weigh(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
