"""The promises of building in shares: any number of processes, in any order, killed at any moment, end with the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from photographs import contents, crop, make_folder, plan_of, shards_of, stamps
from PIL import Image

from shards import writer
from shards.__main__ import main
from shards.check import check
from shards.manifest import ShardError
from shards.writer import Share, build_share

LIMIT = 60  # seconds; a command here takes one or two, more on a busy machine
ONE = 20_000  # bytes in a shard: just one of these pictures
NAMES = tuple(f"cup{number:02d}.png" for number in range(24))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four pictures, each a shard of its own. Not to be changed."""
    return make_folder(tmp_path_factory.mktemp("pictures"), NAMES)


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process makes of them."""
    return contents(shards_of(pictures, tmp_path_factory.mktemp("whole") / "out", shard_bytes=ONE).folder)


def build_arguments(folder: Path, out: Path, *more: object) -> list[str]:
    source = ["build", "--table", folder / "scores.csv", "--images", folder / "images", "--name", "cups", "--out", out]
    shape = ["--size", 32, "--patches", 8, "--shard-mib", ONE / 2**20, "--workers", 1]
    return [str(argument) for argument in [*source, *shape, *more]]


def start(folder: Path, out: Path, *more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shards", *build_arguments(folder, out, *more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(*processes: subprocess.Popen[str]) -> list[str]:
    """What each printed, once all have ended well."""
    said = [process.communicate(timeout=LIMIT) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [out for out, _ in said]


# arithmetic


@given(shards=st.integers(0, 200), total=st.integers(1, 50))
def test_every_shard_is_in_one_share_and_shares_differ_by_one_shard_at_most(shards: int, total: int) -> None:
    shares = [Share(number, total).of(range(shards)) for number in range(1, total + 1)]  # type: ignore[arg-type]
    assert sorted(shard for share in shares for shard in share) == list(range(shards))  # type: ignore[type-var]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# in any order, by any number


@pytest.mark.parametrize("order", ["1/3 2/3 3/3", "3/3 1/3 2/3", "2/2 1/3 3/3 1/2", "24/30 1/1", "1/1 2/3"])
def test_shares_in_any_order_even_of_different_divisions_end_with_the_same_bytes(
    pictures: Path, whole: dict[str, str], tmp_path: Path, order: str
) -> None:
    shares = [Share(*map(int, word.split("/"))) for word in order.split()]
    written: set[int] = set()
    for share in shares:
        written |= set(range(24)[share.number - 1 :: share.total])
        before = stamps(tmp_path / "out")
        shards = build_share(plan_of(pictures, shard_bytes=ONE), tmp_path / "out", share)
        assert (shards is not None) == (tmp_path / "out" / "manifest.json").exists() == (len(written) == 24)
        assert {int(name[6:12]) for name in stamps(tmp_path / "out")} == written
        assert stamps(tmp_path / "out").items() >= before.items()  # nothing is written twice
    assert contents(tmp_path / "out") == whole


def test_shares_that_run_at_the_same_time_end_with_the_same_bytes_and_one_finishes_the_folder(
    pictures: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    said = end(*(start(pictures, tmp_path / "out", "--share", f"{number}/3") for number in (2, 3, 1)))
    assert contents(tmp_path / "out") == whole
    assert any("fingerprint" in text for text in said)
    assert all("fingerprint" in text or "this share is written; " in text for text in said)


def test_two_whole_builds_at_the_same_time_in_one_folder_both_end_well_and_with_the_same_bytes(
    pictures: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    assert all("fingerprint" in text for text in end(start(pictures, tmp_path / "out"), start(pictures, tmp_path / "out")))
    assert contents(tmp_path / "out") == whole


def test_a_share_that_was_killed_is_started_again_or_done_by_the_whole_build(pictures: Path, tmp_path: Path) -> None:
    large = ["--resize", "exact:1600x1200", "--layout", "canvas"]  # each takes long enough to be killed in time
    end(start(pictures, tmp_path / "whole", *large))
    out = tmp_path / "out"
    killed = start(pictures, out, *large, "--share", "2/2")
    until = time.monotonic() + LIMIT
    while len(stamps(out)) < 2:
        assert killed.poll() is None and time.monotonic() < until
        time.sleep(0.001)
    killed.kill()
    killed.communicate(timeout=LIMIT)
    before = {name: stamp for name, stamp in stamps(out).items() if (out / ".build" / f"{name}.json").exists()}
    (said,) = end(start(pictures, out, *large, "--share", "1/2"))
    assert f"this share is written; {12 - len(before)} shard" in said and not (out / "manifest.json").exists()
    (said,) = end(start(pictures, out, *large))  # the merge is the plain command
    assert "fingerprint" in said
    assert contents(out) == contents(tmp_path / "whole")
    assert stamps(out).items() >= before.items()


# another build at any moment


@pytest.fixture
def at_moment(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], Callable[[], bool]]:
    """Does something when a file is synced for the n-th time from now, from 0; what comes back says whether it was done."""

    def prepare(moment: int, act: Callable[[], object]) -> Callable[[], bool]:
        left = iter(range(moment))
        done = False

        def sync(_: int) -> None:
            nonlocal done
            if next(left, None) is None and not done:
                done = True
                act()

        monkeypatch.setattr(os, "fsync", sync)
        return lambda: done

    return prepare


@pytest.fixture
def four(tmp_path: Path, at_moment: Callable[[int, Callable[[], object]], Callable[[], bool]]) -> tuple[Path, dict[str, str]]:
    """Four pictures, and what one process makes of them."""
    folder = make_folder(tmp_path / "data", NAMES[:4], split=["train", "train", "val", "test"])
    at_moment(0, lambda: None)
    return folder, contents(shards_of(folder, tmp_path / "alone", shard_bytes=ONE).folder)


def test_a_build_that_another_overtakes_at_any_moment_goes_on_and_ends_with_the_same_bytes(
    four: tuple[Path, dict[str, str]], tmp_path: Path, at_moment: Callable[[int, Callable[[], object]], Callable[[], bool]]
) -> None:
    folder, whole = four
    for moment in range(100):
        out = tmp_path / str(moment)
        overtaken = at_moment(moment, lambda out=out: shards_of(folder, out, shard_bytes=ONE))
        shards_of(folder, out, shard_bytes=ONE)
        assert contents(out) == whole
        if not overtaken():
            break
    assert moment == len(whole) + 2  # every file is synced once before it gets its name, and in the end two folders


def test_a_build_that_is_killed_at_any_moment_goes_on_from_what_it_left_and_ends_with_the_same_bytes(
    four: tuple[Path, dict[str, str]], tmp_path: Path, at_moment: Callable[[int, Callable[[], object]], Callable[[], bool]]
) -> None:
    """What a kill leaves is what lies on the disk at that moment: the shards, their records, or the folder half finished."""
    folder, whole = four
    for moment in range(100):
        left = tmp_path / str(moment)
        seen = at_moment(moment, lambda left=left: shutil.copytree(tmp_path / "out", left))
        shards_of(folder, tmp_path / "out", shard_bytes=ONE)
        if not seen():
            break
        assert contents(left) != whole
        shards_of(folder, left, shard_bytes=ONE)
        assert contents(left) == whole
        shutil.rmtree(tmp_path / "out")
    assert moment == len(whole) + 2  # every file is synced once before it gets its name, and in the end two folders


def test_builds_of_two_tables_at_once_never_leave_a_mixture_that_passes_for_a_build(
    tmp_path: Path, at_moment: Callable[[int, Callable[[], object]], Callable[[], bool]]
) -> None:
    split = ["train", "train", "val", "test"]
    mine = make_folder(tmp_path / "mine", NAMES[:4], split=split)
    other = make_folder(tmp_path / "other", NAMES[:4], split=split, score=[4, 3, 2, 1])  # files of the very same lengths
    at_moment(0, lambda: None)
    builds = [contents(shards_of(folder, tmp_path / folder.name / "out", shard_bytes=ONE).folder) for folder in (mine, other)]
    for moment in range(100):
        out = tmp_path / str(moment)
        overtaken = at_moment(moment, lambda out=out: shards_of(other, out, shard_bytes=ONE))
        try:
            shards_of(mine, out, shard_bytes=ONE)
        except ShardError:
            with pytest.raises(ShardError, match="the shards of another table"):
                shards_of(mine, out, shard_bytes=ONE)
        try:
            check(out)
        except ShardError:
            pass  # as loud as it must be
        else:
            assert contents(out) in builds
        if not overtaken():
            break
    assert moment > 10


@pytest.mark.parametrize("moment", range(3))
def test_a_build_that_is_overtaken_while_it_mends_a_folder_ends_with_the_same_bytes(
    pictures: Path, whole: dict[str, str], tmp_path: Path, moment: int, at_moment: Callable[[int, Callable[[], object]], Callable[[], bool]]
) -> None:
    at_moment(0, lambda: None)
    out = shards_of(pictures, tmp_path / "out", shard_bytes=ONE).folder
    (out / "shard-000003.tar").write_bytes(b"")
    overtaken = at_moment(moment, lambda: shards_of(pictures, out, shard_bytes=ONE))  # at the shard, its record, the index
    shards_of(pictures, out, shard_bytes=ONE)
    assert overtaken() and contents(out) == whole


def test_of_two_decoders_that_begin_at_once_the_first_decides_and_the_other_is_refused(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_moment: Callable[[int, Callable[[], object]], Callable[[], bool]]
) -> None:
    def begin_with_another() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(writer, "decoder_versions", lambda: {"pillow": "99"})
            build_share(plan_of(pictures, shard_bytes=ONE), tmp_path / "out", Share(1, 2))

    at_moment(0, begin_with_another)  # when this build has looked and found nothing, and is about to write its own versions
    with pytest.raises(ShardError, match=rf"out: was begun with pillow 99, and this is pillow {Image.__version__}"):
        build_share(plan_of(pictures, shard_bytes=ONE), tmp_path / "out", Share(2, 2))
    assert len(stamps(tmp_path / "out")) == 12


def test_a_build_that_comes_between_a_look_and_the_note_is_not_forgotten(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, make = tmp_path / "out", Path.mkdir

    def make_late(path: Path, *arguments: object, **options: object) -> None:
        if path.parent == out and not path.exists():  # this build has looked and found nothing
            make(path, *arguments, **options)
            build_share(plan_of(pictures, shard_bytes=ONE, seed=7), out, Share(1, 24))
        else:
            make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", make_late)
    with pytest.raises(ShardError, match="out: was begun with another seed"):
        build_share(plan_of(pictures, shard_bytes=ONE), out, Share(2, 24))
    assert len(stamps(out)) == 1


def test_a_note_of_a_build_that_says_nothing_is_written_anew(pictures: Path, whole: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "out" / ".build").mkdir(parents=True)
    (tmp_path / "out" / ".build" / "plan.json").write_bytes(b"")
    shards_of(pictures, tmp_path / "out", shard_bytes=ONE)
    assert contents(tmp_path / "out") == whole


def test_a_file_system_without_hard_links_will_do(
    pictures: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    shards_of(pictures, tmp_path / "out", shard_bytes=ONE)
    assert contents(tmp_path / "out") == whole


# what is refused


def test_a_bad_picture_stops_its_own_share_only(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / "data", NAMES), tmp_path / "out"
    picture = folder / "images" / "cup01.png"
    picture.write_bytes(picture.read_bytes()[:200])
    assert build_share(plan_of(folder, shard_bytes=ONE), out, Share(1, 2)) is None
    with pytest.raises(ShardError, match=r"cup01.png: cannot be decoded"):
        build_share(plan_of(folder, shard_bytes=ONE), out, Share(2, 2))
    Image.fromarray(crop(1)).save(picture)
    before = stamps(out)
    assert build_share(plan_of(folder, shard_bytes=ONE), out, Share(2, 2)) is not None
    assert stamps(out).items() >= before.items()


def test_a_record_that_lost_a_row_is_named_with_what_mends_it(pictures: Path, whole: dict[str, str], tmp_path: Path) -> None:
    out = shards_of(pictures, tmp_path / "out", shard_bytes=ONE).folder
    record = out / ".build" / "shard-000007.tar.json"
    record.write_bytes(record.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(ShardError, match=rf"shard-000007.tar: .* delete {record} and run the same command again"):
        shards_of(pictures, out, shard_bytes=ONE)
    record.unlink()
    shards_of(pictures, out, shard_bytes=ONE)
    assert contents(out) == whole


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "-1/3", "a/b", "1/3/5", "", "²/3"])
def test_a_share_that_is_none_is_a_usage_error(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(build_arguments(pictures, tmp_path / "out", f"--share={text}"))
    assert f"'{text}' is no share: write I/N with I from 1 to N, such as 3/16" in capsys.readouterr().err


def test_what_is_counted_is_told_in_the_right_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "data", NAMES[:3])
    assert main([*build_arguments(folder, tmp_path / "out"), "--shard-mib", "1", "--share", "2/3"]) == 0
    said = capsys.readouterr().out
    assert f"cups: 3 images -> 1 shard in {tmp_path / 'out'}, layout canvas, share 2/3, 1 worker\n" in said
    assert "this share is written; 1 shard of other shares to come, and whoever writes the last one finishes the folder" in said
