"""The first screen of a run, as a user starts it: what is trained on, warnings that matter, and Megatron's own log."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from megatron_runs import MODEL

from nca_plugin.launch.megatron import HELP

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
#: A notice or a warning, of whichever package: by Python's warnings, or by its logging at that level.
NOTICE = re.compile(r"nca-plugin|\w*Warning: |WARNING|DEPRECATED|not installed|package is required")


def test_few_lines_before_the_first_iteration() -> None:
    command = (
        *(*TORCHRUN, "--nproc-per-node=2", "-m", "nca_plugin.launch.megatron", *MODEL),
        *("--data-source", "nca://toy?seed=7", "--train-iters", "20", "--exit-interval", "1"),
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    before = done.stdout.partition(" iteration        1/")[0].splitlines()
    # All that stands on stderr, source lines of warnings among it.
    shown = [line for line in before if NOTICE.search(line)] + done.stderr.splitlines()
    assert len(shown) <= 10, "\n".join(shown)
    proof = "training on 20,480 tokens of nca://toy?seed=7 ("
    (place,) = [number for number, line in enumerate(before) if proof in line]
    # After all that Megatron prints as it sets up the run.
    assert "training ..." in before[:place], "\n".join(before[-20:])
    assert not any("not installed" in line or "DEPRECATED" in line or "--split" in line for line in shown)


@pytest.mark.parametrize("option", ["--help", HELP])
def test_help_begins_with_our_options(option: str) -> None:
    command = (sys.executable, "-m", "nca_plugin.launch.megatron", "--lr", "1", option)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "--data-source SOURCE" in done.stdout, done.stderr[-3000:]
    if option == HELP:
        assert "--num-layers" in done.stdout
    else:
        assert len(done.stdout.splitlines()) < 80 and HELP in done.stdout


def test_a_refusal_is_in_the_report_of_torchrun(tmp_path: Path) -> None:
    command = (*TORCHRUN, "--nproc-per-node=2", "-m", "nca_plugin.launch.megatron", "--data-source", "nca://wbe")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    line = "nca-plugin: error: unknown NCA preset 'wbe': did you mean 'web'?"
    # Rank 0 has printed it, whichever rank was the first to refuse.
    assert done.stderr.splitlines().count(line) == 1
    assert f"  traceback : {line}" in done.stderr and "To enable traceback see" not in done.stderr
