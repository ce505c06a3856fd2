"""Labels of checkpoints, which name the folders of their results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nca_plugin.errors import NCAPluginError

#: The file beside the folders of the checkpoints.
TABLE: Final = "table.md"
#: The longest label in bytes; file systems take names of 255.
_LONGEST_LABEL: Final = 200


def labelled(checkpoints: Sequence[str]) -> dict[str, Path]:
    """Return checkpoints by label, each given as `LABEL=PATH` or as a path that is its own label.

    Raises:
        NCAPluginError: a path does not exist, or two checkpoints have the same label.
    """
    result: dict[str, Path] = {}
    for text in checkpoints:
        label, equals, path = text.partition("=")
        # The name of a folder may contain an equals sign.
        if not equals or "/" in label or Path(text).is_dir():
            label, path = _own_label(Path(text)), text
        if not path:
            raise NCAPluginError(f"checkpoint {text}: no path follows the label; write it as LABEL=PATH")
        if not Path(path).is_dir():
            reason = "is not a folder" if Path(path).exists() else "does not exist"
            raise NCAPluginError(f"checkpoint {path} {reason}")
        if label in result or not _is_name(label):
            raise NCAPluginError(f"checkpoint {path}: label '{label}' cannot be used; write another, as LABEL={path}")
        result[label] = Path(path)
    return result


def _own_label(path: Path) -> str:
    parts = [part for part in path.parts if part not in (path.anchor, "..")]
    return "_".join(parts) or path.resolve().name


def _is_name(label: str) -> bool:
    """Whether `label` can be the name of a folder below the output."""
    is_plain = label.isprintable() and not label.startswith(".") and "/" not in label and label != TABLE
    return is_plain and 0 < len(label.encode()) <= _LONGEST_LABEL
