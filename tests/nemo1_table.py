"""The table of docs/nemo1.md, from the rows that translate. `python tests/nemo1_table.py` writes it there."""

import re
from pathlib import Path

from nca_plugin.nemo1.rows import Ignored, Refused, Translated
from nca_plugin.nemo1.translation import ROWS

DOCUMENTATION = Path(__file__).parents[1] / "docs" / "nemo1.md"
_BEGIN, _END = "<!-- table of keys -->", "<!-- end of the table of keys -->"


def documentation_table() -> str:
    """Return the three tables, as Markdown."""
    lines = [_BEGIN, "### Translated", "", "| NeMo 1 | Megatron-LM | where absent |", "|---|---|---|"]
    for row in ROWS.values():
        if isinstance(row, Translated):
            notes = [" ".join(f"`--{argument}`" for argument in row.arguments), row.note]
            absent = "required" if row.is_required else ": ".join(filter(None, [_default(row), row.source]))
            lines.append(f"| `{row.key}` | {'; '.join(filter(None, notes))} | {absent} |")
    lines += ["", "### Refused, unless off", "", "| NeMo 1 | reason | accepted |", "|---|---|---|"]
    for row in ROWS.values():
        if isinstance(row, Refused):
            lines.append(f"| `{row.key}` | {row.reason} | {', '.join(f'`{value}`' for value in row.unless)} |")
    lines += ["", "### Ignored", "", "| reason | NeMo 1 |", "|---|---|"]
    reasons: dict[str, list[str]] = {}
    for row in ROWS.values():
        if isinstance(row, Ignored):
            reasons.setdefault(row.reason, []).append(f"`{row.key}`")
    lines += [f"| {reason} | {', '.join(keys)} |" for reason, keys in reasons.items()]
    return "\n".join([*lines, "", _END])


def _default(row: Translated) -> str:
    return "" if row.default is None or callable(row.default) else f"`{row.default}`"


if __name__ == "__main__":
    text = DOCUMENTATION.read_text()
    DOCUMENTATION.write_text(re.sub(f"{_BEGIN}.*{_END}", lambda _: documentation_table(), text, flags=re.DOTALL))
