"""The checkpoint that the authors of HyperIQA publish, as a model folder of ours: other names, the same numbers.

Theirs is a pickled state dict of 355 tensors. Only tensors are unpickled, and every one must have its place here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_train.collection import Scale
from dist_train.config import Config, Model
from dist_train.errors import ConfigError
from dist_train.model_folder import WEIGHTS, Cutting, build_model, save_model
from shards.manifest import Label, file_sha256
from shards.patches import resized_size

KONIQ_LABEL = Label("MOS_zscore", 0.0, 100.0, True)  # what the authors' checkpoint was trained to say ...
KONIQ_CUTTING = Cutting(224, 25, "exact:384x512", 0)  # ... and on what: (height 512, width 384), whatever the picture's shape
OURS = Config(model=Model(pretrained=False, output="raw"))  # the defaults are the paper's
OF_OURS_ALONE = ("mean", "std", "output_scale")  # they normalise outside of the model, and map nothing

_THEIR_NAMES = [  # a pattern of our names, and what takes its place in theirs, where 0 counts as 1
    (r"branches\.pools\.(\d)\.0\.(.*)", "res.lda{}_pool.0.{}"),
    (r"branches\.linears\.(\d)\.(.*)", "res.lda{}_fc.{}"),
    (r"hyper\.weight_maps\.(\d)\.(.*)", "fc{}w_conv.{}"),
    (r"hyper\.biases\.(\d)\.(.*)", "fc{}b_fc.{}"),
]


def import_hyperiqa(file: Path, folder: Path, label: Label = KONIQ_LABEL, cutting: Cutting = KONIQ_CUTTING) -> int:
    """Writes the weights in `file`, a checkpoint of the authors' code, as the model in `folder`; returns how many tensors there were.

    The checkpoint does not say what its scores mean and how its patches were cut: `label` and `cutting` do.
    Raises ConfigError listing every tensor that is missing, unknown, or of another shape; ShardError for an unknown resize rule.
    """
    resized_size(1, 1, cutting.resize, cutting.patch_size)
    if (folder / WEIGHTS).exists():
        raise ConfigError(f"{folder}: holds a model already; choose a new folder as --out")
    theirs = _read(file)
    model = build_model(OURS, cutting.patch_size, (0.0, 100.0))
    weights = model.state_dict()
    wanted = {their_name(name): name for name in weights if name not in OF_OURS_ALONE}
    if not any(name.endswith("num_batches_tracked") for name in theirs):  # PyTorch before 0.4.1 did not count them; nothing reads the count
        wanted = {their: name for their, name in wanted.items() if not name.endswith("num_batches_tracked")}
    _refuse_differences(file, {their: weights[name].shape for their, name in wanted.items()}, theirs)
    _refuse_numbers(file, {their: weights[name].is_floating_point() for their, name in wanted.items()}, theirs)
    model.load_state_dict(weights | {name: theirs[their] for their, name in wanted.items()})
    save_model(
        folder,
        model.state_dict(),
        OURS,
        {"published": Scale(label)},
        {"published": cutting},
        {"imported": file.name, "sha256": file_sha256(file)},
    )
    return len(wanted)


def _refuse_numbers(file: Path, fractions: Mapping[str, bool], found: Mapping[str, Tensor]) -> None:
    """Raises ConfigError where whole numbers stand for fractions, or a number is not finite."""
    odd = [name for name, needed in fractions.items() if needed and not (found[name].is_floating_point() and found[name].isfinite().all())]
    if odd:
        raise ConfigError(
            f"{file}: {len(odd)} of its tensors hold whole numbers where weights are fractions, or numbers that are not finite, such as "
            f"{odd[0]}; nothing was written: save the checkpoint of a training that went well"
        )


def their_name(name: str) -> str:
    """What the authors call one of our tensors."""
    for pattern, theirs in _THEIR_NAMES:
        if match := re.fullmatch(pattern, name):
            return theirs.format(int(match[1]) + 1, match[2])
    for ours, prefix in (("backbone.", "res."), ("hyper.stack.", "conv1."), ("hyper.last_weight.", "fc5w_fc.")):
        if name.startswith(ours):
            return prefix + name.removeprefix(ours)
    raise AssertionError(f"the authors have no {name}")


def _read(file: Path) -> Mapping[str, Tensor]:
    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file")
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and PyTorch each raise their own
        raise ConfigError(f"{file}: is no file of plain tensors as torch.save writes them; nothing else is unpickled") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        raise ConfigError(f"{file}: holds no tensors by name; save the model's state_dict() alone")
    return content


def _refuse_differences(file: Path, wanted: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> None:
    other = [name for name in wanted.keys() & found.keys() if wanted[name] != found[name].shape]
    differences = {
        "missing": [f"{name} {tuple(wanted[name])}" for name in wanted.keys() - found.keys()],
        "unknown": [f"{name} {tuple(found[name].shape)}" for name in found.keys() - wanted.keys()],
        "of another shape": [f"{name} {tuple(found[name].shape)}, not {tuple(wanted[name])}" for name in other],
    }
    if any(differences.values()):
        lists = [
            f"{len(names)} {kind}:\n" + "\n".join(f"  {name}" for name in sorted(names)) for kind, names in differences.items() if names
        ]
        raise ConfigError(
            f"{file}: its tensors are not those of the authors' HyperIQA on ResNet-50; nothing was written\n" + "\n".join(lists)
        )
