"""The worker's script: what it is, and running it again from the top as `__main__`."""

import functools
import io
import os
import runpy
import sys
from dataclasses import dataclass
from types import CodeType, ModuleType

from .errors import ClusterError


@dataclass(frozen=True)
class Script:
    """What a worker runs: a file, or a module as `python -m` runs it."""

    path: str
    module: str | None = None

    def run(self, args: list[str]) -> None:
        """Run it as `__main__` of this process. Returns when it ends; what it raises goes through."""
        sys.argv = [self.path, *args]
        if self.module is not None:
            runpy.run_module(self.module, run_name="__main__", alter_sys=True)
            return
        main = ModuleType("__main__")
        main.__file__ = self.path
        main.__dict__["__builtins__"] = __builtins__
        # The module must stay after the script has ended, for threads and atexit functions that use its globals.
        sys.modules["__main__"] = main
        if "__mp_main__" in sys.modules:  # multiprocessing's other name for it, under which its children pickle
            sys.modules["__mp_main__"] = main
        exec(self._code(), main.__dict__)

    def _code(self) -> CodeType:
        with io.open_code(self.path) as file:
            return compile(file.read(), self.path, "exec")


def find_script(path: str | None) -> Script:
    """The script of a worker: `settings.exec`, or the one that this process was started with.

    Raises:
      ClusterError: there is none: a REPL, a notebook, or `python -c`.
    """
    return _main_script() if path is None else Script(os.path.abspath(path))


@functools.cache  # the interpreter takes __file__ away when the script has ended, and the cluster may run on then
def _main_script() -> Script:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    file = getattr(main, "__file__", None)
    if file is None or not os.path.exists(file):
        raise ClusterError(
            "there is no script that a worker could run: this is a REPL, a notebook or `python -c`; "
            "put the program in a file, or name one with setup_primary(exec=...)"
        )
    return Script(file, spec.name if spec is not None else None)
