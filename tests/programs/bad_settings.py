"""Settings that are refused: nothing is changed, and the message names them."""

from typing import Any

from programs.facts import tell
from pycluster import cluster

BAD: list[dict[str, Any]] = [
    {"colour": "blue"},
    {"silent": 1},
    {"args": "--port 80"},
    {"graceful_timeout": "30"},
    {"graceful_timeout": -1},
    {"serialization": "pickle"},
    {"stdio": ["inherit", "tape"]},
    {"exec_argv": ["-O"]},
    {"silent": True, "max_pending": 0},
]
before = cluster.settings
for settings in BAD:
    try:
        cluster.setup_primary(**settings)
    except (TypeError, ValueError) as error:
        names = [name for name in settings if name in str(error)]
        tell("refused", settings=settings, error=type(error).__name__, names=names, same=cluster.settings == before)
    else:
        tell("taken", settings=settings)
try:
    cluster.fork({"NUMBER": 1})  # type: ignore[dict-item]
except TypeError as error:
    tell("refused", settings="env", error=type(error).__name__, text=str(error))
