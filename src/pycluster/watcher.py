"""Watching for changed files: a process of its own, so that the primary has no thread of watchfiles' when it forks.

The primary's side is `Watcher`. The other one is this file, run by an interpreter that needs nothing of the package: it
writes a line of JSON to its stdout for each batch of changes, and ends when its stdin does, which is when the primary
closes it or is gone.
"""

import contextlib
import json
import os
import sys
import threading

# watchfiles waits until nothing more has changed for its `step` of 50 ms. When nothing has changed for so long, it
# says so: that tells, the first time, that it watches.
QUIET_MS = 200


class Watcher:
    """The process that watches a directory, as the primary holds it.

    Attributes:
      watching: whether it has begun.
      error: why it has ended by itself, in words, or None.
    """

    def __init__(self, watched: str) -> None:
        """Watch the Python files below a directory, or beside a file and below, and that file, whatever its name.

        Raises:
          OSError: it cannot be started.
        """
        import subprocess  # only here: every worker would carry it

        self.watching = False
        self.error: str | None = None
        self._rest = b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, watched],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # a terminal's Ctrl-C is not for it
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.register_at_fork(after_in_child=self._close_pipes)

    def fileno(self) -> int:
        """Readable when there is something to `read`."""
        return self._stdout.fileno()

    def read(self) -> list[str] | None:
        """The changed files by now, when `fileno()` is readable; None when there will be no more."""
        chunk = os.read(self._stdout.fileno(), 65536)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        changed: set[str] = set()
        for line in lines:
            said = json.loads(line)
            if "error" in said:
                self.error = said["error"]
            else:
                self.watching = True
                changed.update(said["changed"])
        return sorted(changed) if chunk else None

    def close(self) -> None:
        """End the process. Idempotent."""
        self._close_pipes()
        self._process.kill()
        self._process.wait()

    def _close_pipes(self) -> None:
        """Also in each process that the primary forks: the watcher must see the end of the primary."""
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def main(watched: str) -> None:
    """Watch until stdin ends."""
    directory = watched if os.path.isdir(watched) else os.path.dirname(watched)
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        from watchfiles import PythonFilter, watch

        is_python = PythonFilter()
        began = False
        for changes in watch(
            directory,
            watch_filter=lambda change, path: is_python(change, path) or path == watched,
            rust_timeout=QUIET_MS,
            yield_on_timeout=True,
            ignore_permission_denied=True,
        ):
            if changes or not began:
                _say(changed=sorted(os.path.relpath(path, directory) for _, path in changes))
            began = True
    except Exception as exception:
        _say(error=f"{type(exception).__name__}: {exception}")


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
