"""The server of the comparisons, started in three ways: one worker (work.py), three ways to share a port.

    python bench/server.py shared    --port 8000 --workers 2 [--engine blocking] [--protocol http]
    python bench/server.py reuseport --port 8000 --workers 2
    python bench/server.py cluster   --port 8000 --workers 2

``shared``: forked processes that all accept from one listening socket. ``reuseport``: each has its own, bound to the
same port with SO_REUSEPORT. ``cluster``: pycluster; PYCLUSTER_SCHED_POLICY chooses the policy.

It prints ``ready`` once all workers listen, and ends at SIGTERM. variants.py has the command lines.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from typing import NoReturn

from work import BACKLOG, HOST, Post, serve


def forked(options: argparse.Namespace) -> int:
    """Plain processes: the kernel chooses."""
    listener = None
    if options.start == "shared":
        listener = socket.create_server((HOST, options.port), backlog=BACKLOG)
    reports, report = os.pipe()
    # Blocked before the first fork, so that whichever comes is still there to be waited for.
    awaited = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    workers: list[int] = []
    try:
        for number in range(1, options.workers + 1):
            pid = os.fork()
            if pid == 0:
                _forked_worker(options, number, listener, report)
            workers.append(pid)
        os.close(report)
        for _ in workers:
            if not os.read(reports, 1):
                raise RuntimeError("no worker is left")
        print("ready", flush=True)
        came = signal.sigwait(awaited)
        if came == signal.SIGCHLD:
            print("a worker ended by itself", file=sys.stderr)
        return 1 if came == signal.SIGCHLD else 0
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        for pid in workers:
            os.waitpid(pid, 0)


def _forked_worker(options: argparse.Namespace, number: int, listener: socket.socket | None, report: int) -> NoReturn:
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        own = listener or socket.create_server((HOST, options.port), backlog=BACKLOG, reuse_port=True)
        serve(_post(options, number, own, report))
        status = 0
    except BaseException as error:  # a child must not go on with its parent's code, whatever happens
        print(f"worker {number}: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _post(options: argparse.Namespace, number: int, listener: socket.socket | None, report: int | None) -> Post:
    def ready() -> None:
        if report is not None:
            os.write(report, b".")

    return Post(
        line=b"worker %d\n" % number,
        protocol=options.protocol,
        engine=options.engine,
        api=options.api,
        port=options.port,
        listener=listener,
        ready=ready,
    )


def cluster(options: argparse.Namespace) -> int:
    """The same under pycluster."""
    from pycluster import Address, Worker, cluster

    if cluster.worker is not None:
        # The primary hears from the library that this worker listens: nothing to report.
        serve(_post(options, cluster.worker.id, None, None))
        return 0

    listening: set[int] = set()
    lost = False

    @cluster.on("listening")
    def report(worker: Worker, address: Address) -> None:
        listening.add(worker.id)
        if len(listening) == options.workers:
            print("ready", flush=True)

    @cluster.on("exit")
    def notice(worker: Worker, code: int | None, killed_by: signal.Signals | None) -> None:
        nonlocal lost
        if not worker.exited_after_disconnect:
            lost = True
            print(f"worker {worker.id} ended by itself: {code} {killed_by}", file=sys.stderr)

    for _ in range(options.workers):
        cluster.fork()
    cluster.run()
    return 1 if lost else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="The server of bench/balance.py.")
    parser.add_argument("start", choices=("shared", "reuseport", "cluster"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--protocol", choices=("echo", "http"), default="echo")
    parser.add_argument("--engine", choices=("asyncio", "uvloop", "blocking"), default="asyncio")
    parser.add_argument("--api", choices=("streams", "protocol"), default="streams", help="of the loops")
    options = parser.parse_args()
    return cluster(options) if options.start == "cluster" else forked(options)


if __name__ == "__main__":
    sys.exit(main())
