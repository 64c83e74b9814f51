"""What a benchmark ran on: every benchmark here prints it first, since figures mean nothing without it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path


def describe() -> dict[str, str]:
    """The machine and the versions that matter, in the order in which they are shown."""
    return {
        "cpu": _cpu_model(),
        # Those that may be used: a container often has fewer than its host.
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "pycluster": _version("pycluster"),
        "uvloop": _version("uvloop"),
        "load before": load(),
    }


def load() -> str:
    """The load averages of the last 1, 5 and 15 minutes."""
    return " ".join(f"{average:.2f}" for average in os.getloadavg())


def idle_s() -> float:
    """Seconds that all processors together have been idle. What is missing went to some process, or to the host."""
    _, _, _, _, idle, waiting, *_ = Path("/proc/stat").read_text().partition("\n")[0].split()
    return (int(idle) + int(waiting)) / os.sysconf("SC_CLK_TCK")


def show() -> None:
    """Print it on one line."""
    print("; ".join(f"{name} {value}" for name, value in describe().items()), flush=True)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu model"):  # x86, some ARM boards, MIPS
            return value.strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    show()
    sys.exit(0)
