#!/usr/bin/env python3
"""Generate the dataset "diffusion": one class-conditional latent diffusion model, from scratch.

A KL autoencoder compresses the images; a UNet that starts from random weights learns to denoise
their latents given the class, in batches that hold all classes alike; new latents are sampled with
classifier-free guidance and decoded.

Reads:  REAL (a dataset of tumor_seg.py or ct_seg.py), its train split only, a tenth of it, by
        group, to choose the weights by, and where asked guidance and steps.
Writes: OUTPUT, a dataset with counts like REAL (--pool K: K times the training images);
        MODEL/{vae,unet,scheduler}, each opened by diffusers' from_pretrained; loss.csv in what was
        trained; with --choose-guidance or --choose-steps OUTPUT/choice.json.

Rombach et al. 2022, arXiv:2112.10752 (latent diffusion); Ho & Salimans 2022, arXiv:2207.12598
(guidance); Hang et al. 2023, arXiv:2303.09556 (min-SNR weighting); Lin et al. 2023,
arXiv:2305.08891 (zero terminal SNR); Lu et al. 2022, arXiv:2211.01095 (DPM-Solver++).

Running the same command again resumes, or reports what is already complete.
Exit status: 0 complete, 1 bad data or failed run, 2 bad options, 75 stopped and resumable.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lungkit.data.manifest import read_manifest
from lungkit.generate.autoencoder import (
    add_decoder_options,
    fit_decoder,
    settings_of,
    train_autoencoder,
    unwatched,
)
from lungkit.generate.base_model import embedded
from lungkit.generate.held_out import HoldOut
from lungkit.generate.items import (
    Arm,
    add_generator_options,
    check_divisible,
    draw_dataset,
    folder_fingerprint,
    open_arm,
    publish_model,
)
from lungkit.generate.model_files import DIFFUSERS, Part, check_shapes, open_part
from lungkit.generate.sampling_choice import add_choice_options, choose, ways_of
from lungkit.run import cli, faults, ranks
from lungkit.run.files import write_text

# widths, steps and rates are ours, chosen on simulated tissue; min-SNR gamma 5 is Hang et al.'s
PRESETS = {
    "demo": {"autoencoder": "base", "autoencoder_steps": 600, "autoencoder_batch_size": 16,
             "decoder_steps": 200, "decoder_batch_size": 16,
             "widths": [64, 96, 128], "train_steps": 800, "batch_size": 16, "learning_rate": 6e-4,
             "sampling_steps": 15, "guidance_scale": 1.5},
    "full": {"autoencoder": "train", "autoencoder_steps": 20000,
             "autoencoder_batch_size": 8, "decoder_steps": 1000, "decoder_batch_size": 8,
             "widths": [128, 256, 384],
             "train_steps": 60000, "batch_size": 64, "learning_rate": 2e-4,
             "sampling_steps": 25, "guidance_scale": 2.0},
}
BATCHES = "class-balanced"  # of the UNet; what was trained by others is not gone on with
EMA_DECAY = 0.9995
CLASS_DROPOUT = 0.1  # Ho & Salimans 2022, table 1: 0.1 or 0.2 are best


# ------------------------------------------------------------------ autoencoder

def build_autoencoder(preset: str, image_size: int, channels: int = 3):
    """An untrained KL autoencoder: 4-fold at demo size, 8-fold (as Stable Diffusion's) at full."""
    from diffusers import AutoencoderKL

    widths, groups = ((16, 32, 64), 4) if preset == "demo" else ((128, 256, 512, 512), 32)
    return AutoencoderKL(in_channels=channels, out_channels=channels,
                         down_block_types=("DownEncoderBlock2D",) * len(widths),
                         up_block_types=("UpDecoderBlock2D",) * len(widths),
                         block_out_channels=widths, layers_per_block=1, latent_channels=4,
                         norm_num_groups=groups, sample_size=image_size,
                         mid_block_add_attention=preset != "demo")


# ------------------------------------------------------------------ denoiser

def build_unet(latent_size: int, latent_channels: int, widths: list[int], num_classes: int):
    """A class-conditional UNet with random weights; class `num_classes` means no class."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=latent_size, in_channels=latent_channels, out_channels=latent_channels,
        block_out_channels=tuple(widths), layers_per_block=1,
        down_block_types=("DownBlock2D", *("AttnDownBlock2D",) * (len(widths) - 1)),
        up_block_types=(*("AttnUpBlock2D",) * (len(widths) - 1), "UpBlock2D"),
        attention_head_dim=32, norm_num_groups=16, num_class_embeds=num_classes + 1)


def train_unet(unet, autoencoder, schedule, images, labels, *, num_classes: int, steps: int,
               batch_size: int, learning_rate: float, seed: int, work_dir: Path, device,
               symmetries: int = 8, watched: Callable | None = None) -> float:
    """Train on uint8 images [N, S, S, C] and int64 labels [N]; return the final loss.

    watched: as `Arm.watched`; None: all images are learnt from.
    """
    import torch

    from lungkit.generate.latents import Latents, denoising_loss, pick_images
    from lungkit.learn.device import autocast
    from lungkit.learn.loop import train
    from lungkit.learn.shares import share_of

    latents = Latents(autoencoder, images, symmetries=symmetries)
    scale = 1 / latents.deviation()
    autoencoder.register_to_config(scaling_factor=scale)
    labels = torch.from_numpy(labels)

    def loss_over(places):
        places = torch.tensor(places)

        def loss_at(step, generator):
            picks = places[pick_images(labels[places], batch_size, generator)]
            which = torch.randint(symmetries, (batch_size,), generator=generator)
            batch = (latents.draw(picks, which, generator) * scale).to(device)
            dropped = torch.rand(batch_size, generator=generator) < CLASS_DROPOUT
            share = share_of(batch_size)
            classes = torch.where(dropped, num_classes, labels[picks])[share.own].to(device)
            with autocast(device, on_cpu=True):
                return denoising_loss(
                    lambda noisy, t: unet(noisy, t, class_labels=classes).sample, schedule, batch,
                    generator, share)
        return loss_at

    loss_at, validation = (watched or unwatched(images))(loss_over, steps=steps)
    return train(unet.parameters(), loss_at, what="diffusion UNet", steps=steps, seed=seed + 1,
                 learning_rate=learning_rate, ema_decay=EMA_DECAY,
                 checkpoint_path=work_dir / "unet.ckpt", jsonl_path=work_dir / "progress.jsonl",
                 curve_path=work_dir / "unet" / "loss.csv", validation=validation)


def sample_images(unet, autoencoder, schedule, items, *, classes: list[str], sampler_name: str,
                  steps: int, guidance_scale: float, seed: int, device):
    """Draw one image an item: uint8 [B, S, S, C]. Guided denoising of latents, never clipped."""
    import torch

    from lungkit.generate.latents import sampler, to_pixels
    from lungkit.learn.device import autocast
    from lungkit.run.seeds import generator_for

    solver = sampler(sampler_name, schedule.config)
    solver.set_timesteps(steps, device=device)
    size, channels = unet.config.sample_size, unet.config.in_channels
    noise = [torch.randn((channels, size, size), generator=generator_for(seed, item.index))
             for item in items]
    latents = torch.stack(noise).to(device) * solver.init_noise_sigma
    wanted = torch.tensor([classes.index(item.label) for item in items], device=device)
    none = torch.full_like(wanted, len(classes))
    with torch.no_grad(), autocast(device, on_cpu=True):
        for t in solver.timesteps:
            inputs = solver.scale_model_input(latents, t)
            if guidance_scale == 1:
                predicted = unet(inputs, t, class_labels=wanted).sample
            else:
                given, free = unet(inputs.repeat(2, 1, 1, 1), t,
                                   class_labels=torch.cat([wanted, none])).sample.chunk(2)
                predicted = free + guidance_scale * (given - free)
            latents = solver.step(predicted.float(), t, latents).prev_sample
        return to_pixels(autoencoder.decode(latents / autoencoder.config.scaling_factor).sample)


# ------------------------------------------------------------------ the stage

def train_model(arm: Arm, *, autoencoder: str, preset: str, widths: list[int], train_steps: int,
                autoencoder_steps: int, autoencoder_batch_size: int, batch_size: int,
                learning_rate: float, decoder: dict[str, int]) -> None:
    """Train on real/train and publish MODEL/{vae,unet,scheduler}."""
    import torch
    from diffusers import AutoencoderKL

    from lungkit.generate.latents import training_schedule

    images, labels = arm.data.load("train")
    num_classes, seed, device = len(arm.data.classes), arm.draws, arm.device
    with arm.weights.writing() as work_dir:
        how = {"work_dir": work_dir, "device": device, "symmetries": arm.data.symmetries,
               "watched": arm.watched}
        torch.manual_seed(seed)
        losses = {}  # images are drawn from (seed, item), the UNet is trained from (seed + 1, step)
        if autoencoder == "train":
            vae = build_autoencoder(preset, arm.data.image_size, arm.data.channels).to(device)
            with faults.cured_by("lower --autoencoder-batch-size"):
                losses["autoencoder"] = train_autoencoder(
                    vae, images, steps=autoencoder_steps, batch_size=autoencoder_batch_size,
                    seed=seed + 2, **how)
        else:
            part = find_autoencoder(autoencoder, arm.data.manifest)
            vae = AutoencoderKL.from_pretrained(part.folder, variant=part.variant,
                                                use_safetensors=True, torch_dtype=torch.float32)
        vae.to(device).eval().requires_grad_(False)
        losses |= fit_decoder(arm, vae, **decoder)
        torch.manual_seed(seed + 1)
        latent_size = arm.data.image_size // 2 ** (len(vae.config.block_out_channels) - 1)
        unet = build_unet(latent_size, vae.config.latent_channels, widths, num_classes)
        unet.to(device)
        schedule = training_schedule()
        losses["unet"] = train_unet(
            unet, vae, schedule, images, labels, num_classes=num_classes, steps=train_steps,
            batch_size=batch_size, learning_rate=learning_rate, seed=seed, **how)
        parts = {"unet": unet, "scheduler": schedule}
        if decoder:  # a fitted vae is there, but for the factor of its latents
            ranks.by_first(partial(write_text, work_dir / "vae/config.json", vae.to_json_string()))
        else:
            parts["vae"] = vae
        for name, part in parts.items():
            ranks.by_first(partial(part.save_pretrained, work_dir / name))
        publish_model(arm, losses)


def drawing(arm: Arm, *, sampler_name: str):
    """draw(items, steps=, guidance_scale=) of the trained model, whatever their class."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DModel

    folder = arm.weights.output_dir
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(arm.device).eval()
    unet = UNet2DModel.from_pretrained(folder / "unet").to(arm.device).eval()
    schedule = DDPMScheduler.from_pretrained(folder / "scheduler")

    def draw(items, *, steps: int, guidance_scale: float):
        images = sample_images(unet, vae, schedule, items, classes=arm.data.classes,
                               sampler_name=sampler_name, steps=steps, seed=arm.draws,
                               device=arm.device, guidance_scale=guidance_scale)
        return images, [{"seed": f"{arm.draws}:{item.index}", "source": "diffusion"}
                        for item in items]
    return draw


def find_autoencoder(autoencoder: str, manifest: dict) -> Part:
    """What --autoencoder means: the embedded base's, or a local diffusers AutoencoderKL.

    manifest: of real. Raises BadOptions if it is not there, not whole or of other images.
    """
    path = embedded(manifest) / "vae" if autoencoder == "base" else Path(autoencoder)
    if not (path / "config.json").exists() and (path / "vae" / "config.json").exists():
        path = path / "vae"
    if not (path / "config.json").exists():
        raise faults.BadOptions(f"--autoencoder {autoencoder}: {path} holds no AutoencoderKL in "
                             "diffusers layout (config.json); give its folder, base, or train")
    try:
        part = open_part(path, "AutoencoderKL")
    except faults.Fault as fault:
        raise faults.BadOptions(f"--autoencoder {autoencoder}: {fault}") from None
    takes, gives = part.config.get("in_channels", 3), part.config.get("out_channels", 3)
    if takes != gives or takes not in (3, manifest["channels"]):
        wanted = "3" if manifest["channels"] == 3 else "3 or 1"
        raise faults.BadOptions(f"--autoencoder {autoencoder}: takes images of {takes} channels "
                                f"and gives {gives}, not {wanted}; give another")
    return part


def check_sizes(manifest: dict, autoencoder: str, preset: str, widths: list[int]) -> None:
    """Raise BadOptions unless real's images can be halved as often as autoencoder and UNet do.

    Raises it also where the autoencoder's weights are not those of its config.
    """
    if any(width % 32 for width in widths):
        raise faults.BadOptions(f"--widths {' '.join(map(str, widths))}: expected multiples of 32")
    halvings = 2 if preset == "demo" else 3
    if autoencoder != "train":
        from diffusers import AutoencoderKL

        part = find_autoencoder(autoencoder, manifest)
        try:
            check_shapes(part, lambda: AutoencoderKL.from_config(part.config))
        except faults.Fault as fault:
            raise faults.BadOptions(f"--autoencoder {autoencoder}: {fault}") from None
        halvings = len(part.config["block_out_channels"]) - 1
    check_divisible(manifest["image_size"], 2 ** (halvings + len(widths) - 1))


def run(*, real: Path, output: Path, model: Path | None, preset: str, sampler: str,
        pool: int, seed: int, device: str, overwrite: bool, dry_run: bool,
        **options: object) -> None:
    """Train the model unless it is there, draw the dataset, publish both."""
    manifest = read_manifest(real)
    options = cli.fill_preset({"preset": preset, **options}, PRESETS)
    autoencoder = options["autoencoder"]
    widths = options["widths"] = [int(width) for width in options["widths"]]
    training = {key: options[key] for key in (
        "widths", "train_steps", "batch_size", "learning_rate")}
    of_autoencoder = {key: options[key] for key in ("autoencoder_steps", "autoencoder_batch_size")}
    ways = ways_of(options)
    trained_here = autoencoder == "train"
    decoder = {} if trained_here else settings_of(options)
    arm = open_arm(
        "diffusion_seg", real=real, output=output, model=model, seed=seed, parts="model",
        training={**training, **(of_autoencoder if trained_here else decoder), "preset": preset,
                  "batches": BATCHES,
                  "autoencoder": "train" if trained_here
                  else folder_fingerprint(find_autoencoder(autoencoder, manifest).folder)},
        sampling={"sampler": sampler, "pool": pool, **ways.as_setting()},
        model_files=lambda classes: [f"{part}/{name}" for part in ("vae", "unet") for name in (
            "config.json", f"{DIFFUSERS}.safetensors")] + ["scheduler/scheduler_config.json"],
        check=lambda manifest: check_sizes(manifest, autoencoder, preset, widths),
        rule=HoldOut(options["validation_share"], options["patience"]),
        drop_copies=options["drop_copies"], device=device, overwrite=overwrite,
        dry_run=dry_run)
    if arm is None:
        return
    if not arm.is_trained:
        train_model(arm, autoencoder=autoencoder, preset=preset, decoder=decoder, **training,
                    **of_autoencoder)
    draw = drawing(arm, sampler_name=sampler)
    how, told = choose(arm, ways, lambda label: draw)
    draw_dataset(arm, lambda label: partial(draw, **how), batch_size=32, report=lambda _: told)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.stage_parser("diffusion_seg.py", __doc__)
    group = parser.add_argument_group("Main")
    hyperparameters = parser.add_argument_group("Hyperparameters (default: by preset)")
    add_generator_options(group, hyperparameters)
    group.add_argument("--autoencoder", metavar="base|train|DIR",
                       help="that of the embedded base model of REAL's modality, one trained here "
                            "on REAL's train split, or a folder in diffusers layout (default: demo "
                            "base, full train)")
    hyperparameters.add_argument("--widths", nargs="+", type=cli.positive_int, metavar="INT",
                                 help="UNet channels, finest level first, multiples of 32")
    hyperparameters.add_argument("--train-steps", type=cli.positive_int, metavar="INT",
                                 help="optimiser steps")
    hyperparameters.add_argument("--autoencoder-steps", type=cli.positive_int, metavar="INT",
                                 help="optimiser steps of --autoencoder train")
    hyperparameters.add_argument("--autoencoder-batch-size", type=cli.positive_int,
                                 metavar="IMAGES", help="images of a step of the autoencoder")
    hyperparameters.add_argument("--batch-size", type=cli.positive_int, metavar="IMAGES",
                                 help="images of a step of the diffusion model")
    hyperparameters.add_argument("--learning-rate", type=cli.positive_float, metavar="RATE",
                                 help="peak")
    add_decoder_options(hyperparameters)
    add_choice_options(hyperparameters)
    cli.add_common(parser, presets=PRESETS)
    return parser


def main(argv: list[str] | None = None) -> int:
    return cli.main(build_parser(), ranks.together(run), argv)


if __name__ == "__main__":
    sys.exit(main())
