"""What each process that torchrun starts for a chain does: run its rank of one stage after the other, as a child.

Megatron can be initialised once in a process, so each stage is one. Rank 0 looks at the files, makes the start
checkpoint that is due, and tells the others what is next: they need not see the same files at the same moment, which on
a network's file system they do not. A child that fails ends its supervisor with the same code, so that torchrun starts
all of them again, and rank 0 looks at the files again.
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
from nca_plugin.chain.stages import Chain, load_chain
from nca_plugin.chain.state import StageState, mend, next_stage, survey
from nca_plugin.display.terminal import num_cores
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.files import check_folder, try_lock
from nca_plugin.launch.process import PARENT
from nca_plugin.launch.rounds import LostRankError, Round, rank_environment, reserved_port
from nca_plugin.transition.transfer import transfer

_LOCK: Final = "lock"
#: A file system gives up the lock of a machine that is gone after a minute or two.
_SECONDS_TO_LOCK: Final = 180.0
_SECONDS_TO_HEAR: Final = 60.0

_SECONDS_BETWEEN_LOOKS: Final = 0.5
_SECONDS_BETWEEN_BEATS: Final = 5.0
#: Without a beat from a machine, which is then taken for lost.
_SECONDS_TO_BEAT: Final = 60.0


@dataclass(frozen=True)
class NextStep:
    """What rank 0 has the others do next: train a stage, or end.

    Attributes:
        command: of the stage's ranks, empty to end.
        port: where they meet.
        code: to end with.
    """

    command: list[str] = dataclasses.field(default_factory=list)
    port: int = 0
    code: int = 0


def run_chain(path: Path, overrides: list[str]) -> None:
    """Train what is not complete of a chain, as one of the ranks that torchrun started; ends the process.

    Raises:
        NCAPluginError: only on rank 0, which decides; see `load_chain`, `check_once`, `survey` and `transfer`.
    """
    ranks = Round()
    try:
        if ranks.rank:
            _follow(ranks)
        else:
            _lead(ranks, path, overrides)
    except LostRankError as error:
        print(f"nca-plugin: chain: {error}", file=sys.stderr, flush=True)
        # Without waiting for a call that hangs.
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
            # It was meant for a job that has ended.
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
        # The ranks that wait for a step end as well.
        _end(ranks, number, 2)
        raise
    _end(ranks, number, 0)


def _due(chain: Chain) -> StageState | None:
    """Return the stage to train next, None if all are complete."""
    states = survey(chain)
    due = next_stage(states)
    for state in states if due is None else states[: states.index(due)]:
        # What the next stage starts from is found by the tracker file.
        if state.damage is not None:
            for line in mend(state):
                _say(line)
    return due


def _make_ready(chain: Chain, state: StageState) -> None:
    """Make the folder of a stage, and what it starts from, ready for its training."""
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
    """Refuse to train a stage that has just ended without an error: Megatron found a reason of its own to end it."""
    if trained is not None and trained.stage == state.stage:
        raise NCAPluginError(
            f"stage {state.stage.name} ended {state.described}, and nobody asked it to: see its lines above this one"
        )


def _ended(chain: Chain, state: StageState | None) -> str:
    if state is None:
        return f"complete: {chain.stages[-1].folder}"
    return f"stopped on request, stage {state.stage.name} {state.described}: start it again to continue"


def _end(ranks: Round, number: int, code: int) -> None:
    """Have the others end, and wait until they have heard it: the store ends with this process."""
    with contextlib.suppress(LostRankError):
        ranks.tell(f"step-{number}", dataclasses.asdict(NextStep(code=code)))
        deadline = time.monotonic() + _SECONDS_TO_HEAR
        while ranks.heard(["ended"])[0] < ranks.size - 1 and time.monotonic() < deadline and ranks.size > 1:
            time.sleep(0.1)


@contextlib.contextmanager
def _only_job(chain: Chain) -> Iterator[None]:
    """Wait until no other job works on a chain, such as one that is about to be killed.

    Raises:
        NCAPluginError: one still does, or the folder cannot be written to.
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
        # Some network file systems have no locks: then it is up to the scheduler.
        _say(f"no lock on {file.name} ({error.strerror}): take care that only one job works there")
        return True


def _say(line: str) -> None:
    print(f"nca-plugin: chain: {line}", flush=True)


class _Child:
    """A stage's process on this rank."""

    def __init__(self, step: NextStep, ranks: Round, stop_file: Path | None = None) -> None:
        """`stop_file` is looked for by rank 0."""
        self.is_stopped = False
        self._step = step
        self._ranks = ranks
        self._stop_file = stop_file
        self._beats: dict[str, tuple[int, float]] = {}

    def run(self) -> None:
        """Return when the process has ended without an error; end this one with its code if it has not.

        Raises:
            LostRankError: another rank is gone.
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
            # As a shell does for a process that a signal has ended.
            sys.exit(code if code > 0 else 128 - code)

    def _stop_if_asked(self, process: subprocess.Popen[Any]) -> None:
        """Have Megatron save and end. It asks all ranks at each iteration whether one has had the signal."""
        if self._stop_file is None or self.is_stopped or not self._stop_file.exists():
            return
        # Before it has a handler, the signal would kill it. Nothing is trained by then, so there is nothing to lose.
        if _catches(process.pid, signal.SIGTERM):
            _say("asked to stop: saving")
            process.send_signal(signal.SIGTERM)
            self.is_stopped = True

    def _beat(self) -> None:
        """Tell that this machine is there, and make sure that the others are: rank 0 all of them, the others rank 0."""
        now = time.monotonic()
        if self._ranks.rank:
            # Only torchrun tells how many machines there are.
            if os.environ.get("LOCAL_RANK") != "0" or "GROUP_RANK" not in os.environ:
                return
            beat = threading.Thread(target=self._tell_beat, daemon=True)
            # To a machine that is cut off a call hangs, for as long as the system sends it again: a quarter of an hour.
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
        # A store that is gone is found out by the stage's ranks, and by the next step.
        with contextlib.suppress(LostRankError):
            self._ranks.count(f"beat-{os.environ['GROUP_RANK']}")


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal. True where the system does not tell."""
    try:
        caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return True
    return caught is None or bool(int(caught[1], 16) >> (number - 1) & 1)
