"""The supervisor of the command line: starts the workers, and starts others in the place of those that crash.

It runs in the primary, under `cluster.run()`. A worker that ends with status 0, or that was asked to end, has done its
work; any other end is a crash. On SIGHUP, and when watched files have changed, it reloads: it starts what is missing at
once, and has the workers that run replaced. With a watcher it goes on without workers, until it is stopped: a change
may mend what has ended them.
"""

import time
from dataclasses import dataclass, field

from .cluster import cluster
from .errors import ClusterError, ReloadError
from .journal import Journal
from .signals import end_in_words, name_of
from .watcher import Watcher
from .worker import Address, Worker, where

# A worker that crashes within this time of its start may be one that crashes in a loop.
STEADY_S = 10.0
# How long the place of such a worker stays empty: after the first crash so long, after each further one twice as long.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
# As long as no worker has ever come up there are so many tries, and one for each worker at least.
FEWEST_TRIES = 3

# The exit statuses, beside 0 after a stop that was asked for and 2 for wrong usage.
CRASHED = 1
NEVER_UP = 3


@dataclass(eq=False)
class _Life:
    """What is remembered of a living worker.

    Attributes:
      crashes: how many before it, in its place, have crashed soon after their start, one after the other.
    """

    crashes: int = 0
    started_at: float = field(default_factory=time.monotonic)
    addresses: set[str] = field(default_factory=set)

    @property
    def lasted_s(self) -> float:
        return time.monotonic() - self.started_at


class Supervisor:
    """Keeps so many workers running."""

    def __init__(self, count: int, journal: Journal, *, respawn: bool, watcher: Watcher | None) -> None:
        """
        Args:
          respawn: whether workers that crash are replaced.
          watcher: has the workers reloaded when files have changed. Closed in the end.
        """
        self._count = count
        self._journal = journal
        self._respawn = respawn
        self._tries = max(FEWEST_TRIES, count)
        self._watcher = watcher
        self._lives: dict[int, _Life] = {}
        self._empty: list[_Life] = []  # places where no worker is just now, and one may come
        self._reloads = 0  # the one that runs, and the one that follows
        self._crashes = 0
        self._ever_up = False
        self._shrunk = False
        self._given_up = False
        self._primary = cluster._as_primary("run")

    def run(self) -> int:
        """Run the cluster until it has ended. Returns the exit status."""
        self._primary.on_stop = self._on_stop
        cluster.on("fork", self._on_fork)
        cluster.on("online", self._on_online)
        cluster.on("listening", self._on_listening)
        cluster.on("exit", self._on_exit)
        self._primary.on_hangup = lambda: self._reload("SIGHUP")
        if self._watcher is not None:
            self._primary.held = True
            self._primary.watch(self._watcher.fileno(), self._on_watcher)
        self._empty = [_Life() for _ in range(self._count)]
        self._fill()
        try:
            cluster.run()
        finally:
            if self._watcher is not None:
                self._watcher.close()
        if self._primary.stopping:
            status = 0
        elif self._given_up or (self._crashes and not self._ever_up):
            status = NEVER_UP
        else:
            status = CRASHED if self._shrunk else 0
        self._journal.say("ended", "no worker is left", status=status)
        return status

    # Starting

    def _start(self, life: _Life) -> None:
        if self._primary.stopping or life not in self._empty:
            return
        self._empty.remove(life)
        life.started_at = time.monotonic()
        try:
            worker = cluster.fork()
        except (OSError, ClusterError) as exception:
            self._crashes += 1
            self._replace(life, "failed", f"cannot start a worker: {exception}", {})
        else:
            self._lives[worker.id] = life

    def _replace(self, life: _Life, event: str, text: str, facts: dict[str, object]) -> None:
        """Say what has happened to a worker, and let another one come in its place; or give up."""
        if not self._ever_up and self._crashes >= self._tries:
            self._journal.say(event, text, **facts)
            self._leave_empty()
            if not self._given_up:
                self._give_up()
            return
        crashes = 0 if life.lasted_s >= STEADY_S else life.crashes + 1
        pause_s = min(FIRST_PAUSE_S * 2 ** (crashes - 1), LONGEST_PAUSE_S) if crashes else 0.0
        when = f"in {pause_s:g} s" if pause_s else "now"
        self._journal.say(event, f"{text}; another one starts {when}", **facts, pause_s=pause_s)
        successor = _Life(crashes)
        self._empty.append(successor)
        self._primary.call_later(pause_s, lambda: self._start(successor))

    def _give_up(self) -> None:
        self._given_up = True
        text = f"giving up: no worker has come up in {self._crashes} tries"
        if self._watcher is not None:
            text += "; waiting for a change"
        self._journal.say("given-up", text, tries=self._crashes)
        if self._watcher is None:
            self._empty.clear()
            cluster.disconnect()

    def _leave_empty(self) -> None:
        """Nobody comes in the place of a worker, unless there is a change."""
        if self._watcher is not None:
            self._empty.append(_Life())

    def _fill(self) -> None:
        """Start workers in all places that are empty, at once."""
        self._given_up = False
        self._crashes = 0
        for life in list(self._empty):
            life.crashes = 0
            self._start(life)

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
        if self._primary.stopping or (self._given_up and self._watcher is None):
            return
        self._journal.say("reloading", f"{why}: reloading{' once more' if self._reloads else ''}", **facts)
        if self._reloads < 2:
            self._reloads += 1
            cluster.reload(callback=self._on_reloaded)
        self._fill()  # after it was asked for, so that these are not replaced

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
        self._ever_up = True
        life.addresses.add(place)
        self._journal.say("listening", f"{_name(worker)} listens on {place}", **_facts(worker), address=place)

    def _on_exit(self, worker: Worker, code: int | None, signal: int | None) -> None:
        life = self._lives.pop(worker.id, None) or _Life()
        end = end_in_words(code, signal)
        asked = bool(worker.exited_after_disconnect) or self._primary.stopping
        facts = {
            **_facts(worker),
            "code": code,
            "signal": None if signal is None else name_of(signal),
            "asked": asked,
            "lasted_s": round(life.lasted_s, 3),
        }
        came_up = bool(life.addresses) or life.lasted_s >= STEADY_S or (code == 0 and not asked)
        self._ever_up = self._ever_up or came_up
        if code == 0 or asked:
            if not asked:
                self._leave_empty()
            self._journal.say("stopped", f"{_name(worker)} {end}", **facts)
            return
        self._crashes += 1
        text = f"{_name(worker)} {end} after {life.lasted_s:.1f} s"
        if self._respawn:
            self._replace(life, "died", text, facts)
        else:
            self._shrunk = True
            self._leave_empty()
            self._journal.say("died", text, **facts)

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
