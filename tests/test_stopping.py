"""When a run stops: the rule of patience, and the ways to ask."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.stopping import EarlyStop, StopRequest, Verdict

quickly = settings(max_examples=100, deadline=None)
values = st.lists(st.one_of(st.just(math.nan), st.integers(-5, 5).map(float), st.floats(-1, 1)), max_size=20)


def judged(patience: int | None, seen: list[float]) -> tuple[EarlyStop, list[Verdict]]:
    rule, verdicts = EarlyStop(patience), []
    for epoch, value in enumerate(seen):
        rule, verdict = rule.judge(epoch, value)
        verdicts.append(verdict)
    return rule, verdicts


@quickly
@given(values)
def test_the_best_is_the_first_highest_value_and_nan_is_never_better(seen: list[float]) -> None:
    rule, verdicts = judged(None, seen)
    best, best_epoch = None, None
    for epoch, (value, verdict) in enumerate(zip(seen, verdicts, strict=True)):
        better = value == value and (best is None or value > best)
        if better:
            best, best_epoch = value, epoch
        assert (verdict is Verdict.NEW_BEST) == better
    assert (rule.best, rule.best_epoch) == (best, best_epoch)
    if best is not None:
        assert best == max(value for value in seen if value == value)


@quickly
@given(values, st.integers(1, 5))
def test_patience_counts_the_epochs_since_the_best(seen: list[float], patience: int) -> None:
    _, verdicts = judged(patience, seen)
    waited = 0
    for verdict in verdicts:
        waited = 0 if verdict is Verdict.NEW_BEST else waited + 1
        assert (verdict is Verdict.STOP) == (waited >= patience)


@quickly
@given(values)
def test_without_patience_nothing_stops(seen: list[float]) -> None:
    assert Verdict.STOP not in judged(None, seen)[1]


def test_an_equal_value_is_no_better() -> None:
    assert judged(2, [0.5, 0.5, 0.5])[1] == [Verdict.NEW_BEST, Verdict.NO_BETTER, Verdict.STOP]


def test_judging_leaves_the_rule_as_it_was() -> None:
    rule = EarlyStop(3)
    rule.judge(0, 0.9)
    assert rule == EarlyStop(3)


@pytest.fixture
def request_in(tmp_path: Path) -> Iterator[StopRequest]:
    with StopRequest(tmp_path) as request:
        request.begin()
        yield request


def test_nobody_has_asked_at_first(request_in: StopRequest) -> None:
    assert not request_in.heard()
    assert request_in.withdraw() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_and_named(request_in: StopRequest, number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    assert request_in.heard()
    assert request_in.withdraw() == [number.name]
    assert not request_in.heard()


def test_the_stop_file_is_heard_and_taken_away(request_in: StopRequest, tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    assert request_in.heard()
    assert request_in.withdraw() == ["the file `stop` in the run folder"]
    assert not (tmp_path / "stop").exists()
    assert not request_in.heard()


def test_a_file_that_comes_after_a_signal_is_taken_away_and_named_too(request_in: StopRequest, tmp_path: Path) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    (tmp_path / "stop").write_text("the disk is needed\n")
    assert request_in.heard()
    assert request_in.withdraw() == ["SIGTERM", "the file `stop` in the run folder (the disk is needed)"]
    assert not request_in.heard()


def test_ranks_that_withdraw_a_file_at_the_same_time_give_what_stands_in_it_or_nothing(tmp_path: Path) -> None:
    with StopRequest(tmp_path) as one, StopRequest(tmp_path) as other, ThreadPoolExecutor() as pool:
        for _ in range(300):
            (tmp_path / "stop").write_text("the time limit")
            told = list(pool.map(StopRequest.withdraw, (one, other)))
            assert {reason for reasons in told for reason in reasons} == {"the file `stop` in the run folder (the time limit)"}


def test_release_gives_the_signals_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    request = StopRequest(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    request.release()
    request.begin()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_that_nobody_could_obey_goes_on_to_whoever_had_it_before(tmp_path: Path) -> None:
    had: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: had.append(number))
    try:
        with StopRequest(tmp_path) as request:
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.reason == "SIGTERM" and had == []
        assert had == [signal.SIGTERM]
        with StopRequest(tmp_path) as request:
            request.begin()
            os.kill(os.getpid(), signal.SIGTERM)
        assert had == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


STUCK = """
import os, signal, sys, time
from pathlib import Path
from dist_train import stopping
stopping.STARTING = 0.3
with stopping.StopRequest(Path(sys.argv[1])) as request:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
    request.limit_the_start()
    time.sleep(30)
"""


def test_a_start_that_is_stuck_is_ended_by_the_signal_after_all(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", STUCK, tmp_path], capture_output=True, text=True, timeout=25)
    assert ended.returncode == 128 + signal.SIGTERM
    assert "SIGTERM came, and within 0.3 s it could not begin" in ended.stderr
