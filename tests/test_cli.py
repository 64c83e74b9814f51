"""The command `pycluster`: `run`, `serve`, what it says, and its exit statuses."""

import contextlib
import functools
import http.client
import importlib.util
import json
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness import (
    PATIENCE_S,
    PROGRAMS,
    SAYS_WITHIN_S,
    Fact,
    Program,
    Programs,
    connect,
    free_port,
    is_listening,
    read_all,
    request,
    wait_until,
)
from pycluster.processors import usable_processors
from pycluster.serving import interface_of

ROOT = PROGRAMS.parent.parent
GET = b"GET / HTTP/1.0\r\n\r\n"
ESCAPE = "\x1b"

Start = Callable[..., Program]

missing = [name for name in ("typer", "rich", "uvicorn", "waitress") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs pycluster[cli]; not installed: {', '.join(missing)}")


@pytest.fixture
def command(cluster_program: Programs) -> Start:
    """Start `pycluster` with arguments; with JSON logs unless told otherwise."""

    def start(name: str, *args: object, json_logs: bool = True, **options: Any) -> Program:
        flags = ["--json-logs"] if json_logs else []
        return cluster_program.add(Program("-m", "pycluster", name, *flags, *map(str, args), **options))

    return start


def logged(program: Program, event: str, **fields: object) -> list[Fact]:
    """What `--json-logs` has said by now; on a terminal that is among the facts."""
    facts = program.facts
    for line in program.stderr.splitlines():
        _, begin, rest = line.partition('{"time"')  # a worker's traceback may stand before it, and have no end yet
        with contextlib.suppress(ValueError):
            facts.append(json.loads(begin + rest))
    return [fact for fact in facts if fact["event"] == event and fields.items() <= fact.items()]


def wait_for(program: Program, event: str, count: int = 1, **fields: object) -> list[Fact]:
    """Wait until it has been said so many times."""

    def enough() -> bool:
        return len(logged(program, event, **fields)) >= count

    wait_until(lambda: enough() or program.process.poll() is not None)
    assert wait_until(enough, 1.0), f"no {count} × {event!r} with {fields}\n{program}"
    return logged(program, event, **fields)


def ends_well(program: Program, workers: int, number: int = signal.SIGTERM) -> None:
    """Ask for the end: all workers end with status 0, and so does the primary."""
    program.send_signal(number)
    ended = program.finish()
    assert ended.returncode == 0, program
    ends = [(fact["code"], fact["asked"]) for fact in logged(program, "stopped")]
    assert ends == [(0, True)] * workers, str(program)


def answers_of(port: int, count: int) -> set[bytes]:
    """The different answers, asked for until there are so many."""
    answers: set[bytes] = set()

    def ask() -> bool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
            connection.request("GET", "/")
            answers.add(connection.getresponse().read())
        return len(answers) >= count

    wait_until(ask)
    return answers


# ---- run


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_single_process_server_runs_on_n_workers(command: Start, method: str, number: int) -> None:
    port = free_port()
    program = command("run", "-w", 2, "--start-method", method, PROGRAMS / "plain_server.py", port)
    [starting] = wait_for(program, "starting")
    assert (starting["pid"], starting["workers"], starting["start_method"]) == (program.pid, 2, method)
    listening = wait_for(program, "listening", 2, address=f"127.0.0.1:{port}")
    assert answers_of(port, 2) == {b"process %d\n" % fact["pid"] for fact in listening}
    assert {fact["pid"] for fact in wait_for(program, "started", 2)} == {fact["pid"] for fact in listening}
    ends_well(program, 2, number)
    assert logged(program, "ended") == [logged(program, "ended", status=0)[0]]


def test_the_copies_of_the_primary_have_nothing_of_the_command_but_its_options(command: Start) -> None:
    program = command("run", "-w", 1, PROGRAMS / "plain_server.py", free_port())
    assert program.wait_for("serves")["modules"] == []
    wait_for(program, "listening")
    ends_well(program, 1)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_script_is_run_as_python_runs_it(command: Start, cluster_program: Programs, method: str) -> None:
    args = ["one", "--two", "-w", "3", "-m"]
    plain = cluster_program.add(Program(PROGRAMS / "shown.py", *args)).wait_for("shown")
    program = command("run", "-w", 1, "--start-method", method, PROGRAMS / "shown.py", *args)
    shown = program.wait_for("shown")
    assert shown == plain
    assert program.finish().returncode == 0, "a script that ends by itself has done its work"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_module_is_run_as_python_m_runs_it(
    command: Start, cluster_program: Programs, method: str, tmp_path: pathlib.Path
) -> None:
    package = tmp_path / "some" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text((PROGRAMS / "shown.py").read_text())
    args = ["one", "--two", "-w", "3", "-m"]
    for name in ("some.package", "some.package.__main__"):
        plain = cluster_program.add(Program("-m", name, *args, cwd=tmp_path)).wait_for("shown")
        program = command("run", "-w", 1, "--start-method", method, "-m", name, *args, cwd=tmp_path)
        assert program.wait_for("shown") == plain
        assert program.finish().returncode == 0


def test_auto_starts_a_worker_for_each_usable_processor(command: Start) -> None:
    program = command("run", PROGRAMS / "shown.py")
    assert wait_for(program, "starting")[0]["workers"] == usable_processors()
    assert program.finish().returncode == 0
    assert len(program.facts_of("shown")) == usable_processors()


@pytest.mark.parametrize("policy", ["rr", "none"])
def test_the_policy_is_said_and_in_force(command: Start, policy: str) -> None:
    port = free_port()
    program = command("run", "-w", 1, "--policy", policy, PROGRAMS / "plain_server.py", port)
    assert wait_for(program, "starting")[0]["policy"] == policy
    wait_for(program, "listening")
    assert request(port, GET)
    ends_well(program, 1)


# ---- Crashes


def test_a_killed_worker_is_replaced_and_it_is_said_why_it_died(command: Start) -> None:
    port = free_port()
    program = command("run", "-w", 2, PROGRAMS / "plain_server.py", port)
    first, second = wait_for(program, "listening", 2)
    os.kill(first["pid"], signal.SIGKILL)
    [died] = wait_for(program, "died")
    assert (died["worker"], died["code"], died["signal"], died["asked"]) == (first["worker"], None, "SIGKILL", False)
    assert re.fullmatch(
        rf"worker {first['worker']} \(pid {first['pid']}\) was killed by SIGKILL after [\d.]+ s; "
        r"another one starts (now|in 0\.1 s)",
        died["text"],
    )
    third = wait_for(program, "listening", 3)[2]
    assert answers_of(port, 2) == {b"process %d\n" % fact["pid"] for fact in (second, third)}
    ends_well(program, 2)


def test_the_pauses_before_a_worker_that_crashes_in_a_loop_double(command: Start) -> None:
    program = command("run", "-w", 1, PROGRAMS / "ends_badly.py", 7, free_port())
    died = wait_for(program, "died", 6)
    assert [(fact["code"], fact["pause_s"]) for fact in died] == [(7, 0.1 * 2**crash) for crash in range(6)]
    # Nothing runs now, for 3.2 s: the stop must not wait for the pause to end with another worker.
    program.send_signal(signal.SIGTERM)
    assert program.finish().returncode == 0
    assert len(logged(program, "started")) == len(logged(program, "died")) == 6


def test_when_no_worker_ever_comes_up_it_gives_up_with_a_status_of_its_own(command: Start) -> None:
    program = command("run", "-w", 2, PROGRAMS / "ends_badly.py", 1)
    assert program.finish().returncode == 3
    assert logged(program, "given-up", tries=3)
    assert logged(program, "ended", status=3)


def test_each_worker_has_one_try_before_it_gives_up(command: Start) -> None:
    program = command("run", "-w", 5, PROGRAMS / "ends_badly.py", 1)
    assert program.finish().returncode == 3
    assert logged(program, "given-up", tries=5)


def test_without_respawn_a_crash_is_final(command: Start) -> None:
    port = free_port()
    program = command("run", "-w", 2, "--no-respawn", PROGRAMS / "plain_server.py", port)
    for fact in wait_for(program, "listening", 2):
        os.kill(fact["pid"], signal.SIGKILL)
    assert program.finish().returncode == 1
    assert [fact["signal"] for fact in logged(program, "died")] == ["SIGKILL"] * 2
    assert len(logged(program, "started")) == 2


def test_workers_that_end_with_status_0_have_done_their_work(command: Start) -> None:
    program = command("run", "-w", 2, PROGRAMS / "ends_badly.py", 0)
    assert program.finish().returncode == 0
    assert [fact["asked"] for fact in logged(program, "stopped")] == [False] * 2
    assert len(logged(program, "started")) == 2


# ---- serve


EXAMPLES = {
    "fastapi": ("serve", "fastapi_app:app"),
    "flask": ("serve", "flask_app:app"),
    "django": ("serve", "django_wsgi:app"),
    "django.core.asgi": ("serve", "django_asgi:app"),
    "aiohttp": ("run", "aiohttp_app.py"),
}


@pytest.mark.parametrize("package", EXAMPLES)
def test_the_example_is_served_by_all_workers(command: Start, package: str) -> None:
    pytest.importorskip(package.partition(".")[0])
    name, what = EXAMPLES[package]
    port = free_port()
    args = [what, port] if name == "run" else ["--port", port, what]
    program = command(name, "-w", 2, *args, cwd=ROOT / "examples")
    listening = wait_for(program, "listening", 2, address=f"127.0.0.1:{port}")
    answers = answers_of(port, 2)
    assert {json.loads(answer)["worker"] for answer in answers} == {fact["pid"] for fact in listening}
    ends_well(program, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("app", ["asgi --loop asyncio", "asgi --loop uvloop", "wsgi"])
def test_a_stop_finishes_what_is_asked_and_closes_what_is_idle(
    command: Start, app: str, number: int, tmp_path: pathlib.Path
) -> None:
    name, *options = app.split()
    if "uvloop" in options:
        pytest.importorskip("uvloop")
    port = free_port()
    program = command("serve", "-w", 2, "--port", port, *options, f"programs.web_apps:{name}")
    wait_for(program, "listening", 2)
    idle = [http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S) for _ in range(2)]
    for connection in idle:
        connection.request("GET", "/")
        assert b"worker" in connection.getresponse().read()
    with connect(port) as asking:
        asking.sendall(b"GET /wait?%s HTTP/1.1\r\nHost: a\r\n\r\n" % bytes(tmp_path / "go"))
        program.wait_for("busy")
        program.send_signal(number)
        assert wait_until(lambda: not is_listening(port))
        for connection in idle:
            assert connection.sock.recv(1) == b"", "the server has closed it"
            connection.close()
        assert not logged(program, "ended")
        (tmp_path / "go").touch()
        answer = b""
        while chunk := asking.recv(1000):
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"worker" in answer
    assert program.finish().returncode == 0
    assert [(fact["code"], fact["asked"]) for fact in logged(program, "stopped")] == [(0, True)] * 2
    if name == "asgi":
        assert {fact["loop"] for fact in program.facts_of("up")} == {options[1]}
        assert len(program.facts_of("down")) == 2, "the lifespan ends orderly"


def test_a_script_that_calls_uvicorn_ends_with_its_lifespan(command: Start) -> None:
    port = free_port()
    program = command("run", "-w", 2, PROGRAMS / "uvicorn_script.py", port)
    wait_for(program, "listening", 2)
    assert answers_of(port, 2) == {b"worker 1\n", b"worker 2\n"}
    ends_well(program, 2, signal.SIGINT)
    assert len(program.facts_of("down")) == 2


def test_a_worker_that_is_told_to_end_alone_leaves_no_connection_behind(command: Start) -> None:
    """A worker under uvicorn that gets SIGTERM finishes as it does alone, and is replaced."""
    port = free_port()
    program = command("serve", "-w", 2, "--port", port, "programs.web_apps:asgi")
    first = wait_for(program, "listening", 2)[0]
    os.kill(first["pid"], signal.SIGTERM)
    assert wait_for(program, "died")[0]["signal"] == "SIGTERM"
    assert len(program.wait_for_all(1, "down")) == 1
    wait_for(program, "listening", 3)
    ends_well(program, 2)


def test_a_factory_makes_the_app(command: Start) -> None:
    port = free_port()
    program = command("serve", "-w", 1, "--port", port, "--factory", "programs.web_apps:make_asgi")
    wait_for(program, "listening")
    assert request(port, GET).endswith(b"worker 1\n")
    ends_well(program, 1)


@pytest.mark.parametrize("app", ["asgi --loop asyncio", "asgi --loop uvloop", "wsgi"])
def test_an_app_is_served_on_a_unix_socket(command: Start, app: str, tmp_path: pathlib.Path) -> None:
    name, *options = app.split()
    if "uvloop" in options:
        pytest.importorskip("uvloop")
    program = command("serve", "-w", 2, "--uds", "app.sock", *options, f"programs.web_apps:{name}", cwd=tmp_path)
    path = str(tmp_path / "app.sock")
    wait_for(program, "listening", 2, address=path)
    answers: set[bytes] = set()

    def ask() -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(path)
            sock.sendall(GET)
            answers.add(read_all(sock).rpartition(b"\r\n")[2])
        return answers == {b"worker 1\n", b"worker 2\n"}

    assert wait_until(ask)
    ends_well(program, 2)
    assert not os.path.exists(path)


def test_a_handler_that_exits_ends_uvicorn_with_its_status(command: Start) -> None:
    port = free_port()
    program = command("serve", "-w", 1, "--port", port, "--no-respawn", "programs.web_apps:asgi")
    wait_for(program, "listening")
    request(port, b"GET /exit HTTP/1.0\r\n\r\n")
    assert program.finish().returncode == 1
    assert [fact["code"] for fact in logged(program, "died")] == [5]
    assert len(program.facts_of("down")) == 1


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (["programs.nothing_there:app"], "there is no module 'programs.nothing_there' for programs.nothing_there:app"),
        (["programs.web_apps:no.app"], "there is no 'no' in <module 'programs.web_apps'"),
        (["programs.web_apps:nothing"], "programs.web_apps:nothing is neither an ASGI nor a WSGI app: 17"),
    ],
)
def test_an_app_that_is_not_there_is_said_in_one_line(command: Start, what: list[str], said: str) -> None:
    program = command("serve", "-w", 1, "--port", free_port(), *what)
    assert program.finish().returncode == 3
    lines = [line for line in program.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 3
    assert all(said in line for line in lines), program


def test_an_app_that_fails_shows_its_traceback(command: Start) -> None:
    program = command(
        "serve", "-w", 1, "--port", free_port(), "--factory", "programs.web_apps:broken", expects_traceback=True
    )
    assert program.finish().returncode == 3
    assert "ValueError: no app today" in program.stderr
    assert "/pycluster/" not in program.stderr, "what the library does is not shown"


@pytest.mark.parametrize("app", ["asgi", "wsgi"])
def test_an_address_that_is_taken_is_said_in_one_line(command: Start, app: str) -> None:
    port = free_port()
    program = command("serve", "-w", 1, "--port", port, "programs.web_apps:asgi")
    wait_for(program, "listening")
    other = command("serve", "-w", 1, "--port", port, f"programs.web_apps:{app}")
    assert other.finish().returncode == 3
    lines = [line for line in other.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 3
    assert all("address already in use" in line.lower() for line in lines), other
    ends_well(program, 1)


# ---- Reload


def release(path: pathlib.Path, version: int, body: str = "") -> None:
    """Write a new version of a server, at once for whoever reads it."""
    source = (PROGRAMS / "plain_server.py").read_text()
    new = path.with_suffix(".new")
    # Of another size each time: Python takes what it has compiled for up to date when size and second are the same.
    new.write_text(f"{body}\n" + source.replace('b"process', f'b"version {version} process') + "#" * version)
    new.rename(path)


def versions_of(port: int) -> bytes:
    return request(port, GET).rpartition(b"\r\n")[2].split()[1]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_change_reloads_and_a_broken_one_does_not(command: Start, method: str, tmp_path: pathlib.Path) -> None:
    script, port = tmp_path / "main.py", free_port()
    release(script, 1)
    options = ["-w", 2, "--reload-on-change", "--start-method", method]
    program = command("run", *options, script, port, expects_traceback=True)
    wait_for(program, "watching")
    wait_for(program, "listening", 2)
    release(script, 2)
    assert wait_for(program, "reloading")[0]["text"] == "main.py changed: reloading"
    assert wait_for(program, "reloaded")[0]["workers"] == 2
    assert {versions_of(port) for _ in range(4)} == {b"2"}
    release(script, 3, "?")
    [failed] = wait_for(program, "failed")
    assert f"exited with status 1 before it listened on 127.0.0.1:{port}" in failed["text"]
    assert {versions_of(port) for _ in range(4)} == {b"2"}
    (tmp_path / "module.py").touch()
    (tmp_path / "notes.txt").touch()
    release(script, 4)
    wait_for(program, "reloaded", 2)
    assert {versions_of(port) for _ in range(4)} == {b"4"}
    assert not logged(program, "died"), "the end of a new worker that was not up is no crash"
    program.send_signal(signal.SIGTERM)
    assert program.finish().returncode == 0


def only_the_watcher_is_left(program: Program) -> None:
    """Wait for the end of workers that have not read their script yet: they would read the next version of it."""
    assert wait_until(lambda: len(program.processes()) == 2), program


def test_a_script_that_never_comes_up_is_tried_again_when_it_has_changed(
    command: Start, tmp_path: pathlib.Path
) -> None:
    script, port = tmp_path / "main.py", free_port()
    release(script, 1, "?")
    program = command("run", "-w", 2, "--reload-on-change", script, port, expects_traceback=True)
    wait_for(program, "given-up")
    wait_for(program, "watching")
    only_the_watcher_is_left(program)
    release(script, 2)
    wait_for(program, "listening", 2)
    wait_for(program, "reloaded")
    assert {versions_of(port) for _ in range(4)} == {b"2"}
    ends_well(program, 2)


def test_who_waits_to_be_started_when_it_is_given_up_is_not(command: Start, tmp_path: pathlib.Path) -> None:
    script, port = tmp_path / "main.py", free_port()
    # The first place is to be taken once more 0.3 s after the start; the crash in the second one is one too many.
    late = "import sys, time, pycluster; time.sleep(0.15 * pycluster.cluster.worker.slot); sys.exit(1)"
    release(script, 1, late)
    program = command("run", "-w", 2, "--reload-on-change", script, port)
    [given_up] = wait_for(program, "given-up")
    wait_for(program, "watching")
    only_the_watcher_is_left(program)
    release(script, 2)
    wait_for(program, "listening", 2)
    wait_for(program, "reloaded")
    ends_well(program, 2)
    # On a slow machine the second place may be late, and nobody waits then.
    assert len([fact for fact in logged(program, "started") if fact["time"] > given_up["time"]]) == 2


def test_sighup_reloads_and_what_it_has_started_is_looked_after(command: Start) -> None:
    port = free_port()
    program = command("run", "-w", 2, PROGRAMS / "plain_server.py", port)
    wait_for(program, "listening", 2)
    program.send_signal(signal.SIGHUP)
    assert wait_for(program, "reloading")[0]["text"] == "SIGHUP: reloading"
    wait_for(program, "reloaded", workers=2)
    third = wait_for(program, "listening", 4)[2]
    assert third["worker"] == 3
    os.kill(third["pid"], signal.SIGKILL)
    wait_for(program, "died", worker=3)
    wait_for(program, "listening", worker=5)
    program.send_signal(signal.SIGTTIN)
    os.kill(wait_for(program, "listening", worker=6)[0]["pid"], signal.SIGKILL)
    wait_for(program, "listening", worker=7)
    ends_well(program, 5)


def test_the_watcher_ends_with_a_primary_that_is_killed(command: Start, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "main.py"
    release(script, 1)
    program = command("run", "-w", 1, "--reload-on-change", script, free_port())
    wait_for(program, "watching")
    wait_for(program, "listening")
    program.process.kill()
    program.process.wait()
    assert not program.wait_until_alone()


def test_the_end_of_the_watcher_is_said(command: Start, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "main.py"
    release(script, 1)
    program = command("run", "-w", 1, "--reload-on-change", script, free_port())
    wait_for(program, "watching")
    wait_for(program, "listening")
    children = pathlib.Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    [watcher] = {int(pid) for pid in children} - {fact["pid"] for fact in logged(program, "listening")}
    os.kill(watcher, signal.SIGKILL)
    assert wait_for(program, "failed")[0]["text"] == "changes are not seen any more: the watcher died"
    ends_well(program, 1)


class KeepAlive(threading.Thread):
    """A client that keeps its connection, and asks again on another one when the server has closed an idle one.

    A new one, on which it has said nothing within SAYS_WITHIN_S, may have seemed to be idle, too.
    """

    def __init__(self, port: int) -> None:
        super().__init__()
        self.answers: list[bytes] = []
        self.failures: list[str] = []
        self.stop = threading.Event()
        self._said_after_s = 0.0
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)

    def run(self) -> None:
        while not self.stop.is_set():
            reused = self._connection.sock is not None
            try:
                self.answers.append(self._ask())
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as failure:
                self._connection.close()
                if not reused and self._said_after_s < SAYS_WITHIN_S:
                    self.failures.append(repr(failure))
            except Exception as failure:
                self._connection.close()
                self.failures.append(repr(failure))
        self._connection.close()

    def _ask(self) -> bytes:
        began = time.monotonic()
        try:
            self._connection.request("GET", "/")
        finally:
            self._said_after_s = time.monotonic() - began
        response = self._connection.getresponse()
        assert response.status == 200
        return response.read()


def test_the_last_of_several_reloads_leaves_no_worker_that_is_older(command: Start, tmp_path: pathlib.Path) -> None:
    port = free_port()
    program = command("serve", "-w", 2, "--start-method", "spawn", "--port", port, "programs.web_apps:wsgi")
    wait_for(program, "listening", 2)
    with contextlib.ExitStack() as clients:
        ends: dict[int, pathlib.Path] = {}
        asked = 0
        while len(ends) < 2:  # each old worker is to finish a request first
            asked += 1
            client = clients.enter_context(connect(port))
            end = tmp_path / str(asked)
            client.sendall(b"GET /wait?%s HTTP/1.1\r\nHost: a\r\n\r\n" % bytes(end))
            if ends.setdefault(program.wait_for_all(asked, "busy")[-1]["worker"], end) != end:
                end.touch()  # it has one already: the machine kept the other one from accepting
        program.send_signal(signal.SIGHUP)
        for count in (1, 2):
            wait_for(program, "listening", worker=2 + count)  # in the place of the one that finishes
            program.send_signal(signal.SIGHUP)
            wait_for(program, "reloading", 1 + count)
            ends[count].touch()
    wait_for(program, "reloaded", 2)
    assert {fact["worker"] for fact in logged(program, "stopped")} == {1, 2, 3, 4}
    ends_well(program, 6)


@pytest.mark.parametrize("app", ["asgi", "wsgi"])
def test_reloads_fail_no_request_on_connections_that_are_kept(command: Start, app: str) -> None:
    port = free_port()
    program = command("serve", "-w", 2, "--port", port, f"programs.web_apps:{app}")
    wait_for(program, "listening", 2)
    clients = [KeepAlive(port) for _ in range(4)]
    for client in clients:
        client.start()
    for count in range(1, 4):
        program.send_signal(signal.SIGHUP)
        wait_for(program, "reloaded", count)
        already = sum(len(client.answers) for client in clients)
        assert wait_until(lambda already=already: sum(len(client.answers) for client in clients) > already + 40)  # type: ignore[misc]
    for client in clients:
        client.stop.set()
    for client in clients:
        client.join()
    assert [client.failures for client in clients] == [[]] * 4
    ends_well(program, 8)


# ---- ASGI or WSGI


class Asgi3:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Asgi3Class:
    def __init__(self, scope: Any, receive: Any, send: Any) -> None: ...

    def __await__(self) -> Iterator[None]:
        yield


class Asgi2:
    def __init__(self, scope: Any) -> None: ...

    async def __call__(self, receive: Any, send: Any) -> None: ...


class Wsgi:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []

    async def method(self, scope: Any, receive: Any, send: Any) -> None: ...


class WsgiClass:
    def __init__(self, environ: Any, start_response: Any) -> None: ...

    def __iter__(self) -> Iterator[bytes]:
        yield b""


class Wrapped:
    """As Sentry's middleware: the call is an attribute of the instance."""

    __slots__ = ("__call__",)

    def __init__(self, function: Any) -> None:
        self.__call__ = function


async def asgi3(scope: Any, receive: Any, send: Any) -> None: ...


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    return []


@functools.wraps(asgi3)
def decorated_asgi3(*args: Any) -> Any:
    return asgi3(*args)


@functools.wraps(wsgi)
def decorated_wsgi(*args: Any) -> Any:
    return wsgi(*args)


@pytest.mark.parametrize(
    ("app", "interface"),
    [
        (asgi3, "asgi3"),
        (Asgi3(), "asgi3"),
        (Asgi3Class, "asgi3"),
        (Asgi3().__call__, "asgi3"),
        (Wsgi().method, "asgi3"),
        (functools.partial(asgi3), "asgi3"),
        (lambda scope, receive, send: asgi3(scope, receive, send), "asgi3"),
        (decorated_asgi3, "asgi3"),
        (Wrapped(asgi3), "asgi3"),
        (Asgi2, "asgi2"),
        (wsgi, "wsgi"),
        (Wsgi(), "wsgi"),
        (WsgiClass, "wsgi"),
        (functools.partial(wsgi), "wsgi"),
        (decorated_wsgi, "wsgi"),
        (lambda environ, start_response, more=None: [], "wsgi"),
        (17, None),
        (lambda: None, None),
        (lambda one, two, three, four: None, None),
    ],
)
def test_asgi_and_wsgi_are_told_apart_by_how_they_want_to_be_called(app: Any, interface: str | None) -> None:
    assert interface_of(app) == interface


# ---- What it says, and where


def test_on_a_terminal_it_is_coloured_and_ctrl_c_ends_it_quietly(command: Start) -> None:
    port = free_port()
    program = command(
        "serve", "-w", 2, "--port", port, "programs.web_apps:wsgi", json_logs=False, terminal=True, env=TERMINAL
    )
    for worker in (1, 2):
        program.wait_for_line(rf"{ESCAPE}\[32mworker {worker} \(pid \d+\) listens on 127\.0\.0\.1:{port}{ESCAPE}\[0m")
    program.type(b"\x03")
    assert program.finish().returncode == 0
    lines = [re.sub(rf"{ESCAPE}\[[\d;]*m", "", line).replace("^C", "") for line in program.lines]
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d (primary|worker|stopping|no worker).*", line) for line in lines), lines


TERMINAL = {"TERM": "xterm-256color", "NO_COLOR": "", "COLUMNS": "40"}


def test_a_line_is_not_broken_on_a_narrow_terminal(command: Start) -> None:
    program = command("run", "-w", 1, PROGRAMS / "shown.py", json_logs=False, terminal=True, env=TERMINAL)
    assert program.finish().returncode == 0
    assert program.wait_for_line(rf"primary {program.pid} runs {re.escape(str(PROGRAMS))}/shown\.py on 1 worker$")


def test_in_a_pipe_it_is_plain_and_standard_output_is_the_workers(command: Start) -> None:
    program = command("run", "-w", 1, PROGRAMS / "shown.py", json_logs=False, env={"FORCE_COLOR": "1"})
    assert program.finish().returncode == 0
    assert program.lines == []
    assert len(program.facts) == 1
    said = program.stderr.replace(str(PROGRAMS), "PROGRAMS")  # there may be digits in it
    assert [re.sub(r"[\d:]{8} |\d+", "", line) for line in said.splitlines()] == [
        "primary  runs PROGRAMS/shown.py on  worker",
        "worker  (pid ) started",
        "worker  (pid ) exited with status ",
        "no worker is left",
    ]


def test_json_logs_are_json_on_a_terminal_too(command: Start) -> None:
    program = command("run", "-w", 1, PROGRAMS / "ends_badly.py", 0, terminal=True, env=TERMINAL)
    assert program.finish().returncode == 0
    assert program.lines == []
    assert [fact["event"] for fact in program.facts] == ["starting", "started", "stopped", "ended"]
    assert all(re.fullmatch(r"[\d-]{10}T[\d:.]{12}\+00:00", fact["time"]) for fact in program.facts)


def test_a_second_ctrl_c_kills_at_once(command: Start, tmp_path: pathlib.Path) -> None:
    port = free_port()
    program = command("serve", "-w", 1, "--port", port, "programs.web_apps:wsgi", terminal=True)
    wait_for(program, "listening")
    with connect(port) as asking:
        asking.sendall(b"GET /wait?%s HTTP/1.1\r\nHost: a\r\n\r\n" % bytes(tmp_path / "never"))
        program.wait_for("busy")
        program.type(b"\x03")
        wait_for(program, "stopping")
        program.type(b"\x03")
        assert program.finish().returncode == 0
    assert [fact["signal"] for fact in logged(program, "stopped")] == ["SIGKILL"]


# ---- Wrong usage


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run"], "Missing argument"),
        (["run", "nothing_there.py"], "there is no 'nothing_there.py' here"),
        (["run", "-w", "0", "setup.py"], "takes auto, or 1 to 1000, not '0'"),
        (["run", "-w", "many", "setup.py"], "takes auto, or 1 to 1000, not 'many'"),
        (["run", "--policy", "fair", "setup.py"], "--policy"),
        (["serve", "main"], "takes a module and an app in it, such as main:app, not 'main'"),
        (["serve", "--port", "0", "main:app"], "--port"),
    ],
)
def test_wrong_usage_is_said_and_has_status_2(args: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner  # only here: it may be missing, and then these tests are skipped

    from pycluster.cli import app

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 200)
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert said in result.stderr


def test_the_program_says_wrong_usage_on_standard_error(cluster_program: Programs) -> None:
    ended = cluster_program.add(Program("-m", "pycluster", "run")).finish()
    assert ended.returncode == 2
    assert "Missing argument" in ended.stderr


def test_without_the_extra_it_says_what_to_install(cluster_program: Programs) -> None:
    code = "import sys; sys.modules['typer'] = None; from pycluster.__main__ import main; main()"
    ended = cluster_program.add(Program("-c", code, "run", "a.py")).finish()
    assert ended.returncode == 1
    assert ended.stderr == "pycluster: typer is not installed: pip install 'pycluster[cli]'\n"


def test_the_command_is_installed() -> None:
    assert os.access(pathlib.Path(sys.executable).parent / "pycluster", os.X_OK)
