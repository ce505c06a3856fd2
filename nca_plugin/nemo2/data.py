"""The data module of a NeMo 2 run: sources, generated datasets and indexed datasets, built by Megatron's own builder.

It replaces NeMo's `PreTrainingDataModule`, which requires that every path is a file. Arguments that both have in common
have the same names. Resuming is NeMo's: by consumed samples, through its `MegatronDataSampler`.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Optional

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import EVAL_DATALOADERS, TRAIN_DATALOADERS
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.num_microbatches_calculator import get_num_microbatches, update_num_microbatches
from nemo.collections.common.tokenizers.null_tokenizer import NullTokenizer
from nemo.collections.common.tokenizers.tokenizer_spec import TokenizerSpec
from nemo.collections.llm.gpt.data.utils import _reconfigure_limit_batches
from nemo.lightning.data import WrappedDataLoader
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from nemo.utils.import_utils import safe_import
from torch.utils.data import Dataset

from nca_plugin.checkpoint.embedding_rows import check_embedding_rows
from nca_plugin.checkpoint.opened import Checkpoint, open_checkpoint
from nca_plugin.errors import NCAPluginError
from nca_plugin.lineage.same_data import continued
from nca_plugin.lineage.training_data import KEY, Lineage, TrainingData
from nca_plugin.megatron.announce import announcements
from nca_plugin.megatron.blend import check_blend, is_meant_as_ours, read_blend
from nca_plugin.megatron.broadcast import told_by_rank_0
from nca_plugin.megatron.dataset import SourceGPTDataset, SourceGPTDatasetConfig, open_path
from nca_plugin.megatron.text_datasets import check_text, check_trains, parts
from nca_plugin.sources.section import source_uri
from nca_plugin.transition.vocabulary import padded_vocab_size

_, _HAS_TRANSFORMER_ENGINE = safe_import("transformer_engine")

#: The source of a run that names neither a source nor a path.
_DEFAULT_SCHEME: Final = "nca"


class SourceDataModule(pl.LightningDataModule):
    """Pretraining data whose paths may be source URIs.

    Args:
        source: a source's name or URI. Its options are further arguments: `preset`, and for `nca` every field of
            `NCAConfig`.
        path: instead of a source, a generated or indexed dataset, or a blend as in Megatron-LM's `--data-path`:
            `0.1 nca://web 0.9 my_text_document`, or a list.
        seq_length: number of input tokens of a sample; None takes the model's.
        micro_batch_size: number of samples of a forward pass.
        global_batch_size: number of samples of an optimizer step.
        rampup_batch_size: the first global batch size, the increment, and the number of samples of the ramp-up.
        tokenizer: decides the model's vocabulary; None takes a NullTokenizer with the source's number of ids.
        tokenizer_vocab_size: number of ids of that NullTokenizer. A blend needs it, or a tokenizer.
        num_workers: number of processes of each data loader.
        pin_memory: see `torch.utils.data.DataLoader`.
        persistent_workers: see `torch.utils.data.DataLoader`.
        random_seed: seed of the order of an indexed dataset and of a blend. A source has its own seed.
        split: shares of train, validation and test. They do not apply to sources, whose splits are separate streams.
        index_mapping_dir: the folder of the indices of indexed datasets; None keeps them beside the datasets.
        create_attention_mask: make the causal mask for every sample. Without Transformer Engine this is always done.
        reset_position_ids: in indexed datasets, restart positions after each end of document.
        reset_attention_mask: in indexed datasets, keep attention within documents.
        eod_mask_loss: in indexed datasets, leave ends of documents out of the loss.
        allow_other_data: resume a checkpoint with other data than it was trained on.
        options: options of the source.

    Raises:
        NCAPluginError: if a key, source, preset or option is unknown, or the source refuses a value.
    """

    # NeMo-Run does not read `X | None` on its command line.
    def __init__(
        self,
        source: Optional[str] = None,  # noqa: UP045
        path: Any = None,
        seq_length: Optional[int] = None,  # noqa: UP045
        micro_batch_size: int = 2,
        global_batch_size: int = 16,
        rampup_batch_size: Optional[list[int]] = None,  # noqa: UP045
        tokenizer: Optional[TokenizerSpec] = None,  # noqa: UP045
        tokenizer_vocab_size: Optional[int] = None,  # noqa: UP045
        num_workers: int = 8,
        pin_memory: bool = True,
        persistent_workers: bool = False,
        random_seed: int = 1234,
        split: str = "900,50,50",
        index_mapping_dir: Optional[str] = None,  # noqa: UP045
        create_attention_mask: bool = False,
        reset_position_ids: bool = False,
        reset_attention_mask: bool = False,
        eod_mask_loss: bool = False,
        allow_other_data: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.paths, self.weights = read_blend(_data_path(source, path, options), "data.path")
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.persistent_workers = persistent_workers
        self.random_seed = random_seed
        self.split = split
        self.index_mapping_dir = index_mapping_dir
        self.create_attention_mask = create_attention_mask or not _HAS_TRANSFORMER_ENGINE
        self.reset_position_ids = reset_position_ids
        self.reset_attention_mask = reset_attention_mask
        self.eod_mask_loss = eod_mask_loss
        self.allow_other_data = allow_other_data
        self.tokenizer = tokenizer or self._null_tokenizer(tokenizer_vocab_size)
        self.init_global_step = 0
        self._seq_length = seq_length
        self.data_sampler = MegatronDataSampler(
            seq_len=self.seq_length,
            micro_batch_size=micro_batch_size,
            global_batch_size=global_batch_size,
            rampup_batch_size=rampup_batch_size,
        )

    def _null_tokenizer(self, vocab_size: int | None) -> NullTokenizer:
        is_blend = len(self.paths) > 1 or not is_meant_as_ours(self.paths[0])
        if vocab_size is None and is_blend:
            raise NCAPluginError(
                "data.path holds text: set data.tokenizer_vocab_size to the ids of its tokenizer, or data.tokenizer"
            )
        for name in ("reset_position_ids", "reset_attention_mask", "eod_mask_loss"):
            if getattr(self, name):
                raise NCAPluginError(f"data.{name}=true needs the end of document of a tokenizer: set data.tokenizer")
        # NeMo's NullTokenizer adds one id, for the end of document.
        return NullTokenizer((vocab_size or open_path(self.paths[0]).vocab_size) - 1)

    @property
    def seq_length(self) -> int:
        """Number of input tokens of a sample. Before the model is known, NeMo only checks that it is positive."""
        if self._seq_length is not None:
            return self._seq_length
        return 1 if self.trainer is None else int(self.trainer.lightning_module.config.seq_length)

    def setup(self, stage: str = "") -> None:
        """Build the datasets, before there is a model.

        Raises:
            NCAPluginError: if the model cannot train on the data, sources do not support settings of the trainer, or
                the checkpoint to resume was trained on other data.
        """
        self._check_fit()
        data = TrainingData.of(self.paths, self.weights, self.seq_length)
        self._lineage = told_by_rank_0(lambda: self._continued(data))
        self.data_sampler.seq_len = self.seq_length
        num_samples = self._num_samples()
        check_trains(self.split, "data.split")
        read = parts((self.paths, self.weights), None, self.split, "data.split")
        # The training is checked for one sample only, because a trainer may end before its last step.
        check_text(read, [1, *num_samples[1:]], self.seq_length, "data.split")
        self._build(num_samples)
        if stage == "fit" and self.trainer.is_global_zero:
            for line in announcements(data, num_samples[0]):
                print(line, flush=True)

    def _build(self, num_samples: list[int]) -> None:
        config = SourceGPTDatasetConfig(
            random_seed=self.random_seed,
            sequence_length=self.seq_length,
            blend=(self.paths, self.weights),
            split=self.split,
            path_to_cache=self.index_mapping_dir,
            tokenizer=self.tokenizer,
            vocab_size=self._vocab_size,
            create_attention_mask=self.create_attention_mask,
            reset_position_ids=self.reset_position_ids,
            reset_attention_mask=self.reset_attention_mask,
            eod_mask_loss=self.eod_mask_loss,
        )
        # As in NeMo, every rank builds the datasets, because its data step loads a batch on each.
        self._train_ds, self._validation_ds, self._test_ds = BlendedMegatronDatasetBuilder(
            SourceGPTDataset, num_samples, lambda: True, config
        ).build()

    @property
    def _vocab_size(self) -> int:
        """Number of ids for which the model has rows, without padding."""
        return int(self.trainer.lightning_module.config.vocab_size or self.tokenizer.vocab_size)

    def _check_fit(self) -> None:
        model_length = self.trainer.lightning_module.config.seq_length
        if self.seq_length != model_length:
            raise NCAPluginError(
                f"data.seq_length={self.seq_length} contradicts model.config.seq_length={model_length}: set the "
                "model's alone, the data follows it"
            )
        check_blend(
            self.paths,
            self.seq_length,
            self._vocab_size,
            length_key="model.config.seq_length",
            way_out="set data.tokenizer_vocab_size={0} or more, and model.config.vocab_size where the recipe has one",
        )

    def _continued(self, data: TrainingData) -> Lineage:
        """Return the lineage of the run, including that of the checkpoint that it resumes or starts from."""
        restored = getattr(self.trainer.strategy, "restore_config", None)
        paths = (self.trainer.ckpt_path, None if restored is None else restored.path)
        resumed, start = (Path(path) if path is not None and Path(path).is_dir() else None for path in paths)
        path = resumed or start
        origin = None if path is None else open_checkpoint(path)
        if origin is not None:
            self._check_embedding_rows(origin)
        return continued(
            data,
            origin,
            is_resumed=resumed is not None,
            allow="data.allow_other_data=true",
            is_allowed=self.allow_other_data,
        )

    def _check_embedding_rows(self, checkpoint: Checkpoint) -> None:
        config = self.trainer.lightning_module.config
        ranks, divisor = config.tensor_model_parallel_size, config.make_vocab_size_divisible_by
        # As in Megatron-LM, the padding in NeMo depends on the tensor-parallel size.
        rows = config.vocab_size or padded_vocab_size(self.tokenizer.vocab_size, divisor, ranks)
        check_embedding_rows(checkpoint, rows, self._vocab_size, ranks, "model.config.vocab_size={rows}")

    def _num_samples(self) -> list[int]:
        """Return the numbers of training, validation and test samples.

        Each is at least one batch, because Megatron refuses a blend without samples.
        """
        trainer = self.trainer
        if trainer.max_steps < 1:
            raise NCAPluginError(f"trainer.max_steps={trainer.max_steps}: must be the number of steps to train")
        for name in ("limit_val_batches", "limit_test_batches"):
            limit = getattr(trainer, name)
            if isinstance(limit, float) and limit > 0:
                raise NCAPluginError(f"trainer.{name}={limit} is a share, and a source has no end: give whole batches")
        validations = trainer.max_steps // trainer.val_check_interval + 1
        batches = (trainer.max_steps, validations * trainer.limit_val_batches, trainer.limit_test_batches)
        return [max(1, int(number)) * self.global_batch_size for number in batches]

    def train_dataloader(self) -> TRAIN_DATALOADERS:
        """Return the loader of the training samples. NeMo adds the sampler, which begins after the consumed samples."""
        steps = self.trainer.max_steps - self.trainer.global_step
        read = self.data_sampler.init_consumed_samples + steps * self.global_batch_size
        # If earlier steps had larger batches, the dataset that `setup` built would end too early.
        if read > len(self._train_ds):
            self._build([read, *self._num_samples()[1:]])
        return self._loader(self._train_ds, "train")

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """Return the loader of the validation samples. Every validation begins with the first sample."""
        return self._loader(self._validation_ds, "validation")

    def test_dataloader(self) -> EVAL_DATALOADERS:
        """Return the loader of the test samples."""
        return self._loader(self._test_ds, "test")

    def _loader(self, dataset: Dataset[Any], mode: str) -> WrappedDataLoader:
        self.init_global_step = self.data_sampler.init_global_step = self.trainer.global_step
        return WrappedDataLoader(
            mode=mode,
            dataset=dataset,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores: the number of consumed samples, and the lineage."""
        steps = self.trainer.global_step - self.init_global_step
        return {"consumed_samples": self.data_sampler.compute_consumed_samples(steps), KEY: self._lineage.stored()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the samples that the run of a checkpoint has consumed."""
        consumed_samples = state_dict["consumed_samples"]
        sampler = self.data_sampler
        sampler.init_consumed_samples = sampler.prev_consumed_samples = consumed_samples
        sampler.if_first_step = 1
        update_num_microbatches(consumed_samples=consumed_samples, consistency_check=False)

    def reconfigure_limit_batches(self) -> None:
        """Convert the trainer's limits into micro-batches, in which NeMo's loops count."""
        trainer = self.trainer
        trainer.limit_train_batches = _reconfigure_limit_batches(trainer.limit_train_batches, self._train_ds)
        trainer.limit_val_batches = _reconfigure_limit_batches(trainer.limit_val_batches, self._validation_ds)
        trainer.num_sanity_val_steps *= get_num_microbatches()


def _data_path(source: str | None, path: Any, options: dict[str, Any]) -> str | Sequence[Any]:
    """Return the data path that the arguments of a data module stand for."""
    known = [name for name in inspect.signature(SourceDataModule).parameters if name != "options"]
    if path is None:
        return [source_uri(source or _DEFAULT_SCHEME, options, "data.{}".format, known)]
    if source is not None:
        raise NCAPluginError("data.source and data.path contradict each other: give one of them")
    if options:
        raise NCAPluginError(
            f"data.{next(iter(options))} is no option of the data module: one of a source goes into its URI, as in "
            "data.path='nca://web?seed=7'"
        )
    if isinstance(path, str) and path.startswith("["):
        raise NCAPluginError(f"data.path={path}: write it without brackets, '0.1 nca://web 0.9 my_text_document'")
    return path if isinstance(path, str | Sequence) else [path]
