"""The fixtures: whole programs, each in its own process. Their types and the clients are in harness.py."""

import contextlib
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from harness import Programs
from puppets import Puppets, Start, puppets
from pycluster.processors import usable_processors

# Whoever runs the tests in the background, or under nohup, has these ignored, and programs would inherit that.
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """The processes of `--numprocesses auto`: two per processor, as tests wait a part of their time.

    Measured on 2 processors: 169 s with 3 processes, 137 s with 4, 143 s with 6.
    """
    return 2 * usable_processors()


@pytest.fixture
def cluster_program() -> Iterator[Programs]:
    """Start programs of tests/programs; see `harness.Program` for what can be done with one.

    Fails the test when a program leaves a process, a shared-memory file, or an unexpected traceback.
    """
    programs = Programs()
    yield programs
    programs.close()


@pytest.fixture
def start(cluster_program: Programs, tmp_path: pathlib.Path) -> Iterator[Start]:
    """Start a cluster of puppets, under a policy; in the end they are killed."""
    with contextlib.ExitStack() as stack:

        def start(workers: int = 2, policy: str = "rr", **settings: Any) -> Puppets:
            environment = {"PYCLUSTER_SCHED_POLICY": policy}
            return stack.enter_context(puppets(cluster_program, tmp_path, workers, env=environment, **settings))

        yield start
