"""Promise: workers that have served enough are replaced while they serve: the new one first, and no request fails."""

import contextlib
import json
import signal
from typing import Any

from harness import Fact, Programs, free_port, wait_until
from load import mixed
from soak.row import Row, show

WORKERS = 3  # programs/recycled.py
CLIENTS = 6
LIMIT_S = 90.0
LEAK = 32768  # bytes for each request


def recycled(replacements: int, limit: str, value: int, *, max_unavailable: int = 1, leak: int = 0) -> Row:
    """Serve until so many workers have been replaced because they had reached one limit."""
    settings: dict[str, Any] = {limit: value, "max_unavailable": max_unavailable}
    with contextlib.closing(Programs()) as programs:
        port = free_port()
        program = programs("recycled", port, json.dumps(settings), env={"LEAK": str(leak)})
        program.wait_for_all(WORKERS, "listening")
        with mixed(port, CLIENTS, requests=20) as load:
            wait_until(lambda: len(program.facts_of("exit")) >= replacements or load.failures, LIMIT_S)
        facts = program.facts
        program.send_signal(signal.SIGTERM)
        assert program.finish().returncode == 0
    ends = [fact for fact in facts if fact["event"] == "exit"]
    most = max(len(fact["workers"]) for fact in facts if fact["event"] == "fork") - WORKERS
    fewest = _fewest_listening(facts)
    failed = len(load.failures)
    leaking = f", which keep {leak // 1024} KiB of each request" if leak else ""
    return Row(
        "workers are recycled while they serve, the new one first, and no request fails",
        f"{limit}={value:,}, max_unavailable={max_unavailable}; {WORKERS} workers{leaking}, {CLIENTS} clients, "
        "half with keep-alive",
        f"{len(ends)} replaced, {failed} of {len(load.answered) + failed:,} requests failed; never more than {most} "
        f"at a time, never fewer than {fewest} that listened",
        len(ends) >= replacements
        and not failed
        and most <= max_unavailable
        and fewest == WORKERS
        and all(fact["asked"] and fact["code"] == 0 for fact in ends),
    )


def _fewest_listening(facts: list[Fact]) -> int:
    """How many workers listened, at least, once the first ones did."""
    listening: set[int] = set()
    fewest = WORKERS
    for fact in facts:
        if fact["event"] == "listening":
            listening.add(fact["worker"])
        elif fact["event"] == "exit":
            listening.discard(fact["worker"])
            fewest = min(fewest, len(listening))
    return fewest


def main() -> None:
    show(
        recycled(20, "max_connections_per_worker", 500),
        recycled(12, "max_age", 2, max_unavailable=2),
        recycled(10, "max_rss", 80_000_000, leak=LEAK),
    )


if __name__ == "__main__":
    main()
