"""Roles of parameters, and one call for a whole model, on models that are built like known ones."""

import copy
import io
import math
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, softmax

import gradtx
from tests.algorithms.test_muon import JORDAN
from tests.matrix_problem import newton_schulz
from tests.tiers import by_day

# Models.


class Block(nn.Module):
    """ResNet's."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.classifier = nn.Linear(4, 5)

    def forward(self, x):
        return self.classifier(self.layer1(torch.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


class Conv1D(nn.Module):
    """The layer of transformers' GPT-2, whose weight is (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.1 * torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class GPT2Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads = heads
        self.c_attn, self.c_proj = Conv1D(width, 3 * width), Conv1D(width, width)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1))
        return self.c_proj(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class GPT2Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(width), GPT2Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(Conv1D(width, 4 * width), nn.GELU(), Conv1D(4 * width, width))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    def __init__(self, tie=True):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(11, 8), "wpe": nn.Embedding(6, 8), "h": nn.ModuleList([GPT2Layer(8, 2)])}
        )
        self.ln_f, self.lm_head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        if tie:
            self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids):
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for layer in self.transformer["h"]:
            x = layer(x)
        return self.lm_head(self.ln_f(x))


class LlamaRMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Config:
    num_attention_heads, num_key_value_heads = 4, 2


class LlamaAttention(nn.Module):
    """With grouped queries, and numbers of heads in a config."""

    def __init__(self, width):
        super().__init__()
        self.config, head = Config(), width // 4
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(width, 2 * head, bias=False) for _ in range(2))

    def forward(self, x):
        q = self.q_proj(x).unflatten(-1, (4, -1)).transpose(1, 2)
        k, v = (p(x).unflatten(-1, (2, -1)).transpose(1, 2) for p in (self.k_proj, self.v_proj))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        return self.o_proj(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Experts(nn.Module):
    def __init__(self, width, experts):
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.up, self.down = (nn.Parameter(0.1 * torch.randn(experts, *s)) for s in ((12, width), (width, 12)))

    def forward(self, x):
        shares = softmax(self.gate(x), -1)
        hidden = torch.relu(torch.einsum("bti,eoi->bteo", x, self.up))
        return torch.einsum("bteo,eio,bte->bti", hidden, self.down, shares)


class LlamaLayer(nn.Module):
    def __init__(self, width, experts):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = LlamaRMSNorm(width), LlamaRMSNorm(width)
        self.self_attn = LlamaAttention(width)
        self.mlp = Experts(width, 3) if experts else nn.Sequential(nn.Linear(width, 12, bias=False), nn.SiLU())
        if not experts:
            self.mlp.append(nn.Linear(12, width, bias=False))

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, experts=False):
        super().__init__()
        self.embed_tokens, self.layers = nn.Embedding(11, 8), nn.ModuleList([LlamaLayer(8, experts)])
        self.norm, self.lm_head = LlamaRMSNorm(8), nn.Linear(8, 11, bias=False)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, 8, 2, 2)
        self.cls_token, self.pos_embedding = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 10, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.temperature, self.heads = nn.Parameter(torch.ones(())), nn.ModuleDict({"head": nn.Linear(8, 5)})

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embedding
        return self.temperature * self.heads["head"](self.encoder(x)[:, 0])


IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
WORDS = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(0))
MODELS = {"resnet": ResNet, "gpt2": GPT2, "llama": Llama, "moe": lambda: Llama(experts=True), "vit": ViT}


def made(name, seed=0):
    torch.manual_seed(seed)
    return MODELS[name]()


def loss_of(model):
    if isinstance(model, ResNet | ViT):
        return cross_entropy(model(IMAGES), torch.arange(4))
    return cross_entropy(model(WORDS)[:, :-1].flatten(0, 1), WORDS[:, 1:].flatten())


# Roles.

ROLES = {
    "resnet": {
        "conv1.weight": "conv", "bn1.weight": "norm", "bn1.bias": "bias", "layer1.0.conv1.weight": "conv",
        "layer1.0.bn1.weight": "norm", "layer1.0.bn1.bias": "bias", "layer1.0.conv2.weight": "conv",
        "layer1.0.bn2.weight": "norm", "layer1.0.bn2.bias": "bias", "layer1.1.conv1.weight": "conv",
        "layer1.1.bn1.weight": "norm", "layer1.1.bn1.bias": "bias", "layer1.1.conv2.weight": "conv",
        "layer1.1.bn2.weight": "norm", "layer1.1.bn2.bias": "bias", "classifier.weight": "head",
        "classifier.bias": "bias",
    },
    "gpt2": {
        "transformer.wte.weight": "embedding", "transformer.wpe.weight": "embedding",
        "transformer.h.0.ln_1.weight": "norm", "transformer.h.0.ln_1.bias": "bias",
        "transformer.h.0.attn.c_attn.weight": "matrix", "transformer.h.0.attn.c_attn.bias": "bias",
        "transformer.h.0.attn.c_proj.weight": "matrix", "transformer.h.0.attn.c_proj.bias": "bias",
        "transformer.h.0.ln_2.weight": "norm", "transformer.h.0.ln_2.bias": "bias",
        "transformer.h.0.mlp.0.weight": "matrix", "transformer.h.0.mlp.0.bias": "bias",
        "transformer.h.0.mlp.2.weight": "matrix", "transformer.h.0.mlp.2.bias": "bias",
        "ln_f.weight": "norm", "ln_f.bias": "bias",
    },
    "llama": {
        "embed_tokens.weight": "embedding", "layers.0.input_layernorm.weight": "norm",
        "layers.0.post_attention_layernorm.weight": "norm", "layers.0.self_attn.q_proj.weight": "matrix",
        "layers.0.self_attn.o_proj.weight": "matrix", "layers.0.self_attn.k_proj.weight": "matrix",
        "layers.0.self_attn.v_proj.weight": "matrix", "layers.0.mlp.0.weight": "matrix",
        "layers.0.mlp.2.weight": "matrix", "norm.weight": "norm", "lm_head.weight": "head",
    },
    "moe": {
        "embed_tokens.weight": "embedding", "layers.0.input_layernorm.weight": "norm",
        "layers.0.post_attention_layernorm.weight": "norm", "layers.0.self_attn.q_proj.weight": "matrix",
        "layers.0.self_attn.o_proj.weight": "matrix", "layers.0.self_attn.k_proj.weight": "matrix",
        "layers.0.self_attn.v_proj.weight": "matrix", "layers.0.mlp.up": "matrix", "layers.0.mlp.down": "matrix",
        "layers.0.mlp.gate.weight": "matrix", "norm.weight": "norm", "lm_head.weight": "head",
    },
    "vit": {
        "cls_token": "embedding", "pos_embedding": "embedding", "temperature": "scalar", "conv_proj.weight": "conv",
        "conv_proj.bias": "bias", "encoder.self_attn.in_proj_weight": "matrix",
        "encoder.self_attn.in_proj_bias": "bias", "encoder.self_attn.out_proj.weight": "matrix",
        "encoder.self_attn.out_proj.bias": "bias", "encoder.linear1.weight": "matrix", "encoder.linear1.bias": "bias",
        "encoder.linear2.weight": "matrix", "encoder.linear2.bias": "bias", "encoder.norm1.weight": "norm",
        "encoder.norm1.bias": "bias", "encoder.norm2.weight": "norm", "encoder.norm2.bias": "bias",
        "heads.head.weight": "head", "heads.head.bias": "bias",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_each_parameter_has_the_role_of_its_module(name):
    assert gradtx.label_by_role(made(name)) == ROLES[name]


def test_a_tied_weight_has_the_role_that_is_asked_for_and_an_untied_head_is_one():
    assert gradtx.label_by_role(GPT2(), tied="head")["transformer.wte.weight"] == "head"
    untied = gradtx.label_by_role(GPT2(tie=False))
    assert (untied["transformer.wte.weight"], untied["lm_head.weight"]) == ("embedding", "head")


class Odd(nn.Module):
    """Names that mislead: a matrix called head-something, a norm with gamma, a vector, a frozen matrix."""

    def __init__(self):
        super().__init__()
        self.multihead, self.overhead = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.gamma, self.shift, self.rel_bias = (nn.Parameter(torch.zeros(*s)) for s in ((3,), (3,), (3, 3)))
        self.norm, self.group, self.inst = nn.RMSNorm(3), nn.GroupNorm(1, 3), nn.InstanceNorm1d(3, affine=True)
        self.adapter = nn.Linear(3, 3, bias=False).requires_grad_(False)
        self.bag, self.turn = nn.EmbeddingBag(5, 3), nn.ConvTranspose1d(3, 3, 2, bias=False)


def test_names_do_not_mislead():
    roles = {
        "multihead.weight": "matrix", "multihead.bias": "bias", "overhead.weight": "matrix", "gamma": "norm",
        "shift": "bias", "rel_bias": "bias", "norm.weight": "norm", "group.weight": "norm", "group.bias": "bias",
        "inst.weight": "norm", "inst.bias": "bias", "adapter.weight": "frozen", "bag.weight": "embedding",
        "turn.weight": "conv",
    }  # fmt: skip
    assert gradtx.label_by_role(Odd()) == roles


class Fused(nn.Module):
    """GPT-NeoX and Llama with one weight for queries, keys and values, and an output layer of another name."""

    def __init__(self):
        super().__init__()
        self.tok_embeddings, self.query_key_value = nn.Embedding(11, 8), nn.Linear(8, 24)
        self.wqkv, self.wo = nn.Linear(8, 16, bias=False), nn.Linear(8, 8, bias=False)
        self.q_norm, self.output = nn.RMSNorm(4), nn.Linear(8, 11, bias=False)


class BertTied(nn.Module):
    """An output layer with a bias of its own, whose weight is the embedding's."""

    def __init__(self):
        super().__init__()
        self.word_embeddings, self.dense, self.LayerNorm = nn.Embedding(11, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.decoder = nn.Linear(8, 11)
        self.decoder.weight = self.word_embeddings.weight


class FusedExperts(nn.Module):
    """Experts as in transformers: three dimensions, with biases of two."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.gate_up_proj, self.gate_up_proj_bias = (
            nn.Parameter(torch.zeros(4, 8, 24)),
            nn.Parameter(torch.zeros(4, 24)),
        )
        self.down_proj, self.sinks = nn.Parameter(torch.zeros(4, 12, 8)), nn.Parameter(torch.zeros(4))


class Tokens(nn.Module):
    """Learned tokens and position embeddings by the names of timm, CLIP, transformers and Swin."""

    NAMES = (
        *("cls_token", "class_token", "mask_token", "dist_token", "reg_token", "register_tokens", "class_embedding"),
        *("pos_embed", "pos_embedding", "position_embeddings", "positional_embedding", "relative_position_bias_table"),
    )

    def __init__(self):
        super().__init__()
        for name in self.NAMES:
            self.register_parameter(name, nn.Parameter(torch.zeros(1, 4, 8)))
        self.patch_embed, self.token_mixer = nn.Conv2d(3, 8, 2, 2), nn.Linear(4, 4, bias=False)


class Parametrized(nn.Module):
    """Weights that are computed from other parameters, of a layer of each role."""

    def __init__(self):
        super().__init__()
        made = nn.utils.parametrizations
        self.embed = made.weight_norm(nn.Embedding(9, 8))
        self.fc, self.conv = (
            made.weight_norm(nn.Linear(8, 6, bias=False)),
            made.weight_norm(nn.Conv2d(3, 8, 2, bias=False)),
        )
        self.spectral, self.orthogonal = (
            made.spectral_norm(nn.Conv2d(3, 8, 2, bias=False)),
            made.orthogonal(nn.Linear(8, 8, bias=False)),
        )
        self.lm_head = made.weight_norm(nn.Linear(8, 9, bias=False), dim=1)


class Vectors(nn.Module):
    """Scales and shifts with dimensions of size 1, and layers with one output."""

    def __init__(self):
        super().__init__()
        for name, shape in {"layer_scale": (8, 1, 1), "gamma": (1, 8), "shift": (1, 8, 1), "w_g": (8, 8)}.items():
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))
        self.critic = nn.Linear(8, 1, bias=False)


OF_WEIGHT = "parametrizations.weight"
FAMILIES = {
    Parametrized: {
        f"embed.{OF_WEIGHT}.original0": "norm", f"embed.{OF_WEIGHT}.original1": "embedding",
        f"fc.{OF_WEIGHT}.original0": "norm", f"fc.{OF_WEIGHT}.original1": "matrix",
        f"conv.{OF_WEIGHT}.original0": "norm", f"conv.{OF_WEIGHT}.original1": "conv",
        f"spectral.{OF_WEIGHT}.original": "conv", f"orthogonal.{OF_WEIGHT}.original": "matrix",
        f"lm_head.{OF_WEIGHT}.original0": "norm", f"lm_head.{OF_WEIGHT}.original1": "head",
    },
    Vectors: {"layer_scale": "bias", "gamma": "norm", "shift": "bias", "w_g": "matrix", "critic.weight": "matrix"},
    Fused: {
        "tok_embeddings.weight": "embedding", "query_key_value.weight": "matrix", "query_key_value.bias": "bias",
        "wqkv.weight": "matrix", "wo.weight": "matrix", "q_norm.weight": "norm", "output.weight": "head",
    },
    BertTied: {
        "word_embeddings.weight": "embedding", "dense.weight": "matrix", "dense.bias": "bias",
        "LayerNorm.weight": "norm", "LayerNorm.bias": "bias", "decoder.bias": "bias",
    },
    FusedExperts: {
        "router.weight": "matrix", "router.bias": "bias", "gate_up_proj": "matrix", "gate_up_proj_bias": "bias",
        "down_proj": "matrix", "sinks": "bias",
    },
    Tokens: {
        **dict.fromkeys(Tokens.NAMES, "embedding"), "patch_embed.weight": "conv", "patch_embed.bias": "bias",
        "token_mixer.weight": "matrix",
    },
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_in_families_that_fuse_weights_or_learn_tokens(family):
    assert gradtx.label_by_role(family()) == FAMILIES[family]


class Layer(nn.Module):
    """Of GPT-J or CodeGen, whose feed-forward layers are fc_in and fc_out, or of nanoGPT."""

    def __init__(self, width, out):
        super().__init__()
        self.mlp = nn.ModuleDict({"fc_in": nn.Linear(width, 4 * width), out: nn.Linear(4 * width, width)})


@pytest.mark.parametrize("kind", [nn.ModuleList, lambda layers: nn.Sequential(*layers)], ids=["list", "sequential"])
@pytest.mark.parametrize("out", ["fc_out", "c_proj"])
def test_output_projections_in_repeated_blocks_are_no_heads(out, kind):
    """Also where a position embedding has as many entries as the model is wide, as in nanoGPT at width 1024."""
    width = 8
    parts = {"wte": nn.Embedding(20, width), "wpe": nn.Embedding(width, width)}
    model = nn.ModuleDict({**parts, "h": kind([Layer(width, out) for _ in range(2)]), "out": nn.Linear(width, 20)})
    roles = gradtx.label_by_role(model)
    assert {roles[f"h.{i}.mlp.{out}.weight"] for i in range(2)} == {"matrix"}
    assert roles["out.weight"] == "head"
    del model["out"]  # tied
    assert "head" not in gradtx.label_by_role(model).values()
    model["fc_out"] = nn.Linear(width, 3)
    assert gradtx.label_by_role(model)["fc_out.weight"] == "head"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["GPTJ", "CodeGen"])
def test_the_largest_matrices_of_small_gptj_and_codegen_are_matrices(name):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        vocab_size=40, n_positions=16, n_ctx=16, n_embd=16, n_layer=1, n_head=4, rotary_dim=4
    )
    roles = gradtx.label_by_role(getattr(transformers, f"{name}ForCausalLM")(config))
    assert roles["transformer.h.0.mlp.fc_out.weight"] == roles["transformer.h.0.mlp.fc_in.weight"] == "matrix"
    assert roles["lm_head.weight"] == "head"


def test_muon_steps_the_directions_of_weight_norm_and_adamw_their_magnitudes():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    branches = {row.name: row.branch for row in gradtx.muon_for(net).rows}
    assert branches["0.parametrizations.weight.original0"] == "adamw_no_decay"
    assert branches["0.parametrizations.weight.original1"] == branches["1.weight"] == "muon"


def test_roles_are_labels_of_a_partition():
    model = made("llama")
    roles = gradtx.label_by_role(model)
    txs = dict.fromkeys(("matrix", "embedding", "head", "norm"), gradtx.sgd(lr=0.1))
    tx = gradtx.partition(txs, lambda name, param: roles[name])
    optimizer = gradtx.as_optimizer(tx, model.named_parameters())
    assert [group["label"] for group in optimizer.param_groups] == ["matrix", "embedding", "head", "norm"]
    with pytest.raises(TypeError, match=r"label_by_role: model must be a torch.nn.Module, got \[\]"):
        gradtx.label_by_role([])


class Adapters(nn.Module):
    """Names of peft (modules by adapter, embeddings as parameters), of loralib and of torchtune."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 4)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4)})
        self.lora_embedding_A = nn.ParameterDict({"default": nn.Parameter(torch.zeros(2, 9))})
        self.lora_embedding_B = nn.ParameterDict({"default": nn.Parameter(torch.zeros(4, 2))})
        self.conv, self.embedding, self.table = nn.Module(), nn.Embedding(9, 4), nn.Embedding(9, 4)
        self.conv.lora_A, self.conv.lora_a = nn.Parameter(torch.zeros(2, 4, 3, 3)), nn.Linear(4, 2, bias=False)
        self.embedding.lora_B = nn.Parameter(torch.zeros(2, 9))
        self.lora_Alpha, self.flora_B = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(2))


def test_factors_of_adapters_are_found_by_name():
    expected = {
        "base.weight": "other", "base.bias": "other", "lora_A.default.weight": "lora_A",
        "lora_B.default.weight": "lora_B", "lora_B.default.bias": "lora_B", "lora_embedding_A.default": "embedding",
        "lora_embedding_B.default": "embedding", "conv.lora_A": "lora_A", "conv.lora_a.weight": "lora_A",
        "embedding.weight": "other", "embedding.lora_B": "embedding", "table.weight": "other", "lora_Alpha": "other",
        "flora_B": "other",
    }  # fmt: skip
    assert gradtx.label_lora(Adapters()) == expected
    with pytest.raises(TypeError, match=r"label_lora: model must be a torch.nn.Module, got \[\]"):
        gradtx.label_lora([])


# One call.

CUTS = {
    "resnet": {},
    "gpt2": {"transformer.h.0.attn.c_attn.weight": "6 along 1"},
    "llama": {
        "layers.0.self_attn.q_proj.weight": "4 along 0", "layers.0.self_attn.k_proj.weight": "2 along 0",
        "layers.0.self_attn.v_proj.weight": "2 along 0",
    },
    "vit": {"encoder.self_attn.in_proj_weight": "6 along 0"},
}  # fmt: skip
CUTS["moe"] = {**CUTS["llama"], "layers.0.mlp.up": "3 matrices", "layers.0.mlp.down": "3 matrices"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_everything_goes_where_it_belongs_and_the_loss_falls(name):
    model = made(name)
    optimizer = gradtx.muon_for(model, lr=0.02, adamw_lr=3e-3)
    rows = {row.name: row for row in optimizer.rows}
    assert {row: rows[row].role for row in rows} == ROLES[name]
    assert {row: rows[row].blocks for row in rows if rows[row].blocks} == CUTS[name]
    to = {"matrix": "muon", "conv": "muon_conv", "head": "adamw"}
    for row in rows.values():
        assert row.branch == to.get(row.role, "adamw_no_decay")
    decays = {group["label"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays.pop("adamw_no_decay") == 0.0
    assert set(decays.values()) == {0.1}
    rates = {group["label"]: group["lr"] for group in optimizer.param_groups}
    assert {rate for label, rate in rates.items() if "muon" in label} == {0.02}
    assert {rate for label, rate in rates.items() if "adamw" in label} == {3e-3}
    first = loss_of(model).item()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 15)
    for _ in range(15):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        scheduler.step()
    assert loss_of(model).item() < 0.9 * first
    assert max(group["lr"] for group in optimizer.param_groups) < 1e-8


@pytest.mark.parametrize("name", ["llama", "moe", "vit"])
def test_a_step_is_that_of_separate_optimizers_of_separate_heads(name):
    model = made(name)
    model.double()
    optimizer = gradtx.muon_for(model, 0.02, 3e-3, 0.1, 0.2, ns_dtype=None, momentum=0.9)
    parts, update = {}, {}
    for row in optimizer.rows:
        param = model.get_parameter(row.name).detach()
        if row.heads > 1:
            parts[row.name] = [p.clone() for p in param.chunk(row.heads, row.dim)]
        elif row.batch:
            parts[row.name] = [p.clone() for p in param]
        else:
            parts[row.name] = [param.clone()]
        if row.branch == "muon":
            update[row.name] = gradtx.muon(0.02, 0.1, 0.9, ns_dtype=None)
        elif row.branch == "muon_conv":
            update[row.name] = gradtx.muon(0.02, 0.1, 0.9, ns_dtype=None, view="flatten")
        else:
            update[row.name] = gradtx.adamw(3e-3, (0.9, 0.95), 1e-10, 0.2 if row.branch == "adamw" else 0.0)
    states = {name: [update[name].init({"p": p}) for p in parts[name]] for name in parts}
    global IMAGES
    images, IMAGES = IMAGES, IMAGES.double()
    try:
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            for row in optimizer.rows:
                grad = model.get_parameter(row.name).grad
                grads = grad.chunk(row.heads, row.dim) if row.heads > 1 else list(grad) if row.batch else [grad]
                for i, (p, g) in enumerate(zip(parts[row.name], grads, strict=True)):
                    u, states[row.name][i] = update[row.name].update({"p": g}, states[row.name][i], {"p": p})
                    parts[row.name][i] = p + u["p"]
            optimizer.step()
    finally:
        IMAGES = images
    for row in optimizer.rows:
        found, pieces = model.get_parameter(row.name).detach(), parts[row.name]
        whole = torch.stack(pieces) if row.batch else torch.cat(pieces, row.dim) if row.heads > 1 else pieces[0]
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


METHODS = (
    *("muon_eq", "mud", "mano", "namo_d", "adago"),  # plain chains, rules that own their rates
    *("mousse", "asgo", "cosmos", "aro", "normuon", "muon_h"),  # statistics, bases; no decay
)


def matrices_of(row, tensor):
    """What a method treats as matrices: the heads of a weight, or a kernel as (out, all others)."""
    return [tensor.flatten(1)] if row.branch == "muon_conv" else tensor.chunk(row.heads, row.dim)


@by_day("muon_eq", "namo_d", "mousse", "muon_h")
@pytest.mark.parametrize("name", METHODS)
def test_another_method_treats_each_head_and_each_kernel_as_a_matrix_of_its_own(name):
    method = getattr(gradtx, name)
    options = {"lr": 0.02, "weight_decay": 0.1}
    tx = method(**{name: value for name, value in options.items() if name in method.spec.arguments.by_name})
    generator = torch.Generator().manual_seed(0)
    for kind in ("llama", "resnet"):
        model = made(kind).double()
        optimizer = gradtx.muon_for(model, method=method, **options)
        before = {row.name: model.get_parameter(row.name).detach().clone() for row in optimizer.rows}
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
        for row in optimizer.rows:
            if row.branch not in ("muon", "muon_conv"):
                continue
            param = model.get_parameter(row.name)
            parts = [matrices_of(row, tensor) for tensor in (before[row.name], param.grad, param.detach())]
            for p, g, moved in zip(*parts, strict=True):
                updates, _ = tx.update({"w": g}, tx.init({"w": p}), {"w": p})
                torch.testing.assert_close(moved, p + updates["w"], rtol=1e-9, atol=1e-9)


def test_it_prints_what_goes_where():
    text = repr(gradtx.muon_for(made("moe")))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["ModelOptimizer", "("]
    assert lines[1] == ["parameter", "shape", "role", "to", "blocks"]
    assert ["layers.0.mlp.up", "(3,", "12,", "8)", "matrix", "muon", "3", "matrices"] in lines
    assert ["lm_head.weight", "(11,", "8)", "head", "adamw"] in lines
    assert len(lines) == 3 + len(ROLES["moe"])


def test_it_is_one_optimizer_with_one_state_dict_that_copies_and_loads():
    model = made("llama")
    optimizer = gradtx.muon_for(model, per_head=True)
    loss_of(model).backward()
    optimizer.step()
    twin = copy.deepcopy(model)
    other = gradtx.muon_for(twin)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for m, o in ((model, optimizer), (twin, other)):
        o.zero_grad()
        loss_of(m).backward()
        o.step()
    torch.testing.assert_close(dict(model.named_parameters()), dict(twin.named_parameters()), rtol=0, atol=0)
    assert repr(pickle.loads(pickle.dumps(optimizer))) == repr(copy.deepcopy(optimizer)) == repr(optimizer)


def test_its_transformation_is_for_pure_functions():
    model = made("llama")
    tx = gradtx.muon_for(model, ns_dtype=None).transformation
    params = {name: p.detach() for name, p in model.named_parameters()}
    state = tx.init(params)
    grads = {name: torch.ones_like(p) for name, p in params.items()}
    updates, state = tx.update(grads, state, params)
    q = state["partition"]["muon"]
    while "blocks" in q:
        q = q["blocks"]
    assert q["trace_ema"]["momentum_buffer"]["layers.0.self_attn.q_proj.weight"].shape == (4, 2, 8)
    assert math.isfinite(sum(u.sum().item() for u in updates.values()))


def test_its_switches():
    whole = gradtx.muon_for(made("llama"), per_head=False)
    assert not any(row.blocks for row in whole.rows)
    rows = {row.name: row.branch for row in gradtx.muon_for(made("resnet"), conv="adamw").rows}
    assert rows["conv1.weight"] == "adamw"
    rows = {row.name: row.branch for row in gradtx.muon_for(GPT2(), tied="head").rows}
    assert rows["transformer.wte.weight"] == "adamw"
    model = made("llama")
    model.embed_tokens.requires_grad_(False)
    frozen = gradtx.muon_for(model)
    before = model.embed_tokens.weight.clone()
    loss_of(model).backward()
    frozen.step()
    assert torch.equal(model.embed_tokens.weight, before)
    wrapped = nn.DataParallel(made("llama"))
    assert {row.name.removeprefix("module."): row.role for row in gradtx.muon_for(wrapped).rows} == ROLES["llama"]
    assert gradtx.muon_for(wrapped).rows[3].heads == 4


class Heads(nn.Module):
    """An attention module with sizes of its own, and a fused weight of so many rows."""

    def __init__(self, rows, width=64, heads=4, keys=2, name="qkv_proj", **sizes):
        super().__init__()
        self.num_heads, self.num_key_value_heads = heads, keys
        self.add_module(name, nn.Linear(width, rows, bias=False))
        for attribute, value in sizes.items():
            setattr(self, attribute, value)


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        (Heads((4 + 2 * 2) * 16, head_dim=16), 8),
        (Heads((4 + 2 * 2 + 4) * 16, head_dim=16), 1),  # and a gate for every query head: blocks of 24 rows
        (Heads((16 + 2 * 8 + 16) * 128, width=8, heads=16, keys=8, head_dim=128), 1),
        (Heads((4 + 2 * 2 + 4) * 16), 1),  # the size of a head follows from the width
        (Heads(3 * 4 * 27, width=32, keys=4, name="in_proj", head_dim=32), 1),  # the mixer of a state-space model
        (Heads(4 * 24, name="q_proj", head_dim=24), 4),  # heads whose size does not follow from the width
        (Heads(4 * 32, name="q_proj", head_dim=16), 4),  # a query and its gate for every head
        (Heads(4 * 24, name="q_proj", attention_head_size=16), 1),
    ],
)
def test_a_weight_is_split_only_into_multiples_of_a_head(model, heads):
    (row,) = gradtx.muon_for(model).rows
    assert row.heads == heads


class Attention(nn.Module):
    """Projections of other names, beside a number of heads that has another name as well."""

    def __init__(self, count="num_heads", **rows):
        super().__init__()
        setattr(self, count, 4)
        for name, size in rows.items():
            self.add_module(name, nn.Linear(8, size, bias=False))


@pytest.mark.parametrize("count", ["heads", "nhead", "h", "num_heads"])
@pytest.mark.parametrize(
    ("name", "rows", "blocks"),
    [
        *((name, 24, 12) for name in ("qkv", "to_qkv", "w_qkv", "W_qkv", "Wqkv", "attn_qkv", "kqv")),
        *((name, 16, 8) for name in ("kv", "to_kv", "Wkv")),
        *((name, 8, 4) for name in ("Wq", "w_k", "W_v", "w_qs")),
    ],
)
def test_fused_and_single_projections_are_divided_whatever_they_and_the_number_of_heads_are_called(
    count, name, rows, blocks
):
    (row,) = gradtx.muon_for(Attention(count, **{name: rows})).rows
    assert (row.heads, row.dim) == (blocks, 0)


def test_a_weight_that_may_be_fused_is_named_with_the_argument_that_says_what_it_is():
    model = Attention(mixed_in=24, out=8)
    remedy = "blocks={'mixed_in.weight': 3 * heads}"
    with pytest.warns(UserWarning, match=f"^muon_for: mixed_in.weight may be fused .*; pass {re.escape(remedy)}, or 1"):
        optimizer = gradtx.muon_for(model)
    assert f"1, or fused? {remedy}" in repr(optimizer)
    assert [row.may_be_fused for row in optimizer.rows] == [True, False]
    for count in (12, 1):
        rows = gradtx.muon_for(model, blocks={"mixed_*": count}).rows
        assert [(row.heads, row.may_be_fused) for row in rows] == [(count, False), (1, False)]
    gradtx.muon_for(nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 8)))  # no heads, no question
    with pytest.raises(TypeError, match=r"muon_for: there is no option 'heads': .*; pass .* blocks=\{"):
        gradtx.muon_for(model, heads=4)


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        (12, TypeError, "muon_for: blocks must be a dict"),
        ({"mixed_in.weight": 0}, ValueError, r"blocks\['mixed_in.weight'\] must be an int in \[1, inf\), got 0"),
        ({"mixed_in.weight": 5}, ValueError, r"into 5 blocks along dimension 0, but 24 is no multiple of 5"),
        ({"missing": 3}, ValueError, "missing"),
    ],
)
def test_blocks_that_do_not_fit_are_errors(blocks, error, message):
    with pytest.raises(error, match=message):
        gradtx.muon_for(Attention(mixed_in=24), blocks=blocks)


def test_a_head_that_only_its_place_and_its_size_show_is_marked_as_a_guess():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    assert [(row.role_shown, row.is_guessed) for row in gradtx.muon_for(model).rows if row.role == "head"] == [
        ("head?", True)
    ]
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "lm_head": nn.Linear(4, 9, bias=False)})
    assert [row.is_guessed for row in gradtx.muon_for(model).rows] == [False, False]


class Mixer(nn.Module):
    """Parameters that are no matrices, although they have two dimensions, by the names of known models."""

    NAMES = (
        "A_log", "level_embed", "query_embed", "rel_pos_h", "rel_pos_w", "scale_shift_table",
        "relative_position_bias_table", "temporal_embedding", "view_embeddings",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        for name in self.NAMES:
            self.register_parameter(name, nn.Parameter(torch.ones(4, 8)))
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4, bias=False)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2, bias=False)
        self.gray = nn.Conv2d(1, 4, 3, bias=False)
        self.router, self.out = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)


def test_parameters_that_are_no_matrices_by_their_names_and_depthwise_kernels_go_to_adamw():
    branches = {row.name: row.branch for row in gradtx.muon_for(Mixer()).rows}
    assert branches == {
        **dict.fromkeys(Mixer.NAMES, "adamw_no_decay"), "depthwise.weight": "adamw", "grouped.weight": "muon_conv",
        "gray.weight": "muon_conv", "router.weight": "muon", "out.weight": "muon", "out.bias": "adamw_no_decay",
    }  # fmt: skip


def test_roles_by_pattern_override_those_of_modules_and_the_first_match_applies():
    roles = {"router.*": "adamw", "*.bias": "frozen", "A_log": "muon", "g*": "embedding", "*": "muon"}
    model = Mixer()
    del model.depthwise
    rows = {row.name: (row.role, row.branch) for row in gradtx.muon_for(model, roles=roles).rows}
    assert rows["router.weight"] == ("adamw", "adamw")
    assert rows["grouped.weight"] == rows["gray.weight"] == ("embedding", "adamw_no_decay")
    assert rows["out.bias"][1] == "frozen"
    assert rows["A_log"][1] == rows["level_embed"][1] == rows["out.weight"][1] == "muon"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gradtx.muon_for([]), TypeError, r"muon_for: model must be a torch.nn.Module, got \[\]"),
        (
            lambda: gradtx.muon_for(ResNet(), method=gradtx.adamw),
            TypeError,
            "muon_for: method must be an optimizer with",
        ),
        (lambda: gradtx.muon_for(ResNet(), method=gradtx.mud()), TypeError, "muon_for: method must be .*, got mud"),
        (
            lambda: gradtx.muon_for(ResNet(), method=gradtx.mud, ns_steps=3),
            TypeError,
            "mud: unknown argument 'ns_steps'",
        ),
        (lambda: gradtx.muon_for(ResNet(), conv="sgd"), ValueError, "conv must be 'muon' or 'adamw', got 'sgd'"),
        (lambda: gradtx.muon_for(ResNet(), tied="x"), ValueError, "tied must be 'embedding' or 'head', got 'x'"),
        (lambda: gradtx.muon_for(ResNet(), fallback=gradtx.sgd()), TypeError, "multiple values for .* 'fallback'"),
        (lambda: gradtx.muon_for(ResNet(), betas2=1), TypeError, "muon: unknown argument 'betas2'"),
        (lambda: gradtx.muon_for(ResNet(), lr=-1.0), ValueError, r"muon: lr must be in \[0, inf\), got -1.0"),
        (lambda: gradtx.muon_for(ResNet(), adamw_lr=-1.0), ValueError, r"adamw: lr must be in \[0, inf\), got -1.0"),
        (
            lambda: gradtx.muon_for(ResNet(), roles={"*.bias": "muon"}),
            ValueError,
            r"sends 'bn1.bias' .* needs at least 2",
        ),
        (
            lambda: gradtx.muon_for(ResNet(), roles=[("*", "adamw")]),
            TypeError,
            r"muon_for: roles must be a dict such as .*, got \[\('\*', 'adamw'\)\]",
        ),
        (lambda: gradtx.muon_for(ResNet(), roles={"x": "muon"}), ValueError, "muon_for: roles: 'x' matches no leaf"),
        (
            lambda: gradtx.muon_for(ResNet(), roles={"*": "adam"}),
            ValueError,
            r"roles\['\*'\] must be one of adamw, .*'adam'",
        ),
        (lambda: gradtx.muon_for(nn.ReLU()), ValueError, "the model has no parameters that require a gradient"),
        (lambda: gradtx.muon_for(nn.LazyLinear(3)), ValueError, "muon_for: parameter 'weight' has no shape yet"),
    ],
)
def test_what_makes_no_sense(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Models of transformers, small and with random weights, and of torch: the parts that differ from model to model.

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 48,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEPSEEK = {
    **{"moe_intermediate_size": 8, "n_shared_experts": 1, "n_routed_experts": 4, "n_group": 2, "topk_group": 1},
    **{"num_experts_per_tok": 2, "first_k_dense_replace": 0, "kv_lora_rank": 8, "q_lora_rank": 12},
    **{"num_key_value_heads": 2, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8},
}
LEVIT = {
    **{"image_size": 32, "patch_size": 16, "hidden_sizes": [16] * 3, "num_attention_heads": [2] * 3, "depths": [1] * 3},
    **{"key_dim": [8] * 3, "drop_path_rate": 0, "down_ops": [["Subsample", 8, 2, 2, 2, 2]] * 2},
}
PERCEIVER = {
    **{"num_latents": 6, "d_latents": 16, "d_model": 16, "num_blocks": 1, "num_self_attends_per_block": 1},
    **{"num_self_attention_heads": 2, "num_cross_attention_heads": 2},
}
T5 = {**{"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}, "relative_attention_num_buckets": 16}
SEQUENCES = {
    f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")
}

# Class of a model, options of its configuration, and for some parameters: the role, and the blocks if it is divided.
OF_TRANSFORMERS = {
    "BertForMaskedLM": (SMALL, {"encoder.layer.0.attention.self.query.weight": "matrix 2 along 0"}),
    "DebertaV2ForMaskedLM": (
        SMALL,
        {f"self.{part}_proj.weight": "matrix 2 along 0" for part in ("query", "key", "value")},
    ),
    "LongformerForMaskedLM": (
        {**SMALL, "attention_window": 4},
        {f"self.{part}_global.weight": "matrix 2 along 0" for part in ("query", "key", "value")},
    ),
    "LlamaForCausalLM": (
        {**SMALL, "num_key_value_heads": 1},
        {"q_proj.weight": "matrix 2 along 0", "k_proj.weight": "matrix", "lm_head.weight": "head"},
    ),
    "Phi3ForCausalLM": (
        {**SMALL, "num_key_value_heads": 2},
        {"qkv_proj.weight": "matrix 6 along 0", "gate_up_proj.weight": "matrix 2 along 0"},
    ),
    "DeepseekV3ForCausalLM": (
        {**SMALL, **DEEPSEEK},
        {
            "q_a_proj.weight": "matrix",
            "q_b_proj.weight": "matrix 2 along 0",
            "kv_b_proj.weight": "matrix 2 along 0",
            "experts.down_proj": "matrix 4 matrices",
        },
    ),
    "T5ForConditionalGeneration": (
        {**T5, "vocab_size": 48},  # as wide as there are buckets
        {"relative_attention_bias.weight": "embedding", "decoder.block.0.layer.2.DenseReluDense.wo.weight": "matrix"},
    ),
    "PegasusForConditionalGeneration": (
        {**SEQUENCES, "d_model": 16, "max_position_embeddings": 16, "vocab_size": 48},  # as wide as there are positions
        {"decoder.layers.0.fc2.weight": "matrix", "decoder.layers.0.encoder_attn.out_proj.weight": "matrix"},
    ),
    "MixtralForCausalLM": (
        {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4},
        {"experts.gate_up_proj": "matrix 4 matrices, each 2 along 1"},
    ),
    "Qwen3MoeForCausalLM": (
        {**SMALL, "num_key_value_heads": 2, "num_experts": 4, "moe_intermediate_size": 8, "head_dim": 8},
        {"experts.gate_up_proj": "matrix 4 matrices, each 2 along 1"},
    ),
    "GptOssForCausalLM": (
        {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 8},
        {"experts.gate_up_proj": "matrix 4 matrices, each 2 along 2, in turn"},
    ),
    "Llama4ForCausalLM": (
        {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 8, "interleave_moe_layer_step": 1},
        {"experts.gate_up_proj": "matrix 4 matrices, each 2 along 2"},
    ),
    "SwitchTransformersForConditionalGeneration": (
        {**T5, "vocab_size": 48, "num_experts": 4, "num_sparse_encoder_layers": 1, "encoder_sparse_step": 1},
        {"router.classifier.weight": "matrix"},
    ),
    "PerceiverModel": (PERCEIVER, {"embeddings.latents": "embedding"}),
    "LevitForImageClassification": (LEVIT, {"0.module.attention_biases": "bias", "classifier.linear.weight": "head"}),
}


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_models_of_transformers_are_divided_where_they_have_heads_and_gates(name):
    transformers = pytest.importorskip("transformers")
    options, expected = OF_TRANSFORMERS[name]
    model_class = getattr(transformers, name)
    optimizer = gradtx.muon_for(model_class(model_class.config_class(**options)))
    for ending, treatment in expected.items():
        rows = [row for row in optimizer.rows if row.name.endswith(ending)]
        assert {f"{row.role_shown} {row.blocks}".strip() for row in rows} == {treatment}, ending


# Experts of transformers 5: the gates and the values of all experts are one parameter.

WIDTH, HIDDEN, EXPERTS = 6, 5, 3


class StackedExperts(nn.Module):
    """Rows are outputs, as in Mixtral, Qwen and OLMoE."""

    def __init__(self, columns=False):
        super().__init__()
        shapes = (
            ((EXPERTS, WIDTH, 2 * HIDDEN), (EXPERTS, HIDDEN, WIDTH))
            if columns
            else ((EXPERTS, 2 * HIDDEN, WIDTH), (EXPERTS, WIDTH, HIDDEN))
        )
        self.gate_up_proj, self.down_proj = (nn.Parameter(torch.zeros(shape)) for shape in shapes)


class Llama4TextExperts(StackedExperts):
    def __init__(self):
        super().__init__(columns=True)


class GptOssExperts(Llama4TextExperts):
    pass


class UnknownExperts(Llama4TextExperts):
    pass


# For each, the matrices of an expert, and what the table says.
STACKS = {
    StackedExperts: (lambda x: x.chunk(2, 0), "3 matrices, each 2 along 1"),
    Llama4TextExperts: (lambda x: x.chunk(2, 1), "3 matrices, each 2 along 2"),
    GptOssExperts: (lambda x: (x[:, ::2], x[:, 1::2]), "3 matrices, each 2 along 2, in turn"),
    UnknownExperts: (lambda x: (x,), "3 matrices, or gates and values? blocks={'gate_up_proj': 2}"),
}


@pytest.mark.parametrize("compile", [False, True], ids=["lists", "compiled"])
@pytest.mark.parametrize("experts", STACKS)
def test_gates_and_values_of_stacked_experts_are_matrices_of_their_own(experts, compile):
    parts, shown = STACKS[experts]
    model = experts()
    # In full precision: how bfloat16 products round depends on the processor.
    optimizer = gradtx.muon_for(model, lr=0.1, weight_decay=0.0, ns_dtype=None, compile=compile)
    assert {row.name: row.blocks for row in optimizer.rows} == {"gate_up_proj": shown, "down_proj": "3 matrices"}
    gradient = torch.randn(model.gate_up_proj.shape, generator=torch.Generator().manual_seed(0))
    parts(gradient[0])[0].mul_(100.0)  # of which the values of that expert know nothing
    model.gate_up_proj.grad = gradient.clone()
    optimizer.step()
    for weight, of_expert in zip(model.gate_up_proj.detach(), gradient, strict=True):
        for part, part_of_gradient in zip(parts(weight), parts(of_expert), strict=True):
            # Nesterov's direction is a multiple of the first gradient.
            direction = newton_schulz(part_of_gradient.double(), [JORDAN] * 5)
            expected = -0.1 * math.sqrt(max(1, part.shape[0] / part.shape[1])) * direction
            torch.testing.assert_close(part.double(), expected, rtol=1e-4, atol=1e-5)


def test_blocks_says_how_many_matrices_a_stacked_weight_has():
    optimizer = gradtx.muon_for(UnknownExperts(), blocks={"gate_up_proj": 2})
    assert optimizer.rows[0].blocks == "3 matrices, each 2 along 2"
    optimizer = gradtx.muon_for(StackedExperts(), blocks={"gate_up_proj": 1, "down_proj": 2})
    assert [row.blocks for row in optimizer.rows] == ["3 matrices", "3 matrices, each 2 along 1"]
    with pytest.raises(ValueError, match="into 4 blocks along dimension 1, but 10 is no multiple of 4"):
        gradtx.muon_for(StackedExperts(), blocks={"gate_up_proj": 4})


@pytest.mark.parametrize("name", ["router", "gate"])
def test_the_classifier_of_a_router_is_no_head(name):
    model = nn.ModuleDict({name: nn.ModuleDict({"classifier": nn.Linear(4, 3)}), "classifier": nn.Linear(4, 3)})
    roles = gradtx.label_by_role(model)
    assert (roles[f"{name}.classifier.weight"], roles["classifier.weight"]) == ("matrix", "head")


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        (nn.LSTM(6, 8), "4 along 0"),
        (nn.GRU(6, 8, bidirectional=True), "3 along 0"),
        (nn.RNN(6, 8), ""),
        (nn.LSTMCell(6, 8), "4 along 0"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_gate_of_a_recurrent_layer_is_a_matrix(model, blocks):
    rows = gradtx.muon_for(model).rows
    assert {row.blocks for row in rows if len(row.shape) > 1} == {blocks}


def test_a_table_that_its_name_does_not_tell_from_a_matrix_is_marked_and_roles_decide():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos, self.slots = nn.Parameter(torch.zeros(5, 4)), nn.Parameter(torch.zeros(3, 4))
            self.mix = nn.Linear(4, 4)

    with pytest.warns(UserWarning, match=r"muon_for: slots may be tables of vectors .* pass roles=\{'slots': 'embed"):
        optimizer = gradtx.muon_for(Learned())
    assert "matrix?" in repr(optimizer)
    assert {row.name: row.role_shown for row in optimizer.rows if row.name in ("pos", "slots")} == {
        "pos": "embedding",
        "slots": "matrix?",
    }
    decided = gradtx.muon_for(Learned(), roles={"slots": "embedding"})
    assert "matrix?" not in repr(decided)
