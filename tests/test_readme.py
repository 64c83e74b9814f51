"""What README shows is what the repository has."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_program_of_readme_is_the_example_to_the_letter() -> None:
    readme = (ROOT / "README.md").read_text()
    [program] = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert program == (ROOT / "examples" / "hello.py").read_text()


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
