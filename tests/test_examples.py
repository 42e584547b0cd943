"""The examples run from start to end, in a tiny setting; what they show is in docs/examples.md."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import gradtx

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = {
    "ensemble_rates": (["--steps", "2", "--rates", "3", "--seeds", "2", "--rounds", "1"], "; best of the rates: "),
    "learned_rate": (["--steps", "2", "--iterations", "2"], "test loss: grid of rates and momenta "),
    "maml_sine": (["--steps", "2"], "error after 1 and 10 steps: trained without inner steps "),
    "muon_chars": (["--steps", "2"], "held-out loss after 2 steps, nats per character: AdamW alone "),
    "sam_digits": (["--steps", "2", "--seeds", "1"], "test accuracy (sharpness): SGD "),
    "pcgrad_digits": (["--steps", "3", "--seeds", "2"], "; PCGrad gains "),
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


def test_the_ensemble_times_only_what_ends_at_the_same_weights():
    example = script("ensemble_rates")
    rates, vmap = torch.tensor([0.01, 0.1], dtype=torch.float64), example["VMAP"]
    params = [{name: p.double() for name, p in first.items()} for first in example["first_weights"](2)]
    x, y = torch.rand(3, 2, 5, 64, dtype=torch.float64), torch.randint(10, (3, 2, 5))

    def apart(other):
        ways = {vmap: example["Vmapped"](rates, params), "another": other}
        return example["checked"](ways, x, y, example["tqdm"](disable=True))

    assert 0 < apart(example["TorchLooped"](rates, params)) < 1e-12
    with pytest.raises(RuntimeError, match="another ends at other weights than the vmapped step"):
        apart(example["Looped"](rates * 1.001, params))


def test_the_rate_learned_online_follows_the_loop_of_the_paper():
    example = script("learned_rate")
    data = example["digits"]()
    stacked, (batches,) = example["begin"](range(1), 4)
    (params,) = gradtx.unstack(stacked)
    _, rates = example["online"](torch.tensor(0.1), params, batches, data)

    weights = {name: p.clone().requires_grad_() for name, p in params.items()}
    buffers = {name: torch.zeros_like(p) for name, p in params.items()}
    log_lr = torch.tensor(0.1).log().requires_grad_()
    adam = torch.optim.Adam([log_lr], lr=0.05, betas=(0.9, 0.99))
    for i, batch in enumerate(batches):
        loss = example["loss_fn"](weights, *(part[batch] for part in data.train))
        grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        # the last update was -exp(log_lr) * buffer
        log_lr.grad = -sum((grads[name] * buffer).sum() for name, buffer in buffers.items()) * log_lr.detach().exp()
        adam.step()
        torch.testing.assert_close(rates[i], log_lr.detach().exp())
        buffers = {name: 0.9 * buffer + grads[name] for name, buffer in buffers.items()}
        weights = {name: (w - log_lr.exp() * buffers[name]).detach().requires_grad_() for name, w in weights.items()}


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
