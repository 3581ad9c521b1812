"""How large each variant of the model is: a table of parameters and multiply-adds, counted, for docs/recipes.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dist_train.config import Config, Model
from dist_train.model_folder import build_model

PATCH_SIZE = 224
VARIANTS = (
    Model(backbone="resnet50.tv_in1k"),
    *(
        Model(backbone=f"swin_{size}_patch4_window7_224", stages=stages, stage_attention=attention)
        for size in ("tiny", "small", "base")
        for stages, attention in (("last", False), ("all", False), ("all", True))
    ),
    Model(backbone="tf_efficientnet_lite0"),
)


class Cost(NamedTuple):
    """Of one model: trainable parameters, and multiply-adds of scoring one patch (in convolutions and matrix products)."""

    parameters: int
    multiply_adds: int


def count_cost(model: Model, patch_size: int = PATCH_SIZE) -> Cost:
    """Counted on a model without memory: nothing is computed. Raises ConfigError when there is no such model."""
    with torch.device("meta"):
        made = build_model(Config(model=model), patch_size, (0.0, 100.0)).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
        made.to_empty(device="cpu")(torch.zeros(1, 3, patch_size, patch_size, dtype=torch.uint8))
    return Cost(sum(tensor.numel() for tensor in made.parameters()), counter.get_total_flops() // 2)  # it counts an add for itself


def variants_table(variants: Sequence[Model] = VARIANTS) -> str:
    """A row per variant, as Markdown."""
    rows = ["| `model.backbone` | `stages` | `stage_attention` | parameters | multiply-adds |", "| --- | --- | --- | ---: | ---: |"]
    for model in variants:
        cost, attention = count_cost(model), str(model.stage_attention).lower()
        rows.append(
            f"| `{model.backbone}` | {model.stages} | {attention} | {cost.parameters / 1e6:.2f} M | {cost.multiply_adds / 1e9:.2f} G |"
        )
    return "\n".join(rows)
