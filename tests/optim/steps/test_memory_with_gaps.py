"""Weights that are slices of columns, every other entry, or transposed: lists run on them where they are."""

import pytest
import torch

import gradtx

each = pytest.mark.parametrize


def _slice(generator):
    return torch.randn(5, 12, generator=generator)[:, :7]


def _every_other(generator):
    return torch.randn(5, 14, generator=generator)[:, ::2]


def _transposed(generator):
    return torch.randn(7, 5, generator=generator).t()


def _in_order(generator):
    return torch.randn(5, 7, generator=generator)


MEMORY = {"slice": _slice, "every other": _every_other, "transposed": _transposed, "in order": _in_order}
OPTIMIZERS = {
    "adamw": (gradtx.optim.AdamW, torch.optim.AdamW, {"lr": 0.1}),
    "sgd": (gradtx.optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
}


@each("compile", [False, True])
@each("name", OPTIMIZERS)
@each("of_gradient", MEMORY)
@each("of_weight", MEMORY)
def test_a_step_is_that_of_torch_over_lists(name, of_weight, of_gradient, compile):
    ours, theirs, options = OPTIMIZERS[name]
    weights, steppers = [], []
    for make, more in ((ours, {"compile": compile}), (theirs, {"foreach": True})):
        generator = torch.Generator().manual_seed(0)
        weights.append([torch.nn.Parameter(MEMORY[of_weight](generator)) for _ in range(3)])
        steppers.append(make(weights[-1], **options, **more))
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        gradients = [MEMORY[of_gradient](generator) for _ in range(3)]
        for params, stepper in zip(weights, steppers, strict=True):
            for param, gradient in zip(params, gradients, strict=True):
                param.grad = gradient
            stepper.step()
    for weight, expected in zip(*weights, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
    ways = {item.way for item in steppers[0].explain()}
    assert ways <= {"lists", "kernels"}, "leaves run one at a time"
    assert ways == {"lists"} or (compile and of_weight in ("transposed", "in order"))


@each("of_weight", ["slice", "every other"])
def test_a_step_writes_no_entry_between_those_of_a_weight(of_weight):
    weight = torch.nn.Parameter(MEMORY[of_weight](torch.Generator().manual_seed(0)))
    whole = torch.as_strided(weight.detach(), (60 if of_weight == "slice" else 70,), (1,))
    before, version = whole.clone(), weight._version
    optimizer = gradtx.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones(5, 7)
    optimizer.step()
    changed = torch.as_strided((whole != before).to(torch.int64), weight.shape, weight.stride())
    assert changed.all()
    assert (whole != before).sum() == weight.numel()
    assert weight._version > version


@each("compile", [False, True])
def test_links_with_norms_and_codes_take_memory_with_gaps(compile):
    """The first compute on copies in order; codes need their entries one after another, so such leaves run alone."""
    for tx in (
        gradtx.chain(gradtx.clip_by_global_norm(0.5), gradtx.adamw(lr=0.1)),
        gradtx.lamb(lr=0.1),
        gradtx.adamw(lr=0.1, state_dtype="int8"),
    ):
        results = []
        for memory in (_slice, lambda generator: _slice(generator).contiguous()):
            weight = torch.nn.Parameter(memory(torch.Generator().manual_seed(0)))
            optimizer = gradtx.as_optimizer(tx, [weight], compile=compile)
            for step in range(3):
                weight.grad = torch.linspace(-1, 1, 35).view(5, 7) * (step + 1)
                optimizer.step()
            results.append(weight.detach())
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_leaves_whose_entries_share_memory_run_alone():
    weight = torch.nn.Parameter(torch.as_strided(torch.zeros(20), (3, 4), (2, 1)))
    optimizer = gradtx.optim.SGD([weight], lr=0.1)
    weight.grad = torch.zeros(3, 4)
    optimizer.step()
    assert {item.way for item in optimizer.explain()}.isdisjoint({"lists", "kernels"})


@each("compile", [False, True])
@each("of_absent", ["slice", "transposed"])
def test_a_step_in_which_only_weights_in_order_have_gradients_equals_that_of_these_alone(of_absent, compile):
    results = []
    for memory in (of_absent, "in order"):
        generator = torch.Generator().manual_seed(0)
        odd = torch.nn.Parameter(MEMORY[memory](generator))
        generator = torch.Generator().manual_seed(1)
        usual = torch.nn.Parameter(_in_order(generator))
        # Its trust ratio looks at whole leaves.
        optimizer = gradtx.optim.Lamb([odd, usual], lr=0.1, compile=compile)
        for step in range(4):
            odd.grad = None if step % 2 else torch.ones_like(odd)
            usual.grad = _in_order(generator)
            optimizer.step()
        results.append(usual.detach())
    assert torch.equal(*results)
