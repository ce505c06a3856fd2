"""The dataset of a Megatron-Bridge run: sources and indexed datasets, built by Megatron's own builder.

It is a `DatasetProvider`, because Megatron-Bridge builds every subclass of `GPTDatasetConfig` as a plain `GPTDataset`.
Fields that it shares with `GPTDatasetConfig` have the same names, so that overrides of `dataset` keep their meaning.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import Any, Final

from megatron.bridge.data.base import DatasetBuildContext, DatasetProvider
from megatron.bridge.data.utils import _REGISTRY
from megatron.bridge.recipes.utils.dataset_utils import DATASET_PRESETS
from megatron.bridge.training.config import ConfigContainer, GPTDatasetConfig, MockGPTDatasetConfig
from megatron.bridge.utils.common_utils import print_rank_0
from megatron.bridge.utils.instantiate_utils import register_allowed_target_prefix
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder

from nca_plugin.bridge.recipe import Settings, apply_overrides
from nca_plugin.checkpoint.opened import Checkpoint
from nca_plugin.errors import NCAPluginError
from nca_plugin.lineage.same_data import continued
from nca_plugin.lineage.training_data import Lineage, TrainingData
from nca_plugin.megatron.announce import announcements
from nca_plugin.megatron.blend import Blend, read_blend
from nca_plugin.megatron.broadcast import told_by_rank_0
from nca_plugin.megatron.dataset import SourceGPTDataset, SourceGPTDatasetConfig
from nca_plugin.megatron.metrics import SampleMeter
from nca_plugin.suggestions import unknown_name

#: The source of a run that names the preset `nca` but no source.
_DEFAULT_URI: Final = "nca://web"


@dataclass(kw_only=True)
class SourceDatasetConfig(DatasetProvider):
    """Configuration and builder of a pretraining dataset whose data paths may be source URIs.

    Raises, when Megatron-Bridge finalizes or builds it:
        NCAPluginError: if there is no data path, or a source is unknown or does not fit the model.
    """

    data_path: str | list[str] | None = None
    """A source URI, a generated dataset, an indexed dataset, or a blend as in Megatron-LM's `--data-path`, such as
    `[0.1, nca://web, 0.9, my_text_document]`."""

    seq_length: int
    """Number of input tokens of a sample; it must equal `model.seq_length`."""

    vocab_size: int | None = None
    """Number of ids for which the model has rows; None takes the tokenizer's number."""

    random_seed: int = 1234
    """Seed of the order of an indexed dataset and of a blend. A source has its own seed in its URI."""

    split: str | None = "9999,8,2"
    """Shares of train, validation and test. They do not apply to sources, whose splits are separate streams."""

    dataloader_type: str | None = "single"  # type: ignore[assignment]
    """`single` reads the samples in order, `cyclic` shuffles them."""

    skip_getting_attention_mask_from_dataset: bool = True
    """Leave the causal mask to the attention kernel instead of making it for every sample."""

    reset_position_ids: bool = False
    """In indexed datasets, restart positions after each end of document. A source's sample is one document."""

    reset_attention_mask: bool = False
    """In indexed datasets, keep attention within documents. A source's sample is one document."""

    eod_mask_loss: bool = False
    """In indexed datasets, leave ends of documents out of the loss. A source has its own mask, by position."""

    num_dataset_builder_threads: int = 1
    path_to_cache: str | None = None
    mmap_bin_files: bool = True
    mid_level_dataset_surplus: float = 0.005
    allow_ambiguous_pad_tokens: bool = False
    object_storage_cache_path: str | None = None

    allow_other_data: bool = False
    """Resume a checkpoint with other data than it was trained on."""

    nca_plugin_trained_on: dict[str, Any] | None = None
    """The lineage of the run. It is set when the run begins, for the `run_config.yaml` of its checkpoints."""

    resumed_samples: list[int] | None = None
    """Total numbers of training and validation samples that a resumed run reads. They are set when the run begins. If
    the batch is smaller than before, Megatron-Bridge asks for fewer, and a blend would end too early."""

    def __post_init__(self) -> None:
        self._meter = SampleMeter(0)

    @property
    def blend(self) -> Blend:
        """The data paths and their weights, None without weights."""
        return read_blend(self.data_path, "dataset.data_path")

    def finalize(self) -> None:
        if self.dataloader_type not in ("single", "cyclic"):
            raise NCAPluginError(
                f"dataset.dataloader_type={self.dataloader_type}: with a source it must be single or cyclic"
            )
        if self.reset_attention_mask and self.skip_getting_attention_mask_from_dataset:
            raise NCAPluginError(
                "dataset.reset_attention_mask=true has no effect without the dataset's mask: add "
                "dataset.skip_getting_attention_mask_from_dataset=false"
            )
        super().finalize()

    def describe_data(self, origin: Checkpoint | None = None, *, is_resumed: bool = False) -> None:
        """Add the lineage of the run to this configuration.

        Args:
            origin: the checkpoint that the run loads; None if it loads none.
            is_resumed: whether the run continues at the checkpoint's iteration. Otherwise it begins at 0.

        Raises:
            NCAPluginError: if the data differ from those of the resumed checkpoint.
        """
        lineage = continued(
            TrainingData.of(*self.blend, self.seq_length),
            origin,
            is_resumed=is_resumed,
            allow="dataset.allow_other_data=true",
            is_allowed=self.allow_other_data,
        )
        self.nca_plugin_trained_on = lineage.stored()

    def _described(self, data: TrainingData) -> dict[str, Any]:
        """Return the lineage that the launcher has added to this configuration."""
        stored = self.nca_plugin_trained_on
        if stored is None or Lineage.from_stored(stored).now != data:
            # This is a training script of the user's own, or the configuration is from another run.
            self.describe_data()
        assert self.nca_plugin_trained_on is not None
        return self.nca_plugin_trained_on

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any | None, Any | None, Any | None]:
        paths, weights = self.blend
        config = SourceGPTDatasetConfig(
            random_seed=self.random_seed,
            sequence_length=self.seq_length,
            blend=(paths, weights),
            split=self.split,
            num_dataset_builder_threads=self.num_dataset_builder_threads,
            path_to_cache=self.path_to_cache,
            mmap_bin_files=self.mmap_bin_files,
            tokenizer=context.tokenizer,
            vocab_size=self.vocab_size,
            mid_level_dataset_surplus=self.mid_level_dataset_surplus,
            allow_ambiguous_pad_tokens=self.allow_ambiguous_pad_tokens,
            reset_position_ids=self.reset_position_ids,
            reset_attention_mask=self.reset_attention_mask,
            eod_mask_loss=self.eod_mask_loss,
            create_attention_mask=not self.skip_getting_attention_mask_from_dataset,
            object_storage_cache_path=self.object_storage_cache_path,
        )
        self._meter = config.meter = SampleMeter(self.num_workers)
        asked, read = (context.train_samples, context.valid_samples), self.resumed_samples or [0, 0]
        num_samples = [*map(max, asked, read), context.test_samples]
        # As in Megatron-Bridge, every rank builds the datasets, because its forward step loads a batch on each.
        train, valid, test = BlendedMegatronDatasetBuilder(SourceGPTDataset, num_samples, lambda: True, config).build()
        data = TrainingData.of(*self.blend, self.seq_length)
        self.nca_plugin_trained_on = told_by_rank_0(lambda: self._described(data))
        if train is not None:
            for line in announcements(data, context.train_samples):
                print_rank_0(line)
        return train, valid, test

    def sample_milliseconds(self) -> float:
        """Return the mean time of a training sample in this rank's workers since the last call, in ms."""
        return self._meter.milliseconds()


#: Settings of a dataset of sources that no dataset of Megatron-Bridge has.
_OF_SOURCES_ALONE: Final = ("allow_other_data",)
#: Fields of `GPTDatasetConfig` that the data path, or values that Megatron-Bridge knows at run time, replace.
_REPLACED: Final = (
    *("blend", "blend_per_split", "data_path", "seq_length", "sequence_length", "sequences_per_dataset"),
    *("per_dataset_sequences_path", "tokenizer", "mock", "split_matrix", "token_dtype_code", "create_attention_mask"),
)


def _source_dataset(dataset: Any, data_path: list[str], seq_length: int) -> SourceDatasetConfig:
    """Return the dataset that replaces a run's own, with the options that both have.

    Raises:
        NCAPluginError: if the dataset is not for pretraining, or has an option that sources do not support.
    """
    if isinstance(dataset, SourceDatasetConfig):
        return replace(dataset, data_path=data_path, seq_length=seq_length)
    if type(dataset) not in (GPTDatasetConfig, MockGPTDatasetConfig):
        raise NCAPluginError(
            f"data.source takes the place of a pretraining dataset, and this run's is {type(dataset).__name__}: use a "
            "pretraining recipe, or leave dataset._target_ out"
        )
    known = {field.name for field in fields(SourceDatasetConfig)}.difference(_REPLACED)
    for field in fields(dataset):
        value = getattr(dataset, field.name, None)
        if field.name not in known and field.name not in _REPLACED and value != _default(field):
            raise NCAPluginError(f"dataset.{field.name}={value} is not supported with data.source: leave it out")
    options: dict[str, Any] = {name: getattr(dataset, name) for name in known if hasattr(dataset, name)}
    # The dataset had no split if each of its splits had its own data paths.
    options["split"] = options["split"] or SourceDatasetConfig.split
    return SourceDatasetConfig(data_path=data_path, seq_length=seq_length, **options)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _preset(config: ConfigContainer) -> SourceDatasetConfig:
    """Return the dataset of `--dataset nca`."""
    return _source_dataset(config.dataset, [_DEFAULT_URI], config.model.seq_length)


def choose_dataset(config: Any, preset: str | None, data_path: list[str] | None, settings: Settings) -> None:
    """Give a run its dataset: that of `data.source`, else that of `--dataset`, else the recipe's own.

    Args:
        config: the `ConfigContainer`, to which the user's settings are applied.
        preset: the value of `--dataset`; None without it.
        data_path: the data path that `data.source` stands for; None without it.
        settings: the user's settings, by section.

    Raises:
        NCAPluginError: if a name or key is unknown, or settings contradict each other.
    """
    if preset is not None:
        if preset not in DATASET_PRESETS:
            raise NCAPluginError(unknown_name("dataset", preset, DATASET_PRESETS))
        if data_path is not None and preset != "nca":
            raise NCAPluginError(f"--dataset {preset} contradicts data.source: give one of them")
        config.dataset = DATASET_PRESETS[preset](config)
    if data_path is None:
        apply_overrides(config, settings)
        return
    before, after = _split_settings(config.dataset, settings)
    apply_overrides(config, before)
    config.dataset = _source_dataset(config.dataset, data_path, config.dataset.seq_length)
    apply_overrides(config, after)
    check_is_built(config.dataset)


def check_is_built(dataset: Any) -> None:
    """Raise `NCAPluginError` unless Megatron-Bridge will build a run's dataset from sources."""
    if not isinstance(dataset, SourceDatasetConfig) or isinstance(dataset, tuple(_REGISTRY)):
        raise NCAPluginError(
            f"data.source is given, but Megatron-Bridge would train on {type(dataset).__name__}: leave out what sets "
            "the dataset, or use Megatron-Bridge 0.6.2"
        )


def _split_settings(dataset: Any, settings: Settings) -> tuple[Settings, Settings]:
    """Return the settings to apply before a source replaces `dataset`, and those that only the new dataset has."""
    section = settings.get("dataset")
    if not isinstance(section, Mapping) or isinstance(dataset, SourceDatasetConfig):
        return dict(settings), {}
    own = {name: value for name, value in section.items() if name in _OF_SOURCES_ALONE}
    rest = {name: value for name, value in section.items() if name not in own}
    others = {name: value for name, value in settings.items() if name != "dataset"}
    # An empty section would replace the whole dataset.
    if rest:
        others["dataset"] = rest
    return others, {"dataset": own} if own else {}


def register_dataset() -> None:
    """Register the target `nca_plugin.bridge.SourceDatasetConfig` and the dataset preset `nca` with Megatron-Bridge.

    Otherwise Megatron-Bridge warns about the target and keeps the previous dataset.
    """
    register_allowed_target_prefix("nca_plugin")
    DATASET_PRESETS["nca"] = _preset
