"""Whole models: the roles of their parameters, and Muon for matrices with AdamW for the rest."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from gradtx.algorithms.adam import adamw
from gradtx.algorithms.muon import muon
from gradtx.base.exact import Betas, Scalar
from gradtx.base.messages import aligned, describe, warn_user
from gradtx.base.selectors import (
    Selector,
    Where,
    listed,
    named_in_model,
    without_wrappers,
)
from gradtx.combinators.blocks import blocks as in_blocks
from gradtx.combinators.selection import freeze, partition
from gradtx.optim.optimizer import ChainOptimizer
from gradtx.transform import GradientTransformation

if TYPE_CHECKING:
    from gradtx.optim.engine import Engine

__all__ = [
    "ModelOptimizer",
    "collect_input_grams",
    "label_by_role",
    "label_lora",
    "muon_for",
]

EMBEDDING_WORDS = (
    "pos_emb",
    "position_embedding",
    "positional_embedding",
    "class_embedding",
)
# Of class, mask, distillation and register tokens, and of tables of vectors that are parameters of a module.
EMBEDDING_ENDINGS = (
    "_token",
    "_tokens",
    "_embed",
    "_embedding",
    "_embeddings",
    "_table",
)
# Of learned queries, latents and positions that a module owns itself.
EMBEDDING_NAMES = ("latents", "queries", "query_tokens", "object_queries", "pos", "cls")
# The logarithms of the decays of a state-space model.
INDEPENDENT_NUMBERS = ("A_log", "A_logs")
HEAD_NAMES = ("lm_head", "head", "classifier", "score")
# Of heads, and of output projections in the blocks of GPT-J and CodeGen.
HEAD_NAMES_OUTSIDE_BLOCKS = ("fc_out",)
# Of layers that choose experts, as in Switch and NLLB.
ROUTERS = ("router", "gate")
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
SCALE_NAMES = ("weight", "gamma", "scale")


class WeightUse(NamedTuple):
    """A module's reference to a parameter; a tied parameter has several."""

    module: nn.Module
    module_name: str
    name: str

    @property
    def path(self) -> str:
        """The name of the parameter in the model."""
        return f"{self.module_name}.{self.name}" if self.module_name else self.name


def label_by_role(model: nn.Module, *, tied: str = "embedding") -> dict[str, str]:
    """Return the role of each parameter of a model, based on the module that owns it rather than on its shape.

    The first match applies:

    | role | parameter |
    |---|---|
    | "frozen" | requires no gradient |
    | "embedding" | the weight of an `Embedding` or `EmbeddingBag`; positions, tokens, latents and tables by name |
    | "head" | the weight of an output layer (see below) |
    | "norm", "bias" | the weight and bias of a norm: torch's classes, and modules whose class name ends in Norm |
    | "scalar" | has a single entry, or is named A_log |
    | "norm" | the magnitudes of `weight_norm` |
    | "bias" | its name ends in "bias" or "biases", or it is a vector ("norm" if its name is weight, gamma or scale) |
    | "conv" | the weight of a convolution |
    | "matrix" | all others |

    Dimensions of size 1 count only in tensors named weight. What a parametrization (`weight_norm`, `spectral_norm`)
    computes a weight from has the role of the weight.

    An output layer is the last `Linear` outside of repeated blocks with as many outputs as an embedding has entries, or
    a `Linear` named lm_head, head, classifier or score, but not that of a router, or, outside of repeated blocks,
    fc_out. Repeated blocks are the modules of a `ModuleList`, and several modules of one class in a `Sequential`.

    Args:
        model: The model. Names are those of `named_parameters()` without what `DistributedDataParallel`,
            `torch.compile` and FSDP insert, as selectors see them.
        tied: The role of a weight that is both an embedding and a head.

    Returns:
        A dict name -> role, for `partition` (`lambda name, p: roles[name]`).

    Raises:
        TypeError: If `model` is not a module.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Embedding(9, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)
        ... )
        >>> gradtx.label_by_role(model)
        {'0.weight': 'embedding', '1.weight': 'norm', '1.bias': 'bias', '2.weight': 'matrix', '2.bias': 'bias'}
    """
    _check_model("label_by_role", model)
    uses = uses_of(model)
    last, blocks = _last_with_outputs_of_an_embedding(model), _repeated_blocks(model)
    return {
        name: _role(param, uses[param], last, blocks, tied)
        for name, param in named_in_model(model)
    }


def label_lora(model: nn.Module) -> dict[str, str]:
    """Return which factor of an adapter of low rank each parameter of a model is, by its name.

    | label | parameter |
    |---|---|
    | "embedding" | an adapter of an `Embedding`: a part of its name starts with lora_embedding, or the module is one |
    | "lora_A", "lora_B" | a part of its name is lora_A or lora_B, in upper or lower case |
    | "other" | all others |

    These are the names of peft, loralib and torchtune.

    Args:
        model: The model. Names are those of `label_by_role`.

    Returns:
        A dict name -> label, for `partition` (`lambda name, p: labels[name]`).

    Raises:
        TypeError: If `model` is not a module.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> model.lora_A = torch.nn.Linear(4, 2, bias=False)
        >>> model.lora_B = torch.nn.Linear(2, 3, bias=False)
        >>> gradtx.label_lora(model)
        {'weight': 'other', 'bias': 'other', 'lora_A.weight': 'lora_A', 'lora_B.weight': 'lora_B'}
    """
    _check_model("label_lora", model)
    uses = uses_of(model)
    return {
        name: _factor(name, uses[param][0].module)
        for name, param in named_in_model(model)
    }


def _factor(name: str, module: nn.Module) -> str:
    found = re.search(r"\blora_(embedding|[ab]\b)", name, re.IGNORECASE)
    if found is None:
        return "other"
    letter = found[1].upper()
    is_embedding = len(letter) > 1 or isinstance(module, nn.Embedding)
    return "embedding" if is_embedding else f"lora_{letter}"


@contextlib.contextmanager
def collect_input_grams(
    model: nn.Module, where: Where = "*"
) -> Iterator[dict[str, Tensor]]:
    """Measure the second moments of the inputs of linear layers, for `precondition_inputs`.

    Inside the context, every forward pass of an `nn.Linear` adds the mean of $x x^T$ over all vectors x of its input,
    in float32; several passes, as for micro-batches, are averaged.

    Args:
        model: The model.
        where: Selects the layers by their weights, as in `partition`.

    Yields:
        A dict that the forward passes fill, name of the weight -> matrix.

    Raises:
        TypeError: If `model` is not a module, or if `where` is not a selector.
        ValueError: If a pattern matches no weight of a linear layer.

    Example:
        >>> model = torch.nn.Linear(2, 3)
        >>> with gradtx.collect_input_grams(model) as grams:
        ...     _ = model(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
        >>> grams["weight"]
        tensor([[2., 0.],
                [0., 8.]])
    """
    _check_model("collect_input_grams", model)
    selector = Selector.of("collect_input_grams", where)
    layers = {
        f"{name}.weight" if name else "weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    selector.check_used(list(layers))
    grams: dict[str, Tensor] = {}
    passes: Counter[str] = Counter()

    def add(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach()
        passes[name] += 1
        with torch.autocast(x.device.type, enabled=False):
            x = x.reshape(-1, x.shape[-1]).float()
            gram = x.mT @ x / max(len(x), 1)
        old = grams.get(name, gram)
        grams[name] = old + (gram - old) / passes[name]

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            if selector.choose(name, layer.weight):
                hook = functools.partial(add, name)
                stack.callback(layer.register_forward_pre_hook(hook).remove)
        yield grams


def _check_model(who: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{who}: model must be a torch.nn.Module, got {describe(model)}"
        )


def uses_of(model: nn.Module) -> dict[Tensor, list[WeightUse]]:
    """Return all uses of each parameter; a tied parameter has several."""
    uses = {}
    modules = {without_wrappers(name): module for name, module in model.named_modules()}
    for module_name, module in model.named_modules():
        for name, param in module.named_parameters(
            recurse=False, remove_duplicate=False
        ):
            use = WeightUse(module, without_wrappers(module_name), name)
            if not _is_vector(param):
                use = _of_weight(use, modules)
            uses.setdefault(param, []).append(use)
    return uses


def _is_vector(param: Tensor) -> bool:
    """Whether at most one dimension is larger than 1; a lazy parameter has no shape yet."""
    return not is_lazy(param) and param.numel() == max(param.shape, default=1)


def _of_weight(use: WeightUse, modules: Mapping[str, nn.Module]) -> WeightUse:
    """Return the use of the weight that is computed from a parameter: `fc.weight` for `fc.weight_v`."""
    if isinstance(use.module, ParametrizationList):
        parametrizations, _, weight = use.module_name.rpartition(".")
        owner = parametrizations.rpartition(".")[0]
        return WeightUse(modules[owner], owner, weight)
    weight = use.name.removesuffix("_v")
    if hasattr(use.module, f"{weight}_g"):
        return use._replace(name=weight)
    return use


def _last_with_outputs_of_an_embedding(model: nn.Module) -> nn.Module | None:
    """Return the last linear layer with as many outputs as an embedding has entries, or None."""
    sizes = {
        module.num_embeddings
        for module in model.modules()
        if isinstance(module, EMBEDDINGS)
    }
    blocks = _repeated_blocks(model)
    last = None
    for name, module in model.named_modules():
        has_outputs = isinstance(module, nn.Linear) and module.out_features in sizes
        # The output projection of the last block may have as many outputs as there are positions.
        if has_outputs and not _is_inside(without_wrappers(name), blocks):
            last = module
    return last


def _repeated_blocks(model: nn.Module) -> set[str]:
    """Return the names of modules of a `ModuleList`, and of those of a `Sequential` that has several of their class."""
    blocks: set[str] = set()
    for name, container in model.named_modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            continue
        of_class = Counter(map(type, container))
        for key, module in container.named_children():
            if isinstance(container, nn.ModuleList) or of_class[type(module)] > 1:
                blocks.add(without_wrappers(f"{name}.{key}" if name else key))
    return blocks


def _is_inside(name: str, blocks: Collection[str]) -> bool:
    """Whether a module is inside of one of these, and is not one itself."""
    parts = name.split(".")
    return any(".".join(parts[:i]) in blocks for i in range(1, len(parts)))


def _role(
    param: Tensor,
    uses: list[WeightUse],
    last: nn.Module | None,
    blocks: Collection[str],
    tied: str,
) -> str:
    if not param.requires_grad:
        return "frozen"
    is_head = any(_is_head(use, last, blocks) for use in uses)
    if any(map(_is_embedding, uses)):
        return tied if is_head else "embedding"
    if is_head:
        return "head"
    use = uses[0]
    # Without the dimensions of BatchNorm2d.
    if type(use.module).__name__.rstrip("123d").endswith("Norm"):
        role = {"weight": "norm", "bias": "bias"}.get(use.name)
        if role is not None:
            return role
    return _role_by_shape(param, use)


def _is_embedding(use: WeightUse) -> bool:
    if isinstance(use.module, EMBEDDINGS) and use.name == "weight":
        return True
    is_table = use.name.endswith(EMBEDDING_ENDINGS) or use.name in EMBEDDING_NAMES
    is_table = is_table or use.name.startswith("rel_pos_")
    return is_table or any(word in use.path for word in EMBEDDING_WORDS)


def _is_head(use: WeightUse, last: nn.Module | None, blocks: Collection[str]) -> bool:
    if not isinstance(use.module, nn.Linear) or use.name != "weight":
        return False
    around, _, name = use.module_name.rpartition(".")
    if around.rpartition(".")[2] in ROUTERS:  # which calls its only layer "classifier"
        return False
    if name == "linear":  # of a head that is a module of its own, as LeViT's
        name = around.rpartition(".")[2]
    if name in HEAD_NAMES_OUTSIDE_BLOCKS:
        return not _is_inside(use.module_name, blocks)
    return use.module is last or name in HEAD_NAMES


def _role_by_shape(param: Tensor, use: WeightUse) -> str:
    is_number = not is_lazy(param) and param.numel() == 1
    if is_number or use.name in INDEPENDENT_NUMBERS:
        return "scalar"
    if use.name.endswith(("bias", "biases")):
        return "bias"
    is_weight = use.name == "weight"
    if _is_vector(param) and (param.ndim == 1 or not is_weight):
        return "norm" if _has_scales(use) else "bias"
    return "conv" if isinstance(use.module, CONVOLUTIONS) and is_weight else "matrix"


def _has_scales(use: WeightUse) -> bool:
    """Whether a vector scales rows or columns, as the magnitudes of `weight_norm` do, also in its old form."""
    if isinstance(use.module, ParametrizationList):
        return use.name == "original0"
    return use.name in SCALE_NAMES or use.name.endswith("_g")


HEADS = (
    *("num_heads", "n_head", "n_heads", "num_attention_heads"),
    *("heads", "nhead", "nheads", "n_attn_heads"),
)
HEADS_OF_ATTENTION = ("h",)  # of other modules, it may be a height
HEAD_SIZES = ("head_dim", "attention_head_size", "head_size", "dim_head", "d_head")
KEY_HEADS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads", "n_kv_head")
# The numbers of blocks of projections: how often queries have a block per head, and keys or values have.
BLOCKS = {
    **dict.fromkeys(
        (
            *("q", "wq", "query", "q_proj", "to_q", "q_lin", "q_proj_weight"),
            *("query_proj", "query_global", "q_b_proj", "Wq", "W_q", "w_q", "w_qs"),
        ),
        (1, 0),
    ),
    **dict.fromkeys(
        (
            *("k", "wk", "key", "k_proj", "to_k", "k_lin", "k_proj_weight"),
            *("key_proj", "key_global", "Wk", "W_k", "w_k", "w_ks"),
        ),
        (0, 1),
    ),
    **dict.fromkeys(
        (
            *("v", "wv", "value", "v_proj", "to_v", "v_lin", "v_proj_weight"),
            *("value_proj", "value_global", "Wv", "W_v", "w_v", "w_vs"),
        ),
        (0, 1),
    ),
    # DeepSeek's keys and values of a head, from the compressed ones.
    "kv_b_proj": (0, 1),
    **dict.fromkeys(("kv", "to_kv", "kv_proj", "Wkv", "W_kv", "w_kv", "wkv"), (0, 2)),
    **dict.fromkeys(
        (
            *("qkv", "qkv_proj", "to_qkv", "attn_qkv", "kqv", "proj_qkv"),
            *("Wqkv", "W_qkv", "w_qkv", "wqkv"),
            *("in_proj", "in_proj_weight", "c_attn", "query_key_value"),
        ),
        (1, 2),
    ),
}
# Stacked matrices that no head divides: the gates of recurrent layers, and gate and values of gated MLPs.
GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
GATED = {"gate_up_proj": 2, "w12": 2}
# Of classes with stacked experts whose columns are outputs: whether columns of gate and values alternate.
ALTERNATES = {"Llama4": False, "GptOss": True}
# Beginnings and parts of the names of weights that multiply an input.
WEIGHT_BEGINNINGS = ("w", "lora_", "loha_", "lokr_")
WEIGHT_PARTS = ("weight", "kernel", "proj", "matrix", "expert")
# The branch of each role; see `label_by_role`.
BRANCH = {
    "matrix": "muon",
    "conv": "muon_conv",
    "head": "adamw",
    "frozen": "frozen",
    **dict.fromkeys(("embedding", "norm", "bias", "scalar"), "adamw_no_decay"),
}


@dataclass(frozen=True)
class RoleRow:
    """The treatment of a parameter.

    Attributes:
        name: Its name.
        shape: Its shape.
        role: Its role; see `label_by_role`.
        branch: The label of its transformation.
        heads: The number of blocks into which it is split; 1 for no split.
        dim: The dimension that is split.
        batch: The number of leading dimensions that index matrices, each of which has these blocks.
        alternates: Whether every block has every `heads`-th row or column, in place of consecutive ones.
        is_guessed: Whether nothing but the shape says that this is a matrix, and not a table of vectors, or that it is
            a head, and not the last matrix of another kind.
        may_be_fused: Whether its shape, three times as many rows as columns beside a number of heads, is that of
            fused queries, keys and values, though it has another name and is not split.
        may_be_gated: Whether it has the columns of a gate and of values, in an order that nothing tells.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    branch: str
    heads: int
    dim: int
    batch: int
    is_guessed: bool = False
    may_be_fused: bool = False
    may_be_gated: bool = False
    alternates: bool = False

    @property
    def role_shown(self) -> str:
        """The role in a table; a question mark says that it follows from the shape alone."""
        return f"{self.role}?" if self.is_guessed else self.role

    @property
    def blocks(self) -> str:
        """A description of the blocks."""
        if self.batch:
            return self._blocks_of_stack
        if self.heads > 1:
            return f"{self.heads} along {self.dim}"
        if self.may_be_fused:
            return f"1, or fused? {_argument_of_blocks(self)}"
        return ""

    @property
    def _blocks_of_stack(self) -> str:
        """A description of the blocks of a stack of matrices."""
        matrices = f"{math.prod(self.shape[: self.batch])} matrices"
        if self.may_be_gated:
            return f"{matrices}, or gates and values? blocks={{{self.name!r}: 2}}"
        if self.heads == 1:
            return matrices
        order = ", in turn" if self.alternates else ""
        return f"{matrices}, each {self.heads} along {self.dim}{order}"


class ModelOptimizer(ChainOptimizer):
    """The optimizer of a whole model, created by `muon_for`. Its repr is a table of all parameters.

    Attributes:
        rows: The treatment of each parameter.
    """

    rows: list[RoleRow]

    @property
    def transformation(self) -> GradientTransformation:
        """The equivalent transformation, for pure use on `dict(model.named_parameters())`."""
        return self._tx

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rows": self.rows}

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({table(self.rows)}\n)"


def muon_for(
    model: nn.Module,
    lr: Scalar = 0.02,
    adamw_lr: Scalar = 3e-4,
    weight_decay: Scalar = 0.1,
    adamw_weight_decay: Scalar = 0.1,
    *,
    method: Callable[..., GradientTransformation] | None = None,
    per_head: bool = True,
    conv: str = "muon",
    roles: Mapping[str, str] | None = None,
    blocks: Mapping[str, int] | None = None,
    tied: str = "embedding",
    betas: Betas = (0.9, 0.95),
    eps: Scalar = 1e-10,
    compile: bool | Engine = False,
    process_group: Any = None,
    **options: Any,
) -> ModelOptimizer:
    r"""Create the optimizer of a whole model: Muon for its matrices, AdamW for everything else.

    Roles are those of `label_by_role`. Matrices use `muon`: query, key and value weights with one block per head, and
    expert weights with one block per expert. The gates of LSTM and GRU have a block each, and so have both halves of
    `gate_up_proj` and `w12` of gated MLPs, also of stacked experts: halves of the rows as in Mixtral, Qwen and OLMoE,
    of the columns as in Llama 4, and alternating columns as in GPT-OSS. If `down_proj` shows that columns are outputs
    and the class is another one, they are not split, and the table asks. Other fused projections, such as an
    `in_proj`, are one matrix. Convolutions
    use `muon`, viewed as (out, all others), but depthwise ones `adamw`; heads use `adamw`; embeddings, norms, biases
    and scalars use `adamw` without decay. The number of heads is read from the attributes `num_heads`, `n_head`,
    `n_heads`, `num_attention_heads`, `heads` or `nhead` (of attention, `h`) of a module or of its `config`; that of
    keys and values from `num_key_value_heads`, `n_kv_heads`, `num_kv_heads` or `n_kv_head`; the size of a head from
    `head_dim`, `attention_head_size`, `head_size`, `dim_head` or `d_head`. Weights that do not fit, because a block
    would not be a multiple of a head, are not split. A warning names a weight that is not split although it may be
    fused queries, keys and values of another name; `blocks` says what it is.

    The optimizer has one group per branch. Its `label` names the branch and its `lr` is the rate of that branch, so a
    scheduler controls all rates. Print the optimizer to see the branch of each parameter. A parameter that requires no
    gradient now is never trained; to unfreeze it later, call `muon_for` before `requires_grad_(False)`.

    Args:
        model: The model.
        lr: Muon's learning rate.
        adamw_lr: AdamW's learning rate.
        weight_decay: Muon's decay, >= 0; unused by a method without decay.
        adamw_weight_decay: AdamW's decay of heads, >= 0.
        method: An optimizer of matrices in place of `muon`, such as `gradtx.normuon` or `gradtx.mud`: one that has the
            argument `fallback`. It gets `lr`, `weight_decay` and the options. None for `muon`.
        per_head: Whether query, key and value weights are split into one block per head.
        conv: "muon" or "adamw", for convolutions.
        roles: Other treatments by name pattern, of which the first match applies: `{"*.router.weight": "adamw"}`. A
            treatment is a role, or the label of a branch: "muon", "muon_conv", "adamw", "adamw_no_decay" or "frozen".
        blocks: The numbers of blocks of rows (where outputs are columns, as in the GPT-2 layer of transformers, of
            columns) by name pattern, of which the first match applies: `{"*.to_qkv.weight": 3 * heads}`; 1 for one
            matrix. Of stacked matrices, the blocks of each.
        tied: The role of a weight that is both an embedding and a head: "embedding" (no decay) or "head".
        betas: AdamW's, each in [0, 1).
        eps: AdamW's, >= 0.
        compile: As for `as_optimizer`.
        process_group: As for `as_optimizer`.
        **options: Other options of the method, such as `momentum`, `ns_coefficients` or `adjust_lr_fn`.

    Returns:
        A torch optimizer. `transformation` is its equivalent for pure use; `rows` contains the treatment of each
        parameter.

    Raises:
        TypeError: If `model` is not a module, if `method` is not an optimizer of matrices, or if an option is unknown.
        ValueError: If a hyperparameter is out of range, if `conv`, `tied` or a treatment is unknown, if a pattern of
            `roles` or `blocks` matches no parameter, if `roles` sends a vector to Muon, if `blocks` names what is no
            matrix of Muon or does not divide it, or if no parameter requires a gradient.

    Example:
        >>> model = torch.nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16)
        >>> optimizer = gradtx.muon_for(model, lr=0.02, adamw_lr=3e-4)
        >>> [(group["label"], group["lr"]) for group in optimizer.param_groups]
        [('muon', 0.02), ('adamw_no_decay', 0.0003)]
        >>> optimizer.rows[0].name, optimizer.rows[0].blocks
        ('self_attn.in_proj_weight', '6 along 0')
    """
    if conv not in ("muon", "adamw"):
        raise ValueError(f"muon_for: conv must be 'muon' or 'adamw', got {conv!r}")
    if tied not in ("embedding", "head"):
        raise ValueError(f"muon_for: tied must be 'embedding' or 'head', got {tied!r}")
    _check_model("muon_for", model)
    if not isinstance(roles, Mapping | None):
        raise TypeError(
            f"muon_for: roles must be a dict such as {{'*.router.weight': 'adamw'}}, got {describe(roles)}"
        )
    method = muon if method is None else method
    _check_method(method)
    _check_options(options)
    sizes = _chosen_blocks(model, blocks)
    rows = list(_rows(model, per_head, conv, tied, roles or {}, sizes))
    _warn_of_guesses(rows)
    if all(row.branch == "frozen" for row in rows):
        raise ValueError(
            "muon_for: the model has no parameters that require a gradient"
        )
    numbers: tuple[Any, ...] = (adamw_lr, betas, eps, adamw_weight_decay)
    other = adamw(*numbers)
    if "weight_decay" in _arguments_of(method):
        options["weight_decay"] = weight_decay
    branches = {
        "muon": _divided(method(lr=lr, fallback=None, **options), rows),
        "muon_conv": _for_kernels(method, rows, lr=lr, **options),
        "adamw": other,
        "adamw_no_decay": other.replace(weight_decay=0.0),
        "frozen": freeze("*"),
    }
    labels = {
        label: tuple(row.name for row in rows if row.branch == label)
        for label in branches
    }
    labels = {label: names for label, names in labels.items() if names}
    tx = partition({label: branches[label] for label in labels}, labels)
    optimizer = ModelOptimizer(
        tx,
        list(model.named_parameters()),
        compile=compile,
        process_group=process_group,
    )
    optimizer.rows = rows
    return optimizer


# Rows.


def _rows(
    model: nn.Module,
    per_head: bool,
    conv: str,
    tied: str,
    others: Mapping[str, str],
    sizes: Mapping[str, int],
) -> Iterator[RoleRow]:
    roles = label_by_role(model, tied=tied)
    chosen = _chosen(model, others)
    uses = uses_of(model)
    modules = {without_wrappers(name): module for name, module in model.named_modules()}
    for name, param in named_in_model(model):
        if is_lazy(param):
            raise ValueError(
                f"muon_for: parameter {name!r} has no shape yet; run the model once on an input"
            )
        role = chosen.get(name, roles[name])
        branch = BRANCH.get(role, role)  # or the label of a branch itself
        is_conv = branch == "muon_conv" and name not in chosen
        if is_conv and (conv == "adamw" or _is_depthwise(param, uses[param][0].module)):
            branch = "adamw"
        shape = tuple(param.shape)
        if branch in ("muon", "muon_conv") and param.ndim < 2:
            raise ValueError(
                f"muon_for: roles sends {name!r} of shape {shape} to {branch!r}, which needs at least 2 dimensions"
            )
        use = uses[param][0]
        heads, dim, may_be_fused, gates = 1, 0, False, UNGATED
        batch = param.ndim - 2 if branch == "muon" and param.ndim > 2 else 0
        if batch:
            gates = _gates_of_stack(param, use)
        if name in sizes:
            of_outputs = batch + _rows_of(use) if gates is UNGATED else gates.dim
            heads, dim = _checked_blocks(name, sizes[name], shape, branch, of_outputs)
            gates = gates._replace(may_be_gated=False, alternates=False)
        elif batch:
            heads, dim = gates.heads, gates.dim
        elif branch == "muon" and per_head:
            heads, dim = _cut(param, use, modules)
            may_be_fused = heads == 1 and _may_be_fused(param, use, modules)
        is_guessed = name not in chosen and (
            _is_guessed_matrix(param, use, branch)
            or (role == "head" and not _is_named_as_head(uses[param]))
        )
        yield RoleRow(
            name,
            shape,
            role,
            branch,
            heads,
            dim,
            batch,
            is_guessed,
            may_be_fused,
            gates.may_be_gated,
            gates.alternates,
        )


class Gates(NamedTuple):
    """The gates and values in each matrix of a stack: how many parts of which dimension, and in which order."""

    heads: int = 1
    dim: int = 0
    alternates: bool = False
    may_be_gated: bool = False


UNGATED = Gates()


def _gates_of_stack(param: Tensor, use: WeightUse) -> Gates:
    """Return the gates of stacked experts, whose next layer, `down_proj`, tells inputs and outputs apart."""
    heads, down = GATED.get(use.name, 1), getattr(use.module, "down_proj", None)
    if heads == 1 or param.ndim != 3 or not isinstance(down, Tensor):
        return UNGATED
    experts, rows, columns = param.shape
    if down.shape == (experts, columns, rows // heads) and rows % heads == 0:
        return Gates(heads, 1)
    if down.shape != (experts, columns // heads, rows) or columns % heads:
        return UNGATED
    name = type(use.module).__name__
    for beginning, alternates in ALTERNATES.items():
        if name.startswith(beginning):
            return Gates(heads, 2, alternates)
    return Gates(1, 2, may_be_gated=True)


def _is_guessed_matrix(param: Tensor, use: WeightUse, branch: str) -> bool:
    # A stack of matrices is no table of vectors.
    return branch == "muon" and param.ndim == 2 and not _is_named_as_weight(use)


def _is_named_as_head(uses: Iterable[WeightUse]) -> bool:
    return any(_is_head(use, None, ()) for use in uses)


def _checked_blocks(
    name: str, count: int, shape: tuple[int, ...], branch: str, dim: int
) -> tuple[int, int]:
    """Return the number of blocks that the user says a weight has, and the dimension to split."""
    if branch != "muon":
        raise ValueError(
            f"muon_for: blocks names {name!r} of shape {shape}, which goes to {branch!r}; only matrices of Muon have "
            "blocks"
        )
    if shape[dim] % count:
        raise ValueError(
            f"muon_for: blocks divides {name!r} of shape {shape} into {count} blocks along dimension {dim}, but "
            f"{shape[dim]} is no multiple of {count}"
        )
    return count, dim


def _rows_of(use: WeightUse) -> int:
    """Return the dimension of a weight that outputs have: 1 for the GPT-2 layer of transformers, of shape (in, out)."""
    return 1 if type(use.module).__name__ == "Conv1D" else 0


def _may_be_fused(
    param: Tensor, use: WeightUse, modules: Mapping[str, nn.Module]
) -> bool:
    """Whether a weight beside a number of heads has the shape of queries, keys and values."""
    dim = _rows_of(use)
    parent, _, module_name = use.module_name.rpartition(".")
    if use.name in BLOCKS or module_name in BLOCKS:
        return False  # of a known name, and not a multiple of the heads
    has_heads = any(
        _heads_of(modules.get(around)) is not None
        for around in (use.module_name, parent)
    )
    return has_heads and param.shape[dim] == 3 * param.shape[1 - dim]


def _argument_of_blocks(row: RoleRow) -> str:
    return f"blocks={{{row.name!r}: 3 * heads}}"


def _arguments_of(method: Any) -> Mapping[str, Any]:
    return method.spec.arguments.by_name if hasattr(method, "spec") else {}


def _check_method(method: Any) -> None:
    """Raise an error for what is no optimizer of matrices, such as a transformation or `adamw`."""
    if not {"lr", "fallback"} <= set(_arguments_of(method)):
        raise TypeError(
            "muon_for: method must be an optimizer with the argument fallback, such as gradtx.muon or gradtx.mud, got "
            f"{describe(method)}"
        )


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise an error for an option that says how many heads there are."""
    for name in options:
        if name in HEADS or name in HEADS_OF_ATTENTION:
            raise TypeError(
                f"muon_for: there is no option {name!r}: numbers of heads are read from the modules that have them; "
                "pass the number of blocks of a weight by its name: blocks={'*.to_qkv.weight': 3 * heads}"
            )


def _chosen_blocks(
    model: nn.Module, blocks: Mapping[str, int] | None
) -> dict[str, int]:
    """Return the number of blocks of each weight that a pattern of the user selects."""
    if not isinstance(blocks, Mapping | None):
        raise TypeError(
            f"muon_for: blocks must be a dict such as {{'*.to_qkv.weight': 3 * heads}}, got {describe(blocks)}"
        )
    named = dict(named_in_model(model))
    sizes: dict[str, int] = {}
    for pattern, count in (blocks or {}).items():
        if type(count) is not int or count < 1:
            raise ValueError(
                f"muon_for: blocks[{pattern!r}] must be an int in [1, inf), got {describe(count)}"
            )
        selector = Selector.of("muon_for: blocks", pattern)
        selector.check_used(list(named))
        for name, param in named.items():
            if selector.choose(name, param):
                sizes.setdefault(name, count)
    return sizes


def _is_named_as_weight(use: WeightUse) -> bool:
    """Whether the name of a parameter says that it multiplies an input."""
    name = use.name.lower()
    return name.startswith(WEIGHT_BEGINNINGS) or any(
        part in name for part in WEIGHT_PARTS
    )


def _warn_of_guesses(rows: Iterable[RoleRow]) -> None:
    """Warn of parameters of which only their shape says that they are matrices, and each a single one."""
    fused = [row for row in rows if row.may_be_fused]
    if fused:
        warn_user(
            f"muon_for: {listed([row.name for row in fused])} may be fused queries, keys and values, which Muon treats "
            f"as one matrix; pass {_argument_of_blocks(fused[0])}, or 1 if it is one matrix"
        )
    guessed = [row.name for row in rows if row.is_guessed and row.branch == "muon"]
    if guessed:
        warn_user(
            f"muon_for: {listed(guessed)} may be tables of vectors rather than matrices; pass "
            f"roles={{{guessed[0]!r}: 'embedding'}}, or 'matrix' if it multiplies an input; names do not tell"
        )


def _chosen(model: nn.Module, others: Mapping[str, str]) -> dict[str, str]:
    """Return the treatment of each parameter that a pattern of the user selects."""
    named = dict(named_in_model(model))
    known = {*BRANCH, *BRANCH.values()}
    chosen: dict[str, str] = {}
    for pattern, treatment in others.items():
        if treatment not in known:
            raise ValueError(
                f"muon_for: roles[{pattern!r}] must be one of {', '.join(sorted(known))}, got {treatment!r}"
            )
        selector = Selector.of("muon_for: roles", pattern)
        selector.check_used(list(named))
        for name, param in named.items():
            if selector.choose(name, param):
                chosen.setdefault(name, treatment)
    return chosen


def _is_depthwise(weight: Tensor, module: nn.Module) -> bool:
    """Whether a convolution has one kernel per channel, so that its weight is no matrix."""
    return isinstance(module, CONVOLUTIONS) and module.groups > 1 == weight.shape[1]


def _cut(
    param: Tensor, use: WeightUse, modules: Mapping[str, nn.Module]
) -> tuple[int, int]:
    """Return the number of blocks of a weight and the dimension to split; (1, 0) for no split."""
    dim = _rows_of(use)
    parent, _, module_name = use.module_name.rpartition(".")
    stacked = GATED.get(module_name, 1)
    if use.name.startswith(("weight_ih", "weight_hh")):
        stacked = GATES.get(type(use.module), 1)
    if stacked > 1 and param.shape[dim] % stacked == 0:
        return stacked, dim
    # A projection may be nested one level below the module that knows the number of heads.
    for part, around in ((use.name, use.module_name), (module_name, parent)):
        heads = _heads_of(modules.get(around))
        if heads is not None:
            queries, keys = BLOCKS.get(part, (0, 0))
            count = queries * heads.queries + keys * heads.keys or 1
            size, rest = divmod(param.shape[dim], count)
            # Of a weight for queries, keys and values that has other rows too, such as those of a gate.
            of_input = param.shape[1 - dim] // heads.queries if queries and keys else 1
            fits = rest == 0 and size % (heads.size or of_input or 1) == 0
            return (count, dim) if fits else (1, 0)
    return 1, 0


class Heads(NamedTuple):
    """The numbers of query and key heads of an attention module, and their size; None if it is unknown."""

    queries: int
    keys: int
    size: int | None


def _heads_of(module: nn.Module | None) -> Heads | None:
    """Return the heads of an attention module; None for other modules."""
    config = getattr(module, "config", None)
    is_attention = "attention" in type(module).__name__.lower()
    config_of_heads = config if is_attention else None
    names = (*HEADS, *HEADS_OF_ATTENTION) if is_attention else HEADS
    queries = _first_count(names, module, config_of_heads)
    if queries is None:
        return None
    keys = _first_count(KEY_HEADS, module, config) or queries
    return Heads(queries, keys, _first_count(HEAD_SIZES, module, config_of_heads))


def _first_count(names: tuple[str, ...], *sources: Any) -> int | None:
    for source in sources:
        for name in names:
            value = getattr(source, name, None)
            if type(value) is int and value > 0:
                return value
    return None


# The transformation.


def _divided(tx: GradientTransformation, rows: list[RoleRow]) -> GradientTransformation:
    """Wrap a transformation in `blocks` for all rows, with one combinator per kind of split."""
    names_of_split: dict[tuple[int, int, bool], list[str]] = defaultdict(list)
    names_of_batch: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        if row.branch != "muon":
            continue
        if row.heads > 1:
            split = row.heads, row.dim - row.batch, row.alternates
            names_of_split[split].append(row.name)
        if row.batch:
            names_of_batch[row.batch].append(row.name)
    for (heads, dim, alternates), names in names_of_split.items():
        division: dict[str, Any] = {"heads": heads, "dim": dim}
        if alternates:
            division = {"view": (_alternating_columns, _joined_columns)}
        tx = in_blocks(tx, tuple(names), **division)
    # Around the splits, which are those of each matrix of a stack.
    for batch, names in names_of_batch.items():
        tx = in_blocks(tx, tuple(names), batch=batch)
    return tx


def _alternating_columns(matrix: Tensor) -> tuple[Tensor, Tensor]:
    return matrix[:, ::2], matrix[:, 1::2]


def _joined_columns(halves: list[Tensor]) -> Tensor:
    """The reverse of `_alternating_columns`."""
    return torch.stack(halves, dim=2).flatten(1)


def _for_kernels(
    method: Any, rows: list[RoleRow], **options: Any
) -> GradientTransformation:
    """Return a method that treats convolutions as (out, all others)."""
    if "view" in _arguments_of(method):
        return method(view="flatten", **options)
    tx = method(**options)
    names_of_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for row in rows:
        if row.branch == "muon_conv":
            names_of_shape[row.shape].append(row.name)
    for shape, names in names_of_shape.items():
        view = _flattened, functools.partial(_unflattened, shape)
        tx = in_blocks(tx, tuple(names), view=view)
    return tx


def _flattened(kernel: Tensor) -> tuple[Tensor]:
    return (kernel.flatten(1),)


def _unflattened(shape: tuple[int, ...], matrices: list[Tensor]) -> Tensor:
    return matrices[0].reshape(shape)


def table(rows: list[RoleRow]) -> str:
    """Format the treatment of each parameter as a table."""
    cells = [("parameter", "shape", "role", "to", "blocks")]
    cells += [
        (row.name, str(row.shape), row.role_shown, row.branch, row.blocks)
        for row in rows
    ]
    return "".join(f"\n    {line}" for line in aligned(cells, str.ljust))
