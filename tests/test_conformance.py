"""What every rule, alias and combinator must do; whatever has a `.spec` in `gradtx.__all__` joins by itself."""

import functools
import io

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._pytree import keystr, tree_map_with_path

import gradtx
from tests.conformance import (
    Case,
    all_cases,
    assert_close,
    assert_own_memory,
    assert_same,
    example,
    extras,
    factories,
    field,
    has_slots,
    layout,
    noise,
    plain_cases,
    snapshot,
    step,
    tensors,
    train,
    untouched,
)

PLAIN, ALL = plain_cases(), all_cases()
ALIASES = [case for case in ALL if case.factory.spec.kind == "alias"]
DETERMINED = [case for case in ALL if case.is_determined()]
RULES = [case for case in ALL if case.factory.spec.kind == "rule"]
EDGES = {"zero_d": (), "vector": (3,), "empty": (0,), "empty_rows": (0, 2), "matrix": (2, 3), "conv": (2, 3, 2, 2)}

each = functools.partial(pytest.mark.parametrize, ids=lambda value: getattr(value, "__name__", str(value)))


@each("factory", factories())
def test_the_declared_example_is_enough_to_call_the_factory(factory):
    assert isinstance(factory(**example(factory)), gradtx.GradientTransformation)


def test_the_table_holds_what_the_decorators_made():
    names = {factory.__name__ for factory in factories()}
    assert {"adam", "sgd", "scale", "partition", "masked", "freeze", "accumulate", "skip_nonfinite"} <= names
    assert {factory.spec.kind for factory in factories()} <= {"rule", "tree", "alias", "combinator"}


# Shapes, dtypes, memory.


@each("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@each("case", ALL)
def test_updates_and_slots_keep_shapes_and_dtypes(case, dtype):
    params, grads, tx = case.noise(1, dtype=dtype), case.noise(2, dtype=dtype), case.make()
    first = tx.init(params)
    updates, state = step(tx, grads, first, params)
    assert layout(updates) == layout(params)
    assert layout(state) == layout(first)
    for path, (shape, kept) in layout(first).items():
        own = kept.is_floating_point and shape != () and "['members']" not in path
        assert kept == dtype if own else kept in (dtype, torch.float64, torch.int64, torch.bool, torch.float32), path


# A link that asks for the gradient elsewhere gets it at weights in bf16, of another value than in float32.
@each("case", [case for case in ALL if "grad_fn" not in case.make().needs])
def test_a_bf16_update_is_the_float32_one_rounded_once(case):
    tx = case.make()
    params, grads = case.noise(1, dtype=torch.bfloat16), case.noise(2, dtype=torch.bfloat16)
    wide_params, wide_grads = ({name: x.float() for name, x in tree.items()} for tree in (params, grads))
    start, like = tx.init(params), tensors(tx.init(wide_params))
    narrow, narrow_state = step(tx, grads, start, params)
    # From the same numbers: a state that starts with others than 0 was rounded when it was made.
    start = tree_map_with_path(lambda path, slot: slot.to(like[keystr(path)].dtype), start)
    wide, wide_state = step(tx, wide_grads, start, wide_params)
    assert_same(narrow, {name: x.bfloat16() for name, x in wide.items()})
    for path, slot in tensors(narrow_state).items():
        assert torch.equal(slot, tensors(wide_state)[path].to(slot.dtype)), path


@each("case", ALL)
def test_state_dtype_decides_what_slots_are_kept_in(case):
    params = case.noise(1, dtype=torch.bfloat16)
    if not has_slots(case) and case.factory.spec.kind == "rule":
        with pytest.raises(TypeError, match=f"{case.factory.__name__}: keeps no state"):
            case.make(state_dtype=torch.float32)
        return
    tx = case.make(state_dtype=torch.float32)
    state = tx.init(params)
    updates, state = step(tx, case.noise(2, dtype=torch.bfloat16), state, params)
    assert layout(updates) == layout(params)
    kept = {tensor.dtype for path, tensor in tensors(state).items() if tensor.ndim and "members" not in path}
    assert kept <= {torch.float32}


@each("case", ALL)
def test_two_updates_leave_every_input_bit_identical(case):
    params, grads, tx = case.noise(1), case.noise(2), case.make()
    state = tx.init(params)
    for _ in range(2):
        given = extras(tx, params)
        with untouched(params, grads, state, given):
            _, state = tx.update(grads, state, params, **given)
            tx.eval_params(state, params)


@each("case", ALL)
def test_no_memory_is_shared_between_inputs_and_outputs(case):
    params, grads, tx = case.noise(1), case.noise(2), case.make()
    state = tx.init(params)
    assert_own_memory(state, params)
    for _ in range(2):
        given = extras(tx, params)
        updates, new = tx.update(grads, state, params, **given)
        assert_own_memory([updates, new], grads, params, state, given)
        state = new


@each("case", ALL)
def test_a_leaf_without_gradient_stays_as_it_is(case):
    params, tx = case.noise(1), case.make()
    state = tx.init(params)
    absent = list(params)[-2]
    grads = {**case.noise(2), absent: None}
    updates, new = step(tx, grads, state, params)
    assert_same(gradtx.apply_updates(params, updates)[absent], params[absent])
    before, after = tensors(state), tensors(new)
    for path in before:
        if path.endswith(f"['{absent}']"):
            assert_same(after[path], before[path])
    first, rest = _without(absent, tx, params)
    given = extras(tx, rest) | {name: x for name, x in extras(tx, params).items() if name == "value"}  # the same loss
    alone, _ = tx.update({name: grads[name] for name in rest}, first, rest, **given)
    del updates[absent]
    assert_same(updates, alone)


def _without(name, tx, params):
    rest = {key: value for key, value in params.items() if key != name}
    return tx.init(rest), rest


# Numbers, tensors, schedules.


@each("case", ALL)
def test_floats_as_tensors_or_schedules_change_neither_structure_nor_result(case):
    params, grads = case.noise(1), case.noise(2)
    for place in case.floats():
        kinds = (
            place.value,
            _double(place.value),
            gradtx.Schedule(lambda step, value=place.value: value),
        )
        results = []
        for value in kinds:
            tx = case.make({place: value})
            state = tx.init(params)
            for _ in range(2):
                updates, state = step(tx, grads, state, params)
            results.append((updates, state))
        for result in results[1:]:
            assert layout(result) == layout(results[0]), str(place)
            # float64 scalars of the general formula against Python floats: the last bits of some sums.
            assert_close(result, results[0], rtol=1e-12, atol=1e-12)


@each("case", DETERMINED)
def test_vmap_over_every_float_equals_a_loop(case):
    params = case.noise(1)
    for place in case.floats():
        values = torch.tensor([place.value, 0.95 * place.value], dtype=torch.float64)
        together = torch.vmap(lambda x, place=place: train(case.make({place: x}), params, 3))(values)
        for i, value in enumerate(values):
            alone = train(case.make({place: value}), params, 3)
            # Batched kernels may add in another order.
            assert_close({name: x[i] for name, x in together.items()}, alone, rtol=1e-11, atol=1e-12)


WEIGHTS = noise(9)


def _objective(params):
    return sum((WEIGHTS[name] * p).sum() for name, p in params.items())


@each("case", DETERMINED)
def test_the_gradient_of_training_by_every_float_is_the_difference_quotient(case):
    params, h = case.noise(1), 1e-6
    for place in case.floats():
        x = _double(place.value).requires_grad_()
        result = _objective(train(case.make({place: x}), params, 5))
        (slope,) = torch.autograd.grad(result, x, allow_unused=True) if result.requires_grad else (None,)
        up, down = (_objective(train(case.make({place: x.detach() + sign * h}), params, 5)) for sign in (1, -1))
        quotient = (up - down) / (2 * h)
        # Rounding is about 1e-15 / h of the objective; the third derivative times h**2 is far below.
        tolerance = 1e-7 * (1 + abs(up)) + 1e-5 * abs(quotient)
        assert abs((0.0 if slope is None else slope) - quotient) < tolerance, str(place)


@each("case", DETERMINED)
def test_the_gradient_of_training_by_the_first_weights_is_the_difference_quotient(case):
    params, direction, h = case.noise(1), case.noise(3), 1e-6
    for p in params.values():
        p.requires_grad_()
    slopes = torch.autograd.grad(_objective(train(case.make(), params, 5)), list(params.values()))
    slope = sum((s * d).sum() for s, d in zip(slopes, direction.values(), strict=True))
    ends = ({n: (p + sign * h * direction[n]).detach() for n, p in params.items()} for sign in (1, -1))
    up, down = (_objective(train(case.make(), end, 5)) for end in ends)
    quotient = (up - down) / (2 * h)
    assert abs(slope - quotient) < 1e-7 * (1 + abs(up)) + 1e-5 * abs(quotient)  # as above


@each("what", ["zero_gradient", "zero_params", "both"])
@each("case", ALL)
def test_derivatives_at_zero_are_finite(case, what):
    params, grads = case.noise(1), case.noise(2)
    if what in ("zero_params", "both"):
        params = {name: torch.zeros_like(p) for name, p in params.items()}
    if what in ("zero_gradient", "both"):
        grads = {name: torch.zeros_like(g) for name, g in grads.items()}
    places = case.some_floats()
    floats = {place: _double(place.value).requires_grad_() for place in places}
    inputs = [*floats.values(), *params.values(), *grads.values()]
    for tensor in inputs:
        tensor.requires_grad_()
    tx = case.make(floats)
    state, total = tx.init(params), torch.zeros(())
    for _ in range(2):
        updates, state = step(tx, grads, state, params)
        total = total + _objective(updates)
    for slope in torch.autograd.grad(total, inputs, allow_unused=True) if total.requires_grad else ():
        assert slope is None or slope.isfinite().all()


@each("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each("case", ALL)
def test_zero_gradients_and_leaves_of_all_ranks_stay_finite(case, dtype):
    tx = case.make()
    for params in (case.noise(1, EDGES, dtype), case.noise(1, EDGES, dtype, scale=0.0)):
        for grads in (case.noise(2, EDGES, dtype), case.noise(2, EDGES, dtype, scale=0.0)):
            state = tx.init(params)
            for _ in range(2):
                updates, state = step(tx, grads, state, params)
                for path, tensor in tensors([updates, state]).items():
                    assert tensor.isfinite().all(), path


# Compilation.

SMALL = {"matrix": (3, 4), "vector": (5,)}


def _double(number):
    return torch.tensor(number, dtype=torch.float64)


@each("case", PLAIN)
def test_an_update_is_one_graph_and_new_values_do_not_recompile_it(case):
    torch._dynamo.reset()
    floats, counter = {place: _double(place.value) for place in case.some_floats()}, CompileCounter()
    params, grads, tx = case.noise(1, SMALL), case.noise(2, SMALL), case.make(floats)
    given, state = extras(tx, params), tx.init(params)
    compiled = torch.compile(lambda g, s, p: tx.update(g, s, p, **given), backend=counter, fullgraph=True)
    for _ in range(3):
        expected = tx.update(grads, state, params, **given)
        updates, state = compiled(grads, state, params)
        assert_close((updates, state), expected, rtol=1e-12, atol=1e-12)  # the same operations, traced
        assert_own_memory([updates, state], grads, params)
        for tensor in floats.values():
            tensor.mul_(0.95)
    assert counter.frame_count == 1


def test_a_chain_built_inside_a_compiled_step_does_not_recompile_either():
    torch._dynamo.reset()
    counter = CompileCounter()

    @functools.partial(torch.compile, backend=counter, fullgraph=True)
    def compiled(lr, beta, grads, state, params):
        tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=lr, betas=(beta, 0.99)))
        return tx.update(grads, state, params)

    params, grads = noise(1), noise(2)
    plain = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(betas=(0.9, 0.99)))
    state = plain.init(params)
    for lr, beta in ((1e-3, 0.9), (1e-2, 0.8), (1.0, 0.5)):
        updates, _ = compiled(_double(lr), _double(beta), grads, state, params)
        expected = plain.replace(lr=lr, betas=(beta, 0.99)).update(grads, state, params)[0]
        assert_close(updates, expected, rtol=1e-12)  # the same operations, traced
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor's own
def test_a_whole_step_through_inductor_equals_eager():
    torch._dynamo.reset()
    lr = torch.tensor(0.1)
    tx = gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw(lr=lr))
    params, grads = noise(1, SMALL, torch.float32), noise(2, SMALL, torch.float32)

    def one(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return gradtx.apply_updates(params, updates), state

    compiled, state = torch.compile(one, fullgraph=True), tx.init(params)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            new, new_state = compiled(grads, state, params)
            # Fused kernels contract multiplications and additions: a few units in the last place of float32.
            assert_close((new, new_state), one(grads, state, params), rtol=1e-5, atol=1e-6)
            params, state = new, new_state
            lr.mul_(0.5)


# States as files, transformations as text.


@each("case", ALL)
def test_a_saved_and_reloaded_state_continues_bit_for_bit(case):
    params, grads, tx = case.noise(1), case.noise(2), case.make()
    _, state = step(tx, grads, tx.init(params), params)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert_same(loaded, state)
    assert_same(step(tx, grads, loaded, params), step(tx, grads, state, params))


@each("case", ALIASES)
def test_maximize_equals_the_negated_gradient(case):
    other = case.make(maximize=not case.arguments.get("maximize", False))
    params, grads, tx = case.noise(1), case.noise(2), case.make()
    state, other_state = tx.init(params), other.init(params)
    for _ in range(3):
        updates, state = step(tx, grads, state, params)
        negated, other_state = step(other, {n: -g for n, g in grads.items()}, other_state, params)
        assert_same(negated, updates)
    assert_same(other_state, state)


def _text_says_all(value) -> bool:
    """Whether a value of an argument can be typed again: functions can't."""
    if isinstance(value, dict):
        return all(map(_text_says_all, value.values()))
    return isinstance(value, gradtx.GradientTransformation) or not callable(value)


@each("case", [case for case in ALL if all(map(_text_says_all, case.arguments.values()))])
def test_the_repr_evaluates_to_the_same_transformation(case):
    tx = case.make()
    again = eval(repr(tx), dict(vars(gradtx)))
    assert repr(again) == repr(tx)
    assert again.hyperparams == tx.hyperparams
    params, grads = case.noise(1), case.noise(2)
    assert_same(step(again, grads, again.init(params), params), step(tx, grads, tx.init(params), params))


@each("factory", factories())
def test_every_docstring_has_arguments_and_a_doctest(factory):
    text = factory.__doc__
    assert text.splitlines()[0].strip().endswith((".", ":")), "the first line is a sentence"
    assert ("Args:" in text) == bool(factory.spec.arguments.all)
    assert "Returns:" in text or "Example:" in text
    assert ">>> " in text
    documented = text.partition("Args:")[2]
    for argument in factory.spec.arguments.all:
        if argument.name not in factory.spec.arguments.added:
            assert f"\n        {argument.name}:" in documented, f"{argument.name} is not in Args"


# Claims of the decorators.


def _claims_elementwise(case: Case) -> bool:
    spec = case.factory.spec
    bound = {argument.name: argument.default for argument in spec.arguments.all} | case.arguments
    return spec.elementwise(bound) if callable(spec.elementwise) else spec.elementwise


@each("case", [case for case in RULES if _claims_elementwise(case)])
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


@each("case", ALL)
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


@each("case", ALL)
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


@each("case", ALL)
def test_a_step_along_the_field_depends_on_nothing_hidden(case):
    params, tx = case.noise(1), case.make()
    assert_same(train(tx, params, 3), train(case.make(), params, 3))
    state = tx.init(params)
    first = step(tx, field(params), state, params)
    assert_same(step(tx, field(params), state, params), first)
