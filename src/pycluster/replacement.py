"""One worker comes in the place of another one: the new one starts, it is up, and only then the old one leaves.

The rolling restart (reload.py) and recycling (recycle.py) are made of this. They say whose place it is and how long the
new one may take, pass on what the primary tells of its workers, and are told how it has ended. All of it runs in the
primary's dispatching thread.
"""

import time
from collections.abc import Callable
from typing import Literal, Protocol

from .worker import LEAVING, Address, Worker

State = Literal["starting", "alone", "retiring", "replaced", "proven", "dismissed", "cancelled", "failed", "late"]
Event = Literal["up", "proven", "crashed", "dismissed", "cancelled", "ended", "late", "gone"]

# The new worker has the old one's slot and environment, and the settings in force. For each event: the state that
# follows, and which of the two is asked to end.
#
#   starting   the old one serves, and the new one is on its way
#   alone      the old one has crashed meanwhile, and the new one is still on its way
#   retiring   the new one serves, and the old one finishes; it is killed after `graceful_timeout`
#
# From the other states nothing follows: the owner has been told.
#
#   replaced   the new one has the place, and the old one's process has ended
#   proven     in a trial, where the new one is only to show that it comes up: it has, and need not stay
#   dismissed  somebody else has asked the old one to end: it needs no successor
#   cancelled  somebody else has asked the new one to end
#   failed     the new one has ended before it was up
#   late       it was not up in time; it is ended, unless it holds the place alone
#
# The new one is up once it listens on all that the old one listens on. Where that is nothing, it is up once its script
# has run for SETTLE_S.
#
# Old and new hold one place, and somebody may replace whoever crashes: `settings.respawn`, a handler of the user's, or
# the command's supervisor. So as long as both are there (`starting`), each is `_covered`: its end counts as wanted,
# like one after `disconnect`. If one ends, the other is not covered any more. Hence the number of workers stays what it
# is, whatever crashes.
MACHINE: dict[tuple[State, Event], tuple[State, Literal["old", "new"] | None]] = {
    ("starting", "up"): ("retiring", "old"),
    ("starting", "proven"): ("proven", "new"),
    ("starting", "crashed"): ("alone", None),
    ("starting", "dismissed"): ("dismissed", "new"),
    ("starting", "cancelled"): ("cancelled", "new"),
    ("starting", "ended"): ("failed", None),
    ("starting", "late"): ("late", "new"),
    ("alone", "up"): ("replaced", None),
    ("alone", "proven"): ("proven", None),
    ("alone", "cancelled"): ("cancelled", None),
    ("alone", "ended"): ("failed", None),
    ("alone", "late"): ("late", None),
    ("retiring", "gone"): ("replaced", None),
}

# A worker that has nothing to listen on must have run for so long: imports that fail, fail sooner.
SETTLE_S = 1.0

_LIVE: tuple[State, ...] = ("starting", "alone", "retiring")
_ENDED: tuple[str, ...] = ("disconnected", "dead")


class Primary(Protocol):
    """What this room needs of the primary."""

    def fork_in_place_of(self, worker: Worker, start_method: Literal["spawn"] | None) -> Worker: ...

    def retire(self, worker: Worker) -> None: ...

    def addresses_of(self, worker: Worker) -> set[Address]: ...

    def remind(self, seconds: float, function: Callable[[], object]) -> None: ...

    def defer(self, function: Callable[[], object]) -> None: ...


class Replacement:
    """Two workers, one place.

    Attributes:
      old, new: the two.
      state: see MACHINE.
      missing: what the old one listens on and the new one does not, as of the last look.
    """

    def __init__(
        self,
        primary: Primary,
        old: Worker,
        timeout_s: float,
        on_over: "Callable[[Replacement], object]",
        is_trial: bool = False,
    ) -> None:
        """Fork the new worker.

        Args:
          timeout_s: how long it has to come up.
          on_over: is told, in a later dispatch, when nothing follows any more.
          is_trial: whether the new one is a fresh interpreter that is only to show that it comes up.

        Raises:
          OSError, ClusterError: there is no new worker; nothing has changed.
        """
        self._primary = primary
        self._on_over = on_over
        self._is_trial = is_trial
        self.old = old
        self.new = primary.fork_in_place_of(old, "spawn" if is_trial else None)
        self.old._covered = self.new._covered = True
        self.state: State = "starting"
        self.missing = self._wanted = primary.addresses_of(old)
        self._settling = Settling(primary, self._look)
        self._looks = False  # soon
        self._deadline = time.monotonic() + timeout_s
        primary.remind(timeout_s, self._look)

    def changed(self, worker: Worker) -> None:
        """A worker's state has changed, or what it listens on."""
        if worker not in (self.old, self.new):
            return
        other = self.new if worker is self.old else self.old
        if self.state == "starting" and worker.state in _ENDED and other.state not in _ENDED:
            # At once: the other one may end before it is looked at.
            other._covered = False
        # Not at once: the primary is in the midst of the change, and its event has not been emitted.
        if not self._looks:
            self._looks = True
            self._primary.defer(self._look)

    def _look(self) -> None:
        """Go on, if what was waited for has come."""
        self._looks = False
        while self.state in _LIVE and (event := self._find_event()):
            self.state, leaver = MACHINE[self.state, event]
            if leaver is not None:
                leaving, staying = (self.old, self.new) if leaver == "old" else (self.new, self.old)
                staying._covered = False
                self._primary.retire(leaving)
            if self.state not in _LIVE:
                self._on_over(self)

    def _find_event(self) -> Event | None:
        old, new = self.old, self.new
        if self.state == "retiring":
            return "gone" if old.state == "dead" else None
        if self.state == "starting":
            if old.state in LEAVING:
                return "dismissed" if old._asked_to_end else "crashed"
            self._wanted = self._primary.addresses_of(old)  # it may have closed, or opened, something meanwhile
        self.missing = self._wanted - self._primary.addresses_of(new)
        if new.state in ("disconnecting", "dead"):  # one that is only disconnected is about to show how it ends
            return "cancelled" if new._asked_to_end else "ended"
        if self._is_up:
            return "proven" if self._is_trial else "up"
        return "late" if time.monotonic() >= self._deadline else None

    @property
    def _is_up(self) -> bool:
        if self._wanted:
            return self.new.state not in LEAVING and not self.missing
        return self._settling.has_settled(self.new)


class Settling:
    """Workers that have nothing to listen on: which have run for so long that they are up."""

    def __init__(self, primary: Primary, look: Callable[[], object]) -> None:
        """`look`: is called when one may have settled that had not when it was asked for."""
        self._primary = primary
        self._look = look
        self._ran_since: dict[int, float] = {}

    def has_settled(self, worker: Worker) -> bool:
        """Whether a worker's script has run for SETTLE_S since it was asked for first."""
        if worker.state not in ("online", "listening"):
            return False
        if worker.id not in self._ran_since:
            self._ran_since[worker.id] = time.monotonic()
            self._primary.remind(SETTLE_S, self._look)
        return time.monotonic() - self._ran_since[worker.id] >= SETTLE_S
