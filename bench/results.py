"""What was measured: rounds, gathered in cells, one per variant and number of workers under one traffic; as JSON.

measure.py writes it, report.py and plot.py read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import msgspec

import figures
from loadgen import Latency

APIS = {"streams": "streams", "protocol": "Protocol"}


@dataclass(frozen=True, slots=True)
class Traffic:
    """How a server is loaded.

    Attributes:
      arrivals: ``closed``: so many clients, and each begins a request when its last one is answered; latencies are
        those at full load. ``open``: requests begin on a fixed schedule, and latency counts from the scheduled time.
      mix: ``uniform``, or ``mixed``: 5 % of the requests, at random, hold their worker for 50 ms.
      connections: ``fresh``: one for each request; ``kept``: they stay open.
    """

    arrivals: Literal["closed", "open"] = "closed"
    mix: Literal["uniform", "mixed"] = "uniform"
    connections: Literal["fresh", "kept"] = "fresh"


CLOSED = Traffic()
KEPT = Traffic(connections="kept")


@dataclass(frozen=True, slots=True)
class Round:
    """One variant under load, once."""

    number: int
    rate: float
    completed: int
    latency: Latency
    shares: dict[str, int]
    errors: dict[str, int]
    cpu_primary_s: float
    cpu_workers_s: float
    client_busy: float  # processor time of the client over its own time: 1 is all of a core
    connects: int = 0  # attempts, those in the warm-up too; with connections kept open more than clients: they were not
    last_errno: int = 0  # of the errors of the kind "other"
    others_busy: float = 0.0  # part of the machine's processor time that neither this server nor the client took
    late_p50_us: float = 0.0  # open loop: the client's own delay of a request
    late_p99_us: float = 0.0

    @property
    def failed(self) -> int:
        """Errors of every kind together."""
        return sum(self.errors.values())


@dataclass(slots=True)
class Cell:
    """All rounds of one variant.

    Attributes:
      api: of the loops.
      offered: requests/s of an open loop, else 0.
      histogram: microseconds to the first byte, and how many, of all rounds together.
    """

    protocol: Literal["echo", "http"]
    engine: Literal["asyncio", "uvloop", "blocking", "app"]
    traffic: Traffic
    workers: int
    variant: str
    api: Literal["streams", "protocol"] = "streams"
    offered: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    histogram: list[tuple[float, int]] = field(default_factory=list)

    @property
    def engine_in_words(self) -> str:
        """What the workers wait with, and its interface."""
        if self.engine == "app":
            return "HTTP servers with one small app"
        return f"{self.engine}, {APIS[self.api]}" if self.engine in ("asyncio", "uvloop") else self.engine

    @property
    def block(self) -> tuple[str, str, str, Traffic]:
        """What it has in common with the cells that it is compared with, the workers apart."""
        return self.protocol, self.engine, self.api, self.traffic

    @property
    def rate(self) -> float:
        """Requests per second: the median."""
        return median(r.rate for r in self.rounds)

    @property
    def shares(self) -> list[float]:
        """Of each worker in all rounds together, smallest first."""
        answers: dict[str, int] = {}
        for r in self.rounds:
            for name, count in r.shares.items():
                answers[name] = answers.get(name, 0) + count
        return figures.shares(answers, self.workers)

    def latency(self, name: str) -> float:
        """The median over the rounds of ``p50``, ``p90``, ``p99`` or ``p999``: microseconds.

        Of the rounds in which something was answered; not a number if there are none.
        """
        return median([float(getattr(r.latency, name)) for r in self.rounds if r.latency.count] or [math.nan])

    def ratios(self, other: Cell) -> list[float]:
        """Its rate divided by the other's, round by round."""
        theirs = {r.number: r.rate for r in other.rounds if r.rate > 0}
        return [r.rate / theirs[r.number] for r in self.rounds if r.number in theirs]


@dataclass(slots=True)
class Results:
    """A run.

    Attributes:
      machine: what it ran on.
      settings: in words: rounds, seconds, clients.
      skipped: variants that are not here, and why.
      problems: servers that did not start or end as they should.
    """

    machine: dict[str, str]
    settings: str
    skipped: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a request failed, nothing was answered, or a server misbehaved."""
        rounds = [r for cell in self.cells for r in cell.rounds]
        return bool(self.problems) or not rounds or any(r.failed or not r.completed for r in rounds)

    def blocks(self) -> list[list[Cell]]:
        """The cells that are compared with each other, smallest number of workers first."""
        found: dict[Any, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.block, []).append(cell)
        return [sorted(cells, key=lambda cell: cell.workers) for cells in found.values()]

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))


def read(file: Path) -> Results:
    """What :meth:`Results.write` wrote.

    Raises:
      msgspec.ValidationError: it is something else.
    """
    return msgspec.json.decode(file.read_bytes(), type=Results)
