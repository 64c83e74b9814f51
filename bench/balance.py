"""Claim: round robin costs little against workers that share a port by the kernel's choice, and its shares are even.

Compares the ways to share a port, and peers (variants.py), in interleaved rounds: connections per second, latency to
the first byte, processor time of the primary and of the workers, and how even the shares are::

    python bench/balance.py --workers 2,8 --engine uvloop --variants shared,rr --rounds 9 --seconds 2
    python bench/balance.py --protocol http --arrivals open --mix mixed --engine blocking
    python bench/balance.py --full --json build/bench/results.json --docs docs/bench --readme README.md
    python bench/balance.py --full --quick

Peers that are not installed are skipped by name. Run it twice, and with the variant shared2, before believing a small
difference.

Status 1 if a request failed, or a server did not start or end as it should; then only --json is written.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path

import report
from comparison import compare, whole_numbers
from measure import Settings
from plan import FULL, Suite, quick
from results import Traffic
from variants import VARIANTS, chosen
from work import Protocol

README_WORKERS = (2, 8)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description="The kernel's choice against round robin, and against peers.")
    what = options.add_argument_group("one comparison")
    what.add_argument("--workers", type=whole_numbers, default=(2, 8), help="2,8")
    what.add_argument("--engine", choices=("asyncio", "uvloop", "blocking", "app"), default="asyncio")
    what.add_argument("--protocol", choices=("echo", "http"), help="echo; of the engine app http")
    what.add_argument("--variants", type=chosen, help="with commas between; by default all that fit the engine")
    what.add_argument("--arrivals", choices=("closed", "open"), default="closed")
    what.add_argument("--mix", choices=("uniform", "mixed"), default="uniform")
    what.add_argument("--connections", choices=("fresh", "kept"), default="fresh")
    what.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop", help="of the engine app")
    what.add_argument("--api", choices=("streams", "protocol"), default="streams", help="of asyncio and uvloop")
    what.add_argument("--rate", type=float, help="requests/s of an open loop; by default half of what the slowest can")
    options.add_argument("--full", action="store_true", help="the full set of comparisons instead, see plan.py")
    options.add_argument("--quick", action="store_true", help="few and short rounds, to see that all works")
    options.add_argument("--rounds", type=int, help="5, or as the full set says")
    options.add_argument("--seconds", type=float, help="measured, per variant and round; 1, or as the full set says")
    options.add_argument("--clients", type=int, default=64, help="of a closed loop")
    options.add_argument("--size", type=int, default=1, help="bytes of an echo request")
    options.add_argument("--threads", type=int, default=1, help="of the client, where cores are to spare")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options.add_argument("--docs", type=Path, metavar="DIRECTORY", help="write results.md and the plots")
    options.add_argument("--readme", type=Path, metavar="FILE", help="show some of that there, between its two marks")
    return options


def suites_of(given: argparse.Namespace) -> list[Suite]:
    """What the command line asks for.

    Raises:
      ValueError: it does not make sense.
    """
    if given.full:
        suites = list(FULL)
    else:
        kept = given.connections == "kept"
        fitting = [n for n, v in VARIANTS.items() if given.engine in v.engines and (v.keeps or not kept)]
        names = given.variants or [name for name in fitting if name != "shared2"]
        for name in names:
            if name not in fitting:
                how = f"--engine {given.engine}" + (", --connections kept" if kept else "")
                raise ValueError(f"{name} is not compared with {how}")
        protocol: Protocol = given.protocol or ("http" if given.engine == "app" else "echo")
        if given.engine == "app" and protocol == "echo":
            raise ValueError("--engine app is HTTP")
        if kept:
            if given.arrivals == "open":
                raise ValueError("an open loop has a connection per request")
            if given.engine == "blocking" or (protocol == "http" and given.engine != "app"):
                # A blocking worker would serve one connection for ever, and all others would time out.
                raise ValueError("--connections kept needs an event loop with the echo protocol, or --engine app")
        traffic = Traffic(given.arrivals, given.mix, given.connections)
        workers = tuple(given.workers)
        suites = [Suite(protocol, given.engine, workers, tuple(names), (traffic,), 5, given.loop, given.api, 1.0)]
    if given.quick:
        suites = [quick(suite) for suite in suites]
    if given.rounds is not None:
        suites = [replace(suite, rounds=given.rounds) for suite in suites]
    if given.seconds is not None:
        suites = [replace(suite, load_s=given.seconds) for suite in suites]
    return suites


def main() -> int:
    """The command line."""
    options = parser()
    given = options.parse_args()
    try:
        suites = suites_of(given)
    except ValueError as exception:
        options.error(str(exception))
    if given.docs is not None and importlib.util.find_spec("matplotlib") is None:
        options.error("--docs needs matplotlib: pip install 'pycluster[bench]'")
    if given.readme is not None:
        if given.docs is None:
            options.error("--readme needs --docs, which has the pictures")
        try:
            report.replaced(given.readme.read_text(), "")
        except (OSError, ValueError) as exception:
            options.error(f"--readme {given.readme}: {exception}")

    results = compare(suites, Settings(given.clients, given.size, given.threads, given.rate), given.json)
    if given.docs is not None and results.failed:
        print("Not everything went well: --docs and --readme stay as they are.", file=sys.stderr)
    elif given.docs is not None:
        import plot

        pictures = [picture.name for picture in plot.draw(results, given.docs)]
        (given.docs / "results.md").write_text(report.markdown(results, pictures))
        if given.readme is not None:
            directory = os.path.relpath(given.docs, given.readme.parent)
            part = report.excerpt(results, pictures, directory, README_WORKERS)
            given.readme.write_text(report.replaced(given.readme.read_text(), part))
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
