"""Adam's moments go into a file under the names of their weights and come back to the bit, laid out as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from dist_train.errors import ConfigError
from dist_train.moments import group_settings, load_moments, named_moments
from dist_train.tensor_files import save_tensors


class Small(nn.Module):
    """A convolution that is laid out channels last, a scalar, and a weight that is never stepped."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale, self.idle = nn.Conv2d(3, 4, 3), nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.ones(2))
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scale * self.conv(pixels).mean()
        return scores


def adam(model: Small) -> torch.optim.Adam:
    """In which the order of the tensors is not the model's."""
    groups = [{"name": "late", "params": [model.scale, model.idle]}, {"name": "early", "params": list(model.conv.parameters())[::-1]}]
    return torch.optim.Adam(groups, lr=0.1, weight_decay=0.01)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    model(torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(number))).backward()
    optimizer.step()


def through_a_file(path: Path, model: Small, optimizer: torch.optim.Optimizer) -> tuple[Small, torch.optim.Adam]:
    """Another model and Adam that know of these only what stands in a file."""
    save_tensors(path, named_moments(optimizer, model))
    other = Small()
    other.load_state_dict(model.state_dict())
    its = adam(other)
    load_moments(its, other, load_file(path), group_settings(optimizer))
    return other, its


def test_an_adam_that_comes_back_from_a_file_takes_the_same_steps_to_the_bit(tmp_path: Path) -> None:
    model = Small()
    optimizer = adam(model)
    for number in range(3):
        step(model, optimizer, number)
    optimizer.param_groups[0]["lr"] = 0.03
    other, its = through_a_file(tmp_path / "moments.safetensors", model, optimizer)
    assert its.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for number in range(3, 6):
        step(model, optimizer, number)
        step(other, its, number)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])
    moment = its.state[other.conv.weight]["exp_avg"]
    assert moment.stride() == other.conv.weight.stride() != moment.contiguous().stride()


def test_anyone_can_read_the_moments_of_a_weight_by_its_name(tmp_path: Path) -> None:
    model = Small()
    optimizer = adam(model)
    step(model, optimizer, 0)
    through_a_file(tmp_path / "moments.safetensors", model, optimizer)
    found = load_file(tmp_path / "moments.safetensors")
    kinds = ("exp_avg", "exp_avg_sq", "step")
    assert sorted(found) == sorted(f"{name}.{kind}" for name in ("conv.bias", "conv.weight", "scale") for kind in kinds)
    assert torch.equal(found["conv.weight.exp_avg"], optimizer.state[model.conv.weight]["exp_avg"])
    assert float(found["scale.step"]) == 1


def test_wrapping_or_compiling_the_model_changes_no_name() -> None:
    model = Small()
    wrapped, optimizer = Accelerator(cpu=True).prepare(model, adam(model))
    step(wrapped, optimizer, 0)
    names = set(named_moments(optimizer, model))
    model.compile()
    assert set(named_moments(optimizer, model)) == names
    assert "conv.weight.exp_avg" in names


def test_before_the_first_step_there_is_nothing_and_that_comes_back_too(tmp_path: Path) -> None:
    model = Small()
    _, its = through_a_file(tmp_path / "moments.safetensors", model, adam(model))
    assert not its.state


@pytest.mark.parametrize("stranger", ["conv.gone.exp_avg", "conv.weight.momentum_buffer"])
def test_moments_of_something_else_are_refused_by_name(stranger: str) -> None:
    model = Small()
    optimizer = adam(model)
    with pytest.raises(ConfigError, match=f"moments of {stranger}, which this model does not have"):
        load_moments(optimizer, model, {stranger: torch.zeros(2)}, group_settings(optimizer))
