"""Print what every part found, short enough to be read at once."""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from common import OUT, WORK

_VALIDATION = re.compile(
    r"validation(?:-0)? loss at iteration (\d+)(?: on validation set)? \| lm loss value: ([\d.E+-]+)"
)
_MILLISECONDS = re.compile(r"elapsed time per iteration \(ms\): ([\d.]+)")
_OF_PYTEST = re.compile(r"FAILED|ERROR|SKIPPED|E  |(=+ )?\d+ (passed|failed|skipped|error)")


def result_of(name: str) -> Any:
    """Return what a part wrote to a file of JSON, None if it wrote nothing."""
    path = OUT / name
    return json.loads(path.read_text()) if path.exists() else None


def log_of(part: str) -> list[str]:
    path = WORK / "logs" / f"{part}.log"
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def tests() -> None:
    for line in [line for line in log_of("a-tests") if _OF_PYTEST.match(line)][-15:]:
        print(f"a  {line[:200]}")


def bench() -> None:
    for log in sorted((WORK / "logs").glob("b-micro-batch-*.log")):
        for line in log_of(log.stem):
            print(f"b  {line[:200]}")


def functional() -> None:
    for name, value in (result_of("functional.json") or {}).items():
        print(f"cd {name}: {str(value)[:300]}")


def in_context(found: dict[str, Any]) -> str:
    """Return the accuracies of an evaluation: of all targets, and of the patches of some frames beside repeating."""
    if not found.get("patch"):
        return f"accuracy {found['accuracy']:.3f}"
    frames = [i for i in (1, 2, 4, 8, len(found["patch"]) - 1) if i < len(found["patch"])]
    patches = " ".join(f"{i}:{found['patch'][i]:.3f}({found['copy'][i]:.3f})" for i in dict.fromkeys(frames))
    return f"accuracy {found['accuracy']:.3f}, patches right by frame (repeating the last) {patches}"


def study() -> None:
    if (choice := result_of("study_choice.json")) is not None:
        print(f"e  {json.dumps(choice)}")
    losses: dict[tuple[str, str], float] = {}
    for log in sorted((WORK / "study").glob("runs/**/log.txt")):
        name = str(log.parent.relative_to(WORK / "study" / "runs"))
        text = log.read_text(errors="replace")
        curve, times = _VALIDATION.findall(text), [float(ms) for ms in _MILLISECONDS.findall(text)]
        speed = f"{statistics.median(times):.1f} ms an update" if times else "no update"
        done = (log.parent / "result.json").exists()
        print(f"e  {name}: {'complete' if done else 'NOT COMPLETE'}, held-out loss {curve[-1:]}, {speed}")
        evaluation = log.parent / "evaluation.json"
        if evaluation.exists() and (found := json.loads(evaluation.read_text())["in_context"]):
            print(f"e    {in_context(found)}")
        if done and curve and (match := re.fullmatch(r"(seed\d+)/text/([\w-]+)", name)):
            losses[match[1], match[2]] = float(curve[-1][1])
    differences: dict[str, list[float]] = defaultdict(list)
    for (seed, arm), loss in sorted(losses.items()):
        if arm != "scratch" and (seed, "scratch") in losses:
            differences[arm].append(round(loss - losses[seed, "scratch"], 4))
    for arm, values in differences.items():
        print(f"e  {arm} - scratch, nats a token, by seed: {values}, mean {statistics.mean(values):+.4f}")


def scan() -> None:
    if (found := result_of("scan.json")) is None:
        return
    print(f"f  {found['updates']} updates, {found['tokens']:,} tokens a run; pilot {found['pilot']}")
    for row in found["answers"]:
        said = f"FAILED {row['error'][:200]}" if "error" in row else in_context(row)
        print(f"f  {row['source']} lr {row['lr']:g}, {row['tokens']:,} tokens: {said}")
    for name, note in found["notes"].items():
        print(f"f  {name}: {note}")


def failures() -> None:
    """Print the end of the log of each part that failed."""
    for line in (WORK / "parts").read_text().splitlines():
        name, outcome = line.split()[:2]
        if outcome != "rc=0":
            for last in log_of(name)[-6:]:
                print(f"!  {name}: {last[:240]}")


def main() -> None:
    print("=" * 30, "SUMMARY")
    print((WORK / "parts").read_text().strip())
    shown: Sequence[Callable[[], None]] = (tests, functional, bench, study, scan, failures)
    for show in shown:
        try:
            show()
        except Exception as error:  # one part's files must not take the others' with them
            print(f"!  {show.__name__}: {error!r}")


if __name__ == "__main__":
    main()
