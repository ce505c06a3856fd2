"""An installation changes nothing that an environment trains with, and works where nothing else is: `pip` is asked for
real, in environments whose metadata say what NVIDIA's containers hold."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from megatron_runs import run as run_megatron
from places import ROOT

pytestmark = pytest.mark.index

SETUP = "setup.cfg"


@dataclass(frozen=True)
class Container:
    """What pip reads of a container. Megatron-Bridge's table of its containers tells torch and megatron-core; the
    suffixes of NVIDIA's builds are not in it, nor is numpy, of which an old and a new one are tried."""

    name: str
    torch: str
    megatron_core: str | None
    numpy: str

    @property
    def packages(self) -> Mapping[str, str]:
        held = {"torch": self.torch, "numpy": self.numpy, "triton": "3.6.0"}
        held |= {"transformer-engine": "2.14.0+5671fd3", "apex": "0.1"}
        return held if self.megatron_core is None else {**held, "megatron-core": self.megatron_core}


CONTAINERS = [
    Container("nemo-26.02", "2.10.0a0+b4e4ee81d3.nv25.12", "0.16.0", "1.26.4"),
    Container("nemo-26.04", "2.11.0a0+a6c236b9fd.nv26.02", "0.17.0", "1.26.4"),
    Container("nemo-26.06", "2.12.0a0+0291f960b6.nv26.04", "0.18.0", "2.1.0"),
    Container("nemo-26.08", "2.13.0a0+b7d55bf3dc.nv26.06", "0.19.1", "2.1.0"),
    Container("pytorch-26.07", "2.13.0a0+9186a08b2c.nv26.07", None, "2.1.0"),
    Container("pytorch-26.08", "2.14.0a0+2e1f9a38cc.nv26.08", None, "2.1.0"),
]


def copy_of_the_project(folder: Path) -> Path:
    """Return a copy without what earlier builds left."""
    for name in ("nca_plugin", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (SETUP, "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def built(project: Path) -> Path:
    """Return the wheel that is built from the source distribution of a project."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(project / "dist"), str(project)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len([*project.glob("dist/*.tar.gz")]) == 1
    (wheel,) = project.glob("dist/*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(copy_of_the_project(tmp_path_factory.mktemp("project")))


def environment_of(container: Container, folder: Path) -> Path:
    """Return the interpreter of an environment that holds the metadata of a container's packages, and nothing else."""
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for name, version in container.packages.items():
        metadata = site_packages / f"{name.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder / "bin" / "python"


def would_install(python: Path, wheel: str | Path, constraints: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the packages that pip would install, resolved against the index, with their versions."""
    report, file = python.parent / "report.json", python.parent / "constraint.txt"
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    if constraints is not None:
        file.write_text("".join(f"{name}=={version}\n" for name, version in constraints.items()))
        environment["PIP_CONSTRAINT"] = str(file)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--dry-run", "--quiet"]
    done = subprocess.run(
        [*pip, "--report", str(report), str(wheel)], env=environment, cwd=python.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [package["metadata"] for package in json.loads(report.read_text())["install"]]
    return {re.sub(r"[-_.]+", "-", package["name"]).lower(): package["version"] for package in found}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, str]]:
    """What pip would install in each container."""
    folder = tmp_path_factory.mktemp("containers")

    def answer(case: tuple[Container, str]) -> dict[str, str]:
        container, how = case
        python = environment_of(container, folder / f"{container.name}-{how}")
        return would_install(python, wheel, container.packages if how == "constrained" else None)

    cases = [(container, how) for container in CONTAINERS for how in ("free", "constrained")]
    with ThreadPoolExecutor(4) as pool:  # it is the index that takes the time
        answers = [*pool.map(answer, cases)]
    return {(container.name, how): found for (container, how), found in zip(cases, answers, strict=True)}


@pytest.mark.parametrize("how", ["free", "constrained"])
@pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: container.name)
def test_nothing_that_a_container_holds_is_changed(
    installed: dict[tuple[str, str], dict[str, str]], container: Container, how: str
) -> None:
    found = installed[container.name, how]
    assert found.keys() >= {"nca-plugin", "numba", "hydra-core"}
    assert not found.keys() & {*container.packages, "megatron-core"}


@pytest.mark.parametrize(
    ("extras", "megatron_core"), [("text,study", "0.16.0"), ("megatron,text,study", "0.18.0rc0+5d1f3c2")]
)
def test_extras_fit_into_what_a_container_pins(wheel: Path, tmp_path: Path, extras: str, megatron_core: str) -> None:
    """Others' newest releases may ask for a newer numpy than there is: without the pins, pip would bring it."""
    container = replace(CONTAINERS[0], megatron_core=megatron_core)
    python = environment_of(container, tmp_path / "environment")
    found = would_install(python, f"{wheel}[{extras}]", container.packages)
    assert found.keys() >= {"transformers", "datasets", "matplotlib"}
    assert not found.keys() & container.packages.keys()


def test_a_floor_above_the_containers_build_would_replace_it(tmp_path: Path) -> None:
    """What the tests above would say of `torch>=2.13`, which NVIDIA's 2.13.0a0 is not."""
    project = copy_of_the_project(tmp_path / "project")
    setup = project / SETUP
    setup.write_text(setup.read_text().replace("    numba>=", "    torch>=2.13\n    numba>="))
    container = next(container for container in CONTAINERS if container.name == "pytorch-26.07")
    found = would_install(environment_of(container, tmp_path / "environment"), built(project))
    assert found.keys() >= {"torch", "triton"}


@pytest.fixture(scope="module")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that holds the wheel, and neither torch nor Megatron."""
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", str(wheel)]
    subprocess.run(pip, check=True, cwd=folder)
    return folder / "bin"


def command(alone: Path, *words: str | Path, code: int = 0) -> str:
    """Run `nca-plugin` where it is alone, outside the clone, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "NUMBA_CACHE_DIR")}
    done = subprocess.run(
        [alone / "nca-plugin", *map(str, words)], env=environment, cwd=alone, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def test_data_is_made_and_read_without_torch(alone: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    generated = command(alone, "generate", "nca://toy", "--tokens", "20K", "--seq-length", 128, "--out", corpus)
    assert "157 documents of 128 tokens" in generated
    assert "is right" in command(alone, "verify", corpus)
    command(alone, "show", "nca://toy", "--index", "3")
    command(alone, "bench", "nca://toy", "--processes", "1", "--seconds", "0.2")
    expected = subprocess.run(
        [sys.executable, "-c", SAMPLE], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    sample = subprocess.run([alone / "python", "-c", SAMPLE], cwd=alone, capture_output=True, text=True)
    assert len(sample.stdout.split()) == 129 and sample.stdout == expected.stdout


SAMPLE = "from nca_plugin.sources import parse; print(*parse('nca://web').sample(7, 128).tokens)"


def test_the_doctor_finds_nothing_broken_without_torch(alone: Path) -> None:
    said = " ".join(command(alone, "doctor").split())
    assert "torch absent no run can be started here: pip install 'nca-plugin[megatron]' brings it" in said
    assert said.endswith("Nothing is broken.")


def test_a_transition_is_planned_without_torch(alone: Path, tmp_path: Path) -> None:
    nca = ("--data-source", "nca://toy", "--tokenizer-type", "NullTokenizer", "--vocab-size", "512")
    run_megatron(tmp_path / "run", *nca, "--train-iters", "1", "--save", tmp_path / "saved")
    said = command(
        alone, "transfer", "--from", tmp_path / "saved", "--to", tmp_path / "start", "--vocab-size", 300, "--dry-run"
    )
    assert "embedding.word_embeddings.weight" in said


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (("prepare", "text.txt", "--out", "out"), "torch", "megatron"),
        (("inspect", "nca://toy", "--out", "page"), "matplotlib", "study"),
        (("study", "demo"), "torch", "megatron"),
        (("study", "demo", "--estimate"), "torch", "megatron"),
        (("chain", "demo"), "torch", "megatron"),
        (("export", "a", "b", "--to", "hf"), "transformers", "text"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(alone: Path, words: tuple[str, ...], package: str, extra: str) -> None:
    (alone / "text.txt").write_text("some text\n" * 1000)
    said = command(alone, *words, code=2)
    reason = f"this needs {package}, which is not installed"
    assert said == f"nca-plugin: error: {reason}: pip install 'nca-plugin[{extra}]' brings it\n"
    assert not (alone / "out.bin").exists() and not (alone / "page").exists()


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("launch.megatron", ()),
        ("launch.hydra", ("--config-name", "pretrain", "model=tiny")),
        ("chain", ("demo",)),
        ("launch.evaluate", ("--evaluation-out", "found.json", "--evaluation-source", "nca://toy")),
    ],
)
@pytest.mark.parametrize("is_in_clone", [False, True])
def test_a_launcher_names_the_extra(alone: Path, module: str, arguments: tuple[str, ...], is_in_clone: bool) -> None:
    # In a clone, `python -m` imports the source tree, which has its configuration files elsewhere.
    folder = ROOT if is_in_clone else alone
    done = subprocess.run(
        [alone / "python", "-m", f"nca_plugin.{module}", *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.rstrip().endswith("pip install 'nca-plugin[megatron]' brings it")
