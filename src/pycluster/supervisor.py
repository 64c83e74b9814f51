"""The supervisor of the command line: starts the workers, and says what becomes of them.

It runs in the primary, under `cluster.run()`. What crashes is replaced as `settings.respawn` says. A worker that ends
with status 0, or that was asked to end, has done its work; any other end is a crash. On SIGHUP, and when watched files
have changed, it reloads: it starts what is missing at once, and has the workers that run replaced. With a watcher it
goes on without workers, until it is stopped: a change may mend what has ended them.
"""

import time
from dataclasses import dataclass, field

from .cluster import cluster
from .errors import ClusterError, ReloadError
from .journal import Journal
from .respawn import NEVER_UP, in_words
from .signals import end_in_words, name_of
from .watcher import Watcher
from .worker import Address, Worker, where

# The exit status, beside 0 after a stop that was asked for, 2 for wrong usage, and NEVER_UP.
CRASHED = 1


@dataclass
class _Life:
    """What is remembered of a living worker."""

    started_at: float = field(default_factory=time.monotonic)
    addresses: set[str] = field(default_factory=set)


class Supervisor:
    """Runs so many workers to the end."""

    def __init__(self, count: int, journal: Journal, watcher: Watcher | None) -> None:
        """`watcher` has the workers reloaded when files have changed; closed in the end."""
        self._count = count
        self._journal = journal
        self._watcher = watcher
        self._reloads = 0  # the one that runs, and the one that follows
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
        self._primary.on_hangup = lambda: self._reload("SIGHUP")
        if self._watcher is not None:
            self._respawner.holds = True
            self._primary.watch(self._watcher.fileno(), self._on_watcher)
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
        finally:
            if self._watcher is not None:
                self._watcher.close()
        if self._primary.stopping:
            status = 0
        elif self._respawner.crashes and not self._respawner.ever_up:
            status = NEVER_UP
        else:
            status = CRASHED if self._shrunk else 0
        self._journal.say("ended", "no worker is left", status=status)
        return status

    # Reloading

    def _on_watcher(self) -> None:
        assert self._watcher is not None
        began = self._watcher.watching
        changed = self._watcher.read()
        if self._watcher.watching and not began:
            self._journal.say("watching", "watching for changes")
        if changed:
            others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            self._reload(f"{changed[0]}{others} changed", files=changed)
        elif changed is None:
            self._primary.unwatch(self._watcher.fileno())
            self._journal.say("failed", f"changes are not seen any more: {self._watcher.error or 'the watcher died'}")

    def _reload(self, why: str, **facts: object) -> None:
        if self._primary.stopping or (self._respawner.given_up and self._watcher is None):
            return
        self._journal.say("reloading", f"{why}: reloading{' once more' if self._reloads else ''}", **facts)
        if self._reloads < 2:
            self._reloads += 1
            cluster.reload(callback=self._on_reloaded)
        else:
            cluster.reload(callback=lambda error: None)  # the one that follows is for those forked since, too
        self._respawner.fill()  # after it was asked for, so that these are not replaced

    def _on_reloaded(self, error: ReloadError | None) -> None:
        self._reloads -= 1
        if self._primary.stopping:
            return
        if error is None:
            running = len(cluster.workers)
            self._journal.say("reloaded", f"reloaded, with {some_workers(running)}", workers=running)
        else:
            self._journal.say("failed", f"the reload has stopped: {error}")

    # What happens

    def _on_fork(self, worker: Worker) -> None:
        self._lives.setdefault(worker.id, _Life())

    def _on_online(self, worker: Worker) -> None:
        self._journal.say("started", f"{_name(worker)} started", **_facts(worker))

    def _on_listening(self, worker: Worker, address: Address) -> None:
        life = self._lives.get(worker.id)
        place = where(address)
        if life is None or place in life.addresses:
            return  # servers that are given a listening socket call listen() once more
        life.addresses.add(place)
        self._journal.say("listening", f"{_name(worker)} listens on {place}", **_facts(worker), address=place)

    def _on_exit(self, worker: Worker, code: int | None, signal: int | None) -> None:
        life = self._lives.pop(worker.id, None) or _Life()
        lasted_s = time.monotonic() - life.started_at
        end = end_in_words(code, signal)
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
        then = "" if self._watcher is None else "; waiting for a change"
        self._journal.say("given-up", f"giving up: no worker has come up in {tries} tries{then}", tries=tries)

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
