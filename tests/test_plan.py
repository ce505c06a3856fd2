"""Which entries of a checkpoint are kept, drawn anew and dropped."""

import pytest

from nca_plugin.checkpoint.plan import plan_transfer
from nca_plugin.errors import NCAPluginError

MODEL = {
    "embedding.word_embeddings.weight": "embedding",
    "embedding.position_embeddings.weight": "position",
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight": "norm",
    "decoder.layers.self_attention.linear_qkv.weight": "attention",
    "decoder.layers.self_attention.linear_proj.bias": "attention",
    "decoder.layers.self_attention.q_layernorm.weight": "norm",
    "decoder.layers.3.self_attention.linear_proj.weight": "attention",
    "decoder.layers.mlp.linear_fc1.layer_norm_bias": "norm",
    "decoder.layers.mlp.linear_fc2.weight": "mlp",
    "decoder.final_layernorm.weight": "norm",
    "output_layer.weight": "output",
}
RUN = ("optimizer.state.exp_avg.output_layer.weight", "rng_state/shard_0.0_1.1", "common_state/shard_0_1")
EXTRA = "decoder.layers.mlp.linear_fc1._extra_state/shard_0_4"


def actions(**options: list[str]) -> dict[str, str]:
    return {step.name: step.action for step in plan_transfer([*MODEL, *RUN, EXTRA], **options)}


def test_roles() -> None:
    assert {s.name: s.role for s in plan_transfer([*MODEL, *RUN, EXTRA]) if s.role} == MODEL


@pytest.mark.parametrize(
    ("options", "reinitialised"),
    [
        ({}, {"embedding", "output"}),
        ({"keep": ["attention"]}, set(MODEL.values()) - {"attention"}),
        ({"keep": ["embedding", "output", "norm"]}, {"attention", "mlp", "position"}),
        ({"keep": ["all"]}, set()),
        ({"reinit": ["attention"]}, {"embedding", "output", "attention"}),
        ({"reinit": ["all"]}, set(MODEL.values())),
        ({"reinit": ["all"], "keep": ["mlp"]}, set(MODEL.values()) - {"mlp"}),
    ],
)
def test_selectors(options: dict[str, list[str]], reinitialised: set[str]) -> None:
    found = actions(**options)
    for name, role in MODEL.items():
        assert found[name] == ("reinit" if role in reinitialised else "keep"), name
    assert all(found[name] == "drop" for name in RUN)
    assert found[EXTRA] == "keep"


def test_what_is_not_known_is_listed_and_refused() -> None:
    with pytest.raises(NCAPluginError, match=r"1 checkpoint entries .*: decoder\.layers\.mixer\.in_proj\.weight"):
        plan_transfer([*MODEL, "decoder.layers.mixer.in_proj.weight"])


def test_a_selector_that_matches_nothing_is_refused() -> None:
    tied = [name for name in MODEL if not name.startswith("output_layer")]
    with pytest.raises(NCAPluginError, match="'output' matches nothing"):
        plan_transfer(tied, reinit=["output"])
