#!/usr/bin/env python3
"""Generate the dataset "context": Stable Diffusion, one adapter per class, context engineering.

The model is given measured context, not only words: captions completed from each training
image's nuclei (count, size, spacing), and a structure map of its nuclei and Voronoi cells through
ControlNet. To draw an image, a new layout is sampled from the class's measured point statistics
(--layouts sampled), or a training image's layout is taken (--layouts training); never a test
image's.

Reads:  REAL (a dataset of tumor_seg.py), its train split only; the base model; the prompt file.
Writes: OUTPUT, a dataset with counts like REAL (--pool K: K times the training images) and the
        layouts drawn as masks/nuclei; MODEL/controlnet for from_pretrained, MODEL/<class>/ for
        load_lora_weights, MODEL/layouts.npz (the measured training layouts).

Zhang et al. 2023, arXiv:2302.05543 (ControlNet); Hu et al. 2021, arXiv:2106.09685 (LoRA); Liu et
al. 2024, arXiv:2402.09353 (DoRA); Illian et al. 2008, Statistical Analysis and Modelling of
Spatial Point Patterns, doi:10.1002/9780470725160 (pair correlation, pairwise interaction).

Running the same command again resumes, or reports what is already complete.
Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import numpy as np

from lungkit.data.dataset import MANIFEST, open_dataset, read_manifest
from lungkit.data.writer import DatasetWriter
from lungkit.generate.adapters import (
    ADAPTER_FILE,
    add_adapter_options,
    train_adapter,
    training_loss,
)
from lungkit.generate.base_model import (
    STABLE_DIFFUSION_15,
    BaseModel,
    check_image_size,
    quiet,
    require_files,
    resolve_base_model,
)
from lungkit.generate.drawing import draw_images, pipeline
from lungkit.generate.items import (
    add_generator_options,
    batches,
    fill,
    folder_fingerprint,
    model_dir_for,
    plan_items,
    publish,
    train_only_parent,
)
from lungkit.generate.prompts import Prompts
from lungkit.learn.device import use_device
from lungkit.nuclei.detect import RECIPE as NUCLEI_RECIPE
from lungkit.nuclei.layouts import Levels, load_layouts, measure_layouts, structure_map
from lungkit.nuclei.point_process import PointStatistics, layout_for
from lungkit.run import cli, faults
from lungkit.run.files import write_text
from lungkit.run.output import Output
from lungkit.run.progress import Progress, say
from lungkit.run.provenance import provenance
from lungkit.run.seeds import stream

# chosen as in prompt_seg.py; the ControlNet's rate is that of its training in the paper's code
# (1e-5) at full, and higher for the small one
PRESETS = {
    "demo": {"base_model": "embedded", "rank": 16, "target": "all", "controlnet_steps": 80,
             "train_steps": 120, "batch_size": 16, "learning_rate": 1e-3,
             "controlnet_learning_rate": 3e-4,
             "sampling_steps": 15, "guidance_scale": 2.0},
    "full": {"base_model": STABLE_DIFFUSION_15, "rank": 16, "target": "attention",
             "controlnet_steps": 10000, "train_steps": 3000, "batch_size": 8,
             "learning_rate": 1e-4, "controlnet_learning_rate": 1e-5,
             "sampling_steps": 30, "guidance_scale": 4.0},
}
CONTROL_SCALE = 1.0


# ------------------------------------------------------------------ training

def get_controlnet(base: BaseModel, controlnet: str | None):
    """The ControlNet to start from: a folder's, the base model's own, or a copy of its UNet.

    Made before any adapter is on the UNet. Raises BadOptions if the folder holds none.
    """
    from diffusers import ControlNetModel

    folder = Path(controlnet) if controlnet else base.folder / "controlnet"
    if controlnet and not (folder / "config.json").is_file():
        raise faults.BadOptions(f"--controlnet {controlnet}: no ControlNet in diffusers layout there")
    if (folder / "config.json").is_file():
        return ControlNetModel.from_pretrained(folder, use_safetensors=True).float().to(base.device)
    # from_unet assumes an 8-fold autoencoder: one embedding step fewer for a 4-fold one
    steps = len(base.vae.config.block_out_channels)
    return ControlNetModel.from_unet(
        base.unet, conditioning_embedding_out_channels=(16, 32, 96, 256)[:steps]).to(base.device)


def train_models(model: Output, base: BaseModel, data, words: Prompts, *, controlnet: str | None,
                 adapter: str, rank: int, target: str, controlnet_steps: int, train_steps: int,
                 batch_size: int, learning_rate: float, controlnet_learning_rate: float,
                 nuclei_weights: Path | None, seed: int) -> None:
    """Measure layouts, train the ControlNet on all classes and an adapter on each; publish."""
    import torch

    from lungkit.generate.latents import Latents
    from lungkit.learn.loop import train

    with model.writing() as work_dir:
        layouts = measure_layouts(data, work_dir / "layouts.npz", nuclei_weights)
        levels = Levels(layouts, data.image_size)
        rows = data.select("train")
        maps = np.stack([structure_map(layout, data.image_size)
                         for layout in layouts])
        context = [levels.of(layout) for layout in layouts]
        latents = Latents(base.vae, data.load("train")[0])
        losses = {}
        torch.manual_seed(stream("context_seg controlnet", seed))
        control = get_controlnet(base, controlnet)
        if not (work_dir / "controlnet" / "config.json").exists():
            loss_at = training_loss(
                base, latents,
                lambda i, draw: words.context_caption(rows[i].label, draw, context[i]),
                batch_size=batch_size, controlnet=control, maps=maps)
            control.train()
            loss = train(
                control.parameters(), loss_at, what="ControlNet", steps=controlnet_steps,
                learning_rate=controlnet_learning_rate, ema_decay=0.999,
                seed=stream("context_seg controlnet", seed),
                checkpoint_path=work_dir / "controlnet.ckpt",
                jsonl_path=work_dir / "progress.jsonl")
            control.save_pretrained(work_dir / ".controlnet")
            write_text(work_dir / ".controlnet" / "loss.txt", repr(loss))
            (work_dir / ".controlnet").rename(work_dir / "controlnet")
            faults.check_stop()
        losses["controlnet"] = float((work_dir / "controlnet" / "loss.txt").read_text())
        control = get_controlnet(base, str(work_dir / "controlnet")).requires_grad_(False).eval()
        for label in data.classes:
            loss_path = work_dir / label / "loss.txt"
            if not loss_path.exists():  # written after the adapter: present means trained
                own = [i for i, row in enumerate(rows) if row.label == label]
                loss_at = training_loss(
                    base, latents.subset(own),
                    lambda i, draw, own=own, label=label: words.context_caption(
                        label, draw, context[own[i]]),
                    batch_size=batch_size, controlnet=control, maps=maps[own])
                loss = train_adapter(base, loss_at, kind=adapter, rank=rank, target=target,
                                     steps=train_steps, learning_rate=learning_rate,
                                     seed=stream(f"context_seg {label}", seed),
                                     what=f"{adapter} {label}", output_dir=work_dir / label,
                                     checkpoint_path=work_dir / f"{label}.ckpt",
                                     jsonl_path=work_dir / "progress.jsonl")
                write_text(loss_path, repr(loss))
            losses[label] = float(loss_path.read_text())
            faults.check_stop()
        for checkpoint in work_dir.glob("*.ckpt"):
            checkpoint.unlink()
        model.publish({"schema": "lungkit.model/1", "stage": "context_seg", "classes": data.classes,
                       "losses": losses, "parents": train_only_parent(data), **provenance()})


# ------------------------------------------------------------------ the stage

def run(*, real: Path, output: Path, model: Path | None, controlnet: str | None,
        nuclei_weights: Path | None, adapter: str, layouts: str, prompts: Path, preset: str,
        sampler: str, pool: int, seed: int, device: str, overwrite: bool, dry_run: bool,
        **options: object) -> None:
    """Check the prompts, train ControlNet and adapters, draw each class over layouts, publish."""
    options = cli.fill_preset({"preset": preset, **options}, PRESETS)
    training = {key: options[key] for key in (
        "rank", "target", "controlnet_steps", "train_steps", "batch_size", "learning_rate",
        "controlnet_learning_rate")}
    words = Prompts(prompts)
    folder = resolve_base_model(options["base_model"])
    if controlnet and not (Path(controlnet) / "config.json").is_file():
        raise faults.BadOptions(f"--controlnet {controlnet}: no ControlNet in diffusers layout there")
    manifest = read_manifest(real)
    trained = {**training, "adapter": adapter, "seed": seed, "prompts": words.fingerprint,
               "base_model": folder_fingerprint(folder), "real": manifest["fingerprint"],
               "controlnet": folder_fingerprint(Path(controlnet)) if controlnet else None,
               "nuclei_weights": cli.file_sha256(nuclei_weights, "--nuclei-weights"),
               "nuclei_recipe": NUCLEI_RECIPE}
    sampling = {"sampler": sampler, "pool": pool, "layouts": layouts,
                **{key: options[key] for key in ("sampling_steps", "guidance_scale")}}
    target = Output(output, MANIFEST, {**trained, **sampling}, overwrite=overwrite)
    if target.is_complete():
        say(f"context_seg: {output} is already complete")
        return
    weights = Output(model or model_dir_for(output), "model.json", trained, overwrite=overwrite)
    ready = weights.matches() or weights.is_complete()
    if ready:
        require_files(weights.output_dir, "layouts.npz", "controlnet/config.json",
                      *(f"{label}/{ADAPTER_FILE}" for label in manifest["classes"]))

    check_image_size(folder, manifest["image_size"])
    data = open_dataset(real)
    items = plan_items(data.counts, data.classes, pool)
    quiet()
    from transformers import CLIPTokenizer
    words.check_token_limit(CLIPTokenizer.from_pretrained(folder / "tokenizer"), data.classes,
                            context=True)
    say(f"context_seg: found {sum(data.counts['train'].values())} training images, ControlNet and "
        f"{len(data.classes)} adapters {'complete' if ready else 'pending'}, {len(items)} images "
        "to draw; " + ", ".join(f"{key}={value}" for key, value in {**trained, **sampling}.items()))
    place = use_device(device)
    if dry_run:
        return
    base = BaseModel(folder, place)
    draws = stream("context_seg", seed)
    if not ready:
        train_models(weights, base, data, words, controlnet=controlnet, adapter=adapter, seed=seed,
                     nuclei_weights=nuclei_weights, **training)
    dataset = draw_dataset(target, weights.output_dir, base, data, words, items, mode=layouts,
                           sampler=sampler, steps=options["sampling_steps"], seed=draws,
                           guidance_scale=options["guidance_scale"])
    print(f"{output}: {len(dataset.rows)} images of {len(dataset.classes)} classes "
          f"from {weights.output_dir}")


def draw_dataset(target: Output, model_dir: Path, base: BaseModel, data, words: Prompts, items, *,
                 mode: str, sampler: str, steps: int, seed: int, guidance_scale: float):
    """Draw every item over its own layout with its class's adapter alone."""
    size = data.image_size
    layouts = load_layouts(model_dir / "layouts.npz")
    levels = Levels(layouts, size)
    control = get_controlnet(base, str(model_dir / "controlnet")).eval()
    labels = [row.label for row in data.select("train")]

    with DatasetWriter(target, stage="context_seg", classes=data.classes,
                       image_size=size) as writer:
        progress = Progress("context images", len(items), done=len(writer.records))
        for label in data.classes:
            own = [layout for layout, other in zip(layouts, labels, strict=True) if other == label]
            statistics = PointStatistics(own, size)

            pipe = pipeline(base, sampler, adapter_dir=model_dir / label, controlnet=control)

            def draw(batch, pipe=pipe, label=label, own=own, statistics=statistics):
                drawn = [layout_for(item.index, seed, mode, statistics, own) for item in batch]
                maps = np.stack([structure_map(layout, size) for layout in drawn])
                captions = [words.context_caption(label, random.Random(f"{seed}:{item.index}"),
                                                  levels.of(layout))
                            for item, layout in zip(batch, drawn, strict=True)]
                images = draw_images(pipe, captions, [words.negative(label)] * len(batch),
                                     [item.index for item in batch], seed=seed, image_size=size,
                                     steps=steps, guidance_scale=guidance_scale, maps=maps,
                                     control_scale=CONTROL_SCALE)
                return images, [{"seed": f"{seed}:{item.index}", "prompt": caption,
                                 "source": f"context, {mode} layout",
                                 "num_nuclei": len(layout.areas_px),
                                 "masks": {"nuclei": np.ascontiguousarray(nuclei[..., 0])}}
                                for item, caption, layout, nuclei in
                                zip(batch, captions, drawn, maps, strict=True)]

            fill(writer, batches(items, label, 16), draw, progress)
        return publish(writer, data)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("context_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    hyperparameters = parser.add_argument_group("Hyperparameters (default: by preset)")
    add_generator_options(group, hyperparameters)
    add_adapter_options(group, hyperparameters)
    group.add_argument("--controlnet", metavar="DIR",
                       help="ControlNet to start from (default: the base model's own where it has "
                            "one, else a copy of its UNet)")
    group.add_argument("--layouts", choices=("sampled", "training"), default="sampled",
                       help="where a generated image's nuclei lie: newly sampled from the class's "
                            "point statistics, or as in a training image")
    group.add_argument("--nuclei-weights", type=Path, metavar="FILE",
                       help="find nuclei by this InstanSeg model (TorchScript: loading it runs its "
                            "code) and not by the rules of lungkit/nuclei/detect.py")
    hyperparameters.add_argument("--controlnet-steps", type=cli.positive_int, metavar="INT",
                                 help="optimiser steps of the ControlNet, on all classes")
    hyperparameters.add_argument("--controlnet-learning-rate", type=cli.positive_float,
                                 metavar="RATE", help="peak, ControlNet")
    cli.add_common(parser, presets=PRESETS)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
