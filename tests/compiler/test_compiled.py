"""`compile=True`: equal to eager steps, in place, and nothing is compiled twice."""

import copy
import functools
import io
import math
import os
import pickle
import sys
import weakref

import pytest
import torch

import gradtx
from gradtx.base.recent import SharedPrograms
from gradtx.compiler import cpp, kernels
from tests.compiler.expressions import wrong_operations
from tests.conformance import after_a_bad_gradient, composed_cases, functions, noise, plain_cases, step_extras, tensors
from tests.tiers import by_day

SHAPES = {"conv": (2, 3, 2, 2), "matrix": (3, 4), "vector": (5,), "scalar": (), "ones": (3, 1, 2), "empty": (0, 2)}
# One in six by day.
SIXTH = (
    "a2grad", "adafactor", "adam", "adamd", "adan", "adatam", "amos", "came", "dadapt_adan", "dog", "ftrl",
    "kate", "lbfgs", "momo", "muown", "novograd", "polar_adam_atan2", "qhm", "sadam", "sgd", "signsgd", "soap_muon",
    "stable_spam",
)  # fmt: skip
ALIASES = [case for case in plain_cases() if case.factory.__name__ in SIXTH]
CHAINS = {
    "norm": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=0.01)),
    "two sums": lambda: gradtx.skip_nonfinite(gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.sgd(lr=0.01))),
    "recorded": lambda: gradtx.chain(gradtx.record("raw"), gradtx.adamp(lr=0.01, weight_decay=0.1)),
    "accumulated": lambda: gradtx.accumulate(
        gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=gradtx.cosine_schedule(0.1, 5))), every=2
    ),
    "branches": lambda: gradtx.partition(
        {"kernels": gradtx.adamp(lr=0.01), "rest": gradtx.sgd(lr=0.1, momentum=0.9)},
        {"kernels": ("conv", "matrix"), "rest": "*"},
    ),
    "masked": lambda: gradtx.chain(
        gradtx.masked(gradtx.centralize(), lambda name, leaf: leaf.ndim > 1), gradtx.sgd(lr=0.1), gradtx.freeze("ones")
    ),
    "average": lambda: gradtx.chain(gradtx.sgd(lr=0.1, momentum=0.5), gradtx.lookahead(2), gradtx.average(0.9)),
}

each = functools.partial(pytest.mark.parametrize, ids=str)


def optimizers(make, dtype=torch.float64, shapes=SHAPES, options=True):
    """Return two optimizers with the same initial weights: eager and compiled."""
    start = noise(3, shapes, dtype)
    made = []
    for compile in (False, options):
        params = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
        made.append((params, gradtx.as_optimizer(make(), list(params.items()), compile=compile)))
    return made


def walk(params, optimizer, steps, missing=None):
    """Take steps along a smooth field; a leaf may lack its gradient in a step."""
    for i in range(steps):
        for (name, param), grad in zip(params.items(), gradients(params).values(), strict=True):
            param.grad = None if missing == (i, name) else grad
        given = step_extras(optimizer._tx, params)
        optimizer.step(functools.partial(closure, params) if "grad_fn" in optimizer._tx.needs else None, **given)


def values(params):
    return {name: param.detach() for name, param in params.items()}


def gradients(params):
    """Return the field of the conformance tests, for arbitrary names."""
    return {name: (0.5 * p + 0.3 * (2 * p).sin() + 0.1).to(p.dtype) for name, p in values(params).items()}


def closure(params):
    for name, grad in gradients(params).items():
        params[name].grad = grad
    return sum(value.square().sum() for value in values(params).values())


def assert_equal(eager, compiled, tolerance):
    (params, one), (others, two) = eager, compiled
    for name in params:
        state, other = one.state[params[name]], two.state[others[name]]
        assert list(state) == list(other)
        for key in state:  # first: the earliest link that differs has the first slot that does
            assert (other[key].dtype, other[key].shape) == (state[key].dtype, state[key].shape)
            assert_near(other[key], state[key], 10 * tolerance, f"slot {key!r} of leaf {name!r}")
        assert_near(others[name], params[name], tolerance, f"leaf {name!r}")


def assert_near(found, expected, tolerance, where):
    def told(text):
        return f"{where}: {text}{wrong_operations()}"

    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=told)


@by_day(
    "adamp", "amplify_slow_gradients_window", "clip_by_global_norm", "dion", "galore", "kl_soap", "mechanize",
    "optimistic_gradient_descent", "qk_clip", "sadam", "scale_by_adam_stable_decay", "scale_by_aggmo",
    "scale_by_cocob", "scale_by_dowg", "scale_by_kate", "scale_by_local_smoothness", "scale_by_nuclear_norm",
    "scale_by_qhm", "scale_by_trust_ratio", "signsgd", "spam", "yogi",
)  # fmt: skip
@each("case", composed_cases())
def test_every_transformation_steps_as_eagerly_however_its_leaves_are_bundled(case):
    eager, compiled = optimizers(case.make, shapes={name: tuple(x.shape) for name, x in case.noise(3, SHAPES).items()})
    for pair in (eager, compiled):
        walk(*pair, steps=4, missing=(2, "vector"))
    assert not compiled[1]._core.back_ends[0].failed
    assert_equal(eager, compiled, 1e-12)


@by_day("adam", "ftrl")
@each("case", ALIASES)
def test_every_alias_compiled_equals_eager(case):
    eager, compiled = optimizers(case.make, shapes={"matrix": (3, 4)})
    for pair in (eager, compiled):
        walk(*pair, steps=3)
    assert not compiled[1]._core.back_ends[0].failed
    assert_equal(eager, compiled, 1e-12)


@by_day("*-lion", "inf-adabelief")
@each("case", [case for case in plain_cases() if not {"grad_fn", "value_fn"} & {*case.example.needs}])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_after_a_gradient_that_is_not_finite_kernels_have_the_same_infinities_as_rules_line_by_line(case, bad):
    params = case.noise(1, dtype=torch.float32)
    with gradtx.eagerly():
        by_line = after_a_bad_gradient(case.make(), params, bad)
    assert after_a_bad_gradient(case.make(), params, bad, compile=True) == by_line


@by_day("adamp")
@pytest.mark.parametrize("make", [gradtx.adamw, gradtx.adamp, gradtx.lamb, gradtx.adam_atan2, gradtx.adasmooth])
def test_in_single_precision_compiled_equals_eager_to_rounding(make):
    eager, compiled = optimizers(make, torch.float32, {"matrix": (3, 4), "vector": (5,), "other": (7,)})
    for pair in (eager, compiled):
        walk(*pair, steps=3)
    assert not compiled[1]._core.back_ends[0].failed
    assert_equal(eager, compiled, 1e-6)


def with_large_gradients(params, optimizer):
    """Take steps of which one has gradients whose squares are infinite in float32; that times 0.001 is finite."""
    start = {name: value.clone() for name, value in values(params).items()}
    for scale in (1.0, 1e20, 1.0, 1.0):

        def differentiate(scale=scale):
            for name, grad in gradients(start).items():
                params[name].grad = scale * grad
            return torch.ones(())

        differentiate()
        given = step_extras(optimizer._tx, start)
        optimizer.step(differentiate if "grad_fn" in optimizer._tx.needs else None, **given)


@by_day("adai", "adam", "dadapt_adan", "madgrad", "padam", "qhadam", "scale_by_laprop")
@each("case", [case for case in plain_cases() if not functions(case.example)])  # which read no gradients
def test_large_gradients_step_as_eagerly_in_single_precision(case):
    shapes = {name: tuple(x.shape) for name, x in case.noise(3, {"matrix": (3, 4), "vector": (5,)}).items()}
    eager, compiled = optimizers(case.make, torch.float32, shapes)
    for pair in (eager, compiled):
        with_large_gradients(*pair)
    for (name, param), other in zip(eager[0].items(), compiled[0].values(), strict=True):
        close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5, equal_nan=True)
        close(other, param)
        for key, slot in eager[1].state[param].items():
            close(compiled[1].state[other][key], slot, msg=lambda text, key=key, name=name: f"{name} {key}: {text}")


@pytest.mark.parametrize("compile", [False, True])
def test_a_gradient_of_1e20_does_not_stop_adam_for_good(compile):
    params = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]
    makes = [functools.partial(gradtx.optim.Adam, compile=compile), torch.optim.Adam]
    for param, make in zip(params, makes, strict=True):
        optimizer = make([param], lr=0.1)
        for size in (1e20, 1.0, 1.0, 1.0):
            param.grad = torch.full((5,), size)
            optimizer.step()
    assert params[1].max() < 0.8
    torch.testing.assert_close(*params)


@by_day("two sums", "masked")
@pytest.mark.parametrize("name", CHAINS)
def test_every_kind_of_chain_compiled_equals_eager(name):
    eager, compiled = optimizers(CHAINS[name])
    for pair in (eager, compiled):
        walk(*pair, steps=5, missing=(3, "vector"))
    assert not compiled[1]._core.back_ends[0].failed
    assert_equal(eager, compiled, 1e-12)


# Cases in which nothing is compiled twice.


@pytest.fixture(name="programs")
def _programs(monkeypatch, forget_programs):
    """The texts of all kernels; what other tests have left is compiled again."""
    texts, compiled = set(), cpp.compiled
    forget_programs()
    monkeypatch.setattr(kernels, "_KERNELS", SharedPrograms())
    monkeypatch.setattr(cpp, "compiled", lambda text: texts.add(text) or compiled(text))
    return texts


SCHEDULERS = {
    "OneCycleLR": lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=25),
    "CyclicLR": lambda opt: torch.optim.lr_scheduler.CyclicLR(opt, 0.01, 0.1, step_size_up=4, cycle_momentum=False),
    "CosineAnnealingLR": lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10),
    "LinearLR": torch.optim.lr_scheduler.LinearLR,
    "ExponentialLR": lambda opt: torch.optim.lr_scheduler.ExponentialLR(opt, 0.9),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_twenty_steps_under_a_scheduler_compile_once(name, programs):
    (eager, compiled) = optimizers(lambda: gradtx.adamw(lr=0.01), shapes={"matrix": (3, 4), "vector": (5,)})
    for params, optimizer in (eager, compiled):
        scheduler = SCHEDULERS[name](optimizer)
        for _ in range(20):
            walk(params, optimizer, 1)
            scheduler.step()
    assert len(programs) == 1
    assert_equal(eager, compiled, 1e-12)


def test_groups_share_programs_and_new_groups_and_missing_gradients_compile_nothing(programs):
    params = [torch.nn.Parameter(torch.full((n,), 1.0)) for n in (3, 4, 5, 6)]
    optimizer = gradtx.optim.AdamW(
        [{"params": params[:2], "lr": 0.1}, {"params": params[2:3], "weight_decay": 0.3}], compile=True
    )
    for i in range(6):
        for param in params:
            param.grad = torch.ones_like(param)
        if i == 2:
            params[0].grad = None
        if i == 4:
            optimizer.add_param_group({"params": params[3:], "betas": (0.5, 0.9)})
        optimizer.step()
    assert len(programs) == 1
    assert [int(optimizer.state[param]["step"]) for param in params] == [5, 6, 6, 2]


def test_a_switch_that_changes_the_links_compiles_anew_and_back_again_nothing(programs):
    (eager, compiled) = optimizers(lambda: gradtx.sgd(lr=0.1), shapes={"vector": (5,)})
    for params, optimizer in (eager, compiled):
        for momentum in (0.0, 0.9, 0.0, 0.5):
            optimizer.param_groups[0]["momentum"] = momentum
            walk(params, optimizer, 2)
    assert len(programs) == 2
    assert_equal(eager, compiled, 1e-12)


def test_optimizers_of_like_chains_share_programs(programs):
    params = [torch.nn.Parameter(torch.full((n,), 1.0)) for n in (3, 4, 5)]
    for param, lr in zip(params, (0.1, 0.2, 0.3), strict=True):  # one optimizer per parameter, as with hooks
        param.grad = torch.ones_like(param)
        gradtx.optim.AdamW([param], lr=lr, compile=True).step()
    assert len(programs) == 1


def test_leaves_of_one_entry_join_the_programs_of_others(programs):
    shapes = {"one": (1,), "ones": (1, 1), "vector": (5,)}
    eager, compiled = optimizers(lambda: gradtx.adamw(lr=0.1), shapes=shapes)
    for pair in (eager, compiled):
        walk(*pair, steps=4, missing=(2, "vector"))
    assert {way.way for way in compiled[1].explain()} == {"kernels"}
    assert len(programs) == 2  # one for leaves of equal counts, and one by row
    assert_equal(eager, compiled, 1e-12)


# In-place writes, for all kinds of tensors.


@gradtx.per_tensor(elementwise=True)
def _tripled_if_long():
    def update(update, state, param, ctx):
        return update * (3 if update.numel() > 6 else 2), state

    return update


@pytest.mark.parametrize(
    "tx",
    [_tripled_if_long(), gradtx.with_state_dtype(gradtx.trace(0.5), "float8", min_size=4)],
    ids=["branch", "float8"],
)
def test_leaves_whose_programs_differ_run_their_own(tx):
    weights = []
    for compiles in (False, True):
        params = [torch.nn.Parameter(torch.ones(n)) for n in (64, 3, 16, 12)]
        optimizer = gradtx.as_optimizer(gradtx.chain(tx, gradtx.sgd(lr=0.1)), params, compile=compiles)
        for param in params:
            param.grad = torch.linspace(-1, 1, len(param))
        optimizer.step()
        weights.append(torch.cat(params).detach())
    torch.testing.assert_close(*weights)


def test_parameters_and_state_stay_where_they_are_and_gradients_are_let_go():
    param = torch.nn.Parameter(torch.randn(7))
    optimizer = gradtx.optim.AdamW([param], compile=True)
    places = []
    for _ in range(3):
        param.grad = torch.ones(7)
        gone = weakref.ref(param.grad.untyped_storage())
        optimizer.step()
        places.append([t.data_ptr() for key, t in {"": param, **optimizer.state[param]}.items() if key != "step"])
        optimizer.zero_grad()
        assert gone() is None
    assert places[0] == places[1] == places[2]


def test_later_use_of_a_changed_parameter_in_backward_is_an_error_as_ever():
    param = torch.nn.Parameter(torch.randn(7))
    optimizer = gradtx.optim.SGD([param], lr=0.1, compile=True)
    loss = param.square().sum()
    param.grad = torch.ones(7)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


ODD = {
    "transposed": lambda: torch.randn(4, 3).t(),
    "a part": lambda: torch.randn(4, 6)[:, ::2],
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "rows": lambda: torch.randn(6, 4)[1:5],
}


@pytest.mark.parametrize("make", [gradtx.optim.AdamW, gradtx.optim.AdamP], ids=["flat", "shaped"])
@pytest.mark.parametrize("name", ODD)
def test_tensors_in_any_layout_step_as_eagerly(name, make):
    torch.manual_seed(0)
    start = ODD[name]()
    params = [torch.nn.Parameter(start.clone(memory_format=torch.preserve_format)) for _ in range(2)]
    if name == "a part":
        params = [torch.nn.Parameter(torch.zeros(4, 6)[:, ::2].copy_(start)) for _ in range(2)]
    for compile, param in zip((False, True), params, strict=True):
        optimizer = make([param], lr=0.1, compile=compile)
        for i in range(3):
            param.grad = torch.linspace(-1, 1, param.numel()).view(param.shape).contiguous() * (i + 1)
            optimizer.step()
    torch.testing.assert_close(params[1], params[0])


@gradtx.per_tensor(elementwise=True, shared={"leaves": 0.0}, summed={"leaves": lambda total: total})
def divide_by_number_of_leaves():
    def update(update, state, param, ctx):
        return update / (1.0 + state["leaves"]), {"leaves": torch.ones_like(state["leaves"])}

    return update


SUMS = {
    "now": gradtx.prodigy,
    "late": lambda: gradtx.chain(gradtx.clip_by_global_norm(0.5, stale=True), gradtx.sgd(0.1)),
    "constant": lambda: gradtx.chain(divide_by_number_of_leaves(), gradtx.sgd(0.1)),
}


@each("name", SUMS)
def test_many_small_leaves_share_a_bundle_and_its_sums(name):
    eager, compiled = optimizers(SUMS[name], shapes={f"leaf{i}": (i + 3,) for i in range(19)})
    for pair in (eager, compiled):
        walk(*pair, steps=3)
    assert len(compiled[1]._core.back_ends[0].plans[None].bundles) == 1
    assert_equal(eager, compiled, 1e-12)
    for pair in (eager, compiled):
        walk(*pair, steps=3, missing=(1, "leaf5"))
    assert_equal(eager, compiled, 1e-12)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_goes_on_by_itself(again):
    params, optimizer = optimizers(lambda: gradtx.adamw(lr=0.1))[1]
    walk(params, optimizer, 2)
    other = again(optimizer)
    twins = dict(zip(params, (p for group in other.param_groups for p in group["params"]), strict=True))
    walk(params, optimizer, 2)
    walk(twins, other, 2)
    assert_equal((params, optimizer), (twins, other), 0.0)


def test_a_compiled_run_resumes_bit_for_bit():
    (params, optimizer), (others, other) = optimizers(lambda: gradtx.adamw(lr=0.1))[1], optimizers(gradtx.adamw)[1]
    walk(params, optimizer, 3)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    for name, param in others.items():
        param.data.copy_(params[name])
    other.load_state_dict(torch.load(buffer, weights_only=True))
    walk(params, optimizer, 3)
    walk(others, other, 3)
    assert_equal((params, optimizer), (others, other), 0.0)


# Options, and failures to compile.


@pytest.mark.parametrize("value", ["max-autotune", {"max_autotune": True}, 3])
def test_options_of_other_compilers_are_refused_at_construction(value):
    with pytest.raises(TypeError, match=r"compile must be True, False or an Engine, got .*; gradtx writes"):
        gradtx.optim.SGD([torch.nn.Parameter(torch.ones(5))], compile=value)


def warned(compiled, text):
    """Take steps with the default results and one warning, from here."""
    eager = optimizers(lambda: gradtx.adamw(lr=0.1))[0]
    walk(*eager, steps=3)
    with pytest.warns(RuntimeWarning, match=f"compile=True runs steps over lists of tensors: {text}") as seen:
        walk(*compiled, steps=3)
    assert [one.filename for one in seen] == [__file__]
    assert {way.way for way in compiled[1].explain()} == {"lists"}
    assert_equal(eager, compiled, 0.0)


def test_without_a_compiler_there_is_one_warning(monkeypatch):
    monkeypatch.setattr(cpp, "compiler_or_none", lambda: None)
    warned(optimizers(lambda: gradtx.adamw(lr=0.1))[1], "there is no C.. compiler; install g.. or clang")


@pytest.fixture(name="forget")
def _forget():
    """Compilers are found and asked again, now and after the test."""
    for function in (cpp.compiler_or_none, cpp.outcome):
        function.cache_clear()
    yield
    for function in (cpp.compiler_or_none, cpp.outcome):
        function.cache_clear()


def test_if_the_compiler_fails_there_is_one_warning_with_its_message(monkeypatch, forget):
    monkeypatch.setattr(cpp, "FLAGS", ("-x", "c++", "--of-no-compiler"))
    warned(optimizers(lambda: gradtx.adamw(lr=0.1))[1], ".*of-no-compiler")


def test_the_compiler_of_the_environment_is_used(monkeypatch, forget):
    monkeypatch.setenv("CXX", sys.executable)
    assert cpp.compiler_or_none() == (sys.executable,)


def a_program(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_compiler_of_the_environment_may_be_a_command_with_arguments(monkeypatch, forget, tmp_path):
    """As CXX="ccache g++" is; a path may contain spaces."""
    compiler = cpp.compiler_or_none()
    if compiler is None:
        pytest.skip("needs g++ or clang")
    (tmp_path / "a folder").mkdir()
    log = tmp_path / "log"
    cache = a_program(tmp_path / "a folder" / "cache", f'#!/bin/sh\necho called >> "{log}"\nexec "$@"\n')
    for command in (f"'{cache}' {compiler[0]} -fno-math-errno", str(cache)):
        cpp.compiler_or_none.cache_clear()
        monkeypatch.setenv("CXX", command)
        assert cpp.compiler_or_none()[0] == str(cache)
        if command != str(cache):
            params, optimizer = optimizers(lambda: gradtx.adamw(lr=0.1))[1]
            walk(params, optimizer, 2)
            assert {item.way for item in optimizer.explain()} == {"kernels"}
    assert set(log.read_text().split()) == {"called"}


VECTORS = {f"leaf{i}": (i + 2,) for i in range(4)}
BROKEN = {"refuses": "#!/bin/sh\necho called >> {log}\necho no such target >&2\nexit 1\n", "cannot run": "\0"}


def walk_with_gaps(params, optimizer):
    for missing in (None, "leaf0", None, "leaf1", None):
        walk(params, optimizer, 1, missing=(0, missing))


@pytest.mark.parametrize("name", BROKEN)
def test_a_compiler_that_fails_is_asked_once_and_explained(name, monkeypatch, forget, tmp_path, logged):
    log = tmp_path / "log"
    compiler = a_program(tmp_path / "c++", BROKEN[name].format(log=log))
    monkeypatch.setenv("CXX", str(compiler))
    for _ in range(2):
        params, optimizer = optimizers(lambda: gradtx.adamw(lr=0.1), shapes=VECTORS)[1]
        with pytest.warns(RuntimeWarning, match="compile=True runs steps over lists of tensors: .*c[+][+]") as seen:
            walk_with_gaps(params, optimizer)
        assert len(seen) == 1
        assert {item.way for item in optimizer.explain()} == {"lists"}
        reason = "no such target" if name == "refuses" else "Exec format error"
        (found,) = {item.reason for item in optimizer.explain()}
        assert found.startswith("its kernels cannot be compiled: ")
        assert reason in found
    assert logged == []
    if name == "refuses":  # once with threads, once without
        assert log.read_text().split() == ["called"] * 2


def test_links_without_kernels_say_so():
    params, optimizer = optimizers(lambda: gradtx.soap(lr=0.1), shapes={"matrix": (3, 4), "other": (4, 3)})[1]
    walk(params, optimizer, 3)
    reason = "scale_by_soap has no program: only programs over lists skip the work of steps in which its basis stays"
    assert {(way.way, way.reason) for way in optimizer.explain()} == {("lists", reason)}


KERNEL_REASONS = {
    "scale_by_shampoo has no program: it is declared for programs over lists, which skip work that is not due": (
        gradtx.shampoo
    ),
    "scale_by_dion has no program: no kernel computes its QR decomposition": gradtx.dion,
    "scale_by_nuclear_norm has no program: no kernel computes its eigenvalues": (
        lambda: gradtx.chain(gradtx.scale_by_nuclear_norm("exact"), gradtx.scale(-0.1))
    ),
}


@pytest.mark.parametrize("reason", KERNEL_REASONS)
def test_explain_says_why_no_kernel_runs_a_rule(reason):
    param = torch.nn.Parameter(torch.eye(3))
    optimizer = gradtx.as_optimizer(KERNEL_REASONS[reason](), [param], compile=True)
    param.grad = torch.ones(3, 3)
    optimizer.step()
    (way,) = optimizer.explain()
    assert (way.way, way.reason) == ("lists", reason)


def test_nothing_changes_when_a_step_is_refused():
    params, optimizer = optimizers(lambda: gradtx.adamw(lr=0.1))[1]
    walk(params, optimizer, 2)
    optimizer.param_groups[0]["lr"] = -1.0
    before = copy.deepcopy((values(params), optimizer.state_dict()["state"]))
    with pytest.raises(ValueError, match="lr must be in"):
        optimizer.step()
    after = (values(params), optimizer.state_dict()["state"])
    assert all(torch.equal(a, b) for a, b in zip(tensors(before).values(), tensors(after).values(), strict=True))


def test_without_the_library_for_threads_kernels_run_in_one(monkeypatch, forget):
    monkeypatch.setattr(cpp, "PARALLEL", ("-fopenmp=of-no-library", "-fopenmp-simd"))
    assert_runs_kernels()


def test_where_the_library_for_threads_cannot_be_loaded_kernels_run_in_one(monkeypatch, forget):
    loading, paths = cpp.ctypes.CDLL, []

    def load(path):
        paths.append(path)
        if len(paths) == 1:
            raise OSError("undefined symbol: __kmpc_fork_call")
        return loading(path)

    monkeypatch.setattr(cpp.ctypes, "CDLL", load)
    assert_runs_kernels()
    assert paths[0] != paths[1]  # a path that has failed may be remembered


def assert_runs_kernels():
    eager, compiled = optimizers(lambda: gradtx.adamw(lr=0.1))
    for pair in (eager, compiled):
        walk(*pair, steps=3)
    assert {way.way for way in compiled[1].explain()} == {"kernels"}
    assert_equal(eager, compiled, 1e-12)


def test_where_no_library_may_be_loaded_there_is_one_warning(monkeypatch, forget):
    def refused(path):
        raise OSError("failed to map segment: Operation not permitted")

    monkeypatch.setattr(cpp.ctypes, "CDLL", refused)
    warned(optimizers(lambda: gradtx.adamw(lr=0.1))[1], ".*failed to map segment")


def test_a_library_in_use_whose_folder_cannot_be_removed_runs(monkeypatch, forget):
    """As on Windows."""

    def refused(path, *arguments, **options):
        raise PermissionError("the file is in use")

    monkeypatch.setattr(os, "unlink", refused)
    assert_runs_kernels()
