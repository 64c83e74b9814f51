"""Cases of the balancer: `balance_cases.py NAME` tells one fact. See core_front.py."""

import os
import random
import socket
import subprocess
import sys
import time

from programs.core_front import (
    PATIENCE_S,
    Facts,
    FakeWorker,
    Front,
    consumed_cell,
    descriptors_left,
    error_of,
    expect_taken_back,
    reach,
    run_case,
    wait_until,
)
from pycluster import _cluster

BLOCKED_S = 0.05  # the balancer's own


def figure(name: str) -> int:
    return _cluster.balancer_figures()[name]


def wakeups_in(seconds: float) -> float:
    """The balancer's wake-ups, as many as there would be in so many seconds."""
    before, started = figure("wakeups"), time.monotonic()
    time.sleep(seconds)
    return (figure("wakeups") - before) * seconds / (time.monotonic() - started)


# ---- Turns


def one_after_another() -> Facts:
    front = Front(4)
    workers = [front.serve_one() for _ in range(22)]
    expect_taken_back(0)
    return {"workers": workers}


def in_a_burst() -> Facts:
    front = Front(4)
    front.give(25, 25, 25, 25)
    taken = [len(worker.take_all()) for worker in front.workers]
    expect_taken_back(0)
    return {"taken": taken}


def workers_come_and_go() -> Facts:
    front = Front(2)
    before = [front.serve_one() for _ in range(4)]
    front.workers.append(FakeWorker(front.listener, 3))
    joined = [front.serve_one() for _ in range(60)]
    front.retire(front.workers[0])
    left = [front.serve_one() for _ in range(20)]
    expect_taken_back(0)
    return {"before": before, "joined": joined[-9:], "left": left}


def max_pending() -> Facts:
    front = Front(2, max_pending=2)
    front.connect(10)
    reach(lambda: front.backlog() == 6)
    full = front.dispatched()
    expect_taken_back(0)
    front.workers[1].take().close()
    reach(lambda: front.backlog() == 5 and sum(front.dispatched()) == 5)
    one_taken = front.dispatched()
    expect_taken_back(0)
    taken: list[socket.socket] = []

    def all_taken() -> bool:
        for worker in front.workers:
            taken.extend(worker.take_all())
        return len(taken) == 9

    return {"full": full, "one_taken": one_taken, "all_taken": wait_until(all_taken), "backlog": front.backlog()}


def another_listener_is_full() -> Facts:
    full = Front(1, max_pending=1)
    full.connect(5)
    reach(lambda: full.backlog() == 4)
    other = Front(1, max_pending=1, first_id=2)
    return {"workers": [other.serve_one() for _ in range(5)], "backlog": full.backlog()}


# ---- Workers that are gone or blocked


def a_worker_is_gone() -> Facts:
    front = Front(3)
    front.give(3, 3, 3)
    front.retire(front.workers[0])
    assert wait_until(lambda: front.dispatched()[0] == 0 and sum(front.dispatched()) == 9)
    dispatched = front.dispatched()
    expect_taken_back(3)
    taken = [sock.getpeername() for worker in front.workers[1:] for sock in worker.take_all()]
    return {
        "dispatched": dispatched,
        "all_there": sorted(taken) == sorted(client.getsockname() for client in front.clients),
        "lost": figure("lost"),
    }


def the_last_worker_is_gone() -> Facts:
    """What it had not taken, and what came meanwhile, is for the next one."""
    front = Front(1)
    front.give(2)
    front.retire(front.workers[0])
    _cluster.release_slot(front.workers[0].slot)
    front.connect(2)
    front.workers = [FakeWorker(front.listener, 1)]
    taken = [front.workers[0].take().getpeername() for _ in range(4)]
    return {
        "in_order": taken == [client.getsockname() for client in front.clients],
        "dispatched": front.dispatched(),
        "of_the_dead": _cluster.read_slots()[0][3],
    }


def a_blocked_worker_is_gone() -> Facts:
    """Its connection has moved to another one, and a probe lies in its channel. Both workers end."""
    front = Front(2)
    blocked, idle = front.workers
    front.connect(2)
    taken = [idle.take(), idle.take()]
    assert wait_until(blocked.waiting)
    for worker in (idle, blocked):
        front.retire(worker)
    for worker in (idle, blocked):
        _cluster.release_slot(worker.slot)
    return {"taken": len(taken), "of_the_dead": _cluster.read_slots()[0][3]}


def a_blocked_worker() -> Facts:
    """Worker 0 takes nothing any more; its connection moves to 1, and it gets no more until it takes the probe."""
    front = Front(2)
    blocked, idle = front.workers
    front.connect(2)
    taken = [idle.take(), idle.take()]  # the second as soon as it has been taken back
    moved = sorted(sock.getpeername() for sock in taken) == sorted(client.getsockname() for client in front.clients)
    figures = _cluster.balancer_figures()
    probed = wait_until(blocked.waiting)
    meanwhile = front.dispatched()
    for _ in range(4):
        front.connect()
        idle.take().close()
    afterwards = front.dispatched()
    error = error_of(lambda: blocked.receiver.accept(0))
    front.connect(0)

    def served_by_the_blocked_one() -> bool:
        return front.serve_one() == 0

    return {
        "moved": moved,
        "taken_back": figures["taken_back"],
        "probed": probed,
        "meanwhile": [after - before for after, before in zip(afterwards, meanwhile, strict=True)],
        "error": error,
        "returned": wait_until(served_by_the_blocked_one),
        "lost": figure("lost"),
    }


def a_blocked_worker_that_takes_all_at_once() -> Facts:
    """The same with accept_many, which must not take the probe for a connection."""
    front = Front(2)
    blocked, idle = front.workers
    front.connect(2)
    taken = [idle.take(), idle.take()]
    probed = wait_until(blocked.waiting)
    many = blocked.receiver.accept_many()
    return {
        "moved": len(taken),
        "probed": probed,
        "many": many,
        "returned": wait_until(lambda: front.serve_one() == 0),
    }


def a_blocked_worker_with_many() -> Facts:
    front = Front(2)
    front.give(5, 5)
    taken: list[socket.socket] = []

    def all_taken() -> bool:
        taken.extend(front.workers[1].take_all())
        return len(taken) == 10

    assert wait_until(all_taken)
    return {
        "taken_back": figure("taken_back"),
        "dispatched": front.dispatched(),
        "all_there": {sock.getpeername() for sock in taken} == {client.getsockname() for client in front.clients},
    }


def give_and_let_all_be_blocked(front: Front, *dispatched: int) -> bool:
    """New clients, and then all workers count as blocked at once: to one that does so later connections would go.

    Returns whether the balancer has nothing to look at any more, as it has while a worker may become blocked.
    """
    _cluster.set_patience(float("inf"), float("inf"))
    front.give(*dispatched)
    time.sleep(1.2 * BLOCKED_S)  # at least, all of them take nothing
    _cluster.set_patience(0.002, BLOCKED_S)
    return wait_until(lambda: wakeups_in(0.1) == 0)


def all_workers_are_blocked() -> Facts:
    """There is nobody to take anything back for."""
    front = Front(2)
    settled = give_and_let_all_be_blocked(front, 3, 3)
    return {"settled": settled, "dispatched": front.dispatched(), "taken_back": figure("taken_back")}


def all_are_blocked_and_one_accepts_again() -> Facts:
    """More come meanwhile; the first worker to be there again gets them all, though no other one takes anything."""
    front = Front(3, max_pending=4)
    settled = give_and_let_all_be_blocked(front, 1, 1, 1)
    front.connect(6)
    reach(lambda: sum(front.dispatched()) == 9)
    dispatched = front.dispatched()
    taken: list[socket.socket] = []

    def all_taken() -> bool:
        taken.extend(front.workers[1].take_all())
        return len(taken) == 9

    return {
        "settled": settled,
        "dispatched": dispatched,
        "all_taken": wait_until(all_taken),
        "lost": figure("lost"),
    }


SLEEPS = "import signal; print(); signal.pause()"
RUNS = "print()\nwhile True: pass"
HAS_A_THREAD_THAT_RUNS = (
    f"import signal, threading; threading.Thread(target=exec, args=[{RUNS!r}]).start(); signal.pause()"
)


def a_worker_that_sleeps() -> Facts:
    """Only what the kernel says of its process tells of it here; a thread that runs is enough to be left in peace."""
    _cluster.set_patience(0.002, float("inf"))
    front = Front(0)
    moved = []
    for program in (SLEEPS, RUNS, HAS_A_THREAD_THAT_RUNS):
        with subprocess.Popen([sys.executable, "-uc", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            before = figure("taken_back")
            front.workers = [FakeWorker(front.listener, 1, process.pid), FakeWorker(front.listener, 2)]
            front.connect(2)
            patience_s = PATIENCE_S if program is SLEEPS else 0.2
            moved.append(wait_until(lambda before=before: figure("taken_back") > before, patience_s))  # type: ignore[misc]
            process.kill()
        for worker in front.workers:
            worker.take_all()
            front.retire(worker)
            _cluster.release_slot(worker.slot)
    return {"moved": moved}


def all_workers_sleep() -> Facts:
    """One connection, and nobody who takes it. Then somebody does."""
    _cluster.set_patience(0.002, 1.0)
    front = Front(0)
    with subprocess.Popen([sys.executable, "-uc", SLEEPS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        front.workers = [FakeWorker(front.listener, number, process.pid) for number in (1, 2, 3)]
        front.connect()
        # With the first it was stuck by itself, with the second after 2 ms more, with the third after 4.
        doubled = wait_until(lambda: figure("patience_ns") == 8_000_000)
        front.workers.append(FakeWorker(front.listener, 4))
        front.workers[3].take()
        restored = wait_until(lambda: figure("patience_ns") == 7_250_000)
        process.kill()
    return {"doubled": doubled, "restored": restored, "taken_back": figure("taken_back")}


def a_worker_shuts_its_channel_down() -> Facts:
    """As programs do to wake a thread that is blocked in accept. What lies there, and all the rest, is for others."""
    front = Front(2)
    front.give(2, 2)
    with socket.socket(fileno=os.dup(front.workers[0].fd)) as end:
        end.shutdown(socket.SHUT_RDWR)
    front.connect(6)
    taken: list[socket.socket] = []

    def all_taken() -> bool:
        taken.extend(front.workers[1].take_all())
        return len(taken) == 10

    all_there = wait_until(all_taken)
    settled = wait_until(lambda: wakeups_in(0.1) == 0)
    front.retire(front.workers[0])
    front.workers.append(FakeWorker(front.listener, 3))
    front.connect(2)
    after = [front.workers[i].take().getpeername() for i in (1, 2)]
    return {"all_there": all_there, "settled": settled, "after": len(after), "lost": figure("lost")}


# ---- A listening socket that blocks, as its first worker can make it at any time by a duplicate


def blocking_when_a_worker_shuts_its_channel_down() -> Facts:
    """What the balancer is told of is the channel, where nothing but the probe lies, and not a connection."""
    front = Front(2)
    blocked, idle = front.workers
    front.connect(2)
    for _ in range(2):
        idle.take().close()
    assert wait_until(blocked.waiting)
    front.sock.setblocking(True)
    with socket.socket(fileno=os.dup(blocked.fd)) as end:
        end.shutdown(socket.SHUT_RDWR)
    settled = wait_until(lambda: wakeups_in(0.01) == 0)
    front.connect()
    idle.take().close()
    return {"settled": settled, "lost": figure("lost")}


def blocking_when_the_listener_closes() -> Facts:
    front = Front(2)
    front.give(1, 1)
    front.sock.setblocking(True)
    front.listener.close()
    expect_taken_back(0)
    return {"taken": [len(worker.take_all()) for worker in front.workers]}


# ---- Closing


def closing_the_listener() -> Facts:
    front = Front(2, max_pending=1)
    front.connect(8)
    reach(lambda: front.backlog() == 6)
    front.listener.close()
    front.listener.close()
    front.sock.close()
    refused = error_of(lambda: socket.create_connection(front.address, PATIENCE_S))
    expect_taken_back(0)
    taken = [len(worker.take_all()) for worker in front.workers]
    for worker in front.workers:
        worker.channel.close()
        worker.channel.close()
    _cluster.stop_balancer()
    _cluster.stop_balancer()
    return {"taken": taken, "refused": refused, "lost": figure("lost")}


def closing_the_listener_while_a_worker_is_blocked() -> Facts:
    """It has got one connection and a probe by then; the other one has its fill, and more waits in the backlog."""
    front = Front(2, max_pending=2)
    blocked, working = front.workers
    front.connect(2)
    taken = [working.take(), working.take()]  # the second as soon as it has been taken back
    assert wait_until(blocked.waiting)
    _cluster.set_patience(float("inf"), float("inf"))  # with the other one, whatever keeps us from the processor
    front.connect(8)
    reach(lambda: front.dispatched() == [0, 4])
    front.listener.close()
    dispatched = front.dispatched()
    taken += working.take_all()
    for worker in front.workers:
        worker.channel.close()
    return {"dispatched": dispatched, "taken": len(taken), "lost": figure("lost")}


def closing_channels_after_the_listener() -> Facts:
    """With connections that their workers have not taken."""
    front = Front(2)
    front.give(3, 3)
    front.listener.close()
    dispatched = front.dispatched()
    front.workers[0].take()
    for worker in front.workers:
        worker.channel.close()
        _cluster.release_slot(worker.slot)
    return {"before": dispatched, "of_the_dead": _cluster.read_slots()[0][3]}


def closing_the_listener_with_orphans() -> Facts:
    """Connections of a worker that is gone, that no other one has had room for yet."""
    front = Front(2, max_pending=1)
    front.connect(4)
    reach(lambda: front.backlog() == 2)
    front.retire(front.workers[0])
    front.listener.close()
    taken = len(front.workers[1].take_all())
    return {"taken": taken, "lost": figure("lost")}


def closing_everything() -> Facts:
    """Twice, and the descriptors that are left."""
    left = []
    for i in range(2):
        before = set(os.listdir("/proc/self/fd"))
        front = Front(3, first_id=1 + 3 * i)
        front.give(3, 3, 3)
        front.retire(front.workers[0])  # its connections go to the others
        front.listener.close()
        for worker in front.workers[1:]:
            front.retire(worker)
        for worker in front.workers:
            _cluster.release_slot(worker.slot)
        for client in front.clients:
            client.close()
        front.sock.close()
        _cluster.stop_balancer()
        if i == 0:
            _cluster.close_region_descriptor()
        left.append(sorted(set(os.listdir("/proc/self/fd")) - before))
    return {"left": left}


# ---- Sleep


def idle() -> Facts:
    front = Front(2)
    for _ in range(4):
        front.serve_one()
    settled = wait_until(lambda: wakeups_in(0.1) == 0)
    return {"settled": settled, "wakeups": wakeups_in(0.2)}


def full() -> Facts:
    """Connections wait in the backlog for workers that take nothing."""
    front = Front(2, max_pending=1)
    front.connect(6)
    reach(lambda: front.backlog() == 4)
    wakeups_in(0.2)  # it looks less and less often
    return {"wakeups": wakeups_in(0.5)}


def out_of_descriptors() -> Facts:
    """accept fails with EMFILE for half a second, and then there is room again."""
    front = Front(1)
    front.serve_one()
    client = socket.socket()
    failures = figure("accept_failures")
    with descriptors_left(0):
        client.connect(front.address)
        failing = wait_until(lambda: figure("accept_failures") > failures)
        wakeups = wakeups_in(0.5)
    taken = front.workers[0].take()
    return {
        "failing": failing,
        "wakeups": wakeups,
        "resumed": taken.getpeername() == client.getsockname(),
        "lost": figure("lost"),
    }


def shut_down(family: str) -> Facts:
    """Somebody who has the listening socket, too, shuts it down; a TCP socket may listen again after that."""
    address = ("127.0.0.1", 0) if family == "AF_INET" else ""
    front = Front(1, family=socket.AddressFamily[family], address=address)
    front.serve_one()
    front.sock.shutdown(socket.SHUT_RDWR)
    facts = {"wakeups": wakeups_in(0.5)}
    if family == "AF_INET":
        front.sock.listen()
        front.address = front.sock.getsockname()  # another port, as it did not ask for this one
        facts["served_by"] = front.serve_one()
    return facts


# ---- Workers that lie


def a_worker_that_hoards() -> Facts:
    """It says that it has consumed all that it gets, and consumes nothing: in the end its socket's buffer is full."""
    front = Front(2)
    hoarder, honest = front.workers
    cell = consumed_cell(hoarder)
    given = taken = 0

    def all_placed() -> bool:
        return sum(front.dispatched()) == given

    while taken < front.dispatched()[0] + 100 and wait_until(all_placed):
        cell.value = 10**6 + given
        front.connect()
        front.clients.clear()
        given += 1
        taken += len(honest.take_all())
    return {"given": given, "all_placed": wait_until(all_placed)}


def a_lying_worker_that_accepts() -> Facts:
    """It accepts all that it gets, and writes rubbish where it says how much that was."""
    front = Front(2, max_pending=4)
    cell = consumed_cell(front.workers[0])
    values = [2**64 - 1, 2**63, 0, 1, 2**32, 2**64 - 2, 5, *(random.Random(i).getrandbits(64) for i in range(20))]
    served = 0
    for value in values:
        front.connect(2)
        taken: list[socket.socket] = []

        def both_taken(value: int = value, taken: list[socket.socket] = taken) -> bool:
            cell.value = value
            for worker in front.workers:
                taken.extend(worker.take_all())
            return len(taken) == 2

        served += wait_until(both_taken)
        for sock in taken:
            sock.close()
    return {"rounds": len(values), "served": served}


def a_lying_worker_that_accepts_nothing() -> Facts:
    """The other one is served all the same: what it gets, and all the rest once the liar is gone."""
    front = Front(2, max_pending=4)
    liar, honest = front.workers
    cell = consumed_cell(liar)
    taken: list[socket.socket] = []
    served = 0
    for value in (2**64 - 1, 2**63, 0, 1, 2**32, 2**64 - 2):
        before = len(taken)
        for _ in range(100):
            cell.value = value
            front.connect()
            if honest.waiting(0.02):
                taken += honest.take_all()
            if len(taken) >= before + 3:
                served += 1
                break
    front.retire(liar)

    def all_taken() -> bool:
        taken.extend(honest.take_all())
        return len(taken) == len(front.clients)

    return {"served": served, "all_taken": wait_until(all_taken), "lost": figure("lost")}


def plenty() -> Facts:
    """One after the other, for workers that have enough to do: the listener pauses after each."""
    front = Front(2)
    _cluster.set_patience(float("inf"), float("inf"))  # where nobody consumes, a blocked worker loses its turn
    for count in range(1, 21):
        front.give(count, count)
    taken = [len(worker.take_all()) for worker in front.workers]
    return {"taken": taken, "lost": figure("lost")}


def overwritten_numbers() -> Facts:
    """Somebody writes once over what an honest worker has consumed: it seems to be full, and there is no other one."""
    front = Front(1, max_pending=4)
    [worker] = front.workers
    cell = consumed_cell(worker)
    taken: list[socket.socket] = []

    def all_taken() -> bool:
        taken.extend(worker.take_all())
        return len(taken) == len(front.clients)

    values = [2**64 - 1, 2**63, 0, 1, 2**32]
    differences = [-4, -5, -16, -17, 4, 17]
    served = 0
    for value, difference in [*((value, 0) for value in values), *((None, difference) for difference in differences)]:
        front.connect()
        assert wait_until(all_taken)
        cell.value = (cell.value if value is None else value) + difference
        front.connect()
        served += wait_until(all_taken)
    return {"rounds": len(values) + len(differences), "served": served, "lost": figure("lost")}


if __name__ == "__main__":
    run_case(globals())
