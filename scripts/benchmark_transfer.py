"""How long `nca-plugin transfer` takes, and how much memory, against writing the same bytes and `cp`.

    python scripts/benchmark_transfer.py runs/benchmark-transfer

saves a checkpoint of 350 million weights and their optimizer state there, if it is not there yet, by one iteration of
Megatron on one CPU rank (4.2 GB in float32; 10 GB of memory), and prints a table.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

_MODEL = (
    *("--num-layers", "20", "--hidden-size", "1024", "--num-attention-heads", "16", "--swiglu"),
    *("--ffn-hidden-size", "2752", "--normalization", "RMSNorm", "--disable-bias-linear"),
    *("--position-embedding-type", "rope", "--untie-embeddings-and-output-weights"),
    *("--seq-length", "128", "--max-position-embeddings", "128", "--micro-batch-size", "1", "--global-batch-size", "1"),
    *("--tokenizer-type", "NullTokenizer", "--vocab-size", "50257", "--data-source", "nca", "--nca-preset", "toy"),
    *("--train-iters", "1", "--lr", "1e-3", "--eval-iters", "0", "--eval-interval", "1000"),
    *("--save-interval", "1", "--num-workers", "0"),
)
_VOCAB_SIZE = 50257


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    saved = folder / "saved"
    if not (saved / "latest_checkpointed_iteration.txt").is_file():
        _save(folder, saved)
    size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    print(f"checkpoint: {size / 1e9:.2f} GB; {os.cpu_count()} cores\n")
    print("| transfer | bytes written | seconds | the same bytes | ratio | memory |")
    print("|---|---|---|---|---|---|")
    for name, options in {
        "default": (),
        "attention-only": ("--preset", "attention-only"),
        "everything kept": ("--keep", "embedding", "--keep", "output"),
        "default, verified": ("--verify",),
    }.items():
        seconds, memory, out = _transfer(saved, folder / "out", *options)
        new = [path for path in out.rglob("*") if path.is_file() and path.stat().st_nlink == 1]
        written = sum(path.stat().st_size for path in new)
        drawn = sum(
            row.get("drawn", 0) * 4 for row in json.loads((out / "transfer_report.json").read_text())["tensors"]
        )
        base = _write(folder / "bytes", written)
        # What takes no time to write has no ratio.
        ratio = f"{(seconds - 1) / base:.2f} after 1 s" if base > 0.1 else ""
        print(
            f"| {name} | {written:,} ({written - drawn:,} more than drawn) | {seconds:.2f} | {base:.2f} s to write | "
            f"{ratio} | {memory / 1e6:.0f} MB |"
        )
        shutil.rmtree(out)
    for name, options in {"copy": (), "copy, everything kept": ("--keep", "embedding", "--keep", "output")}.items():
        seconds, memory, out = _transfer(saved, folder / "out", "--layout", "copy", *options)
        copied = _copy(out / "release", folder / "copied")
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        ratio = seconds / copied
        print(
            f"| {name} | {written:,} | {seconds:.2f} | {copied:.2f} s with cp | {ratio:.2f} | {memory / 1e6:.0f} MB |"
        )
        shutil.rmtree(out)


def _save(folder: Path, saved: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nca_plugin.launch.megatron", *_MODEL, "--save", str(saved)]
    with (folder / "save.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)


def _transfer(saved: Path, out: Path, *options: str) -> tuple[float, int, Path]:
    """Return the seconds that the command tells, which leave out the start of the process, and its peak memory."""
    os.sync()
    command = [str(Path(sys.executable).with_name("nca-plugin")), "transfer", "--from", str(saved), "--to", str(out)]
    command += ["--vocab-size", str(_VOCAB_SIZE), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    match = re.search(r"Written in ([\d.]+) s", text)
    if status or not match:
        sys.exit(f"{' '.join(command)} failed: {text}")
    return float(match[1]), usage.ru_maxrss * 1024, out


def _write(path: Path, num_bytes: int) -> float:
    """Return the seconds that it takes to write so many random bytes to the disk."""
    piece = os.urandom(1 << 25)
    os.sync()
    start = time.monotonic()
    with path.open("wb") as file:
        for at in range(0, num_bytes, len(piece)):
            file.write(piece[: num_bytes - at])
        file.flush()
        os.fsync(file.fileno())
    seconds = time.monotonic() - start
    path.unlink()
    return seconds


def _copy(source: Path, target: Path) -> float:
    """Return the seconds that `cp` takes until the copy is on the disk."""
    os.sync()
    start = time.monotonic()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    for path in target.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    seconds = time.monotonic() - start
    shutil.rmtree(target)
    return seconds


if __name__ == "__main__":
    main()
