"""What a training image of CT could also have been: another scanner's level and noise, in HU.

A factor on the brightness, as for photographs, would turn one tissue into another: grey is HU.

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import numpy as np

# ours: within what scanners' calibration leaves, and noise that a sharper kernel would add
SHIFT_HU, NOISE_HU = 20.0, 30.0
WINDOW_HU = 1400.0  # of CT whose own window is unknown: ct_seg.py's default, -1000 to 400


def as_setting(modality: str | None) -> dict[str, str]:
    """The augmentation among what decides a training: said where it is not the usual one."""
    return {"augmentation": "hu"} if modality == "ct" else {}


def hu_per_level(modality: str | None, intensity: dict | None) -> float | None:
    """HU of one of 255 grey levels; None where grey is not HU. Both as a manifest has them."""
    if modality != "ct":
        return None
    low, high = intensity["window"] if intensity else (0.0, WINDOW_HU)
    return (high - low) / 255


def draw_scans(shape: tuple[int, ...], per_level: float,
               rng: np.random.Generator) -> dict[str, np.ndarray]:
    """{"shift", "noise"}: float32 of `shape` in grey levels, of up to SHIFT_HU and NOISE_HU."""
    return {"shift": (rng.uniform(-SHIFT_HU, SHIFT_HU, shape) / per_level).astype(np.float32),
            "noise": (rng.uniform(0, NOISE_HU, shape) / per_level).astype(np.float32)}


def scan_again(batch, shift, noise):
    """uint8 [B, S, S, C] to float32, shifted and with noise of the deviation `noise`; both [B].

    In grey levels, cut at 0 and 255 as by the window. The channels have one noise. Draws from
    torch's own generator, so that lungkit.learn.loop.RandomStates resumes it.
    """
    import torch

    grain = torch.randn(batch[..., :1].shape, device=batch.device)
    return (batch + shift[:, None, None, None] + noise[:, None, None, None] * grain).clamp(0, 255)
