"""The authors' checkpoint becomes a model of ours that says, and learns, exactly what theirs does."""

from __future__ import annotations

import csv
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import plain_hyperiqa as plain
import pytest
import torch
from accelerate.state import AcceleratorState
from photographs import make_folder, shards_of
from PIL import Image
from torch import Tensor, nn

from dist_train.__main__ import main
from dist_train.config import Config
from dist_train.errors import ConfigError
from dist_train.model import HyperIQA
from dist_train.model_folder import build_model, open_model
from dist_train.plan import describe_plan, make_plan
from dist_train.published import import_hyperiqa, their_name
from shards.datasets import read_table
from shards.manifest import Label
from shards.patches import patch_boxes
from shards.plan import Settings, plan_build
from shards.writer import build


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Tensor]:
    return plain.random_checkpoint()


@pytest.fixture(scope="module")
def folder(checkpoint: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, saved as the authors save theirs and imported by the real command."""
    place = tmp_path_factory.mktemp("published")
    torch.save(checkpoint, place / "koniq_pretrained.pkl")
    assert main(["import-hyperiqa", str(place / "koniq_pretrained.pkl"), "--out", str(place / "model"), "--patches", "2"]) == 0
    return place / "model"


def resnet_of(checkpoint: dict[str, Tensor]) -> nn.Module:
    network = plain.resnet()
    network.load_state_dict({name.removeprefix("res."): value for name, value in checkpoint.items() if name not in plain.HEAD})
    return network


def test_the_layout_is_that_of_the_published_file(checkpoint: dict[str, Tensor]) -> None:
    counted = [value for name, value in checkpoint.items() if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert len(checkpoint) == 355
    assert sum(value.numel() for value in counted) == 27_375_369


@pytest.mark.parametrize(
    ("dtype", "training", "allowed", "allowed_of_gradients"),
    [
        (torch.float64, False, 1e-10, 1e-10),
        (torch.float64, True, 1e-10, 1e-10),
        (torch.float32, False, 1e-5, 1e-5),
        (torch.float32, True, 1e-5, 1e-5),
    ],
)
def test_scores_and_gradients_are_those_of_a_plain_computation_patch_by_patch(
    folder: Path, checkpoint: dict[str, Tensor], dtype: torch.dtype, training: bool, allowed: float, allowed_of_gradients: float
) -> None:
    ours = open_model(folder).model.to(dtype).train(training)
    for kept, constant in ((ours.mean, plain.MEAN), (ours.std, plain.STD)):
        kept.copy_(255 * torch.tensor(constant, dtype=dtype)[:, None, None])  # which a model in float32 has rounded
    network = resnet_of(checkpoint).to(dtype).train(training)
    head = {name: checkpoint[name].clone().to(dtype).requires_grad_() for name in plain.HEAD}

    pixels = plain.smooth_pixels(2)
    patches = plain.normalised(pixels, dtype)
    if dtype is torch.float32:  # a last bit of the input turns ReLUs on and off, which no gradient bears: the same bits for both
        torch.testing.assert_close(patches, (pixels - ours.mean) / ours.std, rtol=1e-6, atol=1e-6)
        patches = (pixels - ours.mean) / ours.std
    scores, expected = ours(pixels), plain.plain_scores(network, head, patches)
    scores.sum().backward()
    expected.sum().backward()
    assert abs(expected[0] - expected[1]) > 0.1 * expected.abs().min()  # patches that could not be mistaken for each other
    torch.testing.assert_close(scores.to(dtype), expected, rtol=allowed, atol=allowed / 10)

    gradients = {f"res.{name}": tensor.grad for name, tensor in network.named_parameters()} | {name: head[name].grad for name in head}
    found = {their_name(name): tensor.grad for name, tensor in ours.named_parameters()}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.norm() > 0, name
        assert (found[name] - gradient).norm() <= allowed_of_gradients * gradient.norm(), name  # float32 rounds in each of fifty layers
    for name, statistic in network.named_buffers():  # in training, of this very batch
        torch.testing.assert_close(ours.backbone.get_buffer(name), statistic, rtol=allowed, atol=allowed)


def test_predict_runs_the_imported_model_at_once(folder: Path, checkpoint: dict[str, Tensor], photographs: Path, tmp_path: Path) -> None:
    picture = photographs / "images" / "parrots-jpeg-3.png"
    assert main(["predict", "--checkpoint", str(folder), str(picture), "--out", str(tmp_path / "scores.csv"), "--workers", "0"]) == 0
    with (tmp_path / "scores.csv").open() as file:
        row = next(csv.DictReader(file))

    resized = np.asarray(Image.open(picture).convert("RGB").resize((384, 512), Image.Resampling.BILINEAR))  # as the paper resizes KonIQ-10k
    corners = patch_boxes(picture.stem, 0, 384, 512, 224, 2)
    patches = torch.from_numpy(np.stack([resized[y : y + 224, x : x + 224] for y, x in corners.astype(int)])).movedim(-1, 1)
    with torch.no_grad():
        expected = plain.plain_scores(
            resnet_of(checkpoint).eval(), {name: checkpoint[name] for name in plain.HEAD}, plain.normalised(patches, torch.float32)
        )
    assert float(row["score"]) == pytest.approx(float(expected.mean()), rel=1e-4)
    assert float(row["spread"]) == pytest.approx(float(expected.std(correction=0)), rel=1e-2)


def test_evaluate_runs_the_imported_model_at_once(folder: Path, photographs: Path, tmp_path: Path) -> None:
    pictures = sorted((photographs / "images").glob("sail-*.png"))[:3]
    (tmp_path / "scores.csv").write_text("\n".join(["image,score", *(f"{picture.name},{n}" for n, picture in enumerate(pictures))]))
    data_set = read_table(tmp_path / "scores.csv", photographs / "images", "sail", Label("MOS", 0.0, 2.0, True))
    build(plan_build(data_set, Settings(patches=2, resize="exact:384x512")), tmp_path / "shards")
    given = [
        "evaluate",
        "--checkpoint",
        str(folder),
        "--shards",
        str(tmp_path / "shards"),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "0",
    ]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(given) == 0
    assert main(["predict", "--checkpoint", str(folder), *map(str, pictures), "--out", str(tmp_path / "said.csv"), "--workers", "0"]) == 0
    evaluated, predicted = (list(csv.DictReader(place.open())) for place in (tmp_path / "out" / "scores-sail.csv", tmp_path / "said.csv"))
    assert [row["image"] for row in evaluated] == [row["id"] for row in predicted]
    for one, other in zip(evaluated, predicted, strict=True):
        assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-4)


def test_a_run_goes_on_from_the_imported_model(folder: Path, checkpoint: dict[str, Tensor], tmp_path: Path) -> None:
    make_folder(tmp_path, split=["train"] * 6 + ["val"] * 3 + ["test"] * 3)
    shards = shards_of(tmp_path, tmp_path / "shards", label=Label("MOS", 1.0, 5.0, True), patch_size=224, patches=1, resize="exact:224x224")
    config = Config.model_validate({"data": {"shards": shards.folder}, "model": {"start_from": folder}, "train": {"global_batch": 3}})
    plan = make_plan(config, 1)
    assert plan.output_scale == (1.0, 5.0)  # the authors' scores are on 0 to 100
    assert "nobody knows all that the model was trained on" in describe_plan(plan)
    model = build_model(config, 224, plan.output_scale)
    assert plan.origin is not None
    plan.origin.fill(model)
    head = {name: checkpoint[name] for name in plain.HEAD}
    pixels = plain.smooth_pixels(2)
    with torch.no_grad():
        theirs = plain.plain_scores(resnet_of(checkpoint).eval(), head, plain.normalised(pixels, torch.float32))
        torch.testing.assert_close(model.eval()(pixels), 1 + 4 * theirs / 100, rtol=1e-5, atol=1e-5)


def test_what_the_file_does_not_say_is_as_the_paper_has_it_unless_told(folder: Path) -> None:
    found = open_model(folder)
    assert str(found.scales["published"].label) == "MOS_zscore (0 to 100, higher is better)"
    cutting = found.cuttings["published"]
    assert (cutting.patch_size, cutting.patches, cutting.resize) == (224, 2, "exact:384x512")
    assert found.about["imported"] == "koniq_pretrained.pkl" and len(found.about["sha256"]) == 64
    assert found.model.output_scale.tolist() == [0.0, 1.0]


def hollow() -> dict[str, Tensor]:
    """The layout alone: every tensor's shape and none of its memory."""
    network = {f"res.{name}": value.shape for name, value in plain.resnet().state_dict().items()}
    shapes = network | {name: torch.Size(shape) for name, shape in plain.HEAD.items()}
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def test_every_tensor_that_differs_is_listed_and_nothing_is_written(tmp_path: Path) -> None:
    tensors = hollow()
    del tensors["conv1.2.weight"], tensors["res.layer3.4.bn2.running_var"]
    tensors |= {"fc6w_conv.weight": torch.zeros(3), "fc1w_conv.weight": torch.zeros(512, 112, 1, 1)}
    torch.save(tensors, tmp_path / "file.pkl")
    with pytest.raises(ConfigError) as caught:
        import_hyperiqa(tmp_path / "file.pkl", tmp_path / "model")
    said = str(caught.value)
    for line in (
        "2 missing:",
        "conv1.2.weight (512, 1024, 1, 1)",
        "res.layer3.4.bn2.running_var (256,)",
        "1 unknown:",
        "fc6w_conv.weight (3,)",
        "1 of another shape:",
        "fc1w_conv.weight (512, 112, 1, 1), not (512, 112, 3, 3)",
    ):
        assert line in said
    assert not (tmp_path / "model").exists()


def test_a_file_of_a_time_before_batches_were_counted_is_taken_too(tmp_path: Path) -> None:
    torch.save({name: value for name, value in hollow().items() if "num_batches" not in name}, tmp_path / "file.pkl")
    label = Label("dmos", 0.0, 1.0, False)
    assert import_hyperiqa(tmp_path / "file.pkl", tmp_path / "model", label) == 355 - 53
    assert open_model(tmp_path / "model").scales["published"].label == label


class _Harm:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.place,)


@pytest.mark.parametrize("content", ["code", "no pickle", "a list", "nothing"])
def test_a_file_of_anything_else_is_an_error_and_never_runs(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file.pkl"
    if content == "code":
        path.write_bytes(pickle.dumps({"conv1.0.weight": _Harm(tmp_path / "harm")}, protocol=2))
    elif content == "no pickle":
        path.write_bytes(b"not weights")
    elif content == "a list":
        torch.save([torch.zeros(3)], path)
    with pytest.raises(ConfigError, match=r"file\.pkl: (is no file of plain tensors|holds no tensors by name|there is no such file)"):
        import_hyperiqa(path, tmp_path / "model")
    assert not (tmp_path / "harm").exists()


def test_a_model_that_is_there_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-hyperiqa", str(folder.parent / "koniq_pretrained.pkl"), "--out", str(folder)]) == 1
    assert "holds a model already" in capsys.readouterr().err


def test_another_kind_of_resize_is_refused_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-hyperiqa", str(tmp_path / "file.pkl"), "--out", str(tmp_path / "model"), "--resize", "512,384"]) == 1
    assert "resize rule '512,384'" in capsys.readouterr().err


def test_every_tensor_of_ours_has_a_name_of_theirs() -> None:
    with torch.device("meta"):
        ours = HyperIQA("resnet50.tv_in1k").state_dict()
    theirs = [their_name(name) for name in ours if name not in ("mean", "std", "output_scale")]
    assert len(set(theirs)) == len(theirs) == 355


@pytest.mark.parametrize("spoil", [lambda value: value * math.nan, lambda value: value.long()], ids=["not finite", "whole numbers"])
def test_numbers_that_cannot_be_weights_are_refused(
    checkpoint: dict[str, Tensor], tmp_path: Path, spoil: Callable[[Tensor], Tensor]
) -> None:
    torch.save(checkpoint | {"res.conv1.weight": spoil(checkpoint["res.conv1.weight"])}, tmp_path / "file.pkl")
    with pytest.raises(ConfigError, match=r"1 of its tensors hold .* such as res\.conv1\.weight; nothing was written"):
        import_hyperiqa(tmp_path / "file.pkl", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_scale_that_stands_on_its_head_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-hyperiqa", "no.pkl", "--out", str(tmp_path / "model"), "--range", "100", "0"]) == 1
    assert "--range 100 0: write the two ends of the scale, the lower one first" in capsys.readouterr().err
