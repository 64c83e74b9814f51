"""Claim: an idle worker more costs little memory, since it shares its primary's.

    pytest bench/micro/test_memory.py
    python bench/micro/test_memory.py       (only the figures)

16 forked workers, each an asyncio server that listens through the cluster (idle_server.py), as their
/proc/PID/smaps_rollup shows them: pages that no other process has, and the proportional share of all.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import machine
from running import free_ports

if TYPE_CHECKING:
    import pytest

WORKERS = 16
SERVER = Path(__file__).with_name("idle_server.py")
PATIENCE_S = 30.0
MOST_PRIVATE_KB = 5000  # 4400 were measured, and 5800 when each worker imported for itself what all of them import

Sizes = dict[str, list[int]]


def kilobytes_per_worker() -> Sizes:
    """Of each worker, once all of them listen: ``private`` and ``pss``."""
    sizes: Sizes = {"private": [], "pss": []}
    command = [sys.executable, str(SERVER), str(free_ports(1)[0]), str(WORKERS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for pid in process.stdout.readline().split():
                found = {}
                for line in Path("/proc", pid, "smaps_rollup").read_text().splitlines()[1:]:
                    name, _, size = line.partition(":")
                    found[name] = int(size.split()[0])
                sizes["private"].append(found["Private_Clean"] + found["Private_Dirty"])
                sizes["pss"].append(found["Pss"])
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
    return sizes


def show(sizes: Sizes) -> None:
    """Print them."""
    machine.show()
    print(f"{WORKERS} idle forked workers with asyncio, kB per worker: median (smallest..largest)")
    for name, found in sizes.items():
        print(f"  {name:8} {median(found):6.0f} ({min(found)}..{max(found)})")


def test_an_idle_worker_shares_most_of_its_memory(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = kilobytes_per_worker()
    with capsys.disabled():
        print()
        show(sizes)
    assert len(sizes["private"]) == WORKERS
    assert median(sizes["private"]) <= MOST_PRIVATE_KB


if __name__ == "__main__":
    show(kilobytes_per_worker())
