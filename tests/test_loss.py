"""The losses on paper: pairs worked by hand, and the definition written out as a loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from dist_train.config import Loss
from dist_train.loss import (
    Targets,
    compares_images,
    fidelity_loss,
    leaves_scale_open,
    norm_in_norm_loss,
    plcc_loss,
    ranking_loss,
    regression_loss,
    soft_fidelity_loss,
    training_loss,
)

quickly = settings(max_examples=50, deadline=None)


def one_set(opinions: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(opinions), dtype=torch.long)


def targets(opinions: torch.Tensor, label_std: float = 1.0, deviations: torch.Tensor | None = None) -> Targets:
    """Of one set."""
    return Targets(opinions, one_set(opinions), label_std, deviations)


def hinge(scores: torch.Tensor, opinions: torch.Tensor, margin: float) -> torch.Tensor:
    return ranking_loss(scores, opinions, one_set(opinions), margin)


def test_a_pair_costs_what_the_better_one_lacks_to_be_ahead_by_the_margin() -> None:
    scores, opinions = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 2.0])
    # the first is the worst: it should lie 0.5 below the second (lacks 2.5) and the third (lacks 1.5); those two are equal
    assert hinge(scores, opinions, 0.5).item() == pytest.approx((2.5 + 1.5) / 2)


@pytest.mark.parametrize(("lead", "cost"), [(0.2, 0.0), (0.1, 0.0), (0.04, 0.06), (0.0, 0.1), (-1.0, 1.1)])
def test_a_pair_far_enough_apart_costs_nothing(lead: float, cost: float) -> None:
    assert hinge(torch.tensor([5.0 + lead, 5.0]), torch.tensor([60.0, 40.0]), 0.1).item() == pytest.approx(cost, abs=1e-6)


@quickly
@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 4)), min_size=1, max_size=12), st.floats(0, 3))
def test_the_ranking_loss_is_the_mean_over_unequal_pairs(points: list[tuple[float, int]], margin: float) -> None:
    costs = []
    for (p, y), (q, z) in itertools.combinations(points, 2):
        if y != z:
            costs.append(max(0.0, margin - (p - q if y > z else q - p)))
    scores, opinions = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
    assert hinge(scores, opinions, margin).item() == pytest.approx(sum(costs) / len(costs) if costs else 0.0)


def test_without_unequal_opinions_there_is_no_ranking_loss_and_no_gradient() -> None:
    scores = torch.tensor([1.0, 5.0, 2.0], requires_grad=True)
    loss = hinge(scores, torch.full((3,), 7.0), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert scores.grad is not None and scores.grad.tolist() == [0.0, 0.0, 0.0]


def test_image_level_compares_means_and_patch_level_compares_patches() -> None:
    scores, opinions = torch.tensor([[10.0, 0.0], [6.0, 8.0]]), torch.tensor([1.0, 2.0])
    of_images = training_loss(scores, targets(opinions), Loss(rank_weight=1, rank_level="image", rank_margin=0))
    of_patches = training_loss(scores, targets(opinions), Loss(rank_weight=1, rank_level="patch", rank_margin=0))
    assert of_images.ranking.item() == 0.0  # means 5 and 7 are in order
    assert of_patches.ranking.item() == pytest.approx((4 + 2 + 0 + 0) / 4)  # the patch that scored 10 is ahead of both


def test_patches_of_one_image_are_never_compared() -> None:
    loss = training_loss(torch.tensor([[0.0, 50.0]]), targets(torch.tensor([3.0])), Loss(rank_weight=1, rank_level="patch"))
    assert loss.ranking.item() == 0.0


def test_the_first_term_is_the_mean_distance_of_every_patch() -> None:
    scores, opinions = torch.tensor([[0.0, 10.0], [6.0, 8.0]]), torch.tensor([1.0, 2.0])
    assert training_loss(scores, targets(opinions), Loss()).regression.item() == pytest.approx((1 + 9 + 4 + 6) / 4)


@pytest.mark.parametrize("level", ["image", "patch"])
def test_the_total_is_l1_and_alpha_times_the_hinge(level: str) -> None:
    scores, opinions = torch.tensor([[4.0, 3.0], [1.0, 2.0]]), torch.tensor([1.0, 2.0])
    loss = training_loss(scores, targets(opinions), Loss.model_validate({"rank_weight": 0.2, "rank_level": level}))
    assert loss.ranking.item() > 0
    assert loss.total.item() == pytest.approx(loss.regression.item() + 0.2 * loss.ranking.item())


@pytest.mark.parametrize("level", ["image", "patch"])
def test_without_alpha_the_gradient_is_that_of_plain_l1(level: str) -> None:
    opinions = torch.tensor([1.0, 2.0, 3.0])
    scores = torch.tensor([[5.0, 1.0], [4.0, 2.0], [3.5, 0.0]], requires_grad=True)
    training_loss(scores, targets(opinions), Loss.model_validate({"rank_weight": 0, "rank_level": level})).total.backward()
    plain = scores.detach().clone().requires_grad_()
    torch.nn.functional.l1_loss(plain, opinions[:, None].expand(3, 2)).backward()
    assert torch.equal(scores.grad, plain.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", ["image", "patch"])
def test_the_gradient_is_finite_where_scores_and_opinions_meet(level: str) -> None:
    scores = torch.full((4, 3), 5.0, requires_grad=True)
    config = Loss.model_validate({"rank_weight": 1, "rank_level": level, "rank_margin": 0})
    training_loss(scores, targets(torch.tensor([5.0, 5.0, 4.0, 6.0])), config).total.backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_the_gradient_pulls_the_better_image_up_and_the_worse_one_down() -> None:
    scores = torch.tensor([[5.0], [5.0]], requires_grad=True)
    hinge(scores.flatten(), torch.tensor([80.0, 20.0]), 0.1).backward()
    assert scores.grad is not None and scores.grad.flatten().tolist() == [-1.0, 1.0]


# -- other regression terms --


@quickly
@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 100)), min_size=3, max_size=12))
def test_the_plcc_loss_is_half_of_what_the_correlation_lacks_to_1(points: list[tuple[float, float]]) -> None:
    scores, opinions = (np.array(column) for column in zip(*points, strict=True))
    assume(scores.std() > 0.1 and opinions.std() > 0.1)
    expected = (1 - pearsonr(scores, opinions).statistic) / 2
    assert plcc_loss(torch.from_numpy(scores), torch.from_numpy(opinions)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [plcc_loss, norm_in_norm_loss])
def test_a_loss_of_correlation_is_0_on_a_rising_line_and_the_same_on_any_scale(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    opinions = torch.tensor([1.0, 4.0, 2.0, 8.0], dtype=torch.float64)
    scores = torch.tensor([3.0, 1.0, 2.0, 6.0], dtype=torch.float64)
    assert loss(5 * opinions - 20, opinions).item() == pytest.approx(0, abs=1e-6)
    assert loss(7 * scores + 3, opinions).item() == pytest.approx(loss(scores, opinions).item(), rel=1e-6)
    assert loss(-opinions, opinions).item() > 0.5


def test_the_norm_in_norm_loss_worked_by_hand() -> None:
    scores, opinions = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([0.0, 3.0, 0.0])
    # centred (-1, -1, 2) and (-1, 2, -1), of norm sqrt(6): differences 0, 3, 3, largest possible sum 2 sqrt(3)
    assert norm_in_norm_loss(scores, opinions).item() == pytest.approx(6 / math.sqrt(6) / (2 * math.sqrt(3)), rel=1e-6)


@quickly
@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 100)), min_size=2, max_size=12))
def test_the_norm_in_norm_loss_stays_between_0_and_1(points: list[tuple[float, float]]) -> None:
    scores, opinions = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
    assert 0 <= norm_in_norm_loss(scores, opinions).item() <= 1


@pytest.mark.parametrize(("kind", "cost"), [("l1", (1 + 3) / 2), ("mse", (1 + 9) / 2), ("smooth_l1", (1 / 4 + (3 - 1)) / 2)])
def test_a_distance_worked_by_hand(kind: str, cost: float) -> None:
    config = Loss.model_validate({"regression": kind, "smooth_l1_beta": 2.0})
    opinions = torch.tensor([5.0, 5.0])
    assert regression_loss(torch.tensor([6.0, 2.0]), opinions, one_set(opinions), config).item() == pytest.approx(cost)


def test_regression_at_image_level_looks_at_the_mean_of_the_patches() -> None:
    scores, opinions = torch.tensor([[0.0, 10.0], [6.0, 8.0]]), torch.tensor([5.0, 2.0])
    assert training_loss(scores, targets(opinions), Loss(regression_level="image")).regression.item() == pytest.approx((0 + 5) / 2)


@pytest.mark.parametrize("kind", ["plcc", "norm_in_norm"])
def test_a_correlation_is_taken_within_each_set(kind: str) -> None:
    opinions, sets = torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0, 3.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    scores = torch.tensor([1.0, 2.0, 3.0, 71.0, 72.0, 73.0])  # each set perfectly, on a scale of its own
    config = Loss.model_validate({"regression": kind})
    assert regression_loss(scores, opinions, sets, config).item() == pytest.approx(0, abs=1e-4)
    assert regression_loss(scores, opinions, one_set(opinions), config).item() > 0.1


@pytest.mark.parametrize("level", ["image", "patch"])
@pytest.mark.parametrize("kind", ["plcc", "norm_in_norm"])
def test_a_set_of_equal_opinions_has_no_correlation_to_learn(kind: str, level: str) -> None:
    config = Loss.model_validate({"regression": kind, "regression_level": level})
    scores = torch.tensor([[1.0, 2.0], [3.0, 5.0], [2.0, 9.0], [1.0, 4.0], [3.0, 3.0], [8.0, 2.0]], requires_grad=True)
    opinions, sets = torch.tensor([7.3, 7.3, 7.3, 1.0, 2.0, 4.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    loss = training_loss(scores, Targets(opinions, sets, 1.0), config)
    alone = training_loss(scores[3:], targets(opinions[3:]), config)
    assert loss.regression.item() == pytest.approx((0.5 + alone.regression.item()) / 2)
    loss.total.backward()
    assert scores.grad is not None and not scores.grad[:3].any() and scores.grad[3:].any()


# -- other ranking terms --


def test_images_of_different_sets_never_form_a_pair() -> None:
    scores, opinions = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0])
    for sets, cost in ((torch.tensor([0, 0]), 1.0), (torch.tensor([0, 1]), 0.0)):
        assert ranking_loss(scores, opinions, sets, 0.0).item() == cost
        assert (fidelity_loss(scores, opinions, sets, 1.0).item() > 0) == (cost > 0)


def test_the_fidelity_loss_worked_by_hand() -> None:
    opinions = torch.tensor([80.0, 20.0])
    for lead, winning in ((0.0, 0.5), (20.0, 0.841344746), (-20.0, 0.158655254)):  # 1 standard normal deviation
        scores = torch.tensor([50.0 + lead, 50.0], dtype=torch.float64)
        cost = fidelity_loss(scores, opinions, one_set(opinions), label_std=20 / math.sqrt(2))
        assert cost.item() == pytest.approx(1 - math.sqrt(winning), abs=1e-6)


def test_the_soft_fidelity_loss_worked_by_hand() -> None:
    opinions, deviations = torch.tensor([80.0, 50.0], dtype=torch.float64), torch.tensor([30.0, 40.0], dtype=torch.float64)
    right = 0.725746882  # the normal distribution at 0.6: a lead of 30, in a deviation of sqrt(30^2 + 40^2) = 50
    for lead, winning in ((0.0, 0.5), (50.0, 0.841344746), (-50.0, 0.158655254), (30.0, right)):
        scores = torch.tensor([lead, 0.0], dtype=torch.float64)
        cost = soft_fidelity_loss(scores, opinions, one_set(opinions), deviations)
        wanted = 1 - math.sqrt(right * winning) - math.sqrt((1 - right) * (1 - winning))
        assert cost.item() == pytest.approx(wanted, abs=1e-6) and (wanted < 1e-6) == (lead == 30)


@pytest.mark.parametrize("level", ["image", "patch"])
def test_scores_that_are_the_opinions_cost_nothing_by_a_soft_truth_and_pull_nowhere(level: str) -> None:
    config = Loss.model_validate({"rank_weight": 1, "rank_kind": "fidelity", "fidelity_truth": "soft", "rank_level": level})
    opinions = torch.tensor([1.0, 4.0, 2.0, 2.5], dtype=torch.float64)
    scores = opinions[:, None].repeat(1, 3).requires_grad_()
    deviations = torch.tensor([0.5, 1.0, 0.7, 0.0], dtype=torch.float64)
    loss = training_loss(scores, targets(opinions, deviations=deviations), config)
    loss.ranking.backward()
    assert loss.ranking.item() == pytest.approx(0, abs=1e-6)
    assert scores.grad is not None and float(scores.grad.abs().max()) < 1e-6
    apart = torch.tensor([0, 1, 2, 3])  # each image of a set of its own
    assert training_loss(scores, Targets(opinions.flip(0), apart, 1.0, deviations), config).ranking.item() == 0


def test_a_soft_truth_without_deviations_is_our_mistake() -> None:
    config = Loss(rank_weight=1, rank_kind="fidelity", fidelity_truth="soft")
    with pytest.raises(AssertionError, match="a soft truth is made of deviations"):
        training_loss(torch.zeros(3, 1), targets(torch.arange(3.0)), config)


@pytest.mark.parametrize("deviation", [0.0, 0.3])
def test_the_soft_fidelity_loss_has_a_finite_gradient_also_for_ratings_that_all_agree(deviation: float) -> None:
    scores = torch.tensor([-1000.0, 1000.0, 5.0, 5.0], requires_grad=True)
    soft_fidelity_loss(scores, torch.tensor([2.0, 1.0, 3.0, 4.0]), torch.zeros(4), torch.full((4,), deviation)).backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_the_fidelity_loss_has_a_finite_gradient_even_for_a_hopeless_pair() -> None:
    scores = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    fidelity_loss(scores, torch.tensor([2.0, 1.0]), torch.zeros(2), 1.0).backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_a_margin_in_standard_deviations_follows_the_label() -> None:
    scores, opinions = torch.tensor([[5.0], [5.0]]), torch.tensor([1.0, 2.0])
    config = Loss(rank_weight=1, rank_margin=0.5, rank_margin_unit="std")
    assert training_loss(scores, targets(opinions, 12.0), config).ranking.item() == pytest.approx(6.0)


# -- the unit of the label --

EVERY_TERM = [
    Loss(rank_weight=0.5, rank_margin=3.0, consistency_weight=0.2),
    Loss(rank_weight=0.5, rank_margin=0.3, rank_margin_unit="std", scope="rank"),
    Loss(regression="smooth_l1", smooth_l1_beta=2.0, regression_level="image", rank_weight=0.5, rank_kind="fidelity"),
    Loss(regression="mse", rank_weight=0.5, rank_kind="fidelity", fidelity_truth="soft", consistency_weight=0.2),
    Loss(regression="plcc", rank_weight=0.5, rank_margin=3.0, consistency_weight=0.2),
    Loss(regression="norm_in_norm", rank_weight=0.5, rank_kind="fidelity", rank_level="patch"),
]


@pytest.mark.parametrize("config", EVERY_TERM)
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 5.0), (-2.5, 2.5)])
def test_the_loss_and_its_gradient_at_the_target_network_are_the_same_whatever_the_unit_of_the_label(
    config: Loss, low: float, high: float
) -> None:
    torch.manual_seed(3)
    points, opinions, deviations = 100 * torch.rand(8, 3, dtype=torch.float64), 100 * torch.rand(8).double(), 5 + torch.rand(8).double()
    found = []
    for start, point in ((0.0, 1.0), (low, (high - low) / 100)):
        leaf = points.clone().requires_grad_()
        margin = config.rank_margin * (point if config.rank_margin_unit == "label" else 1)
        in_unit = config.model_copy(update={"smooth_l1_beta": config.smooth_l1_beta * point, "rank_margin": margin})
        said = Targets(start + point * opinions, one_set(opinions), 20 * point, deviations * point, point)
        parts = training_loss(start + point * leaf, said, in_unit, world=2)
        parts.total.backward()
        found.append([*(part.detach() for part in parts), leaf.grad])
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", [config for config in EVERY_TERM if leaves_scale_open(config)])
def test_where_the_scale_of_the_scores_is_open_no_term_is_cheaper_for_less_spread(config: Loss) -> None:
    torch.manual_seed(4)
    scores, opinions = 100 * torch.rand(8, 3).double(), 100 * torch.rand(8).double()
    all_of_it, a_hundredth = (training_loss(part * scores, targets(opinions, 20.0), config) for part in (1.0, 0.01))
    torch.testing.assert_close([*a_hundredth], [*all_of_it], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [config for config in EVERY_TERM if leaves_scale_open(config)])
def test_where_the_scale_of_the_scores_is_open_each_set_has_its_own(config: Loss) -> None:
    torch.manual_seed(5)
    scores, opinions, sets = 100 * torch.rand(12, 3).double(), 100 * torch.rand(12).double(), torch.arange(12) % 2
    moved = torch.where(sets[:, None] == 0, scores, 3 * scores + 500)
    found = [[*training_loss(said, Targets(opinions, sets, 20.0), config)] for said in (scores, moved)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)


def test_where_the_scale_is_open_no_batch_has_a_consistency_without_bounds() -> None:
    scores = torch.tensor([[0.0, 100.0], [0.0, 100.0], [100.0, 0.1]])  # the means are all but equal
    loss = training_loss(scores, targets(torch.tensor([1.0, 2.0, 3.0]), 20.0), Loss(regression="plcc", consistency_weight=1.0))
    assert 0 < loss.consistency.item() <= 20.0


def test_one_image_alone_has_a_finite_loss_where_the_scale_is_open() -> None:
    scores = torch.tensor([[4.0, 6.0]], requires_grad=True)
    training_loss(scores, targets(torch.tensor([5.0])), Loss(regression="plcc", consistency_weight=0.2)).total.backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


# -- consistency and scope --


def test_the_consistency_term_is_the_variance_within_images_in_units_of_the_label() -> None:
    scores, opinions = torch.tensor([[0.0, 10.0], [8.0, 8.0]]), torch.tensor([5.0, 8.0])
    loss = training_loss(scores, targets(opinions, 5.0), Loss(consistency_weight=2.0))
    assert loss.consistency.item() == pytest.approx((25 + 0) / 2 / 5)
    assert loss.total.item() == pytest.approx(loss.regression.item() + 2 * loss.consistency.item())


def test_scope_rank_is_the_mean_of_the_losses_of_the_shares() -> None:
    scores, opinions = torch.tensor([[1.0], [9.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    config = Loss(rank_weight=1.0, scope="rank")
    alone = [training_loss(scores[rank::2], targets(opinions[rank::2]), config).total for rank in (0, 1)]
    assert training_loss(scores, targets(opinions), config, world=2).total.item() == pytest.approx((alone[0] + alone[1]).item() / 2)
    everyone = Loss(rank_weight=1.0)
    assert training_loss(scores, targets(opinions), everyone, world=2).total.item() != pytest.approx((alone[0] + alone[1]).item() / 2)


@pytest.mark.parametrize("settings", [{"rank_weight": 0.1}, {"regression": "plcc"}, {"regression": "norm_in_norm"}])
def test_a_loss_that_compares_images_is_known_as_such(settings: dict[str, object]) -> None:
    assert compares_images(Loss.model_validate(settings))
    assert not compares_images(Loss(consistency_weight=1.0))
