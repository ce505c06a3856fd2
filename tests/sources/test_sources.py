"""URIs, the registry and the controls."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from places import ROOT, TESTS
from refusals import assert_refused_in_one_line

from nca_plugin.automata import PRESETS, NCAConfig
from nca_plugin.display.terminal import parse_count
from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import Sample, is_source, parse, register, registry, short_uri
from nca_plugin.sources.nca import NCASource


@example(
    preset="toy",
    seed=1,
    temperature=0.0,
    identity_bias=-0.0,
    burn_in=0,
    band=None,
    first_state="softmax",
    split="train",
)
@given(
    preset=st.sampled_from(sorted(PRESETS)),
    seed=st.integers(0, 2**63 - 1),
    temperature=st.floats(0, allow_infinity=False),
    identity_bias=st.floats(allow_nan=False, allow_infinity=False),
    burn_in=st.integers(0, 100),
    band=st.none() | st.tuples(st.floats(0.03, 0.1), st.floats(0.11, 5)),
    first_state=st.sampled_from(["softmax", "uniform"]),
    split=st.sampled_from(["train", "valid", "test"]),
)
def test_a_uri_is_the_identity(preset: str, split: str, **options: object) -> None:
    source = NCASource(NCAConfig.preset(preset, **options), preset).for_split(split)
    assert parse(source.uri) == source
    assert parse(source.uri).uri == source.uri
    assert parse(short_uri(source)).uri == source.uri


_SEEDS = st.just(1234) | st.integers(0, 2**63 - 1)
_TEMPERATURES = st.just(1e-4) | st.floats(0, 1)


@st.composite
def _any_uri(draw: st.DrawFn) -> str:
    """A URI of any source, whose options are given or left to the preset, among them values that need quoting."""
    scheme = draw(st.sampled_from(["nca", "shuffled", "dyck", "shuffle_dyck", "copy", "iid", "eca", "linear_rnn"]))
    options = {"seed": draw(_SEEDS), "split": draw(st.sampled_from(["train", "valid", "test"]))}
    options["vocab_offset"] = draw(st.sampled_from([0, 1, 50257]))
    preset = ""
    if scheme in ("nca", "shuffled"):
        preset = draw(st.sampled_from([*sorted(PRESETS), "web:0.7,code:0.3", "math:0.1,release:0.9"]))
        options["temperature"] = draw(_TEMPERATURES)
        options["curriculum"] = draw(st.sampled_from(["none", "0@0.1:0.2", "0@0.1:0.2,5@0.15:0.2"]))
        if options["curriculum"] != "none":
            options["band"] = "none"
        if ":" in preset:
            options[f"{preset.partition(':')[0]}.burn_in"] = draw(st.integers(0, 20))
    elif scheme == "iid":
        options["exponent"] = draw(st.just(0.0) | st.floats(0, 2.5))
    elif scheme == "eca":
        options["wolfram_class"] = draw(st.sampled_from(["none", 3, 4]))
    elif scheme == "linear_rnn":
        options["num_systems"] = draw(st.sampled_from(["none", 1000]))
    kept = {name: value for name, value in options.items() if draw(st.booleans())}
    if "curriculum" in options and "curriculum" not in kept:
        kept.pop("band", None)
    return f"{scheme}://{preset}?{'&'.join(f'{name}={value}' for name, value in kept.items())}".removesuffix("?")


@given(uri=_any_uri())
def test_a_uri_in_short_names_the_same_source(uri: str) -> None:
    short = short_uri(uri)
    assert parse(short).uri == parse(uri).uri
    assert len(short) <= len(parse(uri).uri)
    assert short_uri(short) == short_uri(parse(uri)) == short


@pytest.mark.parametrize(
    ("uri", "short"),
    [
        *((f"nca://{preset}", f"nca://{preset}") for preset in PRESETS),
        ("nca", "nca://web"),
        ("dyck://", "dyck://"),
        ("nca://web?seed=1234", "nca://web"),
        ("nca://web?band=0.3:0.4&seed=7", "nca://web?seed=7&band=0.3:0.4"),
        ("nca://web?split=valid&vocab_offset=5", "nca://web?split=valid&vocab_offset=5"),
        ("shuffled://code?num_rules=none", "shuffled://code"),
        ("NCA://web:0.5,code:0.5", "nca://web:0.5,code:0.5"),
        ("nca://wbe?seed=7", "nca://wbe?seed=7"),
        ("/data/text_document", "/data/text_document"),
    ],
)
def test_a_uri_in_short_holds_what_differs_from_its_preset(uri: str, short: str) -> None:
    assert short_uri(uri) == short


def test_uris_name_every_option_and_leave_nothing_to_defaults() -> None:
    for name in PRESETS:
        uri = parse(f"nca://{name}").uri
        assert all(f"{field.name}=" in uri for field in dataclasses.fields(NCAConfig))
    assert parse("nca") == parse("nca://web")
    assert parse("nca://math") == parse("nca://web") != parse("nca://code")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("nac", "unknown source 'nac': did you mean 'nca'"),
        ("nca://wbe", "unknown NCA preset 'wbe': did you mean 'web'"),
        ("nca://web?sed=1", "unknown option 'sed': did you mean 'seed'"),
        ("nca://web?seed=one", "must be a whole number"),
        ("nca://web?seed=-1", "must lie in"),
        ("nca://web?band=0.4", "must be LOW:HIGH or none"),
        ("nca://web?band=0.4:0.3", "0 <= LOW < HIGH"),
        ("nca://web?band=0.7:0.9", "ceiling 0.674"),
        ("nca://toy?band=0.3:0.4", "ceiling 0.251"),
        ("nca://web?band=0:0.02", "floor 0.022"),
        ("nca://web?num_colors=1", "must lie in 2"),
        ("nca://web?num_colors=65", "must lie in 2 .. 64"),
        ("nca://web?num_colors=32", "vocabulary of 1048578, more than 1048576; take fewer colours"),
        ("nca://web?grid_size=13", "multiple of patch_size"),
        ("nca://web?temperature=-1", "at least 0"),
        ("nca://web?temperature=nan", "must be a finite number"),
        ("nca://web?num_rules=5", "add scored_rollout=separate"),
        ("nca://web?split=tset", "unknown split"),
        ("nca://web?seed=1&seed=2", "given twice"),
        ("nca://web?seed", "option=value"),
        ("nca://web/file", "must look like"),
        ("nca://[web", "unknown NCA preset '\\[web'"),
        ("nca://wéb", "unknown NCA preset 'wéb'"),
        ("nca://web#seed=1", "options follow a question mark"),
        ("nca://web?seed=%zz", "must be a whole number"),
        ("nca://web?=1", "unknown option ''"),
        ("nca://web?temperature=1e", "must be a finite number"),
        ("://", "unknown source"),
        ("dyck://?kind=x", "unknown option 'kind'"),
        ("nca://web?see\nd=3", "control character"),
        ("nca://web:80", "80 is the weight of preset web; weights lie above 0 and sum to 1, as in web:0.7,code:0.3"),
        ("nca://web:inf,code:0.5", "must be PRESET:WEIGHT"),
        ("nca://web:-0.5,code:1.5", "-0.5 is the weight of preset web"),
        ("nca://web:0.5,code:0.5?code.split=valid", "split applies to all presets; write split=valid"),
        ("nca://web&seed=1", r"options follow a question mark, as in nca://web\?seed=1"),
        ("nca://web;seed=1", "options follow a question mark"),
        ("nca://web%3Fseed=1", "options follow a question mark"),
        ("nca?seed=1", r"options follow nca://\?, as in nca://\?seed=1"),
        ("nca://web?seed=1;band=none", "options are separated by &"),
        ("nca://web?seed=1?band=none", "options are separated by &"),
        ("nca://nca://web", "names a scheme twice"),
        ("nca://web?seed", "options must look like"),
        ("nca://web?seed=", "option seed='' must be a whole number"),
        ("nca://web?seed=1&band=none&seed=2", "option 'seed' is given twice"),
        ("nca://web?seed=\u0663", "must be a whole number"),
        ("nca://web?seed=1_00", "must be a whole number"),
        ("nca://web?seed= 1", "must be a whole number"),
        ("nca://web?seed=1.5", "must be a whole number"),
        ("nca://web?seed=1e-3", "must be a whole number"),
        ("nca://web?seed=1KB", "must be a whole number"),
        *(
            (f"nca://web?{option}={value}", f"option {option}: '[^']*' is too near to 0 for a float: write 0")
            for option, value in (("temperature", "1e-400"), ("band", "-1e-999:0.5"), ("curriculum", "0@.01e-324:1"))
        ),
        ("nca://web:1e-400,code:1", "weight of web: '1e-400' is too near to 0"),
        ("nca://web?seed=" + 5000 * "9", "must be a whole number"),
        *(
            (f"nca://web?{option}={value}", f"option {option}='{value}' must be a finite number")
            for option in ("temperature", "identity_bias")
            for value in ("inf", "-inf", "nan", "1e400", "\u0661", "1_0", "0x1p3", "")
        ),
        ("nca://web?band=0.5:inf", "must be LOW:HIGH"),
        ("nca://web?band=0.5", "must be LOW:HIGH"),
        ("nca://web?curriculum=0@0.1:nan", "must be START@LOW:HIGH"),
        ("nca://web?curriculum=-0@0.3:0.1", "with 0 <= LOW < HIGH"),
        ("nca://web?vocab_offset=\u0661", "must be a whole number"),
        ("iid://?exponent=inf", "must be a finite number"),
        ("dyck://?p=nan", "must be a finite number"),
        ("nca://web?see%0Ad=3", "control character"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(uri: str, reason: str) -> None:
    assert_refused_in_one_line(uri, reason)


def test_an_index_out_of_range_is_refused() -> None:
    for uri in ("nca://toy", "shuffled://toy", "nca://web:0.5,code:0.5", "shuffled://web:0.5,code:0.5"):
        for index in (-1, 2**63):
            with pytest.raises(NCAPluginError, match="sample index"):
                parse(uri).sample(index, 128)


def test_shuffled_has_the_same_tokens_in_another_order() -> None:
    for index in range(5):
        ordered, shuffled = (
            parse("nca://toy?seed=3").sample(index, 256),
            parse("shuffled://toy?seed=3").sample(index, 256),
        )
        assert not np.array_equal(ordered.tokens, shuffled.tokens)
        np.testing.assert_array_equal(np.sort(ordered.tokens), np.sort(shuffled.tokens))
        np.testing.assert_array_equal(ordered.loss_mask, shuffled.loss_mask)


@given(st.text(max_size=40) | st.text("nca:/?&=.,@-+%#[]webcodesign1250", max_size=40).map("nca://web?".__add__))
def test_any_text_is_a_source_or_an_error_of_one_line(text: str) -> None:
    is_source(text)
    try:
        source = parse(text)
    except NCAPluginError as error:
        assert "\n" not in str(error)
    else:
        assert parse(source.uri) == source


@settings(max_examples=150)
@given(
    scheme=st.sampled_from(["nca", "dyck", "shuffle_dyck", "copy", "iid", "eca", "linear_rnn"]),
    values=st.lists(st.integers(-2, 20) | st.integers() | st.floats() | st.just("none"), max_size=4),
    data=st.data(),
)
def test_any_value_of_any_option_is_a_source_or_an_error_of_one_line(
    scheme: str, values: list[object], data: st.DataObject
) -> None:
    options = [pair.partition("=")[0] for pair in parse(scheme).uri.partition("?")[2].split("&")]
    names = data.draw(st.permutations(options))
    uri = f"{scheme}://?" + "&".join(f"{name}={value}" for name, value in zip(names, values, strict=False))
    try:
        source = parse(uri)
    except NCAPluginError as error:
        assert "\n" not in str(error)
    else:
        assert parse(source.uri) == source


def test_schemes_in_capitals() -> None:
    assert is_source("NCA://toy")
    assert parse("NCA://toy").uri == parse("nca://toy").uri


def test_numbers_with_an_exponent() -> None:
    assert parse("nca://web?identity_bias=1e+16").uri == parse("nca://web?identity_bias=1e16").uri
    assert parse("nca://web?temperature=1e-5") == parse("nca://web?temperature=0.00001")


@pytest.mark.parametrize("typed", ["1000", "1e3", "1E+3", "1_000", "1,000", "1K", "1k", "0.001M", "1000.0", "+1000"])
@pytest.mark.parametrize(
    ("form", "canonical"),
    [
        ("nca://web?seed={}", "seed=1000&"),
        ("nca://toy?vocab_offset={}", "vocab_offset=1000"),
        ("nca://web:0.5,code:0.5?scored_rollout=separate&web.num_rules={}", "web.num_rules=1000&"),
        ("nca://web?curriculum=0@0.1:0.2,{}@0.2:0.3", "1000@0.2:0.3"),
        ("iid://?vocab_size={}", "vocab_size=1000&"),
    ],
    ids=["seed", "vocab_offset", "num_rules", "curriculum", "vocab_size"],
)
def test_whole_numbers_are_typed_as_on_the_command_line(form: str, canonical: str, typed: str) -> None:
    if "curriculum" in form and "," in typed:
        # There the comma stands between stages.
        assert_refused_in_one_line(form.format(typed), "must be START@LOW:HIGH")
        return
    assert parse_count(typed.removeprefix("+")) == 1000
    uri = parse(form.format(typed)).uri
    assert canonical in f"{uri}&" and uri == parse(form.format(1000)).uri == parse(uri).uri


def test_a_registered_source_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))

    @dataclasses.dataclass(frozen=True)
    class Counting:
        vocab_size: int = 1000
        uri: str = "counting://"
        frames: None = None

        def for_split(self, split: str) -> Self:
            return self

        def check_seq_length(self, seq_length: int) -> None: ...

        def sample(self, index: int, seq_length: int) -> Sample:
            return Sample(np.arange(index, index + seq_length + 1, dtype=np.int32), np.ones(seq_length, bool))

    assert not is_source("counting://")
    register("counting", lambda parsed: Counting())
    assert is_source("counting://")
    assert parse("counting").sample(3, 4).tokens.tolist() == [3, 4, 5, 6, 7]
    with pytest.raises(NCAPluginError, match="already registered"):
        register("nca", lambda parsed: Counting())


def test_a_source_that_lacks_a_part_of_the_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    register("early", lambda parsed: SimpleNamespace(vocab_size=8, uri="early://", sample=None, for_split=None))
    assert_refused_in_one_line("early://", "source 'early' lacks frames, check_seq_length: its package")


EXAMPLE = ROOT / "examples" / "third_party_source"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example package and two that are wrong, installed by pip."""
    site = tmp_path_factory.mktemp("site")
    packages = tmp_path_factory.mktemp("packages")
    shutil.copytree(EXAMPLE, packages / "example")
    for name, entry in (
        ("broken", "broken = 'no_such_module:from_uri'"),
        ("usurper", "dyck = 'os:getcwd'\ntwice = 'os:getcwd'"),
        ("twin", "twice = 'os:getcwd'"),
    ):
        (packages / name).mkdir()
        (packages / name / "pyproject.toml").write_text(
            f"[project]\nname = '{name}'\nversion = '1'\n[project.entry-points.'nca_plugin.sources']\n{entry}\n"
            "[tool.setuptools]\npy-modules = []\n"
        )
    command = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run((*command, "--target", site, *map(str, packages.iterdir())), check=True)
    return site


def run_with(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_a_source_of_another_package(site: Path) -> None:
    code = (
        "import sys; from nca_plugin.sources import is_source, parse; uri = 'progression://?modulus=31';"
        "assert is_source(uri) and 'nca_plugin_progression' not in sys.modules; s = parse(uri);"
        "assert parse(s.uri) == s and parse(s.for_split('test').uri) == s.for_split('test');"
        "d = set((s.sample(2**40, 50).tokens[1:] - s.sample(2**40, 50).tokens[:-1]) % 31);"
        "print(s.vocab_size, len(d), s.sample(0, 9).loss_mask.sum())"
    )
    done = run_with(site, code)
    assert done.stdout.split() == ["31", "1", "8"], done.stderr


def test_a_source_of_another_package_in_megatrons_dataset(site: Path) -> None:
    code = (
        "from gpt_datasets import datasets; train, valid, test = datasets('progression://?modulus=31');"
        "print(len({len(train), len(valid), len(test)}), int(train[3]['loss_mask'].sum()))"
    )
    done = run_with(site, f"import sys; sys.path.insert(0, {str(TESTS)!r}); {code}")
    assert done.stdout.split() == ["1", "127"], done.stderr


IN_ONE_LINE = "from nca_plugin.errors import one_line_errors\nwith one_line_errors(of_every_rank=True): exec({!r})"


def test_a_broken_package_is_an_error_of_one_line_when_it_is_used(site: Path) -> None:
    code = "from nca_plugin.sources import parse; print(parse('nca').vocab_size); parse('broken')"
    done = run_with(
        site,
        IN_ONE_LINE.format(code),
    )
    assert done.stdout.split() == ["10002"]
    assert done.returncode == 2 and "source 'broken' comes from the package broken, which" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_scheme_of_two_packages_is_an_error_that_names_both(site: Path) -> None:
    code = "from nca_plugin.sources import parse; parse('twice')"
    done = run_with(
        site,
        IN_ONE_LINE.format(code),
    )
    assert done.returncode == 2 and "comes from twin and usurper: uninstall all but one" in done.stderr


def test_our_own_schemes_win(site: Path) -> None:
    done = run_with(site, "from nca_plugin.sources import parse; print(parse('dyck').vocab_size)")
    assert done.stdout.split() == ["128"], done.stderr


def test_files_are_not_sources() -> None:
    assert not any(map(is_source, ("/data/text_document", "s3://bucket/text", "nca", "text_document")))
    assert is_source("nca://web")


def test_sources_and_datasets_import_without_torch_or_megatron() -> None:
    modules = ("sources", "indexed.generate", "indexed.merge", "indexed.verify", "indexed.source")
    imports = "; ".join(f"import nca_plugin.{module}" for module in modules)
    code = f"import sys; {imports}; print({{'torch', 'megatron', 'fsspec'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_zero_has_one_name() -> None:
    assert parse("nca://web?temperature=-0&seed=-0").uri == parse("nca://web?temperature=0&seed=0").uri
