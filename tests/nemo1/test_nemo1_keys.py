"""nca_plugin/nemo1/keys.yaml: every key once, and a malformed row is an error."""

from collections import Counter
from typing import Any

import pytest
import yaml

from nca_plugin.errors import NCAPluginError
from nca_plugin.nemo1.rows import KEYS, read_rows
from nca_plugin.nemo1.rules import CONDITIONS, DEFAULTS, RULES
from nca_plugin.nemo1.translation import ROWS
from nca_plugin.nemo1.values import KINDS


def test_no_key_has_two_rows() -> None:
    """YAML itself takes the last one."""
    (_, reasons), (_, keys) = yaml.compose(KEYS.read_text()).value
    assert [key for key, times in Counter(key.value for key, _ in keys.value).items() if times > 1] == []
    assert len(keys.value) == len(ROWS)
    assert len({reason.value for reason in reasons.value}) == len(reasons.value)


def test_every_name_in_the_tables_is_used() -> None:
    rows = yaml.safe_load(KEYS.read_text())["keys"].values()
    for field, table in (("rule", RULES), ("kind", KINDS), ("when", CONDITIONS), ("default_rule", DEFAULTS)):
        assert {row[field] for row in rows if field in row} == set(table), field
    assert {row["read_by"] for row in rows if "read_by" in row} <= set(ROWS)


#: The types of fields that are not texts.
TYPES: dict[str, Any] = {"to": str | list, "unless": list, "choices": dict, "required": bool, "default": object}


def test_every_field_has_its_type() -> None:
    for key, fields in yaml.safe_load(KEYS.read_text())["keys"].items():
        for field, value in fields.items():
            assert isinstance(value, TYPES.get(field, str)), (key, field)
        assert all(isinstance(argument, str) for argument in fields.get("to", ())), key
        assert all(isinstance(made, dict) for made in fields.get("choices", {}).values()), key
        for pair in ({"to", "choices"}, {"default", "default_rule"}):
            assert not pair <= fields.keys(), key


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{to: lr, rule: wish}", "'wish'"),
        ("{to: lr, kind: wish}", "'wish'"),
        ("{to: lr, kind: number, when: wish}", "'wish'"),
        ("{to: lr, kind: number, default_rule: wish}", "'wish'"),
        ("{to: lr}", "nothing says what becomes of the key"),
        ("{choices: {a: {lr: 1}}}", "nothing says what becomes of the key"),
        ("{}", "nothing says what becomes of the key"),
        ("text", "nothing says what becomes of the key"),
        ("", "nothing says what becomes of the key"),
        ("{to: lr, kind: number, ruel: x}", "unexpected keyword argument 'ruel'"),
        ("{to: lr, rule: betas, when: fp16}", "unexpected keyword argument 'when'"),
        ("{ignored: x, refused: y}", "unexpected keyword argument 'refused'"),
        ("{refused: x, unless: true}", "not iterable"),
    ],
)
def test_a_malformed_row_is_an_error(row: str, reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason) as error:
        list(read_rows(f"keys:\n  model.x: {row}\n"))
    assert "model.x" in str(error.value) and "\n" not in str(error.value)
