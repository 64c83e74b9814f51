"""Claim: round robin costs little against workers that share a listening socket, and its shares are even.

Runs echo_server.py in several ways and loads them in turn::

    plain   os.fork, all workers accept from one listening socket: the kernel picks
    rr      pycluster, SCHED_RR: the primary accepts and hands over
    none    pycluster, SCHED_NONE (with --none)
    plain2  plain once more (with --null): what this machine calls a difference where there is none

    python bench/balance.py --workers 2,8 --rounds 7 --seconds 2 [--loop uvloop] [--work blocking] [--none]

All servers of one number of workers are started once and stay up; those that are not being loaded sleep in
epoll or accept. Starting them anew for each round would put seconds between the two halves of a ratio, and
the speed of a shared machine drifts within a minute by more than the difference sought; a fresh server would
also be measured cold. The price: a server that happens to be slow for its whole life (layout of its memory,
say) biases all rounds of one run. Run it twice, and with --null, before believing a small difference.

Status 1 if a connection failed, a server did not end when told to, or left processes behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import loadgen
import machine

SERVER = Path(__file__).resolve().with_name("echo_server.py")
WARMUP_S = 0.3  # per round, not counted: caches and the balancer's estimate of the rate settle
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Round:
    """One variant under load, once."""

    workers: int
    number: int
    variant: str
    load: loadgen.Load

    def share(self, worker: int) -> float:
        """The part of the answers that this worker gave."""
        return self.load.shares.get(f"worker {worker}", 0) / max(self.load.requests, 1)

    @property
    def shares(self) -> list[float]:
        """Those of all workers, smallest first; one that answered nothing is there with 0."""
        return sorted(self.share(worker) for worker in range(1, self.workers + 1))


@contextlib.contextmanager
def server(variant: str, port: int, workers: int, given: argparse.Namespace, limit_s: int) -> Iterator[None]:
    """Run one server; it is gone afterwards, whatever happens.

    Raises:
      RuntimeError: it did not get ready, did not end in time, ended with an error or left processes behind.
    """
    policy = None if variant.startswith("plain") else variant
    words = [sys.executable, str(SERVER), "cluster" if policy else "plain"]
    words += ["--port", str(port), "--workers", str(workers), "--limit", str(limit_s)]
    words += ["--work", given.work, "--api", given.api, "--loop", given.loop]
    environment = dict(os.environ)
    environment.pop("PYCLUSTER_SCHED_POLICY", None)
    if policy:
        environment["PYCLUSTER_SCHED_POLICY"] = policy
    # A session of its own: Ctrl-C comes to this program only, which then ends the server; and all of the
    # server's processes are one group, so that none can be missed.
    process = subprocess.Popen(
        words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    problem = ""
    try:
        wait_until_ready(process, variant)
        yield
        if process.poll() is not None:
            problem = f"ended by itself with {process.returncode}"
    finally:
        process.terminate()
        try:
            if process.wait(STOP_TIMEOUT_S) != 0 and not problem:
                problem = f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            problem = f"did not end within {STOP_TIMEOUT_S:.0f} s of SIGTERM"
        try:
            os.killpg(process.pid, signal.SIGKILL)
            problem = problem or "left processes behind"
        except ProcessLookupError:
            pass
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if problem:
        raise RuntimeError(f"the server {variant!r} {problem}")


def wait_until_ready(process: subprocess.Popen[bytes], variant: str) -> None:
    """Wait for the line ``ready``."""
    assert process.stdout is not None
    heard = b""
    end = time.monotonic() + START_TIMEOUT_S
    while not heard.endswith(b"ready\n"):
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
        part = os.read(process.stdout.fileno(), 4096) if readable else b""
        if not part:
            what = "ended" if readable else f"was not ready within {START_TIMEOUT_S:.0f} s"
            raise RuntimeError(f"the server {variant!r} {what}; it said {heard!r}")
        heard += part


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses. Held together, so that they differ; another program may still be quicker."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]


def measure(workers: int, variants: Sequence[str], given: argparse.Namespace) -> list[Round]:
    """All rounds for one number of workers."""
    rounds: list[Round] = []
    per_round_s = given.seconds + WARMUP_S + 10.0  # 10: the client's timeout, and starting it
    limit_s = int(given.rounds * len(variants) * per_round_s + START_TIMEOUT_S * len(variants) + 60)
    ports = dict(zip(variants, free_ports(len(variants)), strict=True))
    with contextlib.ExitStack() as stack:
        for variant, port in ports.items():
            stack.enter_context(server(variant, port, workers, given, limit_s))
        for number in range(given.rounds):
            # Alternating: a machine that gets slower or faster all the time favours neither.
            for variant in variants if number % 2 == 0 else reversed(variants):
                load = loadgen.run(
                    ports[variant],
                    clients=given.clients,
                    seconds=given.seconds,
                    warmup_s=WARMUP_S,
                    size=given.size,
                    keepalive=given.keepalive,
                    threads=given.threads,
                    identify=True,
                )
                rounds.append(Round(workers, number, variant, load))
                where = f"{workers} workers, round {number + 1}, {variant}"
                print(f"  {where:32} {load.rate:9.0f}/s", file=sys.stderr)
    return rounds


def ratios(rounds: Sequence[Round], variant: str) -> list[float]:
    """Rate of ``variant`` divided by that of plain in the same round, unless plain answered nothing."""
    rates = {(r.number, r.variant): r.load.rate for r in rounds}
    return [
        rates[number, variant] / rates[number, "plain"]
        for number in sorted({r.number for r in rounds})
        if rates[number, "plain"] > 0
    ]


def show(rounds: Sequence[Round], variants: Sequence[str]) -> None:
    """The table. Every figure is the median of the rounds; errors are the sum."""
    print(f"\n{'':38} {'first byte, µs':>24}   {'share of a worker':>24}")
    print(f"{'workers':>7} {'':5} {'conn/s':>7} {'÷ plain':>7}", end="")
    print(f" {'min..max':>10} {'p50':>7} {'p99':>7} {'p99.9':>7}", end="")
    print(f"  {'largest':>8} {'smallest':>8} {'even':>6} {'errors':>7}")
    for workers in sorted({r.workers for r in rounds}):
        of_workers = [r for r in rounds if r.workers == workers]
        for variant in variants:
            mine = [r for r in of_workers if r.variant == variant]
            quotients = ratios(of_workers, variant) if variant != "plain" else []
            spread = f"{min(quotients):.2f}..{max(quotients):.2f}" if quotients else ""
            took = [r.load.latency for r in mine]
            print(f"{workers:7} {variant:5} {median(r.load.rate for r in mine):7.0f}", end="")
            print(f" {f'{median(quotients):.2f}' if quotients else '':>7} {spread:>10}", end="")
            print(f" {median(t.p50 for t in took):7.0f} {median(t.p99 for t in took):7.0f}", end="")
            print(f" {median(t.p999 for t in took):7.0f}  {median(r.shares[-1] for r in mine):8.1%}", end="")
            print(f" {median(r.shares[0] for r in mine):8.1%} {1 / workers:6.1%}", end="")
            print(f" {sum(r.load.failed for r in mine):7}")
    busiest = max(r.load.cpu_seconds / r.load.elapsed_seconds for r in rounds)
    print(f"\nThe client used at most {busiest:.0%} of a core. Near 100 % for each of its threads, it is the")
    print("client that was measured, and a difference between the servers is larger than it seems.")
    for r in rounds:
        if r.load.failed:
            kinds = ", ".join(f"{kind} {count}" for kind, count in r.load.errors.items() if count)
            print(f"ERRORS: {r.workers} workers, round {r.number + 1}, {r.variant}: {kinds}")


def whole_numbers(text: str) -> list[int]:
    """``2,8`` as a list."""
    numbers = [int(word) for word in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Round robin against one shared listening socket.")
    parser.add_argument("--workers", type=whole_numbers, default=[2, 8], help="2,8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured, per variant and round")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--size", type=int, default=1, help="bytes of a request")
    parser.add_argument("--keepalive", action="store_true", help="requests/s on connections that stay open")
    parser.add_argument("--work", choices=("asyncio", "blocking"), default="asyncio")
    parser.add_argument("--api", choices=("streams", "protocol"), default="streams", help="of asyncio")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--none", action="store_true", help="measure SCHED_NONE too")
    parser.add_argument("--null", action="store_true", help="measure plain twice, to know the noise")
    parser.add_argument("--threads", type=int, default=1, help="of the client, where cores are to spare")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all raw figures")
    given = parser.parse_args()
    variants = ["plain", "rr"] + ["none"] * given.none + ["plain2"] * given.null
    if given.keepalive and given.work == "blocking":
        # Each worker would serve one connection for ever, and all others would time out.
        parser.error("--keepalive needs --work asyncio")

    # So that "finally" runs and ends the servers at SIGTERM too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    loadgen.build()
    machine.show()
    print(
        f"{given.rounds} rounds of {given.seconds:g} s, {given.clients} clients, {given.size}-byte echo,",
        f"{'kept alive' if given.keepalive else 'one connection per request'},",
        "blocking accept loop" if given.work == "blocking" else f"{given.loop} ({given.api})",
        flush=True,
    )
    about = machine.describe()
    rounds: list[Round] = []
    for workers in given.workers:
        rounds += measure(workers, variants, given)
    show(rounds, variants)
    if given.json is not None:
        raw = {"machine": about, "options": vars(given), "rounds": [asdict(r) for r in rounds]}
        given.json.write_text(json.dumps(raw, indent=1, default=str) + "\n")
    return 1 if any(r.load.failed or not r.load.requests for r in rounds) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
