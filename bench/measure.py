"""Loads servers in turn, round after round.

All servers of one number of workers are started once and stay up; those that are not being loaded sleep in epoll or
accept. Starting them anew for each round would put seconds between the two halves of a ratio, and the speed of a shared
machine drifts within a minute by more than the difference sought; a fresh server would also be measured cold. So each
is loaded once before the first round, uncounted: Node.js compiles what runs often, allocators grow. The price: a server
that happens to be slow for its whole life (layout of its memory, say) biases all rounds of one run.

Which requests of a mixed load are slow differs from round to round, and is the same for all variants within a round.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

import figures
import loadgen
import machine
from plan import PROBE_S, PROBES, Suite
from results import CLOSED, Cell, Round
from running import Running, free_ports, running
from variants import VARIANTS

WARMUP_S = 0.3  # per round, at most, not counted: caches and the balancer's estimate of the rate settle
MIXED_PART = 0.05  # of the requests is slow
OPEN_PART = 0.5  # of what the slowest variant can do is what an open loop asks of all
MOST_UNDER_WAY = 2000  # requests of an open loop: far more than wait at half load; the wait of others counts, too
CORES = os.sysconf("SC_NPROCESSORS_ONLN")  # those of machine.idle_s(), not those that this program may use

Tell = Callable[[str, str], object]  # which servers, and what happens to them next


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all suites."""

    clients: int = 64
    size: int = 1
    threads: int = 1
    rate: float | None = None  # requests/s of open loops; by default OPEN_PART


def measure(suite: Suite, settings: Settings, problems: list[str], tell: Tell) -> Iterator[Cell]:
    """All cells of a suite, those of one number of workers as soon as they are complete.

    Args:
      problems: gets a line about each server that does not start or end as it should, about each failure of the client,
        and about requests that failed before the first round; all else goes on.
      tell: is told before each load what comes.
    """
    for workers in suite.workers:
        with contextlib.ExitStack() as stack:
            lineup = _Lineup(suite, workers, settings, problems, tell)
            lineup.start(stack)
            lineup.warm_up()
            for traffic in suite.traffics:
                if traffic.arrivals == "open":
                    lineup.set_rate([cell for cell in lineup.cells if cell.traffic == traffic])
            for number in range(suite.rounds):
                for traffic in suite.traffics:
                    lineup.load([cell for cell in lineup.cells if cell.traffic == traffic], number)
        yield from (cell for cell in lineup.cells if cell.rounds)


@dataclass(slots=True)
class _Lineup:
    """The servers of one number of workers."""

    suite: Suite
    workers: int
    settings: Settings
    problems: list[str]
    tell: Tell
    servers: dict[str, Running] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)

    @property
    def where(self) -> str:
        return f"{self.suite.protocol} {self.suite.engine}, {self.workers} workers"

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start all that can be; the stack ends them."""
        task = self.suite.task(self.workers)
        for name, port in zip(self.suite.variants, free_ports(len(self.suite.variants)), strict=True):
            stack.enter_context(self._reported(name))  # how it ends
            with self._reported(name):  # how it starts
                self.servers[name] = stack.enter_context(running(name, port, VARIANTS[name].command(port, task)))
        self.cells = [
            Cell(self.suite.protocol, self.suite.engine, traffic, self.workers, name, self.suite.api)
            for traffic, name in self.suite.pairs
            if name in self.servers
        ]

    def warm_up(self) -> None:
        for name in self.servers:
            cell = Cell(self.suite.protocol, self.suite.engine, CLOSED, self.workers, name)
            self._try_out(cell, 0, self.suite.warm_s(self.workers), "warm-up")

    def set_rate(self, cells: list[Cell]) -> None:
        """Set what an open loop asks: a part of what the slowest can do in a closed one, those left out that fail."""
        rate = self.settings.rate
        if rate is None:
            seen: dict[str, list[float]] = {cell.variant: [] for cell in cells}
            for number in range(PROBES):
                for cell in _in_turn(cells, number):
                    seen[cell.variant].append(self._try_out(cell, number, min(PROBE_S, self.suite.load_s), "probe"))
            able = [median(rates) for rates in seen.values() if all(rates)]
            rate = max(round(min(able) * OPEN_PART), 1) if able else 0
        for cell in cells:
            cell.offered = rate

    def load(self, cells: list[Cell], number: int) -> None:
        """A round."""
        for cell in _in_turn(cells, number):
            self.tell(self.where, f"round {number + 1}, {cell.variant}")
            if cell.traffic.arrivals == "closed" or cell.offered:
                with self._reported(cell.variant):
                    self._load(cell, number)

    def _try_out(self, cell: Cell, seed: int, seconds: float, what: str) -> float:
        """Load a server without counting it. Returns its rate, 0 if something failed."""
        self.tell(self.where, f"{what}, {cell.variant}")
        with self._reported(cell.variant):
            load = loadgen.run(self.servers[cell.variant].port, **self._options(cell, seed, seconds))
            if load.completed and not load.failed:
                return load.rate
            self.problems.append(
                f"{self.where}, {cell.variant}: {load.completed} answers and {load.failed} errors in the {what}"
            )
        return 0

    def _load(self, cell: Cell, number: int) -> None:
        server = self.servers[cell.variant]
        options = self._options(cell, number, self.suite.load_s)
        before, own, idle, began = server.cpu(), _own_s(), machine.idle_s(), time.monotonic()
        load = loadgen.run(server.port, **options)
        whole = (time.monotonic() - began) * CORES
        idle, own, took = machine.idle_s() - idle, _own_s() - own, server.cpu() - before
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
                client_busy=load.cpu_seconds / max(load.elapsed_seconds, 1e-9) / self.settings.threads,
                connects=load.connects,
                last_errno=load.last_errno,
                others_busy=max(whole - idle - own - took.primary_s - took.workers_s, 0.0) / whole,
                late_p50_us=load.late_p50_us,
                late_p99_us=load.late_p99_us,
            )
        )

    def _options(self, cell: Cell, seed: int, seconds: float) -> loadgen.Options:
        options: loadgen.Options = {
            "mode": cell.protocol,
            "clients": self.settings.clients,
            "threads": self.settings.threads,
            "size": self.settings.size,
            "keepalive": cell.traffic.connections == "kept",
            "slow": MIXED_PART if cell.traffic.mix == "mixed" else 0.0,
            "seed": seed,
            "identify": True,
            "warmup_s": min(WARMUP_S, seconds),
            "seconds": seconds,
        }
        if cell.offered:
            options["rate"] = cell.offered
            options["clients"] = MOST_UNDER_WAY
        return options

    @contextlib.contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """A failure of a server or of the client becomes a line, and what has been measured stays."""
        try:
            yield
        except RuntimeError as exception:
            self.problems.append(f"{self.where}, {name}: {exception}")


def _in_turn(cells: list[Cell], number: int) -> list[Cell]:
    """Alternating: a machine that gets slower or faster all the time favours none."""
    return cells if number % 2 == 0 else cells[::-1]


def _own_s() -> float:
    """Processor time of this program and of the clients that have ended; servers end between loads."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
