"""Respawning: another worker in the place of one that has ended, as `settings.respawn` asks; and when to give up.

A place is a slot and an environment; the worker that comes next has both. When workers end soon after their start, one
after the other, their place stays empty for longer each time. When no worker has come up in so many tries, the script
is broken: the cluster ends, and `run()` says so with an exit status of its own.

The primary tells it what happens to workers. All of it runs in the dispatching thread. It keeps its accounts under
`respawn="never"`, too: the supervisor of the command line asks for them.
"""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from .errors import ClusterError
from .events import log
from .settings import Settings
from .signals import end_in_words
from .worker import Worker

# A worker that ends within this time of its start may be one that crashes in a loop.
STEADY_S = 10.0
# How long the place of such a worker stays empty: after the first end so long, after each further one twice as long.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
# As long as no worker has ever come up there are so many tries, and one for each place at least.
FEWEST_TRIES = 3
# The exit status of a primary whose workers never came up.
NEVER_UP = 3


class Primary(Protocol):
    """What this room needs of the primary."""

    settings: Settings
    stopping: bool

    @property
    def inherited(self) -> list[Worker]: ...

    def fork(self, env: Mapping[str, str] | None, slot: int | None = None) -> Worker: ...

    def disconnect_all(self, callback: Callable[[], object] | None) -> None: ...

    def remind(self, seconds: float, function: Callable[[], object]) -> None: ...

    def defer(self, function: Callable[[], object]) -> None: ...


class _Life(msgspec.Struct, eq=False):
    """What is remembered of a worker that lives, or is about to.

    Attributes:
      slot, env: its place; without a slot it gets the lowest that is free.
      crashes: how many before it, in its place, have ended soon after their start, one after the other.
    """

    slot: int | None = None
    env: Mapping[str, str] | None = None
    crashes: int = 0
    started_at: float = msgspec.field(default_factory=time.monotonic)

    @property
    def lasted_s(self) -> float:
        return time.monotonic() - self.started_at


class Respawner:
    """Keeps the places of a cluster's workers taken.

    Attributes:
      crashes: how many workers have crashed, or could not be started.
      ever_up: whether any has come up: it has listened, has lasted, or has ended with status 0.
      given_up: whether it has given up since somebody else has forked.
      holds: whether places are kept for which nobody comes, until `fill`. The cluster goes on without workers then.
      on_pause: is told what has ended, or why nothing could be started, and how many seconds its place stays empty
        (None: for ever); before `exit` is emitted.
      on_given_up: is told in how many tries no worker has come up.
    """

    def __init__(self, primary: Primary) -> None:
        self._primary = primary
        self._lives: dict[int, _Life] = {}
        self._waiting: list[_Life] = []
        self._left: list[_Life] = []  # for which nobody comes
        self._places = 0
        self._stands_down = False
        self.crashes = 0
        self.ever_up = False
        self.given_up = False
        self.holds = False
        self.on_pause: Callable[[Worker | Exception, float | None], object] = _log_pause
        self.on_given_up: Callable[[int], object] = _log_given_up

    @property
    def pending(self) -> bool:
        """Whether workers are still to come, or may be."""
        return bool(self._waiting) or self.holds

    @property
    def slots(self) -> set[int]:
        """The slots that are kept for workers to come."""
        return {life.slot for life in (*self._waiting, *self._left) if life.slot is not None}

    def stand_down(self) -> None:
        """The cluster is to end: nothing comes any more, unless somebody else forks."""
        self._stands_down = True
        self.holds = False
        self._waiting.clear()
        self._left.clear()

    def fill(self) -> None:
        """Start workers at once in all places that are kept, as if nothing had crashed before."""
        self.given_up = False
        self.crashes = 0
        empty = self._waiting + self._left
        self._left.clear()
        self._waiting[:] = [_Life(life.slot, life.env) for life in empty]
        for life in list(self._waiting):
            self._start(life)

    # What happens

    def forked(self, worker: Worker, is_new_place: bool) -> None:
        """Somebody has forked a worker, in the place of another one or in a new one."""
        self._stands_down = False
        if self.given_up:
            self.given_up = False
            self.crashes = self._places = 0
        self._places += is_new_place
        self._lives[worker.id] = _Life(worker.slot, worker._env)

    def came_up(self, worker: Worker) -> None:
        """A worker listens."""
        if worker.id in self._lives:
            self.ever_up = True

    def ended(self, worker: Worker) -> None:
        """A worker's process has ended: decide what comes in its place."""
        life = self._lives.pop(worker.id, None)
        if life is None:
            return  # it is of the last image of this process
        asked = worker._asked_to_end or self._primary.stopping
        done = worker.process.exitcode == 0
        self.ever_up = self.ever_up or life.lasted_s >= STEADY_S or (done and not asked)
        if asked:
            return
        self.crashes += not done
        if worker._covered or self._stands_down:
            return
        if self._wants_another(done) and self._may_try_again():
            self._replace(life, worker)
        else:
            self._leave(life)

    def failed(self, exception: Exception) -> None:
        """Somebody could not fork a worker for want of something: one comes later."""
        self._places += 1
        self._fail(_Life(), exception)

    # What follows

    def _wants_another(self, done: bool) -> bool:
        respawn = self._primary.settings.respawn
        return respawn == "always" or (respawn == "on-failure" and not done)

    def _may_try_again(self) -> bool:
        if self.ever_up or self.crashes < max(FEWEST_TRIES, self._places):
            return True
        if not self.given_up:
            self.given_up = True
            for life in self._waiting:
                self._leave(life)
            self._waiting.clear()
            tries = self.crashes
            self._primary.defer(lambda: self._give_up(tries))  # when the `exit` of the last has been emitted
        return False

    def _give_up(self, tries: int) -> None:
        self.on_given_up(tries)
        if not (self.holds or self._primary.inherited):
            self._primary.disconnect_all(None)

    def _replace(self, life: _Life, why: Worker | Exception) -> None:
        crashes = 0 if life.lasted_s >= STEADY_S else life.crashes + 1
        pause_s = min(FIRST_PAUSE_S * 2 ** (crashes - 1), LONGEST_PAUSE_S) if crashes else 0.0
        successor = _Life(life.slot, life.env, crashes)
        self._waiting.append(successor)
        self.on_pause(why, pause_s)
        self._primary.remind(pause_s, lambda: self._start(successor))

    def _start(self, life: _Life) -> None:
        if life not in self._waiting:
            return  # the cluster is to end
        self._waiting.remove(life)
        life.started_at = time.monotonic()
        try:
            worker = self._primary.fork(life.env, life.slot)
        except (OSError, ClusterError) as exception:
            self._fail(life, exception)
            return
        if life.slot is None:
            self._places -= 1  # counted when it could not be started
            life.slot = worker.slot
        self._lives[worker.id] = life

    def _fail(self, life: _Life, exception: Exception) -> None:
        self.crashes += 1
        if self._may_try_again():
            self._replace(life, exception)
        else:
            self._leave(life)
            self.on_pause(exception, None)

    def _leave(self, life: _Life) -> None:
        if self.holds:
            self._left.append(life)


def in_words(pause_s: float | None) -> str:
    """When the next one comes, to be put after what has happened."""
    if pause_s is None:
        return ""
    return f"; another one starts in {pause_s:g} s" if pause_s else "; another one starts now"


def _log_pause(why: Worker | Exception, pause_s: float | None) -> None:
    if isinstance(why, Worker):
        text = f"worker {why.id} (pid {why.process.pid}) {end_in_words(why.process.exitcode, why.process.signal)}"
    else:
        text = f"cannot start a worker: {why}"
    log("warning", text + in_words(pause_s))


def _log_given_up(tries: int) -> None:
    log("error", f"giving up: no worker has come up in {tries} tries")
