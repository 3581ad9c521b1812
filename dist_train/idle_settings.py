"""Settings that do nothing beside the others: changed ones, and a level that names images where there are only patches."""

from __future__ import annotations

from dist_train.config import Config, Loss, Model


def idle_settings(config: Config) -> list[str]:
    """A sentence for each such setting, with what would let it do something."""
    loss, default, notes = config.loss, Loss(), list[str]()
    if config.model.start_from is not None and config.model.pretrained != Model().pretrained:
        notes.append("model.pretrained does nothing: all weights are those of model.start_from")
    for name in ("rank_kind", "rank_margin", "rank_margin_unit", "fidelity_truth", "rank_level"):
        if not loss.rank_weight and getattr(loss, name) != getattr(default, name):
            notes.append(f"loss.{name} does nothing while loss.rank_weight is 0, as it is unless it is set")
    if loss.rank_weight and loss.rank_kind == "hinge" and loss.fidelity_truth != default.fidelity_truth:
        notes.append("loss.fidelity_truth does nothing for a hinge: set loss.rank_kind=fidelity")
    for name in ("rank_margin", "rank_margin_unit"):
        if loss.rank_weight and loss.rank_kind == "fidelity" and getattr(loss, name) != getattr(default, name):
            notes.append(f"loss.{name} does nothing for the fidelity loss, which has no margin")
    if loss.regression != "smooth_l1" and loss.smooth_l1_beta != default.smooth_l1_beta:
        notes.append(f"loss.smooth_l1_beta does nothing for loss.regression={loss.regression}")
    if config.data.patches_per_image == 1:
        alike = "is the same as patch while data.patches_per_image is 1: an image shows one patch at a visit"
        notes += [f"loss.rank_level=image {alike}"] * bool(loss.rank_weight and loss.rank_level == "image")
        notes += [f"loss.regression_level=image {alike}"] * (loss.regression_level == "image")
    return notes
