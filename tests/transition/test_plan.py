"""Which entries of a checkpoint are kept, drawn anew and dropped."""

import pytest

from nca_plugin.checkpoint.names import SELECTORS, parameter
from nca_plugin.errors import NCAPluginError
from nca_plugin.transition.plan import PlannedEntry, plan_transfer
from nca_plugin.transition.presets import PRESETS

LAYERS = 4
#: Roles by name; what lies under `decoder.layers.` without a number holds all four layers.
MODEL = {
    "embedding.word_embeddings.weight": "embedding",
    "embedding.position_embeddings.weight": "position",
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight": "norm",
    "decoder.layers.self_attention.linear_qkv.weight": "attention.qkv",
    "decoder.layers.self_attention.linear_proj.bias": "attention.proj",
    "decoder.layers.self_attention.q_layernorm.weight": "norm",
    "decoder.layers.mlp.linear_fc1.layer_norm_bias": "norm",
    "decoder.layers.mlp.linear_fc2.weight": "mlp",
    "decoder.layers.mlp.router.weight": "router",
    "decoder.layers.mlp.experts.experts.linear_fc1.weight": "mlp",
    "decoder.layers.mlp.shared_experts.linear_fc1.weight": "mlp",
    "decoder.final_layernorm.weight": "final_norm",
    "mtp.layers.0.eh_proj.weight": "mtp",
    "output_layer.weight": "output",
}
#: Names that other architectures, layer specs and stacks store.
OTHER_NAMES = {
    "module.embedding.word_embeddings.weight": "embedding",
    "module.decoder.layers.mlp.linear_fc1.weight": "mlp",
    "decoder.layers.3.self_attention.linear_proj.weight": "attention.proj",
    "decoder.layers.input_layernorm.weight": "norm",
    "decoder.layers.2.pre_mlp_layernorm.weight": "norm",
    "decoder.layers.self_attention.linear_q_down_proj.weight": "attention.qkv",
    "decoder.layers.self_attention.linear_kv_up_proj.layer_norm_weight": "norm",
    "decoder.layers.self_attention.core_attention.softmax_offset": "attention.other",
    "decoder.layers.1.mlp.experts.experts.3.linear_fc1.weight_v": "mlp",
    "decoder.layers.0.mlp.experts.local_experts.1.linear_fc2.weight": "mlp",
    "decoder.layers.0.mlp.experts.linear_fc1.weight7": "mlp",
    "decoder.layers.mlp.router.expert_bias": "router",
    "decoder.layers.mlp.shared_experts.gate_weight": "router",
    "decoder.layers.0.mixer.conv1d.weight.x": "mamba",
    "decoder.layers.0.mixer.in_proj.layer_norm_weight": "norm",
    "decoder.final_norm.weight": "final_norm",
    "mtp.layers.0.transformer_layer.mlp.linear_fc1.weight": "mtp",
    "decoder.layers.mlp.linear_fc1._extra_state/shard_0_4": "module",
    "optimizer.state.exp_avg.output_layer.weight": "run",
    "chained_0.optimizer.distributed.dp_group_idx_0.gbuf_idx_0": "run",
    "rng_state/shard_0.0_1.1": "run",
    "common_state/shard_0_1": "run",
    "vision_model.patch_embed.weight": "unknown",
}
RUN = ("optimizer.state.exp_avg.output_layer.weight", "rng_state/shard_0.0_1.1", "common_state/shard_0_1")
EXTRA = "decoder.layers.mlp.linear_fc1._extra_state/shard_0_4"


def plan(model: dict[str, str] = MODEL, **options: list[str] | str) -> list[PlannedEntry]:
    shapes = {name: (LAYERS, 8) if parameter(name).is_stacked else (8, 8) for name in model}
    return plan_transfer(shapes, [*RUN, EXTRA], LAYERS, **options)


def actions(**options: list[str] | str) -> dict[str, set[str]]:
    """Return what happens to each role, to any of its layers."""
    found: dict[str, set[str]] = {}
    for step in plan(**options):
        found.setdefault(step.parameter.role, set()).add(step.action)
    return found


@pytest.mark.parametrize(("name", "role"), [*MODEL.items(), *OTHER_NAMES.items()])
def test_roles(name: str, role: str) -> None:
    assert parameter(name).role == role


def test_names_that_cut_a_tensor_otherwise_are_one_parameter() -> None:
    """Their new values come from one stream."""
    stacked = parameter("decoder.layers.mlp.experts.experts.linear_fc1.weight")
    single = parameter("module.decoder.layers.2.mlp.experts.experts.3.linear_fc1.weight_v")
    assert stacked.canonical == single.canonical
    assert (single.layer, single.expert, single.half, single.is_stacked) == (2, 3, 1, False)


@pytest.mark.parametrize(
    ("options", "reinitialised"),
    [
        ({}, {"embedding", "output"}),
        ({"preset": "release"}, {"embedding", "output"}),
        ({"preset": "matched"}, {"embedding", "output"}),
        ({"preset": "attention-only"}, set(MODEL.values()) - {"attention.qkv", "attention.proj"}),
        ({"preset": "mlp-only"}, set(MODEL.values()) - {"mlp", "router"}),
        ({"preset": "no-norm"}, {"embedding", "output", "norm", "final_norm"}),
        ({"preset": "scratch"}, set(MODEL.values())),
        ({"preset": "scratch", "keep": ["mlp"]}, set(MODEL.values()) - {"mlp"}),
        ({"preset": "mlp-only", "keep": ["norm"]}, set(MODEL.values()) - {"mlp", "router", "norm"}),
        ({"keep": ["embedding"]}, {"output"}),
        ({"keep": ["embedding", "output"]}, set()),
        ({"reinit": ["attention"]}, {"embedding", "output", "attention.qkv", "attention.proj"}),
        ({"reinit": ["attention.proj"]}, {"embedding", "output", "attention.proj"}),
        ({"reinit": ["attention"], "keep": ["attention.qkv"]}, {"embedding", "output", "attention.proj"}),
        ({"reinit": ["re:decoder[.].*bias"], "keep": ["output"]}, {"embedding", "attention.proj", "norm"}),
    ],
)  # fmt: skip
def test_presets_and_selectors(options: dict[str, list[str]], reinitialised: set[str]) -> None:
    found = actions(**options)
    for role in set(MODEL.values()):
        assert ("reinit" in found[role]) == (role in reinitialised), role
    assert found["run"] == {"drop"}
    assert found["module"] == {"keep"}


def test_every_preset_says_what_it_does() -> None:
    assert all(preset.about for preset in PRESETS.values())
    assert {role.split(".")[0] for role in set(MODEL.values())} <= set(SELECTORS)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"reinit": ["mlp[0:2]"]}, [("reinit", (0, 2)), ("keep", (2, 4))]),
        ({"reinit": ["mlp[2:]"]}, [("keep", (0, 2)), ("reinit", (2, 4))]),
        ({"reinit": ["mlp[:1]"]}, [("reinit", (0, 1)), ("keep", (1, 4))]),
        ({"reinit": ["mlp[2]"]}, [("keep", (0, 2)), ("reinit", (2, 3)), ("keep", (3, 4))]),
        ({"reinit": ["mlp"], "keep": ["mlp[1:3]"]}, [("reinit", (0, 1)), ("keep", (1, 3)), ("reinit", (3, 4))]),
        ({"reinit": ["mlp[0:1]", "mlp[3:4]"]}, [("reinit", (0, 1)), ("keep", (1, 3)), ("reinit", (3, 4))]),
        ({}, [("keep", (0, 4))]),
    ],
)
def test_ranges_of_layers(options: dict[str, list[str]], layers: list[tuple[str, tuple[int, int]]]) -> None:
    found = [step for step in plan(**options) if step.name == "decoder.layers.mlp.linear_fc2.weight"]
    assert [(step.action, step.layers) for step in found] == layers


def test_ranges_select_layers_with_names_of_their_own() -> None:
    names = {f"decoder.layers.{layer}.mlp.linear_fc1.weight": "mlp" for layer in range(LAYERS)}
    found = {step.name: step.action for step in plan(names, reinit=["mlp[1:3]"])}
    assert [found[name] for name in names] == ["keep", "reinit", "reinit", "keep"]


def test_what_is_not_known_is_listed_and_refused_unless_selected() -> None:
    model = {**MODEL, "vision_model.patch_embed.weight": ""}
    with pytest.raises(NCAPluginError, match=r"1 entries .*: vision_model\.patch_embed\.weight; say what to do .*re:"):
        plan(model)
    for action in ("keep", "drop", "reinit"):
        found = {step.name: step.action for step in plan(model, **{action: ["re:vision_model.*"]})}
        assert found["vision_model.patch_embed.weight"] == action


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"reinit": ["attnetion"]}, "unknown selector 'attnetion': choose from embedding, position"),
        ({"preset": "realease"}, "unknown preset 'realease': choose from default"),
        ({"reinit": ["mlp"], "keep": ["mlp"]}, "contradicts"),
        ({"reinit": ["mamba"]}, "'mamba' matches nothing"),
        ({"reinit": ["re:no[.]such.*"]}, "matches nothing"),
        ({"reinit": ["re:(("]}, r"selector 're:\(\(': "),
        ({"reinit": ["mlp[2:9]"]}, "names layers that are not there: the model has layers 0 to 3"),
        ({"reinit": ["mlp[3:1]"]}, "names layers that are not there"),
        ({"reinit": ["mlp[]"]}, "names layers that are not there"),
        ({"reinit": ["output[0:2]"]}, "matches nothing"),
        ({"keep": ["attention"]}, "--keep attention changes nothing: .* to keep nothing else, add --reinit all"),
        ({"reinit": ["embedding"]}, "--reinit embedding changes nothing"),
        ({"reinit": ["mlp", "mlp[0:2]"]}, r"--reinit mlp\[0:2\] changes nothing"),
    ],
)
def test_selectors_that_cannot_be_meant_are_refused(options: dict[str, list[str]], reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason):
        plan(**options)
