"""Promise: whatever a worker sends, the primary and the other workers go on.

A million mutated frames, see programs/hostile.py. Where atheris is installed, it also looks for payloads that the
decoders answer with anything but a ProtocolError, guided by what they reach.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile

from harness import PROGRAMS, Program, free_port
from soak.row import Row, show

FRAMES = 1_000_000
LIMIT_S = 270
FUZZ_RUNS = 1_000_000
FUZZ_S = 60
GROWTH_KIB = 8192  # caches, and what the allocator keeps

FUZZER = """
import atheris, sys
with atheris.instrument_imports():
    from pycluster import protocol
    from pycluster.errors import ProtocolError

def decode(data):
    try:
        protocol.decode_from_worker(data)
    except ProtocolError:
        pass

atheris.Setup(sys.argv, decode)
atheris.Fuzz()
"""


def mutated() -> Row:
    program = Program(PROGRAMS / "hostile.py", str(FRAMES), str(free_port()), "4711", str(LIMIT_S))
    try:
        fact = program.wait_for("attacked", timeout=LIMIT_S + 120)
        status = program.finish().returncode
    finally:
        program.close()
    kept = not fact["leaked"] and fact["answer"] == "worker 1" and status == 0 and fact["grown_kib"] < GROWTH_KIB
    return Row(
        "no frame harms the primary or another worker",
        f"{fact['sent']:,} mutated, truncated and oversized frames, with up to 253 descriptors",
        f"primary alive, {len(fact['leaked'])} descriptors leaked, memory grown by {fact['grown_kib']} KiB, "
        f"the other worker answers",
        kept,
    )


def fuzzed() -> Row:
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, "-c", FUZZER, f"-runs={FUZZ_RUNS}", f"-max_total_time={FUZZ_S}", "-max_len=70000"],
            cwd=directory,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=FUZZ_S + 60,
        )
    runs = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
    return Row(
        "no payload does",
        "atheris on the decoder of control frames",
        runs[0] if runs else done.stderr[-200:].replace("\n", " "),
        done.returncode == 0,
    )


def main() -> None:
    rows = [mutated()]
    if importlib.util.find_spec("atheris"):
        rows.append(fuzzed())
    show(*rows)


if __name__ == "__main__":
    main()
