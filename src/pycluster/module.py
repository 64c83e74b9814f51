"""The worker's script of `pycluster run -m` and `pycluster serve`: runs a module as `python -m` does.

Arguments: the module's name, then its own. A file of its own, because `settings.exec` names a file.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()  # as -m has it, in the place of this file's directory
    # What the interpreter itself calls for -m: it sets sys.argv[0], runs the module in this very __main__, and says in
    # one line what cannot be found.
    runpy._run_module_as_main(sys.argv.pop(1))  # type: ignore[attr-defined]
