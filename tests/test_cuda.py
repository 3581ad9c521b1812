"""What only a GPU can show: its arithmetic, its scaler, its memory, and that a run on it stops, resumes and repeats as one on CPUs.

Everything here is skipped on a machine without one. `pytest tests/test_cuda.py -n 4 -rP` also prints what was measured.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
import torch.multiprocessing as multiprocessing
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from half_precision import (
    FEW_PATCHES,
    FIFTY_STEPS,
    ROUNDING,
    Poison,
    apart,
    checkpoint_of,
    scores_in,
    watch,
    weights_apart,
)
from in_process import config_of, train_here, train_here_until
from torch import Tensor, nn
from torch.distributed.flight_recorder.components.loader import read_dump

from dist_train import ranks, training
from dist_train.__main__ import main
from dist_train.audit import copy_weights, measure_groups, refuse_still_groups
from dist_train.backbone import synchronise_batch_norm
from dist_train.chances import draw_chances
from dist_train.config import Config, Loss, Optim
from dist_train.device import fix_arithmetic
from dist_train.errors import TrainingError
from dist_train.evaluate import evaluate
from dist_train.gradient import accumulate_gradient
from dist_train.loss import Targets, training_loss
from dist_train.model import HyperIQA
from dist_train.model_folder import open_model
from dist_train.optim import build_adam
from dist_train.predict import Prediction, predict
from shards.datasets import read_table
from shards.manifest import Label, Shards
from shards.plan import Settings, plan_build
from shards.writer import build

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: what only a GPU can show is not tested"),
    pytest.mark.timeout(300),
]

GPU = "run.device=auto"
LAUNCHED = (  # and the number of processes
    *(sys.executable, "-m", "accelerate.commands.launch", "--config_file"),
    *(str(Path(__file__).parents[1] / "launch" / "workstation.yaml"), "--num_processes"),
)


@pytest.fixture(autouse=True)
def exact_arithmetic() -> None:
    """What a test before this one may have settled, it has settled for the whole process."""
    fix_arithmetic("no")


@pytest.fixture(scope="module")
def large(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set with patches of 224 pixels, whose maps are pooled by plain windows, which have a fixed order of summing."""
    out = tmp_path_factory.mktemp("large")
    data_set = read_table(photographs / "scores.csv", photographs / "images", "large", Label("pseudo-opinion", 0.0, 100.0, True))
    build(plan_build(data_set, Settings(patch_size=224, patches=4)), out)
    return out


@pytest.fixture(scope="module")
def exact(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty steps in float32."""
    folder = tmp_path_factory.mktemp("exact")
    train_here(folder, shards, *FIFTY_STEPS, GPU)
    return folder


def patches_of(size: int, number: int) -> Tensor:
    """Smooth noise: uint8 [number, 3, size, size]."""
    coarse = torch.randint(0, 256, (number, 3, size // 8, size // 8), generator=torch.Generator().manual_seed(3)).float()
    return nn.functional.interpolate(coarse, size=size, mode="bilinear").to(torch.uint8)


def largest_relative(found: Tensor, wanted: Tensor) -> float:
    """Of all numbers, the largest difference / the largest size."""
    return float((found.double().cpu() - wanted.double().cpu()).abs().max() / wanted.double().abs().max())


# Arithmetic


@pytest.mark.parametrize(("precision", "low", "high"), [("no", 0.0, 2e-5), ("tf32", 5e-5, 3e-3)])
def test_float32_is_float32_and_tf32_is_had_by_its_name_alone(
    precision: str, low: float, high: float, shards: Path, tmp_path: Path
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    device = training.open_accelerator(config_of(tmp_path, shards, GPU, f"run.precision={precision}")).device
    torch.manual_seed(0)
    maps, filters, matrix = torch.randn(8, 256, 28, 28), torch.randn(256, 256, 3, 3), torch.randn(512, 512)
    products = {
        "convolution": (nn.functional.conv2d(maps.to(device), filters.to(device), padding=1), (maps, filters)),
        "matrix product": (matrix.to(device) @ matrix.to(device), (matrix, matrix)),
    }
    for name, (found, (one, other)) in products.items():
        one, other = one.double().to(device), other.double().to(device)
        exactly = nn.functional.conv2d(one, other, padding=1) if name == "convolution" else one @ other
        error = largest_relative(found, exactly)
        print(f"run.precision={precision}: a {name} is off by {error:.1e} of its largest number")
        assert low <= error < high


HALF = {  # loss of the first step, losses, scores, weights: about three times what was measured on a CPU
    "bf16": (torch.bfloat16, (5e-4, 0.002, 0.25, 0.05)),
    "fp16": (torch.float16, (2e-4, 0.001, 0.1, 0.05)),
}


def begin_with_scale(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training in fp16 that follows begins its search there."""

    def start(config: Config, opened: Callable[[Config], Accelerator] = training.open_accelerator) -> Accelerator:
        accelerator = opened(config)
        if config.run.precision == "fp16":
            accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=scale)
        return accelerator

    monkeypatch.setattr(training, "open_accelerator", start)


@pytest.mark.parametrize("precision", HALF)
def test_half_precision_stays_close_to_float32_over_fifty_steps(
    precision: str, exact: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, limits = HALF[precision]
    seen = watch(monkeypatch)
    begin_with_scale(2.0**10, monkeypatch)  # low enough that fp16 need not skip a step to find it
    train_here(tmp_path, shards, *FIFTY_STEPS, GPU, f"run.precision={precision}")
    found = apart(exact, tmp_path)
    print(f"{precision}: {found}; {runs.status(tmp_path)['skipped_steps']} steps skipped")
    print(f"target network off by {max(seen.target_errors):.1e}, loss by {max(seen.loss_errors):.1e}")
    for (name, value), limit in zip(found.items(), limits, strict=True):
        assert 0 < value < limit, name
    assert seen.branch_types == {kind}
    assert seen.target_types == seen.loss_types == {torch.float32}
    assert max(seen.target_errors) < ROUNDING and max(seen.loss_errors) < ROUNDING


def test_fp16_finds_its_scale_from_far_too_high_without_a_trace(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (*FEW_PATCHES, "model.backbone=test_resnet", "train.epochs=2", GPU, "run.precision=fp16")  # with BatchNorm
    begin_with_scale(2.0**24, monkeypatch)
    train_here(tmp_path, shards, *settings)
    skipped = [step["step"] for step in runs.records(tmp_path, "step") if step["grad_norm"] is None]
    print(f"skipped: {skipped}")
    assert skipped == list(range(1, len(skipped) + 1))
    assert 3 < len(skipped) < 18  # more than three in a row, and yet no reason to stop
    told = runs.status(tmp_path)
    assert (told["status"], told["steps"], told["skipped_steps"]) == ("finished", 20, len(skipped))
    first = checkpoint_of(tmp_path, 1)
    assert not any(value.any() for name, value in first.model.items() if name.endswith("running_mean"))
    for step in skipped:
        assert not checkpoint_of(tmp_path, step).optimizer
        assert runs.largest_difference(checkpoint_of(tmp_path, step).model, first.model) == 0
    assert runs.largest_difference(checkpoint_of(tmp_path, len(skipped) + 1).model, first.model) > 0
    last = checkpoint_of(tmp_path, 20)
    assert last.progress["scaler"]["scale"] == 2.0 ** (24 - len(skipped))

    for step in (19, 20):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}")
    (tmp_path / "status.json").write_text(json.dumps(told | {"status": "unfinished"}))
    train_here(tmp_path, shards, *settings)
    assert checkpoint_of(tmp_path, 20).progress["scaler"] == last.progress["scaler"]
    assert runs.status(tmp_path)["skipped_steps"] == len(skipped)


def test_gradients_that_stay_nan_in_fp16_end_the_run_and_name_the_images(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "accumulate_gradient", Poison(dict.fromkeys(range(4, 50), "gradient")))
    settings = ("data.passes=10", "train.global_batch=4", GPU, "run.precision=fp16")
    with pytest.raises(TrainingError, match=r"the gradient was not finite \d+ times in a row; the images of this batch are ") as caught:
        train_here(tmp_path, shards, *settings)
    print(caught.value)
    assert sum(f" {name}" in str(caught.value) for name in Shards(shards).ids) == 4
    told = runs.status(tmp_path)
    assert told["status"] == "failed" and told["steps"] < 24  # where its first three find no scale, that ends in 17 halvings from 65536


# Stop, go on, repeat


def test_a_run_that_moves_from_the_gpu_to_the_cpu_and_back_ends_as_one_on_the_cpu(shards: Path, tmp_path: Path) -> None:
    settings = ("train.epochs=2", "optim.lr=3e-5", "save.keep=9")
    train_here(tmp_path / "cpu", shards, *settings)
    train_here(tmp_path / "gpu", shards, *settings, GPU)
    train_here_until(3, tmp_path / "moving", shards, *settings, GPU)
    train_here_until(7, tmp_path / "moving", shards, *settings)
    train_here(tmp_path / "moving", shards, *settings, GPU)
    for name in ("gpu", "moving"):
        found = weights_apart(tmp_path / "cpu", tmp_path / name, 10)
        print(f"{name} against cpu after 10 steps: weights {found:.1e} of the way they have gone")
        assert 0 < found < 0.005  # bf16: 0.013
    devices = [checkpoint_of(tmp_path / "moving", step).progress["made_with"]["device"] for step in (3, 5, 7, 10)]
    assert devices == ["cuda", "cpu", "cpu", "cuda"]
    assert [record["step"] for record in runs.records(tmp_path / "moving", "step")] == list(range(1, 11))
    assert runs.status(tmp_path / "moving")["status"] == "finished"


@contextmanager
def checked_kernels() -> Iterator[set[str]]:
    """Within, torch warns of every kernel that has no fixed order of summing; after it, the set holds what was said."""
    said: set[str] = set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield said
        finally:
            torch.use_deterministic_algorithms(False)
            said |= {str(each.message).partition(". ")[0] for each in caught if "determin" in str(each.message)}


@pytest.mark.parametrize("backbone", ["resnet50.tv_in1k", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_equal_runs_and_one_that_was_stopped_and_resumed_end_with_equal_bits(backbone: str, large: Path, tmp_path: Path) -> None:
    settings = (f"model.backbone={backbone}", "optim.lr=3e-5", GPU)
    train_here(tmp_path / "unbroken", large, *settings)
    train_here(tmp_path / "equal", large, *settings)
    train_here_until(2, tmp_path / "resumed", large, *settings)
    train_here(tmp_path / "resumed", large, *settings)
    with checked_kernels() as said:
        train_here(tmp_path / "checked", large, *settings)
    print(f"{backbone}: torch warns of {sorted(said) or 'nothing'}")
    for name in ("equal", "resumed", "checked"):
        bits = runs.largest_difference(runs.weights(tmp_path / "unbroken", 5), runs.weights(tmp_path / name, 5)) == 0
        found = weights_apart(tmp_path / "unbroken", tmp_path / name, 5)
        print(f"{backbone}: {name} against unbroken after 5 steps: {'equal bits' if bits else f'weights {found:.1e} of the way'}")
        assert name == "checked" or bits


def test_averaged_weights_train_save_and_resume_to_the_bit(large: Path, tmp_path: Path) -> None:
    settings = ("ema.decay=0.9", GPU)
    train_here(tmp_path / "unbroken", large, *settings)
    train_here_until(3, tmp_path / "broken", large, *settings)
    train_here(tmp_path / "broken", large, *settings)
    one, other = (checkpoint_of(tmp_path / name, 5) for name in ("unbroken", "broken"))
    assert one.average and runs.largest_difference(one.average, other.average) == 0
    assert runs.largest_difference(one.model, other.model) == 0
    assert any(not torch.equal(value, one.average[f"module.{name}"]) for name, value in one.model.items())
    assert runs.figures(tmp_path / "unbroken")["average"] == runs.figures(tmp_path / "broken")["average"] is not None


def test_a_launched_run_that_is_terminated_goes_on_by_the_same_line_to_the_same_bits(large: Path, tmp_path: Path) -> None:
    chosen = ("model.backbone=test_resnet", "train.epochs=12", "stop.patience=null", "data.workers=2", GPU)
    unbroken, broken = (runs.start(1, tmp_path / name, large, *chosen, launcher=LAUNCHED) for name in ("unbroken", "broken"))
    runs.wait_for_step(broken, tmp_path / "broken", 3)
    broken.terminate()
    output = runs.finish(broken)
    told = runs.status(tmp_path / "broken")
    assert told["status"] == "unfinished" and 3 <= told["steps"] < 60, output
    print(f"terminated after step {told['steps']} of 60")
    again = runs.start(1, tmp_path / "broken", large, *chosen, launcher=LAUNCHED)
    for process in (unbroken, again):
        output = runs.finish(process)
        assert process.returncode == 0, output
    assert runs.status(tmp_path / "broken")["status"] == runs.status(tmp_path / "unbroken")["status"] == "finished"
    assert runs.largest_difference(runs.weights(tmp_path / "unbroken", 60), runs.weights(tmp_path / "broken", 60)) == 0
    assert (tmp_path / "broken" / "scores-test.csv").read_bytes() == (tmp_path / "unbroken" / "scores-test.csv").read_bytes()
    waits = [record["wait"] for record in runs.records(tmp_path / "unbroken", "step")]
    print(f"NCCL, pinned memory, 2 workers: median wait for data {1000 * float(np.median(waits)):.1f} ms")


# Model and losses


IMAGES, PATCHES = 8, 2


def gradient_of(accelerator: Accelerator, rank: int, world: int) -> dict[str, Tensor]:
    """Scores of all, gradient and running statistics of a ResNet after one process's part in one step, in float64."""
    torch.manual_seed(1)
    model = HyperIQA("test_resnet", 64).double().to(accelerator.device).train()
    synchronise_batch_norm(model.backbone, accelerator.device, world)
    wrapped = accelerator.prepare(model)
    pixels = patches_of(64, IMAGES * PATCHES).view(IMAGES, PATCHES, 3, 64, 64)[rank::world].to(accelerator.device)
    targets = Targets(
        torch.arange(float(IMAGES), dtype=torch.float64, device=accelerator.device),
        torch.zeros(IMAGES, dtype=torch.long, device=accelerator.device),
        1.0,
    )
    chances = torch.empty(len(pixels), PATCHES, 0, device=accelerator.device)
    scores, _ = accumulate_gradient(accelerator, wrapped, pixels, chances, targets, Loss(rank_weight=0.5), len(pixels))
    found = {"scores": scores} | {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    found |= {name: value for name, value in model.named_buffers() if "running" in name}
    return {name: value.detach().cpu() for name, value in found.items() if value is not None}


def save_gradient(rank: int, port: int, out: Path) -> None:
    """What one process of two does that share the GPU, which NCCL does not allow."""
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
    ranks.connect()
    torch.save(gradient_of(accelerator, rank, 2), out / f"{rank}.pt")
    ranks.disconnect()


def test_synchronised_batch_norm_of_two_processes_is_that_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(save_gradient, (port, tmp_path), nprocs=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    whole = gradient_of(Accelerator(), 0, 1)
    assert any("running_var" in name for name in whole)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == whole.keys()
        worst = {name: largest_relative(found[name], whole[name]) for name in whole if whole[name].any()}
        name = max(worst, key=lambda each: worst[each])
        print(f"rank {rank} of 2 against one process, in float64: off by {worst[name]:.1e} at most ({name})")
        assert worst[name] < 1e-8
        assert all(not found[name].any() for name in whole.keys() - worst.keys())


def test_a_compiled_run_trains_and_its_model_evaluates_without_the_compiler(shards: Path, tmp_path: Path) -> None:
    try:
        for compiled in ("false", "true"):
            alike = "evaluate.batch_images=5"  # of 10 images, or the smaller last batch would be compiled for itself
            train_here(tmp_path / compiled, shards, "optim.lr=3e-5", alike, GPU, f"run.compile={compiled}")
    finally:
        torch._dynamo.reset()
    found = weights_apart(tmp_path / "false", tmp_path / "true", 5)
    AcceleratorState._reset_state(reset_partial_state=True)
    evaluate(tmp_path / "true", [], None, None, tmp_path / "evaluation", [])
    compiled_scores = scores_in(tmp_path / "true" / "scores-test.csv")
    plain_scores = scores_in(tmp_path / "evaluation" / "scores-tiny.csv")
    worst = float(np.abs(compiled_scores - plain_scores).max() / compiled_scores.std())
    print(f"compiled: weights {found:.1e} of the way from the plain run's; scores {worst:.1e} standard deviations from the plain model's")
    assert 0 < found < 0.01  # equal bits would be those of the same kernels
    assert worst < 0.001


@pytest.mark.parametrize("backbone", ["resnet50.tv_in1k", "swin_tiny_patch4_window7_224"])
def test_gradient_checkpointing_gives_the_same_gradient_for_less_memory(backbone: str) -> None:
    patches, peaks, gradients = patches_of(224, 32).cuda(), {}, {}
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = HyperIQA(backbone, 224, stochastic_depth=0.1, gradient_checkpointing=checkpointing).cuda().train()
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        chances = draw_chances(0, 0, np.arange(32), 1, model.num_chances)[:, 0].cuda()
        model(patches[:2], chances[:2]).sum().backward()  # what libraries take once and keep
        model.zero_grad(set_to_none=False)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(patches, chances).sum().backward()
        peaks[checkpointing] = torch.cuda.max_memory_allocated() - before
        gradients[checkpointing] = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        del model
    distance = float((gradients[True] - gradients[False]).norm() / gradients[False].norm())
    print(f"{backbone}, 32 patches in float32: {peaks[False] / 1e6:.0f} MB, with checkpointing {peaks[True] / 1e6:.0f} MB; ", end="")
    print(f"gradient {'equal bits' if torch.equal(gradients[True], gradients[False]) else f'{distance:.1e} apart'}")
    assert distance < 1e-4
    assert peaks[True] < 0.8 * peaks[False]


LEVELS = ("patch", "image")
LOSSES: dict[str, dict[str, Any]] = {
    f"{kind}, {level}": {"regression": kind, "regression_level": level}
    for kind in ("l1", "smooth_l1", "mse", "plcc", "norm_in_norm")
    for level in LEVELS
}
LOSSES |= {
    f"{kind}, {level}": {"rank_weight": 2.0, "rank_kind": kind, "rank_level": level} for kind in ("hinge", "fidelity") for level in LEVELS
}
LOSSES |= {
    "margin in deviations": {"rank_weight": 2.0, "rank_margin": 0.5, "rank_margin_unit": "std"},
    "consistency": {"consistency_weight": 3.0},
    "a loss per rank": {"rank_weight": 1.0, "scope": "rank"},
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_are_those_of_the_cpu(name: str) -> None:
    torch.manual_seed(2)
    scores, opinions, sets = 50 + 20 * torch.randn(24, 5), (100 * torch.rand(24)).round(), torch.arange(24) % 3 // 2
    found = []
    for device in ("cpu", "cuda"):
        leaf = scores.to(device, copy=True).requires_grad_()
        targets = Targets(opinions.to(device), sets.to(device), 20.0)
        parts = training_loss(leaf, targets, Loss.model_validate(LOSSES[name]), world=2)
        parts.total.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None and leaf.grad.dtype == torch.float32 and leaf.grad.any()
        found.append((parts.total.detach(), leaf.grad))
    for wanted, got in zip(*found, strict=True):
        error = largest_relative(got, wanted)
        print(f"{name}: {error:.1e}")
        assert error < 1e-5


def test_the_audit_measures_on_the_gpu_what_it_measures_on_the_cpu_and_sees_a_group_that_stands_still() -> None:
    norms = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        model = HyperIQA("test_convnext", 64).to(device)
        adam = build_adam(model, Optim())
        model(patches_of(64, 4).to(device)).sum().backward()
        before = copy_weights(adam)
        adam.step()
        norms.append(measure_groups(adam, before))
    for group, found in norms[0].items():
        assert norms[1][group] == pytest.approx(found, rel=1e-3)  # Adam's first step is a sign, also of a gradient that is all rounding
        assert found.update > 0
    still = norms[1] | {"hyper": norms[1]["hyper"]._replace(update=0.0)}
    with pytest.raises(TrainingError, match="no weight of the group 'hyper' changed"):
        refuse_still_groups(still, {"hyper": 1e-3, "backbone": 1e-4}, (), 1)


# A trained model, and the machine


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on the GPU."""
    folder = tmp_path_factory.mktemp("trained")
    train_here(folder, shards, "optim.lr=1e-3", GPU)
    return folder


def test_an_evaluation_gives_the_bits_of_the_run_twice_and_the_cpu_s_scores_up_to_rounding(trained: Path, tmp_path: Path) -> None:
    for name, device in (("once", "auto"), ("twice", "auto"), ("cpu", "cpu")):
        AcceleratorState._reset_state(reset_partial_state=True)
        evaluate(trained, [], None, None, tmp_path / name, [f"run.device={device}"])
    once, twice, cpu = (tmp_path / name / "scores-tiny.csv" for name in ("once", "twice", "cpu"))
    assert once.read_bytes() == twice.read_bytes() == (trained / "scores-test.csv").read_bytes()
    assert_close_scores("evaluate", scores_in(once), scores_in(cpu))


def test_predictions_are_equal_twice_and_those_of_the_evaluation_up_to_rounding(trained: Path, photographs: Path) -> None:
    found = []
    for device in ("cuda", "cuda", "cpu"):
        model = open_model(trained)
        pictures = sorted((photographs / "images").glob("parrots-*.png"))  # the test part
        predictions = list(predict(model, next(iter(model.scales)), pictures, torch.device(device), 4, 0))
        assert len(predictions) == 10 and all(isinstance(each, Prediction) for each in predictions)
        found.append(np.array([each.score for each in predictions if isinstance(each, Prediction)]))
    assert np.array_equal(found[0], found[1])
    assert_close_scores("predict", found[0], found[2])
    assert_close_scores("predict and the run's test", np.sort(found[0]), np.sort(scores_in(trained / "scores-test.csv")))


def assert_close_scores(what: str, gpu: np.ndarray, cpu: np.ndarray) -> None:
    worst = float(np.abs(gpu - cpu).max())
    print(f"{what}: at most {worst:.1e} apart, of scores with a standard deviation of {cpu.std():.2g}")
    assert cpu.std() > 0 and worst < 0.001 * cpu.std()


@pytest.mark.parametrize("precision", ["no", "tf32", "bf16", "fp16"])
def test_the_doctor_finds_this_machine_fit_and_names_its_gpu(
    precision: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_train.doctor.BUDGET", 0.5)
    words = [f"run.folder={tmp_path / 'run'}", f"data.shards={shards}", GPU, f"run.precision={precision}"]
    assert main(["doctor", str(runs.TINY), *words]) == 0
    told = capsys.readouterr().out
    print(told)
    assert torch.cuda.get_device_name() in told and "all-reduce" in told and "verdict: fit" in told
    assert (f"{precision} multiplies on 1 of 1 rank" if precision != "no" else "run.precision=no: float32") in told


COLLECTIVES = """
import torch
from torch import distributed
from dist_train.flight_recorder import leave_collectives
distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1)
distributed.all_reduce(torch.ones(3, device="cuda"))
distributed.broadcast(torch.ones(5, device="cuda"), 0)
leave_collectives(0)
distributed.destroy_process_group()
"""


def test_what_nccl_remembers_of_its_collectives_is_left_as_torchfrtrace_reads_it(tmp_path: Path) -> None:
    environment = os.environ | {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/collectives-"}
    subprocess.run([sys.executable, "-c", COLLECTIVES], env=environment, check=True, timeout=120)
    entries = read_dump("collectives-", str(tmp_path / "collectives-0"))["entries"]
    assert [(each["profiling_name"], each["input_sizes"]) for each in entries] == [("nccl:all_reduce", [[3]]), ("nccl:broadcast", [[5]])]
