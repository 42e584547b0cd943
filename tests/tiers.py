"""When each test runs: in `make quick`, in `make test`, or by night in `make test-all`, which runs all.

`PROPERTIES` says it of the conformance tests: a set of cases for each property and tier. `FILES` and `TESTS` say it of
whole files and tests; `by_day`, at a test whose cases multiply, of its cases. The marks `slow` (from `make test` on)
and `nightly` (in `make test-all`) are what they come to; a test may have one of its own.

`python -m tests.tiers NAME` prints what concerns a factory or a class, and when it runs.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import functools
import inspect
import io
import itertools
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gradtx
from gradtx.base.table import CLASSES, MODULES
from tests import conformance
from tests.conformance import Case

QUICK, DAY, NIGHT = TIERS = ("quick", "test", "test-all")
TESTS_FOLDER = Path(__file__).parent

# Sets of cases.


def _plain_aliases() -> list[Case]:
    return [case for case in conformance.plain_cases() if case.factory.spec.kind == "alias"]


def _needs_none_of(*needs: str) -> Callable[[Case], bool]:
    return lambda case: not {*needs} & {*case.example.needs}


def _estimates_nothing(case: Case) -> bool:
    return not conformance.is_estimate(case)


def _takes_gradients(case: Case) -> bool:
    """Whether it takes gradients, rather than a function of the parameters, which it may call at other ones too."""
    return not conformance.functions(case.example)


def _rounds_nothing(case: Case) -> bool:
    return not case.example._rounds


def _text_says_all(value: Any) -> bool:
    """Whether a value of an argument can be typed again: functions can't."""
    if isinstance(value, dict):
        return all(map(_text_says_all, value.values()))
    if isinstance(value, tuple):
        return all(map(_text_says_all, value))
    return isinstance(value, gradtx.GradientTransformation) or not callable(value)


def _claims_elementwise(case: Case) -> bool:
    spec = case.factory.spec
    bound = {argument.name: argument.default for argument in spec.arguments.all} | case.arguments
    return spec.kind == "rule" and spec.option("elementwise", bound)


def _is_rule(case: Case) -> bool:
    return case.factory.spec.kind == "rule"


def _draws_nothing(case: Case) -> bool:
    return "seed" not in case.factory.spec.arguments.by_name


def _is_rule_or_alias(case: Case) -> bool:
    return case.factory.spec.kind in ("rule", "alias")


# Whose formulas divide nothing by nothing.
SAFE_WITHOUT_EPS = ("acprop", "adatam", "bcos", "fadam", "kate", "sgd_sai", "tam")
# Rules that read the count in several ways, sums, and clocks inside.
READERS_OF_THE_COUNT = (
    "scale_by_adam", "scale_by_prodigy", "rotated", "restart", "accumulate", "sam", "schedule_free_adamw",
    "clip_to_peak_history",
)  # fmt: skip
# Of each kind one: entries, a sum over leaves, a combinator, an alias.
A_FEW = ("scale_by_adam", "clip_by_global_norm", "accumulate", "adamw")
# Of each kind one that is cheap: what derivatives, garbage and infinities notice, others of its kind notice too.
ONE_OF_EACH_KIND = (
    "scale_by_adam", "add_decayed_weights", "scale_by_aggmo", "clip_by_norm", "scale_by_adafactor",
    "clip_by_global_norm", "scale_by_prodigy", "orthogonalize", "scale_by_shampoo", "add_noise", "schedule_free",
    "scale_by_hessian", "accumulate", "skip_nonfinite", "partition", "lookahead", "sam", "graft", "low_rank",
    "mechanize", "adamw", "sgd-on-nesterov", "muon",
)  # fmt: skip
READERS_OF_THE_LOSS = ("alig", "momo", "momo_adam", "adaptive_gd", "lbfgs", "prodigy", "dadapt_adam", "sophia", "muon")


def _packs() -> list[conformance.Pack]:
    return [*conformance.packs_of_rules(), *_alone(), *((case,) for case in conformance.chosen_aliases()[::6])]


def _alone() -> list[conformance.Pack]:
    return [(case,) for case in conformance.plain_cases() if case.factory.spec.kind == "combinator"]


def _adam() -> conformance.Pack:
    return next((case,) for case in conformance.plain_cases() if case.factory is gradtx.scale_by_adam)


def _some(cases: Callable[[], list[Case]], *conditions: Callable[[Case], bool]) -> Callable[[], list[Case]]:
    return lambda: [case for case in cases() if all(condition(case) for condition in conditions)]


def _named(cases: Callable[[], list[Case]], names: tuple[str, ...]) -> Callable[[], list[Case]]:
    return _some(cases, lambda case: str(case) in names)


def third_of(name: str) -> int:
    """Which third of all names a name is in, whatever the others are: a new one leaves them where they are."""
    return zlib.crc32(name.encode()) % 3


def _third(i: int) -> Callable[[], list[Case]]:
    """A third of the plain links: of costly properties, some have one by day, and others another."""
    return _some(conformance.plain_links, lambda case: third_of(str(case)) == i)


# A plus joins two sets.
SETS: dict[str, Callable[[], list[Any]]] = {
    "all": conformance.all_cases,
    # Dynamo does not trace a Jacobian and its factorizations.
    "all that take gradients": _some(conformance.all_cases, _takes_gradients),
    "plain": conformance.plain_cases,
    "lean": conformance.lean_cases,
    "costly": conformance.costly_cases,
    "composed": conformance.composed_cases,
    "plain links": conformance.plain_links,
    "first third of links": _third(0),
    "second third of links": _third(1),
    "last third of links": _third(2),
    "of each kind": conformance.of_each_kind,
    "one of each kind": _named(conformance.all_cases, ONE_OF_EACH_KIND),
    "chosen aliases": conformance.chosen_aliases,
    "plain aliases that take gradients": _some(_plain_aliases, _takes_gradients),
    "all aliases": _some(conformance.all_cases, lambda case: case.factory.spec.kind == "alias"),
    "aliases of each kind": _some(conformance.of_each_kind, lambda case: case in _plain_aliases()),
    "rules of each kind": _some(conformance.of_each_kind, lambda case: case.factory.spec.kind == "rule"),
    "plain costly": _some(conformance.costly_cases, lambda case: not case.label),
    # Those of a gradient that is a difference of losses have other rounding errors, and use all leaves at once.
    "plain costly that estimate nothing": _some(
        conformance.costly_cases, lambda case: not case.label, _estimates_nothing
    ),
    # The pretended device of the tests runs neither forward derivatives nor graphs of graphs.
    "plain that take gradients": _some(conformance.plain_cases, _takes_gradients),
    "plain that take gradients and estimate nothing": _some(
        conformance.plain_cases, _takes_gradients, _estimates_nothing
    ),
    "lean that estimate nothing": _some(conformance.lean_cases, _estimates_nothing),
    "lean that round nothing and call no gradient": _some(
        conformance.lean_cases, _rounds_nothing, _needs_none_of("grad_fn"), _estimates_nothing, _takes_gradients
    ),
    "all that round nothing": _some(conformance.all_cases, _rounds_nothing),
    "lean whose text says all": _some(
        conformance.lean_cases, lambda case: all(map(_text_says_all, case.arguments.values()))
    ),
    "elementwise": _some(conformance.all_cases, _claims_elementwise),
    "lean rules and aliases without a closure": _some(
        conformance.lean_cases, _is_rule_or_alias, _needs_none_of("grad_fn", "value_fn")
    ),
    "safe without eps": _named(conformance.plain_cases, SAFE_WITHOUT_EPS),
    "readers of the count": _named(conformance.lean_cases, READERS_OF_THE_COUNT),
    "readers of the loss": _named(_plain_aliases, READERS_OF_THE_LOSS),
    "plain without a closure": _some(conformance.plain_cases, _needs_none_of("grad_fn", "value_fn", "hessian_diag")),
    "plain that take gradients, without a closure": _some(
        conformance.plain_cases, _takes_gradients, _needs_none_of("grad_fn", "value_fn", "hessian_diag")
    ),
    # A scaler scales the loss, not gradients of single examples.
    "plain that a scaler scales": _some(
        conformance.plain_cases, _takes_gradients, _needs_none_of("grad_fn", "grad_sample", "value_fn")
    ),
    "plain that take gradients and a scaler scales": _some(
        conformance.plain_cases, _takes_gradients, _needs_none_of("grad_fn", "value_fn", "hessian_diag", "grad_sample")
    ),
    "rules that draw nothing": _some(conformance.all_cases, _is_rule, _draws_nothing),
    "a few rules": _some(conformance.plain_cases, _is_rule, lambda case: str(case) in A_FEW),
    "adamw": _some(conformance.plain_cases, lambda case: case.factory is gradtx.adamw),
    "chosen of each kind": _some(conformance.chosen_aliases, lambda case: str(case) in conformance.OF_EACH_KIND),
    "a few": _named(conformance.plain_cases, A_FEW),
    # Cases that stand in chains.
    "packs": _packs,
    "a pack and a combinator": lambda: [conformance.packs_of_rules()[0], _alone()[0]],
    "some packs": lambda: [*conformance.packs_of_rules()[::8], *_alone()[::2], _adam()],
    "adam": lambda: [_adam()],
}


@functools.cache
def cases_of(names: str) -> tuple[Any, ...]:
    """The cases of one set, or of several that a plus joins; of "" none."""
    return tuple(item for name in names.split(" + ") if name for item in SETS[name]())


# The table: of each property, the cases by night, by day, and in `make quick`, which has those of them that it has
# by day. The third is empty where the test or its file is left out of it.
PROPERTIES: dict[str, dict[str, tuple[str, str, str]]] = {
    "execution.test_fading": {
        "test_a_gradient_of_0_multiplies_a_slot_by_its_declared_fading": (
            "rules that draw nothing", "rules that draw nothing", "a few rules",
        ),
    },
    "execution.test_listed_rows": {
        "test_listed_rows_step_as_a_leaf_of_their_own_and_others_stand_still_or_the_error_says_why": (
            "all", "plain links + chosen aliases", "a few",
        ),
        "test_a_rule_that_takes_rows_updates_them_as_it_does_beside_rows_of_zeros": (
            "rules that draw nothing", "rules that draw nothing", "a few rules",
        ),
    },
    "project.test_conformance": {
        "test_updates_and_slots_keep_shapes_and_dtypes": ("all", "plain links + chosen aliases", "of each kind"),
        "test_a_bf16_update_is_the_float32_one": (
            "lean that round nothing and call no gradient", "of each kind", "a few",
        ),
        "test_state_dtype_decides_what_slots_are_kept_in": ("all that round nothing", "of each kind", "a few"),
        "test_updates_leave_every_input_bit_identical_and_share_no_memory_with_it": (
            "all", "of each kind + second third of links", "of each kind",
        ),
        "test_tensors_of_a_finished_update_do_not_wait_for_the_garbage_collector": (
            "lean", "one of each kind", "adamw",
        ),
        "test_a_leaf_without_gradient_stays_as_it_is": (
            "lean that estimate nothing", "of each kind + first third of links", "of each kind",
        ),
        "test_floats_as_tensors_or_schedules_change_neither_structure_nor_result": (
            "costly", "one of each kind", "a few",
        ),
        "test_derivatives_at_zero_are_finite": ("lean", "of each kind + last third of links", "a few"),
        "test_zero_gradients_and_leaves_of_all_ranks_stay_finite": (
            "all", "of each kind + last third of links", "a few",
        ),
        "test_zero_gradients_give_finite_updates_without_eps_too": ("safe without eps",) * 3,
        "test_a_saved_and_reloaded_state_continues_bit_for_bit": ("lean", "of each kind", "a few"),
        "test_maximize_equals_the_negated_gradient": (
            "plain aliases that take gradients", "of each kind", "of each kind",
        ),
        "test_the_repr_evaluates_to_the_same_transformation": (
            "lean whose text says all", "of each kind + first third of links", "a few",
        ),
        "test_an_elementwise_rule_does_not_care_how_entries_are_cut_into_leaves": (
            "elementwise", "of each kind + second third of links", "a few",
        ),
        "test_params_are_read_only_where_needs_says_so": (
            "all", "of each kind + second third of links", "of each kind",
        ),
        "test_leaves_are_matched_by_name_in_any_order": ("plain costly that estimate nothing", "of each kind", "a few"),
        "test_a_step_along_the_field_depends_on_nothing_hidden": ("lean", "of each kind", "a few"),
        "test_a_leaf_whose_first_gradient_comes_late_steps_as_one_that_starts_then": (
            "lean rules and aliases without a closure", "of each kind + last third of links", "of each kind",
        ),
        "test_a_leaf_whose_first_gradient_comes_late_does_so_in_an_optimizer": (
            "lean rules and aliases without a closure", "rules of each kind", "rules of each kind",
        ),
        "test_of_finite_gradients_a_transformation_wrapped_for_safety_is_the_same": (
            "lean", "readers of the count", "a few",
        ),
        "test_after_a_gradient_that_is_not_finite_lists_have_the_same_infinities_as_rules_line_by_line": (
            "plain without a closure", "one of each kind", "a few",
        ),
    },
    "project.test_conformance_func": {
        "test_vmap_over_every_float_and_over_stacked_weights_and_states_equals_a_loop": (
            "costly", "of each kind + first third of links", "a few",
        ),
        "test_vmap_over_numbers_alone_with_weights_that_members_share_equals_a_loop": (
            "costly", "of each kind + second third of links", "a few",
        ),
        "test_the_first_step_of_an_alias_under_vmap_equals_a_loop": (
            "all aliases", "chosen aliases", "chosen of each kind",
        ),
        "test_reverse_and_forward_derivatives_by_every_float_and_by_the_first_weights_are_difference_quotients": (
            "costly", "one of each kind", "a few",
        ),
        "test_grad_of_a_vmapped_run_and_vmap_of_grad_equal_the_grad_of_each_member": (
            "plain costly", "one of each kind", "a few",
        ),
        "test_forward_derivatives_are_the_same_under_no_grad": ("plain links", "one of each kind", "a few"),
        "test_a_compiled_training_step_is_one_graph_for_twenty_steps_of_new_numbers": (
            "packs", "a pack and a combinator", "",
        ),
        "test_a_compiled_update_equals_the_eager_one": ("all that take gradients", "", ""),
        "test_a_compiled_step_of_members_with_their_own_numbers_is_one_graph": ("some packs", "adam", ""),
        "test_vmap_of_a_compiled_step_equals_the_vmap_of_the_step": ("adamw", "adamw", ""),
    },
    "gpu.test_conformance": {
        "test_steps_equal_those_on_the_cpu_wait_for_nothing_and_can_be_captured": (
            "plain that take gradients", "of each kind + first third of links", "a few",
        ),
        "test_pure_updates_equal_those_on_the_cpu": ("plain that take gradients", "of each kind", "a few"),
    },
    "gpu.test_kernels": {
        "test_an_optimizer_equals_lists": ("plain aliases that take gradients", "aliases of each kind", ""),
    },
    "gpu.test_watch": {
        "test_a_watch_keeps_bits_and_waits_for_nothing_at_other_steps": (
            "plain that take gradients", "of each kind", "a few",
        ),
    },
    "gpu.test_ways": {
        "test_steps_under_a_grad_scaler_equal_those_on_the_cpu": (
            "plain that take gradients and a scaler scales", "one of each kind", "a few",
        ),
        "test_late_and_missing_gradients": ("plain that take gradients", "one of each kind", "a few"),
        "test_leaves_on_two_devices_step_as_on_one": (
            "plain that take gradients, without a closure", "one of each kind", "a few",
        ),
        "test_a_checkpoint_of_one_device_continues_on_another": (
            "plain that take gradients", "one of each kind", "adamw",
        ),
    },
    "gpu.test_without_float64": {
        "test_steps_equal_those_on_the_cpu": (
            "plain that take gradients and estimate nothing", "of each kind", "a few",
        ),
        "test_eager_steps_equal_those_on_the_cpu": ("of each kind", "one of each kind", "a few"),
        "test_pure_updates_equal_those_on_the_cpu": (
            "plain that take gradients and estimate nothing", "one of each kind", "a few",
        ),
    },
    "optim.steps.test_closures": {
        "test_ten_steps_that_maximize_the_negative_loss_are_those_that_minimize_the_loss": (
            "plain aliases that take gradients", "readers of the loss", "readers of the loss",
        ),
    },
    "optim.steps.test_complex": {
        "test_every_factory_steps_as_with_real_views_or_refuses_by_name": ("plain", "plain links", ""),
    },
    "optim.scaling_and_capture.test_grad_scaler": {
        "test_every_transformation_skips_infinite_steps": ("plain that a scaler scales", "of each kind", ""),
    },
    "optim.steps.test_release": {
        "test_a_chain_is_refused_if_and_only_if_it_needs_all_gradients": ("plain", "of each kind", ""),
    },
    "watching.test_compositions": {
        "test_the_measuring_twin_of_a_composition_has_its_updates_and_state_alone_and_in_combinators": (
            "composed", "a few", "",
        ),
    },
}  # fmt: skip
# Of properties with more parameters than the case: ids of which others than these run by night only.
BY_DAY_IDS = {
    "test_updates_and_slots_keep_shapes_and_dtypes": ("*-torch.float64",),
    "test_zero_gradients_and_leaves_of_all_ranks_stay_finite": ("*-torch.float16",),
    "test_a_leaf_whose_first_gradient_comes_late_does_so_in_an_optimizer": ("*-lists",),
    "test_a_compiled_training_step_is_one_graph_for_twenty_steps_of_new_numbers": ("*-matrix",),
}


def name_of(item: Any) -> str:
    """The id of a case, or of cases in a chain."""
    return str(item) if isinstance(item, Case) else " ".join(map(str, item))


@functools.cache
def _module_of(path: Path) -> str:
    return ".".join(path.relative_to(TESTS_FOLDER).with_suffix("").parts)


def _row(test: Any) -> tuple[str, str, str]:
    module = _module_of(Path(inspect.getfile(test)))
    try:
        return PROPERTIES[module][test.__name__]
    except KeyError:
        raise pytest.UsageError(
            f"tests/tiers.py: PROPERTIES has no row of {test.__name__} in {module}; add it, with its sets of cases by "
            "night, by day, and in `make quick`"
        ) from None


WITH_NIGHT = True  # tests/conftest.py sets it: without the nightly tests, their cases are not made


def _marked(test: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The cases of a property, with the mark of the tier in which each runs first."""
    night, day, quick = _row(test)
    by_day, in_quick = ({*map(name_of, cases_of(names))} if names else set() for names in (day, quick))
    for item in cases_of(night):
        if name_of(item) not in by_day:
            if WITH_NIGHT or not by_day:
                yield item, [pytest.mark.nightly]
        else:
            yield item, [] if name_of(item) in in_quick else [pytest.mark.slow]


def each_case(test: Any) -> Any:
    """Parametrize a test by `case`, as its row in `PROPERTIES` says; cases that are exempt from it must fail."""
    parameters = [
        pytest.param(case, id=str(case), marks=[*marks, *conformance.exemptions_of(test, case)])
        for case, marks in _marked(test)
    ]
    return pytest.mark.parametrize("case", parameters)(test)


def each_set(test: Any) -> Any:
    """As `each_case`, and by `places`: float hyperparameters that can be tensors together; few sets hold all."""
    parameters = []
    for case, marks in _marked(test):
        marks = [*marks, *conformance.exemptions_of(test, case)]
        for i, places in enumerate(case.float_sets() or [[]]):
            parameters.append(pytest.param(case, places, id=f"{case}{f'-{i}' if i else ''}", marks=marks))
    return pytest.mark.parametrize(("case", "places"), parameters)(test)


def each_pack(test: Any) -> Any:
    """As `each_case`, for cases in chains."""
    parameters = [pytest.param(pack, id=name_of(pack), marks=marks) for pack, marks in _marked(test)]
    return pytest.mark.parametrize("pack", parameters)(test)


# Products elsewhere.

_CHOSEN = "cases_by_day"


def by_day(*patterns: str) -> Callable[[Any], Any]:
    """Leave the cases of a test whose ids match none of the patterns to the night."""

    def decorated(test: Any) -> Any:
        setattr(test, _CHOSEN, patterns)
        return test

    return decorated


# Files that `make quick` leaves out, and does not import: they compile, start processes, use other libraries, read the
# documentation, or take long. Single slow tests in other files have the mark.
FROM_TEST_ON = (
    "base/test_torch_names.py", "clients", "combinators/test_blocks.py", "combinators/test_precision.py",
    "combinators/test_qk_clip.py", "combinators/test_rotated.py", "combinators/test_selection.py",
    "combinators/test_sharpness.py", "combinators/test_stagger.py", "combinators/test_tuners.py",
    "compiler/test_batches.py", "compiler/test_compiled.py", "compiler/test_cpp_kernels.py", "compiler/test_tiles.py",
    "distributed", "fuzz", "gpu/test_fuzz.py", "gpu/test_kernels.py", "gpu/test_listed_rows.py",
    "optim/checkpoints/test_checkpoints.py",
    "optim/checkpoints/test_copies.py", "optim/checkpoints/test_foreign_checkpoints.py",
    "optim/engine/test_compiled_rough.py", "optim/engine/test_order_in_memory.py",
    "optim/scaling_and_capture/test_capture.py", "optim/scaling_and_capture/test_devices.py",
    "optim/scaling_and_capture/test_grad_scaler.py", "optim/state/test_exchanged.py", "optim/state/test_storage.py",
    "optim/steps/test_complex.py", "optim/steps/test_release.py", "optim/surroundings/test_ecosystem.py",
    "optim/surroundings/test_surroundings.py", "plans/test_by_count.py", "plans/test_large_leaves.py",
    "project/test_docs.py", "project/test_examples.py", "project/test_from_pytorch_optimizer.py",
    "project/test_imports.py", "project/test_optax_names.py", "project/test_package.py", "project/test_site.py",
    "project/test_typed.py", "pure/test_compiled_updates.py", "state/test_parts.py", "state/test_storage.py",
    "sweeps/test_sweep.py", "test_registry.py", "users/test_language_models.py", "users/test_optimizer_research.py",
    "users/test_records.py", "watching",
)  # fmt: skip

# In these, `make quick` runs two cases of each test without a row: the first, and the one in the middle.
TWO_CASES_IN_QUICK = ("algorithms", "combinators", "compiler", "gpu", "links", "optim", "plans", "pure")
# But of these all: one kernel has all cases, and each is another operation.
ALL_CASES_IN_QUICK = ("compiler/test_expressions.py",)

# Single tests and examples, as patterns of their ids from tests/ on, and the tier from which on they run.
TESTS = {
    # The program of a search is long. tests/links/test_manifolds.py has it.
    "*::gradtx.links.manifolds.orthogonalize_tangent": DAY,
    "*::gradtx.algorithms.spectral_sphere.spectral_sphere": DAY,
    # These take 4 s or more, and others repeat them on smaller chains.
    "combinators/test_precision.py::test_noise_follows_the_places_of_entries_in_any_layout[[]True]": NIGHT,
    "distributed/test_release.py::test_compiled_programs_step_shards_during_backward": NIGHT,
    "fuzz/test_fuzz.py::test_random_chains_compile*": NIGHT,
    "compiler/test_compiled.py::test_many_small_leaves_share_a_bundle_and_its_sums*": NIGHT,
    "optim/steps/test_complex.py::test_compiled_steps_equal_the_default*": NIGHT,
    "optim/scaling_and_capture/test_grad_scaler.py::test_compiled_steps_under_a_scaler_equal_*_once[[]design]": NIGHT,
    "project/test_conformance_func.py::test_a_whole_step_through_inductor_equals_eager": NIGHT,
    "project/test_optax_names.py::test_*_that_are_said_to_be_equal_give_the_same_*": NIGHT,
    "project/test_typed.py::*[[]found_by_mypy*": NIGHT,
}
MARKS = {DAY: pytest.mark.slow, NIGHT: pytest.mark.nightly}


@functools.cache  # a path has hundreds of cases
def is_left_out_of_quick(path: Path) -> bool:
    return _is_in(path, FROM_TEST_ON)


@functools.cache
def _has_two_cases_in_quick(path: Path) -> bool:
    return _is_in(path, TWO_CASES_IN_QUICK) and not _is_in(path, ALL_CASES_IN_QUICK)


def _is_in(path: Path, names: tuple[str, ...]) -> bool:
    return any(path == TESTS_FOLDER / name or TESTS_FOLDER / name in path.parents for name in names)


def mark(items: list[pytest.Item], is_whole_suite: bool, has_whole_tests: bool) -> None:
    """Mark the tests by tier, and refuse a pattern that is that of no test, if all of them are here."""
    unmatched = set(TESTS)
    for item in items:
        if is_left_out_of_quick(item.path):
            item.add_marker(pytest.mark.slow)
        name = item.nodeid.removeprefix("tests/")
        for pattern in [pattern for pattern in TESTS if fnmatch.fnmatchcase(name, pattern)]:
            item.add_marker(MARKS[TESTS[pattern]])
            unmatched.discard(pattern)
    if unmatched and is_whole_suite:
        raise pytest.UsageError(f"TESTS of tests/tiers.py: no test matches {sorted(unmatched)}")
    _mark_cases(items, has_whole_tests)
    _leave_two_in_quick([item for item in items if _has_two_cases_in_quick(item.path) and not _has_row(item)])


def _has_row(item: pytest.Item) -> bool:
    return getattr(item, "originalname", None) in PROPERTIES.get(_module_of(item.path), {})


def _leave_two_in_quick(items: list[pytest.Item]) -> None:
    in_quick = (item for item in items if tier_of(item) == QUICK)
    for _, group in itertools.groupby(in_quick, lambda item: getattr(item, "function", item)):
        cases = list(group)
        for case in cases:
            if case not in (cases[0], cases[len(cases) // 2]):
                case.add_marker(pytest.mark.slow)


def _mark_cases(items: list[pytest.Item], has_whole_tests: bool) -> None:
    unmatched: dict[Any, set[str]] = {}
    for item in items:
        test = getattr(item, "function", None)
        patterns = getattr(test, _CHOSEN, None) or BY_DAY_IDS.get(getattr(test, "__name__", ""))
        if patterns is None:
            continue
        name = item.callspec.id  # type: ignore[attr-defined]
        matched = {pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}
        unmatched.setdefault(test, set(patterns)).difference_update(matched)
        if not matched:
            item.add_marker(pytest.mark.nightly)
    for test, patterns in unmatched.items():
        if patterns and has_whole_tests:
            raise pytest.UsageError(
                f"by_day of {test.__name__} in {test.__module__}: no case matches {sorted(patterns)}; "
                "remove them from its list, or put the cases' new ids there"
            )


# What concerns a name.


def names_of(name: str) -> set[str]:
    """A factory's and its class's, from either of them."""
    found = {name}
    for factory, class_name in CLASSES.items():
        if name in (factory, class_name):
            found |= {factory, class_name}
    return found


def tier_of(item: pytest.Item) -> str:
    """The first tier in which a test runs."""
    if item.get_closest_marker("nightly"):
        return NIGHT
    return DAY if item.get_closest_marker("slow") else QUICK


class _Collected:
    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


def concerning(name: str) -> dict[str, Counter[str]]:
    """By tier, the tests whose names, files or cases are those of a factory or a class, with their numbers of cases."""
    names = names_of(name)
    word = re.compile(rf"(?<![A-Za-z0-9_])({'|'.join(map(re.escape, names))})(?![A-Za-z0-9_])")
    collected = _Collected()
    arguments = ["--collect-only", "-p", "no:cacheprovider", "gradtx", "tests"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        result = pytest.main(arguments, plugins=[collected])
    if result != pytest.ExitCode.OK:
        raise SystemExit(output.getvalue())
    found: dict[str, Counter[str]] = {tier: Counter() for tier in TIERS}
    for item in collected.items:
        is_own = item.path.stem.removeprefix("test_") in names
        if is_own or word.search(item.nodeid.partition("::")[2]):
            found[tier_of(item)][item.nodeid.partition("[")[0]] += 1
    return found


def main(name: str) -> None:
    known = {*MODULES, *CLASSES.values()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise SystemExit(f"gradtx has no factory or class {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    for tier, tests in concerning(name).items():
        print(f"make {tier}{'' if tier == QUICK else ', also'}")
        for test, count in sorted(tests.items()):
            print(f"{count:5} {test}")


if __name__ == "__main__":
    main(*sys.argv[1:])
