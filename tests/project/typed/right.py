"""User code that is right: it runs, and type checkers accept it; see tests/project/test_typed.py."""

import torch
from torch import Tensor, nn

import gradtx
from gradtx import adamw, chain
from gradtx.optim import AdamW, ChainOptimizer
from gradtx.schedules import cosine_schedule


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def is_matrix(name: str, param: Tensor) -> bool:
    return param.ndim > 1


def aliases() -> None:
    gradtx.adamw(1e-3, (0.9, 0.95), 1e-8)
    gradtx.lion(lr=torch.tensor(1e-4), betas=(0.9, 0.99), mask=is_matrix)
    gradtx.lion(weight_decay=0.1, mask=("*.weight", "head.*"), maximize=True)
    gradtx.lion(weight_decay=0.1, mask=["*.weight"], state_dtype="int8")
    gradtx.muon(lr=0.02, fallback=adamw(), state_dtype=torch.float32)
    gradtx.adamw(lr=gradtx.Schedule(lambda step: 0.1 / (1 + step)), state_dtype={"exp_avg": "int8"})
    tx: gradtx.GradientTransformation = adamw(mask=lambda name, param: "bias" not in name)
    tx = tx.replace(lr=1e-4)
    assert isinstance(tx.hyperparams["lr"], float)


def chains() -> None:
    inner = chain(gradtx.clip_by_global_norm(1.0), gradtx.scale_by_adam(betas=(0.9, 0.99), state_dtype=torch.bfloat16))
    tx = chain(inner, gradtx.add_decayed_weights(0.01), gradtx.scale_by_learning_rate(1e-3))
    gradtx.accumulate(gradtx.skip_nonfinite(tx), every=4)
    gradtx.partition({"head": adamw(1e-3), "rest": adamw(1e-4)}, {"head": "2.*", "rest": "*"})
    gradtx.partition({"a": adamw(), "b": adamw()}, lambda name, param: "a" if param.ndim > 1 else "b")
    gradtx.chain(gradtx.freeze("0.*"), gradtx.masked(gradtx.centralize(), is_matrix))


def schedules() -> None:
    rate: gradtx.Schedule = cosine_schedule(1e-3, T_max=100, eta_min=1e-5)
    gradtx.cosine_schedule(lr=1e-3, total_steps=100, min_lr=1e-5)
    gradtx.warmup_cosine_schedule(10_000, max_lr=3e-4, warmup_steps=500)
    gradtx.warmup_cosine_schedule(lr=3e-4, total_steps=10_000, warmup_steps=500)
    gradtx.wsd_schedule(1e-3, warmup_steps=10, num_decay_steps=20, total_steps=100)
    value: object = rate(0)
    assert value == 1e-3


def optimizers() -> None:
    net = model()
    AdamW(net.parameters(), lr=1e-3, mask=is_matrix, capturable=False)
    AdamW([{"params": net[0].named_parameters("0"), "lr": 1e-3}, {"params": list(net[2].named_parameters("2"))}])
    gradtx.optim.Lion(list(net.parameters()), betas=(0.9, 0.99), state_dtype="int8", compile=False)
    optimizer: ChainOptimizer = gradtx.as_optimizer(adamw(lr=1e-3), net.named_parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    optimizer.zero_grad()
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    scheduler.step()
    optimizer.load_state_dict(optimizer.state_dict())
    gradtx.create_optimizer(net, "adamp", lr=1e-3, weight_decay=0.01)
    gradtx.as_lr_scheduler(optimizer, cosine_schedule(1e-3, 10))


def pure_functions() -> None:
    net = model()
    params = {name: p.detach() for name, p in net.named_parameters()}

    def loss(params: dict[str, Tensor]) -> Tensor:
        outputs: Tensor = torch.func.functional_call(net, params, (torch.ones(2, 4),))
        return outputs.square().mean()

    tx = adamw(lr=1e-3)
    state = tx.init(params)
    updates, state = tx.update(torch.func.grad(loss)(params), state, params)
    params = gradtx.apply_updates(params, updates)
    params, state, _ = gradtx.train_step(loss, tx)(params, state)
    gradtx.memory(tx, net)


@gradtx.per_tensor(elementwise=True)
def scale_by_power(power: gradtx.Scalar = 0.5):
    def update(update: Tensor, state: dict[str, Tensor], param: Tensor, ctx: gradtx.Context):
        return update.sign() * update.abs() ** power, state

    return update


@gradtx.alias
def power_sgd(lr: gradtx.Scalar = 1e-3, *, weight_decay: gradtx.Scalar = 0.0):
    return chain(scale_by_power(), gradtx.add_decayed_weights(weight_decay), gradtx.scale_by_learning_rate(lr))


def rules_of_the_user() -> None:
    scale_by_power(power=0.3)
    power_sgd(1e-2, weight_decay=0.1)
    power_sgd(weight_decay=0.1, mask="*.weight")
    power_sgd(lr=gradtx.cosine_schedule(1e-3, 100), maximize=True)
    PowerSgd = gradtx.optimizer_class(power_sgd)
    PowerSgd(model().parameters(), lr=1e-2, weight_decay=0.1).step()


SCRIPTS = (aliases, chains, schedules, optimizers, pure_functions, rules_of_the_user)
