"""The networks of an embedded base model, how its UNet is trained, how parts are saved and made.

In Stable Diffusion's classes at a fiftieth of its size, so that the folder is loaded by the same
from_pretrained as any other.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from lungkit.learn.device import use_device
from lungkit.run.output import Output
from lungkit.run.progress import say
from lungkit.run.provenance import provenance

IMAGE_SIZE = 64
BLOCKS = (48, 96, 128)   # ours: the widest UNet whose folder stays under 16 MB in half precision
TEXT_WIDTH = 96
MODEL_INDEX = {  # what makes the folder a Stable Diffusion in diffusers layout
    "_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"],
    "unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "safety_checker": [None, None], "feature_extractor": [None, None],
    "image_encoder": [None, None], "requires_safety_checker": False}


def build_models(tokenizer, *, channels: int = 3) -> dict:
    """The untrained parts for images of `channels`."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    # 4 groups on the first block's 16 channels: one group a channel would be instance
    # normalisation, which erases the stain's colour
    vae = AutoencoderKL(
        in_channels=channels, out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=4,
        norm_num_groups=4, sample_size=IMAGE_SIZE, mid_block_add_attention=False)
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77,
        projection_dim=TEXT_WIDTH, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    unet = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 4, in_channels=4, out_channels=4, block_out_channels=BLOCKS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1, cross_attention_dim=TEXT_WIDTH, attention_head_dim=8,
        norm_num_groups=16)
    return {"vae": vae, "text_encoder": text_encoder, "unet": unet}


def precise(device, precision: str):
    """The context of a forward pass in "fp32", or in "bf16" where a product may be rounded so."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def captioned_batches(latents, scale: float, tokenizer, caption: Callable,
                      batch_size: int) -> Callable:
    """batch_at(generator): indices and orientations [B], scaled latents [B, C, h, w], tokens.

    caption(index, draw): the text of an image, drawn anew each time.
    """
    import torch

    def batch_at(generator):
        indices = torch.randint(len(latents), (batch_size,), generator=generator)
        orientations = torch.randint(latents.symmetries, (batch_size,), generator=generator)
        scaled = latents.draw(indices, orientations, generator) * scale
        draw = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        captions = [caption(i, draw) for i in indices.tolist()]
        tokens = tokenizer(captions, padding="max_length", max_length=77, truncation=True,
                           return_tensors="pt").input_ids
        return indices, orientations, scaled, tokens
    return batch_at


def train_unet(unet, text_encoder, schedule, batch_at: Callable, *, steps: int, seed: int,
               work_dir: Path, precision: str = "fp32") -> float:
    """Train the UNet with the text encoder that it hears; return the final loss.

    batch_at: of `captioned_batches`.
    """
    from lungkit.generate.adapters import denoise_with
    from lungkit.generate.latents import denoising_loss
    from lungkit.learn.loop import train

    device = unet.device

    def loss_at(step, generator):
        _, _, scaled, tokens = batch_at(generator)
        with precise(device, precision):
            states = text_encoder(tokens.to(device))[0]
            return denoising_loss(denoise_with(unet, states), schedule, scaled.to(device),
                                  generator)

    return train([*unet.parameters(), *text_encoder.parameters()], loss_at,
                 what="base UNet and text encoder", steps=steps, seed=seed, learning_rate=6e-4,
                 ema_decay=0.9995, checkpoint_path=work_dir / "unet.ckpt",
                 jsonl_path=work_dir / "progress.jsonl")


def save(model, directory: Path) -> None:
    """Save in half precision, in the library's own format."""
    import copy

    shutil.rmtree(directory, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(directory, safe_serialization=True)


def make(name: str, output: Path, options: dict, pretrain: Callable, drawn: tuple[str, ...], *,
         device: str, overwrite: bool, dry_run: bool) -> None:
    """Pretrain what is called `name` and publish it in `output`, <name>.json last, or resume.

    options: what decides it. pretrain(folder, device): trains in a folder, saves the parts there
    and returns their final losses. drawn: patterns of files there that only the making needs.
    """
    target = Output(output, f"{name}.json", options, overwrite=overwrite)
    if target.is_complete():
        say(f"{name}: {output} is already complete")
        return
    place = use_device(device, needed=not dry_run)
    if dry_run:
        say(f"{name}: would pretrain with {options}")
        return
    with target.writing() as work_dir:
        losses = pretrain(work_dir, place)
        for pattern in (*drawn, "*.ckpt", "progress.jsonl"):
            for part in work_dir.glob(pattern):
                part.unlink()
        target.publish({"schema": f"lungkit.{name}/1", "losses": losses, **provenance()})
    print(f"{output}: {name.replace('_', ' ')}, final losses {losses}")
