"""Claim: one way, messages take at most half the time that Node.js's ``process.send`` takes; JSON, two thirds at most.

JSON on both sides is twice as fast on most machines, too, but not on all: to the primary it was 1.7 to 2.4 times.

Round trips are measured, too, and are not twice as fast everywhere: they are mostly waking up. Where processors fall
asleep between messages they are several times as fast, since pycluster does not sleep at once; where something else
keeps the processors awake, Node.js is woken quickly, and it is 1.2 to 2.5 times.

Three figures, between a primary and one worker, with small objects and each library's own way to encode them::

    round trips    one message in flight: the worker sends back what it gets
    to primary     the worker sends so many in a loop; counted until the primary has handled the last one
    to worker      the same, the other way

A round runs each of the four programs (Node.js json and advanced, pycluster json and msgpack) once, in fresh processes,
one after the other; the ratio is taken within the round, since the machine's speed drifts between rounds.

    python bench/micro/messages.py [--rounds 7] [--trips 20000] [--messages 200000]

Status 0 without figures where there is no ``node``; 1 where the median of a ratio one way is below what is claimed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from pycluster import Worker, cluster, process

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import machine

LIMIT_S = 120  # of one program, which takes some seconds
FIGURES = ("round_trips", "to_primary", "to_worker")
# What is compared: json with json, the binary ones, and what each library does when it is not told.
PAIRS = {
    "json": ("node json", "pycluster json"),
    "binary": ("node advanced", "pycluster msgpack"),
    "default": ("node json", "pycluster msgpack"),
}
AT_LEAST = {"json": 1.5, "binary": 2.0, "default": 2.0}

Figures = dict[str, float]


def message(n: int) -> dict[str, Any]:
    """What is sent."""
    return {"n": n, "name": "worker", "text": "hello, world"}


class Talk:
    """The primary's side: one phase after the other, each of them begun by the answer to the one before."""

    def __init__(self, worker: Worker, trips: int, count: int) -> None:
        self.figures: Figures = {}
        self._worker = worker
        self._trips = trips
        self._count = count
        self._phase = "warm up"
        self._left = trips // 10
        self._began = 0.0
        worker.on("message", self.on_message)

    def on_message(self, said: Any, handle: None) -> None:
        if self._phase == "to_primary":
            self._left -= 1
            if self._left == 0:
                self._note(self._count, "to_worker")
                for n in range(self._count):
                    self._worker.send(message(n))
        elif self._phase == "to_worker":
            self._note(self._count, "over")
            self._worker.disconnect()
        elif self._left > 0:
            self._left -= 1
            self._worker.send(message(self._left))
        elif self._phase == "warm up":
            self._note(0, "round_trips")
            self._left = self._trips - 1
            self._worker.send(message(self._left))
        else:
            self._note(self._trips, "to_primary")
            self._left = self._count
            self._worker.send("send")

    def _note(self, count: int, next_phase: str) -> None:
        now = time.perf_counter()
        if count:
            self.figures[self._phase] = count / (now - self._began)
        self._phase = next_phase
        self._began = now


def talk(serialization: str, trips: int, count: int) -> None:
    """Measure once, in the primary; prints the figures."""
    cluster.setup_primary(serialization=serialization)
    said = Talk(cluster.fork(), trips, count)
    cluster.run()
    print(json.dumps(said.figures))


def answer(count: int) -> None:
    """The worker's side; it ends when it is disconnected."""
    got = -1

    def on_message(said: Any, handle: None) -> None:
        nonlocal got
        if said == "send":
            got = 0
            for n in range(count):
                process.send(message(n))
        elif got < 0:
            process.send(said)
        else:
            got += 1
            if got == count:
                process.send("got all")

    process.on("message", on_message)
    process.send("ready")


def run(name: str, trips: int, count: int) -> Figures:
    """One program in processes of its own."""
    runtime, serialization = name.split()
    arguments = [serialization, str(trips), str(count)]
    if runtime == "node":
        command = ["node", str(Path(__file__).with_suffix(".js")), *arguments]
    else:
        command = [sys.executable, __file__, "--talk", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode != 0 or not done.stdout:
        raise SystemExit(f"{name} ended with {done.returncode}\n{done.stderr}")
    figures: Figures = json.loads(done.stdout)
    return figures


def spread(values: list[float], digits: int = 0) -> str:
    """Median and range."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def main() -> int:
    """Compare."""
    parser = argparse.ArgumentParser(description="messages between primary and worker, against Node.js")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trips", type=int, default=20_000)
    parser.add_argument("--messages", type=int, default=200_000)
    given = parser.parse_args()
    if shutil.which("node") is None:
        print("skipped: there is no `node` to compare with")
        return 0
    machine.show()
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"node {version}; {given.rounds} interleaved rounds, {given.trips} round trips, {given.messages} one way")

    names = list(dict.fromkeys(name for pair in PAIRS.values() for name in pair))
    seen: dict[str, list[Figures]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            seen[name].append(run(name, given.trips, given.messages))

    print(f"\nper second, median (min..max)\n{'':20}" + "".join(f"{figure:>28}" for figure in FIGURES))
    for name in names:
        print(f"{name:20}" + "".join(f"{spread([figures[f] for figures in seen[name]]):>28}" for f in FIGURES))
    print("\npycluster ÷ node, of each round, median (min..max)")
    slow = []
    for pair, (theirs, ours) in PAIRS.items():
        cells = []
        for figure in FIGURES:
            ratios = [mine[figure] / its[figure] for mine, its in zip(seen[ours], seen[theirs], strict=True)]
            cells.append(f"{spread(ratios, 2):>28}")
            if figure != "round_trips" and median(ratios) < AT_LEAST[pair]:
                slow.append(f"{pair}, {figure}: below {AT_LEAST[pair]}")
        print(f"{pair:20}" + "".join(cells))
    if slow:
        print("; ".join(slow))
    return 1 if slow else 0


if __name__ == "__main__":
    if cluster.is_worker:
        answer(int(sys.argv[-1]))  # and stay for what comes: a script that calls sys.exit does not
    elif sys.argv[1:2] == ["--talk"]:
        talk(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.exit(main())
