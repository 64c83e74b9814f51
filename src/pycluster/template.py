"""The template of the start method "forkserver": a process that has what workers need, and clones itself into them.

Run as a file by the interpreter that forkserver.py starts. It has one thread, and does nothing but wait for the next
request: what a clone copies is always the same. Workers are its siblings (see `_cluster.fork_sibling`). It ends when
the primary's end of the socket closes.
"""

import json
import os
import sys
import time
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import socket

    from pycluster import protocol

# A thread that was told to stop, and joined, may be seen in /proc for some microseconds more. The rest is for the
# machine.
THREADS_GONE_S = 1.0
# Descriptors that come with a request.
MOST_DESCRIPTORS = 8


def main() -> NoReturn:
    """Import what is asked for, say so, and serve."""
    told_as_json = os.environ.pop("PYCLUSTER_WORKER")  # at once: whoever this process starts is no worker
    version_and_path = json.loads(told_as_json)
    # Before any other import: this directory, which came first as the directory of the script, is nobody's to search.
    sys.path[:] = version_and_path["path"]
    sys.argv.pop(0)  # what is left is a worker's, for modules that look at it when they are imported
    import fcntl
    import signal
    import socket

    import msgspec

    from pycluster import protocol, start, stdio

    start.leave_interrupts_to_the_primary()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    protocol.expect_version(version_and_path.get("takeover"))
    told = msgspec.json.decode(told_as_json, type=protocol.Template)
    primary = socket.socket(fileno=told.socket)
    primary.set_inheritable(False)
    stdio.fill_standard_descriptors()
    # Until it is ready nothing is asked of it: what comes is the primary's end. The kernel ends the process then,
    # whatever it is importing.
    fcntl.fcntl(primary, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(primary, fcntl.F_GETFL)
    fcntl.fcntl(primary, fcntl.F_SETFL, flags | os.O_ASYNC)
    if _is_alone(primary):
        os._exit(0)
    try:
        _prepare(told.preload)
    except BaseException as exception:
        sys.excepthook(type(exception), exception, exception.__traceback__)
        _say(primary, protocol.Ready(f"{type(exception).__name__}: {exception}"[:1000]))
        os._exit(1)
    fcntl.fcntl(primary, fcntl.F_SETFL, flags)
    _say(primary, protocol.Ready())
    _serve(primary)
    os._exit(0)


def _is_alone(primary: "socket.socket") -> bool:
    import socket

    try:
        return not primary.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


def _prepare(preload: list[str]) -> None:
    """Import what workers need, and become a process that can be cloned."""
    import gc
    import importlib

    from pycluster import start
    from pycluster.cluster import cluster  # noqa: F401  (with all that a worker's role needs)

    for name in preload:
        importlib.import_module(name)
    start.preload()
    _stop_threads()
    gc.collect()
    # Workers are to share what is there by now: the collector must not touch it.
    gc.freeze()


def _stop_threads() -> None:
    """See to it that this is the only thread.

    Raises:
      RuntimeError: it is not.
    """
    import threading

    from pycluster import _cluster

    # Libraries that have threads of their own, and stop them before a fork, learn of it by an ordinary one only.
    pid, pidfd = _cluster.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(pidfd)
    deadline = time.monotonic() + THREADS_GONE_S
    while (count := len(os.listdir("/proc/self/task"))) > 1:
        if time.monotonic() > deadline:
            named = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
            raise RuntimeError(
                f"it has started {count - 1} threads ({', '.join(named) or 'not of Python'}), which no worker would"
                " have; start them in the workers' script, or leave their module out"
            )
        time.sleep(0.001)


def _serve(primary: "socket.socket") -> None:
    """Clone this process as often as the primary asks for it. Returns when that is gone."""
    import errno
    import socket

    from pycluster import _cluster, protocol, start

    while True:
        said, descriptors, flags, _ = socket.recv_fds(primary, 1, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        if not said:
            return
        if not descriptors:
            continue  # there is no room for one: whoever waits for the answer sees its end
        answer = protocol.Cloned()
        with socket.socket(fileno=descriptors.pop(0)) as asker:
            try:
                if flags & socket.MSG_CTRUNC:
                    raise OSError(errno.EMFILE, "the template has no descriptor left")
                start.flush_standard_streams()
                if _cluster.fork_sibling(descriptors[0]) == 0:
                    primary.close()
                    asker.close()
                    _become_worker(descriptors)
            except OSError as error:
                answer.error, answer.reason = error.errno or errno.EIO, error.strerror or str(error)
            for fd in descriptors:
                os.close(fd)
            _say(asker, answer)


def _say(to: "socket.socket", what: "protocol.Ready | protocol.Cloned") -> None:
    import socket

    import msgspec

    try:
        to.send(msgspec.msgpack.encode(what), socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it is gone, and what is to be read next says so


def _become_worker(descriptors: list[int]) -> NoReturn:
    """In the clone, in which every signal is blocked. It owns the descriptors that came with the request."""
    try:
        import msgspec

        from pycluster import _cluster, protocol, rights, spawned, start
        from pycluster.settings import Settings

        with open(descriptors[0], "rb") as file:
            file.seek(protocol.CLONE_OFFSET)
            clone = msgspec.msgpack.decode(file.read(), type=protocol.Clone)
        told = clone.start
        told.channel, told.region, *rest = descriptors[1:]
        if clone.moves:
            directory = rest.pop()
            os.fchdir(directory)
            os.close(directory)
        for target, fd in enumerate(rest):
            os.dup2(fd, target)
            os.close(fd)
        os.environ.clear()
        os.environb.update(clone.env)
        sys.path[:] = told.path
        start.forget_event_loop()
        start.part_with_hub()
        rights.drop_rights(Settings().merged(told.settings))
        _cluster.restore_signals()
        spawned.become_worker(told)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


if __name__ == "__main__":
    main()
