"""Descriptors 0, 1 and 2: a worker's, opened in the primary and put in place in the worker, and a process's own.

A process may be started without them. What it opens next would get their numbers, and be the standard stream of
whatever it starts, or be overwritten where a worker's are put in place.
"""

import os
from collections.abc import Sequence
from typing import IO

from . import native
from .settings import Stdio


def fill_standard_descriptors() -> None:
    """Let those of 0, 1 and 2 that are closed be /dev/null, for this process and for what it starts.

    Raises:
      OSError: no descriptor is left, or there is no /dev/null.
    """
    for target in range(3):
        try:
            os.fstat(target)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if null == target:
                os.set_inheritable(null, True)
            else:
                native.close(null)  # another thread has opened something there by now


class WorkerStdio:
    """The standard descriptors of one worker to come.

    Made in the primary; then in a forked worker `install`, in the primary `keep`, or `discard` when there is no worker.
    """

    def __init__(self, stdio: Sequence[Stdio] | None, silent: bool) -> None:
        """
        Raises:
          OSError: no descriptor is left; nothing stays open.
          ValueError: a file of `stdio` has been closed; nothing stays open.
        """
        plan: list[Stdio] = list(stdio or ())
        if stdio is None and silent:
            plan = ["inherit", "pipe", "pipe"]
        plan += ["inherit"] * (3 - len(plan))
        self._for_worker: dict[int, int] = {}
        self._for_primary: dict[int, int] = {}
        self._owned: list[int] = []
        try:
            for target, entry in enumerate(plan):
                self._plan(target, entry)
        except BaseException:
            self.discard()
            raise

    def _plan(self, target: int, entry: Stdio) -> None:
        if entry == "pipe":
            reader, writer = os.pipe()
            ours, theirs = (writer, reader) if target == 0 else (reader, writer)
            self._for_primary[target] = ours
            self._for_worker[target] = theirs
            self._owned.append(theirs)
        elif entry == "ignore":
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            self._for_worker[target] = null
            self._owned.append(null)
        elif entry != "inherit":
            assert not isinstance(entry, str)
            self._for_worker[target] = entry if isinstance(entry, int) else entry.fileno()

    @property
    def descriptors(self) -> tuple[int | None, int | None, int | None]:
        """What is to become the worker's descriptors 0, 1 and 2 (borrowed); None for what it inherits."""
        return self._for_worker.get(0), self._for_worker.get(1), self._for_worker.get(2)

    def install(self) -> None:
        """In the worker: put the descriptors in their places."""
        # Away from 0 to 2 first, so that no place is overwritten before its descriptor has moved: [2, 1, 1] is valid.
        moved = {target: os.dup(fd) for target, fd in self._for_worker.items()}
        for target, fd in moved.items():
            os.dup2(fd, target)
            native.close(fd)
        self.discard()

    def keep(self) -> list[IO[bytes] | None]:
        """In the primary, after the fork: its ends of the pipes for stdin, stdout and stderr."""
        self._close(self._owned)
        modes = ("wb", "rb", "rb")
        return [
            os.fdopen(self._for_primary[target], modes[target], 0 if target == 0 else -1)
            if target in self._for_primary
            else None
            for target in range(3)
        ]

    def discard(self) -> None:
        """Close all that was opened here."""
        self._close(self._owned)
        self._close(list(self._for_primary.values()))
        self._for_primary.clear()

    def _close(self, descriptors: list[int]) -> None:
        for fd in descriptors:
            native.close(fd)
        descriptors.clear()
