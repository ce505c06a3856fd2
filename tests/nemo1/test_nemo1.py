"""NeMo 1 configurations as Megatron-LM arguments: what they train, and what is refused."""

import copy
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nemo1_table import DOCUMENTATION, documentation_table
from omegaconf import OmegaConf
from places import DATA

from nca_plugin.configuration.hydra_files import compose_file
from nca_plugin.errors import NCAPluginError
from nca_plugin.launch.configuration import ConfigFile, load_run
from nca_plugin.megatron.arguments import megatron_arguments
from nca_plugin.nemo1.rows import Refused, Translated
from nca_plugin.nemo1.translation import RESOLVERS, ROWS, Translation, is_nemo1, report, translate
from nca_plugin.nemo1.values import CannotBeHad, whole

DATA = DATA / "nemo1"

#: The least that a file can say.
SMALL = {
    "trainer.max_steps": 100,
    "trainer.val_check_interval": 50,
    "trainer.limit_val_batches": 5,
    "exp_manager.explicit_log_dir": "/runs/small",
    "model.micro_batch_size": 2,
    "model.global_batch_size": 8,
    "model.encoder_seq_length": 128,
    "model.num_layers": 4,
    "model.hidden_size": 64,
    "model.num_attention_heads": 4,
    "model.optim.name": "fused_adam",
    "model.optim.lr": 1e-3,
}


@pytest.fixture(autouse=True)
def resolvers() -> Iterator[None]:
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    yield
    for name in RESOLVERS:
        OmegaConf.clear_resolver(name)


def small(**changes: Any) -> Translation:
    """Translate `SMALL` with keys changed, `__` for a dot, `None` for a key that is absent."""
    config = OmegaConf.create()
    for key, value in (SMALL | {key.replace("__", "."): value for key, value in changes.items()}).items():
        OmegaConf.update(config, key, value, force_add=True)
    return translate(OmegaConf.to_container(config))  # type: ignore[arg-type]


def load(name: str, *overrides: str) -> Translation:
    container = OmegaConf.to_container(compose_file(DATA / f"{name}.yaml", DATA, list(overrides)), resolve=True)
    assert isinstance(container, dict) and is_nemo1(container)
    return translate(container)


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    """Megatron-LM's own, whose import takes seconds."""
    from megatron.training.arguments import add_megatron_arguments

    return add_megatron_arguments(ArgumentParser(allow_abbrev=False))


def parsed(parser: ArgumentParser, arguments: dict[str, Any]) -> Namespace:
    return parser.parse_args(megatron_arguments(arguments))


def test_every_argument_is_one_of_megatrons(parser: ArgumentParser) -> None:
    known = {option for action in parser._actions for option in action.option_strings}
    named = {f"--{argument}" for row in ROWS.values() if isinstance(row, Translated) for argument in row.arguments}
    assert named <= known


def published_keys() -> list[str]:
    lines = (DATA / "published_keys.txt").read_text().splitlines()
    return [line for line in lines if line and line[0] not in "#["]


def test_every_key_of_the_published_files_has_a_meaning() -> None:
    """One that is ignored or refused has a reason, which docs/nemo1.md shows; only unknown keys would have none."""
    sections = {key.removesuffix(".*") for key in ROWS}
    assert [key for key in published_keys() if key not in ROWS and key.removesuffix(".*") not in sections] == []


def test_a_file_is_what_its_author_would_write_for_megatron(parser: ArgumentParser) -> None:
    by_hand = (
        "--bf16 --train-iters 1000 --log-interval 10 --tensorboard-log-interval 10 --eval-interval 100 --eval-iters 5 "
        "--clip-grad 1.0 --use-checkpoint-opt-param-scheduler "
        "--load nemo_experiments/megatron_gpt/checkpoints --save nemo_experiments/megatron_gpt/"
        "checkpoints --save-interval 100 --tensorboard-dir nemo_experiments/megatron_gpt "
        "--micro-batch-size 2 --global-batch-size 8 --tensor-model-parallel-size 2 --sequence-parallel "
        "--seq-length 128 --max-position-embeddings 128 --num-layers 4 --hidden-size 64 --ffn-hidden-size 256 "
        "--num-attention-heads 4 --group-query-attention --num-query-groups 2 --attention-dropout 0 "
        "--apply-layernorm-1p --disable-bias-linear --swiglu --no-bias-swiglu-fusion --position-embedding-type rope "
        "--rotary-percent 0.5 --untie-embeddings-and-output-weights --tokenizer-type GPT2BPETokenizer "
        "--vocab-file vocab.json --merge-file merges.txt --no-gradient-accumulation-fusion --no-bias-dropout-fusion "
        "--no-rope-fusion --seed 4321 --recompute-granularity full --recompute-method block --recompute-num-layers 2 "
        "--transformer-impl local --manual-gc --manual-gc-interval 100 --split 900,50,50 --num-workers 2 "
        "--dataloader-type single --use-distributed-optimizer --lr 2e-4 --min-lr 2e-5 --weight-decay 0.01 "
        "--adam-beta2 0.98 --lr-decay-style cosine --lr-decay-iters 1000 --lr-warmup-iters 99 --lr-warmup-init 2e-6"
    )
    translation = load("megatron_gpt_config")
    ours, theirs = parsed(parser, translation.arguments), parser.parse_args(by_hand.split())
    assert ours.lr_warmup_init == pytest.approx(theirs.lr_warmup_init)
    ours.lr_warmup_init = theirs.lr_warmup_init
    assert vars(ours) == vars(theirs)
    assert translation.world_size == 2


def test_a_file_of_the_launcher(parser: ArgumentParser) -> None:
    by_hand = (
        "--bf16 --train-iters 600000 --exit-duration-in-mins 1410 --log-interval 10 --tensorboard-log-interval 10 "
        "--eval-interval 2000 --eval-iters 50 --save /results/gpt3_126m/results/checkpoints --save-interval 2000 "
        "--use-checkpoint-opt-param-scheduler "
        "--load /results/gpt3_126m/results/checkpoints --tensorboard-dir /results/gpt3_126m/results "
        "--wandb-project nemo_gpt3 --wandb-exp-name gpt3_126m --wandb-save-dir /results/gpt3_126m/results "
        "--micro-batch-size 4 --global-batch-size 256 --seq-length 2048 --max-position-embeddings 2048 "
        "--num-layers 12 --hidden-size 768 --ffn-hidden-size 3072 --num-attention-heads 12 --init-method-std 0.023 "
        "--tokenizer-type GPT2BPETokenizer --vocab-file /data/bpe/vocab.json --merge-file /data/bpe/merges.txt "
        "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --grad-reduce-in-bf16 "
        "--lr 6e-4 --min-lr 6e-5 --weight-decay 0.1 --adam-beta2 0.95 --lr-decay-style cosine "
        "--lr-decay-iters 500000 --lr-warmup-iters 636 --split 99990,8,2 --dataloader-type single "
        "--data-path 0.5 /data/my-gpt3_00_text_document 0.5 /data/my-gpt3_01_text_document"
    )
    translation = load("gpt3_126m_hydra")
    assert vars(parsed(parser, translation.arguments)) == vars(parser.parse_args(by_hand.split()))
    assert translation.world_size == 8


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        pytest.param({"run.results_dir": "${base_results_dir}/x"}, ["base_results_dir"], id="one"),
        pytest.param(
            {"run.results_dir": "${base}/${training.name}/${.name}"}, ["base", "training.name"], id="one-text"
        ),
        pytest.param(
            {
                "run.results_dir": "${base}",
                "trainer.num_nodes": "${nodes}",
                "model.tokenizer.vocab_file": "${data_dir}/x",
            },
            ["base", "nodes", "data_dir"],
            id="several-keys",
        ),
        pytest.param(
            {"model.hidden_size": "???", "model.ffn_hidden_size": "${multiply:4,${.hidden_size}}", "run.name": "${a}"},
            ["a", "model.hidden_size"],
            id="to-be-filled-in",
        ),
        pytest.param(
            {"model.num_layers": "???", "model.optim.lr": "???", "run.name": "${a}", "model.nemo_version": "???"},
            ["a", "model.num_layers", "model.optim.lr"],
            id="required",
        ),
    ],
)
def test_all_values_that_a_file_lacks_are_named_at_once(
    tmp_path: Path, changes: dict[str, Any], missing: list[str]
) -> None:
    config = OmegaConf.load(DATA / "gpt3_126m_hydra.yaml")
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    OmegaConf.save(config, tmp_path / "run.yaml")
    with pytest.raises(NCAPluginError) as error:
        load_run(ConfigFile(tmp_path, "run", []))
    message = str(error.value)
    assert f"these values are missing: {', '.join(missing)}; name the file" in message and "\n" not in message


def test_what_nemo_takes_where_the_file_is_silent(parser: ArgumentParser) -> None:
    by_hand = (
        "--train-iters 100 --eval-interval 50 --eval-iters 5 --log-interval 50 --tensorboard-log-interval 50 "
        "--clip-grad 0 --save /runs/small/checkpoints --save-interval 50 --tensorboard-dir /runs/small "
        "--micro-batch-size 2 --global-batch-size 8 --seq-length 128 --max-position-embeddings 128 --num-layers 4 "
        "--hidden-size 64 --ffn-hidden-size 256 --num-attention-heads 4 --transformer-impl local "
        "--no-persist-layer-norm --no-gradient-accumulation-fusion --lr 1e-3 --weight-decay 0 "
        "--lr-decay-style constant"
    )
    translation = small()
    assert vars(parsed(parser, translation.arguments)) == vars(parser.parse_args(by_hand.split()))
    assert {key for key, *_ in translation.translated} == set(SMALL)
    assert translation.world_size is None
    assert not {key for key, *_ in translation.defaults} & set(SMALL)


@pytest.mark.parametrize(
    ("changes", "expected", "absent"),
    [
        ({"trainer__precision": 16}, {"fp16": True, "accumulate-allreduce-grads-in-fp32": True}, "bf16"),
        ({"trainer__precision": "bf16-mixed"}, {"bf16": True}, "fp16"),
        ({"trainer__limit_val_batches": 0}, {"eval-iters": 0}, ""),
        ({"exp_manager": None, "exp_manager__explicit_log_dir": None}, {"train-iters": 100}, "save"),
        ({"trainer__gradient_clip_val": 0.5}, {"clip-grad": 0.5}, ""),
        ({"trainer__max_steps": 1e5}, {"train-iters": 100000}, ""),
        (
            {"exp_manager__checkpoint_callback_params": {"every_n_train_steps": 20, "dirpath": "/c"}},
            {"save": "/c", "save-interval": 20},
            "load",
        ),
        ({"exp_manager__resume_if_exists": True}, {"exit-on-missing-checkpoint": True}, ""),
        ({"exp_manager__create_checkpoint_callback": False}, {}, "save"),
        ({"exp_manager__create_tensorboard_logger": False}, {}, "tensorboard-dir"),
        (
            {"exp_manager__explicit_log_dir": None, "exp_manager__exp_dir": "/e", "exp_manager__version": 3},
            {"save": "/e/default/3/checkpoints"},
            "",
        ),
        ({"model__virtual_pipeline_model_parallel_size": 2}, {"num-virtual-stages-per-pipeline-rank": 2}, ""),
        ({"model__virtual_pipeline_model_parallel_size": 1}, {}, "num-virtual-stages-per-pipeline-rank"),
        ({"model__sequence_parallel": True}, {}, "sequence-parallel"),
        ({"model__num_query_groups": 4}, {}, "group-query-attention"),
        (
            {"model__mcore_gpt": True, "model__max_position_embeddings": 256, "model__data__seq_length": 64},
            {"max-position-embeddings": 128, "seq-length": 64},
            "",
        ),
        ({"model__max_position_embeddings": 256}, {"max-position-embeddings": 256}, ""),
        ({"model__normalization": "rmsnorm"}, {"normalization": "RMSNorm"}, "apply-layernorm-1p"),
        ({"model__activation": "swiglu"}, {"swiglu": True}, "no-bias-swiglu-fusion"),
        ({"model__bias_activation_fusion": False}, {"no-bias-gelu-fusion": True}, "swiglu"),
        ({"model__bias_activation_fusion": False, "model__openai_gelu": True}, {}, "no-bias-gelu-fusion"),
        ({"model__activation": "squared-relu"}, {"squared-relu": True}, ""),
        ({"trainer__precision": 16, "model__mcore_gpt": True}, {}, "apply-query-key-layer-scaling"),
        ({"trainer__precision": 16}, {"apply-query-key-layer-scaling": True}, ""),
        ({"trainer__precision": "bf16"}, {}, "apply-query-key-layer-scaling"),
        ({"model__rotary_base": 1e6}, {"rotary-base": 1000000}, ""),
        ({"model__window_size": [4096, 0]}, {"window-size": "4096,0"}, ""),
        ({"model__num_moe_experts": 8, "model__moe_router_topk": 2}, {"num-experts": 8, "moe-router-topk": 2}, ""),
        (
            {"model__fp8": True, "model__fp8_hybrid": True, "model__fp8_params": True, "model__fp8_wgrad": False},
            {"fp8-format": "hybrid", "fp8-param-gather": True, "no-fp8-wgrad": True, "fp8-amax-history-len": 1},
            "",
        ),
        ({"model__activations_checkpoint_granularity": "selective"}, {"recompute-granularity": "selective"}, ""),
        ({"model__optim__name": "adamw"}, {"weight-decay": 0.01}, "use-distributed-optimizer"),
        ({"model__optim__overlap_grad_sync": True}, {}, "overlap-grad-reduce"),
        ({"model__restore_from_path": "/ckpt/stage2"}, {"pretrained-checkpoint": "/ckpt/stage2"}, ""),
        (
            {"model__tokenizer": {"library": "sentencepiece", "model": "t.model"}},
            {"tokenizer-model": "t.model", "tokenizer-sentencepiece-legacy": True},
            "",
        ),
        (
            {"model__tokenizer": {"library": "huggingface", "type": "gpt2"}},
            {"tokenizer-type": "HuggingFaceTokenizer", "tokenizer-model": "gpt2"},
            "",
        ),
        ({"model__tokenizer": None}, {}, "tokenizer-type"),
        (
            {
                "model__data": {
                    "data_prefix": {"train": [1, "a"], "validation": "b", "test": ["c"]},
                    "splits_string": "9",
                }
            },
            {"train-data-path": ["1", "a"], "valid-data-path": ["b"], "test-data-path": ["c"]},
            "split",
        ),
        ({"model__data": {"data_impl": "mock", "data_prefix": ["x"]}}, {"mock-data": True}, "data-path"),
        (
            {"model__tokenizer": {"library": "megatron", "type": "GPT2BPETokenizer", "model": None}},
            {"tokenizer-type": "HuggingFaceTokenizer", "tokenizer-model": "gpt2"},
            "vocab-file",
        ),
        ({"model__deterministic_mode": True}, {"deterministic-mode": True}, ""),
        ({"model__deterministic_mode": False, "model__deteministic_mode": False}, {}, "deterministic-mode"),
        ({"model__skip_train": True}, {"skip-train": True}, ""),
        ({"model__skip_train": False, "model__drop_layers": []}, {}, "skip-train"),
        ({"model__scale_positional_embedding": True, "model__scale_factor": 4}, {"rope-scaling-factor": 4.0}, ""),
        ({"model__optim__name": "mcore_distributed_optim", "model__optim__dtype": "bf16"}, {"optimizer": "adam"}, ""),
        (
            {"model__optim__sched": {"name": "CosineAnnealingExp", "max_steps_for_lr_sched": 80.0, "warmup_steps": 5}},
            {"lr-decay-iters": 80, "lr-warmup-iters": 5},
            "",
        ),
        ({"model__data__splits_string": [98, 1, 1]}, {"split": "98,1,1"}, ""),
        ({"model__data__splits_string": "'99,1,0'"}, {"split": "'99,1,0'"}, ""),
    ],
)
def test_a_key_means(parser: ArgumentParser, changes: dict[str, Any], expected: dict[str, Any], absent: str) -> None:
    translation = small(**changes)
    assert {name: translation.arguments.get(name) for name in expected} == expected
    assert absent not in translation.arguments
    parsed(parser, translation.arguments)
    for key, _, made in (*translation.translated, *translation.defaults):
        row = ROWS[key]
        assert isinstance(row, Translated) and set(made) <= set(row.arguments)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model__activation": "geglu"}, r"model.activation=geglu \(Megatron-LM has gelu"),
        ({"model__openai_gelu": True, "model__bias": False}, r"only with model.bias=true"),
        ({"model__position_embedding_type": "alibi"}, r"position_embedding_type=alibi"),
        ({"model__normalization": "deepnorm"}, r"layernorm1p and rmsnorm"),
        ({"model__ffn_dropout": 0.1}, r"model.ffn_dropout=0.1"),
        ({"model__data__seq_length": 256}, r"more than the model has positions for"),
        ({"model__num_layers": "four"}, r"model.num_layers=four \(must be a whole number\)"),
        ({"model__num_layers": None}, r"model.num_layers is required"),
        ({"model__bias": "yes"}, r"must be true or false"),
        ({"model__restore_from_path": "/a.nemo"}, r"cannot read NeMo's checkpoints"),
        ({"model__restore_from_path": "/a", "restore_from_path": "/b"}, r"another key says"),
        ({"model__precision": 16}, r"trainer.precision is 32"),
        ({"model__fp8": True}, r"fp8_e4m3 or model.fp8_hybrid"),
        ({"model__rampup_batch_size": [2, 2, 100]}, r"step-batch-size-schedule"),
        ({"trainer__max_steps": -1}, r"no epochs"),
        ({"trainer__val_check_interval": 0.25}, r"part of an epoch"),
        ({"trainer__limit_val_batches": 0.5}, r"limit_val_batches=0.5 \(must be a whole number\)"),
        ({"trainer__limit_val_batches": None}, r"limit_val_batches=1.0 \(the whole set, which is NeMo's default"),
        ({"exp_manager__checkpoint_callback_params__train_time_interval": {"hours": 1}}, r"set every_n_train_steps"),
        (
            {"model__tokenizer": {"library": "megatron", "type": "GPT2BPETokenizer", "merge_file": "merges.txt"}},
            r"name model.tokenizer.vocab_file",
        ),
        ({"model__drop_layers": [1]}, r"model.drop_layers=1 \(Megatron-LM runs every layer\)"),
        ({"model__deteministic_mode": True}, r"write model.deterministic_mode"),
        ({"model__optim__dtype": "bf16"}, r"model.optim.dtype=bf16 \(the optimizer's state is float32\)"),
        ({"model__old_context_len": 4096}, r"rotary embeddings with 8192"),
        ({"model__optim__sched": {"name": "CosineAnnealing", "max_steps_for_lr_sched": 8}}, r"CosineAnnealingExp"),
        ({"model__name": "megatron_falcon_gpt"}, r"not those of Falcon"),
        ({"trainer__max_steps": "many", "model__optim__sched": {"name": "CosineAnnealing"}}, r"trainer.max_steps=many"),
        ({"model__encoder_seq_length": None}, r"model.encoder_seq_length is required"),
        ({"model__num_attention_heads": [1], "model__num_query_groups": 2}, r"model.num_attention_heads=1 \(must"),
        ({"trainer__precision": "bf16-true"}, r"NeMo's precisions are"),
        ({"trainer__devices": "two"}, r"trainer.devices=two"),
        ({"trainer__max_time": "12:00"}, r"days:hours"),
        ({"exp_manager__explicit_log_dir": None, "exp_manager__name": "a"}, r"folder named after the date"),
        ({"exp_manager__create_wandb_logger": True}, r"needs exp_manager.wandb_logger_kwargs.project"),
        ({"model__tokenizer": {"library": "sentencepiece", "model": "???"}}, r"model.tokenizer=null"),
        ({"model__tokenizer": {"library": "tabular"}}, r"model.tokenizer.library=tabular"),
        ({"model__data__data_prefix": {"train": "a"}}, r"train, validation and test"),
        ({"model__optim__name": "adafactor"}, r"model.optim.name=adafactor"),
        ({"model__optim__betas": [0.9]}, r"two numbers"),
        ({"model__optim__grad_sync_dtype": "fp16"}, r"fp32 or bf16"),
        ({"model__optim__sched": {"name": "NoamAnnealing"}}, r"sched.name=NoamAnnealing"),
        ({"model__optim__sched": {"warmup_steps": 3}}, r"schedule needs a name"),
        ({"model__optim__sched": {"name": "WarmupPolicy", "max_steps": 50}}, r"never does"),
        ({"model__optim__sched": {"name": "WarmupPolicy", "constant_steps": 5}}, r"belong to CosineAnnealing"),
        ({"model__optim__sched": {"name": "CosineAnnealing", "warmup_steps": 1, "warmup_ratio": 0.1}}, r"contradict"),
        *(
            ({"model__optim__sched": {"name": name, key: value}}, rf"sched\.{key}={value} \({reason}")
            for name, phases in (
                ("CosineAnnealing", ("warmup", "constant")),
                ("WarmupAnnealing", ("warmup",)),
                ("WarmupHoldPolicy", ("warmup", "hold")),
            )
            for phase in phases
            for key, value, reason in (
                (f"{phase}_steps", -5, "must not be negative"),
                (f"{phase}_steps", 1.5, "must be a whole number"),
                (f"{phase}_ratio", 2.0, "must be between 0 and 1"),
                (f"{phase}_ratio", -0.1, "must be between 0 and 1"),
            )
        ),
        ({"model__optim__sched": {"name": "CosineAnnealing", "max_steps": -1}}, r"sched.max_steps=-1 .*negative"),
        ({"model__optim__sched": {"name": "CosineAnnealing", "constant_steps": 500}}, r"constant_steps=500 .*at most"),
    ],
)
def test_what_cannot_be_had_is_one_line(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason) as error:
        small(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, -7, 2**53 + 1, 10**18 + 1])
def test_a_whole_number_stays_as_it_is(value: int) -> None:
    assert whole(value) == whole(str(value)) == value
    assert whole(1e3) == whole("1e3") == whole("1000.0") == 1000


@pytest.mark.parametrize("value", [True, 1.5, "1.5", "inf", math.nan, None, [], "x", "9" * 5_000])
def test_what_is_no_whole_number(value: object) -> None:
    with pytest.raises(CannotBeHad, match="must be a whole number"):
        whole(value)


def test_flags_of_falcon_are_ignored_elsewhere_with_the_reason() -> None:
    """Launcher's Mistral files have them; NeMo reads them in its Falcon layers alone."""
    for key in ("parallel_attention", "new_decoder_architecture"):
        translation = small(model__mcore_customization_config={key: True})
        assert [reason for ignored, reason in translation.ignored if key in ignored] == [
            "only the layers of model.name=megatron_falcon_gpt read it, in NeMo too"
        ]


#: What a key of any kind may hold by mistake.
WRONG: list[Any] = [
    *(None, "???", "", "abc", "nul\0", "two\nlines", 300 * "x", True, -1, 0, 1.5, 10**400, float("nan"), float("inf")),
    *(
        [],
        [1],
        [[]],
        [None, None],
        {},
        {"a": 1},
        {"a": {"b": []}},
        {1: 2},
        {"train": None, "validation": [], "test": {}},
    ),
]


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("base", [{"trainer": {"devices": 1}, "model": {}}, SMALL], ids=["empty", "small"])
def test_any_value_at_any_key_is_translated_or_refused_in_one_line(base: dict[str, Any], stride: int) -> None:
    flat = {key: value for key, value in base.items() if "." in key}
    sections = sorted({name for key in ROWS for name in _parents(key)})
    for number, key in enumerate((*ROWS, *sections)):
        path = key.replace(".*", ".any")
        for wrong in WRONG[number % stride :: stride]:
            config: dict[str, Any] = copy.deepcopy({} if flat else base)
            for name, value in {**flat, path: wrong}.items():
                _set(config, name, value)
            try:
                translate(config)
            except NCAPluginError as error:
                assert "\n" not in str(error), (path, wrong)
                assert not flat or _is_told(str(error), path), (path, wrong, str(error))


def _parents(key: str) -> list[str]:
    parts = key.removesuffix(".*").split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[last] = value


def _is_told(message: str, key: str) -> bool:
    """Whether a message names a key: one that a section replaced, its section, or the one that reads it."""
    row = ROWS.get(key)
    reader = row.note.removeprefix("read by `").removesuffix("`") if isinstance(row, Translated) else key
    return any(name in message for name in (key, reader, "exp_manager.create_", *_parents(key)[1:]))


def test_every_unknown_key_at_once_each_with_a_near_one() -> None:
    with pytest.raises(NCAPluginError) as error:
        small(model__num_layer=1, model__wholly_new=2, trainr__x=3, model__max_steps=4, model__headscale=True)
    assert str(error.value) == (
        "NeMo 1 configuration: unknown keys 'model.num_layer' (did you mean 'model.num_layers'?), 'model.wholly_new', "
        "'model.max_steps' (did you mean 'trainer.max_steps'?), 'trainr' (did you mean 'trainer'?): docs/nemo1.md "
        "lists all; cannot be translated to Megatron-LM: model.headscale=True (Megatron-LM has no scales of heads)"
    )


def test_every_refusal_at_once() -> None:
    with pytest.raises(NCAPluginError) as error:
        small(model__fsdp=True, model__headscale=True, model__activation="reglu", model__data__add_fim=True)
    for key in ("model.fsdp=True", "model.headscale=True", "model.activation=reglu", "model.data.add_fim=True"):
        assert key in str(error.value)


@pytest.mark.parametrize("row", [row for row in ROWS.values() if isinstance(row, Refused)], ids=lambda row: row.key)
def test_a_refused_key_may_say_that_it_is_off(row: Refused) -> None:
    key = row.key.replace(".*", ".key").replace(".", "__")
    for value in (None, *row.unless):
        small(**{key: value})
    with pytest.raises(NCAPluginError, match=row.key.removesuffix(".*")):
        small(**{key: "on"})


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("modle", "model"),
        ("traner__max_steps", "trainer"),
        ("model__num_layer", "model.num_layers"),
        ("model__optim__shed__min_lr", "model.optim.sched"),
        ("model__optim__sched__warmup", "model.optim.sched.warmup_steps"),
        ("model__data__data_prefixes", "model.data.data_prefix"),
        ("exp_manager__checkpoint_callback_params__every_n_train_step", "every_n_train_steps"),
    ],
)
def test_a_typo_names_the_nearest_key(key: str, near: str) -> None:
    with pytest.raises(NCAPluginError, match=rf"unknown key .*did you mean '.*{near}'") as error:
        small(**{key: 1})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["model", "model__optim", "exp_manager__checkpoint_callback_params"])
def test_a_section_is_a_mapping(key: str) -> None:
    dotted = key.replace("__", ".")
    config: dict[str, Any] = {"trainer": {}, "model": {}}
    *parents, last = dotted.split(".")
    section = config
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = 5
    with pytest.raises(NCAPluginError, match=rf"{dotted}=5 \(must be a mapping"):
        translate(config)


def nemo_learning_rate(step: int, lr: float, sched: dict[str, Any], max_steps: int) -> float:
    """NeMo's formulas (nemo/core/optim/lr_scheduler.py), for the step that follows `step` others."""
    warmup, constant, least = sched.get("warmup_steps", 0), sched.get("constant_steps", 0), sched.get("min_lr", 0.0)
    max_steps = sched.get("max_steps", max_steps)
    if constant:
        decay = max_steps - constant - warmup
        if warmup and step <= warmup:
            return lr * step / warmup
        ratio = 1.0 if step > warmup + decay else (step - warmup) / decay
        return least + 0.5 * (math.cos(math.pi * ratio) + 1) * (lr - least)
    if warmup and step <= warmup:
        return lr * (step + 1) / (warmup + 1)
    if sched["name"] in ("WarmupPolicy", "WarmupHoldPolicy"):
        return lr
    if step > max_steps:
        return least
    ratio = (step - warmup) / (max_steps - warmup)
    if sched["name"] == "WarmupAnnealing":
        return least + (1 - ratio) * (lr - least)
    return least + 0.5 * (1 + math.cos(math.pi * ratio)) * (lr - least)


@pytest.mark.parametrize(
    "sched",
    [
        {"name": "CosineAnnealing", "min_lr": 1e-4},
        {"name": "CosineAnnealing", "warmup_steps": 10, "min_lr": 1e-4},
        {"name": "CosineAnnealing", "warmup_steps": 10, "constant_steps": 30, "min_lr": 1e-4},
        {"name": "CosineAnnealing", "constant_steps": 99, "min_lr": 1e-4},
        {"name": "CosineAnnealing", "warmup_steps": 10, "constant_steps": 100, "min_lr": 1e-4},
        {"name": "CosineAnnealing", "warmup_steps": 500, "min_lr": 1e-4},
        {"name": "CosineAnnealing", "warmup_steps": 10, "max_steps": 60, "min_lr": 1e-4},
        {"name": "CosineAnnealing", "warmup_steps": 10, "max_steps": 5, "min_lr": 1e-4},
        {"name": "WarmupAnnealing", "warmup_steps": 10, "min_lr": 1e-4},
        {"name": "WarmupHoldPolicy", "warmup_steps": 10, "hold_steps": 20, "min_lr": 1e-4},
        {"name": "WarmupPolicy", "warmup_steps": 200},
    ],
    ids=str,
)
def test_the_learning_rate_is_nemos_at_every_step(parser: ArgumentParser, sched: dict[str, Any]) -> None:
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    args = parsed(parser, small(model__optim__sched=sched).arguments)
    optimizer = Namespace(param_groups=[{"max_lr": args.lr, "min_lr": args.min_lr}])
    batch = args.global_batch_size
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=args.lr_warmup_init,
        max_lr=args.lr,
        min_lr=args.min_lr,
        lr_warmup_steps=args.lr_warmup_iters * batch,
        lr_decay_steps=args.lr_decay_iters * batch,
        lr_decay_style=args.lr_decay_style,
        start_wd=0.0,
        end_wd=0.0,
        wd_incr_steps=1,
        wd_incr_style="constant",
    )
    for step in range(args.train_iters):
        expected = nemo_learning_rate(step, args.lr, sched, args.train_iters)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12, abs=1e-18), step
        scheduler.step(batch)


def test_ratios_are_of_the_steps() -> None:
    sched = {"name": "CosineAnnealing", "warmup_ratio": 0.05, "constant_ratio": 0.1}
    arguments = small(model__optim__sched=sched).arguments
    assert (arguments["lr-warmup-iters"], arguments["lr-decay-iters"]) == (5, 90)


def test_the_report_names_what_is_ignored() -> None:
    translation = load("megatron_gpt_config", "+model.optim.bucket_cap_mb=200")
    lines = report(translation).splitlines()
    assert "keys translated" in lines[0] and f"{len(translation.ignored)} keys ignored" in lines[0]
    assert any("model.grad_div_ar_fusion" in line for line in lines)
    assert "--num-layers" not in report(translation)
    full = report(translation, is_full=True)
    assert "  translated: model.num_layers=4: --num-layers 4" in full
    for key, *_ in (*translation.translated, *translation.ignored):
        assert key in full


def test_the_documentation_has_every_key() -> None:
    """Written by `python tests/nemo1_table.py`."""
    assert documentation_table() in DOCUMENTATION.read_text()
