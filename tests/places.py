"""Where the tests' data and the project are."""

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent
ROOT: Final = TESTS.parent
DATA: Final = TESTS / "data"
CHECKPOINTS: Final = DATA / "checkpoints"
