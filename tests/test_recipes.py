"""The recipes in configs/: each loads, says only what differs from the defaults, and plans on its data set in the set's own format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import public_sets
import pytest
import yaml

from dist_train.config import Config, load_config
from dist_train.plan import make_plan
from shards.adapters import ADAPTERS
from shards.manifest import PARTS, Shards
from shards.plan import Settings, plan_build
from shards.writer import build

ROOT = Path(__file__).parent.parent
LISTED = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "configs").glob("*.yaml"), key=lambda path: path.stem)


def settings_of(recipe: Path) -> Iterator[tuple[str, Any]]:
    """Every section.key that a recipe names, and its value."""
    for section, keys in yaml.safe_load(recipe.read_text(encoding="utf-8")).items():
        for key, value in keys.items():
            yield f"{section}.{key}", value


def data_set_of(recipe: Path) -> str:
    """The public data set that a recipe's shard folder is named after: koniq10k of data/koniq10k_paper."""
    folder = Path(str(load_config(recipe).data.shards))
    return next(name for name in (folder.name.partition("_")[0], folder.parts[0]) if name in ADAPTERS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_only_what_differs_from_the_defaults(recipe: Path) -> None:
    config, defaults = load_config(recipe), Config()
    for key, _ in settings_of(recipe):
        section, name = key.split(".")
        assert getattr(getattr(config, section), name) != getattr(getattr(defaults, section), name), f"{key} is the default"


def test_no_two_recipes_write_the_same_run() -> None:
    folders = [load_config(recipe).run.folder for recipe in RECIPES]
    assert len(set(folders)) == len(folders)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, no_waiting_for_the_disk: None) -> Callable[[str, int, str], Path]:
    """Shards of a public data set in small, 5 patches an image, with one round of the ratio.

    The official parts of so few images are too small to be trained with, so a table of ours, `planned`, stands beside them.
    """
    folder = tmp_path_factory.mktemp("sets")

    def make(name: str, patch_size: int, ratio: str) -> Path:
        root, out = folder / name, folder / f"{name}-{patch_size}-{ratio.replace('/', '-')}"
        if not out.exists():
            data_set = ADAPTERS[name].read(root if root.exists() else public_sets.make(name, root), ADAPTERS[name].labels[0].name)
            build(plan_build(data_set, Settings(patch_size=patch_size, patches=5, rounds=1, ratio=ratio)), out)
            parts = [f"{row.id},{PARTS[number % 3]}" for number, row in enumerate(data_set.rows)]
            (out / "splits" / "planned.csv").write_text("\n".join(["id,part", *parts]))
        return out

    return make


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_plans_on_its_data_set(recipe: Path, made: Callable[[str, int, str], Path]) -> None:
    name, config = data_set_of(recipe), load_config(recipe)
    shards = made(name, 224 if "224" in config.model.backbone else 64, "60/40" if config.data.split else "40/30/30")
    planned = ["data.split=planned"] if config.data.split is None and "official" in Shards(shards).built_splits else []
    plan = make_plan(load_config(recipe, [f"data.shards={shards}", *planned]), 2)
    assert plan.collection.members[0].shards.label == ADAPTERS[name].labels[0]
    assert plan.order.patches_per_image == config.data.patches_per_image
    assert plan.total_steps >= config.train.epochs


def test_the_documentation_lists_every_recipe_with_the_set_it_is_for() -> None:
    listed = re.findall(r"^\| \[(\w+)\.yaml\]\(\.\./configs/(\w+)\.yaml\) \| `(\w+)`", LISTED, re.MULTILINE)
    assert {(file, place, name) for file, place, name in listed} == {(path.stem, path.stem, data_set_of(path)) for path in RECIPES}
