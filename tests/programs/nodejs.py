"""Small clusters after Node.js's own tests, one a case: what its primary does, and what its workers do.

Arguments: the case (the name of two functions below, `primary_…` and `worker_…`), and what it takes.
"""

import atexit
import contextlib
import importlib
import io
import logging
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from programs.facts import tell, tell_events
from pycluster import Address, Settings, Worker, child, cluster, process


def own() -> Worker:
    assert cluster.worker is not None
    return cluster.worker


def sleep() -> None:
    time.sleep(60)


def fail(*_: object) -> None:
    """No worker of this case gets here."""
    raise AssertionError


# ---- Ends


def primary_destroy_after_disconnect() -> None:
    worker = cluster.fork()

    @worker.on("disconnect")
    def on_disconnect() -> None:
        tell("gone", connected=worker.is_connected())
        worker.destroy()


def worker_destroy_after_disconnect() -> None:
    own().disconnect()
    sleep()


def primary_destroy_in_disconnect() -> None:
    cluster.fork()


def worker_destroy_in_disconnect() -> None:
    process.on("disconnect", lambda: own().destroy())
    own().disconnect()
    sleep()


def primary_process_disconnect() -> None:
    cluster.fork()


def worker_process_disconnect() -> None:
    with cluster.listen(("127.0.0.1", 0)):
        process.disconnect()
        sleep()


def primary_disconnect_in_disconnect() -> None:
    worker = cluster.fork()
    worker.on("online", worker.disconnect)
    worker.on("disconnect", lambda: cluster.disconnect(lambda: tell("callback")))


def worker_disconnect_in_disconnect() -> None:
    sleep()


def primary_from_both_sides() -> None:
    """Whoever has disconnected makes all others disconnect, from both sides at once."""

    def disconnect_others() -> None:
        for worker in cluster.workers.values():
            if worker.is_connected():
                worker.send("disconnect", callback=lambda error: None)
                worker.disconnect()

    cluster.on("disconnect", lambda worker: disconnect_others())
    online: list[Worker] = []

    @cluster.on("online")
    def on_online(worker: Worker) -> None:
        online.append(worker)
        if len(online) == 4:
            disconnect_others()

    for _ in range(4):
        cluster.fork()


def worker_from_both_sides() -> None:
    process.on("message", lambda message, handle: own().disconnect())
    sleep()


def primary_two_who_listen_or_not(kind: str, port: str) -> None:
    """One worker that listens to nothing is disconnected, then all are."""
    idle = cluster.fork({"LISTENS": ""})
    idle.on("online", lambda: cluster.fork({"LISTENS": "1"}))
    idle.on("disconnect", cluster.disconnect)
    cluster.on("listening", lambda worker, address: idle.disconnect())


def worker_two_who_listen_or_not(kind: str, port: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as sock:
        if os.environ["LISTENS"]:
            sock.bind(("127.0.0.1", int(port)))
            if kind == "tcp":
                sock.listen()
        sleep()


def primary_connected_and_disconnected() -> None:
    """A client connects to the one worker that listens while the other one begins to, and both are disconnected."""
    clients: list[socket.socket] = []
    first = cluster.fork()

    @first.on("listening")
    def on_listening(address: Address) -> None:
        second = cluster.fork()

        @second.on("online")
        def on_online() -> None:
            clients.append(socket.create_connection((address.host, address.port)))
            first.disconnect()
            second.disconnect()

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        if not cluster.workers:
            clients.pop().close()


def worker_connected_and_disconnected() -> None:
    listener = cluster.listen(("127.0.0.1", 0))
    while True:
        with listener.accept()[0] as connection, contextlib.suppress(OSError):
            connection.sendall(b"bye")


def primary_disconnected_while_another_starts() -> None:
    first = cluster.fork()

    @first.on("listening")
    def on_listening(address: Address) -> None:
        second = cluster.fork()
        first.disconnect()
        second.on("online", second.disconnect)


worker_disconnected_while_another_starts = worker_connected_and_disconnected


def primary_disconnects_without_the_primary() -> None:
    cluster.fork()


def worker_disconnects_without_the_primary() -> None:
    """Disconnect while the primary is stopped. Says so when the control thread has done all that it does of itself."""
    from harness import is_stopped  # only here: most cases need none of what it imports

    own().on("disconnect", lambda: tell("gone"))
    os.kill(os.getppid(), signal.SIGSTOP)
    while not is_stopped(os.getppid()):
        time.sleep(0.001)
    own().disconnect()
    process.send("a message", callback=lambda error: tell("asked"))
    sleep()


def primary_disconnected_at_once() -> None:
    for _ in range(4):
        cluster.fork()
    cluster.disconnect()


def worker_disconnected_at_once() -> None:
    cluster.listen(("127.0.0.1", 0))
    sleep()


def primary_stopped(how: str) -> None:
    """A worker that SIGSTOP has stopped is ended: with SIGKILL at once, else when it goes on."""
    worker = cluster.fork()

    @worker.on("online")
    def on_online() -> None:
        os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED | os.WNOWAIT)
        if how == "disconnect":
            worker.disconnect()
        else:
            worker.kill(how)
        if how != "SIGKILL":
            tell("asked", dead=worker.is_dead())
            os.kill(worker.process.pid, signal.SIGCONT)


def worker_stopped(how: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    sleep()


def primary_sys_exit(where: str, status: str) -> None:
    worker = cluster.fork()
    asks = where in ("message", "message once", "error", "callback")
    worker.on("message", lambda message, handle: worker.send("exit") if asks else worker.disconnect())


def worker_sys_exit(where: str, status: str) -> None:
    def leave(*_: object) -> None:
        sys.exit(int(status))

    def leave_late(*_: object) -> None:
        """Leave, unless the main thread does before that."""
        gone = threading.Event()
        atexit.register(gone.set)
        gone.wait(0.2)
        leave()

    def fail(*_: object) -> None:
        raise LookupError("this is for the listener")

    async def leave_from_a_loop() -> None:
        own().on("disconnect", leave)
        process.send("ready")
        await asyncio.sleep(60)

    if where == "asyncio":
        import asyncio

        child.HANDLERS_S = 10  # the main thread may have to wait for a processor
        asyncio.run(leave_from_a_loop())
    if where in ("message", "disconnect"):
        own().on(where, leave)
    if where == "error":
        own().on("message", fail)
        cluster.on("error", leave)
    if where == "message once":
        own().once("message", leave)
    if where == "disconnect, when the script has ended":
        own().on("message", fail)
        own().on("disconnect", leave_late)
    process.send("ready", callback=leave if where == "callback" else None)
    if where not in ("message once", "disconnect, when the script has ended"):
        sleep()


def primary_sys_exit_in_a_child(status: str) -> None:
    cluster.fork()


def worker_sys_exit_in_a_child(status: str) -> None:
    """Which is no worker: its callback is called at once."""
    child = os.fork()
    if child == 0:
        process.send("nobody hears this", callback=lambda error: sys.exit(int(status)))
        os._exit(1)
    tell("child", code=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def primary_sys_exit_in_the_primary(status: str) -> None:
    cluster.fork()
    cluster.on("listening", lambda worker, address: sys.exit(int(status)))


def worker_sys_exit_in_the_primary(status: str) -> None:
    with cluster.listen(("127.0.0.1", 0)) as listener:
        listener.accept()


def primary_in_a_destructor() -> None:
    cluster.fork()


def worker_in_a_destructor() -> None:
    class Sleeper:
        def __del__(self) -> None:
            own().disconnect()
            try:
                sleep()
            finally:
                tell("woken")  # before Python drops what has woken it

    Sleeper()
    sleep()


def primary_closes_its_server() -> None:
    cluster.fork()


def worker_closes_its_server() -> None:
    cluster.listen(("127.0.0.1", 0)).close()


# ---- Listening


def primary_start_again() -> None:
    """Start, serve, and disconnect with a callback that does it all once more."""
    rounds = 0
    ports: set[int | None] = set()
    listening = 0

    def begin() -> None:
        nonlocal listening
        listening = 0
        ports.clear()
        for _ in range(3):
            cluster.fork()

    @cluster.on("listening")
    def on_listening(worker: Worker, address: Address) -> None:
        nonlocal listening
        listening += 1
        ports.add(address.port)
        if listening == 6:
            tell("served", ports=len(ports), said=[talk(port) for port in ports])
            cluster.disconnect(ended)

    def talk(port: int | None) -> str:
        with socket.create_connection(("127.0.0.1", port)) as client:
            return client.recv(16).decode()

    def ended() -> None:
        nonlocal rounds
        rounds += 1
        if rounds < 2:
            begin()

    begin()


def worker_start_again() -> None:
    def serve() -> None:
        with listener:
            while True:
                with listener.accept()[0] as connection:
                    connection.sendall(b"echo")

    for _ in range(2):
        listener = cluster.listen(("127.0.0.1", 0))
        threading.Thread(target=serve, daemon=True).start()
    sleep()


def primary_own_port(where: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    cluster.fork({"PORT": str(listener.getsockname()[1])})
    cluster.on("exit", lambda *_: listener.close())


def worker_own_port(where: str) -> None:
    def listen() -> None:
        """Disconnect when that fails, and still raise."""
        try:
            socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
        except OSError as error:
            tell("refused", errno=error.errno)
            own().disconnect()
            raise

    if where == "callback":
        import asyncio

        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)
        loop.call_soon(listen)
        loop.run_forever()
    with contextlib.suppress(OSError):
        listen()
    sleep()


def primary_restart() -> None:
    """While the first worker listens, the second one closes what it shares, and listens to port 0 again."""
    first = cluster.fork()

    @first.once("listening")
    def on_listening(address: Address) -> None:
        cluster.fork().on("exit", lambda code, signal: first.disconnect())


def worker_restart() -> None:
    listener = cluster.listen(("127.0.0.1", 0))
    if own().id == 2:
        listener.close()
        cluster.listen(("127.0.0.1", 0)).close()
        own().disconnect()
    sleep()


def primary_no_bind() -> None:
    cluster.fork()


def worker_no_bind() -> None:
    with socket.socket() as listener:
        listener.listen()
        host, port = listener.getsockname()
        with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0] as connection:
            tell("private", same=connection.getpeername() == client.getsockname(), host=host)


def primary_both_families(port: str) -> None:
    """Three workers on one IPv6 listener that takes IPv4 too; a client of each family."""
    listening: list[Worker] = []

    @cluster.on("listening")
    def on_listening(worker: Worker, address: Address) -> None:
        tell("address", host=address.host, port=address.port, family=address.family)
        listening.append(worker)
        if len(listening) == 3:
            for host in ("127.0.0.1", "::1"):
                with socket.create_connection((host, int(port))) as client:
                    tell("said", said=client.recv(16).decode())
            cluster.disconnect()

    for _ in range(3):
        cluster.fork()


def worker_both_families(port: str) -> None:
    with socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        while True:
            with listener.accept()[0] as connection:
                connection.sendall(b"hello")


def primary_udp_families(port: str) -> None:
    cluster.fork()


def worker_udp_families(port: str) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six, socket.socket(type=socket.SOCK_DGRAM) as four:
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        six.bind(("::", int(port)))
        four.bind(("0.0.0.0", int(port)))
        four.sendto(b"to four", ("127.0.0.1", int(port)))
        six.sendto(b"to six", ("::1", int(port)))
        tell("heard", four=four.recv(16).decode(), six=six.recv(16).decode())
    own().disconnect()
    sleep()


# ---- Settings


def primary_arguments() -> None:
    sys.argv.append("OMG,OMG")
    cluster.fork()


def worker_arguments(*arguments: str) -> None:
    tell("arguments", arguments=arguments)


def primary_setups() -> None:
    @cluster.on("setup")
    def on_setup(settings: Settings) -> None:
        in_force = cluster.settings.args, cluster.settings.silent
        tell("set up", args=settings.args, silent=settings.silent, in_force=in_force)

    for name in ("one", "two", "three"):
        cluster.setup_primary(args=[name])
    cluster.setup_primary()
    cluster.setup_primary(silent=True)


worker_setups = fail


# ---- Messages


def primary_lookalikes(serialization: str) -> None:
    """Messages that look like what the library's two sides say to each other."""
    cluster.setup_primary(serialization=serialization)
    messages = [{"cmd": "NODE_CLUSTER", "ack": -1}, {"type": "Disconnect"}, {"type": "Reply", "seq": 1}, ["Online"]]
    worker = cluster.fork()
    back: list[Any] = []

    @worker.on("message")
    def on_message(message: object, handle: None) -> None:
        back.append(message)
        if len(back) == len(messages):
            tell("back", same=back == messages)
            worker.disconnect()

    for message in messages:
        worker.send(message)


def worker_lookalikes(serialization: str) -> None:
    process.on("message", lambda message, handle: process.send(message))
    sleep()


def primary_both_emitters() -> None:
    worker = cluster.fork()
    worker.on("message", lambda message, handle: tell("heard", by="worker", message=message))
    worker.process.on("message", lambda message, handle: tell("heard", by="process", message=message))
    cluster.on("message", lambda worker, message, handle: tell("heard", by="cluster", message=message))
    worker.once("message", lambda message, handle: worker.send("hello"))


def worker_both_emitters() -> None:
    heard = threading.Semaphore(0)

    def hear(by: str, message: str) -> None:
        tell("heard", by=by, message=message)
        heard.release()

    process.on("message", lambda message, handle: hear("own process", message))
    own().on("message", lambda message, handle: hear("own worker", message))
    process.send("hello")
    for _ in range(2):
        heard.acquire()
    own().disconnect()


def primary_large_with_handle() -> None:
    worker = cluster.fork()
    ours, theirs = socket.socketpair()
    payload = "a" * 800_004
    worker.send({"payload": payload}, theirs)

    @worker.on("message")
    def on_message(message: dict[str, str], handle: socket.socket) -> None:
        with ours, handle:
            handle.sendall(b"x")
            tell("back", same=message["payload"] == payload, heard=ours.recv(1).decode())
        worker.disconnect()


def worker_large_with_handle() -> None:
    process.on("message", lambda message, handle: process.send(message, handle))
    sleep()


def primary_handles_back_and_forth(count: str) -> None:
    """Both sides send sockets as fast as they can, and each comes back."""
    worker = cluster.fork()
    ours = []
    for number in range(int(count)):
        one, other = socket.socketpair()
        ours.append(one)
        worker.send(number, other)

    @worker.on("message")
    def on_message(number: int, handle: socket.socket) -> None:
        with handle, ours[number]:
            handle.sendall(b"x")
            tell("back", number=number, heard=ours[number].recv(1).decode())
        if number == int(count) - 1:
            worker.disconnect()


def worker_handles_back_and_forth(count: str) -> None:
    process.on("message", lambda message, handle: process.send(message, handle))
    sleep()


def primary_same_handle_twice() -> None:
    worker = cluster.fork()

    @worker.on("message")
    def on_message(message: str, handle: socket.socket) -> None:
        with handle:
            tell("got", message=message)


def worker_same_handle_twice() -> None:
    one, other = socket.socketpair()
    with other:
        process.send("first", one, keep_open=True)
        process.send("second", one)
        try:
            process.send("third", one)
        except OSError as error:
            tell("refused", errno=error.errno)
    own().disconnect()
    sleep()


def primary_socket_for_a_server(port: str) -> None:
    """The primary accepts a connection, and a worker's HTTP server answers it."""
    worker = cluster.fork()

    @worker.on("online")
    def on_online() -> None:
        with socket.create_server(("127.0.0.1", int(port))) as listener:
            tell("accepts")
            worker.send("socket", listener.accept()[0])


def worker_socket_for_a_server(port: str) -> None:
    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            pass

    def serve(message: str, handle: socket.socket) -> None:
        server.process_request(handle, handle.getpeername())
        own().disconnect()

    with HTTPServer(("127.0.0.1", 0), Hello) as server:
        process.on("message", serve)
        sleep()


# ---- Others in the same process


def primary_two_libraries() -> None:
    """Two libraries with workers of their own, handlers of their own, and counters of their own."""
    for name in ("one", "two"):
        TwoLibraries(name)


class TwoLibraries:
    """One of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers = {cluster.fork({"LIBRARY": name}).id for _ in range(2)}
        self.answers = 0
        cluster.on("message", self.on_message)
        cluster.on("exit", self.on_exit)

    def on_message(self, worker: Worker, message: str, handle: None) -> None:
        if worker.id in self.workers:
            self.answers += 1
            tell("heard", library=self.name, message=message)
            if self.answers == 2:
                for number in self.workers:
                    cluster.workers[number].disconnect()

    def on_exit(self, worker: Worker, code: int | None, signal: object) -> None:
        if worker.id in self.workers:
            self.workers.remove(worker.id)
            if not self.workers:
                tell("over", library=self.name, counted=cluster.counter(self.name).value)


def worker_two_libraries() -> None:
    name = os.environ["LIBRARY"]
    cluster.counter(name).add()
    process.send(f"from {name}")
    sleep()


def primary_threads(count: str) -> None:
    """Fork while threads hold locks: of logging, of output, and of imports."""
    logging.basicConfig(stream=io.StringIO(), level=logging.INFO)
    over = threading.Event()

    def log() -> None:
        while not over.is_set():
            logging.info("busy")

    def load() -> None:
        while not over.is_set():
            sys.modules.pop("colorsys", None)
            importlib.import_module("colorsys")

    def write() -> None:
        while not over.is_set():
            print(end="", file=sys.stderr, flush=True)

    for function in (log, log, load, write):
        threading.Thread(target=function).start()
    for _ in range(int(count)):
        cluster.fork()

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        if not cluster.workers:
            over.set()


def worker_threads(count: str) -> None:
    logging.info("in the worker")
    importlib.import_module("sched")
    print(end="", file=sys.stderr, flush=True)
    thread = threading.Thread(target=tell, args=("works",))
    thread.start()
    thread.join()


def primary_piped(count: str) -> None:
    """Fork while threads wait for what earlier workers say, and what these are to hear is buffered still."""
    cluster.setup_primary(stdio=["pipe", "pipe", "inherit"])

    def pass_on(worker: Worker, speaks: threading.Event) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            os.write(1, line)
            speaks.set()

    buffers: list[io.BufferedWriter] = []
    for _ in range(int(count)):
        worker = cluster.fork()
        speaks = threading.Event()
        threading.Thread(target=pass_on, args=(worker, speaks)).start()
        speaks.wait()
        assert isinstance(worker.process.stdin, io.RawIOBase)
        buffers.append(io.BufferedWriter(worker.process.stdin))
        buffers[-1].write(b"once")
    child = os.fork()
    if child == 0:
        sys.exit(0)  # its copies of the pipes end with its interpreter
    tell("child", code=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    for buffer in buffers:
        buffer.close()


def worker_piped(count: str) -> None:
    tell("speaks")
    tell("works", heard=sys.stdin.read())


case, *arguments = sys.argv[1:]
if cluster.is_primary:
    tell_events()
    globals()[f"primary_{case}"](*arguments)
    cluster.run()
    tell("end")
else:
    globals()[f"worker_{case}"](*arguments)
