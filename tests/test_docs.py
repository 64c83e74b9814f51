"""The documents: their programs run, their tables hold, their reference is up to date.

A block marked `python` or `js` is a program, with its name in a comment above it. `RUNS` has a function of that name
that watches what it does; programs of one name do the same in both languages. `py` marks parts of programs.
"""

import ast
import functools
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest

from harness import Program, Programs, connect, free_port, request, wait_until
from pycluster.worker import LIFE, STATES
from test_servers import SERVERS

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NODE = shutil.which("node")
GET = b"GET / HTTP/1.0\r\n\r\n"
BLOCK = re.compile(r"(?:<!-- program: (\w+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    name: str
    language: str
    text: str


BLOCKS = [Block(page.name, *found) for page in PAGES for found in BLOCK.findall(page.read_text())]
SHOWN = [block for block in BLOCKS if block.language in ("python", "js")]


# ---- Programs


def ask(port: int, payload: bytes = GET) -> bytes:
    """What the server says, once it is there."""
    answers: list[bytes] = []

    def answered() -> bool:
        try:
            answers.append(request(port, payload))
        except ConnectionError:
            return False
        return bool(answers[-1])

    assert wait_until(answered)
    return answers[-1]


def connected(port: int) -> socket.socket:
    """A connection, once the server is there."""
    clients: list[socket.socket] = []

    def is_there() -> bool:
        try:
            clients.append(connect(port))
        except ConnectionRefusedError:
            return False
        return True

    assert wait_until(is_there)
    return clients[0]


def end(program: Program) -> None:
    """End a service as its user would."""
    program.send_signal(signal.SIGTERM)
    program.finish()


def run_hello(program: Program, port: int) -> None:
    assert b"Hello from worker" in ask(port)
    end(program)


def run_respawn(program: Program, port: int) -> None:
    assert b"Hello from worker" in ask(port)
    request(port, b"GET /crash HTTP/1.0\r\n\r\n")
    program.wait_for_line(r"worker \d ended with SIGABRT")
    while b"worker 3 in slot" not in (answer := ask(port)):
        assert b"Hello from worker" in answer
    end(program)
    assert "was killed by SIGABRT; another one starts in 0.1 s" in program.stderr
    assert [line for line in program.lines if line.endswith("as asked")]


def run_stop(program: Program, port: int) -> None:
    assert ask(port).endswith(b"Hello\n")
    end(program)
    *away, last = program.lines
    assert last == "all workers are gone"
    # One that has answered was in its `try`; the other one may have had no time to get there.
    assert set(away) in ({f"worker {n} has put its things away" for n in numbers} for numbers in ((1, 2), (1,), (2,)))


def run_asyncio(program: Program, port: int) -> None:
    program.wait_for_line("2 workers, 0 connections open")
    with connected(port) as client:
        client.sendall(b"hello\n")
        assert client.recv(16) == b"hello\n"
    end(program)


def run_messages(program: Program, port: int) -> None:
    program.finish()
    for worker in ("1", "2"):
        assert f"worker {worker} says {{'question': 21}}" in program.lines
        assert f"worker {worker} hears {{'answer': 42}}" in program.lines


def run_handles(program: Program, port: int) -> None:
    answers = {ask(port) for _ in range(3)}
    [answer] = answers
    assert re.fullmatch(rb"worker [12] for 127.0.0.1\n", answer)
    end(program)


def run_counters(program: Program, port: int) -> None:
    program.finish()
    assert program.lines == ["4000 in all"]


def run_preload(program: Program, port: int) -> None:
    assert ask(port).endswith(b"Hello\n")
    end(program)


def run_service(program: Program, port: int) -> None:
    assert b"Hello from worker" in ask(port)
    request(port, b"GET /crash HTTP/1.0\r\n\r\n")
    program.wait_for_line(r"worker \d ended with SIGABRT")
    assert b"Hello from worker" in ask(port)
    program.send_signal(signal.SIGUSR1)
    program.wait_for_line(r"worker \d: listening, \d accepted")
    program.wait_for_line(r"^\d requests, 1 crashes")
    end(program)
    assert re.fullmatch(r"\d requests, 1 crashes", program.lines[-1])


def run_replace(program: Program, port: int) -> None:
    def answering() -> int:
        found = re.search(rb"Hello from (\d+)", ask(port))
        assert found
        return int(found[1])

    first = answering()
    os.kill(first, signal.SIGKILL)
    program.wait_for_line(r"worker \d died \(SIGKILL\)")
    assert answering() != first
    end(program)


def run_talk(program: Program, port: int) -> None:
    assert program.finish().returncode == 0
    assert program.lines == ["the primary hears why", "the worker hears 42"]


def run_end(program: Program, port: int) -> None:
    assert program.finish().returncode == 0
    assert [line.lower().replace("none", "null") for line in program.lines] == ["disconnected", "as asked: 0 null"]


def run_time(program: Program, port: int) -> None:
    with connected(port):
        assert program.finish().returncode == 0
    assert program.lines == ["ended with SIGKILL"]


def run_settings(program: Program, port: int) -> None:
    assert program.finish().returncode == 0
    assert program.lines[0] == "it says: one --use https"


RUNS: dict[str, Callable[[Program, int], None]] = {
    name.removeprefix("run_"): function for name, function in globals().items() if name.startswith("run_")
}


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: f"{block.page}-{block.name}-{block.language}")
def test_a_program_of_the_documents_does_what_it_shows(
    block: Block, cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    port = free_port()
    file = tmp_path / f"program.{'py' if block.language == 'python' else 'js'}"
    file.write_text(block.text.replace("8000", str(port)))
    if block.language == "python":
        # Unbuffered, a line and its end are two writes, and another process may write in between.
        program = cluster_program.add(Program(file, env={"PYTHONUNBUFFERED": ""}))
    elif NODE is None:
        pytest.skip("Node.js is not installed")
    else:
        program = cluster_program.add(Program("-c", "import os, sys; os.execv(sys.argv[1], sys.argv[1:])", NODE, file))
    RUNS[block.name](program, port)


def test_every_program_of_the_documents_has_a_run_and_the_other_way_round() -> None:
    assert {block.name for block in SHOWN} == set(RUNS)


def test_every_program_for_node_has_its_counterpart() -> None:
    for_node = [block.name for block in SHOWN if block.language == "js"]
    assert for_node
    assert for_node == [block.name for block in SHOWN if block.page == "nodejs.md" and block.language == "python"]


def test_parts_of_programs_compile_and_no_other_kind_of_block_is_python() -> None:
    assert {block.language for block in BLOCKS} <= {"python", "py", "js", "mermaid", "console", ""}
    parts = [block for block in BLOCKS if block.language == "py"]
    assert parts
    for block in parts:
        compile(block.text, block.page, "exec")
        assert not block.name


# ---- Links and names


def test_every_link_between_documents_leads_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    assert links
    lost = [(page.name, link) for page, link in links if ":" not in link and not (page.parent / link).exists()]
    assert lost == []


def test_every_document_is_in_the_index_and_the_index_in_readme() -> None:
    index = (DOCS / "README.md").read_text()
    assert [page.name for page in PAGES if page.name != "README.md" and f"]({page.name})" not in index] == []
    assert "](docs/README.md)" in (ROOT / "README.md").read_text()


def test_the_reference_is_what_the_docstrings_say(tmp_path: pathlib.Path) -> None:
    script = DOCS / "make_reference.py"
    code = f"import runpy, sys; sys.stdout.write(runpy.run_path({str(script)!r})['page']())"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert made == (DOCS / "api.md").read_text(), "run `python docs/make_reference.py`"


# ---- Tables


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    below = (DOCS / page).read_text().partition(f"# {heading}\n")[2]
    lines = below.partition("\n|")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_table_of_a_workers_life_is_the_one_in_the_code() -> None:
    steps = ("online", "listening", "disconnect", "closed", "exit")
    shown = {
        (state.strip("` "), step): after.strip("` |")
        for state, *cells in rows_of("how-it-works.md", "A worker's life")
        for step, after in zip(steps, cells, strict=True)
        if "—" not in after
    }
    assert shown == LIFE
    assert {step for _, step in LIFE} == set(steps)


def test_the_diagram_of_a_workers_life_is_drawn_from_the_code() -> None:
    [diagram] = [block.text for block in BLOCKS if block.language == "mermaid"]
    drawn = {(before, step): after for before, after, step in re.findall(r"(\w+) --> (\w+): (\w+)", diagram)}
    assert drawn == {key: after for key, after in LIFE.items() if key[0] != after}
    assert re.findall(r"\[\*\] --> (\w+)", diagram) == [STATES[0]]


TABLES = {
    "`cluster`": 3,
    "`Worker`": 3,
    "A worker's process (`child_process`)": 3,
    "What Node.js's tests show": 3,
    "Corners that Node.js's tests leave out": 2,
}
NODE_TEST = re.compile(r"`(test-cluster-[\w-]+\.js)`(?: \(v23\))?")
TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


@functools.cache
def defined_tests() -> set[tuple[str, str]]:
    return {
        (file.name, node.name)
        for file in (ROOT / "tests").glob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_the_table_of_servers_says_what_the_tests_of_servers_try() -> None:
    says = {True: "yes", False: "closed"}
    shown = {row[1].strip("`"): row[2:6] for row in rows_of("servers.md", "Servers that are handed connections")}
    assert {kind: row[:2] + row[3:] for kind, row in shown.items()} == {
        kind: ["yes", says[server.keeps_alive], "yes"] for kind, server in SERVERS.items()
    }
    assert {kind for kind, row in shown.items() if row[2] == "yes"} == {
        kind for kind, server in SERVERS.items() if server.tls
    }


@pytest.mark.parametrize("heading", TABLES)
def test_every_row_about_nodejs_names_a_test_that_exists_or_a_reason(heading: str) -> None:
    rows = rows_of("nodejs-parity.md", heading)
    assert len(rows) > 5
    here = defined_tests()
    for row in rows:
        assert len(row) == TABLES[heading], row
        named = TEST.findall(" | ".join(row))
        assert [test for test in named if test not in here] == []
        assert named or any(cell.startswith("cannot apply: ") for cell in row), row


def test_every_test_of_nodejs_is_in_the_table_once() -> None:
    names = [NODE_TEST.fullmatch(row[0]) for row in rows_of("nodejs-parity.md", "What Node.js's tests show")]
    assert all(names)
    counted = Counter(found[1] for found in names if found)
    assert max(counted.values()) == 1
    assert len(counted) == 87, "81 in test/parallel and 4 in test/sequential of v20.19.2, and 2 of v23"


def test_the_documents_name_no_other_test_than_those_that_exist() -> None:
    for page in PAGES:
        assert set(TEST.findall(page.read_text())) <= defined_tests(), page.name
