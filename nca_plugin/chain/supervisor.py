"""Supervises one rank of a chain: torchrun starts this process, which runs its rank of each stage as a child process.

Each stage needs its own process, because Megatron can be initialised only once in one. Rank 0 looks at the files, makes
start checkpoints, and tells the other ranks which stage is next. They do not look themselves, because on a network file
system they may not see the same files at the same time. If a child fails, its supervisor ends with the same code, so
that torchrun restarts all ranks and rank 0 looks at the files again.
"""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from nca_plugin.chain.check import check_once
from nca_plugin.chain.next_stage import StageState, mend, next_stage, survey
from nca_plugin.chain.stages import Chain, load_chain
from nca_plugin.display.terminal import num_cores
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.files import check_folder, try_lock
from nca_plugin.launch.rounds import LostRankError, Round, rank_environment, reserved_port
from nca_plugin.this_rank import PARENT
from nca_plugin.transition.transfer import transfer

_LOCK: Final = "lock"
#: A file system releases the lock of a lost machine after a minute or two.
_SECONDS_TO_LOCK: Final = 180.0
_SECONDS_TO_HEAR: Final = 60.0

_SECONDS_BETWEEN_LOOKS: Final = 0.5
_SECONDS_BETWEEN_BEATS: Final = 5.0
#: A machine without a heartbeat for this long is taken for lost.
_SECONDS_TO_BEAT: Final = 60.0


@dataclass(frozen=True)
class NextStep:
    """What rank 0 tells the other ranks to do next: train a stage, or end.

    Attributes:
        command: the command of each rank of the stage; empty to end.
        port: the port of the stage's rendezvous.
        code: the exit code, if the ranks shall end.
    """

    command: list[str] = dataclasses.field(default_factory=list)
    port: int = 0
    code: int = 0


def run_chain(path: Path, overrides: list[str]) -> None:
    """Train the incomplete stages of a chain, as one of the ranks that torchrun started, and end the process.

    Raises:
        NCAPluginError: only on rank 0, for the reasons of `load_chain`, `check_once`, `survey` and `transfer`.
    """
    ranks = Round()
    try:
        if ranks.rank:
            _follow(ranks)
        else:
            _lead(ranks, path, overrides)
    except LostRankError as error:
        print(f"nca-plugin: chain: {error}", file=sys.stderr, flush=True)
        # A normal exit would wait for a call that hangs.
        os._exit(1)


def _follow(ranks: Round) -> None:
    number = 0
    while (step := NextStep(**ranks.hear(f"step-{number}"))).command:
        _Child(step, ranks).run()
        number += 1
    ranks.count("ended")
    sys.exit(step.code)


def _lead(ranks: Round, path: Path, overrides: list[str]) -> None:
    number = 0
    try:
        chain = load_chain(path, overrides)
        with _only_job(chain):
            # A stop file that exists already was meant for an earlier job.
            chain.stop_file.unlink(missing_ok=True)
            check_once(chain, ranks.size)
            trained: StageState | None = None
            while (state := _due(chain)) is not None and not chain.stop_file.exists():
                _check_progress(trained, state)
                _make_ready(chain, state)
                command = [sys.executable, "-m", state.stage.module, *state.stage.arguments]
                with reserved_port() as port:
                    step = NextStep(command, port)
                    ranks.tell(f"step-{number}", dataclasses.asdict(step))
                    number += 1
                    child = _Child(step, ranks, chain.stop_file)
                    child.run()
                trained = None if child.is_stopped else state
            _say(_ended(chain, state))
            chain.stop_file.unlink(missing_ok=True)
    except LostRankError:
        raise
    except NCAPluginError:
        # The other ranks wait for a step and must end too.
        _end(ranks, number, 2)
        raise
    _end(ranks, number, 0)


def _due(chain: Chain) -> StageState | None:
    """Return the stage to train next; None if all are complete."""
    states = survey(chain)
    due = next_stage(states)
    for state in states if due is None else states[: states.index(due)]:
        # The transition finds the last checkpoint of a complete stage by its tracker file.
        if state.damage is not None:
            for line in mend(state):
                _say(line)
    return due


def _make_ready(chain: Chain, state: StageState) -> None:
    """Repair the save folder of a stage, and make its start checkpoint if it has none."""
    stage = state.stage
    for line in mend(state):
        _say(line)
    if not state.is_started:
        assert stage.start is not None and stage.transition is not None
        began = time.monotonic()
        origin = chain.stages[chain.stages.index(stage) - 1].folder
        with in_context(f"stages.{stage.name}.transition"):
            report = transfer(origin, stage.start, stage.transition, command=sys.argv, num_workers=min(num_cores(), 8))
        _say(f"{stage.start} made from {report['from']} ({time.monotonic() - began:.1f} s)")
    how = "begins" if state.iteration is None else "continues"
    _say(f"stage {stage.name} {how} {stage.progress(state.iteration or 0)}")


def _check_progress(trained: StageState | None, state: StageState) -> None:
    """Refuse to train a stage again that has just ended early without an error, for a reason of Megatron's own."""
    if trained is not None and trained.stage == state.stage:
        raise NCAPluginError(
            f"stage {state.stage.name} ended {state.described}, and nobody asked it to: see its lines above this one"
        )


def _ended(chain: Chain, state: StageState | None) -> str:
    if state is None:
        return f"complete: {chain.stages[-1].folder}"
    return f"stopped on request, stage {state.stage.name} {state.described}: start it again to continue"


def _end(ranks: Round, number: int, code: int) -> None:
    """Tell the other ranks to end, and wait until they have heard it, because the store ends with this process."""
    with contextlib.suppress(LostRankError):
        ranks.tell(f"step-{number}", dataclasses.asdict(NextStep(code=code)))
        deadline = time.monotonic() + _SECONDS_TO_HEAR
        while ranks.heard(["ended"])[0] < ranks.size - 1 and time.monotonic() < deadline and ranks.size > 1:
            time.sleep(0.1)


@contextlib.contextmanager
def _only_job(chain: Chain) -> Iterator[None]:
    """Wait until no other job works on the chain, such as one that is about to be killed.

    Raises:
        NCAPluginError: if another job still does after three minutes, or the folder cannot be written to.
    """
    check_folder(chain.folder)
    chain.folder.mkdir(parents=True, exist_ok=True)
    with (chain.folder / _LOCK).open("w") as file:
        deadline = time.monotonic() + _SECONDS_TO_LOCK
        is_first = True
        while not _locked(file):
            if is_first:
                _say(f"another job works on {chain.folder}: waiting until it has ended")
                is_first = False
            if time.monotonic() > deadline:
                raise NCAPluginError(f"another job works on {chain.folder}: end it, or choose another folder")
            time.sleep(1)
        yield


def _locked(file: IO[str]) -> bool:
    try:
        return try_lock(file)
    except OSError as error:
        # Some network file systems have no locks. There, the scheduler must take care.
        _say(f"no lock on {file.name} ({error.strerror}): take care that only one job works there")
        return True


def _say(line: str) -> None:
    print(f"nca-plugin: chain: {line}", flush=True)


class _Child:
    """The process of a stage on this rank."""

    def __init__(self, step: NextStep, ranks: Round, stop_file: Path | None = None) -> None:
        """`stop_file` is the file that stops the stage. Only rank 0 looks for it."""
        self.is_stopped = False
        self._step = step
        self._ranks = ranks
        self._stop_file = stop_file
        self._beats: dict[str, tuple[int, float]] = {}

    def run(self) -> None:
        """Run the process. If it fails, end this one with the same code.

        Raises:
            LostRankError: if another rank is lost.
        """
        environment = {**os.environ, **rank_environment(self._step.port), PARENT: str(os.getpid())}
        process = subprocess.Popen(self._step.command, env=environment)
        looked = 0.0
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(_SECONDS_BETWEEN_LOOKS)
                    break
                self._stop_if_asked(process)
                if time.monotonic() - looked > _SECONDS_BETWEEN_BEATS:
                    looked = time.monotonic()
                    self._beat()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code:
            # A process that a signal has ended gets the code that a shell gives it.
            sys.exit(code if code > 0 else 128 - code)

    def _stop_if_asked(self, process: subprocess.Popen[Any]) -> None:
        """Make Megatron save and end if there is a stop file. At each iteration it asks all ranks for the signal."""
        if self._stop_file is None or self.is_stopped or not self._stop_file.exists():
            return
        # The signal would kill a process that has no handler yet. The next look is soon enough.
        if _catches(process.pid, signal.SIGTERM):
            _say("asked to stop: saving")
            process.send_signal(signal.SIGTERM)
            self.is_stopped = True

    def _beat(self) -> None:
        """Send a heartbeat of this machine to rank 0. Rank 0 checks those of all other machines."""
        now = time.monotonic()
        if self._ranks.rank:
            # Only torchrun says how many machines there are. One rank of each machine sends its heartbeat.
            if os.environ.get("LOCAL_RANK") != "0" or "GROUP_RANK" not in os.environ:
                return
            beat = threading.Thread(target=self._tell_beat, daemon=True)
            # A call to a machine that is cut off hangs for a quarter of an hour, until the system gives up.
            beat.start()
            beat.join(_SECONDS_TO_BEAT)
            if beat.is_alive():
                raise LostRankError(f"rank {self._ranks.rank} has not reached rank 0 for {_SECONDS_TO_BEAT:.0f} s")
            return
        machines = [f"beat-{number}" for number in range(1, int(os.environ.get("GROUP_WORLD_SIZE", "1")))]
        for number, (machine, beats) in enumerate(zip(machines, self._ranks.heard(machines), strict=True), start=1):
            last, since = self._beats.get(machine, (-1, now))
            if beats != last:
                self._beats[machine] = (beats, now)
            elif now - since > _SECONDS_TO_BEAT:
                raise LostRankError(f"machine {number} of the job has not been heard of for {_SECONDS_TO_BEAT:.0f} s")

    def _tell_beat(self) -> None:
        # If the store is gone, the stage's ranks and the next step will notice.
        with contextlib.suppress(LostRankError):
            self._ranks.count(f"beat-{os.environ['GROUP_RANK']}")


def _catches(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal. If the system does not say, return True."""
    try:
        caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return True
    return caught is None or bool(int(caught[1], 16) >> (number - 1) & 1)
