#!/usr/bin/env python3
"""Generate the dataset "prompt": Stable Diffusion, one adapter per class, prompt engineering.

Every class gets its own LoRA or DoRA adapter on a frozen base model, trained on captions drawn
from the prompt file (of tissue: stain, magnification, architecture, nuclei, cytology; of CT:
technique, view, window, size, density, margin, surroundings). Images are drawn from the same
captions, away from the class's negative prompt. Each is drawn with alone.

Reads:  REAL (a dataset of tumor_seg.py or ct_seg.py), its train split only, a tenth of it, by
        group, to choose the weights by, and where asked guidance and steps; the base model; the
        prompt file.
Writes: OUTPUT, a dataset with counts like REAL (--pool K: K times the training images);
        MODEL/<class>/pytorch_lora_weights.safetensors for diffusers' load_lora_weights;
        with --choose-guidance or --choose-steps OUTPUT/choice.json;
        with --ablate OUTPUT/ablation.csv, of which real's val images are opened too, to say how
        good its classifier is.

Rombach et al. 2022, arXiv:2112.10752 (Stable Diffusion); Hu et al. 2021, arXiv:2106.09685 (LoRA);
Liu et al. 2024, arXiv:2402.09353 (DoRA); Ho & Salimans 2022, arXiv:2207.12598 (guidance, whose
unconditional branch the negative prompt takes).

Running the same command again resumes, or reports what is already complete.
Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

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
from lungkit.generate.drawing import draw_images, pipeline
from lungkit.generate.held_out import HoldOut
from lungkit.generate.items import Arm, add_generator_options, draw_dataset, open_arm
from lungkit.generate.prompts import Prompts, prompts_for
from lungkit.generate.sampling_choice import add_choice_options, choose, ways_of
from lungkit.generate.single_file import as_folder
from lungkit.run import cli, ranks
from lungkit.run.seeds import caption_draws

# demo: chosen on simulated tissue for the small base; full: rank 16 and 1e-4 are the customary
# values for Stable Diffusion 1.5, guidance 4 keeps the stain from over-saturating
PRESETS = {
    "demo": {"base_model": "embedded", "rank": 16, "target": "all", "decoder_steps": 0,
             "decoder_batch_size": 16, "train_steps": 150,
             "batch_size": 16, "learning_rate": 1e-3, "sampling_steps": 15, "guidance_scale": 2.0},
    "full": {"base_model": STABLE_DIFFUSION_15, "rank": 16, "target": "attention",
             "decoder_steps": 0, "decoder_batch_size": 8, "train_steps": 3000, "batch_size": 8,
             "learning_rate": 1e-4,
             "sampling_steps": 30, "guidance_scale": 4.0},
}


def train_adapters(arm: Arm, base: BaseModel, words: Prompts, *, batch_size: int,
                   decoder: dict[str, int], **how: object) -> None:
    """Fit the decoder, train one adapter per class on its training images; publish MODEL."""
    from lungkit.generate.latents import Latents

    def loss_for(label: str):
        latents = Latents(base.vae, arm.data.load("train", label)[0],
                          symmetries=arm.data.symmetries)
        return lambda places: training_loss(
            base, latents, lambda _, draw: words.caption(label, draw), batch_size=batch_size,
            places=places)

    with arm.weights.writing():
        losses = fit_decoder(arm, base.vae, **decoder)
        train_each_class(arm, base, loss_for, losses=losses, **how)


def painter_of(label: str, arm: Arm, base: BaseModel, *, sampler: str):
    """paint(items, captions, negative, steps=, guidance_scale=) with a class's adapter.

    It is fused into a copy of the base.
    """
    pipe = pipeline(base, sampler, adapter_dir=arm.weights.output_dir / label)
    return lambda items, captions, negative, *, steps, guidance_scale: draw_images(
        pipe, captions, [negative] * len(items), [item.index for item in items], seed=arm.draws,
        image_size=arm.data.image_size, steps=steps, guidance_scale=guidance_scale)


def drawing_of(label: str, arm: Arm, words: Prompts, paint):
    """draw(items, steps=, guidance_scale=) of one class by its `painter_of`."""
    seed = arm.draws

    def draw(items, **how):
        captions = [words.caption(label, caption_draws(seed, item.index)) for item in items]
        images = paint(items, captions, words.negative(label), **how)
        return images, [{"seed": f"{seed}:{item.index}", "source": "prompt", "prompt": caption}
                        for item, caption in zip(items, captions, strict=True)]
    return draw


def ablate(arm: Arm, words: Prompts, painter) -> dict:
    """What the manifest says of an ablation of the prompts."""
    from lungkit.generate import ablation

    return {"ablation": ablation.measure(arm, words, painter)}


def check_ablation() -> None:
    """Raise BadOptions unless the network that judges an ablation is here."""
    from lungkit.learn.features import Extractor

    Extractor()


def run(*, real: Path, output: Path, model: Path | None, adapter: str, prompts: Path | None,
        preset: str, sampler: str, pool: int, ablate_prompts: bool, seed: int, device: str,
        overwrite: bool, dry_run: bool, **options: object) -> None:
    """Check the prompts, train an adapter per class, draw each class with its own, publish."""
    options = cli.fill_preset({"preset": preset, **options}, PRESETS)
    manifest = read_manifest(real)
    words = prompts_for(prompts, manifest)
    given = resolve_base_model(options["base_model"], manifest, options["base_prediction"])
    ways = ways_of(options)
    if ablate_prompts:
        check_ablation()
    arm = open_arm(
        "prompt_seg", real=real, output=output, model=model, seed=seed,
        parts="an adapter a class",
        training={**{key: options[key] for key in ("rank", "target", "train_steps", "batch_size",
                                                   "learning_rate")},
                  "adapter": adapter, "prompts": words.fingerprint,
                  "base_model": fingerprint(given), **settings_of(options)},
        sampling={"sampler": sampler, "pool": pool, **({"ablate": True} if ablate_prompts else {}),
                  **ways.as_setting()},
        model_files=lambda classes: [*files_of(options),
                                     *(f"{label}/{ADAPTER_FILE}" for label in classes)],
        check=lambda manifest: check_base_model(given, manifest, words),
        rule=HoldOut(options["validation_share"], options["patience"]),
        drop_copies=options["drop_copies"], device=device, overwrite=overwrite,
        dry_run=dry_run)
    if arm is None:
        return
    base = BaseModel(as_folder(given, arm.weights.output_dir.parent), arm.device)
    decoder = settings_of(options)
    if not arm.is_trained:
        train_adapters(arm, base, words, kind=adapter, rank=options["rank"],
                       target=options["target"], steps=options["train_steps"],
                       batch_size=options["batch_size"], learning_rate=options["learning_rate"],
                       decoder=decoder)
    draw_by_fitted(arm, base, decoder)

    def painter(label: str):
        return painter_of(label, arm, base, sampler=sampler)

    def draw_for(label: str):
        return drawing_of(label, arm, words, painter(label))

    how, told = choose(arm, ways, draw_for)

    def report(_: list[dict]) -> dict:
        return told | (ablate(arm, words, lambda label: partial(painter(label), **how))
                       if ablate_prompts else {})

    draw_dataset(arm, lambda label: partial(draw_for(label), **how), batch_size=16, report=report)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("prompt_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    hyperparameters = parser.add_argument_group("Hyperparameters (default: by preset)")
    add_generator_options(group, hyperparameters)
    add_adapter_options(group, hyperparameters)
    add_decoder_options(hyperparameters)
    add_choice_options(hyperparameters)
    group.add_argument("--ablate", action="store_true", dest="ablate_prompts",
                       help="draw some images of bare class names and without negative prompts "
                            "too, and say in ablation.csv how often a classifier of real images "
                            "knows the class of each kind")
    cli.add_common(parser, presets=PRESETS)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), ranks.together(run), argv)


if __name__ == "__main__":
    sys.exit(main())
