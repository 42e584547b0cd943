"""DistributedDataParallel: every process has all parameters and a part of each batch."""

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import gradtx
from tests.distributed.problems import CHAINS, WITH_CLOSURES, Model, assert_close, engine, states, train, weights
from tests.optim.problems import assert_equal
from tests.tiers import by_day

STEPS = 4


class Halved(DistributedDataParallel):
    """Takes its process's rows of a batch, so that it can be trained like the model of one process."""

    def forward(self, x):
        rank, size = distributed.get_rank(), distributed.get_world_size()
        return super().forward(x.chunk(size)[rank])


def replicated_equals_whole(name, kind):
    tx, closure = {**CHAINS, **WITH_CLOSURES}[name], name in WITH_CLOSURES
    plain, model = Model(), Model()
    reference = gradtx.as_optimizer(tx, plain.named_parameters())
    train(plain, reference, STEPS, closure=closure)
    with engine(kind) as compile:
        optimizer = gradtx.as_optimizer(tx, model.named_parameters(), compile=compile)
        train(Halved(model), optimizer, STEPS, closure=closure)
    assert_close(weights(model), weights(plain))
    assert_close(states(model, optimizer), states(plain, reference))
    return weights(model), states(model, optimizer)


CASES = [(name, "eager") for name in [*CHAINS, "gradients elsewhere"]]  # each process has a loss of its own
CASES += [(name, "compiled") for name in ("clip and adamw", "adamp", "distance", "accumulate", "partition")]


@by_day(
    "trust ratio-eager", "regenerate-eager", "schedule-eager", "skip-eager", "lookahead-eager", "views-eager",
    "divided otherwise-eager", "clip and adamw-compiled",
)  # fmt: skip
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_processes_with_half_a_batch_each_take_the_steps_of_one_with_all_of_it(name, kind, two):
    first, second = two.run(replicated_equals_whole, name, kind)
    assert_equal(first, second)


def divided_states_equal_whole(kind):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # here, since its import warns

    plain, model = Model(), Model()
    reference = gradtx.optim.AdamP(plain.parameters(), lr=1e-2, weight_decay=0.1)
    with engine(kind) as compile:
        options = {"lr": 1e-2, "weight_decay": 0.1, "compile": compile}
        optimizer = ZeroRedundancyOptimizer(model.parameters(), gradtx.optim.AdamP, **options)
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in (reference, optimizer)]
        for t in range(STEPS):
            train(plain, reference, 1, t)
            train(Halved(model), optimizer, 1, t)
            for scheduler in schedulers:
                scheduler.step()
    assert_close(weights(model), weights(plain))
    optimizer.consolidate_state_dict(0)
    if distributed.get_rank() == 0:
        whole = gradtx.optim.AdamP(Model().parameters())
        whole.load_state_dict(optimizer.state_dict())
        expected, found = reference.state_dict(), whole.state_dict()
        assert_close([found["state"]], [expected["state"]])


def labeled_groups_equal_whole(with_labels):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # here, since its import warns

    def made(wrapper):
        torch.manual_seed(0)
        weight, bias = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.ones(3))
        groups = [{"params": [weight], "lr": 0.02}, {"params": [bias], "lr": 1e-3}]
        for group, label in zip(groups, ("muon", "fallback"), strict=True):
            if with_labels:
                group["label"] = label
        options = {"lr": 0.02, "fallback": gradtx.adamw(lr=1e-3)}
        return [weight, bias], wrapper(groups, gradtx.optim.Muon, **options)

    def run(params, optimizer):
        for _ in range(2):
            for param in params:
                param.grad = torch.ones_like(param)
            optimizer.step()

    params, optimizer = made(ZeroRedundancyOptimizer)
    run(params, optimizer)
    optimizer.consolidate_state_dict(0)
    if distributed.get_rank() != 0:
        return
    others, whole = made(lambda groups, of_class, **options: of_class(groups, **options))
    if not with_labels:  # this rank owns the weight alone
        with pytest.raises(ValueError, match="it had no parameters where it was saved, as on a rank of ZeroRedundancy"):
            whole.load_state_dict(optimizer.state_dict())
        return
    run(others, whole)
    assert_close(params, others)
    expected = whole.state_dict()
    whole.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in whole.param_groups] == [0.02, 1e-3]
    assert_close([whole.state_dict()["state"]], [expected["state"]])


@pytest.mark.filterwarnings("ignore:.*the 'lr' of this group is not that of its parameters")
@pytest.mark.parametrize("with_labels", [True, False])
def test_groups_that_say_their_label_are_the_same_on_ranks_of_zero_redundancy_without_their_parameters(
    with_labels, two
):
    two.run(labeled_groups_equal_whole, with_labels)


@by_day("eager")
@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_states_divided_by_zero_redundancy_take_the_steps_of_whole_ones(kind, two):
    two.run(divided_states_equal_whole, kind)
