"""A trained model on its own and on other data sets, as a user starts it: the very figures of its training, on any number of processes."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain_hyperiqa
import pytest
import runs
import torch
import warm
from PIL import Image
from scipy import stats

from dist_train.collection import Scale
from dist_train.compare import compare
from dist_train.config import Data
from dist_train.errors import ConfigError
from dist_train.evaluate import choose_sets, evaluate
from dist_train.model_folder import Cutting, TrainedModel, open_model
from dist_train.published import KONIQ_CUTTING, KONIQ_LABEL, import_hyperiqa
from dist_train.tested import SEEN_IN_TRAINING
from shards.datasets import read_table
from shards.manifest import Label, ShardError, Shards
from shards.plan import Settings, plan_build
from shards.writer import build

pytestmark = pytest.mark.timeout(600)
DMOS = Label("made-up DMOS", 0.0, 10.0, False)


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch in bf16, so that scores in another precision would be seen."""
    folder = tmp_path_factory.mktemp("run")
    runs.train(1, folder, shards, "train.epochs=1", "run.precision=bf16")
    return folder


def build_worse(photographs: Path, out: Path, patch_size: int = 64, name: str = "worse", resize: str = "none") -> Path:
    """Half of the photographs, without parts, and with an opinion from 0 to 10 of which less is better."""
    table = out.with_suffix(".csv")
    with (photographs / "scores.csv").open() as file, table.open("w", newline="") as turned:
        writer = csv.writer(turned)
        writer.writerow(["image", "score", "group"])
        writer.writerows([row["image"], 10 - float(row["score"]) / 10, row["group"]] for row in list(csv.DictReader(file))[::2])
    build(plan_build(read_table(table, photographs / "images", name, DMOS), Settings(patch_size=patch_size, patches=2, resize=resize)), out)
    return out


def build_new(folder: Path, name: str, resize: str = "none", label: Label | None = None) -> Path:
    """Six pictures of noise."""
    (folder / "images").mkdir()
    rows = ["image,score"]
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (80, 80, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{number}.png")
        rows.append(f"{number}.png,{number}")
    (folder / "scores.csv").write_text("\n".join(rows))
    table = read_table(folder / "scores.csv", folder / "images", name, label)
    build(plan_build(table, Settings(patch_size=64, patches=2, resize=resize)), folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="module")
def worse(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_worse(photographs, tmp_path_factory.mktemp("worse") / "shards")


@pytest.fixture(scope="module")
def trained(run: Path) -> TrainedModel:
    return open_model(run)


def evaluated(world: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return warm.run("evaluate", *arguments, world=world)


def told(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return content["sets"]  # type: ignore[no-any-return]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def on_two_sets(run: Path, shards: Path, worse: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, str]]:
    """By number of processes: the folder that was written, and what was printed.

    A process alone gets the model's file alone; two are started by torchrun.
    """
    alone, out = tmp_path_factory.mktemp("model") / "best", tmp_path_factory.mktemp("results") / "out"
    shutil.copytree(run / "best", alone)
    one = evaluated(1, "--shards", shards, worse, "--checkpoint", alone / "model.safetensors")
    assert one.returncode == 0, one.stderr
    typed = [*runs.LAUNCHER, "2", "-m", "dist_train", "evaluate", "--shards", shards, worse, "--checkpoint", run, "--out", out]
    two = subprocess.run(typed, capture_output=True, text=True, timeout=runs.LIMIT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert two.returncode == 0, two.stdout + two.stderr
    return {1: (alone / "evaluation", one.stdout), 2: (out, two.stdout)}


def test_the_test_part_of_the_run_gets_the_figures_of_its_training_to_the_last_bit(
    on_two_sets: dict[int, tuple[Path, str]], run: Path
) -> None:
    figures = runs.status(run)["test"]
    assert figures["srcc"] is not None
    for results, printed in on_two_sets.values():
        assert (results / "scores-tiny.csv").read_bytes() == (run / "scores-test.csv").read_bytes()
        assert {name: told(results)["tiny"][name] for name in figures} == figures
        assert "tiny: test of split 'official'; pseudo-opinion (0 to 100, higher is better)" in printed
        assert "the model was trained on other images of this data set" in printed


def test_any_number_of_processes_writes_the_same_bytes(on_two_sets: dict[int, tuple[Path, str]]) -> None:
    (one, _), (two, _) = on_two_sets.values()
    assert sorted(path.name for path in one.iterdir()) == ["evaluation.json", "scores-tiny.csv", "scores-worse.csv"]
    for name in ("scores-tiny.csv", "scores-worse.csv"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    lines = [[line for line in (folder / "evaluation.json").read_text().splitlines() if '"model":' not in line] for folder in (one, two)]
    assert lines[0] == lines[1] and len(lines[0]) > 20


def test_an_evaluation_is_compared_with_the_run_on_the_set_that_both_know(on_two_sets: dict[int, tuple[Path, str]], run: Path) -> None:
    results, _ = on_two_sets[1]
    text = compare([str(run), str(results)])
    assert text.startswith(
        f"left out: worse ({told(results)['worse']['data_fingerprint']}) of {results}: {run} was not tested on it\n\ntest"
    )
    assert f"{results} over {run}: every image has the same score on both sides" in text and "too good" not in text
    alone = compare([str(results)])
    for name, rmse in (("tiny", f"{told(results)['tiny']['rmse']:.4f}"), ("worse", "nan")):
        figures = " +".join(f"{told(results)[name][figure]:.4f}" for figure in ("srcc", "plcc", "krcc"))
        assert re.search(rf"^{results} {name} +.* {figures} +{rmse}$", alone, re.MULTILINE)
    assert f"{SEEN_IN_TRAINING}: {results}" in alone


def test_an_imported_model_is_compared_with_a_run_on_the_images_of_its_test(run: Path, shards: Path, tmp_path: Path) -> None:
    torch.save(plain_hyperiqa.random_checkpoint(), tmp_path / "authors.pkl")
    import_hyperiqa(tmp_path / "authors.pkl", tmp_path / "model", cutting=Cutting.of(Shards(shards)))
    scored = evaluated(1, "--checkpoint", tmp_path / "model", "--shards", shards, "--out", tmp_path / "out", "--part", "test")
    assert scored.returncode == 0, scored.stderr
    text, theirs = compare([str(run), str(tmp_path / "out")]), told(tmp_path / "out")["tiny"]["srcc"]
    assert f"SRCC {theirs - runs.status(run)['test']['srcc']:+.4f}" in text
    assert text.endswith(f"nobody knows whether these were trained or chosen on these images: {tmp_path / 'out'}")


def test_without_shards_the_data_of_the_run_are_scored(trained: TrainedModel, shards: Path, worse: Path) -> None:
    (one,) = choose_sets(trained, [], None, None)
    assert (one.name, one.part, one.split) == ("tiny", "test", "official")
    assert np.array_equal(one.images, Shards(shards).split("official")[1]["test"])
    several = Data.model_validate({"sets": {"tiny": {"shards": shards}, "other": {"shards": worse}}})
    config = trained.config.model_copy(update={"data": several})
    assert [found.shards.folder for found in choose_sets(replace(trained, config=config), [], None, None)] == [shards, worse]


def test_a_set_of_dmos_is_scored_as_it_is_spoken_and_correlated_by_quality(on_two_sets: dict[int, tuple[Path, str]]) -> None:
    results, printed = on_two_sets[1]
    scores, opinions = ([float(row[column]) for row in rows(results / "scores-worse.csv")] for column in ("score", "opinion"))
    panel = told(results)["worse"]
    assert panel["images"] == len(scores) == 30
    assert panel["srcc"] == pytest.approx(-stats.spearmanr(scores, opinions).statistic)
    assert panel["plcc"] == pytest.approx(-stats.pearsonr(scores, opinions).statistic)
    assert panel["rmse"] is None  # 0 to 100 is not 0 to 10
    assert "worse: all images; made-up DMOS (0 to 10, lower is better); the model's scores are turned" in printed
    assert panel["trained_on_images"] == 20 and panel["chosen_on_images"] == 5  # its photographs are those of the training
    assert "WARNING: the model was trained on 20 of these images" in printed


def test_the_table_has_a_row_per_set(on_two_sets: dict[int, tuple[Path, str]]) -> None:
    results, printed = on_two_sets[2]
    table = [line.split() for line in printed.splitlines()]
    for name, panel in told(results).items():
        row = next(words for words in table if words and words[0] == name)
        assert int(row[1]) == panel["images"]
        assert f"{panel['srcc']:.4f}" in row and f"{panel['plcc']:.4f}" in row


def test_a_damaged_shard_ends_all_processes_and_names_the_image(run: Path, worse: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(worse, tmp_path / "damaged"))
    opened = Shards(damaged)
    content = bytearray((damaged / opened.files[0]["file"]).read_bytes())
    content[int(opened.row(7)["offset"]) + 100] ^= 255
    (damaged / opened.files[0]["file"]).write_bytes(content)
    done = evaluated(2, "--checkpoint", run, "--shards", damaged, "--out", tmp_path / "out")
    assert done.returncode != 0
    assert opened.ids[7] in done.stderr
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_scoring_what_the_model_was_trained_or_chosen_on_is_warned_of(trained: TrainedModel, shards: Path) -> None:
    for part, (training, choosing) in {"train": (40, 0), "val": (0, 10), "test": (0, 0), "all": (40, 10)}.items():
        (one,) = choose_sets(trained, [str(shards)], None, part)
        assert one.seen[:3] == (True, training, choosing)
        assert ("WARNING" in one.seen.told) == (part != "test")
        assert len(one.images) == {"train": 40, "all": 60}.get(part, 10)


def test_another_split_of_the_training_data_is_known_to_hold_training_images(trained: TrainedModel, shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    ids = Shards(folder).ids
    parts = {image: ("train", "val", "test")[number % 3] for number, image in enumerate(ids)}
    (folder / "splits" / "other.csv").write_text("id,part\n" + "".join(f"{image},{part}\n" for image, part in parts.items()))
    (one,) = choose_sets(trained, [str(folder)], "other", None)
    known = Shards(folder).split("official")[1]["train"]
    assert one.part == "test" and one.split == "other"
    assert one.seen.trained_on_images == len(np.intersect1d(known, one.images)) > 0


def test_copies_of_training_images_are_known_whatever_they_are_called(
    trained: TrainedModel, shards: Path, photographs: Path, tmp_path: Path
) -> None:
    with (photographs / "scores.csv").open() as file, (tmp_path / "scores.csv").open("w", newline="") as renamed:
        writer = csv.writer(renamed)
        writer.writerow(["image", "score"])
        (tmp_path / "images").mkdir()
        for number, row in enumerate(csv.DictReader(file)):
            copy = tmp_path / "images" / f"{number}{Path(row['image']).suffix}"
            shutil.copyfile(photographs / "images" / row["image"], copy)
            writer.writerow([copy.name, row["score"]])
    table = read_table(tmp_path / "scores.csv", tmp_path / "images", "renamed", Label("MOS", 0.0, 100.0, True))
    build(plan_build(table, Settings(patch_size=64, patches=3)), tmp_path / "shards")
    (one,) = choose_sets(trained, [str(tmp_path / "shards")], None, None)
    assert one.part == "all" and one.seen[:3] == (True, 40, 10)
    assert one.seen.told.startswith("WARNING: the model was trained on 40 of these images")


def test_a_set_that_shares_no_file_with_the_training_is_called_new(trained: TrainedModel, tmp_path: Path) -> None:
    (one,) = choose_sets(trained, [str(build_new(tmp_path, "new"))], None, None)
    assert one.seen[:3] == (False, 0, 0) and "it has seen none of these files" in one.seen.told


def test_data_of_which_nothing_certain_is_known_are_not_called_new(trained: TrainedModel, worse: Path, tmp_path: Path) -> None:
    (one,) = choose_sets(replace(trained, seen=None), [str(worse)], None, None)
    assert one.seen.trained_on_set is None and "not known" in one.seen.told
    (one,) = choose_sets(trained, [str(build_new(tmp_path, "tiny"))], None, None)  # as one set that is distributed at two sizes
    assert one.seen.trained_on_set is None and "other files called tiny" in one.seen.told


def test_a_set_of_the_training_that_was_resized_by_another_rule_is_warned_of_with_both_rules(run: Path, tmp_path: Path) -> None:
    resized = build_new(tmp_path, "tiny", "exact:96x64")
    done = evaluated(1, "--checkpoint", run, "--shards", resized, "--out", tmp_path / "out")
    assert (
        "WARNING: its pictures were resized by exact:96x64, but in training by none: its figures may be too low; "
        "build the set once more, with --resize none, in another folder\n"
    ) in done.stdout, done.stderr
    said = told(tmp_path / "out")["tiny"]
    assert said["resize"] == "exact:96x64" and said["other_resize_in_training"] == ["none"]


def test_the_rule_by_which_each_set_was_resized_is_told(on_two_sets: dict[int, tuple[Path, str]]) -> None:
    results, printed = on_two_sets[1]
    assert "higher is better); resize none\n" in printed and "the model's scores are turned; resize none\n" in printed
    assert "were resized by" not in printed  # though `worse` has another number of patches
    assert {said["resize"] for said in told(results).values()} == {"none"}


def test_pictures_of_the_training_are_known_by_their_files_to_have_been_resized_by_another_rule(
    trained: TrainedModel, photographs: Path, tmp_path: Path
) -> None:
    (one,) = choose_sets(trained, [str(build_worse(photographs, tmp_path / "shards", resize="short:96"))], None, None)
    assert one.other_resize == ("none",)
    several = replace(trained, cuttings=trained.cuttings | {"other": replace(trained.cuttings["tiny"], resize="short:96")})
    (one,) = choose_sets(several, [str(tmp_path / "shards")], None, None)
    assert one.other_resize == ()


def test_a_set_that_the_model_was_not_trained_on_may_have_any_resize_rule(trained: TrainedModel, tmp_path: Path) -> None:
    (one,) = choose_sets(trained, [str(build_new(tmp_path, "new", "exact:96x64"))], None, None)
    assert one.other_resize == ()


def test_of_an_imported_model_the_set_of_its_label_is_known_to_be_resized_by_another_rule(trained: TrainedModel, tmp_path: Path) -> None:
    known = {"scales": {"published": Scale(KONIQ_LABEL)}, "cuttings": {"published": replace(KONIQ_CUTTING, patch_size=64)}}
    imported = replace(trained, about={}, seen=None, **known)
    for label, expected in ((KONIQ_LABEL, ("exact:384x512",)), (DMOS, ())):
        (tmp_path / label.name).mkdir()
        (one,) = choose_sets(imported, [str(build_new(tmp_path / label.name, "koniq10k", "exact:96x64", label))], None, None)
        assert one.other_resize == expected


def test_a_model_folder_without_the_list_of_its_files_still_works(run: Path, shards: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(run / "best", tmp_path / "best"))
    (alone / "seen.safetensors").unlink()
    (one,) = choose_sets(open_model(alone), [str(shards)], None, None)
    assert one.part == "test" and one.seen.trained_on_set is None


def test_a_damaged_list_of_files_is_told(run: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(run / "best", tmp_path / "best"))
    (alone / "seen.safetensors").write_bytes((alone / "seen.safetensors").read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"seen\.safetensors"):
        open_model(alone)


def test_a_model_of_several_sets_speaks_on_the_scale_of_the_set_where_it_knows_it(trained: TrainedModel, shards: Path, worse: Path) -> None:
    scales = {"first": Scale(Label("first", 0.0, 1.0, True)), "tiny": Scale(Label("mine", 0.0, 9.0, False), 4.0, -2.0)}
    several = replace(trained, scales=scales)
    tiny, other = choose_sets(several, [str(shards), str(worse)], None, None)
    assert (tiny.scale, other.scale) == (scales["tiny"], scales["first"])


def test_patches_of_another_size_are_refused(trained: TrainedModel, photographs: Path, tmp_path: Path) -> None:
    large = build_worse(photographs, tmp_path / "large", patch_size=96)
    with pytest.raises(ConfigError, match="has patches of 96 pixels, but the model takes 64"):
        choose_sets(trained, [str(large)], None, None)


def test_all_sets_that_do_not_fit_are_named_at_once_and_nothing_is_scored(
    trained: TrainedModel, run: Path, shards: Path, photographs: Path, tmp_path: Path
) -> None:
    large, larger = (build_worse(photographs, tmp_path / f"of-{size}", patch_size=size, name=f"of-{size}") for size in (96, 128))
    places = [shards, large, tmp_path / "nowhere", larger]
    done = evaluated(1, "--checkpoint", run, "--shards", *places, "--out", tmp_path / "out")
    assert done.returncode == 1 and "scores" not in done.stdout and not [*tmp_path.glob("out/*.csv")]
    first, second, third = done.stderr.splitlines()[-3:]
    assert first.startswith(f"error: {large}: has patches of 96 pixels, but the model takes 64; build the set once more, with --size 64")
    assert str(tmp_path / "nowhere") in second
    assert third.startswith(f"{larger}: has patches of 128 pixels, but the model takes 64")


def test_an_unknown_split_an_empty_part_and_a_set_named_twice_are_refused(trained: TrainedModel, shards: Path, worse: Path) -> None:
    with pytest.raises(ShardError, match="there is no split 'fold-7'; there are: official"):
        choose_sets(trained, [str(shards)], "fold-7", None)
    with pytest.raises(ConfigError, match="leave out --split official"):
        choose_sets(trained, [str(shards)], "official", "all")
    with pytest.raises(ConfigError, match="both called 'worse'"):
        choose_sets(trained, [str(worse), str(worse)], None, None)


def test_a_split_without_the_part_is_refused(trained: TrainedModel, shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    (folder / "splits" / "all-train.csv").write_text("id,part\n" + "".join(f"{image},train\n" for image in Shards(folder).ids))
    with pytest.raises(ConfigError, match="split 'all-train' has no images in 'test'"):
        choose_sets(trained, [str(folder)], "all-train", None)


def test_a_model_that_names_no_data_needs_shards(trained: TrainedModel) -> None:
    data = trained.config.data.model_copy(update={"shards": None})
    with pytest.raises(ConfigError, match="name shard folders with --shards"):
        choose_sets(replace(trained, config=trained.config.model_copy(update={"data": data})), [], None, None)


def test_an_evaluation_is_never_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("precious")
    with pytest.raises(ConfigError, match="holds an evaluation already; name another folder with --out"):
        evaluate(run, [], None, None, tmp_path, ["run.precision=no"])
    assert (tmp_path / "evaluation.json").read_text() == "precious"
