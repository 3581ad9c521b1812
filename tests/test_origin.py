"""A run that starts from a trained model: it begins where that one has ended, and remembers what that one had seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
from in_process import config_of, train_here, train_here_until
from photographs import make_folder, shards_of
from safetensors.torch import load_file
from torch import Tensor

from dist_train import state
from dist_train.__main__ import main
from dist_train.collection import SPAN, Scale
from dist_train.compare import compare
from dist_train.config import Config
from dist_train.errors import ConfigError
from dist_train.evaluate import choose_sets
from dist_train.evaluation import Scores, final_panel_of
from dist_train.model import HyperIQA
from dist_train.model_folder import Cutting, build_model, open_model, save_model
from dist_train.origin import all_trained_on
from dist_train.plan import Plan, describe_plan, make_plan
from dist_train.report import final_table
from dist_train.seen import SEEN, SeenFiles, file_numbers
from dist_train.tested import UNKNOWN
from shards.manifest import Label, Shards

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")
MOS = Label("MOS", 0.0, 100.0, True)
DMOS = Label("DMOS", 1.0, 9.0, False)
ENDS = {str(label): (label, *ends) for label, *ends in [(MOS, 0, 100), (DMOS, 9, 1), (Label("MOS", 1.0, 5.0, True), 1, 5)]}  # worst, best


def model_in(
    folder: Path,
    scales: dict[str, Scale],
    output_scale: tuple[float, float] = (0.0, 100.0),
    output: str = "range",
    about: dict[str, Any] | None = None,
    **others: Tensor,
) -> Path:
    """A model folder as a run would leave it, of random weights; `others` take the place of tensors."""
    config = Config.model_validate({"model": {"backbone": "test_convnext", "output": output}})
    torch.manual_seed(7)
    weights = build_model(config, 64, output_scale).state_dict() | others
    save_model(folder, weights, config, scales, dict.fromkeys(scales, Cutting(64, 4, "none", 0)), about or {})
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of a MOS of 0 to 100; nobody knows what it was trained on."""
    return model_in(tmp_path / "model", {"one": Scale(MOS)})


def cups_of(folder: Path, label: Label, **settings: object) -> Path:
    """Twelve pictures that no other test trains on, as shards: 6 to train, 3 to validate, 3 to test."""
    made = make_folder(folder, split=["train"] * 6 + ["val"] * 3 + ["test"] * 3)
    return Path(shards_of(made, folder / "shards", label=label, **{"patch_size": 64, "patches": 2, **settings}).folder)


@pytest.fixture(scope="module")
def cups_by_label(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The cups with an opinion on each of those labels. Not to be changed."""
    return {name: cups_of(tmp_path_factory.mktemp("cups"), label) for name, (label, *_) in ENDS.items()}


@pytest.fixture(scope="module")
def better(cups_by_label: dict[str, Path]) -> Path:
    """The cups with a MOS of 0 to 100."""
    return cups_by_label[str(MOS)]


@pytest.fixture(scope="module")
def worse(cups_by_label: dict[str, Path]) -> Path:
    """The cups with a DMOS of 1 to 9."""
    return cups_by_label[str(DMOS)]


def plan_of(folder: Path, shards: Path, start_from: Path, *settings: str) -> Plan:
    return make_plan(config_of(folder, shards, f"model.start_from={start_from}", *settings), 1)


def begun(plan: Plan) -> HyperIQA:
    """The model as a run has it before its first step."""
    plan.config.run.folder.mkdir(exist_ok=True)
    torch.manual_seed(plan.config.run.seed)
    model = build_model(plan.config, plan.collection.patch_size, plan.output_scale)
    state._fill(model, plan)
    return model.eval()


def says(model: HyperIQA) -> Tensor:
    """Scores of four patches of noise: float64 [4]."""
    patches = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    with torch.no_grad():
        return model(patches).double()


@pytest.mark.parametrize("before", ENDS)
@pytest.mark.parametrize("now", ENDS)
@pytest.mark.parametrize("output", ["range", "raw"])
def test_the_best_and_the_worst_of_the_model_are_those_of_the_new_label(
    cups_by_label: dict[str, Path], tmp_path: Path, before: str, now: str, output: str
) -> None:
    (old, old_worst, old_best), (new, worst, best) = ENDS[before], ENDS[now]
    scale = (0.0, 100.0) if output == "raw" else (old.low or 0.0, old.high or 0.0)
    source = model_in(tmp_path / "model", {"one": Scale(old)}, scale, output)
    plan = plan_of(tmp_path / "run", cups_by_label[now], source)
    good = (says(open_model(source).model) - old_worst) / (old_best - old_worst)
    assert good.std() > 1e-4  # patches that could not be mistaken for each other
    torch.testing.assert_close(says(begun(plan)), worst + good * (best - worst), rtol=1e-5, atol=1e-5)
    if output == "range" and old.higher_is_better == new.higher_is_better:
        assert plan.output_scale == pytest.approx((new.low, new.high), rel=1e-12)
    if output == "range" and old.higher_is_better:  # and so on, from model to model
        again = model_in(tmp_path / "again", {"two": Scale(new)}, plan.output_scale)
        assert plan_of(tmp_path / "next", cups_by_label[str(MOS)], again).output_scale == pytest.approx((0, 100), rel=1e-6)


def test_a_model_of_several_sets_and_a_run_on_several_speak_in_standard_deviations_of_quality(
    tmp_path: Path, shards: Path, worse: Path
) -> None:
    several = {"one": Scale(DMOS, 4.0, -2.0), "two": Scale(MOS, 50.0, 9.0)}
    source = model_in(tmp_path / "model", several, (-SPAN, SPAN))
    assert plan_of(tmp_path / "run", worse, source).output_scale == pytest.approx((9, 1))
    assert plan_of(tmp_path / "run", worse, source).point == pytest.approx(0.08)  # the loss is none of a scale that is turned
    sets = f"data.sets={{tiny: {{shards: {shards}}}, cups: {{shards: {worse}}}}}"
    upside_down = model_in(tmp_path / "other", {"one": Scale(DMOS)}, (1.0, 9.0))
    config = config_of(tmp_path / "both", shards, f"model.start_from={upside_down}", "data.shards=null", sets)
    assert make_plan(config, 1).output_scale == pytest.approx((SPAN, -SPAN))


@pytest.mark.parametrize("rises", [True, False])
def test_a_scale_that_was_not_stated_is_taken_for_0_to_100(better: Path, tmp_path: Path, rises: bool) -> None:
    source = model_in(tmp_path / "model", {"one": Scale(Label("seen", None, None, rises))}, (3.0, 7.0))
    expected = (0, 100) if rises else (100, 0)
    assert plan_of(tmp_path / "run", better, source).output_scale == pytest.approx(expected)


def test_a_raw_run_keeps_the_units_of_the_model_and_says_so_where_they_are_others(
    model: Path, cups_by_label: dict[str, Path], tmp_path: Path
) -> None:
    told = {}
    for label in (MOS, DMOS):
        plan = plan_of(tmp_path / label.name, cups_by_label[str(label)], model, "model.output=raw")
        torch.testing.assert_close(says(begun(plan)), says(open_model(model).model))
        told[label.name] = describe_plan(plan)
    assert "says 0 of the worst picture and 100 of the best, where 9 and 1 are right here" in told["DMOS"]
    assert "maps nothing" not in told["MOS"]


def test_every_weight_and_buffer_is_taken_over_but_the_scale(worse: Path, tmp_path: Path) -> None:
    mean = torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1)  # of a backbone that was normalised otherwise
    source = model_in(tmp_path / "model", {"one": Scale(MOS)}, mean=mean)
    found = begun(plan_of(tmp_path / "run", worse, source)).state_dict()
    expected = open_model(source).model.state_dict()
    assert torch.equal(found["mean"], mean)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == ["output_scale"]


def test_all_that_is_built_otherwise_is_listed_and_what_is_only_trained_otherwise_may_differ(
    model: Path, better: Path, tmp_path: Path
) -> None:
    cups = cups_of(tmp_path / "cups", MOS, patch_size=48)
    with pytest.raises(ConfigError) as refused:
        plan_of(tmp_path / "run", cups, model, "model.backbone=test_resnet", "model.stages=all", "model.stage_attention=true")
    for difference in (
        "model.backbone is test_resnet here, test_convnext there",
        "model.stages is all here, last there",
        "model.stage_attention is True here, False there",
        "the patch size of the shards is 48 here, 64 there",
    ):
        assert difference in str(refused.value)
    free = ("model.dropout=0.1", "model.stochastic_depth=0.1", "model.batch_norm=frozen", "optim.lr=1")
    assert plan_of(tmp_path / "run", better, model, *free)


def planned(capsys: pytest.CaptureFixture[str], shards: Path, *settings: str) -> tuple[int, str]:
    code = main(["plan", str(runs.TINY), f"data.shards={shards}", *settings])
    return code, "".join(capsys.readouterr())


def test_a_model_that_could_not_be_opened_is_refused_when_the_run_is_planned(
    model: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"model.start_from={model}"
    code, told = planned(capsys, shards, f"run.folder={tmp_path / 'run'}", start)
    assert code == 0 and f" {model}, trained on nobody knows what; with a new Adam and schedule" in told
    assert "what the model that it starts from calls worst and best begins as 0 and 100" in told
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1000] ^= 0x40
    (model / "model.safetensors").write_bytes(content)
    code, told = planned(capsys, shards, start)
    assert code == 1 and "model.safetensors: holds no model of this version" in told
    code, told = planned(capsys, shards, f"model.start_from={tmp_path / 'nowhere'}")
    assert code == 1 and f"{tmp_path / 'nowhere'}: holds no trained model" in told


def test_pretrained_weights_are_neither_looked_for_nor_loaded(
    model: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "load_pretrained", lambda *_: pytest.fail("pretrained weights were loaded"))
    settings = (f"run.folder={tmp_path / 'run'}", f"model.start_from={model}", "model.pretrained=no/such.pth")
    code, told = planned(capsys, shards, *settings)
    assert code == 0 and "model.pretrained does nothing: all weights are those of model.start_from" in told
    assert main(["fetch", str(runs.TINY), *settings]) == 0
    assert f"model.start_from={model}: there is nothing to fetch" in capsys.readouterr().out
    begun(plan_of(tmp_path / "run", shards, model, "model.pretrained=true"))


def test_another_model_in_the_place_of_the_one_that_was_planned_for_is_refused(model: Path, shards: Path, tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "run", shards, model)
    model_in(model, {"one": Scale(MOS)}, std=torch.ones(3, 1, 1))
    with pytest.raises(ConfigError, match=r"holds other weights than when this run began; start again in another run\.folder"):
        begun(plan)


def with_record(model: Path, shards: Path, part: str, name: str = "cups") -> SeenFiles:
    """Lets a model folder say that it was trained on a part of the official split of `shards`, which it calls `name`."""
    opened = Shards(shards)
    seen = SeenFiles(np.unique(file_numbers(opened)[opened.split("official")[1][part]]), np.empty(0, np.int64))
    told = {name: {"data_set": name, "data_fingerprint": opened.fingerprint, "split": "official"}}
    model_in(model, {name: Scale(MOS)}, about={"trained_on": told})
    seen.save(model / SEEN)
    return seen


def test_images_of_val_and_test_that_the_model_was_trained_on_are_told_and_counted(
    model: Path, better: Path, worse: Path, tmp_path: Path
) -> None:
    with_record(model, worse, "test")  # the same files
    plan = plan_of(tmp_path / "run", better, model)
    assert "was trained on 3 of the 3 images in test, such as 'cup09': figures of test are too good" in describe_plan(plan)
    assert "images in val, such as" not in describe_plan(plan)
    (member,) = plan.collection.members
    images = {part: member.parts[part] for part in ("val", "test")}
    panels = {
        part: final_panel_of(
            {member.name: Scores(found, np.arange(3.0)[:, None], member.shards.opinions[found])}, plan.collection, part, scale_is_open=False
        )
        for part, found in images.items()
    }
    assert (panels["val"]["trained_too"], panels["test"]["trained_too"]) == (0, 3)
    with_record(model, worse, "train")
    assert "WARNING" not in describe_plan(plan_of(tmp_path / "run", better, model))


def test_other_files_of_a_set_that_the_model_was_trained_on_are_told(model: Path, shards: Path, better: Path, tmp_path: Path) -> None:
    with_record(model, shards, "train", name="cups")
    told = describe_plan(plan_of(tmp_path / "run", better, model))
    assert "was trained on other files called cups: copies of images in val and test may be among them" in told


def test_a_model_of_which_nobody_knows_what_it_has_seen_is_told(model: Path, shards: Path, tmp_path: Path) -> None:
    assert "nobody knows all that the model was trained on" in describe_plan(plan_of(tmp_path / "run", shards, model))


@pytest.fixture(scope="module")
def source(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("source") / "run"
    train_here(folder, shards)
    return folder


SHORT = ("train.global_batch=2", "save.every_steps=1", "save.keep=9", "ema.decay=0.5")  # 3 steps an epoch


@pytest.fixture(scope="module")
def unbroken(source: Path, worse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch that starts from that one, on another set."""
    folder = tmp_path_factory.mktemp("unbroken")
    train_here(folder, worse, f"model.start_from={source}", *SHORT)
    return folder


def test_an_interrupted_run_goes_on_without_the_model_to_the_bits_of_an_unbroken_one(
    source: Path, worse: Path, unbroken: Path, tmp_path: Path
) -> None:
    copy, folder = Path(shutil.copytree(source, tmp_path / "source")), tmp_path / "run"
    train_here_until(1, folder, worse, f"model.start_from={copy}", *SHORT)  # before there is a best epoch
    shutil.rmtree(copy)
    with pytest.raises(ConfigError, match=rf"model\.start_from was {copy}, is {source}"):
        train_here(folder, worse, f"model.start_from={source}", *SHORT)
    train_here(folder, worse, f"model.start_from={copy}", *SHORT)
    for best in ("best", "best-ema"):
        one, other = (load_file(place / best / "model.safetensors") for place in (unbroken, folder))
        assert runs.largest_difference(one, other) == 0
        assert (folder / best / SEEN).read_bytes() == (unbroken / best / SEEN).read_bytes()
        assert open_model(folder / best).about["trained_on"] == open_model(unbroken / best).about["trained_on"]
    mine, other = runs.figures(folder), runs.figures(unbroken)
    assert str(copy) in mine.pop("starts_from")["model"] and str(source) in other.pop("starts_from")["model"]
    assert mine == other


def test_where_not_all_is_known_that_the_model_had_seen_the_figures_of_the_run_say_so(unbroken: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unbroken, tmp_path / "run"))
    status = runs.status(folder)
    assert "nobody knows" not in final_table(status) and UNKNOWN not in compare([str(folder)])
    status["starts_from"]["all_it_saw_is_known"] = False
    (folder / "status.json").write_text(json.dumps(status))
    assert "nobody knows all that it was trained on" in final_table(status) and UNKNOWN in compare([str(folder)])


def test_data_sets_of_an_equal_name_that_were_trained_on_before_stay_known() -> None:
    own, koniq = {"a": {"data_set": "spaq"}}, {"data_set": "koniq10k"}
    assert all_trained_on(own, {"a": koniq, "b": koniq | {"split": "x"}}) == own | {"a-2": koniq, "b": koniq | {"split": "x"}}
    assert all_trained_on(own, dict(own)) == own


def test_the_same_steps_are_taken_on_two_processes(source: Path, worse: Path, unbroken: Path, tmp_path: Path) -> None:
    runs.train(2, tmp_path, worse, f"model.start_from={source}", "train.epochs=1", *SHORT)
    runs.assert_equal_up_to_rounding(runs.weights(tmp_path, 3), runs.weights(unbroken, 3))
    assert runs.records(unbroken, "step")[0]["loss"] == pytest.approx(runs.records(tmp_path, "step")[0]["loss"], rel=1e-4)


def test_what_the_model_had_seen_is_known_of_the_new_one_too(
    source: Path, shards: Path, worse: Path, unbroken: Path, tmp_path: Path
) -> None:
    trained = open_model(unbroken)
    assert [*trained.about["trained_on"]] == ["cups", "tiny"] and [*trained.scales] == ["cups"]
    assert [*runs.status(unbroken)["trained_on"]] == ["cups"]
    for part, (training, choosing) in {"train": (40, 0), "val": (0, 10), "test": (0, 0)}.items():
        (old,) = choose_sets(trained, [str(shards)], None, part)
        assert (old.split, *old.seen[:3]) == ("official", True, training, choosing) and ("WARNING" in old.seen.told) == (part != "test")
    (old,) = choose_sets(trained, [str(shards)], None, None)
    assert old.part == "test"  # of a set that it was trained on
    (own,) = choose_sets(trained, [], None, "train")
    assert own.seen.trained_on_images == 6
    third = plan_of(tmp_path / "third", shards, unbroken)  # a model knows what those before its own have seen
    assert third.origin is not None and [*third.origin.trained_on] == ["cups", "tiny"] and len(third.origin.files) == 46


def test_of_a_run_that_started_from_a_model_of_which_nobody_knows_only_its_own_images_are_known(
    model: Path, shards: Path, worse: Path, tmp_path: Path
) -> None:
    train_here(tmp_path / "run", worse, f"model.start_from={model}", *SHORT)
    trained = open_model(tmp_path / "run")
    (own,) = choose_sets(trained, [], None, "train")
    assert own.seen.trained_on_images == 6 and own.seen.told.startswith("WARNING: the model was trained on 6 of these images")
    (other,) = choose_sets(trained, [str(shards)], None, None)
    assert other.seen[:4] == (None, None, None, None) and "nobody knows what it was trained on" in other.seen.told


def test_a_model_whose_run_has_not_ended_is_told(source: Path, worse: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    status = runs.status(copy) | {"status": "unfinished", "reason": "training"}
    (copy / "status.json").write_text(json.dumps(status))
    told = describe_plan(plan_of(tmp_path / "run", worse, copy))
    assert f"{copy}: this run is unfinished (training), and these are the weights of its best epoch so far" in told


def test_a_damaged_record_of_the_model_is_named_with_what_to_do(model: Path, shards: Path, tmp_path: Path) -> None:
    begun(plan_of(tmp_path / "run", shards, model))
    kept = tmp_path / "run" / "origin.safetensors"
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"origin\.safetensors: was damaged .*; delete it"):
        plan_of(tmp_path / "run", shards, model)
