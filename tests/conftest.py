"""The one fixture: whole programs, each in its own process. Its types and the clients are in harness.py."""

from collections.abc import Iterator

import pytest

from harness import Programs


@pytest.fixture
def cluster_program() -> Iterator[Programs]:
    """Start programs of tests/programs; see `harness.Program` for what can be done with one.

    Fails the test when a program leaves a process, a shared-memory file, or an unexpected traceback.
    """
    programs = Programs()
    yield programs
    programs.close()
