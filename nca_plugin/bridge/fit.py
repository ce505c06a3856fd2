"""Sequence length, vocabulary and checkpoint of a Megatron-Bridge run, made to fit its data or refused.

All of it before a process group or a model exists.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from megatron.bridge.training.tokenizers.config import TokenizerConfig
from megatron.bridge.training.tokenizers.tokenizer import build_tokenizer
from megatron.bridge.training.utils.checkpoint_utils import (
    checkpoint_exists,
    get_checkpoint_train_state_filename,
    read_train_state,
)
from megatron.bridge.utils.vocab_utils import calculate_padded_vocab_size

from nca_plugin.bridge.dataset import SourceDatasetConfig
from nca_plugin.checkpoint.embedding_rows import check_embedding_rows
from nca_plugin.checkpoint.opened import Checkpoint, open_checkpoint
from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.megatron.blend import check_blend
from nca_plugin.megatron.dataset import is_ours, open_path
from nca_plugin.megatron.order import check_loader, check_targets
from nca_plugin.megatron.rank_0 import is_rank_0
from nca_plugin.megatron.text_datasets import check_text, check_trains, parts
from nca_plugin.sources import is_source

#: What a user may set of sources, and no dataset of Megatron-Bridge's has.
_OF_SOURCES_ALONE: Final = ("allow_other_data",)


def split_settings(dataset: Any, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a user's settings before a source takes the place of `dataset`, and those that only the source has."""
    section = settings.get("dataset")
    if not isinstance(section, Mapping) or isinstance(dataset, SourceDatasetConfig):
        return dict(settings), {}
    own = {name: value for name, value in section.items() if name in _OF_SOURCES_ALONE}
    rest = {name: value for name, value in section.items() if name not in own}
    others = {name: value for name, value in settings.items() if name != "dataset"}
    # An empty section would stand for all of the dataset.
    if rest:
        others["dataset"] = rest
    return others, {"dataset": own} if own else {}


def fit(config: Any, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Make a run's vocabulary and sequence length fit its sources, where the user has not set them.

    A single source brings a NullTokenizer with its vocabulary; the dataset's samples get the model's length. A run
    without sources is left alone.

    Args:
        config: `ConfigContainer` whose dataset, tokenizer and vocabulary are adapted.
        settings: what the user has set, by section, in a file or otherwise.
        overrides: the part of it that changes a configuration, be it a recipe's or a complete one of the user's.

    Raises:
        NCAPluginError: what the user has set does not fit.
    """
    dataset = config.dataset
    if not isinstance(dataset, SourceDatasetConfig):
        return
    _fit_seq_length(config, is_set="seq_length" in overrides.get("dataset", {}))
    paths, _ = dataset.blend
    if any(map(is_ours, paths)):
        _check_order(config)
    if len(paths) == 1 and is_source(paths[0]) and not settings.get("tokenizer"):
        config.tokenizer = TokenizerConfig(
            tokenizer_type="NullTokenizer", vocab_size=open_path(paths[0]).vocab_size, use_tokenizer_vocab_size=True
        )
    if "vocab_size" in settings.get("model", {}) and "use_tokenizer_vocab_size" not in settings.get("tokenizer", {}):
        # Megatron-Bridge would ignore what the user has set.
        config.tokenizer.use_tokenizer_vocab_size = False
    vocab_size = _vocab_size(config)
    check_blend(
        paths,
        dataset.seq_length,
        vocab_size,
        length_key="model.seq_length",
        way_out="set model.vocab_size={} or more, or tokenizer.vocab_size with a NullTokenizer",
    )
    dataset.vocab_size = vocab_size
    check_trains(dataset.split or "", "dataset.split")
    read = parts(dataset.blend, None, dataset.split, "dataset.split")
    check_text(read, (1, 1, 1), dataset.seq_length, "dataset.split")


def _fit_seq_length(config: Any, *, is_set: bool) -> None:
    if is_set and config.dataset.seq_length != config.model.seq_length:
        raise NCAPluginError(
            f"dataset.seq_length={config.dataset.seq_length} contradicts model.seq_length={config.model.seq_length}: "
            "set model.seq_length alone, the dataset follows it"
        )
    config.dataset.seq_length = config.model.seq_length


def _check_order(config: Any) -> None:
    """Refuse what makes the samples of a source, or their weights, depend on the layout, or what is ignored."""
    check_loader(config.dataset.dataloader_type, "dataset.dataloader_type=cyclic")
    model, way_out = config.model, "model.calculate_per_token_loss=true and ddp.average_in_collective=false"
    what = "the start of a source's sample"
    check_targets(
        model.context_parallel_size, model.calculate_per_token_loss, "model.context_parallel_size", way_out, what
    )
    if config.train.rampup_batch_size is not None:
        raise NCAPluginError("megatron-core 0.19 ignores train.rampup_batch_size: leave it out")


def check_checkpoint(config: Any) -> None:
    """Refuse a checkpoint with other embedding rows, or data, than the run, and add to a configuration with sources
    what the run trains on, and how many samples it reads if it is resumed.

    The first rank reads the checkpoint; the others are told what the run trains on when they have a process group.

    Raises:
        NCAPluginError: the rows differ, or the data of a checkpoint that the run resumes.
    """
    checkpoint = _loaded(config.checkpoint)
    is_resumed = checkpoint_exists(config.checkpoint.load) and not config.checkpoint.finetune
    has_sources = isinstance(config.dataset, SourceDatasetConfig)
    if is_rank_0():
        if checkpoint is not None:
            _check_rows(config, checkpoint)
        if has_sources:
            config.dataset.describe_data(checkpoint, is_resumed=is_resumed)
    if has_sources:
        resumed = checkpoint if is_resumed else None
        config.dataset.resumed_samples = None if resumed is None else _resumed_samples(config, resumed.folder)


def _loaded(settings: Any) -> Checkpoint | None:
    """Return the checkpoint that Megatron-Bridge will load, which is opened and not read; None for none, and for one
    in object storage."""
    path = next((path for path in (settings.load, settings.pretrained_checkpoint) if checkpoint_exists(path)), None)
    if path is None or not Path(path).is_dir():
        return None
    has_step = path == settings.load and settings.ckpt_step is not None
    return open_checkpoint(Path(path) / f"iter_{settings.ckpt_step:07d}" if has_step else Path(path))


def _check_rows(config: Any, checkpoint: Checkpoint) -> None:
    vocab_size, tensor_parallel_size = _vocab_size(config), config.model.tensor_model_parallel_size
    rows, option = vocab_size, "model.vocab_size={rows}"
    if _is_padded(config):
        option = "model.make_vocab_size_divisible_by={rows_of_rank}"
        divisor = config.model.make_vocab_size_divisible_by
        rows = calculate_padded_vocab_size(vocab_size, divisor, tensor_parallel_size, logging_enabled=False)
    check_embedding_rows(checkpoint, rows, vocab_size, tensor_parallel_size, option)


def _resumed_samples(config: Any, checkpoint: Path) -> list[int] | None:
    """Return the samples of training and validation that a run reads in all that resumes a checkpoint; None for one of
    Megatron-LM's."""
    train, validation = config.train, config.validation
    file = get_checkpoint_train_state_filename(str(checkpoint))
    if not Path(file).exists():
        return None
    state = read_train_state(file)
    steps = train.train_iters or train.train_samples // train.global_batch_size
    read = state.consumed_train_samples + max(0, steps - state.step) * train.global_batch_size
    if not validation.eval_interval:
        return [read, 0]
    # The last evaluation follows the last step.
    evaluations = max(0, steps // validation.eval_interval - state.step // validation.eval_interval) + 1
    batch = validation.eval_global_batch_size or train.global_batch_size
    return [read, state.consumed_valid_samples + evaluations * validation.eval_iters * batch]


def _is_padded(config: Any) -> bool:
    """Whether Megatron-Bridge takes the vocabulary from the tokenizer, and then pads it."""
    return bool(config.tokenizer.use_tokenizer_vocab_size or config.model.vocab_size is None)


def _vocab_size(config: Any) -> int:
    """Return the ids of a run's model, without padding."""
    if not _is_padded(config):
        return int(config.model.vocab_size)
    tokenizer = config.tokenizer
    if tokenizer.tokenizer_type == "NullTokenizer" and tokenizer.vocab_size is not None:
        return int(tokenizer.vocab_size)
    try:
        return int(build_tokenizer(tokenizer).vocab_size)
    except (OSError, ValueError) as error:
        raise NCAPluginError(
            f"tokenizer {tokenizer.tokenizer_model or tokenizer.tokenizer_type} cannot be read: {one_line(error)}"
        ) from error
