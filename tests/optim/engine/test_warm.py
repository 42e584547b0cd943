"""A step that is like the last one takes a short way, which sees whatever has changed since, as torch does."""

import copy

import pytest
import torch

import gradtx
from tests.optim.engine.test_walk import walk_of

WARM = 100  # the most calls of a warm step with a schedule and a clip; others have hundreds
GENERATOR = torch.Generator().manual_seed(0)
GRADIENTS = [torch.randn(3, 4, dtype=torch.float64, generator=GENERATOR) for _ in range(12)]


def with_other_rate(optimizer, params):
    optimizer.param_groups[0]["lr"] = 0.3


def with_a_rate_that_is_off(optimizer, params):
    optimizer.param_groups[0]["weight_decay"] = 0.0


def with_other_betas(optimizer, params):
    optimizer.param_groups[0]["betas"] = [0.5, 0.7]


def with_other_memory(optimizer, params):
    params[1].data = params[1].data.clone() + 1


def with_other_strides(optimizer, params):
    params[1].data = params[1].data.T.contiguous().T


def with_a_weight_that_was_written(optimizer, params):
    with torch.no_grad():
        params[0].mul_(2)


def with_another_slot(optimizer, params):
    optimizer.state[params[0]]["exp_avg"] = torch.ones(3, 4, dtype=torch.float64)


def with_a_slot_in_other_memory(optimizer, params):
    state = optimizer.state[params[0]]
    state["exp_avg_sq"].data = state["exp_avg_sq"].data * 3


def with_a_slot_that_was_written(optimizer, params):
    optimizer.state[params[1]]["exp_avg"].zero_()


def with_another_count(optimizer, params):
    optimizer.state[params[1]]["step"] = torch.tensor(50.0)


def with_a_count_that_was_written(optimizer, params):
    optimizer.state[params[1]]["step"].fill_(50.0)


def with_a_count_in_other_memory(optimizer, params):
    optimizer.state[params[1]]["step"].data = torch.tensor(50.0)


def without_state(optimizer, params):
    optimizer.state.pop(params[0])


def without_a_gradient(optimizer, params):
    params[0].grad = None


def without_gradients(optimizer, params):
    for param in params:
        param.grad = None


def with_strides_of_a_gradient(optimizer, params):
    params[0].grad = params[0].grad.T.contiguous().T


def with_a_group(optimizer, params):
    params.append(torch.nn.Parameter(torch.ones(3, 4, dtype=torch.float64)))
    params[-1].grad = GRADIENTS[0].clone()
    optimizer.add_param_group({"params": [params[-1]], "lr": 0.5})


def with_fewer_parameters(optimizer, params):
    optimizer.param_groups[0]["params"].remove(params[0])


def with_parameters_in_another_order(optimizer, params):
    optimizer.param_groups[0]["params"].reverse()


def with_its_own_checkpoint(optimizer, params):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def with_an_older_checkpoint(optimizer, params):
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = torch.tensor(1.0)
    optimizer.load_state_dict(saved)


def in_place_of_a_copy(optimizer, params):
    copy.deepcopy(optimizer).step()


def with_a_closure(optimizer, params):
    optimizer.step(lambda: torch.tensor(1.0))


def forget(optimizer):
    """Have the next step find out everything again."""
    optimizer._core.last_counts = None
    for engine in optimizer._core.back_ends:
        engine.forget()


CHANGES = [value for name, value in list(globals().items()) if name.startswith(("with_", "without_", "in_place"))]


def trained(make, change):
    """The weights after some steps, a change, and some more; and whether the steps before it were warm."""
    values = [torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4) * (i + 1) for i in range(2)]
    params = list(map(torch.nn.Parameter, values))
    optimizer = make(params)
    gradients = iter(GRADIENTS)
    for _ in range(4):
        for param in params:
            param.grad = next(gradients).clone()
        calls, _ = walk_of(optimizer.step)
    were_warm = len(calls) <= WARM
    for param in params:
        param.grad = GRADIENTS[5].clone()
    change(optimizer, params)
    for _ in range(3):
        optimizer.step()
    return [param.detach() for param in params], were_warm


@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["lists", "compiled"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_before_a_warm_step_counts_as_in_torch(change, options):
    expected, _ = trained(lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.2), change)
    weights, were_warm = trained(lambda params: gradtx.optim.AdamW(params, lr=0.1, weight_decay=0.2, **options), change)
    assert were_warm
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["lists", "compiled"])
def test_warm_steps_with_a_schedule_and_a_clip_equal_single_leaves(options):
    def make(params):
        rate = gradtx.cosine_schedule(0.1, T_max=5)
        tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(rate))
        return gradtx.as_optimizer(tx, params, **options)

    weights, were_warm = trained(make, with_a_weight_that_was_written)
    with gradtx.eagerly():
        expected, were_eager_warm = trained(make, with_a_weight_that_was_written)
    assert (were_warm, were_eager_warm) == (True, False)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [-1.0, "fast", None])
def test_a_number_that_is_out_of_range_is_an_error_before_a_warm_step_writes_anything(value):
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    optimizer = gradtx.optim.AdamW([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    for param in params:
        param.grad = torch.ones_like(param)
    for _ in range(3):
        optimizer.step()
    before = copy.deepcopy((params, optimizer.state_dict()["state"]))
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.param_groups[1]["lr"] = value
    with pytest.raises((TypeError, ValueError), match="lr"):
        optimizer.step()
    torch.testing.assert_close((params, optimizer.state_dict()["state"]), before, rtol=0, atol=0)
    optimizer.param_groups[1]["lr"] = 0.1
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 4


def test_a_sparse_gradient_before_a_warm_step_steps_its_rows_alone():
    params = [torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    optimizer = gradtx.optim.AdamW(params)
    for param in params:
        param.grad = torch.ones(3, 2)
    for _ in range(3):
        optimizer.step()
    before = params[0].detach().clone()
    params[0].grad = torch.ones(3, 2)[:2].to_sparse(1).sparse_resize_((3, 2), 1, 1)
    optimizer.step()
    torch.testing.assert_close(params[0][:2], params[1][:2], rtol=0, atol=0)
    torch.testing.assert_close(params[0][2], before[2], rtol=0, atol=0)
    assert [optimizer.state[param]["step"] for param in params] == [4, 4]
    params[0].grad = torch.ones(3, 2)
    optimizer.step()
    assert [optimizer.state[param]["step"] for param in params] == [5, 5]


def test_a_sparse_gradient_before_a_warm_step_of_a_rule_for_whole_leaves_is_an_error():
    param = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = gradtx.optim.Muon([param])
    param.grad = torch.ones(3, 2)
    for _ in range(3):
        optimizer.step()
    param.grad = torch.ones(3, 2).to_sparse(1)
    with pytest.raises(RuntimeError, match="sparse gradient"):
        optimizer.step()
    assert optimizer.state[param]["step"] == 3


def test_a_bundle_that_fails_in_a_warm_step_is_counted_as_not_done(monkeypatch):
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, dtype=torch.float64))]
    optimizer = gradtx.optim.AdamW(params)
    for param in params:
        param.grad = torch.ones_like(param)
    for _ in range(3):
        optimizer.step()
    (plan,) = optimizer._core.back_ends[0].plans.values()
    failing = plan.bundles[1]

    def fail(phase):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(failing, "process", fail)
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        optimizer.step()
    assert any("eagerly" in note for note in caught.value.__notes__)
    assert [optimizer.state[param]["step"].item() for param in params] == [4, 3]


def test_hooks_run_around_warm_steps():
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = gradtx.optim.SGD([param], lr=1.0)
    param.grad = torch.ones(2)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(param[0].item()))
    optimizer.register_step_post_hook(lambda *_: seen.append(param[0].item()))
    for _ in range(3):
        optimizer.step()
    assert seen == [1, 0, 0, -1, -1, -2]


@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["lists", "compiled"])
def test_a_group_without_parameters_steps(options):
    optimizer = gradtx.optim.SGD([{"params": []}], lr=1.0, **options)
    for _ in range(3):
        optimizer.step()
    param = torch.nn.Parameter(torch.ones(2))
    optimizer.param_groups[0]["params"].append(param)
    param.grad = torch.ones(2)
    for _ in range(3):
        optimizer.step()
    assert param.tolist() == [-2, -2]


@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["lists", "compiled"])
def test_a_momentum_that_is_switched_on_between_warm_steps_starts_as_in_torch(options):
    def trained(optimizer_class, **options):
        param = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = optimizer_class([param], lr=0.1, **options)
        for i in range(8):
            param.grad = torch.full((3,), float(i), dtype=torch.float64)
            if i == 4:
                optimizer.param_groups[0]["momentum"] = 0.9
            optimizer.step()
        return param.detach()

    torch.testing.assert_close(trained(gradtx.optim.SGD, **options), trained(torch.optim.SGD))


@gradtx.per_tensor
def scale_by_loss():
    """Read the loss if there is one, without declaring a need for it."""

    def update(update, state, param, ctx):
        return -0.1 * update * (1.0 if ctx.value is None else ctx.value), state

    return update


@pytest.mark.parametrize("make", [lambda t: torch.tensor(1.0 + t), lambda t: 1.0 + t, lambda t: "no loss"])
@pytest.mark.parametrize("tx", [scale_by_loss(), gradtx.adamw(lr=0.1)], ids=["reads the loss", "adamw"])
def test_a_warm_step_takes_the_loss_of_its_closure(tx, make):
    found = []
    for repeats in (True, False):
        param = torch.nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
        optimizer = gradtx.as_optimizer(tx, [param])
        losses = []
        for t, gradient in enumerate(GRADIENTS[:6]):
            param.grad = gradient.clone().reshape(3, 4)
            if not repeats:
                forget(optimizer)
            losses.append(optimizer.step(lambda t=t: make(t)))
        assert losses == [make(t) for t in range(6)]
        found.append(param.detach())
    assert found[0].equal(found[1])


def test_a_closure_that_comes_and_goes_between_warm_steps_is_noticed():
    found = []
    for tx in (scale_by_loss(), gradtx.chain(scale_by_loss(), gradtx.scale(1.0))):
        param = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = gradtx.as_optimizer(tx, [param])
        for loss in (2.0, 2.0, None, None, torch.tensor(3.0), torch.tensor(3.0), 2.0, 5.0):
            param.grad = torch.ones(3, dtype=torch.float64)
            optimizer.step(*([] if loss is None else [lambda loss=loss: loss]))
        found.append(param[0].item())
    assert found == pytest.approx([1 - 0.1 * (2 + 2 + 1 + 1 + 3 + 3 + 2 + 5)] * 2)
