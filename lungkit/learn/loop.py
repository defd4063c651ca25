"""The one training loop: AdamW, warm-up and cosine, EMA, checkpoints, exact resume.

Step k draws its batch, noise and times from (seed, k) alone, so that on the CPU an interrupted
and an uninterrupted training end with the same bytes.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from lungkit.run.faults import Fault, check_stop, stop_requested
from lungkit.run.files import write_bytes
from lungkit.run.progress import Progress
from lungkit.run.seeds import generator_for

CHECKPOINT_INTERVAL_SEC = 60


def learning_rate_at(step: int, steps: int, peak: float, warmup_steps: int) -> float:
    """Linear warm-up, then half a cosine down to a tenth of the peak."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


def train(parameters: Iterable[torch.nn.Parameter], loss_at: Callable, *, what: str, steps: int,
          learning_rate: float, seed: int, checkpoint_path: Path, ema_decay: float | None = None,
          weight_decay: float = 0.01, warmup_steps: int | None = None,
          jsonl_path: Path | None = None) -> float:
    """Minimise `loss_at(step, generator) -> scalar` over `steps`; leave the result in `parameters`.

    The result is the exponential moving average where `ema_decay` is given (Karras et al. 2024,
    arXiv:2312.02696 on its use), else the last weights. warmup_steps: None means a twentieth of
    `steps`, at most 500. The checkpoint is saved about every minute and on a signal, and removed
    by nobody here: it belongs to the caller's unpublished directory. Returns the mean loss of
    the last tenth.

    Raises Stopped after a signal, Fault when the loss is not finite.
    """
    from diffusers.training_utils import EMAModel

    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    warmup_steps = min(500, max(1, steps // 20)) if warmup_steps is None else warmup_steps
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay,
                                  betas=(0.9, 0.99))
    ema = EMAModel(parameters, decay=ema_decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75) \
        if ema_decay is not None else None
    first, losses = 0, []
    device = parameters[0].device
    if checkpoint_path.exists():
        state = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
        first, losses = state["step"], state["losses"]
        with torch.no_grad():
            for parameter, saved in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        if ema is not None:
            ema.load_state_dict(state["ema"])
            ema.to(device)

    def save(step: int) -> None:
        buffer = io.BytesIO()
        torch.save({"step": step, "losses": losses, "optimizer": optimizer.state_dict(),
                    "parameters": [parameter.detach() for parameter in parameters],
                    "ema": ema.state_dict() if ema is not None else None}, buffer)
        write_bytes(checkpoint_path, buffer.getvalue())

    progress = Progress(what, steps, done=first, jsonl_path=jsonl_path)
    saved_at, saving_sec = time.monotonic(), 0.0
    recent: list[torch.Tensor] = []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, learning_rate, warmup_steps)
        loss = loss_at(step, generator_for(seed, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if ema is not None:
            ema.step(parameters)
        recent.append(loss.detach())
        # saving takes a twentieth of the time at most, however large the model
        due = time.monotonic() - saved_at >= max(CHECKPOINT_INTERVAL_SEC, 20 * saving_sec)
        if len(recent) == 20 or due or stop_requested() or step + 1 == steps:  # few device syncs
            values = torch.stack(recent).float().cpu().tolist()
            recent.clear()
            if not all(math.isfinite(value) for value in values):
                raise Fault(f"{what}: the loss is not finite at about step {step}: "
                            "lower --learning-rate and add --overwrite")
            losses.extend(values)
            progress.update(step + 1, loss=sum(values) / len(values))
        if due or stop_requested() or step + 1 == steps:
            saving_sec = -time.monotonic()
            save(step + 1)
            saved_at = time.monotonic()
            saving_sec += saved_at
            if step + 1 < steps:
                check_stop()
    if ema is not None:
        ema.copy_to(parameters)
    tail = losses[-max(1, steps // 10):]
    return sum(tail) / len(tail)
