"""A module for templates to import. PRELOADED in the environment says what it does then."""

import os
import sys
import threading
import time

PID = os.getpid()

match os.environ.get("PRELOADED"):
    case "raise":
        raise LookupError("of all things")
    case "exit":
        sys.exit("enough")
    case "die":
        os.abort()
    case "thread":
        threading.Thread(target=time.sleep, args=(3600,), name="for ever", daemon=True).start()
    case "hang":
        os.write(1, b"hangs\n")
        time.sleep(3600)
