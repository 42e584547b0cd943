"""Promises that random chains, trainers and other projects' suites found broken, each reproduced before its fix."""

import copy
import gc
import io
import math
import pickle
import warnings
import weakref

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


def test_adamp_behind_centralize_tests_scale_invariance_on_the_centralized_gradient():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(8, 6, dtype=torch.float64, generator=generator)
    gradients = [torch.randn(8, 6, dtype=torch.float64, generator=generator) for _ in range(30)]
    adamp = gradtx.adamp(lr=1e-2, weight_decay=0.1)
    both = functional(chain(gradtx.centralize(), adamp), {"w": start}, [(gradient,) for gradient in gradients])
    centred = [(gradient - gradient.mean(dim=1, keepdim=True),) for gradient in gradients]
    alone = functional(adamp, {"w": start}, centred)
    torch.testing.assert_close(both["w"], alone["w"], rtol=0, atol=0)


def test_in_a_plain_chain_the_gradient_is_that_of_the_clock():
    tx = chain(gradtx.scale(-1.0), gradtx.scale_by_caution())  # every update opposes the gradient of the clock
    assert tx.update({"w": ONES}, tx.init({"w": ONES}))[0]["w"].abs().max() == 0


def test_behind_an_alias_that_maximizes_the_gradient_is_the_clocks_again():
    seen = []

    @gradtx.per_tensor(elementwise=True)
    def looks():
        return lambda update, state, param, ctx: (seen.append(ctx.grad.clone()) or update, state)

    tx = chain(gradtx.sgd(lr=0.1, maximize=True), looks())
    tx.update({"w": ONES}, tx.init({"w": ONES}))
    assert torch.equal(seen[0], ONES)


def test_grafting_an_optimizer_onto_itself_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    params, grads = ({"w": torch.randn(4, 3, generator=generator)} for _ in range(2))
    tx = chain(gradtx.adamp(maximize=True))
    both = gradtx.graft(tx, tx)
    expected = tx.update(grads, tx.init(params), params)[0]
    torch.testing.assert_close(both.update(grads, both.init(params), params)[0], expected)


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


def test_a_resumed_apollo_keeps_its_kind_of_decay():
    param = Parameter(ONES.clone())
    optimizer = gradtx.optim.ApolloDQN([param], lr=0.1, weight_decay=0.1, weight_decay_type="decoupled")
    param.grad = ONES.clone()
    optimizer.step()
    resumed = gradtx.optim.ApolloDQN([param], lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]["weight_decay_type"] == "decoupled"


# Random chains.


@gradtx.per_tensor(elementwise=True)
def previous_update():
    def init(param):
        return {"last": torch.zeros_like(param)}

    return init, lambda update, state, param, ctx: (state["last"], {"last": update})


@pytest.mark.parametrize("size", [10, 2**18 + 1, 2**19 + 7])
def test_an_update_that_is_an_old_slot_is_the_old_one_in_leaves_of_any_size(size):
    gradients = [(torch.full((size,), value),) for value in (10.0, 101.0, 7.0)]
    params, _ = stepped(previous_update(), {"w": torch.zeros(size)}, gradients)
    assert params["w"].unique().tolist() == [111.0]


@pytest.mark.parametrize(
    "behind",
    [
        chain(gradtx.scale_by_caution(), gradtx.scale_by_learning_rate(0.1)),
        gradtx.sgd(lr=0.1, maximize=True),
        gradtx.adamp(),
    ],
)
def test_links_behind_accumulate_take_a_parameter_that_has_no_gradient(behind):
    tx = chain(gradtx.accumulate(gradtx.scale_by_adam(), 2), behind)
    gradients = [(ONES, None), (None, None), (ONES, ONES), (None, ONES)]
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    eager, _ = stepped(tx, params, gradients)
    pure = functional(tx, params, gradients)
    assert all(value.isfinite().all() for value in (*eager.values(), *pure.values()))


IDLE = {
    "a branch with a clock": gradtx.partition(
        {"x": gradtx.adam(), "y": gradtx.accumulate(gradtx.sgd(lr=0.1), 2)}, lambda name, tensor: "x"
    ),
    "a branch with shared numbers": gradtx.partition(
        {"x": gradtx.sgd(lr=0.1), "y": gradtx.prodigy(), "z": gradtx.skip_nonfinite(gradtx.adam())},
        lambda name, tensor: "x",
    ),
    "everything frozen": chain(gradtx.accumulate(gradtx.adam(), 2), gradtx.freeze("*")),
}


@pytest.mark.parametrize("tx", IDLE.values(), ids=IDLE)
def test_a_branch_that_no_leaf_takes_does_not_stop_a_step(tx):
    params, optimizer = stepped(tx, {"w": torch.ones(2)}, [(ONES,)] * 3)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    torch.testing.assert_close(params, functional(tx, {"w": torch.ones(2)}, [(ONES,)] * 3))


def test_a_leaf_that_its_branch_freezes_meets_the_links_behind_the_partition():
    tx = chain(
        gradtx.partition({"x": gradtx.freeze("*"), "y": chain()}, {"x": "w", "y": "*"}),
        gradtx.add_decayed_weights(0.5),
    )
    params = {"w": torch.ones(2), "b": torch.ones(2)}
    eager, _ = stepped(tx, params, [(ONES, ONES)])
    pure = functional(tx, params, [(ONES, ONES)])
    assert eager["w"].tolist() == pure["w"].tolist() == [1.5, 1.5]
    assert eager["b"].tolist() == pure["b"].tolist() == [2.5, 2.5]


def test_a_leaf_without_gradient_in_a_whole_cycle_of_nested_accumulation_stands_still():
    tx = gradtx.accumulate(chain(gradtx.accumulate(gradtx.sgd(lr=0.1, momentum=0.9), 2), gradtx.trace(0.9)), 2)
    params = {"w": torch.ones(2), "b": torch.ones(2)}
    state = tx.init(params)
    buffers = []
    for step in range(16):
        grads = {"w": ONES, "b": ONES if step < 8 else None}
        updates, state = tx.update(grads, state, params)
        if step >= 8:
            assert not updates["b"].any()
        if step in (7, 15):
            buffers.append(state["accumulate"]["trace"]["momentum_buffer"]["b"])
    assert torch.equal(*buffers)


def test_pullback_keeps_apart_the_copies_of_two_momenta_when_gradients_are_missing():
    tx = gradtx.with_lookahead(
        chain(gradtx.trace(0.5), gradtx.scale_by_adam(), gradtx.scale_by_learning_rate(0.1)),
        k=2,
        pullback_momentum="pullback",
    )
    params, state = {"w": torch.zeros(2), "v": torch.zeros(2)}, None
    state = tx.init(params)
    for step in range(6):
        grads = {"w": ONES if step % 3 else None, "v": ONES}
        updates, state = tx.update(grads, state, params)
        params = gradtx.apply_updates(params, updates)
        slow = state["with_lookahead"]
        if step % 2:
            assert torch.equal(slow["slow_momentum"]["v"], slow["trace"]["momentum_buffer"]["v"])
            assert torch.equal(slow["slow_momentum_1"]["v"], slow["scale_by_adam"]["exp_avg"]["v"])


def test_a_slot_that_is_a_fraction_of_its_leaf_compiles():
    params = [Parameter(torch.linspace(-1, 1, size)) for size in (64, 32)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = gradtx.optim.Prodigy(params, slice_p=2, compile=True)
        for _ in range(2):
            for param in params:
                param.grad = param.detach().clone()
            optimizer.step()


def test_tiny_gradients_give_soap_the_same_finite_updates_with_and_without_autograd():
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(4, 3, generator=generator) * 1e-20 for _ in range(3)]
    tx, results = gradtx.soap(), []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            state = tx.init({"w": torch.ones(4, 3)})
            for gradient in gradients:
                updates, state = tx.update({"w": gradient}, state, {"w": torch.ones(4, 3)})
            results.append(updates["w"])
    assert results[0].isfinite().all()
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("wrap", [lambda tx: gradtx.accumulate(tx, 2), gradtx.skip_nonfinite, gradtx.with_lookahead])
def test_groups_show_the_number_that_the_next_update_uses_also_on_nested_clocks(wrap):
    schedule = gradtx.Schedule(lambda step: 0.1 * (step + 1))
    param = Parameter(torch.zeros(1))
    optimizer = gradtx.as_optimizer(gradtx.accumulate(wrap(gradtx.sgd(lr=schedule)), 2), [param])
    for _ in range(9):
        shown, before = optimizer.param_groups[0]["lr"], param.item()
        param.grad = torch.ones(1)
        optimizer.step()
        moved = before - param.item()
        assert math.isclose(moved, 0.0, abs_tol=1e-6) or math.isclose(moved, shown, rel_tol=1e-5)


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


def test_a_number_of_a_link_in_one_branch_need_not_agree_with_branches_without_it():
    tx = gradtx.partition(
        {"x": chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(lr=0.1)), "y": gradtx.sgd(lr=0.1)}, {"x": "a", "y": "*"}
    )
    params = [(name, Parameter(ONES.clone())) for name in ("a", "b")]
    optimizer = gradtx.as_optimizer(tx, params)
    optimizer.param_groups[0]["max_norm"] = 2.0
    for _, param in params:
        param.grad = ONES.clone()
    optimizer.step()


def test_the_repr_of_a_chain_with_torchs_functions_can_be_evaluated():
    tx = chain(gradtx.sgd(lr=0.1), gradtx.map_after_step(torch.tanh))
    assert repr(eval(repr(tx), {**vars(gradtx), "torch": torch})) == repr(tx)


@pytest.mark.parametrize(
    "tx", [chain(gradtx.sgd(lr=0.1), gradtx.freeze("*")), gradtx.accumulate(gradtx.freeze("*"), 2)]
)
def test_zeros_of_frozen_leaves_have_no_sign(tx):
    updates, _ = tx.update({"w": -ONES}, tx.init({"w": ONES}), {"w": ONES})
    assert not torch.signbit(updates["w"]).any()


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


def test_a_sparse_gradient_in_pure_use_is_named_with_the_remedy():
    tx, params = gradtx.sgd(lr=0.1), {"w": torch.ones(3)}
    sparse = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([1.0]), (3,), check_invariants=True)
    with pytest.raises(TypeError, match=r"updates: leaf 'w' is a sparse tensor, needs a dense one; call to_dense\(\)"):
        tx.update({"w": sparse}, tx.init(params), params)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradtx.adamw()({}), r"adamw: a transformation is not callable; use .* gradtx.as_optimizer"),
        (lambda: gradtx.adam(weight_decouple=True), "did you mean 'decoupled_weight_decay'"),
        (lambda: gradtx.adamw(weight_decouple=True), "this optimizer has only one form of weight decay; omit it"),
        (lambda: gradtx.create_optimizer(torch.nn.Linear(2, 2), "sam"), "gradtx.sam is a link, not an optimizer"),
        (lambda: gradtx.load_optimizer("lookahead"), "gradtx.lookahead is a link"),
        (lambda: gradtx.optim.Lookahead, r"gradtx.optim has no 'Lookahead'; gradtx.lookahead is a link"),
        (lambda: gradtx.optim.Adamp, r"gradtx.optim has no 'Adamp'; did you mean 'AdamP'"),
        (lambda: gradtx.adam(learning_rate=0.1), "unknown argument 'learning_rate'; did you mean 'lr'"),
        (lambda: gradtx.lion(b1=0.9), "unknown argument 'b1'; did you mean 'betas'"),
        (lambda: gradtx.sgd(lr=0.1).step(), r"sgd: a transformation has no 'step'; gradtx.as_optimizer\(sgd"),
        (
            lambda: chain(gradtx.adam(), gradtx.average()).zero_grad(),
            "a transformation has no 'zero_grad'; gradtx.as_o",
        ),
    ],
)
def test_words_of_other_libraries_are_answered_with_ours(call, message):
    with pytest.raises((TypeError, ValueError, AttributeError), match=message):
        call()


def test_a_key_error_of_a_rule_that_has_nothing_to_do_with_its_state_stays_as_it_is():
    @gradtx.per_tensor
    def broken():
        return lambda update, state, param, ctx: ({"a": update}["b"], state)

    with pytest.raises(KeyError, match="'b'"):
        broken().update({"w": ONES}, broken().init({"w": ONES}))


def test_a_rule_that_fails_for_want_of_parameters_behind_a_sum_is_told_so():
    @gradtx.per_tensor
    def broken():
        def update(update, state, param, ctx):
            total = yield {"sum": update.sum()}
            yield update + total["sum"] * param, state

        return update

    with pytest.raises(ValueError, match="broken: params were not passed, and the rule fails without them"):
        broken().update({"w": ONES}, broken().init({"w": ONES}))


def test_an_extra_that_nobody_passed_is_not_taken_for_missing_parameters():
    @gradtx.per_tensor
    def broken():
        return lambda update, state, param, ctx: (update * ctx.value, state)

    with pytest.raises(TypeError, match="NoneType"):
        broken().update({"w": ONES}, broken().init({"w": ONES}))


@gradtx.per_tensor
def reads_the_loss():
    return lambda update, state, param, ctx: (update * ctx.value, state)


@gradtx.per_tensor
def reads_the_hessian_behind_a_sum():
    def update(update, state, param, ctx):
        total = yield {"sum": update.sum()}
        yield update * ctx.hessian_diag + total["sum"], state

    return update


@gradtx.per_tensor
def calls_for_gradients():
    return lambda update, state, param, ctx: (ctx.grad_fn(param), state)


@pytest.mark.parametrize(
    ("rule", "name"),
    [(reads_the_loss, "value"), (reads_the_hessian_behind_a_sum, "hessian_diag"), (calls_for_gradients, "grad_fn")],
)
@pytest.mark.parametrize("params", [None, {"w": ONES}])
def test_a_rule_that_fails_for_want_of_an_extra_says_which_was_not_passed(rule, name, params):
    tx = gradtx.accumulate(rule(), 1)
    with pytest.raises(TypeError, match=rf"{rule.__name__}: ctx.{name} was not passed, .*declare needs=\('{name}',\)"):
        tx.update({"w": ONES}, tx.init({"w": ONES}), params)


def test_a_fault_of_a_rule_that_read_no_extra_stays_as_it_is():
    @gradtx.per_tensor
    def broken():
        return lambda update, state, param, ctx: (update * None, state)

    with pytest.raises(TypeError, match=r"^unsupported operand"):
        broken().update({"w": ONES}, broken().init({"w": ONES}), {"w": ONES})


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


def test_sums_over_leaves_see_the_leaves_on_both_sides_of_a_mask():
    params = {"w": torch.full((2, 2), 2.0), "b": torch.full((2,), 2.0)}
    gradients = [(torch.ones(2, 2), 3 * ONES)] * 4
    masked = functional(gradtx.prodigy(weight_decay=1e-9, mask="w"), params, gradients)
    torch.testing.assert_close(masked, functional(gradtx.prodigy(), params, gradients))


def test_a_mask_that_selects_nothing_is_an_error():
    with pytest.raises(TypeError, match="adamw: mask: select leaves with a name pattern"):
        gradtx.adamw(mask=3)
    with pytest.raises(ValueError, match="adamw: mask: 'x' matches no leaf; leaves: w"):
        gradtx.adamw(mask="x").init({"w": ONES})


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


def test_a_parameter_may_move_to_a_group_with_other_links():
    first, second = (Parameter(ONES.clone()) for _ in range(2))
    optimizer = gradtx.optim.SGD([{"params": [first], "momentum": 0.9}, {"params": [second]}], lr=0.1)
    first.grad, second.grad = ONES.clone(), ONES.clone()
    optimizer.step()
    with_momentum, without = optimizer.param_groups
    with_momentum["params"], without["params"] = [second], [first]
    optimizer.step()
    optimizer.step()
    assert "momentum_buffer" in optimizer.state[second]
    torch.testing.assert_close(first.detach(), torch.full((2,), 0.7))  # three plain steps
    torch.testing.assert_close(second.detach(), torch.full((2,), 1.0 - 0.1 - 0.1 - 0.19))


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
    assert not torch.equal(by_calls["b"], eager["b"])
    with pytest.raises(ValueError, match="init: counts must be 'calls' or 'leaves', got 'both'"):
        tx.init(params, counts="both")


# Faults found by fuzzing chains and states (tests/fuzz).


def stepped_by_leaves(tx, params, gradients):
    """Take steps with pure functions in which every leaf counts its updates."""
    state = tx.init(params, counts="leaves")
    for step in gradients:
        updates, state = tx.update(dict(zip(params, step, strict=True)), state, params)
        params = gradtx.apply_updates(params, updates)
    return params


def test_a_call_without_any_gradient_does_not_count_where_leaves_count():
    tx = gradtx.restart(gradtx.accumulate(gradtx.adam(lr=0.05), 3), 4)
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    gradients = [(ONES, ONES), (ONES, None), (None, None), (ONES, ONES), (2 * ONES, None), (ONES, ONES), (None, None)]
    eager, _ = stepped(tx, params, gradients)
    torch.testing.assert_close(stepped_by_leaves(tx, params, gradients), eager)


def test_a_restart_starts_the_copies_of_pulled_back_momenta_again():
    inner = chain(gradtx.trace(0.5), gradtx.scale_by_learning_rate(0.1))
    tx = gradtx.restart(gradtx.with_lookahead(inner, k=2, pullback_momentum="pullback"), 4)
    params = {"w": torch.ones(2)}
    eager, _ = stepped(tx, params, [(ONES,)] * 9)
    torch.testing.assert_close(functional(tx, params, [(ONES,)] * 9), eager)


@pytest.mark.parametrize("with_params", [True, False])
def test_a_leaf_that_is_none_has_no_count_of_its_own(with_params):
    tx = gradtx.adam(lr=0.1)
    params = {"w": torch.ones(3), "frozen": None}
    state = tx.init(params, counts="leaves")
    for _ in range(2):
        updates, state = tx.update(params, state, params if with_params else None)
    assert updates["frozen"] is None
    assert state["leaf_steps"] == {"w": torch.tensor(2)}
    params["frozen"] = torch.ones(2)
    with pytest.raises(ValueError, match=r"state lacks .* of leaf 'frozen'"):
        tx.update(params, state, params)


@pytest.mark.parametrize("pullback", ["reset", "pullback"])
def test_lookahead_around_friendly_sam_changes_the_momentum_and_not_the_mean_gradient(pullback):
    tx = gradtx.with_lookahead(gradtx.friendly_sam(gradtx.sgd(lr=0.1, momentum=0.9)), k=2, pullback_momentum=pullback)
    gradient = torch.func.grad(lambda params: params["w"].square().sum())
    params = {"w": torch.ones(3)}
    state = tx.init(params)
    means = []
    for _ in range(4):
        updates, state = tx.update(gradient(params), state, params, grad_fn=gradient)
        params = gradtx.apply_updates(params, updates)
        means.append(state["with_lookahead"]["friendly_sam"]["exp_avg"]["w"])
    assert all(mean.abs().min() > 0 for mean in means)
    slots = state["with_lookahead"]
    momentum = slots["trace"]["momentum_buffer"]["w"]
    expected = slots["slow_momentum"]["w"] if pullback == "pullback" else torch.zeros(3)
    assert torch.equal(momentum, expected)


def test_pullback_takes_momenta_that_a_leaf_without_gradient_passes_by():
    inner = chain(gradtx.ema(0.5), gradtx.accumulate(gradtx.trace(0.5), 2), gradtx.scale_by_learning_rate(0.1))
    tx = gradtx.with_lookahead(inner, k=2, pullback_momentum="pullback")
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    gradients = [(ONES, ONES), (ONES, None), (None, ONES), (ONES, None), (None, None), (ONES, ONES)]
    eager, _ = stepped(tx, params, gradients)
    torch.testing.assert_close(stepped_by_leaves(tx, params, gradients), eager)


def group_of(state_dict, key, value):
    state_dict["param_groups"][0][key] = value


def slot_of(state_dict, key, value):
    state_dict["state"][0][key] = value


DAMAGED = {
    "no dict": (lambda s: None, "must be a state dict"),
    "a text as state": (lambda s: {**s, "state": "text"}, "'state' of the loaded state dict must be a dict"),
    "a list as state": (lambda s: {**s, "state": [{}]}, "'state' of the loaded state dict must be a dict"),
    "no state": (lambda s: {"param_groups": s["param_groups"]}, "lacks 'state'"),
    "None as groups": (lambda s: {**s, "param_groups": None}, "'param_groups' .* must be a list"),
    "a text as group": (lambda s: {**s, "param_groups": ["text"]}, "group 0 of 'param_groups' must be a dict"),
    "no params": (lambda s: s["param_groups"][0].pop("params"), "group 0 of 'param_groups' lacks 'params'"),
    "params no list": (lambda s: group_of(s, "params", 3), "'params' of .* must be a list"),
    "an unknown number": (lambda s: group_of(s, "params", [7]), "list the parameter 7, which has no state"),
    "a number twice": (lambda s: group_of(s, "params", [0, 0]), "list 0 a second time"),
    "a text as rate": (lambda s: group_of(s, "lr", "fast"), "lr must be a number"),
    "None as entry": (lambda s: s["state"].update({0: None}), "state of parameter 'w' must be a dict of slots"),
    "a list as entry": (lambda s: s["state"].update({0: [1]}), "state of parameter 'w' must be a dict of slots"),
    "a text as slot": (lambda s: slot_of(s, "exp_avg", "text"), "'w': 'exp_avg' must be a tensor"),
    "a list as slot": (lambda s: slot_of(s, "exp_avg", [0.0, 0.0]), "'w': 'exp_avg' must be a tensor"),
    "a bool slot": (lambda s: slot_of(s, "exp_avg", ONES.bool()), "'w': 'exp_avg' has dtype torch.bool"),
    "an int slot": (lambda s: slot_of(s, "exp_avg", ONES.int()), "'w': 'exp_avg' has dtype torch.int32"),
    "a nested slot": (
        lambda s: slot_of(s, "exp_avg", torch.nested.nested_tensor([ONES, ONES])),
        "'w': 'exp_avg' must be a dense tensor",
    ),
    "a NaN step": (
        lambda s: slot_of(s, "step", torch.tensor(math.nan)),
        "'step' must be a non-negative integer, got nan",
    ),
    "an infinite step": (
        lambda s: slot_of(s, "step", torch.tensor(math.inf)),
        "'step' must be a non-negative integer, got inf",
    ),
    "half a step": (lambda s: slot_of(s, "step", torch.tensor(1.5)), "'step' must be a non-negative integer, got 1.5"),
    "trained weights of another shape": (lambda s: slot_of(s, "trained", torch.ones(3)), "'w': 'trained' must be"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_every_damage_of_a_state_dict_is_named_and_changes_nothing(damage, message):
    param = Parameter(ONES.clone())
    optimizer = gradtx.as_optimizer(gradtx.adam(lr=0.1), [("w", param)])
    param.grad = ONES.clone()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    replaced = damage(saved)
    bad = replaced if message in ("must be a state dict", "lacks 'state'") or isinstance(replaced, dict) else saved
    weights, state = param.detach().clone(), copy.deepcopy(dict(optimizer.state[param]))
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.load_state_dict(bad)
    assert torch.equal(param, weights)
    assert all(torch.equal(value, state[key]) for key, value in optimizer.state[param].items())


@pytest.mark.parametrize(
    ("put", "message"),
    [
        ({"step": torch.tensor(1.5)}, r"state\['step'\] must be a 0-d integer tensor"),
        ({"step": torch.tensor(-1)}, r"state\['step'\] must be at least 0"),
        ({"leaf_steps": 3}, r"state\['leaf_steps'\] must be a dict of counts"),
        ({3: ONES}, "'3', which this chain does not use"),
        (
            {"scale_by_adam": {"exp_avg": {"w": ONES.to(torch.complex64)}, "exp_avg_sq": {"w": ONES}}},
            "must be a dense real tensor",
        ),
    ],
)
def test_a_damaged_nested_state_is_named(put, message):
    tx, params = gradtx.adam(), {"w": ONES}
    with pytest.raises(ValueError, match=message):
        tx.update(params, {**tx.init(params), **put}, params)
    with pytest.raises(ValueError, match=message):
        tx.eval_params({**tx.init(params), **put}, params)


def test_parameters_that_take_the_place_of_others_have_the_state_and_the_others_are_let_go():
    old = [Parameter(torch.ones(3)), Parameter(torch.ones(4))]
    optimizer = gradtx.optim.AdamW(old)
    alive = weakref.ref(old[0])
    new = [Parameter(torch.ones(3)), Parameter(torch.ones(4))]
    optimizer.param_groups[0]["params"] = list(new)
    assert sorted(optimizer.state_dict()["state"]) == [0, 1]
    for param in new:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert set(optimizer.state) == set(new)
    del old
    gc.collect()
    assert alive() is None


def test_a_parameter_that_leaves_a_group_and_comes_back_keeps_its_state():
    first, second = (Parameter(ONES.clone()) for _ in range(2))
    optimizer = gradtx.optim.SGD([first, second], lr=0.1, momentum=0.9)
    first.grad, second.grad = ONES.clone(), ONES.clone()
    optimizer.step()
    del optimizer.param_groups[0]["params"][1]
    optimizer.step()
    assert sorted(optimizer.state_dict()["state"]) == [0]
    optimizer.param_groups[0]["params"].append(second)
    optimizer.step()
    torch.testing.assert_close(second.detach(), torch.full((2,), 1.0 - 0.1 - 0.19))


def test_frozen_leaves_do_not_count_for_schedules_where_leaves_count():
    tx = chain(gradtx.sgd(lr=gradtx.Schedule(lambda step: 0.1 * (step + 1))), gradtx.freeze("a"))
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    gradients = [(ONES, None), (ONES, None), (ONES, ONES), (ONES, ONES)]
    eager, _ = stepped(tx, params, gradients)
    torch.testing.assert_close(stepped_by_leaves(tx, params, gradients), eager)


def test_links_behind_graft_take_a_leaf_that_only_an_arm_that_accumulates_moves():
    arms = chain(gradtx.accumulate(gradtx.ema(0.5), 2), gradtx.sgd(lr=0.1)), gradtx.adagrad(lr=0.1)
    tx = chain(gradtx.graft(*arms), gradtx.scale_by_caution())
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    gradients = [(ONES, ONES), (ONES, None), (None, ONES), (ONES, ONES)]
    eager, _ = stepped(tx, params, gradients)
    torch.testing.assert_close(stepped_by_leaves(tx, params, gradients), eager)


def test_loaded_numbers_that_must_agree_across_groups_are_refused_by_the_next_step():
    params = [Parameter(ONES.clone()) for _ in range(2)]
    groups = [{"params": [param]} for param in params]
    optimizer = gradtx.as_optimizer(gradtx.accumulate(gradtx.sgd(lr=0.1), 2), groups)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][1]["every"] = 3
    optimizer.load_state_dict(saved)
    for param in params:
        param.grad = ONES.clone()
    with pytest.raises(ValueError, match="every must agree across groups, got 2 and 3"):
        optimizer.step()
    assert all(torch.equal(param, ONES) for param in params)


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
    with pytest.raises(ValueError, match=r"'grown' has shape \(5, 3\), but its state was created for \(4, 3\)"):
        step()
    assert all(torch.equal(param, before[name]) for name, param in params.items())
    assert_equal(optimizer.state_dict()["state"], states)
    optimizer.state.pop(params["grown"])  # as the error suggests
    step()
    assert not torch.equal(params["grown"], before["grown"])


def test_a_parameter_without_slots_may_get_another_shape():
    param = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = gradtx.optim.SGD([param], lr=0.5)
    for rows in (4, 5):
        param.grad = None
        param.data = torch.ones(rows, 3)
        param.grad = torch.ones(rows, 3)
        optimizer.step()
        assert torch.equal(param, torch.full((rows, 3), 0.5))
