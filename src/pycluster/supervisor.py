"""The supervisor of the command line: starts the workers, and starts others in the place of those that crash.

It runs in the primary, under `cluster.run()`. A worker that ends with status 0, or that was asked to end, has done its
work; any other end is a crash.
"""

import time
from dataclasses import dataclass, field

from .cluster import cluster
from .errors import ClusterError
from .journal import Journal
from .signals import end_in_words, name_of
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


@dataclass
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

    def __init__(self, count: int, journal: Journal, *, respawn: bool) -> None:
        """
        Args:
          respawn: whether workers that crash are replaced.
        """
        self._count = count
        self._journal = journal
        self._respawn = respawn
        self._tries = max(FEWEST_TRIES, count)
        self._lives: dict[int, _Life] = {}
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
        for _ in range(self._count):
            self._start(_Life())
        cluster.run()
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
        if self._primary.stopping or self._given_up:
            return
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
            if not self._given_up:
                self._given_up = True
                self._journal.say(
                    "given-up", f"giving up: no worker has come up in {self._crashes} tries", tries=self._crashes
                )
                cluster.disconnect()
            return
        crashes = 0 if life.lasted_s >= STEADY_S else life.crashes + 1
        pause_s = min(FIRST_PAUSE_S * 2 ** (crashes - 1), LONGEST_PAUSE_S) if crashes else 0.0
        when = f"in {pause_s:g} s" if pause_s else "now"
        self._journal.say(event, f"{text}; another one starts {when}", **facts, pause_s=pause_s)
        successor = _Life(crashes)
        self._primary.call_later(pause_s, lambda: self._start(successor))

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
            self._journal.say("stopped", f"{_name(worker)} {end}", **facts)
            return
        self._crashes += 1
        text = f"{_name(worker)} {end} after {life.lasted_s:.1f} s"
        if self._respawn:
            self._replace(life, "died", text, facts)
        else:
            self._shrunk = True
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
