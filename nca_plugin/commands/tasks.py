"""Commands that evaluate checkpoints on tasks, and that write files for tasks."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nca_plugin.display.terminal import MAX_SEQ_LENGTH, number_option, short, stages
from nca_plugin.errors import NCAPluginError
from nca_plugin.evaluation.labels import labelled
from nca_plugin.tasks.harness import Settings
from nca_plugin.tasks.tokenizer_folders import write_byte_tokenizer

_OWN_TASKS = "nca_gsm8k, nca_humaneval, nca_bigbench_lite, nca_prompt_answer, nca_automata"


def evaluate(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Checkpoints or Hugging Face folders, each given as PATH or LABEL=PATH.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/eval"),
    tasks: Annotated[str, typer.Option(help=f"Tasks, separated by commas: {_OWN_TASKS}, or tasks of lm-eval.")] = "",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Tokenizer: `bytes`, `ids` for automata, or a name or folder for AutoTokenizer."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Own data for a task, as TASK=FILE.jsonl or TASK=FOLDER; a source as TASK=URI."),
    ] = None,
    samples: Annotated[
        int | None, number_option("--samples", "Answers per question (default: the task's own number, 64 for ours).")
    ] = None,
    max_tokens: Annotated[
        int | None, number_option("--max-tokens", "Longest answer in tokens (default: the task's own limit).")
    ] = None,
    limit: Annotated[int | None, number_option("--limit", "Number of questions per task (default: all).")] = None,
    seq_length: Annotated[
        int, number_option("--seq-length", "Tokens per sample of nca_automata.", most=MAX_SEQ_LENGTH)
    ] = 1024,
    batch_size: Annotated[
        str, number_option("--batch-size", "Number of answers computed at once, or `auto`.", word="auto")
    ] = "16",
    device: Annotated[
        str | None, typer.Option(help="Device for torch, such as cuda:1 (default: the first GPU, else cpu).")
    ] = None,
    seed: Annotated[int, number_option("--seed", "Sampling seed.", least=0)] = 1234,
    allow_model_code: Annotated[
        bool, typer.Option("--allow-model-code", help="Run programs that the model writes, in a sandbox.")
    ] = False,
    perplexity: Annotated[
        list[str] | None, typer.Option(help="Prefix of a .bin/.idx file to measure perplexity on, with Megatron.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Source of automata to predict, such as nca://web, with Megatron.")
    ] = None,
    megatron_arguments: Annotated[
        str,
        typer.Option(help="Megatron arguments that the checkpoints do not store, such as '--transformer-impl local'."),
    ] = "",
) -> None:
    """Evaluate checkpoints side by side: tasks of lm-eval, perplexity, automata. If interrupted, run it again."""
    from nca_plugin.evaluation.evaluate import Evaluation, cells
    from nca_plugin.evaluation.evaluate import evaluate as evaluate_checkpoints

    evaluation = Evaluation(
        checkpoints=labelled(checkpoints),
        out=out,
        tasks=[name.strip() for name in tasks.split(",") if name.strip()],
        settings=Settings(
            data=_pairs(data or []),
            num_samples=samples,
            max_new_tokens=max_tokens,
            limit=limit,
            seq_length=seq_length,
            batch_size=str(batch_size),
            device=device,
            allow_model_code=allow_model_code,
            seed=seed,
        ),
        tokenizer=tokenizer,
        data=perplexity or [],
        source=source,
        megatron_arguments=_words(megatron_arguments),
    )
    console = Console(highlight=False, markup=False, emoji=False)
    with stages("B") as start_stage:

        def begin(what: str) -> None:
            console.print(what, soft_wrap=True)
            # In a terminal, lm-eval shows its own bar.
            if not sys.stderr.isatty():
                start_stage(what, 0)

        figures = evaluate_checkpoints(evaluation, start_stage, begin)
    table = Table("", *map(escape, evaluation.checkpoints))
    for figure in figures:
        table.add_row(escape(figure.name), *cells(figure))
    # A folded name could not be copied, so lines may be wider than the terminal.
    Console(width=max(Console(width=1000).measure(table).maximum, 80), emoji=False).print(table)
    console.print(f"Written: {out}/table.md, and every result in a file below {out}", soft_wrap=True)


def examples(
    task: Annotated[str, typer.Argument(help=f"A task, such as {_OWN_TASKS}.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    data: Annotated[str | None, typer.Option(help="A copy of the task's data set to read instead.")] = None,
    tokenizer: Annotated[
        str, typer.Option(help="With --max-tokens: `bytes`, or a name or folder for AutoTokenizer.")
    ] = "bytes",
    max_tokens: Annotated[
        int | None, number_option("--max-tokens", "Leave out examples with more tokens than this.")
    ] = None,
) -> None:
    """Write the training examples of a task, for fine-tuning with --sft."""
    from nca_plugin.tasks.training_examples import write_examples

    with stages("examples") as start_stage:
        written = write_examples(task, out, data, tokenizer, max_tokens, start_stage)
    left_out = "" if max_tokens is None else f"; {written.too_long:,} longer than {max_tokens} tokens are left out"
    print(f"{short(written.examples)} examples: {out}{left_out}.")
    print(f"Train with --sft --train-data-path {out} --sft-epochs 1")


def tokenizer(folder: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")]) -> None:
    """Write the byte tokenizer of `prepare` as a Hugging Face folder."""
    write_byte_tokenizer(folder)
    print(f"Written. Use it with --tokenizer-type HuggingFaceTokenizer --tokenizer-model {folder}")


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        task, equals, path = text.partition("=")
        if not equals or not task or not path:
            raise NCAPluginError(f"--data {text}: must be TASK=PATH")
        if task in pairs:
            raise NCAPluginError(f"--data names data of task {task} twice: {pairs[task]} and {path}")
        pairs[task] = path
    return pairs


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise NCAPluginError(f"--megatron-arguments {text}: {error}") from error
