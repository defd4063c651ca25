"""The frozen Stable Diffusion under every adapter: found, checked, loaded, its captions encoded."""

from __future__ import annotations

import os
from pathlib import Path

from lungkit.generate.items import check_divisible
from lungkit.generate.model_files import (
    AGAIN,
    DIFFUSERS,
    TRANSFORMERS,
    Part,
    check_shapes,
    choose_weights,
    open_part,
)
from lungkit.generate.prompts import Prompts
from lungkit.run import faults
from lungkit.run.faults import BadOptions, Fault
from lungkit.run.files import read_json

STABLE_DIFFUSION_15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MOST_CAPTIONS = 4096  # kept encoded: 1 GB at Stable Diffusion 1.5's size
ASSETS = Path(__file__).resolve().parents[2] / "assets"
BASE_MODEL_DIR, CT_BASE_MODEL_DIR = ASSETS / "base_model", ASSETS / "ct_base_model"

NETWORKS = {"unet": ("UNet2DConditionModel", DIFFUSERS), "vae": ("AutoencoderKL", DIFFUSERS),
            "text_encoder": ("CLIPTextModel", TRANSFORMERS)}
PARTS = (*NETWORKS, "tokenizer", "scheduler")
UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "controlnet")
# what a UNet may be given beside noise, time and text; none of it is given here
MORE_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim",
               "encoder_hid_dim_type", "time_cond_proj_dim")
BYTE_WORDS = 2 * 256 + 2  # of CLIP's vocabulary that no merge makes: bytes, at ends too; 2 marks


# ------------------------------------------------------------------ found

def embedded(manifest: dict) -> Path:
    """The folder of the embedded base model for images of a real dataset's manifest."""
    return CT_BASE_MODEL_DIR if manifest["modality"] == "ct" else BASE_MODEL_DIR


def resolve_base_model(base_model: str, manifest: dict) -> Path:
    """The local folder of a base model: "embedded", a folder, or a hub id; its files are whole.

    manifest: of the real dataset, whose modality decides which one is embedded. Raises BadOptions
    when the folder is no whole Stable Diffusion in diffusers layout, or the hub id is neither
    cached nor reachable.
    """
    if base_model == "embedded":
        folder = embedded(manifest)
    else:
        folder = Path(base_model)
        is_hub_id = base_model.count("/") == 1 and not base_model.startswith((".", "/", "~"))
        if is_hub_id and not folder.exists():
            return from_hub(base_model)
    try:
        open_parts(folder)
    except Fault as fault:
        raise BadOptions(f"--base-model {base_model}: {fault}") from None
    return folder


def from_hub(name: str) -> Path:
    """The snapshot of a hub model in the cache, fetched or completed where there is a network.

    Raises BadOptions.
    """
    from huggingface_hub import HfApi, snapshot_download

    state = "is not a folder, not in the model cache"
    try:
        folder = Path(snapshot_download(name, allow_patterns=["model_index.json"],
                                        local_files_only=True))
        open_parts(folder)
        return folder
    except Fault as fault:
        state = f"is not whole in the model cache ({fault})"
    except Exception as error:  # every kind of absence
        reason = type(error).__name__
    if is_offline():
        reason = "HF_HUB_OFFLINE is set"
    else:
        try:
            there = [file.rfilename for file in HfApi().model_info(name).siblings]
            folder = Path(snapshot_download(name, allow_patterns=needed_files(there)))
            open_parts(folder)
            return folder
        except Fault as fault:
            raise BadOptions(f"--base-model {name}: {fault}, by `hf download {name} "
                             "--force-download` if it is the cache's copy that is broken") from None
        except Exception as error:  # offline, unknown, gated
            reason = type(error).__name__
    raise BadOptions(f"--base-model {name} {state} and not reachable ({reason}): on a node with "
                     f"network run `python -m lungkit.tools.prefetch {name}`, or give a folder")


def is_offline() -> bool:
    """Whether the environment forbids the hub, as its own library reads it."""
    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in ("1", "ON", "YES", "TRUE")


def needed_files(names: list[str]) -> list[str]:
    """Of a repository's files those that are read here: of weights one variant, never a pickle.

    Raises Fault where there are no such weights.
    """
    needed = [name for name in names if name == "model_index.json" or (
        name.count("/") == 1 and name.split("/")[0] in PARTS and name.endswith((".json", ".txt")))]
    for part, (_, weights) in NETWORKS.items():
        own = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        needed += [f"{part}/{name}" for name in choose_weights(own, weights, part)[1]]
    return needed


# ------------------------------------------------------------------ checked

def open_parts(folder: Path) -> dict[str, Part]:
    """The networks of a Stable Diffusion: {"unet", "vae", "text_encoder": part}, by their headers.

    Raises Fault with all that is missing, broken or of another kind of model.
    """
    if not (folder / "model_index.json").is_file():
        raise Fault("no Stable Diffusion in diffusers layout there (model_index.json is missing); "
                    "give such a folder or a hub id")
    index = read_json(folder / "model_index.json")
    more = sorted(name for name, entry in index.items() if name not in (*PARTS, *UNUSED)
                  and isinstance(entry, list) and entry[:1] not in ([], [None]))
    if more:
        raise Fault(f"a {index.get('_class_name', 'pipeline')} with {', '.join(more)}: give a "
                    "Stable Diffusion 1 or 2 of text to image")
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise Fault(f"{', '.join(missing)} missing in {folder}: {AGAIN}")
    parts, found = {}, []
    for name, (kind, weights) in NETWORKS.items():
        try:
            parts[name] = open_part(folder / name, kind, weights=weights)
        except Fault as fault:
            found.append(str(fault))
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        found.append(f"scheduler holds no scheduler_config.json: {AGAIN}")
    found = found or kind_faults(parts) + tokenizer_faults(folder / "tokenizer",
                                                           parts["text_encoder"].config)
    if found:
        raise Fault(faults.several(found))
    return parts


def kind_faults(parts: dict[str, Part]) -> list[str]:
    """What makes it another kind of model than is trained here, by the configs."""
    unet, vae, text = (parts[name].config for name in NETWORKS)
    give = "give a Stable Diffusion 1 or 2 of text to image"
    found = []
    latent, taken = vae.get("latent_channels", 4), unet.get("in_channels", 4)
    if taken == 2 * latent + 1:
        found.append(f"unet is of inpainting: it takes {taken} channels, latents twice and a mask: "
                     f"{give}")
    elif (taken, unet.get("out_channels", 4)) != (latent, latent):
        found.append(f"unet takes {taken} channels and gives {unet.get('out_channels', 4)}, latents"
                     f" of vae have {latent}: {give}")
    if (vae.get("in_channels", 3), vae.get("out_channels", 3)) not in ((3, 3), (1, 1)):
        found.append(f"vae takes images of {vae.get('in_channels', 3)} channels and gives "
                     f"{vae.get('out_channels', 3)}, not 3 or 1 of both: {give}")
    width = unet.get("cross_attention_dim", 1280)
    if set(width if isinstance(width, list) else [width]) != {text.get("hidden_size")}:
        found.append(f"unet reads text of width {width}, text_encoder gives "
                     f"{text.get('hidden_size')}: the two are not of one model; {give}")
    if asked := [name for name in MORE_INPUTS if unet.get(name) is not None]:
        found.append(f"unet asks for more than text ({', '.join(asked)}): {give}")
    found += [f"{name}/config.json names no block_out_channels: {AGAIN}"
              for name in ("unet", "vae") if not parts[name].config.get("block_out_channels")]
    return found


def tokenizer_faults(folder: Path, text: dict) -> list[str]:
    """What is wrong with a CLIP tokenizer's files; the library makes up what it does not find."""
    if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        return [] if (folder / "tokenizer.json").is_file() else [
            f"tokenizer holds no vocab.json and merges.txt: {AGAIN}"]
    vocabulary = read_json(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text("utf-8", errors="replace").splitlines()
    merges = sum(bool(line.strip()) and not line.startswith("#version") for line in lines)
    if merges < len(vocabulary) - BYTE_WORDS:
        return [f"tokenizer/merges.txt is cut short: it makes {merges} of "
                f"{len(vocabulary) - BYTE_WORDS} words: {AGAIN}"]
    if len(vocabulary) > text.get("vocab_size", 49408):
        return [f"tokenizer knows {len(vocabulary)} words, text_encoder {text['vocab_size']}: the "
                "two are not of one model"]
    return []


def check_image_size(folder: Path, image_size: int) -> None:
    """Raise BadOptions unless images of `image_size` px fit the base model's halvings."""
    parts = [read_json(folder / part / "config.json") for part in ("vae", "unet")]
    check_divisible(image_size, 2 ** sum(len(part["block_out_channels"]) - 1 for part in parts))


def check_base_model(folder: Path, manifest: dict, words: Prompts, *,
                     context: bool = False) -> None:
    """Raise BadOptions or Fault unless the base fits the images of `manifest` and all captions."""
    check_modality(folder, manifest)
    check_image_size(folder, manifest["image_size"])
    try:
        parts = open_parts(folder)
        check_channels(parts["vae"].config, manifest)
        check_networks(parts)
        check_schedule(folder / "scheduler")
        tokenizer = open_tokenizer(folder / "tokenizer", parts["text_encoder"].config)
    except Fault as fault:
        raise BadOptions(f"--base-model {folder}: {fault}") from None
    words.check_token_limit(tokenizer, manifest["classes"], context=context)


def check_modality(folder: Path, manifest: dict) -> None:
    """Raise BadOptions where an embedded base is of another modality: it would draw nothing."""
    is_ct = manifest["modality"] == "ct"
    other = BASE_MODEL_DIR if is_ct else CT_BASE_MODEL_DIR
    if folder.resolve() == other:
        knows, holds = ("tissue", "CT") if is_ct else ("CT", "none")
        raise BadOptions(f"--base-model {folder} knows simulated {knows} alone, and --real holds "
                         f"{holds}: give embedded, or a Stable Diffusion")


def check_channels(vae: dict, manifest: dict) -> None:
    """Raise Fault where an autoencoder of grey, by its config, would be given colour."""
    if vae.get("in_channels", 3) == 1 and manifest["channels"] != 1:
        raise Fault("vae is of grey images, and --real holds colour: give one of 3 channels")


def check_networks(parts: dict[str, Part]) -> None:
    """Raise Fault unless each network's weights are those that its config describes."""
    quiet()
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    check_shapes(parts["unet"], lambda: UNet2DConditionModel.from_config(parts["unet"].config))
    check_shapes(parts["vae"], lambda: AutoencoderKL.from_config(parts["vae"].config))
    check_shapes(parts["text_encoder"], lambda: CLIPTextModel(
        CLIPTextConfig.from_dict(parts["text_encoder"].config)))


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
