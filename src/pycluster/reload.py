"""The rolling restart: one worker after the other is replaced by a new one, while connections go on being served.

It runs in the primary's dispatching thread, on what the primary tells of its workers, and forks, disconnects and kills
through the primary. Listeners are not touched: the primary has them open all the time, so no connection is refused, and
what an old worker has not accepted goes to another one.
"""

import time
from collections.abc import Callable
from typing import Literal

from .errors import ClusterError, ReloadError
from .primary import Primary
from .replacement import Replacement, Settling
from .signals import end_in_words
from .worker import LEAVING, Address, Worker, where

State = Literal["idle", "replacing", "renewing", "succeeding"]
Event = Literal["asked", "none left", "proven", "failed", "succeeded", "done"]

# A reload replaces the workers that were forked before it was asked for, in the order of their age, one after the
# other: for each see replacement.py. As it waits for the old one's end, there is never more than one worker too many.
#
#   idle       nothing is to be done
#   replacing  one worker by another one
#
#   failed     a new worker has ended, or was asked to by somebody else, or was not up in time, or could not be started:
#              the reload stops, and the old ones go on
#   asked      while a reload runs: one more follows it, however often it is asked for. It replaces whom the first one
#              has forked before that.
#
# Where the primary itself is to run new code (`renews`), the first replacement is a trial with a fresh interpreter.
# Once that is up (`proven`) the primary re-executes itself instead of going on: see takeover.py.
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
    ("idle", "asked"): "replacing",
    ("replacing", "asked"): "replacing",
    ("replacing", "none left"): "idle",
    ("replacing", "failed"): "idle",
    ("replacing", "proven"): "renewing",
    ("renewing", "failed"): "idle",
    ("idle", "succeeded"): "succeeding",
    ("succeeding", "asked"): "succeeding",
    ("succeeding", "done"): "idle",
    ("succeeding", "failed"): "idle",
}

Callback = Callable[[ReloadError | None], object]


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
        self._olds: list[Worker] = []
        self._replacement: Replacement | None = None
        self._deadline = 0.0  # of the succession
        self._settling = Settling(primary, self._look)
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

    # What happens

    def _on_change(self, worker: Worker) -> None:
        """A worker's state has changed, or what it listens on."""
        if self._replacement is not None:
            self._replacement.changed(worker)
        elif self._state == "replacing":
            self._primary.defer(self._go_on)
        elif self._state == "succeeding":
            # One that ends with status 0 has done its work.
            if worker.state == "dead" and not (
                worker._inherited or worker._asked_to_end or worker.process.exitcode == 0
            ):
                self._fallen = worker
            self.look_soon()

    def _on_over(self, replacement: Replacement) -> None:
        self._replacement = None
        if replacement.state in ("replaced", "dismissed"):
            self._replace_next()
        elif replacement.state == "proven":
            self._step("proven")
            try:
                self._renew(self._timeout_s)
            except ReloadError as error:
                self._step("failed")
                self._finish(error, self._primary.must_stop)
        else:
            is_cancelled = replacement.state == "cancelled"
            reason = self._reason(replacement.new, replacement.missing, is_cancelled)
            self._step("failed")
            self._finish(ReloadError(reason), is_cancelled or self._primary.stopping)

    def look_soon(self) -> None:
        """See in the next dispatch whether what is waited for has come. The dispatching thread."""
        # Not at once: the primary is in the midst of the change, and its event has not been emitted.
        if not self._looks:
            self._looks = True
            self._primary.defer(self._look)

    def _look(self) -> None:
        """Disconnect the inherited workers for whom new ones have come."""
        self._looks = False
        if self._state != "succeeding":
            return
        addresses_of = self._primary.addresses_of
        news = self._staying()
        for new in news:
            heir = None if new.id in self._successors else self._find_heir(addresses_of(new))
            if heir is not None:
                self._successors.add(new.id)
                self._primary.retire(heir)
        olds = self._staying_inherited()
        missing = set().union(*map(addresses_of, olds)) - set().union(*map(addresses_of, news))
        if self._fallen is not None or time.monotonic() >= self._deadline:
            error = ReloadError(self._reason(self._fallen, missing))
            self._step("failed")
            self._finish(error, self._primary.stopping)
        elif self._primary.running and not missing and self._are_up(news):
            self._step("done")
            self._retire_inherited()
            self._finish(None)

    def _are_up(self, news: list[Worker]) -> bool:
        """Whether each listens, or has settled. Each is asked: its second begins with that."""
        return not [new for new in news if not self._primary.addresses_of(new) and not self._settling.has_settled(new)]

    def _staying(self) -> list[Worker]:
        return [worker for worker in list(self._primary.workers.values()) if worker.state not in LEAVING]

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

    # What is done

    def _begin(self) -> None:
        self._callbacks, self._queued = self._queued, []
        self._timeout_s = self._queued_timeout_s
        self._renewing = self._renews()
        self._primary.discard_template()  # it has the old code
        # In a new image whose script has failed there are only the inherited ones.
        staying = self._staying() or self._staying_inherited()
        self._olds.extend(worker for worker in staying if worker.id <= self._queued_last_id)
        self._replace_next()

    def _go_on(self) -> None:
        if self._state == "replacing" and self._replacement is None:
            self._replace_next()

    def _replace_next(self) -> None:
        self._olds = [old for old in self._olds if old.state not in LEAVING]
        if not self._olds:
            self._step("none left")
            if self._staying():
                self._retire_inherited()
            self._finish(None)
            return
        # Recycling may be about to replace one, or to put one in its place: that comes to its end before.
        old = next((old for old in self._olds if old._inherited or not old._covered), None)
        if old is None:
            return
        self._olds.remove(old)
        try:
            self._replacement = Replacement(self._primary, old, self._timeout_s, self._on_over, is_trial=self._renewing)
        except (OSError, ClusterError) as exception:
            self._step("failed")
            self._finish(ReloadError(f"a new worker cannot be started: {exception}; the workers that ran go on"))

    def _reason(self, new: Worker | None, missing: set[Address], is_cancelled: bool = False) -> str:
        """Why the reload stops, because of a new worker, or of all that the new image's script has started."""
        who = "the new version" if new is None else f"the new worker {new.id} (pid {new.process.pid})"
        there = ", ".join(sorted(map(where, missing)))
        if is_cancelled:
            return f"{who} was asked to end before it was up; the workers that ran go on"
        if new is not None and new.state == "dead":
            end = end_in_words(new.process.exitcode, new.process.signal)
            before = f"listened on {there}" if missing else "was up"
            return f"{who} {end} before it {before}; the workers that ran go on. Its own output says why"
        late = f"did not listen on {there}" if missing else "did not start"
        return (
            f"{who} {late} within {self._timeout_s:g} s; the workers that ran go on. If it only needs longer, say so "
            "with reload(timeout=...); if it is not to listen there any more, start the cluster anew"
        )

    def _finish(self, error: ReloadError | None, cancelled: bool = False) -> None:
        """Say how it went, and go on with the reload that has been asked for meanwhile."""
        callbacks, self._callbacks = self._callbacks, []
        self._olds.clear()
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
