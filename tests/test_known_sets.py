"""The data doctor on the public data sets, whole and not, and on the lists of them that are known to be wrong."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import public_sets
import pytest

from shards.__main__ import main
from shards.adapters import ADAPTERS
from shards.datasets import DataSet, read_table
from shards.examination import examine
from shards.manifest import PARTS, Label
from shards.picture_checks import picture_findings
from shards.table_checks import possible_ratings, table_findings


def whole(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """The small folder of that set, as if it were all that was published."""
    data_set = ADAPTERS[name].read(public_sets.make(name, root), ADAPTERS[name].labels[0].name)
    contents, stated = len({row.group for row in data_set.rows}), Counter(row.part for row in data_set.rows)
    parts = tuple(stated[part] for part in PARTS) if ADAPTERS[name].parts else ()
    monkeypatch.setitem(ADAPTERS, name, replace(ADAPTERS[name], images=len(data_set.rows), contents=contents, parts=parts))
    return data_set


def graver(data_set: DataSet) -> list[str]:
    """Errors and warnings, but for the size of the parts: the folders of the tests are small."""
    return [each.found for each in table_findings(data_set) if each.severity != "note" and " image(s) in " not in each.found]


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_public_data_set_as_it_is_distributed_is_clean_when_complete(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not graver(whole(name, tmp_path, monkeypatch))


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_public_data_set_that_is_incomplete_is_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set = whole(name, tmp_path, monkeypatch)
    some = replace(data_set, rows=data_set.rows[1:])
    assert f"{len(some.rows):,} images" in graver(some)


def test_contents_that_are_not_those_published_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set = whole("kadid10k", tmp_path, monkeypatch)
    monkeypatch.setitem(ADAPTERS, "kadid10k", replace(ADAPTERS["kadid10k"], contents=81))
    assert graver(data_set) == [f"{len({row.group for row in data_set.rows})} contents"]


@pytest.mark.parametrize("name", [adapter.name for adapter in ADAPTERS.values() if adapter.parts])
def test_an_official_split_that_is_not_the_published_one_is_a_warning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = ADAPTERS[name].parts
    data_set = whole(name, tmp_path, monkeypatch)
    monkeypatch.setitem(ADAPTERS, name, replace(ADAPTERS[name], parts=published))
    (finding,) = [each for each in table_findings(data_set) if each.found.startswith("an official split of train ")]
    assert finding.severity == "warning" and all(f"{number:,}" in finding.expected for number in published)
    assert not published or sum(published) == {"koniq10k": 10_073, "flive": 39_810, "uhd_iqa": 6_073}[name]


@pytest.mark.parametrize("name", [adapter.name for adapter in ADAPTERS.values() if adapter.sizes])
def test_pictures_of_another_size_than_was_published_are_a_warning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small sets of the tests are such; a picture of the right size is not spoken of."""
    examination = examine(whole(name, tmp_path, monkeypatch), headers_only=True)
    right = replace(examination.pictures[0], size=ADAPTERS[name].sizes[-1])
    (finding,) = [
        each
        for each in picture_findings(replace(examination, pictures=(right, *examination.pictures[1:])), 16, "none")
        if "another size than was published" in each.found
    ]
    number = len(examination.pictures)
    assert finding.severity == "warning" and finding.found.startswith(f"{number - 1} of {number} pictures")
    assert len(finding.where) == number - 1 and finding.where[0].endswith(" is 64x48")


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("kadid10k", "5 picture(s) beside the 15 images that were read from dmos.csv"),
        ("livec", "7 picture(s) beside the 11 images that were read from AllImages_release.mat"),
    ],
)
def test_what_a_protocol_leaves_out_is_noted_and_nobody_is_told_to_add_it(
    name: str, begins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KADID-10k's references; the pictures that the raters of LIVE in the Wild practised on, whose opinions are there too."""
    examination = examine(whole(name, tmp_path, monkeypatch), headers_only=True)
    for images, severity, to_do in ((0, "note", "nothing: "), (1, "warning", "take the complete data set")):
        monkeypatch.setitem(ADAPTERS, name, replace(ADAPTERS[name], images=ADAPTERS[name].images + images))
        (finding,) = [each for each in picture_findings(examination, 16, "none") if " beside the " in each.found]
        assert finding.found == begins and finding.severity == severity and finding.to_do.startswith(to_do)
        assert not any("add their rows" in each.to_do for each in picture_findings(examination, 16, "none"))


def test_what_is_known_of_a_set_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    koniq, flive = (whole(name, tmp_path / name, monkeypatch) for name in ("koniq10k", "flive"))
    assert any(each.found == "the label MOS_zscore" and "MOS_zscore, MOS" in each.expected for each in table_findings(koniq))
    assert any("AVA, VOC and EMOTIC" in each.found for each in table_findings(flive))
    assert any("FLIVE without the val" in each.found for each in table_findings(flive))
    public_sets.flive_validation(tmp_path / "flive")
    chosen = ADAPTERS["flive"].read(tmp_path / "flive", "MOS")
    assert not any("FLIVE without the val" in each.found for each in table_findings(chosen))
    kadid = whole("kadid10k", tmp_path / "kadid", monkeypatch)
    assert any(each.found.startswith("the label DMOS") and each.severity == "note" for each in table_findings(kadid))


# KADID-10k's column var


def rated_kadid(folder: Path, table: str, spread: Callable[[np.ndarray], np.ndarray]) -> DataSet:
    """300 images with the means of 30 made ratings each and what `spread` says of the ratings, written as KADID-10k's are."""
    dice = np.random.default_rng(7)
    ratings = 1 + dice.binomial(4, dice.uniform(0.05, 0.95, (300, 1)), (300, 30))
    spreads = spread(ratings).round(3)
    columns = "dist_img,ref_img,dmos,var" if table == "dmos.csv" else "dist_name,ref_name,dmos,std"
    names = [f"I{n // 20 + 1:02}_{n:03}" for n in range(300)]
    lines = [
        f"{name}.png,{name[:3]}.png,{mean:g},{said:g}" for name, mean, said in zip(names, ratings.mean(1).round(2), spreads, strict=True)
    ]
    (folder / "images").mkdir(parents=True)
    (folder / table).write_text("\n".join([columns, *lines]))
    if table == "dmos.csv":
        return ADAPTERS["kadid10k"].read(folder, "DMOS")
    return read_table(folder / table, folder / "images", direction_is_stated=True)


SPREADS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "deviations": (lambda ratings: ratings.std(1), "note"),
    "variances": (lambda ratings: ratings.var(1), "error"),
    "roots of deviations": (lambda ratings: np.sqrt(ratings.std(1)), "warning"),
}


@pytest.mark.parametrize("table", ["dmos.csv", "meta_info_KADID10kDataset.csv"])
@pytest.mark.parametrize("kind", SPREADS)
def test_kadids_deviations_are_told_from_variances_by_what_30_ratings_can_say(kind: str, table: str, tmp_path: Path) -> None:
    spread, severity = SPREADS[kind]
    (finding,) = [each for each in table_findings(rated_kadid(tmp_path, table, spread)) if each.found.startswith("of 300 deviations")]
    assert finding.severity == severity
    said = re.fullmatch(rf"of 300 deviations in {table}, .* have (\d+) as their standard deviation, (\d+) as their variance", finding.found)
    assert said
    as_deviation, as_variance = map(int, said.groups())
    assert (as_deviation == 300) == (kind == "deviations") and (as_variance == 300) == (kind == "variances")
    assert min(as_deviation, as_variance) < 60
    assert (finding.to_do == "nothing") == (kind == "deviations")


def test_kadids_published_rows_are_possible_as_deviations_alone() -> None:
    means, variances = possible_ratings(30)
    for mean, var in ((4.57, 0.496), (4.33, 0.869)):
        possible = variances[means.round(2) == mean]
        assert var in np.sqrt(possible).round(3) and var not in possible.round(3)


PYIQA = {  # the table, its header, and what the doctor must say of it
    "meta_info_LIVEIQADataset.csv": ("ref_name,dist_name,mos,std", "error", "the label is MOS (scale not stated, higher is better)"),
    "meta_info_CSIQDataset.csv": ("ref_name,dist_name,dmos,std", "error", "the label is MOS (scale not stated, higher is better)"),
}


@pytest.mark.parametrize("name", PYIQA)
def test_the_traps_of_a_set_are_known_by_pyiqas_name_for_its_table(name: str, tmp_path: Path) -> None:
    header, severity, begins = PYIQA[name]
    (tmp_path / "images").mkdir()
    rows = [f"I{n // 20:02}.png,I{n // 20:02}_{n:03}.png,{n / 100},0.5" for n in range(100)]
    (tmp_path / name).write_text("\n".join([header, *rows]))
    data_set = read_table(tmp_path / name, tmp_path / "images", direction_is_stated=True)
    (finding,) = [each for each in table_findings(data_set) if each.found.startswith(begins)]
    assert finding.severity == severity


def q_align(folder: Path, name: str, opinions: dict[str, float]) -> DataSet:
    """A list as Q-Align distributes it, read as a table of that name."""
    (folder / "images").mkdir()
    table = folder / f"{name}.json"
    table.write_text(json.dumps([{"image": image, "gt_score": opinion} for image, opinion in opinions.items()]))
    return read_table(table, folder / "images", label=Label("DMOS", None, None, False))


def test_the_reference_rows_of_q_aligns_live_list_are_an_error(tmp_path: Path) -> None:
    opinions = {f"live/wn/img{n}.bmp": 0.0 if n < 203 else 20 + n / 20 for n in range(982)}
    findings = [*table_findings(q_align(tmp_path, "live", opinions))]
    (count,) = [each for each in findings if each.found == "982 images"]
    assert count.severity == "error" and "orgs = 1" in count.to_do
    assert any(each.found.startswith("203 images share the opinion 0") for each in findings)


def test_the_copied_rows_of_q_aligns_csiq_list_are_an_error(tmp_path: Path) -> None:
    """Its 750 rows: five distortions of five levels, contrast with the opinions of awgn."""
    kinds = {"AWGN": 0, "contrast": 0, "JPEG": 1, "jpeg2000": 2, "fnoise": 3}
    opinions = {
        f"csiq/dst_imgs/{kind.lower()}/{content}.{kind}.{level}.png": round(0.15 * level + 0.001 * content + 0.01 * number, 3)
        for content in range(1600, 1630)
        for kind, number in kinds.items()
        for level in range(1, 6)
    }
    opinions = {name: opinion - 1.6 for name, opinion in opinions.items()}
    findings = [*table_findings(q_align(tmp_path, "csiq", opinions))]
    (count,) = [each for each in findings if each.found == "750 images"]
    assert count.severity == "error" and "contrast" in count.to_do
    assert any(each.found == "for 30 of 30 contents the opinions of contrast are exactly those of awgn" for each in findings)


def test_a_list_of_a_part_of_kadid_is_to_be_compared_with_the_other_part(tmp_path: Path) -> None:
    findings = table_findings(q_align(tmp_path, "train_kadid", {f"kadid10k/I01_01_{n:04}.png": 1 + n / 300 for n in range(1000)}))
    (found,) = [each for each in findings if each.found.startswith("train_kadid.json, a list of a part of KADID-10k")]
    assert found.severity == "warning" and "1,844" in found.expected and "--against" in found.to_do


def test_a_list_of_all_of_kadid_is_not_called_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADAPTERS, "kadid10k", replace(ADAPTERS["kadid10k"], images=300))
    findings = table_findings(q_align(tmp_path, "my_kadid", {f"kadid10k/I01_01_{n:04}.png": 1 + n / 90 for n in range(300)}))
    assert not [each for each in findings if "a list of a part" in each.found]


def test_the_training_images_of_q_aligns_livec_list_are_an_error(tmp_path: Path) -> None:
    findings = table_findings(q_align(tmp_path, "livec", {f"livec/{n}.bmp": 4 + n / 15 for n in range(1169)}))
    (count,) = [each for each in findings if each.found == "1,169 images"]
    assert count.severity == "error" and "training images" in count.to_do


def test_a_list_of_a_known_set_with_the_wrong_direction_is_an_error(tmp_path: Path) -> None:
    data_set = q_align(tmp_path, "csiq", {f"{n}.png": n / 900 for n in range(866)})
    wrong = replace(data_set, label=Label("MOS", None, None, True))
    (finding,) = [each for each in table_findings(wrong) if each.severity == "error"]
    assert finding.found.startswith("the label is MOS") and "lower is better" in finding.expected


def test_a_list_of_a_known_set_on_another_scale_is_an_error(tmp_path: Path) -> None:
    data_set = q_align(tmp_path, "csiq", {f"{n}.png": n / 9 for n in range(866)})
    (finding,) = [each for each in table_findings(data_set) if each.severity == "error"]
    assert finding.found.startswith("opinions from 0 to 96.1") and "0 to 1" in finding.expected


def add_lines(name: str, *lines: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text((root / name).read_text() + "\n".join([*lines, ""])) and None


SETS, TESTED = "koniq10k_distributions_sets.csv", "labels640.csv"
BESIDE: dict[
    str, tuple[str, Callable[[Path], None], list[str]]
] = {  # the set, what is done to a table beside that of the images, all errors of it
    "strangers and half a row in FLIVE's test images": (
        "flive",
        add_lines(TESTED, "blur_dataset/no.jpg,50,800,600", "half", "blur_dataset/none.jpg,50,800,600"),
        [
            f"{TESTED}, line 4: 'blur_dataset/no.jpg' has no row in labels_image.csv that can be read",
            f"{TESTED}, line 5: has 1 fields for 4 columns",
            f"{TESTED}, line 6: 'blur_dataset/none.jpg' has no row in labels_image.csv that can be read",
        ],
    ),
    "half a row in FLIVE's images, for its patches": (
        "flive_patches",
        add_lines("labels_image.csv", "half"),
        ["labels_image.csv, line 12: has 1 fields for 2 columns"],
    ),
    "half rows and two of one image in KonIQ's sets": (
        "koniq10k",
        add_lines(SETS, "half", "10004473377.jpg,0,0,25,73,7,105,12,0.5,test", "half,a,row"),
        [
            f"{SETS}, line 12: has 1 fields for 10 columns",
            f"{SETS}, line 13: '10004473377.jpg' stands there a second time, first in {SETS}, line 10",
            f"{SETS}, line 14: has 3 fields for 10 columns",
        ],
    ),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_all_that_is_wrong_beside_the_table_of_the_images_is_told_and_counts_as_no_image(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, spoil, told = BESIDE[kind]
    images = len(whole(name, tmp_path, monkeypatch).rows)
    spoil(tmp_path)
    assert main(["doctor", "--dataset", name, "--root", str(tmp_path), "--quick", "--json", "--workers", "1"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert sorted(place for each in findings for place in each["where"] if " that cannot be used" in each["found"]) == told
    assert not any(re.match(r"\d+ images$|an official split of", each["found"]) for each in findings)
    assert any(each["found"].startswith(f"{images} of {images} pictures are smaller") for each in findings)


def test_a_bad_row_of_flive_is_told_and_the_rest_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole("flive", tmp_path, monkeypatch)
    table = tmp_path / "labels_image.csv"
    table.write_text(table.read_text().replace("_0001.jpg,43.5", "_0001.jpg,43,5").replace("_0002.jpg,47.0", "_0002.jpg,47,0"))
    assert main(["doctor", "--dataset", "flive", "--root", str(tmp_path), "--quick", "--json", "--workers", "1"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    (rows,) = [each for each in findings if "that cannot be used" in each["found"]]
    assert rows["where"] == [f"labels_image.csv, line {line}: has 3 fields for 2 columns" for line in (3, 4)]
    assert any(each["found"].startswith("8 of 8 pictures are smaller") for each in findings)
