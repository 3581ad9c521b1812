"""The promises of `build --rounds --ratio` and of `python -m shards split` as a user types them, on real shard folders."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import public_sets
import pytest
from photographs import contents, make_folder, read_csv

from shards.__main__ import main
from shards.manifest import Shards

SMALL = ["--size", "16", "--patches", "2", "--workers", "1"]
NAMES = [f"cup{number:02d}.png" for number in range(40)]
GROUPS = [f"content{number // 2}" for number in range(40)]
LIMIT = 60  # seconds


def build(folder: Path, out: Path, *more: object) -> int:
    return main(
        ["build", "--table", str(folder / "scores.csv"), "--images", str(folder / "images"), "--out", str(out), *SMALL, *map(str, more)]
    )


def split(out: Path, *more: object) -> int:
    return main(["split", str(out), *map(str, more)])


@pytest.fixture(scope="module")
def cups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("cups"), NAMES, 24, 20, group=GROUPS, std=[number / 100 for number in range(40)])


@pytest.fixture(scope="module")
def built(cups: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 40 images of 20 contents with ten rounds 70/10/20. Not to be changed."""
    out = tmp_path_factory.mktemp("built") / "out"
    assert build(cups, out) == 0
    return out


@pytest.fixture
def out(built: Path, tmp_path: Path) -> Path:
    """A copy of those shards, to be changed."""
    return Path(shutil.copytree(built, tmp_path / "out"))


# build


def test_a_build_writes_the_rounds_it_is_asked_for_and_says_what_it_cut(cups: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [
        "build",
        "--table",
        cups / "scores.csv",
        "--images",
        cups / "images",
        "--out",
        out,
        *SMALL,
        "--rounds",
        2,
        "--ratio",
        "80/20",
    ]
    command = [sys.executable, "-m", "shards", *map(str, arguments)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True).stdout.splitlines()
    assert Shards(out).split_names() == ["round-01", "round-01-no-val", "round-02", "round-02-no-val"]
    assert printed[1:5] == [
        "40 images of 20 contents, and every content is on one side of a split",
        "round-01, round-02: contents train 14, val 2, test 4",
        "round-01, round-02: 4 of 32 training images were cut out as val; the same with '-no-val' in its name keeps them in train",
        "round-01, round-02: an SRCC over fewer than 50 images is rough (val 4, test 8)",
    ]
    assert subprocess.run(command, capture_output=True, timeout=LIMIT, check=True).returncode == 0  # the same build again


def test_rounds_are_built_beside_an_official_split_and_a_run_takes_the_official_one(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, NAMES, 24, 20, split=["train"] * 30 + ["test"] * 10)
    assert build(folder, tmp_path / "out", "--rounds", 1) == 0
    shards = Shards(tmp_path / "out")
    assert shards.split_names() == ["official", "official-no-val", "round-01"]
    assert shards.split()[0] == "official"


def test_a_split_without_val_has_an_empty_val_and_the_same_test(cups: Path, tmp_path: Path) -> None:
    assert build(cups, tmp_path / "out", "--rounds", 1, "--ratio", "80/20") == 0
    shards = Shards(tmp_path / "out")
    (_, with_val), (_, without) = shards.split("round-01"), shards.split("round-01-no-val")
    assert without["val"].tolist() == [] and without["val"].dtype == np.int64
    assert np.array_equal(without["test"], with_val["test"])
    assert sorted([*with_val["train"], *with_val["val"]]) == without["train"].tolist()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [(["--ratio", "80/30"], "ratio '80/30': write the percentages"), (["--rounds", "0"], "'0': write 1 or more")],
)
def test_a_ratio_or_a_number_of_rounds_that_is_none_is_a_usage_error(
    cups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        build(cups, tmp_path / "out", *options)
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# split --rounds


def test_rounds_that_are_added_are_those_that_a_build_would_have_made_and_no_pixel_is_touched(
    cups: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(out)
    assert split(out, "--rounds", 12, "--ratio", "80/20") == 0
    after = contents(out)
    assert before.items() <= after.items()
    new = [*(f"round-{number:02d}-no-val" for number in range(1, 11)), "round-11", "round-11-no-val", "round-12", "round-12-no-val"]
    assert {f"splits/{name}.csv" for name in new} == after.keys() - before.keys()
    assert f"new in {out}/splits: {', '.join(new)}" in capsys.readouterr().out
    assert build(cups, tmp_path / "again", "--rounds", 12, "--ratio", "80/20") == 0
    assert contents(tmp_path / "again" / "splits") == contents(out / "splits")
    assert main(["check", str(out)]) == 0


def test_adding_the_same_again_changes_nothing_and_says_so(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(out)
    assert split(out, "--rounds", 10) == 0
    assert "new in" in (said := capsys.readouterr().out) and said.endswith("nothing, all were there already\n")
    assert contents(out) == before


@pytest.mark.parametrize("options", [["--ratio", "60/20/20"], ["--seed", "7"]])
def test_a_table_is_never_overwritten_and_another_name_is_asked_for(
    out: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    before = contents(out)
    assert split(out, "--rounds", 11, *options) == 1
    assert "splits/round-01.csv: is there already and says otherwise; no table is overwritten: choose another" in capsys.readouterr().err
    assert contents(out) == before
    assert split(out, "--rounds", 2, *options, "--name", "mine") == 0
    assert {"mine-01", "mine-02"} <= set(Shards(out).split_names())


def test_a_built_table_that_was_lost_is_not_replaced_by_another(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = (out / "splits" / "round-03.csv").read_bytes()
    (out / "splits" / "round-03.csv").unlink()
    assert split(out, "--rounds", 10, "--seed", 7, "--name", "round") == 1
    assert split(out, "--rounds", 10) == 0
    assert (out / "splits" / "round-03.csv").read_bytes() == lost


# split --import and --export


@pytest.mark.parametrize("form", ["pyiqa", "plain"])
def test_a_split_travels_from_one_folder_to_another_and_stays_the_same(
    cups: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    other, file = tmp_path / "other", tmp_path / "mine.csv"
    assert build(cups, other, "--seed", 5, "--rounds", 1) == 0
    assert split(out, "--export", file, "--name", "round-07", "--form", form) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{file}: round-07"
    assert split(other, "--import", file, "--name", "theirs") == 0
    assert (other / "splits" / "theirs.csv").read_bytes() == (out / "splits" / "round-07.csv").read_bytes()
    said = capsys.readouterr().out
    assert "theirs: contents train 14, val 2, test 4" in said and f"new in {other}/splits: theirs\n" in said
    assert "theirs: an SRCC over fewer than 50 images is rough (val 4, test 8)" in said
    assert main(["check", str(other)]) == 0


@pytest.mark.parametrize("name", ["meta_info_LIVEChallengeDataset.csv", "mine.csv"])
def test_only_a_table_of_live_in_the_wild_may_have_the_pictures_that_its_raters_practised_on(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert split(out, "--export", tmp_path / name, "--name", "round-07", "--form", "plain") == 0
    with (tmp_path / name).open("a") as table:
        table.write("".join(f"trainingImages/t{number}.bmp,train\n" for number in range(1, 8)))
    known = name.startswith("meta_info")
    assert split(out, "--import", tmp_path / name, "--name", "theirs") == (0 if known else 1)
    out_loud, error = capsys.readouterr()
    assert ("7 row(s) are left out" in out_loud) == known == ("names no image of the shards" not in error)


def test_all_splits_of_a_folder_are_exported_at_once_with_opinions_and_deviations(cups: Path, out: Path, tmp_path: Path) -> None:
    assert split(out, "--export", tmp_path / "all.csv") == 0
    rows, told = read_csv(tmp_path / "all.csv"), read_csv(cups / "scores.csv")
    assert list(rows[0]) == ["img_name", "mos", "std", *(f"round-{number:02d}_split" for number in range(1, 11)), "ref_name", "id"]
    assert [(row["img_name"], float(row["mos"]), float(row["std"])) for row in rows] == [
        (row["image"], float(row["score"]), float(row["std"])) for row in told
    ]
    shutil.rmtree(out / "splits")
    assert split(out, "--import", tmp_path / "all.csv") == 0
    assert main(["check", str(out)]) == 0  # the built tables are back as the manifest knows them


def test_an_export_never_replaces_a_file(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious.csv").write_text("precious")
    assert split(out, "--export", tmp_path / "precious.csv") == 1
    assert "precious.csv: is there already; export to another file" in capsys.readouterr().err
    assert (tmp_path / "precious.csv").read_text() == "precious"


def table(parts: dict[str, str]) -> str:
    return "".join(f"{name},{part}\n" for name, part in {"id": "part", **parts}.items())


PARTS = {name.removesuffix(".png"): "train" if number < 28 else "test" for number, name in enumerate(NAMES)}
BAD_COMMANDS = {
    "plain holds one": (
        ["--export", "new.csv", "--form", "plain"],
        r"--form plain holds one split; choose it with --name: round-01, round-02",
    ),
    "no such split": (["--export", "new.csv", "--name", "mine"], r"there is no split 'mine'; there are: round-01, round-02"),
    "no such folder": (["--export", "no/such/folder/new.csv"], r"new.csv: cannot be written \(No such file or directory\)"),
    "a name too long for a disk": (["--import", "good.csv", "--name", "x" * 300], r"x\.csv: cannot be written \(File name too long\)"),
    "a name with a path": (["--import", "good.csv", "--name", "../mine"], r"'../mine' cannot be the name of a split: use letters"),
    "an unknown image": (["--import", "bad.csv"], r"bad.csv, line 2, column id: 'cupp05' names no image .*did you mean 'cup05'\?\), or"),
}


@pytest.mark.parametrize("kind", BAD_COMMANDS)
def test_a_command_that_cannot_be_done_is_one_clear_line_and_changes_nothing(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.csv").write_text(table(PARTS))
    (tmp_path / "bad.csv").write_text(table({"cupp05": "train", **PARTS}))
    before = contents(tmp_path)
    options, complaint = BAD_COMMANDS[kind]
    assert split(out, *options) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert re.search(complaint, error), error
    assert contents(tmp_path) == before


@pytest.mark.parametrize("options", [[], ["--rounds", "2", "--import", "mine.csv"]], ids=["nothing to do", "two things to do"])
def test_a_split_command_does_one_thing(out: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        split(out, *options)


# pyiqa's table of a set that it is built from again


def parts_by_picture(shards: Shards, split: str) -> dict[str, str]:
    parts = shards.split(split)[1]
    return {row["path"]: part for number, row in enumerate(shards.image_rows()) for part in parts if number in parts[part]}


@pytest.mark.parametrize("name", ["live", "csiq", "kadid10k", "tid2013", "pipal"])
def test_an_exported_set_is_built_again_with_its_pictures_direction_and_contents(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, table, again = public_sets.make(name, tmp_path / "root"), tmp_path / "mine.csv", tmp_path / "again"
    assert main(["build", "--dataset", name, "--root", str(root), "--out", str(tmp_path / "out"), *SMALL]) == 0
    assert split(tmp_path / "out", "--export", table) == 0
    assert all((root / row["img_name"]).is_file() for row in read_csv(table))
    command = ["build", "--table", str(table), "--images", str(root), "--name", "mine", "--out", str(again), *SMALL]
    first = Shards(tmp_path / "out")
    if not first.label.higher_is_better:
        assert main(command) == 1
        assert "has a column dmos: add --lower-is-better, or --higher-is-better" in capsys.readouterr().err
        command.append("--lower-is-better")
    assert main(command) == 0
    second = Shards(again)
    assert second.label.higher_is_better == first.label.higher_is_better
    told = [
        {row["path"]: tuple(row[column] for column in ("opinion", "std", "group", "sha256")) for row in one.image_rows()}
        for one in (first, second)
    ]
    assert told[0] == told[1]
    assert parts_by_picture(second, "round-01") == parts_by_picture(first, "round-01")
    assert split(again, "--import", table, "--name", "round-02") == 0  # the same again: no table is overwritten
