"""The frozen Stable Diffusion under every adapter: found, checked, loaded, its captions encoded."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lungkit.generate.base_parts import build, open_parts
from lungkit.generate.hub import from_hub
from lungkit.generate.items import check_divisible, folder_fingerprint
from lungkit.generate.model_files import AGAIN, Part, check_shapes
from lungkit.generate.prompts import Prompts
from lungkit.generate.single_file import TOKENIZER, SingleFile, is_single_file, open_file
from lungkit.run.faults import BadOptions, Fault
from lungkit.run.files import read_json

STABLE_DIFFUSION_15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MOST_CAPTIONS = 4096  # kept encoded: 1 GB at Stable Diffusion 1.5's size
ASSETS = Path(__file__).resolve().parents[2] / "assets"
BASE_MODEL_DIR, CT_BASE_MODEL_DIR = ASSETS / "base_model", ASSETS / "ct_base_model"


# ------------------------------------------------------------------ found

def embedded(manifest: dict) -> Path:
    """The folder of the embedded base model for images of a real dataset's manifest."""
    return CT_BASE_MODEL_DIR if manifest["modality"] == "ct" else BASE_MODEL_DIR


def resolve_base_model(base_model: str, manifest: dict,
                       prediction: str | None = None) -> Path | SingleFile:
    """The local folder of a base model, or the single file that it is; its files are whole.

    base_model: "embedded", a folder, a file or a hub id. manifest: of the real dataset, whose
    modality decides which one is embedded. prediction: what a single file predicts, None where
    nothing was said. Raises BadOptions when it is no whole Stable Diffusion, or the hub id is
    neither cached nor reachable.
    """
    try:
        if is_single_file(base_model):
            return open_file(Path(base_model), prediction)
        if prediction:
            raise Fault(f"--base-prediction {prediction} is for a single file: a folder or hub id "
                        "says in its scheduler_config.json what it predicts; leave it out")
        if base_model == "embedded":
            folder = embedded(manifest)
        else:
            folder = Path(base_model)
            is_hub_id = base_model.count("/") == 1 and not base_model.startswith((".", "/", "~"))
            if is_hub_id and not folder.exists():
                return from_hub(base_model)
        open_parts(folder)
    except BadOptions:
        raise
    except Fault as fault:
        raise BadOptions(f"--base-model {base_model}: {fault}") from None
    return folder


def fingerprint(base: Path | SingleFile) -> str:
    """What of a base model decides what is trained on it: the same for the same content."""
    return base.fingerprint if isinstance(base, SingleFile) else folder_fingerprint(base)


# ------------------------------------------------------------------ checked

def check_image_size(base: Path | SingleFile, image_size: int) -> None:
    """Raise BadOptions unless images of `image_size` px fit the base model's halvings."""
    parts = [base.family[part] if isinstance(base, SingleFile)
             else read_json(base / part / "config.json") for part in ("vae", "unet")]
    check_divisible(image_size, 2 ** sum(len(part["block_out_channels"]) - 1 for part in parts))


def check_base_model(base: Path | SingleFile, manifest: dict, words: Prompts, *,
                     context: bool = False) -> None:
    """Raise BadOptions or Fault unless the base fits the images of `manifest` and all captions."""
    is_file = isinstance(base, SingleFile)
    check_modality(base, manifest)
    check_image_size(base, manifest["image_size"])
    try:
        parts = base.parts() if is_file else open_parts(base)
        check_channels(parts["vae"].config, manifest)
        if not is_file:
            check_networks(parts)
            check_schedule(base / "scheduler")
        tokenizer = open_tokenizer(TOKENIZER if is_file else base / "tokenizer",
                                   parts["text_encoder"].config)
    except Fault as fault:
        raise BadOptions(f"--base-model {base}: {fault}") from None
    words.check_token_limit(tokenizer, manifest["classes"], context=context)


def check_modality(base: Path | SingleFile, manifest: dict) -> None:
    """Raise BadOptions where an embedded base is of another modality: it would draw nothing."""
    is_ct = manifest["modality"] == "ct"
    other = BASE_MODEL_DIR if is_ct else CT_BASE_MODEL_DIR
    if not isinstance(base, SingleFile) and base.resolve() == other:
        knows, holds = ("tissue", "CT") if is_ct else ("CT", "none")
        raise BadOptions(f"--base-model {base} knows simulated {knows} alone, and --real holds "
                         f"{holds}: give embedded, or a Stable Diffusion")


def check_channels(vae: dict, manifest: dict) -> None:
    """Raise Fault where an autoencoder of grey, by its config, would be given colour."""
    if vae.get("in_channels", 3) == 1 and manifest["channels"] != 1:
        raise Fault("vae is of grey images, and --real holds colour: give one of 3 channels")


def check_networks(parts: dict[str, Part]) -> None:
    """Raise Fault unless each network's weights are those that its config describes."""
    quiet()
    for name, part in parts.items():
        check_shapes(part, partial(build, name, part.config))


def check_schedule(folder: Path) -> None:
    """Raise Fault unless the base was trained by a schedule and to a target that are known here."""
    from diffusers import DDPMScheduler

    from lungkit.generate.latents import PREDICTIONS

    config = read_json(folder / "scheduler_config.json")
    name = config.get("_class_name", "DDPMScheduler")
    prediction = config.get("prediction_type", "epsilon")
    if "FlowMatch" in name or name.startswith("EDM"):
        raise Fault(f"it was trained by the schedule {name}: give one that predicts "
                    f"{', '.join(PREDICTIONS)}")
    if prediction not in PREDICTIONS:
        raise Fault(f"it predicts {prediction!r}: give one that predicts {', '.join(PREDICTIONS)}")
    try:
        DDPMScheduler.from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise Fault(f"scheduler_config.json describes no schedule ({error})") from None


def open_tokenizer(folder: Path, text: dict):
    """The CLIP tokenizer, held against the text encoder's config. Raises Fault."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Fault(f"tokenizer cannot be read ({error}): {AGAIN}") from None
    words, length = text.get("vocab_size", 49408), text.get("max_position_embeddings", 77)
    if len(tokenizer) > words or tokenizer.model_max_length > length:
        raise Fault(f"tokenizer gives {len(tokenizer)} words and {tokenizer.model_max_length} of "
                    f"them at once, text_encoder reads {words} and {length}: the two are not of "
                    "one model")
    return tokenizer


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
        from diffusers import AutoencoderKL, DDPMScheduler
        from transformers import CLIPTextModel, CLIPTokenizer

        from lungkit.learn.device import freeze

        self.folder, self.device = folder, device
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        quiet()
        how = {name: {"variant": part.variant, "use_safetensors": True}
               for name, part in open_parts(folder).items()}
        self.vae = AutoencoderKL.from_pretrained(
            folder / "vae", torch_dtype=torch.float32, **how["vae"])
        self.unet = freeze(self.load_unet(), device)
        self.text_encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=torch.float32, **how["text_encoder"])
        self.schedule = DDPMScheduler.from_pretrained(folder / "scheduler")
        for part in (self.vae, self.text_encoder):
            part.to(device).requires_grad_(False).eval()
        self._states: dict[str, torch.Tensor] = {}

    def load_unet(self):
        """The UNet in float32: to merge an adapter into, or to start a ControlNet from."""
        import torch
        from diffusers import UNet2DConditionModel

        unet = UNet2DConditionModel.from_pretrained(
            self.folder / "unet", torch_dtype=torch.float32, use_safetensors=True,
            variant=open_parts(self.folder)["unet"].variant)
        return unet.to(self.device).requires_grad_(False).eval()

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
