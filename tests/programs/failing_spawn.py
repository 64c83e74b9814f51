"""Starts of fresh interpreters that fail, and one that does not."""

import os
import pathlib
import sys

from programs.facts import tell
from pycluster import ClusterError, cluster


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


if cluster.is_primary:
    cluster.setup_primary(start_method="spawn", silent=True)
    cluster.counter("it")  # the shared region, which stays
    errors = []
    before = descriptors()
    executable = sys.executable
    with open(os.devnull) as closed:
        pass
    for settings, sys.executable, argument in (
        ({"cwd": "/nowhere"}, executable, []),
        ({"cwd": "/dev/null"}, executable, []),
        ({"cwd": "/"}, "", []),
        ({"cwd": "/"}, executable, ["\udcff"]),  # no text
        ({"stdio": ["pipe", "pipe", closed]}, executable, []),
    ):
        cluster.setup_primary(**settings)
        sys.argv += argument
        try:
            cluster.fork()
        except (OSError, ClusterError) as error:
            errors.append(type(error).__name__)
        del sys.argv[1:]
    tell("failed", errors=errors, left=sorted(descriptors() - before), workers=list(cluster.workers))
    cluster.setup_primary(stdio=None)
    sys.path.append(pathlib.Path("/nowhere"))  # type: ignore[arg-type]  # which import does not mind
    cluster.on("exit", lambda worker, code, signal: tell("exit", code=code, id=worker.id))
    cluster.fork()
    cluster.run()
