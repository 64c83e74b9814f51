"""What is measured together: suites, and the full set of them, which `make bench` runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from results import CLOSED, KEPT, Traffic
from variants import VARIANTS, Engine, Task
from work import Api, Protocol

OPEN = Traffic(arrivals="open")
OPEN_MIXED = Traffic(arrivals="open", mix="mixed")
MIXED_S = 1.5  # of a load: two workers, held for 50 ms by 5 % of the requests, answer some hundred a second
PROBES = 3  # of each variant before an open loop, to learn what it can do: the median
PROBE_S = 0.5  # at most, of each
ROUND_OVERHEAD_S = 0.38  # warm-up, and starting the client: 1 064 loads took 17 minutes
START_S = {"asyncio": 0.03, "uvloop": 0.03, "blocking": 0.03, "app": 0.5}  # of one worker, about


@dataclass(frozen=True, slots=True)
class Suite:
    """Variants that are loaded in turn, with each of these numbers of workers, and each kind of traffic.

    Attributes:
      load_s: how long a load is, after its warm-up.
    """

    protocol: Protocol
    engine: Engine
    workers: tuple[int, ...]
    variants: tuple[str, ...]
    traffics: tuple[Traffic, ...] = (CLOSED,)
    rounds: int = 5
    loop: Literal["asyncio", "uvloop"] = "uvloop"
    api: Api = "streams"
    load_s: float = 0.5  # more rounds say more than longer ones: the machine drifts

    @property
    def pairs(self) -> list[tuple[Traffic, str]]:
        """What is loaded in each round: not a variant that would not keep connections open."""
        return [
            (traffic, name)
            for traffic in self.traffics
            for name in self.variants
            if traffic.connections == "fresh" or VARIANTS[name].keeps
        ]

    @property
    def probes(self) -> int:
        """How often something is loaded before an open loop, for each number of workers."""
        return PROBES * sum(traffic.arrivals == "open" for traffic, _ in self.pairs)

    @property
    def loads(self) -> int:
        """How often something is loaded: in each round, and before."""
        return len(self.workers) * (len(self.variants) + self.probes + len(self.pairs) * self.rounds)

    @property
    def seconds(self) -> float:
        """How long it takes, about."""
        warmed = sum(self.warm_s(workers) for workers in self.workers) * len(self.variants)
        started = sum(self.workers) * len(self.variants) * START_S[self.engine]
        in_rounds = len(self.workers) * len(self.pairs) * self.rounds * self.load_s
        tried = len(self.workers) * self.probes * min(self.load_s, PROBE_S)
        return warmed + started + in_rounds + tried + self.loads * ROUND_OVERHEAD_S

    def warm_s(self, workers: int) -> float:
        """How long each variant is loaded before the first round.

        So long that Node.js's workers, the slowest, answer some hundred requests each: by then V8 has compiled what
        runs often.
        """
        return min(0.1 * workers, 2.0)

    def task(self, workers: int) -> Task:
        """What its variants are started for."""
        return Task(self.protocol, self.engine, workers, self.loop, self.api)

    def reduced(self, absent: dict[str, str]) -> Suite:
        """Without the variants that are not here."""
        return replace(self, variants=tuple(name for name in self.variants if name not in absent))


_WAYS = ("shared", "reuseport", "rr")
_ENGINES: tuple[Engine, ...] = ("asyncio", "uvloop", "blocking")
_APPS = tuple(name for name, variant in VARIANTS.items() if "app" in variant.engines and name != "Node.js none")

FULL = (
    # Throughput and shares against the number of workers: so many rounds that a cell has 10 000 connections or more.
    Suite("echo", "asyncio", (2, 8), (*_WAYS, "shared2", "none", "Node.js rr", "Node.js none"), rounds=7),
    Suite("echo", "asyncio", (4, 16, 32), (*_WAYS, "Node.js rr"), rounds=5),
    Suite("echo", "uvloop", (2, 8), (*_WAYS, "Node.js rr"), rounds=7),
    Suite("echo", "uvloop", (4, 16, 32), (*_WAYS, "Node.js rr"), rounds=5),
    # As Node.js's net module, and as uvicorn and aiohttp: the loop calls back with the data.
    Suite("echo", "uvloop", (2, 8), (*_WAYS, "Node.js rr"), rounds=7, api="protocol"),
    Suite("echo", "uvloop", (4, 16, 32), (*_WAYS, "Node.js rr"), rounds=5, api="protocol"),
    Suite("echo", "blocking", (2, 8), (*_WAYS, "C handoff"), rounds=7),
    Suite("echo", "blocking", (4, 16, 32), (*_WAYS, "C handoff"), rounds=5),
    # What a dispatch costs the primary when there are many workers.
    Suite("echo", "blocking", (256,), ("rr", "C handoff"), rounds=3),
    # HTTP: at full load, at half load, and at half load with some slow requests.
    *(Suite("http", engine, (2, 8), _WAYS, (CLOSED, OPEN), rounds=3) for engine in _ENGINES),
    *(Suite("http", engine, (4, 16, 32), _WAYS, rounds=3) for engine in _ENGINES),
    *(Suite("http", engine, (2, 8), _WAYS, (OPEN_MIXED,), rounds=6, load_s=MIXED_S) for engine in _ENGINES),
    Suite("echo", "asyncio", (2, 8), _WAYS, (OPEN_MIXED,), rounds=6, load_s=MIXED_S),
    # Servers as people run them.
    Suite("http", "app", (2, 8), _APPS, (CLOSED, KEPT), rounds=3),
)


def quick(suite: Suite) -> Suite:
    """To see that all works, not to know."""
    workers = tuple(count for count in suite.workers if count in (2, 8)) or suite.workers[:1]
    return replace(suite, workers=workers, rounds=2, load_s=min(suite.load_s, 0.4))
