"""The benchmarks still run, each with rounds that are far too short to mean anything, and compute what they say."""

import contextlib
import importlib.util
import math
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "bench"))
import balance
import figures
import loadgen
import measure
import report
import results
import running
import variants
from harness import wait_until
from plan import Suite
from running import BENCH, free_ports

LIMIT_S = 50
NOTHING = loadgen.Latency(0, 0, 0, 0, 0, 0)


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
    return running.running(variant, port, variants.VARIANTS[variant].command(port, task))


def measured(suite: Suite, **settings: Any) -> tuple[list[results.Cell], list[str]]:
    """The cells of a suite, and what went wrong."""
    problems: list[str] = []
    cells = list(measure.measure(suite, measure.Settings(**settings), problems, lambda where, what: None))
    return cells, problems


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
    assert [figures.percentile(histogram, part) for part in (0.5, 0.75, 0.8, 1)] == [1.0, 1.0, 3.0, 5.0]


def cell_of(
    rates: list[float],
    variant: str = "rr",
    *,
    samples: int = 2000,
    engine: Any = "asyncio",
    traffic: results.Traffic = results.CLOSED,
    **seen: Any,
) -> results.Cell:
    """What so many rounds gave. Others were as busy, and the like, as ``seen`` says."""
    latency = loadgen.Latency(samples, 10, 20, 30, 40, 50)
    seen = {"errors": {}, "cpu_primary_s": 0.001, "cpu_workers_s": 0.002, "client_busy": 0.5, **seen}
    shares = {"worker 1": 60, "worker 2": 40}
    rounds = [results.Round(number, rate, 100, latency, shares, **seen) for number, rate in enumerate(rates)]
    protocol: Any = "http" if engine == "app" else "echo"
    return results.Cell(protocol, engine, traffic, 2, variant, rounds=rounds)


def excerpt_of(*cells: results.Cell, skipped: dict[str, str] | None = None) -> str:
    """What README would show of these."""
    found = results.Results({"load before": "0.12"}, "1 s per round", skipped or {}, cells=list(cells))
    return report.excerpt(found, [], "docs/bench", (2, 8))


def test_a_ratio_is_taken_within_a_round() -> None:
    assert cell_of([10, 100, 7]).ratios(cell_of([20, 100, 0])) == [0.5, 1.0]


def test_readme_says_how_busy_the_machine_was_and_who_was_not_there() -> None:
    shown = excerpt_of(cell_of([10, 11]), cell_of([10, 10], "shared", others_busy=0.2), skipped={"hypercorn": "no"})
    assert "load before 0.12" in shown
    assert "more than 5% in 1 of 2 cells" in shown
    assert "Skipped: hypercorn (no)." in shown


def test_the_same_thing_twice_is_shown_beside_the_differences() -> None:
    shown = excerpt_of(cell_of([10, 20]), cell_of([10, 10], "shared"), cell_of([9, 13], "shared2"))
    assert "| asyncio, streams: shared2 | 2 | 11 | 1.10 (0.90..1.30) |" in shown


def test_a_percentile_of_few_samples_is_not_shown() -> None:
    [line] = report.rows([cell_of([10], samples=100)])
    assert (line["p90"], line["p99"], line["p99.9"]) == ("20", report.UNKNOWN, report.UNKNOWN)
    [line] = report.rows([cell_of([10], samples=10_000)])
    assert (line["p99"], line["p99.9"]) == ("30 (30..30)", "40")
    together = cell_of([10, 10], samples=500)
    together.histogram = [(10.0, 989), (70.0, 11)]
    [line] = report.rows([together])
    assert (line["p90"], line["p99"], line["p99.9"]) == ("20", "70", report.UNKNOWN)


def test_a_table_names_what_it_divides_by() -> None:
    block = [cell_of([10], "reuseport"), cell_of([20]), cell_of([20])]
    block[2].workers = 4  # with so many, reuseport was not run
    assert [line["÷ reuseport"] for line in report.rows(block)] == ["", "2.00 (2.00..2.00)", ""]


def test_a_client_that_may_have_been_the_limit_is_marked() -> None:
    assert "| 10† |" in excerpt_of(cell_of([10], client_busy=0.9))
    opened = cell_of([10], client_busy=0.9, traffic=results.Traffic("open"))  # it begins when it is time
    assert [line["client"] for line in report.rows([opened])] == ["90%"]


def test_how_late_the_client_was_stands_beside_the_latency() -> None:
    opened = cell_of([10], traffic=results.Traffic("open"), late_p50_us=5, late_p99_us=7)
    [line] = report.rows([opened])
    assert (line["client late, p50"], line["client late, p99"]) == ("5", "7")
    assert "| 10 / 30 |  |  | 5 / 7 |" in excerpt_of(opened)


def test_an_error_is_shown_with_its_errno_and_a_server_that_closes_with_its_connections() -> None:
    seen: dict[str, Any] = {"errors": {"other": 2}, "last_errno": 113, "connects": 100}
    shown = excerpt_of(cell_of([10], "gunicorn sync", engine="app", traffic=results.KEPT, **seen))
    assert "other 2 (last errno: EHOSTUNREACH)" in shown
    assert "100 connections for 100 answers" in shown


def test_other_servers_than_uvicorn_are_in_the_table_of_readme() -> None:
    app = [cell_of([rate], name, engine="app") for rate, name in ((10, "pycluster serve"), (20, "granian"))]
    assert "| one per request | 2 | 10 |  | 0.50 (0.50..0.50) |" in excerpt_of(*app)


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
        assert cell.rounds[0].cpu_workers_s > 0
        assert sum(cell.shares) == pytest.approx(1)
    assert found.cells[2].rounds[0].cpu_primary_s > 0  # the one whose primary accepts
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


def test_a_round_without_answers_does_not_improve_the_latency() -> None:
    def cell(*counts: int) -> results.Cell:
        rounds = [
            results.Round(number, 1, 1, loadgen.Latency(count, 9, 9, 9, 9, 9) if count else NOTHING, {}, {}, 0, 0, 0)
            for number, count in enumerate(counts)
        ]
        return results.Cell("echo", "asyncio", results.Traffic(), 2, "rr", rounds=rounds)

    assert cell(5, 0, 0).latency("p99") == 9
    assert math.isnan(cell(0, 0).latency("p99"))


def test_a_failure_of_the_client_is_a_problem_and_the_figures_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run_client = loadgen.run

    def failing(port: int, **options: Any) -> loadgen.Load:
        calls.append(port)
        if len(calls) == 3:  # after the warm-up and the first round
            raise RuntimeError("the client broke")
        return run_client(port, **options)

    monkeypatch.setattr(loadgen, "run", failing)
    (cell,), problems = measured(Suite("echo", "blocking", (1,), ("shared",), rounds=3, load_s=0.05))
    assert [r.number for r in cell.rounds] == [0, 2]
    assert problems == ["echo blocking, 1 workers, shared: the client broke"]


def test_a_server_that_cannot_be_started_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "BIN", pathlib.Path("/nonexistent"))
    cells, problems = measured(Suite("http", "app", (1,), ("granian",)))
    assert not cells
    (problem,) = problems
    assert problem.startswith("http app, 1 workers, granian: the server 'granian' could not be started")


def test_a_round_says_what_other_processes_took() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            (cell,), problems = measured(Suite("echo", "blocking", (1,), ("shared",), rounds=1, load_s=0.5), clients=1)
        finally:
            busy.kill()
    assert not problems
    assert 0.2 / measure.CORES < cell.rounds[0].others_busy < 1
    assert cell.rounds[0].connects >= cell.rounds[0].completed > 0


def test_a_rate_that_no_server_allows_is_no_open_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(port: int, **options: Any) -> loadgen.Load:
        raise RuntimeError("the client broke")

    monkeypatch.setattr(loadgen, "run", failing)
    suite = Suite("echo", "blocking", (1,), ("shared",), (results.Traffic("open"),), rounds=2, load_s=0.05)
    cells, problems = measured(suite)
    assert not cells
    assert len(problems) == 4  # the warm-up and three probes


def test_nothing_is_written_into_documents_after_a_failure(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\nold\n{report.END}\n")
    words = ["balance.py", "--docs", str(tmp_path / "docs"), "--readme", str(readme)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(balance, "compare", lambda *_: results.Results({}, "", problems=["interrupted"]))
    assert balance.main() == 1
    assert "old" in readme.read_text()
    assert not (tmp_path / "docs").exists()
    assert "stay as they are" in capsys.readouterr().err


@pytest.mark.parametrize("signals", [[signal.SIGINT, signal.SIGINT], [signal.SIGKILL]], ids=["ctrl-c-twice", "kill"])
def test_however_a_benchmark_ends_its_servers_end(signals: list[signal.Signals], tmp_path: pathlib.Path) -> None:
    options = ["--engine", "blocking", "--variants", "shared,reuseport,rr", "--workers", "2", "--seconds", "20"]
    words = [sys.executable, "balance.py", *options, "--json", str(tmp_path / "all.json")]
    with subprocess.Popen(words, cwd=BENCH, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as bench:
        # A server has two workers; the process that guards it has no child.
        assert wait_until(lambda: len([pid for pid in children(bench.pid) if children(pid)]) == 3)
        groups = children(bench.pid)
        for number in signals:
            bench.send_signal(number)
            time.sleep(0.05)
        bench.wait(LIMIT_S)
    assert bench.returncode in (1, -signal.SIGINT, -signal.SIGKILL)
    assert wait_until(lambda: not any(running.living(group) for group in groups))


def children(parent: int) -> list[int]:
    """Its child processes."""
    found: list[int] = []
    for task in pathlib.Path("/proc", str(parent), "task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found += map(int, task.read_text().split())
    return found


def test_a_missing_uvloop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvloop" else find(name))

    def missing(variant: str, engine: Any, loop: Any = "uvloop") -> str:
        return variants.VARIANTS[variant].missing(variants.Task("http", engine, 2, loop))

    assert missing("rr", "uvloop") == "uvloop not installed"
    assert missing("rr", "asyncio") == ""
    assert "uvloop" in missing("pycluster serve", "app")
    assert "uvloop" not in missing("pycluster serve", "app", "asyncio")
    assert "uvloop" not in missing("gunicorn sync", "app")


def test_a_server_that_closes_is_not_compared_on_kept_connections() -> None:
    suite = Suite("http", "app", (2,), ("granian", "gunicorn sync"), (results.CLOSED, results.KEPT))
    assert (results.KEPT, "granian") in suite.pairs
    assert (results.KEPT, "gunicorn sync") not in suite.pairs


def test_an_open_loop_counts_from_the_scheduled_time() -> None:
    # One worker, held for 50 ms by each request; one comes every 10 ms, so that the tenth waits for 400 ms.
    with served("shared", 1) as server:
        load = loadgen.run(server.port, seconds=0.1, rate=100, clients=3, slow=1.0, identify=True)
        assert load.requests == 10
        assert not load.failed
        assert load.latency.max > 350_000
        # In half a second only ten can be answered: the rate says so, whatever was scheduled.
        load = loadgen.run(server.port, seconds=0.5, rate=100, clients=100, slow=1.0, identify=True)
        assert load.requests == 50
        assert load.rate <= 22
        assert load.late_p50_us <= load.late_p99_us < 100_000
        # And nobody waits where a request begins only when the one before has ended.
        load = loadgen.run(server.port, requests=5, clients=1, slow=1.0, identify=True)
        assert load.latency.p50 < 350_000


def test_a_seed_decides_which_requests_are_slow() -> None:
    def slow_ones(seed: int) -> list[bool]:
        seen = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            words = loadgen.command(listener.getsockname()[1], requests=40, clients=1, slow=0.3, seed=seed)
            with subprocess.Popen(words, stdout=subprocess.DEVNULL):
                for _ in range(40):
                    connection, _ = listener.accept()
                    with connection:
                        request = connection.recv(64)
                        seen.append(request == b"~")
                        connection.sendall(request)
        return seen

    first = slow_ones(1)
    assert slow_ones(1) == first
    assert slow_ones(2) != first
    assert 0 < sum(first) < 40


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
