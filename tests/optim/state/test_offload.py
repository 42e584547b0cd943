"""State on the host: results, checkpoints and options equal those of training without offloading.

Without a GPU, the device of the parameters is the CPU as well, and all parameters are treated as if on another device.
"""

import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradtx
from gradtx.optim import offload as _offload

OPTIONS: list[dict[str, Any]] = [{"state_device": "cpu"}, {}]
CHAINS = {
    "adamw": lambda: gradtx.adamw(lr=1e-2, weight_decay=0.1),
    "clipped": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=1e-2)),
    "int8": lambda: gradtx.with_state_dtype(gradtx.adamw(lr=1e-2), "int8", min_size=0),
    "muon": lambda: gradtx.muon(lr=1e-2, fallback=gradtx.adamw(lr=1e-2)),
    "compensated": lambda: gradtx.chain(gradtx.adamw(lr=1e-2), gradtx.compensate_rounding(bits=8)),
    "stochastic": lambda: gradtx.chain(gradtx.adamw(lr=1e-2), gradtx.round_stochastically(seed=3)),
    "prodigy": lambda: gradtx.prodigy(),
    "accumulate": lambda: gradtx.accumulate(gradtx.adamw(lr=1e-2), every=2),
    "schedule": lambda: gradtx.adamw(lr=gradtx.warmup_cosine_schedule(10, max_lr=1e-2, warmup_steps=3)),
    "schedule_free": lambda: gradtx.schedule_free_sgd(lr=1e-2),
}


@pytest.fixture
def elsewhere(monkeypatch):
    """Treat every parameter as if on another device, and list the transfers."""
    transfers = []

    def to_host(tensor, copied):
        transfers.append("to host")
        copied.copy_(tensor)

    def to_device(copied, tensor):
        transfers.append("to device")
        tensor.copy_(copied)

    monkeypatch.setattr(_offload, "is_elsewhere", lambda param: True)
    monkeypatch.setattr(_offload, "to_host", to_host)
    monkeypatch.setattr(_offload, "to_device", to_device)
    return transfers


def model_of(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(9, 70), nn.Tanh(), nn.Linear(70, 3)).to(dtype)


def batch(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 9, generator=generator).to(dtype), torch.randn(8, 3, generator=generator).to(dtype)


def backward(model, step):
    dtype = model[0].weight.dtype
    inputs, targets = batch(step, dtype)
    loss = functional.mse_loss(model(inputs), targets)
    loss.backward()
    return loss


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def check_equal(model, other):
    for param, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(param, expected)


def check_equal_states(optimizer, other):
    saved, expected = optimizer.state_dict(), other.state_dict()
    assert saved["param_groups"] == expected["param_groups"]
    assert saved["state"].keys() == expected["state"].keys()
    for number, entry in expected["state"].items():
        assert saved["state"][number].keys() == entry.keys()
        for key, value in entry.items():
            assert torch.equal(saved["state"][number][key], value), key


def pair(name, dtype=torch.float32, **options):
    """Return two equal models, one of them with its state on the host."""
    ours, plain = model_of(dtype), model_of(dtype)
    optimizer = gradtx.as_optimizer(CHAINS[name](), ours.named_parameters(), state_device="cpu", **options)
    ordinary = gradtx.as_optimizer(CHAINS[name](), plain.named_parameters(), **options)
    return (ours, optimizer), (plain, ordinary)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CHAINS)
def test_steps_and_checkpoints_equal_those_on_the_host_bit_for_bit(name, dtype, elsewhere):
    (ours, optimizer), (plain, ordinary) = pair(name, dtype)
    train(ours, optimizer, 5)
    train(plain, ordinary, 5)
    check_equal(ours, plain)
    check_equal_states(optimizer, ordinary)
    assert "to host" in elsewhere
    assert "to device" in elsewhere


@pytest.mark.slow
def test_compiled_steps_equal_those_on_the_host_bit_for_bit(elsewhere):
    (ours, optimizer), (plain, ordinary) = pair("adamw", compile=True)
    train(ours, optimizer, 3)
    train(plain, ordinary, 3)
    check_equal(ours, plain)
    assert "kernels" in repr(optimizer.explain())


def test_parameters_keep_their_memory_and_their_gradients(elsewhere):
    (model, optimizer), _ = pair("adamw")
    places = [param.data_ptr() for param in model.parameters()]
    backward(model, 0)
    gradients = [param.grad for param in model.parameters()]
    values = [gradient.clone() for gradient in gradients]
    optimizer.step()
    assert [param.data_ptr() for param in model.parameters()] == places
    for param, gradient, value in zip(model.parameters(), gradients, values, strict=True):
        assert param.grad is gradient
        assert torch.equal(gradient, value)


def test_a_step_copies_weights_and_gradients_once_and_weights_back_once(elsewhere):
    (model, optimizer), _ = pair("adamw")
    train(model, optimizer, 1)
    elsewhere.clear()
    train(model, optimizer, 1, start=1)
    assert elsewhere == ["to host"] * 8 + ["to device"] * 4


def test_groups_schedulers_and_missing_gradients_work_as_ever(elsewhere):
    runs = []
    for options in OPTIONS:
        model = model_of()
        groups = [{"params": [model[0].weight], "lr": 1e-2}, {"params": [model[0].bias, model[2].weight]}]
        optimizer = gradtx.optim.AdamW(groups, lr=1e-3, **options)
        optimizer.add_param_group({"params": [model[2].bias], "weight_decay": 0.3})
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        for step in range(5):
            optimizer.zero_grad()
            backward(model, step)
            if step % 2:
                model[2].weight.grad = None
            optimizer.step()
            scheduler.step()
        runs.append((model, optimizer))
    (ours, optimizer), (plain, ordinary) = runs
    check_equal(ours, plain)
    check_equal_states(optimizer, ordinary)
    assert optimizer.param_groups[0]["lr"] == ordinary.param_groups[0]["lr"] == 1e-2 / 4


@pytest.mark.parametrize("to_offloaded", [True, False])
def test_checkpoints_continue_bit_for_bit_in_an_ordinary_run_and_back(to_offloaded, elsewhere):
    (ours, optimizer), (plain, ordinary) = pair("int8")
    model, source, target = (plain, ordinary, optimizer) if to_offloaded else (ours, optimizer, ordinary)
    continued = ours if to_offloaded else plain
    train(model, source, 3)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    continued.load_state_dict(model.state_dict())
    target.load_state_dict(torch.load(file, weights_only=True))
    train(model, source, 3, start=3)
    train(continued, target, 3, start=3)
    check_equal(ours, plain)
    check_equal_states(optimizer, ordinary)


@pytest.mark.parametrize("name", ["adamw", "sam"])
def test_closures_run_with_the_parameters_on_their_device(name, elsewhere):
    tx = gradtx.adamw(lr=1e-2)
    runs = []
    for options in OPTIONS:
        model = model_of()
        chain = gradtx.sam(tx, rho=0.05) if name == "sam" else tx
        optimizer = gradtx.as_optimizer(chain, model.named_parameters(), **options)
        places = [param.data_ptr() for param in model.parameters()]

        def closure(model=model, optimizer=optimizer, places=places):
            assert [param.data_ptr() for param in model.parameters()] == places
            optimizer.zero_grad()
            return backward(model, 0)

        losses = [optimizer.step(closure).item() for _ in range(4)]
        runs.append((model, optimizer, losses))
    (ours, _, losses), (plain, _, expected) = runs
    check_equal(ours, plain)
    assert losses == expected
    for param, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(param.grad, other.grad)


def test_evaluation_weights_equal_those_of_an_ordinary_run(elsewhere):
    (ours, optimizer), (plain, ordinary) = pair("schedule_free")
    for model, of_model in ((ours, optimizer), (plain, ordinary)):
        train(model, of_model, 3)
        of_model.eval()
    check_equal(ours, plain)
    check_equal_states(optimizer, ordinary)
    optimizer.train()
    ordinary.train()
    check_equal(ours, plain)


def test_a_step_that_fails_leaves_parameters_on_their_device(elsewhere):
    (model, optimizer), _ = pair("adamw")
    places = [param.data_ptr() for param in model.parameters()]
    backward(model, 0)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        optimizer.step()
    assert [param.data_ptr() for param in model.parameters()] == places
    assert all(param.grad is not None for param in model.parameters())


def test_parameters_on_the_host_are_not_copied(monkeypatch):
    monkeypatch.setattr(_offload, "to_host", lambda *_: pytest.fail("a parameter on the host was copied"))
    model = model_of()
    train(model, gradtx.optim.AdamW(model.parameters(), lr=1e-2, state_device="cpu"), 2)


def test_create_optimizer_passes_the_state_device_on(elsewhere):
    model = model_of()
    train(model, gradtx.create_optimizer(model, "adamw", lr=1e-2, state_device="cpu"), 1)
    assert "to device" in elsewhere


@pytest.mark.parametrize("device", ["cuda", torch.device("cuda:1"), 0, "cpu:0"])
def test_another_device_is_an_error(device):
    with pytest.raises(ValueError, match=r'AdamW: state_device must be "cpu" or None, got '):
        gradtx.optim.AdamW(model_of().parameters(), state_device=device)


def test_released_gradients_are_refused(elsewhere):
    (_, optimizer), _ = pair("adamw")
    with pytest.raises(RuntimeError, match="release_gradients cannot be combined with state_device"):
        optimizer.release_gradients()


def test_second_derivatives_are_refused():
    with pytest.raises(ValueError, match="state_device does not support chains that need 'hessian_diag'"):
        gradtx.optim.SophiaH(model_of().parameters(), state_device="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_for_parameters_on_a_gpu_equal_those_on_the_host(dtype, compile):
    ours, plain = model_of(dtype).cuda(), model_of(dtype)
    optimizer = gradtx.optim.AdamW(ours.parameters(), lr=1e-2, state_device="cpu", compile=compile)
    ordinary = gradtx.optim.AdamW(plain.parameters(), lr=1e-2, compile=compile)
    for step in range(4):
        backward(plain, step)
        for param, other in zip(ours.parameters(), plain.parameters(), strict=True):
            param.grad = other.grad.cuda()
        optimizer.step()
        ordinary.step()
        plain.zero_grad()
    for param, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert param.device.type == "cuda"
        assert torch.equal(param.cpu(), other)
        assert all(value.device.type == "cpu" for value in optimizer.state[param].values())
