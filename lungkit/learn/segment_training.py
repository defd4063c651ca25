"""Train a U-Net on pairs of images and masks, and predict with it: whole images or windows.

Feeds unet_segment.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lungkit.data.mask_items import Item
from lungkit.data.segment_choice import WHITE
from lungkit.learn.device import autocast
from lungkit.learn.loop import RandomStates, fetch_finite, learning_rate_at, loop
from lungkit.learn.losses import Losses
from lungkit.learn.segment_batches import Pairs, as_network_sees
from lungkit.run.faults import check_stop

WEIGHT_DECAY = 0.01
PATIENCE = 5                # ours: epochs without a better val loss until the published recipe ends
OVERLAP, BLEND = 0.5, 1 / 8 # of windows; deviation of their weights by their side: Isensee 2021
EVAL_PIXELS = 2**20         # predicted at a time: testing must not need more memory than training
SURELY_NOT = -20.0          # a logit: its loss and gradient are nil where background is true
FLIPS = {8: ((), (-1,), (-2,), (-2, -1)), 2: ((), (-1,)), 1: ((),)}  # by symmetries


# ------------------------------------------------------------------ training

class BestOnVal:
    """The weights with the least val loss so far; tells when an epoch more is not worth it."""

    def __init__(self, model: nn.Module) -> None:
        self.weights, self.loss, self.since = copy.deepcopy(model.state_dict()), math.inf, 0

    def note(self, model: nn.Module, loss: float) -> bool:
        """Take in an epoch's val loss; return whether to stop."""
        self.since += 1
        if loss < self.loss:
            self.weights, self.loss, self.since = copy.deepcopy(model.state_dict()), loss, 0
        return self.since >= PATIENCE

    def state_dict(self) -> dict:
        return {"weights": self.weights, "loss": self.loss, "since": self.since}

    def load_state_dict(self, state: dict) -> None:
        self.weights, self.loss, self.since = state["weights"], state["loss"], state["since"]


def train(model: nn.Module, batch_at: Callable, loss_of: Callable, *, steps: int,
          learning_rate: float, negatives=None, **kept: object) -> float:
    """Train `model` in place: AdamW, warm-up and cosine; its weights become their moving average.

    negatives: a `hard_negatives.HardNegatives`, or None. kept: how `loop` calls and keeps the
    training. Returns the mean loss of the last tenth.
    """
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY,
                                  fused=True)
    # over a twentieth of the training, ten steps at least: ours
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / max(10, steps / 20)))
    losses = Losses()
    looked = {} if negatives is None else {"negatives": negatives}
    steps_left = loop(
        steps, losses=losses, rates=[(optimizer, lambda step: learning_rate_at(
            step, steps, learning_rate, max(1, steps // 20)))],
        state={"model": model, "optimizer": optimizer, "average": average,
               "random": RandomStates(device), **looked}, **kept)
    model.train()
    for step in steps_left:
        if looked and step in negatives.due:
            negatives.look(average.module)
        losses.add(loss=_step(model, optimizer, batch_at(step), loss_of, device))
        average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())
    return float(np.mean(losses.last_tenth()))


def train_published(model: nn.Module, batch_at: Callable, loss_of: Callable, *, steps: int,
                    steps_per_epoch: int, learning_rate: float, val_loss: Callable,
                    **kept: object) -> float:
    """Train `model` in place as the published recipe: Adam at one rate, stopped early by val.

    The weights are those of the least val loss. Otherwise as `train`.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses, best = Losses(), BestOnVal(model)
    steps_left = loop(steps, losses=losses, state={
        "model": model, "optimizer": optimizer, "best": best, "random": RandomStates(device)},
        **kept)
    for step in steps_left:
        model.train()
        losses.add(loss=_step(model, optimizer, batch_at(step), loss_of, device))
        if (step + 1) % steps_per_epoch == 0 and best.note(model, val_loss(model)):
            break
    fetch_finite(losses, str(kept["what"]), steps)
    model.load_state_dict(best.weights)
    return float(np.mean(losses.last_tenth()))


def known_loss(loss_of: Callable, logits: Tensor, truth: Tensor) -> Tensor:
    """The loss of what is known: where the second channel of `truth` is 1 nothing is to be learnt.

    logits: [B, 1, S, S]; truth: [B, 1 or 2, S, S]. There background is taken as said and true.
    """
    hidden, true = truth[:, 1:] > 0, truth[:, :1]
    if hidden.shape[1]:
        logits, true = logits.masked_fill(hidden, SURELY_NOT), true.masked_fill(hidden, 0)
    return loss_of(logits, true)


def _step(model, optimizer, batch: tuple[Tensor, Tensor], loss_of: Callable, device) -> Tensor:
    inputs, truth = batch
    with autocast(device, on_cpu=True):
        logits = model(inputs)
    loss = known_loss(loss_of, logits, truth)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss


# ------------------------------------------------------------------ predicting

@torch.inference_mode()
def probabilities(model: nn.Module, images: Tensor, patch_size: int,
                  flips: Sequence[tuple] = ((),), overlap: float = OVERLAP) -> Tensor:
    """Foreground's probability float32 [B, S, S] of images float32 [B, C, S, S] in 0..1.

    Larger images than a patch are gone over in windows that overlap by that share of their side or
    more, blended by a Gaussian. flips: axes, over which predictions are averaged, () as it is.
    """
    size, device = images.shape[-1], images.device
    starts = window_starts(size, patch_size, overlap)
    weight = blend(min(patch_size, size), device) if len(starts) > 1 else torch.ones(
        (), device=device)
    total = torch.zeros(len(images), size, size, device=device)
    among = torch.zeros(size, size, device=device)
    for top in starts:
        for left in starts:
            window = (..., slice(top, top + patch_size), slice(left, left + patch_size))
            total[window] += weight * _mean_over(model, images[window], flips)
            among[window] += weight
    return total / among


def _mean_over(model: nn.Module, images: Tensor, flips: Sequence[tuple]) -> Tensor:
    said = 0
    for axes in flips:
        with autocast(images.device, on_cpu=True):
            logits = model(as_network_sees(images.flip(axes)))
        said = said + logits.float().sigmoid()[:, 0].flip(axes)
    return said / len(flips)


def window_starts(size: int, patch_size: int, overlap: float = OVERLAP) -> list[int]:
    """Where windows begin along an axis: evenly, overlapping by that share or more, to both ends.
    """
    if patch_size >= size:
        return [0]
    number = math.ceil((size - patch_size) / (patch_size * (1 - overlap))) + 1
    return np.linspace(0, size - patch_size, number).round().astype(int).tolist()


def blend(patch_size: int, device) -> Tensor:
    """float32 [P, P]: a Gaussian around the middle of a window, 1 there and nowhere 0."""
    away = (torch.arange(patch_size, device=device) + 0.5) / patch_size - 0.5
    line = torch.exp(-0.5 * (away / BLEND)**2)
    return (line[:, None] * line).clamp_min(1e-3)


def predict_items(model: nn.Module, pairs: Pairs, items: Sequence[Item], device, *,
                  patch_size: int, flips: Sequence[tuple], overlap: float = OVERLAP
                  ) -> Iterator[np.ndarray]:
    """Levels uint8 of every item in turn: [n, S, S] of a volume, [S, S] of an image.

    flips, overlap: of `probabilities`. What is held is an item and a batch. Raises Stopped after a
    signal.
    """
    model.eval()
    order = torch.tensor([i for item in items for i in item.images])
    most = max(1, EVAL_PIXELS // pairs.masks[0].numel())
    waiting: list[np.ndarray] = []
    chunks = iter(order.split(most))
    for item in items:
        while len(waiting) < len(item.images):
            check_stop()
            inputs = pairs.inputs(next(chunks).to(pairs.images.device), device)
            said = probabilities(model, inputs, patch_size, flips, overlap)
            waiting += list((said * WHITE).round().to(torch.uint8).cpu().numpy())
        levels, waiting = waiting[:len(item.images)], waiting[len(item.images):]
        yield levels[0] if item.slices is None else np.stack(levels)


@torch.inference_mode()
def mean_loss(model: nn.Module, pairs: Pairs, images: np.ndarray, loss_of: Callable,
              device) -> float:
    """The mean of a loss over the images int [n] as they are."""
    model.eval()
    most = max(1, EVAL_PIXELS // pairs.masks[0].numel())
    total = 0.0
    for index in torch.from_numpy(images).to(pairs.images.device).split(most):
        with autocast(device, on_cpu=True):
            logits = model(as_network_sees(pairs.inputs(index, device)))
        total += float(known_loss(loss_of, logits, pairs.truth(index, device))) * len(index)
    return total / len(images)
