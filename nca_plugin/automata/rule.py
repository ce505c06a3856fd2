"""The rule of an automaton: a small convolutional network on one-hot states (paper, section on NCA data)."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nca_plugin.automata import drawing, kernels, rng
from nca_plugin.errors import NCAPluginError


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule: conv 3x3 -> 4, conv 1x1 -> 16, ReLU, conv 1x1 -> n, without biases, on a torus.

    Kernels have HWIO layout and are cross-correlated (not flipped). Padding also wraps on the channel axis (release),
    so that the first convolution has n + 2 input channels: [c(n-1), c0 .. c(n-1), c0].

    Args:
        conv: float32 [3, 3, n+2, 4].
        hidden: float32 [1, 1, 4, 16].
        output: float32 [1, 1, 16, n].

    Raises:
        NCAPluginError: a kernel has another shape.
    """

    conv: NDArray[np.float32]
    hidden: NDArray[np.float32]
    output: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name in ("conv", "hidden", "output"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), np.float32))
        n = self.output.shape[-1]
        expected = {"conv": (3, 3, n + 2, 4), "hidden": (1, 1, 4, 16), "output": (1, 1, 16, n)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise NCAPluginError(f"rule kernel '{name}' of shape {getattr(self, name).shape}: must be {shape}")

    @property
    def num_colors(self) -> int:
        return self.output.shape[-1]

    @functools.cached_property
    def fused(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The kernels in the form that `kernels.rollout` takes."""
        fused: Any = kernels.fuse(self.conv, self.hidden, self.output)
        return fused

    def logits(self, state: ArrayLike) -> NDArray[np.float32]:
        """Return the logits of every cell's next state, float32 [height, width, n], for integers [height, width]."""
        logits: Any = kernels.all_logits(*self.fused, self.num_colors, self._checked(state))
        return logits

    def rollout(self, state: ArrayLike, steps: int, identity_bias: float = 0.0) -> NDArray[np.uint8]:
        """Return the states after 1 .. steps argmax steps from `state`, uint8 [steps, height, width].

        Args:
            identity_bias: added to the logit of a cell's current state.
        """
        cells = self._checked(state)
        frames = np.empty((steps, *cells.shape), np.uint8)
        kernels.rollout(*self.fused, self.num_colors, cells, 0, 1, 1, 0.0, identity_bias, np.uint64(0), 0, 0, frames)
        return frames

    def _checked(self, state: ArrayLike) -> NDArray[np.uint8]:
        array = np.asarray(state)
        if array.ndim != 2 or not array.size:
            raise NCAPluginError(f"state of shape {array.shape}: must be [height, width]")
        if array.min() < 0 or array.max() >= self.num_colors:
            raise NCAPluginError(f"state holds a colour outside 0 .. {self.num_colors - 1}")
        return array.astype(np.uint8)


def random_rule(num_colors: int, seed: int, index: int, attempt: int = 0, split: str = "train") -> Rule:
    """Return candidate `attempt` of rule `index`. Its weights are truncated normal with variance 1 / fan-in (Flax's
    `lecun_normal`, as released)."""
    key = rng.stream_key(seed, split, rng.RULE)
    return Rule(*drawing.draw_kernels(key, index, attempt, num_colors))
