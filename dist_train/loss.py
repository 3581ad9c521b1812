"""What is minimised: a regression term, a ranking term and a consistency term, normalised over the global batch.

Every rank computes the loss of the whole global batch from the gathered scores, and differentiates it with respect to its
own scores only. The sum of the ranks' gradients is then the gradient of the one global loss, pairs across ranks included:
one rank with 8 images and four ranks with 2 take the same step. Images of different data sets are never compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dist_train.config import Loss

CORRELATIONS = ("plcc", "norm_in_norm")  # regression terms that compare images with each other
_TINY = 1e-8  # keeps a square root's slope, and a division by a constant batch's norm, finite


@dataclass(frozen=True)
class Targets:
    """What the scores of some images should be: opinions [images] and the number of each one's data set [images].

    Where the loss asks for them, also the standard deviation of each image's ratings [images], in units of the opinions. `point` is
    what a point is worth in that unit.
    """

    opinions: Tensor
    sets: Tensor
    label_std: float  # of the training opinions
    deviations: Tensor | None = None
    point: float = 1.0

    def of(self, images: slice) -> Targets:
        deviations = None if self.deviations is None else self.deviations[images]
        return replace(self, opinions=self.opinions[images], sets=self.sets[images], deviations=deviations)

    def in_points(self) -> Targets:
        deviations = None if self.deviations is None else self.deviations / self.point
        return replace(self, opinions=self.opinions / self.point, label_std=self.label_std / self.point, deviations=deviations)

    def split(self, size: int) -> list[Targets]:
        return [self.of(slice(first, first + size)) for first in range(0, len(self.opinions), size)]


class LossParts(NamedTuple):
    """Scalars: what is minimised, and its terms before their weights; a term without a weight is 0."""

    total: Tensor
    regression: Tensor
    ranking: Tensor
    consistency: Tensor


def training_loss(scores: Tensor, targets: Targets, config: Loss, world: int = 1) -> LossParts:
    """The loss of scores [images, patches] against targets [images], both in units of the label; itself it is in points.

    A point is a hundredth of the label's range. So a label of 0 to 1 and one of 0 to 100 weigh the same against weight decay, and terms
    with a unit against those without.
    With config.scope 'rank', visits [r::world] are a rank's own batch, and the loss is the mean of the ranks' losses, as code
    without communication has it.
    """
    if config.scope == "rank" and world > 1:
        of_ranks = [training_loss(scores[own], targets.of(own), config) for own in _shares(world)]
        return LossParts(*(torch.stack(values).mean() for values in zip(*of_ranks, strict=True)))
    scores, targets = scores / targets.point, targets.in_points()
    regression = regression_loss(*_at(config.regression_level, scores, targets.opinions, targets.sets), config, targets.point)
    if leaves_scale_open(config):
        scores = _spread_as(scores, targets.sets, targets.label_std)
    ranking = consistency = scores.new_zeros(())
    if config.rank_weight:
        ranking = _ranking(scores, targets, config)
    if config.consistency_weight:
        consistency = scores.var(dim=1, correction=0).mean() / targets.label_std
    total = regression + config.rank_weight * ranking + config.consistency_weight * consistency
    return LossParts(total, regression, ranking, consistency)


def _ranking(scores: Tensor, targets: Targets, config: Loss) -> Tensor:
    """The ranking term that the config names, before its weight."""
    values = _at(config.rank_level, scores, targets.opinions, targets.sets)
    if config.rank_kind == "hinge":
        return ranking_loss(*values, config.rank_margin * (targets.label_std if config.rank_margin_unit == "std" else 1 / targets.point))
    if config.fidelity_truth == "binary":
        return fidelity_loss(*values, targets.label_std)
    assert targets.deviations is not None, "a soft truth is made of deviations"
    _, apart, _ = _at(config.rank_level, scores, targets.deviations, targets.sets)
    return soft_fidelity_loss(*values, apart)


def _spread_as(scores: Tensor, sets: Tensor, label_std: float) -> Tensor:
    """The patch scores of each set, spread as the training opinions are: where no term fixes their scale, none may gain by shrinking it."""
    for number in set(sets.tolist()):
        here = sets == number
        scale = label_std / (scores[here].var(correction=0) + _TINY).sqrt()
        scores = torch.where(here[:, None], scale * scores, scores)
    return scores


def compares_images(config: Loss) -> bool:
    """Whether the gradient of one image's score depends on the scores of others."""
    return config.rank_weight > 0 or config.regression in CORRELATIONS


def leaves_scale_open(config: Loss) -> bool:
    """Whether scores mean nothing but their order and how far they lie apart, relative to each other: no term asks for their values."""
    return config.regression in CORRELATIONS


def needs_deviations(config: Loss) -> bool:
    """Whether the loss asks for the standard deviation of every image's ratings."""
    return config.rank_weight > 0 and config.rank_kind == "fidelity" and config.fidelity_truth == "soft"


def any_slope(targets: Targets, config: Loss, world: int) -> bool:
    """Whether the loss of a batch asks anything of its scores: a correlation of equal opinions, set by set, does not."""
    batches = [targets.of(own) for own in _shares(world)] if config.scope == "rank" else [targets]
    return config.regression not in CORRELATIONS or any(bool(_order(batch.opinions, batch.sets).any()) for batch in batches)


def regression_loss(scores: Tensor, opinions: Tensor, sets: Tensor, config: Loss, point: float = 1.0) -> Tensor:
    """The distance between scores [n] and opinions [n]; plcc and norm_in_norm are means over the sets, by their images.

    Both are in points, of which one is `point` of the label's unit.
    A set whose opinions are all equal in the batch has no correlation: it counts 1/2, whatever its scores, and has no gradient.
    smooth_l1: Girshick, "Fast R-CNN", ICCV 2015, eq. 3, turning from square to line at config.smooth_l1_beta.
    """
    match config.regression:
        case "l1":
            return functional.l1_loss(scores, opinions)
        case "smooth_l1":
            return functional.smooth_l1_loss(scores, opinions, beta=config.smooth_l1_beta / point)
        case "mse":
            return functional.mse_loss(scores, opinions)
    correlation = plcc_loss if config.regression == "plcc" else norm_in_norm_loss
    members = [sets == number for number in set(sets.tolist())]
    terms = [correlation(scores[here], opinions[here]) if _differ(opinions[here]) else scores.new_tensor(0.5) for here in members]
    return torch.stack([term * here.sum() for term, here in zip(terms, members, strict=True)]).sum() / len(scores)


def plcc_loss(scores: Tensor, opinions: Tensor) -> Tensor:
    """(1 - PLCC) / 2 of scores [n] and opinions [n]: 0 on a rising line, 1 on a falling one, 1/2 where either is constant.

    Li, Jiang and Jiang, "Norm-in-Norm Loss", ACM Multimedia 2020, who have it as a quarter of the mean square between z-scores: in
    their code (LinearityIQA) IQAloss.py, linearity_induced_loss with alpha = [1, 0].
    """
    return (1 - (_normed(scores) * _normed(opinions)).sum()) / 2


def norm_in_norm_loss(scores: Tensor, opinions: Tensor) -> Tensor:
    """Norm-in-norm with p = 1 and q = 2: Li, Jiang and Jiang, "Norm-in-Norm Loss", ACM Multimedia 2020. Between 0 and 1.

    Scores and opinions [n] are centred and divided by their Euclidean norm; the loss is the sum of absolute differences over
    its largest value, 2 sqrt(n). In the authors' code IQAloss.py, norm_loss_with_normalization with alpha = [1, 0].
    """
    return (_normed(scores) - _normed(opinions)).abs().sum() / (2 * math.sqrt(len(scores)))


def ranking_loss(scores: Tensor, opinions: Tensor, sets: Tensor, margin: float) -> Tensor:
    """Mean of relu(margin - sign(y_i - y_j) (p_i - p_j)) over the pairs of one set with y_i != y_j; 0 when there is none.

    The hinge of Herbrich, Graepel and Obermayer, "Large Margin Rank Boundaries for Ordinal Regression", chapter 7 of "Advances in
    Large Margin Classifiers", MIT Press 2000: what a pair there lacks of its margin; here of any width, as the Swin fork of
    HyperIQA has it. All are [n]. Patches of one image share an opinion and so never form a pair.
    """
    order = _order(opinions, sets)
    hinges = torch.relu(margin - order * (scores[:, None] - scores[None, :])) * order.abs()
    return hinges.sum() / order.abs().sum().clamp(min=1)


def fidelity_loss(scores: Tensor, opinions: Tensor, sets: Tensor, label_std: float) -> Tensor:
    """Mean of 1 - sqrt(q) over the pairs of one set with y_i > y_j, where q = Phi((p_i - p_j) / (sqrt(2) label_std)).

    The fidelity loss of Tsai et al., "FRank", SIGIR 2007, as LIQE (Zhang et al., CVPR 2023, equations 4 and 5) uses it: Thurstone's
    case V gives the probability q that the better image wins, and the truth is 1. A score's uncertainty is taken as one standard
    deviation of the label, which is 1 in LIQE. (The authors' code, loss_m3, divides by 1, not by sqrt(2).) Images of equal opinion
    form no pair; there they win half the time. All are [n]; 0 when there is no pair.
    """
    return _infidelity(scores, opinions, sets, torch.full_like(opinions, label_std), torch.ones_like)


def soft_fidelity_loss(scores: Tensor, opinions: Tensor, sets: Tensor, deviations: Tensor) -> Tensor:
    """Mean of 1 - sqrt(g q) - sqrt((1 - g) (1 - q)) over the pairs of one set with y_i > y_j; 0 when there is none.

    How often the better image of a pair wins by its ratings, g = Phi((y_i - y_j) / sqrt(d_i^2 + d_j^2)), is the truth of UNIQUE (Zhang
    et al., IEEE TIP 2021; GT_Gaussian in the authors' code). By its scores it is q, the same of p_i - p_j, so scores equal to
    the opinions cost nothing; UNIQUE learns the uncertainty of a score, where this takes the image's own. All are [n], and the
    deviations d of an image's ratings are in units of the opinions y.
    """
    return _infidelity(scores, opinions, sets, deviations, torch.special.ndtr)


def _infidelity(scores: Tensor, opinions: Tensor, sets: Tensor, deviations: Tensor, truth: Callable[[Tensor], Tensor]) -> Tensor:
    """`truth` gives the probability that the better image of a pair wins, from its lead in units of the pair's deviation."""
    better = _order(opinions, sets) > 0
    if not better.any():
        return scores.sum() * 0
    of_pairs = (deviations[:, None].square() + deviations[None, :].square() + _TINY).sqrt()[better]
    said, lead = ((values[:, None] - values[None, :])[better] / of_pairs for values in (opinions, scores))
    winning, losing = (torch.special.ndtr(sign * lead) for sign in (1, -1))
    right = truth(said)
    costs: Tensor = 1 - right.sqrt() * (winning + _TINY).sqrt() - (1 - right).sqrt() * (losing + _TINY).sqrt()
    return costs.mean()


def _shares(world: int) -> list[slice]:
    """The visits of each rank."""
    return [slice(rank, None, world) for rank in range(world)]


def _at(level: str, scores: Tensor, opinions: Tensor, sets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, opinions and sets [n] of the images, each by the mean of its patches, or of the patches."""
    if level == "image":
        return scores.mean(dim=1), opinions, sets
    patches = scores.shape[1]
    return scores.flatten(), opinions.repeat_interleave(patches), sets.repeat_interleave(patches)


def _order(opinions: Tensor, sets: Tensor) -> Tensor:
    """[n, n]: 1 where i is the better of a pair, -1 where j is, 0 where they are equal or of different sets."""
    return (opinions[:, None] - opinions[None, :]).sign() * (sets[:, None] == sets[None, :])


def _differ(values: Tensor) -> bool:
    """Whether not all are equal. Their spread does not say so: the mean of equal numbers may be off in the last digit."""
    return bool((values != values[0]).any())


def _normed(values: Tensor) -> Tensor:
    """Centred, and of Euclidean norm 1; all 0 when the values are constant."""
    centred = values - values.mean()
    return centred / (centred.square().sum() + _TINY).sqrt()
