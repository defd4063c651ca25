"""The frozen Stable Diffusion under every adapter: found, checked, loaded, its captions encoded."""

from __future__ import annotations

import os
from pathlib import Path

from lungkit.generate.items import check_divisible
from lungkit.generate.prompts import Prompts
from lungkit.run import faults
from lungkit.run.files import read_json

STABLE_DIFFUSION_15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MOST_CAPTIONS = 4096  # kept encoded: 1 GB at Stable Diffusion 1.5's size


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
        folder = from_hub(base_model)
    if not (folder / "model_index.json").is_file():
        raise faults.BadOptions(f"--base-model {base_model}: no Stable Diffusion in diffusers "
                                "layout there (model_index.json is missing); give such a folder "
                                "or a hub id")
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
               if not (folder / part).is_dir()]
    if missing:
        raise faults.BadOptions(f"--base-model {base_model}: {', '.join(missing)} missing "
                                f"in {folder}")
    return folder


def from_hub(name: str) -> Path:
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
    raise faults.BadOptions(
        f"--base-model {name} is not a folder, not in the model cache, and not reachable "
        f"({reason}): on a node with network run `hf download {name}` first, "
        "or give a local folder") from None


def check_image_size(folder: Path, image_size: int) -> None:
    """Raise BadOptions unless images of `image_size` px fit the base model's halvings."""
    parts = [read_json(folder / part / "config.json") for part in ("vae", "unet")]
    check_divisible(image_size, 2 ** sum(len(part["block_out_channels"]) - 1 for part in parts))


def check_base_model(folder: Path, manifest: dict, words: Prompts, *,
                     context: bool = False) -> None:
    """Raise BadOptions or Fault unless the base fits the images of `manifest` and all captions."""
    from lungkit.generate.latents import PREDICTIONS

    check_image_size(folder, manifest["image_size"])
    prediction = read_json(folder / "scheduler" / "scheduler_config.json").get(
        "prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise faults.BadOptions(f"--base-model {folder} predicts {prediction!r}: give one that "
                                f"predicts {', '.join(PREDICTIONS)}")
    quiet()
    from transformers import CLIPTokenizer

    words.check_token_limit(CLIPTokenizer.from_pretrained(folder / "tokenizer"),
                            manifest["classes"], context=context)


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


BASE_MODEL_DIR = Path(__file__).resolve().parents[2] / "assets" / "base_model"
