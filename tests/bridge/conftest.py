"""The tests here start Megatron-Bridge: `make test-bridge` runs them, in an environment that has it."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from hub import write_hub_cache

collect_ignore_glob = [] if find_spec("megatron.bridge") is not None else ["test_*.py"]


@pytest.fixture(scope="session")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for `HF_HOME` with the configurations that recipes read from the hub."""
    return write_hub_cache(tmp_path_factory.mktemp("hub"))
