"""Is a folder safe to build, and are two of them strangers to each other? The doctor asks all that can be asked of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shards.examination import Examination
from shards.findings import Finding, places
from shards.picture_checks import alike_across, identities, picture_findings
from shards.plan import Settings
from shards.table_checks import table_findings


def diagnose(
    examination: Examination, patch_size: int = Settings.patch_size, rule: str | None = None, ratio: str = Settings.ratio
) -> list[Finding]:
    """All there is to say of one data set, for a build with this patch size, resize rule (default: the data set's) and ratio of rounds."""
    data_set = examination.data_set
    return [*table_findings(data_set, ratio), *picture_findings(examination, patch_size, rule or data_set.resize, ratio)]


def compare(one: Examination, other: Examination) -> list[Finding]:
    """What two data sets share, of which one is to be trained on and the other tested on."""
    names = f"{one.data_set.name} and {other.data_set.name}"
    findings = []
    number_of = {file: number for number, file in reversed([*enumerate(identities(other))])}
    shared = [(number, number_of[file]) for number, file in enumerate(identities(one)) if file in number_of]
    if shared:
        agreement = _rank_correlation([(_quality(one, ours), _quality(other, theirs)) for ours, theirs in shared])
        findings.append(
            Finding(
                "error",
                f"{len(shared):,} of {len(one.pictures):,} pictures of {one.data_set.name} are in {other.data_set.name} too",
                "no picture in two data sets of which one tests what the other trained",
                "leave them out of one of the two",
                places(
                    f"{one.name(one.data_set.rows[ours].file)} = {other.name(other.data_set.rows[theirs].file)}" for ours, theirs in shared
                ),
            )
        )
        if agreement < 0.99995:
            findings.append(
                Finding(
                    "warning",
                    f"the opinions of the pictures in both {names} have an SRCC of {agreement:.4f}",
                    "the same ranks: KonIQ-10k's two labels differ like that (0.9917), and mixing them costs accuracy",
                    "take one label for training and for testing",
                )
            )
    if alike := alike_across([one, other], [0] * len(one.pictures) + [1] * len(other.pictures)):
        findings.append(
            Finding(
                "warning",
                f"{alike.pairs:,} pair(s) of pictures look alike across {names}",
                "no content in two data sets of which one tests what the other trained",
                "look at them; leave out what shows the same content",
                alike.examples,
            )
        )
    return findings


def _quality(examination: Examination, number: int) -> float:
    """The opinion of an image, with the sign that makes higher better."""
    opinion = examination.data_set.rows[number].opinion
    return opinion if examination.data_set.label.higher_is_better else -opinion


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's correlation; 1 where there is too little to tell."""
    from scipy.stats import spearmanr  # takes a second to import, and is seldom needed

    ones, others = np.array(pairs).T
    if min(len(np.unique(ones)), len(np.unique(others))) < 3:
        return 1.0
    return float(spearmanr(ones, others).statistic)
