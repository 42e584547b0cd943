"""Mistakes that users make in a training loop: one answer, nothing half done, and the run goes on as without them."""

import copy

import pytest
import torch
from torch import nn

import gradtx
from tests.optim.problems import assert_equal, whole
from tests.users.common import drawn, perceptron
from tests.users.mistakes import answer_to, assert_answered, each

X, Y = drawn(8, 3, seed=1), drawn(8, 1, seed=2)
AVERAGED = gradtx.chain(gradtx.adamw(lr=0.01), gradtx.average(0.9))
SAM = gradtx.sam(gradtx.sgd(lr=0.1), rho=0.05)
NEWTON = gradtx.line_search(gradtx.lbfgs(), conditions="strong_wolfe")
WARMUP = gradtx.warmup_cosine_schedule(10, max_lr=0.1, warmup_steps=2)


class Scene:
    """A model and its optimizer after two steps, with gradients for the next one."""

    def __init__(self, tx=None):
        self.model = perceptron()
        params = self.model.named_parameters()
        self.optimizer = gradtx.optim.AdamW(params, lr=0.01) if tx is None else gradtx.as_optimizer(tx, params)
        self.go_on(2)
        self.loss().backward()

    def loss(self):
        return (self.model(X) - Y).square().mean()

    def closure(self):
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward(create_graph="hessian_diag" in self.optimizer._tx.needs)
        return loss

    def go_on(self, steps):
        for _ in range(steps):
            self.optimizer.step(self.closure)

    def saved(self):
        return copy.deepcopy(self.optimizer.state_dict())

    def load(self, state_dict):
        self.optimizer.load_state_dict(state_dict)

    def write(self, **numbers):
        self.optimizer.param_groups[0].update(numbers)
        try:
            self.optimizer.step()
        finally:  # the user corrects it
            self.optimizer.param_groups[0].update(lr=0.01, betas=(0.9, 0.999))


def silent_backward(scene):
    def closure():
        return scene.loss()

    scene.optimizer.step(closure)


def without_result(scene):
    def closure():
        scene.optimizer.zero_grad()
        scene.loss().backward()

    scene.optimizer.step(closure)


def while_evaluating(scene):
    scene.optimizer.eval()
    try:
        scene.optimizer.step()
    finally:
        scene.optimizer.train()


def with_a_spoiled_group(scene):
    params = scene.optimizer.param_groups[0]["params"]
    params.append(None)
    try:
        scene.optimizer.step()
    finally:
        params.pop()


def of_another_shape(scene):
    weight = scene.model[0].weight
    before, gradient = weight.data, weight.grad
    weight.grad, weight.data = None, torch.zeros(5, 3, dtype=torch.float64)
    weight.grad = torch.ones_like(weight)
    try:
        scene.optimizer.step()
    finally:
        weight.grad, weight.data = None, before
        weight.grad = gradient


def with_sparse_dims(number):
    def with_a_sparse_gradient(scene):
        weight = scene.model[0].weight
        gradient = weight.grad
        weight.grad = gradient.to_sparse(number)
        try:
            scene.optimizer.step()
        finally:
            weight.grad = gradient

    return with_a_sparse_gradient


def with_adam_of(*layers):
    model = nn.Sequential(*layers).double()
    optimizer = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer.state_dict()


def of_torchs_sgd():
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    (model(X) - Y).square().mean().backward()
    optimizer.step()
    return optimizer.state_dict()


def of_the_scheduler(scene):
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD(scene.model.parameters(), lr=0.1), 3).state_dict()


STEPS = {
    "the loss instead of a closure": (
        r"closure must be a function.* got tensor",
        r"step\(value=loss\)",
        lambda scene: scene.optimizer.step(scene.loss()),
    ),
    "the closure's result": (
        "closure must be a function.* got tensor",
        r"step\(value=loss\)",
        lambda scene: scene.optimizer.step(scene.closure()),
        SAM,
    ),
    "the loss under another name": (
        "unknown extra 'loss'",
        "known: .*value",
        lambda scene: scene.optimizer.step(loss=scene.loss()),
    ),
    "SAM without a closure": ("sam needs grad_fn", r"step\(closure\)", lambda scene: scene.optimizer.step(), SAM),
    "SAM with a closure without backward": ("closure computed no gradients", r"backward\(\)", silent_backward, SAM),
    "L-BFGS without a closure": (
        "line_search needs value_fn",
        r"step\(closure\)",
        lambda scene: scene.optimizer.step(),
        NEWTON,
    ),
    "L-BFGS with a closure without backward": (
        "closure computed no gradients",
        r"backward\(\)",
        silent_backward,
        NEWTON,
    ),
    "a rate from the loss, without the loss": (
        "alig needs value",
        r"step\(closure, value=\.\.\.\)",
        lambda scene: scene.optimizer.step(),
        gradtx.alig(),
    ),
    "a closure that forgets to return the loss": (
        "alig needs value",
        r"step\(closure, value=\.\.\.\)",
        without_result,
        gradtx.alig(),
    ),
    "second derivatives without a graph": (
        "adahessian needs hessian_diag",
        r"create_graph=True",
        lambda scene: scene.optimizer.step(),
        gradtx.adahessian(),
    ),
    "a step in evaluation mode": ("evaluation weights", r"call optimizer\.train\(\)", while_evaluating, AVERAGED),
    "a gradient of single entries": ("'0.weight' is sparse in 2 dimensions", r"to_dense\(\)", with_sparse_dims(2)),
    "rows of a gradient for a rule of whole leaves": (
        "'0.weight' has a sparse gradient, but scale_by_trust_ratio",
        r"sparse_adam in a partition, or call to_dense\(\)",
        with_sparse_dims(1),
        gradtx.lamb(),
    ),
    "weights of another shape": (
        r"'0.weight' is .* of shape \(5, 3\).* created for .* of shape \(8, 3\)",
        r"optimizer\.state\.pop\(param\)",
        of_another_shape,
    ),
}
GROUPS = {
    "a rate as a string": ("lr .* got '0.1'", "must be a number", lambda scene: scene.write(lr="0.1")),
    "a negative rate": ("lr .* got -1.0", r"in \[0, inf\)", lambda scene: scene.write(lr=-1)),
    "one beta": ("betas .* got 0.9", "a tuple of numbers", lambda scene: scene.write(betas=0.9)),
    "None in a group": (r"param_groups\[0\]\['params'\]\[4\] is None", "needs a tensor", with_a_spoiled_group),
    "a module as a group's parameters": (
        "got Sequential",
        r"model\.parameters\(\)",
        lambda scene: scene.optimizer.add_param_group({"params": perceptron()}),
    ),
    "a group without parameters": (
        "a group is {'lr': 0.1}",
        "needs a dict such as",
        lambda scene: scene.optimizer.add_param_group({"lr": 0.1}),
    ),
    "a scheduler on a schedule in the chain": (
        "lr of a group follows warmup_cosine_schedule.* starts at 0",
        r"as_lr_scheduler\(optimizer",
        lambda scene: torch.optim.lr_scheduler.StepLR(scene.optimizer, 3),
        gradtx.adamw(lr=WARMUP),
    ),
    "a number as a scheduler": (
        "schedule must be .* got 0.1",
        r"gradtx\.Schedule",
        lambda scene: gradtx.as_lr_scheduler(scene.optimizer, 0.1),
    ),
    "a scheduler's arguments in the other order": (
        "optimizer must be .* got warmup_cosine_schedule",
        r"torch\.optim\.Optimizer",
        lambda scene: gradtx.as_lr_scheduler(WARMUP, scene.optimizer),
    ),
}
CHECKPOINTS = {
    "a path": ("must be a state dict", "got 'last.pt'", lambda scene: scene.load("last.pt")),
    "the model's state dict": (
        "lacks 'state'",
        r"optimizer\.state_dict\(\)",
        lambda scene: scene.load(scene.model.state_dict()),
    ),
    "the whole checkpoint": (
        "lacks 'state'",
        "pass its entry 'optimizer'",
        lambda scene: scene.load({"epoch": 3, "optimizer": scene.saved()}),
    ),
    "the scheduler's state dict": (
        "lacks 'state'",
        r"optimizer\.state_dict\(\)",
        lambda scene: scene.load(of_the_scheduler(scene)),
    ),
    "the state of pure functions": (
        "lacks 'state'",
        r"optimizer\.state_dict\(\)",
        lambda scene: scene.load(gradtx.adamw().init(dict(scene.model.named_parameters()))),
    ),
    "a wider model": (
        r"'0.weight': 'exp_avg' has shape \(9, 3\)",
        r"needs \(8, 3\)",
        lambda scene: scene.load(with_adam_of(nn.Linear(3, 9), nn.Linear(9, 1))),
    ),
    "a shorter model": (
        r"groups of \[2\] parameters",
        r"groups of \[4\]",
        lambda scene: scene.load(with_adam_of(nn.Linear(3, 8))),
    ),
    "another optimizer": ("'0.weight' lacks 'step'", "same chain", lambda scene: scene.load(of_torchs_sgd())),
    "more moments than the chain has": (
        "'0.weight' has 'exp_avg_sq'",
        "same chain",
        lambda scene: scene.load(Scene().saved()),
        gradtx.lion(),
    ),
}


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize(
    "row", [pytest.param(row, id=name) for name, row in {**STEPS, **GROUPS, **CHECKPOINTS}.items()]
)
def test_a_mistake_in_training_is_answered_once_and_the_run_goes_on_as_without_it(row):
    culprit, remedy, mistake, *tx = row
    scene, twin = Scene(*tx), Scene(*tx)
    before = whole(scene.optimizer, grads=False)
    assert_answered(answer_to(mistake, scene), culprit, remedy)
    assert_equal(whole(scene.optimizer, grads=False), before)
    scene.go_on(2)
    twin.go_on(2)
    assert_equal([*scene.model.parameters()], [*twin.model.parameters()])
    assert_equal(scene.saved(), twin.saved())


# Warnings, after which training goes on in another way than intended.


def before_backward():
    model = perceptron()
    optimizer = gradtx.optim.AdamW(model.parameters())
    for _ in range(12):
        optimizer.zero_grad()
        optimizer.step()
        (model(X) - Y).square().mean().backward()


def of_the_model_before():
    optimizer, model = gradtx.optim.AdamW(perceptron().parameters()), perceptron()
    for _ in range(12):
        optimizer.zero_grad()
        (model(X) - Y).square().mean().backward()
        optimizer.step()


def of_a_state_dict():
    model = perceptron()
    optimizer = gradtx.optim.AdamW(model.state_dict().values())
    for _ in range(12):
        (model(X) - Y).square().mean().backward()
        optimizer.step()


def scheduled_twice():
    optimizer = gradtx.optim.AdamW(perceptron().parameters(), lr=gradtx.cosine_schedule(0.1, 10))
    torch.optim.lr_scheduler.StepLR(optimizer, 3)


def without_a_rate(groups=lambda model: model.named_parameters()):
    model = perceptron()
    tx = gradtx.chain(gradtx.scale_by_adam(), gradtx.scale(-1e-3))
    return model, gradtx.as_optimizer(tx, groups(model))


def scheduled_without_a_rate():
    model, optimizer = without_a_rate()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    trained(model, optimizer, scheduler.step)


def scheduled_by_ours_without_a_rate():
    model, optimizer = without_a_rate()
    scheduler = gradtx.as_lr_scheduler(optimizer, gradtx.cosine_schedule(1e-3, T_max=10))
    trained(model, optimizer, scheduler.step)


def written_without_a_rate():
    model, optimizer = without_a_rate()
    trained(model, optimizer, lambda: optimizer.param_groups[0].update(lr=0.1))


def passed_without_a_rate():
    model, optimizer = without_a_rate(lambda model: [{"params": list(model.named_parameters()), "lr": 0.1}])
    trained(model, optimizer)


def trained(model, optimizer, after=lambda: None):
    for _ in range(3):
        optimizer.zero_grad()
        (model(X) - Y).square().mean().backward()
        optimizer.step()
        after()


def in_another_order():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    saved = gradtx.optim.AdamW(model.named_parameters()).state_dict()
    gradtx.optim.AdamW([*model.named_parameters()][::-1]).load_state_dict(saved)


NO_RATE = r"no link of this chain \(scale_by_adam, scale\) reads a learning rate"
NOTHING_TRAINED = "no parameter had a gradient in the first 10 steps"


@each(
    {
        "step before backward": (NOTHING_TRAINED, r"loss\.backward\(\) before step\(\)", before_backward),
        "a model that was made again": (NOTHING_TRAINED, "parameters of the model that", of_the_model_before),
        "the values of a state dict": (NOTHING_TRAINED, "parameters of the model that", of_a_state_dict),
        "two schedules": (r"follows cosine_schedule\(0\.1, 10\)", r"as_lr_scheduler\(optimizer", scheduled_twice),
        "a scheduler without a rate": (NO_RATE, r"scale_by_learning_rate\(lr\)", scheduled_without_a_rate),
        "our scheduler without a rate": (NO_RATE, r"scale_by_learning_rate\(lr\)", scheduled_by_ours_without_a_rate),
        "a rate written where there is none": (NO_RATE, r"scale_by_learning_rate\(lr\)", written_without_a_rate),
        "a rate passed where there is none": (NO_RATE, r"scale_by_learning_rate\(lr\)", passed_without_a_rate),
        "parameters in another order": (
            "'0.weight' where this optimizer has '1.weight'",
            "in the order of the checkpoint",
            in_another_order,
        ),
    }
)
def test_what_torch_does_in_silence_is_one_warning(culprit, remedy, mistake):
    assert_answered(answer_to(mistake), culprit, remedy)
