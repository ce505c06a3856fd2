"""The facts about this machine, which the checks judge."""

from __future__ import annotations

import os
import platform
import re
import resource
import shlex
import shutil
import sys
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from nca_plugin import deflate
from nca_plugin.doctor.imports import Outcome, import_in_process
from nca_plugin.doctor.versions import EXTRAS, MEGATRON_CORE, MEGATRON_CORE_OF_NEMO, NEMO, REQUIRED, is_within
from nca_plugin.megatron.fused_kernels import GRADIENT_EXTENSION, SOFTMAX_EXTENSION, Kernels

#: Packages that Megatron uses if they are installed, and that nca-plugin does not require.
OPTIONAL: Final = ("transformer-engine", "apex", "nvidia-resiliency-ext")

_STACKS: Final = ("nca-plugin", "megatron-bridge", "nemo-toolkit", "nemo-run")
# Importing torch from a network file system takes long.
_TIMEOUT: Final = 180.0


@dataclass(frozen=True)
class Facts:
    """The facts about this machine. The defaults are those of a machine on which nothing is wrong."""

    versions: Mapping[str, str]
    """Versions of the installed packages, by their names on the package index."""

    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    """Outcomes of the imports that were tried, by the names of their steps."""

    python: str = platform.python_version()
    """Version of the interpreter."""

    interpreter: str = "python"
    """The command that starts the interpreter in a shell."""

    is_nvidia_apex: bool = True
    """Whether the package named apex, if it is installed, is NVIDIA's."""

    missing_extensions: Sequence[str] = ()
    """Modules that the installed Apex was built without."""

    has_nemo_entry_point: bool = True
    """Whether NeMo-Run's command line finds nca-plugin."""

    has_nvidia_driver: bool = False
    visible_devices: str | None = None
    """The value of CUDA_VISIBLE_DEVICES."""

    has_compiler: bool = True
    """Whether make and g++ are installed, with which Megatron compiles its dataset helper."""

    has_model_provider: bool = True
    """Whether Megatron-LM's model_provider.py can be imported from the current folder."""

    compressor: str = "zlib"
    """Name and version of the deflate library."""

    deflate_sizes: Sequence[int] = deflate.SIZES_OF_ZLIB
    """Sizes that the deflate library gives to the known payloads; empty if it cannot compress them."""

    is_zlib_replaced: bool = False
    """Whether another Python package replaces the module zlib."""

    shared_memory: int | None = None
    """Size of /dev/shm in bytes; None if it does not exist."""

    open_files: int | None = None
    """Number of files that a process may open; None for no limit."""

    torchrun: str | None = None
    """The torchrun that the shell finds."""

    is_own_torchrun: bool = True
    """Whether that torchrun starts this interpreter."""

    def error(self, step: str) -> str | None:
        """Return why a step of the imports failed; None if it succeeded or was not tried."""
        return self.outcomes[step].error if step in self.outcomes else None

    def told(self, step: str, name: str) -> Any:
        """Return a fact that a step of the imports reported; None if the step failed or was not tried."""
        return self.outcomes[step].found.get(name) if step in self.outcomes else None

    @property
    def devices(self) -> Sequence[str]:
        """Names of the CUDA devices that torch finds."""
        return self.told("torch", "devices") or ()

    @property
    def has_megatron(self) -> bool:
        """Whether a release of Megatron is installed that the launchers support."""
        return is_within(self.versions.get("megatron-core", ""), MEGATRON_CORE)

    @property
    def has_nemo(self) -> bool:
        """Whether NeMo 2 is installed with the release of Megatron that it needs. Launchers do not support that one."""
        core = self.versions.get("megatron-core", "")
        return is_within(self.versions.get("nemo-toolkit", ""), NEMO) and is_within(core, MEGATRON_CORE_OF_NEMO)

    @property
    def kernels(self) -> Kernels:
        """Which kernels of Transformer Engine and Apex Megatron finds."""
        has_apex = "apex" in self.versions and self.is_nvidia_apex and self.error("apex") is None
        return Kernels(
            has_transformer_engine="transformer-engine" in self.versions and self.error("transformer-engine") is None,
            has_apex=has_apex,
            has_gradient_extension=has_apex and GRADIENT_EXTENSION not in self.missing_extensions,
            has_softmax_extension=has_apex and SOFTMAX_EXTENSION not in self.missing_extensions,
        )

    def pip(self, command: str) -> str:
        """Return a command of this interpreter's pip."""
        return f"{self.interpreter} -m pip {command}"

    def install(self, *names: str) -> str:
        """Return the command that installs required packages in supported versions; empty if installing nca-plugin
        itself does that."""
        if "nca-plugin" not in self.versions:
            return ""
        return self.pip(f"install {' '.join(shlex.quote(f'{name}{REQUIRED[name]}') for name in names)}")

    def show(self, statement: str) -> str:
        """Return the command that shows an error in full."""
        return f"{self.interpreter} -c '{statement}'"


def gather() -> Facts:
    """Collect the facts. This takes as long as the slowest import."""
    versions = _versions()
    chains = ["generator"]
    if "torch" in versions:
        chains.append("megatron" if Facts(versions).has_megatron else "torch")
    chains += [name for name in ("megatron-bridge", *OPTIONAL) if name in versions]
    with ThreadPoolExecutor(len(chains)) as pool:
        outcomes = [*pool.map(lambda chain: import_in_process(chain, _TIMEOUT), chains)]
    torchrun = shutil.which("torchrun")
    return Facts(
        versions=versions,
        outcomes={name: outcome for steps in outcomes for name, outcome in steps.items()},
        interpreter=_interpreter(),
        is_nvidia_apex=_is_nvidia_apex(),
        missing_extensions=[name for name in (GRADIENT_EXTENSION, SOFTMAX_EXTENSION) if find_spec(name) is None],
        has_nemo_entry_point=any(
            point.value.startswith("nca_plugin") for point in metadata.entry_points(group="nemo_run.cli")
        ),
        has_nvidia_driver=Path("/proc/driver/nvidia/version").exists(),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        has_compiler=None not in (shutil.which("make"), shutil.which("g++")),
        has_model_provider=_find("model_provider.py") is not None,
        compressor=_compressor(),
        deflate_sizes=_deflate_sizes(),
        is_zlib_replaced=_zlib_module() != "zlib",
        shared_memory=_shared_memory(),
        open_files=_open_files(),
        torchrun=torchrun,
        is_own_torchrun=torchrun is not None and _starts_this_interpreter(Path(torchrun)),
    )


def _versions() -> dict[str, str]:
    versions = {}
    for name in (*REQUIRED, *(name for extra in EXTRAS.values() for name in extra), *_STACKS, *OPTIONAL):
        # An interrupted installation may leave a package without a version.
        with suppress(metadata.PackageNotFoundError, KeyError):
            versions[name] = metadata.version(name) or "unknown"
    # A checkout of Megatron-LM may come first on the path, or be there instead of an installed package.
    package_info = _find("megatron/core/package_info.py")
    if package_info is not None:
        numbers = dict(re.findall(r"^(MAJOR|MINOR|PATCH) = (\d+)$", package_info.read_text(), re.MULTILINE))
        versions["megatron-core"] = ".".join(numbers.get(name, "0") for name in ("MAJOR", "MINOR", "PATCH"))
    return versions


def _find(file: str) -> Path | None:
    """Return the path at which an import finds a file, in the current folder or on sys.path."""
    return next((path for path in (Path(entry, file) for entry in ("", *sys.path)) if path.is_file()), None)


def _interpreter() -> str:
    own = Path(sys.executable)
    for name in ("python", "python3"):
        found = Path(shutil.which(name) or "")
        # The interpreter of a virtual environment may be a link to the one that made it, which has other packages.
        if found.parent == own.parent and found.samefile(own):
            return name
    return shlex.quote(sys.executable)


def _is_nvidia_apex() -> bool:
    spec = find_spec("apex")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return any(Path(folder, "normalization").is_dir() for folder in folders)


def _zlib_module() -> str:
    return str(zlib.compress.__module__)


def _compressor() -> str:
    return f"zlib {zlib.ZLIB_RUNTIME_VERSION}" if _zlib_module() == "zlib" else _zlib_module()


def _deflate_sizes() -> Sequence[int]:
    # A replacement of zlib may not have its levels.
    with suppress(Exception):
        return deflate.sizes_of_known_payloads()
    return ()


def _shared_memory() -> int | None:
    with suppress(OSError):
        sizes = os.statvfs("/dev/shm")
        return sizes.f_frsize * sizes.f_blocks
    return None


def _open_files() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _starts_this_interpreter(script: Path) -> bool:
    own = Path(sys.executable).parent
    if script.parent == own:
        return True
    with script.open("rb") as file:
        first_line = file.readline().decode(errors="replace")
    starter = re.match(r"#!\s*(\S*/python[\d.]*)\s", first_line)
    # The interpreter behind another first line, such as a shell script's, is unknown.
    return starter is None or Path(starter[1]).parent == own
