"""Slots of owners stay divided as they were loaded until the next step: ranks compare before they exchange them."""

import copy
import time
from collections import Counter

import pytest
import torch
from torch import distributed
from torch.distributed.tensor import DTensor

import gradtx
from gradtx.base.dtensor import local
from tests.codecs import DOUBLY
from tests.distributed.problems import (
    Model,
    assert_close,
    batch,
    loss_of,
    sharded,
    sharded_twice,
    train,
    weights,
    whole,
)
from tests.distributed.traffic import Traffic
from tests.tiers import by_day

BEFORE, STEPS = 3, 6
DEADLINE = 20.0  # seconds that a rank may say nothing
SOAP = {"lr": 0.02, "precondition_frequency": 2}
ADAMW = gradtx.adamw(lr=0.01)
IN_PART = {"matrix": "*body.weight", "rest": "*"}
CHAINS = {
    "soap": gradtx.soap(**SOAP),
    "shampoo": gradtx.shampoo(lr=0.02, momentum=0.5),
    "kron": gradtx.psgd_kron(lr=0.01, seed=0),
    "normuon": gradtx.normuon(lr=0.02, fallback=ADAMW),
    "dion": gradtx.dion(lr=0.02, rank=0.5, fallback=ADAMW),
    "clip and soap in part": gradtx.chain(
        gradtx.clip_by_global_norm(0.5), gradtx.partition({"matrix": gradtx.soap(**SOAP), "rest": ADAMW}, IN_PART)
    ),
    "accumulate": gradtx.accumulate(gradtx.soap(**SOAP), every=2),
    "skip": gradtx.skip_nonfinite(gradtx.shampoo(lr=0.02)),
    "average": gradtx.chain(gradtx.soap(**SOAP), gradtx.average(decay=0.9)),
    "16 bits": gradtx.chain(gradtx.scale_by_soap(state_dtype="bfloat16"), gradtx.scale(-0.02)),
}


class Run:
    """A divided model and its optimizer."""

    def __init__(self, name, divide=sharded, like=None, chains=CHAINS):
        self.has_numbers = name == "kron"  # that owners keep
        self.model = divide(Model())
        self.optimizer = gradtx.as_optimizer(chains[name], self.model.named_parameters())
        if like is not None:
            for param, value in zip(self.model.parameters(), like.model.parameters(), strict=True):
                local(param.detach()).copy_(local(value.detach()))

    def trained(self, steps, start=0):
        train(self.model, self.optimizer, steps, start)
        return self

    def saved(self):
        return copy.deepcopy(self.optimizer.state_dict())

    def slots(self):
        """The state dict's slots, in one piece."""
        entries = self.optimizer.state_dict()["state"].values()
        return [{key: whole(value) for key, value in entry.items()} for entry in entries]

    def everything(self):
        return weights(self.model), self.slots()

    def owned_slots(self):
        """The slots that owners keep, as they are in the state."""
        members = self.optimizer._core.members.by_param.values()
        return [self.optimizer.state[m.param][key] for m in members for key in m.layout.owned]


def messages_of(function, *args):
    with Traffic() as traffic:
        function(*args)
    return dict(Counter(traffic.messages))


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# What comes between loading and the next step.


def nothing(run):
    pass


def is_saved(run):
    before = [value.to_local().clone() for value in run.owned_slots() if isinstance(value, DTensor)]
    sent = messages_of(run.optimizer.state_dict)
    assert run.has_numbers or not sent  # which are not divided
    assert_same([value.to_local() for value in run.owned_slots() if isinstance(value, DTensor)], before)


def is_saved_and_loaded_again(run):
    run.optimizer.load_state_dict(run.saved())


def evaluates(run):
    run.optimizer.eval()
    with torch.no_grad():
        loss_of(run.model, batch(0))
    run.model.reshard()
    run.optimizer.train()


def steps_without_gradients(run):
    run.optimizer.zero_grad()
    run.optimizer.step()


def is_copied(run):
    """The copy goes on in its place, of the same parameters."""
    copied = copy.deepcopy(run.optimizer, {id(param): param for param in run.model.parameters()})
    run.optimizer = copied


BETWEEN = {
    f.__name__: f for f in (nothing, is_saved, is_saved_and_loaded_again, evaluates, steps_without_gradients, is_copied)
}


def whole_weights(name, divide):
    """Train a whole model with the gradients of a divided one: eigenvectors would magnify other rounding."""
    run, plain = Run(name, divide), Model()
    reference = gradtx.as_optimizer(CHAINS[name], plain.named_parameters())
    for t in range(STEPS):
        run.trained(1, start=t)
        for param, divided in zip(plain.parameters(), run.model.parameters(), strict=True):
            param.grad = whole(divided.grad)
        reference.step()
    return weights(plain)


def resumed_and_continued(name, between, divide=sharded):
    first = Run(name, divide).trained(BEFORE)
    saved, slots = first.saved(), first.slots()
    again = Run(name, divide, like=first)
    assert messages_of(again.optimizer.load_state_dict, saved) == {}
    assert any(isinstance(value, DTensor) for value in again.owned_slots())
    assert_same(again.slots(), slots)
    BETWEEN[between](again)
    for run in (first, again):
        run.trained(STEPS - BEFORE, BEFORE)
    assert not any(isinstance(value, DTensor) for value in again.owned_slots())
    assert_same(again.everything(), first.everything())
    if name != "16 bits":  # sums in another order may round otherwise
        assert_close(weights(again.model), whole_weights(name, divide))


@by_day("nothing-*", "is_saved-soap", "evaluates-average", "steps_without_gradients-soap")
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("between", BETWEEN)
def test_loading_sends_nothing_and_the_run_goes_on_bit_by_bit(between, name, two):
    two.run(resumed_and_continued, name, between)


@by_day("nothing-soap", "nothing-normuon", "is_saved-soap")
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("between", ["nothing", "is_saved"])
def test_loading_sends_nothing_on_two_meshes_and_the_run_goes_on_bit_by_bit(between, name, four):
    four.run(resumed_and_continued, name, between, sharded_twice)


# A rank that does not load.


def is_last():
    return distributed.get_rank() == distributed.get_world_size() - 1


def one_rank_does_not_load(name, how, divide=sharded):
    """A new optimizer, or the one that has stepped, loads on all ranks but the last; then all of them step."""
    first = Run(name, divide).trained(BEFORE)
    saved = first.saved()
    run = first if how == "is refused after steps" else Run(name, divide, like=first)
    if not is_last():
        run.optimizer.load_state_dict(saved)
    elif how != "cannot read its file":
        with pytest.raises(ValueError, match="'param_groups'"):
            run.optimizer.load_state_dict({"state": saved["state"]})
    loss_of(run.model, batch(BEFORE)).backward()
    before = [local(param).clone() for param in run.model.parameters()]
    with pytest.raises(RuntimeError) as caught:
        run.optimizer.step()
    at = time.monotonic()
    assert_same([local(param) for param in run.model.parameters()], before)
    distributed.barrier()  # nothing is left under way
    run.optimizer.load_state_dict(saved)
    run.optimizer.zero_grad()
    run.trained(STEPS - BEFORE, BEFORE)
    whole_run = Run(name, divide).trained(STEPS)
    assert_same(run.everything(), whole_run.everything())
    return str(caught.value), at


def check_all_raised(answers):
    texts, times = zip(*answers, strict=True)
    assert max(times) - min(times) < 1
    assert len(set(texts)) == 1, texts
    assert "ranks would step differently" in texts[0]
    return texts[0]


@by_day("*-soap", "is refused after steps-shampoo")
@pytest.mark.parametrize("name", ["soap", "shampoo", "kron", "normuon", "clip and soap in part"])
@pytest.mark.parametrize("how", ["cannot read its file", "is refused", "is refused after steps"])
def test_a_rank_that_does_not_load_makes_all_raise_at_the_next_step(how, name, two):
    text = check_all_raised(two.run(one_rank_does_not_load, name, how, limit=DEADLINE))
    assert ("as loaded" if how == "is refused after steps" else "after 0 steps") in text


@pytest.mark.parametrize("how", ["cannot read its file", "is refused after steps"])
def test_a_rank_that_does_not_load_makes_all_ranks_of_two_meshes_raise(how, four):
    check_all_raised(four.run(one_rank_does_not_load, "soap", how, sharded_twice, limit=DEADLINE))


# Other ways into and out of the state.

OTHER_CODES = {
    "none": gradtx.chain(gradtx.scale_by_soap(precondition_frequency=2), gradtx.scale(-0.02)),
    "bfloat16": gradtx.chain(
        gradtx.scale_by_soap(precondition_frequency=2, state_dtype={"exp_avg": torch.bfloat16}), gradtx.scale(-0.02)
    ),
    "int8": gradtx.chain(
        gradtx.scale_by_soap(precondition_frequency=2, state_dtype={"exp_avg": "int8"}), gradtx.scale(-0.02)
    ),
    "doubly": gradtx.chain(
        gradtx.scale_by_soap(precondition_frequency=2, state_dtype={"exp_avg": DOUBLY}), gradtx.scale(-0.02)
    ),
}


def loaded_in_another_code(source, target):
    """The state of a divided run is converted as that of one process."""
    divided = Run(source, chains=OTHER_CODES).trained(BEFORE)
    again = Run(target, like=divided, chains=OTHER_CODES)
    again.optimizer.load_state_dict(divided.saved())
    plain = Model()
    made = [gradtx.as_optimizer(OTHER_CODES[code], plain.named_parameters()) for code in (source, target)]
    train(plain, made[0], BEFORE)
    made[1].load_state_dict(copy.deepcopy(made[0].state_dict()))
    expected = [dict(entry) for entry in made[1].state_dict()["state"].values()]
    torch.testing.assert_close(again.slots(), expected, rtol=1e-3, atol=1e-3)
    again.trained(1, BEFORE)
    train(plain, made[1], 1, BEFORE)
    torch.testing.assert_close(weights(again.model), weights(plain), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("source", "target"), [("none", "bfloat16"), ("bfloat16", "none"), ("int8", "int8"), ("doubly", "doubly")]
)
def test_slots_saved_in_another_code_are_converted(source, target, two):
    two.run(loaded_in_another_code, source, target)


def moved_to_other_parameters():
    """After loading, weights are replaced by new parameters, to which the user moves the state."""
    first = Run("soap").trained(BEFORE)
    again = Run("soap", like=first)
    again.optimizer.load_state_dict(first.saved())
    optimizer = again.optimizer
    for module in list(again.model.modules()):
        for _, param in list(module.named_parameters(recurse=False)):
            new = torch.nn.Parameter(param.detach().clone())
            group = optimizer.param_groups[0]["params"]
            i = next(i for i, other in enumerate(group) if other is param)
            group[i] = new
            optimizer.state[new] = optimizer.state.pop(param)
    for run in (first, again):
        generator = torch.Generator().manual_seed(distributed.get_rank())
        for param in run.optimizer.param_groups[0]["params"]:
            gradient = torch.randn(local(param).shape, generator=generator, dtype=torch.float64)
            param.grad = torch.zeros_like(param)
            local(param.grad).copy_(gradient)
        run.optimizer.step()
    for ours, theirs in zip(*(run.optimizer.param_groups[0]["params"] for run in (first, again)), strict=True):
        assert_same(local(ours), local(theirs))
    assert_same(again.slots(), first.slots())


def test_slots_move_to_other_parameters_as_they_were_loaded(two):
    two.run(moved_to_other_parameters)


def released_after_loading():
    first = Run("soap").trained(BEFORE)
    again = Run("soap", like=first)
    again.optimizer.load_state_dict(first.saved())
    again.optimizer.release_gradients()
    for run in (first, again):
        for t in range(BEFORE, STEPS):
            run.optimizer.zero_grad()
            loss_of(run.model, batch(t)).backward()
            run.optimizer.step()
    assert_same(again.everything(), first.everything())


def test_slots_that_were_loaded_serve_steps_during_backward(two):
    two.run(released_after_loading)


def first_gradient_comes_later():
    """A parameter that has no gradient in the first step after loading keeps its rows until it steps."""
    first = Run("soap").trained(BEFORE)
    again = Run("soap", like=first)
    again.optimizer.load_state_dict(first.saved())
    for t in range(BEFORE, STEPS):
        for run in (first, again):
            run.optimizer.zero_grad()
            loss_of(run.model, batch(t)).backward()
            if t == BEFORE:
                run.model.body.weight.grad = None
            run.optimizer.step()
        assert_same(again.slots(), first.slots())
    assert_same(again.everything(), first.everything())


def test_a_parameter_that_steps_later_keeps_its_rows_until_then(two):
    two.run(first_gradient_comes_later)
