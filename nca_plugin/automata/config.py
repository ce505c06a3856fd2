"""The parameters of an NCA token stream, and the published sets of them."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Final, Literal, Self

from nca_plugin.automata.complexity import score_bounds
from nca_plugin.errors import NCAPluginError

#: Token ids stay below the range of int32 with room for a text vocabulary beside them.
_MAX_VOCAB_SIZE: Final = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class NCAConfig:
    """What an NCA sample is drawn from. Checks itself: an inconsistent configuration raises `NCAPluginError`.

    The defaults are those of `web`: the released generator, except that every sample has a fresh rule and that the
    rollout that is scored is the one that is trained on.
    """

    seed: int = 1234
    """Seed of every random number, 0 .. 2^63 - 1."""

    num_colors: int = 10
    """States of a cell, n in 2 .. 256 (release: 10)."""

    grid_size: int = 12
    """Cells along an edge of the square torus (release: 12). A multiple of `patch_size`."""

    patch_size: int = 2
    """Cells along an edge of the square patch that makes one token (release: 2)."""

    temperature: float = 1e-4
    """Temperature T >= 0 of the categorical draw of a cell's next state; 0 takes the argmax (release: 1e-4, paper's
    text: 1e-3)."""

    identity_bias: float = 0.0
    """Added to the logit of a cell's present state (release: 0)."""

    burn_in: int = 10
    """Steps before the first frame, >= 0 (release: 10)."""

    steps_per_frame: int = 1
    """Steps from one frame to the next, dT >= 1 (release: 1)."""

    band: tuple[float, float] | None = (0.5, 1.0)
    """Rules are redrawn until lo < gzip score < hi (paper, complexity matching). None accepts every rule."""

    first_state: Literal["softmax", "uniform"] = "softmax"
    """Distribution of the colours of the first state: one N(0, 1) logit per colour, shared by all cells (release), or
    uniform (the paper's text)."""

    num_rules: int | None = None
    """Sample i uses rule i modulo this number (release: 16,000); None gives every sample a fresh rule. A limited set is
    scored once per rule, so it needs `scored_rollout` = separate."""

    scored_rollout: Literal["trained", "separate"] = "trained"
    """Whether the gzip score is that of the rollout that is trained on, or of another first state under the same rule
    (release)."""

    @classmethod
    def preset(cls, name: str, **changes: object) -> Self:
        """Return the preset `name` with `changes` to its fields. Raises `NCAPluginError` for an unknown name."""
        if name not in PRESETS:
            raise NCAPluginError(f"unknown NCA preset '{name}': choose one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        checks = (
            (0 <= self.seed < 1 << 63, "seed", "must lie in 0 .. 2^63 - 1"),
            (2 <= self.num_colors <= 256, "num_colors", "must lie in 2 .. 256"),
            (self.patch_size >= 1, "patch_size", "must be at least 1"),
            (self.grid_size >= 3, "grid_size", "must be at least 3, the width of the neighbourhood"),
            (math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "must be at least 0"),
            (math.isfinite(self.identity_bias), "identity_bias", "must be finite"),
            (self.burn_in >= 0, "burn_in", "must be at least 0"),
            (self.steps_per_frame >= 1, "steps_per_frame", "must be at least 1"),
            (self.num_rules is None or self.num_rules >= 1, "num_rules", "must be at least 1"),
            (self.first_state in ("softmax", "uniform"), "first_state", "must be softmax or uniform"),
            (self.scored_rollout in ("trained", "separate"), "scored_rollout", "must be trained or separate"),
        )
        for is_right, name, rule in checks:
            if not is_right:
                raise NCAPluginError(f"NCA option {name}={getattr(self, name)}: {rule}")
        if self.grid_size % self.patch_size:
            raise NCAPluginError(
                f"NCA option grid_size={self.grid_size}: must be a multiple of patch_size={self.patch_size}"
            )
        if self.num_rules is not None and self.scored_rollout == "trained":
            raise NCAPluginError(
                f"NCA option num_rules={self.num_rules}: a limited set of rules is scored once per rule, not per "
                "sample; add scored_rollout=separate"
            )
        if self.vocab_size > _MAX_VOCAB_SIZE:
            raise NCAPluginError(
                f"NCA option num_colors={self.num_colors}: {self.patch_size}x{self.patch_size} patches make a "
                f"vocabulary of {self.vocab_size}, more than {_MAX_VOCAB_SIZE}; take fewer colours or a smaller patch"
            )
        if self.band is not None:
            self._check_band(*self.band)

    def _check_band(self, low: float, high: float) -> None:
        if not (0 <= low < high):
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
        """Tokens of a frame: its patches and two delimiters."""
        return self.patches_per_frame + 2

    @property
    def grid_start(self) -> int:
        """Id of the delimiter `<grid>`, the first above the patches."""
        return self.num_colors ** (self.patch_size**2)

    @property
    def grid_end(self) -> int:
        """Id of the delimiter `</grid>`."""
        return self.grid_start + 1

    @property
    def vocab_size(self) -> int:
        """Number of token ids: every patch and the two delimiters."""
        return self.grid_start + 2

    def options(self) -> dict[str, object]:
        """Return every field by name, in order."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


#: Fields in which each preset differs from the defaults. Bands by domain: paper, complexity matching.
PRESETS: Final[dict[str, dict[str, object]]] = {
    "web": {},
    "math": {},
    "code": {"band": (0.3, 0.4)},
    # As the authors' code does it: 16,000 rules drawn once, scored on a rollout that is not trained on.
    "release": {"num_rules": 16_000, "scored_rollout": "separate"},
    # As the paper's text says it, where it differs from the code.
    "paper": {"temperature": 1e-3, "first_state": "uniform"},
    # Two colours, 18 ids: learnable by a small model in a few hundred updates. Not from the paper.
    "toy": {"num_colors": 2, "band": (0.08, 0.2)},
}
