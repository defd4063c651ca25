"""What a Stable Diffusion is made of: its parts, opened and held against each other by headers."""

from __future__ import annotations

from pathlib import Path

from lungkit.generate.model_files import AGAIN, DIFFUSERS, TRANSFORMERS, Part, open_part
from lungkit.run import faults
from lungkit.run.faults import Fault
from lungkit.run.files import read_json

GIVE = "give a Stable Diffusion 1 or 2 of text to image"
NETWORKS = {"unet": ("UNet2DConditionModel", DIFFUSERS), "vae": ("AutoencoderKL", DIFFUSERS),
            "text_encoder": ("CLIPTextModel", TRANSFORMERS)}
PARTS = (*NETWORKS, "tokenizer", "scheduler")
UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "controlnet")
# what a UNet may be given beside noise, time and text; none of it is given here
MORE_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim",
               "encoder_hid_dim_type", "time_cond_proj_dim")
BYTE_WORDS = 2 * 256 + 2  # of CLIP's vocabulary that no merge makes: bytes, at ends too; 2 marks


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
        raise Fault(f"a {index.get('_class_name', 'pipeline')} with {', '.join(more)}: {GIVE}")
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
    found = []
    latent, taken = vae.get("latent_channels", 4), unet.get("in_channels", 4)
    if taken == 2 * latent + 1:
        found.append(f"unet is of inpainting: it takes {taken} channels, latents twice and a mask: "
                     f"{GIVE}")
    elif (taken, unet.get("out_channels", 4)) != (latent, latent):
        found.append(f"unet takes {taken} channels and gives {unet.get('out_channels', 4)}, latents"
                     f" of vae have {latent}: {GIVE}")
    if (vae.get("in_channels", 3), vae.get("out_channels", 3)) not in ((3, 3), (1, 1)):
        found.append(f"vae takes images of {vae.get('in_channels', 3)} channels and gives "
                     f"{vae.get('out_channels', 3)}, not 3 or 1 of both: {GIVE}")
    width = unet.get("cross_attention_dim", 1280)
    if set(width if isinstance(width, list) else [width]) != {text.get("hidden_size")}:
        found.append(f"unet reads text of width {width}, text_encoder gives "
                     f"{text.get('hidden_size')}: the two are not of one model; {GIVE}")
    if asked := [name for name in MORE_INPUTS if unet.get(name) is not None]:
        found.append(f"unet asks for more than text ({', '.join(asked)}): {GIVE}")
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


def build(name: str, config: dict):
    """An untrained network of its config: "unet", "vae" or "text_encoder"."""
    if name == "text_encoder":
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(CLIPTextConfig.from_dict(config))
    from diffusers import AutoencoderKL, UNet2DConditionModel

    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[name].from_config(config)
