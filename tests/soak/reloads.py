"""Promise: new code is taken up under load, or refused, and no request fails; nor when workers are added or removed.

A service of which new versions are released (versions.py) is reloaded by SIGHUP, with each start method: with "fork"
the primary executes itself anew.
"""

import contextlib
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness import Programs, free_port, wait_until
from load import mixed
from soak.row import Row, show
from versions import Service, descriptors, versions

METHODS = ("fork", "spawn", "forkserver")
CLIENTS = 4
SILENCE = {'elif "IDLE" in os.environ': "elif True"}
# What is wrong with a new version, by which changes, and the signal that asks for it: SIGUSR1 gives it 2 s to listen.
BROKEN = {
    "has a syntax error": ({"import asyncio": "?"}, signal.SIGHUP),
    "ends at its start": ({"import asyncio": "raise SystemExit(5)"}, signal.SIGHUP),
    "never listens": (SILENCE, signal.SIGUSR1),
}


@contextlib.contextmanager
def service_of(method: str, workers: int = 2) -> Iterator[Service]:
    with contextlib.closing(Programs()) as programs, tempfile.TemporaryDirectory() as directory:
        preload = ["part"] if method == "forkserver" else None
        yield Service(programs, Path(directory), workers, start_method=method, preload=preload)


def reloaded(method: str, times: int) -> Row:
    """Release so many versions, and reload each."""
    with service_of(method) as service:
        before = descriptors(service.program)
        new = 0
        with service.load(CLIENTS) as load:
            for version in range(1, times + 1):
                service.release(version)
                service.reload()
                new += versions(load) == {(version, version)}
        same = wait_until(lambda: descriptors(service.program) == before)
        images = {fact["version"] for fact in service.program.facts_of("ready", pid=service.program.pid)}
        service.end()
    failed = len(load.failures)
    anew = f", which executed itself anew {len(images) - 1} times" if method == "fork" else ""
    return Row(
        "a reload fails no request, and the new code runs",
        f"{times} × SIGHUP with a new version, start_method={method!r}, {CLIENTS} clients",
        f"{failed} of {len(load.answered) + failed:,} requests failed, the longest took "
        f"{1000 * load.longest_s:.0f} ms; the new code alone answered after {new} of {times}; the same primary{anew}, "
        f"its descriptors {'unchanged' if same else 'changed'}",
        not failed and new == times and same and images == (set(range(times + 1)) if method == "fork" else {0}),
    )


def broken(what: str) -> Row:
    """Release a version that cannot serve, with each start method."""
    changes, number = BROKEN[what]
    answered, failed, old, reasons = 0, 0, 0, []
    for method in METHODS:
        with service_of(method) as service:
            service.program.expects_traceback = True
            with service.load(CLIENTS) as load:
                assert load.wait_for(20)
                service.release(1, changes)
                service.fails_to_reload("the reload has stopped", number)
                old += versions(load) == {(0, 0)}
            service.end()
            said = re.search(r"the reload has stopped: (.*)", service.program.stderr)
            reasons.append(said[1] if said else "")
        answered += len(load.answered)
        failed += len(load.failures)
    return Row(
        "a new version that cannot serve leaves the old workers serving, and the reason is told",
        f"a version that {what}, once with each start method, {CLIENTS} clients",
        f"{failed} of {answered + failed:,} requests failed, the old workers served on in {old} of {len(METHODS)}; "
        f'told, with "fork": {_shown(reasons[0])}',
        not failed and old == len(METHODS) and all(reasons),
    )


def _shown(reason: str) -> str:
    """What happened, without what is to be done about it, nor what differs each time."""
    return re.sub(r" \(pid \d+\)| on 127\.0\.0\.1:\d+", "", reason).partition(";")[0]


def more_and_fewer(times: int, step: int) -> Row:
    """Add some workers and remove them again, so often."""
    with contextlib.closing(Programs()) as programs:
        port = free_port()
        program = programs("lines", 2, port)
        program.wait_for_all(2, "listening")
        with mixed(port, CLIENTS) as load:
            for round_ in range(1, times + 1):
                for number in range(1, step + 1):
                    program.send_signal(signal.SIGTTIN)
                    program.wait_for_all(2 + (round_ - 1) * step + number, "listening")
                for number in range(1, step + 1):
                    program.send_signal(signal.SIGTTOU)
                    program.wait_for_all((round_ - 1) * step + number, "exit")
        program.send_signal(signal.SIGTERM)
        assert program.finish().returncode == 0
        most = max(len(fact["workers"]) for fact in program.facts_of("listening"))
        ends = {(fact["code"], fact["signal"]) for fact in program.facts_of("exit")}
    failed = len(load.failures)
    return Row(
        "no request fails while workers are added and removed",
        f"{times * step} × SIGTTIN and {times * step} × SIGTTOU, {step} at a time, {CLIENTS} clients, "
        "half with keep-alive",
        f"{failed} of {len(load.answered) + failed:,} requests failed, from 2 to {most} workers and back",
        not failed and most == 2 + step and ends == {(0, None)},
    )


def main() -> None:
    show(
        *(reloaded(method, 20) for method in METHODS),
        *(broken(what) for what in BROKEN),
        more_and_fewer(4, 5),
    )


if __name__ == "__main__":
    main()
