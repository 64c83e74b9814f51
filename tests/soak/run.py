"""Run all soaks, or those that are named, and write docs/soak.md: `make soak`. Status 1 if a promise was broken."""

import datetime
import json
import os
import pathlib
import subprocess
import sys
import time

from machine import describe
from soak.row import Row

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "soak.md"
SOAKS = ["crashes", "blocked", "graceful", "overload", "hostile"]
LIMIT_S = 900.0  # for each

HEAD = """# What was promised, and what came of it under injected faults

Written by `make soak`, on {date}, in {minutes:.0f} minutes. {machine}.

Each row is a program in `tests/soak`; the suite runs a short form of it.

| promise | injected | figure | kept |
|---|---|---|---|
"""


def run(name: str) -> list[Row]:
    """Run one soak in a process of its own."""
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "bench")])
    print(f"{name} …", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"soak.{name}"],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return [Row(name, "", f"not done within {LIMIT_S:.0f} s", False)]
    rows = [Row(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
    for row in rows:
        print(f"  {row.promise}: {row.figure}", file=sys.stderr, flush=True)
    return rows or [Row(name, "", f"ended with status {done.returncode} and said nothing", False)]


def main() -> int:
    """The command line."""
    began = time.monotonic()
    rows = [row for name in sys.argv[1:] or SOAKS for row in run(name)]
    if not sys.argv[1:]:
        machine = "; ".join(f"{name} {value}" for name, value in describe().items())
        head = HEAD.format(
            date=datetime.date.today().isoformat(), minutes=(time.monotonic() - began) / 60, machine=machine
        )
        lines = [f"| {row.promise} | {row.fault} | {row.figure} | {'yes' if row.kept else '**no**'} |" for row in rows]
        PAGE.write_text(head + "\n".join(lines) + "\n")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
