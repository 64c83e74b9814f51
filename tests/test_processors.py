"""How many processors may be used, as control groups and the affinity mask allow it."""

import os
import pathlib

import pytest

from pycluster.processors import usable_processors

V2 = "24 18 0:20 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "31 25 0:27 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
OTHER = "22 1 0:5 / /dev rw - devtmpfs udev rw,mode=755\n"


@pytest.fixture(autouse=True)
def many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 processors, all of them allowed."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))


def system(root: pathlib.Path, mounts: str, memberships: str, files: dict[str, str]) -> pathlib.Path:
    """Make a /proc and a /sys, with these files in the control groups' file system."""
    told = {"proc/self/mountinfo": OTHER + mounts, "proc/self/cgroup": memberships}
    for name, text in (told | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_control_groups_the_affinity_mask_counts(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert usable_processors(tmp_path) == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert usable_processors(tmp_path) == 1


@pytest.mark.parametrize(
    ("quota", "processors"),
    [("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("9900000 100000", 64)],
)
def test_a_quota_of_version_2_is_rounded_up(tmp_path: pathlib.Path, quota: str, processors: int) -> None:
    assert usable_processors(system(tmp_path, V2, "0::/app\n", {"app/cpu.max": f"{quota}\n"})) == processors


def test_the_smallest_quota_on_the_way_up_counts(tmp_path: pathlib.Path) -> None:
    files = {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n", "a/b/c/cpu.max": "500000 100000\n"}
    assert usable_processors(system(tmp_path, V2, "0::/a/b/c\n", files)) == 3


def test_a_container_sees_its_own_group_as_the_root(tmp_path: pathlib.Path) -> None:
    mount = V2.replace(" / /sys", " /docker/abc /sys")
    assert usable_processors(system(tmp_path, mount, "0::/docker/abc\n", {"cpu.max": "400000 100000\n"})) == 4
    assert usable_processors(system(tmp_path, V2, "0::/\n", {"cpu.max": "400000 100000\n"})) == 4


@pytest.mark.parametrize(("quota", "processors"), [("-1", 64), ("250000", 3), ("50000", 1)])
def test_a_quota_of_version_1_counts(tmp_path: pathlib.Path, quota: str, processors: int) -> None:
    files = {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": "100000\n"}
    files = {f"cpu,cpuacct/app/{name}": text for name, text in files.items()}
    root = system(tmp_path, V1_MEMORY + V1, "4:memory:/app\n3:cpu,cpuacct:/app\n0::/ignored\n", files)
    assert usable_processors(root) == processors


@pytest.mark.parametrize("rubbish", ["", "rubbish\n", "1 2 3\n"])
def test_rubbish_counts_for_nothing(tmp_path: pathlib.Path, rubbish: str) -> None:
    assert usable_processors(system(tmp_path, V2, "0::/app\n", {"app/cpu.max": rubbish})) == 64
