"""The parameters of an NCA token stream, and presets of them."""

import bisect
import dataclasses
import itertools
import math
import numbers
from dataclasses import dataclass
from typing import Final, Literal, Self

from nca_plugin.automata.complexity import score_bounds
from nca_plugin.errors import NCAPluginError, check_options
from nca_plugin.suggestions import unknown_name
from nca_plugin.typed_numbers import number

#: Ids stay far below the range of int32, which leaves room for a text vocabulary.
_MAX_VOCAB_SIZE: Final = 1 << 20


#: Open interval of gzip scores, (lo, hi).
Band = tuple[float, float]


@dataclass(frozen=True, slots=True)
class CurriculumStep:
    """One stage of a curriculum, written as `START@LOW:HIGH`."""

    start: int
    """Index of the first sample of the stage."""

    band: Band
    """Band of gzip scores in the stage."""

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the stage that `text` describes. Raises `ValueError` if it is malformed."""
        start, low, high = text.replace("@", ":", 1).split(":")
        return cls(number(int, start), (number(float, low), number(float, high)))

    def __str__(self) -> str:
        return f"{self.start}@{self.band[0]!r}:{self.band[1]!r}"


@dataclass(frozen=True, kw_only=True, slots=True)
class NCAConfig:
    """The parameters of NCA samples. An inconsistent configuration raises `NCAPluginError`.

    The defaults are those of `web`: the released generator, except that every sample has a fresh rule and that the
    rollout that is scored is the one that is trained on.
    """

    seed: int = 1234
    """Seed of every random number, 0 .. 2^63 - 1."""

    num_colors: int = 10
    """Number of states of a cell, n in 2 .. 64 (release: 10; the paper's study of alphabets: 2 .. 15). With
    `patch_size` it determines the vocabulary size, n^(p*p) + 2, and with `grid_size` too the highest score that a band
    can ask for (`score_bounds`)."""

    grid_size: int = 12
    """Cells along an edge of the square torus, 3 .. 256, a multiple of `patch_size` (release: 12)."""

    patch_size: int = 2
    """Cells along an edge of the square patch that makes one token, 1 .. 4 (release: 2)."""

    temperature: float = 1e-4
    """Temperature T >= 0 of the categorical draw of a cell's next state. 0 takes the argmax (release: 1e-4, paper's
    text: 1e-3). Logits have a standard deviation of about 0.1, so from T = 1 on the states are noise."""

    identity_bias: float = 0.0
    """Added to the logit of a cell's current state, any finite number (release: 0). Above 0, cells change less
    often."""

    burn_in: int = 10
    """Number of steps before the first frame, 0 .. 10,000 (release: 10)."""

    steps_per_frame: int = 1
    """Number of steps from one frame to the next, the stride dT, 1 .. 1,000 (release: 1)."""

    band: Band | None = (0.5, 1.0)
    """Rules are redrawn until lo < gzip score < hi, 0 <= lo < hi (paper, complexity matching: 0.5:1.0 for web text and
    mathematics, 0.3:0.4 for code). None accepts every rule."""

    curriculum: tuple[CurriculumStep, ...] | None = None
    """Bands that change with the sample's index, in place of `band`. The stages are in order and the first one starts
    at sample 0; as text: `0@0.1:0.3,20000@0.3:0.5,60000@0.5:1`. The valid and test splits always use the last stage.
    Not from the paper."""

    first_state: Literal["softmax", "uniform"] = "softmax"
    """Distribution of colours in the first state: a softmax of one N(0, 1) logit per colour, shared by all cells
    (release), or uniform (the paper's text)."""

    num_rules: int | None = None
    """Number of different rules, >= 1: rule r is used again as rule r + `num_rules` (release: 16,000). None means a
    fresh rule each time. Shared rules are scored once per rule, so they need `scored_rollout` = separate."""

    sequences_per_rule: int = 1
    """Number of consecutive samples with the same rule, each from a first state of its own, >= 1 (release: 1). More
    than 1 needs `scored_rollout` = separate. Where a curriculum stage begins, the rule changes with the band."""

    scored_rollout: Literal["trained", "separate"] = "trained"
    """Which rollout is scored: the one that is trained on, or a separate one of the same rule from another first state
    (release)."""

    @classmethod
    def preset(cls, name: str, **changes: object) -> Self:
        """Return the preset `name` with `changes` to its fields. A curriculum replaces the preset's band.

        Raises:
            NCAPluginError: an unknown name, or an inconsistent result.
        """
        if name not in PRESETS:
            raise NCAPluginError(unknown_name("NCA preset", name, PRESETS))
        if changes.get("curriculum") is not None:
            changes = {"band": None, **changes}
        return cls(**{**PRESETS[name], **changes})  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_absent = value is None and field.type not in (int, float)
            if field.type in (int, int | None) and not isinstance(value, numbers.Integral) and not is_absent:
                raise NCAPluginError(f"NCA option {field.name}={value!r}: must be a whole number")
            if field.type is float and not isinstance(value, numbers.Real):
                raise NCAPluginError(f"NCA option {field.name}={value!r}: must be a number")
        check_options(
            "NCA",
            self,
            (0 <= self.seed < 1 << 63, "seed", "must lie in 0 .. 2^63 - 1"),
            (2 <= self.num_colors <= 64, "num_colors", "must lie in 2 .. 64"),
            (1 <= self.patch_size <= 4, "patch_size", "must lie in 1 .. 4"),
            (3 <= self.grid_size <= 256, "grid_size", "must lie in 3 .. 256"),
            (0 <= self.temperature < math.inf, "temperature", "must be at least 0 and finite"),
            (-math.inf < self.identity_bias < math.inf, "identity_bias", "must be finite"),
            (0 <= self.burn_in <= 10_000, "burn_in", "must lie in 0 .. 10,000"),
            (1 <= self.steps_per_frame <= 1_000, "steps_per_frame", "must lie in 1 .. 1,000"),
            (self.num_rules is None or self.num_rules >= 1, "num_rules", "must be at least 1"),
            (self.sequences_per_rule >= 1, "sequences_per_rule", "must be at least 1"),
            (self.first_state in ("softmax", "uniform"), "first_state", "must be softmax or uniform"),
            (self.scored_rollout in ("trained", "separate"), "scored_rollout", "must be trained or separate"),
        )
        if self.grid_size % self.patch_size:
            raise NCAPluginError(
                f"NCA option grid_size={self.grid_size}: must be a multiple of patch_size={self.patch_size}"
            )
        for name, shares_rules in (
            ("num_rules", self.num_rules is not None),
            ("sequences_per_rule", self.sequences_per_rule > 1),
        ):
            if shares_rules and self.scored_rollout == "trained":
                raise NCAPluginError(
                    f"NCA option {name}={getattr(self, name)}: shared rules are scored once per rule, not "
                    "per sample; add scored_rollout=separate"
                )
        if self.vocab_size > _MAX_VOCAB_SIZE:
            raise NCAPluginError(
                f"NCA option num_colors={self.num_colors}: {self.patch_size}x{self.patch_size} patches make a "
                f"vocabulary of {self.vocab_size}, more than {_MAX_VOCAB_SIZE}; take fewer colours or a smaller patch"
            )
        if self.curriculum is not None:
            self._check_curriculum(self.curriculum)
        if self.band is not None:
            self._check_band(self.band)

    def _check_curriculum(self, stages: tuple[CurriculumStep, ...]) -> None:
        text = ",".join(map(str, stages))
        if self.band is not None:
            raise NCAPluginError(f"NCA option curriculum={text}: replaces the band; add band=none")
        if not stages:
            raise NCAPluginError("NCA option curriculum is empty: give START@LOW:HIGH,... or none")
        if stages[0].start != 0 or any(a.start >= b.start for a, b in itertools.pairwise(stages)):
            raise NCAPluginError(f"NCA option curriculum={text}: the first stage must start at 0, later ones in order")
        for stage in stages:
            self._check_band(stage.band)

    def _check_band(self, band: Band) -> None:
        low, high = band
        if not (0 <= low < high < math.inf):
            raise NCAPluginError(f"NCA option band={low:g}:{high:g}: must be LOW:HIGH with 0 <= LOW < HIGH")
        floor, ceiling = score_bounds(self.num_colors, self.grid_size, self.patch_size)
        if low >= ceiling:
            raise NCAPluginError(
                f"NCA option band={low:g}:{high:g}: no automaton of {self.num_colors} colours on a "
                f"{self.grid_size}x{self.grid_size} grid scores above the ceiling {ceiling:.3f}; lower the band or "
                "take more colours"
            )
        if high <= floor:
            raise NCAPluginError(
                f"NCA option band={low:g}:{high:g}: no automaton scores below the floor {floor:.3f}; raise the band"
            )

    @property
    def patches_per_frame(self) -> int:
        return (self.grid_size // self.patch_size) ** 2

    @property
    def frame_length(self) -> int:
        """Tokens per frame: its patches and two delimiters."""
        return self.patches_per_frame + 2

    @property
    def grid_start(self) -> int:
        """Id of the delimiter `<grid>`, the first id after those of the patches."""
        return self.num_colors ** (self.patch_size**2)

    @property
    def grid_end(self) -> int:
        """Id of the delimiter `</grid>`."""
        return self.grid_start + 1

    @property
    def vocab_size(self) -> int:
        """Number of token ids: all patches and the two delimiters."""
        return self.grid_start + 2

    def rule_of(self, index: int) -> int:
        """Return the number of the rule that sample `index` uses."""
        rule = index // self.sequences_per_rule
        return rule if self.num_rules is None else rule % self.num_rules

    def band_of(self, index: int, split: str) -> Band | None:
        """Return the band of sample `index` in a split."""
        if self.curriculum is None:
            return self.band
        if split != "train":
            return self.curriculum[-1].band
        return self.curriculum[bisect.bisect_right(self.curriculum, index, key=lambda stage: stage.start) - 1].band

    def options(self) -> dict[str, object]:
        """Return all fields by name, in order."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


#: The fields of each preset that differ from the defaults. The bands are from the paper (complexity matching).
PRESETS: Final[dict[str, dict[str, object]]] = {
    "web": {},
    "math": {},
    "code": {"band": (0.3, 0.4)},
    # What the authors' code does: 16,000 rules are drawn once and scored on a rollout that is not trained on.
    "release": {"num_rules": 16_000, "scored_rollout": "separate"},
    # What the paper's text says where it differs from the code.
    "paper": {"temperature": 1e-3, "first_state": "uniform"},
    # Two colours, 18 ids: a small model learns it in a few hundred updates. Not from the paper.
    "toy": {"num_colors": 2, "band": (0.08, 0.2)},
}
