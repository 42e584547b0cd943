"""Gradients of solutions: equal to those through all steps of the solver, and to formulas."""

import functools
import gc
import math
import re
import types
import warnings
import weakref

import pytest
import torch
from sklearn.datasets import load_diabetes, load_iris
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradtx
from gradtx.base.torch_names import TRACES_OBJECTS

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:DeprecationWarning"  # torch itself, when a process first uses jvp
)
SOLVERS = ("cg", "gmres", "bicgstab", "dense")
f64 = functools.partial(torch.tensor, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# Problems with a loss, of which `descent` takes so many steps that it has converged.


def ridge_loss(w, x, y, decay):
    return (x @ w - y).square().sum() / 2 + decay * w.square().sum() / 2


def ridge_solver(start, x, y, decay):
    return torch.linalg.solve(x.T @ x + decay * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


X, Y = random(12, 4), random(12, seed=1)


def ridge(**options):
    return gradtx.custom_root(grad(ridge_loss), **options)(ridge_solver)


def logistic_loss(params, x, y, log_decay):
    logits = x @ params["w"] + params["b"]
    fit = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
    return fit + log_decay.exp() * (params["w"].square().sum() + params["b"].square()) / 2


NET = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).double()


def network_loss(params, x, y, log_decay):
    squares = sum(leaf.square().sum() for leaf in params.values())
    return (functional_call(NET, params, (x,)).squeeze(1) - y).square().mean() + log_decay.exp() * squares


PROBLEMS = {
    "logistic regression": (
        logistic_loss,
        {"w": torch.zeros(4, dtype=torch.float64), "b": f64(0.0)},
        (X, (Y > 0).double(), f64(-2.0)),
        (400, 0.5),
    ),
    "a network with decay": (
        network_loss,
        {name: random(*p.shape, seed=i) for i, (name, p) in enumerate(NET.named_parameters())},
        (X[:, :2], Y, f64(-2.5)),
        (600, 0.1),
    ),
}


def descent(loss, start, args, steps, rate):
    """Gradient descent with momentum in plain torch, every step of which is differentiable."""
    params = {name: leaf.clone().requires_grad_() for name, leaf in start.items()}
    momentum = {name: torch.zeros_like(leaf) for name, leaf in start.items()}
    for _ in range(steps):
        grads = torch.autograd.grad(loss(params, *args), list(params.values()), create_graph=True)
        momentum = {name: 0.9 * m + g for (name, m), g in zip(momentum.items(), grads, strict=True)}
        params = {name: leaf - rate * momentum[name] for name, leaf in params.items()}
    return params


def outer(solution):
    return sum((leaf - 0.3).pow(3).sum() for leaf in tree_leaves(solution))


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_through_a_minimum_equal_those_through_all_steps_of_gradient_descent(name):
    loss, start, args, (steps, rate) = PROBLEMS[name]
    inputs = [arg.clone().requires_grad_() for arg in args]
    expected = torch.autograd.grad(outer(descent(loss, start, inputs, steps, rate)), inputs)

    def implicit(*args):
        return outer(gradtx.minimize(gradtx.sgd(rate, momentum=0.9), loss, start, *args, steps=5000, until=1e-9))

    close(grad(implicit, argnums=(0, 1, 2))(*args), expected)


@pytest.mark.parametrize("solve", SOLVERS)
def test_gradients_of_ridge_regression_are_those_of_the_formula_by_every_argument(solve):
    solver, decay = ridge(solve=solve), f64(0.7)
    expected = jacrev(ridge_solver, argnums=(1, 2, 3))(None, X, Y, decay)
    close(jacrev(solver, argnums=(1, 2, 3))(None, X, Y, decay), expected, 1e-9)
    close(jacfwd(solver, argnums=(1, 2, 3))(None, X, Y, decay), expected, 1e-9)
    # d w / d decay = -(X'X + decay I)^-1 w
    matrix = X.T @ X + decay * torch.eye(4, dtype=torch.float64)
    by_hand = -torch.linalg.solve(matrix, ridge_solver(None, X, Y, decay))
    close(jacrev(solver, argnums=3)(None, X, Y, decay), by_hand, 1e-9)


def equilibrium(w, u, b):
    """A layer in equilibrium of DEQ's kind: z = tanh(w z + u + b), with a w that contracts."""
    z = torch.zeros_like(b)
    for _ in range(200):
        z = torch.tanh(w @ z + u + b)
    return z


@pytest.mark.parametrize("solve", ["gmres", "bicgstab", "neumann", "dense"])
def test_gradients_of_a_fixed_point_equal_those_through_its_iterations(solve):
    layer = gradtx.custom_fixed_point(lambda z, w, u, b: torch.tanh(w @ z + u + b), solve=solve)(
        lambda start, w, u, b: equilibrium(w, u, b)
    )
    args = (0.2 * random(6, 6), random(6, seed=1), random(6, seed=2))
    expected = grad(lambda *args: outer(equilibrium(*args)), argnums=(0, 1, 2))(*args)
    close(grad(lambda *args: outer(layer(None, *args)), argnums=(0, 1, 2))(*args), expected, 1e-8)
    tangents = (random(6, 6, seed=3), random(6, seed=4), random(6, seed=5))
    _, moved = jvp(lambda *args: layer(None, *args), args, tangents)
    close(moved, jvp(equilibrium, args, tangents)[1], 1e-8)


def test_a_dict_of_optimality_may_have_another_order_than_the_solution():
    def optimality(solution, a, b):
        return {"b": 2 * solution["b"] - b, "a": solution["a"] - a}

    solver = gradtx.custom_root(optimality)(lambda start, a, b: {"a": a, "b": b / 2})
    for differentiate in (jacrev, jacfwd):
        found = differentiate(lambda a, b: solver(None, a, b), argnums=(0, 1))(f64([1.0]), f64([2.0]))
        assert [entry.item() for name in "ab" for entry in found[name]] == [1.0, 0.0, 0.0, 0.5]


def test_cg_for_a_matrix_that_is_not_symmetric_warns_or_is_right():
    matrix = torch.eye(3, dtype=torch.float64) + 0.1 * random(3, 3).tril(-1)
    solver = gradtx.custom_root(lambda x, b: matrix @ x - b)(lambda start, b: torch.linalg.solve(matrix, b))
    b, change = random(3, seed=1), random(3, seed=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, moved = jvp(lambda b: solver(None, b), (b,), (change,))
    if not any("did not converge" in str(warning.message) for warning in caught):
        close(moved, torch.linalg.solve(matrix, change))


# Ways to differentiate.

DECAYS = f64([0.1, 0.7, 2.0])
WAYS = {
    "grad": lambda f: torch.stack([grad(f)(decay) for decay in DECAYS]),
    "jvp": lambda f: torch.stack([jvp(f, (decay,), (f64(1.0),))[1] for decay in DECAYS]),
    "vmap of grad": lambda f: vmap(grad(f))(DECAYS),
    "grad of vmap": lambda f: grad(lambda decays: vmap(f)(decays).sum())(DECAYS),
    "vmap of jvp": lambda f: vmap(lambda decay: jvp(f, (decay,), (f64(1.0),))[1])(DECAYS),
    "jvp of vmap": lambda f: jvp(vmap(f), (DECAYS,), (torch.ones_like(DECAYS),))[1],
    "grad of grad": lambda f: vmap(grad(grad(f)))(DECAYS),
    "jvp of grad": lambda f: vmap(lambda decay: jvp(grad(f), (decay,), (f64(1.0),))[1])(DECAYS),
    "grad of jvp": lambda f: vmap(grad(lambda decay: jvp(f, (decay,), (f64(1.0),))[1]))(DECAYS),
    "grad of grad of grad": lambda f: vmap(grad(grad(grad(f))))(DECAYS),
    "backward": lambda f: _by_backward(f),
    "backward of backward": lambda f: _by_backward(f, twice=True),
    "dual numbers": lambda f: torch.stack([_by_dual_numbers(f, decay) for decay in DECAYS]),
}

ORDERS = {
    **dict.fromkeys(["grad of grad", "jvp of grad", "grad of jvp", "backward of backward"], 2),
    "grad of grad of grad": 3,
}


def _by_backward(f, twice=False):
    found = []
    for decay in DECAYS:
        leaf = decay.clone().requires_grad_()
        (first,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
        found.append(torch.autograd.grad(first, leaf)[0] if twice else first.detach())
        f(leaf).backward()
        torch.testing.assert_close(leaf.grad, first.detach())
    return torch.stack(found)


def _by_dual_numbers(f, decay):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(decay, f64(1.0))
        return torch.autograd.forward_ad.unpack_dual(f(dual)).tangent


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_differentiate_agrees_with_the_solver_itself(way, solve):
    solver = ridge(solve=solve)

    def expected(decay):
        return outer(ridge_solver(None, X, Y, decay))

    for _ in range(ORDERS.get(way, 1)):
        expected = grad(expected)  # torch's derivatives of the tangents of its own solve are wrong by half
    expected = vmap(expected)(DECAYS)
    close(WAYS[way](lambda decay: outer(solver(None, X, Y, decay))), expected, 1e-8)


def test_a_loss_may_contain_a_solution_and_its_minimum_still_has_a_gradient():
    @gradtx.custom_root(lambda w, u: w**3 + w - u)
    def cubic(start, u):
        w = torch.zeros_like(u)
        for _ in range(30):
            w = w - (w**3 + w - u) / (3 * w**2 + 1)
        return w

    def loss(u, target):
        return (cubic(None, u) - target).square().sum() + 0.1 * u.square().sum()

    def minimum(target):
        return gradtx.minimize(gradtx.sgd(1.0), loss, torch.zeros_like(target), target, steps=300, until=1e-10).sum()

    target, width = f64([0.7, 1.1]), 1e-4
    steps = width * torch.eye(2, dtype=torch.float64)
    slopes = torch.stack([(minimum(target + step) - minimum(target - step)) / (2 * width) for step in steps])
    close(grad(minimum)(target), slopes, 1e-6)  # the differences' own error
    close(vmap(grad(minimum))(target[None])[0], slopes, 1e-6)


def test_forward_mode_of_forward_mode_is_refused():
    solver = ridge()

    def slope(decay):
        return jvp(lambda decay: outer(solver(None, X, Y, decay)), (decay,), (f64(1.0),))[1]

    with pytest.raises(RuntimeError, match="custom_root: torch has no forward mode of forward mode for a solution"):
        jvp(slope, (f64(0.7),), (f64(1.0),))


def test_members_of_a_vmap_stop_on_their_own_at_the_same_minimum_as_alone():
    def solution(decay, lr):
        return gradtx.minimize(
            gradtx.sgd(lr), ridge_loss, torch.zeros(4, dtype=torch.float64), X, Y, decay, steps=1000, until=1e-9
        )

    rates = f64([0.01, 0.02, 0.03])
    together = vmap(solution)(DECAYS, rates)
    alone = torch.stack([solution(decay, lr) for decay, lr in zip(DECAYS, rates, strict=True)])
    close(together, alone, 1e-12)
    slopes = vmap(grad(lambda decay: solution(decay, 0.03).sum()))(DECAYS)
    expected = vmap(grad(lambda decay: ridge_solver(None, X, Y, decay).sum()))(DECAYS)
    close(slopes, expected)


@pytest.mark.parametrize(
    "tx", [gradtx.adamw(0.05, weight_decay=0.0), gradtx.schedule_free_sgd(0.05), gradtx.lion(0.01)]
)
def test_the_gradient_is_that_of_the_minimum_whatever_the_chain(tx):
    start = torch.zeros(4, dtype=torch.float64)
    reached = gradtx.custom_root(grad(ridge_loss))(lambda start, *args: ridge_solver(None, *args))

    def by_chain(decay):
        # Starts at the minimum, so that the chain is already there.
        at = reached(None, X, Y, decay).detach()
        return gradtx.minimize(tx, ridge_loss, at, X, Y, decay, steps=1, until=1e-6).sum()

    close(grad(by_chain)(f64(0.7)), grad(lambda decay: reached(start, X, Y, decay).sum())(f64(0.7)), 1e-9)


# Inside compiled functions, where a solver is one node.


def double_loss(w, x, y, decay):
    return ridge_loss(w, x, 2 * y, decay)


START, DESCENT = torch.zeros(4, dtype=torch.float64), gradtx.sgd(0.03)
COMPILED = {
    "a solver": (lambda: ridge(), lambda solver, decay: outer(2 * solver(START, X, Y, decay.exp()))),
    "a chain": (
        lambda: DESCENT,
        lambda tx, decay: outer(2 * gradtx.minimize(tx, ridge_loss, START, X, Y, decay.exp(), steps=900, until=1e-9)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_solver_is_one_node_of_a_compiled_graph_and_every_way_to_differentiate_works(name):
    if name == "a chain" and not TRACES_OBJECTS:
        pytest.skip("dynamo of this torch has no constants that are objects, so the graph is in two parts")
    make, function = COMPILED[name]
    solver = make()

    def implicit(decay):
        return function(solver, decay)

    def plain(decay):
        return outer(2 * ridge_solver(None, X, Y, decay.exp()))

    def compiled(function):
        return torch.compile(function, backend="aot_eager", fullgraph=True)

    slope = grad(plain)
    close(compiled(implicit)(f64(0.7)), plain(f64(0.7)))
    decay = f64(0.7).requires_grad_()
    compiled(implicit)(decay).backward()
    close(decay.grad, slope(f64(0.7)))
    close(compiled(grad(implicit))(f64(0.7)), slope(f64(0.7)))
    close(compiled(vmap(grad(implicit)))(DECAYS), vmap(slope)(DECAYS))
    close(compiled(lambda decay: jvp(implicit, (decay,), (f64(1.0),))[1])(f64(0.7)), slope(f64(0.7)))
    close(compiled(grad(grad(implicit)))(f64(0.7)), grad(slope)(f64(0.7)))


@pytest.mark.slow
def test_a_compiled_function_of_another_solver_chain_or_loss_runs_that_one():
    doubled = gradtx.custom_root(grad(double_loss))(lambda start, x, y, decay: 2 * ridge_solver(start, x, y, decay))
    by_solver = torch.compile(lambda solver: solver(START, X, Y, f64(0.7)), backend="eager")
    once = ridge_solver(None, X, Y, f64(0.7))
    close([by_solver(solver) for solver in (ridge(), doubled, ridge())], [once, 2 * once, once], 1e-12)

    def minimum(tx, loss):
        return gradtx.minimize(tx, loss, START, X, Y, f64(0.7), steps=900)

    by_chain = torch.compile(minimum, backend="eager")
    still = gradtx.sgd(0.0)
    results = [by_chain(DESCENT, ridge_loss), by_chain(DESCENT, double_loss), by_chain(still, ridge_loss)]
    close(results, [once, 2 * once, START], 1e-8)


def by_closure(target):
    return lambda w: (w - target).square().sum() / 2


def by_default(target):
    def loss(w, target=target):
        return (w - target).square().sum() / 2

    return loss


def by_keyword(target):
    def loss(w, *, target=target):
        return (w - target).square().sum() / 2

    return loss


class ByAttribute:
    def __init__(self, target):
        self.target = target

    def loss(self, w):
        return (w - self.target).square().sum() / 2


LOSSES = {
    "closure": by_closure,
    "closure over a tensor": lambda target: by_closure(f64(target)),
    "default": by_default,
    "default of a keyword": by_keyword,
    "partial": lambda target: functools.partial(lambda w, target: (w - target).square().sum() / 2, target=target),
    "method": lambda target: ByAttribute(target).loss,
}


@pytest.mark.slow
@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_a_compiled_minimize_takes_the_loss_of_each_call_not_the_first_of_the_same_code(make):
    holder, zero = types.SimpleNamespace(), torch.zeros((), dtype=torch.float64)
    tx = gradtx.sgd(0.5)

    def minimum(loss):
        return gradtx.minimize(tx, loss, zero, steps=60)

    as_argument = torch.compile(minimum, backend="eager")
    as_attribute = torch.compile(lambda: gradtx.minimize(tx, holder.loss, zero, steps=60), backend="eager")
    for target in (1.0, 2.0, 3.0, 1.0):
        holder.loss = make(target)
        close([as_argument(holder.loss), as_attribute()], [f64(target)] * 2, 1e-12)


@pytest.mark.slow
def test_a_compiled_minimize_takes_the_condition_of_each_call():
    tx = gradtx.sgd(0.5)

    def loss(w):
        return w.square().sum() / 2

    def until_below(bound):
        return lambda params, gradients, value: value < bound

    compiled = torch.compile(lambda until: gradtx.minimize(tx, loss, f64(1.0), steps=60, until=until), backend="eager")
    eager = [gradtx.minimize(tx, loss, f64(1.0), steps=60, until=until_below(bound)) for bound in (0.1, 0.01)]
    close([compiled(until_below(bound)) for bound in (0.1, 0.01)], eager, 1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own, at a break
def test_a_chain_or_a_start_that_a_node_cannot_have_runs_between_two_graphs():
    solver = ridge()

    def without_start(decay):
        return outer(2 * solver(None, X, Y, decay.exp()))

    def new_chain(decay):
        return outer(2 * gradtx.minimize(gradtx.sgd(0.03), ridge_loss, START, X, Y, decay.exp(), steps=900))

    expected = grad(without_start)(f64(0.7))
    for function in (without_start, new_chain):
        decay = f64(0.7).requires_grad_()
        torch.compile(function, backend="eager")(decay).backward()
        close(decay.grad, expected)


@pytest.mark.slow
def test_a_node_whose_start_is_unlike_the_solution_says_so():
    solver = ridge()
    compiled = torch.compile(lambda decay: solver(torch.zeros(5), X, Y, decay), backend="eager")
    with pytest.raises(ValueError, match="start must be a tree like the solution"):
        compiled(f64(0.7))


# Figures of jaxopt 0.8.5, in float64, on scikit-learn's data.


def test_ridge_regression_on_diabetes_has_the_jacobian_that_jaxopt_computes():
    x, y = map(torch.as_tensor, load_diabetes(return_X_y=True))

    def loss(w, x, y, decay):
        return (x @ w - y).square().mean() / 2 + decay * w.square().sum() / 2

    @gradtx.custom_root(grad(loss))
    def solver(start, x, y, decay):
        matrix = x.T @ x / len(x) + decay * torch.eye(10, dtype=x.dtype)
        return torch.linalg.solve(matrix, x.T @ y / len(x))

    of_jaxopt = [-0.00686655, -0.0015653, -0.02145358, -0.01614764, -0.00774439]
    of_jaxopt += [-0.0063537, 0.01443728, -0.01573563, -0.02069689, -0.01398443]
    jacobian = jacrev(solver, argnums=3)(None, x, y, f64(10.0))
    torch.testing.assert_close(jacobian, f64(of_jaxopt), rtol=0, atol=1e-6)  # jaxopt's own linear solve


def test_logistic_regression_on_iris_has_the_jacobian_that_jaxopt_computes_by_gradient_descent():
    x, y = map(torch.as_tensor, load_iris(return_X_y=True))
    x, y = x[y < 2], 2.0 * y[y < 2] - 1

    def loss(w, decay):
        return torch.nn.functional.softplus(-y * (x @ w)).mean() + decay * w.square().sum() / 2

    def minimum(decay):
        start = torch.zeros(4, dtype=torch.float64)
        return gradtx.minimize(gradtx.sgd(0.1, momentum=0.9), loss, start, decay, steps=3000, until=1e-10)

    close(minimum(f64(0.1)), f64([-0.2188696, -0.77641698, 1.17208685, 0.50692711]), 1e-7)
    of_jaxopt = f64([0.86863776, 2.83399187, -4.21483139, -1.88731771])
    close(jacrev(minimum)(f64(0.1)), of_jaxopt, 1e-7)


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and that are alive."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.now += tensor.nbytes
                weakref.finalize(tensor, self.forget, tensor.nbytes)
        self.peak = max(self.peak, self.now)
        return out

    def forget(self, size):
        self.now -= size


def test_memory_does_not_depend_on_the_number_of_steps():
    def peak(steps):
        def solver(start, x, y, decay):
            for _ in range(steps):
                start = start - 0.01 * (x.T @ (x @ start - y) + decay * start)
            return start

        solved = gradtx.custom_root(grad(ridge_loss), unconverged="ignore", max_steps=4)(solver)
        decay = f64(0.7).requires_grad_()
        gc.collect()
        with Live() as live:
            solved(torch.zeros(4, dtype=torch.float64), X, Y, decay).sum().backward()
        return live.peak

    assert peak(10_000) == peak(10)


# Options.


def test_a_solver_of_systems_may_be_a_function_and_a_precondition_that_is_the_inverse_needs_one_step():
    products = []

    def optimality(w, x, y, decay):
        return grad(ridge_loss)(w, x, y, decay)

    def solve(matvec, b):
        products.append(len(b))
        return torch.linalg.solve(vmap(matvec)(torch.eye(len(b), dtype=b.dtype)).mT, b)

    own = gradtx.custom_root(optimality, solve=solve)(ridge_solver)
    expected = jacrev(ridge_solver, argnums=3)(None, X, Y, f64(0.7))
    close(grad(lambda decay: own(None, X, Y, decay).sum())(f64(0.7)), expected.sum(), 1e-9)
    assert products == [4]

    def inverse(vector, solution, x, y, decay):
        assert solution.shape == (4,)
        return torch.linalg.solve(x.T @ x + decay * torch.eye(4, dtype=x.dtype), vector)

    for name in ("cg", "gmres", "bicgstab", "neumann"):
        solver = ridge(solve=name, precondition=inverse, max_steps=1, unconverged="raise")
        close(jacrev(solver, argnums=3)(None, X, Y, f64(0.7)), expected, 1e-9)
        close(jacfwd(solver, argnums=3)(None, X, Y, f64(0.7)), expected, 1e-9)


def test_ridge_is_added_to_the_matrix():
    decay, ridge_term = f64(0.7), 0.5
    matrix = X.T @ X + (decay + ridge_term) * torch.eye(4, dtype=torch.float64)
    expected = -torch.linalg.solve(matrix, ridge_solver(None, X, Y, decay))
    for solve in SOLVERS:
        close(jacrev(ridge(solve=solve, ridge=ridge_term), argnums=3)(None, X, Y, decay), expected, 1e-9)
        close(jacfwd(ridge(solve=solve, ridge=ridge_term), argnums=3)(None, X, Y, decay), expected, 1e-9)


def test_a_warm_start_takes_no_step_for_the_system_of_last_time_and_none_of_it_under_vmap():
    calls = []

    def unchanged(vector, *args):
        calls.append(1)
        return vector

    def steps(solver, decay):
        calls.clear()
        leaf = f64(decay).requires_grad_()
        solver(None, X, Y, leaf).sum().backward()
        close(leaf.grad, grad(lambda decay: ridge_solver(None, X, Y, decay).sum())(f64(decay)), 1e-5)
        return len(calls) - 1  # once before the first step

    options = {"precondition": unchanged, "tolerance": 1e-8, "unconverged": "raise"}
    cold, warm = ridge(**options), ridge(warm_start=True, **options)
    assert steps(cold, 0.7) == steps(cold, 0.7) == steps(warm, 0.7) > 0
    assert steps(warm, 0.7) == 0
    assert 0 < steps(warm, 0.71) <= steps(cold, 0.71)
    slopes = vmap(grad(lambda decay: warm(None, X, Y, decay).sum()))(DECAYS)
    close(slopes, vmap(grad(lambda decay: ridge_solver(None, X, Y, decay).sum()))(DECAYS))


def test_arguments_named_by_nondiff_have_no_gradient_and_integers_and_options_need_no_name():
    def loss(w, data, decay):
        x, rows = data["x"], data["rows"]
        return ridge_loss(w, x[rows], data["y"][rows], decay)

    def solver(start, data, decay, *, scale=1.0):
        rows = data["rows"]
        return scale * ridge_solver(start, data["x"][rows], data["y"][rows], decay)

    def gradients(nondiff=()):
        data = {"x": X.clone().requires_grad_(), "y": Y.clone().requires_grad_(), "rows": torch.arange(8)}
        decay = f64(0.7).requires_grad_()
        solved = gradtx.custom_root(grad(loss), nondiff=nondiff)(solver)
        w = solved(None, data, decay, scale=f64(1.0))
        if w.requires_grad:
            w.sum().backward()
        return data["x"].grad, data["y"].grad, decay.grad

    for nondiff in ("data", ["data"], (0,), -2):
        of_x, of_y, of_decay = gradients(nondiff)
        assert of_x is None
        assert of_y is None
        assert of_decay is not None
    assert all(value is not None for value in gradients())
    assert all(value is None for value in gradients(["data", "decay"]))


def test_auxiliary_output_passes_without_gradient():
    @gradtx.custom_root(grad(ridge_loss), has_aux=True)
    def solver(start, x, y, decay):
        return ridge_solver(start, x, y, decay), {
            "steps": torch.tensor(2**60 + 1),
            "flags": torch.tensor([True, False]),
            "decay": 2 * decay,
            "name": "exact",
        }

    decay = f64(0.7).requires_grad_()
    w, aux = solver(None, X, Y, decay)
    w.sum().backward()
    assert decay.grad is not None
    assert aux["name"] == "exact"
    assert not aux["decay"].requires_grad
    _, moved = jvp(lambda decay: solver(None, X, Y, decay)[0], (decay.detach(),), (f64(1.0),))
    close(moved, jacrev(ridge_solver, argnums=3)(None, X, Y, decay.detach()), 1e-9)
    steps = vmap(lambda decay: solver(None, X, Y, decay)[1]["steps"])(DECAYS)
    assert steps.tolist() == [2**60 + 1] * 3
    assert aux["flags"].tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_keep_the_dtypes_of_arguments_and_the_solve_is_at_least_float32(dtype):
    x, y, decay = X.to(dtype), Y.to(dtype), torch.tensor(0.7, dtype=dtype)

    def solver(start, x, y, decay):
        return ridge_solver(start, x.float(), y.float(), decay.float()).to(dtype)

    seen = []

    def solve(matvec, b):
        seen.append(b.dtype)
        return torch.linalg.solve(vmap(matvec)(torch.eye(len(b), dtype=b.dtype)).mT, b)

    solved = gradtx.custom_root(grad(ridge_loss), solve=solve, unconverged="ignore")(solver)
    slope = grad(lambda decay: solved(None, x, y, decay).sum().float())(decay)
    assert slope.dtype == dtype
    assert seen == [torch.float32]
    expected = jacrev(ridge_solver, argnums=3)(None, X, Y, f64(0.7)).sum()
    close(slope.double(), expected, 1e-5 if dtype is torch.float32 else 0.05)  # three digits in bfloat16


# What is wrong.


def test_a_solve_that_does_not_converge_warns_with_the_residual_or_raises_or_is_silent():
    def slope(**options):
        return grad(lambda decay: ridge(max_steps=1, **options)(None, X, Y, decay).sum())(f64(0.7))

    message = (
        r"custom_root: the linear solve by 'cg' did not converge: the norm of its residual is \d\.\de-\d\d of that"
    )
    with pytest.warns(UserWarning, match=message):
        slope()
    with pytest.raises(RuntimeError, match=message):
        slope(unconverged="raise")
    slope(unconverged="ignore")


@pytest.mark.parametrize("solve", ["cg", "gmres", "bicgstab", "neumann", "dense"])
def test_a_singular_system_warns_with_the_residual(solve):
    def loss(w, target):  # the second entry has no minimum of its own
        return (w[0] - target).square() / 4

    solved = gradtx.custom_root(grad(loss), solve=solve)(lambda start, target: torch.stack([target, f64(0.0)]))
    with pytest.warns(UserWarning, match="did not converge: the norm of its residual is .* The matrix may be singular"):
        grad(lambda target: solved(None, target).sum())(f64(2.0))
    if solve == "neumann":
        return  # converges too slowly for this matrix
    # A right-hand side in the range has a solution, which is found.
    assert grad(lambda target: solved(None, target)[0])(f64(2.0)) == pytest.approx(1.0)


LEARNED = f64([1.0]).requires_grad_()
MISTAKES = {
    "custom_root: unknown solver 'cgg'; known: bicgstab, cg, dense, gmres, neumann, or a function of (matvec, b); did "
    "you mean 'cg'?": lambda: gradtx.custom_root(grad(ridge_loss), solve="cgg"),
    "custom_root: tolerance must be in (0, inf), got 0.0": lambda: ridge(tolerance=0.0),
    "custom_root: max_steps must be in [1, inf), got 0": lambda: ridge(max_steps=0),
    "custom_root: ridge must be in [0, inf), got -1.0": lambda: ridge(ridge=-1.0),
    "custom_root: unconverged must be 'warn', 'raise', 'ignore', got 'error'": lambda: ridge(unconverged="error"),
    "custom_root: precondition must be a function of (vector, solution, *args), got 2": lambda: ridge(precondition=2),
    "custom_root: nondiff: no argument is called 'decays'; did you mean 'decay'?": lambda: ridge(nondiff="decays"),
    "custom_root: needs a function of (solution, *args), got 'cg'": lambda: gradtx.custom_root("cg"),
    "custom_fixed_point: decorates a solver(start, *args), got 3": lambda: gradtx.custom_fixed_point(abs)(3),
    "custom_root: optimality: its result is torch.float64 () on cpu, needs torch.float64 (4,) on cpu, as in the "
    "solution": lambda: gradtx.custom_root(ridge_loss)(ridge_solver)(None, X, Y, f64(0.7).requires_grad_()),
    "custom_root: optimality: leaf 'b' is missing, but is in the solution": lambda: gradtx.custom_root(
        lambda w, t: {"a": w["a"] - t}
    )(lambda start, t: {"a": t, "b": t})(None, f64(1.0).requires_grad_()),
    "custom_root: solution: leaf 'n' has dtype torch.int64, needs a floating-point one": lambda: gradtx.custom_root(
        lambda w, t: w
    )(lambda start, t: {"n": torch.arange(3)})(None, f64(1.0)),
    "custom_root: optimality depends on a tensor that requires gradients and is no argument of the solver": lambda: (
        gradtx.custom_root(lambda w, t: w - t * f64(2.0).requires_grad_())(lambda start, t: 2 * t)(
            None, f64(1.0).requires_grad_()
        )
    ),
    "custom_root: with has_aux=True, the solver must return (solution, aux), got Tensor": lambda: ridge(has_aux=True)(
        None, X, Y, f64(0.7)
    ),
    "custom_root: optimality depends on a tensor that requires gradients": lambda: grad(
        lambda t: gradtx.custom_root(lambda w, u: w - u * t)(lambda start, u: u * t)(None, f64(1.0))
    )(f64(1.0)),
    "custom_root: the solver reads a tensor of an enclosing torch.func transform that is no argument": lambda: grad(
        lambda u: vmap(lambda t: gradtx.custom_root(lambda w, u: w - u)(lambda start, u: u * t)(None, u))(DECAYS).sum()
    )(f64(1.0)),
    "minimize: steps must be in [1, inf), got 0": lambda: gradtx.minimize(
        gradtx.sgd(), ridge_loss, torch.zeros(4), X, Y, f64(0.7), steps=0
    ),
    "minimize: until must be a number in [0, inf) or a function of (params, gradients, value), got 'now'": lambda: (
        gradtx.minimize(gradtx.sgd(), ridge_loss, torch.zeros(4), X, Y, f64(0.7), steps=1, until="now")
    ),
    "minimize: the loss must be a 0-d tensor, got tensor(shape=(4,))": lambda: gradtx.minimize(
        gradtx.sgd(), lambda w: w, torch.zeros(4), steps=1
    ),
    "minimize: the gradient of the loss depends on a tensor that requires gradients and is no argument": lambda: (
        gradtx.minimize(gradtx.sgd(), lambda w: (w * LEARNED).sum(), torch.zeros(1).double(), steps=1)
    ),
    "minimize: tx must be a GradientTransformation, got SGD": lambda: gradtx.minimize(
        torch.optim.SGD, ridge_loss, X, steps=1
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_error_that_names_it(message):
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}"):
        MISTAKES[message]()


def test_a_minimum_that_is_not_reached_is_a_warning_with_the_norm():
    with pytest.warns(
        UserWarning, match=r"minimize: after 3 steps the norm of the gradient is .*, above until=1.0e-06"
    ):
        gradtx.minimize(
            gradtx.sgd(1e-3), ridge_loss, torch.zeros(4, dtype=torch.float64), X, Y, f64(0.7), steps=3, until=1e-6
        )


def test_until_may_be_a_function_of_parameters_gradients_and_value():
    seen = []

    def until(params, grads, value):
        seen.append(value.item())
        return value < 1.0

    w = gradtx.minimize(gradtx.sgd(0.1), lambda w: w.square().sum(), f64([3.0]), steps=100, until=until)
    assert seen[-1] < 1.0 <= seen[-2]
    assert w.square().sum() == seen[-1]


# Cotangents of every size.

METHODS = ["cg", "gmres", "bicgstab", "neumann", "dense"]
MATRIX = torch.tensor([[1.0, 0.25], [0.25, 0.5]])


def solution_of(kind, solve, **options):
    """A function whose value is the solution of MATRIX x = a."""
    if kind == "root":
        decorate = gradtx.custom_root(lambda x, a: MATRIX.to(a.dtype) @ x - a, solve=solve, **options)
    elif kind == "fixed point":
        decorate = gradtx.custom_fixed_point(lambda x, a: x - MATRIX.to(a.dtype) @ x + a, solve=solve, **options)
    else:

        def loss(x, a):
            return 0.5 * x @ MATRIX.to(a.dtype) @ x - a @ x

        tx = gradtx.sgd(lr=1.0)
        return lambda a: gradtx.minimize(tx, loss, torch.zeros_like(a), a, steps=200, solve=solve, **options)
    solver = decorate(lambda start, a: torch.linalg.solve(MATRIX.to(a.dtype), a))
    return lambda a: solver(torch.zeros_like(a), a)


def pulled_back(function, cotangent):
    a = torch.ones(2, requires_grad=True)
    function(a).backward(cotangent)
    return a.grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("solve", METHODS)
@pytest.mark.parametrize("kind", ["root", "fixed point", "minimum"])
def test_a_cotangent_that_is_not_finite_gives_gradients_that_are_not(kind, solve, bad):
    function = solution_of(kind, solve)
    assert pulled_back(function, torch.tensor([1.0, bad])).isnan().all()
    _, moved = torch.func.jvp(function, (torch.ones(2),), (torch.tensor([bad, 1.0]),))
    assert moved.isnan().all()


@pytest.mark.parametrize("size", [1e-37, 1e-24, 1e-12, 1e12, 1e20, 1e37])
@pytest.mark.parametrize("solve", METHODS)
@pytest.mark.parametrize("kind", ["root", "fixed point", "minimum"])
def test_gradients_are_proportional_to_the_cotangent_at_every_size(kind, solve, size):
    function = solution_of(kind, solve)
    cotangent = torch.tensor([1.0, -0.5], dtype=torch.float64)
    expected = torch.linalg.solve(MATRIX.double(), cotangent)
    gradient = pulled_back(function, (size * cotangent).float())
    torch.testing.assert_close(gradient.double() / size, expected, rtol=1e-4, atol=0)
    _, moved = torch.func.jvp(function, (torch.ones(2),), ((size * cotangent).float(),))
    torch.testing.assert_close(moved.double() / size, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("solve", METHODS)
def test_a_member_of_a_vmap_whose_cotangent_is_not_finite_leaves_the_others_alone(solve):
    function = solution_of("root", solve)
    cotangents = torch.tensor([[1.0, -0.5], [math.nan, 1.0], [0.0, 0.0], [1e20, 1e20]])
    gradients = torch.vmap(lambda c: torch.func.vjp(function, torch.ones(2))[1](c)[0])(cotangents)
    assert gradients[1].isnan().all()
    expected = torch.linalg.solve(MATRIX.double(), cotangents[[0, 2, 3]].double().T).T
    torch.testing.assert_close(gradients[[0, 2, 3]].double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("solve", METHODS)
def test_with_a_warm_start_a_cotangent_of_zero_gives_zero_and_one_that_is_not_finite_is_forgotten(solve):
    function = solution_of("root", solve, warm_start=True, unconverged="raise")
    cotangent = torch.tensor([1.0, -0.5])
    expected = torch.linalg.solve(MATRIX, cotangent)
    for first in (cotangent, 1e20 * cotangent, torch.tensor([math.nan, 1.0])):
        pulled_back(function, first)
        assert pulled_back(function, torch.zeros(2)).tolist() == [0.0, 0.0]
        pulled_back(function, first)
        torch.testing.assert_close(pulled_back(function, cotangent), expected, rtol=1e-4, atol=0)
        pulled_back(function, first)
        small = pulled_back(function, 1e-24 * cotangent)
        torch.testing.assert_close(small.double() * 1e24, expected.double(), rtol=1e-4, atol=0)


def test_skip_nonfinite_sees_a_gradient_through_a_minimum_that_is_not_finite():
    a = torch.nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.skip_nonfinite(gradtx.sgd(lr=0.1)), [a])
    (math.inf * solution_of("root", "cg")(a).sum()).backward()
    optimizer.step()
    assert a.tolist() == [1.0, 1.0]
    assert optimizer.state[a]["skipped"] == 1
