"""The harness itself: a program that leaves something behind fails its test."""

import multiprocessing
import os
import pathlib

import pytest

from harness import Program, Programs, is_alive, wait_until

LEAVE = """
import subprocess
program = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print('{"event": "left", "child": %d}' % program.pid, flush=True)
"""


def test_a_process_that_outlives_the_primary_is_a_fault_and_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.GONE_S", 0.2)
    program = Program("-c", LEAVE)
    child = program.wait_for("left")["child"]
    with pytest.raises(AssertionError, match="left behind"):
        program.finish()
    with pytest.raises(AssertionError, match="alive after the primary"):
        program.close()
    assert wait_until(lambda: not is_alive(child))


def test_a_traceback_is_a_fault_unless_it_is_expected() -> None:
    program = Program("-c", "1 / 0")
    assert program.finish().returncode == 1
    with pytest.raises(AssertionError, match="traceback"):
        program.close()
    expecting = Program("-c", "1 / 0", expects_traceback=True)
    assert "ZeroDivisionError" in expecting.finish().stderr
    expecting.close()


def test_a_file_left_in_shared_memory_is_a_fault(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.GONE_S", 0.2)
    monkeypatch.setattr("harness.SHARED_MEMORY", tmp_path)  # what is left in the real one disturbs other runs
    program = Program("-c", "import sys; open(sys.argv[1], 'w').close()", tmp_path / "segment")
    program.finish()
    with pytest.raises(AssertionError, match=r"left in .*segment"):
        program.close()


def test_what_another_process_has_in_shared_memory_is_no_fault(cluster_program: Programs) -> None:
    program = cluster_program.add(Program("-c", "print('up')"))
    program.wait_for_line("up")
    semaphore = multiprocessing.get_context("spawn").Lock()
    program.finish()
    program.close()
    del semaphore


def test_a_program_that_still_runs_at_the_end_of_its_test_is_ended() -> None:
    program = Program("-c", "import time; print('up'); time.sleep(60)")
    program.wait_for_line("up")
    program.close()
    assert not is_alive(program.pid)


def test_waiting_for_a_fact_fails_as_soon_as_the_program_has_ended(cluster_program: Programs) -> None:
    program = cluster_program.add(Program("-c", """print('{"event": "this"}')"""))
    assert program.wait_for("this") == {"event": "this"}
    with pytest.raises(AssertionError, match="it has ended"):
        program.wait_for("that")


def test_a_program_has_a_session_of_its_own(cluster_program: Programs) -> None:
    program = cluster_program.add(Program("-c", "import os; print(os.getsid(0), os.getpgrp())"))
    assert program.wait_for_line(" ") == f"{program.pid} {program.pid}"
    assert os.getsid(0) != program.pid
