"""The promises of `python -m shards` as a user types it: what it prints, how it fails, and that nothing complete is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from photographs import NAMES, contents, crop, make_folder, read_csv, write_table
from PIL import Image

from shards.__main__ import main
from shards.manifest import Shards

SMALL = ["--size", "32", "--patches", "8", "--shard-mib", "0.05"]
LIMIT = 60  # seconds; a command here takes one or two, more on a busy machine


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "shards", *map(str, arguments)]


def build_arguments(folder: Path, out: Path, *more: object) -> list[str]:
    source = ["build", "--table", folder / "scores.csv", "--images", folder / "images", "--name", "cups"]
    return [str(argument) for argument in [*source, "--out", out, *SMALL, *more]]


@pytest.fixture(scope="module")
def cups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("cups"), split=["train"] * 8 + ["val"] * 2 + ["test"] * 2)


@pytest.fixture(scope="module")
def unbroken(cups: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of `cups`, built without trouble. Not to be changed."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert main(build_arguments(cups, out, "--workers", 1)) == 0
    return out


# what it prints


def test_build_show_and_check_print_what_they_did_and_exit_0(cups: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    built = subprocess.run(
        command(
            *build_arguments(cups, out, "--label", "DMOS", "--range", 0, 9, "--lower-is-better", "--ratio", "60/20/20", "--workers", 2)
        ),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    first, *told = built.stdout.splitlines()
    warned, about = told[:3], told[3:]
    assert first == f"cups: 12 images -> 6 shards in {out}, layout canvas, 2 workers"
    assert warned == [
        "every image is taken as its own content: no two of them share a group",
        "official: under 3 images have no SRCC, and no run takes such a split (val 2, test 2); make others with `python -m shards split`, "
        "or add images",
        "--ratio 60/20/20 changes nothing: beside an official split there are rounds only with --rounds N",
    ]
    assert about == [
        "data set        cups",
        f"fingerprint     {Shards(out).fingerprint}",
        "label           DMOS (0 to 9, lower is better)",
        "images          12, 0 of them enlarged",
        "opinions        1.00 to 3.75, mean 2.38, std 0.86",
        "patches         8 per image of 32x32, layout canvas, resize none",
        "shards          6 files, 0.3 MiB, codec raw",
        "split official  train 8, val 2, test 2",
    ]
    assert re.search(r"shards: 100%.* 12/12 .* images/s, [0-9.]+ MB/s, shard-000005.tar\]", built.stderr)
    shown, checked = (
        subprocess.run(command(verb, out), capture_output=True, text=True, timeout=LIMIT, check=True).stdout.splitlines()
        for verb in ("show", "check")
    )
    assert shown == about
    assert checked == [*about, "every byte is as it was written"]


def test_a_data_set_is_built_by_its_name(cups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--dataset", "demo", "--root", str(cups), "--out", str(tmp_path / "out"), *SMALL, "--workers", "1"]) == 0
    assert "computed pseudo-opinion, not human (0 to 100, higher is better)" in capsys.readouterr().out


def test_a_dmos_that_rises_with_quality_is_built_once_that_is_stated(
    cups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "scores.csv"
    table.write_text((cups / "scores.csv").read_text().replace("score", "dmos", 1))
    arguments = build_arguments(cups, tmp_path / "out", "--workers", "1", "--table", table)
    assert main(arguments) == 1
    assert "scores.csv: has a column dmos: add --lower-is-better, or --higher-is-better if" in capsys.readouterr().err
    assert main([*arguments, "--higher-is-better"]) == 0
    assert Shards(tmp_path / "out").label.higher_is_better
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--higher-is-better", "--lower-is-better"])


def test_importing_the_commands_does_not_need_torch_or_webdataset() -> None:
    code = "import sys, shards.__main__; print(*{'torch', 'webdataset', 'scipy', 'dist_train'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


# bad input: one line that says what, where and what to do, exit status 1, and nothing of a build


def spoil(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def columns(**columns: list[object]) -> Callable[[Path], None]:
    return lambda folder: write_table(folder, {"image": NAMES, "score": [1 + number / 4 for number in range(12)], **columns})


def truncate(folder: Path) -> None:
    picture = folder / "images" / "cup05.jpg"
    Image.fromarray(crop(5)).save(picture)
    picture.write_bytes(picture.read_bytes()[:-300])
    columns(image=["cup05.jpg" if name == "cup05.png" else name for name in NAMES])(folder)


def remove(folder: Path) -> None:
    (folder / "images" / "cup05.png").unlink()


def nothing(_: Path) -> None:
    pass


SCORES = [1 + number / 4 for number in range(12)]
BAD_INPUT: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "no table": (lambda folder: (folder / "scores.csv").unlink(), [], r"scores.csv: cannot be read \(No such file.*check the path"),
    "empty table": (spoil("scores.csv", b"image,score\n"), [], r"scores.csv: has no rows; write"),
    "no opinion column": (
        spoil("scores.csv", b"image,rating\na,1\n"),
        [],
        r"scores.csv: lacks a column score \(or mos, .*\); it has",
    ),
    "missing opinion": (columns(score=["", *SCORES[1:]]), [], r"scores.csv, line 2, column score: '' is not a number.*take the row out"),
    "NaN opinion": (columns(score=[*SCORES[:11], "nan"]), [], r"scores.csv, line 13, column score: 'nan' is not finite.*take the row out"),
    "opinion off the scale": (nothing, ["--range", "1", "3"], r"scores.csv: image 'cup09' has the opinion 3.25, outside .*correct the row"),
    "range the wrong way round": (nothing, ["--range", "5", "1"], r"--range 5 1: write the two ends of the scale, the lower one first"),
    "one id twice": (columns(image=[*NAMES[:11], NAMES[3]]), [], r"scores.csv: two rows have the id 'cup03'.*take one out"),
    "no such picture": (remove, [], r"images/cup05.png: there is no such file \(.*scores.csv, line 7\), 1 of 12 .*check the table's names"),
    "name too long for a disk": (
        columns(image=["x" * 300 + ".png", *NAMES[1:]]),
        [],
        r"images/x+.png: there is no such file \(.*scores.csv, line 2\), 1 of 12 pictures are missing",
    ),
    "not a picture": (
        spoil("images/cup05.png", b"text"),
        [],
        r"images/cup05.png: cannot be decoded .*; replace the file.* \(\S*scores.csv, line 7\)$",
    ),
    "truncated picture": (truncate, [], r"images/cup05.jpg: cannot be decoded .*; replace the file.* \(\S*scores.csv, line 7\)$"),
    "no such folder of pictures": (nothing, ["--images", "/no/such/folder"], r"/no/such/folder: there is no such folder; name the one"),
    "unknown part": (columns(split=["holdout"] * 12), [], r"scores.csv, line 2, column split: 'holdout' is no part of a split; write"),
    "split with a gap": (
        columns(split=["train"] * 6 + [""] * 6),
        [],
        r"scores.csv: image 'cup06' has no part .*; state it for all images, or for none \(\S*scores.csv, line 8\)$",
    ),
    "split without test": (columns(split=["train"] * 12), [], r"scores.csv: the split column has no image in 'test'; a split needs"),
    "content on two sides": (
        columns(split=["train"] * 6 + ["test"] * 6, group=["cup"] * 12),
        [],
        r"scores.csv: content 'cup' is in 'train' and, with image 'cup06', in 'test': .* put all its images in one part",
    ),
    "two contents": (columns(group=["a", "b"] * 6), [], r"scores.csv: 2 content.* cannot be cut .* needs at least 3; add images"),
    "unknown resize rule": (nothing, ["--resize", "small"], r"resize rule 'small': write none, exact:WIDTHxHEIGHT or short:PIXELS"),
    "more patches than memory": (nothing, ["--patches", "99999999999"], r"--patches 99999999999: .*at most 10,000"),
    "no patches": (nothing, ["--patches", "0"], r"--patches 0: .*an image has at least one"),
    "two sources": (nothing, ["--dataset", "demo", "--root", "."], r"--dataset brings its own table and scale: leave out --table"),
    "unused option": (nothing, ["--root", "."], r"--root \. goes with --dataset NAME, one of .*; a table takes --images DIR"),
    "out is a file": (spoil("out", b"precious"), [], r"out: cannot be made \(.*\); choose another --out"),
    "out is not empty": (
        lambda folder: make_folder(folder / "out") and None,
        [],
        r"out: is not empty \(images\) .*; choose a new",
    ),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_one_clear_line_and_exit_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    spoil_it, options, complaint = BAD_INPUT[kind]
    folder, out = make_folder(tmp_path), tmp_path / "out"
    spoil_it(folder)
    assert main(build_arguments(folder, out, "--workers", "1", *options)) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(complaint, error), error
    assert not (out / "manifest.json").exists()


def test_a_public_set_is_not_built_in_another_direction_than_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path)
    table = folder / "meta_info_LIVEIQADataset.csv"  # pyiqa calls its DMOS mos
    (folder / "scores.csv").rename(table)
    words = ["build", "--table", str(table), "--images", str(folder / "images"), "--size", "64", "--patches", "1", "--workers", "1"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "higher is better); expected DMOS" in said and ": give --lower-is-better, or give the set and its table other names" in said
    assert not (tmp_path / "out").exists()
    assert main([*words, "--lower-is-better", "--out", str(tmp_path / "out")]) == 0
    assert not Shards(tmp_path / "out").label.higher_is_better
    table.rename(folder / "scores.csv")
    words[2] = str(folder / "scores.csv")
    assert main([*words, "--out", str(tmp_path / "turned")]) == 0


def test_the_doctor_finds_what_the_build_would_refuse_as_too_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path)
    Image.new("RGB", (70_000, 64)).save(folder / "images" / "cup05.jpg".replace("jpg", "png"))
    table = folder / "scores.csv"
    table.write_text(table.read_text().replace("cup05.jpg", "cup05.png"))
    words = ["--table", str(table), "--images", str(folder / "images"), "--size", "64", "--workers", "1"]
    assert main(["doctor", *words]) == 1
    assert "1 of 12 pictures are too large to be stored" in " ".join(capsys.readouterr().out.split())
    assert main(["build", *words, "--patches", "1", "--out", str(tmp_path / "out")]) == 1
    assert "and a side has at most 65,535 pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--table", "t.csv"], "--table t.csv needs --images DIR"),
        (["--images", "p"], "--images p needs --table FILE"),
        (["--root", "r"], "--root r goes with --dataset NAME"),
        ([], "name the data: --table scores.csv --images DIR, or --dataset NAME --root DIR"),
    ],
)
def test_half_a_source_is_told_its_other_half(options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", *options, "--out", "out"]) == 1
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "hint"),
    [("koniq", "; did you mean koniq10k? `"), ("TID", "; did you mean bid or tid2013? `"), ("no such", "; `python -m shards list` shows")],
)
def test_a_misspelt_data_set_is_told_what_it_resembles(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["build", "--dataset", name, "--root", "r", "--out", "out"])
    assert f"'{name}' is no data set that is known{hint}" in capsys.readouterr().err


def test_an_error_of_the_real_command_shows_no_traceback(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    truncate(folder)
    done = subprocess.run(
        command(*build_arguments(folder, tmp_path / "out", "--workers", 2)), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {folder}/images/cup05.jpg: cannot be decoded (")


@pytest.mark.parametrize("verb", ["show", "check"])
def test_a_folder_without_shards_is_answered_with_what_makes_some(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert main([verb, str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}: holds no shards (no manifest.json); build some with `python -m shards build`\n"


def test_a_folder_one_level_above_shards_is_answered_with_where_they_lie(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "koniq10k").symlink_to(unbroken)
    assert main(["show", str(tmp_path)]) == 1
    assert f"holds no shards (no manifest.json); there are some one level below, in {tmp_path}/koniq10k\n" in capsys.readouterr().err


def test_check_names_the_damaged_image_and_exits_1(unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(unbroken, tmp_path / "out"))
    shard = out / "shard-000002.tar"
    content = bytearray(shard.read_bytes())
    content[int(Shards(out).index["offset"][5])] ^= 1
    shard.write_bytes(content)
    assert main(["check", str(out)]) == 1
    assert f"error: {shard}: the pixels of image 'cup05' are not what was written" in capsys.readouterr().err


def test_a_shard_size_that_is_none_is_a_usage_error(cups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("0", "-1", "nan", "inf", "big"):
        with pytest.raises(SystemExit, match="2"):
            main(build_arguments(cups, tmp_path / "out", "--shard-mib", size))
        assert f"argument --shard-mib: '{size}' is no size of a shard" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "--dataset", "demo", "--root", "", "--out", "out"],
        ["build", "--table", "t.csv", "--images", "", "--out", "out"],
        ["demo", "--out", ""],
        ["show", ""],
        ["split", "", "--rounds", "1"],
    ],
    ids=" ".join,
)
def test_an_empty_name_never_means_the_working_folder(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "is empty, as a shell variable is that was never set; name a file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--workers", "--rounds"])
def test_a_number_that_is_none_is_a_usage_error(cups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    for number in ("0", "-2", "1.5", "many", ""):
        with pytest.raises(SystemExit, match="2"):
            main(build_arguments(cups, tmp_path / "out", option, number))
        assert f"argument {option}: '{number}': write 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pictures", "table", "root of a data set", "shards"])
def test_what_may_not_be_read_is_one_clear_line(unbroken: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    with TemporaryDirectory() as name:  # the folders that pytest makes are closed to others
        place = Path(name)
        place.chmod(0o755)
        folder, out = make_folder(place / "cups"), Path(shutil.copytree(unbroken, place / "out"))
        closed, arguments = {
            "pictures": (folder / "images", build_arguments(folder, place / "new")),
            "table": (folder / "scores.csv", build_arguments(folder, place / "new")),
            "root of a data set": (folder, ["doctor", "--dataset", "kadid10k", "--root", str(folder), "--json"]),
            "shards": (out, ["show", str(out)]),
        }[kind]
        closed.chmod(0)
        if os.getuid() == 0:
            os.seteuid(65534)  # root may read everything
        try:
            assert main(arguments) == 1
        finally:
            os.seteuid(os.getuid())
    said = capsys.readouterr()
    told = json.loads(said.out)["findings"][0]["found"] if "--json" in arguments else said.err.splitlines()[-1]
    assert str(closed) in told and "Permission denied" in told


def test_a_reader_that_goes_away_costs_no_traceback(unbroken: Path) -> None:
    ours = subprocess.Popen(command("show", unbroken), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ours.stdout.close()
    assert ours.wait(LIMIT) == 1 and ours.stderr.read() == ""


# interrupted for real


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures, each a shard of its own: a build that takes long enough to be interrupted."""
    return make_folder(tmp_path_factory.mktemp("many"), [f"cup{number:02d}.png" for number in range(60)], 320, 240)


@pytest.fixture(scope="module")
def many_unbroken(many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("many_unbroken") / "out"
    assert main(build_arguments(many, out, "--workers", 1)) == 0
    return contents(out)


def start_and_wait_for_a_shard(arguments: list[str], out: Path) -> subprocess.Popen[str]:
    """A build in a session of its own, as soon as two shards are complete. It is nice, so that this process can outrun it."""
    process = subprocess.Popen(
        ["nice", "-n", "19", *command(*arguments)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it, and hands that on
    )
    end = time.monotonic() + LIMIT
    while len(list(out.glob(".build/shard-*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    return process


def complete_shards(out: Path) -> dict[str, int]:
    files = (out / note.stem for note in out.glob(".build/shard-*.json"))
    return {file.name: file.stat().st_mtime_ns for file in files}


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    for process in alive:
        process.kill()
    assert not alive


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_goes_on_where_it_was_and_ends_with_the_same_bytes(
    many: Path, many_unbroken: dict[str, str], tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "out"
    arguments = build_arguments(many, out, "--workers", workers)
    process = start_and_wait_for_a_shard(arguments, out)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait(LIMIT)
    wait_until_gone(children)  # a worker that outlived its parent would go on writing
    before = complete_shards(out)
    assert 2 <= len(before) < 60 and not (out / "manifest.json").exists()
    assert main(arguments) == 0
    assert contents(out) == many_unbroken
    assert {name: complete_shards(out)[name] for name in before} == before


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(
    many: Path, many_unbroken: dict[str, str], tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "out"
    arguments = build_arguments(many, out, "--workers", workers)
    process = start_and_wait_for_a_shard(arguments, out)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to every process of the command
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted; the same command goes on where this one stopped"
    assert "Traceback" not in errors
    before = complete_shards(out)
    assert main(arguments) == 0
    assert contents(out) == many_unbroken
    assert {name: complete_shards(out)[name] for name in before} == before


def test_a_killed_worker_is_reported_and_costs_only_what_it_was_writing(many: Path, many_unbroken: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = build_arguments(many, out, "--workers", 2)
    process = start_and_wait_for_a_shard(arguments, out)
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    workers[0].kill()
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 1 and "Traceback" not in errors
    assert re.search(r"error: .*/out: a worker process was killed, perhaps for want of memory; .*fewer --workers", errors)
    before = complete_shards(out)
    assert main(arguments) == 0
    assert contents(out) == many_unbroken
    assert {name: complete_shards(out)[name] for name in before} == before


def test_a_deleted_shard_is_written_again_by_the_same_command_with_the_same_sha256(cups: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(build_arguments(cups, out, "--workers", "1")) == 0
    (out / "shard-000003.tar").unlink()
    assert main(build_arguments(cups, out, "--workers", "1")) == 0
    assert contents(out) == contents(unbroken)


def test_a_small_picture_is_enlarged_and_the_table_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "data")
    Image.fromarray(crop(2, 16, 24)).save(folder / "images" / "cup02.png")
    assert main(build_arguments(folder, tmp_path / "out", "--workers", "1")) == 0
    assert "12, 1 of them enlarged" in capsys.readouterr().out
    assert [row["id"] for row in read_csv(tmp_path / "out" / "images.csv") if row["enlarged"] == "1"] == ["cup02"]
