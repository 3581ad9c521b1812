"""Runs on the same images, compared: a real difference is found, chance is told as chance, unlike things are refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
from in_process import train_here
from scipy import stats

from dist_train.__main__ import main
from dist_train.compare import compare, estimate, read_side
from dist_train.errors import ConfigError
from dist_train.intervals import resampled_counts
from dist_train.tested import SEEN_IN_TRAINING

IMAGES = 200
STATUS: dict[str, Any] = {
    **{"status": "finished", "reason": "all 2 epochs are done", "selected_on": "val", "test": {"srcc": 0.5}},
    **{"data_set": "tiny", "label": "MOS (0 to 100, higher is better)", "split": "official", "data_fingerprint": "0123456789abcdef"},
}
HEADER = "image,opinion,score,spread,content"
OPINIONS = np.random.default_rng(0).uniform(0, 100, 3 * IMAGES)


def run(folder: Path, noise: float, seed: int = 1, images: range = range(IMAGES), opinions: np.ndarray = OPINIONS, **status: Any) -> Path:
    """A run folder as a finished run leaves it, whose scores are the opinions and some noise."""
    folder.mkdir(parents=True)
    told = STATUS | status
    own = {"data_fingerprint": told["data_fingerprint"], "split": told["split"]}
    (folder / "status.json").write_text(json.dumps({"trained_on": {told["data_set"]: own}} | told))
    scores = opinions + np.random.default_rng(seed).normal(0, noise, len(opinions))
    rows = [f"image-{number},{float(opinions[number])!r},{float(scores[number])!r},0.5,image-{number}" for number in images]
    (folder / "scores-test.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return folder


def run_on_sets(folder: Path, noise: dict[str, float], seed: int = 1, **status: Any) -> Path:
    """A run on several data sets, as it leaves itself: each with its own noise, images and number of them."""
    folder.mkdir(parents=True)
    sets = {name: {"srcc": 0.5} for name in noise}
    data = {name: {"data_fingerprint": f"fingerprint of {name}", "split": "official"} for name in noise}
    about = {"data_set": " + ".join(noise), "data_fingerprint": "+".join(said["data_fingerprint"] for said in data.values())}
    (folder / "status.json").write_text(json.dumps(STATUS | about | {"trained_on": data, "test": {"srcc": 0.5, "sets": sets}} | status))
    for number, (name, amount) in enumerate(noise.items()):
        part = run(folder / "part", amount, seed + number, range(50 * number, IMAGES), opinions=(number + 1) * OPINIONS)
        (part / "scores-test.csv").rename(folder / f"scores-test-{name}.csv")
        shutil.rmtree(part)
    return folder


def evaluation(
    folder: Path,
    noise: float,
    seed: int = 1,
    images: range = range(IMAGES),
    opinions: np.ndarray = OPINIONS,
    name: str = "tiny",
    **said: Any,
) -> Path:
    """What `evaluate` writes of an imported model on the test part."""
    (run(folder, noise, seed, images, opinions) / "scores-test.csv").rename(folder / f"scores-{name}.csv")
    (folder / "status.json").unlink()
    about = {"data_fingerprint": STATUS["data_fingerprint"], "split": "official", "part": "test", "label": STATUS["label"], "turned": False}
    seen = {"scores_on": STATUS["label"], "trained_on_set": None, "trained_on_images": None, "chosen_on_images": None}
    (folder / "evaluation.json").write_text(json.dumps({"model": "best/model.safetensors", "sets": {name: about | seen | said}}))
    return folder


def table_of(folder: Path, name: str = "scores-test.csv") -> tuple[np.ndarray, np.ndarray]:
    with (folder / name).open() as file:
        rows = list(csv.DictReader(file))
    return np.array([float(row["score"]) for row in rows]), np.array([float(row["opinion"]) for row in rows])


def test_a_better_run_is_seen_to_be_better(tmp_path: Path) -> None:
    worse, better = run(tmp_path / "worse", 25.0), run(tmp_path / "better", 10.0, seed=2)
    told = compare([str(worse), str(better)])
    for folder in (worse, better):
        assert re.search(rf"{folder} +1 +{stats.spearmanr(*table_of(folder)).statistic:.4f}", told)
    gain = stats.spearmanr(*table_of(better)).statistic - stats.spearmanr(*table_of(worse)).statistic
    assert f"SRCC {gain:+.4f}" in told and "better in 100.0% of the resamples" in told
    assert "test images: 200 of tiny (0123456789abcdef), split official, label MOS (0 to 100, higher is better)" in told
    assert "WARNING" not in told


def test_an_interval_with_two_negative_ends_stands_apart_from_the_figure_before_it(tmp_path: Path) -> None:
    one, other = (evaluation(tmp_path / str(seed), 15.0, seed, turned=True) for seed in (1, 2))
    span = r"-0\.\d{4} +-0\.\d{4} to -0\.\d{4}"
    assert re.search(rf"^{one} +1 +{span} +{span}$", compare([str(one), str(other)]), re.MULTILINE)


def test_the_difference_of_two_like_runs_has_zero_in_its_interval(tmp_path: Path) -> None:
    one, other = (read_side(str(run(tmp_path / str(seed), 15.0, seed))) for seed in (1, 2))
    first, second = estimate([one, other])["tiny"]
    low, high = second["srcc"].over(first["srcc"]).interval
    assert low < 0 < high
    assert 0.02 < second["srcc"].over(first["srcc"]).share_above_zero < 0.98


def test_runs_that_gave_the_same_scores_are_said_to_and_not_to_be_better_or_worse(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", 15.0), run(tmp_path / "other", 15.0)
    path = other / "scores-test.csv"
    title, *rows = path.read_text().splitlines()
    path.write_text("\n".join([title, *reversed(rows)]) + "\n")  # so sums are rounded in another order
    for pair in ([one, one], [one, other], [other, one]):
        heading, *gains = compare([str(side) for side in pair]).splitlines()[-3:]
        assert heading == f"{pair[1]} over {pair[0]}: every image has the same score on both sides"
        assert gains == [f"  {name} no difference, nor in any of the resamples" for name in ("SRCC", "PLCC")]


def test_scores_that_rank_the_images_alike_have_no_difference_in_srcc_alone(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", 15.0), run(tmp_path / "other", 15.0)
    scores, opinions = table_of(one)
    rows = [f"image-{n},{float(opinions[n])!r},{float(scores[n]) ** 3!r},0.5,image-{n}" for n in range(IMAGES)]
    (other / "scores-test.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    heading, srcc, plcc = compare([str(one), str(other)]).splitlines()[-3:]
    assert heading.endswith(f"over {one}:") and "no difference" in srcc and "better in 0.0%" in plcc


def test_ties_are_neither_better_nor_worse_and_zero_has_no_sign(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", 0.0, images=range(10)), run(tmp_path / "other", 0.0, images=range(10))
    path, low, high = other / "scores-test.csv", *sorted(range(10), key=lambda n: OPINIONS[n])[:2]
    lines = path.read_text().splitlines()
    turned = {low: OPINIONS[high], high: OPINIONS[low]}  # most resamples do not hold both of them
    lines[1:] = [f"image-{n},{float(OPINIONS[n])!r},{float(turned.get(n, OPINIONS[n]))!r},0.5,image-{n}" for n in range(10)]
    path.write_text("\n".join(lines) + "\n")
    ties = np.mean(np.concatenate([(counts[:, [low, high]] == 0).any(axis=1) for counts in resampled_counts(np.arange(10))]))
    assert 0.3 < ties < 0.8
    told = compare([str(one), str(other)])
    assert re.search(rf"SRCC -0\.0121 \(95 %: -0\.\d{{4}} to 0\.0000\), better in 0\.0% of the resamples, equal in {ties:.1%}", told)
    back = compare([str(other), str(one)])
    assert re.search(
        rf"SRCC \+0\.0121 \(95 %: 0\.0000 to \+0\.\d{{4}}\), better in {1 - ties:.1%} of the resamples, equal in {ties:.1%}", back
    )
    assert not re.search(r"[-+]0\.0000", told + back)


def test_what_both_runs_find_hard_cancels(tmp_path: Path) -> None:
    shared = np.random.default_rng(9).normal(0, 30, len(OPINIONS))  # the same large mistakes in both
    scores = OPINIONS + shared
    one, other = (run(tmp_path / str(noise), noise, opinions=scores) for noise in (0.1, 2.0))
    for folder in (one, other):  # both are judged by the true opinions
        found, _ = table_of(folder)
        rows = [f"image-{n},{float(OPINIONS[n])!r},{float(found[n])!r},0.5,image-{n}" for n in range(IMAGES)]
        (folder / "scores-test.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    first, second = estimate([read_side(str(one)), read_side(str(other))])["tiny"]
    alone, paired = (high - low for low, high in (first["srcc"].interval, second["srcc"].over(first["srcc"]).interval))
    assert paired < alone / 4


def test_equal_runs_are_told_equally(tmp_path: Path) -> None:
    names = [str(run(tmp_path / name, noise)) for name, noise in (("a", 20.0), ("b", 15.0))]
    assert compare(names) == compare(names)


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", 15.0), run(tmp_path / "other", 15.0)
    path = other / "scores-test.csv"
    title, *rows = path.read_text().splitlines()
    path.write_text("\n".join([title, *reversed(rows)]) + "\n")
    first, second = estimate([read_side(str(one)), read_side(str(other))])["tiny"]
    np.testing.assert_allclose(first["srcc"].resampled, second["srcc"].resampled, atol=1e-12)


def test_a_pattern_stands_for_the_median_over_its_runs(tmp_path: Path) -> None:
    for seed, noise in enumerate((10.0, 20.0, 40.0)):
        run(tmp_path / f"a-{seed}", noise, seed)
    run(tmp_path / "b", 20.0, seed=8)
    told = compare([str(tmp_path / "b"), str(tmp_path / "a-*")])
    middle = stats.spearmanr(*table_of(tmp_path / "a-1")).statistic
    assert re.search(rf"a-\* +3 +{middle:.4f}", told)
    assert "the median over them" in told


def test_splits_are_compared_with_the_same_splits(tmp_path: Path) -> None:
    for number, first in enumerate((0, 100, 250)):  # the first two share half of their images
        images = range(first, first + IMAGES)
        run(tmp_path / f"a-{number}", 25.0, 10 + number, images, split=f"round-{number}")
        run(tmp_path / f"b-{number}", 12.0, 20 + number, images, split=f"round-{number}")
    told = compare([str(tmp_path / "a-*"), str(tmp_path / "b-*")])
    assert "split round-0, round-1, round-2" in told
    medians = [np.median([stats.spearmanr(*table_of(tmp_path / f"{side}-{n}")).statistic for n in range(3)]) for side in "ab"]
    assert f"SRCC {medians[1] - medians[0]:+.4f}" in told
    (tmp_path / "b-0").rename(tmp_path / "c-0")
    with pytest.raises(ConfigError, match=r"not tested on the same images, such as 'image-\d+' of tiny \(round-1, round-2 against round-0"):
        compare([str(tmp_path / "a-*"), str(tmp_path / "b-*")])


def test_a_split_that_one_side_has_more_often_is_refused(tmp_path: Path) -> None:
    for name, first in (("a-0", 0), ("a-1", 200), ("b-0", 0), ("b-1", 200), ("b-2", 200)):
        run(tmp_path / name, 20.0, 1, range(first, first + IMAGES), split=f"round-{first}")
    with pytest.raises(ConfigError, match="do not have every split equally often"):
        compare([str(tmp_path / "a-*"), str(tmp_path / "b-*")])


def test_any_number_of_seeds_of_one_split_may_stand_against_each_other(tmp_path: Path) -> None:
    for seed in range(3):
        run(tmp_path / f"b-{seed}", 20.0, seed)
    assert "better in" in compare([str(run(tmp_path / "a", 20.0, 9)), str(tmp_path / "b-*")])


def test_other_data_are_refused(tmp_path: Path) -> None:
    names = [str(run(tmp_path / "a", 20.0)), str(run(tmp_path / "b", 20.0, data_fingerprint="fedcba9876543210", data_set="other"))]
    with pytest.raises(ConfigError, match=r"b was tested on the data fedcba9876543210 \(other\).*0123456789abcdef \(tiny\)"):
        compare(names)


def test_other_opinions_are_refused(tmp_path: Path) -> None:
    changed = OPINIONS.copy()
    changed[17] = 50.0
    names = [str(run(tmp_path / "a", 20.0)), str(run(tmp_path / "b", 20.0, opinions=changed))]
    with pytest.raises(
        ConfigError, match=r"b/scores-test\.csv: image 'image-17' has the opinion 50, in another run .*/a/scores-test\.csv\).*evaluate that"
    ):
        compare(names)


def test_a_run_that_chose_its_epoch_on_test_is_named(tmp_path: Path) -> None:
    told = compare([str(run(tmp_path / "a", 20.0)), str(run(tmp_path / "b", 15.0, selected_on="test"))])
    assert re.search(r"WARNING: these chose their epoch ON TEST, so their figures are too good: \S+/b$", told)


@pytest.mark.parametrize("content", ["no folder", "no status", "no scores", "unfinished", "no table", "text", "twice", "two images"])
def test_a_folder_that_cannot_be_compared_says_why(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = run(tmp_path / "good", 20.0), tmp_path / "bad"
    if content != "no folder":
        run(bad, 20.0)
    path = bad / "scores-test.csv"
    told = {"unfinished": {"status": "unfinished", "reason": "training", "test": None}}.get(content)
    if content == "no status":
        (bad / "status.json").unlink()
    elif content == "no scores":
        path.unlink()
    elif told:
        (bad / "status.json").write_text(json.dumps(runs.status(bad) | told))
    elif content != "no folder":
        lines = path.read_text().splitlines()
        lines = {
            "no table": lines[:1],
            "text": [*lines[:5], "image-900,12.5,good,0.5"],
            "twice": [*lines, lines[1]],
            "two images": lines[:3],
        }[content]
        path.write_text("\n".join(lines) + "\n")
    why = {
        "no folder": "bad: there is no run",
        "no status": "bad: there is no run",
        "no scores": "has not been tested",
        "unfinished": r"has not been tested \(unfinished: training\)",
        "no table": "is not a table",
        "text": "is not a table.*good.*evaluate that model again",
        "twice": "holds an image twice.*evaluate that model again",
        "two images": "holds 2 images; at least 3 .*evaluate on more",
    }[content]
    assert main(["compare", str(good), str(bad)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {bad}") and re.search(why, said)
    assert "Traceback" not in said


def test_constant_scores_have_no_correlation_and_no_better(tmp_path: Path) -> None:
    flat = run(tmp_path / "flat", 20.0)
    path = flat / "scores-test.csv"
    path.write_text(re.sub(r"^(image-\d+,[^,]+),[^,]+,", r"\1,50.0,", path.read_text(), flags=re.MULTILINE))
    told = compare([str(run(tmp_path / "good", 20.0)), str(flat)])
    assert re.search(rf"{flat} +1 +nan", told)
    assert "SRCC cannot be compared" in told and "better in" not in told


def test_runs_on_several_sets_are_compared_set_by_set_and_by_the_mean(tmp_path: Path) -> None:
    one = run_on_sets(tmp_path / "one", {"koniq": 25.0, "spaq": 12.0})
    other = run_on_sets(tmp_path / "other", {"koniq": 10.0, "spaq": 24.0}, seed=5)
    told = compare([str(one), str(other)])
    gains = []
    for name, images in (("koniq", 200), ("spaq", 150)):
        before, after = (stats.spearmanr(*table_of(folder, f"scores-test-{name}.csv")).statistic for folder in (one, other))
        gains.append(after - before)
        part = told[told.index(f"test images: {images} of {name} (fingerprint of {name}), split official") :]
        assert re.search(rf"{one} +1 +{before:.4f}", part.splitlines()[3])
        assert f"SRCC {gains[-1]:+.4f}" in part.split("test images", 2)[1]
    mean = told[told.index("mean over koniq, spaq:") :]
    assert f"SRCC {np.mean(gains):+.4f}" in mean
    assert gains[0] > 0 > gains[1]


def test_the_mean_of_two_sets_is_known_better_than_either(tmp_path: Path) -> None:
    found = estimate([read_side(str(run_on_sets(tmp_path / "run", {"koniq": 20.0, "spaq": 40.0})))])
    resampled = [found[name][0]["srcc"].resampled for name in ("koniq", "spaq", "the mean")]
    assert abs(np.corrcoef(resampled[0], resampled[1])[0, 1]) < 0.1  # their images are drawn apart
    assert resampled[2].std() == pytest.approx(np.hypot(resampled[0].std(), resampled[1].std()) / 2, rel=0.1)
    np.testing.assert_allclose(resampled[2], (resampled[0] + resampled[1]) / 2)


def test_the_median_over_runs_on_several_sets_is_of_their_means(tmp_path: Path) -> None:
    noises = [(5.0, 60.0), (20.0, 20.0), (60.0, 5.0)]  # each best run of one set is the worst of the other
    for number, (koniq, spaq) in enumerate(noises):
        run_on_sets(tmp_path / f"run-{number}", {"koniq": koniq, "spaq": spaq}, seed=number)
    (side,) = estimate([read_side(str(tmp_path / "run-*"))])["the mean"]
    means = [
        np.mean([stats.spearmanr(*table_of(tmp_path / f"run-{n}", f"scores-test-{name}.csv")).statistic for name in ("koniq", "spaq")])
        for n in range(3)
    ]
    assert side["srcc"].value == pytest.approx(np.median(means))


def test_the_same_shards_are_the_same_set_whatever_a_config_calls_them(tmp_path: Path) -> None:
    one, same, mine = (
        str(run(tmp_path / name, noise, data_set=called))
        for name, noise, called in (("a", 9.0, "tiny"), ("b", 8.0, "tiny"), ("c", 8.0, "mine"))
    )
    assert compare([one, mine]) == compare([one, same]).replace(same, mine)
    assert "test images: 200 of mine (0123456789abcdef), split official" in compare([mine, one])


def test_runs_that_share_some_sets_are_compared_on_those_and_the_others_are_told(tmp_path: Path) -> None:
    both = run_on_sets(tmp_path / "both", {"koniq": 25.0, "spaq": 12.0})
    alone = run(tmp_path / "alone", 20.0, 7, range(50, IMAGES), 2 * OPINIONS, data_set="mine", data_fingerprint="fingerprint of spaq")
    told = compare([str(both), str(alone)])
    assert told.startswith(
        f"left out: koniq (fingerprint of koniq) of {both}: {alone} was not tested on it\n\n"
        f"test images: 150 of spaq (fingerprint of spaq), split official\n"
    )
    assert "mean over" not in told and told.count("left out") == 1
    before, after = (
        stats.spearmanr(*table_of(folder, name)).statistic for folder, name in ((both, "scores-test-spaq.csv"), (alone, "scores-test.csv"))
    )
    assert re.search(rf"{both} +1 +{before:.4f}", told) and f"SRCC {after - before:+.4f} (95 %: " in told
    assert "of mine (fingerprint of spaq)" in compare([str(alone), str(both)])


def test_the_mean_is_over_the_shared_sets(tmp_path: Path) -> None:
    for seed in (1, 2):
        run_on_sets(tmp_path / f"three-{seed}", {"a": 5.0, "b": 25.0, "c": 25.0}, seed)
    run_on_sets(tmp_path / "two", {"a": 5.0, "b": 25.0}, seed=4)
    run_on_sets(tmp_path / "same", {"a": 5.0, "b": 25.0}, seed=1)
    told = compare([str(tmp_path / "two"), str(tmp_path / "three-1"), str(tmp_path / "three-*")])
    assert told.splitlines()[:3] == [
        *(
            f"left out: c (fingerprint of c) of {tmp_path / side}: {tmp_path / 'two'} was not tested on it"
            for side in ("three-1", "three-*")
        ),
        "",
    ]
    alone = compare([str(tmp_path / "two"), str(tmp_path / "same")])
    (row,), (expected,) = (
        re.findall(rf"^{tmp_path / name} (.*)$", text[text.index("mean over a, b") :], re.MULTILINE)[:1]
        for name, text in (("three-1", told), ("same", alone))
    )
    assert row.split() == expected.split()


def test_runs_that_share_no_set_are_refused(tmp_path: Path) -> None:
    both = run_on_sets(tmp_path / "both", {"koniq": 20.0, "spaq": 20.0})
    with pytest.raises(
        ConfigError, match=r"alone was tested on the data 01\w+ \(tiny\), .* of koniq \(koniq\) \+ .*only .* the same shards can"
    ):
        compare([str(both), str(run(tmp_path / "alone", 20.0))])
    one, other = (run_on_sets(tmp_path / name, {name: 20.0}) for name in ("koniq", "spaq"))
    with pytest.raises(
        ConfigError,
        match=r"/spaq was tested on the data .* \(spaq\), what stands before it on .* of koniq \(koniq\); only .*evaluate --shards",
    ):
        compare([str(both), str(one), str(other)])


def test_other_images_of_a_shared_set_are_refused(tmp_path: Path) -> None:
    both = run_on_sets(tmp_path / "both", {"koniq": 20.0, "spaq": 20.0})
    other = run(tmp_path / "other", 20.0, images=range(1, IMAGES), data_set="koniq", data_fingerprint="fingerprint of koniq", split="mine")
    with pytest.raises(ConfigError, match=r"not tested on the same images, such as 'image-0' of koniq \(mine against official\)"):
        compare([str(both), str(other)])


def test_a_run_on_the_same_shards_twice_is_refused(tmp_path: Path) -> None:
    twice = run_on_sets(tmp_path / "twice", {"a": 20.0, "b": 20.0})
    about = runs.status(twice)
    about["trained_on"]["b"]["data_fingerprint"] = about["trained_on"]["a"]["data_fingerprint"]
    (twice / "status.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="twice: two of a, b are the same shards"):
        compare([str(twice)])


def test_an_evaluation_is_paired_with_a_run_on_the_same_images(tmp_path: Path) -> None:
    ours, same = run(tmp_path / "ours", 10.0, 2), run(tmp_path / "same", 25.0)
    theirs = evaluation(tmp_path / "theirs", 25.0, name="other-name")
    for pair in ([ours, theirs], [theirs, ours]):
        told = compare([str(side) for side in pair])
        expected = compare([str(side) for side in (same if side == theirs else side for side in pair)])
        unlike = ("test images", "side", "nobody")  # the set's name, and how wide a column is
        lines, wanted = ([line for line in text.splitlines() if line and not line.startswith(unlike)] for text in (told, expected))
        assert [line.split() for line in lines] == [line.replace(str(same), str(theirs)).split() for line in wanted]
        assert told.endswith(f"\n\nnobody knows whether these were trained or chosen on these images: {theirs}")
        assert f"test images: 200 of {'tiny' if pair[0] == ours else 'other-name'} (0123456789abcdef), split official, label MOS (0" in told


def test_sets_of_an_evaluation_that_the_run_does_not_know_are_left_out(tmp_path: Path) -> None:
    ours, theirs = run(tmp_path / "ours", 10.0), evaluation(tmp_path / "theirs", 25.0)
    about = json.loads((theirs / "evaluation.json").read_text())
    about["sets"]["csiq"] = about["sets"]["tiny"] | {"data_fingerprint": "another", "part": "all", "split": None}
    (theirs / "evaluation.json").write_text(json.dumps(about))
    shutil.copy(theirs / "scores-tiny.csv", theirs / "scores-csiq.csv")
    assert compare([str(ours), str(theirs)]).startswith(f"left out: csiq (another) of {theirs}: {ours} was not tested on it\n\ntest images")
    told = compare([str(theirs), str(theirs)])  # an evaluation with an evaluation, on whatever images both are of
    assert "all images: 200 of csiq (another), label MOS" in told and "mean over tiny, csiq:" in told


@pytest.mark.parametrize(("part", "split", "which"), [("all", None, "all images"), ("val", "official", "val of official")])
def test_an_evaluation_of_other_images_is_refused(tmp_path: Path, part: str, split: str | None, which: str) -> None:
    ours, theirs = run(tmp_path / "ours", 10.0), evaluation(tmp_path / "theirs", 25.0, images=range(IMAGES + 1), part=part, split=split)
    with pytest.raises(ConfigError, match=rf"'image-200' of tiny \({which} against official\).*evaluate takes --split and --part"):
        compare([str(ours), str(theirs)])


def test_what_an_evaluation_says_that_its_model_has_seen_is_a_warning(tmp_path: Path) -> None:
    names = {(0, 0): "clean", (3, 0): "trained", (0, 2): "chosen", (3, None): "half known"}
    for (trained_on, chosen_on), name in names.items():
        evaluation(tmp_path / name, 20.0, trained_on_images=trained_on, chosen_on_images=chosen_on)
    *_, first, second, third = compare([str(tmp_path / name) for name in names.values()]).splitlines()
    assert first == f"{SEEN_IN_TRAINING}: {tmp_path / 'trained'}, {tmp_path / 'half known'}"
    assert second == f"WARNING: these chose their epoch on some of these images, so their figures are too good: {tmp_path / 'chosen'}"
    assert third == f"nobody knows whether these were trained or chosen on these images: {tmp_path / 'half known'}"
    assert "too good" not in compare([str(tmp_path / "clean")]) and "nobody" not in compare([str(tmp_path / "clean")])


def test_scores_that_speak_the_other_way_round_are_turned_and_have_no_error(tmp_path: Path) -> None:
    turned = evaluation(tmp_path / "turned", 15.0, opinions=-OPINIONS, scores_on="DMOS (scale not stated, lower is better)", turned=True)
    path = turned / "scores-tiny.csv"
    path.write_text(re.sub(r",-(\d+\.\d+),", r",\1,", path.read_text()))  # the opinions alone
    expected = -stats.spearmanr(*table_of(turned, path.name)).statistic
    assert expected > 0.5
    assert re.search(rf"^{turned} +official +200 +{expected:.4f} +0\.\d+ +0\.\d+ +nan$", compare([str(turned)]), re.MULTILINE)


@pytest.mark.parametrize("damage", ["no JSON", "no part", "no scores"])
def test_an_evaluation_that_cannot_be_read_says_why(tmp_path: Path, damage: str) -> None:
    bad = evaluation(tmp_path / "bad", 20.0)
    path = bad / "evaluation.json"
    if damage == "no JSON":
        path.write_text("{")
    elif damage == "no part":
        path.write_text(path.read_text().replace('"part"', '"piece"'))
    else:
        (bad / "scores-tiny.csv").unlink()
    why = {
        "no JSON": r"bad/evaluation\.json: does not tell what was scored",
        "no part": r"bad/evaluation\.json: .*'part'.*evaluate that model again, with another --out",
        "no scores": r"bad/scores-tiny\.csv: is not a table.*No such file",
    }[damage]
    with pytest.raises(ConfigError, match=why):
        compare([str(bad)])


def test_scores_that_differ_by_rounding_alone_have_neither_a_correlation_nor_an_interval(tmp_path: Path) -> None:
    flat = run(tmp_path / "flat", 20.0)
    rows = [f"image-{n},{float(OPINIONS[n])!r},{50 + 7e-15 * (n % 3)!r},0.5,image-{n}" for n in range(IMAGES)]
    (flat / "scores-test.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    assert re.search(rf"{flat} +1 +nan +none", compare([str(run(tmp_path / "good", 20.0)), str(flat)]))


def test_real_runs_are_compared_by_the_command_with_the_figures_that_they_report(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    runs.train(1, one, shards, "train.epochs=1")
    shutil.copytree(one, other)
    assert main(["compare", str(one), str(other)]) == 0
    told, status = capsys.readouterr().out, runs.status(one)
    assert re.search(rf"one +1 +{status['test']['srcc']:.4f} ", told)
    assert "the same score on both sides" in told and "SRCC no difference, without an interval" in told
    for part in ("val", "test"):
        assert status[part]["srcc_interval"] == [None, None] and (status[part]["images"], status[part]["contents"]) == (10, 1)
        assert status[part]["outlier_ratio"] is None  # these opinions have no deviations
        assert re.match("fitted|not fitted: ", status[part]["mapping5"]["status"])
    assert status["train_and_val"] == "too few epochs to say whether train and val SRCC part ways"


def test_a_real_run_on_a_set_that_it_names_itself_is_compared_with_one_on_the_same_shards(shards: Path, tmp_path: Path) -> None:
    train_here(tmp_path / "one", shards)
    train_here(tmp_path / "other", shards, "data.shards=null", f"data.sets={{mine: {{shards: {shards}}}}}", "run.seed=5")
    told = compare([str(tmp_path / "one"), str(tmp_path / "other")])
    assert "test images: 10 of tiny (" in told and "left out" not in told and "same score" not in told
    gain = np.subtract(*(runs.status(tmp_path / name)["test"]["srcc"] for name in ("other", "one")))
    assert f"SRCC {gain:+.4f}" in told


def test_of_one_side_each_round_is_told_and_their_median_as_papers_report_it(tmp_path: Path) -> None:
    rounds = [run(tmp_path / f"livec-{n:02d}", 10.0 + n, n, range(20 * n, IMAGES + 20 * n), split=f"round-{n:02d}") for n in range(1, 11)]
    told = compare([str(tmp_path / "livec-*")])
    figures = []
    for number, folder in enumerate(rounds, 1):
        scores, opinions = table_of(folder)
        figures.append(
            [
                stats.spearmanr(scores, opinions).statistic,
                stats.pearsonr(scores, opinions).statistic,
                stats.kendalltau(scores, opinions).statistic,
                np.sqrt(np.mean((scores - opinions) ** 2)),
            ]
        )
        assert re.search(rf"^{folder} +round-{number:02d} +200 +" + " +".join(f"{value:.4f}" for value in figures[-1]) + "$", told, re.M)
    for title, values in (("median", np.median(figures, axis=0)), ("standard deviation", np.std(figures, axis=0, ddof=1))):
        assert re.search(rf"^{title} +" + " +".join(f"{value:.4f}" for value in values) + "$", told, re.MULTILINE)
    assert f"{tmp_path / 'livec-*'}    10    {np.median(figures, axis=0)[0]:.4f}" in told
    assert " over " not in told.replace("the median over them", "")


def test_a_run_alone_is_told_without_a_median(tmp_path: Path) -> None:
    told = main(["compare", str(run(tmp_path / "one", 15.0))]), compare([str(tmp_path / "one")])
    assert told[0] == 0 and "median" not in told[1] and "KRCC" in told[1]
    both = compare([str(run_on_sets(tmp_path / "both", {"a": 5.0, "b": 25.0}))])
    assert re.search(rf"^{tmp_path / 'both'} a +official +200 ", both, re.M) and re.search(
        rf"^{tmp_path / 'both'} b +official +150 ", both, re.M
    )


def show(contents: int, *folders: Path) -> None:
    """As if each of so many contents were shown by as many images, with opinions that are its own."""
    for folder in folders:
        rows = list(csv.DictReader((folder / "scores-test.csv").open()))
        lines = [f"{','.join([*row.values()][:4])},content {number % contents}" for number, row in enumerate(rows)]
        (folder / "scores-test.csv").write_text("\n".join([HEADER, *lines]) + "\n")


def test_images_of_one_content_are_drawn_together_on_both_sides(tmp_path: Path) -> None:
    liked = np.resize(np.random.default_rng(3).uniform(0, 100, 25), 3 * IMAGES)
    one, other = (run(tmp_path / name, noise, seed, opinions=liked) for name, noise, seed in (("one", 15.0, 1), ("other", 10.0, 2)))
    widths = []
    for contents in (IMAGES, 25):
        show(contents, one, other)
        told = compare([str(one), str(other)])
        assert ("; intervals: by resamples of the 25 contents, so few that they are too narrow\n" in told) == (contents == 25)
        (low, high), *_ = re.findall(rf"{one} +1 +[\d.]+ +([\d.]+) to ([\d.]+)", told)
        widths.append(float(high) - float(low))
    assert widths[1] > 1.2 * widths[0]


def test_runs_on_sets_of_which_one_has_two_contents_are_compared_on_the_other(tmp_path: Path) -> None:
    one, other = (run_on_sets(tmp_path / name, {"a": noise, "b": noise}) for name, noise in (("one", 5.0), ("other", 25.0)))
    for folder in (one, other):
        (folder / "scores-test-a.csv").rename(folder / "scores-test.csv")
        show(2, folder)
        (folder / "scores-test.csv").rename(folder / "scores-test-a.csv")
    told = compare([str(one), str(other)])
    assert told.count("without an interval") == 4 and "mean over a, b; intervals as of each of them:" in told  # of a, and of the mean
    assert re.search(r"SRCC -[\d.]+ \(95 %: ", told)


def test_rounds_that_rest_on_few_contents_each_are_told_as_that(tmp_path: Path) -> None:
    for number in range(1, 4):
        folder = run(tmp_path / f"round-{number:02d}", 10.0, number, range(60 * number), split=f"round-{number:02d}")
        show(10, folder)
        rows = (folder / "scores-test.csv").read_text().splitlines()
        rows[1:] = [re.sub(r"content \d+", f"content {n % (10 * (n // 60 + 1))}", row) for n, row in enumerate(rows[1:])]
        (folder / "scores-test.csv").write_text("\n".join(rows) + "\n")
    told = compare([str(tmp_path / "round-*")])
    assert "by resamples of the 30 contents (those of a run count as 10.0 of one size), so few that they are too narrow" in told


def test_of_two_contents_the_difference_is_told_without_an_interval(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", 15.0), run(tmp_path / "other", 10.0)
    show(2, one, other)
    told = compare([str(one), str(other)])
    assert "; intervals: of 2 contents no resamples can be drawn" in told and "nan" not in told
    assert re.search(r"SRCC \+[\d.]+, without an interval", told) and re.search(rf"{one} +1 +[\d.]+ +none", told)


def test_of_one_side_over_several_sets_each_has_a_median(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        run_on_sets(tmp_path / f"both-{seed}", {"a": 5.0, "b": 25.0}, seed)
    told = compare([str(tmp_path / "both-*")])
    for name in ("a", "b"):
        values = [stats.spearmanr(*table_of(tmp_path / f"both-{seed}", f"scores-test-{name}.csv")).statistic for seed in (1, 2, 3)]
        assert re.search(rf"^median, {name} +{np.median(values):.4f} ", told, re.MULTILINE)
        assert re.search(rf"^standard deviation, {name} +{np.std(values, ddof=1):.4f} ", told, re.MULTILINE)
