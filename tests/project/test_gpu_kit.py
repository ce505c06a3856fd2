"""The kit for a GPU, `scripts/gpu`, rehearsed on the CPU as its README says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

RUN = ROOT / "scripts" / "gpu" / "run.sh"


def rehearse(parts: str, out: Path, carried: Path) -> str:
    """Do some parts, and return the summary."""
    settings = {"PARTS": parts, "TOTAL": "2400", "DRY": "1", "OUT": str(out), "CARRIED": str(carried)}
    environment = {**os.environ, **settings, "PYTHON": sys.executable}
    done = subprocess.run(["bash", str(RUN)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return (out / "summary.txt").read_text()


def result(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_speed(tmp_path: Path) -> None:
    summary = rehearse("b", tmp_path / "out", tmp_path / "carried")
    assert "b-micro-batch-1 rc=0" in summary
    row = result(tmp_path / "out" / "bench.jsonl")
    assert all(row[kind]["tokens_per_s"][0] > 0 for kind in ("web", "mock", "code"))


@pytest.mark.slow
def test_all_parts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = rehearse("abcdef", out, tmp_path / "carried")
    assert summary.count("rc=0") == 7
    functional = result(out / "functional.json")
    assert functional["cpu_and_gpu"]["batches_same"] and functional["cpu_and_gpu"]["fp32_relative_5"] == 0
    resumed = functional["resume_bf16-distributed-optimizer"]
    assert resumed == {"batches_same": True, "losses": 20, "relative": 0.0}
    scan = result(out / "scan.json")
    assert len(scan["answers"]) == 2 * 3 and not scan["notes"]
    assert all(f"e  {arm} - scratch" in summary for arm in ("nca", "nca-attention", "shuffled-attention"))
    assert (out / "results.json").exists() and (out / "report.html").exists() and (out / "logs.tgz").exists()
