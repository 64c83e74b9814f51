"""The journal of the command line: one line on stderr for each thing that happens to the cluster.

In colours on a terminal, plain anywhere else, and as JSON for machines. Standard output is left to the workers.
"""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime

# What stands out on a terminal; the rest is in its usual colour.
_STYLES = {
    "listening": "green",
    "reloading": "yellow",
    "reloaded": "green",
    "died": "bold red",
    "failed": "bold red",
    "given-up": "bold red",
    "stopping": "yellow",
}


class Journal:
    """Where the supervisor says what happens. Any thread."""

    def __init__(self, as_json: bool) -> None:
        self._write: Callable[[str, str, dict[str, object]], object]
        if as_json:
            self._write = _write_json
        elif sys.stderr.isatty():
            self._write = _in_colours()
        else:
            self._write = _write_plain

    def say(self, event: str, text: str, **facts: object) -> None:
        """Write one line: the text for people; the event, the facts and the text for machines."""
        try:
            self._write(event, text, facts)
        except (OSError, ValueError):
            pass  # nobody reads any more, or it is closed: no reason to end a cluster


def _write_json(event: str, text: str, facts: dict[str, object]) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    _write_line(json.dumps({"time": now, "event": event, **facts, "text": text}))


def _write_plain(event: str, text: str, facts: dict[str, object]) -> None:
    _write_line(f"{_clock()} {text}")


def _in_colours() -> Callable[[str, str, dict[str, object]], object]:
    # Only here: where the output is piped, as in production, no worker's copy of the primary has Rich in it.
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)

    def write(event: str, text: str, facts: dict[str, object]) -> None:
        line = Text.assemble((_clock(), "dim"), " ", (text, _STYLES.get(event, "")))
        console.print(line, soft_wrap=True)

    return write


def _clock() -> str:
    return f"{datetime.now():%H:%M:%S}"


def _write_line(line: str) -> None:
    # In one piece: workers write to the same place.
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
