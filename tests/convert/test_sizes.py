"""Released models are recognised by the shapes of their tensors alone, without a byte of weights."""

from __future__ import annotations

import pytest

import jaxvit
from convert.copies import find_models
from convert.naming import check_complete, recognise
from convert.sizes import plan_model
from jaxvit.checkpoint import named_leaves
from jaxvit.vit import abstract


def meta_shapes(config: jaxvit.ViTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in Meta's file of a model, by key."""
    width, rope = config.width, config.position == "rope"
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    if config.feed_forward == "mlp":
        layers |= {"mlp.fc1": (config.mlp_dim, width), "mlp.fc2": (width, config.mlp_dim)}
    elif rope:
        layers |= {"mlp.w1": (config.mlp_dim, width), "mlp.w2": (config.mlp_dim, width), "mlp.w3": (width, config.mlp_dim)}
    else:
        layers |= {"mlp.w12": (2 * config.mlp_dim, width), "mlp.w3": (width, config.mlp_dim)}
    block: dict[str, tuple[int, ...]] = {f"norm{n}.{leaf}": (width,) for n in (1, 2) for leaf in ("weight", "bias")}
    block |= {f"{name}.weight": shape for name, shape in layers.items()} | {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    if config.layer_scale:
        block |= {f"ls{n}.gamma": (width,) for n in (1, 2)}
    if not config.qkv_bias:
        del block["attn.qkv.bias"]
    elif rope:
        block["attn.qkv.bias_mask"] = (3 * width,)
    shapes: dict[str, tuple[int, ...]] = {f"blocks.{i}.{key}": shape for i in range(config.depth) for key, shape in block.items()}
    shapes |= {"cls_token": (1, 1, width), "norm.weight": (width,), "norm.bias": (width,), "mask_token": (1, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, config.patch_size, config.patch_size), "patch_embed.proj.bias": (width,)}
    if config.registers:
        shapes["storage_tokens" if rope else "register_tokens"] = (1, config.registers, width)
    if rope:
        return shapes | {"rope_embed.periods": (config.head_width // 4,), "local_cls_norm.weight": (width,)}
    return shapes | {"pos_embed": (1, 1 + config.table_side**2, width)}


@pytest.mark.parametrize("name", jaxvit.MODELS)
def test_released_models_are_read_off_their_shapes(name):
    config = jaxvit.MODELS[name]
    shapes = meta_shapes(config)
    layout = recognise(find_models(shapes)[0].keys)
    assert layout.name == ("meta_v3" if config.position == "rope" else "meta")
    plan = plan_model(layout, shapes, heads=None, name=name if "sat493m" in name else None, oracle=None, settings=None)
    assert plan.config == config
    leaves = named_leaves(abstract(config))
    rules = {leaf: rule for leaf, rule in plan.rules.items() if leaf in leaves}
    assert rules.keys() | plan.computed.keys() == leaves.keys()
    check_complete(layout, rules, config.depth, shapes)
    assert plan_model(layout, shapes, heads=None, name=name, oracle=None, settings=None).config == config


def test_a_name_of_other_sizes_is_refused():
    shapes = meta_shapes(jaxvit.MODELS["dinov2_vits14"])
    layout = recognise(shapes)
    for name in ("dinov2_vits14_reg", "dino_vits16", "dinov3_vits16"):
        with pytest.raises(ValueError, match=f"this is not {name}"):
            plan_model(layout, shapes, heads=None, name=name, oracle=None, settings=None)


def test_a_missing_register_is_noticed_where_every_release_has_them():
    shapes = meta_shapes(jaxvit.MODELS["dinov3_vits16"])
    del shapes["storage_tokens"]
    with pytest.raises(ValueError, match="missing key storage_tokens"):
        plan_model(recognise(shapes), shapes, heads=None, name=None, oracle=None, settings=None)
