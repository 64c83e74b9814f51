"""The first code of a primary that has re-executed itself, run as a file by the interpreter; see takeover.py."""

import json
import os
import sys


def main() -> None:
    """Take over what the environment describes, and run the script."""
    told = json.loads(os.environ.pop("PYCLUSTER_SUCCESSOR"))  # at once: whoever this process starts is no successor
    # Before any other import: this directory, which came first as the directory of the script, is nobody's to search.
    sys.path[:] = told["path"]
    del sys.argv[0]
    from pycluster import protocol, takeover
    from pycluster.cluster import cluster

    protocol.expect_version(told.get("takeover"))
    handed = takeover.read(told["state"])
    with takeover.succession(cluster, handed):
        handed.script.run(sys.argv[1:])


if __name__ == "__main__":
    main()
