"""A cluster that is run twice, and a third time from another thread. Argument: port."""

import sys
import threading

from programs.facts import tell, tell_events
from pycluster import Address, Worker, cluster

if cluster.is_primary:
    tell_events()

    @cluster.on("listening")
    def on_listening(worker: Worker, address: Address) -> None:
        worker.disconnect()

    for turn in range(2):
        cluster.fork()
        cluster.run()
        tell("over", turn=turn)

    def run() -> None:
        cluster.fork()
        cluster.run()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    tell("over", turn=2)
else:
    threads = [thread.name for thread in threading.enumerate()]
    tell("threads", names=threads, main=threading.current_thread() is threading.main_thread())
    cluster.listen(("127.0.0.1", int(sys.argv[1]))).accept()
