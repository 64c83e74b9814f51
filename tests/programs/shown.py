"""Shows how it was started, and ends. Arguments: whatever."""

import json
import os
import sys

shown = {
    "event": "shown",
    "argv": sys.argv,
    "path": sys.path[0],
    "name": __name__,
    "file": __file__,
    "package": __package__,
    "spec": getattr(__spec__, "name", None),
    "is main": sys.modules["__main__"].__dict__ is globals(),
}
os.write(1, json.dumps(shown).encode() + b"\n")
