"""The run, from top to bottom: open, resume, train step by step, judge every epoch, test once.

run.folder/
  config.yaml              every setting, as resolved
  status.json              finished, stopped early, unfinished or failed, and the figures; scripts act on it
  metrics.jsonl            a line per step, per epoch and per checkpoint
  scores-val.csv           image, opinion, score, spread, content of the best epoch
  scores-test.csv          the same for the test part, from the best epoch
  best/model.safetensors   the best epoch's weights, with config.yaml and seen.safetensors beside it (best-ema/: of the averaged weights)
  checkpoints/step-*/      where an interrupted run goes on
  origin.safetensors       of a run that starts from a model: what that one had seen (origin.py)
  report.png               curves, and score against opinion
  lock                     while the run goes on: whose it is
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor

from dist_train import ranks
from dist_train.audit import GroupNorms, copy_weights, measure_groups, refuse_bad_groups, refuse_still_groups
from dist_train.chances import draw_chances
from dist_train.config import Config
from dist_train.data import PatchBatch, PatchReader, TrainingVisits, loader_workers, patch_batches
from dist_train.device import open_accelerator
from dist_train.errors import TrainingError
from dist_train.evaluation import Scores, final_panel_of, panel_of, score_part, write_scores
from dist_train.full_disk import naming_a_full_disk
from dist_train.gradient import accumulate_gradient, rehearse
from dist_train.heartbeat import doing, meeting
from dist_train.history import forget_hyper_gradient, forget_moments
from dist_train.journal import cost_of_saving, read_records
from dist_train.launch import refuse_another_world
from dist_train.loss import Targets, any_slope, leaves_scale_open, needs_deviations
from dist_train.model import HyperIQA
from dist_train.model_folder import WEIGHTS, Cutting, read_weights, save_model
from dist_train.optim import set_rates, starting_rates
from dist_train.origin import all_trained_on
from dist_train.overfitting import train_and_val
from dist_train.plan import Plan, describe_plan, make_plan
from dist_train.report import draw_report, final_table
from dist_train.run_folder import about_data, enter_run_folder, record_failure
from dist_train.run_lock import RunLock
from dist_train.seen import SEEN, SeenFiles
from dist_train.state import Best, Training, open_training, save_training, status_of, tell_how_far
from dist_train.status import read_status, write_status
from dist_train.stopping import StopRequest, Verdict
from dist_train.whole_files import finite_or_none

AVERAGE = "-ema"  # what the names of files and figures of the averaged weights end with
SKIPS_IN_A_ROW = 3  # steps without a finite gradient after which something is wrong for good
ASLEEP = 1e-3  # of its first rate: below it, as at the end of a long cosine, a group's step may be too small for float32 to show


def train(config: Config, request: StopRequest) -> bool:
    """Trains, or goes on training, in config.run.folder until the run is finished, stopped early, or by `request` asked to stop (False).

    Started by every rank. Raises ConfigError or ShardError for what the user can mend, TrainingError for what went wrong.
    """
    request.limit_the_start()
    accelerator = open_accelerator(config)
    refuse_another_world(accelerator.num_processes, config.run.processes)
    lock, has_entered = RunLock(config.run.folder), False

    def record(error: Exception) -> None:
        if has_entered and lock.is_ours():  # else the folder is another job's, or may be another run's
            record_failure(config.run.folder, error)

    ranks.connect(timedelta(minutes=config.run.timeout_minutes), record)
    with doing("opening the shards"):
        plan = make_plan(config, ranks.world(), accelerator.device.type)
    ended = True
    with naming_a_full_disk(config.run.folder), lock.held():
        with doing("entering the run folder"):
            goes_on = has_entered = ranks.first_does(lambda: enter_run_folder(plan))
        request.begin()
        if goes_on:
            try:
                with naming_a_full_disk(config.run.folder):  # inside of `record` too, so that what is recorded names the disk
                    ended = _run(plan, accelerator, lock, request)
            except Exception as error:
                if ranks.claim_failure(error):
                    with suppress(OSError):  # a disk without room for even that must not hide the cause
                        record(error)
                raise
    ranks.disconnect()
    return ended


def _run(plan: Plan, accelerator: Accelerator, lock: RunLock, request: StopRequest) -> bool:
    """The run, once its folder is its own; whether it has ended, rather than being left unfinished."""
    if ranks.agree(request.reason is not None):
        _leave_before_it_began(plan.config.run.folder, _obey(request))
        return False
    if ranks.is_first():
        print(describe_plan(plan), flush=True)
    with doing("opening the run"):
        training = open_training(plan, accelerator, lock)
    ranks.first_does(lambda: tell_how_far(training))
    try:
        stopped_by = _train_until_done(training, request)
        if stopped_by is None:
            with doing("the test"):
                _finish(training)
        else:
            _leave_unfinished(training, stopped_by)
        return stopped_by is None
    finally:
        training.journal.close()
        request.release()


def _train_until_done(training: Training, request: StopRequest) -> str | None:
    """Steps and verdicts until the run has ended (None), or until somebody asks to stop (who)."""
    plan, progress, save = training.plan, training.progress, training.config.save
    refuse_bad_groups(training.model, training.optimizer)
    size = plan.collection.patch_size
    shape = (plan.micro_batch, training.config.data.patches_per_image, size, size, 3)
    blank = torch.zeros(shape, dtype=torch.uint8).movedim(-1, 2)  # laid out as what is read, or it would be compiled twice
    with meeting("the rehearsal"):
        rehearse(training.wrapped, blank.to(training.accelerator.device), training.model.num_chances)
    batches = _training_batches(training)
    saved = time.monotonic()
    while not progress.stopped:
        training.lock.refuse_if_known_lost()
        judged = training.epoch_is_over
        if judged:
            with doing(f"judging epoch {progress.epochs_judged}"):
                _judge_epoch(training)
        else:
            with doing(f"step {progress.step + 1}"):
                _train_step(training, batches)
        old = ranks.is_first() and save.every_minutes is not None and time.monotonic() - saved >= 60 * save.every_minutes
        stop, old = ranks.agree_each([request.heard(), old])
        unjudged = training.epoch_is_over  # saved now, for judging may take longer than a job that is asked to stop has left
        due = save.every_steps is not None and progress.step % save.every_steps == 0 and not judged
        if unjudged or progress.stopped or stop or old or due:
            with doing(f"saving step {progress.step}"):
                save_training(training, saved)
            saved = time.monotonic()
        if stop:
            return _obey(request)
    return None


def _obey(request: StopRequest) -> str:
    """Takes the requests of all ranks back, and says on each what they were."""
    return ranks.announce(", ".join(sorted({reason for of_rank in ranks.gather_first(request.withdraw()) for reason in of_rank})))


def _train_step(training: Training, batches: Iterator[PatchBatch]) -> None:
    """Fetch, forward, loss, backward, clip, finite?, step, log."""
    plan, config, progress, accelerator = training.plan, training.config, training.progress, training.accelerator
    step = progress.step
    asked = time.perf_counter()
    batch = next(batches)
    wait = time.perf_counter() - asked
    own = np.arange(config.train.global_batch)[ranks.rank() :: ranks.world()]
    images = plan.collection.training_images[plan.order.batch(step).images]
    assert np.array_equal(batch.images, images[own]), "pixels and opinions are of different images"
    wanted = torch.from_numpy(plan.collection.targets(images)).float().to(accelerator.device)
    sets = torch.from_numpy(plan.collection.sets_of(images)).to(accelerator.device)
    targets = Targets(wanted, sets, plan.label_std, point=plan.point)
    if needs_deviations(config.loss):
        targets = replace(targets, deviations=torch.from_numpy(plan.collection.deviations(images)).float().to(accelerator.device))
    pixels = batch.pixels.to(accelerator.device, non_blocking=True)
    chances = draw_chances(config.run.seed, step, own, config.data.patches_per_image, training.model.num_chances).to(accelerator.device)

    rates = plan.rates(step)
    set_rates(training.optimizer, rates)
    buffers = [buffer.clone() for buffer in training.model.buffers()]
    with meeting("the gradient"):
        scores, loss = accumulate_gradient(accelerator, training.wrapped, pixels, chances, targets, config.loss, plan.micro_batch)
        forget_hyper_gradient(config.history, training.optimizer, step // plan.steps_per_epoch)
        norm = accelerator.clip_grad_norm_(training.model.parameters(), config.optim.clip_norm or math.inf)
        gradient_norm = float(norm)  # here a GPU is waited for
    norms = _step_if_finite(training, gradient_norm, bool(loss.total.isfinite()), images, buffers)
    if norms and any_slope(targets, config.loss, ranks.world()):
        _audit(training, norms, rates)

    progress.step += 1
    training.journal.step(
        {
            "step": progress.step,
            "epoch": step // plan.steps_per_epoch,
            "loss": float(loss.total),
            "regression": float(loss.regression),
            "ranking": float(loss.ranking),
            "consistency": float(loss.consistency),
            "lr_hyper": rates["hyper"],
            "lr_backbone": rates["backbone"],
            "grad_norm": gradient_norm,
            **{f"{what}_{name}": value for name, found in norms.items() for what, value in found._asdict().items()},
        },
        scores.numel(),
        wait,
        plan.total_steps - progress.step,
    )


def _step_if_finite(
    training: Training, gradient_norm: float, has_loss: bool, images: np.ndarray, buffers: list[Tensor]
) -> dict[str, GroupNorms]:
    """Steps, or skips a gradient that is not finite. The all-reduced norm is everybody's, so all ranks do the same.

    A skipped step leaves weights and moments as they were, and puts back the `buffers` from before it: BatchNorm's running
    statistics would keep an infinite activation for ever. Raises TrainingError at the third in a row, but lets fp16 look longer
    for the scale of its first step, as long as `has_loss`, a finite one. Returns the norms of the groups, on an epoch's first
    step and on those that the journal tells of.
    """
    plan, accelerator, optimizer, progress = training.plan, training.accelerator, training.optimizer, training.progress
    finite = math.isfinite(gradient_norm)
    measured = finite and (progress.step % plan.steps_per_epoch == 0 or (progress.step + 1) % training.config.log.every_steps == 0)
    before = copy_weights(optimizer) if measured else []
    looking = False  # for the scale of fp16
    if finite:
        optimizer.step()
    elif accelerator.scaler is not None:
        scale = accelerator.scaler.get_scale()
        accelerator.scaler.update()  # it has seen an infinity when the norm was measured; where only the norm is too large, it has not
        nothing_learnt = progress.skipped == progress.step
        looking = has_loss and nothing_learnt and 1.0 <= accelerator.scaler.get_scale() < scale
    norms = measure_groups(optimizer, before) if measured else {}
    optimizer.zero_grad()
    if training.average is not None and finite:
        training.average.update_parameters(training.model)
    if not finite:
        for buffer, as_it_was in zip(training.model.buffers(), buffers, strict=True):
            buffer.copy_(as_it_was)
    progress.skipped += not finite
    progress.skipped_in_a_row = 0 if finite else progress.skipped_in_a_row + 1
    if progress.skipped_in_a_row >= SKIPS_IN_A_ROW and not looking:
        ids = ", ".join(plan.collection.name_of(int(image)) for image in images)
        raise TrainingError(
            f"step {progress.step + 1}: the gradient was not finite {progress.skipped_in_a_row} times in a row; "
            f"the images of this batch are {ids}; "
            f"a lower optim.lr, optim.clip_norm, or run.precision=no may help"
        )
    return norms


def _audit(training: Training, norms: dict[str, GroupNorms], rates: dict[str, float]) -> None:
    """Raises TrainingError when a group was not trained at the step that these are of, and that was not asked for."""
    config = training.config
    still_on_purpose = {"hyper"} if config.history.exhausted_hyper_group else set()
    asleep = {name for name, start in starting_rates(config.optim).items() if rates[name] < ASLEEP * start}
    audited = {name: found for name, found in norms.items() if name not in still_on_purpose}
    refuse_still_groups(audited, rates, asleep, training.progress.step + 1)


def _judge_epoch(training: Training) -> None:
    """Scores the part that chooses, and lets rank 0 decide what follows; all ranks obey."""
    plan, config, progress = training.plan, training.config, training.progress
    epoch, chooser = progress.epochs_judged, config.stop.select_on
    verdict, panels = _judge(training, training.model, progress.best, "")
    if training.averaged_model is not None:
        of_average = _judge(training, training.averaged_model, progress.best_average, AVERAGE)[1]
        panels |= {part + AVERAGE: panel for part, panel in of_average.items()}
    if (of_train := _score(training, training.model, "train")) is not None:
        panels = {"train": panel_of(of_train, plan.collection), **panels}
    forget_moments(config.history, training.optimizer)
    refuse_bad_groups(training.model, training.optimizer)
    progress.epochs_judged += 1
    progress.stopped = verdict is Verdict.STOP or progress.epochs_judged == config.train.epochs
    if ranks.is_first():
        training.journal.epoch(epoch, progress.step, panels, chooser, verdict.value)
        tell_how_far(training)


def _judge(training: Training, model: HyperIQA, best: Best, suffix: str) -> tuple[Verdict, dict[str, dict[str, Any]]]:
    """Whether these weights are the best so far, by rank 0's word; if so they are kept. And their panels, on rank 0."""
    chooser = training.config.stop.select_on
    parts = [part for part in dict.fromkeys(["val", str(chooser)]) if any(len(m.parts[part]) for m in training.plan.collection.members)]
    scores = {part: found for part in parts if (found := _score(training, model, part))}
    panels = {part: panel_of(found, training.plan.collection) for part, found in scores.items()}
    value = panels[chooser]["srcc"] if panels else math.nan
    best.early_stop, verdict = ranks.announce(best.early_stop.judge(training.progress.epochs_judged, value))
    if verdict is Verdict.NEW_BEST:
        best.panels = ranks.announce(panels)
        _save_best(training, model, best, scores, suffix)
    return verdict, panels


def _finish(training: Training) -> None:
    """The one test, from the best epoch, and everything that is told of it."""
    config, progress = training.config, training.progress
    folder, chooser = config.run.folder, config.stop.select_on
    training.lock.refuse_if_lost()
    if progress.best.early_stop.best_epoch is None:
        raise TrainingError(
            f"no epoch had a {chooser} SRCC, so there is no best model to test; the losses are in {folder / 'metrics.jsonl'}"
        )
    figures = _test_best(training, training.model, "")
    if training.averaged_model is not None and progress.best_average.early_stop.best_epoch is not None:
        figures["average"] = _test_best(training, training.averaged_model, AVERAGE)
    training.lock.refuse_if_lost()
    if not ranks.is_first():
        return
    early = progress.epochs_judged < config.train.epochs
    reason = f"{config.stop.patience} epochs without a better {chooser} SRCC" if early else f"all {config.train.epochs} epochs are done"
    status = status_of(training) | {"status": "stopped early" if early else "finished", "reason": reason} | figures
    records = read_records(folder / "metrics.jsonl")
    status["train_and_val"], status["saving"] = train_and_val(records), cost_of_saving(records)
    write_status(folder, status)
    draw_report(folder)
    training.journal.say(final_table(status))


def _test_best(training: Training, model: HyperIQA, suffix: str) -> dict[str, Any]:
    """Puts the best epoch's weights into `model` and tests them: that epoch, its val panel, and the test panel, on rank 0.

    The weights file is the truth of which epoch that was: it is written before the checkpoint that speaks of it, and a run may
    be cut off in between.
    """
    folder = training.config.run.folder
    path = folder / f"best{suffix}" / WEIGHTS
    if ranks.agree(not path.is_file()):
        raise TrainingError(f"{path} is not there on every node; run.folder must be on a file system that all nodes share")
    try:
        weights, about = read_weights(path)
    except (SafetensorError, ValueError) as error:
        raise TrainingError(
            f"{path}: holds the best epoch no more ({error}), and checkpoints hold the last one; train again in another run.folder"
        ) from error
    model.load_state_dict(weights)
    scores = _score(training, model, "test")
    if scores is None:
        return {}
    write_scores(folder, f"scores-test{suffix}", scores, training.plan.collection)
    tested = final_panel_of(scores, training.plan.collection, "test", scale_is_open=leaves_scale_open(training.config.loss))
    return {"best_epoch": about["epoch"], "val": about["panels"].get("val"), "test": tested}


def _leave_before_it_began(folder: Path, stopped_by: str) -> None:
    """What was asked while the run was starting: there is nothing to save, and what there was before stays as it is."""
    if ranks.is_first():
        write_status(folder, {**(read_status(folder) or {}), "status": "unfinished", "reason": f"asked to stop by {stopped_by}"})
        print(f"stopped by {stopped_by} before the first step; the same command goes on from there", flush=True)


def _leave_unfinished(training: Training, stopped_by: str) -> None:
    """The checkpoint is written; says so to people and scripts."""
    if ranks.is_first():
        write_status(training.config.run.folder, status_of(training) | {"status": "unfinished", "reason": f"asked to stop by {stopped_by}"})
    training.journal.say(f"stopped by {stopped_by} after step {training.progress.step}; the same command goes on from there")


def _training_batches(training: Training) -> Iterator[PatchBatch]:
    plan = training.plan
    visits = TrainingVisits(plan.order, plan.collection.training_images, training.config.data.mirror, ranks.rank(), ranks.world())
    reader = PatchReader(plan.collection, visits, training.progress.step, plan.total_steps)
    return patch_batches(reader, plan.share, loader_workers(training.config.data), pin_memory=training.accelerator.device.type == "cuda")


def _score(training: Training, model: HyperIQA, part: str) -> dict[str, Scores] | None:
    ranks.share_buffers(model)  # BatchNorm's statistics are each rank's own until then
    return score_part(model, training.plan.collection, part, training.config, training.accelerator.device)


def _save_best(training: Training, model: HyperIQA, best: Best, scores: dict[str, dict[str, Scores]], suffix: str) -> None:
    """The best epoch's weights with all that is needed to use them, and its scores. By rank 0; the others wait."""
    config, collection, origin = training.config, training.plan.collection, training.plan.origin

    def save() -> None:
        training.lock.refuse_if_lost()
        is_open = leaves_scale_open(config.loss)
        panels = {part: final_panel_of(found, collection, part, scale_is_open=is_open) for part, found in scores.items()}
        about = {"epoch": best.early_stop.best_epoch, "panels": finite_or_none(panels)} | about_data(training.plan)
        if origin is not None:
            about["trained_on"] = all_trained_on(about["trained_on"], origin.trained_on)
        for part, found in scores.items():
            write_scores(config.run.folder, f"scores-{part}{suffix}", found, collection)
        scales = {member.name: member.scale for member in collection.members}
        cuttings = {member.name: Cutting.of(member.shards) for member in collection.members}
        folder = config.run.folder / f"best{suffix}"
        folder.mkdir(exist_ok=True)
        if not (folder / SEEN).is_file():  # the same for every epoch
            own = SeenFiles.of(collection, config.stop.select_on)
            (own.joined(origin.seen) if origin else own).save(folder / SEEN)
        save_model(folder, model.state_dict(), config, scales, cuttings, about)

    ranks.first_does(save)
