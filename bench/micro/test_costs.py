"""What a primary's ordinary doings cost: starting a worker, talking to it, handing it a connection, changing a setting.

    make bench-micro          measures, and saves the figures in build/bench/micro
    make bench-compare        measures again, compares with what was saved last, fails at a median 25 % above it

The figures belong to the machine that they were measured on, so that they are saved there and not in the repository.
fork_online.py, messages.py and test_counter.py compare with peers; ``make bench-micro`` runs them, too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pycluster import Worker, _cluster, cluster

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

PATIENCE_S = 10.0
FORKS = 30
TRIPS = 100  # per run: some milliseconds
CONNECTIONS = 32  # per run; half of what a worker may have pending


def wait_until(happened: Callable[[], object]) -> None:
    """Dispatch until it has happened."""
    end = time.monotonic() + PATIENCE_S
    while not happened():
        cluster.dispatch(0.5)
        assert time.monotonic() < end


@contextlib.contextmanager
def ended(workers: list[Worker]) -> Iterator[None]:
    """Kill these workers in the end, and wait for them."""
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
        wait_until(lambda: not cluster.workers)


@pytest.fixture(autouse=True)
def _script() -> None:
    cluster.setup_primary(exec=str(Path(__file__).with_name("echoing.py")))


def test_fork_until_online(benchmark: BenchmarkFixture) -> None:
    """``cluster.fork()`` until its ``online`` event: a copy of pytest's process, which is a large one."""
    workers: list[Worker] = []

    def fork() -> None:
        workers.append(cluster.fork())
        wait_until(lambda: workers[-1].state != "none")

    def kill_the_last() -> None:
        for worker in workers:
            worker.kill()
        wait_until(lambda: not cluster.workers)
        workers.clear()

    with ended(workers):
        benchmark.pedantic(fork, setup=kill_the_last, rounds=FORKS, warmup_rounds=2)  # type: ignore[no-untyped-call]


def test_message_round_trips(benchmark: BenchmarkFixture) -> None:
    """100 messages of a few bytes to a worker and back, one after the other."""
    heard: list[object] = []
    worker = cluster.fork()
    worker.on("message", lambda message, handle: heard.append(message))

    def talk() -> None:
        for number in range(TRIPS):
            heard.clear()
            worker.send(number)
            wait_until(lambda: heard)
            assert heard == [number]

    with ended([worker]):
        wait_until(lambda: worker.state != "none")
        benchmark(talk)


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    """A listening socket as the primary has it."""
    with socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS) as sock:
        sock.setblocking(False)
        yield sock


def connect(address: tuple[str, int]) -> None:
    """Come and go, without a byte: the next address of 127/8, or the pairs of ports would run out."""
    connect.turn = (connect.turn + 1) % 250  # type: ignore[attr-defined]
    source = (f"127.0.1.{connect.turn + 1}", 0)  # type: ignore[attr-defined]
    socket.create_connection(address, timeout=PATIENCE_S, source_address=source).close()


connect.turn = 0  # type: ignore[attr-defined]


def test_accepting_from_the_kernel(benchmark: BenchmarkFixture) -> None:
    """32 times connect, accept and close: what the next one is to be compared with."""
    with listening() as sock:

        def run() -> None:
            for _ in range(CONNECTIONS):
                connect(sock.getsockname())
                os.close(sock._accept()[0])  # type: ignore[attr-defined]

        benchmark(run)


def test_accepting_through_the_balancer(benchmark: BenchmarkFixture) -> None:
    """The same with a handoff between: the balancer's accept4 and sendmsg, the worker's recvmsg, and a wake-up each."""
    cluster.counter("bench.any")  # so that the shared region is there
    with listening() as sock:
        _cluster.start_balancer(64)
        listener = _cluster.Listener(sock.fileno())
        slot = _cluster.acquire_slot(1_000_000)  # no worker has that id
        channel = listener.add_channel(slot)
        _cluster.enter_slot(slot)
        receiver = _cluster.Receiver(channel.receiver, channel.cell)

        def run() -> None:
            for _ in range(CONNECTIONS):
                connect(sock.getsockname())
                os.close(receiver.accept(PATIENCE_S)[0])

        try:
            benchmark(run)
        finally:
            channel.close()
            listener.close()
            _cluster.release_slot(slot)
            _cluster.stop_balancer()


def test_setup_primary(benchmark: BenchmarkFixture) -> None:
    """One setting, checked and merged."""
    benchmark(cluster.setup_primary, args=["--one"])
