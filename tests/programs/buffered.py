"""What is written before a fork and not flushed is written once; what a worker writes last is written, too."""

import sys

from pycluster import cluster

print("top", "primary" if cluster.is_primary else "worker")
if cluster.is_primary:
    sys.stdout.write("before the fork\n")
    for _ in range(3):
        cluster.fork()
    sys.stdout.write("after the forks\n")
    cluster.run()
    sys.stdout.write("end\n")
else:
    sys.stdout.write("worker's last word\n")
    sys.exit(4)
