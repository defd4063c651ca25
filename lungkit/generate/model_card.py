"""The card beside a published model: what it is, what it saw, how it was trained, what for.

In the form that model hubs read: README.md, fields in YAML between two lines of dashes, then text
(Mitchell et al. 2019, arXiv:1810.03993, on what a card should say).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from lungkit.run.files import read_json

MADE = "single_file.json"  # of a folder made of a single file: of which
TISSUE_BASE = "this project's embedded base model, of simulated images"
# of each stage: its title, library and task on a hub, tags, what it is, how its parts are opened
KINDS = {
    "diffusion_seg": (
        "Class-conditional latent diffusion, from scratch", "diffusers",
        "unconditional-image-generation", ["latent-diffusion"],
        "An autoencoder, a UNet that denoises its latents given the class, and their noise "
        "schedule.",
        "`AutoencoderKL.from_pretrained(\"vae\")`, `UNet2DModel.from_pretrained(\"unet\")`, "
        "`DDPMScheduler.from_pretrained(\"scheduler\")`; class numbers are the order below, the "
        "next number means no class"),
    "prompt_seg": (
        "Stable Diffusion adapters, one per class", "diffusers", "text-to-image",
        ["stable-diffusion", "lora", "dora"],
        "A low-rank adapter (LoRA or DoRA) of each class for a frozen Stable Diffusion.",
        "`pipeline.load_lora_weights(\"<class>\")`, one at a time and unloaded before the next"),
    "context_seg": (
        "Stable Diffusion adapters and a ControlNet for layouts of tissue and nuclei", "diffusers",
        "text-to-image", ["stable-diffusion", "controlnet", "lora", "dora"],
        "A ControlNet that is shown where tissue, lumen and nuclei lie, and a low-rank adapter "
        "(LoRA or DoRA) of each class, for a frozen Stable Diffusion; layouts.npz holds the "
        "measured layouts of the training images.",
        "`ControlNetModel.from_pretrained(\"controlnet\")` and "
        "`pipeline.load_lora_weights(\"<class>\")`, one at a time"),
}
USE = """It draws images for one question: can synthetic images stand in for real ones when a
classifier is trained? The images it draws are compared with the real images that it did not see.
It may serve to augment training data where that comparison supports it."""
LIMITS = """- Not a medical device. Nothing drawn with it shows a patient; nothing is validated for
  diagnosis.
- It knows the patients, stains and scanners of its training images, and their classes; what is rare
  there is rarer in what it draws. Whatever bias they have, it has.
- It may have memorised training images: see `copy_audit` in the manifest of the dataset drawn.
- That its images look real is no evidence that a classifier learns from them what it should."""


DECODER = """Its decoder has gone on with these training images, and is what it draws by:
`AutoencoderKL.from_pretrained("vae")`. Latents are those of the base."""


def hub_id(folder: Path) -> str | None:
    """The hub's name of a model by its folder in the cache, None of any other folder."""
    for part in reversed(Path(folder).parts):
        if match := re.fullmatch(r"models--(.+?)--(.+)", part):
            return f"{match[1]}/{match[2]}"
    return None


def card(stage: str, model: dict, data, base: Path | None) -> str:
    """The text of the README.md of a model.

    model: its manifest, with its `parameters`. data: the real Dataset. base: the folder of the
    base model, None where there is none.
    """
    title, library, task, tags, what, how = KINDS[stage]
    fields = {"library_name": library, "pipeline_tag": task,
              "tags": [*tags, "medical", "pathology" if data.modality != "ct" else "ct"]}
    if base is not None and (name := hub_id(base)):
        fields["base_model"] = name
    known = [f"- {key}: `{json.dumps(value, ensure_ascii=False)}`"
             for key, value in sorted(model["parameters"].items())]
    losses = [f"- {part}: {loss:.4g}" for part, loss in model["losses"].items()]
    counts = [f"- `{label}`: {number} images"
              for label, number in data.counts["train"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in model["versions"].items())
    under = [] if base is None else [
        f"The base model is {hub_id(base) or folder_name(base)}; its licence goes with it.", ""]
    # JSON is YAML, and quotes what has to be quoted
    front = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "\n".join([
        "---", *front, "---", "", f"# {title}", "", what, "", *under, f"Open it by {how}.", "",
        *([DECODER, ""] if "decoder" in model["losses"] else []),
        "## Trained on", "",
        f"The train split, and no other, of the dataset `{data.name}`, {data.image_size} px, "
        f"{data.channels} channels, modality {data.modality or 'unknown'}, fingerprint "
        f"`{data.fingerprint}`:", "", *counts, "",
        "## How", "", *known, "", "Mean training loss over the last tenth of the steps:", "",
        *losses, "", *chosen(model.get("validation")),
        f"With {versions}; commit {model['commit'] or 'unknown'} of the project.", "",
        "## Intended use", "", USE, "", "## Limits", "", LIMITS, ""])


def chosen(validation: dict | None) -> list[str]:
    """By what the weights were chosen, in lines; none where nothing was held out."""
    if not validation:
        return []
    images = ", ".join(f"{number} of `{label}`" for label, number in validation["images"].items())
    return [f"Of these images {images} were held out, in whole groups, and the weights kept are "
            "those with the least loss on them (best, at the step; `loss.csv` and `loss.png` show "
            "all):", "",
            *(f"- {part}: {found['best_loss']:.4g} at step {found['best_step']} of "
              f"{found['steps']}, at the end {found['last_loss']:.4g}"
              for part, found in validation["trained"].items()), ""]


def folder_name(base: Path) -> str:
    """A base model in words, by its folder; of where it lies on this machine nothing is said."""
    ours = Path(__file__).resolve().parents[2] / "assets"
    if base.resolve().parent == ours:
        return TISSUE_BASE
    if (base / MADE).is_file():
        made = read_json(base / MADE)
        return f"`{made['name']}` (SHA-256 `{made['parameters']['sha256']}`)"
    return f"`{base.name}`"
