import hashlib
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import devices
import numpy as np
import pytest
from filelock import FileLock
from model_zoo import Results, SaveJob, save_checkpoints
from places import TESTS
from transition_cases import FEW

# Real Megatron runs are started as processes of one thread each: two cores are shared by up to four ranks.
os.environ.setdefault("OMP_NUM_THREADS", "1")

devices.hide()

_ZOO_RESULTS = "saved.json"

# numba compiles a function anew when its own file changes, not when a file that it takes functions from does. A cache
# for each state of the sources, which the processes that tests start share, is never stale.
_SOURCES = sorted((Path(__file__).parents[1] / "nca_plugin").rglob("*.py"))
_STATE = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:16]
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"nca-plugin-numba-{os.getuid()}-{_STATE}"))

# The tests on a GPU run in an environment that is just there, which need not have it.
if find_spec("hypothesis"):
    from hypothesis import settings

    # An example may be the first to compile a kernel, or share its core with another run.
    settings.register_profile("default", deadline=None)
    settings.load_profile("default")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu`, read no other tests: they need what only an environment made for them has."""
    is_other = collection_path.name.startswith("test_") and collection_path.name != "test_gpu.py"
    return True if config.option.markexpr == "gpu" and is_other else None


#: The files of tests that take longest, the longest first. They are begun first, so that no worker ends with one alone.
_LONGEST = (
    *("chain/test_chain.py", "study/test_study_runs.py", "megatron/test_without_transformer_engine.py"),
    *("launch/test_hydra.py", "megatron/test_parallelism.py", "commands/test_errors.py"),
    *("transition/test_transfer.py", "probes/test_evaluation.py", "sources/test_sources.py"),
    *("launch/test_wrong_arguments.py", "tasks/test_tasks.py", "huggingface/test_huggingface_folders.py"),
    *("commands/test_wrong_inputs.py", "megatron/test_other_batch_size.py", "megatron/test_sft.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {TESTS / name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Give each test the variables that the first one had: a run within this process leaves those of a rank behind."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal() -> Iterator[None]:
    """Commands leave signals ignored that they are started with so, as in the background of a shell."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """The released generator's values, the trailing channel axis of states dropped."""
    with np.load(Path(__file__).parent / "data" / "golden.npz") as file:
        return {
            name: value[..., 0] if value.shape[-3:] == (12, 12, 1) else value
            for name, value in ((name, file[name]) for name in file.files)
        }


@pytest.fixture(scope="session")
def three_blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a dataset of three blocks."""
    # Not before the folder of numba's cache is set.
    from corpora import BLOCK, contents, write

    prefix = tmp_path_factory.mktemp("three-blocks") / "corpus"
    write(prefix, documents=3 * BLOCK)
    return contents(prefix)


@pytest.fixture(scope="session")
def three_parts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The prefixes of what merges to it."""
    from corpora import BLOCK, write

    folder = tmp_path_factory.mktemp("three-parts")
    for number in (1, 2, 3):
        write(folder / f"part-{number}", documents=3 * BLOCK, shard=(number, 3))
    return [str(folder / f"part-{number}") for number in (1, 2, 3)]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that Megatron saved: a Llama and a mixture of experts from two by two ranks, and those of `FEW`.

    They are saved once for all workers of pytest.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "zoo"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / _ZOO_RESULTS).exists():
            results = save_checkpoints(folder, _zoo_jobs())
            (folder / _ZOO_RESULTS).write_text(json.dumps(results))
    return folder


@pytest.fixture(scope="session")
def zoo_saved(zoo: Path) -> Results:
    """What Megatron said of the checkpoints in `zoo` as it saved them."""
    results: Results = json.loads((zoo / _ZOO_RESULTS).read_text())
    return results


def _zoo_jobs() -> list[SaveJob]:
    kinds: dict[str, dict[str, Any]] = {
        "llama": {"optimizer": "distributed"},
        "bf16": {"optimizer": "plain", "arguments": ("--bf16",)},
        "legacy": {"optimizer": "distributed", "format": "torch"},
    }
    jobs = [SaveJob(name=name, arch="llama", tp=2, pp=2, **options) for name, options in kinds.items()]
    experts = {"experts": "torch_dist", "experts-legacy": "torch"}
    jobs += [SaveJob(name=name, arch="moe", tp=1, pp=2, ep=2, format=kind) for name, kind in experts.items()]
    return [*jobs, *(case.job for case in FEW)]
