"""The benchmarks still run, each with rounds that are far too short to mean anything, and compute what they say."""

import pathlib
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "bench"))
import figures
import loadgen
import report
import results
import variants
from running import BENCH, free_ports, running

LIMIT_S = 50


def run(*arguments: object) -> str:
    """A benchmark to its end. Returns what it said."""
    words = [sys.executable, *map(str, arguments)]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        words, capture_output=True, text=True, timeout=LIMIT_S, cwd=BENCH
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def served(variant: str, workers: int, protocol: Any = "echo", engine: Any = "blocking") -> Any:
    """One of what is compared, running."""
    task = variants.Task(protocol, engine, workers)
    (port,) = free_ports(1)
    return running(variant, port, variants.VARIANTS[variant].command(port, task))


def test_jains_index_and_the_variation_of_shares() -> None:
    assert figures.jain([0.25] * 4) == 1
    assert figures.jain([1, 0, 0, 0]) == 0.25
    assert figures.jain([3, 1]) == pytest.approx(16 / 20)
    assert figures.variation([0.25] * 4) == 0
    assert figures.variation([3, 1]) == pytest.approx(0.5)


def test_a_worker_that_answered_nothing_has_a_share() -> None:
    assert figures.shares({"worker 1": 30, "worker 3": 10}, 4) == [0, 0, 0.25, 0.75]


def test_histograms_of_several_rounds_are_one_distribution() -> None:
    histogram = figures.merged([[(1.0, 2), (5.0, 1)], [(1.0, 4), (3.0, 1)]])
    assert histogram == [(1.0, 6), (3.0, 1), (5.0, 1)]
    assert figures.cumulative(histogram) == ([1.0, 3.0, 5.0], [0.75, 0.875, 1.0])


def test_a_ratio_is_taken_within_a_round() -> None:
    def cell(rates: list[float]) -> results.Cell:
        rounds = [
            results.Round(number, rate, 1, loadgen.Latency(1, 1, 1, 1, 1, 1), {}, {}, 0, 0, 0)
            for number, rate in enumerate(rates)
        ]
        return results.Cell("echo", "asyncio", results.Traffic(), 2, "rr", rounds=rounds)

    assert cell([10, 100, 7]).ratios(cell([20, 100, 0])) == [0.5, 1.0]


def test_the_ways_to_share_a_port_are_compared_and_drawn(tmp_path: pathlib.Path) -> None:
    options = ["--engine", "blocking", "--variants", "shared,reuseport,rr", "--workers", 2, "--rounds", 1]
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    written = ["--json", tmp_path / "all.json", "--docs", tmp_path / "docs", "--readme", readme]
    said = run("balance.py", *options, "--seconds", 0.05, *written)
    assert "echo, blocking, closed loop" in said
    found = results.read(tmp_path / "all.json")
    assert [cell.variant for cell in found.cells] == ["shared", "reuseport", "rr"]
    for cell in found.cells:
        assert cell.rate > 0
        assert cell.cpu("workers") > 0
        assert sum(cell.shares) == pytest.approx(1)
    assert found.cells[2].cpu("primary") > 0  # the one whose primary accepts
    document = (tmp_path / "docs" / "results.md").read_text()
    for picture in ("shares.svg", "throughput.svg"):
        assert f"]({picture})" in document
        assert f"](docs/{picture})" in readme.read_text()
        assert (tmp_path / "docs" / picture).read_text().count("<path") > 10
    assert re.match(rf"before\n{report.BEGIN}\n.*\n{report.END}\nafter\n$", readme.read_text(), re.DOTALL)
    assert "old" not in readme.read_text()
    figures_in_readme = [line for line in readme.read_text().splitlines() if line.startswith("| blocking")]
    assert figures_in_readme
    assert set(figures_in_readme) <= set(document.splitlines())


def test_an_open_loop_counts_from_the_scheduled_time() -> None:
    # One worker, held for 50 ms by each request; one comes every 10 ms, so that the tenth waits for 400 ms.
    with served("shared", 1) as server:
        load = loadgen.run(server.port, seconds=0.1, rate=100, clients=3, slow=1.0, identify=True)
        assert load.requests == 10
        assert not load.failed
        assert load.latency.max > 350_000
        # And nobody waits where a request begins only when the one before has ended.
        load = loadgen.run(server.port, requests=5, clients=1, slow=1.0, identify=True)
        assert load.latency.p50 < 350_000


def test_the_c_program_hands_over_in_turn() -> None:
    with served("C handoff", 2) as server:
        load = loadgen.run(server.port, requests=60, clients=1, identify=True)
    assert not load.failed
    assert load.shares == {"worker 1": 30, "worker 2": 30}


def test_who_answers_is_counted_in_the_warm_up_too() -> None:
    with served("C handoff", 2) as server:
        load = loadgen.run(server.port, seconds=0.1, warmup_s=0.1, clients=2, identify=True)
    assert load.requests < load.completed == sum(load.shares.values())


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_program_of_nodejs_answers_from_all_workers() -> None:
    with served("Node.js rr", 2, "http", "asyncio") as server:
        load = loadgen.run(server.port, requests=60, clients=4, mode="http", identify=True)
    assert not load.failed
    assert set(load.shares) == {"worker 1", "worker 2"}


def test_pycluster_serve_is_compared_with_uvicorn() -> None:
    said = run("serve.py", "--workers", 2, "--rounds", 1, "--seconds", 0.05)
    assert said.count("pycluster serve") >= 2
    assert "connections kept open" in said


def test_the_costs_of_a_primary_are_measured() -> None:
    options = ["--benchmark-disable", "--quiet", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    assert "5 passed" in run("-m", "pytest", *options, "micro/test_costs.py")


def test_a_fork_is_compared_with_a_fresh_interpreter() -> None:
    assert "fork to online" in run("micro/fork_online.py", "--count", 1)
