"""HyperIQA and its variants: every size, every number that is dropped, and every backbone that it takes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from packaging.version import Version
from plain_hyperiqa import TARGET, cells_of
from torch import Tensor, nn

from dist_train.backbone import batch_norms, synchronise_batch_norm
from dist_train.branches import average_pool
from dist_train.chances import ChosenPath, draw_chances
from dist_train.config import Loss
from dist_train.errors import ConfigError
from dist_train.gradient import accumulate_gradient, rehearse
from dist_train.hyper import target_network
from dist_train.loss import Targets
from dist_train.model import HyperIQA


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
        weights, biases = resnet50.hyper([torch.rand(2, 2048, 7, 7)])
    assert [tuple(weight.shape) for weight in weights] == [(2, *shape) for shape in TARGET]
    assert [tuple(bias.shape) for bias in biases] == [(2, out) for out, _ in TARGET]
    assert sum(weight[0].numel() for weight in weights) == 33_334
    assert sum(bias[0].numel() for bias in biases) == 211
    assert not torch.equal(weights[0][0], weights[0][1])


def test_a_swin_speaks_channels_last_and_is_turned() -> None:
    model = made("swin_tiny_patch4_window7_224", 224).eval()
    pixels = patches_of(224)
    with torch.no_grad():
        raw = model.backbone((pixels - model.mean) / model.std)
        assert [tuple(m.shape[1:]) for m in raw] == [(56, 56, 96), (28, 28, 192), (14, 14, 384), (7, 7, 768)]
        vector = model.branches([m.movedim(-1, 1) for m in raw])
        expected = target_network(vector, *model.hyper([raw[-1].movedim(-1, 1)]))
        torch.testing.assert_close(model(pixels), expected)
    assert shapes(model.hyper.stack)[::2] == [(512, 768, 1, 1), (256, 512, 1, 1), (112, 256, 1, 1)]


@pytest.mark.parametrize(
    ("backbone", "size"), [("convnext_atto", 64), ("tf_efficientnet_lite0", 160), ("resnet18", 100), ("vit_tiny_patch16_224", 64)]
)
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


def test_a_backbone_that_is_named_by_its_source_is_normalised_as_that_says(tmp_path: Path) -> None:
    about = {"mean": [0.5, 0.25, 0.5], "std": [0.5, 0.5, 0.75], "input_size": [3, 224, 224]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "convnext_atto", "pretrained_cfg": about}))
    model = made(f"local-dir:{tmp_path}", 64)
    assert (model.mean.flatten() / 255).tolist() == pytest.approx(about["mean"])
    assert (model.std.flatten() / 255).tolist() == pytest.approx(about["std"])


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
    path.turns = 1
    path.set_chances(draw_chances(0, 0, np.arange(10_000), 1, 1)[:, 0])
    taken = path(torch.ones(10_000, 1, 1, 1)).flatten()
    assert set(taken.unique().tolist()) == {0.0, 1.25}
    assert taken.mean().item() == pytest.approx(1, abs=0.02)


def test_a_path_that_is_taken_twice_has_a_chance_for_each_time() -> None:
    path = ChosenPath(0.5).train()
    path.turns = 2
    path.set_chances(torch.tensor([[0.1, 0.9], [0.9, 0.1]]))
    ones = torch.ones(2, 1)
    for _ in range(2):  # forward, and once more in the backward pass
        assert path(ones).tolist() == [[0.0], [2.0]]
        assert path(ones).tolist() == [[2.0], [0.0]]


def test_the_rows_of_a_patch_are_taken_or_skipped_together() -> None:
    path = ChosenPath(0.5).train()
    path.turns = 1
    path.set_chances(torch.tensor([[0.1], [0.9]]))
    assert path(torch.ones(6, 1, 1)).flatten().tolist() == [0, 0, 0, 2, 2, 2]


# What they have of their own: a path taken twice, twice or once, with rows of windows, with rows of pixels, none where its rate is 0,
# a dropout in each attention, channels last.
DROPPING = {
    "cait_xxs24_224": 48,
    "edgenext_xx_small": 14,
    "mobilevit_xxs": 24,
    "tnt_s_legacy_patch16_224": 44,
    "tf_efficientnet_lite0": 9,
    "vit_relpos_small_patch16_224": 22,
    "swin_tiny_patch4_window7_224": 22,
}


@pytest.mark.parametrize("backbone", DROPPING)
def test_each_patch_skips_branches_by_its_own_chances_and_by_nothing_else(backbone: str) -> None:
    model = made(backbone, 64, stochastic_depth=0.5, frozen_batch_norm=True).train()
    assert model.num_chances == DROPPING[backbone]
    pixels, chances = patches_of(64, 3), draw_chances(0, 0, np.arange(3), 1, model.num_chances)[:, 0]
    with torch.no_grad():
        first = model(pixels, chances)
        torch.manual_seed(99)
        assert torch.equal(model(pixels, chances), first)  # no generator has a say
        for column in (0, model.num_chances - 1):
            other = chances.clone()
            other[1, column] = 1.0 - other[1, column].round()  # taken instead of skipped, or the other way round
            rate_matters = (model(pixels, other) != first).tolist()
            assert rate_matters in ([False, True, False], [False, False, False])
        nothing = chances.clone()
        nothing[1] = 0.0
        assert (model(pixels, nothing) != first).tolist() == [False, True, False]


def test_without_stochastic_depth_nothing_is_dropped_whatever_timm_would_do() -> None:
    assert made("swin_tiny_patch4_window7_224", 64).num_chances == 0  # timm's own rate is 0.1


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
    ("name", "meant"),
    [("resnet500", "resnet50"), ("swin-tiny", "swin_"), ("resnet50.tv_in1kk", "resnet50.tv_in1k"), ("xyzzy", "nor one of a name like it")],
)
def test_an_unknown_backbone_is_an_error_that_names_the_one_meant(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.backbone={name}: timm has no such model.* {meant}"):
        HyperIQA(name)


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("efficientformer_l1", 64), ("efficientformer_l1", 225), ("xcit_nano_12_p16_224", 100)],  # the last is not even made
)
def test_a_patch_size_that_the_backbone_does_not_take_is_an_error_that_says_so(backbone: str, size: int) -> None:
    with pytest.raises(ConfigError, match=rf"model\.backbone={backbone} does not take patches of {size} pixels \(.+\)"):
        HyperIQA(backbone, size)


@pytest.mark.parametrize("backbone", ["vgg16", "vgg16.tv_in1k", "densenet121"])
def test_a_backbone_without_stochastic_depth_is_an_error_that_says_so(backbone: str) -> None:
    why = f"model.stochastic_depth=0.1: timm has no stochastic depth for model.backbone={backbone}; set it to 0, or choose another backbone"
    with torch.device("meta"), pytest.raises(ConfigError, match=f"^{re.escape(why)}$"):
        HyperIQA(backbone, 64, stochastic_depth=0.1)


@pytest.mark.parametrize("backbone", ["efficientvit_m0", "levit_128s", "pit_s_224"])  # three maps, each with an error of its own
def test_a_backbone_of_too_few_maps_is_an_error_that_says_what_is_needed(backbone: str) -> None:
    why = rf"^model\.backbone={backbone}: HyperIQA reads four maps, .*\(.+\); choose a backbone of four stages or more, such as resnet50"
    with torch.device("meta"), pytest.raises(ConfigError, match=why):
        HyperIQA(backbone)


# Variants


def parameters(backbone: str, **options: object) -> float:
    """In millions."""
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in made(backbone, 224, **options).parameters()) / 1e6


@pytest.mark.parametrize(("size", "millions"), [("tiny", 29.5), ("small", 50.8), ("base", 89.1)])
def test_a_swin_that_reads_all_stages_by_attention_has_the_parameters_of_the_original(size: str, millions: float) -> None:
    assert round(parameters(f"swin_{size}_patch4_window7_224", stages="all", stage_attention=True), 1) == millions


@pytest.mark.parametrize(("size", "channels"), [("tiny", 1440), ("base", 1920)])
def test_all_stages_of_a_swin_are_read_side_by_side(size: str, channels: int) -> None:
    with torch.device("meta"):
        hyper = made(f"swin_{size}_patch4_window7_224", 224, stages="all").hyper
    assert shapes(hyper.stack)[::2] == [(512, channels, 1, 1), (256, 512, 1, 1), (112, 256, 1, 1)]


@pytest.mark.parametrize("dropping", [False, True])
def test_attention_weighs_the_stages_as_a_plain_computation_does(dropping: bool) -> None:
    hyper = made("convnext_atto", 224, stages="all", stage_attention=True).hyper.train(dropping)
    maps = [torch.rand(3, channels, size, size) for channels, size in ((40, 56), (80, 28), (160, 14), (320, 7))]
    chances = draw_chances(0, 0, np.arange(3), 1, 256)[:, 0]
    assert (chances < 0.5).sum(dim=1).min() > 100
    read: list[Tensor] = []
    hyper.stack.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        hyper(maps, chances if dropping else None)
        for patch in range(3):
            hidden = (hyper.attention.hidden.weight @ maps[3][patch].mean(dim=(1, 2)) + hyper.attention.hidden.bias).clamp(min=0)
            if dropping:
                hidden = torch.stack([2 * unit if chance >= 0.5 else 0 * unit for unit, chance in zip(hidden, chances[patch], strict=True)])
            raised = (hyper.attention.weights.weight @ hidden + hyper.attention.weights.bias).exp()
            pooled = [cells_of(m[patch], m.shape[-1] // 7) for m in maps]
            expected = torch.cat([share * cells for share, cells in zip(raised / raised.sum(), pooled, strict=True)])
            torch.testing.assert_close(read[0][patch], expected)


def test_the_chances_of_attention_branches_and_units_are_each_ones_own() -> None:
    model = made("convnext_atto", 64, stages="all", stage_attention=True, dropout=0.5, stochastic_depth=0.5).train()
    paths, units = 11, 112 + 56 + 28 + 14
    assert model.num_chances == paths + 256 + units
    pixels, all_taken = patches_of(64, 2), torch.ones(2, model.num_chances)
    with torch.no_grad():
        scores = {model(pixels, all_taken)[0].item()}
        for part in (slice(0, paths), slice(paths, paths + 256), slice(paths + 256, None)):
            chances = all_taken.clone()
            chances[0, part] = 0.0
            scores.add(model(pixels, chances)[0].item())
    assert len(scores) == 4


SIZES = {  # of the first and the last map for patches of 160, 224, 256 and 384 pixels
    "resnet26": [(40, 5), (56, 7), (64, 8), (96, 12)],
    "swin_tiny_patch4_window7_224": [(40, 5), (56, 7), (64, 8), (96, 12)],
    "swinv2_tiny_window8_256": [(40, 5), (56, 7), (64, 8), (96, 12)],
    "convnext_atto": [(40, 5), (56, 7), (64, 8), (96, 12)],
    "tf_efficientnet_lite0": [(40, 5), (56, 7), (64, 8), (96, 12)],
    "maxvit_pico_rw_256": [(40, 5), (56, 7), (64, 8), (96, 12)],
    "mobilenetv3_small_100": [(40, 5), (56, 7), (64, 8), (96, 12)],
    "regnety_002": [(40, 5), (56, 7), (64, 8), (96, 12)],
    "mambaout_femto": [(40, 5), (56, 7), (64, 8), (96, 12)],
    "vit_tiny_patch16_224": [(10, 10), (14, 14), (16, 16), (24, 24)],
}
SINCE = {"regnety_002": Version("1.0.30"), "swinv2_tiny_window8_256": Version("1.0.31")}


@pytest.mark.parametrize("backbone", SIZES)
def test_a_backbone_takes_patches_of_many_sizes(backbone: str) -> None:
    if Version(timm.__version__) < SINCE.get(backbone, Version("0")):
        pytest.skip(f"timm {timm.__version__} cannot: {backbone} without memory, or of all these sizes")
    for size, (first, last) in zip((160, 224, 256, 384), SIZES[backbone], strict=True):
        with torch.device("meta"):
            model = made(backbone, size, stages="all")
            maps = model.eval()._maps(torch.zeros(2, 3, size, size))
        assert [maps[0].shape[-1], maps[3].shape[-1]] == [first, last]
        assert model.branches(maps).shape == (2, 224)
        assert model.hyper(maps)[0][0].shape == (2, 112, 224)


# BatchNorm of all processes together


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0"])
def test_synchronised_batch_norm_keeps_names_numbers_and_activations(backbone: str) -> None:
    model = made(backbone, 64).eval()
    names, layers = list(model.state_dict()), len(batch_norms(model.backbone))
    with torch.no_grad():
        before = model(patches_of(64))
        synchronise_batch_norm(model.backbone, torch.device("cpu"), 1)
        assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in model.modules())  # one process is plain
        synchronise_batch_norm(model.backbone, torch.device("cuda"), 2)
        assert torch.equal(model.eval()(patches_of(64)), before)
    assert list(model.state_dict()) == names
    assert sum(isinstance(layer, nn.SyncBatchNorm) for layer in model.modules()) == layers > 0


# Gradient checkpointing


@pytest.mark.parametrize(
    "backbone", ["resnet26", "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224", "cait_xxs24_224", "maxvit_pico_rw_256"]
)
def test_gradient_checkpointing_gives_the_same_step_for_less_memory(backbone: str) -> None:
    kept: dict[bool, int] = {}
    found: dict[bool, dict[str, Tensor]] = {}
    for checkpointing in (False, True):
        model = made(backbone, 64, stochastic_depth=0.3, gradient_checkpointing=checkpointing).train()
        chances = draw_chances(0, 0, np.arange(4), 1, model.num_chances)[:, 0]
        storages: dict[int, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=storages: s.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t
        ):
            scores = model(patches_of(64, 4), chances)
        scores.sum().backward()
        own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
        kept[checkpointing] = sum(tensor.untyped_storage().nbytes() for place, tensor in storages.items() if place not in own)
        found[checkpointing] = (
            {"scores": scores.detach()}
            | model.state_dict()
            | {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
    assert found[True].keys() == found[False].keys()  # so a checkpoint of the one is a checkpoint of the other
    for name, value in found[False].items():
        if name.endswith("num_batches_tracked"):  # counts the second time, too; nothing reads it
            continue
        assert torch.equal(found[True][name], value), name  # running statistics included: they are learnt once
    assert kept[True] < 0.5 * kept[False]


def test_gradient_checkpointing_in_micro_batches_learns_the_same_statistics() -> None:
    found = []
    for checkpointing in (False, True):
        model = made("resnet18", 64, gradient_checkpointing=checkpointing).train()
        pixels, chances = patches_of(64, 8).view(4, 2, 3, 64, 64), torch.empty(4, 2, 0)
        targets = Targets(torch.arange(4.0), torch.zeros(4, dtype=torch.long), 1.0)
        for _ in range(2):  # the ranking loss looks ahead, without gradient, before each micro-batch is computed
            scores, _ = accumulate_gradient(Accelerator(cpu=True), model, pixels, chances, targets, Loss(rank_weight=0.5), 2)
        found.append([scores, *(p.grad for p in model.parameters()), *statistics(model).values()])
    for with_it, without in zip(*found, strict=True):
        assert torch.equal(with_it, without)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_rehearsal_leaves_no_trace_and_batch_norm_learns_after_it(checkpointing: bool) -> None:
    model, untouched = (made("test_resnet", 64, gradient_checkpointing=checkpointing).train() for _ in range(2))
    rehearse(model, patches_of(64, 4).view(2, 2, 3, 64, 64), 0)
    for name, value in untouched.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for one in (model, untouched):
        one(patches_of(64, 4, seed=1)).sum().backward()
    for name, value in statistics(untouched).items():
        assert torch.equal(statistics(model)[name], value), name
        assert not torch.equal(made("test_resnet", 64).backbone.get_buffer(name), value), name


@pytest.mark.parametrize("backbone", ["twins_svt_small", "legacy_xception", "hrnet_w18_small"])
def test_gradient_checkpointing_is_refused_where_timm_has_none(backbone: str) -> None:
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=rf"gradient_checkpointing=true: timm offers none for model\.backbone={backbone}"),
    ):
        made(backbone, 224, gradient_checkpointing=True)
