"""What a worker may try on the primary and on the shared region: functions for puppets."""

import ctypes
import fcntl
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

from programs.core_front import region
from programs.facts import tell
from pycluster import cluster

# Numbers of <linux/ptrace.h>, <fcntl.h> and the system calls' table that Python does not have.
PTRACE_ATTACH = 16
F_SETSIG = 10
SYS_PIDFD_GETFD = 438


def spoil(seconds: float, until: str) -> int:
    """Fill the shared region with zeros, ones and rubbish, again and again. Returns how often.

    It goes on for so long, 12 times at the least, and until there is a file of this name.
    """
    address, size = region()
    ends = time.monotonic() + seconds
    times = 0
    while time.monotonic() < ends or times < 12 or not os.path.exists(until):
        for content in (bytes(size), b"\xff" * size, os.urandom(size)):
            ctypes.memmove(address, content, size)
            time.sleep(0.001 * (times % 4))
        if times == 0:
            tell("spoiling")
        times += 3
    return times


def attack_primary() -> dict[str, list[int | None]]:
    """What a worker may try on the process that started it. Returns what each try came to: an errno, or nothing."""
    primary, libc = os.getppid(), ctypes.CDLL(None, use_errno=True)

    def call(function: Any, *arguments: Any) -> None:
        if function(*arguments) < 0:
            raise OSError(ctypes.get_errno(), "")

    def write_memory() -> None:
        byte = ctypes.create_string_buffer(1)
        part = (ctypes.c_size_t * 2)(ctypes.addressof(byte), 1)
        call(libc.process_vm_writev, primary, ctypes.byref(part), 1, ctypes.byref(part), 1, 0)

    tries: dict[str, Callable[[], object]] = {
        "signal": lambda: os.kill(primary, signal.SIGTERM),
        "signal by pidfd": lambda: signal.pidfd_send_signal(os.pidfd_open(primary), signal.SIGTERM),
        "trace": lambda: call(libc.ptrace, PTRACE_ATTACH, primary, 0, 0),
        "write its memory": write_memory,
        "open its memory": lambda: os.open(f"/proc/{primary}/mem", os.O_WRONLY),
        "list its descriptors": lambda: os.listdir(f"/proc/{primary}/fd"),
        "take a descriptor": lambda: call(libc.syscall, SYS_PIDFD_GETFD, os.pidfd_open(primary), 0, 0),
        "limit it": lambda: resource.prlimit(primary, resource.RLIMIT_NOFILE, (10, 10)),
        "signal by a socket": _signal_by_a_socket,
    }
    came_to: dict[str, list[int | None]] = {}
    for name, attempt in tries.items():
        try:
            attempt()
            came_to[name] = []
        except OSError as error:
            came_to[name] = [error.errno]
    return came_to


def _signal_by_a_socket() -> None:
    """Have the kernel send a signal to the primary for what happens on a socket that both have."""
    assert cluster._child is not None
    fcntl.fcntl(cluster._child._channel.fileno(), fcntl.F_SETOWN, os.getppid())
    fcntl.fcntl(cluster._child._channel.fileno(), F_SETSIG, signal.SIGTERM)
    flags = fcntl.fcntl(cluster._child._channel.fileno(), fcntl.F_GETFL)
    fcntl.fcntl(cluster._child._channel.fileno(), fcntl.F_SETFL, flags | os.O_ASYNC)
