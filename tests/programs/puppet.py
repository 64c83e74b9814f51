"""A cluster on strings: the test pulls them one by one, so that nothing depends on who is faster.

Arguments: the path of a Unix socket, and settings. On the socket the test says what to do, one JSON object a line: who
(0: the primary, else a worker's id), what (the name of a function in strings.py or worker_strings.py) and with
what arguments. Each answer is a fact. In a worker the main thread does it. When the test hangs up, all workers are
killed.

What they do is in modules, which are compiled once for all tests: a script is compiled by every process that runs it.
"""

from programs.strings import run_primary, run_worker
from pycluster import cluster

if cluster.is_primary:
    run_primary()
else:
    run_worker()
