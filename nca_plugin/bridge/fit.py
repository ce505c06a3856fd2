"""Makes sequence length and vocabulary of a Megatron-Bridge run fit its data, and refuses runs that do not fit.

This happens before there is a process group or a model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from nca_plugin.megatron.text_datasets import check_text, check_trains, parts
from nca_plugin.sources import is_source
from nca_plugin.this_rank import must_check


def fit(config: Any, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Make a run's vocabulary and sequence length fit its sources, unless the user has set them.

    With a single source the run gets a NullTokenizer with its vocabulary, and samples get the model's sequence length.
    A run without sources stays as it is.

    Args:
        config: the `ConfigContainer` whose dataset, tokenizer and vocabulary are adapted.
        settings: all settings of the user, by section.
        overrides: the settings that change a configuration, either a recipe's or a complete one of the user.

    Raises:
        NCAPluginError: if the user's settings do not fit.
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
        # Otherwise Megatron-Bridge would ignore the user's vocab_size.
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
    """Refuse settings that make a source's samples, or their weights, depend on the layout, or that are ignored."""
    check_loader(config.dataset.dataloader_type, "dataset.dataloader_type=cyclic")
    model, way_out = config.model, "model.calculate_per_token_loss=true and ddp.average_in_collective=false"
    what = "the start of a source's sample"
    check_targets(
        model.context_parallel_size, model.calculate_per_token_loss, "model.context_parallel_size", way_out, what
    )
    if config.train.rampup_batch_size is not None:
        raise NCAPluginError("megatron-core 0.19 ignores train.rampup_batch_size: leave it out")


def check_checkpoint(config: Any) -> None:
    """Check the checkpoint of a run, and add the lineage and the samples of a resumed run to its configuration.

    The first rank tells the lineage to the others once there is a process group.

    Raises:
        NCAPluginError: if the number of embedding rows differs, or the run resumes a checkpoint with other data.
    """
    checkpoint = _loaded(config.checkpoint)
    is_resumed = checkpoint_exists(config.checkpoint.load) and not config.checkpoint.finetune
    has_sources = isinstance(config.dataset, SourceDatasetConfig)
    if must_check():
        if checkpoint is not None:
            _check_rows(config, checkpoint)
        if has_sources:
            config.dataset.describe_data(checkpoint, is_resumed=is_resumed)
    if has_sources:
        resumed = checkpoint if is_resumed else None
        config.dataset.resumed_samples = None if resumed is None else _resumed_samples(config, resumed.folder)


def _loaded(settings: Any) -> Checkpoint | None:
    """Return the checkpoint that Megatron-Bridge will load, without reading it; None if there is none on a disk."""
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
    """Return a resumed run's total numbers of training and validation samples; None if Megatron-LM saved it."""
    train, validation = config.train, config.validation
    file = get_checkpoint_train_state_filename(str(checkpoint))
    if not Path(file).exists():
        return None
    state = read_train_state(file)
    steps = train.train_iters or train.train_samples // train.global_batch_size
    read = state.consumed_train_samples + max(0, steps - state.step) * train.global_batch_size
    if not validation.eval_interval:
        return [read, 0]
    # One more evaluation follows the last step.
    evaluations = max(0, steps // validation.eval_interval - state.step // validation.eval_interval) + 1
    batch = validation.eval_global_batch_size or train.global_batch_size
    return [read, state.consumed_valid_samples + evaluations * validation.eval_iters * batch]


def _is_padded(config: Any) -> bool:
    """Return whether Megatron-Bridge takes the vocabulary size from the tokenizer, which it then pads."""
    return bool(config.tokenizer.use_tokenizer_vocab_size or config.model.vocab_size is None)


def _vocab_size(config: Any) -> int:
    """Return the vocabulary size of a run's model, without padding."""
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
