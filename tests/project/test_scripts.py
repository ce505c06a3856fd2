"""The scripts that write a dataset on several machines, run as they are with the schedulers' variables."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import BLOCK, contents, write
from places import ROOT

SCRIPTS = ROOT / "scripts"
TOKENS = str(2 * BLOCK * 1024)

#: What SLURM's srun does for two tasks, as far as the script sees it.
SRUN = '#!/usr/bin/env bash\nfor task in 0 1; do SLURM_PROCID=$task SLURM_NTASKS=2 "$@"; done\n'


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "srun").write_text(SRUN)
    (commands / "srun").chmod(0o755)
    return os.environ | {"PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(environment: dict[str, str], *command: str | Path) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_torchrun(tmp_path: Path, environment: dict[str, str]) -> None:
    script = SCRIPTS / "generate_torchrun.sh"
    prefix = tmp_path / "corpus"
    run(environment, script, "copy", TOKENS, prefix, "--standalone", "--nproc-per-node", "2")
    run(environment, "nca-plugin", "merge", "--out", prefix)
    assert_as_written_here(prefix)


def test_srun(tmp_path: Path, environment: dict[str, str]) -> None:
    run(environment, SCRIPTS / "generate_srun.sh", "copy", TOKENS, tmp_path / "corpus")
    assert_as_written_here(tmp_path / "corpus")


def test_job_array(tmp_path: Path, environment: dict[str, str]) -> None:
    prefix = tmp_path / "corpus"
    for task in ("2", "1"):
        variables = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2"}
        run(environment | variables, SCRIPTS / "generate_array.sbatch", "copy", TOKENS, prefix)
    run(environment, "nca-plugin", "merge", "--out", prefix)
    assert_as_written_here(prefix)


def assert_as_written_here(prefix: Path) -> None:
    write(prefix.with_name("here"), documents=2 * BLOCK)
    assert contents(prefix) == contents(prefix.with_name("here"))


@pytest.mark.parametrize(
    ("typed", "options", "overrides"),
    [
        (["--standalone", "--nproc-per-node", "8"], ["--standalone", "--nproc-per-node", "8"], []),
        (["--standalone", "folder=/a b", "stages.nca.train_iters=5"], ["--standalone"], ["folder=/a b"]),
        (["--rdzv-conf", "timeout=5", "+x=1", "--", "~y"], ["--rdzv-conf", "timeout=5"], ["+x=1", "~y"]),
        (["--nnodes=2", "--", "folder=x"], ["--nnodes=2"], ["folder=x"]),
    ],
)
def test_overrides_of_a_chain_need_no_mark(
    tmp_path: Path, environment: dict[str, str], typed: list[str], options: list[str], overrides: list[str]
) -> None:
    commands = tmp_path / "commands"
    for name in ("torchrun", "nca-plugin"):
        (commands / name).write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" > {tmp_path}/{name}.txt\n')
        (commands / name).chmod(0o755)
    subprocess.run([SCRIPTS / "chain" / "torchrun.sh", "demo", *typed], env=environment, check=True)
    started = (tmp_path / "torchrun.txt").read_text().splitlines()
    overrides = overrides + [text for text in typed if text.startswith("stages.")]
    assert started == ["--rdzv-backend", "c10d", *options, "-m", "nca_plugin.chain", "demo", *overrides]
    assert (tmp_path / "nca-plugin.txt").read_text().splitlines() == ["chain", "demo", "--is-complete", *overrides]
