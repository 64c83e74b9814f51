"""A primary whose own code has children: a subprocess, and a wait for any child that takes a worker's end away."""

import os
import subprocess
import sys
import time

from programs.facts import tell, tell_events
from pycluster import Worker, cluster

if cluster.is_primary:
    tell_events()

    @cluster.on("online")
    def on_online(worker: Worker) -> None:
        tell("subprocess", code=subprocess.run([sys.executable, "-c", "exit(3)"], check=False).returncode)
        worker.kill("SIGKILL")
        pid, status = os.waitpid(-1, 0)
        tell("waited", ours=pid == worker.process.pid, signal=os.WTERMSIG(status))

    cluster.fork()
    cluster.run()
    tell("over")
else:
    time.sleep(60)
