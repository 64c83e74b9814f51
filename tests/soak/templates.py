"""Promise: workers come as fast from a template as from the primary, and the template's death is nobody's concern."""

import contextlib
import os
import signal
import tempfile
import time
from pathlib import Path
from statistics import median

from harness import Program, Programs
from soak.row import Row, show
from versions import Service

CLIENTS = 4
SLOWER = 3.0  # what "forkserver" may take, as a multiple of "fork"


def start_times(workers: int) -> Row:
    """Measure fork() to `online` with each start method."""
    took: dict[str, list[float]] = {}
    with contextlib.closing(Programs()) as programs:
        for method, count in (("fork", workers), ("forkserver", workers + 1), ("spawn", max(3, workers // 10))):
            program = programs("start_times", method, count)
            took[method] = program.wait_for("took", timeout=60.0)["seconds"]
            program.finish()
    first, *others = took["forkserver"]
    took["forkserver"] = others
    ms = {method: 1000 * median(times) for method, times in took.items()}
    return Row(
        "a worker is cloned from the template about as fast as it is forked",
        f"{workers} workers one after the other with fork and with forkserver",
        f"fork() to online, medians: fork {ms['fork']:.1f} ms, forkserver {ms['forkserver']:.1f} ms "
        f"(the first, with the template's start, {1000 * first:.0f} ms), spawn {ms['spawn']:.0f} ms",
        ms["forkserver"] <= SLOWER * ms["fork"],
    )


def template_of(program: Program) -> int | None:
    """The process id of a primary's template, when it has just one."""
    workers = {fact["worker_pid"] for fact in program.facts_of("online")}
    others = set(program.processes()) - workers - {program.pid}
    return others.pop() if len(others) == 1 else None


def killed(times: int) -> Row:
    """Kill the template so often, and start a worker each time, which needs another one."""
    took: list[float] = []
    templates = set()
    with contextlib.closing(Programs()) as programs, tempfile.TemporaryDirectory() as directory:
        service = Service(programs, Path(directory), 2, start_method="forkserver", preload=["part"])
        program = service.program
        with service.load(CLIENTS) as load:
            for number in range(1, times + 1):
                assert load.wait_for(20)
                template = template_of(program)
                assert template is not None, program
                templates.add(template)
                os.kill(template, signal.SIGKILL)
                began = time.monotonic()
                program.send_signal(signal.SIGTTIN)
                program.wait_for_all(2 + number, "listening")
                took.append(time.monotonic() - began)
                program.send_signal(signal.SIGTTOU)
                program.wait_for_all(number, "exit")
        ends = {(fact["code"], fact["signal"]) for fact in program.facts_of("exit")}
        service.end()
    failed = len(load.failures)
    return Row(
        "a template that dies is replaced, and no request fails",
        f"{times} × SIGKILL of the template, then SIGTTIN, {CLIENTS} clients",
        f"{len(templates)} templates, after each a worker that listened within {max(took):.2f} s; "
        f"{failed} of {len(load.answered) + failed:,} requests failed",
        not failed and len(templates) == times and ends == {(0, None)},
    )


def main() -> None:
    show(start_times(50), killed(20))


if __name__ == "__main__":
    main()
