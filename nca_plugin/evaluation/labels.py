"""The labels of checkpoints that are evaluated, after which the folders of their results are named."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nca_plugin.errors import NCAPluginError

#: The file beside those folders.
TABLE: Final = "table.md"
#: Of bytes: file systems take names of 255.
_LONGEST_LABEL: Final = 200


def labelled(checkpoints: Sequence[str]) -> dict[str, Path]:
    """Return checkpoints by label: `LABEL=PATH`, or a path that is its own label.

    Raises:
        NCAPluginError: a path that does not exist, or two of one label.
    """
    result: dict[str, Path] = {}
    for text in checkpoints:
        label, equals, path = text.partition("=")
        # A folder's own name may have the sign.
        if not equals or "/" in label or Path(text).is_dir():
            label, path = _own_label(Path(text)), text
        if not path:
            raise NCAPluginError(f"checkpoint {text}: no path follows the label; write it as LABEL=PATH")
        if not Path(path).is_dir():
            raise NCAPluginError(f"checkpoint {path} " + ("is no folder" if Path(path).exists() else "does not exist"))
        if label in result or not _is_name(label):
            raise NCAPluginError(f"checkpoint {path}: label '{label}' cannot be used; write another, as LABEL={path}")
        result[label] = Path(path)
    return result


def _own_label(path: Path) -> str:
    parts = [part for part in path.parts if part not in (path.anchor, "..")]
    return "_".join(parts) or path.resolve().name


def _is_name(label: str) -> bool:
    """Whether a folder below the output may have this name."""
    is_plain = label.isprintable() and not label.startswith(".") and "/" not in label and label != TABLE
    return is_plain and 0 < len(label.encode()) <= _LONGEST_LABEL
