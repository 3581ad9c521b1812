"""An exponential moving average of the weights, which is judged, and may be the best, beside the weights themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """average = d * average + (1 - d) * weights after every step, with d = min(decay, (1 + n) / (10 + n)) at the n-th.

    The d is that of TensorFlow's tf.train.ExponentialMovingAverage when it is told num_updates. So the first weights, which are
    far from trained, are soon forgotten. BatchNorm's running statistics are averaged too.
    """

    @torch.no_grad()
    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], steps: Tensor | int) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        for average, weight in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(weight.to(average.dtype), 1 - now)
            else:  # counters
                average.copy_(weight)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
