"""URIs, the registry and the controls."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nca_plugin.automata import PRESETS, NCAConfig
from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import Sample, is_source, parse, register, registry
from nca_plugin.sources.nca import NCASource


@given(
    preset=st.sampled_from(sorted(PRESETS)),
    seed=st.integers(0, 2**63 - 1),
    temperature=st.floats(0, 10),
    identity_bias=st.floats(-5, 5),
    burn_in=st.integers(0, 100),
    band=st.none() | st.tuples(st.floats(0.03, 0.1), st.floats(0.11, 5)),
    first_state=st.sampled_from(["softmax", "uniform"]),
    split=st.sampled_from(["train", "valid", "test"]),
)
def test_a_uri_is_the_identity(preset: str, split: str, **options: object) -> None:
    source = NCASource(NCAConfig.preset(preset, **options), preset).for_split(split)
    assert parse(source.uri) == source
    assert parse(source.uri).uri == source.uri


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
        ("nca://wbe", "unknown NCA preset 'wbe': choose one of web"),
        ("nca://web?sed=1", "unknown option 'sed'; did you mean 'seed'"),
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
        ("nca://web?temperature=nan", "at least 0"),
        ("nca://web?num_rules=5", "add scored_rollout=separate"),
        ("nca://web?split=tset", "unknown split"),
        ("nca://web?seed=1&seed=2", "given twice"),
        ("nca://web?seed", "option=value"),
        ("nca://web/file", "must look like"),
        ("dyck://web", "no presets"),
        ("dyck://?p=1", "between 0 and 1"),
        ("dyck://?k=0", "must lie in"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(uri: str, reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason) as error:
        parse(uri)
    assert "\n" not in str(error.value)


def test_an_index_out_of_range_is_refused() -> None:
    for index in (-1, 2**63):
        with pytest.raises(NCAPluginError, match="sample index"):
            parse("nca://toy").sample(index, 128)


def test_shuffled_has_the_same_tokens_in_another_order() -> None:
    for index in range(5):
        ordered, shuffled = (
            parse("nca://toy?seed=3").sample(index, 256),
            parse("shuffled://toy?seed=3").sample(index, 256),
        )
        assert not np.array_equal(ordered.tokens, shuffled.tokens)
        np.testing.assert_array_equal(np.sort(ordered.tokens), np.sort(shuffled.tokens))
        np.testing.assert_array_equal(ordered.loss_mask, shuffled.loss_mask)


@given(k=st.integers(1, 100), max_depth=st.integers(1, 20), index=st.integers(0, 2**62))
def test_dyck_closes_what_was_opened_last(k: int, max_depth: int, index: int) -> None:
    sample = parse(f"dyck://?k={k}&max_depth={max_depth}").sample(index, 200)
    stack: list[int] = []
    for token in sample.tokens:
        if token < k:
            stack.append(token)
        else:
            assert stack.pop() == token - k
        assert len(stack) <= max_depth
    assert sample.loss_mask.all() and sample.tokens.shape == (201,)


def test_a_registered_source_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))

    @dataclasses.dataclass(frozen=True)
    class Counting:
        vocab_size: int = 1000
        uri: str = "counting://"

        def sample(self, index: int, seq_length: int) -> Sample:
            return Sample(np.arange(index, index + seq_length + 1, dtype=np.int32), np.ones(seq_length, bool))

    assert not is_source("counting://")
    register("counting", lambda parsed: Counting())
    assert is_source("counting://")
    assert parse("counting").sample(3, 4).tokens.tolist() == [3, 4, 5, 6, 7]
    with pytest.raises(NCAPluginError, match="already registered"):
        register("nca", lambda parsed: Counting())


def test_files_are_not_sources() -> None:
    assert not any(map(is_source, ("/data/text_document", "s3://bucket/text", "nca", "text_document")))
    assert is_source("nca://web")


def test_sources_import_without_torch_or_megatron() -> None:
    code = "import sys, nca_plugin.sources; print({'torch', 'megatron'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
