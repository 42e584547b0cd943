"""`gradtx.sweep`: members equal plain loops, alone and in company; records, the best, files, errors."""

import csv
import functools
import gc
import itertools
import math
import statistics
import weakref

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import gradtx
from gradtx.sweeps import members
from gradtx.sweeps.settings import Group
from tests.conformance import assert_close, assert_same, tensors

STEPS, EVERY = 10, 4
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(20, 16, 6, dtype=torch.float64, generator=GENERATOR)
Y = torch.randn(20, 16, 3, dtype=torch.float64, generator=GENERATOR)
RATES = [0.01, 0.03, 0.1]


def batch_of(step):
    return X[step % 20], Y[step % 20]


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(9, 6, dtype=torch.float64, generator=generator)
    return {"hidden": {"w": drawn[:6] / 3, "b": drawn[6] / 10}, "out": drawn[6:].T / 3}


def loss_fn(params, batch):
    x, y = batch
    hidden = torch.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return (hidden @ params["out"] - y).square().mean()


def size(params):
    return params["out"].square().sum()


def sweep(make=gradtx.adamw, over=None, **options):
    given = {"steps": STEPS, "every": EVERY, "seeds": 2, "progress": False, **options}
    params, batches = given.pop("params", weights), given.pop("batches", batch_of)
    return gradtx.sweep(loss_fn, make, params, batches, {"lr": RATES} if over is None else over, **given)


def trained(make, setting, seed, steps=STEPS):
    """A plain loop: the losses of all steps, the final weights, and those to evaluate with after each step."""
    tx, params = make(**setting), weights(seed)
    state, generator = tx.init(params), torch.Generator().manual_seed(seed)
    losses, evaluated = [], []
    for step in range(steps):
        batch = batch_of(step)
        grads, loss = torch.func.grad_and_value(loss_fn)(params, batch)
        extras = {}
        if "value" in tx.needs:
            extras["value"] = loss
        if "grad_fn" in tx.needs:
            extras["grad_fn"] = lambda at, batch=batch: torch.func.grad(loss_fn)(at, batch)
        if "hessian_diag" in tx.needs:
            period = tx.hyperparams["update_period"]
            diag = (
                gradtx.hutchinson_hessian_diag(
                    lambda at, batch=batch: torch.func.grad(loss_fn)(at, batch), params, generator
                )
                if step % period == 0
                else None
            )
            extras["hessian_diag"] = diag
        updates, state = tx.update(grads, state, params, **extras)
        params = gradtx.apply_updates(params, updates)
        losses.append(loss.item())
        evaluated.append(tx.eval_params(state, params))
    return losses, params, evaluated


def assert_equals_loops(result, make, over, seeds=(0, 1)):
    for setting in over:
        for seed in seeds:
            losses, params, evaluated = trained(make, setting, seed)
            assert_close(result.params(setting, seed), params, rtol=1e-10, atol=1e-12)
            records = [r for r in result.records if r.items() >= {**setting, "seed": seed}.items()]
            assert [record["step"] for record in records] == [4, 8, 10]
            for record, (start, end) in zip(records, [(0, 4), (4, 8), (8, 10)], strict=True):
                assert record["loss"] == pytest.approx(statistics.fmean(losses[start:end]), rel=1e-10)
                assert record["eval"] == pytest.approx(size(evaluated[end - 1]).item(), rel=1e-10)
                assert record["diverged"] is False


def warm(lr, steps=5):
    return gradtx.adamw(lr=gradtx.warmup_cosine_schedule(STEPS, max_lr=lr, warmup_steps=steps))


CASES = {
    "numbers": (gradtx.adamw, {"lr": RATES, "weight_decay": [0.0, 0.1]}),
    "entries of a tuple": (gradtx.adamw, {"betas": [(0.9, 0.99), (0.8, 0.9)], "lr": [0.01, 0.02]}),
    "a number that is off": (gradtx.sgd, {"momentum": [0.0, 0.9], "lr": [0.01]}),
    "what changes structure": (gradtx.adamw, {"amsgrad": [False, True], "lr": [0.01, 0.03]}),
    "schedules of one form": (gradtx.sgd, {"lr": [gradtx.cosine_schedule(rate, STEPS) for rate in RATES]}),
    "schedules of two forms": (
        gradtx.sgd,
        {"lr": [gradtx.cosine_schedule(0.1, STEPS), gradtx.step_schedule(0.1, 3), 0.1]},
    ),
    "a callable of the user": (warm, {"lr": RATES, "steps": [2, 5]}),
    "two gradients a step": (lambda rho: gradtx.sam(gradtx.sgd(0.1), rho=rho), {"rho": [0.01, 0.05]}),
    "second derivatives": (gradtx.adahessian, {"lr": [0.01, 0.05], "update_period": [1, 3]}),
    "averages": (gradtx.schedule_free_adamw, {"lr": RATES}),
    "the loss": (gradtx.momo, {"lr": [0.1, 1.0]}),
    "sums over leaves": (gradtx.prodigy, {"lr": [0.5, 1.0]}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_member_equals_a_plain_loop(case):
    make, over = CASES[case]
    result = sweep(make, over, eval_fn=size)
    settings = [dict(zip(over, row, strict=True)) for row in itertools.product(*over.values())]
    assert len(result) == 3 * 2 * len(settings)
    assert_equals_loops(result, make, settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, from its compiler
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.nightly)])
def test_compiled_members_equal_plain_loops(backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    result = sweep(eval_fn=size, compile=True)
    assert_equals_loops(result, gradtx.adamw, [{"lr": rate} for rate in RATES])


@pytest.fixture(name="compiled")
def _compiled(monkeypatch):
    """The functions that sweeps compile, which run as they are."""
    functions = []
    monkeypatch.setattr(torch, "compile", lambda function: functions.append(function) or function)
    monkeypatch.setattr(members, "_COMPILED", {})
    return functions


def test_sweeps_of_one_form_compile_once_in_the_process(compiled):
    for rates in ([0.01, 0.1], [0.02, 0.2]):
        over = {"lr": rates, "momentum": [0.9]}
        result = sweep(gradtx.sgd, over, members_at_once=2, compile=True, eval_fn=size)
        assert_equals_loops(result, gradtx.sgd, [{"lr": rate, "momentum": 0.9} for rate in rates])
    assert len(compiled) == 1


@pytest.mark.parametrize("change", ["fixed", "optimizer", "setting"])
def test_sweeps_of_other_forms_compile_their_own(change, compiled):
    """Values that change structure are not taken for others."""
    forms = {
        "fixed": [(gradtx.sgd, {"lr": RATES}, {"momentum": 0.9, "nesterov": value}) for value in (True, False)],
        "optimizer": [(make, {"lr": RATES}, {}) for make in (gradtx.sgd, gradtx.lion)],
        "setting": [(gradtx.sgd, {"lr": RATES, "maximize": [value]}, {}) for value in (True, False)],
    }
    for make, over, fixed in forms[change]:
        found, expected = (sweep(make, over, compile=compile, fixed=fixed) for compile in (True, False))
        assert found.records == expected.records
    assert len(compiled) == 2


def test_groups_of_equal_numbers_of_other_types_have_other_forms():
    partials = [functools.partial(gradtx.sgd, dampening=value) for value in (0, 0.0, False, 0.5)]
    structures = {Group(make, {0: {"lr": 0.1}}, ()).structure() for make in partials}
    assert len(structures) == len(partials)
    varying = [Group(partials[0], {0: {"lr": rate}}, ("lr",)).structure() for rate in RATES]
    assert len(set(varying)) == 1


def test_functions_of_the_loss_are_compiled_apart_and_freed_with_their_data(compiled):
    alive = []
    for i in range(10):  # dynamo's limit for one function is 8
        data = torch.full((6,), 1.0 + i, dtype=torch.float64)

        def scaled(params, batch, data=data):
            return loss_fn(params, (batch[0] * data, batch[1]))

        gradtx.sweep(scaled, gradtx.sgd, weights(0), batch_of, {"lr": RATES}, steps=2, progress=False, compile=True)
        alive.append(weakref.ref(data))
    assert len({id(function.__code__) for function in compiled}) == 10
    del data, scaled
    gc.collect()
    assert not any(reference() is not None for reference in alive)


RATE, BETAS = 0.5, (0.9, 0.99)


def test_functions_that_a_loop_makes_have_one_form_if_they_read_equal_values():
    """Those that are found by name, or read what may change, are structures of their own."""
    config = {"momentum": 0.9}

    def structures(*makes):
        return len({Group(functools.partial(make), {0: {}}, ()).structure() for make in makes})

    decays = (0.1, 0.1, 0.2)
    assert structures(*(lambda: gradtx.chain(gradtx.clip_by_global_norm(RATE), gradtx.sgd(RATE)) for _ in decays)) == 1
    assert structures(*(lambda decay=decay: gradtx.adamw(RATE, BETAS, weight_decay=decay) for decay in decays)) == 2
    assert structures(*(lambda rate=rate: gradtx.sgd(rate) for rate in (1, 1.0, True))) == 3
    assert structures(*(lambda: gradtx.sgd(**config) for _ in decays)) == len(decays)
    assert structures(lambda: gradtx.sgd(RATE), lambda: gradtx.lion(RATE), gradtx.sgd, gradtx.sgd) == 3


@pytest.mark.slow
def test_a_hundred_sweeps_compile_once_for_each_form(monkeypatch):
    """Dynamo raises where it would leave a function uncompiled: at its limit of 8 compilations."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    monkeypatch.setattr(members, "_COMPILED", {})
    frames = []
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for i in range(50):
            for make in (gradtx.sgd, lambda lr: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(lr))):
                over = {"lr": [0.001 * (i + 1), 0.002 * (i + 1)]}
                options = {"seeds": 1, "steps": 2, "every": 2}
                found = sweep(functools.partial(make), over, compile=True, **options)
            frames.append(counter.frame_count)
    expected = sweep(make, over, **options)
    assert found.records == expected.records
    assert set(frames) == {2}


@pytest.mark.nightly
@pytest.mark.parametrize("make", [gradtx.adamw, gradtx.sophia])
def test_dynamo_compiles_sweeps_of_one_form_once(make, monkeypatch):
    torch._dynamo.reset()
    counter, frames = CompileCounter(), []
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    for rates in ([0.01, 0.1], [0.02, 0.2], [0.03, 0.3]):
        found, expected = (sweep(make, {"lr": rates}, members_at_once=2, compile=compile) for compile in (True, False))
        for ours, theirs in zip(found.records, expected.records, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9)
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1]


def test_members_in_chunks_equal_those_in_one():
    whole, chunks = sweep(), sweep(members_at_once=4)
    for ours, theirs in zip(chunks.records, whole.records, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)


def test_a_list_of_settings_and_of_seeds_and_fixed_arguments():
    settings = [{"lr": 0.1, "momentum": 0.5}, {"lr": 0.01, "momentum": 0.9}]
    result = sweep(gradtx.sgd, settings, seeds=[3, 5], fixed={"nesterov": True}, eval_fn=size)
    assert_equals_loops(result, functools.partial(gradtx.sgd, nesterov=True), settings, seeds=(3, 5))


def test_batches_of_an_iterator_serve_all_groups():
    expected = sweep(over={"amsgrad": [False, True]})
    result = sweep(over={"amsgrad": [False, True]}, batches=map(batch_of, range(STEPS)))
    assert result.records == expected.records


def test_a_diverged_member_stops_alone():
    result = sweep(gradtx.sgd, {"lr": [0.1, 1e200]}, steps=12)
    assert_close(result.params({"lr": 0.1}, 0), trained(gradtx.sgd, {"lr": 0.1}, 0, 12)[1], rtol=1e-12)
    assert all(leaf.isfinite().all() for leaf in tensors(result.params({"lr": 1e200}, 1)).values())
    last = [record for record in result.records if record["lr"] == 1e200][-1]
    assert last["diverged"] is True
    assert math.isnan(last["loss"])
    assert result.best(n=2)[1]["diverged"] == 2


def test_the_best_settings_come_with_their_spread():
    result = sweep(eval_fn=size)
    best = result.best(n=3)
    final = {rate: [r["loss"] for r in result.records if r["lr"] == rate and r["step"] == 10] for rate in RATES}
    expected = sorted(RATES, key=lambda rate: statistics.fmean(final[rate]))
    assert [row["lr"] for row in best] == expected
    assert best[0]["mean"] == pytest.approx(statistics.fmean(final[expected[0]]))
    assert best[0]["std"] == pytest.approx(statistics.stdev(final[expected[0]]))
    assert result.best("eval", by="min")[0]["mean"] <= result.best("eval", by="mean")[0]["mean"]


def test_a_best_value_at_the_edge_is_marked():
    result = sweep(gradtx.sgd, {"lr": [1e-4, 1e-3, 1e-2]})
    assert result.at_edge == ["lr"]
    assert "0.01*" in repr(result)
    assert "at the edge: widen the grid" in repr(result)
    assert sweep(gradtx.sgd, {"lr": [1e-3, 1e-2]}).at_edge == []


def test_sums_have_a_column_for_the_optimizer():
    both = sweep(gradtx.sgd) + sweep(gradtx.adamw, {"lr": [0.01], "weight_decay": [0.1]})
    assert {record["optimizer"] for record in both.records} == {"sgd", "adamw"}
    assert len(both.best(n=10)) == 4
    assert both.best()[0]["optimizer"] in repr(both)
    both.params({"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}, 1)


@pytest.mark.slow
def test_records_as_csv_and_as_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    result = sweep(gradtx.sgd, {"lr": [0.01, 0.1, 1e200]})
    result.to_csv(tmp_path / "records.csv")
    with open(tmp_path / "records.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["loss"]) == result.records[0]["loss"]
    for over in ({"lr": RATES}, {"lr": RATES, "weight_decay": [0.0, 0.1]}, {"amsgrad": [True, False]}):
        sweep(over=over).plot(tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 10_000
    figure = result.plot()
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "linear"]


@pytest.mark.slow
def test_plots_of_a_numeric_name_with_another_name_and_of_sums(tmp_path):
    pytest.importorskip("matplotlib")
    result = sweep(over={"lr": RATES, "amsgrad": [True, False]})
    figure = result.plot(tmp_path / "plot.png")
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "linear"]
    momenta = sweep(gradtx.sgd, {"lr": [0.01], "momentum": [0.1, 0.9]}, seeds=1)
    curves = (sweep(gradtx.adam, seeds=1) + momenta).plot().axes[1]
    rows = [line.get_ydata()[-1] for line in curves.lines]
    assert sorted(rows) == pytest.approx(
        sorted(r["loss"] for r in (*momenta.records, *sweep(gradtx.adam, seeds=1).records) if r["step"] == STEPS)
    )


def test_no_value_is_the_best_if_all_members_diverged():
    result = sweep(gradtx.sgd, {"lr": [1e200, 2e200, 3e200]})
    assert result.at_edge == []
    assert "*" not in repr(result)


# Interruptions.


class StopAfter:
    """Raises an exception at a step."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def __call__(self, step):
        if step == self.step:
            raise self.error
        return batch_of(step)


def test_after_ctrl_c_the_records_so_far_are_returned():
    result = sweep(batches=StopAfter(6, KeyboardInterrupt()))
    assert not result.finished
    assert {record["step"] for record in result.records} == {4}
    assert "not finished" in repr(result)


@pytest.mark.parametrize("options", [{}, {"members_at_once": 3}, {"make": gradtx.adahessian}])
def test_a_sweep_goes_on_from_its_checkpoint_bit_for_bit(tmp_path, options):
    options["checkpoint"] = tmp_path / "sweep.pt"
    expected = sweep(**{**options, "checkpoint": None})
    with pytest.raises(RuntimeError, match="killed"):
        sweep(**options, batches=StopAfter(9, RuntimeError("killed")))
    result = sweep(**options)
    assert result.records == expected.records
    assert_same(result.params({"lr": 0.03}, 1), expected.params({"lr": 0.03}, 1))
    again = sweep(**options, batches=StopAfter(1, RuntimeError("nothing left")))
    assert again.records == expected.records


def test_random_numbers_go_on_from_the_checkpoint(tmp_path):
    def noisy(params, batch):
        return loss_fn(params, batch) * (1 + torch.rand((), dtype=torch.float64))

    def run(stop=None, checkpoint=None):
        def batches(step):
            if step == stop:
                raise RuntimeError("killed")
            return batch_of(step)[0] + torch.rand(16, 6, dtype=torch.float64), batch_of(step)[1]

        return gradtx.sweep(
            noisy, gradtx.adamw, weights, batches, {"lr": RATES}, seeds=2, steps=STEPS, every=EVERY,
            progress=False, randomness="different", checkpoint=checkpoint,
        )  # fmt: skip

    torch.manual_seed(3)
    expected = run()
    torch.manual_seed(3)
    with pytest.raises(RuntimeError, match="killed"):
        run(9, tmp_path / "sweep.pt")
    assert run(checkpoint=tmp_path / "sweep.pt").records == expected.records


def test_a_checkpoint_of_other_arguments_is_refused(tmp_path):
    path = tmp_path / "sweep.pt"
    sweep(checkpoint=path)
    with pytest.raises(ValueError, match="other arguments: steps was 10, now 11"):
        sweep(checkpoint=path, steps=11)
    with pytest.raises(ValueError, match="other arguments: params was"):
        sweep(checkpoint=path, params=lambda seed: weights(seed + 1))
    torch.save([1], path)
    with pytest.raises(ValueError, match=r"sweep\.pt is not a checkpoint of a sweep"):
        sweep(checkpoint=path)


# Errors before training.


def branches(rate):
    def update(g, state, p, ctx):
        return (g if g.sum() > 0 else 2 * g), state

    return gradtx.chain(gradtx.per_tensor()(lambda: update)(), gradtx.scale(-1.0))


ERRORS = {
    "an unknown name": ({"over": {"lrr": [1.0]}}, TypeError, "sweep: adamw takes no argument 'lrr'; did you mean 'lr'"),
    "no settings": ({"over": []}, ValueError, "over is empty"),
    "no names": ({"over": {}}, ValueError, "over is empty"),
    "no values": ({"over": {"lr": []}}, ValueError, r"over\['lr'\] is empty"),
    "a number": ({"over": {"lr": 0.1}}, TypeError, r"over\['lr'\] must be a list of values, got 0.1"),
    "other names": ({"over": [{"lr": 1.0}, {"eps": 1.0}]}, ValueError, "the same names"),
    "twice": ({"fixed": {"lr": 1.0}}, ValueError, "'lr' is both in over and in fixed"),
    "a range": ({"over": {"lr": [-1.0]}}, ValueError, r"adamw: lr must be in \[0, inf\), got -1.0"),
    "seeds of a tree": ({"params": weights(0)}, ValueError, "params is one tree, but there are 2 seeds"),
    "no seeds": ({"seeds": 0}, ValueError, "seeds is empty"),
    "shapes": (
        {"params": lambda seed: {"w": torch.zeros(2 + seed)}},
        ValueError,
        r"params of different seeds: .* leaf 'w' is torch.float32 \(3,\) on cpu, needs torch.float32 \(2,\)",
    ),
    "a module": ({"params": torch.nn.Linear(2, 2)}, TypeError, r"pass dict\(model.named_parameters\(\)\)"),
    "a short list": ({"batches": [batch_of(0)] * 3}, ValueError, "batches has 3 batches, but steps is 10"),
    "a short iterator": ({"batches": iter([batch_of(0)] * 3)}, ValueError, "batches ended after 3 of 10 steps"),
    "no batches": ({"batches": 3}, TypeError, "batches must be an iterable or a function"),
    "no steps": ({"steps": 0}, ValueError, r"steps must be in \[1, inf\), got 0"),
    "every": ({"every": 1.5}, TypeError, "every must be an int, got 1.5"),
    "an evaluation": (
        {"eval_fn": lambda params: params["out"]},
        ValueError,
        r"eval_fn must be 0-d, got shape \(6, 3\)",
    ),
    "the name of the loss": ({"eval_fn": lambda params: {"loss": size(params)}}, ValueError, "eval_fn returns 'loss'"),
    "the name of a setting": ({"eval_fn": lambda params: {"lr": size(params)}}, ValueError, "eval_fn returns 'lr'"),
    "a name of the records": (
        {"make": lambda seed: gradtx.sgd(0.1), "over": {"seed": [1, 2]}},
        ValueError,
        "'seed' in over is also a column of the records",
    ),
    "no transformation": (
        {"make": lambda lr: None},
        TypeError,
        "sweep: the result of <lambda> must be a GradientTransformation, got None",
    ),
    "no callable": ({"make": gradtx.sgd(0.1)}, TypeError, "sweep: optimizer must be a callable"),
    "a class": (
        {"make": gradtx.optim.SGD},
        TypeError,
        "sweep: optimizer must be a callable such as gradtx.adamw, got SGD; a transformation, not an optimizer",
    ),
    "a seed": ({"seeds": ["a"]}, TypeError, "seeds must be a number or a list of ints, got"),
    "equal seeds": ({"seeds": [1, 1]}, ValueError, "seeds must differ"),
    "a folder": ({"checkpoint": "/no/such/folder/sweep.pt"}, ValueError, "the folder of checkpoint does not exist"),
    "extras": (
        {"make": lambda tau: gradtx.qk_clip({"out": ("a", "query")}, tau=tau), "over": {"tau": [1.0]}},
        ValueError,
        "needs 'max_logits', which a sweep cannot supply",
    ),
    "vmap": ({"make": branches, "over": {"rate": [1.0, 2.0]}}, RuntimeError, r"sweep: .* cannot run under torch.vmap"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_named_before_training(case):
    options, error, match = ERRORS[case]
    with pytest.raises(error, match=match):
        sweep(**options)


def test_a_loss_that_is_not_0d_is_named():
    with pytest.raises(ValueError, match=r"sweep: loss_fn must be 0-d, got shape \(16,\); take its mean or sum"):
        gradtx.sweep(lambda p, b: b[0][:, 0] * p["w"], gradtx.sgd, {"w": torch.ones(())}, batch_of, {"lr": [0.1]})


def test_questions_that_have_no_answer_are_named():
    result = sweep()
    with pytest.raises(ValueError, match="best: by must be 'last', 'mean' or 'min', got 'first'"):
        result.best(by="first")
    with pytest.raises(ValueError, match="best: 'accuracy' was not recorded; known: loss"):
        result.best("accuracy")
    with pytest.raises(KeyError, match="several seeds"):
        result.params({"lr": 0.01})
    with pytest.raises(KeyError, match="no member has the setting"):
        result.params({"lr": 0.5}, 0)


@pytest.mark.parametrize(("progress", "shows"), [(True, True), (None, False), (False, False)])
def test_progress_true_shows_where_stderr_is_no_terminal(progress, shows, capsys):
    pytest.importorskip("tqdm")
    sweep(gradtx.sgd, {"lr": [0.1]}, seeds=1, steps=2, progress=progress)
    assert ("sweep" in capsys.readouterr().err) == shows


DECAY = 0.0


def decayed(lr):
    return gradtx.adamw(lr, weight_decay=DECAY)


def test_later_sweeps_see_what_the_function_of_an_optimizer_reads(monkeypatch):
    for decay in (0.0, 0.5):
        monkeypatch.setitem(globals(), "DECAY", decay)
        result = sweep(decayed, seeds=1)
        expected = trained(gradtx.adamw, {"lr": RATES[1], "weight_decay": decay}, 0)[1]
        assert_close(result.params({"lr": RATES[1]}, 0), expected, rtol=1e-10, atol=1e-12)


def test_a_loss_that_calls_random_numbers_calls_them_once_a_step():
    calls = []

    def loss_with_noise(params, batch):
        calls.append(1)
        return loss_fn(params, batch) + torch.randn(()).to(torch.float64) * params["out"].sum()

    options = {"steps": 6, "every": 6, "progress": False, "randomness": "same"}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    gradtx.sweep(loss_with_noise, gradtx.adamw, weights(0), batch_of, {"lr": RATES}, **options)
    count, after = len(calls), torch.get_rng_state()
    torch.set_rng_state(before)
    for _ in range(count):
        torch.randn(())
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize(
    "make", [gradtx.adamw, lambda lr: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.sgd(lr))]
)
def test_gradients_in_any_layout_train_as_a_loop(make):
    def transposed(params, batch):
        x, y = batch
        return (torch.tanh(x @ params["w"].mT) @ params["out"] - y).square().mean()

    params = {"w": weights(0)["hidden"]["w"], "out": weights(0)["out"]}
    options = {"steps": STEPS, "every": STEPS, "progress": False}
    result = gradtx.sweep(transposed, make, params, batch_of, {"lr": RATES}, **options)
    tx, expected = make(lr=RATES[2]), params
    state = tx.init(params)
    for step in range(STEPS):
        updates, state = tx.update(torch.func.grad(transposed)(expected, batch_of(step)), state, expected)
        expected = gradtx.apply_updates(expected, updates)
    assert_close(result.params({"lr": RATES[2]}, 0), expected, rtol=1e-10, atol=1e-12)
