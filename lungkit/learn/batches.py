"""What a model is shown: batches of images, turned and made brighter for training, or of features.

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lungkit.data.orientations import square_symmetries
from lungkit.learn import augment, imbalance
from lungkit.learn.pixels import bring

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which --weights expect


def pixel_scale(device, mean=MEAN, std=STD):
    """What turns bytes into the numbers that weights expect: scale and shift, float32 [3].

    mean, std: of what they were trained on, by channel, as shares of 255.
    """
    import torch

    return (torch.tensor([1 / (255 * each) for each in std], device=device),
            torch.tensor([-level / each for level, each in zip(mean, std)], device=device))


def scale_for(model, device):
    """The `pixel_scale` of a model: by its `pixels`, (mean, std), or else ImageNet's."""
    return pixel_scale(device, *getattr(model, "pixels", (MEAN, STD)))


def normalise(batch, scale, shift):
    """uint8 [B, H, W, 3 or 1] to float32 [B, 3, H, W] in channels_last order."""
    import torch

    return torch.addcmul(shift, batch.float(), scale).permute(0, 3, 1, 2)


def as_inputs(batch, scale, shift):
    """What a model takes: images normalised, features (float32 [B, D]) as they are."""
    return normalise(batch, scale, shift) if batch.ndim == 4 else batch


def training_batches(images, plan: dict[str, np.ndarray], symmetries: int, scale, shift,
                     device) -> Callable:
    """What `plan` shows at a step: a function of the step, to (inputs, index of the images).

    images: uint8 [N, S, S, C] or features float32 [N, D], of lungkit.learn.pixels.hold. plan: of
    classify_training.plan_batches; of features only its `index` is followed. Inputs are on
    `device`.
    """
    import torch

    with_pixels = ("index", "symmetry")
    plan = {name: torch.from_numpy(values).to(images.device if name in with_pixels else device)
            for name, values in plan.items()}
    if images.ndim == 2:
        return lambda step: (bring(images[plan["index"][step]], device), plan["index"][step])
    size = images.shape[1]
    pixels = images.flatten(1, 2)
    orders = square_symmetries(size, symmetries).to(pixels.device)

    def batch_at(step: int):
        index = plan["index"][step]
        # one gather fetches and turns the batch; its order is channels_last already
        batch = pixels[index[:, None], orders[plan["symmetry"][step]]].unflatten(1, (size, size))
        batch = bring(batch, device)
        if "copied" in plan:
            batch = imbalance.move_copies(batch, plan["copied"][step], plan["move"][step])
        if "brightness" in plan:
            brighter = plan["brightness"][step, :, None, None, None] * scale
            return normalise(batch, brighter, shift), index
        batch = augment.scan_again(batch, plan["shift"][step], plan["noise"][step])
        return normalise(batch, scale, shift), index

    return batch_at
