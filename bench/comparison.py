"""A comparison from its plan to its figures: what balance.py and serve.py do, each with a plan of its own."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import loadgen
import machine
import report
from measure import Settings, Tell, measure
from plan import Suite
from results import Results
from variants import VARIANTS, versions


def compare(suites: list[Suite], settings: Settings, file: Path | None) -> Results:
    """Measure, write all figures to a file if one is given, and show the tables.

    The file is written after each suite. Interrupted by Ctrl-C, it goes on with what is complete by then. SIGTERM ends
    the program, and its servers.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    loadgen.build()
    skipped: dict[str, str] = {}
    for number, suite in enumerate(suites):
        absent = {name: why for name in suite.variants if (why := VARIANTS[name].missing(suite.task(1)))}
        suites[number] = suite.reduced(absent)
        skipped |= {f"{name}, {suite.engine}": why for name, why in absent.items()}
    loads = sum(suite.loads for suite in suites)
    minutes = sum(suite.seconds for suite in suites) / 60
    lengths = " or ".join(f"{seconds:g}" for seconds in sorted({suite.load_s for suite in suites}))
    words = f"{lengths} s per round after a warm-up, {settings.clients} clients, interleaved rounds"
    if loops := {suite.loop for suite in suites if suite.engine == "app"}:
        words += f"; HTTP servers on {' and '.join(sorted(loops))} where they have a loop"
    results = Results({**machine.describe(), **versions()}, words, skipped)
    print("; ".join(f"{name} {value}" for name, value in results.machine.items()))
    print(f"{words}; {loads} loads, about {minutes:.0f} minutes", flush=True)
    with progress(loads) as tell:
        try:
            for suite in suites:
                for cell in measure(suite, settings, results.problems, tell):
                    results.cells.append(cell)
                _save(results, file)
        except KeyboardInterrupt:
            results.problems.append("interrupted")
    _save(results, file)
    if results.cells:
        report.show(results)
    return results


def _save(results: Results, file: Path | None) -> None:
    results.machine["load after"] = machine.load()
    if file is not None:
        results.write(file)


@contextlib.contextmanager
def progress(loads: int) -> Iterator[Tell]:
    """Show on a terminal how far it is; elsewhere say a line when other servers are loaded."""
    console = Console(stderr=True)
    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=loads)
        begun = 0
        before = ""

        def tell(where: str, what: str) -> None:
            nonlocal begun, before
            if before != where and not console.is_terminal:
                print(f"{begun}/{loads}: {where}", file=sys.stderr, flush=True)
            bar.update(task, description=f"{where}, {what}", completed=begun)
            begun += 1
            before = where

        yield tell


def whole_numbers(text: str) -> tuple[int, ...]:
    """``2,8`` as numbers."""
    numbers = tuple(int(word) for word in text.split(","))
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers
