"""Other ways to run chains on a GPU: scaled and coded steps, late gradients, several devices, checkpoints, helpers."""

import copy
import io
import re

import pytest
import torch

import gradtx
from tests.conformance import plain_cases
from tests.gpu.problem import Problem, assert_near, loss, noise, on_host
from tests.tiers import each_case

PLAIN = plain_cases()
SCALE = 4.0
STEPS = 4
TOLERANCE = 1e-7  # as in test_conformance.py


def unmoved(tree):
    return tree


# A GradScaler.


def scaled(case, move, gpu=None):
    """Four steps of which the second is skipped, and what the last one waited for."""
    problem, waits = Problem(case, move), {}
    for t in range(STEPS):
        extras = problem.prepare(t)
        for param in problem.params.values():
            param.grad.mul_(SCALE)
        problem.optimizer.grad_scale = move(torch.full((), SCALE))
        problem.optimizer.found_inf = move(torch.full((), float(t == 1)))
        if gpu is None or t < STEPS - 1:
            problem.step(extras)
            continue
        with gpu.counting() as seen:
            problem.step(extras)
        waits = seen.waits
    return problem, waits


@each_case
def test_steps_under_a_grad_scaler_equal_those_on_the_cpu(case, gpu):
    (found, waits), (expected, _) = scaled(case, gpu.to, gpu), scaled(case, unmoved)
    assert_near(found.values(), expected.values(), TOLERANCE)
    # For links that branch on counts or values, the host reads whether the step is skipped.
    assert not waits or any(item.way != "lists" for item in found.optimizer.explain())


# State.


@each_case
def test_late_and_missing_gradients(case, gpu):
    def run(move):
        without = ("matrix2", "vector", "partner2")
        return Problem(case, move).run(range(2), without).run(range(2, STEPS)).run(range(STEPS, STEPS + 1), without)

    assert_near(run(gpu.to).values(), run(unmoved).values(), TOLERANCE)


@pytest.mark.parametrize(
    "code", ["int8", "int4", "float8", "bfloat16+8", "bfloat16:stochastic", "factored", torch.bfloat16]
)
@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "adafactor", "sgd", "soap", "ademamix", "prodigy"])
def test_coded_state(name, code, gpu):
    def run(move):
        options = {
            "sgd": {"momentum": 0.9},
            "muon": {"fallback": gradtx.adamw()},
            "adafactor": {"relative_step": False},
        }.get(name, {})
        # SOAP divides a mean in rotated coordinates by squares there: shares of rows and columns may stand for the
        # squares alone.
        codes = {"exp_avg_sq": code} if (name, code) == ("soap", "factored") else code
        tx = getattr(gradtx, name)(lr=0.01, state_dtype=codes, **options)
        start = noise({f"w{i}": torch.empty(64, 64) for i in range(2)} | {"b": torch.empty(64)}, 0)
        params = {key: torch.nn.Parameter(move(value.float())) for key, value in start.items()}
        optimizer = gradtx.as_optimizer(tx, params.items())
        for t in range(1, 4):
            for key, gradient in noise(start, t).items():
                params[key].grad = move(gradient.float())
            optimizer.step()
        return on_host(params), repr(optimizer.explain())

    (found, ways), (expected, ways_on_cpu) = run(gpu.to), run(unmoved)
    assert ways == ways_on_cpu
    # A code rounds what differs in the last bit to neighbors that are a step apart.
    assert_near(found, expected, 1e-3)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_step_of_functions(backend, gpu):
    if not gpu.is_real:
        pytest.skip("torch.compile does not trace tensors of a pretended device")
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=gradtx.cosine_schedule(0.1, T_max=10)))
    start = noise({f"w{i}": torch.empty(4, 3 + i).double() for i in range(20)}, 0)

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return gradtx.apply_updates(params, updates), state

    def run(move, step):
        params = move(start)
        state = tx.init(params)
        for t in range(1, 4):
            params, state = step(move(noise(start, t)), state, params)
        return on_host(params)

    compiled = torch.compile(step, backend=backend, fullgraph=True)
    assert_near(run(gpu.to, compiled), run(unmoved, step), TOLERANCE)


# Numbers of rules that run one leaf at a time.


@gradtx.per_tensor(compiles=False)
def below(most: gradtx.Scalar = 0.5):
    def update(update, state, param, ctx):
        return update.clamp(max=most), state  # CUDA takes no bound from the host

    return update


def half_in_float64():
    return torch.tensor(0.5, dtype=torch.float64)


BOUNDS = {
    "a number": lambda: 0.5,
    "a tensor on the host": half_in_float64,
    "a schedule": lambda: gradtx.cosine_schedule(0.5, T_max=10),
    "a schedule of numbers": lambda: gradtx.Schedule(lambda step: 0.5),
    "a schedule of tensors on the host": lambda: gradtx.Schedule(lambda step: half_in_float64()),
}


@pytest.mark.parametrize("way", ["optimizer", "two devices", "functions"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_a_bound_of_a_rule_that_runs_one_leaf_at_a_time_is_on_the_device(bound, way, gpu):
    if gpu.is_real and way == "two devices" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    start = noise({name: torch.empty(3, 4).double() for name in ("w", "v")}, 1)

    def run(move):
        tx, params = gradtx.chain(below(BOUNDS[bound]()), gradtx.sgd(lr=0.1)), move(start)
        if way == "functions":
            state = tx.init(params)
            for t in range(3):
                updates, state = tx.update(move(noise(start, t)), state, params)
                params = gradtx.apply_updates(params, updates)
            return on_host(params)
        params = {name: torch.nn.Parameter(param) for name, param in params.items()}
        optimizer = gradtx.as_optimizer(tx, params.items())
        for t in range(3):
            for name, gradient in move(noise(start, t)).items():
                params[name].grad = gradient
            optimizer.step()
        return on_host(params)

    def moved(tree):
        return {name: gpu.to(leaf, index=int(way == "two devices" and name == "v")) for name, leaf in tree.items()}

    assert_near(run(moved), run(unmoved), 0.0)


# Several devices.


@each_case
def test_leaves_on_two_devices_step_as_on_one(case, gpu):
    if gpu.is_real and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    if case.factory.spec.kind == "tree" or str(case) in ("precondition_pairs", "couple_pairs", "scale_by_lora_rite"):
        pytest.skip("a rule for whole trees combines leaves as they are")

    def move(tree):
        return {name: gpu.to(leaf, index=int(name.endswith("2"))) for name, leaf in tree.items()}

    found, expected = Problem(case, gpu.to, spread=move), Problem(case, unmoved)
    assert {param.device.index for param in found.params.values()} == {0, 1}
    found.run(range(STEPS))
    expected.run(range(STEPS))
    assert_near(found.values(), expected.values(), TOLERANCE)


def test_scaled_steps_of_leaves_on_two_devices_equal_those_on_the_cpu(gpu):
    if gpu.is_real and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")

    def run(move):
        params = {name: torch.nn.Parameter(param) for name, param in move(start).items()}
        optimizer = gradtx.optim.AdamW(params.items(), lr=0.1, amp_scaling=True)
        for t in range(STEPS):
            for name, gradient in move(noise(start, t)).items():
                params[name].grad = gradient * SCALE
            device = params["w"].device
            optimizer.grad_scale = torch.full((), SCALE, device=device)
            optimizer.found_inf = torch.full((), float(t == 1), device=device)
            optimizer.step()
        return on_host(params)

    start = noise({name: torch.empty(3, 4).double() for name in ("w", "v")}, 1)

    def spread(tree):
        return {name: gpu.to(leaf, index=int(name == "v")) for name, leaf in tree.items()}

    assert_near(run(spread), run(unmoved), TOLERANCE)


# Checkpoints.


@each_case
@pytest.mark.parametrize("map_location", [None, "cpu"])
def test_a_checkpoint_of_one_device_continues_on_another(case, map_location, gpu):
    def resumed(move, saved):
        problem = Problem(case, move)
        with torch.no_grad():
            for param, value in zip(problem.params.values(), saved["weights"], strict=True):
                param.copy_(value.cpu())
        problem.optimizer.load_state_dict(saved["optimizer"])
        return problem.run(range(2, STEPS)).values()

    def saved(problem):
        weights = [param.detach() for param in problem.params.values()]
        contents = {"weights": weights, "optimizer": problem.optimizer.state_dict()}
        if not gpu.is_real:  # torch saves no tensors of a pretended device
            return on_host(contents) if map_location else copy.deepcopy(contents)
        file = io.BytesIO()
        torch.save(contents, file)
        file.seek(0)
        return torch.load(file, map_location=map_location)

    there, here = (Problem(case, move).run(range(2)) for move in (gpu.to, unmoved))
    expected = Problem(case, unmoved).run(range(STEPS)).values()
    assert_near(resumed(unmoved, saved(there)), expected, TOLERANCE)
    assert_near(resumed(gpu.to, saved(here)), expected, TOLERANCE)


# Helpers.


def model(move):
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 4)).double()
    with torch.no_grad():
        for i, param in enumerate(net.parameters()):
            param.copy_(noise({"w": param}, i)["w"])
    for module in net:
        for name, param in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(move(param.detach())))
    return net


def test_gradients_that_are_released_during_backward(gpu):
    def run(move):
        net, x = model(move), move(noise({"x": torch.empty(5, 4).double()}, 7)["x"])
        optimizer = gradtx.optim.AdamW(net.named_parameters(), lr=0.1)
        optimizer.release_gradients()
        for _ in range(3):
            net(x).square().mean().backward()
            optimizer.step()
        return on_host(dict(net.named_parameters()))

    assert_near(run(gpu.to), run(unmoved), TOLERANCE)


def test_a_sweep(gpu):
    def run(move):
        start = move({"w": torch.linspace(-1, 1, 6).double().reshape(2, 3), "b": torch.ones(3).double()})
        swept = gradtx.sweep(
            lambda params, batch: loss(params),
            lambda lr: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=lr)),
            start,
            lambda step: move(torch.zeros(1)),
            {"lr": [0.1, 0.2]},
            steps=3,
        )
        return {str(i): torch.tensor(record["loss"]) for i, record in enumerate(swept.records)}

    assert_near(run(gpu.to), run(unmoved), TOLERANCE)


def test_a_sweep_copies_no_hyperparameter_to_the_device_in_its_steps(gpu):
    if gpu.is_real:
        pytest.skip("copies are counted on the pretended device")
    copies = []
    for steps in (2, 6):
        start = gpu.to({"w": torch.ones(2, 3).double()})
        with gpu.counting() as seen:
            gradtx.sweep(
                lambda params, batch: loss(params),
                lambda lr, size: gradtx.chain(gradtx.clip_by_global_norm(size), gradtx.sgd(lr=lr)),
                start,
                lambda step: gpu.to(torch.zeros(1)),
                {"lr": [0.1, 0.2], "size": [1.0, 2.0]},
                steps=steps,
            )
        copies.append(seen.waits["a copy from pageable memory"])
    assert copies[0] == copies[1]


def test_functional_steps_of_an_ensemble(gpu):
    def run(move):
        tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamp(lr=0.1))
        members = [move(noise(dict.fromkeys(("w", "v"), torch.empty(3, 4).double()), t)) for t in range(3)]
        params = gradtx.stack(members)
        state = torch.vmap(tx.init)(params)
        step = gradtx.train_step(lambda p, batch: loss(p), tx)
        for _ in range(3):
            params, state, _ = torch.vmap(step, in_dims=(0, 0, None))(params, state, None)
        last = gradtx.unstack(params)[-1]
        return on_host(last)

    assert_near(run(gpu.to), run(unmoved), TOLERANCE)


def test_muon_for_a_model(gpu):
    def run(move):
        net = model(move)
        optimizer = gradtx.muon_for(net, lr=0.1, ns_dtype=None)
        for t in range(3):
            for param in net.parameters():
                param.grad = move(noise({"w": param}, t)["w"])
            optimizer.step()
        return on_host(dict(net.named_parameters()))

    assert_near(run(gpu.to), run(unmoved), TOLERANCE)


def test_pcgrad_and_the_estimate_of_a_hessian(gpu):
    def run(move):
        params = move({"w": torch.linspace(-1, 1, 6).double(), "b": torch.ones(3).double()})
        grads = [move(noise(params, t)) for t in (1, 2)]
        projected = gradtx.pcgrad(grads, generator=0)
        diagonal = gradtx.hutchinson_hessian_diag(torch.func.grad(loss), params, generator=0)
        return on_host({**projected, **{f"{name} of H": x for name, x in diagonal.items()}})

    assert_near(run(gpu.to), run(unmoved), TOLERANCE)


# Errors.


def test_a_state_on_another_device_is_an_error_with_its_name(gpu):
    params = {"w": torch.nn.Parameter(gpu.to(torch.ones(3)))}
    optimizer = gradtx.optim.AdamW(params.items())
    params["w"].grad = gpu.to(torch.ones(3))
    optimizer.step()
    before = on_host(dict(params))
    optimizer.state[params["w"]]["exp_avg"] = torch.ones(3)
    with pytest.raises(ValueError, match=r"'w'.*exp_avg.*cpu"):
        optimizer.step()
    assert_near(on_host(dict(params)), before, 0.0)


def matrices(gpu):
    return gpu.to({name: torch.ones(64, 128) for name in ("a", "b")})


def refused(tx, gpu, optimizer, **extras):
    """Return the error of an update or of a step, which changes nothing, with its notes."""
    params = matrices(gpu)

    def update():
        tx.update(params, tx.init(params), params, **extras)

    if not optimizer:
        with pytest.raises((RuntimeError, ValueError)) as caught:
            update()
    else:
        weights = {name: torch.nn.Parameter(param) for name, param in params.items()}
        optimizer = gradtx.as_optimizer(tx, weights.items())
        for weight in weights.values():
            weight.grad = torch.ones_like(weight)
        before = on_host(weights)
        with pytest.raises((RuntimeError, ValueError)) as caught:
            optimizer.step(**extras)
        assert_near(on_host(weights), before, 0.0)
        assert not any(int(entry.get("step", 0)) for entry in optimizer.state.values())
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


@gradtx.per_tensor(extras={"fisher": "leaf"})
def scale_by_fisher():
    def update(update, state, param, ctx):
        return update * ctx.fisher, state

    return update


@pytest.mark.parametrize("optimizer", [True, False], ids=["step", "update"])
def test_an_extra_on_the_host_is_an_error_with_its_leaf_and_the_remedy(optimizer, gpu):
    fisher = {**matrices(gpu), "b": torch.ones(64, 128)}
    message = refused(gradtx.chain(scale_by_fisher(), gradtx.sgd(lr=0.1)), gpu, optimizer, fisher=fisher)
    assert message.startswith("fisher: leaf 'b' is on cpu")
    assert "pass fisher there, by .to(param.device)" in message


@gradtx.per_tensor(compiles=False)
def mixing(place: str = "inside"):
    def init(param):
        return {"memory": torch.zeros_like(param)}

    def update(update, state, param, ctx):
        on_cpu = torch.ones(update.shape)
        if place == "inside":
            return update + on_cpu, state
        return (on_cpu, state) if place == "update" else (update, {"memory": on_cpu})

    return init, update


MIXED = {
    "inside": r"mixing: leaf 'a' of shape \(64, 128\) on {device}, .*; create tensors on the device of the others",
    "update": "mixing: the update of leaf 'a' is on cpu, needs {device}; create tensors on the device of the others",
    "slot": "mixing.memory: the new value of leaf 'a' is on cpu, needs {device}; create tensors on the device of",
}


@pytest.mark.parametrize("optimizer", [True, False], ids=["step", "update"])
@pytest.mark.parametrize("place", MIXED)
def test_a_rule_that_mixes_devices_is_an_error_with_rule_leaf_and_remedy(place, optimizer, gpu):
    message = refused(gradtx.chain(mixing(place), gradtx.sgd(lr=0.1)), gpu, optimizer)
    assert re.search(MIXED[place].format(device=gpu.device()), message)


CODECS = {
    "encode": gradtx.Codec(lambda x: (x * torch.ones(x.shape)).half(), lambda codes: codes.float(), name="mine"),
    "encode's result": gradtx.Codec(lambda x: x.cpu().half(), lambda codes: codes.float(), name="mine"),
    "decode": gradtx.Codec(torch.Tensor.half, lambda codes: codes.float() * torch.ones(codes.shape), name="mine"),
    "decode's result": gradtx.Codec(torch.Tensor.half, lambda codes: codes.cpu().float(), name="mine"),
}


@pytest.mark.parametrize("place", CODECS)
def test_a_codec_that_mixes_devices_is_an_error_with_slot_leaf_and_remedy(place, gpu):
    message = refused(gradtx.trace(0.9, state_dtype=CODECS[place]), gpu, optimizer=False)
    function = place.removesuffix("'s result")
    assert f"trace.momentum_buffer: {function} of 'mine': " in message
    assert "leaf 'a'" in message
    assert "; create tensors on the device of the others, as torch.zeros_like(update) does" in message
