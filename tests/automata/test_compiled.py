"""What numba compiles, where it cannot be kept."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SHOW = (sys.executable, "-m", "nca_plugin", "show", "iid", "--seq-length", "8")
NOTICE = "nca-plugin: what numba compiles cannot be cached"


def _make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("has_temporary_folder", [True, False])
def test_without_a_folder_numba_gets_one_and_the_user_a_notice(tmp_path: Path, has_temporary_folder: bool) -> None:
    """As where neither the package, nor the home, nor NUMBA_CACHE_DIR can be written to, which root always can."""
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": "/proc/nothing"}
    environment = os.environ | nowhere | {"TMPDIR": str(tmp_path)}
    command = SHOW
    if not has_temporary_folder:
        command = (sys.executable, "-c", f"import tempfile; tempfile._candidate_tempdir_list = list; {_IN_PROCESS}")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(NOTICE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [lambda file: file.write_bytes(b""), lambda file: file.write_bytes(file.read_bytes()[:-9]), _make_folder],
    ids=["empty", "cut", "a folder"],
)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    first = subprocess.run(SHOW, env=environment, capture_output=True, text=True)
    assert first.returncode == 0 and not first.stderr, first.stderr
    kept = [path for path in (tmp_path / "cache").rglob("*.nb[ic]") if path.is_file()]
    assert kept
    for file in kept:
        damage(file)
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
