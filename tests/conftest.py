import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Real Megatron runs are started as processes of one thread each: two cores are shared by up to four ranks.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example may be the first to compile a kernel, or share its core with another run.
settings.register_profile("default", deadline=None)
settings.load_profile("default")


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """The released generator's values, the trailing channel axis of states dropped."""
    with np.load(Path(__file__).parent / "data" / "golden.npz") as file:
        return {
            name: value[..., 0] if value.shape[-3:] == (12, 12, 1) else value
            for name, value in ((name, file[name]) for name in file.files)
        }
