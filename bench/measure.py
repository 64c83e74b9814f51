"""Loads servers in turn, round after round.

All servers of one number of workers are started once and stay up; those that are not being loaded sleep in epoll or
accept. Starting them anew for each round would put seconds between the two halves of a ratio, and the speed of a shared
machine drifts within a minute by more than the difference sought; a fresh server would also be measured cold. So each
is loaded once before the first round, uncounted: Node.js compiles what runs often, allocators grow. The price: a server
that happens to be slow for its whole life (layout of its memory, say) biases all rounds of one run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import figures
import loadgen
from plan import Suite
from results import CLOSED, Cell, Round, Traffic
from running import Running, free_ports, running
from variants import VARIANTS, Task

WARMUP_S = 0.3  # per round, at most, not counted: caches and the balancer's estimate of the rate settle
MIXED_PART = 0.05  # of the requests is slow
PROBE_S = 0.5  # how long, at most, each variant is loaded to learn what it can do
OPEN_PART = 0.5  # of what the slowest variant can do is what an open loop asks of all
MOST_UNDER_WAY = 2000  # requests of an open loop: far more than wait at half load; the wait of others counts, too

Tell = Callable[[str, str], object]  # which servers, and what happens to them next


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all suites."""

    seconds: float = 1.0
    clients: int = 64
    size: int = 1
    threads: int = 1
    rate: float | None = None  # requests/s of open loops; by default OPEN_PART


def measure(suite: Suite, settings: Settings, problems: list[str], tell: Tell) -> Iterator[Cell]:
    """All cells of a suite, those of one number of workers as soon as they are complete.

    Args:
      problems: gets a line about each server that does not start or end as it should; the others go on.
      tell: is told before each load what comes.
    """
    for workers in suite.workers:
        where = f"{suite.protocol} {suite.engine}, {workers} workers"
        with _started(suite, workers, problems) as servers:
            cells = {
                (traffic, name): Cell(suite.protocol, suite.engine, traffic, workers, name, suite.api)
                for traffic in suite.traffics
                for name in servers
            }
            for name, server in servers.items():
                tell(where, f"warming up {name}")
                warm = Cell(suite.protocol, suite.engine, CLOSED, workers, name)
                loadgen.run(server.port, **_options(warm, settings))
            for traffic in suite.traffics:
                if traffic.arrivals == "open" and servers:
                    rate = settings.rate or _rate_for(list(servers.values()), suite, traffic, settings)
                    for name in servers:
                        cells[traffic, name].offered = rate
            for number in range(suite.rounds):
                for traffic in suite.traffics:
                    # Alternating: a machine that gets slower or faster all the time favours neither.
                    for server in _in_turn(list(servers.values()), number):
                        tell(where, f"round {number + 1}, {server.name}")
                        _load(server, cells[traffic, server.name], number, settings)
        yield from cells.values()


def _in_turn(servers: list[Running], number: int) -> Sequence[Running]:
    return servers if number % 2 == 0 else servers[::-1]


@contextlib.contextmanager
def _started(suite: Suite, workers: int, problems: list[str]) -> Iterator[dict[str, Running]]:
    task = Task(suite.protocol, suite.engine, workers, suite.loop, suite.api)
    servers: dict[str, Running] = {}
    stacks: list[contextlib.ExitStack] = []
    try:
        for name, port in zip(suite.variants, free_ports(len(suite.variants)), strict=True):
            stack = contextlib.ExitStack()
            try:
                servers[name] = stack.enter_context(running(name, port, VARIANTS[name].command(port, task)))
            except RuntimeError as exception:
                problems.append(f"{workers} workers: {exception}")
            else:
                stacks.append(stack)
        yield servers
    finally:
        for stack in reversed(stacks):
            try:
                stack.close()
            except RuntimeError as exception:
                problems.append(f"{workers} workers: {exception}")


def _options(cell: Cell, settings: Settings) -> loadgen.Options:
    traffic = cell.traffic
    options: loadgen.Options = {
        "mode": cell.protocol,
        "clients": settings.clients,
        "threads": settings.threads,
        "size": settings.size,
        "keepalive": traffic.connections == "kept",
        "slow": MIXED_PART if traffic.mix == "mixed" else 0.0,
        "identify": True,
        "warmup_s": min(WARMUP_S, settings.seconds),
        "seconds": settings.seconds,
    }
    if cell.offered:
        options["rate"] = cell.offered
        options["clients"] = MOST_UNDER_WAY
    return options


def _rate_for(servers: list[Running], suite: Suite, traffic: Traffic, settings: Settings) -> float:
    """What an open loop asks: a part of what the slowest can do in a closed one, for a moment."""
    probe = replace(settings, seconds=min(PROBE_S, settings.seconds))
    closed = [Cell(suite.protocol, suite.engine, traffic, 1, server.name) for server in servers]
    loads = [loadgen.run(server.port, **_options(cell, probe)) for server, cell in zip(servers, closed, strict=True)]
    return max(round(min(load.rate for load in loads) * OPEN_PART), 1)


def _load(server: Running, cell: Cell, number: int, settings: Settings) -> None:
    before = server.cpu()
    load = loadgen.run(server.port, **_options(cell, settings))
    took = server.cpu() - before
    cell.histogram = figures.merged([cell.histogram, load.histogram])
    cell.rounds.append(
        Round(
            number=number,
            rate=load.rate,
            completed=load.completed,
            latency=load.latency,
            shares=dict(load.shares),
            errors={kind: count for kind, count in load.errors.items() if count},
            cpu_primary_s=took.primary_s,
            cpu_workers_s=took.workers_s,
            client_busy=load.cpu_seconds / max(load.elapsed_seconds, 1e-9) / settings.threads,
        )
    )
