"""What passes between processes that may have different versions of the library: it has a version, and is refused."""

import ast
import hashlib
import pathlib
import re
import signal

import pytest

from harness import TESTS, Programs
from pycluster import protocol
from versions import Library, Service, versions

SOURCES = TESTS.parent / "src"

# Whoever changes one of the two raises its version, and writes down here both, the version and the new fingerprint.
REGION = (1, "6075068f84dbaec0")
TAKEOVER = (4, "9436938b20f6bf41")


def fingerprint(layout: str) -> str:
    return hashlib.sha256(layout.encode()).hexdigest()[:16]


def test_a_change_of_the_shared_regions_layout_raises_its_version() -> None:
    source = (SOURCES / "_cluster.pyx").read_text()
    constants, structs = (
        source.split("# ---- The shared region", 1)[1].split("cdef Header *region", 1)[0].split("cdef struct", 1)
    )
    version = int(re.findall(r"REGION_VERSION = (\d+)", constants)[0])
    sizes = re.findall(r"(?:HEADER_SIZE|NAME_SIZE|CHANNELS_PER_WORKER|\w+_SLOT) = \d+", constants)
    fields = [line.partition("#")[0].split() for line in structs.splitlines()]
    found = version, fingerprint(repr((sizes, [field for field in fields if field])))
    assert found == REGION, "raise REGION_VERSION in _cluster.pyx, and write it down here with the new fingerprint"


def test_a_change_of_what_the_primary_writes_for_other_processes_raises_its_version() -> None:
    fields = [
        f"{struct.name}.{ast.unparse(field)}"
        for module in ("protocol", "takeover", "script")
        for struct in ast.parse((SOURCES / "pycluster" / f"{module}.py").read_text()).body
        if isinstance(struct, ast.ClassDef)
        for field in struct.body
        if isinstance(field, ast.AnnAssign)
    ]
    assert len(fields) > 50
    found = protocol.TAKEOVER_VERSION, fingerprint("\n".join(fields))
    assert found == TAKEOVER, "raise TAKEOVER_VERSION in protocol.py, and write it down here with the new fingerprint"


# ---- What comes of it


OTHERS = {
    "takeover": ("protocol.py", "TAKEOVER_VERSION = 4\n", "TAKEOVER_VERSION = 1004\n"),
    "region": ("spawned.py", "told.version,", "told.version + 1,"),  # the core's own is compiled in
}


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("of", OTHERS)
def test_a_reload_onto_another_version_of_the_library_leaves_the_old_workers_serving(
    of: str, method: str, cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    library = Library(tmp_path / "library")
    service = Service(cluster_program, tmp_path, 2, env=library.env, start_method=method)
    service.program.expects_traceback = True
    module, old, new = OTHERS[of]
    with service.load(2, pause_s=0.005) as load:
        service.release(1)
        library.replace(module, old, new)
        service.fails_to_reload("the workers that ran go on")
        assert (
            "RuntimeError: the primary runs another version of pycluster; start the cluster" in service.program.stderr
        )
        assert versions(load) == {(0, 0)}
        library.replace(module, new, old)
        service.reload()
        assert versions(load) == {(1, 1)}
    assert load.failures == []
    service.end()


def test_a_library_that_is_replaced_while_the_primary_executes_itself_anew_ends_the_cluster(
    cluster_program: Programs, tmp_path: pathlib.Path
) -> None:
    library = Library(tmp_path / "library")
    service = Service(cluster_program, tmp_path, 2, env=library.env)
    service.program.expects_traceback = True
    assert len(service.program.processes()) == 3
    library.replace("successor.py", 'told.get("takeover")', 'told.get("takeover") + 1')
    service.program.send_signal(signal.SIGHUP)
    ended = service.program.finish()
    assert ended.returncode == 1
    assert "RuntimeError: the primary runs another version of pycluster; start the cluster anew" in ended.stderr
    assert service.program.wait_until_alone() == []
