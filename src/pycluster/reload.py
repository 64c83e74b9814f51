"""The rolling restart: one worker after the other is replaced by a new one, while connections go on being served.

It runs in the primary's dispatching thread, on what the primary tells of its workers, and forks, disconnects and kills
through the primary. Listeners are not touched: the primary has them open all the time, so no connection is refused, and
what an old worker has not accepted goes to another one.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from .errors import ClusterError, ReloadError
from .primary import Primary
from .signals import end_in_words
from .worker import LEAVING, Address, Worker, where

State = Literal["idle", "choosing", "starting", "alone", "retiring", "renewing", "succeeding"]
Event = Literal[
    "asked", "chosen", "none left", "up", "proven", "failed", "crashed", "dismissed", "gone", "succeeded", "done"
]

# A reload replaces the workers that were forked before it was asked for, in the order of their age. For each it forks a
# new one with the settings in force and the old one's environment; waits until that is up; disconnects the old one,
# which is killed after `graceful_timeout`; and waits for its end, so that there is never more than one worker too many.
#
#   idle      nothing is to be done
#   choosing  which one is next; passed through at once
#   starting  the old one serves, and the new one is on its way
#   alone     the old one has crashed meanwhile, and the new one is still on its way
#   retiring  the new one serves, and the old one finishes
#
# The new one is up once it listens on all that the old one listens on. Where that is nothing, it is up once its script
# has run for SETTLE_S.
#
# Old and new hold one place, and somebody may replace whoever crashes: a handler of the user's, or the command's
# supervisor. So as long as both are there (`starting`), each is `_covered`: its end counts as wanted, like one after
# `disconnect`. If one crashes, the other is not covered any more. Hence the number of workers stays what it is, with
# such a handler or without, whatever crashes.
#
#   failed     the new one has ended, or was asked to by somebody else, or is not up in time. It is ended, unless it
#              holds the place alone, and the reload stops: the old ones go on.
#   dismissed  somebody else has asked the old one to end: it needs no successor, and the new one is ended.
#   asked      while a reload runs: one more follows it, however often it is asked for. It replaces whom the first one
#              has forked before that.
#
# Where the primary itself is to run new code (`renews`), the first new one is a fresh interpreter, and once that is up
# (`proven`) the primary re-executes itself instead of going on: see takeover.py.
#
#   renewing    no image of the primary sees the end of this state, unless the execve fails
#   succeeding  what the next image of the primary does from its first moment on: old workers serve, and its script
#               starts new ones. Each new one that listens on all that an old one listens on has that one disconnected.
#               When the script runs the cluster, all new ones are up, and together they listen on all that the old ones
#               listen on, the other old ones are disconnected.
#
# When all workers are disconnected, no case of its own is needed: the new one has been asked to end, or the old ones
# have, and none is left to be replaced.
MACHINE: dict[tuple[State, Event], State] = {
    ("idle", "asked"): "choosing",
    ("choosing", "chosen"): "starting",
    ("choosing", "none left"): "idle",
    ("choosing", "failed"): "idle",
    ("starting", "asked"): "starting",
    ("starting", "up"): "retiring",
    ("starting", "failed"): "idle",
    ("starting", "crashed"): "alone",
    ("starting", "dismissed"): "choosing",
    ("starting", "proven"): "renewing",
    ("alone", "asked"): "alone",
    ("alone", "up"): "choosing",
    ("alone", "proven"): "renewing",
    ("alone", "failed"): "idle",
    ("retiring", "asked"): "retiring",
    ("retiring", "gone"): "choosing",
    ("renewing", "failed"): "idle",
    ("idle", "succeeded"): "succeeding",
    ("succeeding", "asked"): "succeeding",
    ("succeeding", "done"): "idle",
    ("succeeding", "failed"): "idle",
}

# A new worker that has nothing to listen on must have run for so long: imports that fail, fail sooner.
SETTLE_S = 1.0

Callback = Callable[[ReloadError | None], object]

_ENDED: tuple[str, ...] = ("disconnected", "dead")


class Reload:
    """The reload of a primary: the one that runs, and the one that follows."""

    def __init__(
        self,
        primary: Primary,
        report: Callable[[ReloadError], object],
        renews: Callable[[], bool],
        renew: Callable[[float], object],
    ) -> None:
        """
        Args:
          report: is told why a reload has stopped, where no callback is.
          renews: whether the primary itself is to run new code.
          renew: has it do so, with the seconds that its workers have to come up; returns by a ReloadError only.
        """
        self._primary = primary
        self._report = report
        self._renews = renews
        self._renew = renew
        self._renewing = False
        self._state: State = "idle"
        self._callbacks: list[Callback | None] = []
        self._queued: list[Callback | None] = []
        self._timeout_s = 0.0
        self._queued_timeout_s = 0.0
        self._queued_last_id = 0
        self._olds: deque[Worker] = deque()
        self._old: Worker | None = None
        self._new: Worker | None = None
        self._wanted: set[Address] = set()
        self._deadline = 0.0
        self._ran_since: dict[int, float] = {}
        self._successors: set[int] = set()  # new workers, by id, for whom an old one has been disconnected
        self._fallen: Worker | None = None  # a new worker that has ended, of a new image
        self._looks = False  # soon
        primary.on_change = self._on_change

    def ask(self, timeout_s: float, callback: Callback | None) -> None:
        """Reload in the next dispatch, or once more after the reload that runs. Any thread."""
        last_id = self._primary.last_id
        self._primary.defer(lambda: self._ask(timeout_s, callback, last_id))

    def succeed(self, timeout_s: float) -> None:
        """In a new image of the primary: replace the inherited workers, as new ones come up."""
        self._step("succeeded")
        self._callbacks = [None]  # those of the old image are gone with it
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._primary.remind(timeout_s, self._look)

    def give_up(self, error: ReloadError) -> None:
        """The new image's script has ended before it ran the cluster."""
        if self._state == "succeeding":
            self._step("failed")
            self._finish(error)

    def _ask(self, timeout_s: float, callback: Callback | None, last_id: int) -> None:
        self._queued.append(callback)
        self._queued_timeout_s = timeout_s
        self._queued_last_id = last_id
        was_idle = self._state == "idle"
        self._step("asked")
        if was_idle:
            self._begin()

    def _step(self, event: Event) -> None:
        try:
            self._state = MACHINE[self._state, event]
        except KeyError:
            raise RuntimeError(f"a reload that is {self._state!r} cannot take {event!r}") from None

    # What happens to the two

    def _on_change(self, worker: Worker) -> None:
        """A worker's state has changed, or what it listens on."""
        if self._state == "succeeding":
            # One that ends with status 0 has done its work.
            if worker.state == "dead" and not (
                worker._inherited or worker._asked_to_end or worker.process.exitcode == 0
            ):
                self._fallen = worker
            self.look_soon()
            return
        old, new = self._old, self._new
        if old is None or new is None or worker not in (old, new):
            return
        other = new if worker is old else old
        if self._state == "starting" and worker.state in _ENDED and other.state not in _ENDED:
            # At once: the other one may end before it is looked at.
            other._covered = False
        self.look_soon()

    def look_soon(self) -> None:
        """See in the next dispatch whether what is waited for has come. The dispatching thread."""
        # Not at once: the primary is in the midst of the change, and its event has not been emitted.
        if not self._looks:
            self._looks = True
            self._primary.defer(self._look)

    def _look(self) -> None:
        """Go on, if what was waited for has come."""
        self._looks = False
        if self._state == "succeeding":
            self._look_at_successors()
            return
        old, new = self._old, self._new
        if old is None or new is None:
            return
        if self._state == "retiring":
            if old.state == "dead":
                self._step("gone")
                self._choose()
        elif self._state == "starting" and old.state in LEAVING:
            if old._asked_to_end:
                self._step("dismissed")
                self._primary.retire(new)
                self._choose()
            else:
                self._step("crashed")
                if new.state not in _ENDED:  # else it was the first to end, and the old one was uncovered by that
                    new._covered = False
                self.look_soon()
        elif new.state in ("disconnecting", "dead") or (self._is_late and not self._is_up(new)):
            self._fail(new)
        elif self._is_up(new) and self._renewing:
            if self._state == "starting":
                self._primary.retire(new)  # it has shown what it was to show, and is none that the script has forked
            self._step("proven")
            try:
                self._renew(self._timeout_s)
            except ReloadError as error:
                old._covered = False
                self._step("failed")
                self._finish(error)
        elif self._is_up(new):
            was_alone = self._state == "alone"
            new._covered = False
            self._step("up")
            if was_alone:
                self._choose()
            else:
                self._primary.retire(old)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() >= self._deadline

    def _is_up(self, new: Worker) -> bool:
        if self._state == "starting":
            assert self._old is not None
            self._wanted = self._primary.addresses_of(self._old)  # it may have closed, or opened, something meanwhile
        if self._wanted:
            return new.state not in LEAVING and not self._missing(new)
        return self._has_settled(new)

    def _has_settled(self, new: Worker) -> bool:
        if new.state not in ("online", "listening"):
            return False
        if new.id not in self._ran_since:
            self._ran_since[new.id] = time.monotonic()
            self._primary.remind(SETTLE_S, self._look)
        return time.monotonic() - self._ran_since[new.id] >= SETTLE_S

    def _look_at_successors(self) -> None:
        addresses_of = self._primary.addresses_of
        news = self._staying()
        for new in news:
            heir = None if new.id in self._successors else self._find_heir(addresses_of(new))
            if heir is not None:
                self._successors.add(new.id)
                self._primary.retire(heir)
        olds = self._staying_inherited()
        missing = set().union(*map(addresses_of, olds)) - set().union(*map(addresses_of, news))
        if self._fallen is not None or self._is_late:
            self._wanted = missing
            error = ReloadError(self._reason(self._fallen))
            self._step("failed")
            self._finish(error, self._primary.stopping)
        elif self._primary.running and not missing and all(addresses_of(new) or self._has_settled(new) for new in news):
            self._step("done")
            self._retire_inherited()
            self._finish(None)

    def _staying(self) -> list[Worker]:
        return [worker for worker in self._primary.workers.values() if worker.state not in LEAVING]

    def _staying_inherited(self) -> list[Worker]:
        return [worker for worker in self._primary.inherited if worker.state not in LEAVING]

    def _retire_inherited(self) -> None:
        for worker in self._staying_inherited():
            self._primary.retire(worker)

    def _find_heir(self, addresses: set[Address]) -> Worker | None:
        """The oldest inherited worker that listens on nothing but these."""
        for old in self._staying_inherited():
            if set() < self._primary.addresses_of(old) <= addresses:
                return old
        return None

    def _missing(self, new: Worker) -> set[Address]:
        return self._wanted - self._primary.addresses_of(new)

    # What is done

    def _begin(self) -> None:
        self._callbacks, self._queued = self._queued, []
        self._timeout_s = self._queued_timeout_s
        self._renewing = self._renews()
        self._primary.discard_template()  # it has the old code
        # In a new image whose script has failed there are only the inherited ones.
        staying = self._staying() or self._staying_inherited()
        self._olds.extend(worker for worker in staying if worker.id <= self._queued_last_id)
        self._choose()

    def _choose(self) -> None:
        """Start a worker in the place of the next one."""
        self._old = self._new = None
        while self._olds and self._olds[0].state in LEAVING:
            self._olds.popleft()
        if not self._olds:
            self._step("none left")
            if self._staying():
                self._retire_inherited()
            self._finish(None)
            return
        old = self._olds.popleft()
        try:
            new = self._primary.fork_in_place_of(old, "spawn" if self._renewing else None)
        except (OSError, ClusterError) as exception:
            self._step("failed")
            self._finish(ReloadError(f"a new worker cannot be started: {exception}; the workers that ran go on"))
            return
        self._old, self._new = old, new
        old._covered = new._covered = True
        self._wanted = self._primary.addresses_of(old)
        self._ran_since.clear()
        self._deadline = time.monotonic() + self._timeout_s
        self._step("chosen")
        self._primary.remind(self._timeout_s, self._look)

    def _fail(self, new: Worker) -> None:
        assert self._old is not None
        error = ReloadError(self._reason(new))
        cancelled = self._primary.stopping or new._asked_to_end
        if self._state == "starting":
            self._old._covered = False
            if new.state != "dead":
                self._primary.retire(new)
        self._step("failed")
        self._finish(error, cancelled)

    def _reason(self, new: Worker | None) -> str:
        """Why the reload stops, because of a new worker, or of all that the new image's script has started."""
        if new is None:
            who, gone = "the new version", self._wanted
        else:
            who, gone = f"the new worker {new.id} (pid {new.process.pid})", self._missing(new)
        missing = ", ".join(sorted(map(where, gone)))
        if new is not None and new._asked_to_end:
            return f"{who} was asked to end before it was up; the workers that ran go on"
        if new is not None and new.state == "dead":
            end = end_in_words(new.process.exitcode, new.process.signal)
            before = f"listened on {missing}" if missing else "was up"
            return f"{who} {end} before it {before}; the workers that ran go on. Its own output says why"
        late = f"did not listen on {missing}" if missing else "did not start"
        return (
            f"{who} {late} within {self._timeout_s:g} s; the workers that ran go on. If it only needs longer, say so "
            "with reload(timeout=...); if it is not to listen there any more, start the cluster anew"
        )

    def _finish(self, error: ReloadError | None, cancelled: bool = False) -> None:
        """Say how it went, and go on with the reload that has been asked for meanwhile."""
        callbacks, self._callbacks = self._callbacks, []
        self._olds.clear()
        self._old = self._new = None
        for callback in callbacks:
            if callback is not None:
                self._tell(callback, error)
        if error is not None and None in callbacks and not cancelled:
            self._report(error)
        if self._queued and self._state == "idle":
            self._step("asked")
            self._begin()

    def _tell(self, callback: Callback, error: ReloadError | None) -> None:
        self._primary.call_back(lambda: callback(error))
