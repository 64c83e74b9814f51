"""Claim: ``Counter.add`` costs tens of nanoseconds: no system call and no lock.

    pytest bench/micro/test_counter.py
    python bench/micro/test_counter.py       (only the figures)

The peer is what the standard library offers for a number shared by processes: ``multiprocessing.Value``.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pycluster import Counter, cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import machine

if TYPE_CHECKING:
    import pytest
    from pytest_benchmark.fixture import BenchmarkFixture

CALLS = 100_000  # per run: some milliseconds, far above the clock's resolution, about a time slice
RUNS = 15

hits: Counter = cluster.counter("bench.hits")
value = multiprocessing.Value("q")


def empty() -> None:
    """The loop alone. repeat() is the cheapest iterator: it makes no integers."""
    for _ in repeat(None, CALLS):
        pass


def add() -> None:
    """As users write it: the lookup of ``add`` belongs to the cost."""
    for _ in repeat(None, CALLS):
        hits.add()


def add_locked() -> None:
    """The peer. ``+=`` alone would lose counts, so it takes the lock."""
    for _ in repeat(None, CALLS):
        with value.get_lock():
            value.value += 1


def test_empty_loop(benchmark: BenchmarkFixture) -> None:
    benchmark(empty)


def test_counter_add(benchmark: BenchmarkFixture) -> None:
    benchmark(add)


def test_multiprocessing_value(benchmark: BenchmarkFixture) -> None:
    benchmark(add_locked)


def test_add_counts_every_call_and_costs_less_than_a_lock(capsys: pytest.CaptureFixture[str]) -> None:
    before = hits.value
    costs = ns_per_call()
    assert hits.value - before == (RUNS + 1) * CALLS
    with capsys.disabled():
        print()
        show(costs)
    assert costs["Counter.add"] < costs["multiprocessing.Value"]


def ns_per_call() -> dict[str, float]:
    """Nanoseconds per call without the loop; medians of interleaved runs, after one that is not counted."""
    bodies: dict[str, Callable[[], None]] = {
        "loop": empty,
        "Counter.add": add,
        "multiprocessing.Value": add_locked,
    }
    times: dict[str, list[int]] = {name: [] for name in bodies}
    for run in range(RUNS + 1):
        for name, body in bodies.items():
            began = time.perf_counter_ns()
            body()
            if run:
                times[name].append(time.perf_counter_ns() - began)
    # The difference within each run, then the median: the machine's speed drifts between runs.
    costs = {
        name: median((mine - loop) / CALLS for mine, loop in zip(times[name], times["loop"], strict=True))
        for name in bodies
    }
    costs["loop"] = median(times["loop"]) / CALLS
    return costs


def show(costs: dict[str, float]) -> None:
    """Print them."""
    machine.show()
    print(f"{RUNS} interleaved runs of {CALLS} calls, ns per call without the loop ({costs['loop']:.1f} ns):")
    for name, cost in costs.items():
        if name != "loop":
            print(f"  {name:22} {cost:8.1f}")


if __name__ == "__main__":
    show(ns_per_call())
