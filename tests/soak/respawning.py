"""Promise: workers that crash are replaced, those that crash in a loop later and later, and in the end not at all."""

import contextlib
import os
import signal
import tempfile
import time
from pathlib import Path

from harness import Programs, free_port
from puppets import puppets
from pycluster.respawn import FIRST_PAUSE_S, NEVER_UP
from soak.row import Row, show

LATE_S = 0.5  # what a crowded machine may add to a pause


def crash_loop(crashes: int) -> Row:
    """Kill one of three workers and its successors, each when it is ready."""
    pauses: list[float] = []
    with (
        contextlib.closing(Programs()) as programs,
        tempfile.TemporaryDirectory() as directory,
        puppets(programs, Path(directory), 3, respawn="on-failure") as cluster,
    ):
        cluster.do(1, "listen", port=free_port())  # so the script is none that never comes up
        worker = 2
        for number in range(crashes):
            os.kill(cluster.pid(worker), signal.SIGKILL)
            ended = cluster.program.wait_for("exit", worker=worker)
            worker = 4 + number
            forked = cluster.program.wait_for("fork", worker=worker)
            pauses.append(forked["at_s"] - ended["at_s"])
            cluster.program.wait_for("ready", worker=worker)
        slots = {int(id): stats["slot"] for id, stats in cluster.do(0, "stats")["workers"].items()}
        states = cluster.do(0, "states")
    wanted = [FIRST_PAUSE_S * 2**number for number in range(crashes)]
    return Row(
        "a worker that crashes in a loop is replaced later and later, in its own slot",
        f"{crashes} × SIGKILL of the second of 3 workers and its successors, once they are up",
        f"replaced after {', '.join(f'{pause:.2f}' for pause in pauses)} s; worker {worker} is in slot "
        f"{slots.get(worker)}, the others in {slots.get(1)} and {slots.get(3)}",
        all(-0.05 <= pause - due <= LATE_S for pause, due in zip(pauses, wanted, strict=True))
        and slots == {1: 0, 3: 2, worker: 1}
        and len(states) == 3,
    )


def never_up(workers: int) -> Row:
    """A script whose workers end at their start."""
    with contextlib.closing(Programs()) as programs:
        began = time.monotonic()
        program = programs("never_up", "run", workers)
        status = program.finish().returncode
        took = time.monotonic() - began
        exits = program.facts_of("exit")
    return Row(
        "a script that never comes up ends run() with a status of its own",
        f"{workers} workers that end at their start, under respawn",
        f"status {status} after {took:.2f} s and {len(exits)} workers, in slots 0 to {max(f['slot'] for f in exits)}",
        status == NEVER_UP and {fact["slot"] for fact in exits} == set(range(workers)),
    )


def main() -> None:
    show(crash_loop(7), never_up(2), never_up(8))


if __name__ == "__main__":
    main()
