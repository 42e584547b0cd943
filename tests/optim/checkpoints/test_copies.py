"""deepcopy, pickle and torch.save of whole optimizers: each copy continues in the same way, independently."""

import copy
import gc
import io
import itertools
import pickle
import weakref

import pytest
import torch
from torch.distributed.checkpoint.state_dict import _init_optim_state

import gradtx
from tests.optim.chains import CHAINS
from tests.optim.problems import assert_close, assert_equal, both, descend, parameters, values, whole
from tests.tiers import by_day


def saved_whole(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value)), "torch.save": saved_whole}


def trained(tx, steps):
    params = parameters()
    optimizer = gradtx.as_optimizer(tx, list(params.items()))
    descend(optimizer, params, steps)
    return params, optimizer


@by_day(
    "design-torch.save", "partition-deepcopy", "masked-pickle", "freeze-torch.save",
    "accumulate a partition-deepcopy", "skip an accumulation-pickle", "masked accumulation-torch.save",
    "with lookahead-deepcopy", "whole tree-pickle", "two sums-torch.save", "random-deepcopy", "map after step-pickle",
    "adamp-torch.save", "adam_atan2-deepcopy", "pnm-pickle", "prodigy-torch.save",
)  # fmt: skip
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CHAINS)
def test_a_copy_goes_on_as_the_original_and_leaves_it_alone(name, way):
    for steps in (0, 5):
        params, optimizer = trained(CHAINS[name], steps)
        own, again = WAYS[way]((params, optimizer))
        before = whole(optimizer, grads=False)
        descend(again, own, 4, start=steps)
        assert_equal(whole(optimizer, grads=False), before)
        descend(optimizer, params, 4, start=steps)
        assert_equal(whole(again, grads=False), whole(optimizer, grads=False))
        assert type(again) is type(optimizer)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_before_the_first_step_still_makes_its_state_from_the_present_weights(way):
    tx = gradtx.chain(gradtx.sgd(), gradtx.lookahead(k=1))
    own, again = WAYS[way](trained(tx, 0))
    with torch.no_grad():
        for param in own.values():
            param.fill_(7.0)
            param.grad = torch.zeros_like(param)
    again.step()
    for param in own.values():
        assert_equal(again.state[param]["slow"], torch.full_like(param, 7.0))


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_before_the_first_step_keeps_state_that_was_touched(way):
    params, optimizer = trained(gradtx.ema(0.5), 0)
    _init_optim_state(optimizer)  # creates slots
    optimizer.state[params["body.bias"]]["exp_avg"].fill_(1.0)
    own, again = WAYS[way]((params, optimizer))
    for param in own.values():
        param.grad = torch.zeros_like(param)
    again.step()
    assert_equal(again.state[own["body.bias"]]["exp_avg"], torch.full((3,), 0.5, dtype=torch.float64))


@by_day(
    "SGD-pickle", "SGDW-deepcopy", "SGDW-torch.save", "Adam-pickle", "AdamW-deepcopy", "AdamW-torch.save",
    "AdamP-pickle", "AdamAtan2-deepcopy", "AdamAtan2-torch.save", "ADOPT-pickle", "AdoptAtan2-deepcopy",
    "AdoptAtan2-torch.save",
)  # fmt: skip
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["SGD", "SGDW", "Adam", "AdamW", "AdamP", "AdamAtan2", "ADOPT", "AdoptAtan2"])
def test_generated_classes_keep_their_class_and_groups(name, way):
    cls = getattr(gradtx.optim, name)
    params = parameters()
    optimizer = cls([{"params": params.values(), "name": "all"}], lr=0.01)
    descend(optimizer, params, 2)
    own, again = WAYS[way]((params, optimizer))
    assert type(again) is cls
    assert again.param_groups[0]["name"] == "all"
    assert again.param_groups[0]["params"][0] is next(iter(own.values()))
    assert repr(again) == repr(optimizer)


@pytest.mark.parametrize("way", WAYS)
def test_an_override_of_a_schedule_lasts_in_a_copy(way):
    schedule = gradtx.cosine_schedule(0.1, T_max=20)
    params, optimizer = trained(gradtx.sgd(lr=schedule), 2)
    optimizer.param_groups[0]["lr"] = 0.7
    own, again = WAYS[way]((params, optimizer))
    descend(again, own, 2)
    descend(optimizer, params, 2)
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.7


@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")  # torch's copies lose the record of the first step
def test_a_scheduler_copied_with_its_optimizer_drives_the_copy():
    params, optimizer = trained(gradtx.adamw(lr=0.1), 1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    own, again, driver = copy.deepcopy((params, optimizer, scheduler))
    descend(again, own, 2, after=driver.step)
    assert again.param_groups[0]["lr"] == 0.025
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_copied_optimizer_can_be_copied_again_and_saved():
    params, optimizer = trained(CHAINS["partition"], 2)
    for _ in range(3):
        params, optimizer = pickle.loads(pickle.dumps(copy.deepcopy((params, optimizer))))
    descend(optimizer, params, 3, start=2)
    expected, _ = trained(CHAINS["partition"], 5)
    assert_equal(values(params), values(expected))


@pytest.mark.parametrize("chain", CHAINS)
def test_an_optimizer_that_is_let_go_frees_its_parameters_at_once_as_in_torch(chain):
    params, optimizer = trained(CHAINS[chain], 2)
    optimizer.state_dict()
    slots = itertools.chain.from_iterable(map(dict.values, optimizer.state.values()))
    used = [*params.values(), *slots]
    references = list(map(weakref.ref, used))
    gc.disable()
    try:
        params.clear()
        del optimizer, slots, used
        assert [reference() for reference in references] == [None] * len(references)
    finally:
        gc.enable()


def test_groups_and_state_given_to_setstate_take_the_place_of_others_as_in_torch():
    def run(module):
        params = parameters()
        optimizer = module.Adam(params.values(), lr=0.1)
        descend(optimizer, params, 3)
        groups = [{**group, "lr": 0.01} for group in optimizer.param_groups]
        optimizer.__setstate__({"state": optimizer.state, "param_groups": groups})
        descend(optimizer, params, 3, start=3)
        return params.values()

    assert_close(*both(run), tolerance=1e-12)


def test_setstate_of_a_subclass_completes_loaded_groups_as_in_torch():
    def run(module):
        class WithNoise(module.AdamW):
            def __setstate__(self, state):
                super().__setstate__(state)
                for group in self.param_groups:
                    group.setdefault("noise", 0.5)

        params = parameters()
        plain, optimizer = module.AdamW(params.values()), WithNoise(params.values())
        descend(plain, params, 2)
        optimizer.load_state_dict(plain.state_dict())
        descend(optimizer, params, 2, start=2)
        return params.values(), optimizer.param_groups[0]["noise"]

    (ours, noise), (theirs, expected) = both(run)
    assert_close(ours, theirs, 1e-12)
    assert noise == expected == 0.5
