"""Arguments of factories: which ranges follow from names, and how a user-defined factory replaces them."""

import functools
import re
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy
import pytest
import torch

import gradtx
from gradtx import AnyLength, Betas, Count, Decay, Decays, Fraction, NonNegative, Positive, Scalar, Schedule, Static
from gradtx.arguments import RANGES
from tests.conformance import assert_close, noise
from tests.rules import VECTORS, constant, ones, run


@gradtx.per_tensor
def scale_by_all(
    lr: Scalar = 0.1,
    betas: Betas = (0.9,),
    eps: Scalar = 0.1,
    weight_decay: Scalar = 0.0,
    momentum: Scalar = 0.0,
    alpha: Scalar = 0.5,
    beta: Scalar = 0.5,
    k: int = 5,
):
    return lambda update, state, param, ctx: (update, state)


@gradtx.per_tensor
def scale_by_typed(
    momentum: Decay = 0.5,
    alpha: Positive = 0.5,
    lr: Annotated[Scalar, "(-inf, inf)"] = 0.1,
    pair: tuple[Fraction, NonNegative | None] = (0.5, None),
    many: AnyLength[Decays] = (0.5,),
    mode: Literal["max", "mean"] | None = "max",
    shared: Static[Count] = 1,
):
    return lambda update, state, param, ctx: (update, state)


def test_five_names_have_ranges():
    assert sorted(RANGES) == ["betas", "eps", "lr", "momentum", "weight_decay"]


@pytest.mark.parametrize(
    ("name", "value", "interval"),
    [
        ("lr", -1.0, "[0, inf)"),
        ("betas", (1.0,), "[0, 1)"),
        ("eps", -1.0, "[0, inf)"),
        ("weight_decay", -1.0, "[0, inf)"),
        ("momentum", -1.0, "[0, inf)"),
    ],
)
def test_a_name_sets_the_range_in_a_user_defined_factory(name, value, interval):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        scale_by_all(**{name: value})
    shown, number = (f"{name}[0]", value[0]) if isinstance(value, tuple) else (name, value)
    assert str(error.value) == f"scale_by_all: {shown} must be in {interval}, got {number}"


def test_other_names_take_any_number_in_a_user_defined_factory():
    tx = scale_by_all(alpha=5.0, beta=-2.0, k=-1)
    assert (tx.hyperparams["alpha"], tx.hyperparams["beta"], tx.hyperparams["k"]) == (5.0, -2.0, -1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
        ({"alpha": 0.0}, "alpha must be in (0, inf), got 0.0"),
        ({"pair": (2.0, None)}, "pair[0] must be in [0, 1], got 2.0"),
        ({"pair": (1.0, -1.0)}, "pair[1] must be in [0, inf), got -1.0"),
        ({"pair": (0.5,)}, "pair must have 2 entries, got 1"),
        ({"many": (0.5, 0.5, 1.0)}, "many[2] must be in [0, 1), got 1.0"),
        ({"mode": "min"}, "mode must be 'max', 'mean' or None, got 'min'"),
        ({"shared": 0}, "shared must be in [1, inf), got 0"),
    ],
)
def test_the_types_of_arguments_say_which_values_are_valid(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(f'scale_by_typed: {message}')}$"):
        scale_by_typed(**wrong)


def test_valid_values_of_typed_arguments_are_hyperparameters_unless_static():
    tx = scale_by_typed(lr=-1.0, pair=(1.0, 3.0), many=(0.1, 0.2, 0.3), mode=None, shared=7)
    assert tx.hyperparams["lr"] == -1.0
    assert tx.hyperparams["pair"] == (1.0, 3.0)
    assert tx.hyperparams["many"] == (0.1, 0.2, 0.3)
    assert "shared" not in tx.hyperparams


@pytest.mark.parametrize("lr", [-1e-20, torch.zeros(1, 1)])
def test_rounding_errors_and_one_entry_tensors_are_accepted_as_torchs_schedules_write_them(lr):
    assert gradtx.adamw(lr=lr).hyperparams["lr"] == 0.0


# Numbers, tensors, schedules, and the one exception for a literal 0.0.


def test_an_int_where_a_number_is_annotated_becomes_a_float():
    tx = gradtx.adam(lr=1, betas=(0, 0.5))
    assert repr(tx.hyperparams["lr"]) == "1.0"
    assert repr(tx.hyperparams["betas"]) == "(0.0, 0.5)"


ZEROS = {
    "literal": (0.0, False),
    "int": (0, False),
    "tensor": (torch.tensor(0.0), True),
    "schedule": (Schedule(constant(0.0)), True),
}


@pytest.mark.parametrize(("zero", "kept"), ZEROS.values(), ids=ZEROS)
def test_only_a_literal_zero_leaves_a_slot_out(zero, kept):
    assert ("trace" in gradtx.sgd(momentum=zero).init(ones())) == kept
    assert ("params" in gradtx.sgd(weight_decay=zero).needs) == kept
    assert ("regenerate_towards_init" in gradtx.adam_atan2(regen_reg_rate=zero).init(ones())) == kept


@pytest.mark.parametrize("off", [True, False])
def test_an_optimizer_passes_on_the_literal_that_means_off_in_its_interval(off):
    known = []

    @gradtx.per_tensor(elementwise=True)
    def damp(factor: Annotated[gradtx.Scalar, "[0, 1]; off at 1"] = 1.0):
        def update(g, state, p, ctx):
            known.append(gradtx.is_off(factor, 1.0))
            return factor * g, state

        return update

    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    gradtx.as_optimizer(damp(1.0 if off else 0.0), [weight]).step()
    assert set(known) == {off}


def test_scion_without_momentum_keeps_none_in_an_optimizer():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = gradtx.optim.Scion([weight], momentum=1.0)
    weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert set(optimizer.state[weight]) == {"step"}


@pytest.mark.parametrize("zero", [torch.tensor(0.0), Schedule(constant(0.0))], ids=["tensor", "schedule"])
def test_a_zero_that_is_no_literal_gives_the_same_updates(zero):
    for name in ("momentum", "weight_decay"):
        general, literal = gradtx.sgd(lr=0.1, **{name: zero}), gradtx.sgd(lr=0.1, **{name: 0.0})
        assert_close(run(general, 3)[0], run(literal, 3)[0], rtol=1e-7)  # one unit in the last place of float32


def test_replace_may_cross_the_line_of_the_literal_zero():
    tx = gradtx.sgd(momentum=0.0)
    heavy = tx.replace(momentum=0.9)
    assert "trace" in heavy.init(ones())
    assert "trace" not in heavy.replace(momentum=0.0).init(ones())
    with pytest.raises(ValueError, match="state lacks 'trace' of leaf 'a'"):
        heavy.update(ones(), tx.init(ones()))


def test_schedules_see_the_number_of_finished_updates():
    rates = []
    tx = gradtx.sgd(lr=Schedule(lambda step: 1.0 + step))
    state = tx.init(ones())
    for _ in range(3):
        updates, state = tx.update(ones(), state)
        rates.append(-updates["c"].item())
    assert rates == [1.0, 2.0, 3.0]


def test_an_entry_of_betas_may_be_a_tensor_or_a_schedule():
    plain = gradtx.scale_by_adam(betas=(0.5, 0.9))
    mixed = gradtx.scale_by_adam(betas=(torch.tensor(0.5), gradtx.constant_schedule(0.9)))
    params = noise(1, VECTORS)
    # the general formula in float64 tensors: rounding only
    assert_close(run(mixed, 3, params, params)[0], run(plain, 3, params, params)[0], rtol=1e-13)


def test_a_tensor_that_is_written_in_place_is_followed_at_the_next_step():
    lr = torch.tensor(1.0)
    tx = gradtx.sgd(lr=lr)
    lr.fill_(3.0)
    assert run(tx, 1)[0]["c"] == -3.0


def test_known_names_and_flags_need_no_annotation():
    @gradtx.per_tensor
    def scale_by_known(lr, betas=(0.9, 0.99), eps=1e-8, momentum=0.0, weight_decay=0.0, nesterov=False):
        return lambda update, state, param, ctx: (update, state)

    tx = scale_by_known(1, nesterov=True)
    assert tx.hyperparams == {
        "lr": 1.0,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "nesterov": True,
    }
    with pytest.raises(ValueError, match=r"^scale_by_known: eps must be in \[0, inf\), got -1.0$"):
        scale_by_known(0.1, eps=-1.0)
    with pytest.raises(TypeError, match=r"^scale_by_known: nesterov must be a bool, got 1$"):
        scale_by_known(0.1, nesterov=1)


def test_a_number_that_determines_structure_is_plain_and_in_its_range():
    @gradtx.per_tensor
    def keep(
        share: Annotated[float | int, "(0, 1]"] = 0.5,
        steps: tuple[Count, ...] = (1, 2),
        block: Count | Literal["row"] = "row",
    ):
        return lambda update, state, param, ctx: (update, state)

    keep(1, [3], 4)
    for arguments, error, message in [
        ({"share": 0.0}, ValueError, r"share must be in \(0, 1\], got 0.0"),
        ({"share": torch.tensor(0.5)}, TypeError, r"share must be a plain number, got tensor\(0.5\)"),
        ({"steps": 3}, TypeError, "steps must be a list of ints, got 3"),
        ({"steps": (3, 0)}, ValueError, r"steps\[1\] must be in \[1, inf\), got 0"),
        ({"block": "column"}, ValueError, "block must be 'row' or an int, got 'column'"),
        ({"block": 0}, ValueError, r"block must be in \[1, inf\), got 0"),
    ]:
        with pytest.raises(error, match=f"^keep: {message}$"):
            keep(**arguments)


def test_one_need_may_be_named_without_a_tuple():
    @gradtx.per_tensor(needs="params", agree="size")
    def pull(size: Scalar = 1.0):
        return lambda update, state, param, ctx: (update + size * param, state)

    assert pull().needs == ("params",)


class Listed(Sequence):
    """A sequence that is no list, as those of OmegaConf."""

    def __init__(self, entries):
        self.entries = [Listed(entry) if isinstance(entry, list) else entry for entry in entries]

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        return self.entries[index]


TRIPLE = [3.0, -4.0, 2.0]
ANY_SEQUENCE = pytest.mark.parametrize("sequence", [list, Listed, numpy.array, torch.tensor])


@ANY_SEQUENCE
@pytest.mark.parametrize(
    ("factory", "name", "entries"),
    [
        (gradtx.adamw, "betas", [0.5, 0.75]),
        (gradtx.adafactor, "eps", [0.5, 0.25]),
        (gradtx.muon, "ns_coefficients", TRIPLE),
        (gradtx.muon, "ns_coefficients", [TRIPLE, TRIPLE]),
        (gradtx.orthogonalize, "coefs", [TRIPLE, TRIPLE]),
        (gradtx.orthogonalize, "mixture", [0.5, 0.5]),
        (functools.partial(gradtx.multistep_schedule, 0.1), "milestones", [3, 6]),
        (functools.partial(gradtx.blocks, gradtx.sgd(), "*"), "sizes", [1, 2]),
        (functools.partial(gradtx.blocks, gradtx.sgd(), "*", sizes=(1, 2)), "heads", [1, 2]),
    ],
)
def test_any_sequence_of_numbers_does_what_a_tuple_does(sequence, factory, name, entries):
    weights, results = {"w": torch.eye(3)}, []
    for value in (gradtx.base.inputs.as_tuples(entries), sequence(entries)):
        made = factory(**{name: value})
        is_schedule = isinstance(made, Schedule)
        results.append(made(4) if is_schedule else made.update(weights, made.init(weights), weights)[0]["w"])
    assert results[0] == results[1] if isinstance(results[0], float) else torch.equal(*results)


@pytest.mark.parametrize("sequence", [list, Listed, numpy.array])
def test_any_sequence_of_patterns_selects_what_a_tuple_does(sequence):
    where = sequence(["a", "b"])
    for tx in (
        gradtx.freeze(where),
        gradtx.partition({"x": gradtx.freeze("*"), "y": gradtx.sgd(lr=1.0)}, {"x": where, "y": "*"}),
    ):
        weights = {name: torch.ones(1) for name in "abc"}
        updates, _ = tx.update(weights, tx.init(weights), weights)
        assert [name for name in updates if updates[name].any()] == ["c"]


@ANY_SEQUENCE
def test_any_sequence_of_numbers_may_stand_in_a_group_and_be_saved(sequence, tmp_path):
    params, betas = torch.nn.Parameter(torch.ones(2)), sequence([0.5, 0.75])
    optimizer = gradtx.optim.AdamW([{"params": [params], "betas": betas}], betas=sequence([0.9, 0.95]))
    params.grad = torch.ones(2)
    optimizer.step()
    optimizer.param_groups[0]["betas"] = betas
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    loaded = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert list(map(float, loaded["param_groups"][0]["betas"])) == [0.5, 0.75]


def test_a_number_of_numpy_is_a_number():
    assert gradtx.adamw(numpy.float32(0.5)).hyperparams == gradtx.adamw(numpy.array(0.5)).hyperparams
