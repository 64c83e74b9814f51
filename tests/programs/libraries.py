"""Libraries at work in a worker, and in the one that is forked in its place: threads, pools, pickling, random numbers.

Arguments: a start method, and "run", or whatever else for a primary that does not call run().
"""

import concurrent.futures
import multiprocessing
import pickle
import random
import subprocess
import sys
import threading
from dataclasses import dataclass

from programs.facts import tell
from pycluster import Worker, cluster


@dataclass
class Point:
    x: int
    y: int


def double(point: Point) -> Point:
    return Point(2 * point.x, 2 * point.y)


if __name__ == "__main__":
    if cluster.is_primary:
        random.seed(1)
        cluster.setup_primary(start_method=sys.argv[1])
        left = 1

        @cluster.on("exit")
        def on_exit(worker: Worker, code: int | None, signal: object) -> None:
            global left
            tell("exit", worker=worker.id, code=code)
            if left:
                left -= 1
                cluster.fork()

        cluster.fork()
        # Run implicitly: workers that are forked while Python shuts its threads down must not inherit that.
        if sys.argv[2] == "run":
            cluster.run()
    else:
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            total = sum(threads.map(abs, range(-10, 0)))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            spawned = pool.apply(double, (Point(1, 2),)) == Point(2, 4)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            forked = pool.apply(double, (Point(1, 2),)) == Point(2, 4)
        ran = threading.Event()
        threading.Thread(target=ran.set).start()
        tell(
            "works",
            total=total,
            pickled=pickle.loads(pickle.dumps(Point(1, 2))) == Point(1, 2),
            spawned=spawned,
            forked=forked,
            thread=ran.wait(10),
            subprocess=subprocess.run(["true"], check=False).returncode,
            random=random.random(),
        )
