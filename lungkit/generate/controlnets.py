"""The ControlNet that a training starts from: found, and held against the base model by headers."""

from __future__ import annotations

from pathlib import Path

from lungkit.generate.base_parts import open_parts
from lungkit.generate.model_files import check_shapes, open_part
from lungkit.generate.single_file import SingleFile
from lungkit.run import faults

CONTROLNET = "ControlNetModel"


def check_controlnet(controlnet: str | None) -> Path | None:
    """The folder --controlnet names, None if none. Raises BadOptions if it holds no whole one."""
    if not controlnet:
        return None
    if not (Path(controlnet) / "config.json").is_file():
        raise faults.BadOptions(f"--controlnet {controlnet}: no ControlNet in diffusers layout "
                                "there")
    try:
        open_part(Path(controlnet), CONTROLNET)
    except faults.Fault as fault:
        raise faults.BadOptions(f"--controlnet {controlnet}: {fault}") from None
    return Path(controlnet)


def check_control_fits(base: Path | SingleFile, start: Path | None) -> None:
    """Raise BadOptions unless the ControlNet to start from, if there is one, fits the base."""
    from diffusers import ControlNetModel

    is_file = isinstance(base, SingleFile)  # which has no ControlNet of its own
    folder = start or (None if is_file else base / "controlnet")
    if folder is None or not (folder / "config.json").is_file():
        return
    try:
        parts = base.parts() if is_file else open_parts(base)
        part = open_part(folder, CONTROLNET)
        unet = parts["unet"].config
        other = [key for key in ("in_channels", "cross_attention_dim", "block_out_channels",
                                 "layers_per_block") if unet.get(key) != part.config.get(key)]
        if other:
            raise faults.Fault(f"its {other[0]} is {part.config.get(other[0])}, the base model's "
                               f"{unet.get(other[0])}: give one made for this base")
        steps = [len(config[key]) for config, key in (
            (part.config, "conditioning_embedding_out_channels"),
            (parts["vae"].config, "block_out_channels"))]
        if steps[0] != steps[1]:
            raise faults.Fault(f"it halves its maps {steps[0] - 1} times, the base model's "
                               f"autoencoder {steps[1] - 1}: give one made for this base")
        check_shapes(part, lambda: ControlNetModel.from_config(part.config))
    except faults.Fault as fault:
        raise faults.BadOptions(f"--controlnet {folder}: {fault}") from None
