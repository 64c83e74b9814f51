"""What max_pending and the balancer's patience are worth: measured, and written down as a section of docs/soak.md.

Two loads: blocking workers of which some requests sleep (sleeping_server.py), and asyncio servers where none does. It
prints Markdown.
"""

import json
from collections.abc import Iterable, Sequence
from statistics import median

import loadgen
from pycluster import Settings
from soak.blocked import CLIENTS, WORKERS, compare, p99s

VALUES = (1, 2, 4, 16, 64, 128)  # the last one is the largest that there may be
DEFAULT = str(Settings().max_pending)
ASLEEP_MS = (1, 2, 5, 20)
ASLEEP_DEFAULT = "2"  # ASLEEP_NS in the core
BUSY_S = "0.05"
UNIFORM_CLIENTS = 64
ROUNDS = 4
SECONDS = 2.5
NOISE = 1.1  # what so few rounds cannot tell apart
UNIFORM_SECONDS = 1.5

PAGE = """## How many connections may wait in one worker, and how long

`settings.max_pending` in {rounds} interleaved rounds: {workers} blocking workers, {clients} clients and a connection
per request, of which 5 % sleep 50 ms; and {workers} asyncio workers, {uniform_clients} clients, where none does. In
brackets, the median of the rounds' ratios to the default.

{pending}

A connection that waits in a worker no longer stands in the listening socket's backlog, which may be as short as 5:
with a larger number there is room for more of a burst. A smaller one would keep connections from waiting behind a
blocked worker, were they not taken back from it: the second column shows what is left of that.

{conclusion}

The patience with a worker that consumes nothing while none of its threads runs, `ASLEEP_NS` in the core, with the first
load. A channel is looked at 1 ms after the last change, then less and less often, so a shorter one has no effect.

{patience}
"""


def rates(loads: Sequence[loadgen.Load]) -> list[float]:
    return [load.rate for load in loads]


def relative(values: Iterable[float], to: Iterable[float]) -> float:
    """The median of the ratios, round by round."""
    return median(one / other for one, other in zip(values, to, strict=True))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_ratio(values: Sequence[float], to: Sequence[float], unit: float = 1.0) -> str:
    return f"{median(values) / unit:,.0f} ({relative(values, to):.2f})"


def conclude(p99: dict[str, float], rate: dict[str, float]) -> str:
    """What follows for the default, by its ratios to the best of all values."""
    slower, fewer = 1 / min(p99.values()), 1 / max(rate.values())
    figures = (
        f"With {DEFAULT} the p99 is {slower:.2f} times the best one, and the rate where none sleeps {fewer:.2f} times"
    )
    if slower <= NOISE and fewer >= 1 / NOISE:
        return f"{figures}: nothing to be had by another default, so it is a roomy one."
    return f"{figures}: another default would do better."


def main() -> None:
    """Measure, and print the section."""
    by_value = {str(value): ["cluster", json.dumps({"max_pending": value})] for value in VALUES}
    by_patience = {f"{ms} ms": ["cluster", "{}", str(ms / 1000), BUSY_S] for ms in ASLEEP_MS}
    mixed = compare(ROUNDS, SECONDS, {**by_value, **by_patience})
    uniform = compare(
        ROUNDS, UNIFORM_SECONDS, {name: ["loop", *words[1:]] for name, words in by_value.items()}, UNIFORM_CLIENTS
    )
    failed = sum(load.failed for loads in (*mixed.values(), *uniform.values()) for load in loads)
    assert failed == 0, f"{failed} requests failed"
    pending = table(
        ["max_pending", "p99, ms", "requests/s", "requests/s where none sleeps"],
        (
            [
                name,
                with_ratio(p99s(mixed[name]), p99s(mixed[DEFAULT]), 1000),
                with_ratio(rates(mixed[name]), rates(mixed[DEFAULT])),
                with_ratio(rates(uniform[name]), rates(uniform[DEFAULT])),
            ]
            for name in by_value
        ),
    )
    usual = mixed[f"{ASLEEP_DEFAULT} ms"]
    patience = table(
        ["patience", "p99, ms", "requests/s"],
        (
            [name, with_ratio(p99s(mixed[name]), p99s(usual), 1000), with_ratio(rates(mixed[name]), rates(usual))]
            for name in by_patience
        ),
    )
    conclusion = conclude(
        {name: relative(p99s(mixed[name]), p99s(mixed[DEFAULT])) for name in by_value},
        {name: relative(rates(uniform[name]), rates(uniform[DEFAULT])) for name in by_value},
    )
    print(
        PAGE.format(
            rounds=ROUNDS,
            workers=WORKERS,
            clients=CLIENTS,
            uniform_clients=UNIFORM_CLIENTS,
            pending=pending,
            conclusion=conclusion,
            patience=patience,
        ),
        end="",
    )


if __name__ == "__main__":
    main()
