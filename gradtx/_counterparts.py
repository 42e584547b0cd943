"""Names in other libraries that have no namesake here, and their replacements."""

from __future__ import annotations

from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

_RELEASED = "and call its release_gradients() to free gradients during backward"
_TORCH = "use torch's own, which works with gradtx optimizers: "
_WARM_UP = "use gradtx.warmup_cosine_schedule(...) as lr, or as_lr_scheduler(optimizer, schedule)"

# The keys are in the form that `plain` returns.
USE: dict[str, str] = {
    "lomo": f"use gradtx.optim.SGD {_RELEASED}",
    "adalomo": f"use gradtx.optim.AdaFactor {_RELEASED}",
    "distributedmuon": "use gradtx.optim.Muon, which divides its work among ranks with process_group= or on DTensors",
    "muonclip": "use gradtx.chain(gradtx.muon(...), gradtx.qk_clip(...)), and pass max_logits to each step",
    "flashadamw": 'use gradtx.optim.AdamW(params, state_dtype="int8")',
    "scionlight": "use gradtx.optim.Scion",
    "bsam": "the closest equivalent is gradtx.sam(gradtx.adamw(), ...)",
    "cpuoffloadoptimizer": 'pass state_device="cpu" to any optimizer',
    "deepspeedcpuadam": 'use gradtx.optim.AdamW(params, state_device="cpu")',
    "fusedadam": "use gradtx.optim.AdamW(params, compile=True)",
    "fusedlamb": "use gradtx.optim.Lamb(params, compile=True)",
    "sparseadam": "use gradtx.optim.Adam with dense gradients: omit sparse=True in nn.Embedding",
    "safefp16optimizer": "use torch.amp.GradScaler, which works with every optimizer",
    "adamwschedulefree": "use gradtx.optim.ScheduleFreeAdamW",
    "sgdschedulefree": "use gradtx.optim.ScheduleFreeSGD",
    "radamschedulefree": "use gradtx.optim.ScheduleFreeRAdam",
    "schedulefreewrapper": "use gradtx.schedule_free(...)",
    "orthograd": "add gradtx.orthogonalize_against_params() before an optimizer",
    "zeroredundancyoptimizer": f"{_TORCH}torch.distributed.optim.ZeroRedundancyOptimizer",
    "averagedmodel": f"add gradtx.average(...) after an optimizer, or {_TORCH}torch.optim.swa_utils.AveragedModel",
    "swalr": f"{_TORCH}torch.optim.swa_utils.SWALR",
    "createoptimizerv2": "use gradtx.create_optimizer(model, name)",
    "getoptimizer": "use gradtx.create_optimizer(model, name)",
    "getcosineschedulewithwarmup": _WARM_UP,
    "getlinearschedulewithwarmup": _WARM_UP.replace("cosine", "linear"),
    "getpolynomialdecayschedulewithwarmup": _WARM_UP.replace("cosine", "poly"),
    "getwsdschedule": "use gradtx.wsd_schedule(...) as lr, or as_lr_scheduler(optimizer, schedule)",
    "getconstantschedulewithwarmup": _WARM_UP.replace("cosine", "linear"),
}


def counterpart(name: str) -> str | None:
    """Return the replacement for a name in another library, or None if it is unknown."""
    scheduler = getattr(lr_scheduler, name, None)
    if isinstance(scheduler, type) and issubclass(scheduler, LRScheduler):
        return f"{_TORCH}torch.optim.lr_scheduler.{name}"
    return USE.get(plain(name))


def plain(name: str) -> str:
    """Return a name in lowercase, without dashes and underscores."""
    return name.replace("-", "").replace("_", "").lower()
