"""Keeps out of a run's log what Megatron and PyTorch say of packages that are not there, and of Megatron's own code.

Nothing of it concerns the run: what a run needs of Transformer Engine and Apex the launchers ask for themselves.
"""

import logging
import os
import warnings
from functools import partial
from typing import Final

_WARNINGS: Final = (
    r"(Transformer Engine and )?Apex (is|are) not installed\. Falling back",
    r"Only transformer-engine>=\S+ supports MoE experts, but your version is 0\.0\.0\.",
    r"MimoModelConfig is experimental",
    r"'pin_memory' argument is set as true but no accelerator is found",
    # What is overridden is the launcher's.
    # A folder of NeMo's container; a group of files that is lacking says so itself.
    r"provider=hydra\.searchpath in main",
    r"Overriding default arguments for tokenizer_type:GPT2BPETokenizer",
)
_LOGGED: Final = {"megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED"}


def quiet() -> None:
    """Drop these notices from now on: called before Megatron is imported, which gives most of them."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message, UserWarning)
    for name, message in _LOGGED.items():
        logging.getLogger(name).addFilter(partial(_is_other, message))
    # Where the hub cannot be reached, each of its retries has a line of its own.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")


def quiet_about_split() -> None:
    """Drop the advice to give a --split, which means nothing to sources: each split of theirs is a stream."""
    warnings.filterwarnings("ignore", "Please specify --split when using --data-path", UserWarning)


def _is_other(start: str, record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(start)
