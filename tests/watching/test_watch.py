"""A watch measures what each link does, and leaves training as it is, to the bit."""

import contextlib
import copy
import csv
import gc
import math
import weakref

import pytest
import torch
from torch import nn

import gradtx
from tests.optim.problems import parameters, set_gradients

RATE = 0.01
ADAMW = gradtx.adamw(lr=RATE)
CHAINS = {
    "clipped": gradtx.chain(gradtx.clip_by_global_norm(0.1), ADAMW),
    "accumulate": gradtx.accumulate(ADAMW, every=4),
    "lookahead": gradtx.chain(ADAMW, gradtx.lookahead(k=3)),
    "schedule_free": gradtx.schedule_free_adamw(lr=RATE),
    "sam": gradtx.sam(ADAMW),
    "partition": gradtx.partition({"matrix": gradtx.muon(lr=RATE), "rest": ADAMW}, {"matrix": "*.weight", "rest": "*"}),
    "int8": gradtx.adamw(lr=RATE, state_dtype="int8"),
    "noise": gradtx.chain(gradtx.add_noise(0.1, 0.5, seed=0), gradtx.sgd(lr=RATE)),
    "skip_nonfinite": gradtx.skip_nonfinite(ADAMW),
    "masked": gradtx.chain(gradtx.freeze("1.weight"), ADAMW),
    "lbfgs": gradtx.lbfgs(lr=RATE),
    "stale": gradtx.chain(gradtx.clip_by_global_norm(0.1, stale=True), ADAMW),
    "prodigy": gradtx.prodigy(lr=1.0),
    "lamb": gradtx.lamb(lr=RATE),
    "restart": gradtx.restart(ADAMW, every=4),
    "outer": gradtx.outer(ADAMW, gradtx.sgd(lr=0.7, momentum=0.9, nesterov=True), every=3),
    "low_rank": gradtx.galore(lr=RATE, rank=2),
    "accumulated partition": gradtx.accumulate(
        gradtx.partition({"matrix": gradtx.muon(lr=RATE), "rest": ADAMW}, {"matrix": "*.weight", "rest": "*"}), every=2
    ),
    "average": gradtx.chain(ADAMW, gradtx.average(0.9)),
    "blocks": gradtx.blocks(gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.lamb(lr=RATE)), "*.weight", batch=1),
    "schedule": gradtx.adamw(lr=gradtx.cosine_schedule(RATE, T_max=10)),
}
OPTIONS = {"default": {}, "compiled": {"compile": True}}


def trained(tx, is_watched, compile=False, steps=11, every=3, dtype=torch.float32):
    """Train a network with dropout; return the optimizer's state dict, the weights, the losses and what was seen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Dropout(0.2), nn.Linear(9, 2, bias=False)).to(dtype)
    x, y = torch.randn(32, 6, dtype=dtype), torch.randn(32, 2, dtype=dtype)
    names = [("1.weight" if name == "3.weight" else name, p) for name, p in model.named_parameters()]
    optimizer = gradtx.as_optimizer(tx, names, compile=compile)
    seen = gradtx.watch(optimizer, every=every) if is_watched else None
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(steps):
        losses.append(optimizer.step(closure).item())
    return optimizer.state_dict(), list(model.parameters()), losses, seen


@pytest.mark.parametrize("mode", OPTIONS)
@pytest.mark.parametrize("name", CHAINS)
def test_training_with_a_watch_is_bit_for_bit_training_without(name, mode):
    state, weights, losses, _ = trained(CHAINS[name], False, **OPTIONS[mode])
    watched_state, watched_weights, watched_losses, seen = trained(CHAINS[name], True, **OPTIONS[mode])
    assert seen.samples
    assert losses == watched_losses
    assert all(map(torch.equal, weights, watched_weights))
    assert state["param_groups"] == watched_state["param_groups"]
    for key, slots in state["state"].items():
        assert slots.keys() == watched_state["state"][key].keys()
        for slot, value in slots.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(watched_state["state"][key][slot])), slot


# Rules that are no functions.


@gradtx.per_tensor
def drop_half():
    return lambda update, state, param, ctx: (nn.functional.dropout(update, 0.5), state)


@gradtx.per_tensor
def add_torch_noise():
    return lambda update, state, param, ctx: (update + 0.1 * torch.randn_like(update), state)


CALLS = []  # a body runs again where numbers are those of a group


@gradtx.per_tensor
def scale_by_calls(eps: gradtx.Scalar = 1e-3):
    def update(update, state, param, ctx):
        CALLS.append(1)
        size = update.abs().sum().item()  # no program runs it
        return len(CALLS) * update / (size + eps), state

    return update


@gradtx.combinator
def at_random(tx: gradtx.GradientTransformation):
    """A clock that draws whether it counts."""
    clock = gradtx.InnerClock(lambda values, sums: (torch.rand(()) < 0.5, {}))
    return gradtx.Frame(tx, clock=clock)


IMPURE = {"dropout": drop_half, "noise": add_torch_noise, "calls": scale_by_calls}
WAYS = {
    "default": {},
    "compiled": {"compile": True},
    "capturable": {"capturable": True},
    "scaled": {"scaled": True},
    "scaled by the step": {"scaled": True, "amp_scaling": True},
    "accumulated": {"around": lambda tx: gradtx.accumulate(tx, 2)},
    "consumed": {"consumes": True},
    "eagerly": {"eagerly": True},
    "a clock that draws": {"around": at_random},
}


def trained_impurely(make, is_watched, around=None, scaled=False, consumes=False, eagerly=False, **options):
    """Train leaves of which some step alone, with a rule of `make`; return weights and the next random number."""
    torch.manual_seed(0)
    CALLS.clear()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    branches = {"alone": gradtx.chain(make(), ADAMW), "rest": ADAMW}
    tx = gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.partition(branches, {"alone": "*.bias", "rest": "*"}))
    tx = tx if around is None else around(tx)
    optimizer = gradtx.as_optimizer(tx, model.named_parameters(), **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    seen = gradtx.watch(optimizer, every=2) if is_watched else None
    x = torch.randn(16, 6)
    for _ in range(7):
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        with gradtx.eagerly() if eagerly else contextlib.nullcontext():
            scaler.step(optimizer, **({"consume_gradients": True} if consumes else {}))
        scaler.update()
    assert seen is None or seen.samples
    return [*model.parameters()], torch.rand(()), len(CALLS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", IMPURE)
def test_a_watch_leaves_rules_that_draw_or_count_their_calls_as_they_are(name, way):
    make, options = IMPURE[name], WAYS[way]
    (weights, *others), (watched, *of_watched) = (trained_impurely(make, which, **options) for which in (False, True))
    assert all(map(torch.equal, weights, watched))
    assert others == of_watched


def test_a_rule_that_steps_alone_is_called_once_in_a_measured_step():
    names = []

    @gradtx.per_tensor
    def note_leaf(eps: gradtx.Scalar = 1e-3):
        def update(update, state, param, ctx):
            names.append(len(update))
            return update / update.sum().item(), state

        return update

    params = [nn.Parameter(torch.ones(n)) for n in (2, 3)]
    optimizer = gradtx.as_optimizer(
        gradtx.chain(note_leaf(), gradtx.masked(note_leaf(), lambda _, p: len(p) == 2)), params
    )
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()  # which tries to record the rules
    with gradtx.watch(optimizer, every=1):
        names.clear()
        optimizer.step()
    assert sorted(names) == [2, 2, 3]


def test_eagerly_finds_a_nan_in_a_measured_step():
    weight = nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), [("w", weight)])
    with gradtx.watch(optimizer, every=1), gradtx.eagerly(nan="raise"):
        weight.grad = torch.tensor([1.0, math.nan])
        with pytest.raises(FloatingPointError, match="leaf 'w'"):
            optimizer.step()


# Combinators in combinators.

NESTED = {
    "lamb in low_rank": lambda: gradtx.low_rank(gradtx.lamb(lr=RATE), 2),
    "muon in low_rank": lambda: gradtx.low_rank(gradtx.muon(lr=RATE, fallback=ADAMW), 2),
    "graft in low_rank": lambda: gradtx.low_rank(gradtx.graft(gradtx.sgd(lr=RATE), ADAMW), 2),
    "a drawn basis": lambda: gradtx.low_rank(ADAMW, 2, projection="random"),
    "lamb in rotated": lambda: gradtx.rotated(gradtx.lamb(lr=RATE)),
    "rotated in blocks": lambda: gradtx.blocks(gradtx.rotated(gradtx.lamb(lr=RATE)), "*.weight", batch=1),
    "low_rank in blocks": lambda: gradtx.blocks(gradtx.low_rank(gradtx.lamb(lr=RATE), 1), "0.weight", sizes=(2, 7)),
    "a sum before the gradient is read": lambda: gradtx.blocks(
        gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.scale_by_norm_ratio(gradtx.sgd(lr=RATE))),
        "0.weight",
        batch=1,
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_nested_combinators_keep_their_bits_and_the_eps_of_each_link_inside_is_measured(name):
    _, weights, _, _ = trained(NESTED[name](), False, steps=4)
    _, watched, _, seen = trained(NESTED[name](), True, steps=4)
    assert all(map(torch.equal, weights, watched))
    links = {row["link"] for row in seen.records if row["link"].endswith(("scale_by_adam", "scale_by_lamb"))}
    assert not any(math.isnan(row["decided"]) for row in seen.records if row["link"] in links)


@pytest.mark.parametrize("name", ["AdamW", "Muon", "LBFGS", "ScheduleFreeAdamW"])
@pytest.mark.parametrize("compile", [False, True])
def test_classes_with_a_watch_keep_their_bits(name, compile):
    weights = []
    for is_watched in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(6, 4, bias=False)
        x = torch.randn(8, 6)
        optimizer = getattr(gradtx.optim, name)(model.named_parameters(), lr=RATE, compile=compile)
        seen = gradtx.watch(optimizer, every=2) if is_watched else None

        def closure(model=model, optimizer=optimizer, x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
        weights.append(model.weight.detach())
    assert seen.samples
    assert torch.equal(*weights)


def test_updates_in_a_space_of_fewer_dimensions_have_no_cosine_with_the_gradient():
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    seen = stepped(gradtx.galore(lr=RATE, rank=2), weight, weight.sin())
    inside = [row for row in seen.records if row["link"].endswith("scale_by_adam_hat")]
    assert inside
    assert all(math.isnan(row["cos_grad"]) for row in inside)
    assert figures(seen, "step")[0]["cos_grad"] < 0


def figures(seen, link, leaf="w"):
    """Return the figures of a leaf at a link, of each measured step."""
    return [record for record in seen.records if record["leaf"] == leaf and record["link"] == link]


def test_figures_of_each_link_are_those_of_a_loop_in_float64():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64))
    bound, decay, rate, eps, beta1, beta2 = 0.5, 0.1, 0.01, 1.0, 0.9, 0.99
    tx = gradtx.chain(
        gradtx.clip_by_norm(bound),
        gradtx.scale_by_adam((beta1, beta2), eps),
        gradtx.add_decayed_weights(decay),
        gradtx.scale_by_learning_rate(rate),
    )
    optimizer = gradtx.as_optimizer(tx, [("w", weight)])
    p, m, v, last = weight.detach().clone(), torch.zeros(2, 2), torch.zeros(2, 2), None
    expected = []
    with gradtx.watch(optimizer, every=1) as seen:
        for t in range(1, 5):
            g = torch.tensor([[0.1, 0.2], [-0.7, 2.0]], dtype=torch.float64) * (1 if t % 2 else -0.5)
            weight.grad = g.clone()
            optimizer.step()
            clipped = g * min(1, bound / g.norm())
            m, v = beta1 * m + (1 - beta1) * clipped, beta2 * v + (1 - beta2) * clipped**2
            mean, root = m / (1 - beta1**t), (v / (1 - beta2**t)).sqrt()
            adam = mean / (root + eps)
            update = -rate * (adam + decay * p)
            cos_last = math.nan if last is None else (update * last).sum() / update.norm() / last.norm()
            expected.append((g, clipped, adam, update, p, cos_last, (root < eps).double().mean()))
            p, last = p + update, update
    for i, (g, clipped, adam, update, p, cos_last, share) in enumerate(expected):
        clip, of_adam, whole = (figures(seen, link)[i] for link in ("clip_by_norm", "scale_by_adam", "step"))
        assert clip["norm_before"] == pytest.approx(g.norm().item(), rel=1e-12)
        assert clip["change"] == pytest.approx((clipped.norm() / g.norm()).item(), rel=1e-12)
        assert clip["decided"] == float(g.norm() > bound)
        assert of_adam["norm_after"] == pytest.approx(adam.norm().item(), rel=1e-12)
        assert of_adam["cos_grad"] == pytest.approx(((adam * g).sum() / adam.norm() / g.norm()).item(), rel=1e-12)
        assert of_adam["decided"] == share.item() == 1.0
        assert whole["update_to_weight"] == pytest.approx((update.norm() / p.norm()).item(), rel=1e-12)
        # The step before is the difference of weights in float32, in which a step has few digits.
        assert whole["cos_last"] == pytest.approx(float(cos_last), abs=1e-4, nan_ok=True)
        assert whole["lost"] == 0.0
        assert math.isnan(figures(seen, "add_decayed_weights")[i]["decided"])


def stepped(tx, weight, gradient, steps=1, **options):
    """Watch every step of one leaf with a constant gradient."""
    param = nn.Parameter(weight)
    optimizer = gradtx.as_optimizer(tx, [("w", param)])
    with gradtx.watch(optimizer, every=1, **options) as seen:
        for _ in range(steps):
            param.grad = gradient.clone()
            optimizer.step()
    return seen


def test_eps_decides_where_it_exceeds_the_root_and_entries_without_gradient_do_not_count():
    gradient = torch.tensor([1e-3, 1e-9, 1e-10, 0.0])
    seen = stepped(gradtx.adam(), torch.ones(4), gradient)
    assert figures(seen, "scale_by_adam")[0]["decided"] == pytest.approx(2 / 3)


def test_a_clip_by_value_decides_the_entries_that_it_changes():
    seen = stepped(
        gradtx.chain(gradtx.clip_by_value(1.0), gradtx.sgd(lr=0.1)), torch.ones(4), torch.tensor([0.5, 2.0, -3.0, 1.0])
    )
    assert figures(seen, "clip_by_value")[0]["decided"] == 0.5


def test_atan2_decides_where_the_mean_exceeds_the_root():
    param = nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.adam_atan2(betas=(0.0, 0.9)), [("w", param)])
    with gradtx.watch(optimizer, every=1) as seen:
        for gradient in ([1.0, 1.0], [9.0, 0.1]):
            param.grad = torch.tensor(gradient)
            optimizer.step()
    assert [row["decided"] for row in figures(seen, "scale_by_atan2")] == [0.0, 0.5]


def test_a_trust_ratio_at_its_bound_decides_a_leaf():
    for weight, share in ((0.01, 0.0), (100.0, 1.0)):
        seen = stepped(gradtx.lamb(trust_clip=True), torch.full((4,), weight), torch.ones(4))
        assert figures(seen, "scale_by_trust_ratio")[0]["decided"] == share


def test_steps_below_the_resolution_of_bfloat16_are_lost():
    weight = torch.tensor([1.0, 1e-3], dtype=torch.bfloat16)
    seen = stepped(gradtx.sgd(lr=1e-4), weight, torch.ones(2, dtype=torch.bfloat16))
    assert figures(seen, "step")[0]["lost"] == 0.5


def test_a_step_that_alternates_has_the_cosine_minus_1_with_the_last():
    param = nn.Parameter(torch.ones(10000))
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), [("w", param)])
    with gradtx.watch(optimizer, every=2) as seen:
        for t in range(5):
            param.grad = torch.full_like(param, (-1.0) ** t)
            optimizer.step()
    assert [row["cos_last"] for row in figures(seen, "step")[1:]] == [pytest.approx(-1.0)] * 2


def test_steps_in_which_accumulate_collects_are_not_measured():
    _, _, _, seen = trained(CHAINS["accumulate"], True, steps=12, every=2)
    assert seen.steps == [4, 12]
    assert all(row["norm_after"] > 0 for row in seen.records)


def test_for_all_leaves_together_sums_are_those_of_the_leaves():
    tx = CHAINS["clipped"]
    seen = {}
    for per in ("leaf", "all"):
        params = parameters()
        optimizer = gradtx.as_optimizer(tx, list(params.items()))
        with gradtx.watch(optimizer, every=1, per=per) as seen[per]:
            set_gradients(params)
            optimizer.step()
    leaves, whole = seen["leaf"].samples[0], seen["all"].samples[0]
    assert {leaf for leaf, _ in whole.rows} == {"all"}
    assert leaves.of_links.keys() == whole.of_links.keys()
    for link, row in leaves.of_links.items():
        assert whole.of_links[link] == pytest.approx(row, rel=1e-12, nan_ok=True)


def test_leaves_without_a_gradient_and_numbers_of_groups_are_known():
    params = parameters()
    groups = [
        {"params": [("a", params["body.weight"])], "lr": gradtx.linear_schedule(0.5, 0.0, total_iters=10)},
        {"params": [("b", params["body.bias"]), ("c", params["head.scale"])]},
    ]
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), groups)
    with gradtx.watch(optimizer, every=1) as seen:
        for _ in range(2):
            set_gradients({"a": params["body.weight"], "b": params["body.bias"]})
            optimizer.step()
    assert seen.samples[0].without_gradient == ["c"]
    rates = [optimizer.param_groups[0]["lr"], seen.samples[1].groups["0.lr"], seen.samples[1].groups["1.lr"]]
    assert rates[0] != rates[1] != 0.1 == rates[2]


def test_losses_come_from_closures_values_and_notes():
    param = nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), [("w", param)])
    param.grad = torch.ones(2)
    with gradtx.watch(optimizer, every=1) as seen:
        optimizer.step(value=torch.tensor(3.0))
        seen.note(torch.tensor(2.0))  # before
        optimizer.step()
        optimizer.step()
        seen.note(1.0)  # after
        optimizer.step()
    assert seen.losses == pytest.approx([3.0, 2.0, 1.0, math.nan], nan_ok=True)


def test_losses_noted_before_each_step_precede_those_of_closures_and_others_do_not():
    for comes_first, expected in ((True, [10.0, 20.0, 30.0]), (False, [1.0, 2.0, 3.0])):
        param = nn.Parameter(torch.ones(2))
        optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), [("w", param)])
        with gradtx.watch(optimizer, every=1) as seen:
            for i in range(1, 4):
                param.grad = torch.ones(2)
                if comes_first:
                    seen.note(10.0 * i)
                optimizer.step(value=float(i))
                if not comes_first:
                    seen.note(float(i))
        assert seen.losses == expected


@pytest.mark.parametrize("comes_first", [True, False])
def test_a_loss_that_is_noted_belongs_to_its_own_step_and_is_logged_with_it(comes_first):
    logged = []
    param = nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), [("w", param)])
    with gradtx.watch(optimizer, every=3, log=logged.append) as seen:
        for i in range(1, 9):
            param.grad = torch.ones(2)
            if comes_first:
                seen.note(float(i))
            optimizer.step()
            if not comes_first:
                seen.note(torch.tensor(float(i)))
            assert [values["watch/step"] for values in logged] == [step for step in (1, 4, 7) if step <= i]
    assert seen.losses == [1.0, 4.0, 7.0]
    assert [values["watch/loss"] for values in logged] == [1.0, 4.0, 7.0]


def test_steps_whose_loss_nobody_says_are_logged_as_they_are():
    logged = []
    param = nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), [("w", param)])
    with gradtx.watch(optimizer, every=2, log=logged.append):
        for i in range(1, 6):
            param.grad = torch.ones(2)
            optimizer.step()
            if i > 1:  # a note of the first step's loss may come
                assert len(logged) == (i + 1) // 2
    assert [values["watch/step"] for values in logged] == [1.0, 3.0, 5.0]
    assert "watch/loss" not in logged[0]


def test_forms_of_what_was_seen(tmp_path):
    logged = []
    param = nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.adamw(lr=0.1), [("w", param)])
    with gradtx.watch(optimizer, every=1, log=logged.append) as seen:
        for _ in range(2):
            param.grad = torch.tensor([3.0, 4.0])
            optimizer.step(value=2.0)
    assert [values["watch/step"] for values in logged] == [1.0, 2.0]
    assert logged[0]["watch/loss"] == 2.0
    assert logged[0]["watch/group/lr"] == 0.1
    assert logged[0]["watch/link/scale_by_adam/norm_before"] == 5.0
    assert logged[0]["watch/leaf/w/norm_before"] == 5.0
    assert all(math.isfinite(value) for value in logged[0].values())
    path = tmp_path / "seen.csv"
    seen.to_csv(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(seen.records) == 2 * 4
    assert rows[0]["link"] == "scale_by_adam"
    assert float(rows[0]["norm_before"]) == 5.0
    assert rows[1]["decided"] == ""
    assert seen.table().splitlines()[1].startswith("w ")
    assert "scale_by_adam" in repr(seen)
    assert "loss 2 to 2" in repr(seen)
    assert seen.postfix().keys() == {"loss", "grad", "update/weight"}


def test_a_tensorboard_writer_gets_scalars_with_their_steps():
    class Writer:
        def __init__(self):
            self.scalars = []

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

    weight, writer = nn.Parameter(torch.ones(2)), Writer()
    optimizer = gradtx.optim.SGD([("w", weight)], lr=0.1)
    with gradtx.watch(optimizer, every=1, log=writer) as seen:
        for _ in range(2):
            weight.grad = torch.ones(2)
            optimizer.step()
    seen.log(writer)  # nothing new
    assert [step for name, _, step in writer.scalars if name == "watch/group/lr"] == [1, 2]


def test_every_writer_gets_every_measured_step_once():
    weight = nn.Parameter(torch.ones(2))
    optimizer = gradtx.optim.SGD([("w", weight)], lr=0.1)
    first, second = [], []
    with gradtx.watch(optimizer, every=1, log=first.append) as seen:
        for _ in range(3):
            weight.grad = torch.ones(2)
            optimizer.step()
            seen.note(1.0)
            seen.log(second.append)
        seen.log(first.append)
    assert [row["watch/step"] for row in first] == [row["watch/step"] for row in second] == [1, 2, 3]


def test_a_postfix_has_the_loss_if_it_is_known():
    seen = stepped(gradtx.sgd(lr=0.1), torch.ones(4), torch.ones(4), steps=1)
    assert seen.postfix() == {"grad": "2", "update/weight": "1.0e-01"}
    seen.note(0.25)
    assert seen.postfix() == {"loss": "0.25", "grad": "2", "update/weight": "1.0e-01"}


def test_measured_leaves_are_those_of_the_pure_form():
    params = {"w": torch.randn(4, 3, generator=torch.Generator().manual_seed(0))}
    gradients = {"w": params["w"].sin()}
    tx = gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.adamw(lr=0.1, eps=1e-2))
    state = tx.init(params)
    expected = tx.update(gradients, state, params)
    updates, new_state, seen = gradtx.watched(tx).update(gradients, state, params)
    torch.testing.assert_close((updates, new_state), expected)
    of_optimizer = stepped(tx, params["w"].clone(), gradients["w"])
    for link, row in seen["w"].items():
        other = figures(of_optimizer, link)[0]
        for name, value in row.items():
            assert value.item() == pytest.approx(other[name], rel=1e-12, nan_ok=True), (link, name)


def test_the_pure_form_works_under_vmap():
    params, tx = {"w": torch.ones(3)}, gradtx.chain(gradtx.clip_by_norm(2.0), gradtx.adam())

    def change(lr, gradient):
        tx_of_member = tx.replace(lr=lr)
        _, _, seen = gradtx.watched(tx_of_member).update({"w": gradient}, tx_of_member.init(params), params)
        return seen["w"]["step"]["update_to_weight"], seen["w"]["clip_by_norm"]["decided"]

    ratios, decided = torch.vmap(change)(torch.tensor([0.1, 0.2]), torch.stack([torch.ones(3), 5 * torch.ones(3)]))
    torch.testing.assert_close(ratios, torch.tensor([0.1, 0.2], dtype=torch.float64), rtol=1e-6, atol=0)
    assert decided.tolist() == [0.0, 1.0]


def test_a_copy_of_a_watched_optimizer_is_not_watched():
    param = nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), [("w", param)])
    with gradtx.watch(optimizer, every=1) as seen:
        other = copy.deepcopy(optimizer)
        other.param_groups[0]["params"][0].grad = torch.ones(2)
        other.step()
        assert not seen.samples
    assert repr(seen) == "no step measured in 0 calls of step"


def test_a_wrapper_of_a_trainer_is_looked_through():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    param = nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), [("w", param)])
    with gradtx.watch(Wrapper(optimizer)) as seen:
        param.grad = torch.ones(2)
        optimizer.step()
    assert seen.steps == [1]


def test_bad_input_is_one_clear_error():
    param = nn.Parameter(torch.ones(2))
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), [("w", param)])
    with pytest.raises(TypeError, match="watch: needs an optimizer of gradtx, whose links are known, got"):
        gradtx.watch(torch.optim.SGD([param], lr=0.1))
    with pytest.raises(ValueError, match="watch: every must be an int of at least 1, got 0"):
        gradtx.watch(optimizer, every=0)
    with pytest.raises(ValueError, match="watch: per must be 'leaf' or 'all', got 'group'"):
        gradtx.watch(optimizer, per="group")
    with pytest.raises(TypeError, match="watch: log: needs a SummaryWriter or a function"):
        gradtx.watch(optimizer, log="run.csv")
    with pytest.raises(TypeError, match="watched: tx must be"):
        gradtx.watched(optimizer)
    with gradtx.watch(optimizer) as seen:
        with pytest.raises(RuntimeError, match="being watched already"):
            gradtx.watch(optimizer)
        with pytest.raises(TypeError, match="log: needs a SummaryWriter"):
            seen.log(3)
        with pytest.raises(RuntimeError, match="release_gradients: ChainOptimizer is being watched, and a watch sees"):
            optimizer.release_gradients()
    handle = optimizer.release_gradients()
    with pytest.raises(RuntimeError, match="gradients are released"):
        gradtx.watch(optimizer)
    handle.remove()
    with gradtx.watch(optimizer, every=1) as seen:
        param.grad = torch.ones(2)
        optimizer.step()
    assert seen.steps == [1]


@pytest.mark.parametrize("is_closed", [True, False])
def test_what_was_seen_keeps_neither_the_optimizer_nor_weights_nor_state(is_closed):
    model = nn.Linear(4, 3)
    tx = gradtx.accumulate(gradtx.adamw(lr=gradtx.cosine_schedule(RATE, T_max=9)), every=2)
    optimizer = gradtx.as_optimizer(tx, model.named_parameters())
    seen = gradtx.watch(optimizer, every=1)
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(torch.ones(4)).square().sum()
        loss.backward()
        optimizer.step(value=loss)
    if is_closed:
        seen.close()
        assert seen.diagnose() is not None
    state = max(optimizer.state[model.weight].values(), key=torch.numel)
    kept = [weakref.ref(item) for item in (optimizer, optimizer._up_to_date(), model.weight, state)]
    del model, optimizer, loss, state
    gc.collect()
    assert [item() for item in kept] == [None] * 4
    assert repr(seen).startswith("2 of 4 steps measured, 2 leaves, loss")
    seen.close()
    with pytest.raises(ValueError, match="diagnose: the optimizer that was watched is gone"):
        seen.diagnose()


@pytest.mark.parametrize("amp_scaling", [False, True])
def test_a_scaled_gradient_is_measured_without_its_scale_and_training_keeps_its_bits(amp_scaling):
    weights, seen = [], None
    for is_watched in (False, True):
        weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = gradtx.as_optimizer(gradtx.adamw(lr=0.1), [("w", weight)], amp_scaling=amp_scaling)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        if is_watched:
            seen = gradtx.watch(optimizer, every=2)
        for t in range(5):
            optimizer.zero_grad()
            scaler.scale(weight.square().sum() / 2 * (float("inf") if t == 3 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        weights.append(weight.detach())
    assert torch.equal(*weights)
    assert figures(seen, "step")[0]["norm_before"] == 5.0
    assert figures(seen, "scale_by_adam")[0]["norm_before"] == 5.0
    assert seen.updates == 4


def test_a_gradient_that_a_link_makes_from_losses_is_the_gradient_of_the_step():
    weights, seen = [], None
    for is_watched in (False, True):
        weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = gradtx.as_optimizer(gradtx.mezo(lr=1e-3), [("w", weight)])
        if is_watched:
            seen = gradtx.watch(optimizer, every=2)
        for _ in range(4):
            optimizer.step(lambda weight=weight: weight.square().sum())
        weights.append(weight.detach())
    assert torch.equal(*weights)
    whole = figures(seen, "step")[0]
    assert whole["norm_before"] == figures(seen, "estimate_gradient")[0]["norm_after"] > 0
    assert whole["cos_grad"] == pytest.approx(-1.0)
    assert "dead leaves" not in [finding.kind for finding in seen.diagnose()]


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1)])
def test_figures_of_a_leaf_in_blocks_are_those_of_its_blocks_as_leaves(sizes):
    rules = [gradtx.clip_by_block_rms(0.1), gradtx.scale_by_adam(eps=0.1), gradtx.clip_by_global_norm(0.1)]
    inner = gradtx.chain(*rules, gradtx.scale_by_learning_rate(RATE))
    weight, gradients = torch.randn(4, 3), torch.randn(3, 4, 3)

    def seen_by(tx, tensors_of):
        params = [nn.Parameter(tensor.clone()) for tensor in tensors_of(weight)]
        optimizer = gradtx.as_optimizer(tx, params)
        seen = gradtx.watch(optimizer, every=1, per="all")
        for gradient in gradients:
            for param, part in zip(params, tensors_of(gradient), strict=True):
                param.grad = part.clone()
            optimizer.step()
        return seen.records

    rows = seen_by(gradtx.blocks(inner, sizes=sizes), lambda tensor: [tensor])
    expected = seen_by(inner, lambda tensor: tensor.split(sizes))
    assert [row["link"].removeprefix("blocks.") for row in rows] == [row["link"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for figure, value in other.items():
            if isinstance(value, float):
                assert row[figure] == pytest.approx(value, rel=1e-5, nan_ok=True), (row, figure)
    assert {row["decided"] for row in rows if row["link"] == "blocks.clip_by_block_rms"} == {1.0}


def test_a_leaf_without_gradient_has_no_rows():
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adam())
    state = tx.init({"w": torch.ones(2), "b": torch.ones(2)})
    updates, _, seen = gradtx.watched(tx).update({"w": torch.ones(2), "b": None}, state)
    assert updates["b"] is None
    assert list(seen) == ["w"]
