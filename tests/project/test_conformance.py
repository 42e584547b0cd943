"""What every rule, alias and combinator must do; whatever has a `.spec` in `gradtx.__all__` joins by itself."""

import functools
import gc
import inspect
import io
import math
import re
import weakref

import pytest
import torch
from torch.utils._pytree import keystr, tree_map_with_path

import gradtx
from tests.conformance import (
    ALL_SHAPES,
    FUNCTIONS,
    after_a_bad_gradient,
    all_cases,
    assert_close,
    assert_finite,
    assert_own_memory,
    assert_same,
    example,
    extras,
    factories,
    field,
    first_state,
    functions,
    layout,
    noise,
    plain_cases,
    plain_links,
    residuals,
    snapshot,
    step,
    step_extras,
    tensors,
    train,
    untouched,
)
from tests.signatures import RECORD, signatures
from tests.tiers import by_day, each_case, each_set

PLAIN, ALL, PLAIN_LINKS = plain_cases(), all_cases(), plain_links()
EDGES = {"zero_d": (), "vector": (3,), "empty": (0,), "empty_rows": (0, 2), "matrix": (2, 3), "conv": (2, 3, 2, 2)}

each = functools.partial(pytest.mark.parametrize, ids=lambda value: getattr(value, "__name__", str(value)))


@each("factory", factories())
def test_the_arguments_of_the_examples_are_enough_to_call_a_factory(factory):
    """Without them, a factory has no case of any property."""
    name, arguments = factory.__name__, factory.spec.arguments.all
    required = ", ".join(f'"{each.name}": ...' for each in arguments if each.required)
    try:
        tx = factory(**example(factory))
    except (TypeError, ValueError) as error:
        pytest.fail(f'{error}; add to EXAMPLES of tests/examples.py: "{name}": lambda tx: {{{required}}},')
    assert isinstance(tx, gradtx.GradientTransformation)


def test_the_table_holds_what_the_decorators_made():
    names = {factory.__name__ for factory in factories()}
    assert {"adam", "sgd", "scale", "partition", "masked", "freeze", "accumulate", "skip_nonfinite"} <= names
    assert {factory.spec.kind for factory in factories()} <= {"rule", "tree", "alias", "combinator"}


def test_every_float_hyperparameter_is_changed_in_some_case():
    changed = {}
    for case in ALL:
        changed.setdefault(case.factory.__name__, set()).update(map(str, case.floats()))
    for factory in factories():
        for argument in factory.spec.arguments.all:
            if argument.kind == "scalar" and argument.is_hyperparameter:  # no static number
                assert argument.name in changed[factory.__name__]
            elif argument.kind == "betas":
                entries = {f"{argument.name}[{i}]" for i in range(len(argument.default))}
                assert entries <= changed[factory.__name__]


def test_names_defaults_and_ranges_are_the_recorded_ones():
    """After a deliberate change: `python -m tests.signatures`."""
    assert signatures() == RECORD.read_text(encoding="utf-8").splitlines()


def error_of(call, *arguments, **options):
    """The text of the error that a call raises, or an empty one."""
    try:
        call(*arguments, **options)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


@each("given", [math.nan, "x", None])
def test_what_is_no_number_is_refused_with_the_name_of_the_argument(given):
    for case in PLAIN:
        for argument in case.factory.spec.arguments.all:
            if argument.kind in ("scalar", "int", "betas") and not (given is None and argument.optional):
                told = error_of(case.make, **{argument.name: given})
                assert re.search(rf"\b{argument.name}\b", told), (str(case), argument.name, told)


# The sign and the rate are in the updates that these return.
OWNERS = [
    "descend", "mechanize", "scale_by_a2grad", "scale_by_accsgd", "scale_by_adafactor", "scale_by_adafactor_torch",
    "scale_by_adamod", "scale_by_amos", "scale_by_asgd", "scale_by_cocob", "scale_by_dogleg", "scale_by_ftrl",
    "scale_by_hessian_free", "scale_by_levenberg_marquardt", "scale_by_local_smoothness", "scale_by_madgrad",
    "scale_by_momo", "scale_by_momo_adam", "scale_by_muown", "scale_by_polyak", "scale_by_prodigy_schedule_free",
    "scale_by_ranger21", "scale_by_rprop", "scale_by_schedule_free_plus", "scale_by_spring", "scale_by_srmm",
    "scale_by_swats", "schedule_free", "trac",
]  # fmt: skip


def test_behind_an_owner_of_the_learning_rate_stands_neither_a_rate_nor_a_decay_nor_an_optimizer():
    found = []
    for case in PLAIN_LINKS:
        told = error_of(gradtx.chain, case.make(), gradtx.scale_by_learning_rate(0.1))
        if f"{case} owns the learning rate" in told:
            found.append(str(case))
            for later in (gradtx.add_decayed_weights(0.1), gradtx.prodigy(), gradtx.scale_by_adamod()):
                told = error_of(gradtx.chain, case.make(), later)
                assert "owns the learning rate and returns the final update, so" in told, (str(case), str(later))
    assert sorted(found) == OWNERS


# Shapes, dtypes, memory.


def in_wide(params):
    """The layout of updates, which are rounded when they are added."""
    wide = {}
    for path, (shape, dtype) in layout(params).items():
        wide[path] = shape, torch.promote_types(dtype, torch.float32)
    return wide


# Sums, slow weights and averages are float32 beside 16-bit weights; other slots may have the same names.
WIDE = {
    *("abs_sum", "acc", "alphak", "anchor", "avg", "avg_grad", "average", "ax", "b_sq", "ema", "exp_avg_slow"),
    *(
        "grad_sum",
        "grad_sum_sq",
        "length",
        "m_sq",
        "magnitude",
        "mov_avg_param",
        "n",
        "reward",
        "s",
        "sk",
        "slow",
        "sum",
    ),
    *("v", "x", "z"),
    *(f"{name}_{i}" for name in ("accumulator", "factor_matrices", "pre_cond", "statistics") for i in range(4)),
}


def refuses(tx, params):
    """Whether the weights are float16, and the link takes derivatives, which would round to 0 there; says so."""
    if not functions(tx) or params[next(iter(params))].dtype != torch.float16:
        return False
    with pytest.raises(TypeError, match="in which derivatives of residuals round to 0"):
        tx.init(params)
    return True


# A slot in float32 is seen in float64 only; what is wrong in float16 shows in the test of leaves of all ranks too.
@each("dtype", [torch.float64, torch.float16])
@each_case
def test_updates_and_slots_keep_shapes_and_dtypes(case, dtype):
    params, grads, tx = case.noise(1, dtype=dtype), case.noise(2, dtype=dtype), case.make()
    if refuses(tx, params):
        return
    first = tx.init(params)
    updates, state = step(tx, grads, first, params)
    assert layout(updates) == in_wide(params)
    assert layout(state) == layout(first)
    for path, (shape, kept) in layout(first).items():
        own = kept.is_floating_point and shape != () and "['members']" not in path
        allowed = {dtype}
        if not own:
            allowed |= {torch.float64, torch.int64, torch.bool, torch.float32}
        elif dtype == torch.float16 or not WIDE.isdisjoint(re.findall(r"'(\w+)'", path)):
            # Beside float16, all but what is in the space of gradients: tests/optim/steps/test_float16.py.
            allowed.add(torch.float32)
        assert kept in allowed, path


# A link that asks for the gradient elsewhere gets it at weights in bf16, of another value than in float32. A link that
# rounds weights does nothing in float32.
@each_case
def test_a_bf16_update_is_the_float32_one(case):
    tx = case.make()
    params, grads = case.noise(1, dtype=torch.bfloat16), case.noise(2, dtype=torch.bfloat16)
    wide_params, wide_grads = ({name: x.float() for name, x in tree.items()} for tree in (params, grads))
    start = tx.init(params)
    narrow, narrow_state = step(tx, grads, start, params)
    # From the same numbers: a state that starts with others than 0 was rounded when it was made.
    rounded = tensors(start)
    wide_start = tree_map_with_path(lambda path, slot: rounded[keystr(path)].to(slot.dtype), tx.init(wide_params))
    wide, wide_state = step(tx, wide_grads, wide_start, wide_params)
    narrow_slots, wide_slots = tensors(narrow_state), tensors(wide_state)
    if narrow_slots.keys() != wide_slots.keys():  # slow weights are copies in float32, and float32 weights themselves
        assert_close(narrow, wide, rtol=1e-5, atol=1e-7)
        return
    assert_same(narrow, wide)
    for path, slot in narrow_slots.items():
        assert torch.equal(slot, wide_slots[path].to(slot.dtype)), path


@each_case
def test_state_dtype_decides_what_slots_are_kept_in(case):
    params = case.noise(1, dtype=torch.bfloat16)
    tx = case.make(state_dtype=torch.float32)
    state = tx.init(params)
    updates, state = step(tx, case.noise(2, dtype=torch.bfloat16), state, params)
    assert layout(updates) == in_wide(params)
    kept = {path: tensor.dtype for path, tensor in tensors(state).items() if tensor.ndim and "members" not in path}
    assert {path: dtype for path, dtype in kept.items() if dtype != torch.float32} == {}


@each_case
def test_updates_leave_every_input_bit_identical_and_share_no_memory_with_it(case):
    params, grads, tx = case.noise(1), case.noise(2), case.make()
    state = tx.init(params)
    assert_own_memory(state, params)
    for _ in range(2):
        given = extras(tx, params)
        with untouched(params, grads, state, given):
            updates, new = tx.update(grads, state, params, **given)
            tx.eval_params(state, params)
        assert_own_memory([updates, new], grads, params, state, given)
        state = new


@pytest.mark.parametrize("way", ["programs", "rules"])
@each_case
def test_tensors_of_a_finished_update_do_not_wait_for_the_garbage_collector(case, way, monkeypatch):
    if way == "rules":
        monkeypatch.setattr(gradtx.pure.tree_plan, "update", lambda call: None)
    gc.freeze()  # so that the collector goes through what this test makes only, not through all programs
    tx, params = case.make(), case.noise()
    state = first_state(tx, params)
    _, state = step(tx, case.noise(1), state, params)
    gc.collect()
    gc.disable()
    try:
        first = first_state(tx, params)
        grads = case.noise(2)
        updates, _later = step(tx, grads, state, params)
        used = [*tensors([first, grads, updates, state]).values()]
        references = list(map(weakref.ref, used))
        del first, grads, updates, state, used
        assert [reference for reference in references if reference() is not None] == []
    finally:
        gc.enable()


@each_case
def test_a_leaf_without_gradient_stays_as_it_is(case):
    params, tx = case.noise(1), case.make()
    state = tx.init(params)
    absent = list(params)[max(-2, -len(params))]
    grads = {**case.noise(2), absent: None}
    updates, new = step(tx, grads, state, params)
    assert_same(gradtx.apply_updates(params, updates)[absent], params[absent])
    before, after = tensors(state), tensors(new)
    for path in before:
        if path.endswith(f"['{absent}']"):
            assert_same(after[path], before[path])
    first, rest = _without(absent, tx, params)
    given = extras(tx, rest) | {name: x for name, x in extras(tx, params).items() if name == "value"}  # the same loss
    for name in given.keys() & FUNCTIONS.keys() - {"loss_of_outputs"}:  # with the leaf as a constant
        given[name] = lambda tree: residuals({**tree, absent: params[absent]})
    alone, _ = tx.update({name: grads[name] for name in rest}, first, rest, **given)
    del updates[absent]
    # `outer` also steps the leaf without a gradient, so no program runs; one may round another way.
    assert_close(updates, alone, 1e-15 if case.factory is gradtx.outer else 0.0)


def _without(name, tx, params):
    rest = {key: value for key, value in params.items() if key != name}
    return tx.init(rest), rest


# Numbers, tensors, schedules.


KINDS = (
    lambda value: value,
    lambda value: torch.tensor(value, dtype=torch.float64),
    lambda value: gradtx.Schedule(lambda step: value),
)


@each_set
def test_floats_as_tensors_or_schedules_change_neither_structure_nor_result(case, places):
    params, grads = case.noise(1), case.noise(2)
    changes = [{place: place.value for place in places}]
    for shift in range(len(KINDS)):  # each float is of each kind once, between floats of the other kinds
        kinds = [KINDS[(i + shift) % len(KINDS)] for i in range(len(places))]
        if set(kinds) != {KINDS[0]}:  # which is the first
            changes.append({place: kind(place.value) for place, kind in zip(places, kinds, strict=True)})
    results = []
    for change in changes:
        tx = case.make(change)
        state = tx.init(params)
        for _ in range(2):
            updates, state = step(tx, grads, state, params)
        results.append((updates, state))
    for result in results[1:]:
        assert layout(result) == layout(results[0])
        # float64 scalars of the general formula against Python floats: the last bits of some sums.
        assert_close(result, results[0], rtol=1e-12, atol=1e-12)


WEIGHTS = noise(9, ALL_SHAPES)


def _objective(params):
    return sum((WEIGHTS[name] * p).sum() for name, p in params.items())


def _is_zero(case, place):
    value = case.example.hyperparams[place.name]
    return (value if place.index is None else value[place.index]) == 0.0


# What to do about what is not finite.
SLOPES = (
    "write roots with safe_sqrt, divisions with quotient, and norms with norm of gradtx/maths/entries.py: torch's own "
    "have the derivative inf or NaN at 0, and `where` does not hide it, since NaN times 0 is NaN"
)
VALUES = (
    "divide with quotient(a, b, floor=eps) of gradtx/maths/entries.py, which is 0 where both are 0, and take maxima "
    "with largest, which empty leaves have, too"
)


@each("what", ["zero_gradient", "both"])  # zero parameters alone found nothing more when every safe root was plain
@each_case
def test_derivatives_at_zero_are_finite(case, what):
    params, grads = case.noise(1), case.noise(2)
    grads = {name: torch.zeros_like(g) for name, g in grads.items()}
    if what == "both":
        params = {name: torch.zeros_like(p) for name, p in params.items()}
    places = [place for place in next(iter(case.float_sets()), []) if not (_is_zero(case, place) and not case.label)]
    floats = {place: torch.tensor(place.value, dtype=torch.float64).requires_grad_() for place in places}
    named = {f"the hyperparameter {place}": number for place, number in floats.items()}
    named |= {f"the weight '{name}'": p for name, p in params.items()}
    named |= {f"the gradient of '{name}'": g for name, g in grads.items()}
    for tensor in named.values():
        tensor.requires_grad_()
    tx = case.make(floats)
    state, total = first_state(tx, params), torch.zeros(())
    if state is None:
        return
    for _ in range(2):
        updates, state = step(tx, grads, state, params)
        total = total + _objective(updates)
    if total.requires_grad:
        slopes = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        zeros = "gradients" if what == "zero_gradient" else "gradients and weights"
        slopes = {f"by {name}": slope for name, slope in zip(named, slopes, strict=True)}
        assert_finite(slopes, f"{case}: at {zeros} of 0, the derivative", SLOPES)


# What overflows or is 0 in float32 is so in float16.
@each("dtype", [torch.float32, torch.float16])
@each_case
def test_zero_gradients_and_leaves_of_all_ranks_stay_finite(case, dtype):
    tx = case.make()
    if refuses(tx, case.noise(1, EDGES, dtype)):
        return
    for params in (case.noise(1, EDGES, dtype), case.noise(1, EDGES, dtype, scale=0.0)):
        for grads in (case.noise(2, EDGES, dtype), case.noise(2, EDGES, dtype, scale=0.0)):
            state = first_state(tx, params)
            if state is None:
                continue
            first = layout(state)
            for _ in range(2):
                updates, state = step(tx, grads, state, params)
                assert layout(updates) == in_wide(params)
                assert layout(state) == first
                assert_finite({"update": updates, "state": state}, f"{case}: of {dtype}, the result", VALUES)


@each_case
def test_zero_gradients_give_finite_updates_without_eps_too(case):
    params, tx = case.noise(1), case.make(eps=0.0)
    state = tx.init(params)
    for _ in range(3):
        updates, state = step(tx, case.noise(2, scale=0.0), state, params)
        assert_finite({"update": updates}, f"{case}: with eps=0, the result of gradients of 0", VALUES)


# States as files, transformations as text.


@each_case
def test_a_saved_and_reloaded_state_continues_bit_for_bit(case):
    params, grads, tx = case.noise(1), case.noise(2), case.make()
    _, state = step(tx, grads, tx.init(params), params)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert_same(loaded, state)
    assert_same(step(tx, grads, loaded, params), step(tx, grads, state, params))


@each_case
def test_maximize_equals_the_negated_gradient(case):
    maximize_equals_the_negated_loss(case.make(), case.make(maximize=not case.arguments.get("maximize", False)), case)


SEARCHES = {
    "sam": lambda tx: gradtx.sam(tx, 0.1),
    "gsam": lambda tx: gradtx.gsam(tx, 0.1),
    "mechanize": gradtx.mechanize,
    "trac": gradtx.trac,
    "line_search": gradtx.line_search,
    "in a chain": lambda tx: gradtx.chain(
        gradtx.clip_by_global_norm(1.0), gradtx.line_search(gradtx.chain(gradtx.trace(0.5), tx))
    ),
    "in both branches": lambda tx: gradtx.sam(gradtx.partition({"a": tx, "b": tx}, {"a": "matrix", "b": "*"}), 0.1),
    "around a search": lambda tx: gradtx.accumulate(gradtx.line_search(tx), 2),
}


@each("name", list(SEARCHES))
def test_a_combinator_around_what_maximizes_minimizes_the_negated_loss(name):
    case = next(case for case in PLAIN if str(case) == "sgd")
    plain, other = (SEARCHES[name](gradtx.sgd(lr=0.1, momentum=0.9, maximize=maximize)) for maximize in (False, True))
    maximize_equals_the_negated_loss(plain, other, case, steps=6, with_state=False)


BESIDE = {
    "before links": lambda tx: gradtx.chain(tx, gradtx.scale_by_caution(0.1)),
    "behind links": lambda tx: gradtx.chain(gradtx.scale_by_caution(0.1), tx),
    "behind an optimizer": lambda tx: gradtx.chain(gradtx.adam_atan2(), tx),
    "before an optimizer": lambda tx: gradtx.chain(tx, gradtx.adopt()),
    "twice": lambda tx: gradtx.chain(tx, gradtx.scale(-1.0), tx),
    "around its like": lambda tx: gradtx.muon(lr=0.1, fallback=tx, maximize=tx._arguments["maximize"]),
}
AROUND_ALL = {
    "alone": lambda tx: tx,
    "accumulate": lambda tx: gradtx.accumulate(tx, 1),
    "masked": lambda tx: gradtx.masked(tx, "*"),
    "skip_nonfinite": gradtx.skip_nonfinite,
    "partition": lambda tx: gradtx.partition({"all": tx}, {"all": "*"}),
    "graft": lambda tx: gradtx.graft(tx, tx),
}


@each("wrapper", list(AROUND_ALL))
@each("beside", list(BESIDE))
@by_day("*-alone", *(f"{beside}-{wrapper}" for beside, wrapper in zip(BESIDE, AROUND_ALL, strict=True)))
def test_all_links_of_a_chain_with_an_optimizer_that_maximizes_see_the_negated_loss(beside, wrapper):
    case = next(case for case in PLAIN if str(case) == "sgd")
    plain, other = (
        AROUND_ALL[wrapper](BESIDE[beside](gradtx.sgd(lr=0.1, momentum=0.9, maximize=maximize)))
        for maximize in (False, True)
    )
    maximize_equals_the_negated_loss(plain, other, case, with_state=False, same=torch.testing.assert_close)


def test_a_branch_that_maximizes_says_nothing_of_the_others():
    params, grads = {"matrix": torch.ones(2, 2), "b": torch.ones(2)}, {"matrix": torch.eye(2), "b": torch.ones(2)}
    plain, other = (gradtx.muon(lr=0.1, fallback=gradtx.sgd(lr=0.1, maximize=maximize)) for maximize in (False, True))
    expected, _ = plain.update(grads, plain.init(params), params)
    updates, _ = other.update(grads, other.init(params), params)
    assert_same(updates, {"matrix": expected["matrix"], "b": -expected["b"]})


def opposite(extra):
    """What is known of the negated loss."""
    if callable(extra):
        return lambda params: opposite(extra(params))
    return {name: -value for name, value in extra.items()} if isinstance(extra, dict) else -extra


def maximize_equals_the_negated_loss(tx, other, case, steps=3, with_state=True, same=assert_same):
    params = case.noise(1)
    state, other_state = tx.init(params), other.init(params)
    for _ in range(steps):
        grads, known = field(params), extras(tx, params)
        updates, state = tx.update(grads, state, params, **known)
        known = {name: value if name == "max_logits" else opposite(value) for name, value in known.items()}
        negated, other_state = other.update({n: -g for n, g in grads.items()}, other_state, params, **known)
        same(negated, updates)
        params = gradtx.apply_updates(params, updates)
    if with_state:
        assert_same(other_state, state)


@each_case
def test_the_repr_evaluates_to_the_same_transformation(case):
    tx = case.make()
    again = eval(repr(tx), dict(vars(gradtx)))
    assert repr(again) == repr(tx)
    assert again.hyperparams == tx.hyperparams
    params, grads = case.noise(1), case.noise(2)
    assert_same(step(again, grads, again.init(params), params), step(tx, grads, tx.init(params), params))


# Claims of the decorators.


@each_case
def test_an_elementwise_rule_does_not_care_how_entries_are_cut_into_leaves(case):
    tx, order = case.make(), torch.randperm(12, generator=torch.Generator().manual_seed(0))

    def cut(tree):
        flat = tree["w"].flatten()[order]
        return {"a": flat[:5].reshape(5), "b": flat[5:11].reshape(3, 2), "c": flat[11]}

    def joined(tree):
        return torch.cat([tree[name].flatten() for name in "abc"])[order.argsort()].reshape(3, 4)

    params = noise(1, {"w": (3, 4)})
    state, cut_state = tx.init(params), tx.init(cut(params))
    for i in range(3):
        grads = noise(2 + i, {"w": (3, 4)})
        updates, state = step(tx, grads, state, params)
        pieces, cut_state = step(tx, cut(grads), cut_state, cut(params))
        # Sums over all leaves may be added in another order.
        torch.testing.assert_close(joined(pieces), updates["w"], rtol=1e-12, atol=1e-14)


@each_case
def test_params_are_read_only_where_needs_says_so(case):
    tx, params, grads = case.make(), case.noise(1), case.noise(2)
    state = tx.init(params)
    if "params" not in tx.needs:
        assert_same(tx.update(grads, state, **extras(tx, params)), step(tx, grads, state, params))
        return
    before = snapshot(state)
    with pytest.raises(ValueError, match="needs params: call update"):
        tx.update(grads, state, **extras(tx, params))
    assert_same(state, before)


@each_case
def test_leaves_are_matched_by_name_in_any_order(case):
    tx, params, grads = case.make(), case.noise(1), case.noise(2)
    names = list(params)[::-1]
    state = tx.init(params)
    _, state = step(tx, grads, state, params)
    updates, new = step(tx, grads, state, params)
    shuffled = ({name: tree[name] for name in names} for tree in (grads, params))
    again, other = step(tx, next(shuffled), state, next(shuffled))
    assert_same({name: again[name] for name in params}, updates)
    assert_same(other, new)
    assert list(again) == names


@each_case
def test_a_step_along_the_field_depends_on_nothing_hidden(case):
    params, tx = case.noise(1), case.make()
    assert_same(train(tx, params, 3), train(case.make(), params, 3))
    state = tx.init(params)
    first = step(tx, field(params), state, params)
    assert_same(step(tx, field(params), state, params), first)


# Aliases with a schedule, which follows the leaf with the most updates, as in an optimizer.
SCHEDULED = ("apollo", "ranger21", "schedule_free_radam", "stable_spam")


def is_alone(case) -> bool:
    """Whether what happens to a leaf depends on nothing that the others share: no sums, random numbers or schedules."""
    for link in case.example._every_link():
        body, options = link._body, link._spec._options
        sums = inspect.isgeneratorfunction(getattr(body, "update", None)) and options["whole"] != "sums"
        if sums or options["shared"] or options["random"] or link._spec.kind == "tree":
            return False
    return case.factory.__name__ not in SCHEDULED and case.is_determined()


def late_steps(tx, params, gradients, mode):
    """Take steps of which the first lack the gradient of "late", whose weights are returned after each step."""
    params, after = dict(params), []
    if mode == "pure":
        state = tx.init(params)
        for grads in gradients:
            grads = {"other": grads["other"], "late": grads["late"]}
            updates, state = tx.update(grads, state, params, **extras(tx, params))
            params = gradtx.apply_updates(params, updates)
            after.append(params["late"])
        return after
    weights = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
    optimizer = gradtx.as_optimizer(tx, list(weights.items()), compile=mode == "compiled")
    for grads in gradients:
        for name, weight in weights.items():
            weight.grad = grads[name]
        optimizer.step(**step_extras(tx, {name: weight.detach() for name, weight in weights.items()}))
        after.append(weights["late"].detach().clone())
    return after


@each_case
def test_a_leaf_whose_first_gradient_comes_late_steps_as_one_that_starts_then(case):
    starts_late(case, "pure")


@pytest.mark.parametrize("mode", ["lists", "compiled"])
@each_case
def test_a_leaf_whose_first_gradient_comes_late_does_so_in_an_optimizer(case, mode):
    starts_late(case, mode)


def starts_late(case, mode):
    if not is_alone(case):
        return
    shape = max((x.shape for x in case.noise(1).values()), key=len)
    shapes = {"late": tuple(shape), "other": tuple(shape)}
    tx, params, missed = case.make(), noise(1, shapes), 9
    gradients = [noise(10 + t, shapes) for t in range(4)]
    before = [{"late": None, "other": noise(50 + t, shapes)["other"]} for t in range(missed)]
    expected = late_steps(tx, params, gradients, mode)
    moved = late_steps(tx, params, before + gradients, mode)
    assert_close(moved[missed:], expected, rtol=1e-11, atol=1e-13)


def is_comparable(wrapper, case) -> bool:
    """Whether a combinator takes a transformation at all, and is to be transparent for it."""
    arguments, needs = case.factory.spec.arguments.by_name, case.example.needs
    if "pairs" in arguments:  # which need leaves of their own names
        return False
    if str(case) == "project_tangent":  # without `retract`, weights grow without bound, and rounding with them
        return False
    # Inside `accumulate`, a rule of whole trees sees a missing gradient as zeros, and `outer` does not synchronize its
    # leaf. MoMo's averages of the loss, which leaves share, start again with a late leaf.
    others = ("outer", "outer-on", "scale_by_momo-on-use_fstar")
    if wrapper == "accumulate" and ("grad_fn" in needs or str(case) in others):
        return False
    try:
        WRAPPERS[wrapper](case.make()).init(case.noise())
    except (TypeError, ValueError):
        return False
    return True


def steps_with_gaps(tx, params, in_optimizer):
    """The weights after each of some steps, in which gradients come late or are missing in between."""
    missing = {0: ("late",), 1: ("late", "gap"), 2: ("late",), 4: ("gap",)}
    params, after, state = dict(params), [], None
    weights = {name: torch.nn.Parameter(value.clone()) for name, value in params.items()}
    optimizer = gradtx.as_optimizer(tx, list(weights.items())) if in_optimizer else None
    for t in range(8):
        grads = {name: None if name in missing.get(t, ()) else grad for name, grad in field(params).items()}
        if optimizer is None:
            state = tx.init(params) if state is None else state
            updates, state = tx.update(grads, state, params, **extras(tx, params))
            params = gradtx.apply_updates(params, updates)
        else:
            for name, weight in weights.items():
                weight.grad = grads[name]
            optimizer.step(**step_extras(tx, weights))
            params = {name: weight.detach().clone() for name, weight in weights.items()}
        after.append(params)
    return after


WRAPPERS = {"skip_nonfinite": gradtx.skip_nonfinite, "accumulate": functools.partial(gradtx.accumulate, every=1)}


@each("wrapper", list(WRAPPERS))
@each_case
def test_of_finite_gradients_a_transformation_wrapped_for_safety_is_the_same(case, wrapper):
    if not is_comparable(wrapper, case):
        return
    wrap = WRAPPERS[wrapper]
    shape = max((x.shape for x in case.noise(1).values()), key=len)
    params = noise(1, {"late": tuple(shape), "gap": tuple(shape), "other": tuple(shape)})
    for in_optimizer in (False, True):
        if in_optimizer and {"grad_fn", "value_fn"} & set(case.example.needs):
            continue
        plain, wrapped = (steps_with_gaps(tx, params, in_optimizer) for tx in (case.make(), wrap(case.make())))
        assert_close(wrapped, plain, rtol=1e-11, atol=1e-13)


@each("bad", [float("inf"), float("nan")])
@each_case
def test_after_a_gradient_that_is_not_finite_lists_have_the_same_infinities_as_rules_line_by_line(case, bad):
    tx, params = case.make(), case.noise(1, dtype=torch.float32)
    with gradtx.eagerly():
        by_line = after_a_bad_gradient(tx, params, bad)
    assert after_a_bad_gradient(tx, params, bad) == by_line
