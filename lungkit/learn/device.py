"""Where a model runs: the device, its precision, its name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import cache

from lungkit.run.faults import BadOptions

NAME = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


def use_device(name: str, *, threads: int | None = None, needed: bool = True):
    """Resolve --device to a torch.device and set the CPU threads.

    threads: None means OMP_NUM_THREADS, else every core this process may use. At a fixed
        count the same seed gives the same bytes; another count may round differently.
    needed: False in a dry run, which may plan for a device that only another machine has, and
        where all may be complete: the name is looked at and returned, PyTorch is not imported.
    Raises BadOptions where the name means no device, or one that is needed is not here.
    """
    if not NAME.fullmatch(name):
        raise BadOptions(f"--device {name!r} is not a device; use auto, cpu, cuda or cuda:N")
    if not needed:
        return name
    import torch

    if threads is None:
        allowed = len(os.sched_getaffinity(0))
        threads = (_number("OMP_NUM_THREADS") or _number("SLURM_CPUS_PER_TASK") or allowed or 1)
    torch.set_num_threads(max(1, threads))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise BadOptions(f"--device {name}: PyTorch sees no CUDA device here; use --device "
                             "cpu, or check the driver and CUDA_VISIBLE_DEVICES")
        if (device.index or 0) >= torch.cuda.device_count():
            raise BadOptions(f"--device {name}: only {torch.cuda.device_count()} CUDA devices here")
    return device


def _number(name: str) -> int | None:
    """The number in an environment variable, the first of a list such as 4,1; None if none is."""
    first = os.environ.get(name, "").split(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) > 0 else None


def autocast(device, *, on_cpu: bool = False):
    """Products in bfloat16 on a GPU; on a CPU in float32.

    on_cpu: in bfloat16 also on a CPU that has instructions for it. Drawing, encoding and most
    trainings gain there (benchmarks/precision.txt), those of adapters little.
    """
    import torch

    enabled = device.type == "cuda" or (on_cpu and has_bfloat16())
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@cache
def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself, in tiles (AMX) or vectors (AVX-512 BF16).

    In others it is slower than float32.
    LUNGKIT_PRECISION=float32 in the environment says no: for the same bytes on nodes of two kinds.
    """
    import torch

    asked = os.environ.get("LUNGKIT_PRECISION", "")
    if asked not in ("", "float32"):
        raise BadOptions(f"LUNGKIT_PRECISION is {asked!r}: expected float32, or not set")
    return not asked and any(getattr(torch.cpu, name, bool)() for name in (
        "_is_amx_tile_supported", "_is_avx512_bf16_supported"))


def frozen_dtype(device):
    """The precision of weights that are only read: that in which `autocast` multiplies them."""
    import torch

    return torch.bfloat16 if device.type == "cuda" else torch.float32


def freeze(model, device):
    """`model`, whose weights are only read from here on, on `device` and as `autocast` takes them.

    It keeps the rounded weights of what is trained for a whole pass; frozen ones it would round
    again at every use.
    """
    import torch

    dtype = frozen_dtype(device)
    order = torch.preserve_format if dtype == torch.float32 else torch.channels_last
    return model.to(device, dtype, memory_format=order).requires_grad_(False).eval()


def by_halves(work: Callable[[Sequence], object], images: Sequence) -> list:
    """[work(images)], or of both halves, or theirs, where a GPU's memory does not take them."""
    import torch

    try:
        return [work(images)]
    except torch.OutOfMemoryError as error:
        if len(images) == 1:
            error.remedy = "make REAL with a smaller --image-size"
            raise
    torch.cuda.empty_cache()
    half = len(images) // 2
    return [*by_halves(work, images[:half]), *by_halves(work, images[half:])]


def device_name(device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "cpu, products in bfloat16" if has_bfloat16() else "cpu"
