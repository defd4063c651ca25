"""Stable Diffusion fine-tuning, shared by the prompt and context arms: base, adapters, pipelines.

Hu et al. 2021, arXiv:2106.09685 (LoRA); Liu et al. 2024, arXiv:2402.09353 (DoRA);
Zhang et al. 2023, arXiv:2302.05543 (ControlNet).
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lungkit.run import cli
from lungkit.tools.pretrain_base_model import BASE_MODEL_DIR
from lungkit.run.files import read_json
from lungkit.generate.items import check_divisible
from lungkit.generate.prompts import PROMPTS_PATH

STABLE_DIFFUSION_15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
ADAPTERS = ("lora", "dora")
ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # the name load_lora_weights looks for
CAPTION_DROPOUT = 0.1  # Rombach et al. 2022: a tenth of the captions is empty, for guidance
MOST_CAPTIONS = 4096  # kept encoded: 1 GB at Stable Diffusion 1.5's size
TARGET_MODULES = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    # convolutions and feed-forward layers too: a small base holds little of its look in attention
    "all": ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
            "conv1", "conv2", "conv_shortcut"],
}


def add_adapter_options(group, hyperparameters) -> None:
    """Add the options that the prompt and context arms spell alike to their two groups."""
    group.add_argument("--base-model", metavar="ID|DIR|embedded",
                       help="Stable Diffusion: a hub id, a folder in diffusers layout, or the "
                            "small embedded one (default: demo embedded, full Stable "
                            "Diffusion 1.5)")
    group.add_argument("--adapter", choices=ADAPTERS, default="dora")
    group.add_argument("--prompts", type=Path, default=PROMPTS_PATH, metavar="JSON",
                       help="prompt file (default: assets/prompts/lung_he.json)")
    hyperparameters.add_argument("--rank", type=cli.positive_int, metavar="INT",
                                 help="adapter rank")
    hyperparameters.add_argument("--target", choices=sorted(TARGET_MODULES),
                                 help="layers the adapter changes")
    hyperparameters.add_argument("--train-steps", type=cli.positive_int, metavar="INT",
                                 help="optimiser steps of each class's adapter")
    hyperparameters.add_argument("--batch-size", type=cli.positive_int, metavar="IMAGES")
    hyperparameters.add_argument("--learning-rate", type=cli.positive_float, metavar="RATE",
                                 help="peak, adapters")


def resolve_base_model(base_model: str) -> Path:
    """The local folder of a base model: "embedded", a folder, or a hub id.

    Raises BadOptions when the folder is no Stable Diffusion in diffusers layout, or the hub id
    is neither cached nor reachable.
    """
    if base_model == "embedded":
        return BASE_MODEL_DIR
    folder = Path(base_model)
    is_hub_id = base_model.count("/") == 1 and not base_model.startswith((".", "/", "~"))
    if is_hub_id and not folder.exists():
        folder = _from_hub(base_model)
    if not (folder / "model_index.json").is_file():
        raise cli.BadOptions(f"--base-model {base_model}: no Stable Diffusion in diffusers layout "
                             "there (model_index.json is missing); give such a folder or a hub id")
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
               if not (folder / part).is_dir()]
    if missing:
        raise cli.BadOptions(f"--base-model {base_model}: {', '.join(missing)} missing in {folder}")
    return folder


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*/*.json", "*/*.txt", "*.safetensors", "*/*.safetensors"]
    unwanted = ["safety_checker/*", "*.fp16.safetensors", "*non_ema*", "v1-5-*"]
    for cached in (True, False):
        try:
            return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=unwanted,
                                          local_files_only=cached))
        except Exception as error:  # every kind of absence: offline, unknown, gated, no cache
            reason = type(error).__name__
            if os.environ.get("HF_HUB_OFFLINE") == "1":
                break
    raise cli.BadOptions(
        f"--base-model {name} is not a folder, not in the model cache, and not reachable "
        f"({reason}): on a node with network run `hf download {name}` first, "
        "or give a local folder") from None


def check_image_size(folder: Path, image_size: int) -> None:
    """Raise BadOptions unless images of `image_size` px fit the base model's halvings."""
    parts = [read_json(folder / part / "config.json") for part in ("vae", "unet")]
    check_divisible(image_size, 2 ** sum(len(part["block_out_channels"]) - 1 for part in parts))


def require_files(model_dir: Path, *names: str) -> None:
    """Raise Fault unless a finished model still has the files `names`."""
    missing = [name for name in names if not (model_dir / name).is_file()]
    if missing:
        raise cli.Fault(f"{model_dir} was complete and has no {', '.join(missing)} now: restore "
                        "what is missing, or move the folder away to train it again")


def quiet() -> None:
    """Keep the libraries' own progress bars and notes out of the log; their errors stay."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


class BaseModel:
    """A frozen Stable Diffusion: tokenizer, text encoder, autoencoder, UNet, noise schedule."""

    def __init__(self, folder: Path, device) -> None:
        import torch
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        self.folder, self.device = folder, device
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        quiet()
        self.vae = AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True)
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True)
        self.text_encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=torch.float32, use_safetensors=True)
        self.schedule = DDPMScheduler.from_pretrained(folder / "scheduler")
        for part in (self.vae, self.unet, self.text_encoder):
            part.to(device).requires_grad_(False).eval()
        self._states: dict[str, torch.Tensor] = {}

    def encode(self, captions: list[str]):
        """Text states of each caption, float32 [B, L, D]; recent captions are kept."""
        import torch

        if len(self._states) > MOST_CAPTIONS:
            self._states.clear()
        new = sorted({caption for caption in captions} - set(self._states))
        if new:
            tokens = self.tokenizer(new, padding="max_length", truncation=True, return_tensors="pt",
                                    max_length=self.tokenizer.model_max_length).input_ids
            with torch.no_grad():
                states = self.text_encoder(tokens.to(self.device))[0]
            self._states.update(zip(new, states, strict=True))
        return torch.stack([self._states[caption] for caption in captions])

    def fingerprint(self) -> tuple:
        """Names and sums of the UNet's weights: equal before and after means untouched."""
        return tuple((name, float(weight.double().sum()))
                     for name, weight in self.unet.state_dict().items())


def denoise_with(base: BaseModel, states, controlnet=None, control=None) -> Callable:
    """predict(noisy, timesteps) of the UNet under text `states`, guided by a ControlNet if given.

    control: float [B, 3, S, S] in 0..1.
    """
    def predict(noisy, timesteps):
        if controlnet is None:
            return base.unet(noisy, timesteps, encoder_hidden_states=states).sample
        down, middle = controlnet(noisy, timesteps, encoder_hidden_states=states,
                                  controlnet_cond=control, return_dict=False)
        return base.unet(noisy, timesteps, encoder_hidden_states=states,
                         down_block_additional_residuals=down,
                         mid_block_additional_residual=middle).sample
    return predict


def training_loss(base: BaseModel, latents, caption: Callable[[int, random.Random], str], *,
                  batch_size: int, controlnet=None, maps: np.ndarray | None = None) -> Callable:
    """loss_at(step, generator) over `latents`, captioned by caption(image index, draw).

    maps: structure maps uint8 [N, S, S, 3], needed with a ControlNet; turned with their images.
    """
    import torch

    from lungkit.generate.latents import NUM_ORIENTATIONS, autocast, denoising_loss, orient

    controls = None if maps is None else torch.from_numpy(maps).permute(0, 3, 1, 2)

    def loss_at(step, generator):
        picks = torch.randint(len(latents), (batch_size,), generator=generator)
        which = torch.randint(NUM_ORIENTATIONS, (batch_size,), generator=generator)
        batch = latents.draw(picks, which, generator) * base.vae.config.scaling_factor
        draw = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        captions = ["" if draw.random() < CAPTION_DROPOUT else caption(i, draw)
                    for i in picks.tolist()]
        control = None
        if controlnet is not None:
            control = torch.cat([orient(controls[i:i + 1], o) for i, o in
                                 zip(picks.tolist(), which.tolist(), strict=True)])
            control = control.to(base.device).float() / 255
        with autocast(base.device):
            predict = denoise_with(base, base.encode(captions), controlnet, control)
            return denoising_loss(predict, base.schedule, batch.to(base.device), generator)
    return loss_at


def train_adapter(base: BaseModel, loss_at: Callable, *, kind: str, rank: int, target: str,
                  steps: int, learning_rate: float, seed: int, what: str, output_dir: Path,
                  checkpoint_path: Path, jsonl_path: Path) -> float:
    """Train one LoRA or DoRA adapter and save it for `load_lora_weights`; leave the base as it was.

    The adapter is removed again before return, and the base is proved untouched: an adapter left
    behind would be merged into the next class's.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from lungkit.learn.loop import train

    before = base.fingerprint()
    torch.manual_seed(seed)
    # alpha = rank: the file format keeps no alpha, and loaders take rank for it
    base.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, use_dora=kind == "dora",
                                     init_lora_weights="gaussian",
                                     target_modules=TARGET_MODULES[target]), adapter_name="class")
    loss = train([p for p in base.unet.parameters() if p.requires_grad], loss_at, what=what,
                 steps=steps, learning_rate=learning_rate, seed=seed, weight_decay=0.0,
                 ema_decay=0.99, checkpoint_path=checkpoint_path, jsonl_path=jsonl_path)
    # peft's own key names throughout: the loader drops the old attention names in a mixed file
    weights = get_peft_model_state_dict(base.unet, adapter_name="class")
    StableDiffusionPipeline.save_lora_weights(output_dir, unet_lora_layers=weights,
                                              safe_serialization=True)
    base.unet.unload_lora()
    assert base.fingerprint() == before, "the adapter left traces in the base model"
    return loss


def pipeline(base: BaseModel, sampler_name: str, *, adapter_dir: Path | None = None,
             controlnet=None):
    """The standard diffusers pipeline over `base`, with or without a ControlNet.

    With an adapter the UNet is a copy with the adapter fused in: drawing costs no more than with
    the base alone, and no adapter is ever on the base or beside another.
    """
    from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline

    from lungkit.generate.latents import sampler

    unet = base.unet if adapter_dir is None else copy.deepcopy(base.unet)
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
    return pipe


def draw_images(pipe, prompts: list[str], negatives: list[str], indices: list[int], *, seed: int,
                image_size: int, steps: int, guidance_scale: float, maps: np.ndarray | None = None,
                control_scale: float = 1.0) -> np.ndarray:
    """Draw one image a prompt: uint8 [B, S, S, 3]; image i starts from noise of (seed, index_i).

    maps: structure maps uint8 [B, S, S, 3] for a ControlNet pipeline.
    """
    import torch

    from lungkit.generate.latents import autocast
    from lungkit.learn.loop import generator_for

    more = {}
    if maps is not None:
        control = torch.from_numpy(maps).permute(0, 3, 1, 2).float() / 255
        more = {"image": control.to(pipe.unet.device),
                "controlnet_conditioning_scale": control_scale}
    elif pipe.scheduler.config.get("rescale_betas_zero_snr"):
        more = {"guidance_rescale": 0.7}  # Lin et al. 2023, section 3.4
    with torch.no_grad(), autocast(torch.device(pipe.unet.device)):
        images = pipe(prompt=prompts, negative_prompt=negatives, height=image_size,
                      width=image_size, num_inference_steps=steps,
                      guidance_scale=guidance_scale, output_type="np",
                      generator=[generator_for(seed, index) for index in indices], **more).images
    return (np.clip(images, 0, 1) * 255).round().astype(np.uint8)
