"""Each planted fault is found, named first or second; healthy runs have no finding."""

import copy

import pytest
import torch
from torch import nn

import gradtx
from tests.tiers import by_day

ADAM, RATE = gradtx.scale_by_adam(), gradtx.scale_by_learning_rate(3e-3)
STEPS = 120


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 48), nn.LayerNorm(48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        return self.head(self.body(x))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        return self.head(self.body(x.view(-1, 1, 8, 8)).flatten(1))


MODELS = {"perceptron": Perceptron, "convolutions": Convolutions}


def batches():
    """Yield batches of ten noisy patterns without end."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(10, 64, generator=generator)
    while True:
        labels = torch.randint(10, (32,), generator=generator)
        yield patterns[labels] + torch.randn(32, 64, generator=generator), labels


def run(
    tx, model="perceptron", steps=STEPS, every=4, dtype=torch.float32, prepare=None,
    groups=None, after=None, forward=None, reset=gradtx.optim.AdamW.zero_grad,
):  # fmt: skip
    """Train a model by a chain, and return the findings."""
    torch.manual_seed(0)
    net = MODELS[model]().to(dtype)
    if prepare is not None:
        prepare(net)
    params = list(net.named_parameters()) if groups is None else groups(net)
    optimizer = tx(net) if callable(tx) else gradtx.as_optimizer(tx, params)
    source = batches()
    forward = forward or (lambda net, x: net(x))
    with gradtx.watch(optimizer, every=every) as seen:
        for t in range(steps):
            x, y = next(source)
            reset(optimizer)
            loss = nn.functional.cross_entropy(forward(net, x.to(dtype)), y)
            loss.backward()
            optimizer.step()
            seen.note(loss)
            if after is not None:
                after(optimizer, t)
    return seen.diagnose()


def adamw(**options):
    return gradtx.adamw(**{"lr": 3e-3, **options})


def without_head(net, x):
    """A forward pass that uses no bias of the head."""
    return net.body(x if "Perceptron" in type(net).__name__ else x.view(-1, 1, 8, 8)).flatten(1) @ net.head.weight.T


def norm_of_one_memory(net):
    """Weights that were to be tied: two parameters over one memory."""
    net.body[1].bias = nn.Parameter(net.body[1].weight.detach())


def freeze_biases(net):
    net.head.bias.requires_grad_(False)


def two_groups(net):
    return [{"params": list(net.body.named_parameters()), "lr": 1e-7}, {"params": list(net.head.named_parameters())}]


def in_a_branch(tx):
    return gradtx.partition({"body": tx, "head": adamw()}, {"body": "body*", "head": "*"})


def muon(where):
    return gradtx.partition({"muon": gradtx.muon(lr=0.02), "adamw": adamw()}, {"muon": where, "adamw": "*"})


def paused_rate(optimizer, t):
    optimizer.param_groups[0]["lr"] = 0.0 if STEPS // 3 <= t < STEPS // 2 else 3e-3


def stale_rate(optimizer, t):
    optimizer.param_groups[0]["lr"] = 0.0 if t >= STEPS // 2 else 3e-3


def nothing(optimizer):
    pass


def to_zeros(optimizer):
    optimizer.zero_grad(set_to_none=False)


SGD = gradtx.sgd(lr=0.05, momentum=0.9)
# Name -> kind, chain, options of `run`.
FAULTS = {
    "clip far below the gradients": ("bound always acts", gradtx.chain(gradtx.clip_by_global_norm(1e-3), SGD), {}),
    "clip of each leaf": ("bound always acts", gradtx.chain(gradtx.clip_by_norm(1e-3), SGD), {}),
    "clip before Adam": ("bound always acts", gradtx.chain(gradtx.clip_by_global_norm(1e-3), adamw(lr=1e-4)), {}),
    "gradients that nothing resets": ("gradients add up", adamw(), {"reset": nothing}),
    "gradients of SGD that nothing resets": ("gradients add up", gradtx.sgd(lr=0.01), {"reset": nothing}),
    "clip of values": ("bound always acts", gradtx.chain(gradtx.clip_by_value(1e-5), SGD), {}),
    "clip far above the gradients": ("bound never acts", gradtx.chain(gradtx.clip_by_global_norm(1e4), adamw()), {}),
    "clip of each leaf far above the gradients": (
        "bound never acts", gradtx.chain(gradtx.clip_by_norm(1e4), adamw()), {},
    ),
    "clip behind Adam in a branch": (
        "clip behind the rule", in_a_branch(gradtx.chain(ADAM, gradtx.clip_by_global_norm(1.0), RATE)), {},
    ),
    "clip behind Adam": (
        "clip behind the rule", gradtx.chain(ADAM, gradtx.clip_by_global_norm(1.0), RATE), {},
    ),
    "clip behind Lion": (
        "clip behind the rule",
        gradtx.chain(gradtx.scale_by_lion(), gradtx.clip_by_norm(1.0), gradtx.scale_by_learning_rate(1e-3)), {},
    ),
    "decay of a thousand": ("decay outweighs the step", adamw(weight_decay=100.0), {}),
    "decay in SGD": ("decay outweighs the step", gradtx.sgd(lr=0.01, weight_decay=3.0), {}),
    "decay of all leaves": ("decay of norms and biases", adamw(weight_decay=1.0), {}),
    "eps of Adam": ("eps decides", adamw(eps=0.3), {}),
    "decay in a branch": ("decay outweighs the step", in_a_branch(adamw(weight_decay=100.0)), {}),
    "eps beside lookahead": ("eps decides", gradtx.chain(adamw(eps=0.3), gradtx.lookahead(k=3)), {}),
    "eps while accumulating": ("eps decides", gradtx.accumulate(adamw(eps=0.3), every=2), {}),
    "eps of RMSprop": ("eps decides", gradtx.rmsprop(lr=1e-3, eps=1.0), {}),
    "bfloat16 weights": ("steps lost in rounding", adamw(lr=1e-5), {"dtype": torch.bfloat16}),
    "a rate of nothing": ("steps lost in rounding", adamw(lr=1e-12), {}),
    "tiny rate": ("rate too small", adamw(lr=1e-7), {}),
    "huge rate": ("rate too large", adamw(lr=0.5), {}),
    "rate that pauses": ("rate zero", adamw(), {"after": paused_rate}),
    "rate of zero": ("rate zero", adamw(lr=0.0), {}),
    "scheduler that ended": ("schedule ended", adamw(), {"after": stale_rate}),
    "schedule that ended": (
        "schedule ended", adamw(lr=gradtx.linear_schedule(3e-3, 1.0, 0.0, total_iters=40)), {},
    ),
    "cosine that rises again": (
        "schedule ended", gradtx.sgd(lr=gradtx.cosine_schedule(0.05, T_max=40), momentum=0.9), {},
    ),
    "warm-up longer than the run": (
        "never left warm-up", adamw(lr=gradtx.warmup_cosine_schedule(10000, max_lr=3e-3, warmup_steps=5000)), {},
    ),
    "warm-up shorter than the memory": (
        "warm-up too short",
        adamw(lr=gradtx.warmup_cosine_schedule(800, max_lr=3e-3, warmup_steps=4)), {"steps": 600, "every": 20},
    ),
    "unequal groups": ("groups unequal", adamw(), {"groups": two_groups}),
    "memory of Adam": ("memory longer than the run", adamw(betas=(0.9, 0.99999)), {}),
    "memory of momentum": ("memory longer than the run", gradtx.sgd(lr=1e-4, momentum=0.9999), {}),
    "unused bias": ("no gradient", adamw(), {"forward": without_head}),
    "dead weights": ("dead leaves", adamw(), {"forward": lambda net, x: without_head(net, x) + 0 * net.head.bias}),
    "two parameters over one memory": ("leaves twice", adamw(), {"prepare": norm_of_one_memory}),
    "frozen by requires_grad": ("frozen", adamw(), {"prepare": freeze_biases}),
    "frozen by freeze": ("never moved", gradtx.chain(gradtx.freeze("head.weight"), adamw()), {}),
    "head with Muon": ("embedding with Muon", muon(("body.0.weight", "body.3.weight", "head.weight")), {}),
    "matrix without Muon": ("matrix without Muon", muon("body.0.weight"), {}),
    "average that is not used": ("averages not evaluated", gradtx.schedule_free_adamw(lr=3e-3), {}),
    "EMA that is not used": ("averages not evaluated", gradtx.chain(adamw(), gradtx.average(0.99)), {}),
    "rate without a minus": ("uphill", gradtx.chain(ADAM, gradtx.scale(3e-3)), {}),
    "minus that is there twice": ("uphill", gradtx.chain(gradtx.scale(-1.0), SGD), {}),
    "gradient that is not finite": (
        "not finite", adamw(), {"forward": lambda net, x: net(x) / (net.head.weight.sum() * 0)},
    ),
}  # fmt: skip
# Muon's rule needs two dimensions.
OF_MATRICES = ("head with Muon", "matrix without Muon")
CASES = [(name, model) for model in MODELS for name in FAULTS if model == "perceptron" or name not in OF_MATRICES]


@by_day("*-perceptron", "rate of zero-*", "schedule that ended-*")
@pytest.mark.parametrize(("name", "model"), CASES)
def test_a_planted_fault_is_named_first_or_second(name, model):
    kind, tx, options = FAULTS[name]
    findings = run(tx, model, **options)
    assert kind in [finding.kind for finding in findings[:2]], findings
    finding = next(finding for finding in findings if finding.kind == kind)
    assert str(finding) == f"{finding.text}; {finding.remedy}"
    assert len(str(finding)) > 40
    assert finding.link == "" or finding.link.rpartition(".")[2] in repr(tx) or finding.link


HEALTHY = {
    "adamw": adamw(),
    "clipped adamw": gradtx.chain(gradtx.clip_by_global_norm(1.0), adamw()),
    "adamw with a schedule": adamw(
        betas=(0.9, 0.99), lr=gradtx.warmup_cosine_schedule(STEPS, max_lr=3e-3, warmup_steps=12)
    ),
    "sgd": SGD,
    "sgd with decay": gradtx.sgd(lr=0.05, momentum=0.9, weight_decay=5e-4),
    "lion": gradtx.lion(lr=3e-4, weight_decay=0.1),
    "adam_atan2": gradtx.adam_atan2(lr=1e-3),
    "lamb": gradtx.lamb(lr=5e-3),
    "soap": gradtx.soap(lr=3e-3),
    "adopt": gradtx.adopt(lr=3e-3, betas=(0.9, 0.999)),
    "nadam": gradtx.nadam(lr=2e-3),
    "adafactor": gradtx.adafactor_torch(lr=1e-2),
    "muon_for": lambda net: gradtx.muon_for(net),
    "prodigy": gradtx.prodigy(lr=1.0),
    "int8": adamw(state_dtype="int8"),
    "lookahead": gradtx.chain(adamw(), gradtx.lookahead(k=3)),
    "accumulate": gradtx.accumulate(adamw(), every=2),
    "warm restarts": adamw(lr=gradtx.cosine_warm_restarts_schedule(3e-3, T_0=30)),
}


@by_day("*-perceptron", "adamw-*", "sgd-*")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_has_no_finding(name, model):
    assert run(HEALTHY[name], model) == []


@pytest.mark.parametrize("every", [1, 4])
def test_gradients_that_are_set_to_zero_in_place_have_no_finding(every):
    assert run(adamw(), every=every, reset=to_zeros) == []


@pytest.mark.parametrize(("share", "kinds"), [(0.98, ["oscillation"]), (0.3, [])])
def test_a_rate_at_the_edge_of_stability_oscillates(share, kinds):
    torch.manual_seed(0)
    model, x = nn.Linear(4, 2, bias=False).double(), torch.randn(64, 4).double()
    best = 3 * torch.randn(2, 4).double()
    model.weight.data = best + 0.1 * torch.randn(2, 4).double()

    def loss_of(model):
        return nn.functional.mse_loss(model(x), x @ best.T)

    rate = share * gradtx.sharpness(loss_of, model).stable_lr
    optimizer = gradtx.optim.SGD(model.named_parameters(), lr=rate)

    def step():
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()

    assert [finding.kind for finding in gradtx.diagnose(optimizer, step, 100)] == kinds


def test_weights_that_are_tied_are_not_reported_and_a_leaf_listed_twice_is_named_by_torch():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10, bias=False))
    model[1].weight = model[0].weight
    optimizer = gradtx.optim.AdamW(model.named_parameters(), lr=3e-3)

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.arange(10)), torch.arange(10)).backward()
        optimizer.step()

    assert gradtx.diagnose(optimizer, step, 20, model=model) == []
    weight = model[0].weight
    with pytest.warns(UserWarning, match="parameter group with duplicate parameters"):
        gradtx.optim.SGD([weight, weight], lr=0.1)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        gradtx.optim.SGD([{"params": [weight]}, {"params": [weight]}], lr=0.1)


def leaf(*shape):
    return nn.Parameter(torch.ones(shape))


def test_accumulation_that_never_completes_is_found_without_a_measured_step():
    weight = leaf(3)
    optimizer = gradtx.as_optimizer(gradtx.accumulate(gradtx.sgd(lr=0.1), every=8), [("w", weight)])

    def step():
        weight.grad = torch.ones(3)
        optimizer.step()

    findings = gradtx.diagnose(optimizer, step, steps=5)
    assert [finding.kind for finding in findings] == ["accumulation never completes"]
    assert str(findings[0]).startswith("no weights moved in 5 calls of step: they all collected gradients; call step")


@pytest.mark.parametrize("amp_scaling", [False, True])
def test_a_scaler_that_skips_is_found(amp_scaling):
    weight = leaf(3)
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.01), [("w", weight)], amp_scaling=amp_scaling)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e4)
    factors = iter([1.0, float("inf")] * 10)

    def step():
        optimizer.zero_grad()
        scaler.scale(weight.sum() * next(factors)).backward()
        scaler.step(optimizer)
        scaler.update()

    findings = gradtx.diagnose(optimizer, step, steps=20)
    figures = {finding.kind: finding.figure for finding in findings[:2]}
    assert figures["scaler skips"] == 0.5


def test_codes_that_round_small_entries_to_0_are_found():
    weight = leaf(64, 64)
    optimizer = gradtx.as_optimizer(gradtx.adam(lr=1e-3, state_dtype="int8"), [("w", weight)])
    scales = torch.full((64, 64), 1e-8)
    scales[:, 0] = 1.0
    with gradtx.watch(optimizer, every=1) as seen:
        for _ in range(4):
            weight.grad = scales * torch.ones(64, 64)
            optimizer.step()
    assert "codes saturate" in [finding.kind for finding in seen.diagnose()[:2]]


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_model_tells_roles_that_names_do_not(wrapped):
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 30))
    outer = nn.DataParallel(model) if wrapped else model
    optimizer = gradtx.as_optimizer(muon(("0.weight", "1.weight")), outer.named_parameters())
    with gradtx.watch(optimizer, every=1) as seen:
        model(torch.arange(5)).square().mean().backward()
        optimizer.step()
    for findings in (seen.diagnose(), seen.diagnose(outer)):
        finding = next(finding for finding in findings if finding.kind == "embedding with Muon")
        assert finding.leaves == ("0.weight",)
    del model, outer
    assert "embedding with Muon" not in [finding.kind for finding in seen.diagnose()]  # only names are left


def test_embeddings_that_no_name_betrays_are_not_sent_to_muon():
    model = nn.ModuleDict({"characters": nn.Embedding(30, 8), "body": nn.Linear(8, 8), "out": nn.Linear(8, 30)})
    optimizer = gradtx.as_optimizer(muon("body.weight"), model.named_parameters())
    with gradtx.watch(optimizer, every=1) as seen:
        model["out"](model["body"](model["characters"](torch.arange(5)))).square().mean().backward()
        optimizer.step()
    assert "matrix without Muon" not in [finding.kind for finding in seen.diagnose()]


def test_a_round_of_outer_is_not_a_rate_that_is_too_large():
    tx = gradtx.outer(gradtx.sgd(lr=0.05), gradtx.sgd(lr=1.0), every=4)
    assert "rate too large" not in [finding.kind for finding in run(tx, every=4)]


def test_an_adapter_whose_first_step_is_longer_than_its_weights_has_a_rate_that_is_too_large():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4, bias=False), nn.Linear(4, 10, bias=False))
    nn.init.zeros_(model[1].weight)

    def kinds(rate):
        net, source = copy.deepcopy(model), batches()
        optimizer = gradtx.optim.Adam(net.named_parameters(), lr=rate)

        def step():
            x, y = next(source)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()

        return [finding.kind for finding in gradtx.diagnose(optimizer, step, 100, every=10)]

    assert kinds(0.01) == []
    assert "rate too large" in kinds(1.0)[:2]


@by_day("lars", "prodigy", "soap", "kourkoutas_adamw")
@pytest.mark.parametrize(
    "rule", ["adabelief", "adadelta", "adamax", "galore", "kl_soap", "kourkoutas_adamw", "lars", "prodigy", "soap"]
)
def test_an_eps_that_decides_is_found_in_rules_whose_state_keeps_it_or_that_need_all_leaves(rule):
    assert "eps decides" in [finding.kind for finding in run(getattr(gradtx, rule)(eps=10.0))[:2]]
    assert "eps decides" not in [finding.kind for finding in run(getattr(gradtx, rule)())]


def test_an_evaluation_with_averages_is_noticed():
    findings = run(
        gradtx.schedule_free_adamw(lr=3e-3), after=lambda optimizer, t: optimizer.eval() or optimizer.train()
    )
    assert findings == []


def test_findings_print_as_a_numbered_list():
    findings = run(FAULTS["clip far below the gradients"][1])
    assert repr(findings).startswith(
        "1. bound always acts: clip_by_global_norm(0.001) shortened 100% of the steps, to "
    )
    assert "the 90th percentile of the norms" in str(findings[0])
    assert repr(run(adamw())) == "no findings in 30 measured steps"


def test_bad_input_is_one_clear_error():
    weight = leaf(2)
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), [("w", weight)])
    with pytest.raises(TypeError, match="diagnose: needs an optimizer of gradtx"):
        gradtx.diagnose(torch.optim.SGD([weight], lr=0.1), lambda: None)
    with pytest.raises(TypeError, match="diagnose: step must be a function"):
        gradtx.diagnose(optimizer, 3)
    with pytest.raises(ValueError, match="diagnose: steps must be an int of at least 1, got 0"):
        gradtx.diagnose(optimizer, lambda: None, 0)
    with pytest.raises(ValueError, match="diagnose: 3 calls of `step` called no step of the optimizer; it must"):
        gradtx.diagnose(optimizer, lambda: None, 3)
    with gradtx.watch(optimizer) as seen:
        pass
    with pytest.raises(ValueError, match="plot: no step was measured"):
        seen.plot()


def test_a_clip_before_a_rule_that_sets_the_length_of_steps_is_no_matter_of_the_rate():
    finding, *_ = run(gradtx.chain(gradtx.clip_by_global_norm(1e-3), adamw(lr=1e-4)))
    assert "gives all gradients one length, before scale_by_adam (of adamw) sets that of the steps" in finding.remedy
    assert finding.severity < min(f.severity for f in run(gradtx.chain(gradtx.clip_by_global_norm(1e-3), SGD)))


def test_a_warm_up_far_longer_than_the_run_is_measured_by_its_own_peak():
    schedule = gradtx.warmup_cosine_schedule(2_000_000, max_lr=3e-3, warmup_steps=1_000_000)
    finding = next(finding for finding in run(adamw(lr=schedule)) if finding.kind == "never left warm-up")
    assert finding.figure == pytest.approx((STEPS - 1) / 1_000_000, rel=0.05)


def test_a_schedule_that_cannot_be_read_beyond_the_run_is_no_error():
    table = torch.linspace(1e-6, 3e-3, STEPS + 1).tolist()  # a step shows the next rate
    assert run(adamw(lr=gradtx.Schedule(lambda step: table[int(step)]))) == []


@pytest.mark.parametrize(
    ("tx", "link", "remedy"),
    [
        (gradtx.chain(ADAM, gradtx.scale(3e-3)), "scale", "replace scale(0.003) by scale_by_learning_rate(0.003)"),
        (gradtx.chain(gradtx.scale(-1.0), SGD), "scale_by_learning_rate", "scale and scale_by_learning_rate both flip"),
    ],
)
@pytest.mark.filterwarnings("ignore:as_optimizer. no link of this chain flips the sign")
def test_steps_uphill_name_the_link_with_the_wrong_sign(tx, link, remedy):
    finding = next(finding for finding in run(tx) if finding.kind == "uphill")
    assert finding.link == link
    assert finding.remedy.startswith(remedy)


def test_a_strong_decay_is_named_by_the_steps_that_weights_remember():
    finding = next(f for f in run(adamw(lr=1e-3, weight_decay=10.0)) if f.kind == "decay outweighs the step")
    assert finding.figure == pytest.approx(0.01)


def test_averages_are_judged_by_the_steps_of_the_watch():
    weight = leaf(2)
    tx = gradtx.chain(gradtx.sgd(lr=1e-3), gradtx.average(0.9))
    optimizer = gradtx.as_optimizer(tx, [("w", weight)])

    def step():
        weight.grad = torch.ones(2)
        optimizer.step()

    for _ in range(200):
        step()
    assert "averages not evaluated" not in [finding.kind for finding in gradtx.diagnose(optimizer, step, 50)]


def test_without_any_gradient_the_remedy_is_a_backward_pass():
    weight = leaf(2)
    optimizer = gradtx.as_optimizer(gradtx.sgd(lr=0.1), [("w", weight)])
    (finding,) = gradtx.diagnose(optimizer, optimizer.step, 3)
    assert finding.kind == "no gradient"
    assert finding.remedy.startswith("call loss.backward() before step()")
