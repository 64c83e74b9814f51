"""Starts of fresh interpreters that fail, and one that does not."""

import os
import sys

from programs.facts import tell
from pycluster import cluster


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


if cluster.is_primary:
    cluster.setup_primary(start_method="spawn", silent=True)
    cluster.counter("it")  # the shared region, which stays
    errors = []
    before = descriptors()
    executable = sys.executable
    for cwd, sys.executable in (("/nowhere", executable), ("/dev/null", executable), ("/", "")):
        cluster.setup_primary(cwd=cwd)
        try:
            cluster.fork()
        except (OSError, RuntimeError) as error:
            errors.append(type(error).__name__)
    tell("failed", errors=errors, left=sorted(descriptors() - before), workers=list(cluster.workers))
    sys.executable = executable
    cluster.on("exit", lambda worker, code, signal: tell("exit", code=code, id=worker.id))
    cluster.fork()
    cluster.run()
