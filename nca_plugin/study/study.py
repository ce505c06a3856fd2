"""Run a study: warm-ups, transitions and language runs, every arm times every seed."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from nca_plugin.checkpoint.changes import Transition
from nca_plugin.checkpoint.transfer import transfer
from nca_plugin.errors import NCAPluginError
from nca_plugin.megatron.arguments import megatron_arguments
from nca_plugin.prepare import input_bytes, prepare
from nca_plugin.sources import Source, parse
from nca_plugin.study.config import StudyConfig
from nca_plugin.study.runs import Processes, Run, RunResult, execute

_UNIGRAM_SAMPLES = 256


class Progress(Protocol):
    """Where a study reports what it does."""

    def start(self, name: str, total: int) -> Callable[[int], None]:
        """Begin a task of `total` steps. Returns a function that takes the number of steps done."""

    def finish(self, name: str, message: str) -> None:
        """End a task."""


@dataclass(frozen=True)
class WarmUpResult:
    """A warm-up with what its held-out loss is to be compared with, in nats a supervised token."""

    run: RunResult
    uri: str
    uniform_loss: float
    unigram_loss: float


@dataclass(frozen=True)
class StudyResult:
    """All that was measured. Keys are (warm-up or arm, seed)."""

    warm_ups: dict[tuple[str, int], WarmUpResult]
    arms: dict[tuple[str, int], RunResult]
    vocab_size: int
    corpus_tokens: int
    seconds: float


def run_study(study: StudyConfig, progress: Progress) -> StudyResult:
    """Run what is not complete yet, and return everything. Interrupted, it continues with the same call."""
    started = time.monotonic()
    root = _output_folder(study)
    prefix, vocab_size, corpus_tokens = _prepare_corpus(study, root / "corpus", progress)
    threads = max(1, (os.cpu_count() or 1) // study.parallel_runs)

    warm_up_runs = {
        (name, seed): _warm_up_run(study, root, name, seed, threads) for seed in study.seeds for name in study.warm_ups
    }
    warm_ups = _run_all(warm_up_runs, study.parallel_runs, progress)
    arm_runs = {}
    for seed in study.seeds:
        for name, arm in study.arms.items():
            start = root / f"seed{seed}" / f"start-{name}"
            # A transition is a matter of seconds: it is made anew, so that it belongs to the warm-up that is there.
            shutil.rmtree(start, ignore_errors=True)
            origin = warm_up_runs[arm.warm_up, seed].checkpoint
            transition = Transition(arm.preset, arm.keep, arm.reinit, vocab_size=vocab_size, seed=seed)
            report = transfer(origin, start, transition)
            run = _language_run(study, root, name, seed, threads, prefix, vocab_size, start)
            inputs = json.dumps([report, str(study.corpus.corpus()), corpus_tokens])
            fingerprint = hashlib.blake2b(inputs.encode(), digest_size=16).hexdigest()
            arm_runs[name, seed] = dataclasses.replace(run, inputs=fingerprint)
    arms = _run_all(arm_runs, study.parallel_runs, progress)
    return StudyResult(
        warm_ups={
            (name, seed): WarmUpResult(result, source.uri, np.log(source.vocab_size), _unigram_loss(source, study))
            for (name, seed), result in warm_ups.items()
            for source in [_source(study, name, seed)]
        },
        arms=arms,
        vocab_size=vocab_size,
        corpus_tokens=corpus_tokens,
        seconds=time.monotonic() - started,
    )


def _output_folder(study: StudyConfig) -> Path:
    """Return the study's folder, with the mark that it is one: a study removes what it finds half-finished there."""
    root = Path(study.output)
    mark = root / "study.json"
    if root.exists() and not mark.is_file() and (not root.is_dir() or any(root.iterdir())):
        raise NCAPluginError(f"output {root} exists and is not the folder of a study: choose another with output=...")
    root.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(dataclasses.asdict(study), indent=1))
    return root


def _prepare_corpus(study: StudyConfig, folder: Path, progress: Progress) -> tuple[Path, int, int]:
    """Return (prefix, vocabulary, tokens) of the corpus, prepared once for the same settings."""
    corpus = study.corpus.corpus()
    prefix, stamp = folder / "text_document", folder / "corpus.json"
    with contextlib.suppress(OSError, ValueError):
        stored = json.loads(stamp.read_text())
        if stored["corpus"] == str(corpus):
            return prefix, stored["vocab_size"], stored["tokens"]
    shutil.rmtree(folder, ignore_errors=True)
    done = 0
    update = progress.start("corpus", input_bytes(corpus) or 0)

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        update(done)

    result = prepare(corpus, prefix, advance)
    progress.finish("corpus", f"{result.documents:,} documents, {result.tokens:,} tokens")
    stamp.write_text(json.dumps({"corpus": str(corpus), "vocab_size": result.vocab_size, "tokens": result.tokens}))
    return prefix, result.vocab_size, result.tokens


def _source(study: StudyConfig, warm_up: str, seed: int) -> Source:
    uri = study.warm_ups[warm_up].source
    separator = "&" if "?" in uri else "?"
    return parse(f"{uri if '://' in uri else uri + '://'}{separator}seed={seed}")


def _warm_up_run(study: StudyConfig, root: Path, name: str, seed: int, threads: int) -> Run:
    stage = study.warm_ups[name]
    source = _source(study, name, seed)
    arguments = {**study.arguments, **stage.arguments, "seed": seed, "data-source": source.uri}
    folder = root / f"seed{seed}" / f"warm-up-{name}"
    return Run(f"{name} warm-up, seed {seed}", folder, stage.iterations, megatron_arguments(arguments), threads)


def _language_run(
    study: StudyConfig, root: Path, name: str, seed: int, threads: int, prefix: Path, vocab_size: int, start: Path
) -> Run:
    arguments = {
        **study.arguments,
        **study.language.arguments,
        "seed": seed,
        "data-path": str(prefix),
        "tokenizer-type": "NullTokenizer",
        "vocab-size": vocab_size,
        "pretrained-checkpoint": str(start),
    }
    folder = root / f"seed{seed}" / f"language-{name}"
    return Run(f"{name}, seed {seed}", folder, study.language.iterations, megatron_arguments(arguments), threads)


def _run_all(runs: dict[tuple[str, int], Run], parallel: int, progress: Progress) -> dict[tuple[str, int], RunResult]:
    """Execute the runs, `parallel` at a time. The first failure, or an interrupt, stops the others."""
    processes = Processes()

    def one(run: Run) -> RunResult:
        result = execute(run, progress.start(run.name, run.iterations), processes)
        progress.finish(run.name, f"validation loss {result.validation_loss[-1][1]:.4f} after {result.seconds:.0f} s")
        return result

    with ThreadPoolExecutor(parallel) as pool:
        futures = {key: pool.submit(one, run) for key, run in runs.items()}
        try:
            for future in as_completed(futures.values()):
                future.result()
        except BaseException:
            processes.stop()
            raise
    return {key: future.result() for key, future in futures.items()}


def _unigram_loss(source: Source, study: StudyConfig) -> float:
    """Return the cross-entropy of held-out targets under their own frequencies: what a model gains by position-free
    counting alone, so that a lower loss means that it used the context."""
    seq_length = int(study.arguments["seq-length"])
    held_out = source.for_split("valid")
    samples = [held_out.sample(i, seq_length) for i in range(_UNIGRAM_SAMPLES)]
    targets = np.concatenate([sample.tokens[1:][sample.loss_mask] for sample in samples])
    counts = np.bincount(targets).astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
