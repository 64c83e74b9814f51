"""Reload: one worker after the other, whatever happens to the old and the new one meanwhile; and SIGHUP and others."""

import contextlib
import os
import pathlib
import signal
import socket
import time
from typing import Any, get_args

import pytest

from harness import (
    PATIENCE_S,
    TESTS,
    Program,
    Programs,
    connect,
    connect_to,
    free_port,
    is_alive,
    read_all,
    wait_until,
)
from puppets import Puppets, Start
from pycluster import Settings, reload, replacement
from versions import Library, Service, ask, descriptors, versions

SOON_S = 0.3


def workers(cluster: Puppets) -> list[int]:
    return sorted(map(int, cluster.do(0, "states")))


def listening(start: Start, port: int, count: int = 1, **settings: Any) -> Puppets:
    """A cluster whose workers listen, and wait for nobody when they are to end."""
    cluster = start(count, **settings)
    for worker in range(1, count + 1):
        cluster.do(worker, "listen", port=port)
    return cluster


def wait_for_worker(cluster: Puppets, worker: int) -> None:
    cluster.program.wait_for("ready", worker=worker)


def outcomes(cluster: Puppets, count: int = 1) -> list[str | None]:
    return [fact["error"] for fact in cluster.program.wait_for_all(count, "reloaded")]


def test_each_worker_is_replaced_once_the_new_one_listens(start: Start) -> None:
    port = free_port()
    cluster = listening(start, port, 2)
    cluster.do(0, "reload")
    for old, new in ((1, 3), (2, 4)):
        wait_for_worker(cluster, new)
        assert not cluster.program.facts_of("disconnect", worker=old)
        cluster.do(new, "listen", port=port)
        assert cluster.wait_for_exit(old) == (0, None)
    assert outcomes(cluster) == [None]
    assert workers(cluster) == [3, 4]
    assert {worker: stats["slot"] for worker, stats in cluster.do(0, "stats")["workers"].items()} == {"3": 0, "4": 1}
    ends = cluster.program.facts_of("exit")
    assert [(fact["worker"], fact["asked"]) for fact in ends] == [(1, True), (2, True)]
    assert all(len(fact["workers"]) <= 3 for fact in cluster.program.facts if "workers" in fact), "one more, never two"


def test_a_new_worker_must_listen_on_all_that_the_old_one_listens_on(start: Start, tmp_path: pathlib.Path) -> None:
    port, path = free_port(), str(tmp_path / "socket")
    cluster = listening(start, port)
    cluster.do(1, "listen", name="other", path=path)
    cluster.do(0, "reload")
    wait_for_worker(cluster, 2)
    cluster.do(2, "listen", port=port)
    cluster.do(2, "listen", name="bound", path=path, only_bind=True)
    cluster.do(1, "listen", name="third", port=free_port())
    assert workers(cluster) == [1, 2]
    cluster.do(1, "close", name="third")
    cluster.do(2, "close", name="bound")
    assert workers(cluster) == [1, 2]
    cluster.do(2, "listen", name="other", path=path)
    assert cluster.wait_for_exit(1) == (0, None)
    assert outcomes(cluster) == [None]


def test_a_new_worker_gets_the_environment_of_the_old_one(start: Start) -> None:
    cluster = start(0)
    assert cluster.do(0, "fork_with", env={"COLOUR": "green"}) == 1
    wait_for_worker(cluster, 1)
    cluster.do(0, "reload")
    wait_for_worker(cluster, 2)
    assert cluster.do(2, "variable", name="COLOUR") == "green"
    assert outcomes(cluster) == [None], "what listens on nothing is up when it has run for a second"
    assert workers(cluster) == [2]


@pytest.mark.parametrize("respawn", [False, True])
@pytest.mark.parametrize("end", ["exit", "kill"])
def test_a_new_worker_that_ends_stops_the_reload(end: str, respawn: bool, start: Start) -> None:
    port = free_port()
    cluster = listening(start, port, 2)
    if respawn:
        cluster.do(0, "respawn")
    cluster.do(0, "reload")
    wait_for_worker(cluster, 3)
    cluster.begin(3, "end" if end == "exit" else "crash")
    [said] = outcomes(cluster)
    assert said is not None
    how = "exited with status 7" if end == "exit" else "was killed by SIGKILL"
    assert f"the new worker 3 (pid {cluster.pid(3)}) {how} before it listened on 127.0.0.1:{port}" in said
    assert cluster.program.wait_for("exit", worker=3)["asked"] is True, "nobody need replace it"
    assert workers(cluster) == [1, 2]
    assert all(fact["worker"] in (1, 2, 3) for fact in cluster.program.facts_of("online"))
    # The next one succeeds.
    cluster.do(0, "reload")
    for new in (4, 5):
        wait_for_worker(cluster, new)
        cluster.do(new, "listen", port=port)
    assert outcomes(cluster, 2)[1] is None
    assert workers(cluster) == [4, 5]


def test_a_new_worker_that_does_not_listen_in_time_is_ended(start: Start) -> None:
    port = free_port()
    cluster = listening(start, port)
    cluster.do(0, "reload", timeout=SOON_S)
    [said] = outcomes(cluster)
    assert said is not None
    assert f"did not listen on 127.0.0.1:{port} within 0.3 s" in said
    assert "timeout=" in said
    cluster.program.wait_for("exit", worker=2)
    assert workers(cluster) == [1]


@pytest.mark.parametrize("respawn", [False, True])
def test_a_crash_of_the_old_worker_leaves_its_place_to_the_new_one(respawn: bool, start: Start) -> None:
    port = free_port()
    cluster = listening(start, port)
    if respawn:
        cluster.do(0, "respawn")
    cluster.do(0, "reload")
    wait_for_worker(cluster, 2)
    cluster.begin(1, "crash")
    assert cluster.program.wait_for("exit", worker=1)["asked"] is True, "its place is taken"
    cluster.do(2, "listen", port=port)
    assert outcomes(cluster) == [None]
    assert workers(cluster) == [2]
    cluster.begin(2, "crash")
    assert cluster.program.wait_for("exit", worker=2)["asked"] is False
    assert workers(cluster) == [3] * respawn


@pytest.mark.parametrize("first", [1, 2])
def test_when_old_and_new_crash_one_of_them_is_to_be_replaced(first: int, start: Start) -> None:
    port = free_port()
    cluster = listening(start, port)
    cluster.do(0, "respawn")
    cluster.do(0, "reload")
    wait_for_worker(cluster, 2)
    for worker in (first, 3 - first):
        os.kill(cluster.pid(worker), signal.SIGKILL)
    [said] = outcomes(cluster)
    assert said is not None
    asked = {worker: cluster.program.wait_for("exit", worker=worker)["asked"] for worker in (1, 2)}
    assert sorted(asked.values()) == [False, True]
    wait_for_worker(cluster, 3)
    assert workers(cluster) == [3]


def test_a_late_worker_that_is_alone_in_its_place_is_kept(start: Start) -> None:
    port = free_port()
    cluster = listening(start, port)
    cluster.do(0, "reload", timeout=3.0)
    wait_for_worker(cluster, 2)
    cluster.begin(1, "crash")
    [said] = outcomes(cluster)
    assert said is not None
    assert "did not listen" in said
    cluster.do(2, "listen", port=port)
    assert cluster.do(0, "states") == {"2": "listening"}


def test_a_worker_that_is_disconnected_meanwhile_needs_no_successor(start: Start) -> None:
    port = free_port()
    cluster = listening(start, port, 2)
    cluster.do(0, "reload")
    wait_for_worker(cluster, 3)
    cluster.do(0, "disconnect", worker=1)
    assert cluster.wait_for_exit(1) == cluster.wait_for_exit(3) == (0, None)
    wait_for_worker(cluster, 4)
    cluster.do(4, "listen", port=port)
    assert outcomes(cluster) == [None]
    assert workers(cluster) == [4]


def test_reloads_that_are_asked_for_meanwhile_become_one(start: Start) -> None:
    port = free_port()
    cluster = listening(start, port)
    cluster.do(0, "reload")
    wait_for_worker(cluster, 2)
    cluster.do(0, "reload", times=3)
    for new in (2, 3):
        wait_for_worker(cluster, new)
        cluster.do(new, "listen", port=port)
    assert outcomes(cluster, 4) == [None] * 4
    assert workers(cluster) == [3]


def test_a_worker_that_was_forked_after_a_reload_was_asked_for_is_not_replaced(start: Start) -> None:
    port = free_port()
    cluster = listening(start, port)
    cluster.do(0, "reload", times=2)
    wait_for_worker(cluster, 2)
    cluster.do(2, "listen", port=port)
    assert outcomes(cluster, 2) == [None] * 2
    assert workers(cluster) == [2]


def test_when_all_are_disconnected_the_reload_is_over(start: Start) -> None:
    port = free_port()
    cluster = listening(start, port, 2)
    cluster.do(0, "reload")
    cluster.do(0, "reload_without_callback", timeout=60)
    wait_for_worker(cluster, 3)
    cluster.do(0, "disconnect_all")
    for worker in (1, 2, 3):
        assert cluster.wait_for_exit(worker) == (0, None)
    [said] = outcomes(cluster)
    assert workers(cluster) == []
    assert said is None, "there is nobody left to be replaced"
    assert "stopped" not in cluster.program.stderr


def test_a_reload_without_workers_is_done_at_once(start: Start) -> None:
    cluster = start(0)
    cluster.do(0, "reload")
    assert outcomes(cluster) == [None]


@pytest.mark.parametrize("listener", [False, True])
def test_what_stops_a_reload_is_told_to_error_listeners_or_logged(listener: bool, start: Start) -> None:
    cluster = listening(start, free_port())
    if listener:
        cluster.do(0, "listen_for_errors")
    cluster.do(0, "reload_without_callback", timeout=SOON_S)
    if listener:
        assert cluster.program.wait_for("error")["type"] == "ReloadError"
        assert "reload" not in cluster.program.stderr
    else:
        assert wait_until(lambda: "the reload has stopped: the new worker 2" in cluster.program.stderr)


def test_reload_needs_room_for_one_worker_more(start: Start) -> None:
    cluster = start(1, max_workers=1)
    cluster.do(0, "reload")
    [said] = outcomes(cluster)
    assert said is not None
    assert "raise settings.max_workers" in said
    assert workers(cluster) == [1]


@pytest.mark.parametrize(("timeout", "error"), [(0, "ValueError"), (-1, "ValueError"), ("1", "TypeError")])
def test_a_timeout_is_a_positive_number(timeout: Any, error: str, start: Start) -> None:
    with pytest.raises(RuntimeError, match=f"{error}.*timeout"):
        start(0).do(0, "reload", timeout=timeout)


def test_reload_is_the_primarys(start: Start) -> None:
    with pytest.raises(RuntimeError, match=r"NotPrimaryError.*cluster\.reload"):
        start(1).do(1, "reload")


def test_every_state_of_a_reload_is_reached_and_left() -> None:
    machine = reload.MACHINE
    states = {state for state, _ in machine}
    assert states == set(machine.values())
    assert all(any(before != state for (before, _), after in machine.items() if after == state) for state in states)


def test_a_replacement_ends_in_whatever_state_and_asks_one_of_the_two_to_end_at_most_once() -> None:
    def follow(state: str, asked: tuple[str, ...]) -> None:
        assert len(set(asked)) == len(asked) <= 1
        reached.add(state)
        following = [after for (before, _), after in replacement.MACHINE.items() if before == state]
        for after, leaver in following:
            follow(after, (*asked, leaver) if leaver else asked)

    reached: set[str] = set()
    follow("starting", ())
    assert reached == set(get_args(replacement.State))
    assert {event for _, event in replacement.MACHINE} == set(get_args(replacement.Event))


# ---- Signals, and new code


@pytest.mark.parametrize(
    ("method", "count", "reloads"), [("fork", 2, 4), ("fork", 1, 2), ("spawn", 2, 2), ("forkserver", 2, 1)]
)
def test_reloads_under_load_fail_no_request_and_run_new_code(
    method: str, count: int, reloads: int, cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    preload = ["part"] if method == "forkserver" else None
    service = Service(cluster_program, tmp_path, count, start_method=method, preload=preload)
    before = descriptors(service.program)
    with service.load(4) as load:
        for version in range(1, reloads + 1):
            service.release(version)
            service.reload()
            assert versions(load) == {(version, version)}
            assert load.failures == []
    assert wait_until(lambda: descriptors(service.program) == before)
    released = [fact["version"] for fact in service.program.facts_of("ready", pid=service.program.pid)]
    assert released == (list(range(reloads + 1)) if method == "fork" else [0]), "the primary itself is new"
    service.end()


@pytest.mark.parametrize(
    ("way", "start"),
    [("run", "service.py"), ("serve", "service.py"), ("implicitly", "service.py"), ("run", "-m service")],
)
def test_the_primary_starts_anew_as_it_was_started(
    way: str, start: str, cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    service = Service(cluster_program, tmp_path, 1, way, start.split())
    service.release(1)
    service.reload()
    service.release(2)
    service.reload()
    assert ask(service.port) == (2, 2)
    service.end()
    told = [{**fact, "version": None} for fact in service.program.facts_of("ready")]
    assert len(told) == 3
    assert told[1:] == told[:-1]
    assert len(service.program.facts_of("over")) == (way != "implicitly")


BROKEN = {
    "a syntax error": ({"import asyncio": "?"}, "exited with status 1 before it listened"),
    "an end at once": ({"import asyncio": "raise SystemExit(5)"}, "exited with status 5 before it listened"),
    "an exception in the primary": (
        {"    tell_events()": "    raise ValueError('not today')"},
        "the new version has ended before it ran the cluster",
    ),
    "ends of workers that only the new primary starts": (
        {"ENV = None": 'ENV = {"BROKEN": "1"}'},
        "exited with status 3 before it",
    ),
    "an end of the primary": (
        {"    tell_events()": "    sys.exit(5)"},
        "the new version has ended before it ran the cluster",
    ),
    "an end after forks": (
        {'    tell("ready"': "    raise ValueError('not today')\n    tell(\"ready\""},
        "the new version has ended before it ran the cluster",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_version_leaves_the_old_workers_serving_and_is_told(
    broken: str, cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    changes, said = BROKEN[broken]
    service = Service(cluster_program, tmp_path, 2)
    service.program.expects_traceback = True
    with service.load(2, pause_s=0.005) as load:
        service.release(1, changes)
        service.fails_to_reload(said)
        assert wait_until(lambda: len(service.program.processes()) == 3)
        assert versions(load) == {(0, 0)}
        service.release(2)
        service.reload()
        assert versions(load) == {(2, 2)}
    assert load.failures == []
    service.end()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({'elif "IDLE" in os.environ': "elif True"}, "the new worker 3"),
        ({"ENV = None": 'ENV = {"IDLE": "1"}'}, "the new version did not listen on 127.0.0.1"),
    ],
)
def test_a_version_that_never_listens_leaves_the_old_workers_serving_and_is_told(
    changes: dict[str, str], said: str, cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    service = Service(cluster_program, tmp_path, 2)
    with service.load(2, pause_s=0.02) as load:
        service.release(1, changes)
        service.fails_to_reload(said, signal.SIGUSR1)
        assert versions(load) == {(0, 0)}
        service.release(2)
        service.reload()
        assert versions(load) == {(2, 2)}
    assert load.failures == []
    service.end()


def test_workers_that_listen_on_nothing_settle_side_by_side(cluster_program: Programs) -> None:
    program = cluster_program("idlers", 12, 10)
    program.wait_for_all(12, "online")
    before = set(program.processes())
    program.send_signal(signal.SIGUSR1)
    assert wait_until(lambda: program.stderr or set(program.processes()) & before == {program.pid}, 2 * PATIENCE_S)
    assert program.stderr == ""
    program.send_signal(signal.SIGTERM)
    program.finish()


def test_processes_of_a_new_images_own_have_the_default_signal_handlers(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    forks = """    tell_events()

    @cluster.on("online")
    def terminate_a_child(worker):
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            signal.pause()
        os.kill(child, signal.SIGTERM)
        tell("terminated", by=-os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    service = Service(cluster_program, tmp_path, 1)
    service.release(1, {"    tell_events()\n": forks})
    service.reload()
    assert service.program.wait_for("terminated")["by"] == signal.SIGTERM
    service.end()


def test_a_script_whose_path_is_no_text_is_served_and_its_reload_says_so(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    directory = tmp_path / os.fsdecode(b"\xff")
    directory.mkdir()
    service = Service(cluster_program, directory, 1, start=[str(directory / "service.py")])
    service.fails_to_reload("is not UTF-8")
    assert ask(service.port) == (0, 0)
    service.end()


def test_old_workers_are_ended_gracefully_when_the_new_script_has_failed(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    service = Service(cluster_program, tmp_path, 2)
    service.release(1, {"    tell_events()": "    sys.exit(5)"})
    service.fails_to_reload("the new version has ended")
    assert ask(service.port) == (0, 0)
    service.end(5)


SLOW = b"GET /slow HTTP/1.0\r\n\r\n"


@pytest.fixture
def impatient(tmp_path: pathlib.Path) -> dict[str, str]:
    """The environment of a program whose library kills at once who is to leave, unless the script says otherwise."""
    library = Library(tmp_path / "library")
    library.replace("settings.py", "graceful_timeout: float = 30.0", "graceful_timeout: float = 0.0")
    return library.env


def test_old_workers_finish_under_whatever_image_of_the_primary(
    impatient: dict[str, str], cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    service = Service(cluster_program, tmp_path, 2, env=impatient, graceful_timeout=600)
    with connect(service.port) as disconnected, connect(service.port) as replaced:
        for client in (disconnected, replaced):
            client.sendall(SLOW)
        service.program.wait_for_all(2, "busy")
        service.program.send_signal(signal.SIGUSR2)
        for last_of_image in (5, 8):
            service.program.send_signal(signal.SIGHUP)
            service.program.wait_for("listening", worker=last_of_image)
        answers = set()
        for client in (disconnected, replaced):
            client.sendall(b"\n")
            answers.add(read_all(client).rpartition(b"\r\n")[2])
    assert answers == {b"version 0.0 worker 1", b"version 0.0 worker 2"}
    service.end()


def test_a_worker_that_does_not_end_is_killed_in_time_by_the_next_image(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    service = Service(cluster_program, tmp_path, 2, graceful_timeout=1.0)
    with connect(service.port) as one, connect(service.port) as two:
        for client in (one, two):
            client.sendall(SLOW)
        service.program.wait_for_all(2, "busy")
        [youngest] = service.program.facts_of("busy", worker=2)
        asked_at = time.monotonic()
        service.program.send_signal(signal.SIGTTOU)
        service.program.send_signal(signal.SIGHUP)
        assert wait_until(lambda: not is_alive(youngest["pid"]))
        assert time.monotonic() - asked_at >= 1.0
        service.end()


def test_the_settings_outlive_a_script_that_has_failed(cluster_program: Programs, tmp_path: pathlib.Path) -> None:
    settings: dict[str, Any] = {"serialization": "json", "silent": True}
    if os.getuid() == 0:
        settings["gid"] = 65534
    service = Service(cluster_program, tmp_path, 1, env={"SHARED": ""}, **settings)
    service.program.expects_traceback = True
    service.release(1, {"    tell_events()": "    raise ValueError('not today')"})
    service.fails_to_reload("the new version has ended")
    service.release(2, {"import asyncio": "?"})
    service.fails_to_reload("exited with status 1 before it listened")
    assert "SyntaxError" in service.program.stderr, "nobody reads a pipe: silent alone is not in force"
    found = "(cluster.settings.serialization, cluster.scheduling_policy, os.getgid())"
    wanted = ("json", "none", settings.get("gid", os.getgid()))
    service.release(3, {'elif "IDLE" in os.environ': f"elif {found} != {wanted}"})
    service.reload()
    assert ask(service.port) == (3, 3)
    service.end()


def test_a_new_script_begins_with_the_default_settings(cluster_program: Programs, tmp_path: pathlib.Path) -> None:
    service = Service(cluster_program, tmp_path, 1, serialization="json", graceful_timeout=600)
    service.release(
        1, {"    cluster.setup_primary(**json.loads(sys.argv[3]))": '    tell("settings", all=vars(cluster.settings))'}
    )
    service.reload()
    assert service.program.wait_for("settings")["all"] == vars(Settings())
    service.end()


def test_a_signal_ends_the_cluster_gracefully_while_the_new_script_starts(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    service = Service(cluster_program, tmp_path, 1)
    service.release(1, {"    tell_events()": '    tell("starting")\n    signal.pause()'})
    service.program.send_signal(signal.SIGHUP)
    service.program.wait_for("starting")
    assert ask(service.port) == (0, 0)
    service.end()


@pytest.mark.parametrize("policy", ["rr", "none"])
def test_messages_listeners_and_counters_outlive_the_image_of_the_primary(
    policy: str, cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    path, port = tmp_path / "socket", free_port()
    program = cluster_program("takeover", path, port, env={"PYCLUSTER_SCHED_POLICY": policy})
    program.wait_for("serving")
    for image in (2, 3):
        before = set(program.processes())
        program.send_signal(signal.SIGHUP)
        assert program.wait_for("image", number=image)["workers"], "no old one is among them"

        def is_done(before: set[int] = before) -> bool:
            now = set(program.processes())
            serving = {fact["pid"] for fact in program.facts_of("serving")}
            return now & before == {program.pid} and len(now) == 2 and now - before <= serving

        assert wait_until(is_done), program
        newest = max(fact["worker"] for fact in program.facts_of("serving"))
        assert who_answers_in_words(path) == b"worker %d" % newest
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE_S)
            client.sendto(b"who?", ("127.0.0.1", port))
            assert client.recv(1000) == b"worker %d" % newest
    program.send_signal(signal.SIGTERM)
    assert program.finish().returncode == 0
    assert not path.exists()
    messages = program.facts_of("message")
    assert all(fact["whole"] for fact in messages)
    for worker in {fact["worker"] for fact in messages}:
        numbers = [fact["number"] for fact in messages if fact["worker"] == worker]
        assert numbers == list(range(len(numbers))), "none is lost between two images"
    assert any(fact["image"] == 2 for fact in messages if fact["worker"] == 1), (
        "an old worker is heard by the new image"
    )
    assert {fact["worker"] for fact in program.facts_of("exit")} <= {fact["worker"] for fact in messages}
    assert not program.facts_of("exit", worker=1), "what the script has not forked it does not see end"


def who_answers_in_words(path: pathlib.Path) -> bytes:
    with connect_to(str(path)) as client:
        return read_all(client)


def test_a_primary_that_cannot_execute_itself_anew_goes_on(cluster_program: Programs, tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "started here"
    directory.mkdir()
    service = Service(cluster_program, tmp_path, 1, "run", [str(tmp_path / "service.py")], directory)
    before = flags(service.program)
    directory.rmdir()
    service.release(1)
    service.fails_to_reload("the primary cannot execute itself anew: [Errno 2]")
    assert wait_until(lambda: flags(service.program) == before)
    assert ask(service.port) == (0, 0)
    directory.mkdir()
    service.reload()
    assert ask(service.port) == (1, 1)
    service.end()


def flags(program: Program) -> list[tuple[str, str]]:
    """What a primary has open, and how: close-on-exec, say."""
    found = []
    for fd in os.listdir(f"/proc/{program.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            information = pathlib.Path(f"/proc/{program.pid}/fdinfo/{fd}").read_text()
            kind = os.readlink(f"/proc/{program.pid}/fd/{fd}").partition(":")[0]
            found.append((kind, information.split("flags:")[1].split()[0]))
    return sorted(found)


def test_old_and_new_workers_need_room_beside_each_other(cluster_program: Programs, tmp_path: pathlib.Path) -> None:
    service = Service(cluster_program, tmp_path, 2, max_workers=4)
    service.fails_to_reload("no room for 2 new workers beside the 3 that run: settings.max_workers is 4; set it to 5")
    assert ask(service.port)[:2] == (0, 0)
    service.end()


def test_old_and_new_workers_need_no_more_room_than_is_said(cluster_program: Programs, tmp_path: pathlib.Path) -> None:
    service = Service(cluster_program, tmp_path, 2, max_workers=5)
    service.release(1)
    service.reload()
    assert ask(service.port)[:2] == (1, 1)
    service.end()


def test_a_new_image_may_run_under_gevent_from_its_first_moment_on(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("gevent")
    site = tmp_path / "site"
    site.mkdir()
    service = Service(cluster_program, tmp_path, 2, env={"PYTHONPATH": f"{site}:{TESTS}"})
    before = descriptors(service.program)
    with service.load(2) as load:
        (site / "sitecustomize.py").write_text("from gevent import monkey\n\nmonkey.patch_all()\n")
        service.release(1)
        service.reload()
        assert versions(load) == {(1, 1)}
    assert load.failures == []
    assert wait_until(lambda: descriptors(service.program) == before), "what it adopts needs no hub"
    service.fails_to_reload("gevent has patched subprocess")
    service.end()


def test_an_old_worker_does_not_wait_for_a_reader_of_its_output(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    pipes = ["inherit", "inherit", "pipe"]
    service = Service(cluster_program, tmp_path, 1, env={"NOISE": "30000"}, stdio=pipes)
    service.release(1, {"    tell_events()": "    sys.exit(5)"})
    service.fails_to_reload("the new version has ended")
    for _ in range(10):  # a pipe has room for 65536
        assert ask(service.port) == (0, 0)
    service.end(5)


def test_signals_that_come_between_two_images_find_their_handlers(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    service = Service(cluster_program, tmp_path, 1)
    service.program.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 3 * PATIENCE_S  # for two whole reloads
    images = 1
    while images < 3:
        assert time.monotonic() < deadline, service.program
        service.program.send_signal(signal.SIGUSR1)
        service.program.send_signal(signal.SIGHUP)
        images = len(service.program.facts_of("ready"))
        time.sleep(0.003)
    service.end()


# A signal comes when the new image begins to run the cluster, and has no handlers for that yet.
AS_RUN_BEGINS = """    from pycluster import takeover
    passing_signals_on = takeover.passing_signals_on
    takeover.passing_signals_on = lambda: signal.raise_signal(signal.SIGTERM) or passing_signals_on()
    if sys.argv[4] == "run":"""


def test_a_signal_that_comes_as_the_new_image_begins_to_run_ends_the_cluster_gracefully(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    service = Service(cluster_program, tmp_path, 1)
    service.release(1, {'    if sys.argv[4] == "run":': AS_RUN_BEGINS})
    service.program.send_signal(signal.SIGHUP)
    ended = service.program.finish()
    assert ended.returncode == 0
    assert ended.facts[-1]["event"] == "over", "run() has returned"
    assert [(fact["code"], fact["asked"]) for fact in ended.facts if fact["event"] == "exit"] == [(0, True)]


@pytest.mark.parametrize(("number", "before", "after"), [("SIGTTIN", 1, 2), ("SIGTTOU", 2, 1)])
def test_what_changes_the_number_of_workers_while_the_new_script_starts_is_done_when_it_runs(
    number: str, before: int, after: int, cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    service = Service(cluster_program, tmp_path, before)
    service.release(1, {"    tell_events()": f"    tell_events()\n    signal.raise_signal(signal.{number})"})
    service.count = after
    service.reload()
    assert ask(service.port) == (1, 1)
    service.end()


# A signal comes when the primary is about to execute itself.
AS_IT_IS_EXECUTED = {
    "while it answers signals still": (
        "once = [signal.SIGTERM]\n    sys.stdout.flush = lambda: once and signal.raise_signal(once.pop())"
    ),
    "for the next image": (
        "memfd_create = os.memfd_create\n"
        "    os.memfd_create = lambda *args: signal.raise_signal(signal.SIGTERM) or memfd_create(*args)"
    ),
}


@pytest.mark.parametrize("moment", AS_IT_IS_EXECUTED)
def test_a_signal_that_comes_as_the_primary_is_about_to_execute_itself_ends_the_cluster_in_time(
    moment: str, cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    service = Service(cluster_program, tmp_path, 1, graceful_timeout=0.3)
    run = '    if sys.argv[4] == "run":'
    service.release(1, {run: f"    {AS_IT_IS_EXECUTED[moment]}\n{run}"})
    service.reload()
    with connect(service.port) as client:
        client.sendall(SLOW)
        service.program.wait_for("busy")
        service.program.send_signal(signal.SIGHUP)
        ended = service.program.finish()
    assert ended.returncode == 0
    assert [fact["version"] for fact in ended.facts if fact["event"] == "ready"] == [0, 1]
    assert ended.stderr == "", "that the reload has stopped is not told"


def test_sigttin_and_sigttou_change_the_number_of_workers_by_one(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    service = Service(cluster_program, tmp_path, 1, start_method="spawn")
    program = service.program
    program.send_signal(signal.SIGTTIN)
    program.wait_for("listening", worker=2)
    program.send_signal(signal.SIGTTIN)
    program.wait_for("listening", worker=3)
    program.send_signal(signal.SIGTTOU)
    assert program.wait_for("exit")["worker"] == 3
    program.send_signal(signal.SIGTTOU)
    program.wait_for("exit", worker=2)
    program.send_signal(signal.SIGTTOU)
    service.reload()
    ends = program.wait_for_all(3, "exit")
    assert [fact["worker"] for fact in ends] == [3, 2, 1], "the last one stays"
    service.end()
