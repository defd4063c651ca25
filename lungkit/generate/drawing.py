"""Draw with diffusers' own pipelines, with or without a ControlNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lungkit.generate.base_model import BaseModel


def pipeline(base: BaseModel, sampler_name: str, *, adapter_dir: Path | None = None,
             controlnet=None):
    """The standard diffusers pipeline over `base`, with or without a ControlNet.

    With an adapter the UNet is another with the adapter fused in, before its weights are rounded:
    drawing costs no more than with the base alone, and no adapter is ever on the base or beside
    another.
    """
    from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline

    from lungkit.generate.latents import sampler
    from lungkit.learn.device import freeze

    unet = base.unet if adapter_dir is None else base.load_unet()
    parts = {"vae": base.vae, "text_encoder": base.text_encoder, "tokenizer": base.tokenizer,
             "unet": unet, "scheduler": sampler(sampler_name, base.schedule.config),
             "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = StableDiffusionPipeline(**parts) if controlnet is None \
        else StableDiffusionControlNetPipeline(controlnet=controlnet, **parts)
    pipe.set_progress_bar_config(disable=True)
    if adapter_dir is not None:
        pipe.load_lora_weights(adapter_dir, adapter_name="class")
        pipe.fuse_lora(components=["unet"])
        pipe.unload_lora_weights()
        freeze(unet, base.device)
    return pipe


def draw_images(pipe, prompts: list[str], negatives: list[str], indices: list[int], *, seed: int,
                image_size: int, steps: int, guidance_scale: float, maps: np.ndarray | None = None,
                control_scale: float = 1.0) -> np.ndarray:
    """Draw one image a prompt: uint8 [B, S, S, C]; image i starts from noise of (seed, index_i).

    maps: structure maps uint8 [B, S, S, 3] for a ControlNet pipeline.
    """
    import torch

    from lungkit.learn.device import autocast
    from lungkit.run.seeds import generator_for

    more = {}
    if maps is not None:
        control = torch.from_numpy(maps).permute(0, 3, 1, 2).float() / 255
        more = {"image": control.to(pipe.unet.device),
                "controlnet_conditioning_scale": control_scale}
    elif pipe.scheduler.config.get("rescale_betas_zero_snr"):
        more = {"guidance_rescale": 0.7}  # Lin et al. 2023, section 3.4
    with torch.no_grad(), autocast(torch.device(pipe.unet.device), on_cpu=True):
        images = pipe(prompt=prompts, negative_prompt=negatives, height=image_size,
                      width=image_size, num_inference_steps=steps,
                      guidance_scale=guidance_scale, output_type="np",
                      generator=[generator_for(seed, index) for index in indices], **more).images
    return (np.clip(images, 0, 1) * 255).round().astype(np.uint8)
