"""Stable Diffusion fine-tuning, shared by the prompt and context arms: base, adapters, pipelines.

Hu et al. 2021, arXiv:2106.09685 (LoRA); Liu et al. 2024, arXiv:2402.09353 (DoRA);
Zhang et al. 2023, arXiv:2302.05543 (ControlNet).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lungkit.generate.base_model import BaseModel
from lungkit.generate.items import Arm, publish_model
from lungkit.generate.single_file import PREDICTIONS
from lungkit.run import cli, faults, ranks
from lungkit.run.files import write_text
from lungkit.run.seeds import stream

if TYPE_CHECKING:
    from lungkit.learn.validation import Validation

ADAPTERS = ("lora", "dora")
ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # the name load_lora_weights looks for
CAPTION_DROPOUT = 0.1  # Rombach et al. 2022: a tenth of the captions is empty, for guidance
TARGET_MODULES = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    # convolutions and feed-forward layers too: a small base holds little of its look in attention
    "all": ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
            "conv1", "conv2", "conv_shortcut"],
}


def add_adapter_options(group, hyperparameters) -> None:
    """Add the options that the prompt and context arms spell alike to their two groups."""
    group.add_argument("--base-model", metavar="ID|DIR|FILE|embedded",
                       help="Stable Diffusion 1 or 2: a hub id, a folder in diffusers layout, one "
                            ".safetensors file, or the small embedded one (default: demo "
                            "embedded, full Stable Diffusion 1.5)")
    group.add_argument("--base-prediction", choices=PREDICTIONS,
                       help="what a .safetensors file was trained to predict, noise or velocity, "
                            "where it does not say so itself")
    group.add_argument("--adapter", choices=ADAPTERS, default="dora",
                       help="low-rank updates of the weights, or of their direction and length")
    group.add_argument("--prompts", type=Path, metavar="JSON",
                       help="prompt file (default: assets/prompts/lung_he.json; of CT "
                            "assets/prompts/lung_ct.json)")
    hyperparameters.add_argument("--rank", type=cli.positive_int, metavar="INT",
                                 help="adapter rank")
    hyperparameters.add_argument("--target", choices=sorted(TARGET_MODULES),
                                 help="layers the adapter changes")
    hyperparameters.add_argument("--train-steps", type=cli.positive_int, metavar="INT",
                                 help="optimiser steps of each class's adapter")
    hyperparameters.add_argument("--batch-size", type=cli.positive_int, metavar="IMAGES",
                                 help="training images of a step")
    hyperparameters.add_argument("--learning-rate", type=cli.positive_float, metavar="RATE",
                                 help="peak, adapters")


def denoise_with(unet, states, controlnet=None, control=None) -> Callable:
    """predict(noisy, timesteps) of a UNet under text `states`, guided by a ControlNet if given.

    control: float [B, 3, S, S] in 0..1.
    """
    def predict(noisy, timesteps):
        if controlnet is None:
            return unet(noisy, timesteps, encoder_hidden_states=states).sample
        down, middle = controlnet(noisy, timesteps, encoder_hidden_states=states,
                                  controlnet_cond=control, return_dict=False)
        return unet(noisy, timesteps, encoder_hidden_states=states,
                    down_block_additional_residuals=down,
                    mid_block_additional_residual=middle).sample
    return predict


def training_loss(base: BaseModel, latents, caption: Callable[[int, random.Random], str], *,
                  batch_size: int, places: list[int] | None = None,
                  classes: list[int] | None = None, controlnet=None,
                  maps: np.ndarray | None = None) -> Callable:
    """loss_at(step, generator) over `latents`, captioned by caption(image index, draw).

    places: of the images drawn from, None: all. classes: of each of all images, where there are
    several: every batch holds all of them alike.
    maps: structure maps uint8 [N, S, S, 3], needed with a ControlNet; turned with their images.
    """
    import torch

    from lungkit.data.orientations import orient
    from lungkit.generate.latents import denoising_loss, pick_images
    from lungkit.learn.device import autocast
    from lungkit.learn.shares import share_of

    places = torch.arange(len(latents)) if places is None else torch.tensor(places)
    numbered = None if classes is None else torch.tensor(classes)[places]
    controls = None if maps is None else torch.from_numpy(maps).permute(0, 3, 1, 2)

    def loss_at(step, generator):
        share = share_of(batch_size)
        if numbered is None:
            picks = places[torch.randint(len(places), (batch_size,), generator=generator)]
        else:
            picks = places[pick_images(numbered, batch_size, generator)]
        which = torch.randint(latents.symmetries, (batch_size,), generator=generator)
        batch = latents.draw(picks, which, generator) * base.vae.config.scaling_factor
        draw = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        captions = ["" if draw.random() < CAPTION_DROPOUT else caption(i, draw)
                    for i in picks.tolist()][share.own]
        control = None
        if controlnet is not None:
            control = torch.cat([orient(controls[i:i + 1], o, latents.symmetries) for i, o in
                                 zip(picks[share.own].tolist(), which[share.own].tolist(),
                                     strict=True)])
            control = control.to(base.device).float() / 255
        with autocast(base.device):
            predict = denoise_with(base.unet, base.encode(captions), controlnet, control)
            return denoising_loss(predict, base.schedule, batch.to(base.device), generator, share)
    return loss_at


def train_adapter(base: BaseModel, loss_at: Callable, *, kind: str, rank: int, target: str,
                  steps: int, learning_rate: float, seed: int, what: str, output_dir: Path,
                  checkpoint_path: Path, jsonl_path: Path,
                  validation: Validation | None = None) -> float:
    """Train one LoRA or DoRA adapter and save it for `load_lora_weights`; leave the base as it was.

    The adapter is removed again before return, and the base is proved untouched: an adapter left
    behind would be merged into the next class's. Raises Fault if it is not.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from lungkit.generate.adapted_layers import speed_up
    from lungkit.learn.loop import train

    before = base.fingerprint()
    torch.manual_seed(seed)
    # alpha = rank: the file format keeps no alpha, and loaders take rank for it
    base.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, use_dora=kind == "dora",
                                     init_lora_weights="gaussian",
                                     target_modules=TARGET_MODULES[target]), adapter_name="class")
    cast_training_params(base.unet)  # of the base's precision else: too coarse to add up steps
    speed_up(base.unet)
    loss = train([p for p in base.unet.parameters() if p.requires_grad], loss_at, what=what,
                 steps=steps, learning_rate=learning_rate, seed=seed, weight_decay=0.0,
                 ema_decay=0.99, checkpoint_path=checkpoint_path, jsonl_path=jsonl_path,
                 curve_path=output_dir / "loss.csv", validation=validation)
    # peft's own key names throughout: the loader drops the old attention names in a mixed file
    weights = get_peft_model_state_dict(base.unet, adapter_name="class")
    if ranks.is_first():
        StableDiffusionPipeline.save_lora_weights(output_dir, unet_lora_layers=weights,
                                                  safe_serialization=True)
    base.unet.unload_lora()
    if base.fingerprint() != before:
        raise faults.Fault(f"{what}: its training changed the base model, which later classes would"
                           " be drawn with: run the same command again, and report it if it recurs")
    return loss


def train_each_class(arm: Arm, base: BaseModel, loss_for: Callable[[str], Callable], *, kind: str,
                     rank: int, target: str, steps: int, learning_rate: float,
                     losses: dict[str, float] | None = None) -> None:
    """Train an adapter on each class in the `work_dir` of arm.weights, and publish the model.

    loss_for(label): gives loss_over(places), the loss_at of those of that class's images.
    losses: of what was trained before them.
    """
    work_dir, losses = arm.weights.work_dir, dict(losses or {})
    for label in arm.data.classes:
        loss_path = work_dir / label / "loss.txt"
        if not ranks.by_first(loss_path.exists):  # written after the adapter: it means trained
            loss_at, validation = arm.watched(loss_for(label), steps=steps, label=label)
            loss = train_adapter(base, loss_at, kind=kind, rank=rank, target=target,
                                 steps=steps, learning_rate=learning_rate, validation=validation,
                                 seed=stream(f"{arm.stage} {label}", arm.seed),
                                 what=f"{kind} {label}", output_dir=work_dir / label,
                                 checkpoint_path=work_dir / f"{label}.ckpt",
                                 jsonl_path=work_dir / "progress.jsonl")
            ranks.by_first(partial(write_text, loss_path, repr(loss)))
        losses[label] = ranks.by_first(lambda path=loss_path: float(path.read_text()))
        ranks.check_stop()
    publish_model(arm, losses, base.folder)
