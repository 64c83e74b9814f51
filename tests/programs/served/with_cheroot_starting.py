"""cheroot, which takes its time to start its threads. Arguments: port."""

import sys
import time
from typing import Any

from cheroot.workers.threadpool import ThreadPool
from cheroot.wsgi import Server

from programs.served.apps import HOST, wsgi

plain_start = ThreadPool.start


def start(pool: Any) -> None:
    plain_start(pool)
    time.sleep(0.5)


ThreadPool.start = start  # type: ignore[method-assign, assignment]
Server((HOST, int(sys.argv[1])), wsgi).safe_start()
