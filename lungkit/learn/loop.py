"""The one training loop: resume, stop, checkpoints, finite losses, rates, progress.

`for step in loop(...)` hands out the steps that are still to do; the forward and the backward pass
are its caller's. What lies in `state` comes back on resuming: where a step draws from (seed, step)
alone, or from torch's own generators with `RandomStates` in `state`, an interrupted and an
uninterrupted training end on the CPU with the same bytes.

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from lungkit.learn import checkpoints
from lungkit.learn.losses import Losses
from lungkit.learn.shares import averaged
from lungkit.learn.validation import Validation, exchanged
from lungkit.run import ranks
from lungkit.run.faults import BadOptions, Fault, stop_requested
from lungkit.run.files import atomic_path, write_json, write_text
from lungkit.run.progress import Progress, note_saved, say
from lungkit.run.seeds import generator_for

SCHEMA = "lungkit.checkpoint/2"
CHECKPOINT_INTERVAL_SEC = 60
WARNING_SEC = 180  # the jobs' #SBATCH --signal
VALIDATION = "validation.json"  # what the best weights were, beside the table of losses
SYNC_STEPS = 20  # the losses are read so often; in between a GPU is never waited for


class Diverged(Fault):
    """A loss that is not finite: of a search a finding, of any other training a fault."""


class RandomStates:
    """torch's own generators, from which dropout and stochastic depth draw."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state_dict(self) -> dict:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def load_state_dict(self, state: dict) -> None:
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)


def loop(total: int, *, what: str, state: dict, losses: Losses, identity: dict,
         checkpoint_path: Path | None, overwrite: bool = False,
         rates: Iterable[tuple[torch.optim.Optimizer, Callable[[int], float]]] = (),
         save_last: bool = True, keep_earlier: bool = False,
         jsonl_path: Path | None = None) -> Iterator[int]:
    """Restore `state` if a checkpoint is there; return an iterator over the steps left of `total`.

    state: by name what a step changes: models with their buffers, optimisers, averages,
        RandomStates (all with state_dict and load_state_dict), or tensors.
    losses: each step must add its own.
    identity: the options that decide the training; a checkpoint of others is refused, or with
        `overwrite` ignored. A flat dict.
    checkpoint_path: written about every minute, on a signal and, with `save_last`, after the last
        step; removed by the caller. None: nowhere, nothing can be resumed.
    keep_earlier: keep the one before it too, in `earlier(checkpoint_path)`, for where the last is
        torn: by a power cut, a full disk, a file system that lost a part.
    rates: (optimiser, its learning rate at a step), set before each step.

    Of several ranks the first saves, and all look for signals together, every SYNC_STEPS.
    Raises, while stepping, Stopped after a signal, Fault when a loss is not finite; at once
    BadOptions or Fault when the checkpoint is of another training or cannot be read.
    """
    state = {**state, "losses": losses}
    first = restore(checkpoint_path, state, identity, overwrite=overwrite, what=what)
    if any(ranks.any_of(first != ranks.by_first(lambda: first))):
        raise Fault(f"the ranks found different checkpoints in {checkpoint_path}: run the same "
                    "command again, with it on a file system that all nodes share")
    progress = Progress(what, total, done=first, jsonl_path=jsonl_path)

    def steps() -> Iterator[int]:
        saved_at, saving_sec, warned = time.monotonic(), 0.0, False
        for step in range(first, total):
            for optimizer, rate_at in rates:
                for group in optimizer.param_groups:
                    group["lr"] = rate_at(step)
            yield step
            last = step + 1 == total
            due = time.monotonic() - saved_at >= save_interval(saving_sec)
            urgent = ranks.number() == 1 and (due or stop_requested())
            if losses.num_waiting() < SYNC_STEPS and not (last or urgent):
                continue
            due, stopping = ranks.any_of(due, stop_requested())
            new = fetch_finite(losses, what, total)
            progress.update(step + 1, **{name: sum(values) / len(values)
                                         for name, values in new.items()})
            if due or stopping or (last and save_last):
                saving_sec = -time.monotonic()
                save(checkpoint_path, state, identity, step + 1, keep_earlier=keep_earlier)
                saved_at = time.monotonic()
                saving_sec += saved_at
                warned = warned or warn_of_slow_saving(what, saving_sec)
                if not last:
                    ranks.check_stop()

    return steps()


def fetch_finite(losses: Losses, what: str, total: int) -> dict[str, list[float]]:
    """`losses.fetch()`, of `total` steps in the end. Raises Diverged where one is not finite."""
    new = losses.fetch()
    if not all(math.isfinite(value) for values in new.values() for value in values):
        done = max(map(len, losses.values.values()))
        raise Diverged(f"{what}: the loss is not finite at about step {done} of {total}: lower "
                       "--learning-rate and add --overwrite, or look at the images")
    return new


def save_interval(saving_sec: float) -> float:
    """Seconds from one checkpoint to the next, of a model that takes `saving_sec` to save.

    Saving takes a twentieth of the time, but what a killed stage loses is less than the warning.
    """
    return min(max(CHECKPOINT_INTERVAL_SEC, 20 * saving_sec), WARNING_SEC - 30)


def warn_of_slow_saving(what: str, saving_sec: float) -> bool:
    """Say it where saving takes a good part of a job's warning; return whether it does."""
    slow = saving_sec > WARNING_SEC / 3
    if slow:
        say(f"warning: {what}: saving takes {saving_sec:.0f} s, and a job is warned "
            f"{WARNING_SEC} s before its end: give it more, --signal=B:USR2@"
            f"{max(600, round(5 * saving_sec))}")
    return slow


def earlier(path: Path) -> Path:
    """Where the checkpoint before that in `path` is kept."""
    return path.with_name(f"{path.stem}.earlier{path.suffix}")


def save(path: Path | None, state: dict, identity: dict, step: int, *,
         keep_earlier: bool = False) -> None:
    """Write a checkpoint after `step` steps, whole or not at all."""
    if path is None or not ranks.is_first():
        return
    saved = {name: each.detach() if isinstance(each, torch.Tensor) else each.state_dict()
             for name, each in state.items()}
    with atomic_path(path) as hidden:
        checkpoints.write(hidden, {"schema": SCHEMA, "identity": identity, "step": step,
                                   "state": saved})
        if keep_earlier and path.exists():
            os.replace(path, earlier(path))
    note_saved()


def restore(path: Path | None, state: dict, identity: dict, *, overwrite: bool = False,
            what: str = "training") -> int:
    """Fill `state` from the last whole checkpoint, if there is one; return the steps done.

    Of a torn one a warning is said, and it is left out. Raises as `loop` does.
    """
    saved, torn, places = None, [], [] if path is None else [path, earlier(path)]
    for place in places:
        if saved is None and place.exists():
            try:
                saved, path = checkpoints.read(place), place
            except checkpoints.Torn as error:
                torn.append(place)
                say(f"warning: {what}: the checkpoint {place} is torn ({error}) and left out")
    if torn and saved is None:
        say(f"warning: {what}: no whole checkpoint is left: it begins anew")
    if saved is None:
        return 0
    readable = isinstance(saved, dict) and saved.get("schema") == SCHEMA \
        and saved["state"].keys() == state.keys()
    there = saved["identity"] if readable else {}
    changed = [f"{name}: {there.get(name)!r} there, {identity.get(name)!r} now"
               for name in sorted({*there, *identity}) if there.get(name) != identity.get(name)]
    if overwrite and (changed or not readable):
        for place in places:
            place.unlink(missing_ok=True)  # never to be taken for an earlier one of this training
        return 0
    if not readable:
        beside = "".join(f" and {place.name}" for place in places
                         if place != path and place.exists())
        raise Fault(f"{path} is not a checkpoint of this version, which cannot go on from it: "
                    f"remove it{beside}, and the same command trains this part from its start")
    if changed:
        raise BadOptions(f"{path} was begun otherwise ({'; '.join(changed)}): use the same "
                         "options, another place to write to, or --overwrite")
    with torch.no_grad():
        for name, each in state.items():
            load = each.copy_ if isinstance(each, torch.Tensor) else each.load_state_dict
            load(saved["state"][name])
    for place in torn:  # else the next one would keep it in the whole one's place
        place.unlink(missing_ok=True)
    return saved["step"]


# ------------------------------------------------------------------ what the generators train with

def learning_rate_at(step: int, steps: int, peak: float, warmup_steps: int) -> float:
    """Linear warm-up, then half a cosine down to a tenth of the peak."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


def train(parameters: Iterable[torch.nn.Parameter], loss_at: Callable, *, what: str, steps: int,
          learning_rate: float, seed: int, checkpoint_path: Path, ema_decay: float | None = None,
          weight_decay: float = 0.01, warmup_steps: int | None = None,
          jsonl_path: Path | None = None, curve_path: Path | None = None,
          validation: Validation | None = None) -> float:
    """Minimise `loss_at(step, generator) -> scalar` over `steps`; leave the result in `parameters`.

    AdamW on a warm-up and a cosine; step k draws its batch, noise and times from (seed, k) alone,
    and ranks share it out. The result is the exponential moving average where `ema_decay` is given
    (Karras et al. 2024, arXiv:2312.02696 on its use), else the last weights. warmup_steps: None
    means a twentieth of `steps`, at most 500. The checkpoint belongs to the caller's unpublished
    directory, which removes it. curve_path: a CSV of the loss by step (`Losses.curve`), the same
    after a kill; None: none. validation: looks at what is held out; the result is then the weights
    that it found best, and what it found lies in validation.json beside the curve. Returns the mean
    loss of the last tenth of the steps taken. Raises as `loop` does.
    """
    from diffusers.training_utils import EMAModel

    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    warmup_steps = min(500, max(1, steps // 20)) if warmup_steps is None else warmup_steps
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay,
                                  betas=(0.9, 0.99), fused=True)
    state = {"parameters": torch.nn.ParameterList(parameters), "optimizer": optimizer}
    ema = None
    if ema_decay is not None:  # foreach: a GPU's few large kernels; a CPU's sums keep their order
        ema = state["ema"] = EMAModel(parameters, decay=ema_decay, use_ema_warmup=True,
                                      foreach=parameters[0].is_cuda, inv_gamma=1.0, power=0.75)
    watched = {}
    if validation is not None:
        state["validation"], watched = validation, {"patience": validation.patience}
    losses = Losses()
    steps_left = loop(
        steps, what=what, state=state, losses=losses, checkpoint_path=checkpoint_path,
        identity={"what": what, "steps": steps, "learning_rate": learning_rate, "seed": seed,
                  "ema_decay": ema_decay, "weight_decay": weight_decay,
                  "warmup_steps": warmup_steps, **watched},
        rates=[(optimizer,
                lambda step: learning_rate_at(step, steps, learning_rate, warmup_steps))],
        keep_earlier=True, jsonl_path=jsonl_path)
    if ema is not None:
        ema.to(parameters[0].device)  # a restored average lies on the CPU
    loss_at = averaged(loss_at, parameters)
    for step in steps_left:
        loss = loss_at(step, generator_for(seed, step))
        update(loss, parameters, optimizer, ema)
        losses.add(loss=loss)
        if validation is not None and step + 1 in validation.due:
            with exchanged(parameters, ema and ema.shadow_params):
                enough = validation.note(step + 1, parameters, what)
            if enough:
                break
    if validation is not None:
        finish_early(losses, validation, what, steps)
        validation.restore(parameters)
    elif ema is not None:
        ema.copy_to(parameters)
    if curve_path is not None and ranks.is_first():
        write_curve(curve_path, losses, validation)
    tail = losses.last_tenth()
    return sum(tail) / len(tail)


def update(loss: torch.Tensor, parameters: list, optimizer: torch.optim.Optimizer, ema) -> None:
    """One step down the gradient of `loss`, clipped to a length of 1, and of the average."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    if ema is not None:
        ema.step(parameters)


def finish_early(losses: Losses, validation: Validation, what: str, steps: int) -> None:
    """Take in what a training that ended before its last step has left, and say that it did."""
    fetch_finite(losses, what, steps)
    if (done := len(losses.values["loss"])) < steps:
        say(f"{what}: stopped after {done} of {steps} steps: what is held out was best known after "
            f"{validation.best_step}")


def write_curve(path: Path, losses: Losses, validation: Validation | None) -> None:
    """The losses by step as a CSV; of what is held out a column, and validation.json beside it."""
    rows = {step: [f"{loss:.6g}", ""] for step, loss in losses.curve()}
    names = ["step", "train_loss", "val_loss"][:2 if validation is None else 3]
    if validation is not None:
        for step, loss in validation.values.items():
            rows.setdefault(step, ["", ""])[1] = f"{loss:.6g}"
        write_json(path.with_name(VALIDATION), validation.record(len(losses.values["loss"])))
    lines = [",".join([str(step), *rows[step]][:len(names)]) for step in sorted(rows)]
    write_text(path, "\n".join([",".join(names), *lines, ""]))
