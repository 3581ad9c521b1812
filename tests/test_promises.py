"""The promises of the README, one test each, kept by real runs in real processes."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
import runs
import torch
import warm
import webdataset as wds
from scripts import answers

from dist_train import training
from dist_train.__main__ import main
from dist_train.checkpoint import load_checkpoint
from dist_train.config import load_config
from dist_train.data import PatchReader, TrainingVisits, patch_batches
from dist_train.errors import ConfigError
from dist_train.order import Order
from dist_train.plan import make_plan
from shards.datasets import read_table
from shards.manifest import Label, Shards
from shards.plan import Settings, plan_build
from shards.writer import build

pytestmark = pytest.mark.timeout(900)  # some start several runs; each run has its own limit


def test_global_batches_are_the_same_for_any_number_of_ranks_and_loader_workers(shards: Path) -> None:
    opened = Shards(shards)
    _, parts = opened.split()
    order = Order(seed=3, num_images=len(parts["train"]), stored_patches=4, patches_per_image=2, passes=1, global_batch=12)

    def global_batches(world: int, workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        share = order.global_batch // world
        streams = [
            patch_batches(PatchReader(opened, TrainingVisits(order, parts["train"], True, rank, world), 2, 7), share, workers)
            for rank in range(world)
        ]
        laid_together = []
        for batches in zip(*streams, strict=True):
            images = torch.stack([batch.images for batch in batches], 1).flatten()
            pixels = torch.stack([batch.pixels for batch in batches], 1).flatten(0, 1)
            laid_together.append((images, pixels))
        return laid_together

    expected = global_batches(world=1, workers=0)
    assert len(expected) == 5
    for world, workers in itertools.product((1, 2, 3, 4), (0, 1, 3)):
        found = global_batches(world, workers)
        assert len(found) == len(expected)
        for (images, pixels), (other_images, other_pixels) in zip(expected, found, strict=True):
            assert torch.equal(images, other_images), (world, workers)
            assert torch.equal(pixels, other_pixels), (world, workers)


@pytest.mark.parametrize(
    "settings",
    [
        ["model.dropout=0.1", "model.stochastic_depth=0.1"],
        ["model.backbone=test_resnet", "model.batch_norm=frozen"],
    ],
    ids=["LayerNorm, dropout, stochastic depth", "frozen BatchNorm"],
)
def test_five_steps_end_with_the_same_weights_on_1_2_and_4_ranks(shards: Path, tmp_path: Path, settings: list[str]) -> None:
    settings = ["train.epochs=1", "data.workers=0", *settings]
    for world in (1, 2, 4):
        runs.train(world, tmp_path / str(world), shards, *settings)
    alone = runs.weights(tmp_path / "1", 5)
    for world in (2, 4):
        runs.assert_equal_up_to_rounding(alone, runs.weights(tmp_path / str(world), 5))


@pytest.mark.parametrize("rank_weight", [0.0, 0.5], ids=["L1 alone", "with ranking"])
def test_micro_batches_take_the_same_step_as_one_batch(shards: Path, tmp_path: Path, rank_weight: float) -> None:
    settings = ("train.epochs=1", "data.workers=0", f"loss.rank_weight={rank_weight}")
    runs.train(1, tmp_path / "whole", shards, *settings)
    runs.train(2, tmp_path / "parts", shards, *settings, "train.micro_batch=2")
    runs.assert_equal_up_to_rounding(runs.weights(tmp_path / "whole", 5), runs.weights(tmp_path / "parts", 5))


def test_labels_in_another_unit_train_the_same_weights(photographs: Path, shards: Path, tmp_path: Path) -> None:
    with (photographs / "scores.csv").open(newline="") as file:
        rows = [{**row, "score": float(row["score"]) / 100} for row in csv.DictReader(file)]
    with (tmp_path / "scores.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    data_set = read_table(tmp_path / "scores.csv", photographs / "images", "tiny", Label("pseudo-opinion", 0.0, 1.0, True))
    build(plan_build(data_set, Settings(patch_size=64, patches=4, shard_bytes=2 << 20)), tmp_path / "to-1")
    found = []
    for place in (shards, tmp_path / "to-1"):
        folder = tmp_path / f"run-on-{place.name}"
        runs.train(1, folder, place, "train.epochs=1", "loss.rank_margin_unit=std", "loss.consistency_weight=0.1")
        found.append(runs.weights(folder, 5))
    points = [weights.pop("output_scale") for weights in found]
    assert points[0].tolist() == [0, 1] and points[1].tolist() == pytest.approx([0, 0.01])
    runs.assert_equal_up_to_rounding(*found)


def test_every_image_is_scored_exactly_once_and_alike_on_uneven_ranks(shards: Path, tmp_path: Path) -> None:
    settings = ("train.epochs=1", "train.global_batch=12")
    runs.train(1, tmp_path / "1", shards, *settings)
    for world in (2, 3, 4):
        shutil.copytree(tmp_path / "1", tmp_path / str(world))
        told = runs.status(tmp_path / str(world))
        (tmp_path / str(world) / "status.json").write_text(json.dumps(told | {"status": "unfinished"}))
        (tmp_path / str(world) / "scores-test.csv").unlink()
        runs.train(world, tmp_path / str(world), shards, *settings)  # all that is left to do is the test
    _, parts = Shards(shards).split()
    ids = [Shards(shards).ids[number] for number in parts["test"]]
    for world in (1, 2, 3, 4):
        with (tmp_path / str(world) / "scores-test.csv").open() as file:
            assert [row["image"] for row in csv.DictReader(file)] == ids
        assert (tmp_path / str(world) / "scores-test.csv").read_bytes() == (tmp_path / "1" / "scores-test.csv").read_bytes()
        assert abs(runs.status(tmp_path / str(world))["test"]["srcc"] - runs.status(tmp_path / "1")["test"]["srcc"]) < 1e-12


def test_a_killed_and_resumed_run_ends_with_the_same_weights_as_an_unbroken_one(shards: Path, tmp_path: Path) -> None:
    settings = ("save.every_steps=2", "model.dropout=0.2", "train.epochs=3", "train.global_batch=9")
    runs.train(3, tmp_path / "unbroken", shards, *settings)  # from three ranks on, a sum is rounded by where it lies in DDP's buckets
    runs.train_until_killed(3, tmp_path / "broken", shards, *settings, step=3)
    assert runs.status(tmp_path / "broken")["status"] == "unfinished"
    assert "going on from" in runs.train(3, tmp_path / "broken", shards, *settings)
    one, other = (runs.weights(tmp_path / name, 12) for name in ("unbroken", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [record["step"] for record in runs.records(tmp_path / "broken", "step")] == list(range(1, 13))
    epochs = [runs.records(tmp_path / name, "epoch") for name in ("unbroken", "broken")]
    assert epochs[0] == epochs[1]
    assert (tmp_path / "broken" / "scores-test.csv").read_bytes() == (tmp_path / "unbroken" / "scores-test.csv").read_bytes()


def killed_while_it_judges(words: Sequence[str]) -> int:
    """dist_train whose rank is killed when its first epoch has taken its last step."""
    training._judge_epoch = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    return main(words)


def test_a_run_that_is_killed_while_an_epoch_is_judged_has_lost_no_step(shards: Path, tmp_path: Path) -> None:
    words = ("train", runs.TINY, f"run.folder={tmp_path / 'run'}", f"data.shards={shards}", "train.epochs=1", "data.workers=0")
    assert warm.run(*words, work=killed_while_it_judges).returncode == signal.SIGKILL
    assert f"going on from {tmp_path / 'run'}/checkpoints/step-00000005" in warm.run(*words).stdout
    whole = tmp_path / "whole"
    runs.train(1, whole, shards, "train.epochs=1", "data.workers=0")
    assert runs.records(tmp_path / "run", "epoch") == runs.records(whole, "epoch")
    assert (tmp_path / "run/scores-test.csv").read_bytes() == (whole / "scores-test.csv").read_bytes()


def test_a_run_goes_on_in_mid_epoch_on_another_number_of_ranks(shards: Path, tmp_path: Path) -> None:
    settings = ("save.every_steps=2", "train.epochs=1")
    runs.train(1, tmp_path / "unbroken", shards, *settings)
    runs.train_until_killed(2, tmp_path / "broken", shards, *settings, step=3)  # by then the checkpoint of step 2 is whole
    output = runs.train(1, tmp_path / "broken", shards, *settings, "train.micro_batch=2")
    assert "step-00000002" in output or "step-00000004" in output, output  # where it went on from
    assert "processes was 2 when this was saved, now it is 1" in output
    runs.assert_equal_up_to_rounding(runs.weights(tmp_path / "unbroken", 5), runs.weights(tmp_path / "broken", 5))


@pytest.fixture(scope="module")
def twelve_epochs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve epochs, one step each, with the rates of the Swin fork of HyperIQA and every checkpoint kept."""
    folder = tmp_path_factory.mktemp("twelve")
    settings = ("train.epochs=12", "train.global_batch=40", "optim.schedule=step", "optim.lr=2e-5", "save.keep=12", "stop.patience=null")
    runs.train(1, folder, shards, *settings, "data.workers=0")
    return folder


def test_hyper_parameters_change_in_every_epoch(twelve_epochs: Path) -> None:
    for epoch in range(1, 12):
        before, after = runs.weights(twelve_epochs, epoch), runs.weights(twelve_epochs, epoch + 1)
        still = [name for name in before if name.startswith("hyper.") and torch.equal(before[name], after[name])]
        assert not still, (epoch, still)


def test_adam_moments_survive_every_epoch(twelve_epochs: Path) -> None:
    for epoch in range(1, 13):
        checkpoint = load_checkpoint(twelve_epochs / "checkpoints" / f"step-{epoch:08d}")
        steps = {name: int(value) for name, value in checkpoint.optimizer.items() if name.endswith(".step")}
        assert set(steps.values()) == {epoch}
        assert list(checkpoint.progress["adam"]) == ["hyper", "backbone"]
        trained = checkpoint.model.keys() - {"mean", "std", "output_scale"}  # the only buffers, with such a backbone
        assert set(steps) == {f"{name}.step" for name in trained}


def test_both_groups_rates_follow_the_table_of_the_swin_fork(twelve_epochs: Path) -> None:
    backbone = [2e-5] * 6 + [2e-6] * 6
    hyper = [2e-4] * 6 + [2e-5] * 3 + [2e-6] * 3  # ten times the backbone's through epoch 8, the same after
    steps = runs.records(twelve_epochs, "step")
    np.testing.assert_allclose([record["lr_backbone"] for record in steps], backbone, rtol=1e-12)
    np.testing.assert_allclose([record["lr_hyper"] for record in steps], hyper, rtol=1e-12)


LONG = ("train.epochs=200", "stop.patience=null")


@pytest.mark.parametrize("wish", ["SIGTERM to rank 1", "SIGTERM to the launcher"])
def test_a_stop_request_on_one_rank_stops_all_at_the_same_step(shards: Path, tmp_path: Path, wish: str) -> None:
    process = runs.start(2, tmp_path, shards, *LONG)
    runs.wait_for_step(process, tmp_path, 2)
    if wish == "SIGTERM to the launcher":
        process.terminate()
    else:
        runs.rank_process(process, 1).send_signal(signal.SIGTERM)
    output = runs.finish(process)
    assert process.returncode == 0 or wish == "SIGTERM to the launcher", output  # torchrun itself never ends with 0 then
    assert_stopped_by("SIGTERM", tmp_path)


def test_a_stop_file_stops_all_ranks_at_the_same_step(shards: Path, tmp_path: Path) -> None:
    with warm.running("train", runs.TINY, f"run.folder={tmp_path}", f"data.shards={shards}", *LONG, world=2) as process:
        runs.wait_for_step(process, tmp_path, 2)
        (tmp_path / "stop").touch()
        output = runs.finish(process)
        assert process.poll() == 0, output
    assert_stopped_by("stop", tmp_path)


def assert_stopped_by(whom: str, folder: Path) -> None:
    told = runs.status(folder)
    assert told["status"] == "unfinished"
    assert whom in told["reason"]
    assert (folder / "checkpoints" / f"step-{told['steps']:08d}").is_dir()
    assert [record["step"] for record in runs.records(folder, "step")] == list(range(1, told["steps"] + 1))


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_is_asked_to_stop_while_it_is_starting_is_unfinished_and_goes_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")  # as train.sh does: importing is slow on a busy machine
    process = runs.start(world, tmp_path, shards, "train.epochs=1")
    while sum(hears_sigterm(rank) for rank in of_a_run(process, world)) < world:
        assert process.poll() is None, runs.finish(process)
        time.sleep(0.02)
    assert not (tmp_path / "status.json").exists()
    process.terminate()
    output = runs.finish(process)
    assert process.returncode == 0 or world > 1, output  # torchrun itself never ends with 0 then
    assert (tmp_path / "status.json").exists(), output
    assert (runs.status(tmp_path)["status"], runs.status(tmp_path)["reason"]) == ("unfinished", "asked to stop by SIGTERM"), output
    assert not (tmp_path / "checkpoints").exists()
    runs.train(world, tmp_path, shards, "train.epochs=1")


def of_a_run(process: subprocess.Popen[str], world: int) -> list[psutil.Process]:
    """The ranks that have been started so far."""
    started = psutil.Process(process.pid)
    return [started] if world == 1 else started.children()


def hears_sigterm(process: psutil.Process) -> bool:
    """Whether a process would survive it."""
    caught = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("world", [1, 2])
def test_ctrl_c_saves_and_exits_0(shards: Path, tmp_path: Path, world: int) -> None:
    process = runs.start(world, tmp_path, shards, *LONG)
    runs.wait_for_step(process, tmp_path, 2)
    for member in [process, *psutil.Process(process.pid).children(recursive=True)]:  # a terminal signals all of them
        member.send_signal(signal.SIGINT)
    output = runs.finish(process)
    assert process.returncode == 0 or world > 1, output  # torchrun itself never ends with 0 then
    assert runs.status(tmp_path)["status"] == "unfinished"
    assert "the same command goes on from there" in output


def damage(opened: Shards, image: int) -> None:
    """Flips one bit of the image's first stored plane."""
    row = opened.index[image]
    with (opened.folder / opened.files[int(row["shard"])]["file"]).open("r+b") as file:
        file.seek(int(row["offset"]) + 1000)
        byte = file.read(1)
        file.seek(int(row["offset"]) + 1000)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("workers", [0, 2])
def test_one_failing_rank_ends_all_within_30_seconds_and_the_cause_is_printed_last(shards: Path, tmp_path: Path, workers: int) -> None:
    damaged, folder = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(shards, damaged)
    opened = Shards(damaged)
    _, parts = opened.split()
    image = int(parts["train"][Order(0, len(parts["train"]), 4, 2, 1, 8).batch(3).share(1, 2).images[0]])  # rank 1 reads it at step 4
    damage(opened, image)
    with ExitStack() as stack:
        if workers:  # a launcher ends the others, and prints the cause
            process = runs.start(2, folder, damaged, f"data.workers={workers}")
        else:  # nobody does: they hear of it by themselves
            words = ("train", runs.TINY, f"run.folder={folder}", f"data.shards={damaged}", "data.workers=0")
            process = stack.enter_context(warm.running(*words, world=2))
        while not (folder / "metrics.jsonl").exists():
            assert process.poll() is None, runs.finish(process)
        began = time.monotonic()
        output = runs.finish(process)
        assert time.monotonic() - began < 30
        assert process.poll() != 0
    said = [line for line in output.splitlines() if line.strip(" =")]
    assert opened.ids[image] in said[-1], output[-3000:]
    assert "checksum" in said[-1]
    told = runs.status(folder)
    assert told["status"] == "failed"
    assert told["reason"].startswith("ShardError: ")
    assert opened.ids[image] in told["reason"]
    assert "Traceback" not in told["reason"]


def test_a_killed_rank_ends_all_within_30_seconds_and_is_named_last(shards: Path, tmp_path: Path) -> None:
    process = runs.start(2, tmp_path, shards, *LONG)
    runs.wait_for_step(process, tmp_path, 2)
    began = time.monotonic()
    runs.rank_process(process, 1).kill()
    output = runs.finish(process)
    assert time.monotonic() - began < 30
    assert process.returncode != 0
    cause = output[output.index("Root Cause") :]
    assert "rank      : 1" in cause
    assert "SIGKILL" in cause or "Signal 9" in cause
    (tmp_path / "log").write_text(output)
    assert answers("slurm/train.sh", "lost_a_process", f"log={tmp_path}/log log_before=0")


def test_training_never_reads_the_test_part_before_the_end(shards: Path, tmp_path: Path) -> None:
    damaged, folder = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(shards, damaged)
    opened = Shards(damaged)
    _, parts = opened.split()
    for image in parts["test"]:
        damage(opened, int(image))
    ended = warm.run("train", runs.TINY, f"run.folder={folder}", f"data.shards={damaged}")
    assert ended.returncode == 1
    assert len(runs.records(folder, "epoch")) == 2  # everything but the test was done, and is kept
    assert (folder / "best" / "model.safetensors").exists()
    assert any(opened.ids[image] in ended.stderr.splitlines()[-1] for image in parts["test"])


def test_a_job_asked_for_two_processes_refuses_to_run_as_one(shards: Path, tmp_path: Path) -> None:
    accelerate = [str(Path(sys.executable).parent / "accelerate"), "launch", "--cpu", "--num_processes", "2"]  # starts one, silently
    command = [*accelerate, "-m", "dist_train", "train", str(runs.TINY), f"run.folder={tmp_path / 'run'}", f"data.shards={shards}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=runs.LIMIT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode != 0
    assert "asks for 2 processes, but this run has 1" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "complaint", "world"),
    [
        ("optim.learning_rate=1", "did you mean 'optim.lr'?", 2),  # seen before the processes have met
        ("train.global_batch=7", "does not divide among 2 processes", 2),  # and after
        ("data.shards=nowhere", "nowhere: there is no such folder", 1),
        ("model.backbone=resnet5o", "did you mean resnet50", 1),
    ],
)
def test_what_a_user_got_wrong_is_said_without_our_traceback_and_leaves_no_folder(
    shards: Path, tmp_path: Path, setting: str, complaint: str, world: int
) -> None:
    if world == 1:
        ended = warm.run("train", runs.TINY, f"run.folder={tmp_path / 'run'}", f"data.shards={shards}", setting)
        code, output = ended.returncode, ended.stdout + ended.stderr
    else:
        process = runs.start(world, tmp_path / "run", shards, setting)
        output = runs.finish(process)
        code = process.returncode
    assert code != 0
    said = [line for line in output.splitlines() if line.strip(" =")]
    assert complaint in said[-1], output
    assert sum(line.startswith("error: ") for line in said) == 1
    assert "dist_train/__main__.py" not in output
    assert not (tmp_path / "run").exists()


def test_a_run_saves_when_its_last_checkpoint_is_old(shards: Path, tmp_path: Path) -> None:
    runs.train(2, tmp_path, shards, "train.epochs=1", "save.every_minutes=1e-6", "save.keep=9")
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == [f"step-{step:08d}" for step in range(1, 6)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the default device is a GPU")
def test_processes_without_gpus_join_each_other_with_the_default_device(shards: Path, tmp_path: Path) -> None:
    runs.train(2, tmp_path, shards, "run.device=auto", "train.epochs=1")
    assert runs.status(tmp_path)["world_size"] == 2


def test_early_stop_is_obeyed_by_all_ranks_and_keeps_the_best_epoch(shards: Path, tmp_path: Path) -> None:
    output = runs.train(2, tmp_path, shards, "optim.lr=1e-12", "train.epochs=9", "stop.patience=2", "stop.select_on=test", "data.workers=0")
    told = runs.status(tmp_path)
    assert (told["status"], told["best_epoch"], told["epochs"], told["selected_on"]) == ("stopped early", 0, 3, "test")
    assert "ON TEST" in output
    assert told["test"]["srcc"] == runs.records(tmp_path, "epoch")[0]["test"]["srcc"]


def test_mixed_precision_and_clipping_train(shards: Path, tmp_path: Path) -> None:
    settings = ("optim.clip_norm=0.5", "train.epochs=1", "data.workers=0")
    runs.train(2, tmp_path, shards, "run.precision=bf16", *settings)
    exact, mixed = tmp_path / "exact", tmp_path
    runs.train(2, exact, shards, *settings)
    losses = [[record["loss"] for record in runs.records(folder, "step")] for folder in (exact, mixed)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.02)


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_a_precision_that_needs_a_gpu_is_refused_without_one_by_the_plan_too(precision: str, shards: Path, tmp_path: Path) -> None:
    ended = warm.run("train", runs.TINY, f"run.folder={tmp_path / 'run'}", f"data.shards={shards}", f"run.precision={precision}")
    assert f"run.precision={precision} needs a GPU" in ended.stderr
    assert ended.returncode == 1
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=rf"run\.precision={precision} needs a GPU, and run\.device=cpu takes none"):
        make_plan(load_config(runs.TINY, [f"data.shards={shards}", f"run.precision={precision}"]), 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_run_that_is_to_have_a_gpu_does_not_begin_without_one(shards: Path, tmp_path: Path) -> None:
    ended = warm.run("train", runs.TINY, f"run.folder={tmp_path / 'run'}", f"data.shards={shards}", "run.device=cuda")
    assert ended.returncode == 1 and "run.device=cuda: torch finds no GPU here" in ended.stderr and not (tmp_path / "run").exists()


def test_gradients_that_stay_infinite_stop_the_run_and_name_the_images(shards: Path, tmp_path: Path) -> None:
    ended = warm.run("train", runs.TINY, f"run.folder={tmp_path}", f"data.shards={shards}", "optim.lr=1e30", world=2)
    assert ended.returncode == 1
    told = runs.status(tmp_path)
    assert told["status"] == "failed"
    assert "not finite 3 times in a row" in told["reason"]
    assert any(image in told["reason"] for image in Shards(shards).ids)
    assert "not finite 3 times in a row" in ended.stderr.splitlines()[-1]
    assert ended.stderr.count("error: ") == 1  # both ranks have seen it


def test_a_plain_webdataset_pipeline_reads_our_shards(shards: Path) -> None:
    opened = Shards(shards)
    urls = [str(shards / record["file"]) for record in opened.files]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == list(opened.ids)
    for number in (0, 17, 59):
        sample = samples[number]
        size = sample["json"]["patch_size"]
        cut = np.stack([sample["pixels.npy"][plane, y : y + size, x : x + size] for plane, y, x in sample["json"]["boxes"]])
        assert np.array_equal(cut, opened.read_patches(number, range(4)))
        assert sample["json"]["opinion"] == opened.opinions[number]
    with tarfile.open(urls[0]) as tar:
        first = tar.extractfile(f"{opened.ids[0]}.pixels.npy")
        assert first is not None
        assert np.array_equal(np.load(io.BytesIO(first.read())), samples[0]["pixels.npy"])


def test_two_equal_runs_give_equal_figures(shards: Path, tmp_path: Path) -> None:
    runs.train(2, tmp_path / "one", shards)  # forked from a process that has imported everything
    other = runs.start(2, tmp_path / "other", shards)  # from nothing: another hash seed, other states of the libraries
    output = runs.finish(other)
    assert other.returncode == 0, output
    assert runs.figures(tmp_path / "one") == runs.figures(tmp_path / "other")
    assert (tmp_path / "one" / "scores-val.csv").read_bytes() == (tmp_path / "other" / "scores-val.csv").read_bytes()
