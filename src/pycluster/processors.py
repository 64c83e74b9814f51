"""How many processors this process may really use: what `-w auto` starts as many workers as."""

import math
import os
import pathlib
from collections.abc import Iterator


def usable_processors(root: pathlib.Path = pathlib.Path("/")) -> int:
    """Count them: the affinity mask, and the CPU quota of the control groups (v1 and v2), whichever allows fewer.

    A quota is rounded up: with one and a half processors two workers can be busy (so count the JVM and Go, too).

    Args:
      root: where /proc and /sys are.

    Returns:
      At least 1.

    Source: sched_getaffinity(2), cgroups(7), the kernel's admin-guide/cgroup-v2 and scheduler/sched-bwc.
    """
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: pathlib.Path) -> Iterator[float]:
    """The quotas, in processors, of this process's groups and of all groups above them that are to be seen."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            controller, read = "", _quota_v2
        elif kind == "cgroup" and "cpu" in options.split(","):
            controller, read = "cpu", _quota_v1
        else:
            continue
        for membership in memberships:
            _, controllers, path = membership.split(":", 2)
            if controller in controllers.split(","):
                for directory in _directories(root, before.split(" "), path):
                    yield from read(directory)


def _directories(root: pathlib.Path, mount: list[str], path: str) -> Iterator[pathlib.Path]:
    """The group's directory under the mount point, and those above it."""
    mounted, point = pathlib.PurePosixPath(mount[3]), root / mount[4].lstrip("/")
    # In a container the mount may show only the part of the tree that this group is the root of.
    group = pathlib.PurePosixPath(path)
    below = group.relative_to(mounted) if group.is_relative_to(mounted) else pathlib.PurePosixPath()
    yield point
    for count in range(1, len(below.parts) + 1):
        yield point.joinpath(*below.parts[:count])


def _quota_v2(directory: pathlib.Path) -> Iterator[float]:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return
    if quota != "max":
        yield int(quota) / int(period)


def _quota_v1(directory: pathlib.Path) -> Iterator[float]:
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        period = int((directory / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return
    if quota > 0 and period > 0:
        yield quota / period
