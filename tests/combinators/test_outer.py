"""Outer optimizers in one process, compared with plain loops in float64; several processes: tests/distributed."""

import pytest
import torch

import gradtx
from gradtx import outer
from tests.conformance import assert_close, assert_same, noise

SHAPES = {"a.w": (3, 4), "a.b": (4,), "c": (2,)}
TWO = (("a.w", "c"), "a.b")
START = noise(0, SHAPES)
NESTEROV = gradtx.sgd(0.7, momentum=0.9, nesterov=True)
OPTIONS = {
    "plain": {},
    "fragments": {"fragments": TWO},
    "mix": {"mix": 0.3},
    "delay": {"delay": 2},
    "all": {"fragments": TWO, "delay": 1, "mix": 0.25},
}
OUTERS = {
    "nesterov": (NESTEROV, lambda leaves: torch.optim.SGD(leaves, 0.7, momentum=0.9, nesterov=True)),
    "adamw": (gradtx.adamw(0.1, weight_decay=0.2), lambda leaves: torch.optim.AdamW(leaves, 0.1, weight_decay=0.2)),
    # The first update of a leaf is another one.
    "dampened": (
        gradtx.sgd(0.7, momentum=0.9, dampening=0.5),
        lambda leaves: torch.optim.SGD(leaves, 0.7, momentum=0.9, dampening=0.5),
    ),
}


def gradients(step, params, without=None, rank=0):
    """Those of one step on one rank; one leaf may have none in the first half of a run."""
    found = {name: noise(100 * rank + step, SHAPES)[name] + p.detach().sin() for name, p in params.items()}
    return {name: None if name == without and step < 16 else g for name, g in found.items()}


def loop(make_outer, every=6, fragments=None, delay=0, mix=0.0, steps=30, without=None, ranks=1):
    """The catalog's rule around torch's AdamW, in torchft's order: restore, outer step, save, blend.

    Returns the weights of each rank, and the global ones. With several ranks, only the last lacks gradients.
    """
    parts = [("a.w", "c"), ("a.b",)] if fragments else [tuple(SHAPES)]
    anchors, *of_ranks = ({name: torch.nn.Parameter(p.clone()) for name, p in START.items()} for _ in range(1 + ranks))
    inners, pending = [torch.optim.AdamW(params.values(), 0.1) for params in of_ranks], {}
    outers = [make_outer([anchors[name] for name in part]) for part in parts]
    gap = every // len(parts)
    for t in range(1, steps + 1):
        for rank, params in enumerate(of_ranks):
            for name, g in gradients(t, params, without if rank == ranks - 1 else None, rank).items():
                params[name].grad = g
            inners[rank].step()
        for i, part in enumerate(parts):
            if (t + delay) % every == (i + 1) * gap % every:
                for name in part:
                    pending[name] = sum((anchors[name] - params[name]).detach() for params in of_ranks) / ranks
            if t % every == (i + 1) * gap % every:
                for name in part:
                    anchors[name].grad = pending[name]
                outers[i].step()
                for params in of_ranks:
                    for name in part:
                        params[name].data.lerp_(anchors[name].data, 1 - mix)
    return [{name: p.detach() for name, p in tree.items()} for tree in (*of_ranks, anchors)]


def pure(tx, first=1, last=30, params=START, state=None, without=None):
    state = tx.init(params) if state is None else state
    for step in range(first, last + 1):
        updates, state = tx.update(gradients(step, params, without), state, params)
        params = gradtx.apply_updates(params, updates)
    return params, state


def stepped(optimizer, params, first=1, last=30, without=None):
    for step in range(first, last + 1):
        for name, g in gradients(step, params, without).items():
            params[name].grad = g
        optimizer.step()
    return params


def built(tx, **options):
    params = {name: torch.nn.Parameter(p.clone()) for name, p in START.items()}
    return gradtx.as_optimizer(tx, list(params.items()), **options), params


def adapted(tx, **options):
    optimizer, params = built(tx, **options)
    stepped(optimizer, params)
    with optimizer.eval_params():
        anchors = {name: p.detach().clone() for name, p in params.items()}
    return [{name: p.detach() for name, p in params.items()}, anchors]


@pytest.mark.parametrize("rule", OUTERS)
@pytest.mark.parametrize("option", OPTIONS)
def test_it_is_the_loop_over_thirty_steps(option, rule):
    tx, make_outer = OUTERS[rule]
    expected = loop(make_outer, **OPTIONS[option])
    tx = outer(gradtx.adamw(0.1), tx, 6, **OPTIONS[option])
    params, state = pure(tx)
    assert_close([params, tx.eval_params(state, params)], expected, 1e-12)
    assert_close(adapted(tx), expected, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["plain", "all"])
def test_compiled_steps_are_those_of_the_loop(option):
    expected = loop(OUTERS["nesterov"][1], **OPTIONS[option])
    assert_close(adapted(outer(gradtx.adamw(0.1), NESTEROV, 6, **OPTIONS[option]), compile=True), expected, 1e-12)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_leaf_without_a_gradient_synchronizes_and_keeps_its_own_count_of_inner_steps(option):
    tx, make_outer = OUTERS["adamw"]
    expected = loop(make_outer, **OPTIONS[option], without="c")
    tx = outer(gradtx.adamw(0.1), tx, 6, **OPTIONS[option])
    params, state = pure(tx, without="c")
    assert_close([params, tx.eval_params(state, params)], expected, 1e-12)
    optimizer, params = built(tx)
    assert_close({name: p.detach() for name, p in stepped(optimizer, params, without="c").items()}, expected[0], 1e-12)
    assert [int(state["step"]) for state in optimizer.state.values()] == [30, 30, 15]


def test_a_plain_outer_rate_is_lookahead_and_a_rate_of_one_is_the_inner_optimizer():
    inner = gradtx.adamw(0.1)
    for rate, same in ((0.4, gradtx.chain(inner, gradtx.lookahead(6, 0.4))), (1.0, inner)):
        expected, _ = pure(same)
        found, _ = pure(outer(inner, gradtx.scale_by_learning_rate(rate), 6))
        assert_close(found, expected, 1e-14)


def test_one_fragment_of_all_leaves_is_none():
    same = [outer(gradtx.adamw(0.1), NESTEROV, 6, delay=1, fragments=fragments) for fragments in (None, ("*",))]
    assert_same(*(pure(tx)[0] for tx in same))


def test_muloco_and_the_record_write_the_outer_step_in_other_ways():
    """MuLoCo's u, p = anchor - mu u - eta delta; record 13's buf of q - anchor, with maximize."""
    lr, mu, every = 0.9, 0.8, 3
    found, _ = pure(outer(gradtx.adamw(0.1), gradtx.sgd(lr, momentum=mu, nesterov=True), every))
    for kind in ("muloco", "record"):
        params = {name: torch.nn.Parameter(p.clone()) for name, p in START.items()}
        anchors, buffers = dict(START), {name: torch.zeros_like(p) for name, p in START.items()}
        inner = torch.optim.AdamW(params.values(), 0.1)
        for t in range(1, 31):
            for name, g in gradients(t, params).items():
                params[name].grad = g
            inner.step()
            for name, p in params.items() if t % every == 0 else ():
                away = p.detach() - anchors[name]
                if kind == "muloco":
                    buffers[name] = mu * buffers[name] - lr * away
                    anchors[name] = anchors[name] - mu * buffers[name] + lr * away
                else:
                    buffers[name] = mu * buffers[name] + away
                    anchors[name] = anchors[name] + lr * (away + mu * buffers[name])
                p.data.copy_(anchors[name])
        assert_close(found, {name: p.detach() for name, p in params.items()}, 1e-12)


def test_a_run_resumes_in_the_middle_of_an_interval():
    tx = outer(gradtx.adamw(0.1), NESTEROV, 3, delay=1, mix=0.2)
    expected, _ = pure(tx, last=17)
    params, state = pure(tx, last=7)
    assert_same(pure(tx, 8, 17, params, state)[0], expected)
    optimizer, params = built(tx)
    stepped(optimizer, params, last=7)
    again, _ = built(tx)
    values = {name: torch.nn.Parameter(p.detach().clone()) for name, p in params.items()}
    again = gradtx.as_optimizer(tx, list(values.items()))
    again.load_state_dict(optimizer.state_dict())
    stepped(again, values, 8, 17)
    assert_close({name: p.detach() for name, p in values.items()}, expected, 1e-13)


def test_inner_schedules_count_steps_and_outer_schedules_synchronizations():
    seen = {"inner": [], "outer": []}

    def rate(kind):
        def at(step):
            seen[kind].append(int(step))
            return 0.1 * 0.9**step

        return gradtx.Schedule(at)

    class Falling(torch.optim.SGD):
        def step(self):
            super().step()
            self.param_groups[0]["lr"] *= 0.9

    tx = outer(gradtx.adamw(0.1), gradtx.sgd(gradtx.Schedule(lambda n: 0.9**n)), 6, fragments=TWO)
    expected = loop(lambda leaves: Falling(leaves, 1.0), fragments=TWO)
    assert_close(pure(tx)[0], expected[0], 1e-12)
    assert_close(adapted(tx), expected, 1e-12)
    pure(outer(gradtx.sgd(rate("inner")), gradtx.sgd(rate("outer")), 6))
    assert (max(seen["inner"]), max(seen["outer"])) == (29, 4)


def test_outer_sums_are_those_of_a_fragment():
    class Clipped(torch.optim.SGD):
        def step(self):
            torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.1)
            super().step()

    tx = outer(gradtx.adamw(0.1), gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.sgd(0.7)), 6, fragments=TWO)
    expected = loop(lambda leaves: Clipped(leaves, 0.7), fragments=TWO)
    assert_close(pure(tx)[0], expected[0], 1e-5)  # torch divides by the norm plus 1e-6
    assert_close(adapted(tx), expected, 1e-5)


def test_a_batch_of_outer_rates_is_each_alone():
    def run(rate, mix):
        return pure(outer(gradtx.adamw(0.1), gradtx.sgd(rate, momentum=0.9), 2, mix=mix), last=5)[0]

    rates, mixes = torch.tensor([[0.5, 0.9], [0.0, 0.6]], dtype=torch.float64)
    run(0.5, 0.0)  # draws the data, which are cached, outside of vmap
    together = torch.vmap(run)(rates, mixes)
    for i, numbers in enumerate(zip(rates.tolist(), mixes.tolist(), strict=True)):
        assert_close({name: p[i] for name, p in together.items()}, run(*numbers), 1e-13)


def test_inner_entries_stand_beside_its_own_and_fragments_split_no_group():
    tx = outer(gradtx.adamw(0.1), NESTEROV, 6, fragments=TWO, delay=1)
    state = tx.init(START)
    assert state.keys() == {"step", "scale_by_adam", "outer"}
    assert state["outer"]["0"].keys() == {"step", "leaf_steps", "anchor", "pending", "trace"}
    assert list(state["outer"]["1"]["anchor"]) == ["a.b"]
    assert len(built(tx)[0].param_groups) == 1


SGD = gradtx.sgd(0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: outer(SGD, SGD, 5, fragments=TWO), "every must be divisible by the number of fragments, got 5 and 2"),
        (lambda: outer(SGD, SGD, 4, fragments=()), "every must be divisible by the number of fragments, got 4 and 0"),
        (lambda: outer(SGD, SGD, 4, fragments=TWO, delay=2), "delay must be less than every / fragments = 2, got 2"),
        (lambda: outer(SGD, SGD, 4, mix=1.5), r"outer: mix must be in \[0, 1\], got 1.5"),
        (lambda: outer(SGD, gradtx.sam(SGD), 4), "outer: tx needs grad_fn, but it receives differences of weights"),
        (lambda: outer(SGD, gradtx.adahessian(0.1), 4), "outer: tx needs hessian_diag"),
        (
            lambda: outer(SGD, SGD, 4, fragments=("a.*",)).init(START),
            "outer: fragments: leaf 'c' has no label; add a pattern",
        ),
        (lambda: outer(SGD, SGD, 4, fragments=("*", "d")).init(START), "outer: fragments: 'd' matches no leaf"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_pattern_and_no_process_group_is_refused_by_name():
    with pytest.raises(TypeError, match="outer: fragments must be a sequence of name patterns"):
        outer(SGD, SGD, 4, fragments=(lambda name, leaf: True,))
    with pytest.raises(TypeError, match="outer: fragments must be a sequence of name patterns"):
        outer(SGD, SGD, 4, fragments="abcd")
    with pytest.raises(TypeError, match="outer: process_group must be a process group that contains this rank"):
        outer(SGD, SGD, 4, process_group=3)
