"""What happens to every entry of a checkpoint at the transition, and why."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from nca_plugin.errors import NCAPluginError

Action = Literal["keep", "reinit", "drop"]

#: What a study transfers or draws anew, by the names that Megatron's GPTModel stores (both layer specs store the same).
#: The first pattern that matches decides: a norm inside the attention is a norm.
_ROLES: Final = (
    ("norm", r".*(layer_norm_(weight|bias)|layernorm\.(weight|bias)|norm\.(weight|bias))"),
    ("position", r"embedding\.position_embeddings\.weight"),
    ("embedding", r"embedding\..*(weight|bias)"),
    ("output", r"output_layer\.(weight|bias)"),
    ("attention", r"decoder\.layers\.(\d+\.)?self_attention\..*(weight|bias)"),
    ("mlp", r"decoder\.layers\.(\d+\.)?mlp\..*(weight|bias)"),
)
SELECTORS: Final = (*(role for role, _ in _ROLES), "all")

#: Entries of the training run, not of the model.
_RUN_STATE: Final = r"(optimizer\.|rng_state|rerun_state_machine_state|common_state|opt_param_scheduler|iteration).*"
#: State of Transformer Engine's modules, such as FP8 scales; empty under the local layer spec.
_EXTRA_STATE: Final = r".*\._extra_state.*"


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to one entry: `role` is the selector that it belongs to, empty for what no selector names."""

    name: str
    role: str
    action: Action
    reason: str


def plan_transfer(names: Iterable[str], keep: Iterable[str] = (), reinit: Iterable[str] = ()) -> list[Step]:
    """Return one step for every entry of a checkpoint.

    Embedding and output are drawn anew, because their rows belong to a vocabulary; all else is kept. `keep` narrows
    what is kept to its selectors (and may name embedding or output); `reinit` adds to what is drawn anew.

    Raises:
        NCAPluginError: an unknown selector, one in both lists, one that matches nothing, or an entry of no known role.
    """
    keep, reinit = frozenset(keep), frozenset(reinit)
    for selector in keep | reinit:
        if selector not in SELECTORS:
            raise NCAPluginError(f"unknown selector '{selector}': choose from {', '.join(SELECTORS)}")
    if keep & reinit:
        raise NCAPluginError(f"'{min(keep & reinit)}' is selected both to keep and to re-initialise")
    names = list(names)
    roles = {name: _role(name) for name in names}
    unknown = [name for name, role in roles.items() if role is None]
    if unknown:
        shown = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        raise NCAPluginError(f"{len(unknown)} checkpoint entries are of no known kind, so none is touched: {shown}")
    for selector in (keep | reinit) - {"all"}:
        if selector not in roles.values():
            raise NCAPluginError(f"selector '{selector}' matches nothing in this checkpoint")
    return [_step(name, roles[name] or "", keep, reinit) for name in names]


def _role(name: str) -> str | None:
    if re.fullmatch(_RUN_STATE, name):
        return "run"
    if re.fullmatch(_EXTRA_STATE, name):
        return "extra"
    return next((role for role, pattern in _ROLES if re.fullmatch(pattern, name)), None)


def _step(name: str, role: str, keep: frozenset[str], reinit: frozenset[str]) -> Step:
    if role == "run":
        return Step(name, "", "drop", "state of the finished run")
    if role == "extra":
        return Step(name, "", "keep", "module state")
    if role in reinit or ("all" in reinit and role not in keep):
        return Step(name, role, "reinit", "selected by --reinit")
    if role in keep or "all" in keep:
        return Step(name, role, "keep", "selected by --keep")
    if role in ("embedding", "output"):
        return Step(name, role, "reinit", "rows belong to a vocabulary")
    if keep:
        return Step(name, role, "reinit", "not among --keep")
    return Step(name, role, "keep", "default")
