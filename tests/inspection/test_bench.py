"""`nca-plugin bench`: every figure is there and makes sense; no test asserts a speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nca_plugin.errors import NCAPluginError
from nca_plugin.inspection.throughput import measure_throughput

COMMAND = (sys.executable, "-m", "nca_plugin", "bench")


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
    # At most 10 + 9 steps for each candidate, all that the accepted one's 7 frames need; standing still costs nothing.
    assert 0 < toy["shares"]["steps"] <= 19 * toy["shares"]["attempts"]
    assert toy["roofline"]["cells"] == pytest.approx(toy["shares"]["steps"] * 144)
    assert min(toy["roofline"].values()) > 0


def test_a_process_that_dies_is_an_error_and_not_waited_for() -> None:
    with pytest.raises(NCAPluginError, match="ended early"):
        measure_throughput("no_such_source://", 64, 1, 0.1)
