"""What is measured together: suites, and the full set of them, which `make bench` runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from results import CLOSED, KEPT, Traffic
from variants import VARIANTS, Engine
from work import Api, Protocol

OPEN = Traffic(arrivals="open")
OPEN_MIXED = Traffic(arrivals="open", mix="mixed")
FULL_SECONDS = 0.5  # of a load of the full set, which then takes about 18 minutes
ROUND_OVERHEAD_S = 0.45  # warm-up, and starting the client
START_S = {"asyncio": 0.03, "uvloop": 0.03, "blocking": 0.03, "app": 0.5}  # of one worker, about


@dataclass(frozen=True, slots=True)
class Suite:
    """Variants that are loaded in turn, with each of these numbers of workers, and each kind of traffic."""

    protocol: Protocol
    engine: Engine
    workers: tuple[int, ...]
    variants: tuple[str, ...]
    traffics: tuple[Traffic, ...] = (CLOSED,)
    rounds: int = 5
    loop: Literal["asyncio", "uvloop"] = "uvloop"
    api: Api = "streams"

    @property
    def loads(self) -> int:
        """How often something is loaded: in each round, and once before."""
        return len(self.workers) * len(self.variants) * (len(self.traffics) * self.rounds + 1)

    def seconds(self, per_load: float) -> float:
        """How long it takes, about."""
        started = sum(self.workers) * len(self.variants) * START_S[self.engine]
        return started + self.loads * (per_load + ROUND_OVERHEAD_S)

    def reduced(self, absent: dict[str, str]) -> Suite:
        """Without the variants that are not here."""
        return replace(self, variants=tuple(name for name in self.variants if name not in absent))


_WAYS = ("shared", "reuseport", "rr")
_APPS = tuple(name for name, variant in VARIANTS.items() if "app" in variant.engines and name != "Node.js none")

FULL = (
    # Throughput and shares against the number of workers: so many rounds that each cell has some 10 000 connections.
    Suite("echo", "asyncio", (2, 8), (*_WAYS, "shared2", "none", "Node.js rr", "Node.js none"), rounds=9),
    Suite("echo", "asyncio", (4, 16, 32), (*_WAYS, "Node.js rr"), rounds=7),
    Suite("echo", "uvloop", (2, 8), (*_WAYS, "Node.js rr"), rounds=9),
    Suite("echo", "uvloop", (4, 16, 32), (*_WAYS, "Node.js rr"), rounds=7),
    # As Node.js's net module, and as uvicorn and aiohttp: the loop calls back with the data.
    Suite("echo", "uvloop", (2, 8), (*_WAYS, "Node.js rr"), rounds=9, api="protocol"),
    Suite("echo", "uvloop", (4, 16, 32), (*_WAYS, "Node.js rr"), rounds=7, api="protocol"),
    Suite("echo", "blocking", (2, 8), (*_WAYS, "C handoff"), rounds=9),
    Suite("echo", "blocking", (4, 16, 32), (*_WAYS, "C handoff"), rounds=7),
    # What a dispatch costs the primary when there are many workers.
    Suite("echo", "blocking", (256,), ("rr", "C handoff"), rounds=3),
    # HTTP: at full load, at half load, and at half load with some slow requests.
    Suite("http", "asyncio", (2, 8), _WAYS, (CLOSED, OPEN, OPEN_MIXED), rounds=3),
    Suite("http", "uvloop", (2, 8), _WAYS, (CLOSED, OPEN, OPEN_MIXED), rounds=3),
    Suite("http", "blocking", (2, 8), _WAYS, (CLOSED, OPEN, OPEN_MIXED), rounds=3),
    # Servers as people run them.
    Suite("http", "app", (2, 8), _APPS, (CLOSED, KEPT), rounds=3),
)


def quick(suite: Suite) -> Suite:
    """To see that all works, not to know."""
    workers = tuple(count for count in suite.workers if count in (2, 8)) or suite.workers[:1]
    return replace(suite, workers=workers, rounds=2)
