"""What puppet.py can do in the primary, and in any process; and how it is told."""

import contextlib
import json
import os
import queue
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from programs import worker_strings
from programs.facts import tell, tell_events
from pycluster import Worker, _cluster, cluster, process

# ---- What the primary can do


def fork(count: int = 1, env: dict[str, str] | None = None) -> list[int]:
    return [cluster.fork(env).id for _ in range(count)]


def setup(**settings: Any) -> None:
    cluster.setup_primary(**settings)


def fork_the_only_one_with(**settings: Any) -> int:
    """A worker under settings that those after it do not have."""
    cluster.setup_primary(**settings)
    worker = cluster.fork()
    cluster.setup_primary(**dict.fromkeys(settings))
    return worker.id


def set_umask(umask: int) -> None:
    os.umask(umask)


def own_rights() -> dict[str, Any]:
    """The primary's ids and groups, and whether it may write a core file."""
    import ctypes

    with open("/proc/self/status") as file:
        lines = [line.split() for line in file if line.startswith(("Uid:", "Gid:", "Groups:", "CapEff:"))]
    return {"ids": lines, "dumps core": ctypes.CDLL(None).prctl(3)}  # PR_GET_DUMPABLE


def kill(worker: int, signal: str) -> None:
    cluster.workers[worker].kill(signal)


def set_constant(module: str, name: str, value: float) -> None:
    """Change how long the library waits for something that takes a minute."""
    assert hasattr(sys.modules[f"pycluster.{module}"], name)
    setattr(sys.modules[f"pycluster.{module}"], name, value)


def wait_for_a_port() -> int:
    """How many workers do."""
    assert cluster._primary is not None
    return len(cluster._primary._requests._waiting)


def refuse_waiting() -> None:
    """What a primary does with those that wait for a port when it is about to execute itself anew."""
    assert cluster._primary is not None
    cluster._primary._requests.refuse_waiting()


def waits_for_workers() -> bool:
    """Whether workers are still to come in the place of others."""
    assert cluster._primary is not None
    return cluster._primary.respawner.pending


def disconnect(worker: int) -> None:
    cluster.workers[worker].disconnect()


def disconnect_all() -> None:
    cluster.disconnect()


def reload(timeout: float = 60, times: int = 1) -> None:
    for _ in range(times):
        cluster.reload(timeout, lambda error: tell("reloaded", error=None if error is None else str(error)))


def reload_without_callback(timeout: float) -> None:
    cluster.reload(timeout)


def listen_for_errors() -> None:
    cluster.on("error", lambda error: tell("error", type=type(error).__name__, text=str(error)))


def respawn() -> None:
    """Replace what crashes, as the guide does."""

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: int | None) -> None:
        if not worker.exited_after_disconnect:
            cluster.fork()


def fork_with(env: dict[str, str]) -> int:
    return cluster.fork(env).id


def figures() -> dict[str, int]:
    return _cluster.balancer_figures()


def never_take_back() -> None:
    """Leave connections with the worker that was given them, though it may be blocked."""
    _cluster.set_patience(float("inf"), float("inf"))


def take_back_from_sleepers_only() -> None:
    """Leave connections with a worker that may be blocked, unless the kernel says that it does not run."""
    _cluster.set_patience(0.002, float("inf"))


def states() -> dict[int, str]:
    return {number: worker.state for number, worker in cluster.workers.items()}


def refuse_links(errno: int) -> None:
    """Be on a file system without hard links."""

    def refuse(*_: object) -> None:
        raise OSError(errno, os.strerror(errno))

    os.link = refuse  # type: ignore[assignment]


def remove_before_link() -> None:
    """Let the next file that is to be linked be removed just before, as another worker may do."""
    link = os.link

    def remove(source: bytes, target: bytes) -> None:
        os.link = link
        os.unlink(source)
        link(source, target)

    os.link = remove  # type: ignore[assignment]


def open_descriptor(kind: str, name: str = "theirs") -> int:
    """Open what a user may hand to workers by its number. Returns that."""
    opened[name] = OPENERS[kind]()
    return opened[name].fileno()


opened: dict[str, socket.socket] = {}
OPENERS: dict[str, Callable[[], socket.socket]] = {
    "listener": lambda: socket.create_server(("127.0.0.1", 0)),
    "unix listener": lambda: _unix_listener(),
    "unbound": lambda: socket.socket(),
    "unbound unix": lambda: socket.socket(socket.AF_UNIX),
    "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "pair": lambda: socket.socketpair()[0],
    "connected": lambda: socket.create_connection(open_listener().getsockname()),
}


def open_listener() -> socket.socket:
    opened["peer"] = socket.create_server(("127.0.0.1", 0))
    return opened["peer"]


def _unix_listener() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")  # the kernel chooses an abstract name
    sock.listen()
    return sock


def name_of(name: str = "theirs") -> Any:
    bound = opened[name].getsockname()
    return bound.decode() if isinstance(bound, bytes) else bound


def close_descriptor(name: str = "theirs") -> None:
    opened.pop(name).close()


# ---- What both can do


def add(name: str, n: int = 1, times: int = 1) -> None:
    counter = cluster.counter(name)
    for _ in range(times):
        counter.add(n)


def add_all(names: list[str], times: int) -> None:
    """Name all counters first, then add 1 to each in turn."""
    counters = [cluster.counter(name) for name in names]
    for _ in range(times):
        for counter in counters:
            counter.add()


def watch(name: str) -> list[int]:
    """Read a counter until somebody counts "stop watching". Returns the different values that it had."""
    counter, stop = cluster.counter(name), cluster.counter("stop watching")
    seen = set()
    while not stop.value:
        seen.add(counter.value)
    return sorted(seen)


def read(name: str) -> dict[str, Any]:
    counter = cluster.counter(name)
    return {"value": counter.value, "by_worker": dict(counter.by_worker), "text": repr(counter)}


def stats() -> dict[str, Any]:
    stats = cluster.stats()
    return {**vars(stats), "workers": {worker.id: vars(worker) for worker in stats.workers}}


def send(text: str) -> None:
    process.send(text)


def descriptors() -> list[str]:
    """What is open here."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(found)


def run_ls() -> list[str]:
    """What a program that this process starts finds open."""
    import subprocess  # only here: most puppets need none of what it imports

    listing = subprocess.run(
        ["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True
    ).stdout
    return [line.split(" -> ")[1] for line in listing.splitlines() if " -> " in line]


def fork_a_sleeper() -> int:
    """Start a process as any program may, with os.fork, that does nothing. Returns its id."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        control = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and is_control(fd)]
        for fd in control:
            os.close(fd)
        os.write(writer, b"x")
        signal.pause()
        os._exit(0)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    return pid


def is_control(fd: int) -> bool:
    """Whether this is the test's own connection, which tells it when all is over."""
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            return bool(copy.getpeername() == sys.argv[1])
    except OSError:
        return False


# ---- The strings

FUNCTIONS = {**vars(worker_strings), **globals()}
commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()


def obey(command: dict[str, Any]) -> None:
    function: Callable[..., Any] = FUNCTIONS[command["what"]]
    try:
        try:
            result = function(**command["arguments"])
        except Exception as exception:
            tell(
                "failed",
                seq=command["seq"],
                type=type(exception).__name__,
                errno=getattr(exception, "errno", None),
                text=str(exception),
            )
        else:
            tell("done", seq=command["seq"], result=result)
    except SystemExit:
        # What ends the last connection of a worker that disconnects may be ended itself before it has told of that.
        tell("done", seq=command["seq"], result=None)
        raise


def run_primary() -> None:
    tell_events()
    control = socket.socket(socket.AF_UNIX)
    control.connect(sys.argv[1])
    cluster.setup_primary(**json.loads(sys.argv[2]))
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(cluster.fileno(), select.POLLIN)
    lines = control.makefile("rb", buffering=0)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if cluster.fileno() in ready:
            # First, so that a command finds what workers said before a test could have asked for it.
            cluster.dispatch()
        if control.fileno() in ready:
            line = lines.readline()
            if not line:
                break
            command = json.loads(line)
            if command["who"] == 0:
                obey(command)
            else:
                cluster.workers[command["who"]].send(command)
    for worker in cluster.workers.values():
        worker.kill(signal.SIGKILL)
    cluster.run()


def run_worker() -> None:
    process.on("message", lambda command, handle: commands.put(command))
    tell("ready")
    while True:
        obey(commands.get())
