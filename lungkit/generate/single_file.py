"""A Stable Diffusion that is one .safetensors file: known by its header, made a folder once.

Such a file holds weights under the names of the code that they were trained by (Rombach et al.
2022, arXiv:2112.10752). Configs and tokenizer, which it lacks, are those of its release, from
assets/single_file; names are translated as diffusers' `from_single_file` does. Nothing is fetched.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

from lungkit.generate.base_parts import GIVE, NETWORKS, build, kind_faults, open_parts
from lungkit.generate.model_card import MADE
from lungkit.generate.model_files import (
    AGAIN,
    PICKLED,
    Header,
    Part,
    difference,
    read_header,
    shapes_of,
    today,
)
from lungkit.run import faults, ranks
from lungkit.run.faults import Fault
from lungkit.run.files import atomic_path, read_json, sha256_file, write_bytes, write_json
from lungkit.run.output import Output
from lungkit.run.progress import say

RECIPE = 1  # of the translation: another one makes other folders
PREDICTIONS = ("epsilon", "v_prediction")
SAID = {"epsilon": "epsilon", "v": "v_prediction"}  # modelspec.prediction_type of a file's metadata
SETTINGS = Path(__file__).resolve().parents[2] / "assets" / "single_file"
FAMILIES = (SETTINGS / "stable_diffusion_1.json", SETTINGS / "stable_diffusion_2.json")
TOKENIZER = SETTINGS / "tokenizer"
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
OPEN_CLIP = f"{TEXT}model."
AVERAGED = "model_ema.diffusion_model"  # the UNet's weights averaged over training, dots left out
FULL_OR_HALF = {"F16", "BF16", "F32", "F64"}
# what else is passed round as one file, by the tensors' names
OTHERS = {
    r"lora_(up|down|A|B)\b|lora\.(up|down)\b|hada_w|lokr_w|oft_(diag|blocks)":
        "an adapter (LoRA or the like) and no model",
    r"^control_model\.|^controlnet_": "a ControlNet and no model",
    r"motion_modules\.": "a motion module and no model",
    r"^(emb_params|string_to_param)": "a textual inversion and no model",
    r"^conditioner\.embedders\.": "a Stable Diffusion XL",
    r"joint_blocks\.": "a Stable Diffusion 3",
    r"double_blocks\.": "a Flux, or another transformer",
    r"^(down_blocks|mid_block|up_blocks|(encoder|decoder)\.(down|mid|up)_blocks?)\.":
        "one network of a folder in diffusers layout (give the folder)",
}
CHANNELS = {9: "of inpainting", 8: "of editing images", 5: "guided by depth", 7: "of upscaling"}


@dataclass(frozen=True, eq=False)
class SingleFile:
    """A file that is a whole Stable Diffusion of text to image, as far as its header tells.

    family: the configs of its release and what else it lacks, as assets/single_file has them.
    prediction: what it was trained to predict, one of PREDICTIONS.
    """

    path: Path
    header: Header
    family: dict
    prediction: str

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def sha256(self) -> str:
        """Of the whole content, read once."""
        return sha256_file(self.path)

    @property
    def fingerprint(self) -> str:
        """What of it decides what is trained on it."""
        return f"single_file/{RECIPE}:{self.prediction}:{self.sha256}"

    def sources(self, name: str) -> dict[str, str]:
        """{a tensor's name in training: the tensor to take} of one of NETWORKS.

        Of a UNet the averaged weights are taken where the file holds both: a hub's folder has
        these. Raises Fault where it does not hold all of them.
        """
        shapes = self.header.shapes
        prefix = {"unet": UNET, "vae": VAE, "text_encoder": self.family["text"]}[name]
        own = {key: key for key in shapes if key.startswith(prefix)}
        if name != "unet" or not self.is_averaged:
            return own
        averaged = {key: "model_ema." + key.removeprefix("model.").replace(".", "") for key in own}
        if lost := [key for key in averaged.values() if key not in shapes]:
            raise Fault(f"it holds averaged weights of its UNet (model_ema) and lacks {lost[0]}: "
                        f"{AGAIN}")
        return averaged

    @property
    def is_averaged(self) -> bool:
        """Whether the file holds averaged weights beside those that were trained on."""
        return any(key.startswith(AVERAGED) for key in self.header.shapes)

    def parts(self) -> dict[str, Part]:
        """Its networks under today's names. Raises Fault where they have not its release's form."""
        import torch

        parts, found = {}, []
        for name in NETWORKS:
            with torch.device("meta"):
                tensors = {key: torch.empty(self.header.shapes[source])
                           for key, source in self.sources(name).items()}
            try:
                shapes = {key: tuple(tensor.shape) for key, tensor in translate(
                    name, tensors, self.family).items()}
            except KeyError as lost:
                raise Fault(f"{name} lacks {lost}: {AGAIN}") from None
            parts[name] = Part(Path(name), self.family[name], None, shapes)
            if other := difference(shapes, shapes_of(partial(build, name, self.family[name]))):
                found.append(f"{name} {other}")
        if found := found or kind_faults(parts):
            raise Fault(f"{faults.several(found)}: it has not the form of {self.family['name']}; "
                        f"{GIVE}")
        return parts


# ------------------------------------------------------------------ known

def is_single_file(base_model: str) -> bool:
    """Whether --base-model names a file: one that is there, or something called like one."""
    path = Path(base_model)
    return path.is_file() or (path.suffix in (".safetensors", ".gguf", *PICKLED)
                              and not path.is_dir())


def open_file(path: Path, prediction: str | None = None) -> SingleFile:
    """The Stable Diffusion that a file holds, by its header alone. Raises Fault.

    prediction: one of PREDICTIONS, None where nothing was said.
    """
    if not path.is_file():
        raise Fault("there is no such file")
    pickled = ("it is a pickle, which can run code when loaded: give the .safetensors of the same "
               "release")
    if path.suffix in PICKLED:
        raise Fault(pickled)
    try:
        header = read_header(path)
    except Fault as fault:
        with open(path, "rb") as file:  # only now: a header's length may begin with these bytes
            is_pickle = file.read(2).startswith((b"PK", b"\x80"))
        raise Fault(pickled if is_pickle else f"{fault}: {AGAIN}") from None
    if what := refusal(header):
        raise Fault(f"it holds {what}: {GIVE}")
    family = family_of(header.shapes)
    return SingleFile(path, header, family, predicted(path, header.metadata, family, prediction))


def refusal(header: Header) -> str:
    """What a file holds that is no Stable Diffusion of text to image, in words; "" if it is one."""
    names = sorted(header.shapes)
    for pattern, what in OTHERS.items():
        if any(re.search(pattern, name) for name in names):
            return what
    unet, vae, text = ([name for name in names if name.startswith(prefix)]
                       for prefix in (UNET, VAE, TEXT))
    if not unet:
        if vae or any(re.match(r"(encoder|decoder)\.", name) for name in names):
            return "an autoencoder alone"
        if text or any(name.startswith("text_model.") for name in names):
            return "a text encoder alone"
        return f"no model that is known here ({len(names)} tensors: {', '.join(names[:2])})"
    if any(name.startswith(f"{UNET}label_emb.") for name in unet):
        return "a model that asks for more than text (label_emb)"
    taken = (header.shapes.get(f"{UNET}input_blocks.0.0.weight") or (0, 0))[1]
    if taken != 4:
        return f"a model {CHANNELS.get(taken, 'of another kind')}: it takes {taken} channels, not 4"
    if not (vae and text):
        return f"a UNet without its {'text encoder' if vae else 'autoencoder'}"
    other = {header.dtypes[name] for name in (*unet, *vae)} - FULL_OR_HALF
    return f"weights of {', '.join(sorted(other))}, not of full or half precision" if other else ""


def family_of(shapes: dict[str, tuple[int, ...]]) -> dict:
    """The release that a file is of, by its text encoder and the width of what its UNet reads."""
    width = next((shape[-1] for name, shape in sorted(shapes.items()) if shape
                  and name.startswith(UNET) and name.endswith(".attn2.to_k.weight")), None)
    families = [read_json(path) for path in FAMILIES]
    for family in families:
        if width == family["unet"]["cross_attention_dim"] and any(
                name.startswith(family["text"]) for name in shapes):
            return family
    known = ", ".join(f"{family['unet']['cross_attention_dim']} by {family['text']}* is "
                      f"{family['name']}" for family in families)
    raise Fault(f"its UNet reads text of width {width} ({known}): {GIVE}")


def predicted(path: Path, metadata: dict, family: dict, asked: str | None) -> str:
    """What a file predicts: as its metadata say (SAI's modelspec), else as asked, else as its kind.

    Neither names nor shapes tell. All releases 1.x predict noise; of 2.x those of 512 px predict
    noise and those of 768 px velocity. Raises Fault where nobody says which, or two differ.
    """
    told = metadata.get("modelspec.prediction_type")
    said = SAID.get(told, told)
    if said and said not in PREDICTIONS:
        raise Fault(f"its metadata say that it predicts {said!r}: give one that predicts "
                    f"{' or '.join(PREDICTIONS)}")
    if said and asked and said != asked:
        raise Fault(f"its metadata say that it predicts {said}, --base-prediction says {asked}: "
                    "leave that out")
    if not (said or asked or family["predicts"]):
        raise Fault(f"it is a {family['name']} and does not say what it predicts: give "
                    "--base-prediction epsilon (2.x base, of 512 px) or v_prediction (of 768 px)")
    if not (said or asked):
        say(f"{path.name} is a {family['name']} and taken to predict {family['predicts']}: where "
            "it does not, give --base-prediction")
    return said or asked or family["predicts"]


# ------------------------------------------------------------------ made a folder

def translate(name: str, tensors: dict, family: dict) -> dict:
    """{today's name: tensor} of one of NETWORKS, of its {name in training: tensor}."""
    from diffusers.loaders import single_file_utils as original

    if name == "unet":
        made = original.convert_ldm_unet_checkpoint(tensors, family[name])
    elif name == "vae":
        made = original.convert_ldm_vae_checkpoint(tensors, family[name])
    elif family["text"] == OPEN_CLIP:
        made = original.convert_open_clip_checkpoint(
            SimpleNamespace(config=SimpleNamespace(**family[name])), tensors)
    else:
        made = original.convert_ldm_clip_checkpoint(tensors)
    return {today(key): tensor for key, tensor in made.items() if tensor is not None}


def as_folder(base: Path | SingleFile, models_dir: Path) -> Path:
    """The folder of a base model in diffusers layout; of a single file it is made, once.

    It lies beside the file, in `.<name>.cache`, or where nothing may be written there in
    `models_dir`, and may be deleted: it is made again. Whoever comes while another makes it waits.
    Raises Fault where one that was made is not whole any more, Stopped after a signal.
    """
    if isinstance(base, Path):
        return base
    return ranks.see(Path(ranks.by_first(lambda: str(_as_folder(base, models_dir)))))


def _as_folder(base: SingleFile, models_dir: Path) -> Path:
    key = f"{RECIPE}-{base.prediction}-{base.sha256[:16]}"
    beside, in_run = (folder / f".{base.path.name}.cache" / key
                      for folder in (base.path.absolute().parent, models_dir))
    for place in (beside, in_run):
        if (place / MADE).is_file():
            try:
                open_parts(place)
            except Fault as fault:
                raise Fault(f"{place} is not whole any more ({fault}): delete it, and it is made "
                            f"again from {base.path.name}") from None
            return place
    place = beside if os.access(beside.parents[1], os.W_OK) else in_run
    say(f"{base.path.name}: {base.family['name']} that predicts {base.prediction}"
        f"{', its averaged weights' if base.is_averaged else ''}: once made a folder, {place}")
    output = Output(place, MADE, {"recipe": RECIPE, "prediction": base.prediction,
                                  "sha256": base.sha256})
    with output.writing() as folder:
        for name in NETWORKS:
            write_network(base, name, folder)
            faults.check_stop()
        write_settings(base, folder)
        open_parts(folder)
        output.publish({"schema": "lungkit.single_file/1", "name": base.path.name,
                        "family": base.family["name"], "is_averaged": base.is_averaged})
    return place


def write_network(base: SingleFile, name: str, folder: Path) -> None:
    """Write one of NETWORKS with its config, in the file's own precision, unless it is there."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = folder / name / f"{NETWORKS[name][1]}.safetensors"
    if path.exists():
        return
    wanted = shapes_of(partial(build, name, base.family[name]))
    with safe_open(base.path, framework="pt") as file:
        made = translate(name, {key: file.get_tensor(source)
                                for key, source in base.sources(name).items()}, base.family)
    write_json(folder / name / "config.json", base.family[name])
    with atomic_path(path) as hidden:
        save_file({key: made[key].contiguous() for key in wanted}, hidden,
                  metadata={"format": "pt"})


def write_settings(base: SingleFile, folder: Path) -> None:
    """Write what the networks have not: tokenizer, noise schedule, index."""
    for name in ("vocab.json", "merges.txt"):
        write_bytes(folder / "tokenizer" / name, (TOKENIZER / name).read_bytes())
    write_json(folder / "tokenizer" / "tokenizer_config.json", {
        **read_json(TOKENIZER / "tokenizer_config.json"), "pad_token": base.family["pad_token"]})
    schedule = {**base.family["scheduler"], "prediction_type": base.prediction}
    write_json(folder / "scheduler" / "scheduler_config.json", schedule)
    write_json(folder / "model_index.json", {
        "_class_name": "StableDiffusionPipeline", "requires_safety_checker": False,
        "safety_checker": [None, None], "feature_extractor": [None, None],
        "scheduler": ["diffusers", schedule["_class_name"]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        **{name: ["transformers" if name == "text_encoder" else "diffusers", kind]
           for name, (kind, _) in NETWORKS.items()}})
