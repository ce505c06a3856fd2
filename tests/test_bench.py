"""`nca-plugin bench`: every figure is there and makes sense; no test asserts a speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-c", "from nca_plugin.cli import main; main()", "bench")


def test_an_automaton_and_another_source(tmp_path: Path) -> None:
    out = tmp_path / "figures" / "bench.json"
    command = (*COMMAND, "nca://toy", "dyck", "--seq-length", "256", "--processes", "2", "--seconds", "0.3")
    shown = subprocess.run((*command, "--json", str(out)), capture_output=True, text=True, check=True).stdout
    assert "tokens per CPU-second" in shown and "roofline" in shown and str(out) in shown
    toy, dyck = json.loads(out.read_text())
    assert toy["uri"].startswith("nca://toy?seed=1234&") and dyck["shares"] is dyck["roofline"] is None
    for result in (toy, dyck):
        one, two = result["throughput"]
        assert (one["processes"], two["processes"]) == (1, 2)
        for point in (one, two):
            assert point["tokens_per_cpu_second"] > 0 and point["tokens_per_second"] > 0
            assert 0 < point["latency_ms"]["p50"] <= point["latency_ms"]["p99"] <= point["latency_ms"]["p100"]
            assert point["memory_mb"] > 10
        assert all(seconds > 0 for seconds in result["start"].values())
        assert result["machine"]["zlib"]
    assert toy["shares"]["attempts"] > 1 and min(toy["shares"].values()) > 0
    # A rollout of 10 + 9 steps for each candidate, 6 more frames for the accepted one's 7: 144 cells each.
    steps = (toy["shares"]["attempts"] - 1) * 19 + 16
    assert toy["roofline"]["cells"] == pytest.approx(steps * 144)
    assert 0 < toy["roofline"]["least_us"] < toy["roofline"]["measured_us"]
