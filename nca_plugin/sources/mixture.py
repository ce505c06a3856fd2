"""Mixtures of NCA presets by weight, sample by sample."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Final, Self

from nca_plugin.automata import rng
from nca_plugin.errors import NCAPluginError, check_index
from nca_plugin.sources.base import FrameLayout, Sample
from nca_plugin.sources.nca import NCASource
from nca_plugin.sources.split import split_option
from nca_plugin.sources.uri import COMMON_OPTIONS, ParsedURI, format_value, join_uri
from nca_plugin.typed_numbers import UnderflowError, number

_SUM_TOLERANCE: Final = 1e-6


@dataclass(frozen=True)
class MixtureSource:
    """`nca://web:0.7,code:0.3?seed=7&code.burn_in=20`: sample i is sample i of one preset, which is drawn by weight.

    An option applies to all presets, or to one if it is written as `preset.option`. The draw depends on the first
    preset's seed, the split and the index.
    """

    presets: tuple[NCASource, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        context = f"mixture {self._text()}"
        for source, weight in zip(self.presets, self.weights, strict=True):
            if not 0 < weight <= 1:
                raise NCAPluginError(
                    f"{context}: {format_value(weight)} is the weight of preset {source.preset}; weights lie above 0 "
                    "and sum to 1, as in web:0.7,code:0.3"
                )
        if abs(sum(self.weights) - 1) > _SUM_TOLERANCE:
            raise NCAPluginError(f"{context}: the weights sum to {sum(self.weights):g}, but must sum to 1")
        if len({source.preset for source in self.presets}) < len(self.presets):
            raise NCAPluginError(f"{context}: a preset is named twice")
        if len({source.split for source in self.presets}) > 1:
            raise NCAPluginError(f"{context}: the presets must have the same split")
        if len({(source.config.num_colors, source.config.patch_size) for source in self.presets}) > 1:
            raise NCAPluginError(f"{context}: the presets must share num_colors and patch_size, which define the ids")

    @classmethod
    def from_uri(cls, parsed: ParsedURI) -> Self:
        names, weights = [], []
        for part in parsed.preset.split(","):
            name, _, weight = part.partition(":")
            try:
                if not name:
                    raise ValueError
                weights.append(number(float, weight))
            except UnderflowError as error:
                raise NCAPluginError(f"mixture {parsed.preset}: weight of {name}: {error}") from None
            except ValueError:
                raise NCAPluginError(
                    f"mixture {parsed.preset}: '{part}' must be PRESET:WEIGHT, such as web:0.7,code:0.3"
                ) from None
            names.append(name)
        of_all: dict[str, str] = {}
        of_one: dict[str, dict[str, str]] = {name: {} for name in names}
        for option, value in parsed.options.items():
            name, dot, field = option.partition(".")
            if not dot:
                of_all[option] = value
            elif name in of_one and field not in COMMON_OPTIONS:
                of_one[name][field] = value
            elif name in of_one:
                raise NCAPluginError(
                    f"mixture {parsed.preset}: option '{option}': {field} applies to all presets; write {field}={value}"
                )
            else:
                raise NCAPluginError(f"mixture {parsed.preset}: option '{option}' names a preset that is not in it")
        presets = (NCASource.from_uri(ParsedURI(parsed.scheme, name, of_all | of_one[name])) for name in names)
        return cls(tuple(presets), tuple(weights))

    @property
    def seed(self) -> int:
        return self.presets[0].seed

    @property
    def split(self) -> str:
        return self.presets[0].split

    @property
    def vocab_size(self) -> int:
        return self.presets[0].vocab_size

    @property
    def uri(self) -> str:
        options: dict[str, object] = {}
        for field in self.presets[0].config.options():
            values = {source.preset: source.config.options()[field] for source in self.presets}
            if len(set(values.values())) == 1:
                options[field] = values[self.presets[0].preset]
            else:
                options |= {f"{name}.{field}": value for name, value in values.items()}
        return join_uri("nca", self._text(), options | split_option(self.split))

    def for_split(self, split: str) -> Self:
        return dataclasses.replace(self, presets=tuple(source.for_split(split) for source in self.presets))

    def check_seq_length(self, seq_length: int) -> None:
        for source in self.presets:
            source.check_seq_length(seq_length)

    def sample(self, index: int, seq_length: int) -> Sample:
        return self.generator_of(index).sample(index, seq_length)

    @property
    def frames(self) -> FrameLayout | None:
        """The layout that all presets share; None if they differ."""
        layouts = {source.frames for source in self.presets}
        return layouts.pop() if len(layouts) == 1 else None

    @property
    def generators(self) -> tuple[NCASource, ...]:
        return self.presets

    def described(self, index: int) -> str:
        return f"of {self.generator_of(index).preset}"

    def generator_of(self, index: int) -> NCASource:
        """Return the preset that sample `index` is drawn from."""
        check_index(index)
        key = rng.stream_key(self.seed, self.split, rng.MIXTURE)
        u = rng.uniforms(key, index, 0, 1)[0]
        for source, cumulative in zip(self.presets, itertools.accumulate(self.weights), strict=True):
            if u < cumulative:
                return source
        return self.presets[-1]

    def _text(self) -> str:
        parts = zip(self.presets, self.weights, strict=True)
        return ",".join(f"{source.preset}:{format_value(weight)}" for source, weight in parts)


def nca_from_uri(parsed: ParsedURI) -> NCASource | MixtureSource:
    """Return the source of an `nca://` URI, with one preset or with several and their weights."""
    return (
        MixtureSource.from_uri(parsed) if ":" in parsed.preset or "," in parsed.preset else NCASource.from_uri(parsed)
    )
