"""The supervisor of the command line: starts the workers, and says what becomes of them.

It runs in the primary, under `cluster.run()`. What crashes is replaced as `settings.respawn` says. A worker that ends
with status 0, or that was asked to end, has done its work; any other end is a crash.
"""

import time
from dataclasses import dataclass, field

from .cluster import cluster
from .errors import ClusterError
from .journal import Journal
from .respawn import NEVER_UP, in_words
from .signals import name_of
from .worker import Address, Worker

# The exit status, beside 0 after a stop that was asked for, 2 for wrong usage, and NEVER_UP.
CRASHED = 1


@dataclass
class _Life:
    """What is remembered of a living worker."""

    started_at: float = field(default_factory=time.monotonic)
    addresses: set[str] = field(default_factory=set)


class Supervisor:
    """Runs so many workers to the end."""

    def __init__(self, count: int, journal: Journal) -> None:
        self._count = count
        self._journal = journal
        self._lives: dict[int, _Life] = {}
        self._pauses: dict[int, float | None] = {}
        self._shrunk = False
        self._primary = cluster._as_primary("run")
        self._respawner = self._primary.respawner

    def run(self) -> int:
        """Run the cluster until it has ended. Returns the exit status."""
        self._primary.on_stop = self._on_stop
        self._respawner.on_pause = self._on_pause
        self._respawner.on_given_up = self._on_given_up
        cluster.on("fork", self._on_fork)
        cluster.on("online", self._on_online)
        cluster.on("listening", self._on_listening)
        cluster.on("exit", self._on_exit)
        for _ in range(self._count):
            try:
                cluster.fork()
            except (OSError, ClusterError) as exception:
                self._respawner.failed(exception)
        try:
            cluster.run()
        except SystemExit:
            if not self._respawner.given_up:
                raise
        if self._primary.stopping:
            status = 0
        elif self._respawner.crashes and not self._respawner.ever_up:
            status = NEVER_UP
        else:
            status = CRASHED if self._shrunk else 0
        self._journal.say("ended", "no worker is left", status=status)
        return status

    # What happens

    def _on_fork(self, worker: Worker) -> None:
        self._lives.setdefault(worker.id, _Life())

    def _on_online(self, worker: Worker) -> None:
        self._journal.say("started", f"{_name(worker)} started", **_facts(worker))

    def _on_listening(self, worker: Worker, address: Address) -> None:
        life = self._lives.get(worker.id)
        where = _where(address)
        if life is None or where in life.addresses:
            return  # servers that are given a listening socket call listen() once more
        life.addresses.add(where)
        self._journal.say("listening", f"{_name(worker)} listens on {where}", **_facts(worker), address=where)

    def _on_exit(self, worker: Worker, code: int | None, signal: int | None) -> None:
        life = self._lives.pop(worker.id, None) or _Life()
        lasted_s = time.monotonic() - life.started_at
        end = f"exited with status {code}" if signal is None else f"was killed by {name_of(signal)}"
        asked = bool(worker.exited_after_disconnect) or self._primary.stopping
        facts = {
            **_facts(worker),
            "code": code,
            "signal": None if signal is None else name_of(signal),
            "asked": asked,
            "lasted_s": round(lasted_s, 3),
        }
        if code == 0 or asked:
            self._journal.say("stopped", f"{_name(worker)} {end}", **facts)
            return
        text = f"{_name(worker)} {end} after {lasted_s:.1f} s"
        pause_s = self._pauses.pop(worker.id, None)
        if pause_s is None:
            self._shrunk = True
            self._journal.say("died", text, **facts)
        else:
            self._journal.say("died", text + in_words(pause_s), **facts, pause_s=pause_s)

    def _on_pause(self, why: Worker | Exception, pause_s: float | None) -> None:
        if isinstance(why, Worker):
            self._pauses[why.id] = pause_s  # its `exit` follows, and says it
        else:
            self._journal.say("failed", f"cannot start a worker: {why}{in_words(pause_s)}", pause_s=pause_s)

    def _on_given_up(self, tries: int) -> None:
        self._journal.say("given-up", f"giving up: no worker has come up in {tries} tries", tries=tries)

    def _on_stop(self, forced: bool) -> None:
        left = len(cluster.workers)
        if forced:
            self._journal.say("stopping", f"stopping at once: killing {some_workers(left)}", workers=left)
        elif left:
            self._journal.say("stopping", f"stopping, with {some_workers(left)} to finish", workers=left)


def some_workers(count: int) -> str:
    """So many workers, in words."""
    return f"{count} worker{'' if count == 1 else 's'}"


def _name(worker: Worker) -> str:
    return f"worker {worker.id} (pid {worker.process.pid})"


def _facts(worker: Worker) -> dict[str, object]:
    return {"worker": worker.id, "pid": worker.process.pid}


def _where(address: Address) -> str:
    if address.path is not None:
        return address.path
    host = f"[{address.host}]" if address.host and ":" in address.host else address.host
    return f"{host}:{address.port}"
