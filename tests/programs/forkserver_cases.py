"""Cases of the start method "forkserver": `forkserver_cases.py NAME` tells one fact.

A worker does what DOES in its environment says, the name of a function below, and sends what that returns.
"""

import asyncio
import contextlib
import ctypes
import faulthandler
import functools
import mmap
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from programs import preloaded
from programs.facts import open_descriptors, tell
from pycluster import ClusterError, Worker, cluster, forkserver, process

Facts = dict[str, Any]

# ---- What a worker does


def is_clean() -> Facts:
    return {
        "parent": os.getppid(),
        "mark": sys.__dict__.get("mark"),
        "threads": len(os.listdir("/proc/self/task")) - len({"main", "control", "lifeline"}),
        "descriptors": sorted(open_descriptors().values()),
    }


def shows_template() -> Facts:
    return {"template": preloaded.PID, "optimize": sys.flags.optimize}


def counts() -> Facts:
    preloaded.HITS.add()
    cluster.counter("hits").add()
    return {"value": preloaded.HITS.value, "regions": sum("memfd" in name for name in open_descriptors().values())}


def shows_surroundings() -> Facts:
    return {"cwd": os.getcwd(), "env": os.environ.get("LATER"), "path": sys.path[-1], "odd": os.environb.get(b"\xff")}


def signals_itself() -> Facts:
    """By each of the ways that the C library has, some of which know this thread by an id of its own."""
    heard = []
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    main = threading.main_thread().ident
    assert main is not None
    signal.raise_signal(signal.SIGUSR1)
    signal.pthread_kill(main, signal.SIGUSR1)
    other = threading.Thread(target=lambda: signal.pthread_kill(main, signal.SIGUSR1))
    other.start()
    other.join()
    ids = {threading.get_native_id(), kept_thread_id()}
    return {"heard": len(heard), "ids": ids == {os.getpid()}}


def kept_thread_id() -> int:
    """The id of this thread as the C library has it, by the clock of its time."""
    library = ctypes.CDLL(None)
    library.pthread_self.restype = ctypes.c_ulong
    clock = ctypes.c_int()
    assert library.pthread_getcpuclockid(ctypes.c_ulong(library.pthread_self()), ctypes.byref(clock)) == 0
    return ~(clock.value >> 3)  # see clock_getres(2), and the kernel's MAKE_THREAD_CPUCLOCK


def runs_children() -> Facts:
    async def run() -> int:
        child = await asyncio.create_subprocess_exec("sh", "-c", "exit 5")
        return await child.wait()

    forked = os.fork()
    if forked == 0:
        os._exit(6)
    return {
        "asyncio": asyncio.run(run()),
        "subprocess": subprocess.run(["sh", "-c", "exit 4"], check=False).returncode,
        "forked": os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]),
    }


def aborts() -> Facts:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


def faults() -> Facts:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable(sys.stdout)
    faulthandler._sigsegv()  # type: ignore[attr-defined]
    return {}


def dies_with_a_mutex() -> Facts:
    """A robust one, which passes to another process when its owner dies."""
    library, mutex = open_mutex()
    attributes = ctypes.create_string_buffer(64)
    assert library.pthread_mutexattr_init(attributes) == 0
    assert library.pthread_mutexattr_setrobust(attributes, 1) == 0
    assert library.pthread_mutexattr_setpshared(attributes, 1) == 0
    assert library.pthread_mutex_init(mutex, attributes) == 0
    assert library.pthread_mutex_lock(mutex) == 0
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def takes_the_mutex() -> Facts:
    library, mutex = open_mutex()
    return {"error": library.pthread_mutex_trylock(mutex)}


def open_mutex() -> tuple[ctypes.CDLL, Any]:
    fd = os.open(os.environ["MUTEX"], os.O_RDWR)
    memory = mmap.mmap(fd, mmap.PAGESIZE)
    return ctypes.CDLL(None), (ctypes.c_char * 64).from_buffer(memory)


def stays() -> Facts:
    threading.Timer(0.2, process.send, ["alive"]).start()
    cluster.listen(("127.0.0.1", 0)).accept()
    return {}


# ---- The primary


class Life:
    """What a worker has said, and how it has ended."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.said: list[Any] = []
        self.end: tuple[int | None, str | None] | None = None
        worker.on("message", lambda message, handle: self.said.append(message))
        worker.on("exit", lambda code, signal: setattr(self, "end", (code, signal and signal.name)))


def begin(does: Callable[[], Facts], **env: str) -> Life:
    return Life(cluster.fork({"DOES": does.__name__, **env}))


def wait_for(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 12
    while not happened():
        assert time.monotonic() < deadline, "it has not happened"
        cluster.dispatch(0.1)


def let(does: Callable[[], Facts], **env: str) -> Life:
    """Let a worker do something to its end."""
    life = begin(does, **env)
    wait_for(lambda: life.end)
    return life


def result(does: Callable[[], Facts], **env: str) -> Facts:
    """What a worker sends."""
    life = let(does, **env)
    assert life.end == (0, None), life.end
    said: Facts = life.said[0]
    return said


def template() -> int:
    pid: int = result(shows_template)["template"]
    return pid


def children() -> list[int]:
    """The living and the dead."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(pid))
    return sorted(found)


def error_of_fork() -> str:
    try:
        cluster.fork()
    except (ClusterError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def threads_that_work() -> Iterator[None]:
    """Threads in the primary that are in the midst of something all the time."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            bytes(100_000)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def a_worker_is_clean() -> Facts:
    sys.__dict__["mark"] = "of the primary"
    opened, _written = os.pipe()
    os.set_inheritable(opened, True)
    with threads_that_work():
        first = result(is_clean)
        alike = result(is_clean)
    name = os.readlink(f"/proc/self/fd/{opened}")
    return {**first, "primary": os.getpid(), "opened": name in first["descriptors"], "threads too": alike["threads"]}


def in_a_running_loop() -> Facts:
    """The worker has no loop, in whatever the primary forks."""

    async def fork() -> Life:
        return begin(runs_children)

    life = asyncio.run(fork())
    wait_for(lambda: life.end)
    return {"end": life.end, **life.said[0]}


def signals() -> Facts:
    return result(signals_itself)


def ends_by_signals() -> Facts:
    ends = {does.__name__: let(does).end for does in (aborts, faults)}
    return {**ends, "template": len(children())}


def mutexes(path: str) -> Facts:
    with open(path, "wb") as file:
        file.truncate(mmap.PAGESIZE)
    return {"end": let(dies_with_a_mutex, MUTEX=path).end, **result(takes_the_mutex, MUTEX=path)}


def one_template() -> Facts:
    cluster.fork({"DOES": "stays"})
    templates = {template()}
    os.kill(min(templates), signal.SIGINT)  # as a terminal does, whose Ctrl-C is the primary's to answer
    templates |= {template() for _ in range(2)}
    return {"templates": len(templates), "children": len(children()), "living": templates <= set(children())}


def fork_meanwhile(errors: list[str]) -> None:
    """Fork what stays."""
    try:
        cluster.fork({"DOES": "stays"})
    except Exception as error:
        errors.append(repr(error))


def threads_meet() -> Facts:
    """Several threads fork at a time, the first time too, when there is no template yet."""
    errors: list[str] = []

    def fork_some() -> None:
        for _ in range(5):
            fork_meanwhile(errors)

    threads = [threading.Thread(target=fork_some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"errors": errors, "ids": sorted(cluster.workers), "children": len(children())}


def signals_meet() -> Facts:
    """A signal handler forks while its thread does, and waits for the template's answer most of the time."""
    errors: list[str] = []
    left = [None] * 5

    def fork_once_more(number: int, frame: object) -> None:
        if left:
            left.pop()
            fork_meanwhile(errors)

    fork_meanwhile(errors)  # the template is there from now on
    signal.signal(signal.SIGALRM, fork_once_more)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0007)
    forked = 1
    while left:
        fork_meanwhile(errors)
        forked += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return {
        "errors": errors,
        "same": sorted(cluster.workers) == list(range(1, forked + 6)),
        "templates": len(children()) - forked - 5,
    }


def died(dispatches: str) -> Facts:
    """The template is killed, in a primary that sees it at once, or not before it forks."""
    first = template()
    life = begin(stays)
    pidfd = os.pidfd_open(first)
    os.kill(first, signal.SIGKILL)
    select.select([pidfd], [], [])
    if dispatches == "yes":
        wait_for(lambda: first not in children())
    second = template()
    wait_for(lambda: life.said)
    facts = {"another": first != second, "reaped": first not in children(), "worker": life.end}
    life.worker.kill()
    return facts


def discarded() -> Facts:
    primary = cluster._as_primary("it")
    primary.discard_template()  # there is none
    first = template()
    life = begin(stays)
    primary.discard_template()
    left = children()
    second = template()
    wait_for(lambda: life.said)
    facts = {"another": first != second, "left": left == [life.worker.process.pid], "worker": life.end}
    life.worker.kill()
    return facts


def other_settings() -> Facts:
    """What a template is made of cannot be changed; another one is."""
    seen = [result(shows_template)]
    cluster.setup_primary(exec_argv=["-O"])
    seen.append(result(shows_template))
    cluster.setup_primary(exec_argv=None, preload=["programs.preloaded", "json"])
    seen.append(result(shows_template))
    cluster.setup_primary(silent=True, cwd="/")
    seen.append(result(shows_template))
    templates = [facts["template"] for facts in seen]
    return {
        "templates": [templates.index(pid) for pid in templates],
        "optimize": [facts["optimize"] for facts in seen],
        "children": children() == [templates[-1]],
    }


def surroundings(directory: str) -> Facts:
    """What has changed in the primary since the template was started."""
    template()
    os.chdir(directory)
    os.environ["LATER"] = "changed"
    os.environb[b"\xff"] = b"\xfe"
    sys.path.append("/later")
    seen = [result(shows_surroundings)]
    cluster.setup_primary(cwd="..")
    seen.append(result(shows_surroundings, LATER="given"))
    return {"seen": [{**facts, "odd": facts["odd"] == b"\xfe"} for facts in seen]}


def counters() -> Facts:
    """A preloaded module has made one when there was no primary's region to be in."""
    other = cluster.counter("other")
    os.environ["PRELOADED"] = "count"
    worker = result(counts)
    return {"worker": worker, "hits": cluster.counter("hits").value, "other": other.value}


def fails(how: str) -> Facts:
    cluster.counter("it")  # the shared region, which stays
    before = open_descriptors()
    os.environ["PRELOADED"] = how
    error = error_of_fork()
    facts = {"error": error, "left": len(open_descriptors()) - len(before), "children": children()}
    del os.environ["PRELOADED"]
    forkserver.START_S = 10.0
    return {**facts, "later": template() > 0}


def hangs() -> Facts:
    forkserver.START_S = 0.3
    return fails("hang")


def stopped() -> Facts:
    """A template that does not answer is given up, and so is what it makes when it wakes up."""
    forkserver.CLONE_S = 3.0
    first = template()
    forkserver.CLONE_S = 10.0
    before = open_descriptors()
    os.kill(first, signal.SIGSTOP)
    error = error_of_fork()
    left = children()
    return {"error": error, "left": left, "descriptors": len(open_descriptors()) - len(before), "later": template() > 0}


def interrupted() -> Facts:
    """Each template makes a worker, is killed or stopped before it can say so, and another one takes its place."""
    forkserver.CLONE_S = 3.0
    lives = [begin(stays) for _ in range(2)]
    wait_for(lambda: all(life.said for life in lives))
    facts = {
        "children": children() == sorted(life.worker.process.pid for life in lives),
        "ids": sorted(cluster.workers),
        "said": [life.said for life in lives],
    }
    for life in lives:
        life.worker.kill()
    wait_for(lambda: all(life.end for life in lives))
    return {**facts, "ends": [life.end for life in lives], "left": children()}


def directories() -> Facts:
    errors = []
    for cwd in ("/nowhere", "/dev/null"):
        cluster.setup_primary(cwd=cwd)
        errors.append(error_of_fork().partition(":")[0])
    return {"errors": errors, "children": children()}


def no_room() -> Facts:
    """However many descriptors are left, a fork works, or leaves nothing."""
    pid = template()
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    errors = set()
    worked = []
    for room in range(12):
        filling = fill_up(room)
        life = None
        try:
            life = begin(shows_template)
        except OSError as error:
            errors.add(error.errno)
            left = fill_up(0)
            filling += left
            assert len(left) == room
        finally:
            for fd in filling:
                os.close(fd)
        if life is None:
            assert children() == [pid], (room, children(), pid)
        else:
            wait_for(functools.partial(getattr, life, "end"))
            worked.append(room)
    return {"errors": list(errors), "worked": worked[-1:], "same": template() == pid}


def fill_up(room: int) -> list[int]:
    """Open descriptors until only so many are left."""
    filling = []
    with contextlib.suppress(OSError):
        while True:
            filling.append(os.dup(0))
    for _ in range(room):
        os.close(filling.pop())
    return filling


if cluster.is_worker:
    done = globals()[os.environ["DOES"]]()
    if done:
        process.send(done)
elif __name__ == "__main__":
    cluster.setup_primary(start_method="forkserver", preload=["programs.preloaded"])
    facts = globals()[sys.argv[1]](*sys.argv[2:])
    cluster._as_primary("it").kill_all()
    cluster.run()
    tell("facts", **facts, after=children())
