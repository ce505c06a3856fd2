"""NCA token streams."""

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from nca_plugin.automata import NCAConfig, generate
from nca_plugin.automata.config import Band
from nca_plugin.automata.generator import rule_of_sample
from nca_plugin.automata.loss_mask import check_two_frames
from nca_plugin.sources.base import FrameLayout, Sample
from nca_plugin.sources.split import checked_split, split_option
from nca_plugin.sources.uri import ParsedURI, join_uri, parse_options


@dataclass(frozen=True)
class NCASource:
    """`nca://<preset>?<options>`. Every field of `NCAConfig` is an option; the default preset is `web`."""

    config: NCAConfig
    preset: str = dataclasses.field(default="web", compare=False)
    split: str = "train"

    @classmethod
    def from_uri(cls, parsed: ParsedURI) -> Self:
        preset = parsed.preset or "web"
        options = dict(parsed.options)
        split = checked_split(options.pop("split", "train"))
        values = parse_options(NCAConfig, options, f"source {parsed.scheme}://{preset}")
        return cls(NCAConfig.preset(preset, **values), preset, split)

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def automaton(self) -> NCAConfig:
        return self.config

    def band(self, index: int) -> Band | None:
        return self.config.band_of(index, self.split)

    @property
    def frames(self) -> FrameLayout:
        config = self.config
        grid, patch = (config.grid_size, config.grid_size), (config.patch_size, config.patch_size)
        return FrameLayout(config.num_colors, grid, patch, config.frame_length)

    def likely_successors(self, index: int, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The argmax of the rule's logits. It is the most likely next frame if a frame is one step."""
        rule, steps = rule_of_sample(self.config, index, self.split), self.config.steps_per_frame
        return np.stack([rule.rollout(frame, steps, self.config.identity_bias)[-1] for frame in frames])

    @property
    def uri(self) -> str:
        return join_uri("nca", self.preset, self.config.options() | split_option(self.split))

    def for_split(self, split: str) -> Self:
        return dataclasses.replace(self, split=checked_split(split))

    def check_seq_length(self, seq_length: int) -> None:
        check_two_frames(self.config.frame_length, seq_length)

    def sample(self, index: int, seq_length: int) -> Sample:
        return Sample(*generate(self.config, index, seq_length, self.split))
