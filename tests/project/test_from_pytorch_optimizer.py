"""docs/from-pytorch-optimizer.md notes every class whose steps, and every scheduler whose rates, differ here."""

import inspect
import re
from pathlib import Path

import pytest
import pytorch_optimizer
import torch

import gradtx

PAGE = (Path(__file__).parents[2] / "docs" / "from-pytorch-optimizer.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("### pytorch_optimizer")[2].partition("## Schedulers")[0]
# Their class -> ours, and the column of differences.
ROWS = {
    there: (getattr(gradtx.optim, ours), differences)
    for there, ours, differences in re.findall(r"^\| (\w+) \| `\w+`<br>`(\w+)` \| (.*)\|$", TABLE, re.MULTILINE)
}
SCHEDULERS = re.findall(r"^\| \w+<br>(\w+) \| (\w+)<br>`\w+` \| (.*)\|$", PAGE, re.MULTILINE)
PUBLISHED = {cls.__name__: cls for cls in pytorch_optimizer.optimizer.OPTIMIZER_LIST}
ENGINES = {"self", "params", "kwargs", "foreach", "fused", "capturable", "differentiable", "maximize"}
# Required or other kinds of options: these rows have notes, or tests of their own.
OF_ANOTHER_KIND = {
    "AdaFactor",
    "AdaGO",
    "AdaMod",
    "AdamMini",
    "AdaMuon",
    "AliG",
    "ApolloDQN",
    "FAdam",
    "Muon",
    "NorMuon",
    "Ranger21",
    "ScalableShampoo",
    "SpectralSphere",
}


def has_note(differences):
    """Whether the text begins with more than lists of options."""
    return bool(differences.strip()) and not differences.startswith("*")


def defaults(cls):
    parameters = inspect.signature(cls).parameters
    return {name: p.default for name, p in parameters.items() if name not in ENGINES}


def ours_like(params, theirs, rate):
    """Our optimizer with as many of the defaults of theirs as it has, at one rate for both."""
    name = ROWS[theirs.__name__][0]._alias.__name__
    given = {
        option: value for option, value in defaults(theirs).items() if value not in (None, inspect.Parameter.empty)
    }
    if "lr" in given:
        given["lr"] = rate
    while True:
        try:
            return gradtx.create_optimizer(params, name, **{"weight_decay": 0.0, **given})
        except TypeError as error:
            option = re.search(r"'(\w+)'", str(error)).group(1)
            if option not in given:
                raise
            del given[option]


def trained_by(make, steps):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    params = {"w": random(4, 3), "b": random(5), "c": random(2, 3, 2, 2)}
    params = {name: torch.nn.Parameter(value) for name, value in params.items()}
    optimizer = make(list(params.values()))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum((param - 0.3 * random(*param.shape)).square().sum() for param in params.values())
        loss.backward(create_graph=type(optimizer).__name__ in ("SophiaH", "AdaHessian"))
        optimizer.step()
    return torch.cat([param.detach().flatten() for param in params.values()])


def reasons(title):
    """The first and last columns of a table below the title."""
    section = PAGE.partition(f"#### {title}\n")[2].partition("\n#")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [(re.findall(r"\w+", row[0]), row) for row in rows[1:]]


def test_every_option_that_is_not_here_has_a_reason():
    explained = {
        (option, of)
        for names, row in reasons("Options that are not here")
        for option in names
        for of in row[1].split(", ")
    }
    absent = {
        (option, there)
        for there, differences in re.findall(r"^\| (\w+) \| `\w+`<br>`\w+` \| (.*)\|$", PAGE, re.MULTILINE)
        for options in re.findall(r"\*not here\*: ([^<]*)", differences)
        for option in re.findall(r"`(\w+)`", options)
    }
    assert absent <= explained
    assert {option for option, _ in absent} == {option for option, _ in explained}
    assert all(len(row) == 3 and row[2] for _, row in reasons("Options that are not here"))


def test_every_class_of_pytorch_optimizer_is_on_the_page():
    absent = [name for names, _ in reasons("Classes that are not here") for name in names]
    of_torch = {name for name, cls in PUBLISHED.items() if cls is getattr(torch.optim, name, None)}
    assert len(SCHEDULERS) == 13
    elsewhere = dict(re.findall(r"(\w+) \(`(\w+)", re.search(r"^Here in another form: (.*)$", TABLE, re.MULTILINE)[1]))
    assert {*ROWS, *absent, *elsewhere} | of_torch == set(PUBLISHED)
    assert not set(ROWS) & set(absent)
    assert all(hasattr(gradtx, form) for form in elsewhere.values())


@pytest.mark.filterwarnings("ignore")  # of their optimizers, and names of options that are translated
@pytest.mark.parametrize("name", sorted(set(ROWS) - OF_ANOTHER_KIND))
def test_a_class_without_a_note_takes_the_same_steps(name):
    theirs = PUBLISHED[name]
    rate = {"lr": 1e-2} if "lr" in defaults(theirs) else {}
    expected = trained_by(lambda params: theirs(params, **rate), steps=7)
    found = trained_by(lambda params: ours_like(params, theirs, 1e-2), steps=7)
    # 1e-5: eps inside or outside of a correction, sums in float32
    assert has_note(ROWS[name][1]) or (expected - found).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "arguments", [{"t_max": 12, "max_lr": 1.0, "warmup_steps": 3}, {"num_epochs": 10}, {}], ids=str
)
@pytest.mark.parametrize(("name", "ours", "note"), SCHEDULERS)
def test_a_scheduler_without_a_note_gives_the_same_rates(name, ours, note, arguments):
    wsd = {"num_warmup_steps": 3, "num_stable_steps": 3, "num_decay_steps": 5, "min_lr_ratio": 0.1}
    arguments = arguments or (wsd if ours == "wsd" else {})
    rates = []
    for load, key in ((pytorch_optimizer.load_lr_scheduler, name), (gradtx.load_lr_scheduler, ours)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        try:
            scheduler = load(key)(optimizer, **arguments)
        except TypeError:
            return  # it takes other arguments
        rates.append([])
        for _ in range(14):
            rates[-1].append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
    assert has_note(note) or rates[1] == pytest.approx(rates[0], abs=1e-12)


def test_options_that_are_required_here_are_on_the_page():
    for name, (ours, differences) in ROWS.items():
        there = defaults(PUBLISHED[name])
        for option, value in defaults(ours).items():
            if value is inspect.Parameter.empty and there.get(option, value) is not value:
                assert f"`{option}` required (" in differences, name
