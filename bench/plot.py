"""Draws what balance.py has measured: shares of the workers, latencies, throughput against workers, HTTP servers.

    python bench/plot.py build/bench/results.json --to docs/bench [--format png]

A variant has the same colour in all pictures. What was not measured is not drawn: a picture without data is left out.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import figures
from report import FEWEST_ABOVE, in_words
from results import CLOSED, KEPT, Cell, Results, read
from variants import VARIANTS

NAMES = {
    "shared": "shared socket",
    "shared2": "shared, again",
    "reuseport": "SO_REUSEPORT",
    "rr": "pycluster rr",
    "none": "pycluster none",
}
SHARES_OF = 8  # workers, if they were measured
SERVERS_OF = (2, 8)
QUANTILES = (0.0, 0.5, 0.9, 0.99, 0.999)
NARROWEST = 7.8  # inches: the headlines need them
WIDEST_ENTRY = 1.7  # inches of a legend
STYLE: Any = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "font.size": 9,
    "grid.color": "#e5e5e5",
    "legend.frameon": False,
    "svg.hashsalt": "pycluster",  # the same picture of the same figures is the same file
}


def draw(results: Results, directory: Path, kind: str = "svg") -> list[Path]:
    """Draw all that there is data for.

    Returns:
      The files, in the order in which to show them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    with plt.rc_context(STYLE):
        for name, picture in (
            ("shares", shares(results)),
            ("throughput", throughput(results)),
            ("latency", latency(results)),
            ("servers", servers(results)),
        ):
            if picture is not None:
                file = directory / f"{name}.{kind}"
                picture.savefig(file, dpi=130, metadata={"Date": None} if kind == "svg" else {})
                plt.close(picture)
                drawn.append(file)
    return drawn


def shares(results: Results) -> Any:
    """A panel for each variant: a bar for each worker, largest first, and a line where all would be even."""
    blocks = [b for b in results.blocks() if b[0].traffic.connections == "fresh" and b[0].engine != "app"]
    if not blocks:
        return None
    block = blocks[0]
    counts = sorted({cell.workers for cell in block})
    workers = SHARES_OF if SHARES_OF in counts else counts[-1]
    cells = [cell for cell in block if cell.workers == workers]
    picture, panels = plt.subplots(
        1, len(cells), figsize=(max(2.1 * len(cells), NARROWEST), 2.9), sharey=True, squeeze=False
    )
    for panel, cell in zip(panels[0], cells, strict=True):
        parts = cell.shares[::-1]
        panel.bar(range(1, workers + 1), [part * 100 for part in parts], color=_color(cell), width=0.8)
        panel.axhline(100 / workers, color="#333333", linewidth=0.9, linestyle=(0, (4, 3)))
        panel.set_title(f"{_name(cell)}\n{parts[0]:.1%} … {parts[-1]:.1%}")
        panel.set_xlabel("worker, busiest first")
        panel.xaxis.set_major_locator(FixedLocator([1, workers]))
        panel.grid(visible=False, axis="x")
    panels[0][0].set_ylabel("share of the connections, %")
    _headline(
        picture,
        f"Who gets the connections: {workers} workers, {block[0].protocol}, {block[0].engine_in_words}, "
        f"{block[0].traffic.arrivals} loop, {block[0].traffic.mix}",
    )
    return picture


def throughput(results: Results) -> Any:
    """A panel for each engine: a line for each variant against the number of workers, and its range."""
    blocks = [b for b in results.blocks() if b[0].protocol == "echo" and b[0].traffic == CLOSED]
    if not blocks:
        return None
    columns = 2 if len(blocks) == 4 else len(blocks)
    lines = len(blocks) // columns
    size = (max(3.6 * columns, NARROWEST), 2.9 * lines + 0.8)
    picture, panels = plt.subplots(lines, columns, figsize=size, squeeze=False)
    for panel, block in zip(panels.flat, blocks, strict=True):
        first = block[0].variant
        counts = sorted({cell.workers for cell in block if cell.variant == first})
        for name in _variants(block):
            cells = [cell for cell in block if cell.variant == name and cell.workers in counts]
            x = [cell.workers for cell in cells]
            rates = [[r.rate / 1000 for r in cell.rounds] for cell in cells]
            if cells:
                color = _color(cells[0])
                panel.plot(
                    x, [median(r) for r in rates], color=color, marker="o", markersize=3.5, label=_name(cells[0])
                )
                panel.fill_between(x, [min(r) for r in rates], [max(r) for r in rates], color=color, alpha=0.13, lw=0)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_locator(FixedLocator(counts))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        panel.set_ylim(bottom=0)
        panel.set_title(block[0].engine_in_words)
    for row in panels:
        row[0].set_ylabel("thousand connections/s")
    for panel in panels[-1]:
        panel.set_xlabel("workers")
    _headline(picture, f"Throughput: echo, {in_words(CLOSED)} (line: median, band: range)")
    _legend(picture, panels.flat)
    return picture


def latency(results: Results) -> Any:
    """The distribution of the time to the first byte in open loops: columns are engines, rows the kinds of requests."""
    opened = [cell for cell in results.cells if cell.traffic.arrivals == "open" and cell.histogram]
    engines = list(dict.fromkeys((cell.engine, cell.api) for cell in opened))
    kinds = list(dict.fromkeys((cell.protocol, cell.traffic.mix) for cell in opened))
    if not engines:
        return None
    workers = max(cell.workers for cell in opened)
    size = (max(3.6 * len(engines), NARROWEST), 2.9 * len(kinds) + 0.8)
    picture, panels = plt.subplots(len(kinds), len(engines), figsize=size, sharey=True, sharex="row", squeeze=False)
    for row, kind in zip(panels, kinds, strict=True):
        for panel, engine in zip(row, engines, strict=True):
            cells = [
                c
                for c in opened
                if ((c.protocol, c.traffic.mix), (c.engine, c.api), c.workers) == (kind, engine, workers)
            ]
            if not cells:
                panel.set_axis_off()
                continue
            for cell in cells:
                _draw_distribution(panel, cell)
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.yaxis.set_major_locator(FixedLocator([_height(part) for part in QUANTILES]))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - 10**-value):.4g} %"))
            panel.set_title(f"{kind[0]}, {engine[0]}, {kind[1]}, {cells[0].offered:.0f}/s")
        row[0].set_ylabel("requests answered within")
    panels[0][0].set_ylim(bottom=0)  # of all, and only now: it ends the scaling to what is drawn
    for column in panels.T:
        lowest = [panel for panel in column if panel.axison][-1]
        lowest.set_xlabel("ms from the scheduled time to the first byte")
    _headline(picture, f"Latency: {workers} workers, open loop; mixed: 5 % of the requests hold a worker 50 ms")
    _legend(picture, panels.flat)
    return picture


def servers(results: Results) -> Any:
    """HTTP servers: their rate, with its range. Columns are numbers of workers, rows fresh and kept connections."""
    blocks = [b for b in results.blocks() if b[0].engine == "app" and b[0].traffic in (CLOSED, KEPT)]
    if not blocks:
        return None
    measured = {cell.workers for block in blocks for cell in block}
    counts = sorted(measured.intersection(SERVERS_OF) or measured)
    names = _variants(cell for block in blocks for cell in block)[::-1]
    size = (max(4.6 * len(counts), NARROWEST), len(blocks) * (0.28 * len(names) + 0.9) + 0.5)
    picture, panels = plt.subplots(len(blocks), len(counts), figsize=size, sharey=True, sharex="row", squeeze=False)
    for row, block in zip(panels, blocks, strict=True):
        for panel, workers in zip(row, counts, strict=True):
            # One without figures has no bar, but its place: the rows and columns have the same order.
            rates = {c.variant: [r.rate / 1000 for r in c.rounds] for c in block if c.workers == workers}
            for place, name in enumerate(names):
                if name in rates:
                    middle = median(rates[name])
                    ends = [[middle - min(rates[name])], [max(rates[name]) - middle]]
                    color = VARIANTS[name].color if "pycluster" in name else "#b0b0b0"
                    panel.barh(place, middle, xerr=ends, color=color, ecolor="#555555", height=0.7)
            panel.set_yticks(range(len(names)), names)
            kind = "one connection per request" if block[0].traffic.connections == "fresh" else "connections kept open"
            panel.set_title(f"{workers} workers, {kind}")
            panel.grid(visible=False, axis="y")
        for panel in row:
            panel.set_xlabel("thousand requests/s")
    _headline(picture, "HTTP servers with one small app, closed loop (bar: median, line: range)")
    return picture


def _draw_distribution(panel: Any, cell: Cell) -> None:
    values, parts = figures.cumulative(cell.histogram)
    total = sum(count for _, count in cell.histogram)
    shown = [
        (value / 1000, _height(part))
        for value, part in zip(values, parts, strict=True)
        if round((1 - part) * total) >= FEWEST_ABOVE
    ]
    if shown:
        panel.plot(*zip(*shown, strict=True), color=_color(cell), linewidth=1.5, label=_name(cell))


def _height(part: float) -> float:
    """Where a part of the requests is drawn: as much room for 90 to 99 % as for 99 to 99.9 %."""
    return -math.log10(1 - part)


def _name(cell: Cell) -> str:
    return NAMES.get(cell.variant, cell.variant)


def _color(cell: Cell) -> str:
    return VARIANTS[cell.variant].color


def _variants(cells: Iterable[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.variant for cell in cells))


def _headline(picture: Any, text: str) -> None:
    picture.suptitle(text, fontsize=11, x=0.01, ha="left")
    picture.set_layout_engine("constrained")


def _legend(picture: Any, panels: Sequence[Any]) -> None:
    entries = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    fitting = int(picture.get_figwidth() / WIDEST_ENTRY)
    picture.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(len(entries), fitting))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw what bench/balance.py has written with --json.")
    parser.add_argument("results", type=Path)
    parser.add_argument("--to", type=Path, default=Path("docs/bench"), metavar="DIRECTORY")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    given = parser.parse_args()
    for file in draw(read(given.results), given.to, given.format):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
