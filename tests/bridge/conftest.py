"""The tests here start Megatron-Bridge: `make test-bridge` runs them, in an environment that has it."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hub import write_hub_cache

collect_ignore_glob = [] if find_spec("megatron.bridge") is not None else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def hub_cache() -> Iterator[Path]:
    """A cache of the Hugging Face hub, and no hub, for this process and those that it starts."""
    folder = write_hub_cache(Path(tempfile.mkdtemp()))
    # The hub's client reads both when it is imported.
    os.environ.update(HF_HOME=str(folder), HF_HUB_OFFLINE="1")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def configure(hub_cache: Path) -> Callable[..., Any]:
    """What the launcher does before it trains, in this process: from a command line to a `ConfigContainer`."""
    from nca_plugin.bridge import cpu as bridge_cpu
    from nca_plugin.megatron import cpu_mode

    if cpu_mode.prepare():
        bridge_cpu.add_stand_ins()
    from nca_plugin.launch import bridge

    def run(*arguments: str | Path) -> Any:
        options = bridge.parse_command_line(list(map(str, arguments)))
        return bridge.configure(options, bridge.read_settings(options))

    return run
