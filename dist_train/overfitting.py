"""Whether train and validation went on together or parted ways, in a sentence drawn from the epochs of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dist_train.intervals import FEW_CONTENTS
from shards.splits import FEW_IMAGES

SATURATED = 0.95  # a train SRCC from here on has hardly room to rise, while the loss goes on falling
TELLING = 0.002  # of SRCC: less than redrawing the patches of the same images would move it


def train_and_val(records: Sequence[Mapping[str, Any]]) -> str:
    """What became of the image SRCC of train and val, from the records of metrics.jsonl; of train and test where no val is.

    What counts is what came after the epoch that was best on val: where train rose and val fell, both by at least TELLING,
    the run was overfitting from there on. Epochs without a SRCC are left out. Of fewer than FEW_IMAGES, or FEW_CONTENTS, none can tell.
    """
    judged = [record for record in records if record["kind"] == "epoch"]
    part = "val" if any(record.get("val") for record in judged) else "test"
    panels = [(side, record[side]) for record in judged for side in (part, "train") if record.get(side)]
    images, of_images = _fewest("images", panels) or (FEW_IMAGES, part)
    contents, of_contents = _fewest("effective_contents", panels) or (FEW_CONTENTS, part)
    epochs = [
        (record["epoch"], record["train"]["srcc"], record[part]["srcc"])
        for record in judged
        if all((record.get(side) or {}).get("srcc") is not None for side in ("train", part))
    ]
    if judged and not any(record.get("train") for record in judged):
        return "train was not scored (evaluate.train_images=0), so nothing is known of overfitting"
    if len(epochs) < 2:
        return f"too few epochs to say whether train and {part} SRCC part ways"
    moved, verdict = _moved_apart(epochs, part)
    if images < FEW_IMAGES:
        verdict = f"{images} images in {of_images} are too few to tell overfitting from chance"
    elif contents < FEW_CONTENTS:
        verdict = f"the images in {of_contents} count as {contents:.1f} contents, too few to tell overfitting from chance"
    return f"{moved}: {verdict}"


def _fewest(what: str, panels: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[float, str] | None:
    """The smallest of such counts in the panels, and whose it is, the first one's where several are; None where none says it."""
    counts = [(panel[what], side) for side, panel in panels if panel.get(what)]
    return min(counts, key=lambda count: count[0], default=None)


def _moved_apart(epochs: Sequence[tuple[int, float, float]], part: str) -> tuple[str, str]:
    """What became of the SRCC of train and of `part`, each an epoch's second and third number, and what that is called."""
    best = max(epochs, key=lambda epoch: epoch[2])
    first, last = epochs[0], epochs[-1]
    if last[2] - best[2] <= -TELLING:
        said = f"from epoch {best[0]} on, train SRCC {_moved(last[1] - best[1])} while {part} SRCC {_moved(last[2] - best[2])}"
        if last[1] - best[1] >= TELLING:
            return said, "overfitting"
        if last[1] >= SATURATED and last[1] - best[1] > -TELLING:
            return said, "perhaps overfitting, which a train SRCC so near to 1 can show no more"
        return said, "it got worse, but not by overfitting"
    train, other = last[1] - first[1], last[2] - first[2]
    span = f"from epoch {first[0]} to {last[0]}"
    if train >= TELLING and other >= TELLING:
        return f"{span}, train and {part} SRCC rose together, by {train:.3f} and {other:.3f}", "no sign of overfitting"
    return f"{span}, train SRCC {_moved(train)} and {part} SRCC {_moved(other)}", "no sign of overfitting"


def _moved(by: float) -> str:
    if abs(by) < TELLING:
        return "stood still"
    return f"{'rose' if by > 0 else 'fell'} by {abs(by):.3f}"
