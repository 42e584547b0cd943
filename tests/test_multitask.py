import copy

import pytest
import pytorch_optimizer
import torch
from torch import nn

import gradtx
from tests.references import named

SHAPES = {"matrix": (3, 4), "bias": (5,), "scalar": ()}


def tasks(n, seed=0, without=()):
    rng = torch.Generator().manual_seed(seed)
    trees = [
        {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in SHAPES.items()}
        for _ in range(n)
    ]
    for task, name in without:
        trees[task][name] = None
    return trees


def inner(a, b):
    return sum((a[name] * b[name]).sum().item() for name in SHAPES)


def loop(grads, reduction, seed):
    """The algorithm as published, on numbers; also how many conflicts there were."""
    rng = torch.Generator().manual_seed(seed)
    full = [{name: torch.zeros(shape).double() if task[name] is None else task[name] for name, shape in SHAPES.items()}
            for task in grads]  # fmt: skip
    projected, conflicts = [], 0
    for i, own in enumerate(full):
        G = dict(own)
        for j in torch.randperm(len(full), generator=rng).tolist():
            if j != i and inner(G, full[j]) < 0:
                c = inner(G, full[j]) / inner(full[j], full[j])
                G = {name: G[name] - c * full[j][name] for name in SHAPES}
                conflicts += 1
        projected.append(G)
    merged = {name: sum(G[name] for G in projected) for name in SHAPES}
    if reduction == "mean":
        for name in SHAPES:
            if all(task[name] is not None for task in grads):
                merged[name] = merged[name] / len(grads)
    return merged, conflicts


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("n", "without"), [(2, ()), (3, ()), (5, ()), (4, ((1, "bias"), (2, "scalar"), (3, "scalar")))], ids=str
)
def test_pcgrad_follows_the_loop(n, without, reduction):
    conflicts = 0
    for seed in range(10):
        grads = tasks(n, seed, without)
        expected, found = loop(grads, reduction, seed)
        conflicts += found
        for generator in (seed, torch.Generator().manual_seed(seed)):
            merged = gradtx.pcgrad(grads, reduction, generator)
            for name in SHAPES:
                torch.testing.assert_close(merged[name], expected[name], rtol=1e-13, atol=1e-13)
    assert conflicts


def test_conflicting_parts_are_gone():
    a, b = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([-1.0, 1.0])}
    merged = gradtx.pcgrad([a, b], "sum")["w"]
    assert merged.tolist() == [0.5, 1.5]
    assert gradtx.pcgrad([a, b])["w"].tolist() == [0.25, 0.75]


def test_tasks_that_agree_are_averaged_as_they_are():
    grads = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}]
    assert gradtx.pcgrad(grads)["w"].tolist() == [2.0, 1.0]


def test_a_task_with_zero_gradient_changes_no_other():
    grads = [{"w": torch.tensor([1.0, -2.0])}, {"w": torch.zeros(2)}]
    assert gradtx.pcgrad(grads, "sum")["w"].tolist() == [1.0, -2.0]


def test_inner_products_run_over_the_whole_tree():
    # leaf by leaf "b" conflicts; as a whole the tasks agree
    grads = [{"a": torch.tensor(5.0), "b": torch.tensor(1.0)}, {"a": torch.tensor(1.0), "b": torch.tensor(-1.0)}]
    assert gradtx.pcgrad(grads, "sum") == {"a": torch.tensor(6.0), "b": torch.tensor(0.0)}


def test_a_leaf_that_no_task_reaches_is_none_and_inputs_stay_as_they_are():
    grads = [{"w": torch.tensor([1.0]), "x": None}, {"w": torch.tensor([-2.0]), "x": None}]
    assert gradtx.pcgrad(grads)["x"] is None
    assert grads[0]["w"].tolist() == [1.0]
    assert gradtx.pcgrad([{"x": None}, {"x": None}]) == {"x": None}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradtx.pcgrad([]), "pcgrad: needs the gradients of at least one task"),
        (lambda: gradtx.pcgrad(tasks(2), "max"), "pcgrad: reduction must be 'mean' or 'sum', got 'max'"),
        (
            lambda: gradtx.pcgrad([{"a": torch.ones(1)}, {"b": torch.ones(1)}]),
            "gradients of task 1: leaf 'a' is missing",
        ),
    ],
)
def test_bad_arguments_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def two_heads(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 1)]).double()


def losses_of(model, x):
    z = torch.tanh(model[0](x))
    return [model[1](z).square().mean(), (model[2](z) - 1).square().mean()]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_pcgrad_backward_writes_what_pcgrad_gives(reduction):
    model, x = two_heads(), torch.randn(8, 3, dtype=torch.float64)
    params = list(model.parameters())
    grads = [dict(enumerate(torch.autograd.grad(losses_of(model, x)[k], params, allow_unused=True))) for k in range(2)]
    expected = gradtx.pcgrad(grads, reduction, 3)
    params[0].grad = torch.full_like(params[0], torch.nan)  # overwritten
    gradtx.pcgrad_backward(losses_of(model, x), model.parameters(), reduction, 3)
    for i, param in enumerate(params):
        assert torch.equal(param.grad, expected[i])
    assert all(grads[0][i] is None or grads[1][i] is None for i in range(2, 6))  # the heads are summed, not halved


def test_pcgrad_backward_is_pytorch_optimizers_for_two_tasks():
    # Two tasks have one order only, so that no draw matters.
    model, x = two_heads(1), torch.randn(8, 3, dtype=torch.float64)
    other = copy.deepcopy(model)
    gradtx.pcgrad_backward(losses_of(model, x), model.parameters())
    theirs = pytorch_optimizer.PCGrad(torch.optim.SGD(other.parameters(), lr=0.1))
    theirs.pc_backward(losses_of(other, x))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-13, atol=1e-15)


def test_parameters_that_are_frozen_or_unused_get_no_gradient():
    model, x = two_heads(), torch.randn(8, 3, dtype=torch.float64)
    unused = nn.Parameter(torch.ones(1))
    model[0].bias.requires_grad_(False)
    gradtx.pcgrad_backward(losses_of(model, x), [*model.parameters(), unused])
    assert model[0].bias.grad is None
    assert unused.grad is None
    assert model[0].weight.grad is not None


def test_pcgrad_backward_fails_before_it_writes():
    model, x = two_heads(), torch.randn(8, 3, dtype=torch.float64)
    losses = losses_of(model, x)
    with pytest.raises(TypeError, match="0-d tensor"):
        gradtx.pcgrad_backward(losses[0], model.parameters())
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        gradtx.pcgrad_backward([losses[0], losses[1].expand(2)], model.parameters())
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradtx.pcgrad_backward([losses[0], losses[1].detach()], model.parameters())
    assert all(param.grad is None for param in model.parameters())


# RotoGrad.


def drawn(n, shape=(8, 4), seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) * (k + 1) for k in range(n)]


def scale_loop(grads, initial):
    n = [max(g.norm().item(), 1e-15) for g in grads]
    r = [n_k / start for n_k, start in zip(n, initial, strict=True)]
    C = sum(a * b for a, b in zip(r, n, strict=True)) / max(sum(r), 1e-15)
    return sum(C * g / n_k for g, n_k in zip(grads, n, strict=True))


def rotation_loop(grads, rotated, rotations):
    mean = sum(grads) / len(grads)
    v = sum(g * mean.norm() / g.norm() for g in grads) / len(grads)
    losses = []
    for own, R in zip(rotated, rotations, strict=True):
        per_row = [((R @ v[b] - own[b]) ** 2).sum() for b in range(len(v))]
        losses.append(sum(per_row) / len(per_row))
    return losses


@pytest.mark.parametrize("n", [1, 2, 4])
def test_rotograd_scale_and_rotation_loss_follow_the_loop(n):
    grads, rotated = drawn(n), drawn(n, seed=1)
    rotations = [torch.linalg.qr(m)[0].requires_grad_() for m in drawn(n, (4, 4), 2)]
    initial = [0.5 + k for k in range(n)]
    expected = scale_loop(grads, initial)
    torch.testing.assert_close(gradtx.rotograd_scale(grads, initial), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradtx.rotograd_scale(grads, torch.tensor(initial)), expected, rtol=1e-13, atol=0)
    found = gradtx.rotograd_rotation_loss(grads, rotated, rotations)
    reference = rotation_loop(grads, rotated, rotations)
    torch.testing.assert_close(found, reference, rtol=1e-13, atol=0)
    for R, a, b in zip(rotations, found, reference, strict=True):
        torch.testing.assert_close(*(torch.autograd.grad(loss, R)[0] for loss in (a, b)), rtol=1e-12, atol=0)


def test_a_zero_gradient_divides_nothing_by_zero():
    grads = [torch.zeros(3, 2), torch.ones(3, 2)]
    assert gradtx.rotograd_scale(grads, [1.0, 1.0]).isfinite().all()
    assert gradtx.rotograd_scale(grads[:1], [1.0]).tolist() == [[0.0, 0.0]] * 3
    losses = gradtx.rotograd_rotation_loss(grads, grads, [torch.eye(2)] * 2)
    assert all(loss.isfinite() for loss in losses)


def rotograd(seed=0, **options):
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))
    return gradtx.RotoGrad(backbone, [nn.Linear(4, 1), nn.Linear(4, 2)], 4, **options).double()


def task_losses(model, x, weights=(1.0, 3.0)):
    one, two = model(x)
    return [weights[0] * (one - 2).square().mean(), weights[1] * (two - x[:, :2]).square().mean()]


@pytest.mark.parametrize("normalize", [False, True])
def test_rotograd_backward_gives_the_gradients_of_the_paper(normalize):
    model, x = rotograd(normalize_losses=normalize, burn_in_period=3), torch.randn(8, 3, dtype=torch.float64)
    with torch.no_grad():  # away from the identity
        for rotation, m in zip(model.rotations, drawn(2, (4, 4), 5), strict=True):
            rotation.weight = torch.linalg.qr(m)[0]
    optimizers = [torch.optim.SGD(model.model_parameters(), 0.01), torch.optim.SGD(model.rotation_parameters(), 0.01)]
    starts = norms = None
    for i in range(6):
        R = [rotation.weight.detach() for rotation in model.rotations]
        z = model.backbone(x)
        seen = [(z.detach() @ m.T).requires_grad_() for m in R]
        one, two = (head(each) for head, each in zip(model.heads, seen, strict=True))
        losses = [(one - 2).square().mean(), 3 * (two - x[:, :2]).square().mean()]
        if i in (0, 3):
            starts = [loss.item() for loss in losses]
        if normalize:
            losses = [loss / start for loss, start in zip(losses, starts, strict=True)]
        rotated = [torch.autograd.grad(loss, s, retain_graph=True)[0] for loss, s in zip(losses, seen, strict=True)]
        grads = [g @ m for g, m in zip(rotated, R, strict=True)]
        if i in (0, 3):
            norms = [g.norm().item() for g in grads]
        own = [torch.autograd.grad(loss, list(h.parameters())) for loss, h in zip(losses, model.heads, strict=True)]
        shared = torch.autograd.grad(z, list(model.backbone.parameters()), scale_loop(grads, norms))
        turned = [rotation.weight for rotation in model.rotations]
        trained = list(model.rotation_parameters())
        turning = torch.autograd.grad(sum(rotation_loop(grads, rotated, turned)), trained)

        model.zero_grad()
        model.backward(task_losses(model, x))
        for params, expected in (
            (model.backbone.parameters(), shared),
            (model.heads.parameters(), [g for found in own for g in found]),
            (trained, turning),
        ):
            for p, g in zip(params, expected, strict=True):
                torch.testing.assert_close(p.grad, g, rtol=1e-11, atol=1e-13)
        for optimizer in optimizers:
            optimizer.step()
    for rotation in model.rotations:
        torch.testing.assert_close(rotation.weight @ rotation.weight.T, torch.eye(4, dtype=torch.float64))


def test_rotations_start_as_the_identity_so_heads_see_the_representation():
    model, x = rotograd(), torch.randn(8, 3, dtype=torch.float64)
    z = model.backbone(x)
    for rotation in model.rotations:
        torch.testing.assert_close(rotation.weight, torch.eye(4, dtype=torch.float64), rtol=0, atol=0)
    for out, head in zip(model(x), model.heads, strict=True):
        torch.testing.assert_close(out, head(z))


def test_heads_train_no_rotation_and_the_two_kinds_of_parameters_are_all():
    model = rotograd()
    task_losses(model, torch.randn(8, 3, dtype=torch.float64))[0].backward()
    assert all(p.grad is None for p in model.rotation_parameters())
    kinds = [id(p) for params in (model.model_parameters(), model.rotation_parameters()) for p in params]
    assert sorted(kinds) == sorted(id(p) for p in model.parameters())


def test_training_lowers_every_loss_and_a_saved_run_continues():
    model, x = rotograd(burn_in_period=5, normalize_losses=True), torch.randn(64, 3, dtype=torch.float64)

    def trained(model, steps):
        optimizers = [
            torch.optim.SGD(model.model_parameters(), 0.02),
            torch.optim.SGD(model.rotation_parameters(), 0.01),
        ]
        for _ in range(steps):
            model.zero_grad()
            model.backward(task_losses(model, x))
            for optimizer in optimizers:
                optimizer.step()
        return [loss.item() for loss in task_losses(model, x)]

    first = trained(model, 3)
    loaded = rotograd(1, burn_in_period=5, normalize_losses=True)
    loaded.load_state_dict(model.state_dict())
    last = trained(model, 30)
    assert all(b < a for a, b in zip(first, last, strict=True))
    assert trained(loaded, 30) == pytest.approx(last, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, x: model.backward([torch.ones(())]), "backward must follow a forward pass"),
        (lambda model, x: model.backward(task_losses(model, x)[:1]), "zip\\(\\) argument"),
    ],
    ids=named,
)
def test_misuse_is_a_named_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(rotograd(), torch.randn(8, 3, dtype=torch.float64))
