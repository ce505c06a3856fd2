"""Wrong arguments of Megatron-LM's launcher, made by a generator: each is one line that leaves nothing, or trains.

A case is a valid list of arguments with one or two mistakes in it. Some are none: such a run trains one iteration.
"""

import contextlib
import json
import logging
import os
import random
import re
import shutil
from argparse import ArgumentParser, BooleanOptionalAction
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from megatron.training.arguments import add_megatron_arguments
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from warm import Ended, WarmProcess

from nca_plugin.checkpoint.tracker import TRACKER
from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.layout import IndexLayout
from nca_plugin.megatron import assertions
from nca_plugin.megatron.held_output import held_output
from nca_plugin.transition.changes import Transition
from nca_plugin.transition.transfer import transfer

SEED = 20
#: In `make test`, and in `make test-all`.
FEW, MANY = 60, 660
#: Exit codes of a run, a refusal, a lost rank, and an interrupt.
CODES = (0, 2, 75, 130)
SECONDS = 60

#: A run of two layers; the last arguments are never changed, so that every run ends.
VALID = (
    *(("--num-layers", "2"), ("--hidden-size", "32"), ("--num-attention-heads", "4"), ("--ffn-hidden-size", "64")),
    *(("--num-query-groups", "2"), ("--kv-channels", "8"), ("--seq-length", "96"), ("--max-position-embeddings", "96")),
    *(("--position-embedding-type", "rope"), ("--normalization", "RMSNorm"), ("--lr-decay-style", "constant")),
    *(("--attention-dropout", "0"), ("--hidden-dropout", "0"), ("--micro-batch-size", "2"), ("--lr", "1e-3")),
    *(("--min-lr", "1e-4"), ("--eval-interval", "1000"), ("--eval-iters", "0"), ("--log-interval", "1")),
    *(("--global-batch-size", "4"), ("--train-iters", "1"), ("--num-workers", "0")),
)
FIXED = ("--group-query-attention", "--swiglu", "--disable-bias-linear", "--exit-interval", "1")
#: What takes a number but not a huge one: the run would only be long, or need more memory than a test may take.
NEVER_HUGE = ("--global-batch-size",)

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

Arguments = dict[str, list[str]]
Mistake = Callable[[random.Random, Arguments], None]


def drop(draw: random.Random, arguments: Arguments) -> None:
    del arguments[draw.choice(sorted(arguments))]


def another_type(draw: random.Random, arguments: Arguments) -> None:
    arguments[draw.choice(sorted(arguments))] = [draw.choice(("", "two", "1.5.2", "nan", "inf", "1e3", "[2]", "None"))]


def another_number(draw: random.Random, arguments: Arguments) -> None:
    option = draw.choice([o for o in sorted(arguments) if o not in ("--data-path", "--tokenizer-type")])
    huge = ("3",) if option in NEVER_HUGE else ("1000000000", "99999999999999999999")
    arguments[option] = [draw.choice(("0", "-1", "3", "5", "7", *huge))]


def no_value_or_two(draw: random.Random, arguments: Arguments) -> None:
    option = draw.choice(sorted(arguments))
    arguments[option] = draw.choice(([], [*arguments[option], "2"]))


def unknown_option(draw: random.Random, arguments: Arguments) -> None:
    option = draw.choice(("--num-layer", "--nca-band", "--trian-iters", "--data-sources", "-x", "--", "---lr", "word"))
    arguments[option] = draw.choice(([], ["1"]))


def contradiction(draw: random.Random, arguments: Arguments) -> None:
    arguments.update(
        draw.choice(
            (
                {"--train-samples": ["8"]},
                {"--lr-warmup-iters": ["1"], "--lr-warmup-fraction": ["0.1"]},
                {"--lr-decay-samples": ["8"]},
                {"--bf16": [], "--fp16": []},
                {"--step-batch-size-schedule": ["0:4"]},
                {"--rampup-batch-size": ["2", "2", "8"]},
                {"--mock-data": []},
                {"--train-data-path": ["nca://toy"]},
                {"--num-experts": ["4"], "--moe-router-topk": ["8"]},
                {"--recompute-granularity": ["full"]},
                {"--recompute-granularity": ["selective"], "--recompute-method": ["uniform"]},
                {"--sequence-parallel": [], "--tp-comm-overlap": []},
                {"--overlap-param-gather": []},
                {"--num-layers-per-virtual-pipeline-stage": ["1"]},
                {"--weight-decay-incr-style": ["linear"]},
                {"--log-memory-interval": ["3"], "--log-interval": ["2"]},
                {"--no-load-optim": [], "--load-main-params-from-ckpt": []},
                {"--full-validation": []},
                {"--eval-iters": ["1"], "--split": ["1,0,0"]},
                {"--split": ["0,0,0"]},
                {"--split": ["a,b"]},
                {"--split": ["1,2,3,4"]},
                {"--sft": []},
                {"--skip-train": []},
                {"--dataloader-type": ["external"]},
                {"--batch-size": ["4"]},
                {"--checkpoint-activations": []},
                {"--adlr-autoresume": []},
                {"--ckpt-format": ["fsdp_dtensor"]},
                {"--use-checkpoint-args": []},
                {"--exit-on-missing-checkpoint": [], "--load": ["missing"]},
            )
        )
    )


def needs_gpu_or_package(draw: random.Random, arguments: Arguments) -> None:
    arguments.update(
        draw.choice(
            (
                {"--fp8-format": ["hybrid"]},
                {"--fp4-format": ["e2m1"]},
                {"--fp8-format": ["e5m3"]},
                {"--moe-grouped-gemm": [], "--num-experts": ["2"]},
                {"--use-precision-aware-optimizer": [], "--use-distributed-optimizer": []},
                {"--use-torch-fsdp2": []},
                {"--use-megatron-fsdp": []},
                {"--wandb-project": ["p"], "--wandb-exp-name": ["e"]},
                {"--wandb-project": ["p"]},
                {"--enable-msc": []},
                {"--log-energy": []},
                {"--enable-ft-package": []},
                {"--non-persistent-ckpt-type": ["local"]},
                {"--cuda-graph-impl": ["local"]},
                {"--enable-cuda-graph": []},
                {"--moe-token-dispatcher-type": ["flex"], "--num-experts": ["2"]},
                {"--optimizer": ["muon"]},
                {"--optimizer": ["lion"]},
                {"--optimizer-cpu-offload": []},
                {"--qk-clip": []},
                {"--multi-latent-attention": []},
                {"--hybrid-layer-pattern": ["M*"]},
                {"--hybrid-layer-pattern": ["Q"]},
                {"--spec": ["nowhere", "nothing"]},
                {"--position-embedding-type": ["mrope"]},
                {"--position-embedding-type": ["relative"]},
                {"--attention-backend": ["flash"]},
                {"--attention-backend": ["local"]},
                {"--profile": []},
                {"--mtp-num-layers": ["1"]},
                {"--heterogeneous-layers-config-path": ["missing.json"]},
                {"--yaml-cfg": ["missing.yaml"]},
            )
        )
    )


def parallel_sizes(draw: random.Random, arguments: Arguments) -> None:
    kinds = ("tensor-model", "pipeline-model", "context", "expert-model", "expert-tensor")
    option = f"--{draw.choice(kinds)}-parallel-size"
    arguments[option] = [draw.choice(("0", "-1", "2", "3", "1000000"))]
    if draw.random() < 0.3:
        arguments["--num-experts"] = ["4"]


def bad_path(draw: random.Random, arguments: Arguments) -> None:
    read = ("--pretrained-checkpoint", "--load", "--vocab-file", "--merge-file", "--data-args-path", "--freeze-list")
    read += ("--per-split-data-args-path", "--per-dataset-sequences-path")
    written = ("--save", "--tensorboard-dir", "--data-cache-path")
    option = draw.choice((*read, *written))
    paths: tuple[str, ...] = (
        "missing",
        "missing/deeper",
        "file",
        "file/below",
        ".",
        "",
        "/proc/x",
        "/dev/null",
        "/dev/zero",
        "empty",
        "pipe",
    )
    if option in ("--data-args-path", "--per-split-data-args-path"):
        del arguments["--data-path"]
    if option == "--save":
        # A run that saves leaves files, as it should.
        paths = ("file", "file/below", "/proc/x", "/dev/null", "x" * 300)
        arguments["--save-interval"] = [draw.choice(("1", "0"))]
    elif option in written:
        paths = ("file", "file/below", "/proc/x", "/dev/null", "x" * 300)
    arguments[option] = [draw.choice(paths)]


def bad_data(draw: random.Random, arguments: Arguments) -> None:
    path = draw.choice(
        (
            *("nca://", "nca://wbe", "nca:/web", "nac://web", "nca://web?band=2", "nca://toy?seed=x", "://"),
            *("missing", ".", "", "/", "file", "cut", "short", "no-header", "zero", "five", "five.bin", "0.5"),
            *("/dev/null", "s3://bucket/text", "nca://toy&a=1", "nca://toy?vocab_size=3", "iid://?vocab_size=-1"),
        )
    )
    option = draw.choice(("--data-path", "--train-data-path", "--valid-data-path"))
    arguments.pop("--data-path")
    arguments[option] = draw.choice(([path], ["0.5", "nca://toy", "0.5", path], [path, "nca://toy"], ["1", path]))
    if draw.random() < 0.7:
        arguments.update({"--tokenizer-type": ["NullTokenizer"], "--vocab-size": ["100"]})


def bad_tokenizer(draw: random.Random, arguments: Arguments) -> None:
    kind = draw.choice(
        ("NullTokenizer", "HuggingFaceTokenizer", "SentencePieceTokenizer", "TikTokenizer", "GPT2BPETokenizer", "Nope")
    )
    arguments["--tokenizer-type"] = [kind]
    arguments["--vocab-size"] = [draw.choice(("0", "3", "100", "10000000000000"))]
    if kind != "NullTokenizer" or draw.random() < 0.3:
        del arguments["--vocab-size"]
        arguments["--tokenizer-model"] = [draw.choice(("missing/", "file", "empty", "./missing.model", "/dev/null"))]


MISTAKES: Sequence[Mistake] = (
    *(drop, another_type, another_number, another_number, no_value_or_two, unknown_option, contradiction),
    *(needs_gpu_or_package, parallel_sizes, bad_path, bad_data, bad_tokenizer),
)


def cases(number: int) -> Iterator[list[str]]:
    """Yield lists of arguments with mistakes, of every kind about as many."""
    draw = random.Random(SEED)
    for index in range(number):
        arguments = {"--data-path": ["nca://toy"], **{option: [value] for option, value in VALID}}
        MISTAKES[index % len(MISTAKES)](draw, arguments)
        if draw.random() < 0.2 and "--data-path" in arguments:
            draw.choice(MISTAKES)(draw, arguments)
        yield [part for option, values in arguments.items() for part in (option, *values)] + list(FIXED)


@pytest.fixture(scope="module")
def launcher() -> Iterator[WarmProcess]:
    with WarmProcess("warm_megatron", "nca_plugin.launch.hydra") as process:
        yield process


def refuse_or_train(
    launcher: WarmProcess, folder: Path, arguments: Sequence[str], message: str | None = None
) -> str | None:
    """Return what is wrong with how a case ended, if anything: with `message`, also a line that does not match it."""
    lay_out(folder)
    before = set(folder.rglob("*"))
    ended = launcher.run("warm_megatron", arguments, folder, ENVIRONMENT, SECONDS)
    fault = _fault(ended)
    if fault is None and message is not None and (ended.code != 2 or not re.search(message, ended.stderr)):
        fault = f"does not say '{message}'"
    if (
        fault is None
        and message is not None
        and re.search("^(INFO|WARNING):", ended.stdout + ended.stderr, re.MULTILINE)
    ):
        fault = "is among what Megatron logs"
    left = sorted(str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before)
    if fault is None and ended.code == 2 and left:
        fault = f"leaves {left}"
    return None if fault is None else f"{fault}: {' '.join(map(repr, arguments))}\n{ended.stderr[-1500:]}"


def _fault(ended: Ended) -> str | None:
    if "Traceback" in ended.stderr:
        return "a traceback"
    if ended.code not in CODES:
        return f"exit code {ended.code}"
    lines = [line for line in ended.stderr.splitlines() if line.startswith("nca-plugin: error: ")]
    if len(lines) != (ended.code == 2):
        return f"{len(lines)} lines of errors with exit code {ended.code}"
    if any(map(says_nothing, lines)):
        return "a line that says no more than the kind of an error"
    return None


def says_nothing(line: str) -> bool:
    """Whether a line ends in the name of an exception, or shows one whose message is of use to a programmer only."""
    return bool(re.search(r"\w(Error|Exception)( \(the run has [^)]*\))?$|(Type|Attribute|Key|Index)Error:", line))


def lay_out(folder: Path) -> None:
    """Put files into a folder that arguments name."""
    (folder / "empty").mkdir(parents=True)
    (folder / "file").write_text("{")
    os.mkfifo(folder / "pipe")
    for name, documents in (("five", 5), ("cut", 5), ("short", 5), ("zero", 0)):
        layout = IndexLayout(documents, 40, "uint16")
        (folder / f"{name}.idx").write_bytes(b"".join(layout.chunks()))
        (folder / f"{name}.bin").write_bytes(bytes(documents * layout.document_bytes))
    (folder / "cut.bin").write_bytes(b"ab")
    shutil.copy(folder / "five.idx", folder / "high.idx")
    (folder / "high.bin").write_bytes(b"\x2c\x01" * (5 * 40))
    (folder / "short.idx").write_bytes((folder / "short.idx").read_bytes()[:50])
    (folder / "no-header.idx").write_bytes(b"MMIDIDX")
    (folder / "no-header.bin").write_bytes(b"")


def run_cases(launcher: WarmProcess, tmp_path: Path, chosen: list[list[str]]) -> None:
    faults = [refuse_or_train(launcher, tmp_path / str(number), case) for number, case in enumerate(chosen)]
    found = [fault for fault in faults if fault is not None]
    assert not found, f"{len(found)} of {len(chosen)}:\n\n" + "\n\n".join(found)


NULL_TOKENIZER: dict[str, list[str] | None] = {"--tokenizer-type": ["NullTokenizer"], "--vocab-size": ["9"]}
#: What is changed in the valid arguments, None to leave an option out, and what the line says.
NAMED: Sequence[tuple[dict[str, list[str] | None], str]] = (
    ({"--micro-batch-size": None}, "--micro-batch-size is missing"),
    ({"--micro-batch-size": ["0"]}, "--micro-batch-size 0: must be 1 or more"),
    (
        {"--hidden-size": ["63"], "--kv-channels": None},
        "--hidden-size % --num-attention-heads == 0 .*--hidden-size 63, ",
    ),
    ({"--global-batch-size": ["3"]}, "divisible by --eval-micro-batch-size"),
    ({"--tensor-model-parallel-size": ["2"]}, "--tensor-model-parallel-size 2 needs a multiple of 2 ranks"),
    (
        {"--expert-model-parallel-size": ["3"], "--num-experts": ["3"]},
        "--expert-model-parallel-size 3 needs a multiple of 3 ranks, and 1 is there",
    ),
    ({"--lr-warmup-iters": ["5"]}, "--lr-warmup-iters 5: must be less than --train-iters 1"),
    ({"--lr-warmup-fraction": ["1.5"]}, "--lr-warmup-fraction 1.5: must be below 1"),
    (
        {"--lr-decay-style": ["cosine"], "--lr-decay-iters": ["1"], "--lr-warmup-iters": ["1"]},
        "--lr-warmup-iters 1: must be less than --lr-decay-iters 1",
    ),
    ({"--lr-warmup-init": ["1"]}, "--lr-warmup-init 1.0 is above --lr 0.001"),
    ({"--min-lr": ["1"]}, "--min-lr 1.0 is above --lr 0.001"),
    ({"--lr-decay-style": ["WSD"]}, "--lr-decay-style WSD needs --lr-wsd-decay-iters"),
    ({"--num-experts": ["4"], "--moe-aux-loss-coeff": ["nan"]}, "--moe-aux-loss-coeff nan: must be a finite number"),
    ({"--lr": ["1e-400"]}, "--lr: '1e-400' is too near to 0 for a float"),
    ({"--recompute-num-layers": ["0"]}, "--recompute-num-layers 0: must be 1 or more"),
    ({"--moe-layer-freq": ["0"], "--num-experts": ["4"]}, "--moe-layer-freq 0: must be 1 or more"),
    ({"--rotary-percent": ["-1"]}, "--rotary-percent -1.0: must be 0 or more"),
    ({"--distributed-timeout-minutes": ["0"]}, "--distributed-timeout-minutes 0: must be 1 or more"),
    ({"--tensorboard-dir": [""]}, "--tensorboard-dir is empty: give it a value"),
    ({"--data-path": ["0.5", "", "0.5", "nca://toy"]}, "--data-path is empty: give it a value"),
    ({"--clip-grad": ["nan"]}, "--clip-grad nan: must be a finite number"),
    ({"--skip-train": [], "--train-iters": None}, "--train-iters is missing"),
    ({"--attention-backend": ["local"]}, "--attention-backend local needs --spec local"),
    ({"--kv-channels": ["7"]}, "--kv-channels 7: must be even"),
    ({"--hidden-size": ["28"], "--kv-channels": None}, "--hidden-size / --num-attention-heads = 7: must be even"),
    *(
        ({"--data-path": ["1", "dyck://?k=8", weight, "nca://toy"]}, f"data path nca://toy has the weight {weight}: ")
        for weight in ("0", "-1", "nan", "inf")
    ),
    ({"--save": ["s"]}, "--save needs --save-interval"),
    ({"--eval-interval": None}, "--eval-interval is missing"),
    ({"--train-samples": ["8"]}, "--train-iters 1 and --train-samples 8 are both there: leave one of them out"),
    ({"--step-batch-size-schedule": ["0:4"]}, "both --step-batch-size-schedule and --global-batch-size"),
    # As a shell splits what is not quoted.
    (
        {"--step-batch-size-schedule": ["0:2", "9B:4", "12B:8"]},
        "9B:4 12B:8 after --step-batch-size-schedule belongs to no option: quote a value",
    ),
    ({"--eval-iters": ["9" * 20]}, "--eval-iters 9{20}: must be 1099511627776 or less"),
    ({"--eval-iters": ["-1"]}, "--eval-iters -1: must be 0 or more, 0 for no validation"),
    ({"--optimizer": ["sgd"], "--use-distributed-optimizer": []}, "--optimizer sgd has no distributed optimizer"),
    (
        {"--tokenizer-type": ["Llama2Tokenizer"], "--tokenizer-model": ["missing.model"]},
        "--tokenizer-model missing.model cannot be read: No such file",
    ),
    ({"--hybrid-layer-pattern": ["*-*-"], "--num-layers": None}, "-layer-pattern .*with Transformer Engine only"),
    (
        {
            "--hybrid-layer-pattern": ["**"],
            "--spec": ["megatron.core.models.hybrid.hybrid_layer_specs", "hybrid_stack_spec"],
            "--num-layers": None,
        },
        "-layer-pattern .*with Transformer Engine only",
    ),
    ({"--hybrid-layer-pattern": ["M-M-"], "--num-layers": None}, "M layers need mamba-ssm"),
    (
        {"--spec": ["megatron.core.models.hybrid.hybrid_layer_specs", "hybrid_stack_spec"]},
        "is that of a hybrid, whose layers --hybrid-layer-pattern names",
    ),
    # What can only be negated is not written as its negation.
    ({"--overlap-p2p-communication-warmup-flush": []}, "compatible with overlap_p2p_comm but not batch_p2p_comm"),
    ({"--main-grads-dtype": ["bf16"]}, "--main-grads-dtype bf16"),
    *(
        ({"--data-path": [path], "--split": ["0,1,0"], **NULL_TOKENIZER}, "--split 0,1,0 leaves nothing to train on")
        for path in ("nca://toy?vocab_offset=0", "five")
    ),
    *(
        (
            {"--data-path": ["nca://toy"], "--split": [split]},
            "--split .*: must be up to three numbers" if split else "--split is empty",
        )
        for split in ("nan,1,0", "1e-9,1,0", "a", "99;1;0", "1,-1", "0,0,0", "")
    ),
    ({"--spec": ["no_such_module", "x"]}, "--spec no_such_module x cannot be imported: No module named"),
    ({"--gpu-sniff-test-interval": ["0"]}, "CPU mode cannot do --gpu-sniff-test-interval 0"),
    ({"--save-activations-interval": ["-1"]}, "--save-activations-interval -1: must be 1 or more"),
    (
        {"--data-path": None, "--train-data-path": ["five"], "--valid-data-path": ["five"], **NULL_TOKENIZER},
        "--eval-iters 0 reads nothing of --valid-data-path",
    ),
    ({"--tokenizer-type": []}, "argument --tokenizer-type: expected one argument"),
    ({"--trigger-path": ["x"]}, "unknown option '--trigger-path': .* --help-megatron shows all"),
    ({"--tokenizer-type": ["NullTokenizer"]}, "--tokenizer-type NullTokenizer needs --vocab-size"),
    (
        {"--data-path": ["five"], "--split": ["1,0,0"]},
        "--tokenizer-type is missing .* cannot be .*: name a folder with --tokenizer-type HuggingFaceTokenizer",
    ),
    (
        {"--tokenizer-type": ["HuggingFaceTokenizer"], "--tokenizer-model": ["no/such"]},
        "--tokenizer-model no/such: the Hugging Face hub, .*, cannot be reached: name a folder with",
    ),
    ({"--wandb-project": ["p"], "--wandb-exp-name": ["e"]}, "--wandb-project needs the Python package wandb"),
    (
        {"--fp8-format": ["hybrid"], "--moe-grouped-gemm": []},
        "cannot do --fp8-format hybrid, --moe-grouped-gemm",
    ),
    (
        {"--pretrained-checkpoint": ["missing"]},
        "--pretrained-checkpoint missing holds no checkpoint: it does",
    ),
    # What Megatron says without the option, or with a traceback.
    ({"--decoder-last-pipeline-num-layers": ["3"]}, r"Mismatch: .* \(the run has --decoder-last-pipeline-num-layers 3"),
    ({"--squared-relu": []}, r"--swiglu must be left out \(the run has --squared-relu"),
    ({"--moe-ffn-hidden-size": ["32"]}, "set but --num-experts is None"),
    ({"--num-distributed-optimizer-instances": ["3"]}, "--num-distributed-optimizer-instances 3: must divide 1"),
    ({"--pipeline-model-parallel-layout": ["x"]}, r"\(the run has --pipeline-model-parallel-layout x\)"),
    ({"--heterogeneous-layers-config-encoded-json": ["[]"]}, "encoded-json must be a JSON object"),
    ({"--cuda-graph-modules": ["x"]}, "--cuda-graph-modules 'x' cannot be read: --help-meg"),
    ({"--save-params-interval": ["1"]}, "--save-params-interval needs --save, the folder"),
    ({"--no-pad-vocab-size": []}, "--no-pad-vocab-size needs --padded-vocab-size"),
    ({"--window-size": ["/nope"]}, "--window-size '/nope' cannot be read: --help-megatron"),
    ({"--window-size": ["3"]}, "--window-size 3: must be two numbers"),
    ({"--tokenizer-type": ["TikTokenizer"], "--tokenizer-model": ["file"]}, r"requires path.endswith\('.json'\)"),
    (
        {"--tokenizer-type": ["MultimodalTokenizer"], "--rl-profile": [], "--config-logger-dir": ["d"]},
        "--rl-profile, --config-logger-dir, --tokenizer-type MultimodalTokenizer are not supported here: leave",
    ),
    (
        {"--train-data-path": ["nca://toy"], "--valid-data-path": ["nca://toy"], "--mock-data": []},
        "--data-path, --train-data-path, --mock-data are given together",
    ),
    (
        {
            **{"--data-path": ["five", "five"], "--split": ["1,0,0"], **NULL_TOKENIZER},
            **{"--seq-length": ["200"], "--max-position-embeddings": ["200"]},
        },
        "five holds 200 tokens, less than a sample of 201, and a blend without weights",
    ),
    ({"--checkpoint-activations": []}, "--checkpoint-activations is no longer valid"),
    ({"--data-path": ["."], **NULL_TOKENIZER}, "data path .: ..idx does not exist"),
    (
        {"--data-path": ["five"], "--split": ["90,5,5"], **NULL_TOKENIZER},
        "the test split of data path five holds none of its 5 documents: give it more in --split",
    ),
)


@pytest.mark.parametrize(("changes", "message"), NAMED)
def test_the_line_names_the_argument(
    launcher: WarmProcess, tmp_path: Path, changes: dict[str, list[str] | None], message: str
) -> None:
    valid = {option: [value] for option, value in VALID}
    arguments: dict[str, list[str] | None] = {"--data-path": ["nca://toy"], **valid, **changes}
    given = [part for option, values in arguments.items() if values is not None for part in (option, *values)]
    assert refuse_or_train(launcher, tmp_path / "run", [*given, *FIXED], message) is None


#: Of a run that begins with the weights of the valid one, and what the line says.
OTHER_MODEL: Sequence[tuple[dict[str, list[str]], str]] = (
    ({"--num-query-groups": ["4"]}, "--num-query-groups 4, in the checkpoint 2"),
    ({"--normalization": ["LayerNorm"]}, "--normalization LayerNorm, in the checkpoint RMSNorm"),
    ({"--untie-embeddings-and-output-weights": []}, "--untie-embeddings-and-output-weights is not in the checkpoint"),
    ({"--add-qkv-bias": []}, "--add-qkv-bias is not in the checkpoint"),
    ({"--qk-layernorm": []}, "--qk-layernorm is not in the checkpoint"),
    ({"--num-experts": ["2"]}, "--num-experts is not in the checkpoint"),
)
#: Of a run that resumes the valid one.
RESUMED: Sequence[tuple[dict[str, list[str]], str]] = (
    (
        {"--num-layers": ["3"], "--optimizer": ["sgd"]},
        "--num-layers 3, in the checkpoint 2; --optimizer sgd, in the checkpoint adam",
    ),
    ({"--use-distributed-optimizer": []}, "--use-distributed-optimizer is not in the checkpoint"),
    (
        {"--global-batch-size": ["2"]},
        "--train-iters 1 with --global-batch-size 2, in the checkpoint 1 with --global-batch-size 4",
    ),
    ({"--train-iters": ["2"]}, "--train-iters 2, in the checkpoint 1"),
    ({"--position-embedding-type": ["none"]}, "--position-embedding-type none, in the checkpoint rope"),
    ({"--rotary-base": ["500000"]}, "--rotary-base 500000, in the checkpoint 10000"),
    ({"--rotary-percent": ["0.5"]}, "--rotary-percent 0.5, in the checkpoint 1.0"),
    ({"--bf16": []}, "--bf16 is not in the checkpoint"),
)


@pytest.fixture(scope="module")
def saved(launcher: WarmProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    arguments = ["--data-path", "nca://toy", *(part for pair in VALID for part in pair), *FIXED]
    arguments += ["--save", "saved", "--save-interval", "1"]
    ended = launcher.run("warm_megatron", arguments, folder, ENVIRONMENT, SECONDS)
    assert ended.code == 0, ended.stderr[-3000:]
    return folder / "saved"


@pytest.mark.parametrize(
    ("option", "changes", "message"),
    [
        *(("--load", *case) for case in (*OTHER_MODEL, *RESUMED)),
        *(("--pretrained-checkpoint", *case) for case in OTHER_MODEL),
    ],
)
def test_what_differs_from_the_checkpoint_is_named(
    launcher: WarmProcess, saved: Path, tmp_path: Path, option: str, changes: dict[str, list[str]], message: str
) -> None:
    arguments = {"--data-path": ["nca://toy"], **{option: [value] for option, value in VALID}, **changes}
    given = [part for option, values in arguments.items() for part in (option, *values)]
    assert refuse_or_train(launcher, tmp_path / "run", [*given, *FIXED, option, str(saved)], message) is None


def test_a_rank_that_torchrun_has_not_started_does_not_wait_for_a_rank_0_that_refuses(
    launcher: WarmProcess, saved: Path, tmp_path: Path
) -> None:
    arguments = ["--data-path", "nca://toy?seed=7", *(part for pair in VALID for part in pair), *FIXED]
    ranks = {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29599"}
    ended = launcher.run(
        "warm_megatron", [*arguments, "--load", str(saved)], tmp_path, {**ENVIRONMENT, **ranks, "RANK": "1"}, SECONDS
    )
    # Rank 0 has the same error, and prints it.
    assert (ended.code, ended.stderr) == (2, "")


def test_a_checkpoint_without_an_optimizer_is_resumed_with_a_new_one_if_the_run_says_so(
    launcher: WarmProcess, tmp_path: Path
) -> None:
    given = ["--data-path", "nca://toy", *(part for pair in VALID for part in pair), *FIXED]
    arguments = [*given, "--save", "saved", "--save-interval", "1", "--no-save-optim"]
    ended = launcher.run("warm_megatron", arguments, tmp_path, ENVIRONMENT, SECONDS)
    assert ended.code == 0, ended.stderr[-3000:]
    given += ["--load", str(tmp_path / "saved")]
    message = "iter_0000001 holds no state of the optimizer: add --no-load-optim"
    assert refuse_or_train(launcher, tmp_path / "resumed", given, message) is None
    ended = launcher.run("warm_megatron", [*given, "--no-load-optim"], tmp_path, ENVIRONMENT, SECONDS)
    assert ended.code == 0, ended.stderr[-3000:]


def test_a_save_folder_without_a_tracker_is_not_passed_over_without_a_word(
    launcher: WarmProcess, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "saved")
    (tmp_path / "saved" / TRACKER).unlink()
    given = ["--data-path", "nca://toy", *(part for pair in VALID for part in pair), *FIXED]
    given += ["--load", str(tmp_path / "saved")]
    message = f"holds iter_0000001, but no {TRACKER}, which says what to load: write the number"
    assert refuse_or_train(launcher, tmp_path / "run", given, message) is None
    # In the folder that the run saves to, a save may have been cut off, and the run is to begin anew.
    given += ["--save", str(tmp_path / "saved"), "--save-interval", "1"]
    ended = launcher.run("warm_megatron", given, tmp_path, ENVIRONMENT, SECONDS)
    assert ended.code == 0, ended.stderr[-3000:]
    assert f"no {TRACKER}, which says what to load: the run begins without it" in ended.stdout


def test_a_run_may_do_without_what_a_transition_has_left_out(launcher: WarmProcess, tmp_path: Path) -> None:
    model = [*(part for pair in VALID for part in pair), "--group-query-attention", "--swiglu", "--exit-interval", "1"]
    whole = ["--normalization", "LayerNorm", "--add-qkv-bias", "--untie-embeddings-and-output-weights"]
    arguments = ["--data-path", "nca://toy", *model, *whole, "--save", "saved", "--save-interval", "1"]
    ended = launcher.run("warm_megatron", arguments, tmp_path, ENVIRONMENT, SECONDS)
    assert ended.code == 0, ended.stderr[-3000:]
    transfer(tmp_path / "saved", tmp_path / "start", Transition(drop=["output", "re:.*bias"]))
    # All of `model` that has fewer tensors than `whole`.
    given = ["--data-path", "nca://toy", *model, "--disable-bias-linear", "--pretrained-checkpoint", "start"]
    ended = launcher.run("warm_megatron", given, tmp_path, ENVIRONMENT, SECONDS)
    assert ended.code == 0, ended.stderr[-3000:]
    arguments = [*given[:-1], str(tmp_path / "saved")]
    message = "--normalization RMSNorm, .* LayerNorm; --untie-emb.* is only in .*; --disable-bias-linear is not in"
    assert refuse_or_train(launcher, tmp_path / "run", arguments, message) is None


@pytest.mark.parametrize("dropped", ("final_norm", "mlp", "attention.proj", "norm"))
def test_a_start_that_lacks_tensors_of_the_model_is_one_line(
    launcher: WarmProcess, saved: Path, tmp_path: Path, dropped: str
) -> None:
    transfer(saved, tmp_path / "start", Transition(drop=[dropped]))
    given = ["--data-path", "nca://toy", *(part for pair in VALID for part in pair), *FIXED]
    arguments = [*given, "--pretrained-checkpoint", str(tmp_path / "start")]
    if dropped == "norm":
        # A model of other layers may have none: Megatron finds it out, and has written its log by then.
        lay_out(tmp_path / "run")
        ended = launcher.run("warm_megatron", arguments, tmp_path / "run", ENVIRONMENT, SECONDS)
        assert _fault(ended) is None and "fit the run: it holds no decoder.layers." in ended.stderr
    else:
        message = f"start.* does not fit the run: it holds no {dropped}"
        assert refuse_or_train(launcher, tmp_path / "run", arguments, message) is None


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "model.num_attention_heads 4: must be a multiple of model.num_query_groups 3"),
        (
            {"model": {"num_query_groups": "${nowhere}"}},
            "these values are missing: nowhere; name the file that the NeMo Framework La",
        ),
        (
            {"arguments": {"num-query-groups": 8}},
            "model.num_attention_heads 4: must be .* of arguments.num-query-group",
        ),
    ],
)
def test_a_nemo_1_file_is_told_of_by_its_keys(
    launcher: WarmProcess, tmp_path: Path, changes: dict[str, dict[str, object]], line: str
) -> None:
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 3}
    batches = {"micro_batch_size": 2, "global_batch_size": 4, "encoder_seq_length": 96, "max_position_embeddings": 96}
    model = {**sizes, **batches, **changes.get("model", {}), "optim": {"name": "fused_adam", "lr": 1e-3}}
    trainer = {"devices": 1, "num_nodes": 1, "precision": 32, "max_steps": 2, "limit_val_batches": 0}
    trainer["val_check_interval"] = 2
    (tmp_path / "nemo.yaml").write_text(json.dumps({**changes, "trainer": trainer, "model": model}))
    arguments = ["--config-dir", tmp_path, "--config-name", "nemo", "data.source=nca://toy"]
    ended = launcher.run("nca_plugin.launch.hydra", arguments, tmp_path, ENVIRONMENT, SECONDS)
    assert ended.code == 2 and re.search(line, ended.stderr), ended.stderr[-3000:]


def test_a_checkpoint_that_lacks_its_description_is_one_line(
    launcher: WarmProcess, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / "iter_0000001" / "metadata.json").unlink()
    given = ["--data-path", "nca://toy", *(part for pair in VALID for part in pair), *FIXED]
    for option in ("--load", "--pretrained-checkpoint"):
        arguments = [*given, option, str(tmp_path / "copy")]
        assert refuse_or_train(launcher, tmp_path / option, arguments, "lacks metadata.json") is None


def test_ids_of_text_that_the_model_has_no_rows_for_are_one_line(launcher: WarmProcess, tmp_path: Path) -> None:
    arguments = ["--data-path", "high", "--split", "1,0,0", "--tokenizer-type", "NullTokenizer", "--vocab-size", "9"]
    arguments += [*(part for pair in VALID for part in pair), *FIXED]
    lay_out(tmp_path)
    ended = launcher.run("warm_megatron", arguments, tmp_path, ENVIRONMENT, SECONDS)
    assert ended.code == 2 and "Traceback" not in ended.stderr
    assert "has the id 300, and the model only 128 rows" in ended.stderr


def test_a_tokenizer_with_gaps_between_its_ids_needs_as_many_rows(launcher: WarmProcess, tmp_path: Path) -> None:
    words = WordLevel({"a": 0, "b": 1, "</s>": 500}, unk_token="a")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="</s>")
    tokenizer.save_pretrained(tmp_path / "gaps")
    arguments = ["--data-path", "five", "--split", "100,0,0", *(part for pair in VALID for part in pair), *FIXED]
    arguments += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tmp_path / "gaps")]
    message = "go up to 500, with gaps, .* only 128 embedding rows: add --padded-vocab-size 512"
    assert refuse_or_train(launcher, tmp_path / "run", arguments, message) is None


#: What a check could take for a mistake, and Megatron does not.
ACCEPTED: Sequence[dict[str, list[str]]] = (
    {"--clip-grad": ["-1"]},
    {"--skip-train": [], "--train-iters": ["0"]},
    {"--save-interval": ["0"]},
    {"--vocab-file": ["missing"], "--merge-file": ["missing"]},
    {"--window-size": ["3,0"]},
    {"--wandb-project": [""]},
    # Two paths without weights, each with one sample.
    {
        "--data-path": ["./2024", "./2024"],
        **{"--seq-length": ["199"], "--max-position-embeddings": ["199"], "--split": ["1,0,0"]},
        **{"--tokenizer-type": ["NullTokenizer"], "--vocab-size": ["300"]},
        **{"--micro-batch-size": ["1"], "--global-batch-size": ["2"]},
    },
    {"--data-path": ["2024"], "--split": ["100,0,0"], "--tokenizer-type": ["NullTokenizer"], "--vocab-size": ["300"]},
)


@pytest.mark.parametrize("changes", ACCEPTED)
def test_what_megatron_accepts_is_accepted(
    launcher: WarmProcess, tmp_path: Path, changes: dict[str, list[str]]
) -> None:
    lay_out(tmp_path / "run")
    for ending in ("idx", "bin"):
        (tmp_path / "run" / f"five.{ending}").rename(tmp_path / "run" / f"2024.{ending}")
    arguments = {"--data-path": ["nca://toy"], **{option: [value] for option, value in VALID}, **changes}
    given = [part for option, values in arguments.items() for part in (option, *values)]
    ended = launcher.run("warm_megatron", [*given, *FIXED], tmp_path / "run", ENVIRONMENT, SECONDS)
    assert ended.code == 0, ended.stderr[-3000:]


def test_an_error_of_a_users_module_keeps_its_traceback(launcher: WarmProcess, tmp_path: Path) -> None:
    (tmp_path / "module_of_a_user.py").write_text("raise KeyError('my mistake')\n")
    arguments = ["--data-path", "nca://toy", *(part for pair in VALID for part in pair), *FIXED]
    arguments += ["--spec", "module_of_a_user", "spec"]
    path = "import sys; sys.path.insert(0, '.')"
    ended = launcher.run("warm_megatron", arguments, tmp_path, ENVIRONMENT, SECONDS, path)
    assert ended.code == 1 and ended.stderr.endswith("KeyError: 'my mistake'\n") and "Traceback" in ended.stderr


@pytest.mark.parametrize(("test", "said"), ((True, "it requires False"), (False, None)))
def test_what_megatron_states_is_one_line_and_what_it_stumbles_over_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, test: bool, said: str | None
) -> None:
    monkeypatch.setattr(assertions, "_MEGATRON", tmp_path)
    source = "assert False" if test else "None()"
    (tmp_path / "part.py").write_text(f"def build():\n    {source}\n")
    scope: dict[str, Callable[[], None]] = {}
    exec(compile((tmp_path / "part.py").read_text(), str(tmp_path / "part.py"), "exec"), scope)
    expected = pytest.raises(TypeError) if said is None else pytest.raises(NCAPluginError, match=said)
    with expected, assertions.set_up_errors(lambda: assertions.OptionNames({}, str)):
        scope["build"]()


@pytest.mark.parametrize("is_refused", (False, True))
def test_a_logger_set_up_while_output_is_held_writes_later(
    capsys: pytest.CaptureFixture[str], is_refused: bool
) -> None:
    with contextlib.suppress(NCAPluginError), held_output():
        print("of Megatron")
        handler = logging.StreamHandler()
        if is_refused:
            raise NCAPluginError("no")
    handler.emit(logging.makeLogRecord({"msg": "of the run"}))
    captured = capsys.readouterr()
    assert captured.out == ("" if is_refused else "of Megatron\n")
    assert captured.err == "of the run\n"


def test_sources_alone_need_no_tokenizer(launcher: WarmProcess, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "paths").write_text("0.5 nca://toy 0.5 nca://toy?seed=3")
    for data in (
        ["--data-args-path", "paths", "--split", "1,0,0"],
        ["--train-data-path", "nca://toy", "--valid-data-path", "dyck://?k=8"],
    ):
        arguments = [*data, *(part for pair in VALID for part in pair), *FIXED]
        ended = launcher.run("warm_megatron", arguments, folder, ENVIRONMENT, SECONDS)
        assert ended.code == 0, ended.stderr[-3000:]


def test_wrong_arguments_are_one_line(launcher: WarmProcess, tmp_path: Path) -> None:
    run_cases(launcher, tmp_path, list(cases(FEW)))


@pytest.mark.slow
def test_many_wrong_arguments_are_one_line(launcher: WarmProcess, tmp_path: Path) -> None:
    run_cases(launcher, tmp_path, list(cases(MANY))[FEW:])


def every_option() -> Iterator[list[str]]:
    """Yield the valid arguments with each option of Megatron's in turn, with each value that it has or one at all."""
    for action in add_megatron_arguments(ArgumentParser(allow_abbrev=False))._actions:
        numbers = {int: "3", float: "0.5"}
        if action.nargs == 0 or isinstance(action, BooleanOptionalAction):
            values = [[]]
        elif action.choices is not None:
            values = [[str(getattr(choice, "name", choice))] for choice in action.choices]
        else:
            count = action.nargs if isinstance(action.nargs, int) else 1
            values = [[numbers.get(action.type, "x")] * count]  # type: ignore[call-overload]
        for value in values if action.dest != "help" else ():
            arguments = {"--data-path": ["nca://toy"], **{option: [number] for option, number in VALID}}
            arguments[action.option_strings[-1]] = value
            yield [part for option, given in arguments.items() for part in (option, *given)] + list(FIXED)


@pytest.mark.slow
def test_every_option_of_megatron_is_one_line_or_trains(launcher: WarmProcess, tmp_path: Path) -> None:
    run_cases(launcher, tmp_path, list(every_option()))
