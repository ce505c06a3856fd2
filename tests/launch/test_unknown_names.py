"""Names that are none: all in one message, each with a known one only if that is near."""

from argparse import ArgumentParser

import pytest

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import parse
from nca_plugin.sources.section import data_path
from nca_plugin.suggestions import near_name, unknown_names


@pytest.fixture(scope="module")
def options() -> list[str]:
    """Megatron-LM's and ours."""
    from megatron.training.arguments import add_megatron_arguments

    from nca_plugin.megatron.arguments import add_arguments

    return list(add_arguments(add_megatron_arguments(ArgumentParser(allow_abbrev=False)))._option_string_actions)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("--num-layer", "--num-layers"),
        ("--hiden-size", "--hidden-size"),
        ("--hidden_size", "--hidden-size"),
        ("--size-hidden", "--hidden-size"),
        ("--layers", "--num-layers"),
        ("--tensor-parallel-size", "--tensor-model-parallel-size"),
        ("--rotary-percentage", "--rotary-percent"),
        ("--seq-len", "--seq-length"),
        ("--use_flash_attn", "--use-flash-attn"),
        ("--nca-presett", "--nca-preset"),
        ("--preset", "--nca-preset"),
        ("--bf-16", "--bf16"),
        ("--version", None),
        ("--max-padding-length", None),
        ("--learning-rate", None),
        ("--deepspeed", None),
        ("--output-dir", None),
        ("--fp32", None),
        ("--config", None),
        ("--verbose", None),
        ("--tp", None),
        ("-", None),
        ("--" + 1_000_000 * "x", None),
    ],
)
def test_a_near_option_is_near(options: list[str], typed: str, near: str | None) -> None:
    assert near_name(typed, options) == near


def test_every_option_with_a_letter_wrong_is_found(options: list[str]) -> None:
    for option in options[:: len(options) // 40]:
        if len(option) > 8:
            middle = len(option) // 2
            for typed in (
                option[:middle] + option[middle + 1 :],
                option[:middle] + "q" + option[middle:],
                option[: middle - 1] + option[middle] + option[middle - 1] + option[middle + 1 :],
            ):
                assert typed in options or near_name(typed, options) == option, typed


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sed"], "unknown key 'sed': did you mean 'seed'?"),
        (["colour"], "unknown key 'colour': known: seed, band"),
        (["sed", "bnad"], "unknown keys 'sed' (did you mean 'seed'?), 'bnad' (did you mean 'band'?)"),
        (["sed", "colour", "sed"], "unknown keys 'sed' (did you mean 'seed'?), 'colour': known: seed, band"),
        (["a\nb"], r"unknown key 'a\nb': known: seed, band"),
    ],
)
def test_the_message(names: list[str], message: str) -> None:
    assert unknown_names("key", names, ["seed", "band"]) == message


def test_a_message_is_bounded() -> None:
    known = [f"known{number}" for number in range(1000)]
    message = unknown_names("key", [5000 * "x", *(f"{number}qqqqqq" for number in range(500))], known, "see docs")
    assert len(message) < 1000 and message.endswith("and 481 more: see docs")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "wbe", "nca": {"preset": "web"}}, "data.source: unknown source 'wbe': did you mean 'nca://web'?"),
        ({"source": "web"}, "data.source: unknown source 'web': did you mean 'nca://web'?"),
        (
            {"sorce": "nca", "nac": {}},
            "unknown keys 'data.sorce' (did you mean 'data.source'?), 'data.nac' (did you mean 'data.nca'?)",
        ),
        (
            {"source": "nca", "nca": {"presett": "code", "sed": 1, "bnd": 2}},
            "unknown key 'data.nca.presett': did you mean 'data.nca.preset'?; source nca://web: unknown options 'sed' "
            "(did you mean 'seed'?), 'bnd' (did you mean 'band'?)",
        ),
    ],
)
def test_a_data_section_tells_all(data: dict[str, object], message: str) -> None:
    with pytest.raises(NCAPluginError) as error:
        data_path(data)
    assert str(error.value) == message


def test_a_uri_tells_all() -> None:
    with pytest.raises(NCAPluginError, match=r"'sed' \(did you mean 'seed'\?\), 'tempratur' \(did you mean 'temp"):
        parse("nca://web?sed=1&tempratur=2")
