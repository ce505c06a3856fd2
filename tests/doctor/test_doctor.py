"""`nca-plugin doctor` in environments that are broken on purpose, and what it makes of facts about other machines."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
from places import ROOT

from nca_plugin import errors
from nca_plugin.doctor import launchers, machine, packages, versions
from nca_plugin.doctor.check import Check, Verdict
from nca_plugin.doctor.facts import Facts
from nca_plugin.doctor.imports import Outcome, import_in_process
from nca_plugin.doctor.screen import examine, screen

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
_INHERITED = [path for path in [os.environ.get("PYTHONPATH")] if path]
DOCTOR = (sys.executable, "-m", "nca_plugin.doctor")

# What the wheels of these versions on the package index do when they are imported, and their metadata.
TRANSFORMER_ENGINE = {
    "transformer_engine-2.20.2.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: transformer_engine\nVersion: 2.20.2\n"
    ),
    "transformer_engine/__init__.py": (
        "raise RuntimeError('Found empty `transformer-engine` meta package installed.')\n"
    ),
}
RESILIENCY = {
    "nvidia_resiliency_ext-0.4.1.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: nvidia-resiliency-ext\nVersion: 0.4.1\n"
    ),
    # It has no __version__, and the modules that Megatron tries.
    "nvidia_resiliency_ext/__init__.py": "",
    **{
        f"nvidia_resiliency_ext/checkpointing/async_ckpt/{module}.py": ""
        for module in ("__init__", "core", "cached_metadata_filesystem_reader", "filesystem_async", "state_dict_saver")
    },
}
APEX_METADATA = {
    "apex-0.9.10.dev0.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: apex\nVersion: 0.9.10.dev0\nSummary: Pyramid toolkit to add Velruse\n"
    )
}
APEX = {**APEX_METADATA, "apex/__init__.py": "from pyramid_mailer.interfaces import IMailer\n"}
APEX_WITH_PYRAMID = {**APEX_METADATA, "apex/__init__.py": ""}
# Enough of torch to be asked for devices.
TORCH = {
    "torch/__init__.py": "from . import cuda, version\n",
    "torch/version.py": "cuda = None\n",
    "torch/cuda.py": (
        "def is_available(): return False\n"
        "def device_count(): return 0\n"
        "def init(): raise AssertionError('Torch not compiled with CUDA enabled')\n"
    ),
}
OTHER_DEFLATE = {
    "sitecustomize.py": "import zlib, other_deflate\nzlib.compress = other_deflate.compress\n",
    "other_deflate.py": (
        "import zlib\n_compress = zlib.compress\ndef compress(data, level, wbits): return _compress(data, 6, wbits)\n"
    ),
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@dataclass(frozen=True)
class Answer:
    """What the command said."""

    code: int
    text: str

    @property
    def lines(self) -> dict[str, tuple[str, str]]:
        """Verdict and the rest of each line, by name."""
        found: dict[str, tuple[str, str]] = {}
        name = ""
        for line in self.text.partition("\nto ")[0].splitlines()[1:]:
            if line.startswith(" " * 50):
                found[name] = (found[name][0], f"{found[name][1]} {line.strip()}")
            elif line.startswith("  "):
                name = line[9:36].strip()
                found[name] = (line[2:9].strip(), " ".join(line[36:].split()))
        return found

    @property
    def fixes(self) -> dict[str, str]:
        """What to do, by name."""
        lines = self.text.partition("\nto ")[2].splitlines()
        return dict(line.strip().split(": ", 1) for line in lines if line.startswith("  "))


def run(*command: str | Path, path: tuple[Path, ...] = (ROOT,)) -> Answer:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), *_INHERITED])}
    done = subprocess.run(
        [*map(str, command)], cwd=path[0], env=environment, capture_output=True, text=True, timeout=200
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return Answer(done.returncode, done.stdout)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What the command says here, next to packages that break Megatron's import, and where packages are missing."""
    folder = tmp_path_factory.mktemp("doctor")
    without = folder / "without-megatron"
    # This clone may hold the metadata of an installation; a new one does not.
    clone = folder / "clone"
    clone.mkdir()
    (clone / "nca_plugin").symlink_to(ROOT / "nca_plugin")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    write(without, TORCH)
    for entry in SITE_PACKAGES.iterdir():
        if not entry.name.startswith(("megatron", "typer", "torch", "_", "nca_plugin")) or entry.name.startswith(
            "torch-"
        ):
            (without / entry.name).symlink_to(entry)
    write(without, {"nca_plugin-0.1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: nca-plugin\nVersion: 0.1.0\n"})
    runs: dict[str, Callable[[], Answer]] = {
        "here": partial(run, sys.executable, "-m", "nca_plugin", "doctor"),
        "without megatron": partial(run, python, "-m", "nca_plugin", "doctor", path=(without, ROOT)),
        "not installed": partial(run, python, *DOCTOR[1:], path=(clone,)),
    }
    beside = {"transformer-engine": TRANSFORMER_ENGINE, "nvidia-resiliency-ext": RESILIENCY}
    for name, files in beside.items():
        runs[name] = partial(run, *DOCTOR, path=(write(folder / name, files), ROOT))
    for name, files in {"apex": APEX_WITH_PYRAMID, "deflate": OTHER_DEFLATE}.items():
        runs[name] = partial(run, python, *DOCTOR[1:], path=(write(folder / name, files), without, ROOT))
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(runs, pool.map(lambda start: start(), runs.values()), strict=True))


def test_here_nothing_is_broken(answers: dict[str, Answer]) -> None:
    answer = answers["here"]
    assert answer.code == 0 and answer.text.rstrip().endswith("Nothing is broken."), answer.text
    for launcher in ("megatron", "hydra"):
        assert answer.lines[f"nca_plugin.launch.{launcher}"] == ("ok", "ready CPU mode")
    assert answer.lines["megatron-core"] == ("ok", f"{metadata.version('megatron-core')} tested from 0.18 to 0.19")
    assert answer.lines["dataset helper"] == ("ok", "compiled")
    assert len(answer.text.splitlines()) <= 32 and max(map(len, answer.text.splitlines()[1:27])) <= 100


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("transformer-engine", "2.20.2 RuntimeError: Found empty `transformer-engine` meta package installed."),
        ("nvidia-resiliency-ext", "0.4.1 too old: Megatron cannot be imported with it; supported: >=0.6"),
    ],
)
def test_what_breaks_the_import_of_megatron(answers: dict[str, Answer], name: str, detail: str) -> None:
    answer = answers[name]
    assert answer.code == 2
    assert answer.lines[name] == ("BROKEN", detail)
    assert answer.lines["megatron-core"][1].endswith(f"cannot be imported, because of {name}")
    for launcher in ("megatron", "hydra"):
        assert answer.lines[f"nca_plugin.launch.{launcher}"] == ("BROKEN", "cannot run because of megatron-core")
    assert answer.fixes[name].endswith(f"-m pip uninstall {name}")


def test_no_megatron_and_no_command_line(answers: dict[str, Answer]) -> None:
    answer = answers["without megatron"]
    assert answer.code == 2
    for_training = "no run can be started here: pip install 'nca-plugin[megatron]' brings it"
    assert answer.lines["megatron-core"] == ("-", f"absent {for_training}")
    assert answer.lines["other packages"] == ("BROKEN", "7 of 8 missing: typer")
    assert answer.lines["torch"][0] == answer.lines["numba"][0] == "ok"
    assert answer.fixes["other packages"].endswith("-m pip install 'typer>=0.15.4'")


def test_a_clone_that_was_not_installed(answers: dict[str, Answer]) -> None:
    answer = answers["not installed"]
    assert answer.code == 2
    assert answer.lines["nca-plugin"] == ("BROKEN", "not installed nor is all that it needs")
    assert "-m pip install ." in answer.fixes["nca-plugin"]
    assert answer.fixes.keys() <= {"nca-plugin", "torchrun"}


def test_the_other_apex(answers: dict[str, Answer]) -> None:
    answer = answers["apex"]
    detail = "0.9.10.dev0 not NVIDIA's but an unrelated package: models cannot be built"
    assert answer.code == 2 and answer.lines["apex"] == ("BROKEN", detail)
    assert answer.fixes["apex"].endswith("-m pip uninstall apex")


def test_another_deflate(answers: dict[str, Answer]) -> None:
    answer = answers["deflate"]
    verdict, detail = answer.lines["deflate"]
    assert answer.code == 2 and verdict == "BROKEN"
    assert re.fullmatch(
        r"other_deflate ([1-4]) of 4 known payloads take (\d+ bytes for (301|356|757|964)(, )?)+: samples would differ "
        "from other machines', so nca:// is refused",
        detail,
    )
    assert "sitecustomize.py" in answer.fixes["deflate"]


def test_a_command_that_cannot_be_imported_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, {"typer.py": "raise ModuleNotFoundError(\"No module named 'typer'\")\n"})
    done = subprocess.run(
        [sys.executable, "-m", "nca_plugin", "show", "nca"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    expected = "nca-plugin: error: No module named 'typer': run nca-plugin doctor, which tells what to do\n"
    assert done.stderr == expected


def test_an_older_python() -> None:
    # One on the PATH may be no more than a version manager's hint.
    candidates = [
        python for python in (shutil.which("python3.11"), shutil.which("python3.11", path="/usr/bin")) if python
    ]
    works = [python for python in candidates if not subprocess.run([python, "-c", ""], capture_output=True).returncode]
    if not works:
        pytest.skip("there is no Python 3.11")
    python = works[0]
    answer = run(python, *DOCTOR[1:])
    assert answer.code == 2
    assert answer.lines.keys() == {"Python"}
    assert re.fullmatch(r"3\.11\.\d+ needs >=3.12; nothing else was looked at", answer.lines["Python"][1])
    assert "-m venv .venv && .venv/bin/pip install ." in answer.fixes["Python"]


@pytest.mark.parametrize(
    ("module", "error", "is_import_error"),
    [
        ("", None, False),
        ("print('half a line', end='')", None, False),
        (APEX["apex/__init__.py"], "ModuleNotFoundError: No module named 'pyramid_mailer'", True),
        ("raise ValueError('two\\nlines')", "ValueError: two lines", False),
        ("import time; time.sleep(60)", "no end after 2 s", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crash: SIGSEGV", False),
        ("raise SystemExit(3)", "the process ended with exit code 3", False),
    ],
)
def test_an_import_that_goes_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, error: str | None, is_import_error: bool
) -> None:
    write(tmp_path, {"apex.py": f"{module}\n"})
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    outcome = import_in_process("apex", timeout=2 if "sleep" in module else 60)["apex"]
    assert (outcome.error, outcome.is_import_error) == (error, is_import_error)


def requirements(text: str) -> dict[str, str]:
    lines = [line for line in text.strip().splitlines() if not line.startswith("#")]
    return dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in lines)  # type: ignore[union-attr]


def test_versions_are_those_of_setup_cfg() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert requirements(setup["options"]["install_requires"]) == versions.REQUIRED
    extras = setup["options.extras_require"]
    for extra, expected in versions.EXTRAS.items():
        assert requirements(extras[extra].replace(".dev0", "")) == expected
    assert setup["options"]["python_requires"] == versions.PYTHON
    assert f"megatron-bridge{versions.BRIDGE}" in (ROOT / "Makefile").read_text()
    assert {*errors._EXTRAS.values()} <= {*extras}


def test_no_package_has_an_upper_bound_that_a_container_may_be_above() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    bounds = [
        setup["options"]["install_requires"],
        *(setup["options.extras_require"][name] for name in versions.EXTRAS),
    ]
    assert not [line for text in bounds for line in text.splitlines() if "<" in line or "==" in line]


@pytest.mark.parametrize(
    ("version", "ranges", "expected"),
    [
        ("0.19.2", ">=0.18,<0.20", True),
        ("0.18", ">=0.18.0,<0.20", True),
        ("0.20.0rc1", ">=0.18,<0.20", False),
        ("0.17.9", ">=0.18,<0.20", False),
        ("2.13.0+cu130", ">=2.13", True),
        ("2.13.0a0+9186a08b2c.nv26.07", ">=2.13", True),
        ("3.12.1", "==3.12.*", True),
        ("3.13.0", "==3.12.*", False),
        ("0.6.2", "==0.6.2", True),
        ("", ">=0.1", False),
        ("1.0", "", True),
    ],
)
def test_ranges_of_versions(version: str, ranges: str, expected: bool) -> None:
    assert versions.is_within(version, ranges) is expected


def outcomes(**found: object) -> dict[str, Outcome]:
    steps = ("megatron-core", "megatron launcher", "hydra launcher", "bridge launcher", "generator")
    torch = {"cuda": "13.2", "devices": [], "reason": "AssertionError: no driver", **found}
    helper = {"reason": None, "makefile": False}
    return {
        **{step: Outcome() for step in steps},
        "torch": Outcome(found=torch),
        "dataset helper": Outcome(found=helper),
    }


def installed(**others: str) -> dict[str, str]:
    needed = {
        **versions.REQUIRED,
        **{name: floor for extra in versions.EXTRAS.values() for name, floor in extra.items()},
    }
    own = {name: floor.removeprefix(">=") for name, floor in needed.items()}
    return {**own, "nca-plugin": "0.1.0", **{name.replace("_", "-"): version for name, version in others.items()}}


HEALTHY = Facts(installed(), outcomes(), python="3.12.1", torchrun="/bin/torchrun")
GPU = replace(HEALTHY, outcomes=outcomes(devices=["NVIDIA H200", "NVIDIA H200"]), has_nvidia_driver=True)
BRIDGE = replace(HEALTHY, versions=installed(megatron_bridge="0.6.2"))
NEMO = replace(HEALTHY, versions=installed(nemo_toolkit="2.7.3", nemo_run="0.11.1", megatron_core="0.15.3"))
IMPORTED = Outcome()
IMPORT_ERROR = Outcome("ModuleNotFoundError: No module named 'pyramid'", is_import_error=True)


def with_outcome(facts: Facts, name: str, outcome: Outcome) -> Facts:
    return replace(facts, outcomes={**facts.outcomes, name: outcome})


def with_package(facts: Facts, name: str, version: str, outcome: Outcome = IMPORTED) -> Facts:
    return with_outcome(replace(facts, versions={**facts.versions, name: version}), name, outcome)


OTHER_APEX = replace(with_package(HEALTHY, "apex", "0.9.10.dev0", IMPORT_ERROR), is_nvidia_apex=False)
OF_0_18 = with_outcome(HEALTHY, "megatron launcher", Outcome(found={"needs_model_provider": True}))


@pytest.mark.parametrize(
    ("check", "facts", "verdict", "says", "fix"),
    [
        (machine.check_device, HEALTHY, "ok", "there is no NVIDIA driver: CPU mode", ""),
        (machine.check_device, GPU, "ok", "CUDA 13.2 2 x NVIDIA H200", ""),
        (
            machine.check_device,
            replace(HEALTHY, has_nvidia_driver=True),
            "BROKEN",
            "finds no device: Ass",
            "nvidia-smi",
        ),
        (
            machine.check_device,
            replace(HEALTHY, has_nvidia_driver=True, outcomes=outcomes(cuda=None)),
            *("BROKEN", "built without CUDA", "--force-reinstall torch"),
        ),
        (
            machine.check_device,
            replace(HEALTHY, has_nvidia_driver=True, visible_devices=""),
            *("warn", "hides every device", "unset CUDA_VISIBLE_DEVICES"),
        ),
        (machine.check_device, replace(HEALTHY, outcomes={}), "-", "torch cannot be asked", ""),
        (machine.check_deflate, replace(HEALTHY, deflate_sizes=(301, 356, 757, 962)), "BROKEN", "1 of 4", "Debian"),
        (machine.check_deflate, replace(HEALTHY, deflate_sizes=()), "BROKEN", "has no gzip -9", "Debian"),
        (machine.check_shared_memory, replace(HEALTHY, shared_memory=64 << 20), "warn", "0.0671 GB", "--shm-size"),
        (machine.check_open_files, replace(HEALTHY, open_files=256), "warn", "256", "ulimit -n"),
        (machine.check_torchrun, replace(HEALTHY, torchrun=None), "warn", "not on PATH", "torch.distributed.run"),
        (machine.check_torchrun, replace(HEALTHY, is_own_torchrun=False), "warn", "another Python", "distributed.run"),
        (
            machine.check_dataset_helper,
            with_outcome(HEALTHY, "dataset helper", Outcome(found={"reason": "ImportError: x", "makefile": False})),
            *("BROKEN", "not compiled ImportError: x", "--force-reinstall --no-deps megatron-core==0.18"),
        ),
        (
            machine.check_dataset_helper,
            with_outcome(HEALTHY, "dataset helper", Outcome(found={"reason": "ImportError: x", "makefile": True})),
            *("ok", "the first run compiles it", ""),
        ),
        (
            machine.check_dataset_helper,
            replace(
                with_outcome(HEALTHY, "dataset helper", Outcome(found={"reason": None, "makefile": True})),
                has_compiler=False,
            ),
            *("BROKEN", "with make and g++", "apt-get install make g++"),
        ),
        (
            packages.check_apex,
            GPU,
            "-",
            "needs --local-kernels: --no-persist-layer-norm --no-gradient-accumulation-fusion, in bf16 or fp16 "
            "--no-masked-softmax-fusion",
            "",
        ),
        (
            packages.check_apex,
            with_package(GPU, "transformer-engine", "2.20.2"),
            *("-", "absent needs --local-kernels: --no-gradient-accumulation-fusion", ""),
        ),
        (
            packages.check_apex,
            replace(with_package(GPU, "apex", "0.1"), missing_extensions=["fused_weight_gradient_mlp_cuda"]),
            *("warn", "built without extensions, needs --local-kernels: --no-gradient-accumulation-fusion", ""),
        ),
        (packages.check_apex, OTHER_APEX, "warn", "so Megatron does without", "uninstall apex"),
        (launchers.check_megatron, OTHER_APEX, "ok", "ready", ""),
        (packages.check_apex, with_package(GPU, "apex", "0.1"), "ok", "NVIDIA's", ""),
        (
            packages.check_transformer_engine,
            GPU,
            "warn",
            "needs --local-kernels: --transformer-impl local, with rope --no-rope-fusion",
            "transformer-engine[pytorch,core_cu13]' (or start runs with --local-kernels, in Hydra +kernels=local)",
        ),
        (
            packages.check_transformer_engine,
            with_package(GPU, "transformer-engine", "2.20.2", Outcome("RuntimeError: empty")),
            *("BROKEN", "RuntimeError: empty", "'transformer-engine[pytorch,core_cu13]==2.20.2'"),
        ),
        (
            packages.check_resiliency,
            with_package(HEALTHY, "nvidia-resiliency-ext", "0.4.1", IMPORT_ERROR),
            *("warn", "so Megatron does without", "uninstall"),
        ),
        (packages.check_resiliency, with_package(NEMO, "nvidia-resiliency-ext", "0.4.1"), "ok", "0.4.1", ""),
        (packages.check_torch, with_outcome(HEALTHY, "torch", IMPORT_ERROR), "BROKEN", "pyramid", "import torch"),
        (packages.check_torch, replace(HEALTHY, versions=installed(torch="2.9")), "warn", "tested from 2.10 on", ""),
        (
            packages.check_torch,
            replace(HEALTHY, versions=installed(torch="2.10.0a0+b4e4ee8.nv25.12")),
            "ok",
            "2.10",
            "",
        ),
        (
            packages.check_torch,
            replace(HEALTHY, versions=installed(torch="2.16.0")),
            "warn",
            "newer than the tests",
            "",
        ),
        (
            packages.check_torch,
            replace(HEALTHY, versions={k: v for k, v in HEALTHY.versions.items() if k != "torch"}),
            *("-", "'nca-plugin[megatron]' brings it", ""),
        ),
        (
            packages.check_extras,
            replace(HEALTHY, versions={k: v for k, v in HEALTHY.versions.items() if k != "scipy"}),
            *("-", "2 of 3 pip install 'nca-plugin[NAME]' brings study (scipy)", ""),
        ),
        (packages.check_extras, HEALTHY, "ok", "3 of 3", ""),
        (
            packages.check_others,
            replace(HEALTHY, versions=installed(typer="0.1")),
            "warn",
            "typer 0.1",
            "typer>=0.15.4",
        ),
        (
            packages.check_numba,
            with_outcome(HEALTHY, "generator", Outcome(found={"is_kept": False})),
            *("warn", "cannot cache what it compiles", "export NUMBA_CACHE_DIR="),
        ),
        (
            packages.check_numba,
            with_outcome(HEALTHY, "generator", Outcome("NCAPluginError: NUMBA_DISABLE_JIT is set")),
            *("BROKEN", "is told not to compile", "unset NUMBA_DISABLE_JIT"),
        ),
        (
            packages.check_plugin,
            with_outcome(HEALTHY, "generator", IMPORT_ERROR),
            "BROKEN",
            "pyramid",
            "nca_plugin.sources",
        ),
        (packages.check_bridge, BRIDGE, "ok", "0.6.2", ""),
        (
            packages.check_bridge,
            replace(BRIDGE, python="3.13.1"),
            "BROKEN",
            "needs Python ==3.12.*",
            "python3.12 -m venv",
        ),
        (
            packages.check_bridge,
            replace(BRIDGE, versions=installed(megatron_bridge="0.7.0")),
            *("warn", "0.7.0 tested with ==0.6.2", ""),
        ),
        (launchers.check_bridge, BRIDGE, "ok", "ready", ""),
        (launchers.check_bridge, replace(BRIDGE, python="3.13.1"), "BROKEN", "because of megatron-bridge", ""),
        (launchers.check_bridge, with_outcome(BRIDGE, "bridge launcher", IMPORT_ERROR), "BROKEN", "pyramid", "import"),
        (launchers.check_hydra, GPU, "ok", "ready on 2 CUDA devices, with --local-kernels", ""),
        (
            launchers.check_bridge,
            replace(BRIDGE, versions=installed(megatron_bridge="0.3.0", megatron_core="0.17.0")),
            *("-", "not here needs megatron-core >=0.18; here, generate writes data", ""),
        ),
        (
            launchers.check_hydra,
            with_outcome(HEALTHY, "hydra launcher", IMPORT_ERROR),
            "BROKEN",
            "pyramid",
            "launch.hydra",
        ),
        (launchers.check_megatron, OF_0_18, "ok", "ready", ""),
        (launchers.check_megatron, replace(OF_0_18, has_model_provider=False), "warn", "not from here", "==0.19.*"),
        (launchers.check_megatron, NEMO, "-", "not here needs megatron-core >=0.18", ""),
        (packages.check_megatron_core, NEMO, "ok", "NeMo 2's", ""),
        (packages.check_nemo, NEMO, "ok", "2.7.3", ""),
        (launchers.check_nemo, NEMO, "ok", "ready", ""),
        (
            launchers.check_nemo,
            replace(NEMO, has_nemo_entry_point=False),
            "BROKEN",
            "no entry point",
            "--force-reinstall",
        ),
        (
            packages.check_nemo,
            replace(HEALTHY, versions=installed(nemo_toolkit="2.7.3")),
            "BROKEN",
            "needs megatron-core",
            "uninstall",
        ),
        (
            packages.check_nemo,
            replace(HEALTHY, versions=installed(nemo_toolkit="3.0.0")),
            "-",
            "no language models",
            "",
        ),
        (
            packages.check_megatron_core,
            replace(HEALTHY, versions=installed(nemo_toolkit="2.7.3", megatron_core="0.16.1")),
            *("BROKEN", "NeMo 2 needs", "install 'megatron-core==0.15.*'"),
        ),
        (
            packages.check_megatron_core,
            replace(HEALTHY, versions=installed(megatron_core="0.17.0")),
            *("warn", "docs/environments.md says what works here", ""),
        ),
    ],
)
def test_what_a_fact_means(check: Callable[[Facts], Check], facts: Facts, verdict: str, says: str, fix: str) -> None:
    found = check(facts)
    assert found.verdict is Verdict(verdict)
    assert says in f"{found.found} {found.detail}"
    assert fix in found.fix and bool(fix) == bool(found.fix)


@pytest.mark.parametrize("facts", [HEALTHY, GPU, BRIDGE, NEMO])
def test_the_screen_of_a_machine_where_nothing_is_broken(facts: Facts) -> None:
    lines = screen(examine(facts)).splitlines()
    assert lines[-1] == "Nothing is broken." and len(lines) <= 32
