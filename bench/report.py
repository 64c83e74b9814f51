"""Tables of what was measured: in a terminal by Rich, and as Markdown for the documents."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Literal

from rich.console import Console
from rich.table import Table

import figures
from results import CLOSED, KEPT, Cell, Results, Round, Traffic

WIDTH = 230  # where it is no terminal
BEGIN, END = "<!-- written by make bench -->", "<!-- end -->"
FEWEST_ABOVE = 10  # samples above a percentile: with fewer, it is the luck of some requests
ONE_IN = {"p50": 2, "p90": 10, "p99": 100, "p999": 1000}  # samples lies above the percentile
UNKNOWN = "–"
BUSY_CLIENT = 0.85  # of a core: above it, the client may be what is measured
BUSY_OTHERS = 0.05  # of the machine
REOPENED = 0.1  # connections per request, above which a server has not kept them
MARK = "†"

Line = dict[str, str]  # of a table: what stands below each heading

EXPLAINED_SHORT = f"""\
`shared2` is the shared socket once more: what this machine calls a difference where there is none. The primary's µs are
processor time per connection. {MARK}: the client took more than {BUSY_CLIENT:.0%} of a core, and may be what was
measured. "{UNKNOWN}": fewer than {FEWEST_ABOVE} samples above the percentile."""

EXPLAINED = f"""\
- Rates, ratios, p99, and processor times: the median of the rounds, and in parentheses the smallest and the largest.
  Other percentiles, the client's lateness, client and others: the median of the rounds. The range is that of the rounds
  of one run; another run, with servers started anew, can lie outside. Only ratios of one run mean anything.
- `÷` a variant: the rate divided by that variant's in the same round, with as many workers. Empty where it was not run.
- `shared2` is `shared` once more: what this machine calls a difference where there is none.
- Closed loop: so many clients, and each begins a request when its last one is answered, so the latencies are those at
  full load. Open loop: requests begin on a fixed schedule, by default at half of what the slowest variant can do, and
  their latency counts from the scheduled time, whether or not the client could begin then (no coordinated omission).
  `client late`: how much later than scheduled the client itself began, which is a part of that latency.
- Mixed: 5 % of the requests, at random, hold their worker for 50 ms (`time.sleep`: no processor time), in event loops
  as well, as a handler does there that computes or calls what blocks.
- Latency: microseconds from connect(), on connections kept open from the send, to the first byte of the answer.
  Where a round has fewer than {FEWEST_ABOVE} samples above a percentile, it is that of all rounds together, and has no
  range; "{UNKNOWN}" where they have fewer, too.
- CPU: microseconds of processor time per request, of the process that was started, and of all its children.
- Shares: the smallest and the largest worker's in all rounds together, warm-ups included; then the largest over the
  smallest, which is ∞ when a worker got nothing. Jain's fairness index is 1 when all are even; CV is the coefficient of
  variation of the shares. On connections kept open they are shares of the answers, not of the connections.
- Client: the part of a core that the client took; {MARK} above {BUSY_CLIENT:.0%} in a closed loop, where it may be what
  was measured. Others: the part of the whole machine that neither this server nor the client took.
- Errors: requests of all rounds that were refused, reset, too late (5 s), cut short or wrong, warm-up included."""


def title(block: Sequence[Cell]) -> str:
    """What the cells have in common."""
    first = block[0]
    return f"{first.protocol}, {first.engine_in_words}, {in_words(first.traffic)}"


def in_words(traffic: Traffic) -> str:
    """How a server is loaded."""
    kind = "one connection per request" if traffic.connections == "fresh" else "connections kept open"
    return f"{traffic.arrivals} loop, {traffic.mix}, {kind}"


def rows(block: Sequence[Cell]) -> Iterator[Line]:
    """The lines of a table."""
    base = block[0].variant
    opened = block[0].traffic.arrivals == "open"
    of = "answers" if block[0].traffic.connections == "kept" else "connections"
    for cell in block:
        first = next((c for c in block if (c.workers, c.variant) == (cell.workers, base)), None)
        line = {"workers": str(cell.workers), "variant": cell.variant}
        if opened:
            line |= {"offered/s": f"{cell.offered:.0f}"}
        line |= {"requests/s": figures.spread((r.rate for r in cell.rounds), 0)}
        if not opened:
            line |= {f"÷ {base}": "" if first in (cell, None) else figures.spread(cell.ratios(first))}
        line |= {"p50": _percentile(cell, "p50"), "p90": _percentile(cell, "p90")}
        line |= {"p99": _percentile(cell, "p99", ranged=True), "p99.9": _percentile(cell, "p999")}
        if opened:
            line |= {"client late, p50": _late(cell, "p50"), "client late, p99": _late(cell, "p99")}
        yield line | {
            "µs CPU, primary": figures.spread(_cpu_us(cell, "primary").values(), 1),
            "µs CPU, workers": figures.spread(_cpu_us(cell, "workers").values(), 1),
            f"shares of {of}": f"{cell.shares[0]:.2%}..{cell.shares[-1]:.2%}",
            "largest ÷ smallest": _unevenness(cell),
            "Jain": f"{figures.jain(cell.shares):.4f}",
            "CV": f"{figures.variation(cell.shares):.4f}",
            "client": _marked(f"{_client(cell):.0%}", cell),
            "others": f"{_others(cell):.0%}",
            "errors": str(sum(r.failed for r in cell.rounds)),
        }


def in_short(results: Results) -> Iterator[Line]:
    """Round robin against each other way, echo at full load; and the shared socket against itself."""
    for cells in _beside(results, "echo", "rr", CLOSED):
        for name in ("rr", "shared2"):
            if name in cells:
                mine, others = cells[name], cells if name == "rr" else {"shared": cells.get("shared")}
                reference = others.get("C handoff")
                yield {
                    "engine": mine.engine_in_words + ("" if name == "rr" else f": {name}"),
                    "workers": str(mine.workers),
                    "connections/s": _marked(f"{mine.rate:.0f}", mine),
                    **{
                        f"÷ {other}": _ratio(mine, others.get(other))
                        for other in ("shared", "reuseport", "Node.js rr", "C handoff")
                    },
                    "primary at full load, µs CPU": figures.spread(_cpu_us(mine, "primary").values(), 1)
                    if name == "rr"
                    else "",
                    "those ÷ C handoff's": "" if reference is None else figures.spread(_cpu_ratios(mine, reference)),
                    "largest ÷ smallest share": _unevenness(mine),
                    "of shared": _unevenness(cells["shared"]) if name == "rr" and "shared" in cells else "",
                }


def opened_in_short(results: Results) -> Iterator[Line]:
    """The latency of the ways to share a port in open loops, and what round robin takes there."""
    opened = dict.fromkeys(cell.traffic for cell in results.cells if cell.traffic.arrivals == "open")
    for protocol in ("echo", "http"):
        for cells in _beside(results, protocol, "rr", *opened):
            mine = cells["rr"]
            yield {
                "requests": f"{protocol}, {mine.traffic.mix}",
                "engine": mine.engine_in_words,
                "workers": str(mine.workers),
                "offered/s": f"{mine.offered:.0f}",
                **{
                    f"{name}: p50 / p99, µs": " / ".join(_percentile(cells[name], part) for part in ("p50", "p99"))
                    if name in cells
                    else ""
                    for name in ("rr", "shared", "reuseport")
                },
                "client late: p50 / p99, µs": f"{_late(mine, 'p50')} / {_late(mine, 'p99')}",
                "primary, µs CPU": figures.spread(_cpu_us(mine, "primary").values(), 1),
            }


def servers_in_short(results: Results) -> Iterator[Line]:
    """`pycluster serve` against other servers."""
    for cells in _beside(results, "http", "pycluster serve", CLOSED, KEPT):
        mine, uvicorn = cells["pycluster serve"], cells.get("uvicorn --workers")
        yield {
            "connections": "one per request" if mine.traffic.connections == "fresh" else "kept open",
            "workers": str(mine.workers),
            "pycluster serve, requests/s": _marked(f"{mine.rate:.0f}", mine),
            **{
                f"÷ {other}": _ratio(mine, cells.get(other))
                for other in ("uvicorn --workers", "granian", "hypercorn", "gunicorn sync", "gunicorn gthread")
            },
            "largest ÷ smallest share": _unevenness(mine),
            "of uvicorn": "" if uvicorn is None else _unevenness(uvicorn),
        }


def _beside(results: Results, protocol: str, variant: str, *traffics: Traffic) -> Iterator[dict[str, Cell]]:
    """What was compared with this variant under such traffic, by name, for each engine and number of workers."""
    for block in results.blocks():
        if block[0].protocol == protocol and block[0].traffic in traffics:
            for workers in sorted({cell.workers for cell in block}):
                cells = {cell.variant: cell for cell in block if cell.workers == workers}
                if variant in cells:
                    yield cells


def _ratio(mine: Cell, other: Cell | None) -> str:
    return "" if other is None else _marked(figures.spread(mine.ratios(other)), mine, other)


def _unevenness(cell: Cell) -> str:
    """The largest share over the smallest."""
    smallest, *_, largest = cell.shares * 2  # one worker is both
    return f"{largest / smallest:.3f}" if smallest else "∞"


def _percentile(cell: Cell, name: str, *, ranged: bool = False) -> str:
    """Of the latency in each round if there are samples enough above it, else in all rounds together."""
    counts = [r.latency.count for r in cell.rounds if r.latency.count]
    least = FEWEST_ABOVE * ONE_IN[name]
    if sum(counts) < least:
        return UNKNOWN
    if median(counts) >= least:
        values = (float(getattr(r.latency, name)) for r in cell.rounds if r.latency.count)
        return figures.spread(values, 0) if ranged else f"{cell.latency(name):.0f}"
    return f"{figures.percentile(cell.histogram, 1 - 1 / ONE_IN[name]):.0f}"


def _late(cell: Cell, name: Literal["p50", "p99"]) -> str:
    """How late the client began: there are as many samples of it as of the latency."""
    late = [r.late_p50_us if name == "p50" else r.late_p99_us for r in cell.rounds if r.latency.count]
    return UNKNOWN if _percentile(cell, name) == UNKNOWN else f"{median(late):.0f}"


def _cpu_us(cell: Cell, name: Literal["primary", "workers"]) -> dict[int, float]:
    """Microseconds of processor time per request, by the round's number."""

    def taken_s(r: Round) -> float:
        return r.cpu_primary_s if name == "primary" else r.cpu_workers_s

    return {r.number: 1e6 * taken_s(r) / r.completed for r in cell.rounds if r.completed}


def _cpu_ratios(mine: Cell, other: Cell) -> list[float]:
    """What this primary takes for a request over what the other's takes, round by round."""
    theirs = _cpu_us(other, "primary")
    return [took / theirs[number] for number, took in _cpu_us(mine, "primary").items() if theirs.get(number)]


def _client(cell: Cell) -> float:
    return median(r.client_busy for r in cell.rounds)


def _others(cell: Cell) -> float:
    return median(r.others_busy for r in cell.rounds)


def _marked(text: str, *cells: Cell) -> str:
    """With a mark where the client may have been the limit of one of these cells."""
    busy = any(cell.traffic.arrivals == "closed" and _client(cell) > BUSY_CLIENT for cell in cells)
    return text + MARK if text and busy else text


def notes(results: Results) -> Iterator[str]:
    """What else must be known: who was not there, what went wrong, and whether the machine or the client was busy."""
    for name, why in results.skipped.items():
        yield f"Skipped: {name} ({why})."
    for problem in results.problems:
        yield f"PROBLEM: {problem}."
    for cell in results.cells:
        for r in cell.rounds:
            if r.errors:
                yield f"ERRORS: {_place(cell)}: {_errors(r)}."
    for cell in results.cells:
        answers, connects = (sum(getattr(r, name) for r in cell.rounds) for name in ("completed", "connects"))
        if cell.traffic.connections == "kept" and connects > answers * REOPENED:
            yield f"Not kept open: {_place(cell)}: {connects} connections for {answers} answers."
    measured = [cell for cell in results.cells if cell.rounds]
    if measured:
        most = max(measured, key=_client)
        middle = median(map(_client, measured))
        yield f"The client took {middle:.0%} of a core (median of all), at most {_client(most):.0%} ({_place(most)})."
        most = max(measured, key=_others)
        middle = median(map(_others, measured))
        note = f"Others took {middle:.0%} of the machine (median of all), at most {_others(most):.0%} ({_place(most)})"
        disturbed = sum(_others(cell) > BUSY_OTHERS for cell in measured)
        if disturbed:
            note += f"; more than {BUSY_OTHERS:.0%} in {disturbed} of {len(measured)} cells, which count for less"
        yield f"{note}."


def _errors(r: Round) -> str:
    kinds = ", ".join(f"{kind} {count}" for kind, count in r.errors.items())
    return f"{kinds} (last errno: {errno.errorcode.get(r.last_errno, r.last_errno)})" if r.last_errno else kinds


def _place(cell: Cell) -> str:
    return f"{title([cell])}, {cell.workers} workers, {cell.variant}"


def show(results: Results) -> None:
    """Print all tables."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    for block in results.blocks():
        console.print(_rich_table(title(block), list(rows(block))))
    for heading, lines in _short_tables(results):
        console.print(_rich_table(heading, lines))
    for note in notes(results):
        console.print(note)


def _rich_table(heading: str, lines: Sequence[Line]) -> Table:
    table = Table(title=heading, title_justify="left", title_style="bold", pad_edge=False)
    for column in lines[0]:
        table.add_column(column, justify="left" if column == "variant" else "right", overflow="fold")
    before = lines[0]["workers"]
    for line in lines:
        if "variant" in line and line["workers"] != before:
            table.add_section()
        before = line["workers"]
        table.add_row(*line.values(), style="bold" if line.get("variant") in ("rr", "pycluster serve") else None)
    return table


def _short_tables(results: Results) -> Iterator[tuple[str, list[Line]]]:
    """Those that have a line: heading, lines."""
    for heading, lines in (
        ("Round robin in short: echo, closed loop, one connection per request", in_short(results)),
        ("Latency in short: open loop, one connection per request", opened_in_short(results)),
        ("HTTP servers in short: one small app, closed loop", servers_in_short(results)),
    ):
        if known := list(lines):
            yield heading, known


def markdown(results: Results, pictures: Sequence[str]) -> str:
    """The document docs/bench/results.md."""
    lines = ["# Measured", "", "Written by `make bench`; do not edit.", ""]
    lines += [f"- {name}: {value}" for name, value in results.machine.items()]
    lines += [f"- {results.settings}", ""]
    lines += [f"![{name}]({name})\n" for name in pictures]
    for heading, body in _short_tables(results):
        lines += ["", f"## {heading}", "", *_markdown_table(body[0], body)]
    lines += ["", "## How to read the tables", "", EXPLAINED, ""]
    lines += [f"- {note}" for note in notes(results)]
    for block in results.blocks():
        heading = title(block)
        body = list(rows(block))
        lines += ["", f"## {heading[0].upper()}{heading[1:]}", "", *_markdown_table(body[0], body)]
    return "\n".join(lines) + "\n"


def excerpt(results: Results, pictures: Sequence[str], directory: str, workers: Sequence[int]) -> str:
    """What README shows of the document: a picture, the short tables for some numbers of workers, a picture.

    Args:
      directory: where the document and its pictures are, seen from README.
    """
    machine = "; ".join(f"{name} {value}" for name, value in results.machine.items())
    shown = [f"![{name}]({directory}/{name})\n" for name in pictures if name in ("shares.svg", "throughput.svg")]
    lines = [
        *shown[:1],
        f"Measured by `make bench` ([all of it]({directory}/results.md)): {machine}. {results.settings}.",
        "",
        EXPLAINED_SHORT,
        "",
        *(f"- {note}" for note in notes(results)),
    ]
    for heading, body in _short_tables(results):
        kept = [line for line in body if int(line["workers"]) in workers]
        lines += ["", f"{heading}:", "", *_markdown_table(body[0], kept)]
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


def _markdown_table(columns: Iterable[str], body: Sequence[Line]) -> list[str]:
    names = list(columns)
    return [
        "| " + " | ".join(names) + " |",
        "|" + "---|" * len(names),
        *("| " + " | ".join(line.values()) + " |" for line in body),
    ]
