"""What a U-Net is shown at every step: images with their masks, drawn beforehand, moved and lit.

Feeds unet_segment.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lungkit.data.mask_items import Item
from lungkit.data.segment_scores import IGNORED, components
from lungkit.learn import segment_augment
from lungkit.learn.pixels import bring


@dataclass(frozen=True)
class Pairs:
    """The images of a split with their masks, held for the device.

    images: uint8 [N, S, S, C]; masks: uint8 [N, S, S], 0 or 1; beside: int64 [N, K], which images
    are the channels of each, itself in the middle (`mask_items.neighbours`); ignored: uint8
    [N, S, S], 1 where the truth is unknown, or None.
    """

    images: Tensor
    masks: Tensor
    beside: Tensor
    ignored: Tensor | None = None

    def inputs(self, index: Tensor, device) -> Tensor:
        """float32 [B, K x C, S, S] in 0..1 on `device`."""
        images = bring(self.images[self.beside[index]], device)  # [B, K, S, S, C]
        return images.permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 255

    def truth(self, index: Tensor, device) -> Tensor:
        """float32 [B, 1, S, S], or with `ignored` as a second channel."""
        kinds = [self.masks] if self.ignored is None else [self.masks, self.ignored]
        return torch.stack([bring(each[index], device) for each in kinds], 1).float()

    def marked(self, images: Sequence[int]) -> np.ndarray:
        """uint8 [n, S, S]: 1 foreground, 0 background, segment_scores.IGNORED."""
        index = list(images)
        true = self.masks[index].cpu().numpy()
        return true if self.ignored is None else np.where(
            self.ignored[index].cpu().numpy() > 0, np.uint8(IGNORED), true)


def memory_format(device) -> torch.memory_format:
    """How a network and its images lie in memory: channels last on a GPU.

    On a CPU the gradient of GroupNorm, of two channels a group, takes seven times as long so.
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def as_network_sees(images: Tensor) -> Tensor:
    """0..1 to -1..1, in `memory_format`."""
    return (2 * images - 1).contiguous(memory_format=memory_format(images.device))


# ------------------------------------------------------------------ what every step sees

def lesions_of(items: Sequence[Item], masks: np.ndarray) -> list[np.ndarray]:
    """What is shown equally often: a lesion of a volume, all foreground of an image.

    masks: uint8 [N, S, S]. Returns regions as `regions_of` does.
    """
    found = []
    for item in items:
        shown = masks[list(item.images)]
        found += regions_of(shown if item.slices is None else components(shown)[0], item.images)
    return found


def regions_of(labels: np.ndarray, images: Sequence[int]) -> list[np.ndarray]:
    """The voxels of each label above 0 of int [n, S, S]: place of the image x S x S + pixel.

    images: int [n], the places. Returns int64 [voxels] for each label that is there.
    """
    size = labels[0].size
    voxels = np.flatnonzero(labels)
    if not len(voxels):
        return []
    voxels = voxels[np.argsort(labels.flat[voxels], kind="stable")]
    slices, pixels = np.divmod(voxels, size)
    return np.split(np.array(images)[slices] * size + pixels,
                    np.flatnonzero(np.diff(labels.flat[voxels])) + 1)


def pick(regions: Sequence[np.ndarray], draws: np.ndarray, size: int, patch_size: int
         ) -> tuple[np.ndarray, np.ndarray]:
    """Patches around voxels of regions, each region as often as any other: index and centre.

    draws: float [2, ...] in 0..1, drawn evenly: which region, and which of its voxels. Returns
    int64 [...], places of images of `size`, and float32 [..., 2], x and y, of patches inside them.
    """
    numbers = np.array([len(each) for each in regions])
    chosen = (draws[0] * len(regions)).astype(int)
    begins = np.cumsum(numbers) - numbers
    voxel = np.concatenate(regions)[begins[chosen] + (draws[1] * numbers[chosen]).astype(int)]
    row, column = np.divmod(voxel % size**2, size)
    half = patch_size / 2
    centre = np.clip(np.stack([column, row], -1) + 0.5, half, size - half)
    return (voxel // size**2).astype(np.int64), centre.astype(np.float32)


def plan_batches(drawn: np.ndarray, lesions: Sequence[np.ndarray], *, steps: int, batch_size: int,
                 oversample: float, hard_negatives: float, size: int, patch_size: int,
                 symmetries: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw all that a training sees beforehand, so that a resumed step sees the same.

    drawn: int [M], the images trained on; lesions: regions of these, of images of `size`. The first
    round(batch x oversample) of each batch show a patch around a voxel of a lesion, each lesion as
    often as any other, however many slices it crosses; the others go through all images in epochs,
    until `Batches.show_again` puts round(batch x hard_negatives) of them elsewhere.
    Returns index int64 [steps, batch], centre float32 [steps, batch, 2], again float64
    [2, steps, hard], the draws of those, and `segment_augment.draw_moves`.
    """
    forced = round(batch_size * oversample)
    hard = min(round(batch_size * hard_negatives), batch_size - forced)
    free = steps * (batch_size - forced)
    order = [rng.permutation(drawn) for _ in range(math.ceil(free / len(drawn)))]
    half = patch_size / 2
    index = np.zeros((steps, batch_size), np.int64)
    centre = rng.uniform(half, size - half, (steps, batch_size, 2)).astype(np.float32)
    if forced:
        index[:, :forced], centre[:, :forced] = pick(lesions, rng.random((2, steps, forced)), size,
                                                     patch_size)
    if free:
        index[:, forced:] = np.concatenate(order)[:free].reshape(steps, -1)
    again = rng.random((2, steps, hard))
    moves = segment_augment.draw_moves((steps, batch_size), symmetries, rng)
    return {"index": index, "centre": centre, "again": again, **moves}


def plan_epochs(drawn: np.ndarray, masks: np.ndarray, *, epochs: int, batch_size: int,
                symmetries: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The published recipe's batches: a weighted sampler, with replacement, and whole images.

    Images with and without foreground are drawn equally often, as PyTorch's WeightedRandomSampler
    does by weights of one over their numbers.
    """
    steps = epochs * max(1, len(drawn) // batch_size)
    shows = np.array([masks[i].any() for i in drawn])
    weight = np.where(shows, 1 / max(1, shows.sum()), 1 / max(1, (~shows).sum()))
    index = rng.choice(drawn, (steps, batch_size), p=weight / weight.sum())
    centre = np.full((steps, batch_size, 2), masks.shape[1] / 2, np.float32)
    moves = segment_augment.draw_moves((steps, batch_size), symmetries, rng)
    return {"index": index, "centre": centre, **moves}


class Batches:
    """What a plan shows at a step: a function of the step, to (inputs, truth), on `device`."""

    def __init__(self, pairs: Pairs, plan: dict[str, np.ndarray], patch_size: int, device) -> None:
        self.pairs, self.patch_size, self.device = pairs, patch_size, device
        self.index = torch.from_numpy(plan["index"]).to(pairs.images.device)
        self.again = plan.get("again")
        self.held = {name: torch.from_numpy(values).to(device) for name, values in plan.items()
                     if name not in ("index", "again")}

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        moves = {name: values[step] for name, values in self.held.items()}
        index = self.index[step]
        images, truth = segment_augment.place(
            self.pairs.inputs(index, self.device), self.pairs.truth(index, self.device),
            moves.pop("centre"), moves, self.patch_size)
        return as_network_sees(segment_augment.light(images, moves)), truth

    def show_again(self, regions: Sequence[np.ndarray]) -> None:
        """Put the last places of every batch, as many as were planned, around voxels of regions."""
        index, centre = pick(regions, self.again, self.pairs.masks.shape[1], self.patch_size)
        places = slice(self.index.shape[1] - index.shape[1], None)
        self.index[:, places] = torch.from_numpy(index).to(self.index.device)
        self.held["centre"][:, places] = torch.from_numpy(centre).to(self.device)
