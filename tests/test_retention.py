"""Which checkpoints stay, as laws of a pure rule."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dist_train.config import Save
from dist_train.retention import Retention

steps = st.sets(st.integers(1, 60), min_size=1)
retentions = st.builds(Retention, st.integers(1, 5), st.none() | st.integers(1, 60), st.none() | st.integers(1, 20))


def left(retention: Retention, present: set[int], newest: int) -> set[int]:
    return present - retention.superseded(present, newest)


@given(retentions, steps)
def test_the_newest_few_the_best_and_every_so_many_stay_and_nothing_else(retention: Retention, present: set[int]) -> None:
    stay = left(retention, present, max(present))
    newest = set(sorted(present)[-retention.keep :])
    assert newest <= stay
    for step in present - newest:
        periodic = retention.every_steps is not None and step % retention.every_steps == 0
        assert (step in stay) == (step == retention.best_step or periodic)


@given(retentions, steps, st.integers(1, 60))
def test_only_what_is_there_and_no_later_than_the_newest_may_go_and_never_the_newest(
    retention: Retention, present: set[int], newest: int
) -> None:
    gone = retention.superseded(present | {newest}, newest)
    assert gone <= {step for step in present if step < newest}


@given(retentions, steps)
def test_tidying_up_after_every_save_leaves_what_tidying_up_once_leaves(retention: Retention, saved: set[int]) -> None:
    present: set[int] = set()
    for step in sorted(saved):
        present = left(retention, present | {step}, step)
        assert step in present
        assert left(retention, present, step) == present
    assert present == left(retention, saved, max(saved))


@given(retentions, steps, st.integers(1, 60))
def test_a_more_generous_rule_keeps_all_that_a_stricter_one_keeps(retention: Retention, present: set[int], more: int) -> None:
    newest = max(present)
    stay = left(retention, present, newest)
    assert stay <= left(replace(retention, keep=retention.keep + more), present, newest)
    assert left(replace(retention, every_steps=None), present, newest) <= stay
    assert left(replace(retention, best_step=None), present, newest) <= stay


@given(st.integers(1, 9), st.none() | st.integers(0, 9), st.none() | st.integers(1, 4))
def test_epochs_are_the_steps_at_which_they_end(steps_per_epoch: int, best: int | None, every: int | None) -> None:
    ends = [(epoch + 1) * steps_per_epoch for epoch in range(12)]
    retention = Retention.of(Save(keep=1, keep_best=True, keep_every_epochs=every), steps_per_epoch, best)
    wanted = {ends[-1]} | ({ends[best]} if best is not None else set()) | (set(ends[every - 1 :: every]) if every else set())
    assert left(retention, set(range(1, ends[-1] + 1)), ends[-1]) == wanted
    assert Retention.of(Save(keep=1), steps_per_epoch, best) == Retention(1)
