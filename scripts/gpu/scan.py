"""Part f: how many tokens a stage 1 needs until it is learned; stage 1 only, all runs side by side on one GPU.

    python scan.py SECONDS

Every source is trained with every learning rate: a warm-up, a constant rate, and a decay to 0 over the last quarter
(Megatron's WSD). The number of updates comes from a pilot, so that all end in time. What a run has saved along the way
is asked for its accuracy by frame while the others go on, so the curve over tokens comes for free. A run that is not
done in time is ended, and its last save is what counts. $OUT/scan.json is written after every answer.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import DRY, MODEL, OUT, SLOWER, TOKENS_PER_UPDATE, WORK, end, error_line, pilot, start, uri_of

BEGAN = time.monotonic()
SECONDS = float(sys.argv[1])
SOURCES = ("cell", "web") if DRY else ("cell", "toy", "code", "web")
LRS = (1e-3,) if DRY else (1e-3, 3e-3)
PILOT_SECONDS = 5 if DRY else 15
#: A run saves at each of so many equal parts, and is asked at these. More of them were not answered in time.
PARTS, ASKED = 4, (1, 2, 4)
SAMPLES = 8 if DRY else 128
#: Evaluations at the same time while runs train; each is a process, whose start takes cores from them. Later: all.
EVALUATIONS = 2 if DRY else 4
#: The slower run of two, and what is kept for the last evaluations: two after one another, in times that a run takes to
#: start, and seconds of each.
SHARE_OF_SPEED, STARTS_OF_EVALUATIONS, SECONDS_OF_EVALUATIONS = 0.85, 2.0, 8.0 * SLOWER
_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass
class Stage1:
    """A run, and what its saves were asked."""

    source: str
    lr: float
    updates: int
    process: subprocess.Popen[bytes] | None = None
    note: str = ""
    last_saved: int = 0
    due: list[int] = field(default_factory=list)
    """Updates whose saves are to be asked."""

    questions: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By update."""

    failed_once: set[int] = field(default_factory=set)
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return WORK / "scan" / f"{self.source}-{self.lr:g}"

    @property
    def options(self) -> dict[str, Any]:
        return {
            **MODEL,
            "data-source": uri_of(self.source),
            "lr": self.lr,
            "min-lr": 0,
            "lr-decay-style": "WSD",
            "lr-wsd-decay-style": "linear",
            "lr-warmup-iters": max(1, self.updates // 20),
            "lr-decay-iters": self.updates,
            "lr-wsd-decay-iters": self.updates // 4,
            "train-iters": self.updates,
            "eval-iters": 0,
            "eval-interval": 1_000_000,
            "log-interval": 10,
            "save-interval": self.updates // PARTS,
        }

    @property
    def num_asked(self) -> int:
        """How many evaluations are under way."""
        return len(self.questions) - len(self.answers)

    def begin(self) -> None:
        save = {"save": self.folder / "checkpoint", "no-save-optim": True, "no-save-rng": True}
        self.process = start("nca_plugin.launch.megatron", {**self.options, **save}, self.folder / "log.txt")

    def go_on(self, *, late: bool) -> None:
        """Note the saves that are to be asked, and end a run that is too late."""
        wanted = {part * (self.updates // PARTS) for part in ASKED}
        code = None if self.process is None else self.process.poll()
        if self.process is not None and (late or code is not None):
            if code is None:
                end([self.process])
                self.note = f"ended after update {self._saved()}, for want of time"
            elif code:
                log = (self.folder / "log.txt").read_text(errors="replace")
                self.note = f"ended with code {code}: {error_line(log)}"
            self.process = None
            wanted |= {self._saved()} - {0}
        for update in sorted(wanted):
            if update <= self._saved() and update not in self.due and update not in self.questions:
                self.due.append(update)

    def ask(self, update: int) -> None:
        self.due.remove(update)
        question = {
            "load": self.folder / "checkpoint",
            "ckpt-step": update,
            "evaluation-out": self.folder / f"{update}.json",
            "evaluation-source": uri_of(self.source),
            "evaluation-samples": SAMPLES,
            "induction-samples": 8,
        }
        log = self.folder / f"evaluation-{update}.txt"
        self.questions[update] = start("nca_plugin.launch.evaluate", {**self.options, **question}, log)

    def look(self) -> bool:
        """Note what has been answered. Returns whether there is something new."""
        new = False
        for update, process in list(self.questions.items()):
            if update in self.answers or process.poll() is None:
                continue
            new = True
            out = self.folder / f"{update}.json"
            if out.exists():
                self.answers[update] = json.loads(out.read_text())
            elif update not in self.failed_once:
                # It may have looked while the run was saving: asked again.
                self.failed_once.add(update)
                self.due.append(update)
                del self.questions[update]
            else:
                log = (self.folder / f"evaluation-{update}.txt").read_text(errors="replace")
                self.answers[update] = {"error": error_line(log)}
        return new

    def _saved(self) -> int:
        """Return the update of the last complete save, 0 without."""
        tracker = self.folder / "checkpoint" / "latest_checkpointed_iteration.txt"
        text = tracker.read_text() if tracker.exists() else ""
        # Megatron writes the file in place: for a moment it is empty.
        self.last_saved = max(self.last_saved, int(text or 0))
        return self.last_saved


def write(runs: list[Stage1], facts: dict[str, Any]) -> None:
    rows = []
    for run in runs:
        for update, answer in sorted(run.answers.items()):
            found = answer.get("in_context") or {"error": answer.get("error", "")}
            induction = answer.get("induction")
            heads = max(map(max, induction["scores"])) if induction else None
            row = {"source": run.source, "lr": run.lr, "updates": update, "tokens": update * TOKENS_PER_UPDATE}
            rows.append({**row, "of": run.updates, "best_induction_head": heads, **found})
    notes = {f"{run.source}, lr {run.lr:g}": run.note for run in runs if run.note}
    (OUT / "scan.json").write_text(json.dumps({**facts, "notes": notes, "answers": rows}, indent=1))


def ask_some(runs: list[Stage1]) -> None:
    """Start evaluations, those of the longest training first."""
    most = EVALUATIONS if any(run.process is not None for run in runs) else len(runs)
    waiting = sorted(((update, run) for run in runs for update in run.due), key=lambda pair: -pair[0])
    for update, run in waiting[: max(0, most - sum(run.num_asked for run in runs))]:
        run.ask(update)


def main() -> None:
    count = len(SOURCES) * len(LRS)
    speed = pilot({**MODEL, "data-source": "nca://web"}, count, PILOT_SECONDS, WORK / "scan" / "pilot")
    for_evaluations = STARTS_OF_EVALUATIONS * speed.startup_s + SECONDS_OF_EVALUATIONS
    training = SECONDS - (time.monotonic() - BEGAN) - speed.startup_s - for_evaluations
    updates = int(speed.tokens_per_s * SHARE_OF_SPEED * max(training, 0) / count / TOKENS_PER_UPDATE)
    updates = max(PARTS, min(updates, 40 if DRY else updates) // PARTS * PARTS)
    tokens = updates * TOKENS_PER_UPDATE
    facts = {"pilot": vars(speed), "updates": updates, "tokens": tokens, "training_s": round(training)}
    print(f"CHOICE: {count} runs; {facts}", flush=True)
    runs = [Stage1(source, lr, updates) for source in SOURCES for lr in LRS]
    for run in runs:
        run.begin()
    training_ends, all_ends = BEGAN + SECONDS - for_evaluations, BEGAN + SECONDS - 4
    try:
        while True:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for run in runs:
                run.go_on(late=time.monotonic() > training_ends)
            if sum(run.look() for run in runs):
                write(runs, facts)
            ask_some(runs)
            is_busy = any(run.process is not None or run.num_asked or run.due for run in runs)
            if not is_busy or time.monotonic() > all_ends:
                break
    finally:
        end([run.process for run in runs if run.process is not None])
        unanswered = {id(run): sorted({*run.due, *run.questions} - {*run.answers}) for run in runs}
        end([process for run in runs for process in run.questions.values()])
        for run in runs:
            if unanswered[id(run)]:
                run.note += f" not answered in time: updates {unanswered[id(run)]}"
        write(runs, facts)
    sys.exit(any(run.note or any("error" in answer for answer in run.answers.values()) for run in runs))


if __name__ == "__main__":
    main()
