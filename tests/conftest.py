"""Data that many tests share: a few dozen distorted photographs, cut to small patches."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import runs
from filelock import FileLock
from photographs import LAYOUTS, make_folder, shards_of
from PIL import Image

from shards import demo
from shards.datasets import read_table
from shards.manifest import Label, Shards
from shards.plan import Settings, plan_build
from shards.writer import build

CONTENTS = {"coffee": "train", "rocket": "train", "monarch": "train", "tulips": "train", "sail": "val", "parrots": "test"}
VERSIONS = [
    "pristine",
    "jpeg-3",
    "jpeg-5",
    "gaussian_blur-2",
    "gaussian_blur-4",
    "white_noise-3",
    "white_noise-5",
    "contrast-4",
    "webp-5",
    "motion_blur-5",
]

LONGEST = ("test_readme.py", "test_compare_history.py", "test_heartbeat.py", "test_elastic.py", "test_losses.py", "test_train.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, or one process would be left alone with it at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """A test that fails half-way leaves no run behind."""
    yield
    runs.end_leftovers()


def made_once(name: str, make: Callable[[Path], object], factory: pytest.TempPathFactory) -> Path:
    """A folder that `make` fills, by the first of pytest's processes that asks for it; the others wait, and share it."""
    shared = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not folder.exists():
            half = shared / f"{name}.half"
            shutil.rmtree(half, ignore_errors=True)
            make(half)
            half.rename(folder)
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/ and scores.csv: 60 images of 6 contents, 40 to train, 10 to validate, 10 to test. Not to be changed."""
    return made_once("photographs", make_photographs, tmp_path_factory)


def make_photographs(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "score", "group", "split"])
        for content, part in CONTENTS.items():
            for version in VERSIONS:
                name = f"{content}-{version}.png"
                writer.writerow([name, demo.write_image(folder / "images", name), content, part])


@pytest.fixture(scope="session")
def shards(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those photographs as shards: 4 patches of 64 pixels per image, two shard files. Not to be changed."""

    def make(out: Path) -> None:
        data_set = read_table(photographs / "scores.csv", photographs / "images", "tiny", Label("pseudo-opinion", 0.0, 100.0, True))
        build(plan_build(data_set, Settings(patch_size=64, patches=4, shard_bytes=2 << 20)), out)

    return made_once("shards", make, tmp_path_factory)


@pytest.fixture(scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """A hundred builds sync some two thousand small files; the tests of the commands do it for real."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def cups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of 96x72 and their table. Not to be changed."""
    return make_folder(tmp_path_factory.mktemp("cups"))


@pytest.fixture(scope="session", params=LAYOUTS)
def built(request: pytest.FixtureRequest, cups: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Those pictures as shards, two per shard, in either layout. Not to be changed."""
    return shards_of(cups, tmp_path_factory.mktemp(request.param) / "out", layout=request.param)


@pytest.fixture
def folder(cups: Path, tmp_path: Path) -> Path:
    """A folder of pictures that a test may change."""
    return Path(shutil.copytree(cups, tmp_path / "cups"))


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Shards:
    """Shards of `folder` that a test may change."""
    return shards_of(folder, tmp_path / "out")


@pytest.fixture(scope="session")
def koniq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder as KonIQ-10k is distributed: both tables with their real columns, 1024x768 JPEG files."""
    folder = tmp_path_factory.mktemp("koniq")
    (folder / "1024x768").mkdir()
    scores = ["image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore"]
    sets = ["image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set"]
    for number, content in enumerate(demo.CONTENTS):
        name = f"{1000 + number}.jpg"
        picture = Image.fromarray(demo.cut_content(content)).resize((1024, 768))
        picture.save(folder / "1024x768" / name, quality=90)
        mos = 1 + 4 * number / len(demo.CONTENTS)
        part = ("training", "test", "training", "validation")[number % 4]  # 8, 3 and 3
        scores.append(f"{name},0,0,25,73,7,105,{mos},0.54,{20 * mos - 5}")
        sets.append(f"{name},0,0,25,73,7,105,{25 * (mos - 1)},0.54,{part}")
    (folder / "koniq10k_scores_and_distributions.csv").write_text("\n".join(scores) + "\n")
    (folder / "koniq10k_distributions_sets.csv").write_text("\n".join(sets) + "\n")
    return folder
