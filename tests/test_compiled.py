"""What numba compiles, where it cannot be kept."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SHOW = (sys.executable, "-m", "nca_plugin", "show", "iid", "--seq-length", "8")
NOTICE = "nca-plugin: what numba compiles cannot be kept"
#: As a user whose rights are those of others: root could write everywhere.
AS_NOBODY = """
import os, sys
os.setgid(65534); os.setuid(65534)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def read_only_home(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user who may write nowhere but to the temporary folder."""
    folder = tmp_path / "not-mine"
    folder.mkdir(mode=0o555)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    temporary.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path(parent.anchor):
            parent.chmod(parent.stat().st_mode | 0o111)
    tmp_path.chmod(0o755)
    names = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    yield {**environment, "HOME": str(folder), "NUMBA_CACHE_DIR": str(folder / "cache"), "TMPDIR": str(temporary)}


# Python itself has to be readable for others, and the source to be not writable.
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_without_a_folder_of_its_own_numba_gets_one_and_one_notice(
    read_only_home: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", AS_NOBODY, *SHOW]
    done = subprocess.run(command, env=read_only_home, cwd=tmp_path, capture_output=True, text=True)
    if "Permission denied" in done.stderr and NOTICE not in done.stderr:
        pytest.skip("another user may not read this environment")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(NOTICE)
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        "file.write_bytes(b'')",
        "file.write_bytes(file.read_bytes()[:-9])",
        "file.unlink(); file.mkdir()",
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    first = subprocess.run(SHOW, env=environment, capture_output=True, text=True)
    assert first.returncode == 0 and not first.stderr, first.stderr
    kept = [path for path in (tmp_path / "cache").rglob("*.nb[ic]") if path.is_file()]
    assert kept
    for file in kept:
        exec(damage)
    again = subprocess.run(SHOW, env=environment, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    assert "Traceback" not in again.stderr


def test_a_full_disk_costs_a_notice(tmp_path: Path) -> None:
    """As on a disk that has space for no file of some size."""
    script = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); {_IN_PROCESS}"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and done.stderr.startswith(NOTICE), done.stderr


def test_without_a_compiler_nothing_is_computed() -> None:
    done = subprocess.run(SHOW, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "NUMBA_DISABLE_JIT is set" in done.stderr


_IN_PROCESS = (
    "import sys; sys.argv = ['nca-plugin', 'show', 'iid', '--seq-length', '8']; "
    "from nca_plugin.__main__ import main; main()"
)
