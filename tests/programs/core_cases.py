"""Cases of the core but for the balancer: `core_cases.py NAME` tells one fact. See core_front.py."""

import contextlib
import ctypes
import fcntl
import functools
import os
import resource
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from programs.core_front import (
    MAX_COUNTERS,
    MAX_WORKERS,
    PATIENCE_S,
    Facts,
    Front,
    descriptors_left,
    error_of,
    region,
    run_case,
    wait_until,
)
from programs.facts import tell
from pycluster import _cluster

# ---- Receiver


def accept_does_not_wait() -> Facts:
    return {"error": error_of(lambda: Front(1).workers[0].receiver.accept(0))}


def accept_waits_for_a_time() -> Facts:
    receiver = Front(1).workers[0].receiver
    started = time.monotonic()
    error = error_of(lambda: receiver.accept(0.05))
    return {"error": error, "seconds": time.monotonic() - started}


def accept_waits_for_a_connection() -> Facts:
    front = Front(1)
    got: list[Any] = []
    for timeout in (None, PATIENCE_S):
        accepting = threading.Thread(
            target=lambda timeout=timeout: got.append(front.workers[0].receiver.accept(timeout)[1])
        )
        accepting.start()
        accepting.join(0.02)  # it waits in the kernel by now; if not yet, that is right, too
        front.connect()
        accepting.join()
    return {"same": got == [client.getsockname() for client in front.clients]}


def accept_in_several_threads() -> Facts:
    """All of them wait in one channel when the first connection comes."""
    send, receiver = _bare_channel()
    errors: list[Any] = []

    def accept(timeout: float | None) -> None:
        errors.append(error_of(lambda: receiver.accept(timeout)))

    accepting = [_sleeping_thread(functools.partial(accept, timeout)) for timeout in (None, PATIENCE_S) * 2]
    taken: list[int] = []
    for _ in accepting:
        send()
        wait_until(lambda: len(errors) > len(taken))
        taken.append(len(errors))
    for thread in accepting:
        thread.join()
    return {"errors": errors, "taken": taken}


def accept_while_another_thread_closes() -> Facts:
    """The number of its descriptor is another file's when it wakes up, at the channel's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _cluster.create_region(MAX_WORKERS, MAX_COUNTERS)
    receiver = _cluster.Receiver(theirs.fileno(), 0)
    errors: list[Any] = []
    accepting = _sleeping_thread(lambda: errors.append(error_of(lambda: receiver.accept(None))))
    receiver.close()
    os.dup2(others.fileno(), theirs.fileno())
    other.send(b"not for accept")
    ours.close()
    accepting.join()
    return {"errors": errors, "left": others.recv(100, socket.MSG_DONTWAIT).decode()}


def _bare_channel() -> tuple[Callable[[], object], _cluster.Receiver]:
    """A channel without a balancer: what sends a connection, which needs no new descriptor, and who receives it."""
    _cluster.create_region(MAX_WORKERS, MAX_COUNTERS)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = socket.socketpair()[0]
    peer = socket.AF_UNIX.to_bytes(2, sys.byteorder)
    return lambda: socket.send_fds(ours, [peer], [connection.fileno()]), _cluster.Receiver(theirs.detach(), 0)


def _sleeping_thread(accept: Callable[[], object]) -> threading.Thread:
    """A thread that accepts, and waits for a connection by now.

    It does not give the GIL away before that, so whoever sees that it has begun finds it there.
    """
    sys.setswitchinterval(3600)
    begun = []

    def run() -> None:
        begun.append(True)
        accept()

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_until(lambda: begun)
    return thread


def accept_is_interrupted_by_signals() -> Facts:
    """A handler that raises ends the wait; one that returns does not."""
    front = Front(1)
    handled = []

    def handle(number: int, frame: object) -> None:
        handled.append(number)
        if len(handled) == 2:
            raise InterruptedError(4, "as the handler wants it")
        if len(handled) == 3:
            front.connect()

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    receiver = front.workers[0].receiver
    errors = [error_of(lambda: receiver.accept(None)), error_of(lambda: receiver.accept(PATIENCE_S))]
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {"errors": errors, "handled": len(handled) >= 3}


def accepted_descriptors() -> Facts:
    front = Front(1)
    front.give(2)
    worker = front.workers[0]
    taken = [worker.take(), *worker.take_all()]
    return {
        "blocking": [not fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK for sock in taken],
        "inheritable": [sock.get_inheritable() for sock in taken],
    }


def accept_many() -> Facts:
    front = Front(1)
    front.give(40)
    sizes = []
    addresses: list[Any] = []
    while some := front.workers[0].receiver.accept_many():
        sizes.append(len(some))
        addresses += [address for _, address in some]
    return {"sizes": sizes, "in_order": addresses == [client.getsockname() for client in front.clients]}


def _addresses(front: Front, clients: list[tuple[socket.socket, Any]]) -> Facts:
    """The addresses that accept and accept_many give for clients of these targets, and what the sockets know."""
    accepted: list[tuple[int, Any]] = []
    for client, target in clients:
        client.settimeout(PATIENCE_S)
        client.connect(target)
        assert front.workers[0].waiting(PATIENCE_S)
        receiver = front.workers[0].receiver
        accepted += [receiver.accept(0)] if len(accepted) % 2 else receiver.accept_many()
    return {
        "given": [repr(address) for _, address in accepted],
        "real": [repr(socket.socket(fileno=fd).getpeername()) for fd, _ in accepted],
    }


def addresses_ipv4() -> Facts:
    front = Front(1)
    return _addresses(front, [(socket.socket(), front.address) for _ in range(2)])


def addresses_ipv6() -> Facts:
    """Of clients with IPv6, with IPv4, and with a link-local address where the machine has one."""
    front = Front(1, family=socket.AF_INET6, address=("::", 0))
    port = front.address[1]
    clients: list[tuple[socket.socket, Any]] = []
    for _ in range(2):
        clients.append((socket.socket(socket.AF_INET6), ("::1", port)))
        clients.append((socket.socket(), ("127.0.0.1", port)))
        with open("/proc/net/if_inet6") as table:
            for line in table:
                address, interface, *_rest = line.split()
                if address.startswith("fe80"):
                    host = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address))
                    clients.append((socket.socket(socket.AF_INET6), (host, port, 0, int(interface, 16))))
    return _addresses(front, clients)


def addresses_unix() -> Facts:
    """Of clients with no name, with an abstract one, and with a path."""
    front = Front(1, family=socket.AF_UNIX, address=f"\0pycluster-{os.getpid()}")
    clients: list[tuple[socket.socket, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        for i in range(2):
            for name in ("", f"\0pycluster-{os.getpid()}-{i}", f"{directory}/{i}"):
                client = socket.socket(socket.AF_UNIX)
                if name:
                    client.bind(name)
                clients.append((client, front.address))
        return _addresses(front, clients)


def no_descriptor() -> Facts:
    front = Front(1)
    front.give(3)
    receiver = front.workers[0].receiver
    with descriptors_left(0):
        errors = [error_of(accept) for accept in (lambda: receiver.accept(0), receiver.accept_many) * 2]
    return {"errors": errors, "afterwards": len(front.workers[0].take_all())}


def one_descriptor() -> Facts:
    front = Front(1)
    front.give(3)
    receiver = front.workers[0].receiver
    with descriptors_left(1):
        taken = len(receiver.accept_many())
        error = error_of(receiver.accept_many)
    return {"taken": taken, "error": error, "afterwards": len(front.workers[0].take_all())}


def descriptors_gone_meanwhile(accept: str) -> Facts:
    """A worker that has accepted with ease opens files until it cannot any more, and accepts again."""
    front = Front(1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    receiver = front.workers[0].receiver
    front.connect()
    taken = [front.workers[0].take()]
    front.give(4)
    files = []
    with contextlib.suppress(OSError):
        while True:
            files.append(os.open(os.devnull, os.O_RDONLY))
    error = error_of(receiver.accept_many if accept == "accept_many" else lambda: receiver.accept(0))
    for fd in files:
        os.close(fd)
    taken += front.workers[0].take_all()
    return {"error": error, "taken": len(taken)}


def descriptors_gone_while_accepting(timeout: str) -> Facts:
    """Another thread opens files until it cannot any more while accept sleeps; then a connection comes."""
    send, receiver = _bare_channel()
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    errors: list[Any] = []
    accepting = _sleeping_thread(
        lambda: errors.append(error_of(lambda: receiver.accept(None if timeout == "none" else PATIENCE_S)))
    )
    files = []
    with contextlib.suppress(OSError):
        while True:
            files.append(os.open(os.devnull, os.O_RDONLY))
    send()
    accepting.join()
    again = error_of(lambda: receiver.accept(0))
    for fd in files:
        os.close(fd)
    return {"errors": [*errors, again], "afterwards": len(receiver.accept_many())}


def few_descriptors_at_first() -> Facts:
    """The first accept of a worker that has opened many files before: 4 descriptors for 8 connections."""
    front = Front(1)
    front.give(8)
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(200)]
    taken: list[Any] = []
    error: list[Any] = []
    with descriptors_left(4):
        while not error and front.workers[0].waiting():
            error = error_of(lambda: taken.extend(front.workers[0].receiver.accept_many()))
    for fd in files:
        os.close(fd)
    return {"error": error, "taken": len(taken), "afterwards": len(front.workers[0].take_all())}


def one_descriptor_below_others(below: str) -> Facts:
    """All descriptors are in use but one, which is so many below the limit."""
    front = Front(1)
    front.give(3)
    used = [os.dup(0)]
    while used[-1] < 64:
        used.append(os.dup(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used[-1] + 1, hard))
    os.close(used.pop(-int(below)))
    taken = front.workers[0].receiver.accept_many()
    error = error_of(front.workers[0].receiver.accept_many)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for fd in (*used, *(fd for fd, _ in taken)):
        os.close(fd)
    return {"taken": len(taken), "error": error, "afterwards": len(front.workers[0].take_all())}


def end_of_stream() -> Facts:
    """The primary is gone. The process ends soon; until then accept waits or says that nothing is there."""
    _cluster.create_region(MAX_WORKERS, MAX_COUNTERS)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    receiver = _cluster.Receiver(theirs.fileno(), 0)
    ours.close()
    errors = [error_of(lambda: receiver.accept(0)), error_of(lambda: receiver.accept(0.01))]
    return {"errors": errors, "many": receiver.accept_many()}


def cell_out_of_range() -> Facts:
    _cluster.create_region(MAX_WORKERS, MAX_COUNTERS)
    try:
        _cluster.Receiver(0, 64)
    except ValueError as exception:
        return {"said": str(exception)}
    return {"said": None}


# ---- What is still open


def sweep_counts() -> Facts:
    front = Front(1)
    worker = front.workers[0]
    said = [_cluster.sweep()]
    front.give(5)
    taken = worker.take_all()
    said.append(_cluster.sweep())
    taken.pop().close()
    taken.pop().close()
    said.append(_cluster.sweep())
    front.clients[0].close()  # the peer has gone, and the connection is still held here
    assert taken[0].recv(1) == b""
    said.append(_cluster.sweep())
    for sock in taken:
        sock.close()
    active = [slot[6] for slot in _cluster.read_slots() if slot[0] == 1]
    said.append(_cluster.sweep())
    return {"said": said, "active": active + [slot[6] for slot in _cluster.read_slots() if slot[0] == 1]}


def sweep_and_reused_numbers() -> Facts:
    front = Front(1)
    front.give(4)
    taken = front.workers[0].take_all()
    copies = [taken[0].dup(), taken[0].dup()]
    said = [_cluster.sweep()]  # copies do not count
    # In the places of accepted connections: a file, and a connection that this process has made itself.
    with open(os.devnull) as file:
        os.dup2(file.fileno(), taken[1].fileno())
    os.dup2(front.clients[2].fileno(), taken[2].fileno())
    said.append(_cluster.sweep())
    # And another accepted one.
    number = taken[3].detach()
    os.close(number)
    front.connect()
    again = front.workers[0].take()
    said.append(_cluster.sweep())
    for sock in (*copies, *taken, again):
        sock.close()
    said.append(_cluster.sweep())
    return {"said": said, "same_number": again.fileno() == -1}


def sweep_of_unix_connections() -> Facts:
    """Their peers have no names to tell them apart."""
    front = Front(1, family=socket.AF_UNIX, address=f"\0pycluster-{os.getpid()}")
    front.give(3)
    taken = front.workers[0].take_all()
    said = [_cluster.sweep()]
    taken.pop().close()
    said.append(_cluster.sweep())
    ours, theirs = socket.socketpair()
    os.dup2(ours.fileno(), taken[0].fileno())
    said.append(_cluster.sweep())
    theirs.close()
    return {"said": said}


def first_open_wakes() -> Facts:
    """Two connections, both closed, and once more."""
    front = Front(1)
    wake = os.eventfd(0, os.EFD_NONBLOCK)
    _cluster.wake_on_first_open(wake)
    woken = []
    for _ in range(2):
        taken = []
        for _ in range(2):
            front.connect()
            taken.append(front.workers[0].take())
            woken.append(not error_of(lambda: os.eventfd_read(wake)))
        for sock in taken:
            sock.close()
        _cluster.sweep()
    return {"woken": woken}


# ---- The shared region


def rubbish_in_the_region(byte: str) -> Facts:
    """Any worker can write anywhere in the region. Everything that the primary does afterwards."""
    front = Front(2)
    number = _cluster.Counter("number")
    number.add(3)
    address, size = region()
    ctypes.memset(address, int(byte, 16), size)
    tell("written")
    _cluster.read_slots()
    _ = number.value, number.by_worker
    number.add()
    for name in ("number", "other"):
        with contextlib.suppress(LookupError):
            _cluster.Counter(name)
    front.connect(2)
    taken: list[socket.socket] = []

    def both_taken() -> bool:
        for worker in front.workers:
            taken.extend(worker.take_all())
        return len(taken) == 2

    served = wait_until(both_taken)
    for worker in front.workers:
        front.retire(worker)
        _cluster.describe_slot(worker.slot, 1, 1)
        _cluster.release_slot(worker.slot)
    with contextlib.suppress(RuntimeError):
        _cluster.acquire_slot(9)
    return {"served": served}


def a_second_region() -> Facts:
    _cluster.create_region(MAX_WORKERS, MAX_COUNTERS)
    try:
        _cluster.create_region(MAX_WORKERS, MAX_COUNTERS)
    except RuntimeError as exception:
        return {"said": str(exception)}
    return {"said": None}


def slots() -> Facts:
    _cluster.create_region(2, MAX_COUNTERS)
    first = [_cluster.acquire_slot(1), _cluster.acquire_slot(2)]
    try:
        _cluster.acquire_slot(3)
        refused = False
    except RuntimeError:
        refused = True
    _cluster.describe_slot(first[0], 4711, 2)
    described = [slot[:3] for slot in _cluster.read_slots() if slot[0]]
    _cluster.release_slot(first[0])
    again = _cluster.acquire_slot(3)
    return {"refused": refused, "described": described, "reused": again == first[0]}


# ---- Timers and processes


def timers() -> Facts:
    timer = _cluster.create_timer()
    fired = []
    for seconds in (0.0, -1.0, 0.02):
        started = time.monotonic()
        _cluster.set_timer(timer, seconds)
        fired.append(bool(select.select([timer], [], [], PATIENCE_S)[0]) and time.monotonic() - started >= seconds)
        os.read(timer, 8)
    _cluster.set_timer(timer, 3600)
    return {
        "fired": fired,
        "later": bool(select.select([timer], [], [], 0)[0]),
        "inheritable": os.get_inheritable(timer),
    }


def forks() -> Facts:
    """Python's hooks run, the child's signals wait until it asks for them, and the pidfd tells its end."""
    hooks: list[str] = []
    os.register_at_fork(
        before=lambda: hooks.append("before"),
        after_in_parent=lambda: hooks.append("parent"),
        after_in_child=lambda: hooks.append("child"),
    )
    pid, pidfd = _cluster.fork()
    if pid == 0:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        _cluster.restore_signals()
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        right = hooks == ["before", "child"] and signal.SIGTERM in blocked and not unblocked
        os._exit(7 if right and pidfd == -1 else 8)
    ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert ended is not None
    return {
        "status": ended.si_status,
        "hooks": hooks,
        "inheritable": os.get_inheritable(pidfd),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    }


def fork_fails() -> Facts:
    """No descriptor for the pidfd."""

    def fork() -> None:
        if _cluster.fork()[0] == 0:
            os._exit(0)

    with descriptors_left(0):
        error = error_of(fork)
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return {"error": error, "children": 0}
    return {"error": error, "children": 1}


def lifeline(close: str) -> Facts:
    """A process with a busy Python whose control channel closes."""
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _cluster.arm_lifeline(theirs.fileno(), 0.01)
        if close == "orderly":
            _cluster.expect_orderly_close()
        os.write(writer, b"x")
        deadline = time.monotonic() + (0.2 if close == "orderly" else PATIENCE_S)
        while time.monotonic() < deadline:
            pass
        os._exit(3)
    theirs.close()
    os.read(reader, 1)
    ours.close()
    return {"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


def orphan(descriptors: str) -> Facts:
    """A process with a busy Python whose parent dies, some time after its control channel has been closed."""
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        if os.fork() > 0:
            ours.close()
            theirs.close()
            time.sleep(3600)
        ours.close()
        _cluster.arm_lifeline(theirs.fileno(), 0.01)
        _cluster.expect_orderly_close()
        if descriptors == "none":
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        os.write(writer, b"x")
        while True:
            pass
    theirs.close()
    os.close(writer)
    os.read(reader, 1)
    ours.close()
    poll = select.poll()
    poll.register(reader)
    lives = not poll.poll(300)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    return {"lives": lives, "left": os.read(reader, 1).decode()}  # which has an end when nobody can write any more


if __name__ == "__main__":
    run_case(globals())
