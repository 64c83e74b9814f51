"""What a soak says in the end: one row of the table in docs/soak.md."""

import json
import sys
from typing import NamedTuple


class Row(NamedTuple):
    """
    Attributes:
      promise: in a few words.
      fault: what was injected, how often.
      figure: what came of it.
      kept: whether the promise was.
    """

    promise: str
    fault: str
    figure: str
    kept: bool


def show(*rows: Row) -> None:
    """Print the rows, one JSON array a line, and end the program: with status 1 if a promise was broken."""
    for row in rows:
        print(json.dumps(row), flush=True)
    sys.exit(0 if all(row.kept for row in rows) else 1)
