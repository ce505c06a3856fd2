"""Spells Megatron-LM's arguments as the user writes them, for messages."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

#: The names of types in options.
_DTYPES: Final = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "fp8"}


@dataclass(frozen=True)
class OptionNames:
    """Megatron's arguments, and how the user writes them.

    Attributes:
        actions: the parser's action of each argument, which has its default.
        spelling: returns how the user writes an option such as `--lr`.
    """

    actions: Mapping[str, argparse.Action]
    spelling: Callable[[str], str]

    @classmethod
    def of(cls, parser: argparse.ArgumentParser, spelling: Callable[[str], str]) -> "OptionNames":
        actions: dict[str, argparse.Action] = {}
        for action in parser._actions:
            if action.option_strings:
                actions.setdefault(action.dest, action)
        return cls(actions, spelling)

    def name(self, dest: str) -> str:
        spellings, plain = self.actions[dest].option_strings, f"--{dest.replace('_', '-')}"
        return self.spelling(plain if plain in spellings else spellings[0])

    def shown(self, dest: str, value: Any) -> str:
        """Return an argument with its value, such as `--lr 0.1`, `no --save` or `--swiglu`."""
        action = self.actions[dest]
        is_flag = action.nargs == 0
        if value is None or (is_flag and value == action.default):
            return f"no {self.name(dest)}"
        if is_flag:
            return self.name(dest)
        if isinstance(value, list | tuple):
            # The user types several values, or one value that Megatron splits.
            separate = " " if action.nargs is not None else ","
            joined = separate.join(map(str, value))
            return f"{self.name(dest)} {joined if action.nargs or isinstance(value, tuple) else f'[{joined}]'}"
        text = _DTYPES.get(value, value) if isinstance(value, torch.dtype) else getattr(value, "name", value)
        return f"{self.name(dest)} {text}"

    def is_negation(self, dest: str) -> bool:
        """Return whether an argument's option can only switch it off, such as `--no-rope-fusion`."""
        return self.actions[dest].nargs == 0 and self.actions[dest].const is False


def unreadable(option: str, value: str) -> str:
    """Return the message about a value that an option cannot have."""
    return f"{option} {value} cannot be read: --help-megatron shows what it takes"
