"""Which checkpoints stay: the newest few, that of the best epoch where the config wants it, and one every so many epochs.

A pure rule over the steps at which checkpoints stand. Any checkpoint that it lets go, it would let go later too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dist_train.config import Save


@dataclass(frozen=True)
class Retention:
    """What stays besides the newest `keep`, in steps."""

    keep: int
    best_step: int | None = None
    every_steps: int | None = None

    @classmethod
    def of(cls, save: Save, steps_per_epoch: int, best_epoch: int | None) -> Retention:
        """As the config has it; epochs are counted from 0, and the one that is the best so far may be none."""
        best = (best_epoch + 1) * steps_per_epoch if save.keep_best and best_epoch is not None else None
        return cls(save.keep, best, save.keep_every_epochs and save.keep_every_epochs * steps_per_epoch)

    def superseded(self, steps: Iterable[int], newest: int) -> set[int]:
        """Of the `steps` that have a checkpoint, those that may go now that the one of step `newest` stands.

        Later ones are damaged, because the run has gone on from before them: they count for nothing, and are replaced in time.
        """
        past = sorted(step for step in steps if step <= newest)
        return {step for step in past[: -self.keep] if step != self.best_step and not (self.every_steps and step % self.every_steps == 0)}
