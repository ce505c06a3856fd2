"""Selectors, by which users name parts of a model: `mlp`, `attention.qkv[0:12]`, `re:decoder\\..*bias`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from nca_plugin.checkpoint.names import SELECTORS, Parameter
from nca_plugin.errors import NCAPluginError

_NUMBER: Final = "0|[1-9][0-9]{0,4}|"
_SYNTAX: Final = re.compile(rf"(?P<role>[a-z_.]+)(\[(?P<start>{_NUMBER})(?P<colon>:?)(?P<stop>{_NUMBER})\])?")


@dataclass(frozen=True, slots=True)
class Selector:
    """A part of a model: a role with an optional range of layers, or a pattern of names."""

    text: str
    role: str = ""
    pattern: re.Pattern[str] | None = None
    layers: tuple[int, int] | None = None

    @property
    def specificity(self) -> int:
        """Of two selectors that match, the one with the larger number decides."""
        if self.pattern is not None:
            return 4
        if self.layers is not None:
            return 3
        return 0 if self.role == "all" else 2 if "." in self.role else 1

    def matches(self, name: str, parameter: Parameter, layer: int | None) -> bool:
        """Return whether this selects an entry. `layer` says which layer of an entry that holds several is meant."""
        if parameter.role in ("run", "module"):
            return False
        if self.pattern is not None:
            return self.pattern.fullmatch(name) is not None
        if parameter.role == "unknown":
            return False
        is_role = self.role in ("all", parameter.role) or parameter.role.startswith(f"{self.role}.")
        if self.layers is None or not is_role:
            return is_role
        # A range counts layers of the decoder, which those of multi-token prediction are not.
        return layer is not None and parameter.role != "mtp" and self.layers[0] <= layer < self.layers[1]


def parse_selector(text: str, num_layers: int | None = None) -> Selector:
    """Return the selector that a text describes.

    Args:
        text: a name in `SELECTORS`, with `[start:stop]`, `[start:]`, `[:stop]` or `[layer]` for a range of layers, or
            `re:` and a regular expression that matches whole names of entries.
        num_layers: the number of layers of the model; None accepts any range.

    Raises:
        NCAPluginError: if the text has another form, or the model does not have the layers.
    """
    if text.startswith("re:"):
        try:
            return Selector(text, pattern=re.compile(text[3:]))
        except re.error as error:
            raise NCAPluginError(f"selector '{text}': {error}") from error
    match = _SYNTAX.fullmatch(text)
    if match is None or match["role"] not in SELECTORS:
        raise NCAPluginError(
            f"unknown selector '{text}': choose from {', '.join(SELECTORS)}, each with a range of layers such as "
            "mlp[0:12] if wanted, or re:<pattern of names>"
        )
    if match[2] is None:
        return Selector(text, match["role"])
    start = int(match["start"] or 0)
    end = int(match["stop"]) if match["stop"] else (start + 1 if not match["colon"] else None)
    if num_layers is None:
        return Selector(text, match["role"], layers=(start, start + 1 if end is None else end))
    stop = num_layers if end is None else end
    if not (match["start"] or match["colon"]) or not start < stop <= num_layers:
        there = f"layers 0 to {num_layers - 1}" if num_layers else "no layers"
        raise NCAPluginError(
            f"selector '{text}' names layers that are not there: the model has {there}; a range is [start:stop], "
            "without the layer at its stop"
        )
    return Selector(text, match["role"], layers=(start, stop))


def check_selectors(texts: Iterable[str]) -> None:
    """Raise `NCAPluginError` for a text that is not a selector for any model."""
    for text in texts:
        parse_selector(text)
