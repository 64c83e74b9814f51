"""What cluster.listen refuses."""

from typing import Any

from programs.facts import tell
from pycluster import cluster

errors = {}
arguments: list[dict[str, Any]] = [
    {},
    {"address": 0, "fd": 0},
    {"address": "path", "fd": 0},
    {"address": True},
    {"address": 1.5},
    {"address": ["127.0.0.1", 0]},
    {"fd": True},
    {"fd": "0"},
]
for given in arguments:
    try:
        cluster.listen(**given)
    except Exception as error:
        errors[str(given)] = type(error).__name__
tell("refused", errors=errors)
