"""Scores for new pictures: the same as evaluation gives, by the real command."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import pytest
import runs
import warm
from PIL import Image
from safetensors.torch import load_file, save_file

from dist_train.errors import ConfigError
from dist_train.model_folder import find_weights, open_model


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("run")
    runs.train(1, folder, shards, "train.epochs=1")
    return folder


def predict(*arguments: object) -> subprocess.CompletedProcess[str]:
    return warm.run("predict", *arguments)


def scores(text: str) -> dict[str, tuple[float, float]]:
    return {row["image"]: (float(row["score"]), float(row["spread"])) for row in csv.DictReader(text.splitlines())}


def test_a_picture_gets_the_score_that_evaluation_gave_it(run: Path, photographs: Path, tmp_path: Path) -> None:
    done = predict("--checkpoint", run, photographs / "images", "--out", tmp_path / "scores.csv", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "scores on the scale of tiny: pseudo-opinion" in done.stderr
    predicted = scores((tmp_path / "scores.csv").read_text())
    with (tmp_path / "scores.csv").open() as file:
        picture_of = {row["id"]: row["image"] for row in csv.DictReader(file)}
    assert len(predicted) == len(picture_of) == 60
    with (run / "scores-test.csv").open() as file:
        for row in csv.DictReader(file):
            assert picture_of[row["image"]] == f"{row['image']}.png"  # the tables can be joined
            score, spread = predicted[picture_of[row["image"]]]
            assert score == pytest.approx(float(row["score"]), rel=1e-4)
            assert spread == pytest.approx(float(row["spread"]), rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("text", ["README.md", "docs/evaluation.md"])
def test_the_lines_of_python_in_the_documentation_give_the_score_that_the_command_gives(
    text: str, run: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = (Path(__file__).parent.parent / text).read_text(encoding="utf-8").split("\n## From Python\n", 1)[1]
    snippet = printed.split("```python\n", 1)[1].split("```", 1)[0]
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "run").symlink_to(run)
    (tmp_path / "demo" / "images").symlink_to(photographs / "images")
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    score, spread = map(float, capsys.readouterr().out.split())
    done = predict("--checkpoint", run, photographs / "images" / "monarch-pristine.png", "--workers", 0, "--device", "cpu")
    assert [(score, spread)] == [pytest.approx(said, rel=1e-3) for said in scores(done.stdout).values()]


def test_a_picture_too_long_to_be_cut_is_named_and_the_others_are_scored(run: Path, photographs: Path, tmp_path: Path) -> None:
    for name in ("a.png", "z.png"):
        shutil.copy(photographs / "images" / "coffee-pristine.png", tmp_path / name)
    Image.new("RGB", (2000, 1)).save(tmp_path / "line.png")
    done = predict("--checkpoint", run, tmp_path, "--workers", 0)
    assert done.returncode == 1 and set(scores(done.stdout)) == {"a.png", "z.png"}
    assert "line.png: 2000x1 would become 128000x64 before patches are cut, more than 65,535 pixels on a side" in done.stderr


def test_a_table_is_named_when_it_is_whole_and_is_not_written_over(run: Path, photographs: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "scores.csv", photographs / "images" / "coffee-pristine.png"
    failed = predict("--checkpoint", run, tmp_path / "nowhere", "--out", out)
    assert failed.returncode == 1 and not out.exists()  # so the command, put right, works
    assert predict("--checkpoint", run, picture, "--out", out, "--workers", 0).returncode == 0
    written = out.read_bytes()
    again = predict("--checkpoint", run, picture, "--out", out, "--workers", 0)
    assert again.returncode == 1 and f"--out {out}: is there already" in again.stderr and out.read_bytes() == written
    assert predict("--checkpoint", run, picture, "--out", "/dev/null", "--workers", 0).returncode == 0


def test_scores_of_a_loss_without_a_scale_are_told_as_that(shards: Path, photographs: Path, tmp_path: Path) -> None:
    runs.train(1, tmp_path / "run", shards, "train.epochs=1", "loss.regression=plcc")
    done = predict("--checkpoint", tmp_path / "run", photographs / "images" / "coffee-pristine.png", "--workers", 0)
    assert "scores on no scale, since loss.regression=plcc leaves it open, in the direction of tiny: pseudo-opinion" in done.stderr
    assert runs.status(tmp_path / "run")["test"]["rmse"] is None


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_scored(run: Path, photographs: Path, tmp_path: Path) -> None:
    for name in ("coffee-pristine.png", "rocket-jpeg-5.png"):
        shutil.copy(photographs / "images" / name, tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    done = predict("--checkpoint", run / "best", tmp_path, "--workers", 0)
    assert done.returncode == 1
    assert "broken.jpg: cannot be decoded" in done.stderr
    assert "1 picture could not be scored" in done.stderr
    assert set(scores(done.stdout)) == {"coffee-pristine.png", "rocket-jpeg-5.png"}
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_where_there_are_no_pictures_an_error_says_so(run: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    done = predict("--checkpoint", run, tmp_path / place)
    assert done.returncode == 1
    assert {"nowhere": "no such picture or folder", "empty": "holds no pictures"}[place] in done.stderr.splitlines()[-1]


def test_a_table_is_not_taken_for_a_picture(run: Path, photographs: Path) -> None:
    done = predict("--checkpoint", run, photographs / "scores.csv")
    assert done.returncode == 1 and "scores.csv: is no picture; name pictures, or the folder" in done.stderr.splitlines()[-1]


def test_a_model_is_found_by_its_run_its_folder_or_its_file(run: Path) -> None:
    for place in (run, run / "best", run / "best" / "model.safetensors"):
        assert find_weights(place) == run / "best" / "model.safetensors"
    with pytest.raises(ConfigError, match="holds no trained model"):
        find_weights(run / "checkpoints")


def test_equal_runs_leave_equal_files(run: Path, shards: Path, tmp_path: Path) -> None:
    runs.train(1, tmp_path, shards, "train.epochs=1")
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == (run / "best" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("harm", ["truncated", "a tensor less", "not ours"])
def test_a_file_that_is_no_model_of_ours_is_refused(run: Path, tmp_path: Path, harm: str) -> None:
    shutil.copytree(run / "best", tmp_path / "best")
    path = tmp_path / "best" / "model.safetensors"
    if harm == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        tensors = load_file(path)
        if harm == "a tensor less":
            tensors.pop("output_scale")
        save_file(tensors, path)
    with pytest.raises(ConfigError, match=r"model.safetensors: holds no model"):
        open_model(tmp_path)
