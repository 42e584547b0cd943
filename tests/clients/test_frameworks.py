"""Frameworks that build the optimizer from a class, a function or a file; each is skipped where it is not installed.

`make .venv/frameworks` installs them; the nightly CI does.
"""

import functools
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

import gradtx
from tests.optim.problems import assert_close, assert_equal, values

TOLERANCE = 1e-6  # of float32, in which some frameworks compute


def framework(name):
    """A module, or the end of the test where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        return pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


def trained(make, model=None, steps=4):
    """The weights after some steps of the optimizer that a framework makes."""
    model = network() if model is None else model
    optimizer = make(model)
    for step in range(steps):
        optimizer.zero_grad()
        x = torch.arange(6.0).reshape(2, 3) + step
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    return values(model.parameters())


# Configuration files.

PAGE = (Path(__file__).parents[2] / "docs/howto/configuration.md").read_text(encoding="utf-8")
CLASS, CHAIN, *_ = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def by_hand():
    return gradtx.chain(
        gradtx.clip_by_global_norm(0.5),
        gradtx.partition(
            {"matrix": gradtx.muon(lr=2e-2), "rest": gradtx.adamw(lr=1e-3)}, {"matrix": "*.weight", "rest": "*"}
        ),
    )


def test_hydra_builds_a_class_and_a_chain_from_a_file():
    omegaconf, hydra = framework("omegaconf"), framework("hydra.utils")
    of_class, of_chain = (hydra.instantiate(omegaconf.OmegaConf.create(text)) for text in (CLASS, CHAIN))
    assert_equal(
        trained(lambda model: of_class(model.parameters())),
        trained(lambda model: gradtx.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.95))),
    )
    assert_equal(
        trained(lambda model: of_chain(model.named_parameters())),
        trained(lambda model: gradtx.as_optimizer(by_hand(), model.named_parameters())),
    )


def test_hydra_zen_knows_the_arguments_of_a_class_and_refuses_others():
    zen = framework("hydra_zen")
    config = zen.builds(gradtx.optim.AdamW, populate_full_signature=True, zen_partial=True)
    optimizer = zen.instantiate(config, lr=0.5, betas=[0.8, 0.9])(network().parameters())
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (0.5, (0.8, 0.9))
    assert zen.instantiate(zen.builds(gradtx.adamw, lr=0.5)).hyperparams["lr"] == 0.5
    with pytest.raises(TypeError, match="rate"):
        zen.builds(gradtx.optim.AdamW, rate=0.5)


def test_jsonargparse_takes_the_arguments_of_a_class_from_a_command_line():
    parser = framework("jsonargparse").ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(gradtx.optim.AdamW, "optimizer", skip={"params"})
    given = parser.parse_args(["--optimizer.lr=1e-2", "--optimizer.betas=[0.8, 0.95]"]).optimizer
    assert_equal(
        trained(lambda model: gradtx.optim.AdamW(model.parameters(), **given.as_dict())),
        trained(lambda model: gradtx.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.95))),
    )
    with pytest.raises(Exception, match="rate"):
        parser.parse_args(["--optimizer.rate=1"])


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16"])
def test_a_command_line_names_a_fallback_by_its_factory_and_dtypes_by_their_names(dtype):
    class Trainer:
        def __init__(self, optimizer: Callable[[Iterable], torch.optim.Optimizer]):
            self.make = optimizer

    parser = framework("jsonargparse").ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, "trainer")
    options = [
        "=gradtx.optim.Muon",
        ".fallback=gradtx.adamw",
        ".fallback.lr=0.001",
        ".lr=0.02",
        f".state_dtype={dtype}",
    ]
    given = parser.parse_args([f"--trainer.optimizer{option}" for option in options])
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    params = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
    optimizer = instantiate(given).trainer.make(params)
    assert [(group["label"], group["lr"]) for group in optimizer.param_groups] == [("muon", 0.02), ("fallback", 0.001)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.state[params[0]]["momentum_buffer"].dtype == torch.bfloat16


def test_lightnings_command_line_builds_a_class_and_the_class_of_an_alias(tmp_path):
    framework("jsonargparse")
    cli = framework("lightning.pytorch.cli")
    lightning = framework("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self, optimizer: cli.OptimizerCallable):
            super().__init__()
            self.network, self.make = network(), optimizer

        def configure_optimizers(self):
            return self.make(self.parameters())

    for path, options in (
        ("gradtx.optim.AdamW", {"lr": 1e-2, "betas": [0.8, 0.95]}),
        (f"{__name__}.ClippedAdamW", {"lr": 1e-2, "max_norm": 0.5}),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = cli.LightningCLI(
                Module,
                args={"model": {"optimizer": {"class_path": path, "init_args": options}}},
                run=False,
                save_config_callback=None,
                trainer_defaults={"logger": False, "default_root_dir": str(tmp_path), "accelerator": "cpu"},
            )
        optimizer = made.model.configure_optimizers()
        assert optimizer.param_groups[0]["lr"] == 1e-2
        assert type(optimizer).__name__ == path.rpartition(".")[2]


def test_a_command_line_gives_a_schedule_by_its_path_and_its_arguments():
    class Trainer:
        def __init__(self, optimizer: Callable[[Iterable], torch.optim.Optimizer]):
            self.make = optimizer

    params = [torch.nn.Parameter(torch.ones(2))]
    for options in (
        ["=gradtx.optim.AdamW", ".lr=gradtx.cosine_schedule", ".lr.lr=0.1", ".lr.T_max=10"],
        ["=gradtx.optim.AdamW", '.lr={"class_path": "gradtx.cosine_schedule", "init_args": {"lr": 0.1, "T_max": 10}}'],
    ):
        parser = framework("jsonargparse").ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(Trainer, "trainer")
        given = parser.parse_args([f"--trainer.optimizer{option}" for option in options])
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
        optimizer = instantiate(given).trainer.make(params)
        assert isinstance(optimizer.defaults["lr"], gradtx.Schedule)
        assert optimizer.defaults["lr"](5) == pytest.approx(0.05)


def test_short_names_mean_the_same_whatever_was_used_before():
    framework("jsonargparse")
    command = (
        "from collections.abc import Callable, Iterable\n"
        "import jsonargparse, torch, gradtx\n"
        "class Trainer:\n"
        "    def __init__(self, optimizer: Callable[[Iterable], torch.optim.Optimizer]): ...\n"
        "def found(name):\n"
        "    parser = jsonargparse.ArgumentParser(exit_on_error=False)\n"
        "    parser.add_class_arguments(Trainer, 'trainer')\n"
        "    try:\n"
        "        return parser.parse_args([f'--trainer.optimizer={name}']).trainer.optimizer.class_path\n"
        "    except Exception:\n"
        "        return None\n"
        "names = ('Lion', 'AdamW', 'Muon')\n"
        "before = [found(name) for name in names]\n"
        "assert found('gradtx.optim.Lion') == 'gradtx.optim.Lion'\n"
        "gradtx.optim.AdamW, gradtx.optim.Muon\n"
        "assert before == [found(name) for name in names] == [None, 'torch.optim.AdamW', 'torch.optim.Muon']\n"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_class_resolver_as_pykeen_uses_it_knows_torchs_optimizers_after_ours_were_used():
    framework("class_resolver")
    command = (
        "import torch, gradtx\n"
        "gradtx.optim.Adam, gradtx.optim.LBFGS\n"
        "from class_resolver.contrib.torch import optimizer_resolver\n"
        "assert optimizer_resolver.lookup('adam') is torch.optim.Adam\n"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@gradtx.alias(class_name="ClippedAdamW")
def clipped_adamw(lr: gradtx.Scalar = 1e-3, max_norm: gradtx.Scalar = 1.0):
    return gradtx.chain(gradtx.clip_by_global_norm(max_norm), gradtx.adamw(lr))


ClippedAdamW = gradtx.optimizer_class(clipped_adamw)


# Libraries of models and methods.


def test_timm_builds_a_registered_class_with_its_groups_and_its_lookahead_resumes():
    optim = framework("timm.optim")
    registry = optim.OptimizerRegistry()
    registry.register(optim.OptimInfo(name="ours", opt_class=gradtx.optim.AdamW, has_betas=True))
    registry.register(optim.OptimInfo(name="theirs", opt_class=torch.optim.AdamW, has_betas=True))

    def created(name, **options):
        return lambda model: registry.create_optimizer(model, opt=name, lr=1e-2, weight_decay=0.1, **options)

    assert [group["weight_decay"] for group in created("ours")(network()).param_groups] == [0.0, 0.1]
    for options in ({}, {"layer_decay": 0.5}):
        assert_close(trained(created("ours", **options)), trained(created("theirs", **options)), TOLERANCE)

    def looking_ahead(module):
        return lambda model: optim.Lookahead(module.AdamW(model.parameters(), lr=1e-2), k=2)

    assert_close(trained(looking_ahead(gradtx.optim)), trained(looking_ahead(torch.optim)), TOLERANCE)
    model = network()
    first = looking_ahead(gradtx.optim)(model)
    trained(lambda model: first, model)
    second = gradtx.optim.AdamW(model.parameters(), lr=1e-2)
    with pytest.warns(UserWarning, match="lookahead_slow_buff"):
        second.load_state_dict(first.state_dict())


def test_opacus_trains_privately_with_our_optimizer_as_with_torchs():
    engine = framework("opacus").PrivacyEngine
    data = torch.utils.data.TensorDataset(torch.arange(24.0).reshape(8, 3) / 24, torch.ones(8, 1))

    def private(module):
        model = network()
        optimizer = module.AdamW(model.parameters(), lr=1e-2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, optimizer, loader = engine().make_private(
                module=model,
                optimizer=optimizer,
                data_loader=torch.utils.data.DataLoader(data, batch_size=4),
                noise_multiplier=1.0,
                max_grad_norm=1.0,
                poisson_sampling=False,
                noise_generator=torch.Generator().manual_seed(0),
            )
            for x, y in loader:
                optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                optimizer.step()
        return values(model.parameters())

    assert_close(private(gradtx.optim), private(torch.optim), TOLERANCE)


def test_gpytorch_fits_a_gaussian_process():
    gpytorch = framework("gpytorch")
    x = torch.linspace(0, 1, 8)

    class Process(gpytorch.models.ExactGP):
        def __init__(self, likelihood):
            super().__init__(x, torch.sin(6 * x), likelihood)
            self.mean, self.kernel = gpytorch.means.ConstantMean(), gpytorch.kernels.RBFKernel()

        def forward(self, at):
            return gpytorch.distributions.MultivariateNormal(self.mean(at), self.kernel(at))

    def fitted(make):
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        model = Process(likelihood)
        optimizer, loss = make(model), gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(5):
                optimizer.zero_grad()
                (-loss(model(x), model.train_targets)).backward()
                optimizer.step()
        return values(model.parameters())

    ours = fitted(lambda model: gradtx.optim.Adam(model.parameters(), lr=0.1))
    assert_close(ours, fitted(lambda model: torch.optim.Adam(model.parameters(), lr=0.1)), TOLERANCE)


def test_torchrl_merges_optimizers_with_all_their_options():
    group_optimizers = framework("torchrl.objectives").group_optimizers
    actor, critic = network(), network()
    make = functools.partial(gradtx.optim.AdamW, state_dtype=torch.float64, mask=lambda name, p: p.ndim > 1)
    parts = [make(actor.parameters(), lr=1e-2), make(critic.parameters(), lr=1e-3)]
    merged = group_optimizers(*parts)
    assert [group["lr"] for group in merged.param_groups] == [1e-2, 1e-3]
    states = merged.state_dict()["state"].values()
    assert {state["exp_avg"].dtype for state in states} == {torch.float64}
    assert merged.defaults["mask"] is parts[0].defaults["mask"]


def test_pyro_makes_an_optimizer_for_each_parameter():
    pyro_optim = framework("pyro.optim")
    options = {"lr": 0.1, "betas": (0.8, 0.9)}

    def stepped(cls):
        params = [torch.nn.Parameter(torch.full((3,), float(i))) for i in range(3)]
        optimizer = pyro_optim.PyroOptim(cls, options)
        for _ in range(3):
            for param in params:
                param.grad = 2 * param.detach()
            optimizer(params)
        return values(params)

    assert_close(stepped(gradtx.optim.AdamW), stepped(torch.optim.AdamW), TOLERANCE)
