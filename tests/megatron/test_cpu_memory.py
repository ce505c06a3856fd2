"""How much memory a run in CPU mode may use: what the machine has left, or what its container or job allows."""

from argparse import Namespace
from pathlib import Path

import pytest

from nca_plugin.errors import NCAPluginError
from nca_plugin.megatron.cpu_limits import available_memory, check_memory

GB = 10**9
UNLIMITED = 9223372036854771712

#: A run that needs 4.3 GB at least: a matrix of 2^15 * 2^15 values in fp32.
RUN = Namespace(
    num_layers=1,
    pipeline_model_parallel_size=1,
    micro_batch_size=1,
    seq_length=1,
    context_parallel_size=1,
    hidden_size=1 << 15,
    tensor_model_parallel_size=1,
    padded_vocab_size=1 << 15,
    ffn_hidden_size=0,
    num_experts=None,
    multi_latent_attention=True,
    num_attention_heads=1,
)


def machine(root: Path, cgroup: str, files: dict[str, object]) -> Path:
    """Return the root of a machine with 16 GB left whose process is in a cgroup."""
    contents = {
        "proc/meminfo": "MemTotal:       32000000 kB\nMemFree:         1000000 kB\nMemAvailable:   15625000 kB\n",
        "proc/self/cgroup": cgroup,
        **files,
    }
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def group(folder: str, limit: object, used: int, pages: int = 0) -> dict[str, object]:
    """Return the files of a cgroup; `pages` of what is used are of files."""
    if "/memory" in folder:
        # The group itself, and all in it.
        stat = f"cache 1\ninactive_file 1\nactive_file 1\ntotal_inactive_file {pages}\ntotal_active_file 0"
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    else:
        stat, names = (
            f"anon 1\ninactive_file {pages - pages // 3}\nactive_file {pages // 3}",
            ("memory.max", "memory.current"),
        )
    return {f"{folder}/{names[0]}": limit, f"{folder}/{names[1]}": used, f"{folder}/memory.stat": stat}


V2, V1, HYBRID = "sys/fs/cgroup", "sys/fs/cgroup/memory", "sys/fs/cgroup/unified"


@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        pytest.param("", {}, 16 * GB, id="no-cgroup"),
        pytest.param("nonsense\n0::", {f"{V2}/memory.max": "nonsense"}, 16 * GB, id="nonsense"),
        pytest.param("0::/job", group(f"{V2}/job", "max", GB), 16 * GB, id="v2-unlimited"),
        pytest.param("0::/job", group(f"{V2}/job", 4 * GB, GB), 3 * GB, id="v2"),
        pytest.param("0::/job", group(f"{V2}/job", 4 * GB, 3 * GB, 2 * GB), 3 * GB, id="v2-pages-of-files"),
        pytest.param("0::/job", group(f"{V2}/job", GB, 2 * GB), 0, id="v2-full"),
        pytest.param("0::/job", group(f"{V2}/job", 64 * GB, GB), 16 * GB, id="v2-more-than-the-machine"),
        pytest.param(
            "0::/a/job", group(f"{V2}/a/job", "max", GB) | group(f"{V2}/a", 5 * GB, 3 * GB), 2 * GB, id="v2-ancestor"
        ),
        pytest.param(
            "0::/a/job", group(f"{V2}/a/job", 2 * GB, GB) | group(f"{V2}/a", 9 * GB, GB), GB, id="v2-least-of-all"
        ),
        pytest.param("0::/../../of-the-host", group(V2, 4 * GB, GB), 3 * GB, id="v2-path-of-the-host"),
        pytest.param("4:memory:/job\n1:cpu:/x\n0::/", group(f"{V1}/job", 4 * GB, GB), 3 * GB, id="v1"),
        pytest.param("4:memory:/job", group(f"{V1}/job", 4 * GB, 3 * GB, 2 * GB), 3 * GB, id="v1-pages-of-files"),
        pytest.param(
            "4:memory:/a/job",
            group(f"{V1}/a/job", UNLIMITED, GB) | group(f"{V1}/a", 5 * GB, 3 * GB),
            2 * GB,
            id="v1-ancestor",
        ),
        pytest.param("4:memory:/docker/1a", group(V1, 4 * GB, GB), 3 * GB, id="v1-path-of-the-host"),
        pytest.param("1:cpu:/job", group(f"{V1}/job", 4 * GB, GB), 16 * GB, id="v1-of-another-controller"),
        pytest.param("4:memory:/\n0::/job", group(f"{HYBRID}/job", 4 * GB, GB), 3 * GB, id="hybrid"),
    ],
)
def test_the_limits_of_cgroups_hold(tmp_path: Path, cgroup: str, files: dict[str, object], left: int) -> None:
    root = machine(tmp_path, cgroup, files)
    assert available_memory(root) == left
    if left > 4 * GB + GB // 2:
        check_memory(RUN, root)
        return
    with pytest.raises(NCAPluginError, match=rf"needs 4 GB or more on each rank .*may use {left // GB} GB"):
        check_memory(RUN, root)


def test_this_machine_has_memory_left() -> None:
    assert 0 < available_memory() < 1 << 50
