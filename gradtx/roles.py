"""Roles of a model's parameters: matrices, embeddings, heads, norms, biases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from gradtx import _torch
from gradtx._messages import describe
from gradtx._selectors import in_model, without_wrappers

__all__ = ["label_by_role"]

EMBEDDING_WORDS = (
    "pos_emb",
    "position_embedding",
    "positional_embedding",
    "class_embedding",
    "position_bias_table",
)
# Of class, mask, distillation and register tokens.
TOKEN_ENDINGS = ("_token", "_tokens")
HEAD_NAMES = ("lm_head", "head", "classifier", "fc_out", "score")
NORMS = (
    *_torch.norms_of_batches(),
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
CONVOLUTIONS = _torch.convolutions()
SCALE_NAMES = ("weight", "gamma", "scale")


class Place(NamedTuple):
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
    | "embedding" | the weight of an `Embedding` or `EmbeddingBag`, position embeddings and learned tokens by name |
    | "head" | the weight of an output layer (see below) |
    | "norm", "bias" | the weight and bias of a norm: torch's classes, and modules whose class name ends in Norm |
    | "scalar" | has a single entry |
    | "norm" | the magnitudes of `weight_norm` |
    | "bias" | its name ends in "bias", or it has one dimension ("norm" if its name is weight, gamma or scale) |
    | "conv" | the weight of a convolution |
    | "matrix" | all others |

    Dimensions of size 1 count only in tensors named weight. What a parametrization (`weight_norm`, `spectral_norm`)
    computes a weight from has the role of the weight.

    An output layer is the last `Linear` with as many outputs as an embedding has entries, or a `Linear` named lm_head,
    head, classifier, fc_out or score.

    Args:
        model: The model. Names are those of `named_parameters()` without what `DistributedDataParallel`,
            `torch.compile` and FSDP insert, as selectors see them.
        tied: The role of a weight that is both an embedding and a head.

    Returns:
        A dict name -> role, for `partition` (`lambda name, p: roles[name]`).

    Raises:
        TypeError: If `model` is not a module, or if `tied` is not a string.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Embedding(9, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)
        ... )
        >>> gradtx.label_by_role(model)
        {'0.weight': 'embedding', '1.weight': 'norm', '1.bias': 'bias', '2.weight': 'matrix', '2.bias': 'bias'}
    """
    _check_arguments(model, tied)
    places = places_of(model)
    last = _last_with_outputs_of_an_embedding(model)
    roles: dict[str, str] = {}
    for name, param in named_in_model(model):
        roles[name] = _role(param, places[param], last, tied)
    return roles


def _check_arguments(model: Any, tied: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"label_by_role: model must be a torch.nn.Module, got {describe(model)}"
        )
    if not isinstance(tied, str):
        raise TypeError(
            f"label_by_role: tied must be the name of a role, got {describe(tied)}"
        )


def named_in_model(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters with their names in the model without wrappers."""
    named = dict(model.named_parameters())
    return list(zip(in_model(named), named.values(), strict=True))


def named_modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Yield the modules by name, with type annotations that torch lacks."""
    return cast("Iterable[tuple[str, nn.Module]]", model.named_modules())


def places_of(model: nn.Module) -> dict[Tensor, list[Place]]:
    """Return all places of each parameter; a tied parameter has several."""
    places: dict[Tensor, list[Place]] = {}
    modules = {without_wrappers(name): module for name, module in named_modules(model)}
    for module_name, module in named_modules(model):
        for name, param in module.named_parameters(
            recurse=False, remove_duplicate=False
        ):
            place = Place(module, without_wrappers(module_name), name)
            if not _is_magnitude(place, param):
                place = _of_weight(place, modules)
            places.setdefault(param, []).append(place)
    return places


def _is_magnitude(place: Place, param: Tensor) -> bool:
    """Whether a parameter has the norms of a weight's rows or columns, as in `weight_norm`, also in its old form."""
    if is_lazy(param) or param.numel() != max(param.shape, default=1):
        return False
    if isinstance(place.module, ParametrizationList):
        return place.name == "original0" and hasattr(place.module, "original1")
    return place.name.endswith("_g") and hasattr(place.module, f"{place.name[:-1]}v")


def _of_weight(place: Place, modules: Mapping[str, nn.Module]) -> Place:
    """Return the place of the weight that is computed from a parameter: `fc.weight` for `fc.weight_v`."""
    if isinstance(place.module, ParametrizationList):
        parametrizations, _, weight = place.module_name.rpartition(".")
        owner = parametrizations.rpartition(".")[0]
        return Place(modules[owner], owner, weight)
    weight = place.name.removesuffix("_v")
    if hasattr(place.module, f"{weight}_g"):
        return place._replace(name=weight)
    return place


def _linears(model: nn.Module) -> Iterator[tuple[nn.Linear, Tensor]]:
    for module in model.modules():
        if isinstance(module, nn.Linear) and not is_lazy(module.weight):
            yield module, module.weight


def _last_with_outputs_of_an_embedding(model: nn.Module) -> nn.Module | None:
    """Return the last linear layer with as many outputs as an embedding has entries, or None."""
    sizes = {
        module.num_embeddings
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    last = None
    for module, weight in _linears(model):
        if weight.shape[0] in sizes:
            last = module
    return last


def _role(param: Tensor, places: list[Place], last: nn.Module | None, tied: str) -> str:
    if not param.requires_grad:
        return "frozen"
    embeds = any(map(_is_embedding, places))
    heads = any(_is_head(place, last) for place in places)
    if embeds:
        return tied if heads else "embedding"
    if heads:
        return "head"
    place = places[0]
    if _is_norm(place.module) and place.name in ("weight", "bias"):
        return "norm" if place.name == "weight" else "bias"
    return _role_by_shape(param, place)


def _is_embedding(place: Place) -> bool:
    if (
        isinstance(place.module, nn.Embedding | nn.EmbeddingBag)
        and place.name == "weight"
    ):
        return True
    return place.name.endswith(TOKEN_ENDINGS) or any(
        word in place.path for word in EMBEDDING_WORDS
    )


def _is_head(place: Place, last: nn.Module | None) -> bool:
    if not isinstance(place.module, nn.Linear) or place.name != "weight":
        return False
    return place.module is last or place.module_name.rpartition(".")[2] in HEAD_NAMES


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) or type(module).__name__.endswith("Norm")


def _role_by_shape(param: Tensor, place: Place) -> str:
    if is_lazy(param):  # it has no shape yet
        return "bias" if place.name.endswith("bias") else "matrix"
    if param.numel() == 1:
        return "scalar"
    if _is_magnitude(place, param):
        return "norm"
    if place.name.endswith("bias"):
        return "bias"
    is_vector = param.ndim == 1 or param.numel() == max(param.shape)
    if param.ndim == 1 or (is_vector and place.name != "weight"):
        return "norm" if place.name in SCALE_NAMES else "bias"
    return (
        "conv"
        if isinstance(place.module, CONVOLUTIONS) and place.name == "weight"
        else "matrix"
    )
