"""What is installed: version, types, public names."""

import ast
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib

import pycluster

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = pathlib.Path(pycluster.__file__).parent

PUBLIC = {
    "SCHED_NONE",
    "SCHED_RR",
    "Address",
    "ChannelClosedError",
    "Cluster",
    "ClusterError",
    "ClusterStats",
    "Counter",
    "Hang",
    "NotPrimaryError",
    "NotWorkerError",
    "ReloadError",
    "Settings",
    "Worker",
    "WorkerProcess",
    "WorkerStats",
    "cluster",
    "process",
}


def test_the_installed_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert importlib.metadata.version("pycluster") == project["version"]


def test_the_public_names_are_those_of_the_contract() -> None:
    assert set(pycluster.__all__) == PUBLIC
    assert all(hasattr(pycluster, name) for name in PUBLIC)


def test_errors_are_cluster_errors_and_runtime_errors() -> None:
    for error in (
        pycluster.ChannelClosedError,
        pycluster.NotPrimaryError,
        pycluster.NotWorkerError,
        pycluster.ReloadError,
    ):
        assert issubclass(error, pycluster.ClusterError)
    assert issubclass(pycluster.ClusterError, RuntimeError)


def test_the_policies_are_also_the_clusters_attributes() -> None:
    assert pycluster.Cluster.SCHED_RR == pycluster.SCHED_RR
    assert pycluster.Cluster.SCHED_NONE == pycluster.SCHED_NONE


def test_types_are_shipped(tmp_path: pathlib.Path) -> None:
    """What a wheel gets but for the core, which is slow to compile."""
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert {"py.typed", "_cluster.pyi", "__init__.py"} <= {file.name for file in (tmp_path / "pycluster").iterdir()}


def test_whoever_installs_it_gets_pyee_and_msgspec_and_nothing_else() -> None:
    required = [line for line in importlib.metadata.requires("pycluster") or [] if "extra ==" not in line]
    assert {re.match(r"[\w-]+", line).group() for line in required} == {"pyee", "msgspec"}  # type: ignore[union-attr]


def test_the_stub_has_what_the_core_has() -> None:
    stub = ast.parse((PACKAGE / "_cluster.pyi").read_text())
    declared = {node.name for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    core = vars(pycluster._cluster)
    defined = {name for name, value in core.items() if not name.startswith("_") and callable(value)}
    assert declared == defined - {"os"}


def test_the_package_file_only_hands_names_on() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    docstring, *rest, names = tree.body
    assert isinstance(docstring, ast.Expr)
    assert all(isinstance(node, ast.ImportFrom) for node in rest)
    assert isinstance(names, ast.Assign)


def test_importing_the_package_imports_nothing_that_most_do_not_need() -> None:
    """A fork copies what the primary has imported, and asyncio alone is 10 MB; json and random are 4 ms together."""
    unneeded = {"asyncio", "json", "random", "typer", "rich", "watchfiles", "uvicorn"}
    code = f"import pycluster, sys; print(*{unneeded} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == ""
