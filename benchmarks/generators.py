#!/usr/bin/env python
"""Time what the generators do: steps of training, latents, drawing; beside the usual script's step.

Reads   nothing: simulated tissue; on a GPU networks of Stable Diffusion 1.5's shape with random
        weights, on a CPU those embedded here.
Prints  a line a figure: milliseconds a step or images a second, the usual script's beside it where
        there is one, and the peak of the GPU's memory.

The usual script is what diffusers' examples do: all that is frozen in the precision of the
products, autoencoder and text encoder within the step, AdamW, no average of the weights. Both train
the same layers at the same batch, size and precision, in turns, so that a busy machine slows both;
the ratio is of the medians of ROUNDS.

    OMP_NUM_THREADS=1 DEVICE=cpu PART_SEC=400 bash benchmarks/gpu.sh benchmarks/gpu_cpu.txt
    python benchmarks/generators.py --device cuda                  by benchmarks/gpu.sh
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import diffusion_seg
from lungkit.generate.adapters import TARGET_MODULES, denoise_with, train_adapter, training_loss
from lungkit.generate.base_model import BASE_MODEL_DIR, BaseModel
from lungkit.generate.drawing import draw_images, pipeline
from lungkit.generate.latents import Latents, denoising_loss, to_model_range, training_schedule
from lungkit.learn.device import autocast, device_name, freeze, frozen_dtype, use_device
from lungkit.learn.loop import train
from lungkit.phantom.paint import CLASSES, draw_tile
from lungkit.tools.base_networks import MODEL_INDEX, save

CAPTION = "haematoxylin and eosin, adenocarcinoma of the lung"
WARM_STEPS, ROUNDS, RANK = 3, 3, 16


@dataclass(frozen=True)
class Sizes:
    """What is timed: `full` on a GPU, `demo` on a CPU."""

    preset: str
    target: str              # layers that the adapters change
    adapters: tuple          # (image size, batch) of the adapters' steps
    image_size: int          # of all else
    images: int              # encoded in all orientations
    unet_batch: int
    autoencoder_batch: int
    steps: int               # timed in a round
    drawn: int
    drawing_batch: int
    sampling_steps: int


GPU = Sizes("full", "attention", ((256, 8), (512, 8)), 256, 1350, 64, 8, 20, 64, 64, 25)
CPU = Sizes("demo", "all", ((64, 16),), 64, 64, 16, 16, 4, 16, 16, 15)


def stable_diffusion_15(folder: Path, device) -> Path:
    """A folder in diffusers layout of Stable Diffusion 1.5's shape, with random weights."""
    import json
    import shutil

    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    widths = (128, 256, 512, 512)
    with device:  # a CPU takes minutes to draw them
        save(AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2,
                           up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=widths,
                           latent_channels=4, sample_size=512), folder / "vae")
        save(UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
             folder / "unet")
        save(CLIPTextModel(CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
            num_attention_heads=12, projection_dim=768)), folder / "text_encoder")
    DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                  clip_sample=False, steps_offset=1).save_pretrained(folder / "scheduler")
    shutil.copytree(BASE_MODEL_DIR / "tokenizer", folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX))
    return folder


class Clock:
    """Times steps of one device, and prints lines."""

    def __init__(self, device) -> None:
        self.device = device

    def now(self) -> float:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def fresh_peak(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> str:
        import torch

        if self.device.type != "cuda":
            return ""
        return f"{torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB"

    def ms_per_step(self, begin, steps: int) -> float:
        """begin(watch, steps) trains by watch(loss_at); the first WARM_STEPS are not counted."""
        marks = {}

        def watch(loss_at):
            def watched(step, generator):
                if step in (WARM_STEPS, WARM_STEPS + steps):
                    marks[step] = self.now()
                return loss_at(step, generator)
            return watched
        begin(watch, WARM_STEPS + steps + 1)
        return 1000 * (marks[WARM_STEPS + steps] - marks[WARM_STEPS]) / steps

    def step_line(self, name: str, ours, steps: int, usual=None) -> None:
        peaks, found = {}, {"ours": [], "usual": []}
        for _ in range(ROUNDS):
            for which, begin in (("ours", ours), ("usual", usual)):
                if begin is not None:
                    self.fresh_peak()
                    found[which].append(self.ms_per_step(begin, steps))
                    peaks[which] = self.peak()
        ms = statistics.median(found["ours"])
        beside = ""
        if usual is not None:
            other = statistics.median(found["usual"])
            beside = f"usual {other:8.1f} ms  {other / ms:5.2f}x"
        print(f"{name:58}{ms:9.1f} ms/step  {beside:28}{peaks['ours']:>10}", flush=True)

    def rate_line(self, name: str, work, items: int) -> None:
        rates = []
        for _ in range(ROUNDS):
            started = self.now()
            work()
            rates.append(items / (self.now() - started))
        print(f"{name:58}{statistics.median(rates):9.1f} images/s  {items} images in "
              f"{items / statistics.median(rates):.1f} s", flush=True)


# ------------------------------------------------------------------ the usual script

def usual_adapter(base: BaseModel, images: np.ndarray, kind: str, target: str, batch: int, where):
    """begin(watch, steps): the step of diffusers' text-to-image LoRA example."""
    import torch
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    dtype = frozen_dtype(base.device)
    vae, text = (freeze(part, base.device) for part in (base.vae, base.text_encoder))
    pixels = to_model_range(images, base.vae.config.in_channels, base.device).to(dtype)
    tokens = base.tokenizer([CAPTION] * batch, padding="max_length", truncation=True,
                            max_length=base.tokenizer.model_max_length, return_tensors="pt")

    def loss_at(step, generator):
        picks = torch.randint(len(pixels), (batch,), generator=generator)
        with torch.no_grad():
            latents = vae.encode(pixels[picks]).latent_dist.sample()
            states = text(tokens.input_ids.to(base.device))[0]
        latents = latents * vae.config.scaling_factor
        with autocast(base.device):
            return denoising_loss(denoise_with(base.unet, states), base.schedule, latents,
                                  generator)

    def begin(watch, steps):
        base.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, use_dora=kind == "dora",
                                         init_lora_weights="gaussian",
                                         target_modules=TARGET_MODULES[target]), "class")
        cast_training_params(base.unet)
        plain_training([p for p in base.unet.parameters() if p.requires_grad], watch(loss_at),
                       steps)
        base.unet.unload_lora()
    return begin


def plain_training(parameters, loss_at, steps: int) -> None:
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        loss = loss_at(step, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        loss.item()  # as the examples do, for their progress bar


# ------------------------------------------------------------------ ours

def our_adapter(base: BaseModel, latents: Latents, kind: str, target: str, batch: int, where):
    loss_at = training_loss(base, latents, lambda i, draw: CAPTION, batch_size=batch)

    def begin(watch, steps):
        train_adapter(base, watch(loss_at), kind=kind, rank=RANK, target=target, steps=steps,
                      learning_rate=1e-4, seed=0, what=kind, output_dir=where / "adapter",
                      checkpoint_path=where / f"{time.monotonic_ns()}.ckpt",
                      jsonl_path=where / "log")
    return begin


def controlnet(base: BaseModel, latents: Latents, maps: np.ndarray, batch: int, where, *,
               encoding=None):
    """begin(watch, steps) of a ControlNet; encoding: images to encode within the step, as usual."""
    import torch

    from context_seg import get_controlnet

    control = get_controlnet(base, None).train()
    ours = training_loss(base, latents, lambda i, draw: CAPTION, batch_size=batch,
                         controlnet=control, maps=maps)

    def usual(step, generator):
        with torch.no_grad(), autocast(base.device):
            base.vae.encode(encoding[:batch])
            base.text_encoder(torch.zeros((batch, 77), dtype=torch.long, device=base.device))
        return ours(step, generator)

    def begin(watch, steps):
        control.requires_grad_(True)
        if encoding is not None:
            plain_training(list(control.parameters()), watch(usual), steps)
        else:
            train(control.parameters(), watch(ours), what="ControlNet", steps=steps, seed=0,
                  learning_rate=1e-5, ema_decay=0.999, jsonl_path=where / "log",
                  checkpoint_path=where / f"{time.monotonic_ns()}.ckpt")
    return begin


def scratch(sizes: Sizes, device, images: np.ndarray, where, clock: Clock) -> None:
    """The lines of the from-scratch arm: autoencoder, latents, UNet, drawing."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    preset = diffusion_seg.PRESETS[sizes.preset]
    vae = diffusion_seg.build_autoencoder(sizes.preset, sizes.image_size).to(device)

    def of_trainer(trainer):  # both trainers call lungkit.learn.loop.train
        def begin(watch, steps):
            import lungkit.learn.loop as loop

            whole = loop.train
            loop.train = lambda parameters, loss_at, **how: whole(parameters, watch(loss_at), **how)
            try:
                trainer(steps)
            finally:
                loop.train = whole
                for path in where.glob("*.ckpt"):
                    path.unlink()
        return begin
    clock.step_line(
        f"autoencoder, {sizes.image_size} px, batch {sizes.autoencoder_batch}", of_trainer(
            lambda steps: diffusion_seg.train_autoencoder(
                vae.requires_grad_(True).train(), images, steps=steps, seed=0, work_dir=where,
                batch_size=sizes.autoencoder_batch, device=device)), sizes.steps)
    if sizes.preset == "demo":
        vae = AutoencoderKL.from_pretrained(BASE_MODEL_DIR / "vae", torch_dtype=torch.float32)
    vae.to(device).eval().requires_grad_(False)
    some = np.resize(images, (sizes.images, *images.shape[1:]))
    clock.rate_line(f"latents in 8 orientations, {sizes.image_size} px",
                    lambda: Latents(vae, some), sizes.images)
    latent = sizes.image_size // 2 ** (len(vae.config.block_out_channels) - 1)
    unet = diffusion_seg.build_unet(latent, 4, preset["widths"], len(CLASSES)).to(device)
    labels, schedule = np.zeros(len(images), np.int64), training_schedule()
    clock.step_line(
        f"UNet from scratch, {latent} x {latent} latents, batch {sizes.unet_batch}", of_trainer(
            lambda steps: diffusion_seg.train_unet(
                unet.train(), vae, schedule, images, labels, num_classes=len(CLASSES), steps=steps,
                batch_size=sizes.unet_batch, learning_rate=1e-4, seed=0, work_dir=where,
                device=device)), sizes.steps)
    items = [SimpleNamespace(index=i, label=CLASSES[0]) for i in range(sizes.drawing_batch)]

    def draw():
        for _ in range(sizes.drawn // sizes.drawing_batch):
            diffusion_seg.sample_images(unet.eval(), vae, schedule, items, classes=list(CLASSES),
                                        sampler_name="dpm", steps=sizes.sampling_steps,
                                        guidance_scale=2.0, seed=0, device=device)
    clock.rate_line(f"drawing with it, {sizes.sampling_steps} steps with guidance", draw,
                    sizes.drawn)


def adapters(sizes: Sizes, device, where, clock: Clock) -> None:
    """The lines of the Stable Diffusion arms."""
    folder = BASE_MODEL_DIR
    if sizes.preset == "full":
        folder = stable_diffusion_15(where / "base", device)
    base, plain = BaseModel(folder, device), BaseModel(folder, device)
    for size, batch in sizes.adapters:
        images = tissue(32, size)
        latents = Latents(base.vae, images, batch_size=8)
        for kind in ("lora", "dora"):
            clock.step_line(
                f"{kind}, {size} px, batch {batch}",
                our_adapter(base, latents, kind, sizes.target, batch, where), sizes.steps,
                usual_adapter(plain, images, kind, sizes.target, batch, where))
        if size == sizes.image_size:
            pixels = to_model_range(images, 3, device)
            clock.step_line(
                f"ControlNet, {size} px, batch {batch}",
                controlnet(base, latents, images, batch, where), sizes.steps,
                controlnet(plain, latents, images, batch, where, encoding=pixels))
    pipe = pipeline(base, "dpm", adapter_dir=where / "adapter")
    number = sizes.drawing_batch // 4

    def draw():
        for first in range(0, sizes.drawn // 4, number):
            draw_images(pipe, [CAPTION] * number, ["blurred"] * number,
                        list(range(first, first + number)), seed=0, image_size=sizes.image_size,
                        steps=sizes.sampling_steps, guidance_scale=4.0)
    clock.rate_line(f"drawing with an adapter, {sizes.image_size} px, {sizes.sampling_steps} steps",
                    draw, sizes.drawn // 4)


def tissue(number: int, size: int) -> np.ndarray:
    return np.stack([draw_tile(CLASSES[i % len(CLASSES)], patient=i, index=0, image_size=size).image
                     for i in range(number)])


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=("scratch", "adapters"), help="one half (default: both)")
    args = parser.parse_args()
    device = use_device(args.device)
    sizes = GPU if device.type == "cuda" else CPU
    print(f"{device_name(device)}, {platform.machine()}, {os.cpu_count()} cores, "
          f"{torch.get_num_threads()} thread(s), torch {torch.__version__}; "
          f"medians of {ROUNDS} rounds of {sizes.steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "adapters":
            scratch(sizes, device, tissue(48, sizes.image_size), Path(folder), Clock(device))
        if args.only != "scratch":
            adapters(sizes, device, Path(folder), Clock(device))


if __name__ == "__main__":
    main()
