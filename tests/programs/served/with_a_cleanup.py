"""A script that has something to do when uvicorn has returned. Arguments: port, and one for a connection of its own."""

import sys
import time

import uvicorn

from programs.facts import tell
from programs.served.apps import HOST, asgi
from pycluster import cluster

with cluster.listen((HOST, int(sys.argv[2]))) as listener:
    connection, _ = listener.accept()
uvicorn.run(asgi, host=HOST, port=int(sys.argv[1]), log_level="warning")
connection.close()  # until now it has held the worker
assert cluster.worker is not None
while cluster.worker.is_connected():
    time.sleep(0.001)
time.sleep(0.3)  # in which a signal would come
tell("cleaned")
sys.exit(5)
