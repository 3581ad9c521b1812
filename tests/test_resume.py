"""The promises of a build that was stopped: nothing complete is lost, nothing stale is believed, and it ends with the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest
from photographs import NAMES, break_file, contents, crop, make_folder, plan_of, shards_of, stamps, write_table
from PIL import Image

from shards import writer
from shards.check import check
from shards.manifest import ShardError, Shards

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_a_complete_build_writes_no_shard_again(own: Shards, folder: Path) -> None:
    before, bytes_before = stamps(own.folder), contents(own.folder)
    shards_of(folder, own.folder)
    assert stamps(own.folder) == before and contents(own.folder) == bytes_before


def test_a_shard_that_is_gone_is_written_again_and_is_the_same(own: Shards, folder: Path) -> None:
    before, bytes_before = stamps(own.folder), contents(own.folder)
    (own.folder / "shard-000002.tar").unlink()
    shards_of(folder, own.folder)
    assert contents(own.folder) == bytes_before
    assert [name for name, stamp in stamps(own.folder).items() if stamp != before[name]] == ["shard-000002.tar"]


def test_a_build_that_stopped_at_any_moment_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "data", NAMES[:6], split=["train", "train", "train", "val", "test", "test"])
    whole = contents(shards_of(folder, tmp_path / "unbroken").folder)
    for moment in range(len(whole) + 2):  # every file is synced once before it gets its name, and in the end two folders
        out, left = tmp_path / str(moment), iter(range(moment))

        def stop_here(_: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", stop_here)
        with pytest.raises(KeyboardInterrupt):
            shards_of(folder, out)
        monkeypatch.setattr(os, "fsync", lambda _: None)
        assert contents(out).items() <= whole.items()
        complete = [name for name in stamps(out) if (out / ".build" / f"{name}.json").exists()]
        before = stamps(out)
        shards_of(folder, out)
        assert contents(out) == whole
        assert all(stamps(out)[name] == before[name] for name in complete)


def test_an_unfinished_build_is_not_taken_for_a_finished_one(own: Shards) -> None:
    (own.folder / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"holds no shards \(no manifest.json\); an unfinished build lies there: run the same"):
        Shards(own.folder)


def test_what_a_killed_build_was_writing_is_swept_away(own: Shards, folder: Path) -> None:
    before = contents(own.folder)
    for name in (".shard-000001.tar.node7-4711-0a.part", ".build/.plan.json.node7-4711-0a.part", "splits/.round-01.csv.node7-4711-0a.part"):
        (own.folder / name).write_text("half")
    shards_of(folder, own.folder)
    assert contents(own.folder) == before


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("cure", ["replace the file", "take its row out"])
def test_after_a_bad_picture_the_build_goes_on_where_it_was(folder: Path, tmp_path: Path, workers: int, cure: str) -> None:
    out, bad = tmp_path / "out", folder / "images" / "cup09.png"
    break_file(bad)
    with pytest.raises(
        ShardError, match=r"cup09.png: cannot be decoded .*; replace the file, or leave it out \(a table: take its row out\)"
    ):
        shards_of(folder, out, workers)
    before = {name: stamp for name, stamp in stamps(out).items() if name < "shard-000004.tar"}  # the one of cup09
    assert len(before) == 4
    assert not list(out.glob("*.part")) and not (out / "manifest.json").exists()
    if cure == "replace the file":
        Image.fromarray(crop(9)).save(bad)
    else:
        kept = [number for number in range(12) if number != 9]
        write_table(folder, {"image": [NAMES[number] for number in kept], "score": [1 + number / 4 for number in kept]})
    shards_of(folder, out, workers)
    assert {name: stamps(out)[name] for name in before} == before
    shards_of(folder, tmp_path / "anew")
    assert contents(out) == contents(tmp_path / "anew")


class AtOnce(Executor):
    """A pool whose tasks are done as soon as they are handed in."""

    def submit(self, task: Callable[..., object], /, *arguments: object) -> Future[object]:  # type: ignore[override]
        future: Future[object] = Future()
        try:
            future.set_result(task(*arguments))
        except ShardError as error:
            future.set_exception(error)
        return future


def test_after_a_bad_picture_nothing_new_is_begun(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WorkerPool", lambda _, prepare, *arguments: prepare(*arguments) or AtOnce())
    break_file(folder / "images" / "cup00.png")
    with pytest.raises(ShardError, match=r"cup00.png"):
        shards_of(folder, tmp_path / "out", workers=2)
    assert len(stamps(tmp_path / "out")) <= 2  # of five: the one beside it, and one begun before the error was looked at


def test_an_unfinished_build_goes_on_with_a_shorter_table_as_if_it_had_always_been_so(folder: Path, tmp_path: Path) -> None:
    shards_of(folder, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()  # as if it had been stopped at the last moment
    kept = [0, 1, 2, 5, 6, 7]
    write_table(folder, {"image": [NAMES[number] for number in kept], "score": [1 + number / 4 for number in kept]})
    before = stamps(tmp_path / "out")
    shards_of(folder, tmp_path / "out")
    assert stamps(tmp_path / "out")["shard-000000.tar"] == before["shard-000000.tar"]
    shards_of(folder, tmp_path / "anew")
    assert stamps(tmp_path / "out").keys() == stamps(tmp_path / "anew").keys()
    assert contents(tmp_path / "out").items() >= contents(tmp_path / "anew").items()


def test_the_record_of_a_shard_that_was_replaced_is_never_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, folder = tmp_path / "out", make_folder(tmp_path / "data", [f"cup{number}.bmp" for number in range(4)])
    shards_of(folder, out)
    (out / "shard-000001.tar").unlink()
    Image.fromarray(crop(9)).save(folder / "images" / "cup3.bmp")  # other pixels, and not a byte more or less
    stops = iter([None, None, KeyboardInterrupt()])  # the plan, the shard, its record

    def stop_before_the_record(_: int) -> None:
        if error := next(stops):
            raise error

    monkeypatch.setattr(os, "fsync", stop_before_the_record)
    with pytest.raises(KeyboardInterrupt):
        shards_of(folder, out)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    shards_of(folder, out)
    check(out)


def test_a_file_is_replaced_whole_so_that_whoever_reads_the_old_one_is_not_disturbed(own: Shards, folder: Path) -> None:
    with (own.folder / "index.npy").open("rb") as reader:
        shards_of(folder, own.folder)
        assert os.fstat(reader.fileno()).st_nlink == 0


def test_a_build_begun_with_another_decoder_is_not_mixed(own: Shards, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(own.folder)
    monkeypatch.setattr(writer, "decoder_versions", lambda: {"pillow": "99"})
    assert shards_of(folder, own.folder).manifest["versions"] == own.manifest["versions"]  # nothing to write, nothing to mix
    assert contents(own.folder) == before
    (own.folder / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=rf"was begun with pillow {Image.__version__}.*, and this is pillow 99"):
        shards_of(folder, own.folder)


def test_a_full_disk_is_named_and_leaves_no_half_file(cups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ShardError, match=r"plan.json: cannot be written \(No space left on device\)"):
        shards_of(cups, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_a_picture_that_was_exchanged_since_its_header_was_read_is_refused(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder)
    Image.fromarray(crop(0, 60, 60)).save(folder / "images" / "cup03.png")
    (folder / "images" / "cup07.png").unlink()
    with pytest.raises(ShardError, match=r"cup03.png: decodes to 60x60, its header says 96x72; .*\(\S*scores.csv, line 5\)$"):
        writer.build(plan, tmp_path / "out")
    Image.fromarray(crop(3)).save(folder / "images" / "cup03.png")
    with pytest.raises(ShardError, match=r"cup07.png: cannot be read \(No such file or directory\); .*\(\S*scores.csv, line 9\)$"):
        writer.build(plan, tmp_path / "out")
