"""Promises that random chains, trainers and other projects' suites found broken, each reproduced before its fix."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn import Parameter

import gradtx
from gradtx import chain
from tests.optim.problems import assert_equal


def stepped(tx, params, gradients):
    """Return the named parameters after a step for each tuple of gradients."""
    named = {name: Parameter(value.clone()) for name, value in params.items()}
    optimizer = gradtx.as_optimizer(tx, list(named.items()))
    for step in gradients:
        for param, gradient in zip(named.values(), step, strict=True):
            param.grad = gradient
        optimizer.step()
    return {name: param.detach().clone() for name, param in named.items()}, optimizer


def functional(tx, params, gradients):
    """Take the same steps with pure functions."""
    state = tx.init(params)
    for step in gradients:
        updates, state = tx.update(dict(zip(params, step, strict=True)), state, params)
        params = gradtx.apply_updates(params, updates)
    return params


ONES = torch.ones(2)


# The gradient seen by an alias is the updates that it receives.


def test_in_a_plain_chain_the_gradient_is_that_of_the_clock():
    tx = chain(gradtx.scale(-1.0), gradtx.scale_by_caution())  # every update opposes the gradient of the clock
    assert tx.update({"w": ONES}, tx.init({"w": ONES}))[0]["w"].abs().max() == 0


# Chains that flip the sign, and chains that do not.


@pytest.mark.parametrize(
    "tx",
    [
        chain(gradtx.clip_by_global_norm(1.0), gradtx.scale_by_adam()),
        gradtx.accumulate(gradtx.scale_by_adam(), 2),
        gradtx.partition({"a": gradtx.scale_by_lion(), "b": gradtx.adam()}, {"a": "w", "b": "*"}),
        gradtx.trace(0.9),
        chain(gradtx.clip_by_global_norm(1.0), gradtx.ema(0.9), gradtx.average()),
        gradtx.masked(gradtx.orthogonalize(), lambda name, tensor: tensor.ndim == 2),
        gradtx.clip_by_value(0.1),
    ],
)
def test_a_chain_that_never_turns_the_sign_is_warned_of(tx):
    params = [("w", Parameter(torch.ones(2, 2))), ("v", Parameter(ONES.clone()))]
    with pytest.warns(UserWarning, match="no link of this chain flips the sign, so its steps increase the loss"):
        gradtx.as_optimizer(tx, params)


@pytest.mark.parametrize(
    "tx",
    [
        chain(gradtx.scale_by_adam(), gradtx.scale(-0.1)),
        chain(gradtx.scale_by_adam(), gradtx.scale(1.0)),
        chain(gradtx.scale_by_adam(), gradtx.sgd(lr=0.1, maximize=True)),
        gradtx.average(),
        chain(gradtx.trace(0.9), gradtx.sgd(lr=0.1)),
        gradtx.prodigy(),
        gradtx.alig(max_lr=0.1),
        gradtx.schedule_free(gradtx.scale_by_adam(), lr=0.1, beta=0.9),
    ],
)
def test_chains_that_turn_it_or_say_that_they_mean_it_are_not(tx):
    gradtx.as_optimizer(tx, [Parameter(ONES.clone())])


# Schedules under an outer scheduler.


def test_a_scheduler_that_takes_a_group_with_a_schedule_is_warned_of_by_name():
    schedule = gradtx.cosine_schedule(1e-3, T_max=100)
    optimizer = gradtx.optim.AdamW([Parameter(ONES.clone())], lr=schedule)
    message = (
        r"lr of a group follows cosine_schedule.*multiples of the schedule's first value, 0.001; .*as_lr_scheduler"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    assert caught[0].filename == __file__


def test_a_scheduler_that_would_multiply_the_0_of_a_warmup_is_an_error_and_leaves_the_optimizer_as_it_was():
    schedule = gradtx.warmup_cosine_schedule(100, max_lr=1e-3, warmup_steps=10)
    param = Parameter(ONES.clone())
    optimizer = gradtx.optim.AdamW([param], lr=schedule)
    message = "lr of a group follows warmup_cosine_schedule.*rate would stay 0 for the whole run.*as_lr_scheduler"
    with pytest.raises(ValueError, match=message):
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    assert "initial_lr" not in optimizer.param_groups[0]
    param.grad = ONES.clone()
    for _ in range(11):
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(schedule(11))


def test_a_scheduler_on_a_number_is_not_warned_of():
    optimizer = gradtx.optim.AdamW([Parameter(ONES.clone())], weight_decay=gradtx.linear_schedule(0.1, 0.5))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


# Evaluation.


def averaged(kind="schedule_free"):
    param = Parameter(torch.tensor([1.0, -2.0]))
    make = {
        "schedule_free": lambda: gradtx.optim.ScheduleFreeAdamW([param], lr=0.1),
        "average": lambda: gradtx.as_optimizer(chain(gradtx.sgd(lr=0.1), gradtx.average()), [param]),
        "lookahead": lambda: gradtx.as_optimizer(gradtx.with_lookahead(gradtx.sgd(lr=0.1)), [param]),
    }
    optimizer = make[kind]()
    for _ in range(7):
        param.grad = param.detach().clone()
        optimizer.step()
    return optimizer, param


@pytest.mark.parametrize("kind", ["schedule_free", "average", "lookahead"])
def test_eval_and_train_swap_the_weights_and_may_be_called_twice(kind):
    optimizer, param = averaged(kind)
    trained = param.detach().clone()
    with optimizer.eval_params():
        expected = param.detach().clone()
    for _ in range(2):
        optimizer.eval()
        assert torch.equal(param, expected)
    with optimizer.eval_params():
        assert torch.equal(param, expected)
    assert torch.equal(param, expected)
    for _ in range(2):
        optimizer.train()
        assert torch.equal(param, trained)


def test_a_step_on_the_weights_to_evaluate_with_is_refused_by_name():
    optimizer, _ = averaged()
    optimizer.eval()
    with pytest.raises(RuntimeError, match=r"ScheduleFreeAdamW: .*call optimizer.train\(\) before step\(\)"):
        optimizer.step()
    optimizer.train()
    optimizer.step()


def test_optimizers_without_such_weights_step_in_both_modes():
    param = Parameter(ONES.clone())
    optimizer = gradtx.optim.AdamW([param])
    param.grad = ONES.clone()
    optimizer.eval()
    optimizer.step()


@pytest.mark.parametrize("kind", ["schedule_free", "average", "lookahead"])
@pytest.mark.parametrize("evaluating", [False, True])
def test_a_state_dict_that_was_saved_in_either_mode_continues_the_run(kind, evaluating):
    optimizer, param = averaged(kind)
    resumed, other = averaged(kind)
    if evaluating:
        optimizer.eval()
    file = io.BytesIO()
    torch.save({"weights": param.detach(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    with torch.no_grad():
        other.copy_(saved["weights"])
    resumed.load_state_dict(saved["optimizer"])
    for one, weights in ((optimizer, param), (resumed, other)):
        one.train()
        weights.grad = ONES.clone()
        one.step()
    assert torch.equal(param, other)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_made_while_evaluating_goes_back_to_its_training_weights(duplicate):
    optimizer, param = averaged()
    trained = param.detach().clone()
    optimizer.eval()
    copied = duplicate(optimizer)
    copied.train()
    assert torch.equal(copied.param_groups[0]["params"][0], trained)
    assert not torch.equal(param, trained)


# Hyperparameters in groups, as written by torch and its users.


def test_rates_within_rounding_of_their_range_are_taken_as_its_end():
    param = Parameter(ONES.clone())
    optimizer = gradtx.optim.SGD([param], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, end_factor=0.0, total_iters=7)
    for _ in range(9):
        param.grad = ONES.clone()
        optimizer.step()
        scheduler.step()
    optimizer.param_groups[0]["lr"] = -1e-20
    optimizer.step()
    optimizer.param_groups[0]["lr"] = -1e-3
    with pytest.raises(ValueError, match=r"sgd: lr must be in \[0, inf\), got -0.001"):
        optimizer.step()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_tensors_with_one_entry_are_numbers_and_stay_their_owners(shape):
    param, rate = Parameter(ONES.clone()), torch.full(shape, 0.5)
    optimizer = gradtx.optim.SGD([param], lr=rate)
    param.grad = ONES.clone()
    optimizer.step()
    assert torch.equal(param.detach(), torch.full((2,), 0.5))
    rate.fill_(0.0)
    optimizer.step()
    assert torch.equal(param.detach(), torch.full((2,), 0.5))


def test_a_checkpoint_of_torch_with_such_a_rate_continues():
    theirs, ours = (Parameter(ONES.clone()) for _ in range(2))
    optimizer = torch.optim.AdamW([theirs], lr=torch.tensor([0.1]))
    theirs.grad = ours.grad = ONES.clone()
    optimizer.step()
    resumed = gradtx.optim.AdamW([ours])
    resumed.load_state_dict(optimizer.state_dict())
    with torch.no_grad():
        ours.copy_(theirs)
    optimizer.step()
    resumed.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("adam", [gradtx.optim.Adam, torch.optim.Adam])
def test_decoupled_decay_stays_decoupled_in_a_class_whose_default_is_not(adam):
    first, second = (Parameter(ONES.clone()) for _ in range(2))
    before = gradtx.optim.AdamW([first], lr=0.1, weight_decay=0.5)
    after = adam([second], lr=0.1)
    first.grad, second.grad = ONES.clone(), ONES.clone()
    before.step()
    after.load_state_dict(before.state_dict())
    with torch.no_grad():
        second.copy_(first)
    before.step()
    after.step()
    torch.testing.assert_close(first, second)


def test_adamw_refuses_a_coupled_decay_that_it_can_not_follow():
    param = Parameter(ONES.clone())
    coupled = torch.optim.Adam([param], weight_decay=0.1)
    with pytest.raises(
        ValueError, match="decoupled_weight_decay=False, which this class does not support; load it into Adam"
    ):
        gradtx.optim.AdamW([param]).load_state_dict(coupled.state_dict())


# Random chains.


@pytest.mark.parametrize(
    "schedule",
    [
        gradtx.wsd_schedule(1.0, 0, 3, 3),
        gradtx.explore_exploit_schedule(1.0, 0, 2, 5),
        gradtx.warmup_poly_schedule(5, max_lr=1.0),
        gradtx.warmup_linear_schedule(5, max_lr=1.0),
        gradtx.warmup_cosine_schedule(5, max_lr=1.0),
        gradtx.cosine_warmup_restarts_schedule(5, 1.0, max_lr=1.0),
    ],
    ids=repr,
)
def test_a_warm_up_of_no_steps_starts_at_the_full_rate(schedule):
    assert schedule(0) == 1.0


# Error messages: the link to blame, and the remedy.


@pytest.mark.parametrize(
    "result",
    [torch.tensor([2.0]), torch.ones(3), (torch.tensor(2.0), torch.ones(3)), {"loss": torch.tensor(2.0)}, "done"],
)
def test_a_closure_may_return_anything_if_no_link_reads_the_loss(result):
    param = Parameter(ONES.clone())
    optimizer = gradtx.optim.SGD([param], lr=0.1)

    def closure():
        param.grad = ONES.clone()
        return result

    assert optimizer.step(closure) is result
    assert param[0] == 0.9


def test_a_link_that_reads_the_loss_refuses_what_is_none():
    param = Parameter(ONES.clone())
    param.grad = ONES.clone()
    optimizer = gradtx.optim.AliG([param], max_lr=0.1)
    with pytest.raises(TypeError, match="value must be a number or a 0-d tensor, got"):
        optimizer.step(lambda: (torch.tensor(1.0), "logits"))


def test_a_sparse_gradient_in_pure_use_updates_its_rows_or_is_refused_with_the_remedy():
    params = {"w": torch.ones(3, 2)}
    sparse = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1, 2), (3, 2), check_invariants=True)
    tx = gradtx.sgd(lr=0.5)
    updates, _ = tx.update({"w": sparse}, tx.init(params), params)
    assert gradtx.apply_updates(params, updates)["w"].tolist() == [[0.5, 0.5], [1, 1], [1, 1]]
    tx = gradtx.muon(lr=0.1)
    with pytest.raises(
        RuntimeError, match=r"muon: leaf 'w' has a sparse gradient, .* in a partition, or call to_dense\(\)"
    ):
        tx.update({"w": sparse}, tx.init(params), params)


# Decay of some leaves only.


def test_a_mask_keeps_the_decay_of_an_optimizer_to_some_leaves():
    params = {"w": torch.full((2, 2), 2.0), "b": torch.full((2,), 2.0)}
    gradients = [(torch.ones(2, 2), ONES)] * 4
    for mask in ("w", lambda name, tensor: tensor.ndim > 1):
        tx = gradtx.adamw(lr=0.1, weight_decay=0.5, mask=mask)
        both = functional(tx, params, gradients)
        eager, _ = stepped(tx, params, gradients)
        torch.testing.assert_close(both, eager)
        decayed = functional(gradtx.adamw(lr=0.1, weight_decay=0.5), params, gradients)
        plain = functional(gradtx.adamw(lr=0.1, weight_decay=0.0), params, gradients)
        assert torch.equal(both["w"], decayed["w"])
        assert torch.equal(both["b"], plain["b"])


def test_a_mask_that_selects_nothing_is_an_error():
    with pytest.raises(TypeError, match="adamw: mask: select leaves by their names"):
        gradtx.adamw(mask=3)
    with pytest.raises(ValueError, match="adamw: mask: 'x' matches no leaf; leaves: w"):
        gradtx.adamw(mask="x").init({"w": ONES})


def test_the_error_of_a_mask_with_swapped_arguments_says_which_it_gets():
    tx = gradtx.adamw(mask=lambda p, name: p.ndim > 1)  # tests/errors/test_building.py has other numbers of arguments
    with pytest.raises(AttributeError) as caught:
        tx.init({"w": ONES})
    assert caught.value.__notes__ == ["adamw: mask: <lambda> gets the name and the tensor of a leaf, here 'w'"]


@pytest.mark.parametrize(
    "labels", [{"x": "a", "y": {"w": "a", "b": "b"}}, lambda name, tensor: "b" if name == "y.b" else "a"]
)
def test_partition_takes_a_tree_of_labels_as_optax_does(labels):
    tx = gradtx.partition({"a": gradtx.sgd(lr=1.0), "b": gradtx.freeze("*")}, labels)
    grads = {"x": {"w": ONES}, "y": {"w": ONES, "b": ONES}}
    updates, _ = tx.update(grads, tx.init(grads))
    assert updates["x"]["w"].tolist() == updates["y"]["w"].tolist() == [-1.0, -1.0]
    assert updates["y"]["b"].tolist() == [0.0, 0.0]


def test_a_leaf_without_a_label_in_the_tree_is_an_error():
    tx = gradtx.partition({"a": gradtx.sgd(lr=1.0), "b": gradtx.adam()}, {"x": "a", "y": "b"})
    with pytest.raises(ValueError, match="leaf 'z' has no label in the tree of labels"):
        tx.init({"x": ONES, "y": ONES, "z": ONES})


@pytest.mark.parametrize(
    "make", [gradtx.adam, gradtx.radam, lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.nadam())]
)
def test_pure_use_can_count_the_updates_of_each_leaf_as_torch_does(make):
    tx, params = make(), {"a": torch.ones(2), "b": torch.ones(2)}
    gradients = [(ONES, None), (None, ONES), (ONES, ONES), (ONES, None), (2 * ONES, ONES)]
    eager, _ = stepped(tx, params, gradients)
    state = tx.init(params, counts="leaves")
    by_calls = functional(tx, params, gradients)
    for step in gradients:
        updates, state = tx.update(dict(zip(params, step, strict=True)), state, params)
        params = gradtx.apply_updates(params, updates)
    assert {name: int(count) for name, count in state["leaf_steps"].items()} == {"a": 4, "b": 3}
    torch.testing.assert_close(params, eager)
    torch.testing.assert_close(by_calls, eager)
    with pytest.raises(ValueError, match="init: counts must be 'calls' or 'leaves', got 'both'"):
        tx.init(params, counts="both")


# Faults found by fuzzing chains and states (tests/fuzz).


@pytest.mark.parametrize(
    "tx", [gradtx.adamw(lr=0.1), gradtx.muon(lr=0.1, fallback=gradtx.adamw()), gradtx.lamb(lr=0.1)]
)
def test_a_parameter_of_another_shape_is_named_before_anything_changes(tx):
    params = {name: torch.nn.Parameter(torch.ones(4, 3)) for name in ("first", "grown", "last")}
    optimizer = gradtx.as_optimizer(tx, list(params.items()))

    def step():
        for param in params.values():
            param.grad = torch.ones_like(param)
        optimizer.step()

    step()
    params["grown"].grad = None
    params["grown"].data = torch.ones(5, 3)
    before = {name: param.detach().clone() for name, param in params.items()}
    states = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(
        ValueError,
        match=r"'grown' is torch.float32 of shape \(5, 3\) .* was created for torch.float32 of shape \(4, 3\)",
    ):
        step()
    assert all(torch.equal(param, before[name]) for name, param in params.items())
    assert_equal(optimizer.state_dict()["state"], states)
    optimizer.state.pop(params["grown"])  # as the error suggests
    step()
    assert not torch.equal(params["grown"], before["grown"])
