"""granian, which is written in Rust, and starts processes of its own. Arguments: port."""

import sys

from granian import Granian

from programs.served.apps import HOST

if __name__ == "__main__":
    Granian("programs.served.apps:asgi", HOST, int(sys.argv[1]), interface="asgi", log_enabled=False).serve()
