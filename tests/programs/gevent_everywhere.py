"""A whole program under gevent, the primary too. Arguments: port."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402

from programs.facts import tell, tell_events  # noqa: E402
from programs.served.apps import HOST, wsgi  # noqa: E402
from pycluster import ClusterError, cluster, process  # noqa: E402

if cluster.is_primary:
    tell_events()
    ticks = gevent.spawn(time.sleep, 3600)  # the hub of the primary runs, and is inherited
    time.sleep(0)
    for method in ("spawn", "forkserver"):
        cluster.setup_primary(start_method=method)
        try:
            cluster.fork()
        except ClusterError as exception:
            tell("refused", text=str(exception))
    cluster.setup_primary(start_method="fork")

    @cluster.on("message")
    def on_message(worker: object, message: object, handle: object) -> None:
        if message == "question":
            for each in cluster.workers.values():
                each.send("answer")

    for _ in range(2):
        cluster.fork()
    cluster.run()
    tell("over")
else:
    process.on("message", lambda message, handle: tell("heard", message=message))
    greenlet = threading.Thread(target=time.sleep, args=[0.01])
    greenlet.start()
    process.send("question")
    server = WSGIServer((HOST, int(sys.argv[1])), wsgi, log=None)
    server.start()
    greenlet.join()
    tell("serving")
    server.serve_forever()
