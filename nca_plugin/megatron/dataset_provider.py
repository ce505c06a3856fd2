"""The dataset provider for `megatron.training.pretrain`."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, MockGPTDataset
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.object_storage_utils import is_object_storage_path
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.core.transformer.multi_token_prediction import mtp_on_this_rank
from megatron.training import get_args, print_rank_0
from megatron.training.argument_utils import core_transformer_config_from_args
from megatron.training.checkpointing import checkpoint_exists
from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.storage import size_of
from nca_plugin.megatron.announce import announcements
from nca_plugin.megatron.blend import check_weights, is_meant_as_ours
from nca_plugin.megatron.checks import check_loading, check_order, check_paths
from nca_plugin.megatron.dataset import SourceGPTDataset, SourceGPTDatasetConfig, check_fit, is_ours, open_path
from nca_plugin.megatron.lineage import store_told_lineage
from nca_plugin.megatron.metrics import SampleMeter
from nca_plugin.megatron.needed import Samples, changed_end, needed_samples
from nca_plugin.megatron.sft import Conversations, ExampleDataset, TokenizedExamples
from nca_plugin.megatron.text_datasets import check_text, parts

#: Megatron's default for data paths without a split.
_DEFAULT_SPLIT: Final = "969, 30, 1"


def provider(
    train_val_test_num_samples: Samples,
    vp_stage: int | None = None,
    meter: SampleMeter | None = None,
    announce: Callable[[str], None] = print_rank_0,
) -> list[Any]:
    """Return the train, validation and test datasets of the run's arguments; None for those this rank does not need.

    Data paths may be source URIs, alone or in blends with indexed datasets. Without a source or generated dataset, the
    datasets are of Megatron's own classes.

    Args:
        meter: counts the training samples.
        announce: is called with each line that says what the run trains on.
    """
    args = get_args()
    has_source = any(map(is_ours, data_paths(args)))
    if has_source:
        # The launcher has checked this before, but a training script of the user's own has not.
        check_order(args)
    data = store_told_lineage(args)
    config = _dataset_config(args, meter)
    dataset_class: type[MegatronDataset]
    if args.sft:
        dataset_class = ExampleDataset
        config.tokenizer = Conversations(config.tokenizer)
    elif args.mock_data:
        dataset_class = MockGPTDataset
    elif has_source:
        dataset_class = SourceGPTDataset
    else:
        dataset_class = GPTDataset
    is_built = partial(_is_dataset_built_on_rank, vp_stage)
    num_samples = needed_samples(args, train_val_test_num_samples)
    datasets: list[Any] = BlendedMegatronDatasetBuilder(dataset_class, num_samples, is_built, config).build()
    # A rank calls this for each of its virtual stages, but prints only once.
    if datasets[0] is not None and data is not None and not vp_stage:
        for line in announcements(data, num_samples[0] or 0):
            announce(line)
        if isinstance(datasets[0], ExampleDataset):
            announce(f"nca-plugin {data.version}: {datasets[0].announcement()}")
        warning = changed_end(args, train_val_test_num_samples[0])
        if warning is not None:
            announce(f"nca-plugin: {warning}")
    return datasets


# Every rank calls the provider, so that Megatron need not broadcast which datasets there are.
provider.is_distributed = True  # type: ignore[attr-defined]


def data_paths(args: Any) -> list[str]:
    """Return the data paths of all splits in Megatron's arguments, without weights."""
    return [path for blend in filter(None, _blends(args)) for path in blend[0]]


def training_paths(args: Any) -> list[str]:
    """Return the data paths that Megatron's arguments name for training."""
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    training = blend if blend_per_split is None else blend_per_split[0]
    return [] if training is None else list(training[0])


def _blends(args: Any) -> list[Any]:
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    return [blend, *(blend_per_split or [])]


def check_arguments(args: Any) -> None:
    """Raise `NCAPluginError` if the run is impossible, or its model cannot train on its data.

    This needs only the parsed arguments, and is called before a model is built.
    """
    if args.data_args_path is not None and args.split is None:
        # Megatron has a default split only for data paths on the command line.
        args.split = _DEFAULT_SPLIT
    check_paths(data_paths(args))
    for paths, weights in filter(None, _blends(args)):
        check_weights(paths, weights)
    check_loading(args, any(map(is_ours, data_paths(args))))
    for path in filter(is_object_storage_path, data_paths(args)):
        if _is_dataset_in_object_storage(path):
            raise NCAPluginError(
                f"dataset {path} is in object storage, where Megatron would train on every target: copy it to a folder"
            )
    if args.sft:
        _check_examples(args)
        return
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    validation = None if args.full_validation else args.eval_iters
    # Such a run may end before its last iteration, or have begun with another batch size.
    is_cut = args.skip_train or args.exit_interval or args.exit_duration_in_mins or checkpoint_exists(args.load)
    training = 1 if is_cut else args.train_samples or args.train_iters * args.global_batch_size
    num_samples = (training, validation, args.eval_iters)
    check_text(parts(blend, blend_per_split, args.split, "--split"), num_samples, args.seq_length, "--split")
    paths = list(filter(is_meant_as_ours, data_paths(args)))
    if paths:
        vocab_size = _vocab_size(args, build_tokenizer(args))
        for path in paths:
            check_fit(open_path(path), args.seq_length, vocab_size)


def _check_examples(args: Any) -> None:
    tokenizer = build_tokenizer(args)
    for path in data_paths(args):
        examples = TokenizedExamples(path, tokenizer, args.seq_length)
        if args.full_validation and len(examples) % args.data_parallel_size:
            raise NCAPluginError(
                f"--full-validation: {path} holds {len(examples)} examples, which {args.data_parallel_size} "
                "data-parallel ranks cannot share evenly: leave some out, or leave out --full-validation"
            )


def _is_dataset_in_object_storage(path: str) -> bool:
    try:
        return size_of(path + ".next") is not None
    except NCAPluginError:
        # Megatron has its own clients. Without fsspec, the files cannot be seen, but no generated dataset can have been
        # written there either.
        return False


def _dataset_config(args: Any, meter: SampleMeter | None) -> SourceGPTDatasetConfig:
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    sequences_path = args.per_dataset_sequences_path
    tokenizer = build_tokenizer(args)
    return SourceGPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        multiple_validation_sets=args.multiple_validation_sets,
        full_validation=args.full_validation,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        path_to_cache=args.data_cache_path,
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=tokenizer,
        vocab_size=_vocab_size(args, tokenizer),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        object_storage_cache_path=args.object_storage_cache_path,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
        allow_ambiguous_pad_tokens=args.allow_ambiguous_pad_tokens,
        sequences_per_dataset=None if sequences_path is None else json.loads(Path(sequences_path).read_text()),
        fast_cache_load=args.dataloader_fast_cache_load,
        defer_npy_index_mmap=args.dataloader_defer_npy_index_mmap,
        context_parallel_size=args.context_parallel_size,
        data_parallel_size=args.data_parallel_size,
        sequence_parallel_size=args.tensor_model_parallel_size * args.sequence_parallel,
        meter=meter,
    )


def _vocab_size(args: Any, tokenizer: Any) -> int:
    """Return the number of embedding rows: --padded-vocab-size, or the tokenizer's ids with Megatron's padding."""
    return int(args.padded_vocab_size or tokenizer.vocab_size)


def _is_dataset_built_on_rank(vp_stage: int | None) -> bool:
    if mpu.get_tensor_model_parallel_rank() != 0:
        return False
    config = core_transformer_config_from_args(get_args())
    return bool(
        is_first_or_last_pipeline_stage(vp_stage)
        or mtp_on_this_rank(
            layout=config.pipeline_model_parallel_layout,
            mtp_num_layers=config.mtp_num_layers,
            ignore_virtual=False,
            vp_stage=vp_stage,
        )
    )
