"""What a run carries from step to step: the model, Adam, and how far it has come. Opened, and saved, as a whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dist_train import ranks
from dist_train.backbone import synchronise_batch_norm
from dist_train.checkpoint import Checkpoint, load_checkpoint, newest_complete_checkpoint, save_checkpoint
from dist_train.config import Config
from dist_train.errors import ConfigError
from dist_train.journal import Journal
from dist_train.metrics import two_level_panel
from dist_train.model import HyperIQA
from dist_train.model_folder import build_model
from dist_train.optim import build_adam
from dist_train.plan import Plan
from dist_train.pretrained import load_pretrained
from dist_train.run_folder import about_data, refuse_other_data, write_status
from dist_train.stopping import EarlyStop


@dataclass
class Progress:
    """How far the run has come; with the weights and the moments, all that a resumed run needs."""

    early_stop: EarlyStop
    step: int = 0
    epochs_judged: int = 0
    stopped: bool = False
    skipped: int = 0
    best: dict[str, dict[str, float]] = field(default_factory=dict)  # the panels of the best epoch, by part


@dataclass
class EpochScores:
    """Rank 0's record of what the model said of the training patches of this epoch, as it said it."""

    images: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    def add(self, images: np.ndarray, scores: Tensor) -> None:
        if ranks.is_first():
            self.images.append(images)
            self.scores.append(scores.double().cpu().numpy())

    def panel(self, opinions: np.ndarray) -> dict[str, float]:
        images = np.concatenate(self.images)
        return two_level_panel(images, np.concatenate(self.scores), opinions[images])

    def tensors(self) -> dict[str, Tensor]:
        """As they are saved: int64 [visits] and float64 [visits, patches]."""
        images, scores = [np.empty(0, np.int64), *self.images], self.scores or [np.empty((0, 0))]
        return {"images": torch.from_numpy(np.concatenate(images)), "scores": torch.from_numpy(np.concatenate(scores))}


@dataclass
class Training:
    """What the steps below share."""

    plan: Plan
    accelerator: Accelerator
    model: HyperIQA  # the bare model; `wrapped` is its DDP wrapper, or the same
    wrapped: nn.Module
    optimizer: Any
    journal: Journal
    progress: Progress
    epoch_scores: EpochScores = field(default_factory=EpochScores)
    skips_in_a_row: int = 0

    @property
    def config(self) -> Config:
        return self.plan.config


def open_training(plan: Plan, accelerator: Accelerator) -> Training:
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
    model = build_model(config, plan.shards.layout.patch_size, plan.output_scale)
    if checkpoint is None:
        patch_size = plan.shards.layout.patch_size
        ranks.first_does(
            lambda: load_pretrained(model.backbone, config.model.backbone, config.model.pretrained, patch_size)
        )  # DDP hands them on
    else:
        model.load_state_dict(checkpoint.model)
    if config.model.batch_norm == "sync":
        synchronise_batch_norm(model.backbone, accelerator.device, ranks.world())
    model.to(memory_format=torch.channels_last).train()
    wrapped, optimizer = accelerator.prepare(model, build_adam(model, config.optim))
    progress = Progress(EarlyStop(config.stop.patience))
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint.optimizer)
        if accelerator.scaler is not None and checkpoint.progress["scaler"]:
            accelerator.scaler.load_state_dict(checkpoint.progress["scaler"])
        saved = checkpoint.progress["progress"]
        progress = Progress(**saved | {"early_stop": EarlyStop(**saved["early_stop"])})
    journal = Journal(
        config.run.folder, ranks.is_first(), config.log.every_steps, config.log.tensorboard, progress.step, progress.epochs_judged
    )
    if checkpoint is not None:
        journal.say(f"going on from {newest}")
        for difference in _differences(checkpoint.progress, accelerator.device):
            journal.say(f"note: {difference}")
    training = Training(plan, accelerator, model, wrapped, optimizer, journal, progress)
    if checkpoint is not None and len(checkpoint.scores["images"]) and ranks.is_first():
        training.epoch_scores = EpochScores([checkpoint.scores["images"].numpy()], [checkpoint.scores["scores"].numpy()])
    return training


def made_with(device: torch.device) -> dict[str, Any]:
    """What decides how numbers round."""
    return {"processes": ranks.world(), "device": device.type, "torch": torch.__version__, "timm": timm.__version__}


def _differences(saved: dict[str, Any], device: torch.device) -> list[str]:
    """What is not as it was when the checkpoint was saved, and may show in the last digits."""
    now, before = made_with(device), saved["made_with"]
    return [f"{key} was {before.get(key)} when this was saved, now it is {value}" for key, value in now.items() if before.get(key) != value]


def save_training(training: Training) -> None:
    """A checkpoint by rank 0; the others wait for its outcome."""
    accelerator, config = training.accelerator, training.config

    def save() -> None:
        progress = {
            "step": training.progress.step,
            "progress": asdict(training.progress),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "made_with": made_with(accelerator.device),
            "data": about_data(training.plan),
        }
        checkpoint = Checkpoint(training.model.state_dict(), training.optimizer.state_dict(), training.epoch_scores.tensors(), progress)
        save_checkpoint(config.run.folder / "checkpoints", checkpoint, config.save.keep)
        write_status(config.run.folder, status_of(training) | {"status": "unfinished", "reason": "training"})

    ranks.first_does(save)


def status_of(training: Training) -> dict[str, Any]:
    """What status.json always says, besides status and reason."""
    plan, progress = training.plan, training.progress
    return {
        "steps": progress.step,
        "epochs": progress.epochs_judged,
        "skipped_steps": progress.skipped,
        "selected_on": training.config.stop.select_on,
        "best_epoch": progress.early_stop.best_epoch,
        "val": progress.best.get("val"),
        "test": None,
        **about_data(plan),
        "world_size": ranks.world(),
    }
