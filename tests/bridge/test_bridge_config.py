"""A recipe with a user's settings: what fits is taken over, anything else is one line that names the way out."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.layout import IndexLayout
from nca_plugin.sources import parse

Configure = Callable[..., Any]

VANILLA = ("--recipe", "vanilla_gpt_pretrain_config")
NCA = (*VANILLA, "data.source=nca")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "vanilla_gpt_pretran_config"), "recipe .*did you mean 'vanilla_gpt_pretrain_config'"),
        (("--recip", "x"), "option '--recip': did you mean '--recipe'"),
        ((*VANILLA, "--datset", "nca"), "option '--datset': did you mean '--dataset'"),
        ((*VANILLA, "--dataset", "nac"), "dataset 'nac': did you mean 'nca'"),
        ((), "name a recipe with --recipe"),
        # Overrides, with Hydra's signs for "add" too, which Megatron-Bridge would drop without a word.
        ((*VANILLA, "trian.train_iters=5"), "key 'trian': did you mean 'train'"),
        ((*VANILLA, "train.train_iter=5"), "key 'train.train_iter': did you mean 'train.train_iters'"),
        ((*VANILLA, "+train.train_iter=5"), "did you mean 'train.train_iters'"),
        ((*VANILLA, "++train.train_iter=5"), "did you mean 'train.train_iters'"),
        ((*VANILLA, "model.num_layer=2"), "did you mean 'model.num_layers'"),
        ((*VANILLA, "dataset.num_worker=2"), "did you mean 'dataset.num_workers'"),
        ((*VANILLA, "comm_overlap.tp_comm_overlap=true"), "name a class with comm_overlap._target_="),
        ((*VANILLA, "model.transformer_layer_spec=local"), "is a function of the recipe"),
        ((*VANILLA, "~train.train_iters"), "must have the form key=value"),
        ((*VANILLA, "train.train_iters=1,2"), "must have the form key=value"),
        ((*VANILLA, "train.train_iters"), "override train.train_iters has no value"),
        ((*VANILLA, "model.params_dtype=torch.float33"), "model.params_dtype=torch.float33 is no type"),
        # The data section.
        ((*VANILLA, "data.sorce=nca"), "key 'data.sorce': did you mean 'data.source'"),
        ((*VANILLA, "data.source=nac"), "did you mean 'nca'"),
        ((*NCA, "data.nca.preset=cod"), "did you mean 'code'"),
        ((*NCA, "data.nca.ban=none"), "did you mean 'band'"),
        ((*NCA, "data.path=nca://web"), "data.source and data.path contradict each other"),
        ((*VANILLA, "data.path=nac://web"), "unknown source 'nac'"),
        ((*VANILLA, "data=nca"), "data=nca must be a mapping"),
        # Another dataset class, which Megatron-Bridge replaces by the old one with a warning.
        ((*VANILLA, "dataset._target_=nca_plugin.bridge.SourceDatasetConfg"), "dataset._target_=.*SourceDatasetConfg"),
        ((*VANILLA, "dataset._target_=os.getcwd"), "dataset._target_=os.getcwd: .*not allowed"),
        (
            (*VANILLA, "dataset._target_=nca_plugin.bridge.SourceDatasetConfig", "dataset.datapath=nca://web"),
            "did you mean 'dataset.data_path'",
        ),
        ((*VANILLA, "dataset._target_=nca_plugin.bridge.SourceDatasetConfig"), "dataset.data_path is missing"),
        ((*NCA, "--dataset", "mock"), "--dataset mock contradicts data.source"),
        (("--recipe", "llama32_1b_sft_config", "data.source=nca"), "use a pretraining recipe"),
        # A model that its data does not fit.
        ((*NCA, "dataset.seq_length=2048"), "dataset.seq_length=2048 contradicts model.seq_length=1024"),
        ((*NCA, "model.seq_length=16"), "model.seq_length=16: "),
        (
            (*NCA, "model.vocab_size=10001"),
            "vocabulary of 10001 is smaller than the 10002 ids .* model.vocab_size=10002",
        ),
        ((*NCA, "tokenizer.vocab_size=500"), "vocabulary of 500 is smaller than the 10002 ids"),
        ((*NCA, "dataset.hybrid_context_parallel=true"), "dataset.hybrid_context_parallel=True is not supported"),
        # A recipe whose model the cache of the hub lacks.
        (("--recipe", "llama32_3b_pretrain_config"), "HF_HOME"),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out(configure: Configure, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(NCAPluginError, match=message) as error:
        configure(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trian: {train_iters: 5}", "key 'trian': did you mean 'train'"),
        ("train: {train_iter: 5}", "key 'train.train_iter': did you mean 'train.train_iters'"),
        ("data: {source: nca, nca: {presett: code}}", "key 'data.nca.presett': did you mean 'data.nca.preset'"),
        (
            "dataset: {_target_: nca_plugin.bridge.SourceDatasetConfig, data_pth: nca://web}",
            "did you mean 'dataset.data_path'",
        ),
        ("train: [1, 2", "is not YAML"),
        ("- train", "must be a mapping"),
    ],
)
def test_a_mistake_in_a_file_is_one_too(configure: Configure, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "user.yaml"
    file.write_text(content)
    with pytest.raises(NCAPluginError, match=message):
        configure(*VANILLA, "--config-file", file)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("dataloader_type=batch", "dataset.dataloader_type=batch: with a source it must be single or cyclic"),
        ("reset_attention_mask=true", "add dataset.skip_getting_attention_mask_from_dataset=false"),
    ],
)
def test_options_that_bridge_would_not_honour_are_refused(configure: Configure, option: str, message: str) -> None:
    with pytest.raises(NCAPluginError, match=message):
        configure(*NCA, f"dataset.{option}").dataset.finalize()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dataset.dataloader_type=cyclic", "batches would change with them: use single"),
        ("model.context_parallel_size=2", "needs model.calculate_per_token_loss=true"),
        ("train.rampup_batch_size=[4,4,100]", "ignores train.rampup_batch_size"),
    ],
)
def test_what_would_change_the_batches_is_refused(configure: Configure, setting: str, message: str) -> None:
    configure(*VANILLA, setting)
    with pytest.raises(NCAPluginError, match=message):
        configure(*NCA, setting)


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("train.train_iters=abc", "int"),
        ("model.num_layers=2.5", "int"),
        ("model.seq_length=abc", "int"),
        ("model.vocab_size=abc", "int"),
        ("logger.log_interval=true", "int"),
        ("optimizer.lr=fast", "float"),
        ("train=5", "TrainingConfig"),
        ("checkpoint=null", "CheckpointConfig"),
    ],
)
def test_a_value_of_another_type_is_refused(configure: Configure, setting: str, kind: str) -> None:
    with pytest.raises(NCAPluginError, match=rf"{setting.partition('=')[0]}=.*: must be .*{kind}"):
        configure(*NCA, setting)


def test_a_file_is_read_as_megatron_bridge_reads_it(configure: Configure, tmp_path: Path) -> None:
    file = tmp_path / "user.yaml"
    file.write_text("optimizer: {lr: 1e-4}\n")
    assert configure(*VANILLA, "--config-file", file).optimizer.lr == 1e-4
    file.write_text("train:\n  train_iters: 5\n  train_iters: 7\n")
    with pytest.raises(NCAPluginError, match="duplicate key train_iters"):
        configure(*VANILLA, "--config-file", file)


def test_a_source_takes_the_place_of_the_data_and_nothing_else(configure: Configure) -> None:
    settings = ("dataset.num_workers=3", "dataset.random_seed=7", "model.seq_length=512", "dataset.data_path=my_text")
    before, config = configure(*VANILLA, *settings), configure(*NCA, *settings, "data.nca.preset=code")
    uri = parse("nca://code").uri
    assert config.dataset.data_path == [uri] and config.dataset.seq_length == 512
    assert (config.dataset.num_workers, config.dataset.random_seed) == (3, 7)
    assert config.dataset.skip_getting_attention_mask_from_dataset
    assert config.tokenizer.tokenizer_type == "NullTokenizer" and config.tokenizer.vocab_size == parse(uri).vocab_size
    for section in ("model", "train", "optimizer", "scheduler", "ddp", "checkpoint", "rng", "dist", "validation"):
        assert getattr(config, section) == getattr(before, section)


def test_without_a_source_the_run_is_untouched(configure: Configure) -> None:
    from megatron.bridge.recipes import vanilla_gpt_pretrain_config

    assert configure(*VANILLA) == vanilla_gpt_pretrain_config()


def test_the_spellings_of_one_run(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("data:\n  source: nca\n  nca: {preset: code, seed: 7}\n")
    target = "_target_: nca_plugin.bridge.SourceDatasetConfig"
    (tmp_path / "target.yaml").write_text(f"dataset:\n  {target}\n  data_path: nca://code?seed=7\n")
    spellings = [
        (*NCA, "data.nca.preset=code", "data.nca.seed=7"),
        (*VANILLA, "data.source=nca://code?seed\\=7"),
        (*VANILLA, "data.path=nca://code?seed\\=7"),
        (*VANILLA, "--config-file", tmp_path / "data.yaml"),
        (*VANILLA, "--config-file", tmp_path / "target.yaml"),
        (*VANILLA, "--dataset", "nca", "dataset.data_path=nca://code?seed\\=7"),
        (*VANILLA, "--dataset", "nca", "data.source=nca", "data.nca.preset=code", "data.nca.seed=7"),
    ]
    for spelling in spellings:
        config = configure(*spelling)
        (path,), _ = config.dataset.blend
        assert parse(path).uri == parse("nca://code?seed=7").uri
        assert (config.dataset.vocab_size, config.tokenizer.vocab_size) == (10002, 10002)


def test_the_preset_alone_is_the_default_source(configure: Configure) -> None:
    assert configure(*VANILLA, "--dataset", "nca").dataset.blend == (["nca://web"], None)


def test_a_whole_configuration_needs_no_recipe(configure: Configure, tmp_path: Path) -> None:
    """Such as the run_config.yaml of a checkpoint of the language run."""
    saved = tmp_path / "run_config.yaml"
    settings = ("model.num_layers=3", "train.train_iters=11", "tokenizer.vocab_size=50304")
    configure(*VANILLA, *settings).to_yaml(str(saved))
    config = configure("--config-file", saved, "data.source=nca", "train.train_iters=12")
    # The tokenizer of the file stays, and with it the vocabulary.
    assert (config.model.num_layers, config.train.train_iters, config.tokenizer.vocab_size) == (3, 12, 50304)
    config.to_yaml(str(saved))
    again = configure("--config-file", saved)
    assert (again.tokenizer, again.dataset.data_path) == (config.tokenizer, config.dataset.data_path)
    saved.write_text(saved.read_text().replace("\n  num_layers:", "\n  num_layer:"))
    with pytest.raises(NCAPluginError, match=r"did you mean 'model.num_layers'"):
        configure("--config-file", saved)
    saved.write_text("train: {train_iters: 5}")
    with pytest.raises(NCAPluginError, match="name the recipe that it belongs to"):
        configure("--config-file", saved)


def test_a_dataset_that_is_not_ours_stops_the_run(configure: Configure) -> None:
    config = configure(*NCA)
    config.dataset = configure(*VANILLA).dataset
    from nca_plugin.bridge.dataset import check_is_built

    with pytest.raises(NCAPluginError, match="Megatron-Bridge would train on GPTDatasetConfig"):
        check_is_built(config.dataset)


def test_on_cuda_without_transformer_engine_it_is_one_line() -> None:
    fake = Path(__file__).parents[1] / "fake_cuda.py"
    command = [sys.executable, fake, "bridge", "--recipe", "llama32_1b_pretrain_config", "data.source=nca"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.stderr.rstrip().endswith("imports Transformer Engine, which is not installed: install it")


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("mixed_precision=bf16_with_fp8_delayed_scaling_mixed", "mixed_precision.fp8=hybrid"),
        ("model.fp8=hybrid", "model.fp8=hybrid"),
        ("model.fp4=e2m1", "model.fp4=e2m1"),
        ("optimizer.optimizer_cpu_offload=true", "optimizer.optimizer_cpu_offload=True"),
    ],
)
def test_cpu_mode_refuses_what_needs_a_gpu(configure: Configure, setting: str, shown: str) -> None:
    from nca_plugin.bridge.cpu import adapt

    with pytest.raises(NCAPluginError, match=f"CPU mode cannot do .*{shown}"):
        adapt(configure(*NCA, setting))


def test_text_that_leaves_a_split_without_documents_is_refused(configure: Configure, tmp_path: Path) -> None:
    layout = IndexLayout(5, 8, "uint16")
    (tmp_path / "five.idx").write_bytes(b"".join(layout.chunks()))
    (tmp_path / "five.bin").write_bytes(bytes(5 * layout.document_bytes))
    blend = f"data.path=[0.5,'nca://web',0.5,'{tmp_path}/five']"
    tokens = ("tokenizer.tokenizer_type=NullTokenizer", "tokenizer.vocab_size=10002")
    with pytest.raises(NCAPluginError, match=r"the test split of data path .*five holds none .* in dataset.split"):
        configure(*VANILLA, blend, *tokens, "dataset.split='90,5,5'")
    configure(*VANILLA, blend, *tokens, "dataset.split='90,10,0'")
