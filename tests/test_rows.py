"""The promises of the rows on the disk: all of them, as they were, in order, and next to nothing of them in memory."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photographs import make_folder

from shards.__main__ import main
from shards.manifest import PARTS, part_number
from shards.rows import Row, Rows
from shards.scratch import Scratch

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
NAME_ON_DISK = st.binary(max_size=5).filter(lambda name: b"\0" not in name).map(os.fsdecode)  # which need not be text
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
ROW = st.builds(Row, TEXT, NAME_ON_DISK.map(Path), NUMBER, st.none() | NUMBER, TEXT, st.sampled_from([None, *PARTS]), NAME_ON_DISK)
ROWS = st.lists(ROW, max_size=20)


@given(ROWS)
def test_every_row_comes_back_as_it_was_in_the_order_of_the_ids(rows: list[Row]) -> None:
    stored, ordered = Rows(iter(rows)), sorted(rows, key=lambda row: row.id)
    assert list(stored) == ordered and len(stored) == len(rows)
    assert [row.where for row in stored] == [row.where for row in ordered]
    assert [math.copysign(1, row.opinion) for row in stored] == [math.copysign(1, row.opinion) for row in ordered]  # -0.0 is 0.0
    assert list(stored.ids()) == [row.id for row in ordered]
    assert [os.fsdecode(file) for file in stored.files()] == [str(row.file) for row in ordered]
    assert stored.parts().tolist() == [part_number(row.part) for row in ordered]


@given(ROWS, st.slices(25))
def test_a_slice_is_that_of_a_list(rows: list[Row], some: slice) -> None:
    ordered = sorted(rows, key=lambda row: row.id)
    assert Rows(rows)[some] == ordered[some]


@given(ROWS)
def test_a_row_is_found_by_its_number_from_either_end(rows: list[Row]) -> None:
    stored, ordered = Rows(rows), sorted(rows, key=lambda row: row.id)
    assert all(stored[number] == ordered[number] for number in range(-len(rows), len(rows)))
    with pytest.raises(IndexError):
        stored[len(rows)]


@given(ROWS, TEXT)
def test_images_of_one_group_are_one_content_and_contents_are_shuffled_by_their_names(rows: list[Row], key: str) -> None:
    stored = Rows(rows)
    groups = [row.group for row in stored]
    assert len(set(zip(groups, stored.contents.tolist(), strict=True))) == len(set(groups)) == stored.num_contents
    assert set(stored.contents.tolist()) == set(range(stored.num_contents))
    name_of = dict(zip(stored.contents.tolist(), groups, strict=True))
    expected = sorted(set(groups), key=lambda group: hashlib.sha256(f"{key}/{group}".encode()).digest())
    assert [(name_of[content], images) for content, images in stored.shuffled_contents(key)] == [
        (group, groups.count(group)) for group in expected
    ]
    last = {group: number for number, group in enumerate(groups)}
    assert stored.of_each_content(np.arange(len(rows))).tolist() == [last[name_of[content]] for content in range(len(last))]


@given(ROWS)
def test_rows_of_one_id_are_found(rows: list[Row]) -> None:
    ordered = sorted(rows, key=lambda row: row.id)
    assert list(Rows(rows).twins()) == [(one, other) for one, other in pairwise(ordered) if one.id == other.id]


def test_the_folder_for_temporary_files_that_is_full_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(Scratch):
        def __init__(self) -> None:
            super().__init__()
            self.execute("pragma max_page_count = 2")

    monkeypatch.setattr("shards.rows.Scratch", Full)
    folder = make_folder(tmp_path)
    assert main(["build", "--table", str(folder / "scores.csv"), "--images", str(folder / "images"), "--out", str(tmp_path / "out")]) == 1
    said = "error: the folder for temporary files: database or disk is full; make room there, or name another folder in SQLITE_TMPDIR\n"
    assert capsys.readouterr().err == said


BUILD = """
import re, sys
from pathlib import Path
from shards import scratch, writer
from shards.datasets import read_table
from shards.plan import Settings, plan_build
scratch._CACHE = 256  # what SQLite keeps is bounded; with little of it the rest shows
folder = Path(sys.argv[1])
plan = plan_build(read_table(folder / "scores.csv", folder), Settings(patch_size=8, patches=1, shard_bytes=400 * 3 * 8 * 8))
writer.build(plan, folder / "out")
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked for the peak")
def test_the_memory_of_a_build_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    def peak(images: int) -> int:
        folder = make_folder(tmp_path / str(images), ["0.png"], 8, 8)
        lines = ["image,score"]
        for number in range(images):
            (folder / f"photograph-{number:05d}.png").hardlink_to(folder / "images" / "0.png")
            lines.append(f"photograph-{number:05d}.png,{number % 97}")
        (folder / "scores.csv").write_text("\n".join(lines))
        done = subprocess.run([sys.executable, "-c", BUILD, folder], capture_output=True, text=True, timeout=240, check=True)
        return int(done.stdout) * 1024

    few, many = 2_000, 12_000
    assert peak(many) - peak(few) < 500 * (many - few)  # bytes, with room for what the kernel rounds; as objects they take 1,700
