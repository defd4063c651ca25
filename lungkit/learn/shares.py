"""What of a batch a rank works on, so that all ranks together train as one process does.

A batch, its noise and its times are drawn whole by every rank, from (seed, step) alone; place i in
it has the same on any number of ranks. Each works on its part, and the means over the ranks of
losses and gradients are those of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from lungkit.run import ranks


class Share(NamedTuple):
    """A rank's part of a batch.

    weight: of the mean loss over it, so that the mean over the ranks is the mean over the batch,
    also where parts are of unlike sizes.
    """

    own: slice
    weight: float


ALL = Share(slice(None), 1.0)


def share_of(batch_size: int) -> Share:
    """This rank's part of a batch that has an image for each rank at least; one process: all."""
    number, rank = ranks.number(), ranks.rank()
    if number == 1:
        return ALL
    first, end = batch_size * rank // number, batch_size * (rank + 1) // number
    return Share(slice(first, end), (end - first) * number / batch_size)


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over the ranks, element by element: the same on all."""
    if ranks.number() == 1:
        return values
    from accelerate.utils import reduce

    return reduce(values, "mean")


class _Step(torch.nn.Module):
    """A loss as a module over what it trains, as accelerate takes it."""

    def __init__(self, loss_at: Callable, parameters: Sequence[torch.nn.Parameter]) -> None:
        super().__init__()
        self.trained = torch.nn.ParameterList(parameters)
        self.loss_at = loss_at

    def forward(self, step: int, generator: torch.Generator) -> torch.Tensor:
        return self.loss_at(step, generator)


def averaged(loss_at: Callable, parameters: Sequence[torch.nn.Parameter]) -> Callable:
    """loss_at(step, generator), by whose backward all ranks get the mean of their gradients.

    The ranks' parameters are made those of rank 0.
    """
    if ranks.number() == 1:
        return loss_at
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    how = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    accelerator = Accelerator(cpu=not parameters[0].is_cuda, mixed_precision="no",
                              kwargs_handlers=[how])
    return accelerator.prepare_model(_Step(loss_at, parameters), device_placement=False)
