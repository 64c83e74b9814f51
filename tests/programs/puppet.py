"""A cluster on strings: the test pulls them one by one, so that nothing depends on who is faster.

Arguments: the path of a Unix socket, and settings. On the socket the test says what to do, one JSON object a line: who
(0: the primary, else a worker's id), what (the name of a function below) and with what arguments. Each answer is a
fact. In a worker the main thread does it. When the test hangs up, all workers are killed.
"""

import _socket
import contextlib
import ctypes
import json
import os
import queue
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from programs.answering import answer
from programs.facts import tell, tell_events
from pycluster import Worker, _cluster, cluster, process

# ---- What a worker can do

listeners: dict[str, socket.socket] = {}
connections: list[socket.socket] = []
commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()


def own_name() -> str:
    assert cluster.worker is not None
    return f"worker {cluster.worker.id}"


def listen(
    name: str = "it",
    port: int = 0,
    host: str = "127.0.0.1",
    backlog: int | None = None,
    how: str = "socket",
    reuse_port: bool = False,
    only_bind: bool = False,
    path: str | None = None,
    fd: int | None = None,
    v6only: bool | None = None,
    scope: int | None = None,
) -> dict[str, Any]:
    """Open a listener under a name: with socket.socket or cluster.listen, shared or exclusive."""
    address: Any = path if path is not None else (host, port) if scope is None else (host, port, 0, scope)
    if how.startswith("cluster"):
        if not host:
            address = port
        if fd is not None:
            sock = cluster.listen(fd=fd, backlog=backlog, exclusive=how == "cluster exclusive")
        else:
            sock = cluster.listen(address, backlog=backlog, exclusive=how == "cluster exclusive")
    else:
        family = socket.AF_UNIX if path is not None else socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if v6only is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with cluster.exclusive() if how == "exclusive" else contextlib.nullcontext():
            try:
                sock.bind(address)
                if not only_bind:
                    sock.listen(*([] if backlog is None else [backlog]))
            except BaseException:
                sock.close()
                raise
    listeners[name] = sock
    return describe(name)


def describe(name: str = "it") -> dict[str, Any]:
    """What the methods of a listener say of it."""
    sock = listeners[name]
    bound = sock.getsockname()

    def option(option: int) -> int:
        return sock.getsockopt(socket.SOL_SOCKET, option)

    return {
        "name": bound.decode() if isinstance(bound, bytes) else bound,
        "fd": sock.fileno(),
        "family": int(sock.family),
        "type": int(sock.type),
        "proto": sock.proto,
        "accepts": option(socket.SO_ACCEPTCONN),
        "socket type": option(socket.SO_TYPE),
        "domain": option(socket.SO_DOMAIN),
        "protocol": option(socket.SO_PROTOCOL),
        "timeout": sock.gettimeout(),
        "blocking": os.get_blocking(sock.fileno()),
        "inheritable": sock.get_inheritable(),
        "text": repr(sock),
    }


def life_of_a_number(port: int) -> dict[str, Any]:
    """The number of a socket's descriptor from its making to its end, and what is there afterwards."""
    sock = socket.socket()
    number = sock.fileno()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    bound = sock.fileno()
    sock.listen()
    listening = sock.fileno()
    sock.close()
    try:
        os.fstat(number)
    except OSError:
        return {"same": number == bound == listening, "closed": sock.fileno() == -1}
    return {"same": number == bound == listening, "closed": False}


def unlistened(name: str = "it") -> dict[str, Any]:
    """Accept and getpeername on a socket that is bound and does not listen, as errno."""
    sock = listeners[name]
    said = []
    for method in (sock.accept, sock.getpeername):
        try:
            sock.setblocking(False)
            method()
            said.append(0)
        except OSError as exception:
            said.append(exception.errno or -1)
    return {"errors": said}


def listen_in_a_child(port: int, other: int) -> dict[str, Any]:
    """What a process that this worker forks gets for the worker's own port, and for another one."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said: dict[str, Any] = {"same port": 0, "other port": "nothing"}
        try:
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", port))
        except OSError as exception:
            said["same port"] = exception.errno
        with socket.create_server(("127.0.0.1", other)) as server, socket.create_connection(server.getsockname()):
            server.accept()[0].close()
            said["other port"] = "private"
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        answer: dict[str, Any] = json.loads(lines.read())
    os.waitpid(pid, 0)
    return answer


def bind_again(name: str, port: int) -> int | None:
    """The errno of binding a listener once more."""
    try:
        listeners[name].bind(("127.0.0.1", port))
    except OSError as exception:
        return exception.errno
    return None


def start_listening(name: str = "it", backlog: int = 16) -> dict[str, Any]:
    listeners[name].listen(backlog)
    return describe(name)


def close(name: str = "it") -> None:
    listeners.pop(name).close()


def duplicate(name: str = "it", new: str = "copy", how: str = "dup") -> dict[str, Any]:
    """Make another socket of the same listener."""
    sock = listeners[name]
    if how == "dup":
        listeners[new] = sock.dup()
    elif how == "fromfd":
        listeners[new] = socket.fromfd(sock.fileno(), sock.family, sock.type)
    else:
        listeners[new] = socket.socket(fileno=os.dup(sock.fileno()), family=sock.family, type=sock.type)
    return describe(new)


def open_and_close(times: int, name: str = "it", **arguments: Any) -> None:
    """Accept some connections, close, and listen again, so many times; close in the end."""
    for _ in range(times):
        sock = listeners[name]
        sock.settimeout(0.01)
        with contextlib.suppress(TimeoutError):
            for _ in range(3):
                answer(sock.accept()[0], own_name())
        close(name)
        listen(name, **arguments)
    close(name)


def asyncio_server_comes_and_goes(path: str) -> None:
    """Open and close a server, as asyncio of 3.13 and newer does: it removes a file that it knows of in the end."""
    import asyncio

    async def main() -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        files = asyncio.get_running_loop().__dict__.setdefault("_unix_server_sockets", {})
        files[sock] = os.stat(path).st_ino
        server = await asyncio.start_unix_server(lambda reader, writer: None, sock=sock)
        server.close()
        if sock in files:
            os.unlink(path)

    asyncio.run(main())


def forget(name: str = "it") -> None:
    """Lose a listener without closing it, as careless programs do."""
    del listeners[name]


def accept(
    name: str = "it", timeout: float | None = 10.0, keep: bool = False, reply: bool = True, as_it_is: bool = False
) -> Any:
    """Accept one connection, say who has it, and close it unless it is to be kept. Returns the peer's address."""
    if not as_it_is:
        listeners[name].settimeout(timeout)
    connection, address = listeners[name].accept()
    if reply:
        connection.sendall(own_name().encode())
    if keep:
        connections.append(connection)
    else:
        connection.close()
    return address


def bind_udp(
    name: str = "it", port: int = 0, host: str = "127.0.0.1", how: str = "socket", reuse_port: bool = False
) -> dict[str, Any]:
    """Bind a UDP socket under a name, shared or exclusive."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    with cluster.exclusive() if how == "exclusive" else contextlib.nullcontext():
        try:
            sock.bind((host, port))
        except BaseException:
            sock.close()
            raise
    listeners[name] = sock
    return describe(name)


def set_timeout(name: str = "it", timeout: float | None = None) -> dict[str, Any]:
    """Set the timeout of a socket. Returns what it says of it, and whether its descriptor blocks."""
    sock = listeners[name]
    if timeout == -1:
        sock.setblocking(True)
    else:
        sock.settimeout(timeout)
    return {
        "timeout": [sock.gettimeout(), sock.timeout],
        "blocking": [sock.getblocking(), os.get_blocking(sock.fileno())],
    }


def receive(name: str = "it", peek: bool = False) -> str:
    """Receive one datagram as the socket is set to, and answer it with the worker's name."""
    text, peer = listeners[name].recvfrom(100, socket.MSG_PEEK if peek else 0)
    if not peek:
        listeners[name].sendto(own_name().encode(), peer)
    return text.decode()


epolls: dict[str, select.epoll] = {}


def watch_with_epoll(name: str = "it") -> None:
    epolls[name] = select.epoll()
    epolls[name].register(listeners[name], select.EPOLLIN)


def wait_to_be_writable(name: str = "it") -> list[int]:
    """Wait for what an event loop waits for when it has more to send than fits. Returns the events."""
    epolls[name].modify(listeners[name], select.EPOLLIN | select.EPOLLOUT)
    return [events for _, events in epolls[name].poll(10)]


def send_udp(port: int, text: str, name: str = "it") -> None:
    listeners[name].sendto(text.encode(), ("127.0.0.1", port))


def connect_from(source: int, port: int, how: str) -> str:
    """Connect to a port from a fixed port of one's own. Returns what the server says."""
    with socket.socket() as sock:
        sock.settimeout(10 if how == "timeout" else None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", source))
        sock.connect(("127.0.0.1", port))
        return sock.recv(100).decode()


def accept_natively(keep: bool, reply: bool) -> None:
    """Accept as a server in another language does, without a method of socket.socket's."""
    native = _socket.socket(fileno=os.dup(listeners["it"].fileno()))
    select.select([native], [], [])
    connection = socket.socket(fileno=native._accept()[0])  # type: ignore[attr-defined]
    if reply:
        connection.sendall(own_name().encode())
    if keep:
        connections.append(connection)


def duplicate_connections() -> None:
    """Put duplicates in the place of the connections that were kept, as frameworks do that detach them."""
    for connection in connections[:]:
        connections.append(socket.socket(fileno=os.dup(connection.fileno())))
        connections.remove(connection)
        connection.close()


def answer_kept() -> None:
    """Say on each kept connection who has it."""
    for connection in connections:
        connection.sendall(own_name().encode())


def drop() -> int:
    """Close the connections that were kept."""
    count = len(connections)
    while connections:
        connections.pop().close()
    return count


def serve(kind: str, where: int | str) -> None:
    """Run one of servers.py, unix_servers.py or udp_servers.py, for ever."""
    from programs import servers, udp_servers, unix_servers  # only here: they import much, and most puppets need none

    [function] = [vars(module)[kind] for module in (servers, unix_servers, udp_servers) if kind in vars(module)]
    function(where, own_name())


def serve_in_a_thread(name: str = "it") -> None:
    """Answer whoever comes with the worker's name, while the main thread goes on to take commands."""
    sock = listeners[name]
    sock.settimeout(3600)  # whatever others, who may share it under SCHED_NONE, have made of its descriptor

    def answer_all() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = sock.accept()
                with contextlib.suppress(ConnectionError):
                    answer(connection, own_name())

    threading.Thread(target=answer_all, daemon=True).start()


def wait_on(how: str, name: str = "it") -> None:
    """Go on waiting on a listener in a loop of one's own, whatever happens, SystemExit included."""
    sock = listeners[name]
    sock.setblocking(False)
    epoll = select.epoll()
    epoll.register(sock, select.EPOLLIN)
    poll = select.poll()
    poll.register(sock, select.POLLIN)

    def go_on_waiting() -> None:
        while True:
            try:
                if how == "select":
                    select.select([sock], [], [])
                elif how == "poll":
                    poll.poll()
                elif how == "epoll":
                    epoll.poll()
                else:
                    sock.settimeout(10)
                sock.accept()[0].close()
            except OSError:
                pass

    while True:
        try:
            tell("waiting")
            go_on_waiting()
        except SystemExit:
            tell("asked to exit")


def leave() -> None:
    """Disconnect oneself."""
    assert cluster.worker is not None
    cluster.worker.disconnect()


def end(status: int = 7) -> None:
    """End the script."""
    sys.exit(status)


def slot_and_environment(name: str) -> tuple[int, str | None]:
    """The worker's own slot, and a variable of its environment."""
    assert cluster.worker is not None
    return cluster.worker.slot, os.environ.get(name)


held: list[bytes] = []


def hold(size: int) -> None:
    """Need so many bytes of memory from now on."""
    held.append(b"x" * size)


def sleep(seconds: float) -> None:
    """Be busy with something else."""
    time.sleep(seconds)


def variable(name: str) -> str | None:
    return os.environ.get(name)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lower_limit(spare: int) -> int:
    """Lower the limit of descriptors so that so many can still be opened. Returns what it was."""
    free = [os.dup(0) for _ in range(spare + 1)]
    for fd in free:
        os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[spare], hard))
    return soft


def set_limit(soft: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def drop_rights() -> None:
    """Be nobody. What is to be imported later may be out of reach then."""
    "a".encode("idna")
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def spoil(seconds: float) -> int:
    """See programs/attacks.py."""
    from programs import attacks  # only here: most puppets need none of what it imports

    return attacks.spoil(seconds)


def attack_primary() -> dict[str, list[int | None]]:
    """The same, as nobody."""
    from programs import attacks

    drop_rights()
    return attacks.attack_primary()


def say(control: str, kind: str) -> None:
    """Send the primary a frame of control as it stands here, in hex; with a socket, or a file, or nothing."""
    assert cluster._child is not None
    with open(os.devnull) if kind == "file" else socket.socket() as sent:
        cluster._child._channel.send_control(bytes.fromhex(control), None if kind == "nothing" else sent.fileno())


# ---- What the primary can do


def fork(count: int = 1, env: dict[str, str] | None = None) -> list[int]:
    return [cluster.fork(env).id for _ in range(count)]


def setup(**settings: Any) -> None:
    cluster.setup_primary(**settings)


def own_rights() -> dict[str, Any]:
    """The primary's ids and groups, and whether it may write a core file."""
    with open("/proc/self/status") as file:
        lines = [line.split() for line in file if line.startswith(("Uid:", "Gid:", "Groups:", "CapEff:"))]
    return {"ids": lines, "dumps core": ctypes.CDLL(None).prctl(3)}  # PR_GET_DUMPABLE


def kill(worker: int, signal: str) -> None:
    cluster.workers[worker].kill(signal)


def set_constant(module: str, name: str, value: float) -> None:
    """Change how long the library waits for something that takes a minute."""
    assert hasattr(sys.modules[f"pycluster.{module}"], name)
    setattr(sys.modules[f"pycluster.{module}"], name, value)


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


def obey(command: dict[str, Any]) -> None:
    function: Callable[..., Any] = globals()[command["what"]]
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
        if control.fileno() in ready:
            line = lines.readline()
            if not line:
                break
            command = json.loads(line)
            if command["who"] == 0:
                obey(command)
            else:
                cluster.workers[command["who"]].send(command)
        if cluster.fileno() in ready:
            cluster.dispatch()
    for worker in cluster.workers.values():
        worker.kill(signal.SIGKILL)
    cluster.run()


def run_worker() -> None:
    process.on("message", lambda command, handle: commands.put(command))
    tell("ready")
    while True:
        obey(commands.get())


if cluster.is_primary:
    run_primary()
else:
    run_worker()
