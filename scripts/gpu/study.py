"""Part e: the product's own study on one GPU, as long as the time left allows.

    python study.py SECONDS

1. The text: $CARRIED/corpus (train*.jsonl or .jsonl.xz with a field "text", and a tokenizer's folder), else PyTorch's
   source as bytes.
2. A pilot: runs from scratch side by side, as many as the study does at once, for about 20 s.
3. From their speed the longest stages that end in time, with three seeds if they fit. What was chosen is printed.
4. `nca-plugin study`, whose runs share the GPU.
"""

import json
import lzma
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from common import DRY, MODEL, OUT, TOKENS_PER_UPDATE, WORK, Speed, gpu_gb, pilot, uri_of

BEGAN = time.monotonic()
SECONDS = float(sys.argv[1])
CORPUS = Path(os.environ["CARRIED"]) / "corpus"
#: Of stage 1, and its tokens by the language stage's.
SOURCE, STAGE1_SHARE = os.environ.get("STUDY_SOURCE", "web"), float(os.environ.get("STAGE1_SHARE", "2"))
#: The most seeds are taken whose language runs have so many tokens; with SEEDS so many, however short the runs.
LEAST_TOKENS, SEEDS = 0 if DRY else 4_000_000, os.environ.get("SEEDS")
STAGE1_ARMS, LANGUAGE_ARMS = 2, 4
#: Of a file of text at most: a process tokenises 1.1 megabytes a second (measured on a shared CPU).
TEXT_CHARACTERS = 100_000 if DRY else 40_000_000
PILOT_SECONDS = 5 if DRY else 20
#: What is not training, in times that a run takes to start: the check of all arguments and the run that gives the
#: model's shapes (1.5 on a CPU), and for each group of runs side by side its start, its save and its evaluation's
#: process (2.0 on a CPU). The seconds are a guess of what the GPU takes to evaluate.
STARTS_OF_STUDY, STARTS_OF_GROUP, SECONDS_OF_GROUP = 2.0, 2.2, 12.0
#: The speed may be less than the pilot's: evaluations, saves, groups that are not full.
SHARE_OF_SPEED = 0.8


@dataclass(frozen=True)
class Text:
    """A prepared text."""

    path: str
    vocab_size: int
    tokens: int
    description: str


@dataclass(frozen=True)
class Choice:
    """The size of a study."""

    seeds: int
    parallel: int
    groups: int
    overhead_s: float
    training_s: float
    stage1_tokens: int
    language_tokens: int


def prepare_file(path: Path, tokenizer: str) -> tuple[str, int, int]:
    """Tokenise a file of the corpus, up to its limit. Returns the prefix, ids of the tokenizer, and tokens."""
    from nca_plugin.text.prepare import Corpus, prepare

    part, size = WORK / f"{path.name.split('.')[0]}.jsonl", 0
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as lines, part.open("w") as file:
        for line in lines:
            if size < TEXT_CHARACTERS and line.strip():
                size += file.write(line)
    done = prepare(Corpus(inputs=(str(part),), tokenizer=tokenizer), part.with_suffix(""))
    return str(done.prefix), done.vocab_size, done.tokens


def prepare_corpus() -> Text:
    """Return the carried text, whose files are tokenised side by side and then joined."""
    files = sorted(CORPUS.glob("train*.jsonl*"))
    tokenizers = sorted(path.parent for path in CORPUS.rglob("tokenizer_config.json"))
    if not files or not tokenizers:
        raise RuntimeError(f"{CORPUS} lacks train*.jsonl or a folder with tokenizer_config.json: add it, or remove all")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with ProcessPoolExecutor(len(files)) as pool:
        parts = list(pool.map(prepare_file, files, [str(tokenizers[0])] * len(files)))
    # Only here, because processes are not to be forked from one that holds torch.
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    path, vocab_size = str(WORK / "corpus_document"), parts[0][1]
    builder = IndexedDatasetBuilder(f"{path}.bin", dtype=DType.optimal_dtype(vocab_size))
    for prefix, _, _ in parts:
        builder.add_index(prefix)
    builder.finalize(f"{path}.idx")
    description = f"carried text, tokenizer {tokenizers[0].name} of {vocab_size} ids"
    return Text(path, vocab_size, sum(part[2] for part in parts), description)


def prepare_python() -> Text:
    import torch

    from nca_plugin.text.prepare import Corpus, prepare

    folder = Path(json.__file__).parents[1] / "asyncio" if DRY else Path(torch.__file__).parent
    done = prepare(Corpus(inputs=(str(folder),), pattern="*.py"), WORK / "python_document")
    return Text(str(done.prefix), done.vocab_size, done.tokens, f"Python source in {folder}, bytes")


def chosen(speed: Speed, parallel: int, text: Text, left: float) -> Choice:
    """Return the largest study that ends in time: the most seeds whose language runs are not too short."""
    choices = []
    for seeds in [int(SEEDS)] if SEEDS else [1] if DRY else [3, 2, 1]:
        groups = math.ceil(STAGE1_ARMS * seeds / parallel) + math.ceil(LANGUAGE_ARMS * seeds / parallel)
        overhead = speed.startup_s * (STARTS_OF_STUDY + STARTS_OF_GROUP * groups) + SECONDS_OF_GROUP * groups
        training = max(0.0, left - overhead)
        # The runs have the GPU's speed together, however many there are: what the pilot found for `parallel`.
        tokens = speed.tokens_per_s * SHARE_OF_SPEED * training
        language = tokens / seeds / (STAGE1_ARMS * STAGE1_SHARE + LANGUAGE_ARMS)
        # No token of the text twice, and a tenth for what is held out.
        updates = int(min(language, 0.9 * text.tokens) / TOKENS_PER_UPDATE)
        updates = max(20, min(updates, 20 if DRY else updates) // 20 * 20)
        stage1 = max(20, int(updates * STAGE1_SHARE) // 20 * 20)
        sizes = stage1 * TOKENS_PER_UPDATE, updates * TOKENS_PER_UPDATE
        choices.append(Choice(seeds, parallel, groups, overhead, training, *sizes))
        print(f"possible: {asdict(choices[-1])}", flush=True)
    return next((choice for choice in choices if choice.language_tokens >= LEAST_TOKENS), choices[-1])


def study_file(text: Text, choice: Choice) -> dict[str, Any]:
    arguments = {
        **MODEL,
        "lr": 1e-3,
        "min-lr": 0,
        "lr-decay-style": "cosine",
        "lr-warmup-fraction": 0.1,
        "eval-iters": 4,
    }
    source = uri_of(SOURCE)
    return {
        "output": str(WORK / "study"),
        "seeds": list(range(1, choice.seeds + 1)),
        "parallel_runs": choice.parallel,
        "runs_per_device": choice.parallel,
        "arguments": {name: value for name, value in arguments.items() if value is not False},
        "domains": {"text": {"corpus": {"path": text.path, "vocab_size": text.vocab_size}}},
        "stage1": {"tokens": choice.stage1_tokens, "evaluations": 2},
        "language": {
            "tokens": choice.language_tokens,
            "validation_tokens": 2048 if DRY else 131_072,
            "evaluations": 2 if DRY else 4,
        },
        # Longer runs from scratch are not worth the time here: tokens are compared, not compute.
        "equal_compute": False,
        "arms": {
            "scratch": {},
            "nca": {"source": source},
            "nca-attention": {"source": source, "preset": "attention-only"},
            "shuffled-attention": {"source": uri_of(SOURCE, "shuffled"), "preset": "attention-only"},
        },
        "baseline": "scratch",
    }


def main() -> None:
    text = prepare_corpus() if CORPUS.is_dir() else prepare_python()
    print(f"text: {text} ({time.monotonic() - BEGAN:.0f} s)", flush=True)
    # Where there is memory for it, all language runs of three seeds are one group (guess: 6.5 GB a run).
    parallel = 2 if DRY else int(os.environ.get("PARALLEL", "12" if gpu_gb("total") > 120 else "6"))
    tokenizer = {"tokenizer-type": "NullTokenizer", "vocab-size": text.vocab_size}
    options = {**MODEL, **tokenizer, "data-path": text.path, "split": "100,0,0"}
    speed = pilot(options, parallel, PILOT_SECONDS, WORK / "logs" / "study-pilot")
    left = SECONDS - (time.monotonic() - BEGAN)
    print(f"pilot: {speed}, {parallel} runs at once; {left:.0f} s left", flush=True)
    choice = chosen(speed, parallel, text, left)
    print(f"CHOICE: {asdict(choice)}", flush=True)
    if choice.training_s <= 0:
        print("too little time is left: the study is not expected to end", flush=True)
    facts = {"text": asdict(text), "pilot": asdict(speed), "source": SOURCE, "seconds_left": left}
    (OUT / "study_choice.json").write_text(json.dumps({**facts, **asdict(choice)}, indent=1))
    path = WORK / "study.yaml"
    path.write_text(yaml.safe_dump(study_file(text, choice), sort_keys=False))
    os.execv(sys.executable, [sys.executable, "-m", "nca_plugin", "study", str(path)])


if __name__ == "__main__":
    main()
