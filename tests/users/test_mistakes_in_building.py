"""Mistakes that users make before the first step: what they chain, and what they hand to an optimizer."""

import torch
from torch import nn

import gradtx
from gradtx import adamw, chain, optim, sgd
from tests.users.common import perceptron
from tests.users.mistakes import answer_to, assert_answered, each

COSINE = gradtx.cosine_schedule(0.1, 10)
BRANCHES = {"a": adamw(), "b": sgd(0.1)}


def params():
    return perceptron().parameters()


def named():
    return perceptron().named_parameters()


def as_optimizer(*links):
    return gradtx.as_optimizer(chain(*links), named())


def used_up():
    generator = params()
    nn.utils.clip_grad_norm_(generator, 1.0)
    optim.AdamW(generator)


LINKS = {
    "a factory without parentheses": (
        "argument 1 .* got clip_by_global_norm",
        r"call it: clip_by_global_norm\(",
        lambda: chain(gradtx.clip_by_global_norm, adamw()),
    ),
    "a list of links": (
        r"got \[.*adamw\(\)\]",
        r"such as gradtx\.adamw\(",
        lambda: chain([gradtx.centralize(), adamw()]),
    ),
    "a class": ("got AdamW", r"gradtx\.adamw\(", lambda: chain(optim.AdamW)),
    "a schedule as a link": (
        r"got cosine_schedule\(",
        r"such as gradtx\.adamw\(",
        lambda: chain(gradtx.scale_by_adam(), COSINE),
    ),
    "two learning rates": (
        "scale_by_learning_rate follows adamw",
        "remove one",
        lambda: as_optimizer(adamw(), gradtx.scale_by_learning_rate(0.1)),
    ),
    "no learning rate": (
        "increase the loss",
        r"scale_by_learning_rate\(lr\)",
        lambda: as_optimizer(gradtx.clip_by_global_norm(1.0), gradtx.scale_by_adam()),
    ),
    "decay after the rate": (
        "pulls the weights the wrong way",
        "before the learning rate",
        lambda: as_optimizer(sgd(0.1), gradtx.add_decayed_weights(0.1)),
    ),
    "an average before the rate": (
        "average needs the finished step",
        "move average after",
        lambda: as_optimizer(gradtx.average(0.9), sgd(0.1)),
    ),
    "an optimizer inside a link": (
        r"lookahead: takes hyperparameters, got adamw\(\)",
        "combine links by chain",
        lambda: gradtx.lookahead(adamw(), k=5),
    ),
    "the number of steps by another name": (
        "accumulate: unknown argument 'steps'",
        "every",
        lambda: gradtx.accumulate(adamw(), steps=4),
    ),
    "a label that no leaf has": (
        "leaf '2.bias' has no label",
        r"'\*' for the rest",
        lambda: as_optimizer(gradtx.partition(BRANCHES, {"a": "0.*", "b": "2.weight"})),
    ),
    "a label that nobody declared": (
        "leaf '0.weight' has the unknown label 'c'",
        "labels: a, b",
        lambda: as_optimizer(gradtx.partition(BRANCHES, lambda name, p: "c")),
    ),
}
NUMBERS = {
    "a rate as a string": ("lr .* got '1e-3'", "must be a number", lambda: optim.AdamW(params(), lr="1e-3")),
    "a rate as a string in a group": (
        "lr .* got '1e-3'",
        "must be a number",
        lambda: optim.AdamW([{"params": params(), "lr": "1e-3"}]),
    ),
    "betas in the place of the rate": (
        r"lr .* got \(0\.9, 0\.99\)",
        "must be a number",
        lambda: optim.AdamW(params(), (0.9, 0.99)),
    ),
    "a negative decay": (
        "weight_decay .* got -0.1",
        r"in \[0, inf\)",
        lambda: optim.AdamW(params(), weight_decay=-0.1),
    ),
    "a function as a rate": (
        "lr .* got <lambda>",
        r"wrap it: gradtx\.Schedule",
        lambda: optim.AdamW(params(), lr=lambda step: 0.1),
    ),
    "another word for the rate": (
        "unknown argument 'learning_rate'",
        "did you mean 'lr'",
        lambda: optim.AdamW(params(), learning_rate=0.1),
    ),
    "a momentum for Adam": (
        "unknown argument 'momentum'",
        "known: amsgrad, betas",
        lambda: optim.AdamW(params(), momentum=0.9),
    ),
    "a warm-up longer than the run": (
        "warmup_steps .* got 1000",
        "at most t_max = 100",
        lambda: gradtx.warmup_cosine_schedule(lr=0.1, total_steps=100, warmup_steps=1000),
    ),
    "a fraction of the steps": (
        "unknown argument 'warmup_ratio'",
        "did you mean 'warmup_steps'",
        lambda: gradtx.warmup_cosine_schedule(lr=0.1, total_steps=100, warmup_ratio=0.1),
    ),
    "a code that does not exist": (
        "state_dtype .* got 'int7'",
        "did you mean 'int8'",
        lambda: optim.AdamW(params(), state_dtype="int7"),
    ),
    "an option of torch's loops": (
        "fused=True",
        "omit it",
        lambda: optim.AdamW(params(), fused=True),
    ),
    "a misspelt key of a group": (
        "no link reads 'weight_decy'",
        "did you mean 'weight_decay'",
        lambda: optim.AdamW([{"params": params(), "weight_decy": 0.1}]),
    ),
}
PARAMETERS = {
    "a module": ("got Sequential", r"model\.parameters\(\)", lambda: optim.AdamW(perceptron())),
    "a dict": ("got a dict", r"list\(params\.items\(\)\)", lambda: optim.AdamW(dict(named()))),
    "a generator that was used up": ("empty parameter list", "consumed only once", used_up),
    "integers": (
        "leaf '0' has dtype torch.int64",
        "remove integer",
        lambda: optim.AdamW([torch.ones(3, dtype=torch.int64)]),
    ),
    "parameters before the transformation": (
        "the first argument must be the transformation",
        r"as_optimizer\(tx, params\)",
        lambda: gradtx.as_optimizer(params(), adamw()),
    ),
    "a factory instead of a transformation": (
        "got adamw",
        r"call it: adamw\(",
        lambda: gradtx.as_optimizer(adamw, params()),
    ),
    "a class instead of a transformation": (
        "got AdamW",
        r"gradtx\.adamw\(",
        lambda: gradtx.as_optimizer(optim.AdamW, params()),
    ),
    "a pattern that matches nothing": (
        r"mask: '\*\.wieght' matches no leaf",
        "leaves: 0.weight",
        lambda: optim.AdamW(named(), mask="*.wieght"),
    ),
    "a pattern for parameters without names": (
        r"mask: '\*\.weight' matches no leaf",
        r"named_parameters\(\)",
        lambda: optim.AdamW(params(), mask="*.weight"),
    ),
    "parameters as a mask": (
        r"mask: .* got \[tensor\(shape=\(8, 3\)\)",
        "by their names",
        lambda: optim.AdamW(named(), mask=[*params()][:1]),
    ),
    "parameters to freeze": (
        "freeze: .* got <generator",
        "by their names",
        lambda: gradtx.freeze(params()),
    ),
    "vectors for Muon": (
        r"leaf '0.bias' has shape \(8,\)",
        "muon_for",
        lambda: gradtx.as_optimizer(gradtx.muon(), named()),
    ),
    "complex matrices for Muon": (
        "leaf '0' is complex",
        "view_as_real",
        lambda: optim.Muon([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))]),
    ),
    "parameters instead of a model": (
        "muon_for: model .* got <generator",
        r"torch\.nn\.Module",
        lambda: gradtx.muon_for(params()),
    ),
    "an unknown name": (
        "unknown optimizer 'adammw'",
        "did you mean 'adamw'",
        lambda: gradtx.create_optimizer(perceptron(), "adammw"),
    ),
}


@each({**LINKS, **NUMBERS, **PARAMETERS})
def test_a_mistake_in_building_is_answered_once_with_culprit_and_remedy(culprit, remedy, mistake):
    assert_answered(answer_to(mistake), culprit, remedy)
