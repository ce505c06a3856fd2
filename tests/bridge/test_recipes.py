"""Real recipes of Megatron-Bridge, made small by overrides alone, train on sources."""

import json
from pathlib import Path

import pytest
from stacks import BRIDGE_LAUNCHER, BRIDGE_SETTINGS, start

from nca_plugin.text.prepare import Corpus, prepare

SMALL = (
    *("model.num_layers=2", "model.hidden_size=64", "model.ffn_hidden_size=128", "model.num_attention_heads=4"),
    *("model.num_query_groups=2", "model.kv_channels=16", "model.seq_length=128"),
    *("model.tensor_model_parallel_size=1", "model.pipeline_model_parallel_size=1", "model.sequence_parallel=false"),
    *("train.train_iters=10", "train.global_batch_size=8", "train.micro_batch_size=2", "dataset.num_workers=1"),
    *("validation.eval_iters=1", "validation.eval_interval=5", "logger.log_interval=1", "scheduler.lr_warmup_iters=1"),
    *("optimizer.lr=3e-3", "checkpoint.save=null", "checkpoint.load=null", "logger.tensorboard_log_interval=1"),
)
EXPERTS = (
    *("model.num_moe_experts=8", "model.moe_router_topk=2", "model.moe_ffn_hidden_size=64"),
    *("model.expert_model_parallel_size=2", "model.expert_tensor_parallel_size=1"),
)


@pytest.mark.parametrize(
    ("recipe", "settings", "ranks"),
    [
        ("llama32_1b_pretrain_config", (), 1),
        ("qwen3_600m_pretrain_config", (), 1),
        # As many experts on each of two ranks.
        ("qwen3_30b_a3b_pretrain_config", EXPERTS, 2),
    ],
)
def test_a_recipe_trains_on_nca(tmp_path: Path, recipe: str, settings: tuple[str, ...], ranks: int) -> None:
    command = [BRIDGE_LAUNCHER, "--recipe", recipe, "data.source=nca", "data.nca.preset=toy", *SMALL, *settings]
    run = start(tmp_path, [*command, f"logger.tensorboard_dir={tmp_path / 'tensorboard'}"], ranks=ranks)
    losses = run.losses
    assert list(losses) == list(range(1, 11))
    assert losses[10] < losses[1] - 0.2
    line = f"training on {10 * 8 * 128:,} tokens of nca://toy (vocabulary 18, "
    assert run.log.count(line) == 1
    assert "nca-plugin: CPU mode sets model.transformer_layer_spec=local" in run.log
    assert max(run.largest_ids) < 18


OFFSET = 257


def test_a_blend_of_nca_and_text_in_a_yaml(tmp_path: Path) -> None:
    text = tmp_path / "text_document"
    rows = [json.dumps({"text": "All work and no play makes Jack a dull boy. " * 100})] * 20
    (tmp_path / "text.jsonl").write_text("\n".join(rows))
    prepare(Corpus(inputs=(str(tmp_path / "text.jsonl"),)), text)
    (tmp_path / "user.yaml").write_text(
        "dataset:\n"
        "  _target_: nca_plugin.bridge.SourceDatasetConfig\n"
        f"  data_path: [0.25, 'nca://toy?vocab_offset={OFFSET}', 0.75, {text}]\n"
        "  split: '90,10,0'\n"
        f"  path_to_cache: {tmp_path / 'cache'}\n"
        f"tokenizer: {{tokenizer_type: NullTokenizer, vocab_size: {OFFSET}}}\n"
        "model: {vocab_size: 512}\n"
        "train: {train_iters: 10}\n"
    )
    settings = (*BRIDGE_SETTINGS, "validation.eval_iters=0", "checkpoint.save=null")
    command = [BRIDGE_LAUNCHER, "--recipe", "vanilla_gpt_pretrain_config", "--config-file", tmp_path / "user.yaml"]
    run = start(tmp_path, [*command, *settings])
    # An id of the text is below the offset, one of the source is not.
    assert len(run.largest_ids) == 80
    assert sum(largest >= OFFSET for largest in run.largest_ids) == 20
