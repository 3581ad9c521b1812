"""The promises of the built-in data set: real, graded, the same everywhere, and never taken for human ratings."""

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import demo
from shards.adapters import ADAPTERS
from shards.manifest import ShardError
from shards.splits import all_splits

FEW = ("coffee", "ruin_arch")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The complete demo, made once by two processes; some 200 MB, so not left behind."""
    out = tmp_path_factory.mktemp("demo") / "out"
    demo.make_demo(out, workers=2)
    yield out
    shutil.rmtree(out)


@pytest.fixture
def two_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CONTENTS", {content: demo.CONTENTS[content] for content in FEW})


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def score_of(out: Path) -> dict[str, float]:
    return {row["image"]: float(row["score"]) for row in rows_of(out)}


def patterns() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three images by arithmetic: a reference, the same with inverted rows, the same with its channels exchanged."""
    y, x = np.mgrid[:384, :512]
    reference = np.stack([x // 2 % 256, y % 256, (x + y) // 4], axis=-1).astype(np.uint8)
    striped = reference.copy()
    striped[::16] = 255 - striped[::16]
    return reference, striped, reference[..., [1, 2, 0]]


# the pictures


def test_it_has_14_contents_10_distortions_and_714_images_of_512x384(whole: Path) -> None:
    files = sorted((whole / "images").iterdir())
    assert (len(demo.CONTENTS), len(demo.DISTORTIONS), len(files)) == (14, 10, 714)
    assert {Image.open(file).size for file in files} == {(512, 384)}
    assert {Image.open(file).mode for file in files} == {"RGB"}


def test_names_hold_only_lower_case_letters_digits_minus_and_underscore() -> None:
    assert all(re.fullmatch(r"[a-z0-9_-]+\.png", name) for name in demo.image_names())
    assert len(set(demo.image_names())) == len(demo.image_names())


def test_no_content_is_enlarged_and_no_two_share_a_pixel() -> None:
    taken: dict[str, list[tuple[int, int, float, float]]] = {}
    for name, left, top, width in demo.CONTENTS.values():
        bottom = top + width * demo.HEIGHT / demo.WIDTH
        source = Image.open(demo.find_photograph(demo.PHOTOGRAPHS[name]))
        assert width >= demo.WIDTH and left + width <= source.width and bottom <= source.height
        for other_left, other_top, other_right, other_bottom in taken.get(name, []):
            assert left >= other_right or left + width <= other_left or top >= other_bottom or bottom <= other_top
        taken.setdefault(name, []).append((left, top, left + width, bottom))
    assert taken.keys() == demo.PHOTOGRAPHS.keys()


@pytest.mark.parametrize("name", demo.DISTORTIONS)
def test_a_distortion_changes_the_pixels_and_not_its_input(name: str) -> None:
    pixels = demo.cut_content("coffee").copy()
    before = pixels.copy()
    mild, strong = demo.distort(pixels, name, 1), demo.distort(pixels, name, 5)
    assert np.array_equal(pixels, before)
    assert mild.dtype == strong.dtype == np.uint8 and mild.shape == strong.shape == pixels.shape
    assert 0 < np.abs(mild - pixels.astype(int)).mean() < np.abs(strong - pixels.astype(int)).mean()
    assert np.array_equal(demo.distort(pixels, name, 5), strong)


@pytest.mark.parametrize("name", ["white_noise", "impulse_noise"])
def test_no_two_contents_share_a_noise_pattern(name: str) -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    almost = grey.copy()
    almost[0, 0, 0] = 129
    assert not np.array_equal(demo.distort(grey, name, 5)[1:], demo.distort(almost, name, 5)[1:])


# the pseudo-opinions


def test_identical_images_score_100(whole: Path) -> None:
    for content in FEW:
        assert demo.pseudo_opinion(demo.cut_content(content), demo.cut_content(content).copy()) == 100
    assert {score for name, score in score_of(whole).items() if "pristine" in name} == {100}


def test_the_index_is_the_published_one() -> None:
    # the expected values are those of the `piq` package, version 0.8.0, in double precision
    reference, striped, exchanged = patterns()
    assert demo.mean_deviation_similarity_index(reference, striped) == pytest.approx(0.5733449631695474, abs=1e-12)
    assert demo.mean_deviation_similarity_index(reference, exchanged) == pytest.approx(0.4660103664590009, abs=1e-12)


def test_every_level_scores_worse_than_the_one_before(whole: Path) -> None:
    scores = score_of(whole)
    for content in demo.CONTENTS:
        for distortion in demo.DISTORTIONS:
            fall = [scores[f"{content}-pristine.png"], *(scores[f"{content}-{distortion}-{level}.png"] for level in demo.LEVELS)]
            assert all(worse < better for better, worse in pairwise(fall)), (content, distortion, fall)


def test_scores_spread_over_the_scale_whatever_the_distortion(whole: Path) -> None:
    scores = score_of(whole)
    tenth, middle, last = np.quantile(list(scores.values()), [0.1, 0.5, 0.9])
    assert tenth < 25 and 40 < middle < 60 and last > 90
    for distortion in demo.DISTORTIONS:  # the type of distortion alone must not give the score away
        of_this = [score for name, score in scores.items() if f"-{distortion}-" in name]
        assert np.quantile(of_this, 0.1) < 45 and np.quantile(of_this, 0.9) > 80


def test_it_says_that_no_person_rated_the_images(whole: Path) -> None:
    about = (whole / "ABOUT.txt").read_text()
    assert "pseudo-opinion" in about and "No person has rated" in about and "doi 10.1109/ACCESS.2016.2604042" in about
    assert all(photograph.file in about and photograph.credit in about for photograph in demo.PHOTOGRAPHS.values())


# the table


def test_the_table_agrees_with_the_files(whole: Path) -> None:
    rows = rows_of(whole)
    assert list(rows[0]) == ["image", "score", "group", "split"]
    assert sorted(row["image"] for row in rows) == sorted(file.name for file in (whole / "images").iterdir())
    for row in rows[7::97]:
        content = row["image"].split("-")[0]
        pristine, pixels = (np.asarray(Image.open(whole / "images" / name)) for name in (f"{content}-pristine.png", row["image"]))
        assert row["score"] == f"{demo.pseudo_opinion(pristine, pixels):.3f}"


def test_no_photograph_is_on_two_sides_of_the_split(whole: Path) -> None:
    sides: dict[str, set[str]] = {}
    contents: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for row in rows_of(whole):
        sides.setdefault(row["group"], set()).add(row["split"])
        contents[row["split"]].add(row["image"].split("-")[0])
    assert all(len(split) == 1 for split in sides.values())
    assert {split: len(members) for split, members in contents.items()} == {"train": 9, "val": 2, "test": 3}


def test_a_build_reads_it_with_its_own_split(whole: Path) -> None:
    data_set = ADAPTERS["demo"].read(whole, ADAPTERS["demo"].labels[0].name)
    assert len(data_set.rows) == 714 and "pseudo-opinion" in data_set.label.name
    assert set(all_splits(data_set.rows, seed=0)) == {"official"}


# the folder


@pytest.mark.usefixtures("two_contents")
def test_the_same_bytes_on_every_run_and_any_number_of_workers(whole: Path, tmp_path: Path) -> None:
    demo.make_demo(tmp_path, workers=1)
    assert all((tmp_path / "images" / name).read_bytes() == (whole / "images" / name).read_bytes() for name in demo.image_names())
    assert rows_of(tmp_path) == [row for row in rows_of(whole) if row["image"].split("-")[0] in FEW]


def test_a_complete_demo_is_left_alone(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*")}
    assert demo.make_demo(whole) == whole / "scores.csv"
    assert "already holds this demo: 714 images" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*")} == before


@pytest.mark.usefixtures("two_contents")
def test_a_broken_off_run_has_no_table_and_the_next_one_completes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(images: Path, name: str) -> float:
        (images / name).write_bytes(b"quick")
        return 50.0

    def until_level_3(images: Path, name: str) -> float:
        if name.endswith("-3.png"):
            raise KeyboardInterrupt
        return quick(images, name)

    monkeypatch.setattr(demo, "write_image", quick)
    demo.make_demo(tmp_path)
    (tmp_path / "images" / demo.image_names()[-1]).unlink()
    monkeypatch.setattr(demo, "write_image", until_level_3)
    with pytest.raises(KeyboardInterrupt):
        demo.make_demo(tmp_path)
    assert not (tmp_path / "scores.csv").exists()
    monkeypatch.setattr(demo, "write_image", quick)
    assert len(rows_of(demo.make_demo(tmp_path).parent)) == len(list((tmp_path / "images").iterdir())) == 2 * 51


@pytest.mark.parametrize("stranger", ["images/holiday.jpg", "scores.csv"])
def test_files_of_somebody_else_are_refused_and_kept(tmp_path: Path, stranger: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / stranger).write_text("precious")
    with pytest.raises(ShardError, match=re.escape(stranger)):
        demo.make_demo(tmp_path)
    assert (tmp_path / stranger).read_text() == "precious"


@pytest.mark.parametrize(("field", "value"), [("package", "no-such-package-zq"), ("file", "no/such/picture.png")])
def test_what_is_missing_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: str
) -> None:
    incomplete = {**demo.PHOTOGRAPHS, "china": dataclasses.replace(demo.PHOTOGRAPHS["china"], **{field: value})}
    monkeypatch.setattr(demo, "PHOTOGRAPHS", incomplete)
    with pytest.raises(ShardError, match=rf"{value}.*pip install dist-train\[demo\]"):
        demo.make_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_imports_neither_torch_nor_the_packages_of_the_photographs() -> None:
    code = (
        "import sys, shards.demo as demo; demo.cut_content('sail'); print(*{'torch', 'skimage', 'sklearn', 'sporco'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
