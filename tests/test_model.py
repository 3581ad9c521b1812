"""HyperIQA against the facts of the paper's code: every size, and every number of a slow and plain re-computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from dist_train.chances import ChosenPath, draw_chances
from dist_train.errors import ConfigError
from dist_train.model import HyperIQA, average_pool, target_network

TARGET = [(112, 224), (56, 112), (28, 56), (14, 28), (1, 14)]  # (out, in) of the target network's layers


def patches_of(size: int, number: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (number, 3, size // 8, size // 8), generator=generator).float()
    return nn.functional.interpolate(coarse, size=size, mode="bilinear").to(torch.uint8)  # smooth, so that maps are not all alike


def made(backbone: str, size: int, **options: object) -> HyperIQA:
    torch.manual_seed(1)
    return HyperIQA(backbone, size, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def resnet50() -> HyperIQA:
    return made("resnet50.tv_in1k", 224).eval()


@pytest.fixture
def small() -> HyperIQA:
    return made("convnext_atto", 64).eval()


def shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in module.parameters()]


def test_the_branches_have_the_authors_sizes(resnet50: HyperIQA) -> None:
    assert sorted(shapes(resnet50.branches)) == sorted(
        [
            *[(16, 256, 1, 1), (32, 512, 1, 1), (64, 1024, 1, 1)],  # without bias
            *[(16, 1024), (16,), (16, 512), (16,), (16, 256), (16,), (176, 2048), (176,)],
        ]
    )


def test_the_hyper_network_has_the_authors_sizes(resnet50: HyperIQA) -> None:
    stack = [(1024, 2048, 1, 1), (1024,), (512, 1024, 1, 1), (512,), (112, 512, 1, 1), (112,)]
    weights = [(512, 112, 3, 3), (512,), (128, 112, 3, 3), (128,), (32, 112, 3, 3), (32,), (8, 112, 3, 3), (8,), (14, 112), (14,)]
    biases = [(112, 112), (112,), (56, 112), (56,), (28, 112), (28,), (14, 112), (14,), (1, 112), (1,)]
    assert shapes(resnet50.hyper) == stack + weights + biases


def test_the_parts_have_the_authors_numbers_of_parameters(resnet50: HyperIQA) -> None:
    def millions(module: nn.Module) -> float:
        return round(sum(tensor.numel() for tensor in module.parameters()) / 1e6, 2)

    assert sum(tensor.numel() for tensor in resnet50.parameters()) == 27_375_369
    assert (millions(resnet50.backbone), millions(resnet50.branches), millions(resnet50.hyper.stack)) == (23.51, 0.48, 2.68)
    assert round(millions(resnet50.hyper) - millions(resnet50.hyper.stack), 2) == 0.71


def test_every_patch_gets_33334_weights_and_211_biases_of_its_own(resnet50: HyperIQA) -> None:
    with torch.no_grad():
        weights, biases = resnet50.hyper(torch.rand(2, 2048, 7, 7))
    assert [tuple(weight.shape) for weight in weights] == [(2, *shape) for shape in TARGET]
    assert [tuple(bias.shape) for bias in biases] == [(2, out) for out, _ in TARGET]
    assert sum(weight[0].numel() for weight in weights) == 33_334
    assert sum(bias[0].numel() for bias in biases) == 211
    assert not torch.equal(weights[0][0], weights[0][1])


# The plain re-computation: one patch at a time, from the facts alone, with nothing of torch.nn.


def cells_of(plane: Tensor, window: int) -> Tensor:
    """[channels, size, size] -> the mean of each window: [channels, size / window, size / window]."""
    number = plane.shape[1] // window
    rows = []
    for y in range(number):
        cells = [plane[:, y * window : (y + 1) * window, x * window : (x + 1) * window].mean(dim=(1, 2)) for x in range(number)]
        rows.append(torch.stack(cells, dim=1))
    return torch.stack(rows, dim=1)


def pointwise(weight: Tensor, plane: Tensor) -> Tensor:
    """A 1x1 convolution of one [channels, height, width]."""
    return torch.einsum("oc,chw->ohw", weight[:, :, 0, 0], plane)


def three_by_three(weight: Tensor, bias: Tensor, plane: Tensor) -> Tensor:
    """A 3x3 convolution of one [channels, 7, 7] with a border of zeros."""
    height, width = plane.shape[1:]
    bordered = torch.zeros(plane.shape[0], height + 2, width + 2)
    bordered[:, 1:-1, 1:-1] = plane
    out = bias[:, None, None]
    for dy in range(3):
        for dx in range(3):
            out = out + torch.einsum("oc,chw->ohw", weight[:, :, dy, dx], bordered[:, dy : dy + height, dx : dx + width])
    return out


def plain_score(model: HyperIQA, maps: list[Tensor]) -> Tensor:
    """One patch's score from its four maps [channels, size, size], sizes 56, 28, 14 and 7."""
    branches = dict(model.branches.named_parameters())
    convolutions = [tensor for tensor in branches.values() if tensor.ndim == 4]
    lines = [(tensor, branches[name.replace("weight", "bias")]) for name, tensor in branches.items() if tensor.ndim == 2]
    narrow = [cells_of(pointwise(weight, plane), 7) for weight, plane in zip(convolutions, maps, strict=False)] + [maps[3].mean(dim=(1, 2))]
    vector = torch.cat([weight @ pooled.reshape(-1) + bias for (weight, bias), pooled in zip(lines, narrow, strict=True)])

    tensors = list(model.hyper.parameters())
    top = maps[3]
    for weight, bias in zip(tensors[0:6:2], tensors[1:6:2], strict=True):
        top = (pointwise(weight, top) + bias[:, None, None]).clamp(min=0)
    pooled = top.mean(dim=(1, 2))
    made_weights = [three_by_three(weight, bias, top) for weight, bias in zip(tensors[6:14:2], tensors[7:14:2], strict=True)]
    made_weights.append(tensors[14] @ pooled + tensors[15])
    made_biases = [weight @ pooled + bias for weight, bias in zip(tensors[16::2], tensors[17::2], strict=True)]

    hidden = vector
    for layer, (out, into) in enumerate(TARGET):
        hidden = made_weights[layer].reshape(out, into) @ hidden + made_biases[layer]
        if layer < 4:
            hidden = (1 + torch.tanh(hidden / 2)) / 2  # the sigmoid, safe for large numbers
    return hidden[0]


@pytest.fixture(scope="module")
def lively() -> HyperIQA:
    """ResNet-50 as if trained: maps of unit variance and a hyper network that tells patches apart."""
    model = made("resnet50.tv_in1k", 224).train()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.fill_(1.0)
                layer.momentum = 1.0
        for tensor in model.hyper.stack.parameters():
            tensor.mul_(2.0)
        model(patches_of(224))
    return model.eval()


def test_scores_and_gradients_are_those_of_a_plain_computation_patch_by_patch(lively: HyperIQA) -> None:
    pixels = patches_of(224)

    def gradients() -> dict[str, Tensor]:
        found = {name: tensor.grad.clone() for name, tensor in lively.named_parameters() if tensor.grad is not None}
        lively.zero_grad()
        return found

    scores = lively(pixels)
    scores.sum().backward()
    found = gradients()

    maps = lively.backbone((pixels - lively.mean) / lively.std)
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    plain = torch.stack([plain_score(lively, [m[patch] for m in maps]) for patch in range(2)])
    plain.sum().backward()
    expected = gradients()

    assert abs(scores[0] - scores[1]) > 0.1 * abs(scores[0])  # patches that could not be mistaken for each other
    torch.testing.assert_close(scores, plain, rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys() == dict(lively.named_parameters()).keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name  # float32 through fifty layers


def test_a_swin_speaks_channels_last_and_is_turned() -> None:
    model = made("swin_tiny_patch4_window7_224", 224).eval()
    pixels = patches_of(224)
    with torch.no_grad():
        raw = model.backbone((pixels - model.mean) / model.std)
        assert [tuple(m.shape[1:]) for m in raw] == [(56, 56, 96), (28, 28, 192), (14, 14, 384), (7, 7, 768)]
        vector = model.branches([m.movedim(-1, 1) for m in raw])
        expected = target_network(vector, *model.hyper(raw[-1].movedim(-1, 1)))
        torch.testing.assert_close(model(pixels), expected)
    assert shapes(model.hyper.stack)[::2] == [(512, 768, 1, 1), (256, 512, 1, 1), (112, 256, 1, 1)]


@pytest.mark.parametrize(("backbone", "size"), [("convnext_atto", 64), ("tf_efficientnet_lite0", 160), ("resnet18", 100)])
def test_other_backbones_and_patch_sizes_give_a_score_per_patch(backbone: str, size: int) -> None:
    model = made(backbone, size).eval()
    with torch.no_grad():
        scores = model(patches_of(size, 3))
    assert scores.shape == (3,) and scores.dtype == torch.float32
    assert scores.isfinite().all() and len(set(scores.tolist())) == 3


def test_a_score_does_not_depend_on_the_neighbours_in_the_batch(small: HyperIQA) -> None:
    pixels = patches_of(64, 5)
    with torch.no_grad():
        together = small(pixels)
        for patch in range(5):
            torch.testing.assert_close(small(pixels[patch : patch + 1])[0], together[patch], rtol=1e-5, atol=1e-5)


def test_scores_are_mapped_from_0_to_100_onto_the_scale_of_the_opinions() -> None:
    with torch.no_grad():
        hundred, five, down = (
            made("convnext_atto", 64, output_scale=scale).eval()(patches_of(64, 4)) for scale in ((0.0, 100.0), (1.0, 5.0), (50.0, -50.0))
        )
    torch.testing.assert_close(five, 1 + 4 * hundred / 100)
    torch.testing.assert_close(down, 50 - hundred)


@pytest.mark.parametrize("backbone", ["convnext_atto", "tf_efficientnet_lite0"])
def test_pixels_are_normalised_as_the_backbone_was_trained(backbone: str) -> None:
    model, seen = made(backbone, 64).eval(), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = patches_of(64)
    with torch.no_grad():
        model(pixels)
    said = timm.get_pretrained_cfg(backbone)
    expected = (pixels.double() / 255 - torch.tensor(said.mean).view(3, 1, 1)) / torch.tensor(said.std).view(3, 1, 1)
    torch.testing.assert_close(seen[0], expected.float(), rtol=1e-5, atol=1e-5)


def test_the_two_backbones_above_were_trained_on_different_scales() -> None:
    assert timm.get_pretrained_cfg("convnext_atto").mean != timm.get_pretrained_cfg("tf_efficientnet_lite0").mean


def statistics(model: HyperIQA) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.backbone.named_buffers() if "running" in name}


def test_frozen_batch_norm_keeps_its_statistics_in_training() -> None:
    model = made("resnet18", 64, frozen_batch_norm=True).train()
    before = statistics(model)
    model(patches_of(64, 4))
    after = statistics(model)
    assert before and all(torch.equal(before[name], after[name]) for name in before)


def test_batch_norm_that_is_not_frozen_learns_its_statistics_in_training_only() -> None:
    model = made("resnet18", 64).eval()
    before = statistics(model)
    model(patches_of(64, 4))
    assert all(torch.equal(before[name], value) for name, value in statistics(model).items())
    model.train()
    model(patches_of(64, 4))
    assert not any(torch.equal(before[name], value) for name, value in statistics(model).items())


def test_frozen_batch_norm_makes_a_training_score_independent_of_the_neighbours() -> None:
    model = made("resnet18", 64, frozen_batch_norm=True).train()
    pixels = patches_of(64, 4)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels)[:2], model(pixels[:2]), rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    plain, dropping = made("convnext_atto", 64), made("convnext_atto", 64, dropout=0.5)
    pixels, chances = patches_of(64, 4), draw_chances(0, 0, np.arange(4), 1, dropping.num_chances)[:, 0]
    with torch.no_grad():
        assert not torch.equal(dropping.train()(pixels, chances), plain.train()(pixels))
        assert torch.equal(dropping(pixels, torch.ones_like(chances)), dropping(pixels, torch.full_like(chances, 0.5)))
        assert torch.equal(dropping.eval()(pixels), plain.eval()(pixels))


def test_dropout_follows_each_hidden_layer_and_not_the_score() -> None:
    torch.manual_seed(0)
    ones = torch.ones(2000, 2)
    weights, biases = [torch.zeros(2000, 4, 2), torch.ones(2000, 1, 4)], [torch.zeros(2000, 4), torch.zeros(2000, 1)]
    scores = target_network(
        ones, weights, biases, 0.25, draw_chances(0, 0, np.arange(2000), 1, 4)[:, 0]
    )  # four sigmoids of 0, each dropped or scaled by 4 / 3
    kept = scores / (0.5 / 0.75)
    assert set(kept.round().tolist()) == {0, 1, 2, 3, 4}
    assert kept.mean().item() == pytest.approx(3, abs=0.1)


def test_stochastic_depth_reaches_the_backbone() -> None:
    model = made("convnext_atto", 64, stochastic_depth=0.5).train()
    pixels, taken = patches_of(64, 4), torch.ones(4, model.num_chances)
    skipped = taken.clone()
    skipped[2] = 0.0
    with torch.no_grad():
        same = (model(pixels, taken) == model(pixels, skipped)).tolist()
    assert same == [True, True, False, True]  # each patch by its own chances


def test_a_branch_that_is_taken_weighs_more_so_that_the_expectation_stays() -> None:
    path = ChosenPath(0.2).train()
    path.chances = draw_chances(0, 0, np.arange(10_000), 1, 1)[:, 0, 0]
    taken = path(torch.ones(10_000, 1, 1, 1)).flatten()
    assert set(taken.unique().tolist()) == {0.0, 1.25}
    assert taken.mean().item() == pytest.approx(1, abs=0.02)


def test_generators_and_branches_start_kaiming_normal(resnet50: HyperIQA) -> None:
    hyper, branches = resnet50.hyper, resnet50.branches
    drawn = [tensor for module in (hyper.weight_maps, hyper.biases, hyper.last_weight, branches) for tensor in module.parameters()]
    large = [tensor for tensor in drawn if tensor.ndim > 1 and tensor.numel() > 1000]
    assert len(large) == 4 + 4 + 1 + 7
    for tensor in large:
        wanted = math.sqrt(2 / tensor[0].numel())  # fan in
        assert tensor.std().item() == pytest.approx(wanted, rel=5 / math.sqrt(tensor.numel())), tuple(tensor.shape)
        assert tensor.abs().max().item() > 2.5 * wanted  # a normal distribution has tails


def test_the_stack_of_1x1_convolutions_starts_as_pytorch_has_it(resnet50: HyperIQA) -> None:
    for tensor in list(resnet50.hyper.stack.parameters())[::2]:
        bound = 1 / math.sqrt(tensor[0].numel())  # uniform between -bound and bound
        assert tensor.abs().max().item() <= bound
        assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_pooling_to_cells_is_the_plain_window_where_it_fits() -> None:
    plane = torch.rand(1, 3, 56, 56)
    assert torch.equal(average_pool(56, 8)(plane), nn.AvgPool2d(7)(plane))
    torch.testing.assert_close(average_pool(56, 8)(plane)[0], cells_of(plane[0], 7))


@pytest.mark.parametrize("size", [1, 2, 5, 7, 10, 14])
def test_pooling_gives_the_cells_asked_for_from_any_size(size: int) -> None:
    plane = torch.rand(1, 3, size, size)
    assert average_pool(size, 7)(plane).shape == (1, 3, 7, 7)
    torch.testing.assert_close(average_pool(size, 7)(plane), nn.AdaptiveAvgPool2d(7)(plane))


@pytest.mark.parametrize(
    ("name", "meant"), [("resnet500", "resnet50"), ("swin-tiny", "swin_"), ("resnet50.tv_in1kk", "resnet50.tv_in1k"), ("xyzzy", "xyzzy")]
)
def test_an_unknown_backbone_is_an_error_that_names_the_one_meant(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.backbone={name}: .*{meant}"):
        HyperIQA(name)


def test_a_patch_size_that_the_backbone_does_not_take_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone=vit_tiny_patch16_224 does not take patches of 160 pixels"):
        HyperIQA("vit_tiny_patch16_224", 160)


def test_a_backbone_without_stochastic_depth_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match="drop_path"):
        HyperIQA("vgg11", 64, stochastic_depth=0.1)
