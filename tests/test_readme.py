"""What README shows is what the repository has, and what its program does."""

import os
import re
import signal
from pathlib import Path

from harness import Program, Programs, free_port, request, wait_until

ROOT = Path(__file__).resolve().parents[1]


def test_the_program_of_readme_is_the_example_to_the_letter() -> None:
    readme = (ROOT / "README.md").read_text()
    [program] = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert program == (ROOT / "examples" / "hello.py").read_text()


def test_the_program_of_readme_answers_in_turn_and_replaces_a_worker_that_is_killed(
    cluster_program: Programs, tmp_path: Path
) -> None:
    port = free_port()
    file = tmp_path / "hello.py"
    text = (ROOT / "examples" / "hello.py").read_text()
    file.write_text(text.replace("8000", str(port)).replace("os.cpu_count()", "2"))
    program = cluster_program.add(Program(file))
    answering: set[int] = set()

    def two_answer() -> bool:
        answering.clear()
        try:
            answering.update(int(request(port, b"GET / HTTP/1.0\r\n\r\n").split()[-1]) for _ in range(2))
        except ConnectionRefusedError:
            pass  # none of them listens yet
        return len(answering) == 2

    assert wait_until(two_answer)
    killed = min(answering)
    os.kill(killed, signal.SIGKILL)
    assert wait_until(lambda: two_answer() and killed not in answering)
    program.send_signal(signal.SIGTERM)
    assert program.finish().returncode == 0
    assert re.fullmatch(r"Primary \d+ is running", program.lines[0])
    assert sorted(program.lines[1:]) == sorted(f"worker {pid} died" for pid in {killed, *answering})


def test_every_file_that_readme_names_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    named = re.findall(r"`((?:src|tests|bench|examples)/[\w./]*)`", readme)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_figures_of_readme_are_those_of_the_documents() -> None:
    """`make bench` writes both."""
    measured = (
        (ROOT / "README.md").read_text().partition("<!-- written by make bench -->")[2].partition("<!-- end -->")[0]
    )
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert rows
    document = (ROOT / "docs" / "bench" / "results.md").read_text()
    assert set(rows) <= set(document.splitlines())
    pictures = re.findall(r"\]\(([\w/]+\.svg)\)", measured)
    assert pictures
    assert [name for name in pictures if not (ROOT / name).exists()] == []
