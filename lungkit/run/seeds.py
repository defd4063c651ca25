"""Every random stream: by stage and seed, and within it by item or step."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def stream(stage: str, seed: int) -> int:
    """The seed of one stage's draws: with the same --seed no two stages share a random number."""
    key = [crc32(stage.encode()), seed]
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(2))


def generator_for(*key: int):
    """A torch.Generator on the CPU that depends on the integers `key` alone, e.g. (seed, step)."""
    import torch

    state = np.random.SeedSequence([int(part) for part in key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
