"""Background that a U-Net takes for foreground, looked for while it trains and shown again.

Of the background of whole scans few patches are drawn, and what looks like a lesion is rare among
them. So what the network finds in vain in its own training images is looked for twice, and a share
of every batch shows it from then on: the bootstrapping of Sung and Poggio 1998 (IEEE Trans Pattern
Anal Mach Intell 20:39). Val and test are never looked at.

Feeds unet_segment.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lungkit.data.mask_items import Item
from lungkit.data.segment_choice import HALF, level_of
from lungkit.data.segment_scores import components, of_interest
from lungkit.learn.segment_batches import Batches, Pairs, regions_of
from lungkit.learn.segment_training import predict_items, window_starts
from lungkit.run.progress import say

LOOKS = 1 / 3, 2 / 3    # ours: after these shares of the steps


class HardNegatives:
    """What was found in vain, shown again by `batches`; a part of a training's state.

    items: of the images trained on, looked at in this order, in turn. A look goes over no more
    windows than patches are trained on until the next, and over an item at least, so that looking
    costs less than a third of the time. None is due where the plan has no place for what is found.
    """

    def __init__(self, batches: Batches, items: Sequence[Item], *, what: str) -> None:
        self.batches, self.items, self.what = batches, items, what
        steps, batch_size = batches.index.shape
        self.due = {round(steps * share) for share in LOOKS if batches.again.size} - {0}
        self.size = batches.pairs.masks.shape[1]
        windows = len(window_starts(self.size, batches.patch_size, overlap=0))**2
        self.most = steps * batch_size * LOOKS[0] / windows
        self.next, self.regions = 0, []

    def look(self, model: nn.Module) -> None:
        """Find anew in the items whose turn it is; what was found in others is kept."""
        chosen, looked_at = [], set()
        while len(chosen) < len(self.items) and len(looked_at) < self.most:
            chosen.append(self.items[self.next])
            looked_at.update(chosen[-1].images)
            self.next = (self.next + 1) % len(self.items)
        kept = [each for each in self.regions if each[0] // self.size**2 not in looked_at]
        found = found_in_vain(model, self.batches.pairs, chosen, self.batches.device,
                              patch_size=self.batches.patch_size)
        say(f"{self.what}: {len(found)} components found in vain in {len(looked_at)} train images, "
            "shown again")
        self.show(kept + found)

    def show(self, regions: list[np.ndarray]) -> None:
        """Show these; of none, what was shown stays, and is what a resumed training shows."""
        if regions:
            self.regions = regions
            self.batches.show_again(regions)

    def state_dict(self) -> dict:
        voxels = [torch.from_numpy(each) for each in self.regions]
        return {"next": self.next, "voxels": torch.cat(voxels) if voxels else None,
                "numbers": [len(each) for each in voxels]}

    def load_state_dict(self, state: dict) -> None:
        self.next = state["next"]
        if state["numbers"]:
            self.show([each.numpy() for each in state["voxels"].split(state["numbers"])])


def found_in_vain(model: nn.Module, pairs: Pairs, items: Sequence[Item], device, *,
                  patch_size: int) -> list[np.ndarray]:
    """Regions of every component, at a probability of 0.5, that touches no foreground of `pairs`.

    Windows overlap as little as they can: what is found only at the edge of a patch is to be shown
    again too. What touches what is to be ignored is left out.
    """
    (threshold,), _ = HALF
    found = []
    for item, levels in zip(items, predict_items(model, pairs, items, device, overlap=0,
                                                 patch_size=patch_size, flips=((),))):
        marked = pairs.marked(item.images)
        said, true = of_interest(levels.reshape(marked.shape) >= level_of(threshold), marked)
        labels = components(said if item.slices is not None else said[0])[0].reshape(said.shape)
        labels[np.isin(labels, labels[true & said])] = 0
        found += regions_of(labels, item.images)
    return found
