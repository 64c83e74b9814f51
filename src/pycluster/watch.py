"""Watching: which workers hang, and where.

A worker hangs when it makes no progress for `settings.worker_timeout` seconds while connections wait for it. Progress
is an accepted connection, or a tick of an event loop that serves. Connections wait when some are in the worker's
channel that it has not taken, or were and have been taken back by the balancer, which gives it no others then; under
SCHED_NONE when some are in the listening socket's backlog. For an event loop that has ticked, connections that it has
accepted and that are open (as of its last look, a second before it blocked at the most) wait, too.

A worker that has not made any progress yet is starting, however long that takes and whoever holds the GIL meanwhile.
One that is asked to end is watched no more: that has limits of its own. When the primary itself was kept from running,
what the workers did meanwhile is not known, and not held against them.

Looking costs the worker nothing: what it shows of its progress stands in the shared region.
"""

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from . import native
from .events import log
from .heartbeat import STACKS_SIGNAL, TICKS_PER_TIMEOUT
from .settings import Settings
from .worker import Worker

# The stacks are there in a few milliseconds, if the worker gets a processor. They are looked for so often, so long.
COLLECT_INTERVAL_S = 0.02
COLLECT_S = 1.0
# Enough for 100 threads (faulthandler's limit) of some 15 frames.
MOST_STACKS = 128 * 1024
# From the report to the end of a worker that hangs: for whoever listens to look at it, and for itself to go on.
GRACE_S = 1.0

# proc_pid_stat(5)
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "in a system call that nothing interrupts",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
}


class Progress(NamedTuple):
    """What a worker shows of itself in the shared region.

    Attributes:
      accepted: how many connections it has accepted.
      ticks: of its event loops that serve.
      active: how many connections are open, as of its last look.
      thread: the identifier of the thread that has accepted or ticked last.
    """

    accepted: int
    ticks: int
    active: int
    thread: int


@dataclass(frozen=True)
class Hang:
    """What is known of a worker that makes no progress while connections wait.

    Attributes:
      seconds: for how long, at least.
      state: what the kernel says of its process: "running", "sleeping", "stopped by a signal", ….
      where: the line that the thread which serves is at, as in a traceback; None when its stack could not be had.
      stacks: the stacks of all threads, that one first, the most recent call first in each; "" for the same reason.
    """

    seconds: float
    state: str
    where: str | None
    stacks: str


class Primary(Protocol):
    """What this room needs of the primary."""

    settings: Settings

    def remind(self, seconds: float, function: Callable[[], object]) -> None: ...

    def progress_of(self, worker: Worker) -> Progress: ...

    def connections_wait_for(self, worker: Worker) -> bool: ...

    def watch_stacks(self, worker: Worker, fd: int) -> None: ...

    def kill(self, worker: Worker, signal: int) -> None: ...

    def emit_on(self, worker: Worker, event: str, *args: object) -> None: ...


class Watcher:
    """Looks at the workers that listen, while `settings.worker_timeout` is set."""

    def __init__(self, primary: Primary) -> None:
        self._primary = primary
        self._settings: dict[int, Settings] = {}  # of workers that do not listen yet
        self._watches: dict[int, _Watch] = {}

    def forked(self, worker: Worker) -> None:
        """A worker has been forked."""
        if self._primary.settings.worker_timeout is not None:
            self._settings[worker.id] = self._primary.settings

    def listening(self, worker: Worker) -> None:
        """A worker listens: look at it from now on, if that was asked for when it was forked."""
        if settings := self._settings.pop(worker.id, None):
            self._watches[worker.id] = _Watch(self._primary, worker, settings)

    def ended(self, worker: Worker) -> None:
        """A worker's process has ended."""
        self._settings.pop(worker.id, None)
        if watch := self._watches.pop(worker.id, None):
            watch.close()

    def abandon(self) -> None:
        """In a forked child: close the copies of what is open here."""
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()


class _Watch:
    """One worker that is looked at."""

    def __init__(self, primary: Primary, worker: Worker, settings: Settings) -> None:
        assert settings.worker_timeout is not None
        self._primary = primary
        self._worker = worker
        self._timeout_s = settings.worker_timeout
        self._interval_s = self._timeout_s / TICKS_PER_TIMEOUT
        self._kills = settings.on_hang == "kill"
        self._stacks_fd = _open_stacks()
        self._progress = primary.progress_of(worker)
        self._looked_at = time.monotonic()
        self._stalled_s = 0.0
        self._reported = False
        self._is_ready = False
        if self._stacks_fd >= 0:
            try:
                primary.watch_stacks(worker, self._stacks_fd)
            except OSError:
                self.close()  # no descriptor is left to send it: it is watched without
        primary.remind(self._interval_s, self._look)

    def close(self) -> None:
        """Look no more. Idempotent."""
        if self._stacks_fd >= 0:
            native.close(self._stacks_fd)
        self._stacks_fd = -1

    @property
    def _over(self) -> bool:
        return self._worker.state != "listening"

    def _look(self) -> None:
        if self._over:
            return
        now = time.monotonic()
        # More has gone by only when this process did not run, or somebody dispatches seldom.
        elapsed_s = min(now - self._looked_at, 2 * self._interval_s)
        self._looked_at = now
        if self._stalls():
            self._stalled_s += elapsed_s
        else:
            self._stalled_s = 0.0
            self._reported = False
        if self._stalled_s >= self._timeout_s and not self._reported:
            self._reported = True
            self._ask_for_stacks()
        self._primary.remind(self._interval_s, self._look)

    def _stalls(self) -> bool:
        """Whether there is no progress since the last look, and somebody waits for it."""
        before, now = self._progress, self._primary.progress_of(self._worker)
        self._progress = now
        if (now.accepted, now.ticks) != (before.accepted, before.ticks) or not (now.accepted or now.ticks):
            return False
        return bool(now.ticks and now.active) or self._primary.connections_wait_for(self._worker)

    # The report

    def _ask_for_stacks(self) -> None:
        state = _state_of(self._worker.process.pid)
        if self._stacks_fd < 0 or state in ("T", "t") or not self._may_signal():
            self._report(state, "")
            return
        try:
            # The worker writes where the last one ended: it has the same open file.
            os.lseek(self._stacks_fd, 0, os.SEEK_SET)
            os.ftruncate(self._stacks_fd, 0)
            self._primary.kill(self._worker, STACKS_SIGNAL)
        except OSError:
            self._report(state, "")  # it is another user's
            return
        self._collect(state, 0, time.monotonic() + COLLECT_S)

    def _may_signal(self) -> bool:
        """Whether the worker has said that it waits for STACKS_SIGNAL, and still does."""
        self._is_ready = self._is_ready or os.fstat(self._stacks_fd).st_size > 0
        return self._is_ready and _catches_signal(self._worker.process.pid)

    def _collect(self, state: str, length_before: int, deadline: float) -> None:
        """Wait until the stacks are there, and do not grow any more."""
        if self._over:
            return
        stacks = os.pread(self._stacks_fd, MOST_STACKS, 0)
        if (stacks and len(stacks) == length_before) or time.monotonic() > deadline:
            self._report(state, stacks.decode(errors="replace"))
        else:
            self._primary.remind(COLLECT_INTERVAL_S, lambda: self._collect(state, len(stacks), deadline))

    def _report(self, state: str, stacks: str) -> None:
        where, stacks = _serving_first(stacks, self._progress.thread)
        hang = Hang(self._stalled_s, _STATES.get(state, state), where, stacks)
        name = f"worker {self._worker.id} (pid {self._worker.process.pid})"
        log(
            "warning",
            f"{name} has made no progress for {hang.seconds:.1f} s while connections wait; "
            f"it is {hang.state}{f', in {where}' if where else ''}\n{stacks}".rstrip(),
        )
        if self._kills:
            progress = self._progress
            self._primary.remind(GRACE_S, lambda: self._kill(progress))
        self._primary.emit_on(self._worker, "hang", hang)

    def _kill(self, progress: Progress) -> None:
        if self._over:
            return
        now = self._primary.progress_of(self._worker)
        if (now.accepted, now.ticks) != (progress.accepted, progress.ticks):
            return  # it goes on
        log("warning", f"worker {self._worker.id} (pid {self._worker.process.pid}) still hangs, and is killed")
        self._primary.kill(self._worker, signal.SIGKILL)


def _open_stacks() -> int:
    """Where a worker writes its stacks; -1 when there is no descriptor left for it."""
    try:
        return os.memfd_create("pycluster-stacks", os.MFD_CLOEXEC)
    except OSError:
        return -1


def _state_of(pid: int) -> str:
    """The letter of its state, see proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "unknown"


def _catches_signal(pid: int) -> bool:
    """Whether it has a handler for STACKS_SIGNAL: it would die of it otherwise, see proc_pid_status(5)."""
    try:
        with open(f"/proc/{pid}/status") as file:
            caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", file.read(), re.MULTILINE)
    except OSError:
        return False
    return caught is not None and bool(int(caught[1], 16) >> (STACKS_SIGNAL - 1) & 1)


def _serving_first(stacks: str, thread: int) -> tuple[str | None, str]:
    """The line that a thread is at, and the stacks with its own first; if it has none, that of the signalled one.

    The worker may have written anything: nothing that a terminal would obey goes on from here.
    """
    printable = "".join(c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in stacks)
    blocks = [block for block in printable.split("\n\n") if block.strip()]
    blocks.sort(key=lambda block: _rank(block, thread))
    found = re.search(r'^  (File "[^"\n]*", line \d+ in .*)$', blocks[0], re.MULTILINE) if blocks else None
    return found[1] if found else None, "\n\n".join(block.rstrip("\n") for block in blocks)


def _rank(block: str, thread: int) -> int:
    header = re.match(r"(Current thread|Thread) 0x([0-9a-f]{1,16})\b", block)
    if header is not None and int(header[2], 16) == thread:
        return 0
    return 1 if header is not None and header[1] == "Current thread" else 2
