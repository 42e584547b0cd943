"""The adapter equals the functional loop, run in place."""

import pytest
import torch

import gradtx
from tests.optim.chains import CHAINS, WARM_UP
from tests.optim.problems import assert_close, assert_equal, descend, functional, parameters, values
from tests.tiers import by_day

# Hyperparameters are 0-d float64 tensors in the adapter and Python numbers in the loop: `log` and `1 - beta` may differ
# in the last bit of float64, which thirty steps amplify to about 1e-14.
TOLERANCE = 1e-12


def trained(tx, steps=30, dtype=torch.float64, **options):
    params = parameters(dtype)
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    descend(optimizer, params, steps, **options)
    return params, optimizer


@by_day(
    "identity", "nested partition", "masked by predicate", "accumulate", "skip", "accumulate around skip",
    "skip around a masked accumulation", "record", "plain functions", "slots that change places", "average", "twice",
    "adopt", "regenerate", "dadapt_sgd", "schedule free",
)  # fmt: skip
@pytest.mark.parametrize("name", CHAINS)
def test_thirty_steps_equal_the_functional_loop(name):
    params, _ = trained(CHAINS[name])
    expected, _ = functional(CHAINS[name], parameters(), 30)
    assert_close(params.values(), expected.values(), TOLERANCE)


@by_day(
    "identity", "nested partition", "masked by predicate", "accumulate", "skip", "accumulate around skip",
    "skip around a masked accumulation", "record", "plain functions", "slots that change places", "average", "twice",
    "adopt", "regenerate", "dadapt_sgd", "schedule free",
)  # fmt: skip
@pytest.mark.parametrize("name", CHAINS)
def test_parameters_of_different_dtypes_equal_the_functional_loop(name):
    def mixed():
        dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
        params = zip(parameters().items(), dtypes, strict=True)
        return {name: torch.nn.Parameter(param.detach().to(dtype)) for (name, param), dtype in params}

    params = mixed()
    descend(gradtx.as_optimizer(CHAINS[name], list(params.items())), params, 6)
    expected, _ = functional(CHAINS[name], mixed(), 6)
    for key, param in params.items():
        # A single rounding of the dtype may go the other way; here, plain functions keep half-precision slots, and in
        # the functional loop their own float32 tree.
        tolerance = {torch.float64: 1e-6, torch.float32: 1e-6}.get(param.dtype, 2e-2)
        torch.testing.assert_close(param.detach(), expected[key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["accumulate", "accumulate a partition", "skip", "record", "average", "random"])
def test_steps_without_some_gradients_equal_the_functional_loop_where_no_bias_correction_counts(name):
    def skip(leaf, t):
        return (t + len(leaf)) % 4 == 0 and leaf != "body.weight"

    params, _ = trained(CHAINS[name], skip=skip)
    expected, _ = functional(CHAINS[name], parameters(), 30, skip)
    assert_close(params.values(), expected.values(), TOLERANCE)


def test_skip_nonfinite_around_accumulate_takes_leaves_without_gradient():
    tx = CHAINS["skip an accumulation"]

    def skip(leaf, t):
        return (t + len(leaf)) % 4 == 0

    params, _ = trained(tx, skip=skip)
    expected, _ = functional(tx, parameters(), 30, skip)
    assert_close(params.values(), expected.values(), TOLERANCE)


@pytest.mark.parametrize("state_dtype", [None, torch.float32])
def test_bfloat16_parameters_equal_the_functional_loop_bit_for_bit(state_dtype):
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=WARM_UP, state_dtype=state_dtype))
    params, optimizer = trained(tx, dtype=torch.bfloat16)
    expected, state = functional(tx, parameters(torch.bfloat16), 30)
    assert_equal(values(params), values(expected))
    for name, param in params.items():
        kept = optimizer.state[param]["exp_avg"]
        assert kept.dtype == (state_dtype or torch.bfloat16)
        # Only 0-d leaves are combined with the adapter's 0-d float64 hyperparameters in float64 rather than float32.
        assert_close([kept], [state["scale_by_adam"]["exp_avg"][name]], 1e-6)


def test_state_holds_the_slots_of_the_functional_state():
    tx = gradtx.chain(gradtx.ema(0.5), gradtx.record("norm"), gradtx.adam(lr=1e-2), gradtx.lookahead(k=3))
    params, optimizer = trained(tx, steps=7)
    _, state = functional(tx, parameters(), 7)
    for name, param in params.items():
        own = optimizer.state[param]
        pairs = [
            (own["exp_avg"], state["ema"]["exp_avg"][name]),
            (own["scale_by_adam.exp_avg"], state["scale_by_adam"]["exp_avg"][name]),
            (own["exp_avg_sq"], state["scale_by_adam"]["exp_avg_sq"][name]),
            (own["slow"], state["lookahead"]["slow"][name]),
            (own["norm"], state["record"]["norm"]),
        ]
        assert_close(*zip(*pairs, strict=True), tolerance=TOLERANCE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_skip_nonfinite_leaves_parameters_and_inner_state_bit_identical(bad):
    params = parameters()
    optimizer = gradtx.as_optimizer(gradtx.skip_nonfinite(gradtx.adamw(lr=0.1)), list(params.items()))
    descend(optimizer, params, 3)
    before = values(params), values(optimizer.state[param]["exp_avg"] for param in params.values())
    for param in params.values():
        param.grad = torch.full_like(param, bad)
    optimizer.step()
    assert_equal((values(params), values(optimizer.state[param]["exp_avg"] for param in params.values())), before)
    state = optimizer.state[params["head.scale"]]
    assert (state["skipped"].item(), state["skip_nonfinite.step"].item()) == (1, 3)


INSIDE_SKIP = {
    "adamw": gradtx.adamw(lr=0.1),
    "stale clip": gradtx.chain(gradtx.clip_by_global_norm(0.1, stale=True), gradtx.adamw(lr=0.1)),
    "accumulate": gradtx.accumulate(gradtx.adamw(lr=0.1), every=2),
    "prodigy": gradtx.prodigy(lr=1.0),
}


@gradtx.per_tensor(elementwise=True, compiles=False)
def unchanged():
    return lambda update, state, param, ctx: (update, state)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("in_programs", [True, False])
@pytest.mark.parametrize("name", INSIDE_SKIP)
def test_a_skip_in_the_first_step_of_an_optimizer_counts_as_in_the_functional_loop(name, in_programs, grouped):
    inner = INSIDE_SKIP[name]
    tx = gradtx.skip_nonfinite(inner if in_programs else gradtx.chain(unchanged(), inner))
    params, plain = parameters(), {key: param.detach() for key, param in parameters().items()}
    groups = [{"params": [pair]} for pair in params.items()] if grouped else list(params.items())
    optimizer, state = gradtx.as_optimizer(tx, groups), tx.init(plain)
    for t in range(8):
        gradients = {key: torch.full_like(param, 0.1 * t + 0.3) for key, param in plain.items()}
        if t in (0, 3, 5):
            gradients["head.scale" if t else "body.weight"].fill_(torch.nan)
        for key, param in params.items():
            param.grad = gradients[key].clone()
        if t == 3:
            state_dict, optimizer = optimizer.state_dict(), gradtx.as_optimizer(tx, groups)
            optimizer.load_state_dict(state_dict)
        optimizer.step()
        updates, state = tx.update(gradients, state, plain)
        plain = gradtx.apply_updates(plain, updates)
        shared, expected = optimizer.state[params["body.weight"]], state["skip_nonfinite"]
        assert (shared["skip_nonfinite.step"], shared["skipped"]) == (expected["step"], expected["skipped"])
        if name == "accumulate":
            assert shared["mini_step"] == expected["accumulate"]["mini_step"]
    assert_close(params.values(), plain.values(), TOLERANCE)


def test_parameters_that_are_not_contiguous_move_as_contiguous_ones():
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamp(lr=0.1), gradtx.lookahead(k=2))
    matrix, image = torch.randn(6, 4, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    for strided in (
        matrix.t().contiguous().t(),
        matrix.clone()[:, ::2],
        image.clone().to(memory_format=torch.channels_last),
    ):
        odd, plain = torch.nn.Parameter(strided), torch.nn.Parameter(strided.detach().contiguous().clone())
        for param in (odd, plain):
            descend(gradtx.as_optimizer(tx, [param]), {"w": param}, 6)
        assert odd.stride() != plain.stride()
        # Different strides change the order of summation.
        assert_close([odd], [plain], TOLERANCE)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_in_either_layout_step_over_lists(layout):
    param = torch.nn.Parameter(torch.ones(2, 3, 2, 2).to(memory_format=layout))
    optimizer = gradtx.optim.AdamW([param])
    descend(optimizer, {"w": param}, 1)
    assert [step.way for step in optimizer.explain()] == ["lists"]


def test_updates_of_a_step_do_not_depend_on_the_order_of_parameters():
    tx = gradtx.chain(gradtx.clip_by_global_norm(0.1), gradtx.adam(lr=0.1))
    forth, back = parameters(), parameters()
    descend(gradtx.as_optimizer(tx, list(forth.items())), forth, 5)
    descend(gradtx.as_optimizer(tx, list(back.items())[::-1]), back, 5)
    assert_equal(values(forth), values(back))


@pytest.mark.parametrize("name", [name for name in CHAINS if "accumulat" not in name])  # there, None counts as zero
def test_a_step_without_any_gradient_moves_nothing(name):
    params, optimizer = trained(CHAINS[name], steps=2)
    before = values(params)
    optimizer.zero_grad()
    optimizer.step()
    assert_equal(values(params), before)


def test_a_rule_may_keep_the_gradient_itself():
    @gradtx.per_tensor
    def keep():
        def init(param):
            return {"previous": torch.zeros_like(param)}

        def update(update, state, param, ctx):
            return -update, {"previous": update}

        return init, update

    params = parameters()
    optimizer = gradtx.as_optimizer(keep(), params.values())
    descend(optimizer, params, 1)
    kept = values(optimizer.state[param]["previous"] for param in params.values())
    optimizer.zero_grad(set_to_none=False)
    assert_equal(values(optimizer.state[param]["previous"] for param in params.values()), kept)
