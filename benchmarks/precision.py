#!/usr/bin/env python
"""Time products in bfloat16 against float32 on this CPU, and compare the CNNs trained in either.

Reads   nothing, or with --real a real dataset.
Prints  CPU milliseconds of one thread in either precision, least of ROUNDS taken in turns, and the
        ratio; with --real the accuracies of --repeats CNNs of the same seeds in either.

Only a CPU with tiles (AMX) or AVX-512 BF16 gains: lungkit.learn.device.has_bfloat16. What draws,
encodes and trains CNNs and the UNet from scratch multiplies in bfloat16 there, what trains adapters
does not.

    OMP_NUM_THREADS=1 python benchmarks/precision.py --real runs/demo/datasets/real \\
        | tee benchmarks/precision.txt
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import diffusion_seg
from lungkit.generate.adapted_layers import speed_up
from lungkit.generate.adapters import TARGET_MODULES
from lungkit.generate.base_model import BASE_MODEL_DIR, BaseModel
from lungkit.generate.drawing import draw_images, pipeline
from lungkit.generate.latents import Latents
from lungkit.learn import device
from lungkit.learn.classify_training import plan_batches, train
from lungkit.learn.cnns import build_model
from lungkit.phantom.paint import CLASSES, draw_tile
from lungkit.run import files

CAPTION = "haematoxylin and eosin, adenocarcinoma of the lung"
ROUNDS, BATCH, STEPS = 4, 16, 20


def kind() -> str:
    """What this CPU multiplies bfloat16 by."""
    import torch

    return "tiles (AMX)" if torch.cpu._is_amx_tile_supported() else "vectors (AVX-512 BF16)"


def set_precision(used: bool) -> None:
    device.has_bfloat16 = lambda: used


def time_both(what: str, work) -> None:
    """Time work(used) in turns, and print the least CPU seconds of each as milliseconds."""
    taken: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for used in taken:
            set_precision(used)
            start = time.process_time()
            work(used)
            taken[used].append(1000 * (time.process_time() - start))
    full, half = min(taken[False]), min(taken[True])
    print(f"{what:<50} float32 {full:8.0f} ms   bfloat16 {half:8.0f} ms   {full / half:5.2f}x",
          flush=True)


def time_all() -> None:
    """All that multiplies, at the demo's sizes."""
    import torch
    from peft import LoraConfig

    cpu = torch.device("cpu")
    tiles = np.stack([draw_tile(CLASSES[0], patient=0, index=index, image_size=64).image
                      for index in range(BATCH)])
    base = BaseModel(BASE_MODEL_DIR, cpu)
    pipe = pipeline(base, "dpm")
    images = torch.from_numpy(np.concatenate([tiles] * 24))
    labels = torch.arange(len(images)) % 3
    plan = plan_batches(np.arange(len(images)), STEPS, 32, np.random.default_rng(0))
    time_both(f"CNN, 64 px, batch 32, {STEPS} steps of training", lambda _: train(
        build_model("small", 3, None).to(memory_format=torch.channels_last), images, labels, plan,
        learning_rate=1e-3, what="CNN", checkpoint_path=None, identity={}, jsonl_path=None))
    time_both(f"encoding {BATCH} images in 8 orientations", lambda _: Latents(base.vae, tiles))
    time_both(f"drawing {BATCH} images, 15 steps, with guidance", lambda _: draw_images(
        pipe, [CAPTION] * BATCH, [""] * BATCH, list(range(BATCH)), seed=0, image_size=64, steps=15,
        guidance_scale=2.0))

    noisy, times = torch.randn(BATCH, 4, 16, 16), torch.randint(0, 1000, (BATCH,))
    classes, states = torch.randint(0, 3, (BATCH,)), torch.randn(BATCH, 77, 96)
    unet = diffusion_seg.build_unet(16, 4, diffusion_seg.PRESETS["demo"]["widths"], 3)
    base.unet.add_adapter(LoraConfig(r=16, lora_alpha=16, use_dora=True,
                                     init_lora_weights="gaussian",
                                     target_modules=TARGET_MODULES["all"]))
    speed_up(base.unet)

    def step(net, used: bool, **given) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=used):
            net(noisy, times, **given).sample.float().square().mean().backward()
    time_both("a step of the UNet from scratch, batch 16",
              lambda used: step(unet, used, class_labels=classes))
    time_both("left in float32: a step of a DoRA, batch 16",
              lambda used: step(base.unet, used, encoder_hidden_states=states))


def compare_accuracies(real: Path, repeats: int) -> None:
    """Train CNNs of the same seeds in either precision, and print how their accuracies lie."""
    import contextlib
    import io

    from scipy.stats import ks_2samp, mannwhitneyu

    import cnn_classify

    found = {}
    for used in (False, True):
        set_precision(used)
        with tempfile.TemporaryDirectory() as folder, \
                contextlib.redirect_stdout(io.StringIO()):  # a line a training
            status = cnn_classify.main(["--data", str(real), "--real", str(real), "--results",
                                        folder, "--repeats", str(repeats), "--preset", "demo"])
            if status:
                raise SystemExit(status)
            found[used] = [files.read_json(path)["accuracy_real"] for path in
                           sorted(Path(folder).glob("*/replicate_000/repeat_*.json"))]
    for used, name in ((False, "float32"), (True, "bfloat16")):
        values = found[used]
        print(f"accuracy_real, {name:<8} n {len(values)}  median {statistics.median(values):.4f}  "
              f"mean {np.mean(values):.4f}  sd {np.std(values, ddof=1):.4f}")
    shift = np.subtract(found[True], found[False])
    print(f"rank sum p {mannwhitneyu(*found.values()).pvalue:.2f}, Kolmogorov-Smirnov p "
          f"{ks_2samp(*found.values()).pvalue:.2f}; difference of the means {shift.mean():+.4f} "
          f"(sd of the repeats' differences {shift.std(ddof=1):.4f})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, metavar="DIR", help="a real dataset to train CNNs on")
    parser.add_argument("--repeats", type=int, default=20, metavar="N")
    options = parser.parse_args()
    if not device.has_bfloat16():
        print("this CPU does not multiply bfloat16 itself: all is in float32")
        return 1
    print(f"one thread of a CPU with {kind()}; least of {ROUNDS} rounds, CPU time")
    device.use_device("cpu", threads=1)
    time_all()
    if options.real:
        compare_accuracies(options.real, options.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
