"""L1 and ranking losses, normalised over the global batch.

Every rank computes the loss of the whole global batch from the gathered scores, and differentiates it with respect to its
own scores only. The sum of the ranks' gradients is then the gradient of the one global loss, pairs across ranks included:
one rank with 8 images and four ranks with 2 take the same step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dist_train.config import Loss


class LossParts(NamedTuple):
    """Scalars: what is minimised, and the two terms before their weights."""

    total: Tensor
    l1: Tensor
    ranking: Tensor


def training_loss(scores: Tensor, opinions: Tensor, config: Loss) -> LossParts:
    """The loss of scores [images, patches] against opinions [images], both in units of the label."""
    l1 = (scores - opinions[:, None]).abs().mean()
    if config.rank_level == "image":
        ranking = ranking_loss(scores.mean(dim=1), opinions, config.rank_margin)
    else:
        ranking = ranking_loss(scores.flatten(), opinions.repeat_interleave(scores.shape[1]), config.rank_margin)
    return LossParts(l1 + config.rank_weight * ranking, l1, ranking)


def ranking_loss(scores: Tensor, opinions: Tensor, margin: float) -> Tensor:
    """Mean of relu(margin - sign(y_i - y_j) (p_i - p_j)) over the pairs with y_i != y_j; 0 when there is none.

    The hinge of RankNet's successors, as the HyperIQA fork of the seeds uses it. Scores and opinions are [n]. Patches of
    one image share an opinion and so never form a pair.
    """
    order = (opinions[:, None] - opinions[None, :]).sign()
    ahead = order * (scores[:, None] - scores[None, :])
    hinges = torch.relu(margin - ahead) * order.abs()
    return hinges.sum() / order.abs().sum().clamp(min=1)
