"""Every random stream: by stage and seed, and within it by item or step.

Streams of different keys are independent, and a key's numbers are for ever: they decide what a
rerun draws.
"""

from __future__ import annotations

import random
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


# ------------------------------------------------------------------ of an image to be generated

def layout_draws(seed: int, index: int) -> np.random.Generator:
    """What the layout of item `index` is drawn from."""
    return np.random.default_rng([seed, index])


def caption_draws(seed: int, index: int) -> random.Random:
    """What the caption of item `index` is drawn from."""
    return random.Random(f"{seed}:{index}")


# ------------------------------------------------------------------ of a repeat
# the arm is part of the key: the rank-sum test takes trainings of two arms as independent

def repeat_draws(arm: str, seed: int, replicate: int, *purpose: int) -> np.random.Generator:
    """What a repeat draws for one purpose; without one, all that the baseline draws."""
    return np.random.default_rng([crc32(arm.encode()), seed, replicate, *purpose])


def pool_draws(arm: str, turn: int, replicate: int, label: int) -> np.random.Generator:
    """The order in which a pool's images of a class are used up, once around."""
    return repeat_draws(arm, turn, replicate, 0, label)


def order_draws(arm: str, seed: int, replicate: int) -> np.random.Generator:
    """The order of a repeat's images, how they are turned and lit."""
    return repeat_draws(arm, seed, replicate, 1)


def weights_seed(arm: str, seed: int, replicate: int) -> int:
    """torch's seed for a repeat's initial weights and dropout."""
    key = [crc32(arm.encode()), seed, replicate, 2]
    return int(np.random.SeedSequence(key).generate_state(1)[0])
