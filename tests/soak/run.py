"""Run all soaks, or those that are named, and write docs/soak.md: `make soak`. Status 1 if a promise was broken."""

import concurrent.futures
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
# What only counts runs side by side; what measures times has the machine for itself.
COUNTING = [["hostile", "recycling", "memory"], ["crashes", "graceful", "reloads"]]
MEASURING = ["watching", "respawning", "templates", "overload", "blocked"]
CHOOSING = "pending"  # promises nothing: it prints a section of its own
LIMIT_S = 360.0  # for each

HEAD = """# What was promised, and what came of it under injected faults

Written by `make soak`, on {date}, in {minutes:.0f} minutes. {machine}.

Each row is a program in `tests/soak`; the suite runs a short form of it, or has tests of its own of the same.

| promise | injected | figure | kept |
|---|---|---|---|
"""


def output(name: str) -> subprocess.CompletedProcess[str]:
    """Run one of them in a process of its own."""
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT / "bench")])
    print(f"{name} …", file=sys.stderr, flush=True)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"soak.{name}"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
    )
    print(f"{name} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return done


def run(name: str) -> list[Row]:
    """Run one soak. Returns its rows."""
    try:
        done = output(name)
    except subprocess.TimeoutExpired:
        return [Row(name, "", f"not done within {LIMIT_S:.0f} s", False)]
    rows = [Row(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
    for row in rows:
        print(f"  {row.promise}: {row.figure}", file=sys.stderr, flush=True)
    if not rows and done.returncode != 0:
        rows = [Row(name, "", f"ended with status {done.returncode} and said nothing", False)]
    return rows  # none where what it needs is not installed


def run_all(names: list[str]) -> list[Row]:
    """Run these, one after the other."""
    return [row for name in names for row in run(name)]


def section(name: str) -> str:
    """Run one of those that print Markdown. Returns that."""
    try:
        text = output(name).stdout
    except subprocess.TimeoutExpired:
        text = ""
    return text or f"`{name}` was not done.\n"


def main() -> int:
    """The command line."""
    began = time.monotonic()
    machine = "; ".join(f"{name} {value}" for name, value in describe().items())
    if sys.argv[1:] == [CHOOSING]:
        print(section(CHOOSING))
        return 0
    if sys.argv[1:]:
        rows = run_all(sys.argv[1:])
    else:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            rows = [row for some in pool.map(run_all, COUNTING) for row in some]
        rows += run_all(MEASURING)
        measured = section(CHOOSING)
        head = HEAD.format(
            date=datetime.date.today().isoformat(), minutes=(time.monotonic() - began) / 60, machine=machine
        )
        lines = [f"| {row.promise} | {row.fault} | {row.figure} | {'yes' if row.kept else '**no**'} |" for row in rows]
        PAGE.write_text(head + "\n".join(lines) + "\n\n" + measured)
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
