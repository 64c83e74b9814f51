"""Tables of what was measured: in a terminal by Rich, and as Markdown for the documents."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

import figures
from results import CLOSED, KEPT, Cell, Results, Traffic

WIDTH = 190  # where it is no terminal
BEGIN, END = "<!-- written by make bench -->", "<!-- end -->"
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
- Largest, smallest: the shares of two workers in all rounds together, warm-ups included; ratio: one over the other.
  Jain's fairness index is 1 when all are even; CV is the coefficient of variation of the shares.
- Errors: requests that were refused, reset, too late (5 s), cut short or wrong, warm-up included."""


def title(block: Sequence[Cell]) -> str:
    """What the cells have in common."""
    first = block[0]
    traffic = first.traffic
    words = [first.protocol, first.engine_in_words, f"{traffic.arrivals} loop", traffic.mix]
    words.append("one connection per request" if traffic.connections == "fresh" else "connections kept open")
    return ", ".join(words)


def rows(block: Sequence[Cell]) -> Iterator[list[str]]:
    """The lines of a table, in the order of COLUMNS."""
    for cell in block:
        first = next(other for other in block if other.workers == cell.workers)
        shares = cell.shares
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
            f"{_unevenness(cell):.3f}",
            f"{figures.jain(shares):.4f}",
            f"{figures.variation(shares):.4f}",
            str(sum(r.failed for r in cell.rounds)),
        ]


def in_short(results: Results) -> Iterator[list[str]]:
    """Round robin against each other way, echo at full load: the lines of a table, in the order of IN_SHORT."""
    for cells in _beside(results, "echo", "rr", CLOSED):
        mine, shared, limit = cells["rr"], cells.get("shared"), cells.get("C handoff")
        others = [cells.get(name) for name in ("shared", "reuseport", "Node.js rr", "C handoff")]
        primary = mine.cpu("primary")
        yield [
            mine.engine_in_words,
            str(mine.workers),
            f"{mine.rate:.0f}",
            *("" if other is None else figures.spread(mine.ratios(other)) for other in others),
            f"{primary * 1000:.1f}",
            "" if limit is None else f"{primary / limit.cpu('primary'):.2f}",
            f"{_unevenness(mine):.3f}",
            "" if shared is None else f"{_unevenness(shared):.3f}",
        ]


IN_SHORT = (
    "engine",
    "workers",
    "rr, connections/s",
    "÷ shared",
    "÷ reuseport",
    "÷ Node.js rr",
    "÷ C handoff",
    "primary, µs CPU each",
    "÷ C handoff's",
    "largest ÷ smallest share, rr",
    "shared",
)


def servers_in_short(results: Results) -> Iterator[list[str]]:
    """`pycluster serve` against `uvicorn --workers`: the lines of a table, in the order of SERVERS_IN_SHORT."""
    for cells in _beside(results, "http", "pycluster serve", CLOSED, KEPT):
        mine, other = cells["pycluster serve"], cells.get("uvicorn --workers")
        if other is not None:
            yield [
                "one per request" if mine.traffic.connections == "fresh" else "kept open",
                str(mine.workers),
                f"{mine.rate:.0f}",
                f"{other.rate:.0f}",
                figures.spread(mine.ratios(other)),
                f"{_unevenness(mine):.3f}",
                f"{_unevenness(other):.3f}",
            ]


SERVERS_IN_SHORT = (
    "connections",
    "workers",
    "pycluster serve, requests/s",
    "uvicorn --workers",
    "ratio",
    "largest ÷ smallest share, pycluster",
    "uvicorn",
)


def _beside(results: Results, protocol: str, variant: str, *traffics: Traffic) -> Iterator[dict[str, Cell]]:
    """What was compared with this variant under such traffic, by name, for each engine and number of workers."""
    for block in results.blocks():
        if block[0].protocol == protocol and block[0].traffic in traffics:
            for workers in sorted({cell.workers for cell in block}):
                cells = {cell.variant: cell for cell in block if cell.workers == workers}
                if variant in cells:
                    yield cells


def _unevenness(cell: Cell) -> float:
    shares = cell.shares
    return shares[-1] / shares[0] if shares[0] else float("inf")


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
                yield f"ERRORS: {cell.protocol}, {_place(cell)}: {kinds}."
    busy = [(r.client_busy, cell) for cell in results.cells for r in cell.rounds]
    if busy:
        most, cell = max(busy, key=lambda pair: pair[0])
        yield (
            f"The client used {median(part for part, _ in busy):.0%} of a core (median), at most {most:.0%} "
            f"({_place(cell)}). Near 100 %, it is the client that was measured."
        )


def _place(cell: Cell) -> str:
    return f"{cell.engine_in_words}, {cell.workers} workers, {cell.variant}"


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
    for heading, columns, lines in _short_tables(results):
        table = Table(title=heading, title_justify="left", title_style="bold")
        for column in columns:
            table.add_column(column, justify="right")
        for row in lines:
            table.add_row(*row)
        console.print(table)
    for note in notes(results):
        console.print(note)


def _short_tables(results: Results) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    """Those that have a line: heading, columns, lines."""
    if lines := list(in_short(results)):
        yield "Round robin in short: echo, closed loop, one connection per request", IN_SHORT, lines
    if lines := list(servers_in_short(results)):
        yield "HTTP servers in short: one small ASGI app, closed loop", SERVERS_IN_SHORT, lines


def markdown(results: Results, pictures: Sequence[str]) -> str:
    """The document docs/bench/results.md."""
    lines = ["# Measured", "", "Written by `make bench`; do not edit.", ""]
    lines += [f"- {name}: {value}" for name, value in results.machine.items()]
    lines += [f"- {results.settings}", ""]
    lines += [f"![{name}]({name})\n" for name in pictures]
    for heading, columns, body in _short_tables(results):
        lines += ["", f"## {heading}", "", *_markdown_table(columns, body)]
    lines += ["", "## How to read the tables", "", EXPLAINED, ""]
    lines += [f"- {note}" for note in notes(results)]
    for block in results.blocks():
        heading = title(block)
        lines += ["", f"## {heading[0].upper()}{heading[1:]}", ""]
        lines += _markdown_table(COLUMNS, list(rows(block)))
    return "\n".join(lines) + "\n"


def excerpt(results: Results, pictures: Sequence[str], directory: str, workers: Sequence[int]) -> str:
    """What README shows of the document: a picture, the short tables for some numbers of workers, a picture.

    Args:
      directory: where the document and its pictures are, seen from README.
    """
    machine = "; ".join(f"{name} {value}" for name, value in results.machine.items() if not name.startswith("load"))
    shown = [f"![{name}]({directory}/{name})\n" for name in pictures if name in ("shares.svg", "throughput.svg")]
    lines = [
        *shown[:1],
        f"Measured by `make bench` ([all of it]({directory}/results.md)): {machine}. {results.settings}.",
    ]
    for heading, columns, body in _short_tables(results):
        kept = [row for row in body if int(row[1]) in workers]
        lines += ["", f"{heading}:", "", *_markdown_table(columns, kept)]
    return "\n".join([*lines, "", *shown[1:]])


def replaced(document: str, part: str) -> str:
    """The document with another part between the two marks.

    Raises:
      ValueError: it has no such marks.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"there is no {BEGIN} followed by {END}")
    return f"{before}{begin}\n{part}\n{end}{after}"


def _markdown_table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row) + " |" for row in body),
    ]
