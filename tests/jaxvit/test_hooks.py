"""Edits and moments at every site are those of hooks on transformers' modules with the weights of the golden fixtures."""

from __future__ import annotations

import functools
import importlib

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import jaxvit
from convert import convert
from jaxvit.sites import HEAD_SITES, NOISE_NUMBERS, SITES, width_at
from tests.draws import normal

transformers = pytest.importorskip("transformers", reason="the oracle of these tests is transformers")

TOLERANCE = 5e-6
GOLDEN = {"dinov2_reg_p14": 70, "dinov3_p16": 64, "dinov3_plus_p16": 64}  # names and the size that no position table is resized for
SEED, IDS = 5, np.array([11, 4])


class Hooked:
    """A model of transformers; `edit(layer, site, x)` [batch, tokens, channels] gives what stands at a site, and `weigh(layer, module, q,
    k, v, scaling)` [batch, heads, tokens, width] what attention gives, or None for PyTorch's."""

    def __init__(self, meta: dict, weights: dict[str, torch.Tensor]):
        sizes = {"hidden_size": meta["embed_dim"], "num_attention_heads": meta["num_heads"], "num_hidden_layers": meta["depth"]}
        more = {"patch_size": meta["patch_size"], "num_register_tokens": meta["num_register_tokens"], "attn_implementation": "hooked"}
        if meta["family"] == "dinov3":
            gated = "blocks.0.mlp.w1.bias" in weights
            more |= {"use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu", "layer_norm_eps": meta["layer_norm_eps"]}
            more["intermediate_size"] = len(weights[f"blocks.0.mlp.{'w1' if gated else 'fc1'}.bias"])
            config = transformers.DINOv3ViTConfig(**sizes, **more)
            self.model = transformers.DINOv3ViTModel(config).eval()
            self.layers = self.model.model.layer
            self.model.rope_embeddings.inv_freq = 1 / weights["rope_embed.periods"]
        else:
            config = transformers.Dinov2WithRegistersConfig(**sizes, **more, image_size=meta["image_size"], layer_norm_eps=1e-6)
            self.model = transformers.Dinov2WithRegistersModel(config).eval()
            self.layers = self.model.encoder.layer
        self._load(weights)
        for number, layer in enumerate(self.layers):
            down = layer.mlp.down_proj if meta["family"] == "dinov3" else layer.mlp.fc2
            layer.attention.edit = lambda site, x, number=number: self.edit(number, site, x)
            layer.attention.weigh = lambda *arguments, number=number: self.weigh and self.weigh(number, *arguments)
            layer.register_forward_pre_hook(self._before("block_input", number))
            layer.layer_scale1.register_forward_hook(self._after("attention_output", number))
            down.register_forward_pre_hook(self._before("mlp_hidden", number))
            layer.layer_scale2.register_forward_hook(self._after("mlp_output", number))
            layer.register_forward_hook(self._after("block_output", number))

    def __call__(self, images: np.ndarray, edit, weigh=None) -> np.ndarray:
        self.edit, self.weigh = edit, weigh
        with torch.no_grad():
            return self.model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state.numpy()

    def _before(self, site, number):
        return lambda module, arguments: (self.edit(number, site, arguments[0]), *arguments[1:])

    def _after(self, site, number):
        return lambda module, arguments, output: self.edit(number, site, output)

    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        """Meta's keys as transformers names them."""
        names = {"attn.proj": "attention.o_proj", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
        embeddings = {"storage_tokens": "register_tokens", "pos_embed": "position_embeddings"}
        state = self.model.state_dict()
        for key, value in weights.items():
            if key.startswith("blocks."):
                _, number, rest = key.split(".", 2)
                target = self.layers[int(number)]
                if rest.startswith("attn.qkv"):
                    leaf = rest.rsplit(".", 1)[1]
                    for name, part in zip("qkv", value.chunk(3), strict=True):
                        linear = getattr(target.attention, f"{name}_proj")
                        if leaf in ("weight", "bias") and getattr(linear, leaf) is not None:
                            getattr(linear, leaf).data.copy_(part)
                    continue
                for ours, theirs in names.items():
                    rest = rest.replace(ours, theirs)
                own = dict(target.named_parameters())
                for ours, theirs in (("fc1", "up_proj"), ("fc2", "down_proj"), ("w1", "gate_proj"), ("w2", "up_proj"), ("w3", "down_proj")):
                    rest = rest if rest in own else rest.replace(f"mlp.{ours}", f"mlp.{theirs}")
                own[rest].data.copy_(value)
            elif key.startswith("patch_embed.proj"):
                leaf = key.rsplit(".", 1)[1]
                (target,) = (state[name] for name in state if "patch_embeddings" in name and name.endswith(leaf))
                target.copy_(value)
            elif key.startswith("norm."):
                norm = getattr(self.model, "layernorm", None) or self.model.norm
                getattr(norm, key.split(".")[1]).data.copy_(value)
            elif "rope" not in key and key != "mask_token":
                state[f"embeddings.{embeddings.get(key, key)}"].copy_(value)


def hooked_attention(module, q, k, v, mask, scaling, **options):
    """PyTorch's attention with hooks around it, in the form in which transformers takes one."""

    def edited(site, x):  # [batch, heads, tokens, width]
        x = x.transpose(1, 2)
        return module.edit(site, x.flatten(2)).reshape(x.shape).transpose(1, 2)

    q, k, v = edited("query", q), edited("key", k), edited("value", v)
    output = module.weigh(module, q, k, v, scaling)
    if output is None:
        output = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling)
    return edited("head_output", output).transpose(1, 2), None


transformers.AttentionInterface.register("hooked", hooked_attention)


def unedited(layer, site, x):
    return x


@pytest.fixture(scope="module")
def pairs(golden, tmp_path_factory):
    """Our model, theirs, and images of the size that the fixture was recorded at."""

    @functools.cache
    def pair(name):
        meta, path = golden(name)
        ours = jaxvit.load(convert(path, tmp_path_factory.mktemp(name) / "ours", heads=meta["num_heads"]))
        weights = torch.load(path)
        size = GOLDEN[name]
        theirs = Hooked(meta, weights)
        recorded = load_file(path.with_suffix(".outputs.safetensors"))
        images = recorded[f"{size}x{size}/images"].transpose(0, 2, 3, 1)
        tokens = theirs(images, unedited)
        np.testing.assert_allclose(tokens, recorded[f"{size}x{size}/normed"], atol=2e-5, err_msg="the oracle is not the recorded model")
        return ours, theirs, np.asarray(normal(3, 2, size, size, 3))

    return pair


def conditions(config, size, partly):
    """Every kind at every site: (ablation, channels as indices, and what a hook puts there: a function of (x, layer))."""
    layout = jaxvit.TokenLayout.of(config, size)
    rng = np.random.default_rng(1)
    mean, variance = ({s: np.float32(rng.random((config.depth, len(layout.groups), width_at(s, config)))) for s in SITES} for _ in "mv")
    moments = jaxvit.Moments(mean, variance, 1, (size, size))
    found = {}
    for site in SITES:
        width, head = width_at(site, config), config.width // config.heads
        chosen, where = np.arange(width), {"layers": [0, config.depth - 1], "at": site}
        if partly and site in HEAD_SITES:
            where["heads"], chosen = [1], chosen[head : 2 * head]
        elif partly:
            where["channels"], chosen = [1, width - 2], chosen[[1, width - 2]]
        tokens = ["cls", "registers[1]", "patches[3]", "patches[5]"]
        rotated = config.position == "rope" and site in ("query", "key")
        calm = tokens[:2] if rotated else tokens
        vectors = np.float32(rng.normal(size=(config.depth, len(tokens), width)))
        slots = [0, 2] if rotated else [0, 2, layout.prefix, layout.prefix]

        def drawn(x, layer, site=site, slots=slots, calm=calm):
            key = jax.random.key(SEED)
            key = jax.random.fold_in(key, NOISE_NUMBERS[site]) if site in NOISE_NUMBERS else key
            keys = [jax.random.fold_in(jax.random.fold_in(key, layer), i) for i in IDS]
            draws = np.stack([jax.random.normal(k, x.shape[1:]) for k in keys])[:, list(layout.positions(calm))]
            return mean[site][layer, slots] + np.sqrt(variance[site][layer, slots]) * draws

        def swapped(x, layer, tokens=tokens):
            return x.numpy()[::-1, list(layout.positions(tokens))]

        found |= {
            (site, "zero"): (jaxvit.zero(tokens, **where), tokens, chosen, lambda x, layer: 0.0),
            (site, "constant"): (jaxvit.constant(tokens, vectors, **where), tokens, chosen, lambda x, layer, v=vectors: v[layer]),
            (site, "mean"): (jaxvit.mean(calm, moments, **where), calm, chosen, lambda x, layer, s=site, g=slots: mean[s][layer, g]),
            (site, "noise"): (jaxvit.noise(calm, moments, SEED, **where), calm, chosen, drawn),
            (site, "shuffle"): (jaxvit.shuffle(tokens, SEED, **where), tokens, chosen, swapped),
        }
    return found


@pytest.mark.parametrize(("name", "partly"), [("dinov2_reg_p14", False), ("dinov3_p16", False), ("dinov3_plus_p16", True)])
def test_every_kind_at_every_site_is_a_hook(name, partly, pairs, record_parity):
    ours, theirs, images = pairs(name)
    table = conditions(ours.config, GOLDEN[name], partly)
    edits = jaxvit.stack([ablation for ablation, *_ in table.values()], ours, GOLDEN[name])
    layout, clean = edits.layout, theirs(images, unedited)
    with jax.default_matmul_precision("highest"):
        tokens = jax.vmap(lambda e: jaxvit.forward(ours, images, e, example_ids=IDS).tokens)(edits)
    worst: dict[str, float] = {}
    for got, ((site, kind), (_, selector, chosen, target)) in zip(np.asarray(tokens), table.items(), strict=True):
        positions = list(layout.positions(selector))

        def edit(layer, here, x, site=site, positions=positions, chosen=chosen, target=target):
            if here != site or layer not in (0, ours.config.depth - 1):
                return x
            new, value = x.clone(), np.broadcast_to(target(x, layer), (len(x), len(positions), x.shape[-1]))
            new[:, np.array(positions)[:, None], chosen] = torch.from_numpy(np.float32(value[..., chosen]))
            return new

        want = theirs(images, edit)
        assert np.abs(want - clean).max() > 1e-3, f"the hook does nothing: {kind} at {site}"
        error = float(np.abs(got - want).max() / max(1, np.abs(want).max()))
        worst[site] = max(worst.get(site, 0), error)
        assert error <= TOLERANCE, f"{kind} at {site}"
    for site, error in worst.items():
        record_parity(name, f"{site}, {'some channels' if partly else 'whole tokens'}", error, TOLERANCE)


def more_conditions(config, size, partly):
    """Kinds that read what is given or what stands there, at every site: (ablation, given arrays, what a hook makes of (x, layer))."""
    layout = jaxvit.TokenLayout.of(config, size)
    rng = np.random.default_rng(2)
    sink = np.array([[layout.prefix + 3, 1], [layout.prefix + 5, -1]], np.int32)
    tokens, positions = ["patches[5]", "registers[1]", "cls"], [layout.prefix + 5, 2, 0]
    found = {}
    for site in SITES:
        width, head = width_at(site, config), config.width // config.heads
        chosen, where = np.arange(width), {"layers": [0, config.depth - 1], "at": site}
        if partly and site in HEAD_SITES:
            where["heads"], chosen = [1], chosen[head : 2 * head]
        elif partly:
            where["channels"], chosen = [1, width - 2], chosen[[1, width - 2]]
        donor = np.float32(rng.normal(size=(2, 3, width)))

        def put(x, rows, columns, new, chosen=chosen):
            x[np.asarray(rows)[..., None], np.asarray(columns)[..., None], chosen] = new[..., chosen]
            return x

        def patched(x, layer, put=put, donor=donor):
            return put(x, [[0] * 3, [1] * 3], [positions] * 2, donor)

        def patched_at_sinks(x, layer, put=put, donor=donor):
            return put(x, [0, 0, 1], [sink[0, 0], sink[0, 1], sink[1, 0]], donor[[0, 0, 1], [0, 1, 0]])

        vector = np.float32(rng.normal(size=width))

        def own_norm(x, layer, put=put, vector=vector, chosen=chosen, heads=config.heads if site in HEAD_SITES else 1):
            before = x[:, positions].reshape(2, 3, heads, -1)
            new = np.where(np.isin(np.arange(len(vector)), chosen), vector, 0).reshape(heads, -1)
            before = np.where(new == 0, 0, before)
            lengths = [np.linalg.norm(a, axis=-1, keepdims=True) for a in (before, new)]
            new = (new * lengths[0] / np.where(lengths[1] > 0, lengths[1], 1)).reshape(2, 3, -1)
            return put(x, [[0] * 3, [1] * 3], [positions] * 2, new)

        def touched(x, change, put=put):
            return put(x, [[0] * 3, [1] * 3], [positions] * 2, change(x[:, positions]))

        given = {f"donor at {site}": donor, f"two at {site}": donor[:, :2], "sink": sink}
        found |= {
            (site, "patch"): (jaxvit.patch(tokens, f"donor at {site}", **where), given, patched),
            (site, "own"): (jaxvit.constant(tokens, vector, norm="own", **where), {}, own_norm),
            (site, "add"): (
                jaxvit.add(tokens, vector, -2, **where),
                {},
                lambda x, layer, v=vector, touched=touched: touched(x, lambda y: y - 2 * v),
            ),
            (site, "scale"): (
                jaxvit.scale(tokens, 3, **where),
                {},
                lambda x, layer, touched=touched: touched(x, lambda y: 3 * y),
            ),
            (site, "swap"): (  # at one block: to exchange two tokens twice is to exchange nothing
                jaxvit.swap(tokens[0], tokens[1], **(where | {"layers": [0]})),
                {},
                lambda x, layer, touched=touched: x if layer else touched(x, lambda y: y[:, [1, 0, 2]]),
            ),
            (site, "positions"): (jaxvit.patch(jaxvit.Positions("sink"), f"two at {site}", **where), given, patched_at_sinks),
        }
    return found


@pytest.mark.parametrize(("name", "partly"), [("dinov2_reg_p14", False), ("dinov3_plus_p16", True)])
def test_every_kind_that_reads_what_is_given_or_what_stands_there_is_a_hook(name, partly, pairs, record_parity):
    ours, theirs, images = pairs(name)
    table = more_conditions(ours.config, GOLDEN[name], partly)
    edits = jaxvit.stack([ablation for ablation, *_ in table.values()], ours, GOLDEN[name])
    given, clean = {name: array for _, arrays, _ in table.values() for name, array in arrays.items()}, theirs(images, unedited)
    with jax.default_matmul_precision("highest"):
        tokens = jax.vmap(lambda e: jaxvit.forward(ours, images, e, given=given).tokens)(edits)
    worst = 0.0
    for got, ((site, kind), (_, _, changed)) in zip(np.asarray(tokens), table.items(), strict=True):

        def edit(layer, here, x, site=site, changed=changed):
            return torch.from_numpy(changed(x.numpy().copy(), layer)) if here == site and layer in (0, ours.config.depth - 1) else x

        want = theirs(images, edit)
        assert np.abs(want - clean).max() > 1e-3, f"the hook does nothing: {kind} at {site}"
        worst = max(worst, error := float(np.abs(got - want).max() / max(1, np.abs(want).max())))
        assert error <= TOLERANCE, f"{kind} at {site}"
    record_parity(name, f"given, {'some channels' if partly else 'whole tokens'}", worst, TOLERANCE)


def test_a_patch_from_the_clean_stream_is_a_hook_that_puts_back_what_a_clean_run_had(pairs, record_parity):
    name = "dinov2_reg_p14"
    ours, theirs, images = pairs(name)
    last, positions, clean = ours.config.depth - 1, [8, 2, 0], {}
    theirs(images, lambda layer, site, x: (clean.setdefault((layer, site), x.clone()), x)[1])
    zeroed, tokens = jaxvit.zero("registers", [0]), ["patches[3]", "registers[1]", "cls"]
    assert list(jaxvit.TokenLayout.of(ours.config, GOLDEN[name]).in_order(tokens)) == positions
    edits = jaxvit.stack([zeroed & jaxvit.patch(tokens, "clean", [last], site) for site in SITES], ours, GOLDEN[name])
    with jax.default_matmul_precision("highest"):
        ablated = jax.vmap(lambda e: jaxvit.contrast(ours, images, e).ablated.tokens)(edits)
    worst = 0.0
    for got, site in zip(np.asarray(ablated), SITES, strict=True):

        def edit(layer, here, x, site=site):
            x = x.clone()
            if (layer, here) == (0, "block_output"):
                x[:, 1 : 1 + ours.config.registers] = 0
            if (layer, here) == (last, site):
                x[:, positions] = clean[layer, site][:, positions]
            return x

        want = theirs(images, edit)
        worst = max(worst, error := float(np.abs(got - want).max() / max(1, np.abs(want).max())))
        assert error <= TOLERANCE, site
    record_parity(name, "patch from the clean stream", worst, TOLERANCE)


def cuts(config, size):
    """Cuts, and what transformers' eager attention or a plain statement in torch gives in their place, by name."""
    layout, last = jaxvit.TokenLayout.of(config, size), config.depth - 1
    everyone, readers = ["cls", "registers", "patches"], ["cls", "patches"]

    def chosen(queries, keys, heads=None, itself=True):
        cut = torch.zeros(config.heads, layout.tokens, layout.tokens)
        cut[:, torch.tensor(layout.positions(queries))[:, None], torch.tensor(layout.positions(keys))] = 1
        if heads is not None:
            cut[[head for head in range(config.heads) if head not in heads]] = 0
        return cut if itself else cut * (1 - torch.eye(layout.tokens))

    def masked(*cuts):
        """transformers' eager attention with minus infinity added where a cut is."""
        added = torch.zeros_like(cuts[0]).masked_fill(sum(cuts) > 0, -torch.inf)[None]

        def weigh(layer, module, q, k, v, scaling):
            eager = importlib.import_module(type(module).__module__).eager_attention_forward
            return eager(module, q, k, v, added, scaling)[0].transpose(1, 2) if layer in (0, last) else None

        return weigh

    def stated(cut, receivers=None):
        """Attention with the weight of a cut lost or given to receivers."""

        def weigh(layer, module, q, k, v, scaling):
            if layer not in (0, last):
                return None
            weights = torch.softmax(q @ k.transpose(-1, -2) * scaling, dim=-1)
            left = weights * (1 - cut)
            if receivers is not None:
                left[..., receivers] += (weights * cut).sum(dim=-1, keepdim=True) / len(receivers)
            return left @ v

        return weigh

    where = {"layers": [0, last]}
    return {
        "renormalised": (jaxvit.cut(readers, "registers", **where), masked(chosen(readers, "registers"))),
        "by head": (jaxvit.cut("cls", "patches", heads=[1], **where), masked(chosen("cls", "patches", [1]))),
        "composed": (
            jaxvit.cut("cls", "registers", **where) & jaxvit.cut("patches", ["cls", "patches[3]"], itself=False, **where),
            masked(chosen("cls", "registers"), chosen("patches", ["cls", "patches[3]"], itself=False)),
        ),
        "lost": (jaxvit.cut(everyone, "registers[1]", mass="lost", **where), stated(chosen(everyone, "registers[1]"))),
        "received": (
            jaxvit.cut("patches", "registers", heads=[0], mass=["cls", "patches[2]"], **where),
            stated(chosen("patches", "registers", [0]), list(layout.positions(["cls", "patches[2]"]))),
        ),
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_cuts_are_eager_attention_with_an_additive_mask_or_its_weights_taken_away(name, pairs, record_parity):
    ours, theirs, images = pairs(name)
    table, clean = cuts(ours.config, GOLDEN[name]), theirs(images, unedited)
    for label, (ablation, weigh) in table.items():
        with jax.default_matmul_precision("highest"):
            got = np.asarray(jaxvit.forward(ours, images, ablation).tokens)
        want = theirs(images, unedited, weigh)
        assert np.abs(want - clean).max() > 1e-3, f"the cut does nothing: {label}"
        error = float(np.abs(got - want).max() / max(1, np.abs(want).max()))
        assert error <= TOLERANCE, label
        record_parity(name, f"attention cut, {label}", error, TOLERANCE)


@pytest.mark.parametrize("name", GOLDEN)
def test_moments_at_every_site_are_those_that_hooks_see(name, pairs, record_parity):
    ours, theirs, images = pairs(name)
    with jax.default_matmul_precision("highest"):
        statistics = jaxvit.calibrate(ours, [(images, None)], SITES)
    seen: dict[str, list[np.ndarray]] = {site: [] for site in SITES}
    theirs(images, lambda layer, site, x: (seen[site].append(x.numpy().astype(np.float64)), x)[1])
    prefix = 1 + ours.config.registers
    worst = 0.0
    for site in SITES:
        x = np.stack(seen[site])  # [layers, batch, tokens, channels]
        patches = x[:, :, prefix:].reshape(len(x), -1, x.shape[-1])
        mean = np.concatenate([x[:, :, :prefix].mean(axis=1), patches.mean(axis=1)[:, None]], axis=1)
        variance = np.concatenate([x[:, :, :prefix].var(axis=1), patches.var(axis=1)[:, None]], axis=1)
        for what, got, want in (("mean", statistics.mean[site], mean), ("variance", statistics.variance[site], variance)):
            error = float(np.abs(got - want).max() / max(1, np.abs(want).max()))
            worst = max(worst, error)
            assert error <= TOLERANCE, f"{what} at {site}"
    record_parity(name, "moments at every site", worst, TOLERANCE)
