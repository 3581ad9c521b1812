"""What a run carries from step to step: the model, Adam, and how far it has come. Opened, and saved, as a whole."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import timm
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dist_train import ranks
from dist_train.averaging import average_of
from dist_train.backbone import synchronise_batch_norm
from dist_train.checkpoint import Checkpoint, load_checkpoint, newest_complete_checkpoint, save_checkpoint
from dist_train.config import Config
from dist_train.errors import ConfigError
from dist_train.journal import Journal
from dist_train.model import HyperIQA
from dist_train.model_folder import build_model
from dist_train.moments import group_settings, load_moments, named_moments
from dist_train.optim import build_adam
from dist_train.origin import KEPT
from dist_train.plan import Plan
from dist_train.pretrained import load_pretrained
from dist_train.retention import Retention
from dist_train.run_folder import about_data, refuse_other_data
from dist_train.run_lock import RunLock
from dist_train.status import write_status
from dist_train.stopping import EarlyStop


@dataclass
class Best:
    """The best epoch so far of some weights, the run's own or their average, and its panels by part."""

    early_stop: EarlyStop
    panels: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Best:
        return cls(EarlyStop(**saved["early_stop"]), dict(saved["panels"]))


@dataclass
class Progress:
    """How far the run has come; with the weights and the moments, all that a resumed run needs."""

    best: Best
    best_average: Best
    step: int = 0
    epochs_judged: int = 0
    stopped: bool = False
    skipped: int = 0  # steps without a finite gradient, and how many of them are the last ones
    skipped_in_a_row: int = 0

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Progress:
        return cls(**{**saved, "best": Best.from_json(saved["best"]), "best_average": Best.from_json(saved["best_average"])})


@dataclass
class Training:
    """What the steps of `training` share."""

    plan: Plan
    accelerator: Accelerator
    model: HyperIQA  # the bare model; `wrapped` is its DDP wrapper, or the same
    wrapped: nn.Module
    optimizer: Any
    journal: Journal
    progress: Progress
    lock: RunLock
    average: AveragedModel | None = None  # where the config wants one

    @property
    def averaged_model(self) -> HyperIQA | None:
        """The model with the averaged weights."""
        return cast(HyperIQA, self.average.module) if self.average is not None else None

    @property
    def config(self) -> Config:
        return self.plan.config

    @property
    def epoch_is_over(self) -> bool:
        """Whether the epoch has taken its last step, and is to be judged."""
        return self.progress.step == (self.progress.epochs_judged + 1) * self.plan.steps_per_epoch


def open_training(plan: Plan, accelerator: Accelerator, lock: RunLock) -> Training:
    """Model, Adam, journal and progress: from the newest complete checkpoint where there is one, else from the start."""
    config = plan.config
    checkpoints = config.run.folder / "checkpoints"
    newest = ranks.first_does(lambda: newest_complete_checkpoint(checkpoints, print))
    if ranks.agree(newest is not None and not newest.is_dir()):
        raise ConfigError(f"{newest} is not there on every node; run.folder must be on a file system that all nodes share")
    checkpoint = load_checkpoint(newest) if newest else None
    if checkpoint is not None:
        refuse_other_data(plan, checkpoint.progress["data"])
    torch.manual_seed(config.run.seed)
    model = build_model(config, plan.collection.patch_size, plan.output_scale)
    if checkpoint is None:
        ranks.first_does(lambda: _fill(model, plan))  # DDP hands them on
    else:
        model.load_state_dict(checkpoint.model)
    if config.model.batch_norm == "sync":
        synchronise_batch_norm(model.backbone, accelerator.device, ranks.world())
    model.to(memory_format=torch.channels_last).train()
    wrapped, optimizer = accelerator.prepare(model, build_adam(model, config.optim))
    average = average_of(model, config.ema.decay) if config.ema.decay is not None else None
    if config.run.compile:
        model.compile()  # in place: checkpoints, and the average's copy, stay those of the plain model
    progress = Progress(Best(EarlyStop(config.stop.patience)), Best(EarlyStop(None)))
    if checkpoint is not None:
        load_moments(optimizer, model, checkpoint.optimizer, checkpoint.progress["adam"])
        if accelerator.scaler is not None and checkpoint.progress["scaler"]:
            accelerator.scaler.load_state_dict(checkpoint.progress["scaler"])
        if average is not None:
            average.load_state_dict(checkpoint.average)
        progress = Progress.from_json(checkpoint.progress["progress"])
    journal = Journal(
        config.run.folder,
        ranks.is_first(),
        config.log.every_steps,
        config.log.tensorboard,
        progress.step,
        progress.epochs_judged,
        lock.refuse_if_lost,
    )
    if checkpoint is not None:
        journal.say(f"going on from {newest}")
        for difference in _differences(checkpoint.progress, accelerator.device):
            journal.say(f"note: {difference}")
        if average is None and checkpoint.average:
            journal.say("note: ema.decay is null now, so the average of the weights ends here; what best-ema/ holds stays as it is")
    return Training(plan, accelerator, model, wrapped, optimizer, journal, progress, lock, average)


def _fill(model: HyperIQA, plan: Plan) -> None:
    """Gives a model the weights that its run begins with: of the whole of another model, or pretrained ones of the backbone."""
    config, origin = plan.config, plan.origin
    if origin is None:
        load_pretrained(model.backbone, config.model.backbone, config.model.pretrained, plan.collection.patch_size)
    else:
        origin.fill(model)
        origin.save(config.run.folder / KEPT)


def made_with(device: torch.device) -> dict[str, Any]:
    """What decides how numbers round."""
    return {"processes": ranks.world(), "device": device.type, "torch": torch.__version__, "timm": timm.__version__}


def _differences(saved: dict[str, Any], device: torch.device) -> list[str]:
    """What is not as it was when the checkpoint was saved, and may show in the last digits."""
    now, before = made_with(device), saved["made_with"]
    return [f"{key} was {before.get(key)} when this was saved, now it is {value}" for key, value in now.items() if before.get(key) != value]


def save_training(training: Training, since: float) -> None:
    """A checkpoint by rank 0; the others wait for its outcome. `since`: when the time began that its cost is measured against."""
    accelerator, config, optimizer = training.accelerator, training.config, training.optimizer

    def save() -> None:
        begun = time.monotonic()
        progress = {
            "step": training.progress.step,
            "progress": asdict(training.progress),
            "adam": group_settings(optimizer),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "made_with": made_with(accelerator.device),
            "data": about_data(training.plan),
        }
        average = training.average.state_dict() if training.average is not None else {}
        moments = named_moments(optimizer, training.model)
        checkpoint = Checkpoint(training.model.state_dict(), moments, average, progress)
        retention = Retention.of(config.save, training.plan.steps_per_epoch, training.progress.best.early_stop.best_epoch)
        training.journal.sync()
        path = save_checkpoint(config.run.folder / "checkpoints", checkpoint, retention, training.lock.refuse_if_lost)
        tell_how_far(training)
        size, ended = sum(file.stat().st_size for file in path.iterdir()), time.monotonic()
        training.journal.save(checkpoint.step, ended - begun, size, ended - since)

    ranks.first_does(save)


def tell_how_far(training: Training) -> None:
    """Writes status.json while the training goes on. By rank 0."""
    write_status(training.config.run.folder, status_of(training) | {"status": "unfinished", "reason": "training"})


def status_of(training: Training) -> dict[str, Any]:
    """What status.json always says, besides status and reason."""
    plan, progress = training.plan, training.progress
    return {
        "steps": progress.step,
        "epochs": progress.epochs_judged,
        "skipped_steps": progress.skipped,
        "selected_on": training.config.stop.select_on,
        "best_epoch": progress.best.early_stop.best_epoch,
        "val": progress.best.panels.get("val"),
        "test": None,
        **about_data(plan),
        "starts_from": None if plan.origin is None else {"model": str(plan.origin), "all_it_saw_is_known": plan.origin.seen.is_all},
        "world_size": ranks.world(),
    }
