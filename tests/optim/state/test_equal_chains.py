"""Optimizers that differ only in numbers share what follows from their chain; none sees another one's numbers."""

import copy
import gc
import threading
import weakref

import pytest
import torch

import gradtx
from gradtx.optim.classes import CLASSES

KINDS = [torch.ones(4, 6), torch.ones(6, 4).t(), torch.ones(5), torch.ones(()), torch.ones(4, 6, dtype=torch.bfloat16)]


def params_like(kinds):
    return [torch.nn.Parameter(kind.clone()) for kind in kinds]


def begun(cls, sample, **changed):
    optimizer = cls(params_like(KINDS), **{**sample, **changed})
    optimizer._core.states.begin()
    return [optimizer.state[param] for param in optimizer._core.members.by_param]


def assert_bitwise(states, expected):
    for state, other in zip(states, expected, strict=True):
        assert list(state) == list(other)
        for key, value in state.items():
            assert value.dtype == other[key].dtype
            assert value.stride() == other[key].stride(), key
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_second_optimizer_starts_as_the_first_one_of_its_numbers_would(name, monkeypatch):
    cls = CLASSES[name]
    alias = cls._alias
    sample = alias.spec.arguments.sample()
    number = next((key for key in ("lr", "weight_decay") if key in alias.spec.arguments.by_name), None)
    changed = {} if number is None else {number: 0.0625}
    try:
        begun(cls, sample)
        second = begun(cls, sample, **changed)
    except (ValueError, TypeError):
        pytest.skip("takes other parameters")
    monkeypatch.setattr("gradtx.optim.outline.Outline.first_state", lambda *_: None)
    assert_bitwise(second, begun(cls, sample, **changed))


def test_states_of_equal_optimizers_share_no_memory():
    first, second = (gradtx.optim.Adam(params_like(KINDS)) for _ in range(2))
    addresses = []
    for optimizer in (first, second):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        optimizer.step()
        for state in optimizer.state.values():
            addresses += [value.data_ptr() for value in state.values()]
    assert len(set(addresses)) == len(addresses)


def test_a_bool_is_refused_although_it_equals_a_number_that_was_accepted():
    gradtx.optim.AdamW(params_like(KINDS), weight_decay=1)
    with pytest.raises(TypeError, match="weight_decay must be a number"):
        gradtx.optim.AdamW(params_like(KINDS), weight_decay=True)


def test_tensors_among_arguments_stay_with_their_optimizer():
    rate = torch.tensor(0.5)
    first = gradtx.optim.SGD(params_like(KINDS[:1]), lr=rate)
    second = gradtx.optim.SGD(params_like(KINDS[:1]), lr=torch.tensor(0.25))
    rate.fill_(1.0)
    for optimizer, expected in ((first, 0.0), (second, 0.75)):
        (param,) = optimizer.param_groups[0]["params"]
        param.grad = torch.ones_like(param)
        optimizer.step()
        assert torch.equal(param.detach(), torch.full_like(param, expected))


def test_a_default_dtype_that_changes_between_optimizers_applies_to_the_later_one():
    gradtx.optim.AdamW(params_like(KINDS))
    torch.set_default_dtype(torch.float64)
    try:
        optimizer = gradtx.optim.AdamW(params_like(KINDS[:1]))
        optimizer._core.states.begin()
        (state,) = optimizer.state.values()
        expected = torch.optim.AdamW(params_like(KINDS[:1]))
        (param,) = expected.param_groups[0]["params"]
        param.grad = torch.ones_like(param)
        expected.step()
        assert state["step"].dtype == expected.state[param]["step"].dtype
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_mask_sees_the_parameters_of_its_own_optimizer():
    steps = []
    for names in (("weight", "bias"), ("bias", "weight")):
        params = params_like([torch.ones(2), torch.ones(2)])
        tx = gradtx.sgd(lr=0.5, weight_decay=1.0, mask="weight")
        optimizer = gradtx.as_optimizer(tx, list(zip(names, params, strict=True)))
        for param in params:
            param.grad = torch.zeros(2)
        optimizer.step()
        steps.append([param[0].item() for param in params])
    assert steps == [[0.5, 1.0], [1.0, 0.5]]


def test_threads_build_and_step_equal_optimizers_at_once():
    expected = torch.optim.AdamW(params_like(KINDS[:3]), lr=0.01, foreach=True)
    faults = []

    def train(seed):
        try:
            for _ in range(5):
                optimizer = gradtx.optim.AdamW(params_like(KINDS[:3]), lr=0.01)
                for param in optimizer.param_groups[0]["params"]:
                    param.grad = torch.ones_like(param)
                optimizer.step()
                for param, other in zip(optimizer.param_groups[0]["params"], weights, strict=True):
                    torch.testing.assert_close(param.detach(), other)
        except Exception as error:
            faults.append((seed, error))

    for param in expected.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    expected.step()
    weights = [param.detach() for param in expected.param_groups[0]["params"]]
    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_a_copy_of_an_optimizer_steps_as_the_original():
    optimizer = gradtx.optim.AdamW(params_like(KINDS[:2]))
    copied = copy.deepcopy(optimizer)
    for either in (optimizer, copied):
        for param in either.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        either.step()
    for mine, other in zip(optimizer.param_groups[0]["params"], copied.param_groups[0]["params"], strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("compiled", [False, True])
def test_optimizers_with_schedules_of_other_numbers_step_by_their_own(compiled):
    for peak in (0.5, 0.125):
        params = params_like(KINDS[:1])
        rate = gradtx.linear_schedule(peak, 1.0, 0.0, 4)
        optimizer = gradtx.optim.SGD(params, lr=rate, compile=compiled)
        expected = params[0].detach().clone()
        for step in range(4):
            params[0].grad = torch.ones_like(params[0])
            optimizer.step()
            expected -= peak * (1 - step / 4)
        torch.testing.assert_close(params[0].detach(), expected)


def test_pure_updates_with_schedules_of_other_numbers_step_by_their_own():
    tree = {f"w{i}": torch.ones(3) for i in range(20)}
    for peak in (0.5, 0.125):
        tx = gradtx.sgd(lr=gradtx.linear_schedule(peak, 1.0, 0.0, 4))
        state = tx.init(tree)
        for step in range(4):
            updates, state = tx.update(tree, state, tree)
            torch.testing.assert_close(updates["w0"], torch.full((3,), -peak * (1 - step / 4)))


def test_a_schedule_of_the_user_is_not_kept_alive():
    class Rate:
        def __call__(self, step):
            return 0.1

    function = Rate()
    alive = weakref.ref(function)
    optimizer = gradtx.optim.SGD(params_like(KINDS[:1]), lr=gradtx.Schedule(function))
    (param,) = optimizer.param_groups[0]["params"]
    param.grad = torch.ones_like(param)
    optimizer.step()
    del optimizer, function, param
    gc.collect()
    assert alive() is None


def test_numbers_that_are_no_hyperparameters_stay_constants_of_later_chains():
    """The coefficients of Muon's iteration, of which one optimizer has others than the one before."""
    weights = []
    for coefficients in ((3.4445, -4.775, 2.0315), (3.4445, -4.775, 2.0315), (2.0, -1.5, 0.5)):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
        optimizer = gradtx.optim.Muon([weight], lr=0.1, ns_coefficients=coefficients)
        for _ in range(2):
            weight.grad = weight.detach().sin()
            optimizer.step()
        with gradtx.eagerly():
            reference = torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
            eager = gradtx.optim.Muon([reference], lr=0.1, ns_coefficients=coefficients)
            for _ in range(2):
                reference.grad = reference.detach().sin()
                eager.step()
        torch.testing.assert_close(weight, reference)
        weights.append(weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[1], weights[2])
