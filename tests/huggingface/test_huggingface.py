"""Export to Hugging Face and import from it, on models that transformers and Megatron both run."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from model_zoo import LoadJob, Results, load_checkpoints
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nca_plugin.checkpoint.folders import find_checkpoint
from nca_plugin.checkpoint.model_config import ModelConfig
from nca_plugin.checkpoint.names import parameter
from nca_plugin.checkpoint.opened import read_checkpoint
from nca_plugin.commands.app import app
from nca_plugin.errors import NCAPluginError
from nca_plugin.huggingface import export as to_huggingface
from nca_plugin.huggingface.export import export_hf
from nca_plugin.huggingface.importing import Imported, import_hf
from nca_plugin.huggingface.llama import llama_of_megatron
from nca_plugin.huggingface.llama_config import rope_of

#: As in model_zoo.
NUM_IDS, SEQ_LENGTH = 100, 32

#: What each Hugging Face model has beside what all have.
MODELS: dict[str, dict[str, Any]] = {
    # As model_zoo's "llama".
    "grouped": {"num_key_value_heads": 2, "rms_norm_eps": 1e-5},
    "tied": {"tie_word_embeddings": True, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 500000.0},
    "query_bias": {
        "num_key_value_heads": 2,
        "attention_bias": True,
        "rope_parameters": {
            **{"rope_type": "llama3", "rope_theta": 1e6, "factor": 8.0, "low_freq_factor": 1.0},
            **{"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        },
    },
    "biases": {"attention_bias": True, "mlp_bias": True},
}


def write_hf(folder: Path, name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Write a model of random weights, norms and biases among them."""
    own = dict(MODELS[name])
    if "rope_parameters" in own and transformers.__version__.startswith("4."):
        scaling = dict(own.pop("rope_parameters"))
        own |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    config = LlamaConfig(
        **{"vocab_size": NUM_IDS, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 4},
        **{"num_attention_heads": 4, "max_position_embeddings": SEQ_LENGTH},
        **own,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(7)
    for parameter_name, values in model.named_parameters():
        values.data.normal_(1.0 if "norm" in parameter_name else 0.0, 0.3, generator=generator)
        if parameter_name.endswith("o_proj.bias") and not config.mlp_bias:
            values.data.zero_()
    model.to(dtype).save_pretrained(folder, **options)
    return folder


def hf_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: values for file in folder.glob("*.safetensors") for name, values in load_file(file).items()}


def hf_logits(folder: Path) -> np.ndarray:
    # The batch of model_zoo.
    tokens = torch.randint(NUM_IDS, (2, SEQ_LENGTH + 1), generator=torch.Generator().manual_seed(NUM_IDS))
    with torch.no_grad():
        return LlamaForCausalLM.from_pretrained(folder)(tokens[:, :-1]).logits.numpy()


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype and torch.equal(values, other[name]), name


def model_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Megatron's parameters, without the rows that pad the vocabulary."""
    checkpoint = read_checkpoint(folder)
    names = [name for name in checkpoint.tensors if parameter(name).role != "run"]
    is_row = ("embedding", "output_layer")
    return {
        name: values[:NUM_IDS] if name.startswith(is_row) else values
        for name in names
        for values in [torch.from_numpy(checkpoint.tensor(name))]
    }


@dataclasses.dataclass(frozen=True)
class Done:
    folder: Path
    imported: dict[str, Imported]
    loaded: Results


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Every model imported, loaded by Megatron for its logits, and loaded and saved again on four ranks."""
    folder = tmp_path_factory.mktemp("huggingface")
    imported, jobs = {}, []
    for name in MODELS:
        write_hf(folder / "hf" / name, name, max_shard_size="100KB" if name == "grouped" else "1GB")
        start = folder / "imported" / name
        # Rows for two tensor-parallel ranks, which one rank pads to with the second number.
        imported[name] = import_hf(
            folder / "hf" / name, start, tensor_model_parallel_size=2, make_vocab_size_divisible_by=8, num_workers=2
        )
        one_rank = (*imported[name].arguments, "--make-vocab-size-divisible-by", "16")
        jobs += [
            LoadJob(
                **{"name": f"{name}-logits", "arch": "gpt", "checkpoint": str(start), "arguments": one_rank},
                logits=str(folder / f"{name}.npy"),
            ),
            LoadJob(
                **{"name": f"{name}-saved", "arch": "gpt", "checkpoint": str(start), "tp": 2, "pp": 2},
                **{"arguments": imported[name].arguments, "save": str(folder / "saved" / name)},
            ),
        ]
    # With the architecture spelled out, and another cut.
    jobs.append(LoadJob(name="spelled-out", arch="llama", checkpoint=str(folder / "imported" / "grouped"), tp=2))
    return Done(folder, imported, load_checkpoints(folder, jobs))


@pytest.mark.parametrize("name", MODELS)
def test_both_models_compute_the_same(done: Done, name: str) -> None:
    for job in (f"{name}-logits", f"{name}-saved"):
        assert done.loaded[job]["passed_over"] == [] and done.loaded[job]["iteration"] == 0
    ours = np.load(done.folder / f"{name}.npy")
    np.testing.assert_allclose(ours[..., :NUM_IDS], hf_logits(done.folder / "hf" / name), rtol=0, atol=1e-4)
    assert done.loaded[f"{name}-saved"]["loss"] == pytest.approx(done.loaded[f"{name}-logits"]["loss"], abs=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_hf_to_megatron_to_hf_keeps_every_bit(done: Done, name: str, tmp_path: Path) -> None:
    """By way of what Megatron itself saved, on four ranks."""
    export_hf(done.folder / "saved" / name, tmp_path / "again")
    assert_same_bits(hf_tensors(tmp_path / "again"), hf_tensors(done.folder / "hf" / name))
    old, new = (LlamaConfig.from_pretrained(folder) for folder in (done.folder / "hf" / name, tmp_path / "again"))
    assert rope_of(old) == rope_of(new)
    for field in ("rms_norm_eps", "head_dim", "tie_word_embeddings", "attention_bias", "mlp_bias"):
        assert getattr(old, field) == getattr(new, field)


def test_megatron_to_hf_to_megatron_keeps_every_bit(done: Done, tmp_path: Path) -> None:
    export_hf(done.folder / "saved" / "biases", tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    assert_same_bits(model_tensors(done.folder / "saved" / "biases"), model_tensors(tmp_path / "megatron"))


def test_a_run_may_spell_out_the_architecture(done: Done) -> None:
    result = done.loaded["spelled-out"]
    assert result["loss"] == pytest.approx(done.loaded["grouped-logits"]["loss"], abs=1e-5)
    assert result["passed_over"] == []


def test_rows_that_pad_the_vocabulary_are_drawn(done: Done, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(done.folder / "imported" / "grouped")
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        padding = torch.from_numpy(checkpoint.tensor(name))[NUM_IDS:]
        assert len(padding) == done.imported["grouped"].rows - NUM_IDS == 12
        assert padding.std() == pytest.approx(0.02, rel=0.15)
    # With all rows, they are exported too.
    exported = export_hf(done.folder / "imported" / "grouped", tmp_path / "all", vocab_size=112)
    assert exported.llama.vocab_size == 112
    assert torch.equal(hf_tensors(tmp_path / "all")["lm_head.weight"][NUM_IDS:], padding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_many_files(tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path / "hf", "grouped", dtype)
    # Blocks of few rows, which begin and end within heads.
    monkeypatch.setattr("nca_plugin.huggingface.export.PIECE_BYTES", 320)
    monkeypatch.setattr("nca_plugin.huggingface.importing.BLOCK_BYTES", 320)
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    exported = export_hf(tmp_path / "megatron", tmp_path / "again", max_shard_bytes=20_000)
    assert exported.num_files > 4
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) == exported.num_files
    assert_same_bits(hf_tensors(tmp_path / "again"), hf_tensors(tmp_path / "hf"))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "again", dtype="auto")
    assert loaded.dtype == dtype
    import_hf(tmp_path / "again", tmp_path / "twice")
    assert_same_bits(model_tensors(tmp_path / "megatron"), model_tensors(tmp_path / "twice"))


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf") / "hf", "query_bias")


@pytest.fixture(scope="module")
def megatron(hf: Path) -> Path:
    import_hf(hf, hf.with_name("megatron"))
    return hf.with_name("megatron")


def test_a_disk_without_room_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hf: Path, megatron: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    for action, origin in ((export_hf, megatron), (import_hf, hf)):
        with pytest.raises(NCAPluginError, match=r"needs [\d.]+ kB more, .* has 1 kB free: make room, or choose"):
            action(origin, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def write_tokenizer(folder: Path, num_ids: int) -> Path:
    from tokenizers import Tokenizer, models

    words = {**{f"w{i}": i for i in range(num_ids - 1)}, "<eos>": num_ids - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return folder


def test_a_tokenizer_comes_along(megatron: Path, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", 90)
    (tokenizer / "model.safetensors").write_text("of another model")
    exported = export_hf(megatron, tmp_path / "hf", tokenizer=tokenizer)
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"] == 89
    assert exported.llama.vocab_size == NUM_IDS
    with pytest.raises(NCAPluginError, match="the tokenizer has 120 ids, the model 100"):
        export_hf(megatron, tmp_path / "refused", tokenizer=write_tokenizer(tmp_path / "larger", 120))
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        with pytest.raises(NCAPluginError, match="no folder of a tokenizer"):
            export_hf(megatron, tmp_path / "refused", tokenizer=tmp_path / folder)


def test_the_tokenizer_that_a_run_saved_is_named_and_not_copied(megatron: Path, tmp_path: Path) -> None:
    shutil.copytree(megatron, tmp_path / "megatron")
    saved = write_tokenizer(find_checkpoint(tmp_path / "megatron") / "tokenizer", 90)
    without = export_hf(tmp_path / "megatron", tmp_path / "without")
    assert any(f"{saved}, is not copied: name the model's with --tokenizer" in note for note in without.notes)
    assert not (tmp_path / "without" / "tokenizer.json").exists()
    named = export_hf(tmp_path / "megatron", tmp_path / "named", tokenizer=saved)
    assert not any("tokenizer" in note for note in named.notes)
    assert (tmp_path / "named" / "tokenizer.json").is_file()


def test_an_export_that_fails_leaves_nothing(hf: Path, megatron: Path, tmp_path: Path) -> None:
    def stopped(name: str, size: int) -> Callable[[int], None]:
        def advance(steps: int) -> None:
            raise KeyboardInterrupt

        return advance

    for work, origin in ((export_hf, megatron), (import_hf, hf)):
        with pytest.raises(KeyboardInterrupt):
            work(origin, tmp_path / "out", start_stage=stopped)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "model.safetensors").write_text("of a process that was killed")
    export_hf(megatron, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(NCAPluginError, match="exists already"):
        export_hf(megatron, tmp_path / "out")


LLAMA_VALUES = {
    **{"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 96, "num_attention_heads": 4, "seq_length": 32},
    **{"normalization": "RMSNorm", "position_embedding_type": "rope", "swiglu": True, "layernorm_epsilon": 1e-5},
}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"normalization": "LayerNorm"}, "its normalization is LayerNorm, a Llama's is RMSNorm"),
        ({"normalization": None}, "it does not say its normalization"),
        ({"swiglu": False}, "not gated by SiLU"),
        (
            {"swiglu": None, "gated_linear_unit": True, "activation_func": {"_target_": "torch.nn.functional.gelu"}},
            "SiL",
        ),
        ({"position_embedding_type": "learned_absolute"}, "position_embedding_type"),
        ({"rotary_percent": 0.5}, "rotary_percent is 0.5"),
        ({"rotary_interleaved": True}, "rotary_interleaved"),
        ({"rotary_seq_len_interpolation_factor": 2}, "rotary_seq_len_interpolation_factor"),
        ({"qk_layernorm": True}, "qk_layernorm"),
        ({"num_experts": 8}, "num_experts is 8"),
        ({"num_moe_experts": 8}, "num_moe_experts"),
        ({"multi_latent_attention": True}, "multi_latent_attention"),
        ({"hybrid_layer_pattern": "M*"}, "a hybrid"),
        ({"softmax_scale": 0.1}, "softmax_scale"),
        ({"softmax_type": "learnable"}, "softmax_type"),
        ({"use_mup": True}, "use_mup"),
        ({"layernorm_zero_centered_gamma": True}, "layernorm_zero_centered_gamma"),
        ({"apply_query_key_layer_scaling": True}, "apply_query_key_layer_scaling"),
        ({"window_size": [128, 0]}, "window_size"),
        ({"attention_output_gate": True}, "attention_output_gate"),
        ({"hidden_size": 33}, "hidden_size 33 must be a multiple"),
    ],
)
def test_other_models_are_not_exported(values: dict[str, Any], reason: str) -> None:
    assert llama_of_megatron(Path("c"), ModelConfig(LLAMA_VALUES), set(), 100).num_groups == 4
    with pytest.raises(NCAPluginError, match=reason) as error:
        llama_of_megatron(Path("c"), ModelConfig({**LLAMA_VALUES, **values}), set(), 100)
    assert "\n" not in str(error.value) and str(error.value).startswith("checkpoint c does not hold a Llama, and")


def test_nemos_scaling_of_frequencies_is_exported() -> None:
    scaling = {"scale_factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "old_context_len": 4096}
    llama = llama_of_megatron(Path("c"), ModelConfig({**LLAMA_VALUES, **scaling}), set(), 100)
    assert llama.rope_scaling == {
        **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 4096,
    }


@pytest.mark.parametrize(
    ("name", "new_name", "reason"),
    [
        ("decoder.layers.mlp.linear_fc2.weight", None, "it has no decoder.layers.mlp.linear_fc2.weight of layer 0"),
        (
            "decoder.layers.mlp.linear_fc2.weight",
            "decoder.layers.mlp.linear_fc3.weight",
            "it has no decoder.layers.mlp",
        ),
        ("output_layer.weight", "output_layer.bias", "it has no output_layer.weight"),
        ("decoder.final_layernorm.weight", "embedding.word_embeddings.weight", "its configuration says"),
    ],
)
def test_other_parameters_are_not_exported(
    megatron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, new_name: str | None, reason: str
) -> None:
    checkpoint = read_checkpoint(megatron)
    moved = checkpoint.tensors.pop(name)
    if new_name is not None:
        checkpoint.tensors[new_name] = moved
    monkeypatch.setattr(to_huggingface, "read_checkpoint", lambda _: checkpoint)
    with pytest.raises(NCAPluginError, match=reason):
        export_hf(megatron, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_prediction_of_several_tokens_and_names_by_layer(
    megatron: Path, hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As singleton_local_shards, separate norms and --mtp-num-layers store them."""
    checkpoint = read_checkpoint(megatron)
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        if not name.startswith("decoder.layers."):
            tensors[name] = tensor
            continue
        short = name.removeprefix("decoder.layers.").replace(
            "self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"
        )
        for layer in range(tensor.shape[0]):
            blocks = [
                dataclasses.replace(block, offsets=block.offsets[1:], shape=block.shape[1:], source=part)
                for block in tensor.blocks
                if block.offsets[0] == layer
                for part in [tensor.stored(block)]
                for part in [dataclasses.replace(part, shape=part.shape[1:], strides=part.strides[1:])]
            ]
            new = f"module.decoder.layers.{layer}.{short}"
            whole = dataclasses.replace(tensor, name=new, shape=tensor.shape[1:], blocks=tuple(blocks))
            if not short.endswith("fc1.weight"):
                tensors[new] = whole
                continue
            half = whole.shape[0] // 2
            for number, letter in enumerate("wv"):
                part = blocks[0].source.narrow(0, number * half, half)
                block = dataclasses.replace(blocks[0], shape=part.shape, source=part)
                tensors[f"{new}_{letter}"] = dataclasses.replace(whole, shape=part.shape, blocks=(block,))
    tensors["mtp.layers.0.enorm.weight"] = tensors["decoder.final_layernorm.weight"]
    checkpoint.tensors.clear()
    checkpoint.tensors.update(tensors)
    monkeypatch.setattr(to_huggingface, "read_checkpoint", lambda _: checkpoint)
    exported = export_hf(megatron, tmp_path / "out")
    assert_same_bits(hf_tensors(tmp_path / "out"), hf_tensors(hf))
    assert any("multi-token prediction are left out" in note for note in exported.notes)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "a model of type 'mistral'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"mlp_bias": True, "attention_bias": False}, "mlp_bias without attention_bias"),
        ({"attention_bias": False}, "says attention_bias=false, but there is 'model.layers.0.self_attn.k_proj.bias'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "of type 'linear'"),
        (
            {"rope_parameters": {**MODELS["query_bias"]["rope_parameters"], "high_freq_factor": 8.0}},
            "a scaling of rotary embeddings with",
        ),
        (
            {"rope_parameters": {**MODELS["query_bias"]["rope_parameters"], "factor": 32.0}},
            "a scaling of rotary embeddings by 32.0, but Megatron-LM computes with 8.0",
        ),
        ({"quantization_config": {"bits": 4}}, "a quantization_config"),
        ({"intermediate_size": 64}, r"gate_proj.weight' is \[96, 32\], its config.json says \[64, 32\]"),
        ({"num_hidden_layers": 5}, "it has no 'model.layers.4"),
        ({"num_hidden_layers": 3}, "num_hidden_layers=3, but there are tensors of layers up to 3, which makes 4"),
        ({"num_hidden_layers": 1}, "num_hidden_layers=1, but there are tensors of layers up to 3, which makes 4"),
        ({"hidden_size": "32"}, "config.json does not describe a Llama"),
    ],
)
def test_other_hugging_face_models_are_not_imported(
    hf: Path, tmp_path: Path, values: dict[str, Any], reason: str
) -> None:
    shutil.copytree(hf, tmp_path / "hf")
    config = json.loads((hf / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "rope_scaling": None, **values}))
    with pytest.raises(NCAPluginError, match=reason) as error:
        import_hf(tmp_path / "hf", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_damaged_hugging_face_folders_are_refused(hf: Path, tmp_path: Path) -> None:
    def refused(reason: str) -> None:
        with pytest.raises(NCAPluginError, match=reason):
            import_hf(tmp_path / "hf", tmp_path / "out")

    refused("does not exist")
    shutil.copytree(hf, tmp_path / "hf")
    weights = tmp_path / "hf" / "model.safetensors"
    # What safetensors has loaded may still be the file, which is written to below.
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    bias = "model.layers.1.self_attn.o_proj.bias"
    save_file({**tensors, bias: tensors[bias] + 1}, weights)
    refused("o_proj.bias' is not zero")
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"].double()}, weights)
    refused("'model.norm.weight' is stored as F64")
    save_file(
        {**tensors, "model.layers.2.mlp.up_proj.weight": tensors["model.layers.2.mlp.up_proj.weight"].half()}, weights
    )
    refused("up_proj.weight' is stored as F16, others of its kind as F32")
    weights.write_bytes((hf / "model.safetensors").read_bytes()[:-8])
    refused("model.safetensors is damaged")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    weights.unlink()
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}))
    refused("model-00001-of-00002.safetensors is missing")
    index.unlink()
    (tmp_path / "hf" / "pytorch_model.bin").touch()
    refused("its weights are pickled")
    (tmp_path / "hf" / "config.json").unlink()
    refused("config.json is missing")


def test_the_command(hf: Path, megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def export(*arguments: object) -> str:
        app(["export", *map(str, arguments)], standalone_mode=False)
        return capsys.readouterr().out

    said = export(megatron, tmp_path / "hf", "--to", "hf")
    assert "a Llama of 4 layers" in said and "the biases of o_proj" in said
    assert_same_bits(hf_tensors(tmp_path / "hf"), hf_tensors(hf))
    said = export(hf, tmp_path / "megatron", "--from", "hf", "--make-vocab-size-divisible-by", 32, "--seed", 5)
    assert "100 ids in 128 rows" in said and "--use-checkpoint-args --norm-epsilon 1e-06 --use-rope-scaling" in said
    for arguments, reason in (
        ((), "the direction is missing"),
        (("--to", "hf", "--from", "hf"), "the direction is missing"),
        (("--to", "gguf"), "the direction is missing"),
        (("--to", "hf", "--seed", 1), "--seed has no meaning with --to hf"),
        (("--from", "hf", "--vocab-size", 1), "--vocab-size has no meaning with --from hf"),
        (("--from", "hf", "--tensor-model-parallel-size", 0), "must be at least 1"),
        (("--to", "hf", "--vocab-size", 1000), "the checkpoint has 128 rows"),
    ):
        with pytest.raises(NCAPluginError, match=reason):
            export(megatron if "--to" in arguments else hf, tmp_path / "refused", *arguments)
    assert not (tmp_path / "refused").exists()
