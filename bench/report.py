"""Tables of what was measured: in a terminal by Rich, and as Markdown for the documents."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

import figures
from results import Cell, Results, Traffic

WIDTH = 190  # where it is no terminal
ENGINES = {
    "asyncio": "asyncio (streams)",
    "uvloop": "asyncio streams on uvloop",
    "blocking": "blocking accept loop",
    "app": "HTTP servers with one small app",
}
COLUMNS = (
    "workers",
    "variant",
    "requests/s",
    "÷ first",
    "p50",
    "p90",
    "p99",
    "p99.9",
    "CPU primary",
    "CPU workers",
    "largest",
    "smallest",
    "ratio",
    "Jain",
    "CV",
    "errors",
)
EXPLAINED = """\
- Every figure is the median of the rounds; in parentheses the smallest and the largest. `÷ first` is the rate divided
  by that of the first variant of the same number of workers in the same round. Only ratios of one run mean anything.
- Closed loop: so many clients, and each begins a request when its last one is answered, so the latencies are those at
  full load. Open loop: requests begin on a fixed schedule, at half of what the slowest variant can do, and their
  latency counts from the scheduled time, whether or not the client could begin then (no coordinated omission).
- Mixed: 5 % of the requests, at random, hold their worker for 50 ms (`time.sleep`: no processor time), in event loops
  as well, as a handler does there that computes or calls what blocks.
- Latency: microseconds from connect(), on connections kept open from the send, to the first byte of the answer.
- CPU: seconds of processor time per 1 000 requests, of the process that was started, and of all its children.
- Largest, smallest: the shares of two workers, in all rounds together; ratio: one over the other. Jain's fairness index
  is 1 when all are even; CV is the coefficient of variation of the shares.
- Errors: requests that were refused, reset, too late (5 s), cut short or wrong, warm-up included."""


def title(block: Sequence[Cell]) -> str:
    """What the cells have in common."""
    first = block[0]
    traffic = first.traffic
    words = [first.protocol, ENGINES[first.engine], f"{traffic.arrivals} loop", traffic.mix]
    words.append("one connection per request" if traffic.connections == "fresh" else "connections kept open")
    return ", ".join(words)


def rows(block: Sequence[Cell]) -> Iterator[list[str]]:
    """The lines of a table, in the order of COLUMNS."""
    for cell in block:
        first = next(other for other in block if other.workers == cell.workers)
        shares = cell.shares
        ratio = shares[-1] / shares[0] if shares[0] else float("inf")
        yield [
            str(cell.workers),
            cell.variant + (f" at {cell.offered:.0f}/s" if cell.offered else ""),
            figures.spread((r.rate for r in cell.rounds), 0),
            "" if cell is first or cell.offered else figures.spread(cell.ratios(first)),
            *(f"{cell.latency(name):.0f}" for name in ("p50", "p90", "p99", "p999")),
            f"{cell.cpu('primary'):.4f}",
            f"{cell.cpu('workers'):.4f}",
            f"{shares[-1]:.2%}",
            f"{shares[0]:.2%}",
            f"{ratio:.3f}",
            f"{figures.jain(shares):.4f}",
            f"{figures.variation(shares):.4f}",
            str(sum(r.failed for r in cell.rounds)),
        ]


def in_short(results: Results) -> Iterator[list[str]]:
    """Round robin against each other way, echo at full load: engine, workers, then ratios."""
    for engine in ("asyncio", "uvloop", "blocking"):
        for workers in sorted({cell.workers for cell in results.cells}):
            mine = results.find("echo", engine, Traffic(), workers, "rr")
            shared = results.find("echo", engine, Traffic(), workers, "shared")
            if mine is None or shared is None:
                continue
            line = [engine, str(workers), f"{mine.rate:.0f}"]
            for name in ("shared", "reuseport", "Node.js rr", "C handoff"):
                other = results.find("echo", engine, Traffic(), workers, name)
                line.append(figures.spread(mine.ratios(other)) if other is not None else "")
            for cell in (mine, shared):
                line.append(f"{cell.shares[-1]:.1%} / {cell.shares[0]:.1%}")
            yield line


IN_SHORT = (
    "engine",
    "workers",
    "rr, connections/s",
    "÷ shared",
    "÷ reuseport",
    "÷ Node.js rr",
    "÷ C handoff",
    "shares, rr",
    "shares, shared",
)


def notes(results: Results) -> Iterator[str]:
    """What else must be known: who was not there, what went wrong, and whether the client was the limit."""
    for name, why in results.skipped.items():
        yield f"Skipped: {name} ({why})."
    for problem in results.problems:
        yield f"PROBLEM: {problem}."
    for cell in results.cells:
        for r in cell.rounds:
            if r.errors:
                kinds = ", ".join(f"{kind} {count}" for kind, count in r.errors.items())
                yield f"ERRORS: {cell.protocol} {cell.engine}, {cell.workers} workers, {cell.variant}: {kinds}."
    busy = [(r.client_busy, cell) for cell in results.cells for r in cell.rounds]
    if busy:
        most, cell = max(busy, key=lambda pair: pair[0])
        yield (
            f"The client used {median(part for part, _ in busy):.0%} of a core (median), at most {most:.0%} "
            f"({cell.engine}, {cell.workers} workers, {cell.variant}). Near 100 %, it is the client that was measured."
        )


def show(results: Results) -> None:
    """Print all tables."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    for block in results.blocks():
        table = Table(title=title(block), title_justify="left", title_style="bold", pad_edge=False)
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "variant" else "right", overflow="fold")
        before = 0
        for cell, row in zip(block, rows(block), strict=True):
            if before not in (0, cell.workers):
                table.add_section()
            before = cell.workers
            table.add_row(*row, style="bold" if cell.variant in ("rr", "pycluster serve") else None)
        console.print(table)
    if short := list(in_short(results)):
        table = Table(title="In short: round robin, echo, closed loop", title_justify="left", title_style="bold")
        for column in IN_SHORT:
            table.add_column(column, justify="right")
        for row in short:
            table.add_row(*row)
        console.print(table)
    for note in notes(results):
        console.print(note)


def markdown(results: Results, pictures: Sequence[str]) -> str:
    """The document docs/bench/results.md."""
    lines = ["# Measured", "", "Written by `make bench`; do not edit.", ""]
    lines += [f"- {name}: {value}" for name, value in results.machine.items()]
    lines += [f"- {results.settings}", ""]
    lines += [f"![{name}]({name})\n" for name in pictures]
    if short := list(in_short(results)):
        lines += ["", "## Round robin in short", "", "Echo, closed loop, one connection per request.", ""]
        lines += _markdown_table(IN_SHORT, short)
    lines += ["", "## How to read the tables", "", EXPLAINED, ""]
    lines += [f"- {note}" for note in notes(results)]
    for block in results.blocks():
        heading = title(block)
        lines += ["", f"## {heading[0].upper()}{heading[1:]}", ""]
        lines += _markdown_table(COLUMNS, list(rows(block)))
    return "\n".join(lines) + "\n"


def _markdown_table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row) + " |" for row in body),
    ]
