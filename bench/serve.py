"""Claim: with a connection per request, an app under ``pycluster serve`` is served at least as fast as under
``uvicorn --workers``, and evenly. With connections kept open, which of them is faster depends on the number of workers.

Both run peers/web_app.py with the same event loop, the same HTTP parser, the same backlog and as many workers, and are
loaded in turn, on fresh connections and on connections that stay open::

    python bench/serve.py --workers 2,8 --rounds 9 --seconds 2 [--loop asyncio]

The shares are of answers; the app says which process gives them.

Status 1 if a request failed, or a server did not start or end as it should.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from comparison import compare, whole_numbers
from measure import Settings
from plan import Suite
from results import CLOSED, KEPT

SERVERS = ("uvicorn --workers", "pycluster serve")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="pycluster serve against uvicorn --workers.")
    parser.add_argument("--workers", type=whole_numbers, default=(2, 8), help="2,8")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured, per server, kind and round")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    given = parser.parse_args()

    suite = Suite("http", "app", given.workers, SERVERS, (CLOSED, KEPT), given.rounds, given.loop, load_s=given.seconds)
    results = compare([suite], Settings(given.clients), given.json)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
