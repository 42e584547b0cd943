"""The guide's best settings have no finding, or one that is true and explained here."""

import pytest
import torch

import gradtx

pytest.importorskip("sklearn")

from benchmarks.guide.entries import entries
from benchmarks.guide.results import Results
from benchmarks.guide.tasks import TASKS
from tests.tiers import by_day

METHODS = (
    "adamw", "sgd", "lion", "adam_atan2", "lamb", "lars", "nadam", "radam", "rmsprop", "adabelief", "adan", "ademamix",
    "adopt", "soap", "muon", "prodigy", "adafactor", "sophia", "yogi", "signum",
)  # fmt: skip
# What the settings of the guide deserve to be told.
TRUE = {
    "ademamix": "memory longer than the run",  # its slow average is made for runs of 10,000 steps
    "adopt": "memory longer than the run",
    "rmsprop": "rate too large",  # no bias correction: its first steps are ten times the later ones
    "muon": "embedding with Muon",  # the guide sends all matrices to it
    "yogi": "eps decides",  # its eps of 1e-3 exceeds the gradients once the loss is small
    "prodigy": "rate too small",  # on the smallest problem, it stops at the first estimate of its rate
}
DECAY = "decay of norms and biases"  # the guide decays all weights
STEPS = 25  # that are measured


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
@by_day("tabular")
@pytest.mark.parametrize("task_name", ["digits", "tabular", "autoencoder"])
def test_the_best_settings_of_twenty_methods_have_no_finding_that_is_not_explained(task_name, monkeypatch):
    monkeypatch.setattr(gradtx, "get_supported_optimizers", lambda: METHODS)
    task, best_of, ways = TASKS[task_name], Results().by_task[task_name], entries()
    unexplained = {}
    for name in METHODS:
        best, steps = best_of[name], task.steps // ways[name].gradients
        tx = ways[name].make(steps)(rate=best.rate, weight_decay=best.decay)
        params = {leaf: torch.nn.Parameter(value.clone()) for leaf, value in task.params(0).items()}
        optimizer = gradtx.as_optimizer(tx, list(params.items()))
        with gradtx.watch(optimizer, every=max(1, steps // STEPS)) as seen:
            for step in range(steps):
                optimizer.zero_grad()
                task.loss(params, task.batch(step)).backward(create_graph="hessian_diag" in tx.needs)
                optimizer.step()
        findings = [finding for finding in seen.diagnose() if finding.kind not in (DECAY, TRUE.get(name))]
        if findings:
            unexplained[name] = findings
    assert unexplained == {}
