"""The table in docs/recipes.md is what the command counts, and what it counts is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_train.config import Model
from dist_train.variants import count_cost, variants_table

RECIPES = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_documentation_has_a_row_for_every_variant_as_it_is_counted() -> None:
    assert variants_table() in RECIPES


def test_multiply_adds_are_those_one_counts_by_hand() -> None:
    """ResNet-18 at 224: 1,813,561,344 without its classifier, as the sum over its convolutions; then HyperIQA's own layers."""
    places = {1: 56 * 56, 2: 28 * 28, 3: 14 * 14, 4: 7 * 7}
    stem = 112 * 112 * 64 * 3 * 49
    stages = places[1] * 4 * 64 * 64 * 9
    for stage, width in ((2, 128), (3, 256), (4, 512)):
        stages += places[stage] * (width * (width // 2) * 9 + 3 * width * width * 9 + width * (width // 2))
    branches = places[1] * 64 * 16 + places[2] * 128 * 32 + places[3] * 256 * 64 + (1024 + 512 + 256) * 16 + 512 * 176
    stack = 49 * (512 * 512 + 512 * 256 + 256 * 112)
    generators = 49 * 112 * 9 * (512 + 128 + 32 + 8) + 112 * (14 + 112 + 56 + 28 + 14 + 1)
    target = 224 * 112 + 112 * 56 + 56 * 28 + 28 * 14 + 14
    assert stem + stages == 1_813_561_344
    assert count_cost(Model(backbone="resnet18")).multiply_adds == stem + stages + branches + stack + generators + target


@pytest.mark.parametrize("stages", ["last", "all"])
def test_larger_patches_cost_more(stages: str) -> None:
    model = Model.model_validate({"backbone": "convnext_atto", "stages": stages})
    small, large = count_cost(model, 64), count_cost(model, 128)
    assert small.parameters == large.parameters
    assert large.multiply_adds > 2 * small.multiply_adds
