"""Helpers of functional loops: a whole training step against plain loops; members of an ensemble in one tree."""

import math
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import gradtx
from tests.conformance import assert_close, assert_own_memory, assert_same, tensors, untouched
from tests.tiers import by_day

GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


PARAMS = {"hidden": {"weight": drawn(3, 4), "bias": drawn(4)}, "out": drawn(4)}
BATCHES = [(drawn(6, 3), drawn(6)) for _ in range(20)]
MEMBERS = [PARAMS, {"hidden": {"weight": drawn(3, 4), "bias": drawn(4)}, "out": drawn(4)}]


def loss_fn(params, x, y):
    hidden = torch.tanh(x @ params["hidden"]["weight"] + params["hidden"]["bias"])
    return (hidden @ params["out"] - y).square().mean()


def ran(tx, params=PARAMS, batches=BATCHES, step=None):
    step = step or gradtx.train_step(loss_fn, tx)
    state, losses = tx.init(params), []
    for batch in batches:
        params, state, loss = step(params, state, *batch)
        losses.append(loss)
    return params, state, torch.stack(losses)


def leaves(params):
    return [params["hidden"]["weight"], params["hidden"]["bias"], params["out"]]


def gradients(params, x, y):
    """By plain autograd."""
    params = [p.detach().requires_grad_() for p in params]
    loss = loss_fn({"hidden": {"weight": params[0], "bias": params[1]}, "out": params[2]}, x, y)
    return torch.autograd.grad(loss, params), loss.detach()


# train_step.


def test_steps_equal_a_loop_of_momentum_by_hand():
    params, buffers, losses = leaves(PARAMS), [0.0] * 3, []
    for x, y in BATCHES:
        grads, loss = gradients(params, x, y)
        buffers = [0.9 * b + g for b, g in zip(buffers, grads, strict=True)]
        params = [p - 0.05 * b for p, b in zip(params, buffers, strict=True)]
        losses.append(loss)
    found, state, found_losses = ran(gradtx.sgd(lr=0.05, momentum=0.9))
    assert_close(leaves(found), params, rtol=1e-12)  # two orders of summation
    assert_close(found_losses, torch.stack(losses), rtol=1e-12)
    assert state["step"] == 20


def test_a_link_that_asks_for_the_loss_gets_that_of_the_same_batch():
    params = leaves(PARAMS)
    for x, y in BATCHES:
        grads, loss = gradients(params, x, y)
        rate = min(0.1, loss.item() / (sum(g.square().sum().item() for g in grads) + 1e-5))
        params = [p - rate * g for p, g in zip(params, grads, strict=True)]
    assert_close(leaves(ran(gradtx.alig(max_lr=0.1))[0]), params, rtol=1e-9)  # rates amplify rounding


def test_a_link_that_asks_for_a_second_gradient_gets_that_of_the_same_batch():
    params = leaves(PARAMS)
    for x, y in BATCHES:
        grads, _ = gradients(params, x, y)
        size = math.sqrt(sum(g.square().sum().item() for g in grads))
        uphill, _ = gradients([p + 0.3 / size * g for p, g in zip(params, grads, strict=True)], x, y)
        params = [p - 0.05 * g for p, g in zip(params, uphill, strict=True)]
    assert_close(leaves(ran(gradtx.sam(gradtx.sgd(lr=0.05), rho=0.3))[0]), params, rtol=1e-9)


def test_other_extras_are_handed_on():
    tx = gradtx.adahessian(lr=0.1)
    step, state, batch = gradtx.train_step(loss_fn, tx), tx.init(PARAMS), BATCHES[0]
    diagonal = torch.utils._pytree.tree_map(torch.ones_like, PARAMS)
    grads = torch.func.grad(loss_fn)(PARAMS, *batch)
    updates, _ = tx.update(grads, state, PARAMS, hessian_diag=diagonal)
    assert_same(step(PARAMS, state, *batch, hessian_diag=diagonal)[0], gradtx.apply_updates(PARAMS, updates))
    with pytest.raises(ValueError, match=r"hessian_diag"):
        step(PARAMS, state, *batch)


def test_what_the_loss_function_returns_beside_the_loss_comes_back():
    def with_aux(params, x, y):
        return loss_fn(params, x, y), {"twice": 2 * params["out"], "inputs": x}

    tx = gradtx.adam()
    plain = gradtx.train_step(loss_fn, tx)(PARAMS, tx.init(PARAMS), *BATCHES[0])
    params, state, (loss, aux) = gradtx.train_step(with_aux, tx, has_aux=True)(PARAMS, tx.init(PARAMS), *BATCHES[0])
    assert_same((params, state, loss), plain)
    assert_same(aux, {"twice": 2 * PARAMS["out"], "inputs": BATCHES[0][0]})


def test_parameters_may_be_any_tree_with_absent_leaves_and_with_leaves_that_the_loss_ignores():
    params = [torch.tensor(1.0), None, (torch.tensor(2.0),)]
    tx = gradtx.sgd(lr=0.5)
    new, _, loss = gradtx.train_step(lambda params: params[0].square(), tx)(params, tx.init(params))
    assert new == [torch.tensor(0.0), None, (torch.tensor(2.0),)]
    assert loss == 1.0


def test_a_step_leaves_what_it_is_given_untouched():
    tx = gradtx.accumulate(gradtx.adamw(), every=2)
    state = tx.init(PARAMS)
    step = gradtx.train_step(loss_fn, tx)
    with untouched(PARAMS, state, BATCHES[0]):
        params, new, _ = step(PARAMS, state, *BATCHES[0])
    assert_own_memory((params, new), PARAMS, state, BATCHES[0])


CHAINS = {
    "schedule": lambda lr=0.01: gradtx.chain(
        gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=gradtx.cosine_schedule(lr, T_max=30)), gradtx.average(0.9)
    ),
    "second gradient": lambda lr=0.01: gradtx.sam(gradtx.sgd(lr=lr, momentum=0.9)),
    "loss": lambda lr=0.01: gradtx.alig(max_lr=lr),
    "clocks": lambda lr=0.01: gradtx.skip_nonfinite(gradtx.accumulate(gradtx.adam(lr=lr), every=3)),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_members_with_a_rate_each_equal_a_loop_over_them(chain):
    make, rates = CHAINS[chain], torch.tensor([0.01, 0.1], dtype=torch.float64)

    def member(params, lr):
        params, state, losses = ran(make(lr), params, BATCHES[:7])
        return params, state, losses

    together = torch.vmap(member)(gradtx.stack(MEMBERS), rates)
    apart = gradtx.stack([member(params, lr) for params, lr in zip(MEMBERS, rates, strict=True)])
    assert_close(together, apart, rtol=1e-9)  # batched products sum in another order


def compiled(step):
    counter = CompileCounter()
    return torch.compile(step, backend=counter, fullgraph=True), counter


@pytest.mark.slow
@by_day("loss")
@pytest.mark.parametrize("chain", list(CHAINS))
def test_a_compiled_step_is_one_graph_for_all_steps(chain):
    tx = CHAINS[chain]()
    step, counter = compiled(gradtx.train_step(loss_fn, tx))
    assert_close(ran(tx, step=step), ran(tx), rtol=1e-9)  # the compiler may fold constants
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.nightly
def test_a_compiled_step_of_many_members_is_one_graph_for_all_steps():
    tx = CHAINS["clocks"]()
    step, counter = compiled(torch.vmap(gradtx.train_step(loss_fn, tx), in_dims=(0, 0, None, None)))
    members = gradtx.stack(MEMBERS)
    state = torch.vmap(tx.init)(members)
    for batch in BATCHES:
        members, state, _ = step(members, state, *batch)
    assert counter.frame_count == 1
    assert_close(gradtx.unstack(members)[0], ran(tx)[0], rtol=1e-9)  # batched products sum in another order


def test_a_run_is_differentiable_in_its_rate():
    def final(lr):
        return ran(gradtx.adam(lr=lr), batches=BATCHES[:5])[2][-1]

    lr, far = torch.tensor(0.05, dtype=torch.float64), 1e-6
    assert_close(torch.func.grad(final)(lr), (final(lr + far) - final(lr - far)) / (2 * far), rtol=1e-6)


WRONG = [
    (lambda p: torch.ones(3), False, "return a scalar Tensor, got tensor with 1 dims"),
    (lambda p: 1.0, False, "return a Tensor, got <class 'float'>"),
    (lambda p: (p["w"].sum(), p["w"]), False, "return a Tensor, got <class 'tuple'>"),
    (lambda p: p["w"].sum(), True, r"should be a tuple: \(output, aux\) if has_aux is True"),
    (lambda p: (p["w"].sum(), {"a": 1.0}), True, "Expected tensors, got unsupported type <class 'float'>"),
]


@pytest.mark.parametrize(("wrong", "has_aux", "message"), WRONG)
def test_a_loss_function_that_returns_something_else_is_told(wrong, has_aux, message):
    tx = gradtx.sgd(lr=0.1)
    params = {"w": torch.ones(2)}
    with pytest.raises(RuntimeError, match=message):
        gradtx.train_step(wrong, tx, has_aux=has_aux)(params, tx.init(params))


def test_an_integer_loss_is_refused_because_its_gradients_are_zero():
    tx, params = gradtx.sgd(lr=0.1), {"w": torch.ones(2)}
    with pytest.raises(TypeError, match=r"train_step: the loss must be a floating-point tensor, got torch.int64"):
        gradtx.train_step(lambda p: (p["w"] > 0).sum(), tx)(params, tx.init(params))


def test_what_is_no_function_or_no_transformation_is_refused_at_once():
    with pytest.raises(TypeError, match=r"train_step: tx must be a GradientTransformation, got adam; call it"):
        gradtx.train_step(loss_fn, gradtx.adam)
    with pytest.raises(TypeError, match=r"params: leaf 'n' has dtype torch.int64"):
        gradtx.train_step(loss_fn, gradtx.sgd(lr=0.1))({"n": torch.tensor(1)}, {})


# stack, unstack.


def test_parameters_and_states_come_back_from_a_stack_bit_for_bit():
    tx = gradtx.accumulate(gradtx.adam(), every=2)
    states = [ran(tx, params, BATCHES[:n])[1] for params, n in zip(MEMBERS, (1, 2), strict=True)]
    stacked = gradtx.stack(states)
    assert stacked["step"].tolist() == [1, 2]
    assert stacked["accumulate"]["seen"]["out"].tolist() == [True, False]
    assert gradtx.get(stacked, "exp_avg")["hidden.weight"].shape == (2, 3, 4)
    for found, given in zip(gradtx.unstack(stacked), states, strict=True):
        assert_same(found, given)
    trees = [[p, (None, p.to(torch.bfloat16))] for p in MEMBERS[0]["hidden"].values()]
    assert_same(gradtx.unstack(gradtx.stack(trees[:1])), trees[:1])


def test_leaves_are_matched_by_name_in_the_order_of_the_first_tree():
    a, b = torch.tensor(1.0), torch.tensor(2.0)
    assert_same(
        gradtx.stack([{"a": a, "b": b}, {"b": b, "a": a}]), {"a": torch.stack([a, a]), "b": torch.stack([b, b])}
    )


@pytest.mark.parametrize("tx", [*(make() for make in CHAINS.values()), gradtx.prodigy(), gradtx.gravity()], ids=repr)
def test_the_state_of_stacked_parameters_is_the_stack_of_states(tx):
    together, apart = torch.vmap(tx.init)(gradtx.stack(MEMBERS)), gradtx.stack(list(map(tx.init, MEMBERS)))
    assert_same(together, apart)
    for path, leaf in tensors(together).items():
        assert leaf.stride() == tensors(apart)[path].stride(), path  # or a compiled step is compiled twice


def test_members_have_memory_of_their_own():
    stacked = gradtx.stack([PARAMS, PARAMS])
    assert_own_memory(stacked, PARAMS)
    assert_own_memory(gradtx.unstack(stacked), stacked)


ONES = torch.ones(2)
UNSTACKABLE = [
    ([], ValueError, r"stack: needs at least one tree"),
    ({"w": ONES}, TypeError, r"stack: needs a list of trees, got one dict"),
    (ONES, TypeError, r"stack: needs a list of trees, got one Tensor"),
    (1, TypeError, r"stack: needs a list of trees, got one int"),
    ([{"w": ONES}, {"w": torch.ones(3)}], ValueError, r"stack: tree 1: leaf 'w' is torch.float32 \(3,\) on cpu, needs"),
    ([{"w": ONES}, {"w": ONES.double()}], ValueError, r"tree 1: leaf 'w' is torch.float64 .*, needs torch.float32"),
    ([{"w": ONES}, {"w": ONES.to("meta")}], ValueError, r"tree 1: leaf 'w' is .* on meta, needs .* on cpu"),
    ([{"w": ONES}, {}], ValueError, r"tree 1: leaf 'w' is missing, but is in tree 0"),
    ([{}, {"w": ONES}], ValueError, r"tree 1: leaf 'w' is not in tree 0"),
    ([{"w": ONES}, {"w": None}], ValueError, r"tree 1: leaf 'w' is None, needs torch.float32"),
    ([{"w": None}, {"w": ONES}], ValueError, r"tree 1: leaf 'w' is torch.float32 .*, needs None"),
    ([{"w": ONES}, {"w": 1.0}], TypeError, r"tree 1: leaf 'w' is a float, needs a tensor or None"),
]


@pytest.mark.parametrize(("trees", "error", "message"), UNSTACKABLE)
def test_trees_that_differ_are_told_apart_by_the_leaf(trees, error, message):
    with pytest.raises(error, match=message):
        gradtx.stack(trees)


NOT_STACKED = [
    ({"w": ONES, "step": torch.tensor(1)}, ValueError, r"got the sizes {'w': 2, 'step': 0}"),
    ({"w": ONES, "v": torch.ones(3)}, ValueError, r"got the sizes {'w': 2, 'v': 3}"),
    ({"w": None}, ValueError, r"got the sizes {}"),
    ({"w": 1.0}, TypeError, r"leaf 'w' is a float"),
]


@pytest.mark.parametrize(("tree", "error", "message"), NOT_STACKED)
def test_what_is_no_stack_is_told_by_the_leaf(tree, error, message):
    with pytest.raises(error, match=f"^unstack: .*{message}"):
        gradtx.unstack(tree)


def looped(detached, steps=130):
    """Warnings of a loop over the parameters of a module, as they are or detached."""
    model = torch.nn.Linear(3, 2)
    params = {name: p.detach() if detached else p for name, p in model.named_parameters()}
    tx = gradtx.adamw(lr=0.1)
    step = gradtx.train_step(lambda params, x: torch.func.functional_call(model, params, (x,)).square().mean(), tx)
    state = tx.init(params)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            params, state, _ = step(params, state, torch.ones(1, 3))
    return [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]


def test_a_loop_over_parameters_that_require_gradients_is_warned_once_of_the_graph_that_it_keeps():
    (message,) = looped(detached=False)
    assert "graph of 100 updates" in message
    assert "p.detach()" in message


@pytest.mark.slow
def test_compiled_steps_of_many_chains_in_one_process_are_all_compiled():
    torch._dynamo.reset()
    counter, params, x = CompileCounter(), {"w": torch.ones(3)}, torch.ones(3)
    for i in range(10):  # dynamo's limit is 8
        tx = gradtx.chain(*[gradtx.scale(0.5)] * i, gradtx.sgd(lr=0.1))
        step = torch.compile(gradtx.train_step(lambda params, x: (params["w"] * x).square().sum(), tx), backend=counter)
        step(params, tx.init(params), x)
    assert counter.frame_count == 10


def test_new_parameters_are_the_sums_in_the_dtype_and_layout_of_each():
    params = {
        "transposed": torch.randn(4, 3).T,
        "half": torch.randn(3, dtype=torch.bfloat16),
        "complex": torch.randn(2, dtype=torch.complex64),
        "number": torch.tensor(1.0),
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "empty": torch.randn(0),
    }
    updates = {name: torch.randn(param.shape, dtype=torch.float64) for name, param in params.items()}
    for name, found in gradtx.apply_updates(params, updates).items():
        expected = (params[name] + updates[name]).to(params[name].dtype)
        assert torch.equal(found, expected)
        assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())


@pytest.mark.parametrize("compiles", [False, True])
def test_a_parameter_without_an_update_is_returned_itself_and_others_are_new(compiles):
    """Weights below adapters are not copied in each step."""
    apply = gradtx.apply_updates
    if compiles:
        torch._dynamo.reset()
        apply = torch.compile(apply, backend="aot_eager", fullgraph=True)
    params = {"base": torch.ones(3), "trained": torch.ones(2), "nested": [torch.ones(1), None]}
    updates = {"base": None, "trained": torch.zeros(2), "nested": [None, None]}
    found = apply(params, updates)
    assert found["base"] is params["base"]
    assert found["nested"][0] is params["nested"][0]
    assert_own_memory(found["trained"], params)
