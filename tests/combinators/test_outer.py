"""Outer optimizers in one process, compared with plain loops in float64; several processes: tests/distributed."""

import pytest
import torch

import gradtx
from gradtx import TopK, outer
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
    # Chunks of five: two and a shorter one of the first leaf, a shorter one of each other leaf.
    "compress": {"compress": TopK(2, 5, 0.9)},
    "all compressed": {"fragments": TWO, "delay": 1, "mix": 0.25, "compress": TopK(1, 5, 0.5)},
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


def largest(x, k, chunk):
    """SparseLoCo's choice: the k entries with the largest magnitudes of each chunk, and 0 elsewhere."""
    sent = torch.zeros_like(x).flatten()
    for start in range(0, x.numel(), chunk):
        magnitudes = x.flatten()[start : start + chunk].abs().tolist()
        for i in sorted(range(len(magnitudes)), key=lambda i: -magnitudes[i])[:k]:
            sent[start + i] = x.flatten()[start + i]
    return sent.view(x.shape)


def loop(
    make_outer, every=6, fragments=None, delay=0, mix=0.0, compress=None, steps=30, without=None, ranks=1, errors=None
):
    """The catalog's rule around torch's AdamW, in torchft's order: restore, outer step, save, blend.

    With `compress`, each rank sends the largest entries of e + delta, and keeps the rest in e, here `errors`, by rank
    and name. Returns the weights of each rank, and the global ones. With several ranks, only the last lacks gradients.
    """
    parts = [("a.w", "c"), ("a.b",)] if fragments else [tuple(SHAPES)]
    anchors, *of_ranks = ({name: torch.nn.Parameter(p.clone()) for name, p in START.items()} for _ in range(1 + ranks))
    inners, pending = [torch.optim.AdamW(params.values(), 0.1) for params in of_ranks], {}
    outers = [make_outer([anchors[name] for name in part]) for part in parts]
    errors = {} if errors is None else errors
    errors.update({(rank, name): torch.zeros_like(p) for rank in range(ranks) for name, p in START.items()})

    def sent(rank, name):
        delta = (anchors[name] - of_ranks[rank][name]).detach()
        if compress is None:
            return delta
        e = compress.decay * errors[rank, name] + delta
        chosen = largest(e, compress.k, compress.chunk)
        errors[rank, name] = e - chosen
        return chosen

    gap = every // len(parts)
    for t in range(1, steps + 1):
        for rank, params in enumerate(of_ranks):
            for name, g in gradients(t, params, without if rank == ranks - 1 else None, rank).items():
                params[name].grad = g
            inners[rank].step()
        for i, part in enumerate(parts):
            if (t + delay) % every == (i + 1) * gap % every:
                for name in part:
                    pending[name] = sum(sent(rank, name) for rank in range(ranks)) / ranks
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
@pytest.mark.parametrize("option", ["plain", "all", "compress", "all compressed"])
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


@pytest.mark.parametrize("compress", [None, TopK(2, 5)])
def test_a_run_resumes_in_the_middle_of_an_interval(compress):
    tx = outer(gradtx.adamw(0.1), NESTEROV, 3, delay=1, mix=0.2, compress=compress)
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


@pytest.mark.parametrize("compress", [None, TopK(2, 5)])
def test_a_batch_of_outer_rates_is_each_alone(compress):
    def run(rate, mix):
        tx = outer(gradtx.adamw(0.1), gradtx.sgd(rate, momentum=0.9), 2, mix=mix, compress=compress)
        return pure(tx, last=5)[0]

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


def test_two_synchronizations_with_compression_by_hand():
    tx = outer(gradtx.sgd(1.0), gradtx.sgd(0.5), 1, compress=TopK(k=1, chunk=2, decay=0.5))
    params = {"w": torch.zeros(3)}
    state = tx.init(params)
    updates, state = tx.update({"w": torch.tensor([4.0, -6.0, 1.0])}, state, params)
    assert_same(updates, {"w": torch.tensor([0.0, 3.0, -0.5])})  # sent: [0, -6] and [1], of which the rate takes half
    assert_same(state["outer"]["error"], {"w": torch.tensor([4.0, 0.0, 0.0])})
    params = gradtx.apply_updates(params, updates)
    updates, state = tx.update({"w": torch.tensor([1.0, 2.0, 0.0])}, state, params)
    assert_same(updates, {"w": torch.tensor([-1.5, 0.0, 0.0])})  # 4 / 2 + 1 is more than 2
    assert_same(state["outer"]["error"], {"w": torch.tensor([0.0, 2.0, 0.0])})


@pytest.mark.parametrize("option", OPTIONS)
def test_all_entries_of_a_chunk_are_no_compression(option):
    options = {**OPTIONS[option], "compress": None}
    expected, _ = pure(outer(gradtx.adamw(0.1), NESTEROV, 6, **options))
    params, state = pure(outer(gradtx.adamw(0.1), NESTEROV, 6, **{**options, "compress": TopK(4, 4)}))
    assert_close(params, expected, 1e-14)
    errors = state["outer"]["0"]["error"] if "fragments" in options else state["outer"]["error"]
    assert all(not error.any() for error in errors.values())


def test_the_error_is_in_float32_at_least_and_a_skipped_leaf_keeps_it():
    tx = gradtx.apply_if(outer(gradtx.sgd(1.0), gradtx.sgd(1.0), 1, compress=TopK(1, 2)), lambda step: step == 1)
    params = {"w": torch.zeros(2, dtype=torch.bfloat16)}
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update({"w": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)}, state, params)
    error = state["apply_if"]["outer"]["error"]["w"]
    assert_same(error, torch.tensor([1.0, 0.0]))


def test_entries_of_complex_leaves_count_as_two():
    tx = outer(gradtx.sgd(1.0), gradtx.sgd(0.7, momentum=0.9), 2, compress=TopK(2, 4))
    start = torch.arange(6.0) - 2
    states = []
    for values in (start, torch.view_as_complex(start.view(3, 2))):
        params, grads = {"w": values}, {"w": values.flip(0)}
        state = tx.init(params)
        for _ in range(4):
            updates, state = tx.update(
                grads if values.is_complex() else {"w": start.view(3, 2).flip(0).flatten()}, state, params
            )
            params = gradtx.apply_updates(params, updates)
        states.append([params["w"], state["outer"]["error"]["w"]])
    assert_close([torch.view_as_real(x).flatten() for x in states[1]], states[0], 1e-6)


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
        (lambda: TopK(0), r"TopK: k must be in \[1, chunk\] = \[1, 4096\], got 0"),
        (lambda: TopK(9, 8), r"TopK: k must be in \[1, chunk\] = \[1, 8\], got 9"),
        (lambda: TopK(1, 0), r"TopK: chunk must be in \[1, inf\), got 0"),
        (lambda: TopK(decay=1.5), r"TopK: decay must be in \[0, 1\], got 1.5"),
        (lambda: TopK(decay=float("nan")), r"TopK: decay must be in \[0, 1\], got nan"),
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
    with pytest.raises(TypeError, match=r"outer: compress must be a gradtx\.TopK or None, got 0\.1"):
        outer(SGD, SGD, 4, compress=0.1)
    with pytest.raises(TypeError, match=r"TopK: k must be an int, got 0\.5"):
        TopK(0.5)
    with pytest.raises(TypeError, match="TopK: decay must be a number, got None"):
        TopK(decay=None)
    with pytest.raises(TypeError, match="outer: process_group must be a process group that contains this rank"):
        outer(SGD, SGD, 4, process_group=3)
