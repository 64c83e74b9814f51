"""Claim: an app under ``pycluster serve`` is served at least as fast as under ``uvicorn --workers``, and evenly.

Both run peers/web_app.py with the same event loop, the same HTTP parser, the same backlog and as many workers, and are
loaded in turn, on fresh connections and on connections that stay open::

    python bench/serve.py --workers 2,8 --rounds 9 --seconds 2 [--loop asyncio]

All servers of one number of workers stay up meanwhile; those that are not loaded sleep. The ratio is taken within a
round, since the machine's speed drifts between rounds. Closed loop: each of the clients has one request under way, so
the latencies are those at full load.

Status 1 if a request failed, a server did not end when told to, or left processes behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal, get_args

import loadgen
import machine
from figures import jain, shares, spread
from running import BENCH, HOST, Command, Running, end_at_sigterm, free_ports, running

BIN = Path(sys.executable).parent
APP = "web_app:asgi"
BACKLOG = 2048  # uvicorn's own default; that of pycluster serve is 511
WARMUP_S = 0.3  # per round, not counted

Connections = Literal["fresh", "kept"]
US, THEM = "pycluster serve", "uvicorn --workers"


@dataclass(frozen=True, slots=True)
class Round:
    """One server under load, once."""

    workers: int
    number: int
    connections: Connections
    server: str
    load: loadgen.Load
    cpu_primary_s: float
    cpu_workers_s: float

    @property
    def shares(self) -> list[float]:
        return shares(self.load.shares, self.workers)

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of processor time per 1 000 requests."""
        return (self.cpu_primary_s + self.cpu_workers_s) * 1e6 / max(self.load.completed, 1)


def commands(port: dict[str, int], workers: int, loop: str) -> dict[str, Command]:
    """How both are started. uvicorn with one worker ends by the signal that it was told to end by."""
    common = ["--host", HOST, "--backlog", str(BACKLOG), "--loop", loop, "--log-level", "warning"]
    environment = {"PYTHONPATH": str(BENCH / "peers")}
    ours = [str(BIN / "pycluster"), "serve", APP, "-w", str(workers), "--port", str(port[US]), *common]
    theirs = [str(BIN / "uvicorn"), APP, "--workers", str(workers), "--port", str(port[THEM]), *common]
    return {US: Command(ours, workers, environment), THEM: Command(theirs, workers, environment, may_fail=True)}


def load_once(server: Running, workers: int, number: int, connections: Connections, given: argparse.Namespace) -> Round:
    before = server.cpu()
    load = loadgen.run(
        server.port,
        mode="http",
        clients=given.clients,
        seconds=given.seconds,
        warmup_s=WARMUP_S,
        keepalive=connections == "kept",
        identify=True,
    )
    took = server.cpu() - before
    return Round(workers, number, connections, server.name, load, took.primary_s, took.workers_s)


def measure(workers: int, given: argparse.Namespace) -> list[Round]:
    """All rounds for one number of workers."""
    rounds: list[Round] = []
    port = dict(zip((US, THEM), free_ports(2), strict=True))
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(running(name, port[name], command))
            for name, command in commands(port, workers, given.loop).items()
        ]
        for number in range(given.rounds):
            for connections in get_args(Connections):
                # Alternating: a machine that gets slower or faster all the time favours neither.
                for server in servers if number % 2 == 0 else reversed(servers):
                    done = load_once(server, workers, number, connections, given)
                    rounds.append(done)
                    where = f"{workers} workers, round {number + 1}, {connections}, {server.name}"
                    print(f"  {where:55} {done.load.rate:9.0f}/s", file=sys.stderr)
    return rounds


def ratios(rounds: Sequence[Round]) -> list[float]:
    """Our rate divided by theirs in the same round, unless they answered nothing."""
    rates = {(r.number, r.server): r.load.rate for r in rounds}
    numbers = sorted({r.number for r in rounds})
    return [rates[number, US] / rates[number, THEM] for number in numbers if rates[number, THEM] > 0]


def show(rounds: Sequence[Round]) -> None:
    """The table: medians of the rounds; in parentheses the smallest and the largest."""
    print(f"\n{'workers':>7} {'connections':12} {'server':18} {'requests/s':>26} {'p50, µs':>8} {'p99, µs':>8}", end="")
    print(f" {'CPU ms/1000':>12} {'largest':>8} {'smallest':>8} {'even':>6} {'Jain':>6} {'errors':>6}")
    for workers in sorted({r.workers for r in rounds}):
        for connections in get_args(Connections):
            here = [r for r in rounds if r.workers == workers and r.connections == connections]
            for server in (US, THEM):
                mine = [r for r in here if r.server == server]
                print(f"{workers:7} {connections:12} {server:18} {spread((r.load.rate for r in mine), 0):>26}", end="")
                print(f" {median(r.load.latency.p50 for r in mine):8.0f}", end="")
                print(f" {median(r.load.latency.p99 for r in mine):8.0f}", end="")
                print(f" {median(r.cpu_ms for r in mine):12.0f}", end="")
                print(f" {median(r.shares[-1] for r in mine):8.1%} {median(r.shares[0] for r in mine):8.1%}", end="")
                print(f" {1 / workers:6.1%} {median(jain(r.shares) for r in mine):6.3f}", end="")
                print(f" {sum(r.load.failed for r in mine):6}")
            print(f"{'':7} {connections:12} {US} ÷ {THEM}: {spread(ratios(here))}")
    for r in rounds:
        if r.load.failed:
            kinds = ", ".join(f"{kind} {count}" for kind, count in r.load.errors.items() if count)
            print(f"ERRORS: {r.workers} workers, round {r.number + 1}, {r.connections}, {r.server}: {kinds}")


def whole_numbers(text: str) -> list[int]:
    """``2,8`` as a list."""
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="pycluster serve against uvicorn --workers.")
    parser.add_argument("--workers", type=whole_numbers, default=[2, 8], help="2,8")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured, per server, kind and round")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all raw figures")
    given = parser.parse_args()

    end_at_sigterm()
    loadgen.build()
    machine.show()
    print(
        f"{given.rounds} interleaved rounds of {given.seconds:g} s, {given.clients} clients, HTTP, closed loop;",
        f"both on {given.loop}; fresh: one connection per request, kept: connections stay open",
        flush=True,
    )
    about = machine.describe()
    rounds: list[Round] = []
    for workers in given.workers:
        rounds += measure(workers, given)
    show(rounds)
    if given.json is not None:
        raw = {"machine": about, "options": vars(given), "rounds": [asdict(r) for r in rounds]}
        given.json.write_text(json.dumps(raw, indent=1, default=str) + "\n")
    return 1 if any(r.load.failed or not r.load.requests for r in rounds) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
