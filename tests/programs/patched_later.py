"""A thread of the library's, such as a worker's control thread, in a process that gevent patches meanwhile."""

import os
import time

from gevent import monkey

from programs.facts import tell
from pycluster import native

# The thread leaves the kernel's list at once if it ends at all, and it has all the processor until then.
ENDS_WITHIN_S = 0.2

go, done = native.allocate_lock(), native.allocate_lock()
go.acquire()
done.acquire()


def work() -> None:
    go.acquire()
    done.release()


native.start_thread(work, "it")
threads = len(os.listdir("/proc/self/task"))
monkey.patch_all()
go.release()
done.acquire()
deadline = time.monotonic() + ENDS_WITHIN_S
while len(os.listdir("/proc/self/task")) == threads and time.monotonic() < deadline:
    native.sleep(0.01)
tell("over")
