"""Whose folder is it: a new run's, an unfinished run's that goes on, or another run's that must not be touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_train import ranks, run_lock
from dist_train.config import Config, is_whole, load_config, save_config
from dist_train.errors import ConfigError, LostProcessError
from dist_train.plan import Plan
from dist_train.status import FINISHED, read_status, write_status
from shards.remote import redacted

# What may change between two sessions of one run, besides where the shards lie. The result stays the same up to rounding, but
# for what `plan` lists as not reproducible: BatchNorm sees other micro-batches.
FREE = (
    "run.folder",
    "run.device",
    "run.compile",
    "run.processes",
    "run.timeout_minutes",
    "data.workers",
    "evaluate.train_images",
    "train.micro_batch",
    "model.gradient_checkpointing",
    "save.",
    "log.",
)
LEFT_OUT = ("ema.decay",)  # may be null from here on, not set or changed: it is computed beside the training, and never changes it


def enter_run_folder(plan: Plan) -> bool:
    """Makes the run folder, or opens it again; False when the run in it has already ended well. To be called with its lock held.

    Raises ConfigError when the folder holds a run with other settings or other data, or somebody else's files.
    """
    folder = plan.config.run.folder
    status = refuse_another_run(plan)
    if status and status["status"] in FINISHED:
        print(f"{folder}: this run has {status['status']} ({status['reason']}); choose another run.folder to train anew", flush=True)
        return False
    folder.mkdir(parents=True, exist_ok=True)
    for half in (".*.part", "best*/.*.part", "best*/.tmp*"):  # of a run that was killed; the last are safetensors' own
        for leftover in folder.glob(half):
            leftover.unlink(missing_ok=True)  # somebody who writes just now may have given it its name
    save_config(plan.config, folder / "config.yaml")
    write_status(folder, {**(status or {}), **about_data(plan), "status": "unfinished", "reason": "training"})
    return True


def refuse_another_run(plan: Plan) -> dict[str, Any] | None:
    """The status of this run, if its folder holds it already; raises ConfigError for anything else in it. Writes nothing."""
    folder = plan.config.run.folder
    settings, status = folder / "config.yaml", read_status(folder)
    if settings.is_file():
        refuse_other_settings(settings, plan.config)
    elif strangers := sorted(path.name for path in folder.glob("*") if not _is_of_any_run(path.name)):
        raise ConfigError(f"{folder}: is not empty ({strangers[0]}) and holds no run; choose a new or empty folder as run.folder")
    if status:
        refuse_other_data(plan, status)
    return status


def _is_of_any_run(name: str) -> bool:
    """What may stand in a run folder before its settings do: of people, and of a job that is just beginning, or was ended while it was."""
    begins = name.startswith((".lock-after-", "collectives-"))  # the second are NCCL's last, of ranks that waited in vain
    return begins or name in ("stop", run_lock.NAME) or (name.startswith(".") and name.endswith(".part"))


def about_data(plan: Plan) -> dict[str, Any]:
    """What status.json and every checkpoint say of the data."""
    members = plan.collection.members
    return {
        "data_set": " + ".join(member.name for member in members),
        "label": " + ".join(str(member.shards.label) for member in members),
        "data_fingerprint": "+".join(member.shards.fingerprint for member in members),
        "split": " + ".join(member.split for member in members),
        "split_fingerprint": "+".join(member.split_fingerprint() for member in members),
        "trained_on": {
            member.name: {
                "data_set": member.shards.manifest["data_set"],
                "data_fingerprint": member.shards.fingerprint,
                "split": member.split,
            }
            for member in members
        },
    }


def refuse_other_data(plan: Plan, before: Mapping[str, Any]) -> None:
    """Raises ConfigError when a run began, as about_data told it then, on other images or on another split of them."""
    now = about_data(plan)
    folders = " + ".join(str(member.shards.folder) for member in plan.collection.members)
    for key, what in (("data_fingerprint", f"data.shards={folders}"), ("split_fingerprint", f"the split '{now['split']}'")):
        if before[key] != now[key]:
            raise ConfigError(
                f"{plan.config.run.folder}: holds a run on other data: {what} has the fingerprint {now[key]}, the run began with "
                f"{before[key]} ({before['data_set']}, split {before['split']}); choose another run.folder"
            )


def record_failure(folder: Path, error: BaseException) -> None:
    """Says in status.json why the run failed, keeping what was known before. One that lost a process is unfinished: it can go on."""
    is_lost = ranks.lost_a_process(error)
    status = "unfinished" if is_lost else "failed"
    because = "lost another process: " if is_lost and not isinstance(error, LostProcessError) else ""  # that one says so itself
    reason = redacted(f"{because}{type(error).__name__}: {error}")
    known: dict[str, Any] = {}
    with suppress(ConfigError):  # a damaged one must not hide the cause
        known = read_status(folder) or {}
    write_status(folder, {**known, "status": status, "reason": reason})


def refuse_other_settings(path: Path, config: Config) -> None:
    """Raises ConfigError when the config saved at `path`, of a run, asks for another result than `config`, or was damaged."""
    _refuse_damaged_settings(path)
    before, now = _flat(load_config(path)), _flat(config)
    changed = [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
        and not key.startswith(FREE)
        and not key.endswith(".shards")
        and not (key in LEFT_OUT and now.get(key) is None)
    ]
    if changed:
        raise ConfigError(
            f"{path.parent}: holds a run with other settings ({'; '.join(changed)}); "
            f"choose another run.folder, or give the same settings to go on"
        )


def _refuse_damaged_settings(path: Path) -> None:
    """Half a file must not be taken for the defaults, nor a flipped bit for another run."""
    if not is_whole(path):
        copy = path.parent / "best" / "config.yaml"
        mend = f"copy {copy} over it" if copy.is_file() and is_whole(copy) else "write the settings that the run began with into it"
        raise ConfigError(f"{path}: was damaged; {mend}, and the run goes on, or choose another run.folder")


def _flat(config: Config) -> dict[str, Any]:
    """Every setting by its full key."""

    def walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(config.model_dump(mode="json"), ""))
