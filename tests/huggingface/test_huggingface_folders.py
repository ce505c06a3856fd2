"""Hugging Face folders that anybody may have written: another model, or a hostile one, is one line and no output."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
import torch
from hypothesis import strategies
from safetensors.torch import load_file, save_file
from test_huggingface import hf_logits, hf_tensors, write_hf
from warm import Ended, WarmProcess

from nca_plugin.errors import NCAPluginError
from nca_plugin.huggingface.export import export_hf
from nca_plugin.huggingface.importing import import_hf

COMMAND: Final = "nca_plugin.__main__"
#: So that a case is not the time of its imports.
IMPORTED: Final = (
    *("nca_plugin.commands.app", "nca_plugin.huggingface.export", "nca_plugin.huggingface.importing"),
    *("transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto"),
)
#: Of a case that is refused, with the imports of torch and transformers.
MOST_SECONDS, MOST_BYTES = 20.0, 2 << 30


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmProcess]:
    with WarmProcess(COMMAND, *IMPORTED) as process:
        yield process


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("grouped", "tied"):
        write_hf(folder / name, name, max_shard_size="100KB" if name == "grouped" else "1GB")
    return folder


def copy(models: Path, name: str, folder: Path) -> Path:
    shutil.copytree(models / name, folder / "hf")
    return folder / "hf"


def change_config(model: Path, **values: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **values}))


def refused(warm: WarmProcess, model: Path, reason: str) -> None:
    """Import a model, which is to end in one line that holds `reason`, soon, and with nothing written."""
    before = sorted(model.parent.iterdir())
    ended: Ended = warm.run(COMMAND, ["export", model, model.parent / "out", "--from", "hf"], model.parent)
    lines = ended.stderr.splitlines()
    assert ended.code == 2 and len(lines) == 1 and lines[0].startswith("nca-plugin: error: "), ended
    assert reason in lines[0] and len(lines[0]) < 1000, lines[0]
    assert sorted(model.parent.iterdir()) == before
    assert ended.seconds < MOST_SECONDS and ended.peak_bytes < MOST_BYTES


def refused_by_function(model: Path, reason: str) -> None:
    """The same without a process of its own, for what nobody expects to hang or to fill the memory."""
    with pytest.raises(NCAPluginError) as error:
        import_hf(model, model.parent / "out")
    message = str(error.value)
    assert reason in message and "\n" not in message and len(message) < 1000, message
    assert not list(model.parent.glob("*out*"))


#: Values of a configuration, and what is said of them.
VALUES: Final[tuple[tuple[dict[str, Any], str], ...]] = (
    ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    ({"num_attention_heads": "4"}, "num_attention_heads is '4'"),
    ({"num_key_value_heads": 3}, "must be a multiple of its num_key_value_heads, 3"),
    ({"num_hidden_layers": 10**9}, "is incomplete: it has no 'model.layers.4."),
    ({"num_hidden_layers": 10**400}, "num_hidden_layers is 1000"),
    ({"num_attention_heads": 10**9}, "is not a multiple of the number of attention heads"),
    ({"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 10**9}, "q_proj.weight' is [32, 32]"),
    ({"hidden_size": None}, "hidden_size is None"),
    ({"hidden_size": -32}, "hidden_size is -32"),
    ({"hidden_size": True}, "hidden_size is True"),
    ({"head_dim": 7}, "an even rotary dimension"),
    ({"vocab_size": 10**18}, "vocab_size is 1000"),
    ({"vocab_size": 10**9}, "embed_tokens.weight' is [100, 32]"),
    ({"intermediate_size": [96]}, "intermediate_size is [96]"),
    ({"max_position_embeddings": 1.5}, "max_position_embeddings is 1.5"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"rms_norm_eps": None}, "rms_norm_eps is None"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    ({"initializer_range": float("inf")}, "initializer_range"),
    ({"attention_dropout": 1}, "attention_dropout is 1"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', neither true nor false"),
    ({"attention_bias": 1}, "attention_bias is 1, neither true nor false"),
    ({"architectures": [1]}, "a model of type 'llama' ([1])"),
    ({"architectures": "LlamaForCausalLM"}, "not a Llama"),
    ({"architectures": {"a": [[[[[[[[]]]]]]]]}}, "not a Llama"),
    ({"model_type": ["llama"]}, "not a Llama"),
    ({"model_type": "a\nb"}, "not a Llama"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"hidden_act": None}, "hidden_act is null"),
    ({"rope_parameters": []}, "rope_parameters is [], no object"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}, "rope_theta is nan"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta is 0"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "layers are all alike"),
    ({"rope_parameters": None, "rope_theta": "10000"}, "rope_theta"),
    ({"rope_theta": 5e5}, "says rope_theta twice"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "says 'rope_type' twice"),
    ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "of type 'linear'"),
    ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "of type 'dynamic'"),
    ({"rope_parameters": None, "rope_scaling": {"type": "llama3", "factor": 8.0}}, ""),
    ({"rope_parameters": None, "rope_scaling": {"rope_type": "default", "mrope_section": 3}}, "mrope_section"),
    ({"partial_rotary_factor": 0.5}, "a partial_rotary_factor of 0.5"),
    ({"sliding_window": 128}, "sliding_window 128"),
    ({"layer_types": ["full_attention", "sliding_attention"] * 2}, "layers are all alike"),
    ({"quantization_config": {"bits": 4}}, "a quantization_config"),
    ({"compression_config": {"bits": 4}}, "a compression_config"),
    ({"mlp_bias": True}, "mlp_bias without attention_bias"),
    ({"attention_bias": True}, "has no 'model.layers.0.self_attn.q_proj.bias'"),
    ({"logits_scaling": 8.0}, "logits_scaling 8.0"),
    ({"num_local_experts": 8}, "num_local_experts 8"),
    ({"clip_qkv": 8.0}, "clip_qkv 8.0"),
    ({"auto_map": {"AutoModelForCausalLM": "own.Model"}}, "auto_map"),
)


@pytest.mark.parametrize(("values", "reason"), VALUES, ids=[json.dumps(values)[:50] for values, _ in VALUES])
def test_values_of_another_model(models: Path, tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    model = copy(models, "grouped", tmp_path)
    change_config(model, **values)
    refused_by_function(model, reason)


def test_two_names_of_one_activation(models: Path, tmp_path: Path) -> None:
    model = copy(models, "grouped", tmp_path)
    change_config(model, hidden_act="swish")
    assert import_hf(model, tmp_path / "out").notes == ()


def test_nothing_is_written_into_what_is_read(models: Path, tmp_path: Path) -> None:
    model = copy(models, "grouped", tmp_path)
    import_hf(model, tmp_path / "megatron")
    for action, origin in ((import_hf, model), (export_hf, tmp_path / "megatron")):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(origin)
        for target in (origin / "out", tmp_path / "link" / "out", origin / "x" / ".." / "out"):
            before = sorted(origin.rglob("*"))
            with pytest.raises(NCAPluginError, match=r"lies within .*, which is only read"):
                action(origin, target)
            assert sorted(origin.rglob("*")) == before


def test_values_that_say_nothing_of_the_model_are_left_out_aloud(models: Path, tmp_path: Path) -> None:
    model = copy(models, "grouped", tmp_path)
    change_config(
        model,
        **{"num_labels": 10**9, "unsloth_version": "1", "sliding_window": 4096, "use_sliding_window": False},
        **{"attention_dropout": 0.25, "torch_dtype": "float32", "logits_scaling": 1.0, "mup": False},
    )
    imported = import_hf(model, tmp_path / "out")
    note = "entries of config.json that a Llama does not have are left out: 'num_labels', 'unsloth_version'"
    assert imported.notes == (note,)
    # What only training uses comes along, there and back.
    export_hf(tmp_path / "out", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["attention_dropout"] == 0.25


#: Files in place of `config.json` or of the index, and what is said of them.
FILES: Final[dict[str, tuple[bytes, str]]] = {
    "empty": (b"", "is not JSON"),
    "list": (b"[]", "holds [], where an object is expected"),
    "nothing": (b"null", "holds None"),
    "deep lists": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "twice": (b'{"model_type": "llama", "model_type": "llama"}', "has the key 'model_type' twice"),
    "garbage": (bytes(range(256)) * 40, "is not JSON"),
    "utf-16": ('{"model_type": "llama"}'.encode("utf-16"), "is not JSON"),
    "torn": (b'{"model_type": "llama"', "is not JSON"),
    "digits": (b'{"model_type": ' + b"9" * 10_000 + b"}", "is not JSON"),
    "large": (b" " * (1 << 27) + b"{}", "is too large"),
}


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_configuration(warm: WarmProcess, models: Path, tmp_path: Path, file: str, name: str) -> None:
    model = copy(models, "grouped", tmp_path)
    (model / file).write_bytes(FILES[name][0])
    refused(warm, model, FILES[name][1])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file(
    warm: WarmProcess, models: Path, tmp_path: Path, file: str, make: Callable[[Path], None]
) -> None:
    model = copy(models, "grouped", tmp_path)
    for shard in [model / file] if (model / file).exists() else list(model.glob("model-*.safetensors"))[:1]:
        shard.unlink()
        make(shard)
    refused(warm, model, "")


def test_a_byte_order_mark_is_no_fault(models: Path, tmp_path: Path) -> None:
    model = copy(models, "grouped", tmp_path)
    config = model / "config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())
    assert import_hf(model, tmp_path / "out").llama.num_layers == 4


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path: Path, header: Any, values: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)


NORM: Final = "model.norm.weight"


def lying(header: dict[str, Any], values: bytes, lie: str) -> tuple[Any, bytes]:
    norm = header[NORM]
    start, end = norm["data_offsets"]
    if lie == "overlap":
        norm["data_offsets"] = [start - 4, end - 4]
    elif lie == "beyond":
        norm["data_offsets"] = [start, end + (1 << 40)]
    elif lie == "backwards":
        norm["data_offsets"] = [end, start]
    elif lie == "negative":
        norm["data_offsets"] = [-4, end]
    elif lie == "words":
        norm["data_offsets"] = ["0", "1"]
    elif lie == "huge shape":
        norm["shape"] = [1 << 62, 1 << 62]
    elif lie == "no values":
        norm["shape"], norm["data_offsets"] = [1 << 40, 0], [start, start]
    elif lie == "dtype":
        norm["dtype"] = "F65"
    elif lie == "whole numbers":
        norm["dtype"] = "I32"
    elif lie == "other name":
        header["model.\nnorm"] = header.pop(NORM)
    elif lie == "more":
        return header, values + b"more"
    elif lie == "less":
        return header, values[:-4]
    elif lie == "deep":
        return b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", values
    elif lie == "list":
        return [], values
    return header, values


LIES: Final = (
    *("overlap", "beyond", "backwards", "negative", "words", "huge shape", "no values", "dtype", "whole numbers"),
    *("other name", "more", "less", "deep", "list"),
)


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(models: Path, tmp_path: Path, lie: str) -> None:
    model = copy(models, "tied", tmp_path)
    path = model / "model.safetensors"
    write_header(path, *lying(*header_of(path), lie))
    refused_by_function(model, "")


@pytest.mark.parametrize("length", [0, 1 << 30, (1 << 64) - 1])
def test_lengths_of_headers_that_lie(warm: WarmProcess, models: Path, tmp_path: Path, length: int) -> None:
    model = copy(models, "tied", tmp_path)
    path = model / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(warm, model, "is damaged")


def test_an_output_that_differs_from_the_embedding_it_is_tied_to(models: Path, tmp_path: Path) -> None:
    model = copy(models, "tied", tmp_path)
    path = model / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    output = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": output}, path, {"format": "pt"})
    assert import_hf(model, tmp_path / "same").llama.tied
    one_bit = output.view(torch.int32)
    one_bit[-1, -1] ^= 1
    save_file({**tensors, "lm_head.weight": output}, path, {"format": "pt"})
    with pytest.raises(NCAPluginError, match=r"'lm_head.weight' differs from .*tie_word_embeddings.*set it to false"):
        import_hf(model, tmp_path / "out")
    save_file({**tensors, "lm_head.weight": output.half()}, path, {"format": "pt"})
    with pytest.raises(NCAPluginError, match="differs from"):
        import_hf(model, tmp_path / "out")
    save_file({**tensors, "lm_head.weight": output[:50].clone()}, path, {"format": "pt"})
    with pytest.raises(NCAPluginError, match=r"'lm_head.weight' is \[50, 32\]"):
        import_hf(model, tmp_path / "out")
    # As the message says.
    save_file({**tensors, "lm_head.weight": 2 * output}, path, {"format": "pt"})
    change_config(model, tie_word_embeddings=False)
    assert not import_hf(model, tmp_path / "out").llama.tied
    export_hf(tmp_path / "out", tmp_path / "again")
    assert torch.equal(hf_tensors(tmp_path / "again")["lm_head.weight"], 2 * output)
    assert (hf_logits(tmp_path / "again") == hf_logits(model)).all()


def shards(model: Path) -> list[Path]:
    return sorted(model.glob("model-*.safetensors"))


def double_tensor(model: Path) -> None:
    first, second = shards(model)[:2]
    save_file({**load_file(second), next(iter(load_file(first))): torch.zeros(1)}, second)


def move_tensor(model: Path) -> None:
    index = json.loads((model / "model.safetensors.index.json").read_text())
    index["weight_map"][NORM] = shards(model)[0].name
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def write_index(model: Path, weight_map: Any) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


FOLDERS: Final[dict[str, tuple[Callable[[Path], Any], str]]] = {
    "a shard is missing": (lambda model: shards(model)[1].unlink(), "is missing"),
    "a shard is not named": (
        lambda model: shutil.copyfile(shards(model)[0], model / "model-00009-of-00009.safetensors"),
        "model-00009-of-00009.safetensors, which model.safetensors.index.json does not name",
    ),
    "a tensor is there twice": (double_tensor, "twice: in model-00001"),
    "a tensor is elsewhere": (move_tensor, f"'{NORM}' is not in model-00001"),
    "two models": (
        lambda model: shutil.copyfile(shards(model)[0], model / "model.safetensors"),
        "holds model.safetensors and model.safetensors.index.json",
    ),
    "an adapter": (lambda model: (model / "adapter_config.json").write_text("{}"), "holds an adapter"),
    "an extra tensor": (
        lambda model: save_file({**load_file(shards(model)[0]), "score.weight": torch.zeros(2)}, shards(model)[0]),
        "'score.weight' is no tensor of LlamaForCausalLM",
    ),
    "an index of a list": (lambda model: write_index(model, []), "names no weights"),
    "an index of numbers": (lambda model: write_index(model, {"a": 1}), "names no weights"),
    "an index of nothing": (lambda model: write_index(model, {}), "which model.safetensors.index.json does not name"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_not_whole(models: Path, tmp_path: Path, name: str) -> None:
    model = copy(models, "grouped", tmp_path)
    FOLDERS[name][0](model)
    refused_by_function(model, FOLDERS[name][1])


any_json = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | strategies.text(),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS: Final = sorted({name for values, _ in VALUES for name in values})


@hypothesis.settings(
    max_examples=150, deadline=5000, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(values=strategies.dictionaries(strategies.sampled_from(FIELDS), any_json, min_size=1, max_size=4))
def test_any_values_of_a_configuration(models: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    """A model is imported, or refused in one line."""
    model = tmp_path / "hf"
    if not model.exists():
        copy(models, "grouped", tmp_path)
    (model / "config.json").write_text((models / "grouped" / "config.json").read_text())
    change_config(model, **values)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    try:
        import_hf(model, tmp_path / "out")
    except NCAPluginError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000 and not (tmp_path / "out").exists()
