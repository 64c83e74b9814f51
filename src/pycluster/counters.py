"""Counters and statistics, read from the shared region: no worker is asked, so none can delay the answer."""

from dataclasses import dataclass

from . import _cluster
from .errors import ClusterError
from .worker import STATES, State


@dataclass(frozen=True)
class WorkerStats:
    """What one living worker has done.

    Attributes:
      id, slot, pid, state: as of its `Worker`.
      dispatched: connections handed to it and not taken back.
      accepted: connections that it has accepted, handed over or from a shared socket.
      pending: connections handed to it that it has not accepted yet.
      active: accepted connections still open; exact after its control thread's last look, at most a second ago.
      messages_in, messages_out: the user's messages that it has received and sent.
      started_at: when it was forked, in seconds since the epoch.
    """

    id: int
    slot: int
    pid: int
    state: State
    dispatched: int
    accepted: int
    pending: int
    active: int
    messages_in: int
    messages_out: int
    started_at: float


@dataclass(frozen=True)
class ClusterStats:
    """What the cluster has done: the living workers, and totals over all workers, dead ones included."""

    workers: tuple[WorkerStats, ...]
    dispatched: int
    accepted: int
    pending: int
    active: int
    messages_in: int
    messages_out: int


def read_stats() -> ClusterStats:
    """Read the statistics. Any process and thread of the cluster."""
    workers = []
    totals = dict.fromkeys(("dispatched", "accepted", "pending", "active", "messages_in", "messages_out"), 0)
    for row in _cluster.read_slots():
        number, pid, state, dispatched, received, direct, active, messages_in, messages_out, started_at_ns, slot = row
        stats = WorkerStats(
            id=number,
            slot=slot,
            pid=pid,
            state=STATES[state] if state < len(STATES) else "none",
            dispatched=dispatched,
            accepted=received + direct,
            # The dead have nothing pending; what a worker writes meanwhile may run ahead of what we have read.
            pending=max(0, dispatched - received) if number else 0,
            active=active,
            messages_in=messages_in,
            messages_out=messages_out,
            started_at=started_at_ns / 1e9,
        )
        for name in totals:
            totals[name] += getattr(stats, name)
        if number:
            workers.append(stats)
    return ClusterStats(workers=tuple(sorted(workers, key=lambda worker: worker.id)), **totals)


def make_counter(name: str, max_counters: int) -> _cluster.Counter:
    """The counter of that name, made when it is new.

    Raises:
      ClusterError: there are `max_counters` others.
      ValueError: the name is no name.
    """
    try:
        return _cluster.Counter(name)
    except LookupError:
        raise _no_room(name, max_counters) from None


def rejoin(counter: _cluster.Counter, max_counters: int) -> None:
    """Make a counter that was made beside another shared region, by a module that a template imports, one of this one.

    Raises:
      ClusterError: as `make_counter` does.
    """
    try:
        counter.rejoin()
    except LookupError:
        raise _no_room(counter.name, max_counters) from None


def _no_room(name: str, max_counters: int) -> ClusterError:
    return ClusterError(
        f"no room for counter {name!r}: settings.max_counters is {max_counters}; raise it before the first fork"
    )
