"""A training script of a user's own: what `examples/own_pretrain_script` shows."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

from megatron_runs import MODEL
from places import ROOT, TESTS
from releases import needs_0_19

EXAMPLE = ROOT / "examples" / "own_pretrain_script"


@needs_0_19
def test_the_script_trains_on_a_source(tmp_path: Path) -> None:
    command = (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"),
        *(Path(__file__), EXAMPLE / "pretrain.py", *MODEL, "--train-iters", "2", "--data-path", "nca://toy"),
        *("--tokenizer-type", "NullTokenizer", "--vocab-size", "18"),
    )
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = "training on 2,048 tokens of nca://toy (vocabulary 18, 71.1% of targets supervised, fingerprint"
    assert line in done.stdout
    assert "iteration        2/       2" in done.stdout


# Started by the test: a script of a user's own has no CPU mode.
if __name__ == "__main__":
    from nca_plugin.megatron import cuda_on_cpu

    cuda_on_cpu.enable()
    from nca_plugin.launch.process import use_shipped_dataset_helper

    use_shipped_dataset_helper()
    sys.argv = [*sys.argv[1:], *cuda_on_cpu.CPU_ARGUMENTS]
    runpy.run_path(sys.argv[0], run_name="__main__")
