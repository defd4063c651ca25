"""The training of a CNN that tells classes, and its probabilities: a plan, its steps, a prediction.

The loop keeps the images as bytes on the device and augments whole batches there, after
Jordan 2024 (arXiv:2404.00498); one-cycle schedule: Smith and Topin 2018 (arXiv:1708.07120);
AdamW: Loshchilov and Hutter 2019 (arXiv:1711.05101); label smoothing: Szegedy et al. 2016
(arXiv:1512.00567).

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import math

import numpy as np

from lungkit.learn import augment
from lungkit.learn.batches import as_inputs, scale_for, training_batches
from lungkit.learn.device import autocast
from lungkit.learn.pixels import bring
from lungkit.run import faults

WEIGHT_DECAY = 0.05      # ConvNeXt's (Liu et al. 2022)
LABEL_SMOOTHING = 0.1    # Szegedy et al. 2016
WARMUP = 0.2             # share of the steps in which the learning rate rises
BRIGHTNESS = 0.1         # an image is made up to so much brighter or darker; ours
EVAL_BATCH_SIZE, EVAL_PIXELS = 128, 2**20  # whichever is less: testing must not need more memory


# ------------------------------------------------------------------ the order

def plan_batches(drawn: np.ndarray, steps: int, batch_size: int,
                 rng: np.random.Generator, symmetries: int = 8,
                 hu_per_level: float | None = None) -> dict[str, np.ndarray]:
    """What every step sees, all of it drawn beforehand, so that a resumed step sees the same.

    Returns index int64 [steps, batch]: epochs without replacement; symmetry int64 [steps, batch]
    in 0..symmetries-1, one of `square_symmetries`; brightness float32 [steps, batch], a factor,
    or, with the HU of a grey level, augment.draw_scans.
    """
    num_images = steps * batch_size
    num_epochs = math.ceil(num_images / len(drawn))
    order = np.concatenate([rng.permutation(drawn) for _ in range(num_epochs)])[:num_images]
    shape = (steps, batch_size)
    plan = {"index": order.reshape(shape), "symmetry": rng.integers(0, symmetries, shape)}
    if hu_per_level is not None:
        return {**plan, **augment.draw_scans(shape, hu_per_level, rng)}
    brightness = rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS, shape)
    return {**plan, "brightness": brightness.astype(np.float32)}


def one_cycle(step: int, steps: int) -> float:
    """The learning rate of a step as a share of its peak: a linear rise, then a cosine to 0."""
    done = (step + 1) / (steps + 1)
    if done < WARMUP:
        return done / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))


# ------------------------------------------------------------------ training and testing

def train(model, images, labels, plan: dict, *, learning_rate: float, symmetries: int = 8,
          compile_model: bool = False, **kept: object) -> float:
    """Train `model` in place by `plan`; return the mean loss of the last tenth of the steps.

    images: uint8 [N, S, S, C], of lungkit.learn.pixels.hold, or features float32 [N, D]; labels:
    int64 [N]. kept: how `loop` calls and keeps the training (what, identity, ...), what it raises.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from lungkit.learn.loop import Losses, RandomStates, loop

    device, steps = next(model.parameters()).device, len(plan["index"])
    batch_at = training_batches(images, plan, symmetries, *scale_for(model, device), device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate,
                                  weight_decay=WEIGHT_DECAY, fused=True)
    losses = Losses()
    steps_left = loop(
        steps, losses=losses, save_last=False,
        state={"model": model, "optimizer": optimizer, "random": RandomStates(device)},
        rates=[(optimizer, lambda step: learning_rate * one_cycle(step, steps))], **kept)
    forward = torch.compile(model) if compile_model else model
    model.train()
    for step in steps_left:
        batch, index = batch_at(step)
        with autocast(device):
            loss = cross_entropy(forward(batch), labels[index], label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.add(loss=loss)
    return float(torch.tensor(losses.last_tenth()).mean())


def predict(model, images, device=None) -> np.ndarray:
    """Class probabilities float32 [N, C] of images uint8 [N, S, S, 3 or 1] of pixels.hold.

    images: or features, float32 [N, D]. device: the model's; None: the images'.
    """
    import torch

    model.eval()
    device = device or images.device
    scale, shift = scale_for(model, device)
    parts = []
    with torch.inference_mode():
        most = EVAL_PIXELS // images[0, ..., 0].numel()
        for batch in images.split(max(1, min(EVAL_BATCH_SIZE, most))):
            with autocast(device):
                logits = model(as_inputs(bring(batch, device), scale, shift))
            parts.append(logits.float().softmax(1))
            faults.check_stop()
    return torch.cat(parts).cpu().numpy()
