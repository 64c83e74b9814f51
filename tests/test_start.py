"""Starting a worker, by each start method: its script, arguments, directory, environment, streams and rights."""

import json
import os
import pathlib
import re
import signal
import sys
import zipapp
from collections.abc import Callable
from typing import Any

import pytest

from harness import GONE_S, PROGRAMS, Fact, Program, Programs, connect, free_port, privileged_port, read_all, wait_until
from puppets import Start, who_answers

METHODS = ["fork", "spawn", "forkserver"]
Show = Callable[..., Program]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """A start method."""
    name: str = request.param
    return name


@pytest.fixture
def show(cluster_program: Programs, method: str) -> Show:
    """Start settings_shown.py, whose worker shows what it was started with."""

    def show(env: dict[str, str] | None = None, before: dict[str, str] | None = None, **settings: Any) -> Program:
        told = json.dumps({"start_method": method, **settings})
        return cluster_program("settings_shown", told, json.dumps(env or {}), env=before)

    return show


def only(facts: list[Fact], event: str) -> Fact:
    found = [fact for fact in facts if fact["event"] == event]
    assert len(found) == 1, facts
    return found[0]


# ---- Which script a worker runs


FORK = "from pycluster import cluster, ClusterError\ntry:\n cluster.fork()\nexcept ClusterError as e: print('no:', e)\n"


def test_fork_without_a_script_is_a_cluster_error_with_a_remedy(cluster_program: Programs, method: str) -> None:
    code = FORK.replace("\n", f"\ncluster.setup_primary(start_method={method!r})\n", 1)
    for program in (Program("-c", code), Program(stdin=code), Program("-", stdin=code)):
        cluster_program.add(program)
        line = program.wait_for_line("no:")
        assert "exec" in line
        assert program.finish().returncode == 0


def test_a_repl_can_start_workers_that_run_a_named_script(cluster_program: Programs, method: str) -> None:
    code = (
        "from pycluster import cluster\n"
        f"cluster.setup_primary(exec={str(PROGRAMS / 'other.py')!r}, start_method={method!r})\n"
        "cluster.fork()\ncluster.run()"
    )
    program = cluster_program.add(Program("-c", code))
    assert program.wait_for("other")["is_worker"] is True
    assert program.finish().returncode == 0


def test_a_program_started_with_m_has_workers_that_run_the_same_module(cluster_program: Programs, method: str) -> None:
    settings = json.dumps({"start_method": method})
    program = cluster_program.add(Program("-m", "programs.settings_shown", settings, '{"GIVEN": "here"}'))
    shown = program.wait_for("shown")
    assert shown["name"] == "__main__"
    assert shown["env"] == "here"
    assert shown["file"] == str(PROGRAMS / "settings_shown.py")
    assert shown["argv"] == [shown["file"], settings, '{"GIVEN": "here"}']
    assert program.finish().returncode == 0


MAIN = """
from pycluster import cluster
if cluster.is_primary:
    cluster.setup_primary(start_method={method!r})
    cluster.fork()
    cluster.run()
else:
    import sys
    from {package} import part
"""
PART = "import sys\nfrom programs.facts import tell\ntell('part', package=__package__, argv=sys.argv)\n"


def test_a_package_started_with_m_has_workers_that_run_its_main(
    cluster_program: Programs, method: str, tmp_path: pathlib.Path
) -> None:
    package = tmp_path / "served"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "part.py").write_text(PART)
    (package / "__main__.py").write_text(MAIN.format(method=method, package="."))
    program = cluster_program.add(Program("-m", "served", cwd=tmp_path))
    assert program.wait_for("part")["package"] == "served"
    assert program.finish().returncode == 0


@pytest.mark.parametrize("kind", ["archive", "directory"])
def test_an_archive_or_a_directory_with_a_main_is_a_script(
    cluster_program: Programs, method: str, kind: str, tmp_path: pathlib.Path
) -> None:
    source = tmp_path / "source"
    (source / "parts").mkdir(parents=True)
    (source / "parts" / "__init__.py").touch()
    (source / "parts" / "part.py").write_text(PART)
    (source / "__main__.py").write_text(MAIN.format(method=method, package="parts"))
    script = source
    if kind == "archive":
        script = tmp_path / "app.pyz"
        zipapp.create_archive(source, script)
    program = cluster_program.add(Program(script.name, "an argument", cwd=tmp_path))
    part = program.wait_for("part")
    assert (part["package"], part["argv"]) == ("parts", [str(script), "an argument"])
    assert program.finish().returncode == 0


def test_exec_takes_an_archive(cluster_program: Programs, method: str, tmp_path: pathlib.Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "part.py").write_text(PART)
    (source / "__main__.py").write_text("import part\n")
    zipapp.create_archive(source, tmp_path / "app.pyz")
    settings = json.dumps({"start_method": method, "exec": str(tmp_path / "app.pyz"), "args": ["x"]})
    program = cluster_program("settings_shown", settings, "{}")
    assert program.wait_for("part")["argv"] == [str(tmp_path / "app.pyz"), "x"]
    assert program.finish().returncode == 0


def test_a_worker_knows_the_scheduling_policy_that_its_primary_was_given(show: Show) -> None:
    program = show()
    assert program.wait_for("shown")["policy"] == "none"
    program.finish()


def test_a_worker_runs_the_script_from_the_top_as_main(show: Show) -> None:
    program = show()
    facts = program.wait_for("shown")
    assert facts["name"] == "__main__"
    assert facts["main"] is True
    assert facts["file"] == facts["argv"][0] == str(PROGRAMS / "settings_shown.py")
    assert facts["worker"] == 1
    assert facts["pid"] != program.pid
    program.finish()


def test_exec_and_args_replace_the_workers_script_and_its_arguments(show: Show) -> None:
    program = show(exec=str(PROGRAMS / "other.py"), args=["--port", "80"])
    other = program.wait_for("other")
    assert other["argv"] == [str(PROGRAMS / "other.py"), "--port", "80"]
    assert (other["is_worker"], other["name"]) == (True, "__main__")
    program.finish()


def test_exec_finds_the_modules_beside_it(show: Show, tmp_path: pathlib.Path) -> None:
    (tmp_path / "part.py").write_text(PART)
    (tmp_path / "script.py").write_text("import part\n")
    program = show(exec=str(tmp_path / "script.py"))
    assert program.wait_for("part")["package"] == ""
    assert program.finish().returncode == 0


def test_args_without_exec_are_given_to_the_same_script(show: Show) -> None:
    program = show(args=["{}", "x"])
    assert program.wait_for("shown")["argv"][1:] == ["{}", "x"]
    program.finish()


# ---- What it finds


def test_a_worker_runs_the_file_as_it_is_when_the_worker_starts(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    program = cluster_program("changing", tmp_path / "script.py", expects_traceback=True)
    ended = program.finish()
    assert [fact["version"] for fact in ended.facts if fact["event"] == "ran"] == [1, 2, 3]
    assert [fact["code"] for fact in ended.facts if fact["event"] == "exit"] == [0, 0, 1, 0]
    assert ended.stderr.count("SyntaxError") == 1


def test_cwd_is_the_workers_directory_and_the_script_is_still_found(
    cluster_program: Programs, method: str, tmp_path: pathlib.Path
) -> None:
    settings = {"cwd": str(tmp_path), "start_method": method}
    program = cluster_program.add(Program("settings_shown.py", json.dumps(settings), "{}", cwd=PROGRAMS))
    assert program.wait_for("shown")["cwd"] == str(tmp_path)
    program.finish()


def test_env_given_to_fork_is_added_to_the_workers_environment(show: Show) -> None:
    program = show(env={"GIVEN": "worth", "NEW": "too"}, before={"GIVEN": "something else", "KEPT": "as it was"})
    shown = program.wait_for("shown")
    assert (shown["env"], shown["new"], shown["kept"]) == ("worth", "too", "as it was")
    program.finish()


def test_a_worker_has_no_trace_of_its_start_in_its_environment(show: Show) -> None:
    program = show()
    assert program.wait_for("shown")["ours"] == []
    program.finish()


def test_output_of_a_worker_is_inherited_by_default(show: Show) -> None:
    program = show()
    ended = program.finish()
    assert program.lines == ["on stdout"]
    assert ended.stderr == "on stderr\n"
    assert program.wait_for("exit")["pipes"] == [False, False, False]


def test_a_silent_workers_output_goes_to_pipes_of_the_primary(show: Show) -> None:
    program = show(silent=True)
    ended = program.finish()
    exit = program.wait_for("exit")
    assert exit["pipes"] == [False, True, True]
    assert exit["stdout"].endswith("on stdout\n")
    assert exit["stderr"] == "on stderr\n"
    assert (program.lines, ended.stderr) == ([], "")


def test_stdio_gives_each_standard_descriptor_what_it_names(show: Show) -> None:
    program = show(stdio=["pipe", "inherit", "ignore"])
    ended = program.finish()
    assert program.wait_for("shown")["stdin"] == "to the worker\n"
    assert program.lines == ["on stdout"]
    assert ended.stderr == ""
    assert program.wait_for("exit")["pipes"] == [True, False, False]


def test_stdio_takes_descriptors(show: Show) -> None:
    program = show(stdio=["ignore", 2, 1])
    ended = program.finish()
    assert program.lines == ["on stderr"]
    assert ended.stderr.endswith("on stdout\n")


# ---- The interpreter of a spawned worker


def test_exec_argv_are_the_flags_of_a_spawned_workers_interpreter(cluster_program: Programs) -> None:
    settings = {"start_method": "spawn", "exec_argv": ["-O", "-X", "importtime=0", "-W", "error"]}
    program = cluster_program("settings_shown", json.dumps(settings), "{}", options=["-b"])
    shown = program.wait_for("shown")
    assert (shown["optimize"], shown["warnings"], shown["bytes"]) == (1, ["error"], 0)
    program.finish()


def test_a_spawned_workers_interpreter_has_the_primarys_own_flags_by_default(cluster_program: Programs) -> None:
    settings = json.dumps({"start_method": "spawn"})
    program = cluster_program("settings_shown", settings, "{}", options=["-O", "-b", "-W", "error"])
    shown = program.wait_for("shown")
    assert (shown["optimize"], shown["warnings"][0], shown["bytes"]) == (1, "error", 1)
    program.finish()


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_process_that_another_thread_forks_meanwhile_keeps_no_worker_alive(
    method: str, cluster_program: Programs
) -> None:
    program = cluster_program("forks_while_starting", method)
    sleeper = program.wait_for("sleeper")
    try:
        assert sleeper["held"] == []
        program.wait_for("started")
        program.send_signal(signal.SIGKILL)
        assert wait_until(lambda: set(program.processes()) <= {sleeper["sleeper"]}, GONE_S), program
    finally:
        os.kill(sleeper["sleeper"], signal.SIGKILL)
    program.finish()


@pytest.mark.parametrize(("used", "count"), [("counter", 12), ("workers", 13)])
def test_a_primary_may_daemonize_after_its_first_use_of_the_library(
    used: str, count: int, method: str, cluster_program: Programs
) -> None:
    facts = cluster_program("daemonized", method, used).finish().facts
    assert only(facts, "over")["x"] == count
    assert [fact["code"] for fact in facts if fact["event"] == "exit"] == [0, 0]
    assert [fact["regions"] for fact in facts if fact["event"] == "worker"] == [[]] * (count - 10)


def test_a_forked_worker_has_the_primarys_memory_and_the_users_descriptors_and_a_spawned_one_neither(
    cluster_program: Programs, method: str
) -> None:
    program = cluster_program("inheritance", method)
    inherited = program.wait_for("inherited")
    assert (inherited["mark"], inherited["opened"]) == (("of the primary", True) if method == "fork" else (None, False))
    assert program.finish().returncode == 0


def test_fork_fails_where_no_interpreter_can_be_started_and_leaves_nothing_behind(cluster_program: Programs) -> None:
    program = cluster_program("failing_spawn")
    fact = program.wait_for("failed")
    assert fact["errors"] == ["FileNotFoundError", "NotADirectoryError", "ClusterError", "ClusterError", "ClusterError"]
    assert fact["left"] == []
    assert fact["workers"] == []
    assert program.finish().facts[-1]["event"] == "exit"


# ---- Rights


def reachable_by_others(path: str) -> bool:
    """Whether a user without rights may run what lies there."""
    real = pathlib.Path(path).resolve()
    return all(part.stat().st_mode & 0o001 for part in [real, *real.parents])


ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="only root may run a worker as another user")


@ROOT_ONLY
@pytest.mark.parametrize("uid", [65534, -1])
def test_a_worker_with_fewer_rights_still_gets_a_port_that_only_root_may_bind(
    cluster_program: Programs, method: str, uid: int
) -> None:
    if method == "spawn" and uid != -1 and not reachable_by_others(sys.executable):
        pytest.skip("only root may run this interpreter")
    port = privileged_port()
    program = cluster_program("rights", method, uid, 65533, port)
    facts = program.finish().facts
    worker = only(facts, "worker")
    assert (worker["uids"], worker["gids"], worker["groups"]) == ([max(uid, 0)] * 3, [65533] * 3, [65533])
    assert worker["port"] == port
    assert only(facts, "exit")["code"] == 0
    assert only(facts, "primary")["uid"] == 0


@pytest.mark.parametrize("closed", ["0", "1", "012"])
def test_what_a_primary_is_started_without_of_0_1_and_2_is_dev_null(
    cluster_program: Programs, method: str, closed: str
) -> None:
    facts = cluster_program("without_standard", method, closed).wait_for("facts")
    primary, worker = facts["primary"], facts["worker"]["standard"]
    assert len(primary) == len(worker) == 3
    for fd in map(int, closed):
        assert primary[fd] == worker[fd] == "/dev/null"
    assert (facts["worker"]["served"], facts["exit"]) == (True, 0)


# ---- What it does as a worker


def test_workers_share_a_port_in_turn_and_count_together(start: Start, method: str) -> None:
    port = free_port()
    cluster = start(start_method=method)
    for process in (0, 1, 2):
        cluster.do(process, "add", name="hits", n=process)
    assert cluster.do(0, "read", name="hits")["value"] == 3
    cluster.serve("http", port, 1, 2)
    assert cluster.shares(lambda: [who_answers(port) for _ in range(8)], 1, 2) == [4, 4]
    stats = cluster.do(0, "stats")
    assert stats["accepted"] == stats["dispatched"] >= 8
    cluster.do(0, "disconnect", worker=1)
    assert cluster.wait_for_exit(1) == (0, None)
    assert [who_answers(port) for _ in range(3)] == [2] * 3


def test_connections_of_a_killed_worker_go_to_another_one(start: Start, method: str) -> None:
    port = free_port()
    cluster = start(workers=1, start_method=method)
    cluster.do(1, "listen", port=port)
    with connect(port) as client:
        assert wait_until(lambda: cluster.do(0, "stats")["pending"] == 1)
        os.kill(cluster.pid(1), signal.SIGKILL)
        assert cluster.wait_for_exit(1) == (None, "SIGKILL")
        cluster.fork()
        cluster.do(2, "listen", port=port)
        cluster.do(2, "accept")
        assert read_all(client) == b"worker 2"


def test_a_worker_has_no_descriptors_of_the_library_but_its_own(start: Start, method: str) -> None:
    cluster = start(workers=1, start_method=method)

    def kinds(worker: int) -> list[str]:
        return [re.sub(r":\[\d+\]", "", name) for name in cluster.do(worker, "descriptors")]

    alone = kinds(1)
    cluster.fork(2)
    for worker in (1, 2, 3):
        cluster.do(worker, "listen", how="cluster")
    assert kinds(cluster.fork()[0]) == alone


@pytest.mark.parametrize("way", ["run", "implicitly"])
def test_libraries_work_in_a_worker(way: str, method: str, cluster_program: Programs) -> None:
    facts = cluster_program("libraries", method, way).finish().facts
    works = [fact for fact in facts if fact["event"] == "works"]
    assert [fact["worker"] for fact in works] == [1, 2]
    for fact in works:
        assert fact["total"] == 55
        assert [fact[name] for name in ("pickled", "spawned", "forked", "thread")] == [True] * 4
        assert fact["subprocess"] == 0
    assert [fact["code"] for fact in facts if fact["event"] == "exit"] == [0, 0]


def test_ctrl_c_while_workers_start_ends_the_cluster_without_a_traceback(
    cluster_program: Programs, method: str
) -> None:
    program = cluster_program("starting", method, terminal=True)
    program.wait_for("started")
    program.type(b"\x03")
    ended = program.finish()
    assert ended.returncode == 0
    assert "Traceback" not in "".join(program.lines)


def test_a_worker_that_starts_is_gone_when_the_primary_is(cluster_program: Programs, method: str) -> None:
    program = cluster_program("starting", method)
    program.wait_for("started")
    program.send_signal(signal.SIGKILL)
    assert program.wait_until_alone() == []


def test_the_command_of_a_spawned_worker_names_its_script(start: Start) -> None:
    cluster = start(workers=1, start_method="spawn")
    command = pathlib.Path(f"/proc/{cluster.pid(1)}/cmdline").read_bytes().split(b"\0")
    assert str(PROGRAMS / "puppet.py").encode() in command
