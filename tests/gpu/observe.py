"""Try facts on a real GPU: does an operation run, wait, get captured, and how many kernels does it launch?"""

import json
import sys
import time
import warnings

import torch
from torch.profiler import ProfilerActivity, profile

from tests.gpu.facts import FACTS

CUDA = torch.device("cuda", 0)


def kernels(profiled):
    """Count kernels, copies and fills by name."""
    names = []
    for event in profiled.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            names.append(event.name)
    return names


def observe(make):
    seen = {}
    try:
        call = make(CUDA)
        call()
        torch.cuda.synchronize()
    except Exception as error:
        text = str(error).strip().splitlines()[0][:110]
        torch.cuda.synchronize()
        return {"raises": f"{type(error).__name__}: {text}"}
    call()
    torch.cuda.synchronize()
    torch.cuda._sleep(30_000_000)  # about 15 ms
    start = time.perf_counter()
    call()
    waited = time.perf_counter() - start
    torch.cuda.synchronize()
    total = time.perf_counter() - start
    seen["waits"] = bool(waited > 0.6 * total)
    seen["ms"] = [round(1e3 * waited, 2), round(1e3 * total, 2)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        seen["debug"] = str(error).strip().splitlines()[0][:90]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    names = kernels(profiled)
    seen["launches"] = len(names)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            call()
            torch.cuda.synchronize()
            graph.capture_begin()
            try:
                call()
            finally:
                graph.capture_end()
        seen["captured"] = True
    except Exception as error:
        seen["captured"] = str(error).strip().splitlines()[0][:90]
    torch.cuda.synchronize()
    return seen


def main():
    out = sys.argv[1]
    warnings.simplefilter("ignore")
    print(torch.__version__, torch.cuda.get_device_name(), flush=True)
    start, table = time.time(), {}
    for name, make in FACTS.items():
        try:
            table[name] = observe(make)
        except Exception as error:
            table[name] = {"broken": f"{type(error).__name__}: {str(error)[:100]}"}
    with open(out, "w") as file:
        json.dump(table, file, indent=0)
    print(f"{len(table)} facts, {time.time() - start:.0f} s", flush=True)
    for name, seen in table.items():
        print(name, "|", json.dumps(seen))


if __name__ == "__main__":
    main()
