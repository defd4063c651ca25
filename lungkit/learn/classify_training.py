"""The training of a CNN that tells classes, and its probabilities: a plan, its steps, a prediction.

The loop keeps the images as bytes on the device and augments whole batches there, after
Jordan 2024 (arXiv:2404.00498); one-cycle schedule: Smith and Topin 2018 (arXiv:1708.07120);
AdamW: Loshchilov and Hutter 2019 (arXiv:1711.05101); label smoothing: Szegedy et al. 2016
(arXiv:1512.00567).

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from lungkit.data.orientations import orient
from lungkit.learn import augment, imbalance, mixing, unfreezing
from lungkit.learn.batches import as_inputs, scale_for, training_batches
from lungkit.learn.device import autocast
from lungkit.learn.pixels import bring
from lungkit.learn.training_options import complete
from lungkit.run import faults

USUAL: Mapping = MappingProxyType({})  # of lungkit.learn.settings: ConvNeXt's decay, 0.05 (Liu et
                                       # al. 2022), a label smoothed by 0.1 (Szegedy et al. 2016)
MOMENTUM = 0.9           # of sgd, as is usual
WARMUP = 0.2             # share of the steps in which the learning rate rises
BRIGHTNESS = 0.1         # an image is made up to so much brighter or darker; ours
EVAL_BATCH_SIZE, EVAL_PIXELS = 128, 2**20  # whichever is less: testing must not need more memory


# ------------------------------------------------------------------ the order

def plan_batches(drawn: np.ndarray, steps: int, batch_size: int,
                 rng: np.random.Generator, symmetries: int = 8,
                 hu_per_level: float | None = None, labels: np.ndarray | None = None,
                 settings: Mapping = USUAL) -> dict[str, np.ndarray]:
    """What every step sees, all of it drawn beforehand, so that a resumed step sees the same.

    labels: int [N] of the pool, needed where `settings` balance classes. Returns index int64
    [steps, batch]: epochs without replacement, or imbalance.order; symmetry int64 [steps, batch]
    in 0..symmetries-1, one of `square_symmetries`; brightness float32 [steps, batch], a factor,
    or, with the HU of a grey level, augment.draw_scans. As `settings` say, also
    imbalance.draw_moves, class_weights float32 [classes], mixing.draw.
    """
    how = complete(settings)
    shape = (steps, batch_size)
    order, copied = imbalance.order(drawn, labels, how["balance"], steps * batch_size, rng)
    plan = {"index": order.reshape(shape), "symmetry": rng.integers(0, symmetries, shape)}
    if hu_per_level is not None:
        lit, usual = augment.draw_scans(shape, hu_per_level, rng), 0
    else:
        lit, usual = {"brightness": rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS, shape)}, 1
    strength = how["augment"]
    if copied is not None:
        copied = copied.reshape(shape)
        strength = strength * np.where(copied, imbalance.STRONGER, 1)
        plan |= imbalance.draw_moves(copied, rng)
    if np.any(strength != 1):
        lit = {name: usual + strength * (values - usual) for name, values in lit.items()}
    plan |= {name: values.astype(np.float32) for name, values in lit.items()}
    if how["balance"] == "loss":
        plan["class_weights"] = imbalance.class_weights(labels[drawn], labels.max() + 1)
    return plan | mixing.draw(shape, how["mixup"], how["cutmix"], rng)


def one_cycle(step: int, steps: int) -> float:
    """The learning rate of a step as a share of its peak: a linear rise, then a cosine to 0."""
    done = (step + 1) / (steps + 1)
    if done < WARMUP:
        return done / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))


# ------------------------------------------------------------------ training and testing

def train(model, images, labels, plan: dict, *, learning_rate: float, symmetries: int = 8,
          settings: Mapping = USUAL, compile_model: bool = False, **kept: object) -> float:
    """Train `model` in place by `plan`; return the mean loss of the last tenth of the steps.

    images: uint8 [N, S, S, C], of lungkit.learn.pixels.hold, or features float32 [N, D]; labels:
    int64 [N]. settings: those of training_options that are not the usual. kept: how `loop` calls
    and keeps the training (what, identity, ...), what it raises.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from lungkit.learn.loop import RandomStates, loop
    from lungkit.learn.losses import Losses

    how = complete(settings)
    device, steps = next(model.parameters()).device, len(plan["index"])
    batch_at = training_batches(images, plan, symmetries, *scale_for(model, device), device)
    mix = mixing.mixer(plan, device)
    weights = None
    if "class_weights" in plan:
        weights = torch.from_numpy(plan["class_weights"]).to(device)
    layers = unfreezing.of(model, how, steps)
    optimizer = optimizer_of(layers.groups() if layers else model.parameters(), how, learning_rate)
    rates = [(optimizer, lambda step: learning_rate * one_cycle(step, steps))]
    losses = Losses()
    steps_left = loop(
        steps, losses=losses, save_last=False,
        state={"model": model, "optimizer": optimizer, "random": RandomStates(device)},
        rates=layers.rates(*rates[0]) if layers else rates, **kept)
    forward = torch.compile(model) if compile_model else model

    def loss_of(said, true):
        return cross_entropy(said, true, weights, label_smoothing=how["label_smoothing"])

    model.train()
    for step in steps_left:
        if layers:
            layers.begin(model, step)
        batch, index = batch_at(step)
        true, share = labels[index], 1
        if mix:
            batch, partner, share = mix(step, batch)
        with autocast(device, on_cpu=are_images(images)):
            said = forward(batch)
            loss = loss_of(said, true)
            if share != 1:
                loss = share * loss + (1 - share) * loss_of(said, true[partner])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.add(loss=loss)
    return float(torch.tensor(losses.last_tenth()).mean())


def are_images(inputs) -> bool:
    """Whether these are the bytes of images, and not features, whose products are no work."""
    import torch

    return inputs.dtype == torch.uint8


def optimizer_of(parameters, how: Mapping, learning_rate: float):
    """The optimiser that `how` names, of parameters or of groups of them."""
    import torch

    kinds = {"adamw": (torch.optim.AdamW, {"weight_decay": how["weight_decay"]}),
             "adam": (torch.optim.Adam, {}),
             "sgd": (torch.optim.SGD, {"weight_decay": how["weight_decay"], "momentum": MOMENTUM,
                                       "nesterov": True})}
    kind, more = kinds[how["optimizer"]]
    return kind(parameters, lr=learning_rate, fused=True, **more)


def drop_before_head(model, share: float):
    """`model`, whose last linear layer is shown a `share` of zeros while it is trained.

    By torch's own generator, so that lungkit.learn.loop.RandomStates resumes it.
    """
    from torch import nn
    from torch.nn.functional import dropout

    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    if share:
        head.register_forward_pre_hook(
            lambda layer, inputs: (dropout(inputs[0], share, layer.training),))
    return model


def predict(model, images, device=None, turns: Sequence[int] = (0,),
            symmetries: int = 8) -> np.ndarray:
    """Class probabilities float32 [N, C] of images uint8 [N, S, S, 3 or 1] of pixels.hold.

    images: or features, float32 [N, D]. device: the model's; None: the images'. turns: the
    orientations of `symmetries` over which probabilities are averaged (tta.turns).
    """
    import torch

    model.eval()
    device = device or images.device
    scale, shift = scale_for(model, device)
    parts = []
    with torch.inference_mode():
        most = EVAL_PIXELS // images[0, ..., 0].numel()
        for batch in images.split(max(1, min(EVAL_BATCH_SIZE, most))):
            batch, said = bring(batch, device), []
            for which in turns:
                turned = orient(batch, which, symmetries, axes=(1, 2)) if which else batch
                with autocast(device, on_cpu=are_images(images)):
                    logits = model(as_inputs(turned, scale, shift))
                said.append(logits.float().softmax(1))
            parts.append(torch.stack(said).mean(0))
            faults.check_stop()
    return torch.cat(parts).cpu().numpy()
