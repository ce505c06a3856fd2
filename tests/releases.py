"""What older releases of Megatron do not have."""

from importlib.metadata import version

import pytest

#: megatron-core 0.18, the oldest that the launchers take.
IS_0_18 = version("megatron-core").startswith("0.18.")

needs_0_19 = pytest.mark.skipif(IS_0_18, reason="megatron-core 0.18 does not have what this needs")
