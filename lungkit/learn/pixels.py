"""Where a split's images lie while a model works on them: on its device, or mapped or in memory.

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import warnings

import numpy as np

FREE_SHARE = 0.5  # ours: of a GPU's free memory; model, optimiser and batches need the rest


def as_tensor(images: np.ndarray):
    """`images` as a tensor on the same memory, which is not to be written to if it is mapped."""
    import torch

    with warnings.catch_warnings():  # of writing to what must not be written to: nobody does
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(images)


def hold(images: np.ndarray, device):
    """uint8 [N, S, S, C] as a tensor: on `device` if it fits, else where it is.

    On the CPU nothing is copied: what is mapped from a file stays mapped.
    """
    import torch

    held = as_tensor(images)
    if device.type == "cuda" and held.nbytes > FREE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return held
    return held.to(device)


def bring(batch, device):
    """`batch` on `device`; from the host to a GPU by pinned memory, without waiting for it."""
    if batch.device.type == device.type:
        return batch
    return batch.pin_memory().to(device, non_blocking=True)
