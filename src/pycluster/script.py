"""The worker's script: what it is, and running it again from the top as `__main__`."""

import contextlib
import io
import os
import sys
from types import CodeType, ModuleType

import msgspec

from .errors import ClusterError


class Script(msgspec.Struct, frozen=True):
    """What a worker runs: a file, a directory or zip archive with a `__main__.py`, or a module as `python -m` runs it.

    Attributes:
      directory: where imports are searched first; None for the primary's own script, which has its place already.
    """

    path: str
    module: str | None = None
    is_archive: bool = False
    directory: str | None = None

    def run(self, args: list[str]) -> None:
        """Run it as `__main__` of this process. Returns when it ends; what it raises goes through."""
        sys.argv = [self.path, *args]
        if self.directory is not None and not sys.flags.safe_path:
            sys.path[:1] = [self.directory]
        if self.module is None and not self.is_archive:
            self._run_file()
            return
        import runpy  # only here: hardly any worker needs it

        if self.module is not None:
            runpy.run_module(self.module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(self.path, run_name="__main__")

    def _run_file(self) -> None:
        global _replaced
        main = ModuleType("__main__")
        main.__file__ = self.path
        main.__dict__["__builtins__"] = __builtins__
        # In a copy of a primary whose script has ended, nothing else may refer to it: what it has would be finalized
        # here, the primary's temporary directories too.
        _replaced = sys.modules.get("__main__")
        # The module must stay after the script has ended, for threads and atexit functions that use its globals.
        sys.modules["__main__"] = main
        if "__mp_main__" in sys.modules:  # multiprocessing's other name for it, under which its children pickle
            sys.modules["__mp_main__"] = main
        exec(self._code(), main.__dict__)

    def compile_ahead(self) -> None:
        """Before a copy of this process is made that runs it: copies share the code, as long as the file is the same.

        What cannot be compiled, the worker reports.
        """
        if self.module is None and not self.is_archive:
            with contextlib.suppress(Exception):
                self._code()

    def _code(self) -> CodeType:
        global _compiled
        with io.open_code(self.path) as file:
            status = os.fstat(file.fileno())
            source = (self.path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if _compiled is None or _compiled[0] != source:
                _compiled = source, compile(file.read(), self.path, "exec")
            return _compiled[1]


# The module in whose place the worker's has come.
_replaced: ModuleType | None = None

# What was compiled last, and of which file.
_compiled: tuple[tuple[str, int, int, int, int], CodeType] | None = None


def find_script(path: str | None) -> Script:
    """The script of a worker: `settings.exec`, or the one that this process was started with.

    Raises:
      ClusterError: there is none: a REPL, a notebook, or `python -c`.
    """
    if path is None:
        return _main_script()
    path = os.path.abspath(path)
    if _is_archive(path):
        return Script(path, is_archive=True, directory=path)
    return Script(path, directory=os.path.dirname(path))


def _is_archive(path: str) -> bool:
    if os.path.isdir(path):
        return True
    import zipfile  # only here: hardly any cluster needs it, and every worker would carry it

    return zipfile.is_zipfile(path)


# The interpreter takes __file__ away when the script has ended, and the cluster may run on then.
_main: Script | None = None


def remember_main(script: Script) -> None:
    """Have this for the script that this process was started with."""
    global _main
    _main = script


def _main_script() -> Script:
    if _main is None:
        remember_main(_find_main_script())
        assert _main is not None
    return _main


def _find_main_script() -> Script:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    file = getattr(main, "__file__", None)
    if file is not None and spec is not None:
        # The interpreter calls what it runs out of a directory or an archive __main__, as its file is.
        if spec.name == "__main__":
            return Script(os.path.dirname(file), is_archive=True)
        return Script(file, module=spec.name)
    if file is None or not os.path.exists(file):
        raise ClusterError(
            "there is no script that a worker could run: this is a REPL, a notebook or `python -c`; "
            "put the program in a file, or name one with setup_primary(exec=...)"
        )
    return Script(file)
