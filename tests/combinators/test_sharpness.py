import functools
import itertools
import math

import pytest
import pytorch_optimizer
import torch

import gradtx
from tests.references import STEPS, compare, gradients, named, problem
from tests.tiers import by_day

RISING = gradtx.linear_schedule(0.4, start_factor=0.2, total_iters=20)
BASES = {
    "sgd": gradtx.sgd(lr=0.05, momentum=0.9),
    "adamw": gradtx.adamw(lr=0.02, weight_decay=0.1),
    "clipped": gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.sgd(lr=0.1)),
}


def whole_norm(tree):
    return math.sqrt(sum((x * x).sum().item() for x in tree.values()))


def uphill(g, p, T, rho, eps):
    N = whole_norm({name: T[name] * g[name] for name in g})
    return {name: p[name] + rho / (N + eps) * T[name] * T[name] * g[name] for name in g}


def size_or_one(p, adaptive):
    return {name: x.abs() if adaptive else torch.ones_like(x) for name, x in p.items()}


def sam(g, p, grad_fn, rho=0.05, adaptive=False, eps=1e-12):
    return grad_fn(uphill(g, p, size_or_one(p, adaptive), rho, eps))


def asam(g, p, grad_fn, rho=0.5, eta=0.01, eps=1e-12, mask=None):
    T = {name: x.abs() + eta if mask is None or mask(name) else torch.ones_like(x) for name, x in p.items()}
    return grad_fn(uphill(g, p, T, rho, eps))


def gsam(g, p, grad_fn, rho=0.05, alpha=0.4, adaptive=False, eps=1e-12):
    g2 = grad_fn(uphill(g, p, size_or_one(p, adaptive), rho, eps))
    N, N2 = whole_norm(g), whole_norm(g2)
    c = sum((g[name] * g2[name]).sum().item() for name in g) / (N * N2 + eps)
    orthogonal = {name: g[name] - c * N * g2[name] / (N2 + eps) for name in g}
    return {name: g2[name] - alpha * orthogonal[name] for name in g}


def wsam(g, p, grad_fn, rho=0.05, gamma=0.9, adaptive=False, eps=1e-12):
    there, alpha = sam(g, p, grad_fn, rho, adaptive, eps), gamma / (1 - gamma)
    return {name: g[name] + alpha * (there[name] - g[name]) for name in g}


class LookSAM:
    """A rule with a memory: what it saw at its last look uphill."""

    def __init__(self):
        self.t, self.v = 0, None

    def __call__(self, g, p, grad_fn, rho=0.1, k=10, alpha=0.7, adaptive=False, eps=1e-12):
        self.t += 1
        if (self.t - 1) % k == 0:
            there = sam(g, p, grad_fn, rho, adaptive, eps)
            share = sum((g[name] * there[name]).sum().item() for name in g) / whole_norm(g) ** 2
            self.v = {name: there[name] - share * g[name] for name in g}
            return there
        length = alpha * whole_norm(g) / (whole_norm(self.v) + eps)
        return {name: g[name] + length * self.v[name] for name in g}


class FriendlySAM:
    """A rule with a memory: the mean of the gradients."""

    def __init__(self):
        self.m = None

    def __call__(self, g, p, grad_fn, rho=0.05, sigma=1.0, lmbda=0.9, adaptive=False, eps=1e-12):
        d = g
        if self.m is None:
            self.m = g
        else:
            d = {name: g[name] - sigma * self.m[name] for name in g}
            self.m = {name: lmbda * self.m[name] + (1 - lmbda) * g[name] for name in g}
        return grad_fn(uphill(d, p, size_or_one(p, adaptive), rho, eps))


def weights(step):
    """The weights of a run on the problem; `step(grads, params, grad_fn)` gives updates."""
    params, history = problem(), []
    for t in range(1, STEPS + 1):
        updates = step(gradients(params, t), params, functools.partial(gradients, t=t))
        params = {name: params[name] + updates[name] for name in params}
        history.append(params)
    return history


def ours(tx):
    state = None

    def step(grads, params, grad_fn):
        nonlocal state
        state = tx.init(params) if state is None else state
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
        return updates

    return step


def plain(rule, base, **options):
    """The loop: the rule's gradient goes through the base on its own."""
    state, t = None, 0
    rule = rule() if isinstance(rule, type) else rule

    def step(grads, params, grad_fn):
        nonlocal state, t
        state = base.init(params) if state is None else state
        now = {k: float(v(t)) if isinstance(v, gradtx.Schedule) else v for k, v in options.items()}
        t += 1
        updates, state = base.update(rule(grads, params, grad_fn, **now), state, params)
        return updates

    return step


OPTIONS = [
    (gradtx.sam, sam, {}),
    (gradtx.sam, sam, {"rho": 0.3, "eps": 0.1}),
    (gradtx.sam, sam, {"rho": 0.5, "adaptive": True}),
    (gradtx.sam, sam, {"rho": RISING}),
    (gradtx.asam, asam, {}),
    (gradtx.asam, asam, {"rho": 1.0, "eta": 0.3, "eps": 0.1, "mask": lambda name: name in ("matrix", "kernel")}),
    (gradtx.asam, asam, {"rho": RISING, "eta": RISING}),
    (gradtx.gsam, gsam, {}),
    (gradtx.gsam, gsam, {"rho": 0.3, "alpha": 0.7, "eps": 0.1}),
    (gradtx.gsam, gsam, {"rho": 0.5, "alpha": 0.2, "adaptive": True}),
    (gradtx.gsam, gsam, {"rho": RISING, "alpha": RISING}),
    (gradtx.wsam, wsam, {}),
    (gradtx.wsam, wsam, {"rho": 0.3, "gamma": 0.6, "eps": 0.1}),
    (gradtx.wsam, wsam, {"rho": 0.5, "gamma": 0.2, "adaptive": True}),
    (gradtx.wsam, wsam, {"rho": RISING, "gamma": RISING}),
    (gradtx.looksam, LookSAM, {}),
    (gradtx.looksam, LookSAM, {"rho": 0.3, "k": 3, "alpha": 0.4, "eps": 0.1}),
    (gradtx.looksam, LookSAM, {"rho": 0.5, "k": 1, "adaptive": True}),
    (gradtx.looksam, LookSAM, {"rho": RISING, "k": 4, "alpha": RISING, "adaptive": True}),
    (gradtx.friendly_sam, FriendlySAM, {}),
    (gradtx.friendly_sam, FriendlySAM, {"rho": 0.3, "sigma": 0.5, "lmbda": 0.6, "eps": 0.1}),
    (gradtx.friendly_sam, FriendlySAM, {"rho": 0.5, "adaptive": True}),
    (gradtx.friendly_sam, FriendlySAM, {"rho": RISING, "sigma": RISING, "lmbda": RISING}),
]


@by_day("*-sgd", "*sam-{}-*")
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("make", "rule", "options"), OPTIONS, ids=named)
def test_the_weights_follow_the_loop(make, rule, options, base):
    tx = make(BASES[base], **options)
    compare(weights(ours(tx)), weights(plain(rule, BASES[base], **options)))


def published_weights(cls, shapes, plain_steps=(), **options):
    """The weights of one of pytorch_optimizer's classes around SGD; at `plain_steps` it looks at p itself again."""
    params = {name: torch.nn.Parameter(p) for name, p in problem().items()}
    chosen = [params[name] for name in shapes]
    for name, p in params.items():
        p.requires_grad_(name in shapes)
    optimizer = cls(chosen, base_optimizer=torch.optim.SGD, lr=0.05, momentum=0.9, **options)
    for t in range(1, STEPS + 1):
        for move in (optimizer.first_step, optimizer.second_step):
            for name, g in gradients(params, t).items():
                params[name].grad = g if name in shapes else None
            move()
        yield {name: params[name].detach().clone() for name in shapes}


def own_weights(tx, shapes):
    """The same by a transformation that sees these leaves only."""
    params, history, state = problem(), [], None
    for t in range(1, STEPS + 1):
        part = {name: params[name] for name in shapes}
        state = tx.init(part) if state is None else state

        def grad_fn(at, t=t, fixed=params):
            found = gradients({**fixed, **at}, t)
            return {name: found[name] for name in shapes}

        updates, state = tx.update(grad_fn(part), state, part, grad_fn=grad_fn)
        params = {**params, **gradtx.apply_updates(part, updates)}
        history.append({name: params[name] for name in shapes})
    return history


@pytest.fixture
def exact_norm(monkeypatch):
    """Theirs rounds the square of the norm to float32."""

    def square(groups, weight_adaptive):
        pairs = [(p, group["adaptive"]) for group in groups for p in group["params"] if p.grad is not None]
        terms = [(p.grad * p.abs() if adaptive else p.grad).square().sum() for p, adaptive in pairs]
        return torch.stack(terms).sum().reshape(1)

    monkeypatch.setattr("pytorch_optimizer.optimizer.sam.get_global_gradient_norm", square)


EVERY, ONE = tuple(problem()), ("matrix",)
THEIRS = [
    (gradtx.wsam, "WSAM", EVERY, {"gamma": 0.7, "rho": 0.2}, {"decouple": False, "model": None}),
    (gradtx.wsam, "WSAM", EVERY, {"gamma": 0.4, "rho": 0.2, "adaptive": True}, {"decouple": False, "model": None}),
    (gradtx.friendly_sam, "FriendlySAM", EVERY, {"rho": 0.2, "sigma": 0.7, "lmbda": 0.6}, {}),
    (gradtx.friendly_sam, "FriendlySAM", EVERY, {"rho": 0.2, "adaptive": True}, {}),
    # Leaf by leaf there: of one leaf it is the same.
    (gradtx.looksam, "LookSAM", ONE, {"rho": 0.2, "k": 3, "alpha": 0.5, "eps": 1e-8}, {"perturb_eps": 1e-8}),
    (gradtx.looksam, "LookSAM", ONE, {"rho": 0.2, "k": 4, "adaptive": True, "eps": 1e-8}, {"perturb_eps": 1e-8}),
]


@pytest.mark.parametrize(("make", "name", "shapes", "options", "more"), THEIRS, ids=named)
def test_a_relative_around_sgd_is_pytorch_optimizers(make, name, shapes, options, more, exact_norm):
    cls = functools.partial(getattr(pytorch_optimizer, name), **more) if more else getattr(pytorch_optimizer, name)
    given = {key: value for key, value in options.items() if key != "eps"}

    def published(params, base_optimizer, **rest):
        return cls(params=params, base_optimizer=base_optimizer, **rest)

    expected = list(published_weights(published, shapes, **given))
    compare(own_weights(make(BASES["sgd"], **options), shapes), expected, tolerance=1e-12)


def test_a_tree_of_zeros_gives_zeros():
    params = problem()
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    for make in (gradtx.wsam, gradtx.looksam, gradtx.friendly_sam):
        tx = make(gradtx.sgd(lr=0.1))
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(zeros, state, params, grad_fn=lambda at: zeros)
            assert not any(update.any() for update in updates.values())


def test_an_optimizer_calls_the_closure_again_only_where_looksam_looks():
    param, calls = torch.nn.Parameter(torch.tensor([1.0, 2.0])), []
    optimizer = gradtx.as_optimizer(gradtx.looksam(gradtx.sgd(lr=0.1), k=3), [param])

    def closure():
        calls.append(len(optimizer.state[param]))
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    counts = []
    for _ in range(6):
        before = len(calls)
        optimizer.step(closure)
        counts.append(len(calls) - before)
    assert counts == [2, 1, 1, 2, 1, 1]


def test_asam_without_eta_is_adaptive_sam_and_gsam_without_alpha_is_sam():
    base = BASES["sgd"]
    compare(weights(ours(gradtx.asam(base, 0.2, 0.0))), weights(ours(gradtx.sam(base, 0.2, True))), tolerance=0.0)
    compare(weights(ours(gradtx.gsam(base, 0.2, 0.0))), weights(ours(gradtx.sam(base, 0.2))), tolerance=1e-14)


def test_the_part_that_gsam_takes_off_is_orthogonal_to_the_gradient_uphill():
    params = problem()
    grads, grad_fn = gradients(params, 1), functools.partial(gradients, t=1)
    seen = []

    def recording(at):
        seen.append(grad_fn(at))
        return seen[-1]

    tx = gradtx.gsam(gradtx.chain(), rho=0.5, alpha=1.0)
    combined, _ = tx.update(grads, tx.init(params), params, grad_fn=recording)
    taken = {name: seen[0][name] - combined[name] for name in params}
    assert abs(sum((taken[name] * seen[0][name]).sum() for name in params)) < 1e-11  # eps
    assert whole_norm(taken) > 1e-3


def test_links_inside_see_the_new_gradient_as_the_gradient():
    @gradtx.per_tensor
    def the_gradient():
        return lambda update, state, param, ctx: (ctx.grad, state)

    params, there = {"w": torch.tensor([1.0])}, {"w": torch.tensor([7.0])}
    tx = gradtx.chain(gradtx.scale(3.0), gradtx.sam(gradtx.chain(gradtx.scale(5.0), the_gradient())))
    updates, _ = tx.update({"w": torch.ones(1)}, tx.init(params), params, grad_fn=lambda at: there)
    assert updates["w"].tolist() == [7.0]


@pytest.mark.parametrize("make", [gradtx.sam, gradtx.asam, gradtx.gsam], ids=named)
class TestAll:
    def test_the_state_is_that_of_the_base(self, make):
        params = problem()
        state, base = make(BASES["adamw"]).init(params), BASES["adamw"].init(params)
        assert list(state) == list(base)
        assert list(state["scale_by_adam"]) == list(base["scale_by_adam"])

    def test_a_zero_gradient_leaves_the_point_where_it_is(self, make):
        params = {"w": torch.tensor([1.0, 0.0]), "b": torch.tensor(0.0)}
        zeros = {name: torch.zeros_like(p) for name, p in params.items()}
        seen = []

        def grad_fn(at):
            seen.append(at)
            return zeros

        tx = make(gradtx.sgd(lr=1.0))
        updates, _ = tx.update(zeros, tx.init(params), params, grad_fn=grad_fn)
        for name, p in params.items():
            assert torch.equal(seen[0][name], p)
            assert torch.equal(updates[name], zeros[name])

    def test_a_leaf_without_gradient_stays_and_is_in_no_norm(self, make):
        params = {"w": torch.tensor([1.0]), "b": torch.tensor([5.0])}
        seen = []

        def grad_fn(at):
            seen.append(at)
            return {name: torch.ones_like(p) for name, p in at.items()}

        tx = make(gradtx.sgd(lr=1.0))
        grads = {"w": torch.tensor([1.0]), "b": None}
        updates, _ = tx.update(grads, tx.init(params), params, grad_fn=grad_fn)
        assert updates["b"] is None
        assert seen[0]["b"] is params["b"] or torch.equal(seen[0]["b"], params["b"])
        assert seen[0]["w"] > 1

    def test_a_missing_gradient_function_is_an_error(self, make):
        params = {"w": torch.ones(1)}
        tx = make(gradtx.adam())
        with pytest.raises(ValueError, match=rf"^{make.__name__} needs grad_fn: call update\(.*grad_fn=\.\.\.\)"):
            tx.update(params, tx.init(params), params)

    def test_a_base_that_was_not_called_is_an_error(self, make):
        with pytest.raises(TypeError, match=rf"^{make.__name__}: base must be a GradientTransformation, got .*call it"):
            make(gradtx.adam)

    def test_a_negative_distance_is_an_error(self, make):
        with pytest.raises(ValueError, match=rf"^{make.__name__}: rho must be in \[0, inf\), got -0.1"):
            make(gradtx.adam(), rho=-0.1)

    def test_a_learning_rate_after_it_is_an_error_if_the_base_owns_one(self, make):
        with pytest.raises(ValueError, match="owns the learning rate"):
            gradtx.chain(make(gradtx.scale_by_ranger21(lr=0.1)), gradtx.scale_by_learning_rate(0.1))

    def test_hyperparameters_of_base_and_wrapper_can_be_replaced(self, make):
        tx = make(gradtx.sgd(lr=0.1)).replace(lr=0.5, rho=0.25)
        assert (tx.hyperparams["lr"], tx.hyperparams["rho"]) == (0.5, 0.25)


def test_a_mask_that_is_no_function_is_an_error():
    with pytest.raises(TypeError, match="asam: mask must be a function of a leaf's name, got 'weight'"):
        gradtx.asam(gradtx.adam(), mask="weight")


# As optimizers.


def network():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    return layers.double(), torch.randn(4, 16, 3, dtype=torch.float64)


def mean_loss(model, batch):
    return (model(batch) - batch.sum(dim=1, keepdim=True)).square().mean()


def closures(optimizer, model, batches, steps):
    for batch in itertools.islice(itertools.cycle(batches), steps):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = mean_loss(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)


def functionally(tx, model, batches, steps):
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = tx.init(params)
    for batch in itertools.islice(itertools.cycle(batches), steps):

        def loss(at, batch=batch):
            return mean_loss(lambda x: torch.func.functional_call(model, at, (x,)), batch)

        grad_fn = torch.func.grad(loss)
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        params = gradtx.apply_updates(params, updates)
    return params


INSIDE = {
    "plain": lambda make: make(gradtx.adamw(lr=0.01)),
    "schedule": lambda make: make(gradtx.sgd(lr=0.1), rho=RISING),
    "accumulate inside": lambda make: make(gradtx.accumulate(gradtx.sgd(lr=0.1, momentum=0.9), every=2)),
    "accumulate around": lambda make: gradtx.accumulate(make(gradtx.sgd(lr=0.1)), every=2),
    "frozen": lambda make: gradtx.chain(make(gradtx.sgd(lr=0.1)), gradtx.freeze("0.*")),
    "partition inside": lambda make: make(
        gradtx.partition({"bias": gradtx.sgd(lr=0.1), "rest": gradtx.adam(lr=0.01)}, {"bias": "*.bias", "rest": "*"})
    ),
    "in a branch": lambda make: gradtx.partition(
        {"bias": gradtx.sgd(lr=0.1), "rest": make(gradtx.adam(lr=0.01))}, {"bias": "*.bias", "rest": "*"}
    ),
}


@pytest.mark.parametrize("make", [gradtx.sam, gradtx.asam, gradtx.gsam], ids=named)
@pytest.mark.parametrize("name", INSIDE)
def test_closures_give_the_steps_of_the_pure_functions(make, name):
    tx = INSIDE[name](make)
    model, batches = network()
    expected = functionally(tx, model, batches, 8)
    closures(gradtx.as_optimizer(tx, model.named_parameters()), model, batches, 8)
    for key, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[key], rtol=1e-12, atol=1e-12)  # sums in another order


def test_groups_may_have_rates_of_their_own_but_share_the_distance():
    model, batches = network()
    groups = [{"params": list(model[0].parameters()), "lr": 0.5}, {"params": list(model[2].parameters())}]
    optimizer = gradtx.as_optimizer(gradtx.sam(gradtx.sgd(lr=0.1)), groups)
    closures(optimizer, model, batches, 2)
    optimizer.param_groups[0]["rho"] = 0.3
    with pytest.raises(ValueError, match="sam: rho must agree across groups"):
        closures(optimizer, model, batches, 1)


def test_an_optimizer_without_a_closure_says_so():
    model, _ = network()
    optimizer = gradtx.as_optimizer(gradtx.sam(gradtx.sgd(lr=0.1)), model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"sam needs grad_fn: call step\(closure\)$"):
        optimizer.step()
