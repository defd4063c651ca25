#!/usr/bin/env python3
"""Generate the dataset "prompt": Stable Diffusion, one adapter per class, prompt engineering.

Every class gets its own LoRA or DoRA adapter on a frozen base model, trained on captions drawn
from the prompt file (stain, magnification, architecture, nuclei, cytology). Images are drawn from
the same captions, away from the class's negative prompt. Each is drawn with alone.

Reads:  REAL (a dataset of tumor_seg.py), its train split only; the base model; the prompt file.
Writes: OUTPUT, a dataset with counts like REAL (--pool K: K times the training images);
        MODEL/<class>/pytorch_lora_weights.safetensors for diffusers' load_lora_weights.

Rombach et al. 2022, arXiv:2112.10752 (Stable Diffusion); Hu et al. 2021, arXiv:2106.09685 (LoRA);
Liu et al. 2024, arXiv:2402.09353 (DoRA); Ho & Salimans 2022, arXiv:2207.12598 (guidance, whose
unconditional branch the negative prompt takes).

Running the same command again resumes, or reports what is already complete.
Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import random
import sys
from functools import partial
from pathlib import Path

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
from lungkit.run import cli, faults
from lungkit.run.files import write_text
from lungkit.run.output import Output
from lungkit.run.progress import Progress, say
from lungkit.run.provenance import provenance
from lungkit.run.seeds import stream

# demo: chosen on simulated tissue for the small base; full: rank 16 and 1e-4 are the customary
# values for Stable Diffusion 1.5, guidance 4 keeps the stain from over-saturating
PRESETS = {
    "demo": {"base_model": "embedded", "rank": 16, "target": "all", "train_steps": 150,
             "batch_size": 16, "learning_rate": 1e-3, "sampling_steps": 15, "guidance_scale": 2.0},
    "full": {"base_model": STABLE_DIFFUSION_15, "rank": 16, "target": "attention",
             "train_steps": 3000, "batch_size": 8, "learning_rate": 1e-4,
             "sampling_steps": 30, "guidance_scale": 4.0},
}


def train_adapters(model: Output, base: BaseModel, data, prompts: Prompts, *, adapter: str,
                   rank: int, target: str, train_steps: int, batch_size: int,
                   learning_rate: float, seed: int) -> None:
    """Train one adapter per class on that class's training images; publish MODEL."""
    from lungkit.generate.latents import Latents

    with model.writing() as work_dir:
        losses = {}
        for label in data.classes:
            loss_path = work_dir / label / "loss.txt"
            if not loss_path.exists():  # written after the adapter: present means trained
                latents = Latents(base.vae, data.load("train", label)[0])
                loss_at = training_loss(
                    base, latents, lambda _, draw, label=label: prompts.caption(label, draw),
                    batch_size=batch_size)
                loss = train_adapter(base, loss_at, kind=adapter, rank=rank, target=target,
                                     steps=train_steps, learning_rate=learning_rate,
                                     seed=stream(f"prompt_seg {label}", seed),
                                     what=f"{adapter} {label}", output_dir=work_dir / label,
                                     checkpoint_path=work_dir / f"{label}.ckpt",
                                     jsonl_path=work_dir / "progress.jsonl")
                write_text(loss_path, repr(loss))
            losses[label] = float(loss_path.read_text())
            faults.check_stop()
        for checkpoint in work_dir.glob("*.ckpt"):
            checkpoint.unlink()
        model.publish({"schema": "lungkit.model/1", "stage": "prompt_seg", "classes": data.classes,
                       "losses": losses, "parents": train_only_parent(data), **provenance()})


def run(*, real: Path, output: Path, model: Path | None, adapter: str, prompts: Path,
        preset: str, sampler: str, pool: int, seed: int, device: str,
        overwrite: bool, dry_run: bool, **options: object) -> None:
    """Check the prompts, train an adapter per class, draw each class with its own, publish."""
    options = cli.fill_preset({"preset": preset, **options}, PRESETS)
    training = {key: options[key] for key in (
        "rank", "target", "train_steps", "batch_size", "learning_rate")}
    words = Prompts(prompts)
    folder = resolve_base_model(options["base_model"])
    manifest = read_manifest(real)
    trained = {**training, "adapter": adapter, "seed": seed, "prompts": words.fingerprint,
               "base_model": folder_fingerprint(folder), "real": manifest["fingerprint"]}
    sampling = {"sampler": sampler, "pool": pool,
                **{key: options[key] for key in ("sampling_steps", "guidance_scale")}}
    target = Output(output, MANIFEST, {**trained, **sampling}, overwrite=overwrite)
    if target.is_complete():
        say(f"prompt_seg: {output} is already complete")
        return
    weights = Output(model or model_dir_for(output), "model.json", trained, overwrite=overwrite)
    ready = weights.matches() or weights.is_complete()
    if ready:
        require_files(weights.output_dir,
                      *(f"{label}/{ADAPTER_FILE}" for label in manifest["classes"]))

    check_image_size(folder, manifest["image_size"])
    data = open_dataset(real)
    items = plan_items(data.counts, data.classes, pool)
    quiet()
    from transformers import CLIPTokenizer
    words.check_token_limit(CLIPTokenizer.from_pretrained(folder / "tokenizer"), data.classes)
    say(f"prompt_seg: found {sum(data.counts['train'].values())} training images, "
        f"{len(data.classes)} adapters {'complete' if ready else 'pending'}, {len(items)} images "
        "to draw; " + ", ".join(f"{key}={value}" for key, value in {**trained, **sampling}.items()))
    place = use_device(device)
    if dry_run:
        return
    base = BaseModel(folder, place)
    draws = stream("prompt_seg", seed)
    if not ready:
        train_adapters(weights, base, data, words, adapter=adapter, seed=seed, **training)
    dataset = draw_dataset(target, weights.output_dir, base, data, words, items, sampler=sampler,
                           steps=options["sampling_steps"], seed=draws,
                           guidance_scale=options["guidance_scale"])
    print(f"{output}: {len(dataset.rows)} images of {len(dataset.classes)} classes "
          f"from {weights.output_dir}")


def draw_dataset(target: Output, model_dir: Path, base: BaseModel, data, words: Prompts, items, *,
                 sampler: str, steps: int, seed: int, guidance_scale: float):
    """Draw every item with its class's adapter, fused into a copy of the base."""
    def draw(pipe, batch):
        label = batch[0].label
        captions = [words.caption(label, random.Random(f"{seed}:{item.index}")) for item in batch]
        images = draw_images(pipe, captions, [words.negative(label)] * len(batch),
                             [item.index for item in batch], seed=seed, image_size=data.image_size,
                             steps=steps, guidance_scale=guidance_scale)
        return images, [{"seed": f"{seed}:{item.index}", "source": "prompt", "prompt": caption}
                        for item, caption in zip(batch, captions, strict=True)]

    with DatasetWriter(target, stage="prompt_seg", classes=data.classes,
                       image_size=data.image_size) as writer:
        progress = Progress("prompt images", len(items), done=len(writer.records))
        for label in data.classes:
            pipe = pipeline(base, sampler, adapter_dir=model_dir / label)
            fill(writer, batches(items, label, 16), partial(draw, pipe), progress)
        return publish(writer, data)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("prompt_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    hyperparameters = parser.add_argument_group("Hyperparameters (default: by preset)")
    add_generator_options(group, hyperparameters)
    add_adapter_options(group, hyperparameters)
    cli.add_common(parser, presets=PRESETS)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
