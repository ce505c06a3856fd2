"""A megatron-core whose training loop the launchers do not start: one line, which names what works there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nca_plugin.doctor import launchers
from nca_plugin.doctor.facts import Facts

OWN_SCRIPT = "write the data with nca-plugin generate and name it in the --data-path of a training script of your own"


def error_of(checkout: Path, launcher: str, *arguments: str | Path) -> str:
    """Return what a launcher says on stderr where `checkout` comes before the megatron-core that is installed."""
    command = (sys.executable, "-m", f"nca_plugin.launch.{launcher}", *arguments)
    environment = {**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def write_megatron(folder: Path, release: str, *, has_training: bool) -> Path:
    numbers = zip(("MAJOR", "MINOR", "PATCH"), release.split("."), strict=True)
    for part in ("core", *(["training"] if has_training else [])):
        package = folder / "megatron" / part
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise AssertionError('nothing of it is needed to say so')\n")
    (folder / "megatron" / "__init__.py").touch()
    about = "".join(f"{name} = {number}\n" for name, number in numbers)
    (folder / "megatron" / "core" / "package_info.py").write_text(about)
    return folder


@pytest.mark.parametrize(
    ("release", "has_training", "reason"),
    [
        ("0.17.1", True, OWN_SCRIPT),
        ("0.16.1", False, OWN_SCRIPT),
        ("0.19.2", False, "holds no megatron.training: install megatron-core 0.19, or add a checkout"),
    ],
)
def test_it_is_one_line(tmp_path: Path, release: str, has_training: bool, reason: str) -> None:
    checkout = write_megatron(tmp_path / "checkout", release, has_training=has_training)
    (line,) = error_of(checkout, "megatron", "--data-source", "nca").splitlines()
    assert line.startswith(f"nca-plugin: error: megatron-core {release} ") and reason in line
    assert error_of(checkout, "evaluate", "--evaluation-out", tmp_path / "out.json") == f"{line}\n"


@pytest.mark.parametrize("release", ["0.16.1", "0.17.1"])
def test_doctor_does_not_call_the_launchers_broken(release: str) -> None:
    facts = Facts(versions={"megatron-core": release})
    for check in (launchers.check_megatron(facts), launchers.check_hydra(facts)):
        assert check.verdict.value == "-" and "generate writes data for a script of your own" in check.detail
