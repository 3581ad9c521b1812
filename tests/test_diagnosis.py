"""What ranks report, judged: whatever is wrong with a node is said of that node, and the verdict follows from the gravest finding."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_train.diagnosis import (
    Facts,
    Gpu,
    Reading,
    Report,
    algorithm_bandwidth,
    as_json,
    as_text,
    bus_bandwidth,
    is_fit,
    judge,
    verdict,
)
from shards.findings import Finding

GB = 10**9
GPU = Gpu("NVIDIA H100 80GB HBM3", "0", 80 * GB, 79 * GB, "550.54.15", ("bf16", "fp16"))
VERSIONS = {"python": "3.11.7", "torch": "2.13.0", "dist_train": "77ed151b7b62"}
READING = Reading("abc/def", 12, 3 * GB, 32, 40 * 10**6, 0.4, 12, 6)
FACTS = Facts(
    "auto",
    "bf16",
    plan="each rank takes 8 images a step",
    work="forward and backward pass over 8 x 5 patches",
    folder="/data/run",
    folder_bytes=4 * GB,
    free_bytes=400 * GB,
    clocks=((0.0, 0.0), (1e-4, 2e-4), (-3e-3, 1e-4), (5e-3, 4e-3)),
    summed_bytes=350 * 10**6,
    sum_seconds=0.01,
    small_seconds=3e-5,
    meeting="n1",
    addresses=("10.0.0.1",),
)


def sound() -> list[Report]:
    """Two nodes of two ranks each, on which all is well."""
    return [Report(rank, f"n{1 + rank // 2}", VERSIONS, replace(GPU, uuid=f"GPU-{rank}"), READING, 0.1 + rank / 1000) for rank in range(4)]


def changed(rank: int, **what: object) -> list[Report]:
    """The same, but for one rank."""
    reports = sound()
    reports[rank] = replace(reports[rank], **what)  # type: ignore[arg-type]
    return reports


def findings(name: str, reports: Sequence[Report], facts: Facts = FACTS) -> list[Finding]:
    """Those of one check, which must be the only one that has any."""
    checks = judge(reports, facts)
    assert {check.name for check in checks if check.findings} == {name}
    return [finding for check in checks for finding in check.findings]


def only(name: str, reports: Sequence[Report], facts: Facts = FACTS) -> Finding:
    (finding,) = findings(name, reports, facts)
    return finding


def test_a_sound_cluster_is_fit() -> None:
    checks = judge(sound(), FACTS)
    assert is_fit(checks) and verdict(checks) == "verdict: fit (nothing found)"
    table = as_text(checks)
    assert "4 x NVIDIA H100 80GB HBM3" in table and "128 images read and verified by 4 ranks on n1, n2" in table
    assert "350.0 MB in 10.0 ms: 35.00 GB/s (size / time), bus 52.50 GB/s" in table and "4 bytes in 30 us" in table
    assert table.splitlines()[-1] == verdict(checks)


def test_another_version_on_one_node_is_an_error_that_names_both() -> None:
    reports = changed(2, versions=VERSIONS | {"torch": "2.12.1"})
    reports[3] = replace(reports[3], versions=reports[2].versions)
    finding = only("versions", reports)
    assert finding.severity == "error" and finding.found == "torch: 2.13.0 on n1; 2.12.1 on n2"
    assert "install on n2" in finding.to_do
    assert verdict(judge(reports, FACTS)) == "verdict: not fit (1 error)"


def test_other_sources_on_one_node_are_an_error() -> None:
    assert only("versions", changed(3, versions=VERSIONS | {"dist_train": "0"})).found.startswith("dist_train: ")


@pytest.mark.parametrize(("ahead", "severity"), [(2.5, "warning"), (-2.5, "warning"), (130.0, "error")])
def test_a_skewed_clock_is_named_with_its_node_and_its_uncertainty(ahead: float, severity: str) -> None:
    clocks = (*FACTS.clocks[:2], (ahead, 0.002), (ahead + 0.1, 0.2))
    finding = only("clocks", sound(), replace(FACTS, clocks=clocks))
    side = "ahead of" if ahead > 0 else "behind"
    assert finding.severity == severity and finding.found == f"the clock of n2 is {abs(ahead):.1f} s {side} that of n1 (to 2.0 ms)"


def test_a_clock_that_may_be_right_is_not_blamed() -> None:
    checks = judge(sound(), replace(FACTS, clocks=((0.0, 0.0), (0.0, 0.1), (1.5, 0.6), (1.5, 0.6))))
    assert not any(check.findings for check in checks)


def test_a_shard_that_is_missing_on_one_node_is_named_once_with_the_ranks_there() -> None:
    missing = "/data/koniq/shard-000004.tar: is missing; build it again"
    reports = [replace(report, reading=None, failures={"shards": missing}) if report.rank > 1 else report for report in sound()]
    finding = only("shards", reports)
    assert finding.severity == "error" and finding.where == ("n2 (ranks 2, 3)",)
    assert (finding.found, finding.to_do) == ("shards: /data/koniq/shard-000004.tar: is missing", "build it again")


def test_shards_whose_ends_were_not_all_read_on_some_node_are_counted() -> None:
    (check,) = [check for check in judge(sound(), FACTS) if check.name == "shards"]
    assert "both ends of 12 of 12 read on every node" in check.found
    (check,) = [check for check in judge(changed(2, reading=replace(READING, ends=1)), FACTS) if check.name == "shards"]
    assert "both ends of 7 of 12 read on every node" in check.found
    (finding,) = check.findings
    assert (finding.severity, finding.where) == ("warning", ("n2",))
    assert finding.found == "time was up when both ends of 7 of 12 shards had been read"


def test_other_data_on_another_node_are_an_error() -> None:
    assert "xyz/def on n2" in only("shards", changed(2, reading=replace(READING, fingerprint="xyz/def"))).found


def test_a_disk_too_small_for_the_checkpoints_is_an_error() -> None:
    finding = only("disk", sound(), replace(FACTS, free_bytes=3 * GB))
    assert (finding.severity, finding.found, finding.expected) == (
        "error",
        "3.0 GB for this run in /data/run",
        "4.0 GB for its checkpoints at most",
    )


def test_a_slow_rank_is_named_with_its_node() -> None:
    finding = only("speed", changed(3, seconds_of_work=0.15))
    assert finding.severity == "warning" and finding.found == "rank 3 on n2 takes 150.0 ms, 1.5 times the median"
    assert verdict(judge(changed(3, seconds_of_work=0.15), FACTS)) == "verdict: fit with warnings (1 warning)"


@given(st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=9))
def test_never_more_than_half_of_the_ranks_are_slow_and_never_the_fastest(seconds: list[float]) -> None:
    reports = [Report(rank, f"n{rank}", seconds_of_work=taken) for rank, taken in enumerate(seconds)]
    speed = next(check for check in judge(reports, Facts("cpu", "no")) if check.name == "speed")
    assert 2 * len(speed.findings) <= len(seconds)
    assert not any(f"rank {seconds.index(min(seconds))} " in finding.found for finding in speed.findings)


def test_a_network_slower_than_the_computation_is_a_warning() -> None:
    assert "400.0 ms to sum a gradient, 101.0 ms to compute one" in only("all-reduce", sound(), replace(FACTS, sum_seconds=0.4)).found


@pytest.mark.parametrize(("ranks", "bus"), [(2, 1.0), (4, 1.5), (8, 1.75)])
def test_bandwidths_are_those_of_nccl_tests(ranks: int, bus: float) -> None:
    assert algorithm_bandwidth(8 * GB, 2.0) == 4 * GB
    assert bus_bandwidth(8 * GB, 2.0, ranks) == bus * 4 * GB


def test_two_ranks_on_one_gpu_are_an_error_and_the_same_number_on_another_node_is_not() -> None:
    finding = only("GPUs", changed(3, gpu=replace(GPU, uuid="GPU-2")))
    assert (finding.severity, finding.found, finding.where) == ("error", "ranks that share a GPU", ("n2 (ranks 2, 3)",))
    assert not judge(changed(2, gpu=replace(GPU, uuid="GPU-0")), FACTS)[1].findings


@pytest.mark.parametrize(
    ("gpu", "severity", "said"),
    [
        (None, "error", "ranks without a GPU, while others have one"),
        (replace(GPU, name="NVIDIA A100"), "warning", "several kinds of GPU name: NVIDIA H100 80GB HBM3 on n1, n2; NVIDIA A100 on n2"),
        (replace(GPU, driver="535.1"), "warning", "several kinds of GPU driver: 550.54.15 on n1, n2; 535.1 on n2"),
        (replace(GPU, free_bytes=40 * GB), "warning", "memory that somebody else holds: free are 40.0 GB of 80.0 GB on rank 3"),
    ],
)
def test_another_gpu_on_one_rank_is_named(gpu: Gpu | None, severity: str, said: str) -> None:
    finding = only("GPUs", changed(3, gpu=gpu))
    assert (finding.severity, finding.found) == (severity, said)


def test_a_broken_gpu_is_told_with_its_rank() -> None:
    finding = only("GPUs", changed(1, gpu=None, failures={"GPUs": "AcceleratorError: invalid device ordinal"}))
    assert finding.found == "GPUs: AcceleratorError: invalid device ordinal" and finding.where == ("n1 (rank 1)",)


def test_a_cluster_without_gpus_is_warned_of_unless_that_is_meant() -> None:
    bare = [replace(report, gpu=None) for report in sound()]
    assert only("GPUs", bare).severity == "warning"
    assert verdict(judge(bare, replace(FACTS, device="cpu"))) == "verdict: fit (nothing found)"
    assert verdict(judge(bare, replace(FACTS, device="cuda"))) == "verdict: not fit (1 error)"


def test_what_nobody_could_look_at_is_not_called_ok() -> None:
    told = as_text(judge(sound()[:1], Facts("cpu", "no")))
    assert re.findall(r"^(\S+(?: \S+)?)  +skipped ", told, re.MULTILINE) == ["plan", "disk", "all-reduce", "meeting"]


def test_a_gpu_without_the_precision_in_hardware_is_a_warning() -> None:
    assert only("precision", changed(0, gpu=replace(GPU, native=("fp16",)))).where == ("n1 (rank 0)",)


def test_a_run_folder_that_is_another_one_on_a_node_is_an_error() -> None:
    reports = changed(2, failures={"run folder": "/data: is not the folder that rank 0 writes to; share it"})
    assert only("run folder", reports).where == ("n2 (rank 2)",)


@pytest.mark.parametrize(("address", "warned"), [("8.8.8.8", True), ("192.168.1.1", False), ("fe80::1%eth0", False)])
def test_a_meeting_at_a_public_address_is_a_warning(address: str, warned: bool) -> None:
    checks = judge(sound(), replace(FACTS, addresses=(address,)))
    assert bool(checks[-1].findings) == warned and is_fit(checks)


def test_whatever_a_rank_cannot_find_out_makes_the_cluster_unfit() -> None:
    for name in (check.name for check in judge(sound(), FACTS)):
        checks = judge(changed(1, failures={name: "RuntimeError: broken"}), FACTS)
        assert not is_fit(checks), name


def test_nothing_measured_is_still_told() -> None:
    checks = judge([Report(0, "n1", failures={"shards": "gone"})], Facts("cpu", "no"))
    assert as_text(checks).endswith("verdict: not fit (1 error)")


def test_json_says_what_the_table_says() -> None:
    reports = changed(3, seconds_of_work=0.15)
    checks = judge(reports, FACTS)
    said = json.loads(as_json(reports, FACTS, checks))
    assert said["fit"] is True and said["verdict"] == verdict(checks)
    assert [check["name"] for check in said["checks"]] == [check.name for check in checks]
    assert said["ranks"][3]["seconds_of_work"] == 0.15 and said["facts"]["free_bytes"] == 400 * GB
