"""nca_plugin/nemo1/keys.yaml: every key once, and a malformed row is an error."""

from collections import Counter

import pytest
import yaml

from nca_plugin.errors import NCAPluginError
from nca_plugin.nemo1.rows import KEYS, Refused, Translated, read_rows
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
    for field, table in (("rule", RULES), ("kind", KINDS), ("if", CONDITIONS), ("default_rule", DEFAULTS)):
        assert {row[field] for row in rows if field in row} == set(table), field
    assert {row["read_by"] for row in rows if "read_by" in row} <= set(ROWS)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{to: lr, rule: wish}", "wish is none of half_precision, "),
        ("{to: lr, kind: wish}", "wish is none of whole, "),
        ("{to: lr, kind: number, if: wish}", "wish is none of tensor_parallelism, "),
        ("{to: lr, kind: number, default_rule: wish}", "wish is none of encoder_seq_length, "),
        ("{to: lr, kind: number, default: 1, default_rule: max_steps}", "default and default_rule contradict"),
        ("{to: lr}", "it has none of ignored, refused, read_by, rule, choices, kind"),
        ("{}", "it has none of ignored, "),
        ("text", "it is no mapping"),
        ("", "it is no mapping"),
        ("{to: lr, kind: number, ruel: x}", "ruel beside kind"),
        ("{ignored: x, refused: y}", "refused beside ignored"),
        ("{read_by: model.lr, required: true}", "required beside read_by"),
        ("{ignored: null}", "ignored has a value of another type"),
        ("{refused: x, unless: true}", "unless has a value of another type"),
        ("{to: lr, kind: number, required: 'true'}", "required has a value of another type"),
        ("{to: [lr, 1], kind: number}", "to has a value of another type"),
        ("{choices: {a: {lr: 1}}}", "choices without otherwise"),
        ("{choices: {a: lr}, otherwise: x}", "choices has a value of another type"),
    ],
)
def test_a_malformed_row_is_an_error(row: str, reason: str) -> None:
    with pytest.raises(NCAPluginError) as error:
        list(read_rows(f"keys:\n  model.x: {row}\n"))
    assert str(error.value).startswith(f"keys.yaml: model.x: {reason}") and "\n" not in str(error.value)


def test_a_row_with_a_kind_a_condition_and_choices() -> None:
    text = "keys: {model.x: {kind: lower, choices: {a: {lr: 1}, b: {}}, otherwise: no, default: a, required: true}}"
    (row,) = read_rows(text.replace("no,", "'no',"))
    assert isinstance(row, Translated) and row.arguments == ("lr",) and row.default == "a" and row.is_required
    (refused,) = read_rows("keys: {model.x: {refused: why}}")
    assert refused == Refused("model.x", "why", (False,))
