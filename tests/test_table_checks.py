"""Every trap in a table is found by the data doctor, named and explained, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shards.datasets import DataSet, Row
from shards.manifest import Label
from shards.table_checks import table_findings

MOS = Label("MOS", 1.0, 5.0, True)


def synthetic(change: Callable[[Row], Row] = lambda row: row, label: Label = MOS) -> DataSet:
    """30 contents x 4 distortions x 5 levels, named and rated as in KADID-10k; no pictures."""
    rows = []
    for content in range(1, 31):
        for distortion in range(1, 5):
            for level in range(1, 6):
                file = f"I{content:02}_{distortion:02}_{level:02}.png"
                opinion = round(5.3 - 0.8 * level - 0.004 * content - 0.03 * distortion, 3)
                rows.append(change(Row(file[:-4], Path(file), opinion, 0.6, f"I{content:02}", None)))
    return DataSet("mine", label, "none", tuple(rows), Path("scores.csv"), Path("images"))


def authentic(change: Callable[[int, Row], Row]) -> DataSet:
    """300 photographs with an official split, 100 a part."""
    rows = (Row(f"{n:03}", Path(f"{n:03}.jpg"), 1 + n * 7 % 300 / 75, 0.6, f"{n}", ("train", "val", "test")[n % 3]) for n in range(300))
    return DataSet(
        "mine",
        Label("MOS", 1.0, 5.0, True),
        "none",
        tuple(change(n, row) for n, row in enumerate(rows)),
        Path("scores.csv"),
        Path("images"),
    )


def test_clean_tables_are_clean() -> None:
    assert not [*table_findings(synthetic())]
    assert not [*table_findings(authentic(lambda _, row: row))]
    whole_numbers = synthetic(lambda row: replace(row, opinion=float(round(row.opinion)), std=None))
    assert not [*table_findings(whole_numbers)]


TABLES: dict[str, tuple[DataSet, str, str]] = {
    "a MOS taken as a DMOS": (
        synthetic(label=Label("DMOS", 1.0, 5.0, False)),
        "error",
        "in 100% of 120 distortion series the strongest level has the better opinion",
    ),
    "a DMOS taken as a MOS": (
        synthetic(lambda row: replace(row, opinion=6 - row.opinion)),
        "error",
        "in 100% of 120 distortion series the strongest level has the better opinion",
    ),
    "named dmos, higher better, as the levels show": (
        synthetic(label=Label("dmos", 1.0, 5.0, True)),
        "note",
        "the label dmos (1 to 5, higher",
    ),
    "named dmos, higher better, and nobody knows": (
        replace(authentic(lambda _, row: row), label=Label("dmos", 1.0, 5.0, True)),
        "warning",
        "the label dmos (1 to 5, higher",
    ),
    "a scale not stated": (synthetic(label=Label("MOS", None, None, True)), "note", "the scale is not stated"),
    "the scale of another label": (
        synthetic(lambda row: replace(row, std=None), label=Label("MOS", 0.0, 100.0, True)),
        "warning",
        "opinions from 1.06 to 4.466",
    ),
    "reference rows": (
        authentic(lambda n, row: replace(row, opinion=5.0, std=None) if n % 5 == 0 else row),
        "warning",
        "60 images share the opinion 5, an end of the scale",
    ),
    "two labels mixed": (
        replace(
            authentic(lambda n, row: replace(row, std=None, opinion=row.opinion * (20 if row.part == "test" else 1))),
            label=Label("MOS", 0, 100, True),
        ),
        "error",
        "nine of ten opinions lie between",
    ),
    "a variance": (synthetic(lambda row: replace(row, std=9 * (row.std or 0))), "warning", "600 of 600 values of std are larger than"),
    "a std of another scale": (
        replace(authentic(lambda _, row: replace(row, opinion=20 * row.opinion - 5)), label=Label("MOS_zscore", 0.0, 100.0, True)),
        "warning",
        "the median of std is 0.6 on a scale of 0 to 100",
    ),
    "split by image": (
        synthetic(lambda row: replace(row, part=("train", "val", "test")[int(row.id[-1]) % 3])),
        "error",
        "30 content(s) are on two sides of the official split",
    ),
    "no groups": (
        synthetic(lambda row: replace(row, group=row.id)),
        "error",
        "30 content(s), by the file names, have distorted versions in sev",
    ),
    "copied opinions": (
        synthetic(lambda row: replace(row, opinion=round(row.opinion - 0.03, 3)) if "_01_" in row.id else row),
        "error",
        "for 30 of 30 contents the opinions of 02 are exactly those of 01",
    ),
    "a small part": (
        authentic(lambda n, row: replace(row, part="train") if row.part == "test" and n > 120 else row),
        "warning",
        "test has 40 image(s) in the split official",
    ),
    "a tiny part": (
        authentic(lambda n, row: replace(row, part="train") if row.part == "test" and n > 3 else row),
        "error",
        "test has 1 image(s) in the split official",
    ),
    "a split half stated": (
        authentic(lambda n, row: replace(row, part=None) if n == 7 else row),
        "error",
        "image '007' has no part in the split",
    ),
}


@pytest.mark.parametrize("trap", TABLES)
def test_a_trap_in_the_table_is_found_and_nothing_else(trap: str) -> None:
    data_set, severity, begins = TABLES[trap]
    (finding,) = table_findings(data_set)
    assert finding.severity == severity
    assert finding.found.startswith(begins)
    assert finding.expected and finding.to_do


def test_all_rounds_whose_parts_are_too_small_are_named_in_one_line_a_part() -> None:
    ten = authentic(lambda _, row: replace(row, part=None))
    found = [finding.found for finding in table_findings(replace(ten, rows=ten.rows[:10])) if "image(s) in" in finding.found]
    assert found == [f"{part} in 10 splits (round-01, round-02, ..., round-10)" for part in ("val has 1 image(s)", "test has 2 image(s)")]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mine", "I{content}_{distortion}.jpg_patch_{level}.jpg"),
        ("mine", "I{content}_{distortion}_crop_{level}.jpg"),
        ("flive", "I{content}_{distortion}_{level}.jpg"),
    ],
)
def test_pieces_of_pictures_and_photographs_as_they_were_taken_are_no_distortion_series(name: str, file: str) -> None:
    def renamed(row: Row) -> Row:
        content, distortion, level = row.id[1:].split("_")
        return replace(row, opinion=6 - row.opinion, file=Path(file.format(content=content, distortion=distortion, level=level)))

    findings = table_findings(replace(synthetic(renamed), name=name))
    assert not [each.found for each in findings if "series" in each.found or "distorted versions" in each.found]


def test_rounds_are_looked_at_in_the_ratio_of_the_build() -> None:
    ten = authentic(lambda _, row: replace(row, part=None))
    found = [each.found for each in table_findings(replace(ten, rows=ten.rows[:20]), "50/25/25") if "image(s) in" in each.found]
    assert [each.split(" in ")[0] for each in found] == ["val has 5 image(s)", "test has 5 image(s)"]
