"""Processes that the primary forks on its own. Arguments: "run" or "serve", and where: in a "handler" or a "thread"."""

import asyncio
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time

from programs.facts import tell
from pycluster import Worker, cluster

TERMINATED = 30
way, where = sys.argv[1:]


def own(number: int, frame: object) -> None:
    tell("own", signal=signal.Signals(number).name)


def live() -> None:
    """In a child: get a signal, with files under all numbers that the primary's may have had."""
    files = [tempfile.TemporaryFile() for _ in range(16)]  # noqa: SIM115
    signal.raise_signal(signal.SIGHUP)
    written = sum(os.fstat(file.fileno()).st_size for file in files)
    tell("child", written=written, mask=list(signal.pthread_sigmask(signal.SIG_BLOCK, [])))


def have_children() -> None:
    child = os.fork()
    if child == 0:
        live()
        os._exit(0)
    os.waitpid(child, 0)
    context = multiprocessing.get_context("fork")
    codes = []
    for _ in range(TERMINATED):
        process = context.Process(target=time.sleep, args=(5,))
        process.start()
        process.terminate()
        process.join()
        codes.append(process.exitcode)
    tell("terminated", codes=codes, mask=list(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    os.kill(os.getpid(), signal.SIGTERM)


if cluster.is_primary:
    signal.signal(signal.SIGHUP, own)
    cluster.fork()

    @cluster.on("online")
    def on_online(worker: Worker) -> None:
        if where == "handler":
            have_children()
        else:
            threading.Thread(target=have_children).start()

    cluster.on("exit", lambda worker, code, number: tell("exit", code=code, asked=worker.exited_after_disconnect))
    if way == "run":
        cluster.run()
    else:
        asyncio.run(cluster.serve())
else:
    time.sleep(60)
