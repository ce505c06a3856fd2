"""Kill a chain at random moments, start it again each time, and compare what it ends with: a table in Markdown.

    python scripts/kill_chain.py runs/kills --kills 20

Two torchrun agents of one rank each, on this machine, train the chain of `scripts/kill_chain.yaml` several times. The
first time nobody disturbs them. After that a rank, its supervisor, a launcher, an agent with its ranks, or everything
between two stages is sent SIGKILL, and the agents that have ended are started again, as a scheduler would. Interrupted,
the same command continues after the last complete chain.
"""

import argparse
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from nca_plugin.chain.next_stage import survey
from nca_plugin.chain.stages import Chain, load_chain
from nca_plugin.checkpoint.opened import read_checkpoint
from nca_plugin.errors import NCAPluginError

CHAIN = Path(__file__).with_suffix(".yaml")
KILLS_PER_CHAIN = 10
AGENTS = 2
#: What is killed, in turn.
VICTIMS = ("rank", "launcher", "agent", "between stages", "supervisor")
_ITERATION = re.compile(r"\] iteration +\d+/")
_EVENT = re.compile(r"nca-plugin: chain: (.*)")


class Job:
    """A chain trained by agents that are started again until it is complete."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.chain: Chain = load_chain(CHAIN, [f"folder={folder}/chain"])
        self.log = folder / "log.txt"
        self.log.touch()
        self._agents: list[psutil.Popen | None] = [None] * AGENTS
        self._port = 0

    def start(self) -> None:
        """Start the agents that do not run. Without any, the job is a new one."""
        if not any(agent and agent.poll() is None for agent in self._agents):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self._port = free.getsockname()[1]
        for number, agent in enumerate(self._agents):
            if agent is None or agent.poll() is not None:
                self._agents[number] = self._started()

    def _started(self) -> psutil.Popen:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", str(AGENTS), "--nproc-per-node", "1"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{self._port}", "--rdzv-id", str(self._port)),
            *("--max-restarts", "3", "-m", "nca_plugin.chain", str(CHAIN), f"folder={self.folder}/chain"),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with self.log.open("a") as log:
            return psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)

    @property
    def agents(self) -> list[psutil.Popen]:
        return [agent for agent in self._agents if agent is not None and agent.poll() is None]

    def processes(self, module: str) -> list[psutil.Process]:
        """Return the processes that run `module`: supervisors or ranks, not those that they fork."""
        found = []
        for agent in self.agents:
            for process in agent.children(recursive=True):
                try:
                    if process.cmdline()[1:3] == ["-m", module] or process.cmdline()[1:4] == ["-u", "-m", module]:
                        found.append(process)
                except psutil.Error:
                    continue
        return found

    def events(self) -> list[str]:
        """Return what the chain has said so far."""
        return _EVENT.findall(self.log.read_text(errors="replace"))

    def num_iterations(self) -> int:
        """Return how many iterations were trained, those done again counted again."""
        return len(_ITERATION.findall(self.log.read_text(errors="replace")))

    def described(self) -> str:
        """Return the first stage that is not complete, and how far it is."""
        try:
            for state in survey(self.chain):
                if not state.is_complete:
                    return f"{state.stage.name}: {state.described}"
        except NCAPluginError as error:
            # A save is going on while the files are looked at.
            return str(error)
        return "complete"

    def is_running(self) -> bool:
        """Whether agents are at work or have to be started again; those that failed are."""
        codes = [agent.poll() if agent else None for agent in self._agents]
        if all(code == 0 for code in codes):
            return False
        self.start_failed(codes)
        return True

    def start_failed(self, codes: list[int | None]) -> None:
        """Start agents again that ended with an error."""
        if any(code for code in codes):
            # Those that a lost agent takes with it end within seconds.
            time.sleep(3)
            self.start()


def families(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return processes with all that they started."""
    found = []
    for process in processes:
        try:
            found += [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
    return found


def kill(job: Job, victim: str, moments: random.Random) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Send SIGKILL. Returns what was sent it, and what has to end with it."""
    if victim == "rank" or victim == "supervisor":
        module = "nca_plugin.launch.megatron" if victim == "rank" else "nca_plugin.chain"
        processes = job.processes(module)
        chosen = [moments.choice(processes)] if processes else []
        doomed = families(chosen)
    elif victim == "launcher":
        chosen = [moments.choice(job.agents)]
        doomed = families(chosen)
    else:
        agents = job.agents if victim == "between stages" else [moments.choice(job.agents)]
        chosen = doomed = families(agents)
    for process in chosen:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return chosen, doomed


def moments_to_kill(job: Job, victim: str, moments: random.Random) -> Callable[[], bool]:
    """Return a function that says when the moment has come: some time after the start, or while a stage is trained."""
    now = time.monotonic()
    if victim != "between stages":
        is_trained, delay = moments.random() < 0.7, moments.uniform(1, 40)
        before = job.num_iterations()
        if not is_trained:
            return lambda: time.monotonic() - now > delay
        iterations = moments.randrange(1, 45)
        return lambda: job.num_iterations() >= before + iterations
    complete = sum(state.is_complete for state in survey(job.chain))
    seen: list[float] = []
    delay = moments.uniform(0, 2)

    def has_come() -> bool:
        try:
            if not seen and sum(state.is_complete for state in survey(job.chain)) > complete:
                seen.append(time.monotonic())
        except NCAPluginError:
            return False
        return bool(seen) and time.monotonic() - seen[0] > delay

    return has_come


def disturb(job: Job, number: int, first: int, kills: int, seed: int) -> Iterator[dict[str, Any]]:
    """Train a chain to its end with `kills` kills, and yield a row for each."""
    moments = random.Random(f"{seed}-{number}")
    job.start()
    for count in range(kills):
        victim = VICTIMS[(first + count) % len(VICTIMS)]
        has_come = moments_to_kill(job, victim, moments)
        began = time.monotonic()
        while not has_come() and job.is_running():
            time.sleep(0.25)
        if not job.agents:
            return
        events, state = job.events(), job.described()
        seconds = time.monotonic() - began
        chosen, doomed = kill(job, victim, moments)
        _, left = psutil.wait_procs(doomed, timeout=8)
        row = {"victim": victim, "killed": len(chosen), "seconds": round(seconds, 1), "state": state}
        yield row | {"left": len(left), "said": len(events)}
    while job.is_running():
        time.sleep(0.2)


def resumed(events: list[str], said: int) -> str:
    """Return what a chain went on with after a kill, as it said itself."""
    later = [event for event in events[said:] if not event.startswith("rank ")]
    lines = [re.sub(r"/\S*/", "", event) for event in later]
    chosen = next((i for i, line in enumerate(lines) if line.startswith(("stage ", "complete"))), len(lines) - 1)
    return "; ".join(lines[: chosen + 1])


def weights(job: Job) -> dict[str, np.ndarray]:
    """Return the tensors of the last checkpoint, those of the optimizer among them."""
    checkpoint = read_checkpoint(job.chain.stages[-1].folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.tensors}


def is_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = options.folder.resolve()
    undisturbed = Job(folder / "undisturbed")
    if undisturbed.described() != "complete":
        undisturbed.start()
        while undisturbed.is_running():
            time.sleep(0.2)
    expected = weights(undisturbed)
    record = folder / f"kills-{options.seed}.json"
    rows: list[dict[str, Any]] = json.loads(record.read_text()) if record.is_file() else []
    while len(rows) < options.kills:
        number = len(rows) // KILLS_PER_CHAIN
        job = Job(folder / f"killed-{options.seed}-{number}-{time.time():.0f}")
        kills = min(KILLS_PER_CHAIN, options.kills - len(rows))
        new = []
        for row in disturb(job, number, len(rows), kills, options.seed):
            new.append(row)
            count = f"kill {len(rows) + len(new)} of {options.kills}"
            print(f"{count}: {row['victim']} after {row['seconds']} s, {row['state']}", file=sys.stderr, flush=True)
        events = job.events()
        result = "equal" if is_equal(weights(job), expected) else "DIFFERENT"
        rows += [row | {"resumed": resumed(events, row["said"]), "result": result} for row in new]
        record.write_text(json.dumps(rows, indent=1))
    print("| | killed (SIGKILL) | after | the files then | went on with | processes left | final weights |")
    print("|---|---|---|---|---|---|---|")
    for number, row in enumerate(rows, start=1):
        what = f"{row['victim']} ({row['killed']})"
        print(
            f"| {number} | {what} | {row['seconds']} s | {row['state']} | {row['resumed']} | {row['left']} "
            f"| {row['result']} |"
        )
    if any(row["result"] != "equal" or row["left"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
