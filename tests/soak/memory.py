"""Promise: the core leaks no memory. Where valgrind is installed, cases of the core run under it, see leaks.py."""

import shutil

from leaks import CASES, leaks_of
from soak.row import Row, show


def leaked() -> Row:
    records = [record for program, case in CASES for record in leaks_of(program, case)]
    return Row(
        "the core leaks no memory",
        f"{len(CASES)} cases of handing over, taking back, counting and closing, under valgrind",
        f"{len(records)} blocks that it has allocated and lost",
        not records,
    )


def main() -> None:
    show(*([leaked()] if shutil.which("valgrind") else []))


if __name__ == "__main__":
    main()
