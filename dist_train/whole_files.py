"""Text and JSON that the training writes, each file whole or not there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.whole_files import write_bytes


def write_text(path: Path, text: str) -> None:
    """Replaces the file `path` at once."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces the file `path` by JSON, at once."""
    write_text(path, as_json(content))


def as_json(content: Mapping[str, Any]) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=2) + "\n"


def finite_or_none(value: Any) -> Any:
    """`value` with every nan or infinity in it as None, because JSON has no word for them."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
