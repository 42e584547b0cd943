"""Names in other libraries that have no namesake here, and their replacements."""

from __future__ import annotations

from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

_RELEASED = "gradients are freed during backward by optimizer.release_gradients(), of any optimizer: "
_TORCH = "torch's works with optimizers of gradtx: "
_WARM_UP = "gradtx.warmup_cosine_schedule(...) as lr, or as_lr_scheduler(optimizer, schedule)"

# The keys are in the form that `plain` returns.
USE: dict[str, str] = {
    "lomo": f"{_RELEASED}gradtx.optim.SGD",
    "adalomo": f"{_RELEASED}gradtx.optim.AdaFactor",
    "distributedmuon": "gradtx.optim.Muon divides its work among ranks, with process_group= or on DTensors",
    "muonclip": "gradtx.optim.Muon; the clip of query and key weights belongs to the model",
    "flashadamw": 'gradtx.optim.AdamW(params, state_dtype="int8")',
    "scionlight": "gradtx.optim.Scion",
    "bsam": "gradtx.sam(gradtx.adamw(), ...) is the nearest",
    "cpuoffloadoptimizer": 'pass state_device="cpu" to any optimizer',
    "deepspeedcpuadam": 'gradtx.optim.AdamW(params, state_device="cpu")',
    "fusedadam": "gradtx.optim.AdamW(params, compile=True)",
    "fusedlamb": "gradtx.optim.Lamb(params, compile=True)",
    "sparseadam": "gradtx.optim.Adam, with dense gradients: leave sparse=True out of nn.Embedding",
    "safefp16optimizer": "torch.amp.GradScaler works with every optimizer",
    "adamwschedulefree": "gradtx.optim.ScheduleFreeAdamW",
    "sgdschedulefree": "gradtx.optim.ScheduleFreeSGD",
    "radamschedulefree": "gradtx.optim.ScheduleFreeRAdam",
    "schedulefreewrapper": "gradtx.schedule_free(...)",
    "orthograd": "gradtx.orthogonalize_against_params() in front of an optimizer",
    "zeroredundancyoptimizer": f"{_TORCH}torch.distributed.optim.ZeroRedundancyOptimizer",
    "averagedmodel": f"gradtx.average(...) behind an optimizer; {_TORCH}torch.optim.swa_utils.AveragedModel",
    "swalr": f"{_TORCH}torch.optim.swa_utils.SWALR",
    "createoptimizerv2": "gradtx.create_optimizer(model, name)",
    "getoptimizer": "gradtx.create_optimizer(model, name)",
    "getcosineschedulewithwarmup": _WARM_UP,
    "getlinearschedulewithwarmup": _WARM_UP.replace("cosine", "linear"),
    "getpolynomialdecayschedulewithwarmup": _WARM_UP.replace("cosine", "poly"),
    "getwsdschedule": "gradtx.wsd_schedule(...) as lr, or as_lr_scheduler(optimizer, schedule)",
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
