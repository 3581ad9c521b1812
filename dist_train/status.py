"""How a run stands: status.json, which scripts act on. Read and written without torch, so that what only asks is quick."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_train.errors import ConfigError
from dist_train.whole_files import finite_or_none, write_json

FINISHED = ("finished", "stopped early")


def how_far_the_run_is(weights: Path) -> str | None:
    """A sentence on the run whose best/model.safetensors these are, where it has not ended; None where there is nothing to know."""
    folder = weights.parent.parent
    with suppress(ConfigError):
        status = read_status(folder) if weights.parent.name.startswith("best") else None
        if status and status["status"] not in FINISHED:
            return (
                f"{folder}: this run is {status['status']} ({status['reason'].splitlines()[0]}), and these are the weights of its best "
                f"epoch so far; figures of test that are looked at before the end are a choice, not a test"
            )
    return None


def read_status(folder: Path) -> dict[str, Any] | None:
    """The run's status.json; None when there is none. Raises ConfigError for one that is damaged."""
    path = folder / "status.json"
    if not path.is_file():
        return None
    try:
        status: dict[str, Any] = json.loads(path.read_bytes())
        if not isinstance(status, dict) or not isinstance(status["status"], str) or not isinstance(status["reason"], str):
            raise ValueError("it tells of no status")
    except (ValueError, LookupError) as error:
        raise ConfigError(f"{path}: was damaged ({error}); delete it, and the run goes on from its checkpoints") from error
    return status


def write_status(folder: Path, status: Mapping[str, Any]) -> None:
    """Replaces status.json at once; status and reason come first."""
    leading = {key: status[key] for key in ("status", "reason")}
    write_json(folder / "status.json", finite_or_none({**leading, **status}))
