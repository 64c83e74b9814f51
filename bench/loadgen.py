"""Runs ``load/load.c``, the client of the benchmarks, and gives its figures back as typed values.

Called by the other files here and by whoever wants load in a test; knows nothing about the
server. Alone it is a command line::

    python bench/loadgen.py --port 8000 --seconds 3 --mode http --identify
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import native

SOURCE = native.BENCH / "load" / "load.c"
SPARE_S = 15.0  # on top of all that the client may take: a crowded machine starts a process late
SLOWEST_RATE = 500  # requests/s; no server measured here is slower, so a count of requests ends by then


class Options(TypedDict, total=False):
    """What to send, and how. The defaults are those of ``load.c``."""

    host: str  # IPv4; 127.0.0.1
    clients: int  # connections at a time; 64. In an open loop: at most so many
    rate: float  # requests/s of an open loop, with seconds; by default a closed loop
    seconds: float  # how long to count, after the warm-up; this or requests
    requests: int  # how many
    mode: Literal["echo", "http"]  # echo
    keepalive: bool  # many requests on a connection; otherwise each has one of its own
    identify: bool  # count answers by who gave them: the line after the echo, or the first line of the body
    slow: float  # the part of the requests, at random, that asks to be slow; 0
    seed: int  # of that, up to 65535: equal seeds give every server the same requests; 0
    size: int  # bytes of an echo request, 1 to 64; 1
    path: str  # of an HTTP request; /
    warmup_s: float  # before counting begins; 0
    timeout_s: float  # after which an unanswered request is an error; 5
    threads: int  # of the client; 1


LETTERS = {
    "host": "-H",
    "clients": "-c",
    "rate": "-r",
    "slow": "-s",
    "seed": "-S",
    "seconds": "-d",
    "requests": "-n",
    "mode": "-m",
    "keepalive": "-k",
    "identify": "-i",
    "size": "-b",
    "path": "-P",
    "warmup_s": "-w",
    "timeout_s": "-T",
    "threads": "-t",
}


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds to the first byte of the answer.

    From connect(); with keep-alive from the send; in an open loop from when the request was scheduled.
    """

    count: int
    p50: float
    p90: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True, slots=True)
class Load:
    """What the client saw.

    ``requests`` and ``latency`` leave the warm-up out; ``errors`` never does, ``connects`` counts every attempt, and
    ``completed`` every answer: what the server's processor time was spent on. ``rate`` is of the answers in the time
    that counts, in an open loop too, where ``requests`` are those scheduled then. ``late`` is how long after it was
    scheduled, and a connection was free, the client began a request of an open loop. ``shares`` maps whoever answered
    to how often, the warm-up included; it is empty without ``identify``.
    """

    requests: int
    seconds: float
    rate: float
    connects: int
    completed: int
    elapsed_seconds: float
    cpu_seconds: float
    last_errno: int
    errors: Mapping[str, int]
    late_p50_us: float
    late_p99_us: float
    latency: Latency
    histogram: Sequence[tuple[float, int]]  # microseconds, how many; to 3 %
    shares: Mapping[str, int]

    @property
    def failed(self) -> int:
        """Errors of every kind together."""
        return sum(self.errors.values())

    @classmethod
    def from_json(cls, text: str) -> Load:
        """Read what ``load.c`` prints."""
        raw: dict[str, Any] = json.loads(text)
        raw["latency"] = Latency(**raw.pop("latency_us"))
        return cls(**raw)


def run(port: int, *, limit_s: float | None = None, **options: Unpack[Options]) -> Load:
    """Load the server on ``port`` and wait for the end.

    Args:
      port: of the server.
      limit_s: after which the client is killed; by default a while after it ought to be done.
      **options: see :class:`Options`.

    Raises:
      RuntimeError: the client itself failed, or was not done within ``limit_s``. What the *server* does wrong is
        counted, in ``Load.errors``.
    """
    if limit_s is None:
        limit_s = options.get("requests", 0) / SLOWEST_RATE + options.get("seconds", 0)
        limit_s += options.get("warmup_s", 0) + options.get("timeout_s", 5.0) + SPARE_S
    words = command(port, **options)
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s)
    except (OSError, subprocess.TimeoutExpired) as exception:
        raise RuntimeError(str(exception)) from None
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return Load.from_json(done.stdout)


def command(port: int, **options: Unpack[Options]) -> list[str]:
    """The command line of the client, for whoever starts it by other means than :func:`run`."""
    words = [str(build()), "-p", str(port)]
    for name, value in options.items():
        if value is True:
            words.append(LETTERS[name])
        elif value is not False:
            words += [LETTERS[name], str(value)]
    return words


def build() -> Path:
    """Compile it if need be; see :func:`native.compiled`."""
    return native.compiled(SOURCE, *SOURCE.parent.glob("*.h"))


def main() -> int:
    """The command line: show what the client saw; status 1 if there were errors."""
    parser = argparse.ArgumentParser(description="Load a server on this machine.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--clients", type=int, default=64)
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--seconds", type=float)
    amount.add_argument("--requests", type=int)
    parser.add_argument("--rate", type=float, help="requests/s of an open loop, with --seconds")
    parser.add_argument("--slow", type=float, default=0.0, help="the part of the requests that asks to be slow")
    parser.add_argument("--mode", choices=("echo", "http"), default="echo")
    parser.add_argument("--keepalive", action="store_true")
    parser.add_argument("--identify", action="store_true")
    parser.add_argument("--size", type=int, default=1, help="bytes of an echo request")
    parser.add_argument("--path", default="/", help="of an HTTP request")
    parser.add_argument("--warmup", dest="warmup_s", type=float, default=0.0, help="seconds, with --seconds")
    parser.add_argument("--timeout", dest="timeout_s", type=float, default=5.0, help="seconds per request")
    parser.add_argument("--threads", type=int, default=1)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    load = run(given.pop("port"), **given)

    took = load.latency
    print(f"{load.requests} requests in {load.seconds:.2f} s, {load.rate:.0f}/s, {load.connects} connections")
    print(f"first byte: p50 {took.p50:.0f}  p90 {took.p90:.0f}  p99 {took.p99:.0f}", end="")
    print(f"  p99.9 {took.p999:.0f}  max {took.max:.0f} µs")
    print("errors:", ", ".join(f"{kind} {n}" for kind, n in load.errors.items() if n) or "none")
    print(f"client: {load.cpu_seconds:.2f} s of processor in {load.elapsed_seconds:.2f} s")
    for name, count in sorted(load.shares.items(), key=lambda share: -share[1]):
        print(f"{count / load.requests:7.1%}  {name}")
    return 1 if load.failed else 0


if __name__ == "__main__":
    sys.exit(main())
