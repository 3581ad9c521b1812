"""The README's commands, run exactly as they are printed, and its run folder, as it is described."""

from __future__ import annotations

import configparser
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)  # a fixture runs several commands; each has its own limit
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def commands(heading: str) -> list[str]:
    """The command lines of the first code block under a heading."""
    section = README.split(f"\n## {heading}\n", 1)[1]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block
    return [line for line in block[1].splitlines() if line.strip()]


def run(command: str, folder: Path, limit: float = 280) -> str:
    """Runs a line of the README in `folder`, with this environment's commands in place of .venv/bin."""
    here = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(here, shell=True, cwd=folder, capture_output=True, text=True, timeout=limit, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository's configs, where a user might stand."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("configs", "launch"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def own_photographs(elsewhere: Path, photographs: Path) -> Path:
    """The section 'Your own photographs', followed line by line with 18 pictures and a table that names no split."""
    table = elsewhere / "photos" / "scores.csv"
    (elsewhere / "photos" / "images").mkdir(parents=True)
    with (photographs / "scores.csv").open() as file:
        rows = [row for number, row in enumerate(csv.DictReader(file)) if number % 10 in (0, 2, 4)]  # of 6 contents
    for row in rows:
        shutil.copy(photographs / "images" / row["image"], elsewhere / "photos" / "images")
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mos", "group"])
        writer.writerows([row["image"], row["score"], row["group"]] for row in rows)
    for command in commands("Your own photographs"):
        run(command, elsewhere)
    return elsewhere / "photos"


def test_own_photographs_train_with_the_commands_as_printed(own_photographs: Path) -> None:
    status = json.loads((own_photographs / "run" / "status.json").read_text())
    assert status["status"] in ("finished", "stopped early")
    assert status["split"] == "round-01"
    assert status["world_size"] == 2
    with (own_photographs / "predicted.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 18


def test_the_run_folder_holds_what_the_readme_says(own_photographs: Path) -> None:
    folder = own_photographs / "run"
    section = README.split("\n## What a run leaves\n", 1)[1].split("\n## ", 1)[0]
    for name in re.findall(r"^\| `(.*?) \|", section, re.MULTILINE):
        for path in re.findall(r"[\w./*-]+", name.replace("`", "")):
            assert list(folder.glob(path.rstrip("/"))), path
    status = json.loads((folder / "status.json").read_text())
    promised = re.search(r"^\| `status.json` \| (.*?) \|$", README, re.MULTILINE)
    assert promised
    words = set(re.findall(r"`(\w+)`", promised[1])) - {"finished", "unfinished", "failed"}
    assert words <= status.keys()
    the_rest = TRAINING.split("\n## What status.json says\n", 1)[1].split("\n## ", 1)[0]
    fields = {word for names in re.findall(r"^\| (`.*?) \|", the_rest, re.MULTILINE) for word in re.findall(r"`(\w+)`", names)}
    assert words < fields == status.keys()
    assert status["val"].keys() == status["test"].keys() >= {"srcc", "plcc"}
    for part in ("val", "test"):
        with (folder / f"scores-{part}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["image", "opinion", "score", "spread", "content"]
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["kind"] in ("step", "epoch", "save")


def test_koniq_configs_plan_as_printed(elsewhere: Path, koniq: Path) -> None:
    build = next(command for command in commands("A workstation") if " build " in command)
    run(build.replace("KONIQ", str(koniq)), elsewhere)
    plan = next(command for command in commands("A workstation") if " plan " in command)
    told = run(plan, elsewhere)
    assert "2, each takes 48 of these images" in told
    assert "label MOS_zscore (0 to 100, higher is better)" in told
    told = run(plan.replace("koniq10k_resnet50", "koniq10k_swin_base"), elsewhere)
    assert "32 images x 5 patches = 160 patches per step" in told


def test_the_quick_start_is_what_make_demo_runs_and_then_evaluates_and_predicts(own_photographs: Path) -> None:
    made = run("make --no-print-directory --dry-run demo VENV=.venv/nowhere PYTHON=python3 DEMO=demo", ROOT).replace("\\\n", " ")
    lines = [" ".join(line.split()).replace(".venv/nowhere", ".venv") for line in made.splitlines()]
    installed, quick = commands("Install"), commands("Quick start")
    assert [line for line in lines if line in installed] == installed
    assert [line for line in lines if line in quick] == quick[:3]
    evaluate, predict = (line.replace("demo/", "photos/") for line in quick[3:])
    assert evaluate in commands("Your own photographs")
    rows = list(csv.DictReader(run(predict, own_photographs.parent).splitlines()))
    assert [row["image"] for row in rows] == [f"photos/images/monarch-{version}.png" for version in ("pristine", "jpeg-5")]


def test_every_extra_is_explained() -> None:
    section = README.split("\n## Install\n", 1)[1].split("\n## ", 1)[0]
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(settings["options.extras_require"])


@pytest.mark.parametrize("text", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_every_link_within_the_documentation_leads_somewhere(text: Path) -> None:
    for place, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text.read_text(encoding="utf-8")):
        there = text.parent / place if place else text
        assert there.is_file(), place
        headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
        assert not heading or heading in {re.sub(r"[^\w -]", "", words).lower().replace(" ", "-") for words in headings}, heading


def test_make_without_a_target_says_what_there_is() -> None:
    told = run("make -s help", ROOT)
    for target in ("demo", "test", "lint", "install"):
        assert f"make {target}" in told


def test_the_console_commands_are_installed() -> None:
    assert "plan" in run(".venv/bin/dist-train --help", ROOT)
    assert "build" in run(".venv/bin/build-shards --help", ROOT)


def test_shell_scripts_are_clean() -> None:
    scripts = " ".join(str(path) for folder in ("slurm", "launch") for path in sorted((ROOT / folder).glob("*.sh")))
    run(f".venv/bin/shellcheck {scripts}", ROOT)
