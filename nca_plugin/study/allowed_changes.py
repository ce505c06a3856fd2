"""Which settings of a study may change when it continues."""

from collections.abc import Iterator
from typing import Any, Final

from nca_plugin.errors import NCAPluginError

#: Settings that may change, because existing runs do not depend on them.
_FREE: Final = ("output", "seeds", "parallel_runs", "runs_per_device", "baseline", "equal_compute")
_FREE_IN_PARTS: Final = ("label", "paper")
#: Sections whose entries may be added and left out.
NAMED: Final = ("arms", "domains", "tasks")


def check_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `NCAPluginError` if existing runs of a study would differ with the new settings.

    Args:
        before, now: the settings of both, as plain values.
    """
    if missing := now.keys() - before.keys() - set(_FREE):
        raise NCAPluginError(
            f"it was begun by another version of nca-plugin, without {', '.join(sorted(missing))}: choose another "
            "output=..."
        )
    # The runs of the sweep depend on the baseline.
    free = _FREE if not now["sweep"]["arguments"] else tuple(name for name in _FREE if name != "baseline")
    changed = [key for key in now if key not in free and key not in NAMED and before.get(key) != now[key]]
    for section in NAMED:
        common = before[section].keys() & now[section].keys()
        changed += [f"{section}.{name}" for name in common if _differ(before[section][name], now[section][name])]
    differences = [line for key in changed for line in _differences(key, _value(before, key), _value(now, key))]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise NCAPluginError(
            f"it was begun with other settings: {'; '.join(differences[:3])}{more}: set them back, give the changed "
            "arms and domains another name, or choose another output=..."
        )


def _differ(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return any(old.get(key) != new[key] for key in new if key not in _FREE_IN_PARTS)


def _value(settings: dict[str, Any], key: str) -> Any:
    for part in key.split(".", 1):
        settings = settings.get(part)  # type: ignore[assignment]
    return settings


def _differences(key: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*new, *old]):
            if old.get(name) != new.get(name) and name not in _FREE_IN_PARTS:
                yield from _differences(f"{key}.{name}", old.get(name), new.get(name))
    else:
        yield f"{key} was {_shown(old)}, is {_shown(new)}"


def _shown(value: Any) -> str:
    return "absent" if value is None else str(value)
