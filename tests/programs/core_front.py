"""The core without the rest of the library: a listening socket whose balancer and workers live in one process.

A worker is a slot, a channel, and a Receiver on a duplicate of the channel's descriptor, as a forked one has it. There
is one shared region per process, so each case of core_cases.py and balance_cases.py has a process of its own.
"""

import contextlib
import ctypes
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from programs.facts import tell
from programs.listening import listening_rows
from pycluster import _cluster

Facts = dict[str, Any]

MAX_WORKERS = 16
MAX_COUNTERS = 8
# Long enough for a loaded machine; nothing waits for so long when all is well.
PATIENCE_S = 10.0


class Disturbed(Exception):
    """This process was kept from the processor for so long that the balancer took its workers for blocked."""


class FakeWorker:
    """A worker as the core sees it."""

    def __init__(self, listener: _cluster.Listener, worker_id: int, pid: int = 0) -> None:
        """`pid` is the process that it seems to be; with 0 nobody can tell whether it sleeps."""
        self.slot = _cluster.acquire_slot(worker_id)
        _cluster.describe_slot(self.slot, pid, 0)
        self.channel = listener.add_channel(self.slot)
        self.fd = os.dup(self.channel.receiver)
        _cluster.enter_slot(self.slot)
        self.receiver = _cluster.Receiver(self.fd, self.channel.cell)

    def waiting(self, timeout: float = 0.0) -> bool:
        """Whether something lies in its channel, a probe perhaps."""
        return bool(select.select([self.fd], [], [], timeout)[0])

    def take(self) -> socket.socket:
        """The next connection; waits for it."""
        fd, _ = self.receiver.accept(PATIENCE_S)
        return socket.socket(fileno=fd)

    def take_all(self) -> list[socket.socket]:
        """All the connections in its channel."""
        taken = []
        while some := self.receiver.accept_many():
            taken += [socket.socket(fileno=fd) for fd, _ in some]
        return taken


class Front:
    """A listening socket, its balancer, the workers that serve there, and their clients."""

    def __init__(
        self,
        workers: int,
        *,
        max_pending: int = 64,
        family: socket.AddressFamily = socket.AF_INET,
        address: Any = ("127.0.0.1", 0),
        first_id: int = 1,
    ) -> None:
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.bind(address)
        self.sock.listen(128)
        self.sock.setblocking(False)
        self.address = self.sock.getsockname()
        if not region_lines():
            _cluster.create_region(MAX_WORKERS, MAX_COUNTERS)
        _cluster.start_balancer(max_pending)
        self.listener = _cluster.Listener(self.sock.fileno())
        self.first_id = first_id
        self.workers = [FakeWorker(self.listener, first_id + i) for i in range(workers)]
        self.clients: list[socket.socket] = []

    def connect(self, count: int = 1) -> socket.socket:
        """New clients, one after another. Returns the last."""
        for _ in range(count):
            client = socket.socket(self.sock.family, socket.SOCK_STREAM)
            client.settimeout(PATIENCE_S)
            client.connect(self.address)
            self.clients.append(client)
        return self.clients[-1]

    def give(self, *dispatched: int) -> None:
        """New clients, until so many have been handed to each worker."""
        self.connect(sum(dispatched) - len(self.clients))
        reach(lambda: sum(self.dispatched()) == sum(dispatched))
        if self.dispatched() != list(dispatched):
            expect_taken_back(0)
            raise AssertionError(self.dispatched())

    def serve_one(self) -> int:
        """A new connection, accepted by whoever gets it. Returns which worker that was."""
        self.connect()
        fds = [worker.fd for worker in self.workers]
        while ready := select.select([fd for fd in fds if fd >= 0], [], [], PATIENCE_S)[0]:
            for fd in ready:
                try:
                    accepted, _ = self.workers[fds.index(fd)].receiver.accept(0)
                except BlockingIOError:
                    continue  # a probe: this process was not scheduled for some time
                os.close(accepted)
                return fds.index(fd)
        raise TimeoutError("nobody got it")

    def dispatched(self) -> list[int]:
        """How many connections have been handed to each worker and not taken back."""
        slots = {slot[0]: slot[3] for slot in _cluster.read_slots()}
        return [slots[self.first_id + i] for i in range(len(self.workers))]

    def backlog(self) -> int:
        """How many connections the kernel holds for accept(2)."""
        [[_, _, _, _, queues, *_]] = listening_rows(self.address[1])
        return int(queues.split(":")[1], 16)

    def retire(self, worker: FakeWorker) -> None:
        """Close both sides of a worker's channel: it is gone."""
        worker.channel.close()
        os.close(worker.fd)
        worker.fd = -1


def expect_taken_back(count: int) -> None:
    """Check that the balancer has taken back as much as the case has made it to.

    Raises:
      Disturbed: it was more.
    """
    taken_back = _cluster.balancer_figures()["taken_back"]
    if taken_back > count:
        raise Disturbed(f"{taken_back} connections taken back")


def reach(state: Callable[[], bool]) -> None:
    """Wait until all has gone where it should, with nothing taken back."""
    if not wait_until(state):
        expect_taken_back(0)
        raise AssertionError("waited in vain")


def run_case(cases: dict[str, Any]) -> None:
    """Run the case that the command line names, and tell its facts, or that it was disturbed."""
    try:
        tell("facts", **cases[sys.argv[1]](*sys.argv[2:]))
    except Disturbed as disturbance:
        tell("facts", disturbed=str(disturbance))


def region_lines() -> list[str]:
    """How the shared region stands in the memory map, which any worker can read."""
    with open("/proc/self/maps") as maps:
        return [line for line in maps if "memfd:pycluster" in line]


def region() -> tuple[int, int]:
    """Address and size of the shared region."""
    start, end = (int(number, 16) for number in region_lines()[0].split()[0].split("-"))
    return start, end - start


def consumed_cell(worker: FakeWorker) -> ctypes.c_uint64:
    """The cell in which a worker says how much it has consumed. See the layout in src/_cluster.pyx."""
    header, _ = region()
    slot_size = ctypes.c_uint32.from_address(header + 20).value
    slots = ctypes.c_uint64.from_address(header + 24).value
    return ctypes.c_uint64.from_address(header + slots + worker.slot * slot_size + 192 + 8 * worker.channel.cell)


def wait_until(true: Callable[[], object], timeout: float = PATIENCE_S) -> bool:
    """Wait for what nothing tells of. Returns whether it has come true."""
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def error_of(function: Callable[[], object]) -> list[Any]:
    """The type and errno of the OSError that it raises, if it does."""
    try:
        function()
    except OSError as exception:
        return [type(exception).__name__, exception.errno]
    return []


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Lower the limit so that `count` descriptors can be opened and no more."""
    # Limits below 64 are nobody's: what is held here stays open meanwhile.
    held = [os.dup(0)]
    while held[-1] < 64:
        held.append(os.dup(0))
    free = [os.dup(0) for _ in range(count + 1)]
    for fd in free:
        os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
