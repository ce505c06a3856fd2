"""The measurements of `nca_plugin.launch.evaluate` on a Megatron model, as JSON values. Its docstring describes them.

Every rank calls these functions with the same arguments and gets the same results.
"""

import math
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import torch
from megatron.training import get_tokenizer
from numpy.typing import NDArray

from nca_plugin.display.progress import silent_stage
from nca_plugin.display.terminal import stages
from nca_plugin.megatron.dataset import is_ours, open_path
from nca_plugin.megatron.dataset_provider import data_paths
from nca_plugin.probes.accuracy import frame_accuracy, supervised_accuracy
from nca_plugin.probes.ceilings import ceilings
from nca_plugin.probes.forward import model_induction_scores, predictions, token_losses
from nca_plugin.probes.induction import chance_score, repeated_sequences
from nca_plugin.probes.retrieval import RetrievalLayout, retrieval_sequences
from nca_plugin.probes.windows import IndexedText, IndexedWindows
from nca_plugin.sources import Source
from nca_plugin.sources.details import oracle_losses

#: Number of micro-batches between two steps of the progress bar.
_MICRO_BATCHES_AT_ONCE: Final = 16
#: Seed of the sequences for induction and retrieval. All models have the same, so that they can be compared.
_SEED: Final = 1234
#: Number of blocks in a sequence. With more than two, a head could attend to any of several previous occurrences.
_REPETITIONS: Final = 2
#: The longest block. It is long enough for a score, and short enough for models of nearly any sequence length.
_LONGEST_PERIOD: Final = 128
#: Transformer Engine's FP8 and sequence parallelism need sequence lengths that are multiples of this.
_PERIOD_MULTIPLE: Final = 8

#: The measurements of predicted frames, None for a source without frames.
_BY_FRAME: Final = (
    *("frames", "patch", "cell", "grid", "copy"),
    *("best_copy", "lookup", "limit", "hard_share", "hard", "learned"),
)

#: A Megatron model, as its parts on this rank.
Model = list[torch.nn.Module]


def in_context(model: Model, args: Namespace, source: Source, num_samples: int) -> dict[str, Any]:
    """Return how well the first `num_samples` samples of a source are predicted."""
    samples = [source.sample(index, args.seq_length) for index in range(num_samples)]
    tokens, loss_mask = (np.stack([getattr(sample, name) for sample in samples]) for name in ("tokens", "loss_mask"))
    num_ids = max(_num_ids(args), source.vocab_size)
    predicted = predictions(model, tokens[:, :-1], args.micro_batch_size, num_ids)
    losses = token_losses(model, tokens, args.micro_batch_size)
    return {
        "uri": source.uri,
        "samples": num_samples,
        "accuracy": supervised_accuracy(tokens, predicted, loss_mask),
        "loss": float(losses[loss_mask].mean(dtype=np.float64)),
        "oracle_loss": _oracle_loss(source, loss_mask),
        **_by_frame(source, tokens, predicted),
    }


def _by_frame(source: Source, tokens: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    layout, found = source.frames, ceilings(source, tokens, predicted)
    if layout is None or found is None:
        return dict.fromkeys(_BY_FRAME)
    accuracy, every, hard = frame_accuracy(tokens, predicted, layout), found.every, found.hard
    values = (
        *(accuracy.num_frames_seen, accuracy.patch, accuracy.cell, accuracy.grid, accuracy.copy),
        *(every.best_copy, every.lookup, every.limit, found.hard_share),
        hard and {**asdict(hard), "learned": found.learned_by_frame},
        found.learned,
    )
    return dict(zip(_BY_FRAME, values, strict=True))


def _oracle_loss(source: Source, loss_mask: np.ndarray) -> float | None:
    """Return the oracle's mean loss on the supervised targets of samples 0, 1, ...; None if there is no oracle."""
    num_samples, seq_length = loss_mask.shape
    losses = [oracle_losses(source, index, seq_length) for index in range(num_samples)]
    if any(of_sample is None for of_sample in losses):
        return None
    return float(np.array(losses)[loss_mask].mean())


def perplexity(model: Model, args: Namespace, path: str) -> dict[str, Any]:
    """Return the losses on a whole indexed dataset."""
    windows = IndexedWindows(path, args.seq_length)
    at_once = args.micro_batch_size * args.data_parallel_size * _MICRO_BATCHES_AT_ONCE
    losses, counts = np.zeros(windows.num_documents), np.zeros(windows.num_documents, np.int64)
    with nullcontext(silent_stage) if torch.distributed.get_rank() else stages("sequences") as start_stage:
        advance = start_stage(path, windows.num_sequences)
        for start in range(0, windows.num_sequences, at_once):
            stop = min(start + at_once, windows.num_sequences)
            piece = windows.read(start, stop)
            of_targets = token_losses(model, piece.tokens, args.micro_batch_size)[piece.counts]
            documents = piece.documents[piece.counts]
            losses += np.bincount(documents, of_targets, windows.num_documents)
            counts += np.bincount(documents, minlength=windows.num_documents)
            advance(stop - start)
    tokens = int(counts.sum())
    loss = float(losses.sum()) / tokens
    return {
        "path": path,
        "tokens": tokens,
        "loss": loss,
        "perplexity": math.exp(loss),
        "documents": list(zip(counts.tolist(), losses.tolist(), strict=True)),
    }


def retrieval(model: Model, args: Namespace, path: str, num_samples: int) -> dict[str, Any]:
    """Return how well segments of a text are predicted when they occur again, and when they do not."""
    text = IndexedText(path)
    layout = RetrievalLayout.of(args.seq_length, text.num_tokens)
    sequences = retrieval_sequences(text.read, text.num_tokens, layout, num_samples, np.random.default_rng(_SEED))

    def measured(tokens: NDArray[np.int32]) -> tuple[float, float]:
        losses = token_losses(model, tokens, args.micro_batch_size)
        predicted = predictions(model, tokens[:, :-1], args.micro_batch_size, _num_ids(args))
        hits = (predicted == tokens[:, 1:]).astype(np.float32)
        return layout.last_segment(losses), layout.last_segment(hits)

    repeated = [measured(pair.repeated) for pair in sequences]
    control = [measured(pair.control) for pair in sequences]
    return {
        "path": path,
        "samples": num_samples,
        "segment": layout.segment,
        "skipped": layout.skipped,
        "distances": layout.distances,
        "loss_repeated": [loss for loss, _ in repeated],
        "loss_control": [loss for loss, _ in control],
        "accuracy_repeated": [accuracy for _, accuracy in repeated],
        "accuracy_control": [accuracy for _, accuracy in control],
        "gain": [new - old for (new, _), (old, _) in zip(control, repeated, strict=True)],
    }


def induction(model: Model, args: Namespace, num_samples: int) -> dict[str, Any]:
    """Return the prefix-matching scores of all heads."""
    vocab_size = _num_ids(args)
    period = min(_LONGEST_PERIOD, args.seq_length // _REPETITIONS, vocab_size)
    if period >= _PERIOD_MULTIPLE:
        period -= period % _PERIOD_MULTIPLE
    tokens = repeated_sequences(np.random.default_rng(_SEED), num_samples, period, _REPETITIONS, vocab_size)
    found = model_induction_scores(model, tokens, period, args.micro_batch_size)
    return {
        "period": period,
        "samples": num_samples,
        "chance": chance_score(tokens.shape[1], period),
        "layers": found.layers,
        "scores": [of_layer.tolist() for of_layer in found.scores],
    }


def _num_ids(args: Namespace) -> int:
    """Return the number of ids that the run trains on: those of its sources, or the tokenizer's if it has other data.

    If the vocabulary is larger than the sources', its further rows were never trained.
    """
    paths = data_paths(args)
    if paths and all(map(is_ours, paths)):
        return max(open_path(path).vocab_size for path in paths)
    return int(get_tokenizer().vocab_size)
