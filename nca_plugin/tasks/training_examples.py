"""Writing the training examples of a task to a file for fine-tuning."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.errors import NCAPluginError
from nca_plugin.files import check_target, complete_files
from nca_plugin.tasks.harness import task_examples
from nca_plugin.text.prepare import load_tokenizer


@dataclass
class ExampleCount:
    """Number of examples that were written, and of those that were too long."""

    examples: int = 0
    too_long: int = 0


def write_examples(
    task: str,
    out: Path,
    data: str | None = None,
    tokenizer: str = "bytes",
    max_tokens: int | None = None,
    start_stage: StartStage = silent_stage,
) -> ExampleCount:
    """Write the training examples of a task as JSONL with `prompt` and `answer`, with the prompts that the task uses.

    Args:
        data: see `task_examples`.
        tokenizer: a tokenizer as in `nca_plugin.text.prepare.Corpus`.
        max_tokens: most tokens of prompt, answer and end together; longer examples are left out. None for no limit.

    Raises:
        NCAPluginError: see `task_examples`; or the output exists or cannot be written, `max_tokens` is below 1, or no
            example is short enough.
    """
    if max_tokens is not None and max_tokens < 1:
        raise NCAPluginError(f"--max-tokens {max_tokens}: must be at least 1")
    check_target(out)
    if out.exists():
        raise NCAPluginError(f"output {out} exists already: choose another name, or remove it")
    tokenize = load_tokenizer(tokenizer)[0]
    found = task_examples(task, data)
    advance = start_stage(task, len(found))
    written = ExampleCount()
    with complete_files(out) as (unfinished,), unfinished.open("w", encoding="utf-8") as lines:
        for example in found:
            # Both texts are tokenised with an end, but only one end is written.
            if (
                max_tokens is not None
                and len(tokenize(example.prompt)) + len(tokenize(example.answer)) - 1 > max_tokens
            ):
                written.too_long += 1
            else:
                lines.write(json.dumps(asdict(example), ensure_ascii=False) + "\n")
                written.examples += 1
            advance(1)
        if not written.examples:
            raise NCAPluginError(f"all {written.too_long:,} examples of {task} are longer than {max_tokens} tokens")
    return written
