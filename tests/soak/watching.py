"""Promise: a worker that hangs is reported with the line that blocks it, and ended where that is asked for.

Workers of programs/hanging.py, which block when a client asks for it.
"""

import contextlib
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

from harness import PROGRAMS, Program, Programs, connect, free_port, request
from load import Load, once
from puppets import worker_in
from soak.row import Row, show

TIMEOUT_S = 1.0
REPORTED_WITHIN_S = 1.0  # after that, on a crowded machine
SOURCE = (PROGRAMS / "hanging.py").read_text().splitlines()
# The kind of server, and what its client asks for.
HANGS = {
    "an event loop that sleeps": ("asyncio", "sleep 60"),
    "an event loop that computes, with the GIL held": ("asyncio", "sum 100000000000"),
    "a blocking server that sleeps": ("blocking", "sleep 60"),
}


@contextlib.contextmanager
def hanging(kind: str, workers: int, starting_s: float = 0.0, **settings: Any) -> Iterator[tuple[Program, int]]:
    """Start a server. Gives it, and its port."""
    with contextlib.closing(Programs()) as programs:
        port = free_port()
        words = json.dumps({"worker_timeout": TIMEOUT_S, "graceful_timeout": 0.1, **settings})
        environment = {"PYCLUSTER_SCHED_POLICY": "rr", "STARTING_S": str(starting_s)}
        program = programs("hanging", kind, port, workers, words, env=environment)
        program.wait_for_all(workers, "listening")
        yield program, port
        program.send_signal(signal.SIGTERM)
        assert program.finish().returncode == 0


def ask(port: int, line: str) -> socket.socket:
    """A connection whose client has said a line."""
    connection = connect(port, timeout=60.0)
    connection.sendall(line.encode() + b"\n")
    return connection


def names_the_line(where: str | None) -> bool:
    found = re.search(r"hanging\.py\", line (\d+) in ", where or "")
    return found is not None and SOURCE[int(found[1]) - 1].endswith("# the line")


def reported(times: int) -> Row:
    """Let one of two workers hang, so often in each way."""
    took, named = [], 0
    for kind, line in HANGS.values():
        for _ in range(times):
            with hanging(kind, 2) as (program, port), contextlib.ExitStack() as clients:
                began = time.monotonic()
                clients.enter_context(ask(port, line))
                for _ in range(2):  # one for each worker; the other one answers both
                    clients.enter_context(ask(port, "hello"))
                hang = program.wait_for("hang")
                took.append(time.monotonic() - began)
                named += names_the_line(hang["where"])
                assert len(program.facts_of("hang")) == 1, "the other one does not hang"
    return Row(
        "a worker that hangs is reported, with the line that blocks it",
        f"worker_timeout={TIMEOUT_S:g}; {times} times each: {', '.join(HANGS)}",
        f"reported {min(took):.2f} to {max(took):.2f} s after it began, the line named in {named} of {len(took)}",
        min(took) >= TIMEOUT_S and max(took) <= TIMEOUT_S + REPORTED_WITHIN_S and named == len(took),
    )


def killed(times: int) -> Row:
    """Let workers hang under load, one after the other, where that is to be their end."""
    took: list[float] = []
    with hanging("blocking", 3, on_hang="kill", respawn="on-failure") as (program, port):
        with Load([once(lambda: worker_in(request(port, b"hello\n")))] * 3) as load:
            for number in range(1, times + 1):
                assert load.wait_for(20)
                began = time.monotonic()
                with ask(port, "sleep 60"):
                    program.wait_for_all(number, "exit")
                took.append(time.monotonic() - began)
                program.wait_for_all(3 + number, "listening")
        ends = {(fact["signal"], fact["asked"]) for fact in program.facts_of("exit")}
    failed = len(load.failures)
    return Row(
        "a worker that hangs is killed and replaced, where that is asked for",
        f'on_hang="kill", worker_timeout={TIMEOUT_S:g}; {times} hangs among 3 blocking workers, 3 clients',
        f"killed {min(took):.2f} to {max(took):.2f} s after they began, all replaced; "
        f"{failed} of {len(load.answered) + failed:,} other requests failed",
        not failed and ends == {("SIGKILL", False)} and min(took) >= TIMEOUT_S,
    )


def starting(extra_s: float) -> Row:
    """Hold the GIL in the start of a worker for which a connection waits."""
    seconds = TIMEOUT_S + extra_s
    with hanging("starting", 1, starting_s=seconds, on_hang="kill") as (program, port):
        began = time.monotonic()
        answered = request(port, b"hello\n", timeout=seconds + 30) == b"worker 1"
        took = time.monotonic() - began
        hangs = len(program.facts_of("hang"))
    return Row(
        "a start that takes long is no hang",
        f"a start that holds the GIL for {seconds:g} s, worker_timeout={TIMEOUT_S:g}, a connection that waits",
        f"{hangs} reports; answered after {took:.1f} s",
        answered and not hangs and took > TIMEOUT_S,
    )


def main() -> None:
    show(reported(4), killed(5), starting(10.0))


if __name__ == "__main__":
    main()
