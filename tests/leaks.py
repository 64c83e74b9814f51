"""Run cases of the core under valgrind, and show what it has allocated and lost: `make test-valgrind`.

Status 1 if there is any: blocks that were allocated by the core's own code and that nothing points to any more.
"""

import os
import re
import subprocess
import sys

from harness import PROGRAMS

CASES = [
    ("balance_cases", "closing_everything"),
    ("balance_cases", "closing_the_listener_with_orphans"),
    ("balance_cases", "a_worker_shuts_its_channel_down"),
    ("core_cases", "sweep_counts"),
    ("core_cases", "accept_many"),
    ("core_cases", "slots"),
    ("wire_cases", "many_frames"),
]
LIMIT_S = 300.0


def leaks_of(program: str, case: str) -> list[str]:
    """The records of lost blocks in whose stacks the core is the first to be seen after the allocator."""
    words = ["valgrind", "--leak-check=full", "--show-leak-kinds=definite,indirect", "--num-callers=12"]
    done = subprocess.run(
        [*words, sys.executable, str(PROGRAMS / f"{program}.py"), case],
        env={**os.environ, "PYTHONMALLOC": "malloc"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    if '"facts"' not in done.stdout:
        raise RuntimeError(f"{program} {case} has not run under valgrind: {done.stderr[-2000:]}")
    text = re.sub(r"^==\d+== ?", "", done.stderr, flags=re.MULTILINE)
    records = [part for part in text.split("\n\n") if "lost in loss record" in part]
    return [record for record in records if _is_ours(record)]


def _is_ours(record: str) -> bool:
    stack = [line for line in record.splitlines()[1:] if line.strip().startswith(("at ", "by "))]
    callers = [line for line in stack if not re.search(r": (malloc|calloc|realloc) ", line)]
    return bool(callers) and "_cluster" in callers[0]


def main() -> int:
    """The command line."""
    found = 0
    for program, case in CASES:
        leaks = leaks_of(program, case)
        found += len(leaks)
        print(f"{program} {case}: {len(leaks)} leaks", flush=True)
        print("\n\n".join(leaks), end="\n" if leaks else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
