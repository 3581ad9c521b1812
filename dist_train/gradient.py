"""The gradient of one step: the same for any number of ranks and micro-batches.

The loss is a function of the scores of the whole global batch. So its gradient is taken in two parts: with respect to
the scores, which every rank computes alike from the gathered scores, and from this rank's scores back to the weights. When
the share of a rank is too large for one pass, and images are compared with each other, a first pass without gradient finds
the scores, and the passes after it carry the gradient back, one micro-batch at a time. That costs a forward pass more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dist_train import ranks
from dist_train.backbone import batch_norms
from dist_train.config import Loss
from dist_train.loss import LossParts, Targets, compares_images, training_loss


def accumulate_gradient(
    accelerator: Accelerator, model: nn.Module, pixels: Tensor, chances: Tensor, targets: Targets, config: Loss, micro_batch: int
) -> tuple[Tensor, LossParts]:
    """Adds the gradient of a step to the weights; returns all scores [global batch, patches] and the loss.

    `pixels` is this rank's share [images, patches, 3, size, size], `chances` [images, patches, num_chances] says what it
    drops, `targets` are everybody's. `model` is the DDP wrapper where there is one. A collective.
    """
    shares = list(zip(torch.split(pixels, micro_batch), torch.split(chances, micro_batch), strict=True))
    own = slice(ranks.rank(), None, ranks.world())

    def forward(number: int) -> Tensor:
        images, drawn = shares[number]
        scores: Tensor = model(images.flatten(0, 1), drawn.flatten(0, 1))
        return scores.view(images.shape[:2])

    def backward(scores: Tensor, gradient: Tensor) -> None:
        accelerator.backward((scores * gradient).sum() * ranks.world())  # DDP takes the mean over ranks, the loss wants the sum

    if len(shares) == 1:
        scores = forward(0)
        everyone = ranks.gather_visits(scores)
        loss, gradient = _loss_and_gradient(everyone, targets, config, ranks.world())
        backward(scores, gradient[own])
        return everyone, loss

    gradients: tuple[Tensor, ...] = ()
    compared = compares_images(config)
    if compared:
        with torch.no_grad(), _resting_batch_norm(model):
            preview = torch.cat([forward(number) for number in range(len(shares))])
        _, gradient = _loss_and_gradient(ranks.gather_visits(preview), targets, config, ranks.world())
        gradients = torch.split(gradient[own], micro_batch)
    found = []
    for number, own_targets in enumerate(targets.of(own).split(micro_batch)):
        with nullcontext() if number == len(shares) - 1 else accelerator.no_sync(model):
            scores = forward(number)
            alone = len(scores) / len(targets.opinions)  # the part of the global mean that these images make up
            backward(scores, gradients[number] if compared else _loss_and_gradient(scores, own_targets, config, 1)[1] * alone)
        found.append(scores.detach())
    everyone = ranks.gather_visits(torch.cat(found))
    return everyone, _loss_and_gradient(everyone, targets, config, ranks.world())[0]


def rehearse(model: nn.Module, pixels: Tensor, num_chances: int) -> None:
    """A pass forward and backward that changes nothing: `pixels` [images, patches, 3, size, size] as one micro-batch has them.

    DDP lays its buckets in the order in which the first backward pass brings the gradients, and where a number lies in a bucket
    decides how its sum over three ranks or more is rounded. So every session, also of a resumed run, has laid them before its
    first step. And a batch that is too large for the memory shows at once. A collective.
    """
    patches = pixels.flatten(0, 1)
    with _resting_batch_norm(model):
        (model(patches, torch.ones(len(patches), num_chances, device=patches.device)) * 0).sum().backward()
    model.zero_grad()


def _loss_and_gradient(scores: Tensor, targets: Targets, config: Loss, world: int) -> tuple[LossParts, Tensor]:
    """The loss of all scores, and its gradient with respect to each."""
    leaf = scores.detach().requires_grad_()
    loss = training_loss(leaf, targets, config, world)
    (gradient,) = torch.autograd.grad(loss.total, leaf)
    return LossParts(*(part.detach() for part in loss)), gradient


@contextmanager
def _resting_batch_norm(model: nn.Module) -> Iterator[None]:
    """BatchNorm layers normalise as in training; what their running statistics learnt within is forgotten after it."""
    kept = [(statistic, statistic.clone()) for layer in batch_norms(model) for statistic in layer.buffers()]
    try:
        yield
    finally:
        for statistic, as_it_was in kept:
            statistic.copy_(as_it_was)
