"""State: per parameter, flat, and created with the first gradient."""

import contextlib

import pytest
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import gradtx
from tests.optim.problems import (
    assert_close,
    assert_equal,
    descend,
    drawn,
    functional,
    gradient,
    made,
    parameters,
    values,
)

TOLERANCE = 1e-12  # the same float64 sums in a different order
LOOKAHEAD = gradtx.chain(gradtx.sgd(lr=0.1), gradtx.lookahead(k=2))


def load(params, value):
    """Overwrite values in place, as `model.load_state_dict` does."""
    with torch.no_grad():
        for param in params.values():
            param.copy_(torch.full_like(param, value))


def test_state_is_flat_and_later_owners_of_a_name_are_spelled_out():
    tx = gradtx.chain(
        gradtx.ema(0.9),
        gradtx.adam(),
        gradtx.masked(gradtx.ema(0.5), "body.*"),
        gradtx.accumulate(gradtx.ema(0.5), every=2),
    )
    optimizer, params = made(tx)
    keys = ["step", "exp_avg", "scale_by_adam.exp_avg", "exp_avg_sq"]
    wrapped = {"accumulate.step", "leaf_steps", "mini_step", "acc", "seen", "accumulate.ema.exp_avg"}
    descend(optimizer, params, 1)
    own = {name: set(optimizer.state[param]) for name, param in params.items()}
    assert own["head.scale"] == {*keys, *wrapped}
    assert len(own["body.bias"] - own["head.scale"]) == 1


def test_step_is_a_0d_float32_tensor_as_torchs():
    optimizer, params = made(gradtx.adamw())
    for expected in (1.0, 2.0):
        descend(optimizer, params, 1)
        for param in params.values():
            step = optimizer.state[param]["step"]
            assert (step.shape, step.dtype, step.item()) == ((), torch.float32, expected)


@pytest.mark.parametrize("tx", [gradtx.adamw(), LOOKAHEAD, gradtx.sgd(lr=0.1), gradtx.prodigy()])
def test_before_the_first_step_the_state_is_empty_as_in_torch(tx):
    optimizer, params = made(tx)
    assert optimizer.state == {}
    entries = optimizer.state_dict()["state"]
    assert all("step" in entries[i] for i in range(len(params)))  # complete, so that every checkpoint loads everywhere
    assert optimizer.state == {}
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state == {}
    optimizer.add_param_group({"params": [("late", torch.nn.Parameter(torch.ones(2, dtype=torch.float64)))]})
    assert optimizer.state == {}
    descend(optimizer, params, 1, skip=lambda name, t: name == "body.bias")
    assert params["body.bias"] not in optimizer.state


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("tx", [gradtx.adamw(lr=0.1), LOOKAHEAD, gradtx.sgd(lr=gradtx.cosine_schedule(0.1, T_max=9))])
def test_a_fresh_optimizer_loads_a_dict_of_torchs_distributed_checkpoint_and_is_not_changed_by_its_step(tx, flat):
    def build():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, gradtx.as_optimizer(tx, model.named_parameters())

    def train(model, optimizer, steps):
        for t in range(steps):
            optimizer.zero_grad()
            model(torch.ones(2, 3) * (t + 1)).square().mean().backward()
            optimizer.step()

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = build()
    first = get_optimizer_state_dict(model, optimizer, options=options)
    again, resumed = build()
    set_optimizer_state_dict(again, resumed, first, options=options)
    train(model, optimizer, 2)
    train(again, resumed, 2)
    expected, plain = build()
    train(expected, plain, 2)
    assert_equal(values(model.parameters()), values(expected.parameters()))
    assert_equal(values(again.parameters()), values(expected.parameters()))
    assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    again, resumed = build()
    again.load_state_dict(model.state_dict())
    set_optimizer_state_dict(again, resumed, saved, options=options)
    train(again, resumed, 2)
    train(model, optimizer, 2)
    assert_equal(values(again.parameters()), values(model.parameters()))
    assert_equal(resumed.state_dict()["state"], optimizer.state_dict()["state"])


def test_a_state_that_torchs_distributed_checkpoint_would_lose_is_an_error_with_the_remedy():
    """It asks the optimizer for its slots, but creates them only if there are no gradients."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    model = torch.nn.Linear(3, 2)
    optimizer = gradtx.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    resumed = gradtx.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"creates no state while there are gradients: call optimizer.zero_grad\(\)"):
        set_optimizer_state_dict(model, resumed, saved, options=options)
    resumed.zero_grad()
    set_optimizer_state_dict(model, resumed, saved, options=options)
    assert_equal(resumed.state_dict()["state"], optimizer.state_dict()["state"])


def test_rules_see_the_step_as_int64():
    seen = []

    @gradtx.per_tensor
    def watch():
        def update(update, state, param, ctx):
            seen.append((ctx.step.dtype, ctx.step.item()))
            return update, state

        return update

    descend(*made(watch(), {"w": torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))}), steps=2)
    assert seen == [(torch.int64, 1), (torch.int64, 2)]


def test_a_frozen_parameter_keeps_a_step_of_0():
    optimizer, params = made(gradtx.chain(gradtx.adam(lr=0.1), gradtx.freeze("head.*")))
    descend(optimizer, params, 3)
    assert_equal(dict(optimizer.state[params["head.weight"]]), {"step": torch.tensor(0.0)})


def test_a_frozen_parameter_keeps_every_bit():
    params = parameters()
    with torch.no_grad():
        params["head.weight"][0] = torch.tensor([-0.0, float("nan"), float("inf")])
    before = values(params)
    optimizer, _ = made(gradtx.chain(gradtx.adam(lr=0.1), gradtx.freeze("head.*")), params)
    descend(optimizer, params, 3)
    assert_equal(values(params)[2:], before[2:])


def test_state_is_made_again_at_the_first_step_from_the_present_weights():
    optimizer, params = made(LOOKAHEAD)
    load(params, 7.0)
    expected, _ = functional(LOOKAHEAD, params, 4)
    descend(optimizer, params, 4)
    assert_close(params.values(), expected.values(), TOLERANCE)


def test_weights_to_evaluate_with_before_the_first_step_are_the_present_ones():
    optimizer, params = made(gradtx.chain(gradtx.sgd(), gradtx.average()))
    load(params, 7.0)
    with optimizer.eval_params():
        assert all((param == 7.0).all() for param in params.values())


def test_a_checkpoint_before_the_first_step_continues_from_the_present_weights():
    optimizer, params = made(LOOKAHEAD)
    load(params, 7.0)
    again, own = made(LOOKAHEAD)
    load(own, 7.0)
    again.load_state_dict(optimizer.state_dict())
    descend(optimizer, params, 4)
    descend(again, own, 4)
    assert_equal(values(own), values(params))


def test_bias_corrections_count_only_steps_with_a_gradient_as_torch():
    def skip(name, t):
        return (name == "head.scale" and t < 5) or (name == "body.bias" and t % 2)

    optimizer, params = made(gradtx.adam(lr=0.1))
    other = parameters()
    descend(optimizer, params, 12, skip=skip)
    reference = torch.optim.Adam(other.values(), lr=0.1)
    descend(reference, other, 12, skip=skip)
    assert_close(params.values(), other.values(), TOLERANCE)
    steps = {name: optimizer.state[param]["step"].item() for name, param in params.items()}
    assert steps == {"body.weight": 12, "body.bias": 6, "head.weight": 12, "head.scale": 7}


def test_a_parameter_without_gradient_is_skipped_bit_for_bit():
    optimizer, params = made(gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.adamw(lr=0.1)))
    descend(optimizer, params, 2)
    still = params["body.bias"]
    before = still.detach().clone(), {key: value.clone() for key, value in optimizer.state[still].items()}
    descend(optimizer, params, 2, start=2, skip=lambda name, t: name == "body.bias")
    assert_equal((still.detach(), dict(optimizer.state[still])), before)


@pytest.mark.parametrize("steps", [0, 4])
def test_a_group_added_later_steps_as_in_torch(steps):
    results = []
    for module in (gradtx.optim, torch.optim):
        params = parameters()
        head = [params.pop("head.weight"), params.pop("head.scale")]
        optimizer = module.AdamW(params.values(), lr=0.1)
        descend(optimizer, params, steps)
        optimizer.add_param_group({"params": head, "lr": 0.01})
        params |= {"head.weight": head[0], "head.scale": head[1]}
        descend(optimizer, params, 5, start=steps)
        assert optimizer.state[head[0]]["step"].item() == 5
        results.append(params.values())
    assert_close(*results, tolerance=TOLERANCE)


def test_parameters_added_later_take_over_what_the_others_share():
    tx = gradtx.chain(gradtx.record("norm"), gradtx.accumulate(gradtx.sgd(lr=0.1), every=3))
    params = parameters()
    late = {"head.scale": params.pop("head.scale")}
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    descend(optimizer, params, 4)
    optimizer.add_param_group({"params": list(late.items())})
    for t in (4, 5):
        descend(optimizer, {**params, **late}, 1, start=t)
        first, added = optimizer.state[params["body.bias"]], optimizer.state[late["head.scale"]]
        for key in ("norm", "accumulate.step", "mini_step"):
            assert_equal(added[key], first[key])
    assert first["accumulate.step"] == 2


def test_lazy_parameters_get_their_state_at_the_first_step():
    model = torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.LazyLinear(1))
    optimizer = gradtx.as_optimizer(LOOKAHEAD, model.named_parameters())
    assert not optimizer.state
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    for param in model.parameters():
        assert optimizer.state[param]["slow"].shape == param.shape
        assert optimizer.state[param]["step"].item() == 1


def test_meta_parameters_get_their_state_at_the_first_step(monkeypatch):
    monkeypatch.setattr(torch.__future__, "get_swap_module_params_on_conversion", lambda: True)
    with torch.device("meta"):
        model = torch.nn.Linear(4, 3)
    optimizer = gradtx.as_optimizer(LOOKAHEAD, model.named_parameters())
    assert not optimizer.state
    model.to_empty(device="cpu")
    torch.nn.init.ones_(model.weight)
    torch.nn.init.zeros_(model.bias)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert_equal(optimizer.state[model.weight]["slow"], torch.ones(3, 4))


def test_an_entry_that_belongs_to_no_parameter_may_be_anything():
    """torch loads such entries; some wrappers keep notes of their own there."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = gradtx.optim.AdamW(params)
    for note in (None, 7, "text", []):
        optimizer.state["of a wrapper"] = note
        for param in params:
            param.grad = torch.ones(3)
        for _ in range(2):
            optimizer.step()
        assert optimizer.state["of a wrapper"] is note


# What rules may return: a slice of a larger tensor, one entry expanded, a transposed tensor, twice the same one.


def keep_parts(**traits):
    @gradtx.per_tensor(**traits)
    def keep():
        def slots_of(p):
            larger = torch.cat([p, p])
            same = p.flip(0)
            return {
                "every_third": larger.flatten()[::3],
                "head": larger[:1],
                "expanded": larger.sum().expand(p.shape),
                "transposed": (p + 1).T,
                "same": same,
                "again": same,
                "entry": larger.flatten()[0],
            }

        def update(g, state, p, ctx):
            kept = slots_of(g)
            # Swapped, too: both are old slots.
            return g, {**kept, "same": state["again"], "again": state["same"] + 1}

        return {name: lambda p, name=name: slots_of(p)[name] for name in slots_of(torch.zeros(2, 2))}, update

    return keep()


def own_contiguous_memory(tensors):
    tensors = [tensor for tensor in tensors if tensor.numel()]
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return len(storages) == len(tensors) and all(
        tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors
    )


@pytest.mark.parametrize("mode", ["eagerly", "lists", "kernels", "released"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_every_slot_owns_contiguous_memory_whatever_its_rule_returns(steps, mode):
    params = {"w": torch.nn.Parameter(drawn(0, (4, 6)))}
    tx = gradtx.chain(keep_parts(), gradtx.scale(-0.1))
    optimizer = gradtx.as_optimizer(tx, list(params.items()), compile=mode == "kernels")
    if mode == "released":
        optimizer.release_gradients()
    with gradtx.eagerly() if mode == "eagerly" else contextlib.nullcontext():
        for t in range(steps):
            (params["w"] * gradient(params["w"], t)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    states = optimizer.state_dict()["state"].values()
    values = [value for state in states for key, value in state.items() if key != "step"]
    assert own_contiguous_memory([*params.values(), *values])


@pytest.mark.parametrize("eagerly", [False, True])
def test_every_slot_of_pure_functions_owns_all_of_its_memory(eagerly):
    params = {"a": drawn(0, (1, 1)), "b": drawn(1, (4, 6))}
    tx = keep_parts()
    with gradtx.eagerly() if eagerly else contextlib.nullcontext():
        state = tx.init(params)
        for t in range(3):
            slots = [slot for by_leaf in state["keep"].values() for slot in by_leaf.values()]
            assert all(slot.untyped_storage().nbytes() == slot.nbytes for slot in slots)
            gradients = {name: gradient(param, t) for name, param in params.items()}
            _, state = tx.update(gradients, state, params)


@pytest.mark.parametrize("name", ["prodigy", "adamw"])
def test_slots_lie_in_memory_as_their_parameter_does(name):
    """As in torch: a step over tensors in one order is faster."""
    param = torch.nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    optimizer = gradtx.as_optimizer(getattr(gradtx, name)(), [("w", param)])
    for _ in range(2):
        param.grad = torch.randn_like(param)
        optimizer.step()
    assert all(value.stride() == param.stride() for value in optimizer.state[param].values() if value.ndim)
