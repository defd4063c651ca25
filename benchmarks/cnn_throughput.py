#!/usr/bin/env python
"""Time the CNN stage's training loop beside a plain torchvision loop, in one run.

Reads   nothing: the images are noise, written as a dataset's train/<class>/*.png tree.
Prints  steps/s and images/s of both loops and their ratio, to standard output.

Plain is what the textbooks show: ImageFolder, a DataLoader, torchvision transforms (flips, turn
by 90 degrees, brightness, ToTensor, Normalize), float32, the loss read after every step. Same
model, batch, optimiser and number of steps. The rounds alternate, so a busy machine slows both;
the ratio is of the medians. Decoding the dataset once, before our first step, is timed apart.

    OMP_NUM_THREADS=1 python benchmarks/cnn_throughput.py | tee benchmarks/cnn_throughput.txt
    python benchmarks/cnn_throughput.py --model resnet18 --image-size 256 --batch-size 128 \\
        --device cuda --workers 16
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from lungkit.data.png import decode_png, encode_png
from lungkit.learn import batches, classify_training, cnns
from lungkit.learn.device import use_device
from lungkit.learn.settings import SETTINGS
from lungkit.run import cli

CLASSES = ("a", "b", "c")


def write_images(root: Path, num_images: int, image_size: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(num_images):
        path = root / CLASSES[i % len(CLASSES)] / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (image_size // 4, image_size // 4, 3), dtype=np.uint8)
        path.write_bytes(encode_png(small.repeat(4, 0).repeat(4, 1)))


def load_once(root: Path, device):
    import torch

    paths = sorted(root.glob("*/*.png"))
    images = np.stack([decode_png(path.read_bytes()) for path in paths])
    labels = np.array([CLASSES.index(path.parent.name) for path in paths])
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def new_model(options, device):
    import torch

    torch.manual_seed(0)
    return cnns.build_model(options.model, len(CLASSES), None).to(device)


def our_loop(options, images, labels) -> float:
    """Seconds for the steps of the stage's own loop."""
    import torch

    model = new_model(options, images.device).to(memory_format=torch.channels_last)
    rng = np.random.default_rng(0)
    plan = classify_training.plan_batches(np.arange(len(labels)), options.steps,
                                          options.batch_size, rng)
    start = time.perf_counter()
    classify_training.train(model, images, labels, plan, learning_rate=1e-3, what="our loop",
                            identity={}, checkpoint_path=None)
    return time.perf_counter() - start


def plain_loop(options, root: Path, device) -> float:
    """Seconds for the steps of the textbook's loop."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    quarter_turns = transforms.RandomChoice(
        [transforms.RandomRotation((90 * k, 90 * k)) for k in range(4)])
    dataset = ImageFolder(root, transforms.Compose([
        transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip(), quarter_turns,
        transforms.ColorJitter(brightness=classify_training.BRIGHTNESS), transforms.ToTensor(),
        transforms.Normalize(batches.MEAN, batches.STD)]))
    loader = DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True,
                        num_workers=options.workers, pin_memory=device.type == "cuda",
                        persistent_workers=options.workers > 0)
    model = new_model(options, device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=SETTINGS["label_smoothing"].default)
    step, start = 0, time.perf_counter()
    while step < options.steps:
        for batch, target in loader:
            loss = criterion(model(batch.to(device)), target.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            step += 1
            if step == options.steps:
                break
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", choices=list(cnns.MODELS))
    parser.add_argument("--image-size", type=cli.positive_int, default=64, metavar="PX")
    parser.add_argument("--batch-size", type=cli.positive_int, default=32, metavar="IMAGES")
    parser.add_argument("--images", type=cli.positive_int, default=384, metavar="N")
    parser.add_argument("--steps", type=cli.positive_int, default=60, metavar="N")
    parser.add_argument("--rounds", type=cli.positive_int, default=5, metavar="N")
    parser.add_argument("--workers", type=cli.non_negative_int, default=0, metavar="N",
                        help="the plain loop's DataLoader workers")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    import torch

    device = use_device(options.device)
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, options.images, options.image_size)
        start = time.perf_counter()
        images, labels = load_once(root, device)
        decode_sec = time.perf_counter() - start
        warm_up = argparse.Namespace(**{**vars(options), "steps": 5})
        our_loop(warm_up, images, labels)
        plain_loop(warm_up, root, device)
        seconds = {"ours": [], "plain": []}
        for _ in range(options.rounds):
            seconds["ours"].append(our_loop(options, images, labels))
            seconds["plain"].append(plain_loop(options, root, device))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else \
        f"cpu, {torch.get_num_threads()} thread of {os.cpu_count()} cores {platform.machine()}"
    print(f"{options.model}, {options.image_size} px, batch {options.batch_size}, {options.steps} "
          f"steps x {options.rounds} rounds, {options.images} images; {where}; "
          f"torch {torch.__version__}; plain loop with {options.workers} workers")
    print(f"decoded once, before the first step: {decode_sec:.2f} s")
    for name, values in seconds.items():
        rate = options.steps / statistics.median(values)
        print(f"{name:<6} {rate:8.2f} steps/s {rate * options.batch_size:10.0f} images/s   "
              f"(rounds {min(values):.2f}-{max(values):.2f} s)")
    ratio = statistics.median(seconds["plain"]) / statistics.median(seconds["ours"])
    print(f"ratio  {ratio:8.2f}")


if __name__ == "__main__":
    main()
