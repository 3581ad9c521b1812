"""The losses on paper: pairs worked by hand, and the definition written out as a loop."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.config import Loss
from dist_train.loss import ranking_loss, training_loss

quickly = settings(max_examples=50, deadline=None)


def test_a_pair_costs_what_the_better_one_lacks_to_be_ahead_by_the_margin() -> None:
    scores, opinions = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 2.0])
    # the first is the worst: it should lie 0.5 below the second (lacks 2.5) and the third (lacks 1.5); those two are equal
    assert ranking_loss(scores, opinions, 0.5).item() == pytest.approx((2.5 + 1.5) / 2)


@pytest.mark.parametrize(("lead", "cost"), [(0.2, 0.0), (0.1, 0.0), (0.04, 0.06), (0.0, 0.1), (-1.0, 1.1)])
def test_a_pair_far_enough_apart_costs_nothing(lead: float, cost: float) -> None:
    assert ranking_loss(torch.tensor([5.0 + lead, 5.0]), torch.tensor([60.0, 40.0]), 0.1).item() == pytest.approx(cost, abs=1e-6)


@quickly
@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 4)), min_size=1, max_size=12), st.floats(0, 3))
def test_the_ranking_loss_is_the_mean_over_unequal_pairs(points: list[tuple[float, int]], margin: float) -> None:
    costs = []
    for (p, y), (q, z) in itertools.combinations(points, 2):
        if y != z:
            costs.append(max(0.0, margin - (p - q if y > z else q - p)))
    scores, opinions = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
    assert ranking_loss(scores, opinions, margin).item() == pytest.approx(sum(costs) / len(costs) if costs else 0.0)


def test_without_unequal_opinions_there_is_no_ranking_loss_and_no_gradient() -> None:
    scores = torch.tensor([1.0, 5.0, 2.0], requires_grad=True)
    loss = ranking_loss(scores, torch.full((3,), 7.0), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad is not None and scores.grad.tolist() == [0.0, 0.0, 0.0]


def test_image_level_compares_means_and_patch_level_compares_patches() -> None:
    scores, opinions = torch.tensor([[10.0, 0.0], [6.0, 8.0]]), torch.tensor([1.0, 2.0])
    of_images = training_loss(scores, opinions, Loss(rank_weight=1, rank_level="image", rank_margin=0))
    of_patches = training_loss(scores, opinions, Loss(rank_weight=1, rank_level="patch", rank_margin=0))
    assert of_images.ranking.item() == 0.0  # means 5 and 7 are in order
    assert of_patches.ranking.item() == pytest.approx((4 + 2 + 0 + 0) / 4)  # the patch that scored 10 is ahead of both


def test_patches_of_one_image_are_never_compared() -> None:
    loss = training_loss(torch.tensor([[0.0, 50.0]]), torch.tensor([3.0]), Loss(rank_weight=1, rank_level="patch"))
    assert loss.ranking.item() == 0.0


def test_the_first_term_is_the_mean_distance_of_every_patch() -> None:
    scores, opinions = torch.tensor([[0.0, 10.0], [6.0, 8.0]]), torch.tensor([1.0, 2.0])
    assert training_loss(scores, opinions, Loss()).l1.item() == pytest.approx((1 + 9 + 4 + 6) / 4)


@pytest.mark.parametrize("level", ["image", "patch"])
def test_the_total_is_l1_and_alpha_times_the_ranking_loss(level: str) -> None:
    scores, opinions = torch.tensor([[4.0, 3.0], [1.0, 2.0]]), torch.tensor([1.0, 2.0])
    loss = training_loss(scores, opinions, Loss.model_validate({"rank_weight": 0.2, "rank_level": level}))
    assert loss.ranking.item() > 0
    assert loss.total.item() == pytest.approx(loss.l1.item() + 0.2 * loss.ranking.item())


@pytest.mark.parametrize("level", ["image", "patch"])
def test_without_alpha_the_gradient_is_that_of_plain_l1(level: str) -> None:
    opinions = torch.tensor([1.0, 2.0, 3.0])
    scores = torch.tensor([[5.0, 1.0], [4.0, 2.0], [3.5, 0.0]], requires_grad=True)
    training_loss(scores, opinions, Loss.model_validate({"rank_weight": 0, "rank_level": level})).total.backward()
    plain = scores.detach().clone().requires_grad_()
    torch.nn.functional.l1_loss(plain, opinions[:, None].expand(3, 2)).backward()
    assert torch.equal(scores.grad, plain.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", ["image", "patch"])
def test_the_gradient_is_finite_where_scores_and_opinions_meet(level: str) -> None:
    scores = torch.full((4, 3), 5.0, requires_grad=True)
    config = Loss.model_validate({"rank_weight": 1, "rank_level": level, "rank_margin": 0})
    training_loss(scores, torch.tensor([5.0, 5.0, 4.0, 6.0]), config).total.backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_the_gradient_pulls_the_better_image_up_and_the_worse_one_down() -> None:
    scores = torch.tensor([[5.0], [5.0]], requires_grad=True)
    ranking_loss(scores.flatten(), torch.tensor([80.0, 20.0]), 0.1).backward()
    assert scores.grad is not None and scores.grad.flatten().tolist() == [-1.0, 1.0]
