"""What puppet.py can do in a worker."""

import _socket
import contextlib
import errno
import json
import os
import pathlib
import queue
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from programs.answering import answer
from programs.facts import tell
from pycluster import cluster, process

listeners: dict[str, socket.socket] = {}
connections: list[socket.socket] = []


def own_name() -> str:
    assert cluster.worker is not None
    return f"worker {cluster.worker.id}"


class _Integer:
    """An integer that is no int."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __index__(self) -> int:
        return self._number


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
    umask: int | None = None,
) -> dict[str, Any]:
    """Open a listener under a name: with socket.socket or cluster.listen, shared or exclusive."""
    if umask is not None:
        os.umask(umask)
    address: Any = path if path is not None else (host, port) if scope is None else (host, port, 0, scope)
    if how == "bytes":
        address = host.encode(), _Integer(port)
    if how.startswith("cluster"):
        if not host:
            address = port
        if fd is not None:
            sock = cluster.listen(fd=fd, backlog=backlog, exclusive=how == "cluster exclusive")
        elif how == "cluster in exclusive":
            with cluster.exclusive():
                sock = cluster.listen(address, backlog=backlog)
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


def change_directory(path: str) -> None:
    os.chdir(path)


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


def read_in_a_child(port: int) -> str:
    """Close a listener by its number, so that a pipe gets that. Returns what a forked process reads there."""
    number = socket.create_server(("127.0.0.1", port)).detach()
    os.close(number)
    pipe = os.pipe()
    assert number in pipe
    os.write(pipe[1], b"from the pipe")
    answers, answer = os.pipe()
    if os.fork() == 0:
        signal.alarm(10)
        os.write(answer, os.read(pipe[0], 100))
        os._exit(0)
    os.close(answer)
    os.wait()
    for fd in pipe:
        os.close(fd)
    with os.fdopen(answers) as file:
        return file.read()


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


def shut_down(name: str = "it", how: int = socket.SHUT_RDWR) -> None:
    listeners[name].shutdown(how)


def accept_in_a_thread(sock: socket.socket) -> "tuple[int, queue.SimpleQueue[int | None]]":
    """Let a thread wait for a connection.

    Returns its id, and where it puts the error that it gets, or None with a connection.
    """
    outcome: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def wait_for_one() -> None:
        try:
            connections.append(sock.accept()[0])
        except OSError as exception:
            outcome.put(exception.errno)
        else:
            outcome.put(None)

    thread = threading.Thread(target=wait_for_one, daemon=True)
    thread.start()
    assert thread.native_id is not None
    polls = ("7", "73")  # x86-64's poll, arm64's ppoll
    while pathlib.Path(f"/proc/self/task/{thread.native_id}/syscall").read_text().split()[0] not in polls:
        time.sleep(0.001)
    return thread.native_id, outcome


@contextlib.contextmanager
def kept_from_the_processor(thread: int) -> Iterator[None]:
    """Let a thread get next to no time while inside: something busy has its processor, and goes before it."""
    processor = min(os.sched_getaffinity(0))
    os.sched_setaffinity(thread, {processor})
    os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    with subprocess.Popen(
        [sys.executable, "-c", "print('busy', flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as busy:
        try:
            os.sched_setaffinity(busy.pid, {processor})
            assert busy.stdout is not None
            busy.stdout.readline()
            yield
        finally:
            busy.kill()
            with contextlib.suppress(ProcessLookupError):  # it has ended all the same
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def shut_down_while_accepting(name: str = "it") -> int | None:
    """Let a thread wait for a connection, and shut its listener down. Returns the error that it gets."""
    _, outcome = accept_in_a_thread(listeners[name])
    listeners[name].shutdown(socket.SHUT_RDWR)
    return outcome.get(timeout=10)


def send_listener(name: str = "it") -> str:
    """Send a listener to the primary. Returns what is against it."""
    try:
        process.send("a listener", listeners[name], keep_open=True)
    except ValueError as error:
        return str(error)
    return ""


def send_pipe() -> int:
    """Send the readable end of a pipe to the primary. Returns the number that it had."""
    reader, writer = os.pipe()
    process.send("a pipe", reader)
    os.close(writer)
    return reader


def listen_again_while_accepting(name: str = "it", **arguments: Any) -> int | None:
    """Let a thread wait for a connection, and put another listener in the place of its own, to which one comes.

    Returns the error that the thread gets, None if it gets that connection.
    """
    number = listeners[name].fileno()
    thread, outcome = accept_in_a_thread(listeners[name])
    with kept_from_the_processor(thread):  # it wakes up when the number is already the next listener's
        close(name)
        listen(name, **arguments)
    assert listeners[name].fileno() == number
    with socket.create_connection(listeners[name].getsockname()):
        error = outcome.get(timeout=10)
        accept(name, reply=False)
    return error


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


def close_by_number(name: str = "it") -> int:
    """Close a socket as libraries in other languages do, and let go of it afterwards. Returns the number."""
    number = listeners[name].fileno()
    os.close(number)
    listeners.pop(name).detach()
    return number


def detach_and_close(name: str = "it") -> int:
    """Let go of a socket, and close it by its number, which this returns."""
    number = listeners.pop(name).detach()
    os.close(number)
    return number


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


def time_accept(timeout: float, name: str = "it") -> float:
    """How long it takes to accept nothing, as nobody connects in time."""
    listeners[name].settimeout(timeout)
    began = time.monotonic()
    tell("accepting")
    try:
        listeners[name].accept()
    except TimeoutError:
        return time.monotonic() - began
    raise AssertionError("somebody has connected")


def bind_udp(
    name: str = "it",
    port: int = 0,
    host: str = "127.0.0.1",
    how: str = "socket",
    reuse_address: bool = False,
    reuse_port: bool = False,
) -> dict[str, Any]:
    """Bind a UDP socket under a name, shared or exclusive."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    if reuse_address:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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


def wakes_at_once(name: str = "it") -> bool:
    """Whether a loop that waits on this would go on at once."""
    return bool(epolls[name].poll(0))


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


def accept_number(name: str = "it") -> int:
    """Accept a connection as a number, which no socket of Python's is ever made of. Returns it."""
    number, _ = listeners[name]._accept()  # type: ignore[attr-defined]
    assert isinstance(number, int)
    return number


def answer_number(number: int) -> None:
    """Say on such a connection who has it, and close it."""
    os.write(number, own_name().encode())
    os.close(number)


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


def drop_when_quiet() -> None:
    """Close the connections that were kept once the worker ends, as servers do with idle ones."""
    assert cluster._child is not None
    cluster._child.when_quiet(drop)


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


def state() -> str:
    """The worker's own state, as it sees it."""
    assert cluster.worker is not None
    return cluster.worker.state


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


spare_descriptors: list[int] = []


def use_up_descriptors(spare: int = 0) -> None:
    """Have every number below the limit in use but so many, as a program that leaks has."""
    set_limit(max(map(int, os.listdir("/proc/self/fd"))) + 10)
    with contextlib.suppress(OSError):
        while True:
            spare_descriptors.append(os.dup(0))
    give_descriptors_back(spare)


def give_descriptors_back(count: int) -> None:
    for _ in range(count):
        os.close(spare_descriptors.pop())


def refuse_to_list(times: int) -> None:
    """Be on a system that has no file left, so many times that a directory is listed."""
    list_directory, left = os.listdir, iter(range(times))

    def refuse(path: str) -> list[str]:
        if next(left, None) is not None:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        return list_directory(path)

    os.listdir = refuse  # type: ignore[assignment]


def drop_rights() -> None:
    """Be nobody. What is to be imported later may be out of reach then."""
    "a".encode("idna")
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def spoil(seconds: float, until: str) -> int:
    """See programs/attacks.py."""
    from programs import attacks  # only here: most puppets need none of what it imports

    return attacks.spoil(seconds, until)


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
