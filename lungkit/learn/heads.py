"""A linear head on features that stay as they are: transfer learning in seconds a training.

The features are worked out once (lungkit/learn/features.py) and every repeat trains its own head on
them by the loop that trains a CNN, without augmentation.

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

PEAK_RATE = 3e-3      # by LC25000's val split at 64 px: 1e-3 0.919, 3e-3 0.925, 1e-2 0.908, n = 4


def as_setting(frozen: bool) -> dict[str, bool]:
    """Frozen features among what decides a training: said where it is not the usual one."""
    return {"frozen": True} if frozen else {}


def build(features, num_classes: int):
    """An untrained linear layer, before it the standardisation of the features it will be shown.

    features: float32 [N, D], those trained on.
    """
    import torch
    from torch import nn

    class Standardise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", features.mean(0))
            self.register_buffer("scale", 1 / features.std(0).clamp(min=1e-6))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return (batch - self.mean) * self.scale

    return nn.Sequential(Standardise(), nn.Linear(features.shape[1], num_classes))
