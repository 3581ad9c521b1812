"""The timm backbone: patches in, its last four maps out, the finest first.

Any timm model will do that offers `features_only` with at least four maps. Here is all that differs from one to another:
whether it must be told the patch size, whether it speaks channels last, and how it saves memory.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import timm
import torch
from packaging.version import Version
from timm.models import FeatureHookNet
from torch import Tensor, nn

from dist_train.errors import ConfigError

FOUR_MAPS: dict[str, Any] = {"features_only": True, "out_indices": (-4, -3, -2, -1)}
_NOT_MADE = (RuntimeError, AttributeError, TypeError, AssertionError, IndexError, ValueError)  # what timm raises for what it cannot make


def features_only(backbone: str, patch_size: int | None = None, stochastic_depth: float = 0.0) -> nn.Module:
    """The timm backbone that gives the last four of its maps, with random weights, for patches of so many pixels a side.

    A dropout that timm builds into it is switched off: every process would draw it for itself, and no two runs would be
    alike. Raises ConfigError when timm has no such backbone, or not with four maps, or not with stochastic depth.
    """
    try:
        options = creation_options(backbone, patch_size, stochastic_depth)
        made = timm.create_model(backbone, pretrained=False, **options)
    except _NOT_MADE as error:
        raise ConfigError(_why_not_made(backbone, patch_size, stochastic_depth, error)) from error
    for module in made.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return made


def _why_not_made(backbone: str, patch_size: int | None, stochastic_depth: float, error: Exception) -> str:
    known = [*timm.list_models(), *timm.list_models(pretrained=True)]
    if backbone not in known and ":" not in backbone:  # hf-hub:NAME and the like are not in the list
        close = difflib.get_close_matches(backbone, known)
        hint = f"; did you mean {' or '.join(close)}?" if close else ", nor one of a name like it; timm.list_models() has them all"
        return f"model.backbone={backbone}: timm has no such model{hint}"
    if "'drop_path_rate'" in str(error):
        return (
            f"model.stochastic_depth={stochastic_depth:g}: timm has no stochastic depth for model.backbone={backbone}; "
            f"set it to 0, or choose another backbone"
        )
    if isinstance(error, NotImplementedError):  # an operation that needs numbers, as timm 1.0.29 has one in RegNet
        return f"model.backbone={backbone}: timm {timm.__version__} cannot make it without memory, to hear its shapes; install a newer timm"
    if patch_size is not None and _is_made(backbone):
        return refusal_of_size(backbone, patch_size, error)
    reason = "it has fewer" if isinstance(error, IndexError) else error  # an IndexError's own words help nobody
    return (
        f"model.backbone={backbone}: HyperIQA reads four maps, and timm cannot make as many of it ({reason}); choose a backbone "
        f"of four stages or more, such as resnet50, swin_tiny_patch4_window7_224 or convnext_tiny"
    )


def _is_made(backbone: str) -> bool:
    """Whether timm can make it at the size that it was designed for."""
    try:
        creation_options(backbone, None)
    except _NOT_MADE:
        return False
    return True


def refusal_of_size(backbone: str, patch_size: int, error: Exception) -> str:
    """What is said of a backbone that does not take patches of so many pixels a side, for timm's reason."""
    return (
        f"model.backbone={backbone} does not take patches of {patch_size} pixels ({str(error) or type(error).__name__}); "
        f"build shards with another --size, or choose another backbone"
    )


def creation_options(backbone: str, patch_size: int | None, stochastic_depth: float = 0.0) -> dict[str, Any]:
    """What timm must be told to make this backbone, its features only: the patch size where it asks for one, and the rate
    of stochastic depth where it knows any, even 0, for some have another default."""
    options = FOUR_MAPS | {"drop_path_rate": stochastic_depth} | ({} if patch_size is None else {"img_size": patch_size})
    while True:
        try:
            with torch.device("meta"):  # shapes without memory: only to hear what it does not know
                timm.create_model(backbone, pretrained=False, **options)
        except TypeError as error:
            unknown = [name for name in ("img_size", "drop_path_rate") if name in options and f"'{name}'" in str(error)]
            if not unknown or (unknown == ["drop_path_rate"] and stochastic_depth):
                raise
            del options[unknown[0]]
        else:
            return options


def channels_first(backbone: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """The maps as [n, channels, height, width], however the backbone speaks."""
    last = str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")
    return [m.permute(0, 3, 1, 2) for m in maps] if last else list(maps)


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def synchronise_batch_norm(backbone: nn.Module, device: torch.device, world: int) -> None:
    """Lets the BatchNorm layers normalise over the micro-batches of all processes together; names of tensors stay.

    PyTorch can do so on GPUs only, which the plan has seen to. One process has nothing to do.
    """
    if world == 1:
        return
    assert device.type == "cuda", "the plan refuses others"
    converted = timm.layers.convert_sync_batchnorm(backbone)  # type: ignore[attr-defined, no-untyped-call]
    assert converted is backbone, "a backbone is more than one layer"


def recompute_in_backward(backbone: Any, name: str) -> None:
    """Lets the backbone forget what it computes between its stages, or blocks, and compute it again in the backward pass.

    Raises ConfigError when timm offers no such thing for it.
    """
    try:
        getattr(backbone, "model", backbone).set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise ConfigError(_NOTHING_TO_RECOMPUTE.format(name)) from error
    if isinstance(backbone, FeatureHookNet):  # it takes the setting, and does nothing
        raise ConfigError(_NOTHING_TO_RECOMPUTE.format(name))
    stages = [module for module in backbone.modules() if module is not backbone and hasattr(module, "grad_checkpointing")]
    for stage in stages:  # block by block keeps less than stage by stage
        stage.grad_checkpointing = True
    if stages:
        backbone.grad_checkpointing = False
    if Version(timm.__version__) < Version("1.0.31"):  # it computes such a layer again all by itself, in the place of its input
        for layer in backbone.children():
            if getattr(layer, "inplace", False):
                layer.inplace = False


_NOTHING_TO_RECOMPUTE = (
    "model.gradient_checkpointing=true: timm offers none for model.backbone={}; a smaller train.micro_batch saves memory, too"
)


@contextmanager
def statistics_of_this_pass(backbone: nn.Module) -> Iterator[None]:
    """BatchNorm learns its running statistics within, and not when the backward pass computes the same once more.

    Only its count of batches, which nothing reads, counts both.
    """
    layers = batch_norms(backbone)
    for layer in layers:
        layer.momentum = layer.__dict__.setdefault("momentum_in_forward", layer.momentum)
    try:
        yield
    finally:
        for layer in layers:
            layer.momentum = 0.0
