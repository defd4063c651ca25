"""The file of a checkpoint: its tensors as safetensors, all else as JSON in the same file's header.

Nothing is unpickled, and what cannot be put so is refused when it is written. A file that was cut,
emptied, or whose tensors are not those that were written (CRC-32) is torn.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch

KEY, CRC = "lungkit", "crc32"   # of the header's metadata
PICKLED = b"PK"                 # how a file of torch.save begins, of which there were before
EARLIER = {"schema": "lungkit.checkpoint/1"}


class Torn(ValueError):
    """A file that is not the whole of what was written."""


def write(path: Path, content: object) -> None:
    """Write dicts, lists, tuples, texts, numbers, None and tensors of them, on the CPU or not."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_taken_apart(content, tensors, set()))
    save_file(tensors, path, metadata={KEY: text, CRC: str(_crc(tensors))})


def read(path: Path) -> object:
    """What was written, its tensors on the CPU; of torch.save's files EARLIER. Raises Torn."""
    from safetensors import SafetensorError, safe_open

    with open(path, "rb") as file:
        if file.read(len(PICKLED)) == PICKLED:
            return EARLIER
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            said = file.metadata() or {}
            # cloned: what is mapped would be lost with the file
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Torn(str(error)) from None
    if said.get(CRC) != str(_crc(tensors)):
        raise Torn("its numbers are not those that were written")
    return _put_together(json.loads(said[KEY]), tensors)


def _crc(tensors: dict[str, torch.Tensor]) -> int:
    """CRC-32 over the bytes of all tensors, by name."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), found)
    return found


def _taken_apart(value: object, tensors: dict[str, torch.Tensor], memories: set[int]) -> object:
    """`value` as JSON, each tensor by its number in `tensors`, where it is added.

    memories: where those lie that were added; of two that share one the second is copied, for a
    file has no place for that.
    """
    if isinstance(value, torch.Tensor):
        name, tensor = str(len(tensors)), value.detach().cpu()
        # a file knows no strides: axes are written in the order in which they lie in memory, for
        # a fused optimiser goes through weights and moments by that
        order = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis))
        if tensor.is_contiguous() or not tensor.permute(order).is_contiguous():
            order = list(range(tensor.ndim))
        tensor = tensor.permute(order).contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in memories else tensor
        memories.add(memory)
        return {"tensor": [name, order]}
    if isinstance(value, dict):
        return {"dict": [[key, _taken_apart(each, tensors, memories)]
                         for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_taken_apart(each, tensors, memories) for each in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} has no place in a checkpoint")


def _put_together(said: object, tensors: dict[str, torch.Tensor]) -> object:
    """What `_taken_apart` took apart."""
    if not isinstance(said, dict):
        return said
    (kind, value), = said.items()
    if kind == "tensor":
        name, order = value
        return tensors[name].permute([order.index(axis) for axis in range(len(order))])
    if kind == "dict":
        return {key: _put_together(each, tensors) for key, each in value}
    parts = [_put_together(each, tensors) for each in value]
    return tuple(parts) if kind == "tuple" else parts
