"""Models in diffusers layout, checked before they are loaded: configs, headers, shapes.

The header of a safetensors file (8 bytes of its length, then JSON) gives every tensor's name, shape
and place, and so the size that the file must have: reading it costs milliseconds and finds what
loading finds after hours of waiting, or never, for a tensor that is missing is made up at random.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lungkit.run.faults import Fault
from lungkit.run.files import read_json

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"  # how their weights are named
VARIANTS = (None, "fp16", "bf16")  # of a part's weights, the first that is there is taken
MOST_HEADER_BYTES = 100_000_000    # the format's own limit
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".msgpack")
AGAIN = "download it again"


@dataclass(frozen=True)
class Header:
    """What a safetensors file's header says: of each tensor shape and dtype ("F16"); metadata."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Part:
    """One model of a folder in diffusers layout, whole as far as its headers tell.

    variant: of the weights' file names, None or e.g. "fp16", as `from_pretrained` takes it.
    shapes: {tensor: its shape}.
    """

    folder: Path
    config: dict
    variant: str | None
    shapes: dict[str, tuple[int, ...]]


def open_part(folder: Path, kind: str, *, weights: str = DIFFUSERS) -> Part:
    """Check one model's config and the headers of its weights. Raises Fault, named by the folder.

    kind: its class, such as AutoencoderKL. weights: DIFFUSERS or TRANSFORMERS.
    """
    where = folder.name
    if not (folder / "config.json").is_file():
        raise Fault(f"{where} holds no config.json: {AGAIN}")
    config = read_json(folder / "config.json")
    found = config.get("_class_name") or (config.get("architectures") or [kind])[0]
    if found != kind:
        raise Fault(f"{where} is a {found}, no {kind}")
    if "quantization_config" in config:
        raise Fault(f"{where} holds quantised weights: give a release of full or half precision")
    names = [path.name for path in folder.iterdir() if path.is_file()]
    variant, files = choose_weights(names, weights, where)
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for name in files:
            shapes |= read_shapes(folder / name)
    except Fault as fault:
        raise Fault(f"{fault}: {AGAIN}") from None
    if len(files) > 1:
        table = read_json(folder / index_name(weights, variant)).get("weight_map", {})
        if lost := sorted(set(table) - set(shapes)):
            raise Fault(f"{where} lacks {in_short(lost)}, which its index names: {AGAIN}")
    return Part(folder, config, variant, shapes)


def choose_weights(names: Iterable[str], weights: str, where: str) -> tuple[str | None, list[str]]:
    """(variant, its weight files) among the file names of one model's folder, or of a repository's.

    Raises Fault where there are none, some are missing, or they are pickles.
    """
    names = set(names)
    for variant in VARIANTS:
        stem = weights if variant is None else f"{weights}.{variant}"
        if f"{stem}.safetensors" in names:
            return variant, [f"{stem}.safetensors"]
        shards = sorted(name for name in names
                        if re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.safetensors", name))
        if index_name(weights, variant) in names or shards:
            total = int(shards[0].split("-of-")[1].split(".")[0]) if shards else 1
            if len(shards) < total or index_name(weights, variant) not in names:
                raise Fault(f"{where} holds {len(shards)} of {total} parts of {stem}.safetensors"
                            f" and their index {index_name(weights, variant)}: {AGAIN}")
            return variant, shards
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    if pickled:
        raise Fault(f"{where} holds its weights as {pickled[0]} only, which can run code when "
                    "loaded: give a release with .safetensors, or convert it once by diffusers' "
                    "from_pretrained and save_pretrained")
    raise Fault(f"{where} holds no {weights}.safetensors: {AGAIN}")


def index_name(weights: str, variant: str | None) -> str:
    """Name of the file that says which part holds which tensor."""
    return f"{weights}.safetensors.index.{f'{variant}.' if variant else ''}json"


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} from a safetensors file's header. Raises Fault unless the file is whole."""
    return read_header(path).shapes


def read_header(path: Path) -> Header:
    """A safetensors file's header. Raises Fault unless the file is as long as it says."""
    what, size = f"{path.parent.name}/{path.name}", path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if start.startswith(b"version "):
            raise Fault(f"{what} is a pointer of Git LFS and not the file (`git lfs pull`)")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if len(start) < 8 or (length <= MOST_HEADER_BYTES and 8 + length > size):
            raise Fault(f"{what} is cut short in its header, at {size} bytes")
        text = file.read(length) if length <= MOST_HEADER_BYTES else b""
    try:
        header = json.loads(text)
        metadata = {**(header.pop("__metadata__", None) or {})}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        found = Header({name: tuple(entry["shape"]) for name, entry in header.items()},
                       {name: entry["dtype"] for name, entry in header.items()}, metadata)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise Fault(f"{what} is no safetensors file") from None
    if size != end:
        state = "cut short" if size < end else "longer than its header says"
        raise Fault(f"{what} is {state} ({size} of {end} bytes)")
    return found


# ------------------------------------------------------------------ shapes

def check_shapes(part: Part, build: Callable[[], object]) -> None:
    """Raise Fault unless the weights are those of the model that the config describes.

    build(): the untrained model, called where tensors have a shape and no content.
    """
    try:
        wanted = shapes_of(build)
    except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise Fault(f"{part.folder.name}/config.json describes no model ({error})") from None
    if other := difference(part.shapes, wanted):
        raise Fault(f"{part.folder.name} {other}: the two are not of one model; download both "
                    "again")


def difference(shapes: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> str:
    """What of {tensor: shape} is not as a config wants it, in words; "" where all is."""
    found = {today(name): shape for name, shape in shapes.items()}
    if lost := sorted(set(wanted) - set(found)):
        return f"lacks {in_short(lost)}, which its config asks for"
    other = [name for name in sorted(wanted) if wanted[name] != found[name]]
    return (f"has {other[0]} of {_by(found[other[0]])}, its config says {_by(wanted[other[0]])}"
            if other else "")


def shapes_of(build: Callable[[], object]) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of the untrained model that build() gives, without making its content."""
    import torch

    with torch.device("meta"):
        return {today(name): tuple(tensor.shape) for name, tensor in build().state_dict().items()}


# what attention was called before diffusers 0.12, and the prefix of CLIP before transformers 5
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def today(name: str) -> str:
    """What a tensor is called by the libraries of today."""
    return re.sub(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(?=\.)",
                  lambda match: match[1] + _OLD_NAMES[match[2]], name.removeprefix("text_model."))


def in_short(names: list[str]) -> str:
    """The first of tensors' names, and how many more."""
    return names[0] + (f" and {len(names) - 1} tensors more" if len(names) > 1 else "")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
