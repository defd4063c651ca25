#!/usr/bin/env python3
"""Generate the dataset "context": Stable Diffusion, one adapter per class, context engineering.

The model is given measured context, not only words: captions completed from each training
image's nuclei (count, size, spacing), and a structure map of its nuclei, Voronoi cells, tissue and
lumen through ControlNet. To draw an image, a new layout is sampled from the class's measured
statistics (--layouts sampled): where tissue is, and nuclei in it; or a training image's layout is
taken (--layouts training); never a test image's. What was asked of an image is measured in it.

Reads:  REAL (a dataset of tumor_seg.py), its train split only, a tenth of it, by group, to choose
        the weights by, and where asked guidance and steps; the base model; the prompt file.
Writes: OUTPUT, a dataset with counts like REAL (--pool K: K times the training images) and the
        layouts drawn as masks/nuclei and masks/tissue; MODEL/controlnet for from_pretrained,
        MODEL/<class>/ for load_lora_weights, MODEL/layouts.npz (the measured training layouts);
        with --choose-guidance or --choose-steps OUTPUT/choice.json.

Zhang et al. 2023, arXiv:2302.05543 (ControlNet); Hu et al. 2021, arXiv:2106.09685 (LoRA); Liu et
al. 2024, arXiv:2402.09353 (DoRA); Illian et al. 2008, Statistical Analysis and Modelling of
Spatial Point Patterns, doi:10.1002/9780470725160 (pair correlation, pairwise interaction);
Quiblier 1984, doi:10.1016/0021-9797(84)90481-8 (tissue as a cut Gaussian field).

Running the same command again resumes, or reports what is already complete.
Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

from lungkit.data.manifest import read_manifest
from lungkit.generate.adapters import (
    ADAPTER_FILE,
    add_adapter_options,
    train_each_class,
    training_loss,
)
from lungkit.generate.autoencoder import (
    add_decoder_options,
    draw_by_fitted,
    files_of,
    fit_decoder,
    settings_of,
)
from lungkit.generate.base_model import (
    STABLE_DIFFUSION_15,
    BaseModel,
    check_base_model,
    fingerprint,
    resolve_base_model,
)
from lungkit.generate.controlnets import CONTROLNET, check_control_fits, check_controlnet
from lungkit.generate.drawing import draw_images, pipeline
from lungkit.generate.held_out import HoldOut
from lungkit.generate.items import (
    Arm,
    add_generator_options,
    as_real,
    draw_dataset,
    folder_fingerprint,
    open_arm,
)
from lungkit.generate.model_files import DIFFUSERS, open_part
from lungkit.generate.prompts import Prompts, prompts_for
from lungkit.generate.sampling_choice import add_choice_options, choose, ways_of
from lungkit.generate.single_file import as_folder
from lungkit.histology.background import tissue_mask
from lungkit.nuclei.agreement import Nearest, asked_and_measured, layout_report
from lungkit.nuclei.detect import RECIPE as NUCLEI_RECIPE
from lungkit.nuclei.instanseg import check_file
from lungkit.nuclei.layouts import (
    RECIPE as LAYOUT_RECIPE,
    Layout,
    Levels,
    finder,
    load_layouts,
    measure_layouts,
    structure_map,
    tissue_mask_of,
)
from lungkit.nuclei.point_process import PointStatistics, layout_for
from lungkit.run import cli, faults, ranks
from lungkit.run.files import write_text
from lungkit.run.seeds import caption_draws, stream

# chosen as in prompt_seg.py; the ControlNet's rate is that of its training in the paper's code
# (1e-5) at full, and higher for the small one
PRESETS = {
    "demo": {"base_model": "embedded", "rank": 16, "target": "all", "decoder_steps": 0,
             "decoder_batch_size": 16, "controlnet_steps": 80,
             "train_steps": 120, "batch_size": 16, "learning_rate": 1e-3,
             "controlnet_learning_rate": 3e-4,
             "sampling_steps": 15, "guidance_scale": 2.0},
    "full": {"base_model": STABLE_DIFFUSION_15, "rank": 16, "target": "attention",
             "decoder_steps": 0, "decoder_batch_size": 8, "controlnet_steps": 10000,
             "train_steps": 3000, "batch_size": 8,
             "learning_rate": 1e-4, "controlnet_learning_rate": 1e-5,
             "sampling_steps": 30, "guidance_scale": 4.0},
}
BATCHES = "class-balanced"  # of the ControlNet; what was trained by others is not gone on with
CONTROL_SCALE = 1.0
MOST_MEASURED = 1200  # ours: images in which what was asked is looked for; 12 s of one core


# ------------------------------------------------------------------ training

def get_controlnet(base: BaseModel, controlnet: str | None):
    """The ControlNet to start from: a folder's, the base model's own, or a copy of its UNet.

    Made before any adapter is on the UNet. Raises BadOptions if the folder holds none.
    """
    import torch
    from diffusers import ControlNetModel

    folder = check_controlnet(controlnet) or base.folder / "controlnet"
    if (folder / "config.json").is_file():
        return ControlNetModel.from_pretrained(
            folder, variant=open_part(folder, CONTROLNET).variant, use_safetensors=True,
            torch_dtype=torch.float32).to(base.device)
    # from_unet assumes an 8-fold autoencoder: one embedding step fewer for a 4-fold one
    steps = len(base.vae.config.block_out_channels)
    return ControlNetModel.from_unet(
        base.load_unet(),
        conditioning_embedding_out_channels=(16, 32, 96, 256)[:steps]).to(base.device)


def train_models(arm: Arm, base: BaseModel, words: Prompts, *, controlnet: str | None,
                 controlnet_steps: int, controlnet_learning_rate: float, batch_size: int,
                 nuclei_weights: Path | None, decoder: dict[str, int], **how: object) -> None:
    """Measure layouts, fit the decoder, train the ControlNet on all and an adapter on each class.

    Publishes all that.
    """
    from lungkit.generate.latents import Latents
    from lungkit.learn.device import freeze

    data = arm.data
    with arm.weights.writing() as work_dir:
        ranks.by_first(lambda: measure_layouts(
            data, work_dir / "layouts.npz",
            finder(data, tissue_mask, nuclei_weights, str(base.device))) and None)
        layouts = load_layouts(ranks.see(work_dir / "layouts.npz"))
        levels = Levels(layouts, data.image_size)
        labels = [row.label for row in data.select("train")]
        maps = np.stack([structure_map(layout, data.image_size) for layout in layouts])
        context = [levels.of(layout) for layout in layouts]
        latents = Latents(base.vae, data.load("train")[0], symmetries=data.symmetries)

        losses = fit_decoder(arm, base.vae, **decoder)

        def loss_over(places: list[int], control, **more: object):
            return training_loss(
                base, latents, lambda i, draw: words.context_caption(labels[i], draw, context[i]),
                batch_size=batch_size, controlnet=control, maps=maps, places=places, **more)

        losses["controlnet"] = train_controlnet(
            arm, base, controlnet, lambda control: lambda places: loss_over(
                places, control, classes=[data.classes.index(label) for label in labels]),
            steps=controlnet_steps, learning_rate=controlnet_learning_rate)
        control = freeze(get_controlnet(base, str(work_dir / "controlnet")), base.device)

        def loss_for(label: str):
            own = [i for i, other in enumerate(labels) if other == label]
            return lambda places: loss_over([own[place] for place in places], control)

        train_each_class(arm, base, loss_for, losses=losses, **how)


def train_controlnet(arm: Arm, base: BaseModel, start: str | None, loss_with, *, steps: int,
                     learning_rate: float) -> float:
    """Train and save the ControlNet in the model's `work_dir`, unless it is there; return its loss.

    start: a folder, or None, as in `get_controlnet`. loss_with(control): gives loss_over(places),
    its loss_at over those training images.
    """
    import torch

    from lungkit.learn.loop import train

    work_dir = arm.weights.work_dir
    seed = stream("context_seg controlnet", arm.seed)
    torch.manual_seed(seed)
    if not ranks.by_first((work_dir / "controlnet" / "config.json").exists):
        control = get_controlnet(base, start)
        loss_at, validation = arm.watched(loss_with(control), steps=steps)
        control.train()
        loss = train(control.parameters(), loss_at, what="ControlNet", steps=steps, seed=seed,
                     learning_rate=learning_rate, ema_decay=0.999,
                     checkpoint_path=work_dir / "controlnet.ckpt",
                     jsonl_path=work_dir / "progress.jsonl",
                     curve_path=work_dir / ".controlnet" / "loss.csv", validation=validation)
        if ranks.is_first():
            control.save_pretrained(work_dir / ".controlnet")
            write_text(work_dir / ".controlnet" / "loss.txt", repr(loss))
            (work_dir / ".controlnet").rename(work_dir / "controlnet")
        ranks.check_stop()
    return float(ranks.see(work_dir / "controlnet" / "loss.txt").read_text())


# ------------------------------------------------------------------ drawing

def training_layouts(arm: Arm) -> tuple[list[Layout], dict[str, list[Layout]]]:
    """The layouts kept with the model: of all training images, and by class."""
    layouts = load_layouts(arm.weights.output_dir / "layouts.npz")
    by_class: dict[str, list[Layout]] = {label: [] for label in arm.data.classes}
    for row, layout in zip(arm.data.select("train"), layouts, strict=True):
        by_class[row.label].append(layout)
    return layouts, by_class


def drawings(arm: Arm, base: BaseModel, words: Prompts, *, mode: str, sampler: str,
             nuclei_weights: Path | None):
    """draw_for(label): draw(items, steps=, guidance_scale=), each over its own layout.

    With its class's adapter alone.
    """
    from lungkit.learn.device import freeze

    size, seed, folder = arm.data.image_size, arm.draws, arm.weights.output_dir
    layouts, by_class = training_layouts(arm)
    levels = Levels(layouts, size)
    control = freeze(get_controlnet(base, str(folder / "controlnet")), base.device)
    layout_of = finder(arm.data, tissue_mask, nuclei_weights, str(base.device))
    every = -(-len(arm.items) // MOST_MEASURED)

    def record(item, layout, image, nearest: Nearest, nuclei: np.ndarray) -> dict:
        """What is written down beside an image: its masks, what was asked, what it shows."""
        shown = layout_of(image) if item.index % every == 0 else None
        return {"seed": f"{seed}:{item.index}", "source": f"context, {mode} layout",
                **asked_and_measured(layout, shown, size),
                "nearest_layout_px": nearest.least(layout),
                "masks": {"nuclei": np.where(nuclei >= 128, 255, 0).astype(np.uint8),
                          "tissue": tissue_mask_of(layout, size)}}

    def draw_for(label: str):
        own = by_class[label]
        statistics, nearest = PointStatistics(own, size), Nearest(own, size)
        pipe = pipeline(base, sampler, adapter_dir=folder / label, controlnet=control)

        def draw(items, *, steps: int, guidance_scale: float):
            drawn = [layout_for(item.index, seed, mode, statistics, own) for item in items]
            maps = np.stack([structure_map(layout, size) for layout in drawn])
            captions = [words.context_caption(label, caption_draws(seed, item.index),
                                              levels.of(layout))
                        for item, layout in zip(items, drawn, strict=True)]
            images = draw_images(pipe, captions, [words.negative(label)] * len(items),
                                 [item.index for item in items], seed=seed, image_size=size,
                                 steps=steps, guidance_scale=guidance_scale, maps=maps,
                                 control_scale=CONTROL_SCALE)
            images = as_real(images, arm.data.channels)
            rows = [record(item, layout, image, nearest, nuclei) for item, layout, image, nuclei
                    in zip(items, drawn, images, maps[..., 0], strict=True)]
            return images, [{**row, "prompt": caption}
                            for row, caption in zip(rows, captions, strict=True)]
        return draw
    return draw_for


# ------------------------------------------------------------------ the stage

def run(*, real: Path, output: Path, model: Path | None, controlnet: str | None,
        nuclei_weights: Path | None, adapter: str, layouts: str, prompts: Path | None, preset: str,
        sampler: str, pool: int, seed: int, device: str, overwrite: bool, dry_run: bool,
        **options: object) -> None:
    """Check the prompts, train ControlNet and adapters, draw each class over layouts, publish."""
    options = cli.fill_preset({"preset": preset, **options}, PRESETS)
    manifest = read_manifest(real)
    if manifest["modality"] == "ct":
        raise faults.BadOptions("--real holds CT, which shows no nuclei to lay out: leave this arm "
                                "out")
    words = prompts_for(prompts, manifest)
    given = resolve_base_model(options["base_model"], manifest, options["base_prediction"])
    start, ways = check_controlnet(controlnet), ways_of(options)

    def check(manifest: dict) -> None:
        check_base_model(given, manifest, words, context=True)
        check_control_fits(given, start)
        check_file(nuclei_weights)

    arm = open_arm(
        "context_seg", real=real, output=output, model=model, seed=seed,
        parts="ControlNet and an adapter a class",
        training={**{key: options[key] for key in (
                      "rank", "target", "controlnet_steps", "train_steps", "batch_size",
                      "learning_rate", "controlnet_learning_rate")},
                  "adapter": adapter, "prompts": words.fingerprint,
                  "base_model": fingerprint(given),
                  "controlnet": start and folder_fingerprint(start),
                  "nuclei_weights": cli.file_sha256(nuclei_weights, "--nuclei-weights"),
                  "nuclei_recipe": NUCLEI_RECIPE, "layout_recipe": LAYOUT_RECIPE,
                  "batches": BATCHES, **settings_of(options)},
        sampling={"sampler": sampler, "pool": pool, "layouts": layouts, **ways.as_setting()},
        model_files=lambda classes: [*files_of(options), "layouts.npz", "controlnet/config.json",
                                     f"controlnet/{DIFFUSERS}.safetensors",
                                     *(f"{label}/{ADAPTER_FILE}" for label in classes)],
        check=check, rule=HoldOut(options["validation_share"], options["patience"]),
        drop_copies=options["drop_copies"], device=device, overwrite=overwrite,
        dry_run=dry_run)
    if arm is None:
        return
    base = BaseModel(as_folder(given, arm.weights.output_dir.parent), arm.device)
    decoder = settings_of(options)
    if not arm.is_trained:
        train_models(arm, base, words, controlnet=controlnet, nuclei_weights=nuclei_weights,
                     controlnet_steps=options["controlnet_steps"],
                     controlnet_learning_rate=options["controlnet_learning_rate"],
                     kind=adapter, rank=options["rank"], target=options["target"],
                     steps=options["train_steps"], batch_size=options["batch_size"],
                     learning_rate=options["learning_rate"], decoder=decoder)
    draw_by_fitted(arm, base, decoder)
    draw_for = drawings(arm, base, words, mode=layouts, sampler=sampler,
                        nuclei_weights=nuclei_weights)
    how, told = choose(arm, ways, draw_for)
    draw_dataset(arm, lambda label: partial(draw_for(label), **how), batch_size=16,
                 report=lambda records: told | layout_report(
                     records, training_layouts(arm)[1], arm.data.image_size))


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("context_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    hyperparameters = parser.add_argument_group("Hyperparameters (default: by preset)")
    add_generator_options(group, hyperparameters)
    add_adapter_options(group, hyperparameters)
    add_decoder_options(hyperparameters)
    add_choice_options(hyperparameters)
    group.add_argument("--controlnet", metavar="DIR",
                       help="ControlNet to start from (default: the base model's own where it has "
                            "one, else a copy of its UNet)")
    group.add_argument("--layouts", choices=("sampled", "training"), default="sampled",
                       help="where a generated image's tissue and nuclei lie: newly sampled from "
                            "the class's statistics, or as in a training image")
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
    return cli.main(build_parser(), ranks.together(run), argv)


if __name__ == "__main__":
    sys.exit(main())
