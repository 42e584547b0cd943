"""The examples run from start to end, in a tiny setting; what they show is in docs/examples.md."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiers import by_day

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = {
    "digits": (["--epochs", "1", "--seeds", "1"], "the same chain as pure functions: weights differ by "),
    "ensemble_rates": (["--steps", "2", "--rates", "3", "--seeds", "2"], "; best of the rates: "),
    "mup": (["--steps", "2", "--rates", "2", "--seeds", "1"], "loss at width 512 with the best rate of width 64"),
    "maml_sine": (["--steps", "2"], "error after 1 and 10 steps: trained without inner steps "),
    "muon_chars": (["--steps", "2"], "held-out loss after 2 steps, nats per character: AdamW alone "),
    "records_chars": (
        ["--steps", "2", "--rates", "1", "--seeds", "2"],
        "held-out loss after 2 steps, nats per byte: AdamW ",
    ),
    "sam_digits": (["--steps", "2", "--seeds", "1"], "test accuracy (sharpness): SGD "),
    "functional_loop": (["--batches", "12"], "the resumed run ends bit for bit where the other one does"),
    "outer": (["--steps", "2"], "held-out loss after 2 steps, nats per character: AdamW, DDP "),
    "pcgrad_digits": (["--steps", "3", "--seeds", "2"], "; PCGrad gains "),
    "private_digits": (["--steps", "2", "--seeds", "1"], "test accuracy: linear "),
    "physics_informed": (["--evaluations", "12", "--seeds", "1"], "error of u: Adam "),
    "finetune_digits": (["--steps", "2", "--seeds", "1"], "accuracy on 5 to 9: head alone "),
    "lora": (["--steps", "1"], "loss: Adam "),
    "curve_fit": (["--fits", "20"], "rates within one standard error of the true ones: "),
    "clean_labels": (["--steps", "2"], "test accuracy: all weights equal "),
    "zero_order": (["--budget", "16", "--seeds", "1"], "test accuracy: before "),
    "recommender": (["--steps", "3"], "error with frequent users and items: sparse_adam "),
    "inspect_chain": (["--steps", "3"], "test accuracy: as it should be "),
}


pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:DeprecationWarning"  # torch itself, when a process first uses jvp or its compiler
)


def script(name):
    """The names of an example; as a module, since torch.compile imports the module of what it compiles."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


@pytest.fixture(autouse=True)
def _same_threads_after():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# Examples of each kind; they use what others do, and names and signatures have a record.
@by_day("ensemble_rates", "functional_loop", "lora", "mup", "outer", "pcgrad_digits", "private_digits")
@pytest.mark.parametrize("name", TINY)
def test_the_example_runs_draws_its_plot_and_ends_with_its_figures(name, tmp_path, capsys):
    arguments, closing = TINY[name]
    plot = tmp_path / "new folder" / f"{name}.png"
    with torch.compiler.set_stance("force_eager"):  # whole compiled steps are tested, for less time, elsewhere
        script(name)["main"]([*arguments, "--plot", str(plot)])
    lines = capsys.readouterr().out.splitlines()
    assert closing in lines[-1]
    assert f"plot: {plot}" in lines
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_fsdp2_runs_by_torchrun_and_resumes_on_another_number_of_processes(tmp_path):
    plot = tmp_path / "new folder" / "fsdp2.png"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--steps", "4", "--resume-on", "1", "--plot", str(plot)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(EXAMPLES / "fsdp2.py"), *options], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"plot: {plot}" in lines
    assert "loss after 4 steps: " in lines[-1]
    assert float(lines[-1].rpartition(" ")[2]) < 1e-5
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_maml_differentiates_through_the_inner_step():
    example = script("maml_sine")
    learned, tasks = example["first"](0.02), example["draw"](3, torch.Generator().manual_seed(0))
    outer = torch.func.grad(example["maml_loss"])(learned, tasks)

    weights = {name: p.clone().requires_grad_() for name, p in learned["params"].items()}
    rates = {layer: torch.tensor(0.02, requires_grad=True) for layer in example["LAYERS"]}
    layer_of = {name: {"0": "first", "2": "second", "4": "last"}[name[0]] for name in weights}
    losses = []
    for x, y, new_x, new_y in zip(*tasks[:4], strict=True):
        inner = example["loss_fn"](weights, x, y)
        grads = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        moved = {name: w - rates[layer_of[name]] * g for (name, w), g in zip(weights.items(), grads, strict=True)}
        losses.append(example["loss_fn"](moved, new_x, new_y))
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(outer["params"], {name: w.grad for name, w in weights.items()})
    by_log = {layer: 0.02 * rate.grad for layer, rate in rates.items()}
    torch.testing.assert_close(outer["log_rates"], by_log)


def test_examples_md_shows_every_example_with_its_plot():
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"examples/{path.name}" in page
        assert f"]({path.stem}.png)" in page
        assert (EXAMPLES.parent / "docs" / f"{path.stem}.png").exists()


def test_epsilon_of_private_digits_is_that_of_the_integrated_privacy_loss():
    epsilon = script("private_digits")["epsilon"]
    for multiplier, steps, delta in ((2.0, 40, 1e-5), (32.0, 40, 1e-5), (1.0, 1, 1e-3)):
        # The sums of all steps, in units of the noise, along the line that joins the two data sets' means.
        distance, found, width = math.sqrt(steps) / multiplier, epsilon(multiplier, steps, delta), 1e-3
        spent = 0.0
        for i in range(-15_000, 25_000):
            x = i * width
            with_image, without = math.exp(-((x - distance) ** 2) / 2), math.exp(-(x**2) / 2)
            spent += max(with_image - math.exp(found) * without, 0.0) * width / math.sqrt(2 * math.pi)
        assert spent == pytest.approx(delta, rel=1e-3)  # the rectangles' error
        rho = distance**2 / 2
        assert found < rho + 2 * math.sqrt(rho * math.log(1 / delta))  # the bound by concentrated privacy


def test_one_image_moves_the_clipped_sum_of_private_digits_by_the_threshold_at_most_and_the_noise_has_its_size():
    names = script("private_digits")
    x, y, *_ = names["digits"](0)
    model = names["network"]("perceptron", 0)
    params = {name: 3 * p.detach() for name, p in model.named_parameters()}  # large: wrong answers get long gradients
    whole = names["clipped_mean"](model, params, x[:20], y[:20])
    moved = []
    for i in range(20):
        rest = [k for k in range(20) if k != i]
        less = names["clipped_mean"](model, params, x[rest], y[rest])
        parts = [(whole[name] - less[name]).square().sum() for name in whole]
        moved.append(names["TRAIN"] * torch.stack(parts).sum().sqrt().item())
    assert max(moved) == pytest.approx(names["CLIP"], rel=1e-4)  # rounding of float32 sums
    tx = names["add_gaussian_noise"](0.5, seed=1)
    zeros = {"a": torch.zeros(20_000), "b": torch.zeros(20_000)}
    first, state = tx.update(zeros, tx.init(zeros))
    second, _ = tx.update(zeros, state)
    draws = torch.stack([first["a"], first["b"], second["a"], second["b"]])
    assert draws.mean(1).abs().max() < 0.5 * 5 / math.sqrt(20_000)  # five standard errors
    assert (draws.std(1) / 0.5 - 1).abs().max() < 5 / math.sqrt(40_000)
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 5 / math.sqrt(20_000)


def test_finetune_digits_keeps_all_frozen_weights_and_no_state_for_them():
    names = script("finetune_digits")
    old, new = names["digits"](0)
    before = names["Network"](0)
    with names["tqdm"](disable=True) as bar:
        runs = {name: names["Run"](name, 0).train(before, old, new, 2, bar) for name in names["CHAINS"]}
    head = sum(p.numel() for p in before.head.parameters())
    norms = sum(p.numel() for name, p in before.named_parameters() if "norm" in name)
    moved = {name: run.weights - run.same for name, run in runs.items()}
    assert {name: run.state_bytes for name, run in runs.items()} == {
        name: 8 * (run.weights if name.startswith("all") else head + norms * name.endswith("norms"))
        for name, run in runs.items()
    }
    assert moved["head alone"] == head
    assert moved["head and norms"] == head + norms
    assert all(moved[name] > head + norms for name in moved if name.startswith("all"))


def test_the_residual_of_physics_informed_is_the_equation_by_differences_and_zero_for_the_solution():
    names, width = script("physics_informed"), 1e-4
    params = names["start"](0)
    x, t = torch.linspace(-0.8, 0.9, 7, dtype=torch.float64), torch.linspace(0.8, 0.2, 7, dtype=torch.float64)

    def differences(u):
        u_t = (u(x, t + width) - u(x, t - width)) / (2 * width)
        u_x = (u(x + width, t) - u(x - width, t)) / (2 * width)
        u_xx = (u(x + width, t) - 2 * u(x, t) + u(x - width, t)) / width**2
        return u_t + u(x, t) * u_x - names["VISCOSITY"] * u_xx

    expected = differences(lambda x, t: names["network"](params, x, t))
    assert expected.abs().min() > 1e-2
    torch.testing.assert_close(names["residual"](params, x, t), expected, rtol=0, atol=1e-5)  # error of differences
    assert differences(names["solution"]).abs().max() < 1e-5
    edges, times = (
        torch.tensor([-1.0, 1.0, 0.3], dtype=torch.float64),
        torch.tensor([0.7, 0.2, 0.0], dtype=torch.float64),
    )
    torch.testing.assert_close(
        names["network"](params, edges, times), names["solution"](edges, times), rtol=0, atol=1e-12
    )


def test_rows_per_point_of_physics_informed_are_those_of_a_backward_pass_for_each_residual():
    names = script("physics_informed")
    params = {name: value.requires_grad_() for name, value in names["start"](0).items()}
    draw = torch.Generator().manual_seed(0)
    points = tuple(torch.rand(2, 5, generator=draw, dtype=torch.float64))

    def function(leaves, x, t):
        return names["residual"](dict(zip(params, leaves, strict=True)), x, t)

    leaves = list(params.values())
    values = names["PerPoint"].apply(function, points, *leaves)
    expected = names["residual"](params, *points)
    torch.testing.assert_close(values, expected, rtol=0, atol=0)
    unit = torch.eye(5, dtype=torch.float64)
    for row in unit:
        ours = torch.autograd.grad(values, leaves, row, retain_graph=True)
        theirs = torch.autograd.grad(expected, leaves, row, retain_graph=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)  # sums in another order
    batched = torch.autograd.grad(values, leaves, unit, is_grads_batched=True)
    torch.testing.assert_close([rows[-1] for rows in batched], list(ours), rtol=1e-12, atol=1e-13)
