"""Every public data set in small: the real file names, formats, columns and traps, with crops of a photograph for pictures."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from openpyxl import Workbook
from photographs import crop
from PIL import Image
from scipy.io import loadmat, savemat

from shards import demo as demo_photographs


def make(name: str, root: Path) -> Path:
    """The data set `name` of `python -m shards list`, in small, unpacked to the new or empty folder `root`; returns `root`."""
    root.mkdir(parents=True, exist_ok=True)
    MAKERS[name](root)
    return root


def picture(file: Path, number: int, width: int = 64, height: int = 48) -> None:
    """Another crop of the photograph for each number, in the format of the file's suffix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(crop(number, width, height)).save(file)


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([header, *rows])


def write_sheets(file: Path, sheets: dict[str, Sequence[Sequence[object]]]) -> None:
    book = Workbook()
    del book[book.sheetnames[0]]
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(list(row))
    file.parent.mkdir(parents=True, exist_ok=True)
    book.save(file)


def cells(texts: Sequence[str], shape: tuple[int, int]) -> np.ndarray:
    """A cell array of texts, as MATLAB writes one."""
    array = np.empty(shape, object)
    array.flat = texts
    return array


def koniq10k(root: Path) -> None:
    counts, shared = ["c1", "c2", "c3", "c4", "c5", "c_total"], [0, 0, 25, 73, 7, 105]
    scores, sets = [], []
    for number in range(10):
        name, mos, sd = f"{10004473376 + number}.jpg", 1.5 + number / 4, 0.5 + number / 100
        picture(root / "1024x768" / name, number)
        scores.append([name, *shared, mos, sd, 20 * mos - 5])
        part = ("training", "training", "training", "validation", "test")[number % 5]
        sets.append([name, *shared, 25 * (mos - 1), sd, part])
    write_csv(root / "koniq10k_scores_and_distributions.csv", ["image_name", *counts, "MOS", "SD", "MOS_zscore"], scores)
    write_csv(root / "koniq10k_distributions_sets.csv", ["image_name", *counts, "MOS", "SD", "set"], sets[::-1])


def livec(root: Path) -> None:
    names = [f"t{number}.bmp" for number in range(1, 8)] + [f"{number}.bmp" for number in range(1, 11)] + ["1130.JPG"]
    for number, name in enumerate(names):
        picture(root / "Images" / ("trainingImages" if name.startswith("t") else "") / name, number)
    values = np.arange(len(names), dtype=float)
    (root / "Data").mkdir()
    savemat(root / "Data/AllImages_release.mat", {"AllImages_release": cells(names, (len(names), 1))})
    savemat(root / "Data/AllMOS_release.mat", {"AllMOS_release": 30.25 + values[None]})
    savemat(root / "Data/AllStdDev_release.mat", {"AllStdDev_release": 18.5 + values[None] / 8})


def spaq(root: Path) -> None:
    header = ["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"]
    rows = [[f"{number:05d}.jpg", 20 + 6.5 * number, 60, 61, 62, 63, 64] for number in range(1, 11)]
    for number, (name, *_) in enumerate(rows):
        picture(root / "TestImage" / str(name), number)
    write_sheets(root / "Annotations/MOS and Image attribute scores.xlsx", {"Sheet1": [header, *rows]})


def bid(root: Path) -> None:
    header = ["Image Number", "Average Subjective Grade", None, "Grades"]
    rows = [[number, 0.5 + number / 3, None, 3, 4] for number in range(1, 11)]
    for number, *_ in rows:
        picture(root / f"DatabaseImage{number:04d}.JPG", int(str(number)))
    write_sheets(root / "DatabaseGrades.xlsx", {"Plan1": [header, *rows]})


def flive(root: Path) -> None:
    names = [f"{('voc_emotic_ava/JPEGImages__2008', 'blur_dataset/motion')[number % 2]}_{number:04d}.jpg" for number in range(10)]
    patches = [f"{name}_patch_{number}.jpg" for name in names for number in (1, 2, 3)]
    for number, name in enumerate([*names, *patches]):
        picture(root / name, number)
    write_csv(root / "labels_image.csv", ["name", "mos"], [[name, 40 + 3.5 * number] for number, name in enumerate(names)])
    write_csv(root / "labels_patch.csv", ["name", "mos"], [[name, 35 + 1.5 * number] for number, name in enumerate(patches)])
    tested = [[name, 40 + 3.5 * number, 800, 600] for number, name in enumerate(names) if number in (3, 8)]
    write_csv(root / "labels640.csv", ["name_image", "mos_image", "width_image", "height_image"], tested)


def flive_validation(root: Path) -> None:
    """The makers' table of the pictures that are not tested, and which of them are val."""
    rows = [[row[0], row[1], number in (2, 5)] for number, row in enumerate(rows_of(root / "labels_image.csv")) if number not in (3, 8)]
    write_csv(root / "labels=640_padded.csv", ["name_image", "mos_image", "is_valid"], rows)


def flive_of_pyiqa(root: Path) -> None:
    """pyiqa's table in place of the makers': images, then patches, and the numbers of the parts."""
    images, patches = (rows_of(root / f"labels_{of}.csv") for of in ("image", "patch"))
    part = {name: {3: 2, 8: 2, 2: 1, 5: 1}.get(number, 0) for number, (name, _) in enumerate(images)}
    rows = [[name, mos, part[re.sub(r"_patch_\d.jpg", "", name)]] for name, mos in (*images, *patches)]
    for table in root.glob("labels*.csv"):
        table.unlink()
    write_csv(root / "meta_info_FLIVEDataset.csv", ["img_name/patch_name", "mos", "split"], rows)


def rows_of(table: Path) -> list[list[str]]:
    with table.open() as file:
        return list(csv.reader(file))[1:]


def uhd_iqa(root: Path) -> None:
    rows = []
    for number in range(10):
        part = ("training", "training", "training", "validation", "test")[number % 5]
        picture(root / part / f"{number + 1}.jpg", number)
        rows.append([f"{number + 1}.jpg", 0.3 + number / 20, part, "", 5000, 3333])
    header = ["image_name", "quality_mos", "set", "subset", "orig_width", "orig_height"]
    write_csv(root / "uhd-iqa-metadata.csv", header, rows)


def live(root: Path) -> None:
    """All 982 entries, because the vectors are cut by the published counts: the last of each folder are references."""
    counts = {"jp2k": (227, 58), "jpeg": (233, 58), "wn": (174, 29), "gblur": (174, 29), "fastfading": (174, 29)}
    pixels = [Image.fromarray(crop(number, 32, 24)) for number in range(29)]
    originals: list[int] = []
    for folder, (count, references) in counts.items():
        (root / folder).mkdir()
        originals += [0] * (count - references) + [1] * references
        for number in range(count):
            pixels[number % 29].save(root / folder / f"img{number + 1}.bmp")
    references_of = [f"reference{number % 29:02d}.bmp" for count, _ in counts.values() for number in range(count)]
    scores = np.where(np.array(originals) == 1, 0, np.linspace(-2.6, 111.7, 982))[None]
    deviations = np.where(np.array(originals) == 1, 0, np.linspace(2.5, 12.3, 982))[None]
    savemat(root / "dmos_realigned.mat", {"dmos_new": scores, "dmos_std": deviations, "orgs": np.array([originals], np.uint8)})
    savemat(root / "dmos.mat", {"dmos": scores, "orgs": np.array([originals], np.uint8)})
    savemat(root / "refnames_all.mat", {"refnames_all": cells(references_of, (1, 982))})


def live_with_other_deviations(root: Path, **deviations: Sequence[float]) -> None:
    """The vectors of `live`, but for dmos_std, which is as given, or not there."""
    held = loadmat(root / "dmos_realigned.mat")
    savemat(root / "dmos_realigned.mat", {name: held[name] for name in ("dmos_new", "orgs")} | deviations)


def csiq(root: Path) -> None:
    """The sheet that is wanted is not the first, and begins below and to the right of a title; one reference is a number."""
    types = {"noise": ("awgn", "AWGN"), "jpeg": ("jpeg", "JPEG"), "jpeg 2000": ("jpeg2000", "jpeg2000"), "blur": ("blur", "BLUR")}
    rows, texts = [], []
    for reference in (1600, "lake", "foxy", "bridge"):
        for index, (kind, (folder, word)) in enumerate(types.items(), 1):
            name = f"{reference}.{word}.{index}.png"
            picture(root / "dst_imgs" / folder / name, len(rows))
            rows.append([None, None, None, reference, index, kind, index, 0.05, len(rows) / 16])
            texts.append(f"{name} {rows[-1][-1]}\n")
    header = [None, None, None, "image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos"]
    title: list[list[object]] = [["CSIQ"], [], []]
    write_sheets(root / "csiq.DMOS.xlsx", {"all_by_distortion": [["other"]], "all_by_image": [*title, header, *rows]})
    (root / "csiq_label.txt").write_text("".join(texts))


def tid2013(root: Path) -> None:
    """The list and the disk agree on no name: I01 and i01, .bmp and .BMP."""
    lines, stds = [], []
    for reference in (1, 2, 3, 25):
        for distortion in (1, 2, 3):
            name = f"{'i' if distortion == 3 else 'I'}{reference:02d}_{distortion:02d}_1"
            lines.append(f"{1 + len(lines) / 2:.5f} {name}.bmp\n")
            stds.append(f"{0.1 + len(stds) / 100:.5f}\n")
            picture(root / "distorted_images" / f"{name.lower() if reference == 25 else name.upper()}.BMP", len(lines))
    (root / "mos_with_names.txt").write_text("".join(lines))
    (root / "mos_std.txt").write_text("".join(stds))


def kadid10k(root: Path) -> None:
    """The column called var is the standard deviation of 30 ratings."""
    rows = []
    for reference in (1, 2, 3, 4, 81):
        picture(root / "images" / f"I{reference:02d}.png", reference)
        for level in (1, 2, 3):
            ratings = (np.arange(30) + 30 + 6 * len(rows)) // 30
            named = [f"I{reference:02d}_01_{level:02d}.png", f"I{reference:02d}.png"]
            rows.append([*named, ratings.mean().round(2), ratings.std().round(3)])
            picture(root / "images" / rows[-1][0], len(rows))
    write_csv(root / "dmos.csv", ["dist_img", "ref_img", "dmos", "var"], rows)


def pipal(root: Path) -> None:
    (root / "Train_Label").mkdir()
    for reference in range(5):
        lines = []
        for version in range(3):
            name = f"A{reference:04d}_00_{version:02d}.bmp"
            picture(root / f"Distortion_{1 + reference % 4}" / name, 3 * reference + version)
            lines.append(f"{name},{1000.25 + 50 * reference + version}\n")
        (root / "Train_Label" / f"A{reference:04d}.txt").write_text("".join(lines))


def agiqa3k(root: Path) -> None:
    rows = []
    for prompt in ("a red fox, sitting in the snow", "cup", "a lake", "statue", "old town"):
        for model in ("AttnGAN_normal", "sd1.5_normal"):
            name = f"{model}_{len(rows):03d}.jpg"
            picture(root / "AGIQA-3K" / name, len(rows))
            rows.append([name, prompt, "", "", "", 0.5 + len(rows) / 4, 0.4 + len(rows) / 100, 2, 0.5])
    header = ["name", "prompt", "adj1", "adj2", "style", "mos_quality", "std_quality", "mos_align", "std_align"]
    write_csv(root / "data.csv", header, rows)


def demo(root: Path) -> None:
    rows = []
    for content, part in {"coffee": "train", "rocket": "train", "sail": "val", "parrots": "test"}.items():
        for version in ("pristine", "jpeg-3", "contrast-4"):
            name = f"{content}-{version}.png"
            (root / "images").mkdir(exist_ok=True)
            rows.append([name, demo_photographs.write_image(root / "images", name), content, part])
    write_csv(root / "scores.csv", ["image", "score", "group", "split"], rows)


MAKERS: dict[str, Callable[[Path], None]] = {
    "koniq10k": koniq10k,
    "livec": livec,
    "spaq": spaq,
    "bid": bid,
    "flive": flive,
    "flive_patches": flive,
    "uhd_iqa": uhd_iqa,
    "live": live,
    "csiq": csiq,
    "tid2013": tid2013,
    "kadid10k": kadid10k,
    "pipal": pipal,
    "agiqa3k": agiqa3k,
    "demo": demo,
}
