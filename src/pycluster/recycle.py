"""Recycling: workers that have served enough, are old enough or have grown too large are replaced while they serve.

The limits are those of the settings at the worker's fork, each up to a tenth lower, at random, so that workers that
started together do not all reach them together. Once a second the primary looks who has; no worker is asked. No more
than `settings.max_unavailable` are replaced at a time, the others wait for their turn and serve on.

A recycled worker has not crashed: nothing of it counts for `settings.respawn`.
"""

import os
import time
from collections.abc import Mapping
from typing import Protocol

import msgspec

from .errors import ClusterError
from .events import log
from .replacement import Primary as ReplacesWorkers
from .replacement import Replacement
from .settings import Settings
from .watch import Progress
from .worker import LEAVING, Worker

LOOK_S = 1.0
# How much lower a limit may be drawn, as a part of it.
JITTER = 0.1
# A worker is too large when it was at so many looks in a row: what one request needs and gives back is no leak.
LARGE_LOOKS = 2
# So long a new worker has to come up, and so long it takes until another one is tried when it has not.
START_S = 60.0
RETRY_S = 60.0

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Primary(ReplacesWorkers, Protocol):
    """What this room needs of the primary."""

    settings: Settings

    @property
    def workers(self) -> Mapping[int, Worker]: ...

    def progress_of(self, worker: Worker) -> Progress: ...


class Limits(msgspec.Struct):
    """What one worker may come to; None for no limit.

    Attributes:
      connections: that it has accepted.
      old_at: the time, by time.monotonic().
      rss: bytes of resident memory.
      large: at how many looks in a row it was larger.
      retry_at: not before this time, by time.monotonic().
      reached: why the worker is to be replaced, as of the last look; None when it is not.
    """

    connections: float | None
    old_at: float | None
    rss: float | None
    large: int = 0
    retry_at: float = 0.0
    reached: str | None = None

    @classmethod
    def draw(cls, settings: Settings) -> "Limits | None":
        """The limits of a worker that is forked now; None when the settings know none."""
        if (settings.max_connections_per_worker, settings.max_age, settings.max_rss) == (None, None, None):
            return None
        import random  # only here: most clusters know no limits

        def drawn(limit: float | None) -> float | None:
            return None if limit is None else limit * (1 - JITTER * random.random())

        age = drawn(settings.max_age)
        return cls(
            connections=drawn(settings.max_connections_per_worker),
            old_at=None if age is None else time.monotonic() + age,
            rss=drawn(settings.max_rss),
        )

    def look(self, now: float, accepted: int, pid: int) -> None:
        """Note which limit the worker has reached by now."""
        resident = 0 if self.rss is None else _rss_of(pid)
        self.large = self.large + 1 if self.rss is not None and resident > self.rss else 0
        if self.connections is not None and accepted >= self.connections:
            self.reached = f"it has accepted {accepted} connections"
        elif self.old_at is not None and now >= self.old_at:
            self.reached = "it is old enough"
        elif self.large >= LARGE_LOOKS:
            self.reached = f"{resident / 1e6:.0f} MB of it are resident"
        else:
            self.reached = None


class Recycler:
    """Replaces the workers that have reached a limit."""

    def __init__(self, primary: Primary) -> None:
        self._primary = primary
        self._limits: dict[int, Limits] = {}
        self._replacements: list[Replacement] = []
        self._looks = False  # from time to time

    def forked(self, worker: Worker) -> None:
        """A worker has been forked."""
        limits = Limits.draw(self._primary.settings)
        if limits is None:
            return
        self._limits[worker.id] = limits
        if not self._looks:
            self._looks = True
            self._primary.remind(LOOK_S, self._look)

    def changed(self, worker: Worker) -> None:
        """A worker's state has changed, or what it listens on."""
        for replacement in self._replacements:
            replacement.changed(worker)
        if worker.state == "dead":
            self._limits.pop(worker.id, None)

    def _look(self) -> None:
        self._looks = bool(self._limits)
        if not self._looks:
            return
        now = time.monotonic()
        for worker_id, limits in list(self._limits.items()):  # another thread may fork
            worker = self._primary.workers[worker_id]
            limits.look(now, self._primary.progress_of(worker).accepted, worker.process.pid)
        self._recycle()
        self._primary.remind(LOOK_S, self._look)

    def _recycle(self) -> None:
        """Replace who has reached a limit, the oldest first, as many as may be at a time."""
        now = time.monotonic()
        for worker_id, limits in list(self._limits.items()):
            if len(self._replacements) >= self._primary.settings.max_unavailable:
                return
            worker = self._primary.workers[worker_id]
            if (
                limits.reached is not None
                and now >= limits.retry_at
                and worker.state in ("online", "listening")
                and not worker._covered
            ):
                self._replace(worker, limits.reached)

    def _replace(self, worker: Worker, why: str) -> None:
        log("info", f"{_name(worker)} is replaced: {why}")
        try:
            self._replacements.append(Replacement(self._primary, worker, START_S, self._on_over))
        except (OSError, ClusterError) as exception:
            self._keep(worker, f"cannot start a worker: {exception}")

    def _on_over(self, replacement: Replacement) -> None:
        self._replacements.remove(replacement)
        if replacement.old.state not in LEAVING:
            if replacement.state == "failed":
                self._keep(replacement.old, "the new one has ended before it was up")
            elif replacement.state == "late":
                self._keep(replacement.old, f"the new one was not up within {START_S:g} s")
        self._recycle()

    def _keep(self, worker: Worker, why: str) -> None:
        if limits := self._limits.get(worker.id):
            limits.retry_at = time.monotonic() + RETRY_S
        log("warning", f"{_name(worker)} is not replaced, and goes on: {why}; once more in {RETRY_S:g} s")


def _name(worker: Worker) -> str:
    return f"worker {worker.id} (pid {worker.process.pid})"


def _rss_of(pid: int) -> int:
    """Its resident memory in bytes, with what it shares, see proc_pid_statm(5)."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
