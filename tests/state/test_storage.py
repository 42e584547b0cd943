"""`state_dtype`: which slots are coded, and what holds for coded slots in pure use."""

import copy
import pickle

import pytest
import torch

import gradtx
from gradtx import Codec, chain, with_state_dtype
from gradtx.state.codes import CODES
from tests.conformance import assert_same
from tests.tiers import by_day

NAMES = list(CODES)
ENTRYWISE = [name for name, codec in CODES.items() if codec.shapes_of is None]


def params_of(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv": (32, 3, 7, 7), "matrix": (64, 128), "odd": (50, 101), "small": (10,), "vector": (8192,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def train(tx, params, state, steps, first=0, **extras):
    for i in range(first, first + steps):
        grads = {name: torch.randn_like(p) for name, p in params_of(seed=100 + i).items()}
        for name, p in params.items():
            generator = torch.Generator().manual_seed(1000 * i + len(name))
            grads[name] = torch.randn(p.shape, generator=generator).to(p.dtype)
        updates, state = tx.update(grads, state, params, **extras)
        params = gradtx.apply_updates(params, updates)
    return params, state


def slots(state, stage="scale_by_adam"):
    return {
        slot: {leaf: (t.dtype, tuple(t.shape)) for leaf, t in leaves.items()} for slot, leaves in state[stage].items()
    }


# Which slots.


def test_int8_codes_large_leaves_in_the_shape_of_their_parameter():
    state = slots(gradtx.adam(state_dtype="int8").init(params_of()))
    assert list(state) == ["exp_avg", "exp_avg.scale", "exp_avg_sq", "exp_avg_sq.scale"]
    assert state["exp_avg"]["matrix"] == (torch.int8, (64, 128))
    assert state["exp_avg_sq"]["matrix"] == (torch.uint8, (64, 128))
    assert state["exp_avg.scale"]["matrix"] == (torch.float32, (64, 2))
    assert state["exp_avg.scale"]["odd"] == (torch.float32, (50, 2))
    assert state["exp_avg.scale"]["conv"] == (torch.float32, (32, 3))
    assert state["exp_avg.scale"]["vector"] == (torch.float32, (128,))
    assert state["exp_avg"]["small"] == (torch.float32, (10,))
    assert "small" not in state["exp_avg.scale"]


def test_int4_halves_the_last_dimension():
    state = slots(gradtx.adam(state_dtype="int4").init(params_of()))
    assert state["exp_avg"]["matrix"] == (torch.int8, (64, 64))
    assert state["exp_avg_sq"]["odd"] == (torch.uint8, (50, 51))
    assert state["exp_avg_sq.scale"]["odd"] == (torch.float32, (50, 4))


def test_a_dict_chooses_by_slot_and_the_first_match_counts():
    tx = gradtx.adam(state_dtype={"exp_avg": "int8", "*_sq": torch.bfloat16, "*": "int4"})
    state = slots(tx.init(params_of()))
    assert state["exp_avg"]["small"][0] is torch.int8  # named: whatever its size
    assert state["exp_avg_sq"]["matrix"][0] is torch.bfloat16
    assert list(state) == ["exp_avg", "exp_avg.scale", "exp_avg_sq"]


def test_a_pattern_without_match_is_an_error_that_lists_the_slots():
    tx = gradtx.adam(state_dtype={"momentum*": "int8", "*": "int8"})
    message = r"pattern 'momentum\*' matches no slot of the chain; its slots: exp_avg, exp_avg_sq"
    with pytest.raises(ValueError, match=message):
        tx.init(params_of())
    with pytest.raises(ValueError, match=message):
        gradtx.as_optimizer(tx, [torch.zeros(64, 64, requires_grad=True)])


def test_numbers_factors_and_bases_stay_as_they_are():
    params = {"w": torch.randn(128, 128)}
    state = gradtx.soap(state_dtype="int8").init(params)["scale_by_soap"]
    moments = state.pop("scale_by_adam_hat")
    assert moments["exp_avg"]["w"].dtype == torch.int8
    assert moments["exp_avg_sq"]["w"].dtype == torch.uint8
    assert {slot: leaves["w"].dtype for slot, leaves in state.items()} == dict.fromkeys(
        ("GG_0", "GG_1", "Q_0", "Q_1"), torch.float32
    )
    factored = gradtx.scale_by_factored_rms(state_dtype="int8").init(params)["scale_by_factored_rms"]
    assert {t["w"].dtype for t in factored.values() if isinstance(t, dict)} == {torch.float32}
    named = gradtx.scale_by_factored_rms(state_dtype={"exp_avg_sq_row": "int8"}).init(params)["scale_by_factored_rms"]
    assert named["exp_avg_sq_row"]["w"].dtype == torch.uint8


@pytest.mark.parametrize("code", ENTRYWISE)
def test_a_pattern_without_wildcard_codes_a_number(code):
    tx = gradtx.nadam(lr=0.01, state_dtype={"mu_product": code, "exp_avg": code})
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(4, 4, 64, generator=generator)
    params = {"w": start}
    state = tx.init(params)
    weight = torch.nn.Parameter(start.clone())
    optimizer = gradtx.as_optimizer(tx, [("w", weight)])
    for gradient in gradients:
        updates, state = tx.update({"w": gradient}, state, params)
        params = gradtx.apply_updates(params, updates)
        weight.grad = gradient
        optimizer.step()
    number = gradtx.get(state, "mu_product")["w"]
    assert number.ndim == 0
    assert number.dtype.itemsize < 4
    torch.testing.assert_close(optimizer.state[weight]["mu_product"], number)
    torch.testing.assert_close(weight.detach(), params["w"])


def test_min_size_is_an_argument_of_with_state_dtype():
    params = {"w": torch.zeros(10)}
    state = with_state_dtype(gradtx.adam(), "int8", min_size=10).init(params)
    assert state["scale_by_adam"]["exp_avg"]["w"].dtype == torch.int8
    state = with_state_dtype(gradtx.adam(), "int8", min_size=11).init(params)
    assert state["scale_by_adam"]["exp_avg"]["w"].dtype == torch.float32


def test_with_state_dtype_has_the_state_and_the_hyperparameters_of_what_it_holds():
    inner = chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=0.1))
    tx = with_state_dtype(inner, "int8")
    assert dict(tx.hyperparams) == dict(inner.hyperparams)
    state = tx.init(params_of())
    assert list(state) == list(inner.init(params_of()))
    assert tx.replace(lr=0.5).hyperparams["lr"] == 0.5
    assert repr(tx).endswith("adamw(lr=0.1)), 'int8')")
    assert_same(pickle.loads(pickle.dumps(tx)).init(params_of()), state)


def test_a_link_inside_keeps_its_state_dtype():
    tx = with_state_dtype(chain(gradtx.trace(0.9), gradtx.scale_by_adam(state_dtype=torch.float64)), "int8")
    state = tx.init(params_of())
    assert state["trace"]["momentum_buffer"]["matrix"].dtype == torch.int8
    assert state["scale_by_adam"]["exp_avg"]["matrix"].dtype == torch.float64


def test_integer_slots_never_change():
    @gradtx.per_tensor(elementwise=True)
    def counted():
        def init(param):
            return {"count": torch.zeros_like(param, dtype=torch.int32), "past": torch.zeros_like(param)}

        def update(update, state, param, ctx):
            return update, {"count": state["count"] + 1, "past": update}

        return init, update

    for choice in ("int8", {"count": "int8", "*": "int8"}):
        tx = counted(state_dtype=choice)
        _, state = train(tx, params_of(), tx.init(params_of()), 3)
        assert state["counted"]["count"]["matrix"].dtype == torch.int32
        assert (state["counted"]["count"]["matrix"] == 3).all()


def test_errors_at_construction():
    with pytest.raises(TypeError, match=r"adam: state_dtype must be a .* got 'int9'; did you mean 'int[48]'"):
        gradtx.adam(state_dtype="int9")
    with pytest.raises(TypeError, match=r"got torch.int32; or a code, 'int8', .*a Codec, or a dict"):
        gradtx.adam(state_dtype=torch.int32)
    with pytest.raises(TypeError, match="state_dtype has the key 3, needs a slot pattern"):
        gradtx.adam(state_dtype={3: "int8"})
    with pytest.raises(ValueError, match="state_dtype is empty"):
        gradtx.adam(state_dtype={})
    with pytest.raises(ValueError, match="min_size must be a non-negative int, got -1"):
        with_state_dtype(gradtx.adam(), "int8", min_size=-1)


# What holds.


@pytest.mark.parametrize("name", ENTRYWISE)
def test_a_coded_run_stays_near_the_run_in_float32(name):
    bars = {"int8": 0.02, "int4": 0.06, "float8": 0.01, "bfloat16+8": 1e-5, "bfloat16:stochastic": 1e-3}
    plain, coded = gradtx.adam(lr=1e-2), gradtx.adam(lr=1e-2, state_dtype=name)
    expected, _ = train(plain, params_of(), plain.init(params_of()), 10)
    actual, _ = train(coded, params_of(), coded.init(params_of()), 10)
    for leaf in expected:
        error = (actual[leaf] - expected[leaf]).square().mean().sqrt()
        assert error <= bars[name], (leaf, error)  # of a way of about 0.05


@pytest.mark.parametrize("name", NAMES)
def test_resuming_is_bitwise(name, tmp_path):
    tx = gradtx.adamw(lr=1e-2, state_dtype=name)
    params, state = train(tx, params_of(), tx.init(params_of()), 3)
    torch.save(state, tmp_path / "state.pt")
    gradtx.save(tmp_path / "run.safetensors", params, state)
    expected = train(tx, params, state, 2, first=3)
    assert_same(train(tx, params, torch.load(tmp_path / "state.pt", weights_only=True), 2, first=3), expected)
    loaded = gradtx.load(tmp_path / "run.safetensors", params, tx.init(params))
    assert_same(train(tx, *loaded, 2, first=3), expected)
    assert_same(train(tx, params, copy.deepcopy(state), 2, first=3), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_safetensors_file_of_another_precision_is_an_error(name, tmp_path):
    plain, coded, params = gradtx.adamw(), gradtx.adamw(state_dtype=name), params_of()
    for ours, other in ((plain, coded), (coded, plain)):
        gradtx.save(tmp_path / "run", params, ours.init(params))
        with pytest.raises(ValueError, match=r"build them as for the saved run, with its state_dtype"):
            gradtx.load(tmp_path / "run", params, other.init(params))


ROUNDED = {
    **{code: (lambda code=code: gradtx.adamw(lr=0.1, state_dtype=code), torch.float32) for code in NAMES},
    "stochastic": (lambda: chain(gradtx.sgd(lr=0.1), gradtx.round_stochastically()), torch.bfloat16),
    "compensated": (lambda: chain(gradtx.sgd(lr=0.1), gradtx.compensate_rounding(8)), torch.bfloat16),
    "compensated half": (lambda: chain(gradtx.sgd(lr=0.1), gradtx.compensate_rounding(8)), torch.float16),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_members_of_an_ensemble_are_coded_and_rounded_as_one_model_is(name):
    """On torch before 2.13, too, whose `vmap` does not view bits as another dtype."""
    make, dtype = ROUNDED[name]
    members = [{"w": params_of(dtype, seed)["matrix"]} for seed in range(3)]
    params = gradtx.stack(members)
    state = torch.vmap(make().init)(params)
    updates, state = torch.vmap(make().update)(params, state, params)
    for member, found in zip(members, gradtx.unstack((updates, state)), strict=True):
        tx = make()
        with gradtx.eagerly():  # programs round each operation in their own order
            assert_same(found, tx.update(member, tx.init(member), member))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch.func.jvp's
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap of grad", "grad of vmap"])
def test_a_derivative_through_a_code_is_refused_with_slot_and_remedy(name, transform):
    tx = with_state_dtype(gradtx.sgd(lr=0.1, momentum=0.9), name, min_size=1)

    def final(lr):
        changed = tx.replace(lr=lr)
        params = {"w": torch.ones(70)}
        state = changed.init(params)
        for _ in range(3):
            updates, state = changed.update({"w": params["w"].sin()}, state, params)
            params = gradtx.apply_updates(params, updates)
        return params["w"].sum()

    lr = torch.tensor(0.1)
    calls = {
        "grad": lambda: torch.func.grad(final)(lr),
        "jvp": lambda: torch.func.jvp(final, (lr,), (lr,)),
        "vmap of grad": lambda: torch.vmap(torch.func.grad(final))(lr.repeat(2)),
        "grad of vmap": lambda: torch.func.grad(lambda lrs: torch.vmap(final)(lrs).sum())(lr.repeat(2)),
    }
    with pytest.raises(ValueError, match=r"trace.momentum_buffer: cannot differentiate .* state_dtype=.*detach"):
        calls[transform]()


@by_day(
    "accumulate-int8", "accumulate-float8", "accumulate-bfloat16:stochastic", "skip_nonfinite-int4",
    "skip_nonfinite-bfloat16+8", "lookahead-int8", "lookahead-float8", "lookahead-bfloat16:stochastic",
    "partition-int4", "partition-bfloat16+8", "chain-int8", "chain-float8", "chain-bfloat16:stochastic",
)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: gradtx.accumulate(tx, every=2),
        gradtx.skip_nonfinite,
        lambda tx: chain(tx, gradtx.lookahead(2, 0.5)),
        lambda tx: gradtx.partition({"a": tx, "b": gradtx.sgd()}, {"a": ("matrix", "odd", "vector"), "b": "*"}),
        lambda tx: chain(gradtx.trace(0.9), tx),
    ],
    ids=["accumulate", "skip_nonfinite", "lookahead", "partition", "chain"],
)
def test_codes_work_inside_and_on_combinators(name, wrap):
    coded = with_state_dtype(wrap(gradtx.adam(lr=1e-2)), name)
    plain = wrap(gradtx.adam(lr=1e-2))
    actual, state = train(coded, params_of(), coded.init(params_of()), 6)
    expected, _ = train(plain, params_of(), plain.init(params_of()), 6)
    for leaf in expected:  # four bits are few for the weights that lookahead keeps
        assert (actual[leaf] - expected[leaf]).square().mean().sqrt() <= (0.1 if name == "int4" else 0.03)
    assert coded.eval_params(state, actual)["matrix"].shape == (64, 128)


@pytest.mark.parametrize("code", ["int4", "factored"])
def test_accumulate_takes_none_for_a_coded_sum(code):
    tx = with_state_dtype(gradtx.accumulate(gradtx.sgd(lr=1.0), every=2), code)
    params = params_of()
    state = tx.init(params)
    _, state = tx.update(params, state)
    partly = {name: p if name == "small" else None for name, p in params.items()}
    with pytest.raises(ValueError, match="cannot be derived from the packed codes of 'acc': call update"):
        tx.update(partly, state)
    updates, _ = tx.update(partly, state, params)
    for name, p in params.items():
        assert updates[name].shape == p.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_of_other_dtypes(dtype):
    tx = gradtx.adamw(lr=1e-2, state_dtype="int8")
    params, state = train(tx, params_of(dtype), tx.init(params_of(dtype)), 3)
    assert state["scale_by_adam"]["exp_avg"]["matrix"].dtype == torch.int8
    assert state["scale_by_adam"]["exp_avg"]["small"].dtype == dtype
    assert params["matrix"].isfinite().all()


def test_rules_see_decoded_values_in_the_wide_dtype():
    seen = []

    @gradtx.per_tensor(elementwise=True, compiles=False)  # a program's rule would be called to record it as well
    def looking():
        def init(param):
            return {"past": [torch.zeros_like(param), torch.ones_like(param)]}

        def update(update, state, param, ctx):
            seen.append([t.dtype for t in state["past"]])
            return update, {"past": [update, state["past"][1]]}

        return init, update

    tx = looking(state_dtype="int8")
    params = {"w": torch.ones(64, 64, dtype=torch.bfloat16)}
    _, state = tx.update(params, tx.init(params))
    assert seen == [[torch.float32, torch.float32]]
    assert list(state["looking"]) == ["past_0", "past_0.scale", "past_1", "past_1.scale"]


def test_a_codec_of_a_user():
    tenth = Codec(
        lambda values, scale: (values / scale * 10).round().to(torch.int8),
        lambda codes, scale: codes.to(scale.dtype) / 10 * scale,
        block=32,
    )
    tx = gradtx.sgd(momentum=0.9, state_dtype=tenth)
    params, state = train(tx, params_of(), tx.init(params_of()), 3)
    assert state["trace"]["momentum_buffer"]["matrix"].abs().max() == 10
    assert state["trace"]["momentum_buffer.scale"]["matrix"].shape == (64, 4)
    assert params["matrix"].isfinite().all()
    halves = Codec(lambda values: values.half(), lambda codes: codes.float())
    _, state = train(gradtx.adam(state_dtype=halves), params_of(), gradtx.adam(state_dtype=halves).init(params_of()), 2)
    assert state["scale_by_adam"]["exp_avg"]["matrix"].dtype == torch.float16
    assert state["scale_by_adam"]["exp_avg"]["small"].dtype == torch.float32


def test_codes_of_blocks_can_round_at_random():
    stochastic = Codec(
        lambda values, scale, noise: (values / scale * 10 + noise / 2**16).floor().to(torch.int8),
        lambda codes, scale: codes.float() / 10 * scale,
        block=32,
        random=True,
        name="stochastic",
    )
    tx = gradtx.trace(0.5, state_dtype=stochastic)
    gradient = torch.linspace(-1, 1, 64 * 70).reshape(64, 70)
    state = tx.init(torch.zeros(64, 70))
    sum_ = torch.zeros(64, 70)
    for _ in range(400):
        update, state = tx.update(gradient, state)
        sum_ += update
    # Rounding to nearest would be off by up to 0.1 of the scale.
    torch.testing.assert_close(sum_ / 400, 2 * gradient, rtol=0, atol=0.05)


def halved(values):
    return values.half()


@pytest.mark.parametrize(
    ("encode", "decode", "options", "error"),
    [
        (lambda values, scale: values, torch.clone, {}, r"encode must be a function of \(values\), got <lambda>"),
        (torch.clone, halved, {"parts": ("low",)}, r"decode must be a function of \(codes, low\), got halved"),
        (None, torch.clone, {"block": 64}, r"encode must be a function of \(values, scale\), got None"),
        (torch.clone, torch.clone, {"packs": 4}, "packs must be 1 or 2, got 4"),
        (torch.clone, torch.clone, {"name": "int8"}, "'int8' is a built-in code; give your Codec another name"),
        (torch.ravel, torch.clone, {}, r"'mine': encode must return \(codes\) of shape \(64, 65\), got tensor"),
        (lambda values: None, torch.clone, {}, r"'mine': encode must return \(codes\) of shape \(64, 65\), got None"),
        (halved, halved, {}, r"'mine': decode must return float32 values of shape \(64, 65\), got torch.float16"),
        (halved, torch.ravel, {}, r"'mine': decode must return float32 values of shape \(64, 65\)"),
    ],
)
def test_errors_name_the_function_of_a_codec(encode, decode, options, error):
    def step():
        codec = Codec(encode, decode, **{"name": "mine", **options})
        tx = gradtx.sgd(momentum=0.9, state_dtype=codec)
        params = {"matrix": torch.ones(64, 65)}
        tx.update(params, tx.init(params))

    with pytest.raises((TypeError, ValueError), match=error):
        step()


PAIRS = Codec(lambda values: (4 * values).round().clamp(-8, 7).to(torch.int8), lambda codes: codes / 4, packs=2)


COUNTS = Codec(lambda values: (4096 * values).round().to(torch.int16), lambda codes: codes.float() / 4096)


@pytest.mark.parametrize("state_dtype", [PAIRS, COUNTS, {"exp_avg": COUNTS}], ids=["packed", "codes", "named"])
def test_codes_without_scales_are_recognized_in_a_nested_state(state_dtype):
    tx = gradtx.ema(0.5, state_dtype=state_dtype)
    params = {"matrix": torch.full((64, 65), 2.5), "small": torch.full((5,), 2.5)}
    updates, state = tx.update(params, tx.init(params))
    updates, state = tx.update(params, state)
    assert {name: update.unique().tolist() for name, update in updates.items()} == {"matrix": [1.875], "small": [1.875]}
    is_coded = {name: not value.is_floating_point() for name, value in state["ema"]["exp_avg"].items()}
    assert is_coded == {"matrix": True, "small": state_dtype not in (PAIRS, COUNTS)}


def test_a_named_slot_whose_packed_codes_would_hide_its_shape_stays_in_float32():
    params = {"odd": torch.ones(5, 3), "even": torch.ones(6, 3)}
    tx = gradtx.scale_by_factored_rms(state_dtype={"exp_avg_sq_row": "int4"})
    updates, state = tx.update(params, tx.init(params), params)
    rows = state["scale_by_factored_rms"]["exp_avg_sq_row"]
    assert (rows["odd"].dtype, rows["odd"].shape) == (torch.float32, (5,))
    assert (rows["even"].dtype, rows["even"].shape) == (torch.uint8, (3,))
    assert all(update.isfinite().all() for update in updates.values())


def test_shared_values_change_only_where_they_are_named():
    tx = gradtx.prodigy(state_dtype={"d": torch.float32, "*": "int8"})
    state = tx.init(params_of())
    assert gradtx.get(state, "d").dtype == torch.float32
    assert gradtx.get(gradtx.prodigy(state_dtype="int8").init(params_of()), "d").dtype == torch.float64
    with pytest.raises(ValueError, match="'d' is a shared scalar and cannot be coded; choose a floating-point dtype"):
        gradtx.prodigy(state_dtype={"d": "int8"}).init(params_of())


# What 16-bit weights do not round away.


def weights_after(tx, steps, gradient, dtype, start=1.0):
    """The weights after some steps with gradients `gradient(step)`, and what to evaluate with."""
    weight = torch.nn.Parameter(torch.full((3,), start, dtype=dtype))
    optimizer = gradtx.as_optimizer(tx, [("w", weight)])
    for step in range(steps):
        weight.grad = torch.full_like(weight, gradient(step))
        optimizer.step()
    with optimizer.eval_params():
        return weight.detach().clone()[0].item()


SLOW = {
    # From 1 to 2 in the first step: 2 - 0.999^2999.
    "average": (lambda: chain(gradtx.sgd(lr=1.0), gradtx.average(0.999)), 3000, lambda t: -float(t == 0), 1.9503),
    # Ten times a hundredth of five steps of 0.01.
    "lookahead": (lambda: chain(gradtx.sgd(lr=0.1), gradtx.lookahead(alpha=0.01)), 50, lambda t: 0.1, 0.995),
    "with_lookahead": (lambda: gradtx.with_lookahead(gradtx.sgd(lr=0.1), alpha=0.01), 50, lambda t: 0.1, 0.995),
    # The mean of 0.999, 0.998, ..., 0.5.
    "schedule_free_sgd": (lambda: gradtx.schedule_free_sgd(lr=1e-3), 500, lambda t: 1.0, 0.7495),
    "outer": (lambda: gradtx.outer(gradtx.sgd(lr=0.1), gradtx.sgd(lr=0.01), 2), 100, lambda t: 0.1, 0.99),
    "accumulate": (lambda: gradtx.accumulate(gradtx.sgd(lr=1.0), 1000), 1000, lambda t: 1.0, 0.0),
}


def test_the_lengths_of_rows_grow_beside_16_bit_weights():
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        params = {"w": torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=dtype)}
        tx = gradtx.scale_by_muown(lr=1e-3)
        state = tx.init(params)
        for _ in range(100):
            _, state = tx.update({"w": -params["w"]}, state, params)
        ends.append(state["scale_by_muown"]["magnitude"]["w"].float())
    torch.testing.assert_close(ends[0], torch.full((2, 1), 2.1), rtol=0, atol=0.02)
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SLOW)
def test_small_increments_arrive_beside_16_bit_weights(name, dtype):
    make, steps, gradient, expected = SLOW[name]
    rounding = torch.finfo(dtype).eps
    assert weights_after(make(), steps, gradient, torch.float32) == pytest.approx(expected, abs=1e-4)
    assert weights_after(make(), steps, gradient, dtype) == pytest.approx(expected, abs=rounding)


def test_a_scale_that_is_learned_from_tiny_steps_grows_beside_16_bit_weights():
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.ones(2, dtype=dtype))
        optimizer = gradtx.as_optimizer(gradtx.mechanize(gradtx.sgd(lr=1.0)), [weight])
        for _ in range(40):
            weight.grad = weight.detach().clone()
            optimizer.step()
        ends.append(weight.detach().float())
    torch.testing.assert_close(ends[1], ends[0], rtol=0.0, atol=0.02)


def test_sums_of_squares_grow_beside_16_bit_weights_unless_state_dtype_says_otherwise():
    params = {"w": torch.full((2,), 100.0, dtype=torch.bfloat16)}
    for state_dtype, total in ((None, 2000.0), (torch.bfloat16, 256.0)):
        tx = gradtx.scale_by_rss(initial_accumulator_value=0.0, state_dtype=state_dtype)
        state = tx.init(params)
        for _ in range(2000):
            _, state = tx.update({"w": torch.ones(2, dtype=torch.bfloat16)}, state, params)
        (slots,) = (entry for key, entry in state.items() if key != "step")
        assert slots["sum"]["w"].tolist() == [total] * 2


def test_memory_counts_float32_for_sums_beside_16_bit_weights():
    params = {"w": torch.zeros(1000, dtype=torch.bfloat16)}
    tx = gradtx.accumulate(gradtx.adam(), every=4)
    assert gradtx.memory(tx, params).slots == {
        "acc": 4000,
        "seen": 1,
        "leaf_steps": 8,
        "exp_avg": 2000,
        "exp_avg_sq": 2000,
    }
    assert gradtx.memory(gradtx.with_state_dtype(tx, torch.bfloat16), params).slots["acc"] == 2000


def test_a_checkpoint_with_16_bit_sums_loads_into_float32(tmp_path):
    tx = chain(gradtx.trace(0.9), gradtx.lookahead(k=2))
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
    optimizer = gradtx.as_optimizer(tx, [("w", weight)])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    saved = optimizer.state_dict()
    narrow = {**saved["state"][0], "slow": saved["state"][0]["slow"].bfloat16()}
    optimizer.load_state_dict({**saved, "state": {0: narrow}})
    assert optimizer.state[weight]["slow"].dtype == torch.float32
    assert torch.equal(optimizer.state[weight]["slow"], narrow["slow"].float())

    params = {"w": weight.detach()}
    state = tx.init(params)
    gradtx.save(tmp_path / "run", params, {**state, "lookahead": {"slow": params}})
    _, loaded = gradtx.load(tmp_path / "run", params, state)
    assert torch.equal(loaded["lookahead"]["slow"]["w"], weight.detach().float())


# 16-bit weights under rules that amplify errors: orthogonalization, roots of statistics, eigenbases.

EARLY = {"start_preconditioning_step": 5, "preconditioning_compute_steps": 5}
MATRIX_METHODS = {
    "adam_h": {},
    "adamuon": {},
    "aurora": {},
    "conda": {},
    "contra_muon": {},
    "dion": {"rank": 8},
    "dion2": {},
    "distributed_shampoo": {},
    "fira": {"rank": 8},
    "galore": {"rank": 8},
    "kl_shampoo": {},
    "kl_soap": {},
    "muon": {},
    "muon_adam_atan2": {},
    "muon_eq": {},
    "mano": {},
    "asgo": {},
    "cosmos": {"rank": 8},
    "namo_d": {},
    "adago": {},
    "aro": {},
    "mousse": {"precondition_frequency": 2},
    "mud": {},
    "muon_h": {},
    "muown": {},
    "namo": {},
    "normuon": {},
    "polar_adam_atan2": {},
    "polargrad": {},
    "psgd_kron": {"precondition_frequency": 1, "precond_lr": 0.5},
    "psgd_pro": {},
    "scalable_shampoo": EARLY,
    "scion": {},
    "shampoo": {"momentum": 0.9},
    "soap": {},
    "soap_laprop": {},
    "soap_muon": {},
    "spectral_sphere": {},
    "splus": {},
}


def matrix_gradients(kind, steps):
    """Gradients of rank 3, or whose singular values fall to 1e-8 of the first, or full of noise."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator).double())[0] for n in (24, 16))
    sizes = {"rank 3": torch.arange(16) < 3, "falling": 10.0 ** (-torch.arange(16.0) / 4), "noise": torch.ones(16)}
    for _ in range(steps):
        inside = sizes[kind] * torch.randn(16, 16, generator=generator).double() * sizes[kind][:, None]
        yield {"w": (0.01 * left[:, :16] @ inside @ right.T).bfloat16()}


def moved(tx, kind, steps=40):
    """The sum of all updates of a matrix in bfloat16 that stays where it is."""
    params = {"w": (0.1 * torch.randn(24, 16, generator=torch.Generator().manual_seed(1))).bfloat16()}
    state, total = tx.init(params), torch.zeros(24, 16, dtype=torch.float64)
    for grads in matrix_gradients(kind, steps):
        updates, state = tx.update(grads, state, params)
        total += updates["w"].double()
    return total


@pytest.mark.parametrize("kind", ["rank 3", "falling", "noise"])
@pytest.mark.parametrize("name", MATRIX_METHODS)
@by_day("muon-*", "muon_h-*", "distributed_shampoo-*", "kl_shampoo-*", "soap-*", "conda-*", "dion-*", "psgd_kron-*")
def test_a_bfloat16_matrix_moves_with_its_own_state_as_far_as_with_float32_state(name, kind):
    # What stays in bfloat16, such as squares, is off by 2**-9; without amplification the sum is off by as much.
    factory = getattr(gradtx, name)
    options = MATRIX_METHODS[name]
    exact = moved(factory(**options, state_dtype=torch.float32), kind)
    assert (moved(factory(**options), kind) - exact).norm() <= 0.01 * exact.norm()


def test_momentum_before_a_link_that_amplifies_is_float32_and_behind_it_is_not():
    params = {"w": torch.ones(4, 4, dtype=torch.bfloat16)}
    before = gradtx.chain(gradtx.trace(0.9), gradtx.clip_by_global_norm(1.0), gradtx.orthogonalize())
    behind = gradtx.chain(gradtx.orthogonalize(), gradtx.trace(0.9))
    around = gradtx.chain(gradtx.trace(0.9), gradtx.skip_nonfinite(before))
    inside = gradtx.chain(gradtx.trace(0.9), gradtx.partition({"all": gradtx.orthogonalize()}, {"all": "*"}))
    for tx in (before, around, inside):
        assert tx.init(params)["trace"]["momentum_buffer"]["w"].dtype == torch.float32
    assert behind.init(params)["trace"]["momentum_buffer"]["w"].dtype == torch.bfloat16
    chosen = gradtx.with_state_dtype(before, torch.bfloat16)
    assert chosen.init(params)["trace"]["momentum_buffer"]["w"].dtype == torch.bfloat16


def test_squares_stay_in_the_dtype_of_the_weights_under_links_that_amplify():
    params = {"w": torch.ones(4, 4, dtype=torch.bfloat16)}
    slots = gradtx.soap().init(params)["scale_by_soap"]
    assert slots["scale_by_adam_hat"]["exp_avg_sq"]["w"].dtype == torch.bfloat16
    assert slots["scale_by_adam_hat"]["exp_avg"]["w"].dtype == slots["GG_0"]["w"].dtype == torch.float32
