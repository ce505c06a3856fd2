"""Small generated datasets, and what tests compare of them."""

import sys
import time
from pathlib import Path

from nca_plugin.indexed.generate import generate
from nca_plugin.indexed.manifest import Manifest

#: Documents of a block at sequence length 1024: what is checked, resumed and shared out.
BLOCK = 1024

#: `nca-plugin generate` as a process.
GENERATE = (sys.executable, "-m", "nca_plugin", "generate")

SUFFIXES = (".bin", ".next", ".idx", ".json")


def write(
    prefix: Path | str,
    uri: str = "copy",
    *,
    documents: int = 5,
    seq_length: int = 1024,
    workers: int = 1,
    shard: tuple[int, int] = (1, 1),
) -> Manifest:
    num_tokens = documents * seq_length
    return generate(uri, str(prefix), num_tokens=num_tokens, seq_length=seq_length, num_workers=workers, shard=shard)


def contents(prefix: Path) -> dict[str, bytes]:
    """Return the files of a dataset, after checking that nothing else has its prefix."""
    found = {path.name.removeprefix(prefix.name): path.read_bytes() for path in prefix.parent.glob(f"{prefix.name}.*")}
    assert sorted(found) == sorted(SUFFIXES)
    return found


def wait_for_blocks(prefix: Path) -> None:
    """Return when a process has written two blocks."""
    journal = Path(f"{prefix}.journal")
    end = time.monotonic() + 60
    while not journal.exists() or len(journal.read_text().splitlines()) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
