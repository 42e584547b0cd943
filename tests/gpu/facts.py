"""What a GPU has shown of torch's operations: which take operands on the host, wait, can be captured, launch once.

The pretended GPU (`tests/gpu/pretend.py`) knows nothing else. `python -m tests.gpu --part facts` tries every fact on a
real GPU and prints those that are no longer true; `tests/gpu/test_facts.py` tries them on the pretended one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten
Fact = Callable[[torch.device], Callable[[], Any]]
FACTS: dict[str, Fact] = {}


def fact(name: str) -> Callable[[Fact], Fact]:
    def added(function: Fact) -> Fact:
        FACTS[name] = function
        return function

    return added


def _matrix(device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 6, generator=generator, dtype=torch.float64).to(device, dtype) + 0.5


def _positive(device: torch.device, *batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(*batch, 6, 6, generator=generator)
    return (x @ x.mT + torch.eye(6)).to(device)


HOST = torch.tensor(0.5, dtype=torch.float64)
FLAG = torch.tensor(True)

# Operations of a tensor on the device and a 0-d one on the host, in both orders.
TWO = (
    "add sub mul div pow maximum minimum fmax fmin atan2 fmod remainder rsub eq ne lt gt ge le "
    "logical_and logical_or logical_xor copysign hypot xlogy true_divide floor_divide heaviside logaddexp "
    "float_power nextafter"
)


def _two(name: str, host_first: bool) -> Fact:
    def made(device):
        x = _matrix(device)
        args = (HOST, x) if host_first else (x, HOST)
        return lambda: getattr(torch, name)(*args)

    return made


for _name in TWO.split():
    FACTS[f"{_name}(device, host)"] = _two(_name, False)
    FACTS[f"{_name}(host, device)"] = _two(_name, True)

_HOST_OPERANDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "add(device, host, alpha=number)": lambda x: torch.add(x, HOST, alpha=2.0),
    "add_(device, host)": lambda x: x.clone().add_(HOST),
    "mul_(device, host)": lambda x: x.clone().mul_(HOST),
    "div_(device, host)": lambda x: x.clone().div_(HOST),
    "pow_(device, host)": lambda x: x.clone().pow_(HOST),
    "clamp(device, min=host)": lambda x: torch.clamp(x, min=HOST),
    "clamp(device, max=host)": lambda x: torch.clamp(x, max=HOST),
    "clamp(device, min=host, max=host)": lambda x: torch.clamp(x, min=HOST, max=HOST),
    "clamp_min(device, host)": lambda x: torch.clamp_min(x, HOST),
    "clamp_max(device, host)": lambda x: torch.clamp_max(x, HOST),
    "clamp(0-d device, min=host)": lambda x: torch.clamp(x.sum(), min=HOST),
    "clamp(host, max=0-d device)": lambda x: torch.clamp(HOST, max=x.sum()),
    "where(device, host, host)": lambda x: torch.where(x > 1, HOST, HOST),
    "where(device, device, host)": lambda x: torch.where(x > 1, x, HOST),
    "where(device, host, device)": lambda x: torch.where(x > 1, HOST, x),
    "where(host, device, device)": lambda x: torch.where(FLAG, x, x),
    "where(host, device, host)": lambda x: torch.where(FLAG, x, HOST),
    "lerp(device, device, host)": lambda x: torch.lerp(x, x, HOST.float()),
    "lerp(device, host, number)": lambda x: torch.lerp(x, HOST.float(), 0.5),
    "lerp_(device, device, host)": lambda x: x.clone().lerp_(x, HOST.float()),
    "addcmul(device, device, host)": lambda x: torch.addcmul(x, x, HOST),
    "addcmul(device, host, host)": lambda x: torch.addcmul(x, HOST, HOST),
    "addcmul(host, device, device)": lambda x: torch.addcmul(HOST, x, x),
    "addcdiv(device, device, host)": lambda x: torch.addcdiv(x, x, HOST),
    "addcdiv(device, host, device)": lambda x: torch.addcdiv(x, HOST, x),
    "bitwise_and(device, host)": lambda x: torch.bitwise_and(x > 1, FLAG),
    "bitwise_or(device, host)": lambda x: torch.bitwise_or(x > 1, FLAG),
    "fill_(device, host)": lambda x: x.clone().fill_(HOST),
    "masked_fill(device, device, host)": lambda x: x.masked_fill(x > 1, HOST),
    "masked_fill(device, host, number)": lambda x: x.masked_fill(FLAG, 0.5),
    "stack([device, host])": lambda x: torch.stack([x.sum(), HOST.float()]),
    "cat([device, host])": lambda x: torch.cat([x[0], HOST.float().reshape(1)]),
    "addmm(device, beta=host)": lambda x: torch.addmm(x, x, x, beta=HOST),
    "add(device, device, alpha=host)": lambda x: torch.add(x, x, alpha=HOST),
    "mm(device, host)": lambda x: x @ torch.ones(6, 6),
    "dot(device, host)": lambda x: torch.dot(x[0], torch.ones(6)),
    "mul(device, host vector)": lambda x: x * torch.ones(6),
    "mul(device, host of one entry)": lambda x: x * torch.ones(1),
    "mul(0-d device, host)": lambda x: x.sum() * HOST,
    "mul(0-d device, host vector)": lambda x: x.sum() * torch.ones(6),
    "copysign_(device, host)": lambda x: x.clone().copysign_(HOST),
    "full((), host)": lambda x: torch.full((2,), HOST, device=x.device),
    "isclose(device, host)": lambda x: torch.isclose(x, HOST.float()),
    "allclose(device, device)": lambda x: torch.allclose(x, x),
    "maximum(0-d device, host)": lambda x: torch.maximum(x.sum(), HOST),
    "index by a host vector": lambda x: x[torch.tensor([0, 1])],
    "index by a host mask": lambda x: x[torch.tensor([True, False] * 3)],
    "index by a 0-d host tensor": lambda x: x[torch.tensor(1)],
    "index by a device vector": lambda x: x[x[0].argsort()],
    "index_put by a host vector": lambda x: x.index_put((torch.tensor([0, 1]),), x[:2]),
    "gather by a host vector": lambda x: x.gather(0, torch.zeros(1, 6, dtype=torch.int64)),
    "vmap: clamp(min=host)": lambda x: torch.vmap(lambda r: r.clamp(min=HOST))(x),
    "vmap: maximum(host)": lambda x: torch.vmap(lambda r: torch.maximum(r, HOST))(x),
    "vmap: mul(host)": lambda x: torch.vmap(lambda r: r * HOST)(x),
    "vmap: where(device, r, host)": lambda x: torch.vmap(lambda r: torch.where(r > 1, r, HOST))(x),
    "vmap: where(host flag)": lambda x: torch.vmap(lambda r: torch.where(FLAG, r, r))(x),
    "vmap: 0-d rows times host": lambda x: torch.vmap(lambda r: r.sum() * HOST)(x),
    "vmap: maximum(0-d rows, host)": lambda x: torch.vmap(lambda r: torch.maximum(r.sum(), HOST))(x),
    "vmap: where(0-d row flag, r, host)": lambda x: torch.vmap(lambda r: torch.where(r.sum() > 1, r, HOST))(x),
    "vmap: div(host, 0-d rows)": lambda x: torch.vmap(lambda r: HOST / r.sum())(x),
    "vmap over host: times device": lambda x: torch.vmap(lambda s: s * x)(torch.ones(3)),
    "vmap: pow(host, 0-d rows)": lambda x: torch.vmap(lambda r: HOST ** r.sum())(x),
    "vmap: addcmul(0-d host)": lambda x: torch.vmap(lambda r: torch.addcmul(r, r, HOST))(x),
    "vmap: lerp(weight host)": lambda x: torch.vmap(lambda r: torch.lerp(r, r, HOST.float()))(x),
}
_ON_DEVICE: dict[str, Callable[[torch.Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool(x.sum() > 0),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to(cpu, non_blocking)": lambda x: x.to("cpu", non_blocking=True),
    "host 0-d to device": lambda x: HOST.to(x.device),
    "host matrix to device": lambda x: torch.ones(6, 6).to(x.device),
    "host 0-d to device, non_blocking": lambda x: HOST.to(x.device, non_blocking=True),
    "host matrix to device, non_blocking": lambda x: torch.ones(6, 6).to(x.device, non_blocking=True),
    "copy_(device, host 0-d)": lambda x: x.sum().copy_(HOST),
    "copy_(device matrix, host 0-d)": lambda x: x.clone().copy_(HOST),
    "copy_(host, device)": lambda x: torch.ones(6, 6).copy_(x),
    "_foreach_copy_(device, host)": lambda x: torch._foreach_copy_([x.clone()], [torch.ones(6, 6)]),
    "torch.tensor(number, device)": lambda x: torch.tensor(0.5, device=x.device),
    "torch.as_tensor(number, device)": lambda x: torch.as_tensor(0.5, device=x.device),
    "new_tensor(number)": lambda x: x.new_tensor(0.5),
    "full": lambda x: torch.full((), 0.5, device=x.device),
    "new_full": lambda x: x.new_full((3,), 0.5),
    "zeros + host": lambda x: torch.zeros((), device=x.device) + HOST,
    "eye": lambda x: torch.eye(6, device=x.device),
    "arange": lambda x: torch.arange(6, device=x.device),
    "linspace": lambda x: torch.linspace(0, 1, 6, device=x.device),
    "triu_indices": lambda x: torch.triu_indices(6, 6, device=x.device),
    "nonzero": lambda x: torch.nonzero(x > 1),
    "masked_select": lambda x: x[x > 1],
    "assign by mask": lambda x: x.clone().masked_fill_(x > 1, 0.0),
    "where of one argument": lambda x: torch.where(x > 1),
    "equal": lambda x: torch.equal(x, x.clone()),
    "unique": lambda x: torch.unique(x),
    "sort": lambda x: x.sort(),
    "argsort": lambda x: x.argsort(),
    "topk": lambda x: x.topk(2),
    "kthvalue": lambda x: x.kthvalue(2),
    "median": lambda x: x.median(),
    "median of rows": lambda x: x.median(1),
    "quantile": lambda x: torch.quantile(x, 0.5),
    "nanmedian": lambda x: x.nanmedian(),
    "mode": lambda x: x.mode(),
    "cumsum": lambda x: x.cumsum(0),
    "logcumsumexp": lambda x: x.logcumsumexp(0),
    "searchsorted": lambda x: torch.searchsorted(x[0].sort().values, x[1]),
    "bucketize": lambda x: torch.bucketize(x, x[0].sort().values),
    "histc": lambda x: torch.histc(x, 4),
    "bincount": lambda x: torch.bincount((x.flatten() * 3).long()),
    "isin": lambda x: torch.isin(x, x[0]),
    "any": lambda x: (x > 1).any(),
    "randn of the device's generator": lambda x: torch.randn(6, device=x.device),
    "randn of a generator on the host": lambda x: torch.randn(6, generator=torch.Generator()).to(x.device),
    "randperm": lambda x: torch.randperm(6, device=x.device),
    "multinomial": lambda x: torch.multinomial(x, 2),
    "repeat_interleave by a tensor": lambda x: x.repeat_interleave((x[0] > 0).long(), 0),
    "split by sizes": lambda x: x.split([2, 4]),
    "max of rows": lambda x: x.max(1),
    "argmax": lambda x: x.argmax(),
    "index_select": lambda x: x.index_select(0, x[0].argsort()),
    "gather": lambda x: x.gather(0, x.argsort(0)),
    "scatter": lambda x: x.scatter(0, x.argsort(0), x),
    "diag": lambda x: x.diag(),
    "tril": lambda x: x.tril(),
    "roll": lambda x: x.roll(1, 0),
    "flip": lambda x: x.flip(0),
    "mm": lambda x: x @ x,
    "bmm": lambda x: x[None] @ x[None],
    "addmm with device scalars": lambda x: torch.addmm(x, x, x, beta=x.sum()),
    "add(alpha=device)": lambda x: torch.add(x, x, alpha=x.sum()),
    "pow(device 0-d)": lambda x: x ** x[0, 0],
    "isfinite all": lambda x: x.isfinite().all(),
    "logdet": lambda x: torch.logdet(x),
    "matrix_exp": lambda x: torch.matrix_exp(x),
    "matrix_norm 2": lambda x: torch.linalg.matrix_norm(x, 2),
    "vector_norm": lambda x: torch.linalg.vector_norm(x),
    "matrix_power": lambda x: torch.linalg.matrix_power(x, 3),
    "data-dependent expand": lambda x: x.expand(2, 6, 6),
    "view_as_complex": lambda x: torch.view_as_complex(x.reshape(18, 2)),
    "fft": lambda x: torch.fft.rfft(x),
    "erfinv": lambda x: torch.erfinv(x - 1),
    "special.ndtri": lambda x: torch.special.ndtri(x / 2),
    "stack of 0-d": lambda x: torch.stack([x.sum(), x.max()]),
    "float8 conversion": lambda x: x.to(torch.float8_e4m3fn).to(torch.float32),
}
_FACTORIZATIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "eigh": lambda x: torch.linalg.eigh(x),
    "eigvalsh": lambda x: torch.linalg.eigvalsh(x),
    "qr": lambda x: torch.linalg.qr(x),
    "svd": lambda x: torch.linalg.svd(x),
    "svdvals": lambda x: torch.linalg.svdvals(x),
    "svd, gesvd": lambda x: torch.linalg.svd(x, driver="gesvd") if x.device.type == "cuda" else torch.linalg.svd(x),
    "cholesky": lambda x: torch.linalg.cholesky(x),
    "cholesky_ex": lambda x: torch.linalg.cholesky_ex(x),
    "inv": lambda x: torch.linalg.inv(x),
    "inv_ex": lambda x: torch.linalg.inv_ex(x),
    "solve": lambda x: torch.linalg.solve(x, x),
    "solve_ex": lambda x: torch.linalg.solve_ex(x, x),
    "solve_triangular": lambda x: torch.linalg.solve_triangular(x.triu(), x, upper=True),
    "lu_factor_ex": lambda x: torch.linalg.lu_factor_ex(x),
    "pinv": lambda x: torch.linalg.pinv(x),
    "lstsq": lambda x: torch.linalg.lstsq(x, x),
    "cholesky_inverse": lambda x: torch.cholesky_inverse(torch.linalg.cholesky_ex(x)[0]),
    "cholesky_solve": lambda x: torch.cholesky_solve(x, torch.linalg.cholesky_ex(x)[0]),
    "slogdet": lambda x: torch.linalg.slogdet(x),
    "matrix_rank": lambda x: torch.linalg.matrix_rank(x),
    "householder_product": lambda x: torch.linalg.householder_product(*torch.geqrf(x)),
    "ldl_factor_ex": lambda x: torch.linalg.ldl_factor_ex(x),
}


def _of(function: Callable[[torch.Tensor], Any], make: Callable[[torch.device], torch.Tensor]) -> Fact:
    def made(device):
        x = make(device)
        return lambda: function(x)

    return made


for _name, _function in {**_HOST_OPERANDS, **_ON_DEVICE}.items():
    FACTS[_name] = _of(_function, _matrix)
for _name, _function in _FACTORIZATIONS.items():
    FACTS[f"linalg: {_name}"] = _of(_function, _positive)
    FACTS[f"linalg: {_name} of 3"] = _of(_function, lambda device: _positive(device, 3))

# Operations on lists: ten matrices; a call on its fast route launches once.
COUNT = 10


def _lists(device: torch.device) -> dict[str, Any]:
    def some(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        return [_matrix(device, dtype) for _ in range(COUNT)]

    return {
        "x": some(),
        "y": some(),
        "z": some(),
        "half": some(torch.bfloat16),
        "double": some(torch.float64),
        "odd": [_matrix(device).mT for _ in range(COUNT)],
        "columns": [torch.ones(6, 12, device=device)[:, :6] for _ in range(COUNT)],
        "mixed": [_matrix(device, torch.bfloat16 if i % 2 else torch.float32) for i in range(COUNT)],
        "sizes": [torch.ones(i + 1, device=device) for i in range(COUNT)],
        "numbers": [torch.ones((), device=device) for _ in range(COUNT)],
        "doubles": [torch.ones((), device=device, dtype=torch.float64) for _ in range(COUNT)],
        "s": torch.full((), 0.5, device=device),
        "d": torch.full((), 0.5, device=device, dtype=torch.float64),
        "h": torch.full((), 0.5),
        "scalars": [0.5] * COUNT,
        "vector": torch.full((COUNT,), 0.5),
        "device_vector": torch.full((COUNT,), 0.5, device=device),
    }


F = torch
_LISTS: dict[str, Callable[..., Any]] = {
    "add(x, number)": lambda a: F._foreach_add(a["x"], 0.5),
    "add(x, y)": lambda a: F._foreach_add(a["x"], a["y"]),
    "add(x, y, alpha=number)": lambda a: F._foreach_add(a["x"], a["y"], alpha=0.5),
    "add_(x, y, alpha=number)": lambda a: F._foreach_add_(a["x"], a["y"], alpha=0.5),
    "add(x, tensor)": lambda a: F._foreach_add(a["x"], a["s"]),
    "add_(x, tensor)": lambda a: F._foreach_add_(a["x"], a["s"]),
    "add(x, tensor, alpha=1)": lambda a: F._foreach_add(a["x"], a["s"], alpha=1),
    "add_(x, tensor, alpha=1)": lambda a: F._foreach_add_(a["x"], a["s"], alpha=1),
    "add(x, float64, alpha=1)": lambda a: F._foreach_add(a["x"], a["d"], alpha=1),
    "add(x, host, alpha=1)": lambda a: F._foreach_add(a["x"], a["h"], alpha=1),
    "add(x, scalars)": lambda a: F._foreach_add(a["x"], a["scalars"]),
    "sub(x, number)": lambda a: F._foreach_sub(a["x"], 0.5),
    "sub(x, y, alpha=number)": lambda a: F._foreach_sub(a["x"], a["y"], alpha=0.5),
    "sub(x, tensor)": lambda a: F._foreach_sub(a["x"], a["s"]),
    "mul(x, number)": lambda a: F._foreach_mul(a["x"], 0.5),
    "mul(x, tensor)": lambda a: F._foreach_mul(a["x"], a["s"]),
    "mul_(x, tensor)": lambda a: F._foreach_mul_(a["x"], a["s"]),
    "mul(x, float64)": lambda a: F._foreach_mul(a["x"], a["d"]),
    "mul_(x, float64)": lambda a: F._foreach_mul_(a["x"], a["d"]),
    "mul(x, host)": lambda a: F._foreach_mul(a["x"], a["h"]),
    "mul_(x, host)": lambda a: F._foreach_mul_(a["x"], a["h"]),
    "mul(half, float32 tensor)": lambda a: F._foreach_mul(a["half"], a["s"]),
    "mul(x, y)": lambda a: F._foreach_mul(a["x"], a["y"]),
    "mul(x, numbers)": lambda a: F._foreach_mul(a["x"], a["numbers"]),
    "mul_(x, numbers)": lambda a: F._foreach_mul_(a["x"], a["numbers"]),
    "mul(x, half)": lambda a: F._foreach_mul(a["x"], a["half"]),
    "mul(x, odd)": lambda a: F._foreach_mul(a["x"], a["odd"]),
    "mul(odd, odd)": lambda a: F._foreach_mul(a["odd"], a["odd"]),
    "mul(columns, number)": lambda a: F._foreach_mul(a["columns"], 0.5),
    "mul(sizes, sizes)": lambda a: F._foreach_mul(a["sizes"], a["sizes"]),
    "mul(mixed, number)": lambda a: F._foreach_mul(a["mixed"], 0.5),
    "mul(doubles, doubles)": lambda a: F._foreach_mul(a["doubles"], a["doubles"]),
    "mul(x, scalars)": lambda a: F._foreach_mul(a["x"], a["scalars"]),
    "div(x, number)": lambda a: F._foreach_div(a["x"], 0.5),
    "div(x, tensor)": lambda a: F._foreach_div(a["x"], a["s"]),
    "div_(x, tensor)": lambda a: F._foreach_div_(a["x"], a["s"]),
    "div(x, float64)": lambda a: F._foreach_div(a["x"], a["d"]),
    "div(x, y)": lambda a: F._foreach_div(a["x"], a["y"]),
    "maximum(x, y)": lambda a: F._foreach_maximum(a["x"], a["y"]),
    "maximum(x, tensor)": lambda a: F._foreach_maximum(a["x"], a["s"]),
    "clamp_min(x, number)": lambda a: F._foreach_clamp_min(a["x"], 0.5),
    "clamp_min(x, tensor)": lambda a: F._foreach_clamp_min(a["x"], a["s"]),
    "clamp_max(x, numbers)": lambda a: F._foreach_clamp_max(a["x"], a["numbers"]),
    "pow(x, number)": lambda a: F._foreach_pow(a["x"], 2.5),
    "pow(x, tensor)": lambda a: F._foreach_pow(a["x"], a["s"]),
    "pow(number, x)": lambda a: F._foreach_pow(0.5, a["x"]),
    "pow(x, y)": lambda a: F._foreach_pow(a["x"], a["y"]),
    "lerp(x, y, number)": lambda a: F._foreach_lerp(a["x"], a["y"], 0.5),
    "lerp_(x, y, number)": lambda a: F._foreach_lerp_(a["x"], a["y"], 0.5),
    "lerp(x, y, tensor)": lambda a: F._foreach_lerp(a["x"], a["y"], a["s"]),
    "lerp(x, y, z)": lambda a: F._foreach_lerp(a["x"], a["y"], a["z"]),
    "lerp(x, y, scalars)": lambda a: F._foreach_lerp(a["x"], a["y"], a["scalars"]),
    "addcmul(x, y, z)": lambda a: F._foreach_addcmul(a["x"], a["y"], a["z"], value=0.5),
    "addcmul_(x, y, z)": lambda a: F._foreach_addcmul_(a["x"], a["y"], a["z"], value=0.5),
    "addcmul(x, y, z, tensor)": lambda a: F._foreach_addcmul(a["x"], a["y"], a["z"], value=a["s"]),
    "addcmul(x, y, z, host vector)": lambda a: F._foreach_addcmul(a["x"], a["y"], a["z"], a["vector"]),
    "addcmul(x, y, z, device vector)": lambda a: F._foreach_addcmul(a["x"], a["y"], a["z"], a["device_vector"]),
    "addcmul(x, half, z)": lambda a: F._foreach_addcmul(a["x"], a["half"], a["z"], value=0.5),
    "addcdiv(x, y, z)": lambda a: F._foreach_addcdiv(a["x"], a["y"], a["z"], value=0.5),
    "addcdiv_(x, y, z)": lambda a: F._foreach_addcdiv_(a["x"], a["y"], a["z"], value=0.5),
    "addcdiv_(half, y, z)": lambda a: F._foreach_addcdiv_(a["half"], a["y"], a["z"], value=0.5),
    "sqrt(x)": lambda a: F._foreach_sqrt(a["x"]),
    "sqrt_(x)": lambda a: F._foreach_sqrt_(a["x"]),
    "sqrt(odd)": lambda a: F._foreach_sqrt(a["odd"]),
    "sqrt(columns)": lambda a: F._foreach_sqrt(a["columns"]),
    "sign(x)": lambda a: F._foreach_sign(a["x"]),
    "neg(x)": lambda a: F._foreach_neg(a["x"]),
    "abs(x)": lambda a: F._foreach_abs(a["x"]),
    "exp(x)": lambda a: F._foreach_exp(a["x"]),
    "log(x)": lambda a: F._foreach_log(a["x"]),
    "atan(x)": lambda a: F._foreach_atan(a["x"]),
    "tanh(x)": lambda a: F._foreach_tanh(a["x"]),
    "erf(x)": lambda a: F._foreach_erf(a["x"]),
    "rsqrt(x)": lambda a: F._foreach_rsqrt(a["x"]),
    "reciprocal(x)": lambda a: F._foreach_reciprocal(a["x"]),
    "sigmoid(x)": lambda a: F._foreach_sigmoid(a["x"]),
    "norm(x)": lambda a: F._foreach_norm(a["x"]),
    "norm(x, 1)": lambda a: F._foreach_norm(a["x"], 1),
    "norm(x, inf)": lambda a: F._foreach_norm(a["x"], float("inf")),
    "norm(x, float64)": lambda a: F._foreach_norm(a["x"], 2, dtype=torch.float64),
    "norm(half, float32)": lambda a: F._foreach_norm(a["half"], 2, dtype=torch.float32),
    "norm(sizes)": lambda a: F._foreach_norm(a["sizes"]),
    "norm(columns)": lambda a: F._foreach_norm(a["columns"]),
    "norm(odd)": lambda a: F._foreach_norm(a["odd"]),
    "max(x)": lambda a: F._foreach_max(a["x"]),
    "zero_(x)": lambda a: F._foreach_zero_(a["x"]),
    "copy_(x, y)": lambda a: F._foreach_copy_(a["x"], a["y"]),
    "copy_(half, x)": lambda a: F._foreach_copy_(a["half"], a["x"]),
    "copy_(x, half)": lambda a: F._foreach_copy_(a["x"], a["half"]),
    "copy_(double, x)": lambda a: F._foreach_copy_(a["double"], a["x"]),
    "copy_(x, odd)": lambda a: F._foreach_copy_(a["x"], a["odd"]),
    "copy_(x, numbers)": lambda a: F._foreach_copy_(a["x"], a["numbers"]),
    "copy_(numbers, one value)": lambda a: F._foreach_copy_(a["numbers"], [a["s"]] * COUNT),
    "copy_(numbers, doubles)": lambda a: F._foreach_copy_(a["numbers"], a["doubles"]),
    "copy_(mixed, x)": lambda a: F._foreach_copy_(a["mixed"], a["x"]),
    "mul(numbers, tensor)": lambda a: F._foreach_mul(a["numbers"], a["s"]),
    "stack(numbers).unbind": lambda a: torch.stack(a["numbers"]).unbind(),
    "cat of flat views": lambda a: torch.cat([t.view(-1) for t in a["x"]]),
    "stack(x)": lambda a: torch.stack(a["x"]),
    "loop of mul": lambda a: [t * 0.5 for t in a["x"]],
    "unscale": lambda a: torch._amp_foreach_non_finite_check_and_unscale_(a["x"], a["s"] * 0, a["s"]),
}


def _on_lists(function: Callable[..., Any]) -> Fact:
    def made(device):
        lists = _lists(device)
        return lambda: function(lists)

    return made


for _name, _function in _LISTS.items():
    FACTS[f"foreach: {_name}"] = _on_lists(_function)
