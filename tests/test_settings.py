"""Pure logic that needs no other process: settings, signals by name, stdio plans, scripts, and a worker's life."""

import dataclasses
import math
import os
import pathlib
import signal
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pycluster import script
from pycluster.errors import ClusterError
from pycluster.script import Script, find_script
from pycluster.settings import Settings, Stdio
from pycluster.signals import as_signal
from pycluster.stdio import WorkerStdio
from pycluster.worker import LIFE, STATES, State, Step, Worker

# A noisy machine may take its time for any example.
unhurried = hypothesis_settings(deadline=None)

# ---- Settings

GOOD: dict[str, list[Any]] = {
    "exec": [None, "worker.py", pathlib.Path("worker.py"), ""],
    "args": [None, [], ["--port", "80"], ("a",)],
    "exec_argv": [None, [], ()],
    "cwd": [None, "/", pathlib.Path("/tmp")],
    "silent": [True, False],
    "stdio": [None, [], ["pipe"], ["ignore", "inherit", "pipe"], [0, 1, 2], ("inherit", sys.__stdout__)],
    "uid": [None, 0, 65534, 2**32 - 2],
    "gid": [None, 0, 65534, 2**32 - 2],
    "serialization": ["msgpack", "json"],
    "start_method": ["fork", "spawn", "forkserver"],
    "preload": [None, [], ()],
    "share_ports": [True, False],
    "max_workers": [1, 65536],
    "max_pending": [1, 128],
    "max_message_size": [1, 2**31 - 1],
    "max_counters": [1, 65536],
    "graceful_timeout": [0, 0.5, 30, 86400 * 365],
    "worker_timeout": [None, 0.1, 30],
    "on_hang": ["report", "kill"],
    "respawn": ["never", "on-failure", "always"],
    "max_connections_per_worker": [None, 1, 10_000],
    "max_age": [None, 1, 86400.5],
    "max_rss": [None, 1, 2**40],
    "max_unavailable": [1, 65536],
}

WRONG_TYPE: dict[str, list[Any]] = {
    "exec": [1, b"worker.py", ["worker.py"], True],
    "args": ["--port", b"ab", [1], 5, {"a": 1}, [None]],
    "exec_argv": ["-O", [1], 5],
    "cwd": [1, b"/", False],
    "silent": [1, 0, None, "yes"],
    "stdio": ["pipe", 1, b"abc", [None], [True], [1.5], [["pipe"]], {0: "pipe"}],
    "uid": ["root", 1.0, True, b"0"],
    "gid": ["root", 1.0, False],
    "serialization": [1, None, b"json"],
    "start_method": [1, None, True],
    "preload": ["json", [1], 5],
    "share_ports": [1, "no", None],
    "max_workers": [1.0, "1", None, True],
    "max_pending": [1.0, "1", None, True],
    "max_message_size": [1e6, "1", None, False],
    "max_counters": [1.0, "1", None, True],
    "graceful_timeout": ["30", None, True, [1]],
    "worker_timeout": ["30", True],
    "on_hang": [None, True],
    "respawn": [None, True, 1],
    "max_connections_per_worker": ["1", 1.0, True],
    "max_age": ["1", True],
    "max_rss": ["1G", 1e9, True],
    "max_unavailable": [None, 1.0, True],
}

OUT_OF_RANGE: dict[str, list[Any]] = {
    "stdio": [["inherit"] * 4, ["pipes"], [""], [-1]],
    "uid": [-1, 2**32 - 1, 2**64],
    "gid": [-1, 2**32 - 1],
    "serialization": ["pickle", "", "JSON"],
    "start_method": ["Fork", ""],
    "max_workers": [0, -1, 65537],
    "max_pending": [0, -1, 129],
    "max_message_size": [0, -1, 2**31],
    "max_counters": [0, -1, 65537],
    "worker_timeout": [0, 0.09, -1, math.nan],
    "on_hang": ["", "Kill"],
    "respawn": ["", "on_failure"],
    "max_connections_per_worker": [0, -1],
    "max_age": [0, 0.9, -1, math.nan],
    "max_rss": [0, -1],
    "max_unavailable": [0, -1],
    "graceful_timeout": [-1, -0.001, math.inf, -math.inf, math.nan, 86400 * 365 + 1],
}

NAMES = sorted(field.name for field in dataclasses.fields(Settings))


def each(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in table.items() for value in values]


def test_every_setting_has_good_and_wrong_values_here() -> None:
    assert sorted(GOOD) == sorted(WRONG_TYPE) == NAMES


@pytest.mark.parametrize(("name", "value"), each(GOOD))
def test_a_good_value_is_taken(name: str, value: Any) -> None:
    taken = getattr(Settings().merged({name: value}), name)
    if value is None or isinstance(value, (str, int, float)):
        assert taken == value
    elif isinstance(value, os.PathLike):
        assert taken == os.fspath(value)
    else:
        assert list(taken) == list(value)


@pytest.mark.parametrize(("name", "value"), each(WRONG_TYPE))
def test_a_value_of_the_wrong_type_is_a_type_error_that_names_the_setting(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"\b{name}\b"):
        Settings().merged({name: value})


@pytest.mark.parametrize(("name", "value"), each(OUT_OF_RANGE))
def test_a_value_out_of_range_is_a_value_error_that_names_the_setting(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        Settings().merged({name: value})


@pytest.mark.parametrize("name", ["", "execArgv", "maxpending", "__class__", "merged"])
def test_an_unknown_setting_is_a_type_error_that_names_it(name: str) -> None:
    with pytest.raises(TypeError, match=f"unknown setting {name!r}"):
        Settings().merged({name: 1})


def test_a_nameless_error_tells_which_settings_there_are() -> None:
    with pytest.raises(TypeError) as raised:
        Settings().merged({"workers": 4})
    assert all(name in str(raised.value) for name in NAMES)


def test_flags_for_an_interpreter_do_not_go_with_fork() -> None:
    with pytest.raises(ValueError, match=r"exec_argv.*spawn"):
        Settings().merged({"exec_argv": ["-O"]})
    assert Settings().merged({"exec_argv": [], "start_method": "fork"}).exec_argv == ()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_modules_to_preload_go_with_forkserver_only(method: str) -> None:
    with pytest.raises(ValueError, match=r"preload.*forkserver"):
        Settings().merged({"preload": ["json"], "start_method": method})
    assert Settings().merged({"preload": ["json"], "start_method": "forkserver"}).preload == ("json",)


@unhurried
@given(st.data())
def test_merging_changes_what_is_named_and_keeps_the_rest(data: st.DataObject) -> None:
    before = Settings().merged({name: data.draw(st.sampled_from(values)) for name, values in GOOD.items()})
    named = data.draw(st.sets(st.sampled_from(NAMES)))
    changes = {name: data.draw(st.sampled_from(GOOD[name])) for name in sorted(named)}
    after = before.merged(changes)
    fresh = Settings().merged(changes)
    for name in NAMES:
        assert getattr(after, name) == getattr(fresh if name in named else before, name)


def test_a_failed_merge_changes_nothing() -> None:
    settings = Settings().merged({"max_pending": 3})
    with pytest.raises(ValueError, match="max_workers"):
        settings.merged({"max_pending": 4, "max_workers": 0})
    assert settings == Settings().merged({"max_pending": 3})


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_frozen(name: str) -> None:
    settings = Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, name, getattr(settings, name))


def test_the_defaults_pass_their_own_checks() -> None:
    settings = Settings()
    assert settings.merged(dataclasses.asdict(settings)) == settings


def test_the_lists_in_settings_are_copies() -> None:
    args = ["a"]
    settings = Settings().merged({"args": args})
    args.append("b")
    assert settings.args == ("a",)


# ---- Signals by name


@pytest.mark.parametrize("number", sorted(signal.Signals))
def test_a_signal_is_known_by_number_and_by_name(number: signal.Signals) -> None:
    assert as_signal(number) is number
    assert as_signal(int(number)) is number
    assert as_signal(number.name) is number


def test_a_real_time_signal_without_a_name_is_a_number() -> None:
    assert as_signal(signal.SIGRTMIN + 1) == signal.SIGRTMIN + 1


@pytest.mark.parametrize("value", [0, -1, 65, 1000, "TERM", "sigterm", "", "SIG_DFL", "SIG_BLOCK"])
def test_what_is_no_signal_is_a_value_error_that_quotes_it(value: int | str) -> None:
    with pytest.raises(ValueError, match=repr(value)):
        as_signal(value)


# ---- Standard descriptors


def open_descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the listing's own
    return found


@pytest.fixture
def files() -> Iterator[Sequence[int]]:
    """Three files, all different, open for reading and writing."""
    with tempfile.TemporaryFile() as a, tempfile.TemporaryFile() as b, tempfile.TemporaryFile() as c:
        yield a.fileno(), b.fileno(), c.fileno()


def places_in_a_child(plan: WorkerStdio) -> list[str]:
    """What the descriptors 0, 1 and 2 are in a child that installs the plan."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            plan.install()
            os.write(writer, "\n".join(os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        places = lines.read().splitlines()
    assert os.waitpid(pid, 0)[1] == 0
    return places


def link(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 1), (2, 1, 1)])
def test_descriptors_come_to_their_places_in_any_order(files: Sequence[int], order: tuple[int, ...]) -> None:
    before = open_descriptors()
    plan = WorkerStdio([files[i] for i in order], silent=False)
    assert places_in_a_child(plan) == [link(files[i]) for i in order]
    assert plan.keep() == [None, None, None]
    assert open_descriptors() == before


@pytest.mark.parametrize("order", [(2, 1, 1), (1, 2, 0), (1, 0, 2), (2, 2, 2)])
def test_the_standard_descriptors_themselves_may_be_exchanged(files: Sequence[int], order: tuple[int, ...]) -> None:
    saved = [os.dup(fd) for fd in range(3)]
    try:
        for target, fd in enumerate(files):
            os.dup2(fd, target)
        places = places_in_a_child(WorkerStdio(order, silent=False))
    finally:
        for target, fd in enumerate(saved):
            os.dup2(fd, target)
            os.close(fd)
    assert places == [link(files[i]) for i in order]


def test_a_plan_without_entries_inherits() -> None:
    plan = WorkerStdio(None, silent=False)
    assert places_in_a_child(plan) == [link(fd) for fd in range(3)]
    assert plan.keep() == [None, None, None]


def test_silence_is_pipes_for_stdout_and_stderr() -> None:
    before = open_descriptors()
    plan = WorkerStdio(None, silent=True)
    stdin, stdout, stderr = places_in_a_child(plan)
    ours = plan.keep()
    assert stdin == link(0)
    assert ours[0] is None
    for theirs, pipe in ((stdout, ours[1]), (stderr, ours[2])):
        assert pipe is not None
        assert theirs == link(pipe.fileno())
        pipe.close()
    assert open_descriptors() == before


def test_an_explicit_plan_beats_silence() -> None:
    plan = WorkerStdio(["inherit"], silent=True)
    assert places_in_a_child(plan) == [link(fd) for fd in range(3)]


def test_ignored_descriptors_are_the_null_device() -> None:
    plan = WorkerStdio(["ignore"] * 3, silent=False)
    assert places_in_a_child(plan) == [os.devnull] * 3
    assert plan.keep() == [None, None, None]


def test_pipes_carry_bytes_both_ways() -> None:
    plan = WorkerStdio(["pipe", "pipe", "pipe"], silent=False)
    pid = os.fork()
    if pid == 0:
        try:
            plan.install()
            heard = os.read(0, 100)
            os.write(1, heard.upper())
            os.write(2, b"done")
        finally:
            os._exit(0)
    stdin, stdout, stderr = plan.keep()
    assert stdin is not None
    assert stdout is not None
    assert stderr is not None
    with stdin, stdout, stderr:
        stdin.write(b"hello")
        assert stdout.read() == b"HELLO"
        assert stderr.read() == b"done"
    os.waitpid(pid, 0)


@unhurried
@given(st.lists(st.sampled_from(["inherit", "pipe", "ignore", 2]), max_size=3))
def test_a_discarded_plan_leaves_nothing_open(entries: list[Stdio]) -> None:
    before = open_descriptors()
    WorkerStdio(entries, silent=False).discard()
    assert open_descriptors() == before


@unhurried
@given(st.lists(st.sampled_from(["inherit", "pipe", "ignore", 2]), max_size=3))
def test_what_is_open_after_a_fork_is_what_the_primary_keeps(entries: list[Stdio]) -> None:
    before = open_descriptors()
    kept = [pipe for pipe in WorkerStdio(entries, silent=False).keep() if pipe is not None]
    assert len(open_descriptors()) == len(before) + len(kept) == len(before) + entries.count("pipe")
    for pipe in kept:
        pipe.close()
    assert open_descriptors() == before


def test_a_plan_that_fails_half_way_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_descriptors()

    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many"):
        WorkerStdio(["pipe", "pipe", "ignore"], silent=False)
    assert open_descriptors() == before


# ---- The script


@pytest.fixture
def main_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(script, "_main", None)
    return main


def test_a_named_script_is_found_from_where_setup_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert find_script("usr/worker.py") == Script("/usr/worker.py", directory="/usr")


def test_the_main_script_is_the_default(main_module: types.ModuleType) -> None:
    main_module.__file__ = __file__
    assert find_script(None) == Script(__file__)


def test_a_module_stays_a_module(main_module: types.ModuleType) -> None:
    main_module.__file__ = __file__
    main_module.__spec__ = types.SimpleNamespace(name="package.__main__")  # type: ignore[assignment]
    assert find_script(None) == Script(__file__, "package.__main__")


@pytest.mark.parametrize("file", [None, "<stdin>", "/nowhere/at/all.py"])
def test_where_there_is_no_script_the_error_says_what_to_do(main_module: types.ModuleType, file: str | None) -> None:
    main_module.__file__ = file
    with pytest.raises(ClusterError, match=r"setup_primary\(exec="):
        find_script(None)


def test_a_script_runs_as_main_with_its_arguments(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, main_module: types.ModuleType
) -> None:
    path = tmp_path / "worker.py"
    path.write_text(
        "import sys\nfacts = (__name__, __file__, sys.argv, sys.modules['__main__'].__dict__ is globals())\n"
    )
    monkeypatch.setattr(sys, "argv", ["primary.py"])
    Script(str(path)).run(["a", "b"])
    ran = sys.modules["__main__"]
    assert ran is not main_module
    assert ran.__dict__["facts"] == ("__main__", str(path), [str(path), "a", "b"], True)


# ---- A worker's life

STEPS: tuple[Step, ...] = get_args(Step)


class Nobody:
    """A role that is never asked for anything."""

    def send(self, worker: Worker, message: object, handle: Any, keep_open: bool, callback: Any) -> bool:
        raise AssertionError

    def disconnect(self, worker: Worker) -> None:
        raise AssertionError

    def kill(self, worker: Worker, signal: int) -> None:
        raise AssertionError

    def is_connected(self, worker: Worker) -> bool:
        raise AssertionError


def fresh_worker() -> Worker:
    return Worker(1, 0, os.getpid(), Nobody(), lambda exception: None)


def test_every_state_is_reachable_and_has_a_number() -> None:
    reached: set[State] = {"none"}
    while new := {LIFE[edge] for edge in LIFE if edge[0] in reached} - reached:
        reached |= new
    assert reached == set(get_args(State)) == set(STATES)
    assert len(STATES) == len(set(STATES))


def test_the_table_speaks_of_known_states_and_steps_only() -> None:
    for (state, step), following in LIFE.items():
        assert state in STATES
        assert step in STEPS
        assert following in STATES


def test_a_process_may_end_in_any_state_but_once() -> None:
    for state in STATES:
        assert LIFE.get((state, "exit")) == (None if state == "dead" else "dead")


def test_death_and_disconnection_are_not_left_again() -> None:
    assert {LIFE[edge] for edge in LIFE if edge[0] == "dead"} == {"dead"}
    assert {LIFE[edge] for edge in LIFE if edge[0] == "disconnected"} == {"dead"}


@unhurried
@given(st.lists(st.sampled_from(STEPS)))
def test_a_worker_lives_by_the_table_and_takes_no_other_step(steps: list[Step]) -> None:
    worker = fresh_worker()
    expected: State = "none"
    for step in steps:
        following = LIFE.get((expected, step))
        if following is None:
            with pytest.raises(RuntimeError, match=f"{step!r} from {expected!r}"):
                worker._step(step)
        else:
            worker._step(step)
            expected = following
        assert worker.state == expected
        assert worker.is_dead() == (expected == "dead")


def test_a_state_cannot_be_set() -> None:
    with pytest.raises(AttributeError):
        fresh_worker().state = "dead"  # type: ignore[misc]
