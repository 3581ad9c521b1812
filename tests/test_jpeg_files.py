"""A JPEG file that lost its end is told from one that has it, with whatever cameras and transfers append."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photographs import make_folder
from PIL import Image

from shards import demo
from shards.datasets import read_table
from shards.examination import examine, picture_at
from shards.jpeg_files import has_end_marker
from shards.picture_checks import picture_findings

PICTURE = Image.fromarray(demo.cut_content("coffee"))


def jpeg(picture: Image.Image = PICTURE, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


KINDS = {
    "baseline": jpeg(),
    "progressive": jpeg(progressive=True),
    "with restarts": jpeg(restart_marker_blocks=4),
    "grey": jpeg(PICTURE.convert("L")),
    "with a thumbnail": jpeg(exif=b"Exif\0\0" + jpeg(PICTURE.resize((160, 120)))),  # it has an end marker of its own
    "with a comment": jpeg(comment=b"\xff\xd9 is no end here"),
    "of quality 100": jpeg(quality=100, subsampling=0),
}
BEHIND = {"nothing": b"", "zeros": bytes(999), "a line end": b"\r\n", "a preview": jpeg(quality=20), "noise": bytes(range(256)) * 9}


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_jpeg_has_its_end_whatever_follows_it(kind: str, behind: str) -> None:
    assert has_end_marker(KINDS[kind] + BEHIND[behind])


def test_fill_bytes_before_the_end_and_bytes_between_data_and_end_are_no_loss() -> None:
    whole = KINDS["baseline"]
    assert has_end_marker(whole[:-2] + b"\xff\xff\xff\xd9" + b"more")
    assert has_end_marker(whole[:-2] + b"\xff\x02 what some program left\xff\xd9")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_a_jpeg_whose_second_half_is_other_bytes_lacks_its_end(kind: str, seed: int) -> None:
    whole = KINDS[kind]
    half = len(whole) // 2
    assert not has_end_marker(whole[:half] + bytes(len(whole) - half))
    noise = np.random.default_rng(seed).integers(0, 256, len(whole) - half, np.uint8).tobytes()
    assert not has_end_marker(whole[:half] + noise.replace(b"\xff\xd9", b"\xff\xd8"))  # by chance it may look like an end


def test_the_doctor_warns_of_a_jpeg_that_decodes_though_its_second_half_is_other_data(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, [f"{number}.jpg" for number in range(3)])
    file = folder / "images" / "1.jpg"
    content = jpeg()
    quarter = len(content) // 4
    file.write_bytes(content[: 2 * quarter] + content[quarter:-quarter])  # as where blocks of a disk were mixed up
    assert not picture_at(file).problem and picture_at(file).traits == {"JPEG", "open end"}
    examination = examine(read_table(folder / "scores.csv", folder / "images"))
    (finding,) = [each for each in picture_findings(examination, 16, "none") if "end marker" in each.found]
    assert finding.severity == "warning" and finding.found.startswith("1 of 3 pictures are JPEG files")
    assert finding.where == ("images/1.jpg (scores.csv, line 3)",)
