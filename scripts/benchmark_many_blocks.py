"""How long a checkpoint of many blocks takes to open and to transfer, against PyTorch's load of the same tensor.

    python scripts/benchmark_many_blocks.py runs/many-blocks

cuts a tensor of a small checkpoint of the tests into a block for each row, 100,000 of them unless --blocks says
otherwise, if it is not there yet (100 MB), and prints seconds of processor time.
"""

import argparse
import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nca_plugin.checkpoint.opened import open_checkpoint, read_checkpoint
from nca_plugin.checkpoint.write import Entry, NewBlock, Writer
from nca_plugin.lineage.read import read_trained
from nca_plugin.lineage.training_data import Lineage
from nca_plugin.transition.changes import Transition
from nca_plugin.transition.start import new_common_state
from nca_plugin.transition.transfer import transfer

_SMALL = Path(__file__).parents[1] / "tests" / "data" / "checkpoints" / "core016"
_CUT = "decoder.layers.mlp.linear_fc1.weight"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=100_000)
    options = parser.parse_args()
    saved, out = options.folder / f"saved-{options.blocks}", options.folder / "out"
    if not (saved / "metadata.json").is_file():
        _make(saved, options.blocks)
    size = (saved / ".metadata").stat().st_size
    print(f"checkpoint: {options.blocks:,} blocks in one tensor, {size / 1e6:.1f} MB of .metadata\n")
    # What numba does once in a process, whatever it compiles or takes from its cache, is in the first opening.
    _print("open, first in the process", functools.partial(read_checkpoint, saved))
    _print("open", functools.partial(read_checkpoint, saved))
    _print("what it was trained on", lambda: read_trained(open_checkpoint(saved)))
    _print("embedding rows", lambda: open_checkpoint(saved).embedding_rows)
    tensor = read_checkpoint(saved).tensors[_CUT]
    _print("places of all values", lambda: [tensor.stored(block) for block in tensor.blocks])
    for name, transition in {
        "transfer": Transition(),
        "transfer --verify": Transition(verify=True),
        "transfer --layout copy": Transition(layout="copy"),
    }.items():
        _print(name, functools.partial(transfer, saved, out, transition))
        shutil.rmtree(out)
    _print_torch(saved)


def _make(folder: Path, num_blocks: int) -> None:
    small = read_checkpoint(_SMALL)
    folder.mkdir(parents=True)
    writer = Writer(folder, links=False, num_workers=1)
    for name, tensor in small.tensors.items():
        values = tensor.read()
        regions = [tuple((0, size) for size in tensor.shape)]
        if name == _CUT:
            layers, _, columns = tensor.shape
            rows = -(-num_blocks // layers)
            values = np.resize(values, (layers, rows, columns))
            regions = [
                ((n // rows, n // rows + 1), (n % rows, n % rows + 1), (0, columns)) for n in range(layers * rows)
            ]

        def part(values: np.ndarray, region: tuple[tuple[int, int], ...]) -> np.ndarray:
            return values[tuple(slice(*span) for span in region)]

        blocks = [NewBlock(region, functools.partial(part, values, region)) for region in regions]
        writer.add(Entry(name, tensor.dtype, values.shape, blocks))
    for name, item in small.objects.items():
        writer.add_object(name, item)
    writer.write(new_common_state(small, {}, Lineage(None)), lambda num_bytes: None)


def _print_torch(folder: Path) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    read_metadata = dcp.FileSystemReader(folder).read_metadata
    _print("PyTorch: .metadata", read_metadata)
    entry = read_metadata().state_dict_metadata[_CUT]
    state = {_CUT: torch.empty(entry.size, dtype=entry.properties.dtype)}
    load = functools.partial(dcp.load, state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    _print("PyTorch: load of the tensor", load)


def _print(name: str, measured: Callable[[], object]) -> None:
    start = time.process_time()
    measured()
    print(f"{name:32}{time.process_time() - start:8.2f} s", flush=True)


if __name__ == "__main__":
    main()
