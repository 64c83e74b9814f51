"""Write docs/api.md from the docstrings: `python docs/make_reference.py`.

Signatures and docstrings are read from the sources, not from imported objects, so that every version of Python writes
the same page. Only the core's Counter is imported, whose docstrings are compiled in.
"""

import ast
import inspect
import pathlib
import re
from collections.abc import Iterator

from pycluster import Counter

DOCS = pathlib.Path(__file__).resolve().parent
SOURCES = DOCS.parent / "src" / "pycluster"

HEAD = """\
# API reference

Made from the docstrings by `docs/make_reference.py`; a test fails when it is not what the script makes. Everything here
is imported from `pycluster`. For the whole story in order see the [guide](guide.md).

`cluster` is the one `Cluster` of the process, and `process` its own `WorkerProcess` in a worker; in the primary
`process` has only `pid`, and `connected`, which is False there.

Clusters, workers and processes are event emitters, as in [pyee](https://pyee.readthedocs.io): `on(event, f)` (also as a
decorator, `@cluster.on("exit")`), `once`, `remove_listener`, `remove_all_listeners`, `listeners`, `emit`. A handler
that raises stops neither the others nor the cluster: the exception is logged to "pycluster", or given to the `error`
listeners of `cluster`. `async def` handlers need a running loop: `await cluster.serve()` in the primary, or a handler
that is registered inside the loop in a worker. `sys.exit()` in a handler ends the process.
"""

CLASSES = (
    ("cluster.py", "Cluster"),
    ("worker.py", "Worker"),
    ("worker.py", "WorkerProcess"),
    ("worker.py", "Address"),
    ("settings.py", "Settings"),
    ("counters.py", "ClusterStats"),
    ("counters.py", "WorkerStats"),
    ("watch.py", "Hang"),
)
ERRORS = ("ClusterError", "NotPrimaryError", "NotWorkerError", "ChannelClosedError", "ReloadError")
# Of the emitter, of dataclasses, or for the library itself.
PRIVATE = {"merged"}


def page() -> str:
    """The whole of docs/api.md."""
    parts = [HEAD]
    for file, name in CLASSES:
        parts += _class_section(_find_class(file, name))
    parts += _counter_section()
    parts.append("## Constants\n")
    parts.append('- `SCHED_RR`: the primary hands connections out in turn. `"rr"`; also `cluster.SCHED_RR`.')
    parts.append('- `SCHED_NONE`: the kernel picks the worker. `"none"`; also `cluster.SCHED_NONE`.\n')
    parts.append("## Errors\n")
    parts.append("What the system itself refuses stays an `OSError` with its errno.\n")
    for name in ERRORS:
        node = _find_class("errors.py", name)
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        parts.append(f"- `{name}({bases})`: {ast.get_docstring(node)}")
    return "\n".join(parts).rstrip() + "\n"


def _find_class(file: str, name: str) -> ast.ClassDef:
    tree = ast.parse((SOURCES / file).read_text())
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def _class_section(node: ast.ClassDef) -> Iterator[str]:
    yield f"## {node.name}\n"
    yield _markdown(ast.get_docstring(node) or "")
    if fields := [member for member in node.body if isinstance(member, ast.AnnAssign)]:
        yield "**Fields**\n"
        yield "\n".join(f"- `{ast.unparse(field)}`" for field in fields) + "\n"
    for member in node.body:
        if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)):
            decorators = [ast.unparse(decorator) for decorator in member.decorator_list]
            if member.name.startswith("_") or member.name in PRIVATE or any(d.endswith(".setter") for d in decorators):
                continue
            yield f"### `{_signature(node, member, 'property' in decorators)}`\n"
            yield _markdown(ast.get_docstring(member) or "")
        elif isinstance(member, ast.Assign) and isinstance(member.value, ast.Name) and member.value.id.islower():
            yield f"### `{ast.unparse(member.targets[0])}`\n"
            yield f"The same as `{member.value.id}`.\n"


def _signature(owner: ast.ClassDef, function: ast.FunctionDef | ast.AsyncFunctionDef, is_property: bool) -> str:
    returns = "" if function.returns is None else _plain(ast.unparse(function.returns))
    prefix = "cluster" if owner.name == "Cluster" else "worker" if owner.name == "Worker" else "process"
    if is_property:
        return f"{prefix}.{function.name}: {returns}"
    arguments = _plain(ast.unparse(function.args)).removeprefix("self").removeprefix(", ").replace("=", " = ")
    call = f"{prefix}.{function.name}({arguments})"
    if isinstance(function, ast.AsyncFunctionDef):
        call = f"await {call}"
    return call if returns == "None" else f"{call} -> {returns}"


def _plain(annotation: str) -> str:
    """Without quotes and modules; an alias of the library's own in full, as another `Address` is public."""
    alias = re.search(r"^Address = (.*)$", (SOURCES / "listener.py").read_text(), re.MULTILINE)
    assert alias is not None
    annotation = annotation.replace("listener.Address", alias[1])
    return re.sub(r"\b(contextlib|socket|_cluster|signals)\.(?=[A-Za-z])", r"", annotation.replace("'", ""))


def _counter_section() -> Iterator[str]:
    yield "## Counter\n"
    yield _markdown(inspect.getdoc(Counter) or "")
    for name, signature in (
        ("add", "counter.add(n: int = 1)"),
        ("value", "counter.value: int"),
        ("by_worker", "counter.by_worker: Mapping[int, int]"),
    ):
        yield f"### `{signature}`\n"
        yield _markdown(inspect.getdoc(getattr(Counter, name)) or "")


def _markdown(docstring: str) -> str:
    """Paragraphs as they are, sections (Args:, Returns:, …) as lists."""
    out = []
    for block in re.split(r"\n\s*\n", docstring.strip()):
        lines = block.splitlines()
        if found := re.fullmatch(r"(Args|Returns|Raises|Attributes):", lines[0].strip()):
            out.append(f"**{found[1]}**")
            items: list[str] = []
            for line in lines[1:]:
                deeper = len(line) - len(line.lstrip()) > 2
                if (deeper and items) or (found[1] == "Returns" and items):
                    items[-1] += " " + line.strip()
                else:
                    items.append(line.strip())
            out.append("\n".join(f"- {_item(item)}" for item in items))
        else:
            out.append(" ".join(line.strip() for line in lines))
    return "\n\n".join(out) + "\n"


def _item(item: str) -> str:
    """`name: what` with the name as code."""
    found = re.match(r"([\w, ]+): ", item)
    if not found:
        return item
    names = ", ".join(f"`{name.strip()}`" for name in found[1].split(","))
    return f"{names}: {item[found.end() :]}"


if __name__ == "__main__":
    (DOCS / "api.md").write_text(page())
