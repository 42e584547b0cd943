"""The optimizers of the examples have no finding, or one that is true and explained here."""

import functools

import pytest

import gradtx
from gradtx.optim.optimizer import ChainOptimizer
from gradtx.watching.modules import modules_with
from tests.project.test_examples import script

pytest.importorskip("sklearn")

# Name -> the findings that some of its optimizers have.
TRUE = {
    "digits": {"decay of norms and biases"},  # it decays all leaves, for short chains
    "finetune_digits": {"never moved"},  # it freezes parts of the model by `freeze`, which is what it compares
    "lora": {"rate too large", "dead leaves"},  # its rates reach far beyond the best one, where units die
    "muon_chars": {"decay of norms and biases"},  # its AdamW alone decays all leaves
    "outer": {"embedding with Muon"},  # it sends all matrices of a small network to Muon, the head among them
    "pcgrad_digits": set(),
    "physics_informed": set(),
    "sam_digits": set(),
    "zero_order": set(),
}


@pytest.mark.nightly
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:DeprecationWarning"
)  # torch itself, when a process first uses jvp
@pytest.mark.parametrize("name", TRUE)
def test_an_example_has_no_finding_that_is_not_explained(name, monkeypatch, tmp_path):
    watches, kept = [], []
    create = ChainOptimizer.__init__

    @functools.wraps(create)
    def create_watched(self, *args, **options):
        create(self, *args, **options)
        watches.append(gradtx.watch(self, every=20))
        # What was seen keeps neither the optimizer nor the model, whose names tell roles; an example drops both.
        kept.extend([self, *modules_with(p for group in self.param_groups for p in group["params"])])

    monkeypatch.setattr(ChainOptimizer, "__init__", create_watched)
    script(name)["main"](["--plot", str(tmp_path / "plot.png")])
    findings = [finding for seen in watches if seen.samples for finding in seen.diagnose()]
    assert {finding.kind for finding in findings} == TRUE[name], findings
