"""A thread of the primary forks a process of its own while a worker is being started. Argument: the start method.

The place for it is where the user's code runs in the middle of a start: a flush of sys.stdout before a copy is made,
and the template's imports, which wait for PRELOADED_FIFO.
"""

import os
import signal
import sys
import tempfile
import threading

from programs.facts import open_descriptors, tell
from pycluster import Worker, cluster


class Stdout:
    """Forks when it is flushed for the first time."""

    def __init__(self) -> None:
        self._flushed = False

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        if not self._flushed:
            self._flushed = True
            thread = threading.Thread(target=fork_a_sleeper)
            thread.start()
            thread.join()


def fork_when_the_template_imports() -> None:
    fifo = os.open(os.environ["PRELOADED_FIFO"], os.O_WRONLY)
    fork_a_sleeper(fifo)
    os.close(fifo)


def fork_a_sleeper(*users: int) -> None:
    """Returns when it has told what it has, and has closed what the user has opened."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        for fd in (reader, *users):
            os.close(fd)
        names = [name for fd, name in open_descriptors().items() if fd not in {writer, *before}]
        tell("sleeper", sleeper=os.getpid(), held=[name for name in names if name.startswith(("socket:", "pipe:"))])
        os.close(writer)
        signal.pause()
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)


if cluster.is_primary:
    method = sys.argv[1]
    cluster.setup_primary(start_method=method, stdio=["ignore", "inherit", "pipe"])
    if method == "forkserver":
        directory = tempfile.TemporaryDirectory()
        os.environ["PRELOADED_FIFO"] = os.path.join(directory.name, "fifo")
        os.mkfifo(os.environ["PRELOADED_FIFO"])
        cluster.setup_primary(preload=["programs.preloaded"])
        threading.Thread(target=fork_when_the_template_imports).start()
    before = open_descriptors()
    if method == "fork":
        sys.stdout = Stdout()

    @cluster.on("message")
    def on_message(worker: Worker, message: object, handle: object) -> None:
        if method == "forkserver":
            directory.cleanup()
        tell("started", worker_pid=worker.process.pid)

    cluster.fork()
    cluster.run()
else:
    assert cluster.worker is not None
    cluster.worker.send("started")
    signal.pause()
