"""One schema for everything a run can be told: YAML first, then key=value, checked before anything starts.

A config file holds only what differs from the defaults below. The resolved config is saved with the run, so a run folder
says by itself how it was made. Unknown keys are errors that name the key one probably meant.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from dist_train.errors import ConfigError
from dist_train.whole_files import write_text
from shards.remote import redacted

Place = Annotated[
    str,
    BeforeValidator(lambda value: os.path.expanduser(os.fspath(value)) if isinstance(value, str | Path) else value),
    PlainSerializer(redacted),  # what is written down of an address holds no password and no signature
]
Folder = Annotated[Path, AfterValidator(Path.expanduser)]  # the shell leaves the ~ of `run.folder=~/run` to us


class _Shortly(reprlib.Repr):
    """A value in a few words: a few lines of YAML that refer to each other can stand for gigabytes."""

    def repr_str(self, text: str, level: int) -> str:
        return super().repr_str(redacted(text), level)  # a cut may take away what shows that there is a secret


_SHORTLY = _Shortly()
_SHORTLY.maxstring, _SHORTLY.maxother, _SHORTLY.maxlevel = 300, 300, 2


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Run(_Section):
    folder: Folder = Path("runs/run")
    """Where everything about the run is written. Training in a folder that holds an unfinished run resumes it."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Of the order, the mirroring, the initial weights and the dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU of this process when there is one. cuda: the same, and no run where there is none."""
    precision: Literal["no", "tf32", "bf16", "fp16"] = "no"
    """no: float32. tf32: float32 whose factors a GPU rounds to 10 bits, in convolutions and matrix products. bf16, fp16: mixed precision
    of the backbone; the target network and the loss stay in float32."""
    compile: bool = False
    """Compile the model with torch.compile: faster steps on a GPU after a slow start; numbers differ in the last digits."""
    processes: int | None = Field(None, ge=1)
    """The number of processes this run must have; it refuses to start as another number. null: whatever was launched."""
    timeout_minutes: float = Field(10.0, gt=0)
    """How long nothing may move before the run ends, naming the rank that is missing and what it was doing: longer than the slowest
    save, and than the slowest rank may lag behind."""

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        return "no" if value is False else value  # YAML 1.1 reads a bare no as false


class DataSet(_Section):
    """One of several data sets."""

    shards: Place
    """Its shard folder."""
    split: str | None = None
    """Name of a table in its splits folder. null: official when there is one, else round-01."""
    weight: float | None = Field(None, gt=0)
    """Its share of every batch, relative to the other sets'. null: in proportion to the number of its training images."""


class Data(_Section):
    shards: Place | None = None
    """The shard folder (`python -m shards build`), or the address of one."""
    split: str | None = None
    """Name of a table in its splits folder. null: official when there is one, else round-01."""
    sets: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], DataSet] = {}
    """Several data sets by name (part of file names), instead of shards and split: opinions are standardised per set, and pairs form
    within a set. One alone is trained on as with shards and split, in its own units."""
    patches_per_image: int = Field(1, ge=1)
    """Patches that an image shows each time it is visited."""
    passes: int | None = Field(None, ge=1)
    """Visits of each training image per epoch. null: as many as fit into the stored patches."""
    mirror: bool = True
    """Mirror half of the training patches left to right."""
    workers: int | None = Field(None, ge=0)
    """Loader processes per rank; 0 reads in the training process. null: half of the rank's cores, one to four. The batches
    are the same for any number."""


class Model(_Section):
    backbone: str = "resnet50.tv_in1k"
    """Any timm model that offers features_only with at least four maps."""
    pretrained: bool | str = True
    """true: timm's own download. false: random. Otherwise a weights file, or package:NAME for weights that a package ships. Not used,
    and not downloaded, with start_from."""
    start_from: Folder | None = None
    """A trained model that a new run begins with, all its weights, instead of a pretrained backbone: a run folder, its best/, or a
    model.safetensors, built as this run's. Its scores begin on the scale and in the direction of this run's opinions; with output=raw
    they begin as its target network speaks, which `plan` tells. null: none."""
    output: Literal["range", "raw"] = "range"
    """range: the target network speaks on 0 to 100, mapped onto the scale of the opinions. raw: no mapping, as the paper."""
    stages: Literal["last", "all"] = "last"
    """What the hyper network reads. last: the last map, as the authors. all: four maps pooled to one size, as the Swin variant."""
    stage_attention: bool = False
    """Weigh the four maps, each patch by weights of its own. Needs stages=all."""
    batch_norm: Literal["train", "frozen", "sync"] = "train"
    """frozen: the backbone's BatchNorm keeps its pretrained statistics, which makes steps independent of the number of ranks.
    sync: its statistics are of all ranks together (GPUs only), which makes them so up to rounding."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """After each hidden layer of the target network."""
    stochastic_depth: float = Field(0.0, ge=0, lt=1)
    """timm's drop_path_rate, for backbones that have it."""
    gradient_checkpointing: bool = False
    """Compute the backbone's forward pass twice, and so fit more patches into memory. The step stays the same."""

    @field_validator("stage_attention")
    @classmethod
    def _attention_weighs_several(cls, value: bool, others: ValidationInfo) -> bool:
        if value and others.data.get("stages") == "last":
            raise ValueError("there is one stage to weigh; set model.stages=all as well")
        return value

    @field_validator("pretrained", "start_from", mode="before")
    @classmethod
    def _is_no_address(cls, value: object) -> object:
        if isinstance(value, str) and "://" in value:
            raise ValueError("this is an address; download the file and name that")
        return value


class Loss(_Section):
    """Computed in points, hundredths of the label's range (of several sets: of five standard deviations), so that labels of 0 to 1 and of 0
    to 100 train alike. With model.output=raw a point is the label's unit, as in the paper."""

    regression: Literal["l1", "smooth_l1", "mse", "plcc", "norm_in_norm"] = "l1"
    """The first term of the loss. plcc and norm_in_norm compare values up to scale and shift, and so leave the scale of the
    scores open."""
    regression_level: Literal["patch", "image"] = "patch"
    """patch: every patch's score against the opinion, as the paper. image: the mean score of an image's patches."""
    smooth_l1_beta: float = Field(1.0, gt=0)
    """Where smooth_l1 turns from a square to a line, in units of the label."""
    rank_weight: float = Field(0.0, ge=0)
    """alpha: total = regression + alpha * ranking + consistency_weight * consistency."""
    rank_kind: Literal["hinge", "fidelity"] = "hinge"
    """hinge: relu(margin - lead), as the Swin fork of HyperIQA. fidelity: of the probability that the better image wins, to what
    fidelity_truth says."""
    fidelity_truth: Literal["binary", "soft"] = "binary"
    """binary: the better image wins for sure, as in LIQE. soft: as often as the deviations of its ratings have it, as in UNIQUE; only for
    sets that have them."""
    rank_level: Literal["image", "patch"] = "image"
    """image: pairs of images, by the mean score of their patches. patch: pairs of patches of different images, as the Swin fork of
    HyperIQA."""
    rank_margin: float = Field(0.1, ge=0)
    """By how much the better of a pair must be ahead, for the hinge."""
    rank_margin_unit: Literal["label", "std"] = "label"
    """label: the margin is in units of the label. std: in standard deviations of the training opinions, as always for several sets."""
    consistency_weight: float = Field(0.0, ge=0)
    """Weight of the variance of an image's patch scores, over the standard deviation of the training opinions."""
    scope: Literal["global", "rank"] = "global"
    """global: over the global batch, the same on any number of ranks. rank: each rank's own share, to measure what that costs."""


class Optim(_Section):
    lr: float = Field(2e-5, gt=0)
    """Starting rate of the backbone group."""
    lr_ratio: float = Field(10.0, gt=0)
    """The hyper group runs at this multiple of the backbone's rate; with the step schedule, through epoch 8 only."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """step: lr / 10 ** (epoch // 6), epochs counted from 0."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the rates climb linearly to where the schedule has them."""
    branches: Literal["backbone", "hyper"] = "backbone"
    """The group of the local-distortion branches: the backbone's, as in the authors' code, or the hyper network's."""
    weight_decay: float = Field(5e-4, ge=0)
    """Adam's own (added to the gradient, as the authors have it)."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest allowed norm of the gradient over all parameters. null: not clipped, only measured."""


class Train(_Section):
    epochs: int = Field(16, ge=1)
    """Epochs at most; early stopping may end sooner."""
    global_batch: int = Field(96, ge=1)
    """Images per step, over all ranks and sets together; each shows data.patches_per_image patches."""
    micro_batch: int | None = Field(None, ge=1)
    """Images that one rank takes through the model at a time; gradients accumulate over the rest. null: its whole share."""


class History(_Section):
    exhausted_hyper_group: bool = False
    """The first old bug: from the second epoch on, the hyper network is not trained."""
    constant_backbone_rate: bool = False
    """The second: the backbone's rate stays at its start."""
    rebuilt_adam: bool = False
    """The third: after every epoch Adam is built anew and loses its moments. This also delays the rates of both groups by an epoch, because
    the authors' loop gave the new Adam the rates of the epoch that had just ended: what it costs is the loss of the moments and the late
    schedule together (with optim.schedule=constant, the loss of the moments alone)."""


class Ema(_Section):
    decay: float | None = Field(None, gt=0, lt=1)
    """Keep an exponential moving average of the weights, such as 0.999, with a best epoch and a test of its own. null: none."""


class Evaluate(_Section):
    train_images: int | None = Field(None, ge=0)
    """Training images of each set, always the same, that are scored after every epoch as val is, so that the two can be compared. null: as
    many as val has (or test, where there is no val), which takes as long. 0: none."""
    batch_images: int = Field(4, ge=1)
    """Images scored together, all their patches at once. Fixed by the config, so scores do not depend on the number of ranks."""


class Stop(_Section):
    select_on: Literal["val", "test"] = "val"
    """The part whose SRCC picks the best epoch. test is what the old papers did: every report then says so."""
    patience: int | None = Field(5, ge=1)
    """Epochs without a better SRCC before training stops. null: never."""


class Save(_Section):
    every_steps: int | None = Field(None, ge=1)
    """A checkpoint every so many steps, besides the one after every epoch. null: none for that reason."""
    every_minutes: float | None = Field(10.0, gt=0)
    """A checkpoint when the last one is so old, so that a killed run loses no more than that. null: none for that reason."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints that are kept. The best model is kept apart, always."""
    keep_best: bool = False
    """Also keep the checkpoint of the best epoch so far, with its moments: one checkpoint more on the disk."""
    keep_every_epochs: int | None = Field(None, ge=1)
    """Also keep the checkpoint of every so many epochs. null: none for that reason."""


class Log(_Section):
    every_steps: int = Field(10, ge=1)
    """Steps between two printed lines; metrics.jsonl has a line for every step."""
    tensorboard: bool = False
    """Also write TensorBoard files (needs the extra named tensorboard)."""


class Config(_Section):
    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    loss: Loss = Loss()
    optim: Optim = Optim()
    train: Train = Train()
    ema: Ema = Ema()
    history: History = History()
    evaluate: Evaluate = Evaluate()
    stop: Stop = Stop()
    save: Save = Save()
    log: Log = Log()


WORDS_OF_OTHERS = {  # what other trainers call it
    "alpha": "loss.rank_weight",
    "batch_size": "train.global_batch",
    "checkpoint_every": "save.every_steps",
    "drop_path_rate": "model.stochastic_depth",
    "learning_rate": "optim.lr",
    "margin": "loss.rank_margin",
    "max_epochs": "train.epochs",
    "mixed_precision": "run.precision",
    "num_epochs": "train.epochs",
    "num_workers": "data.workers",
    "output_dir": "run.folder",
}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The config in the YAML file `path`, changed by `section.key=value` words, each value read as YAML.

    Raises ConfigError naming every unknown key (with the one probably meant) and every impossible value.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _EveryKeyOnce) or {}
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such config file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML ({error})") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}, not sections with keys")
    for word in overrides:
        _override(tree, word)
    tree = {section: {} if keys is None else keys for section, keys in tree.items()}  # a section may be all comments
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        given = {word.partition("=")[0] for word in overrides}
        raise ConfigError("\n".join(f"{'command line' if key in given else path}: {line}" for key, line in _explanations(error))) from None


def save_config(config: Config, path: Path) -> None:
    """Writes every setting, defaults included, as YAML that `load_config` reads back to the same config, below its SHA-256.

    But for passwords and signatures in the addresses of shards: those come from the command line, each session anew.
    """
    text = as_yaml(config)
    write_text(path, f"{_DIGEST}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def is_whole(path: Path) -> bool:
    """Whether a file holds all that `save_config` wrote there: by its SHA-256, or, where it has none, by its sections.

    An earlier version left none, nor does a person. Raises OSError when the file cannot be read.
    """
    digest, _, text = path.read_bytes().partition(b"\n")
    if digest.startswith(_DIGEST.encode()):
        return digest.decode(errors="replace") == f"{_DIGEST}{hashlib.sha256(text).hexdigest()}"
    try:
        tree = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        return False
    return isinstance(tree, dict) and {*Config.model_fields} <= {*tree}


def as_yaml(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def known_keys() -> list[str]:
    """Every key as one writes it on the command line."""
    return [f"{section}.{key}" for section, field in Config.model_fields.items() for key in field.annotation.model_fields]  # type: ignore[union-attr]


_DIGEST = "# SHA-256 of what follows: "


class _EveryKeyOnce(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, as YAML has it; PyYAML alone would keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _override(tree: dict[str, Any], word: str) -> None:
    key, equals, text = word.partition("=")
    section, dot, name = key.partition(".")
    if not equals or not dot:
        raise ConfigError(f"'{word}': write settings as section.key=value, such as train.epochs=3{_did_you_mean(key)}")
    branch = tree.get(section)
    if branch is None:
        branch = tree[section] = {}
    if not isinstance(branch, dict):
        raise ConfigError(f"section '{section}' of the config file holds no keys, so '{word}' cannot change one")
    try:
        branch[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"'{word}': the value is not YAML ({error})") from error


def _explanations(error: ValidationError) -> Iterator[tuple[str, str]]:
    """The key of each problem, and what is wrong with it."""
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if part not in ("bool", "str"))
        if problem["type"] == "extra_forbidden":
            yield key, f"unknown key '{key}'{_did_you_mean(key)}"
        else:
            yield key, f"{key}={redacted(_SHORTLY.repr(problem['input']))}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _did_you_mean(key: str) -> str:
    name = key.rpartition(".")[2]
    close = [WORDS_OF_OTHERS[name]] if name in WORDS_OF_OTHERS else []
    close = close or [known for known in known_keys() if known.rpartition(".")[2] == name][:1]  # right, but in another section
    if key in known_keys():
        return f"; did you mean '{key}=VALUE'?"
    close = close or difflib.get_close_matches(key, [*known_keys(), *Config.model_fields], n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
