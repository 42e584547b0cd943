"""User code that is wrong, never run: each marked line must be an error.

A mark names the rule of pyright and the code of mypy; see tests/project/test_typed.py.
"""

import torch
from torch import nn

import gradtx
from gradtx import adamw
from gradtx.optim import AdamW


def aliases() -> None:
    gradtx.lion(bettas=(0.9, 0.99))  # reportCallIssue | call-arg
    gradtx.lion(lr="1e-4")  # reportArgumentType | arg-type
    gradtx.lion(betas=0.9)  # reportArgumentType | arg-type
    gradtx.lion(mask=3)  # reportArgumentType | arg-type
    gradtx.lion(maximize="yes", lr=1e-4)  # reportArgumentType | arg-type
    gradtx.lion(maximize=True, lr="1e-4")  # reportArgumentType | arg-type
    gradtx.lion(state_dtype="int8", learning_rate=1e-4)  # reportCallIssue | call-arg
    gradtx.lion(1e-4, (0.9, 0.99), 0.1, "*.weight")  # reportCallIssue | call-arg arg-type
    adamw(state_dtype=8)  # reportArgumentType | arg-type
    gradtx.adamw(nn.Linear(2, 2).parameters(), lr=1e-3)  # reportCallIssue | misc arg-type
    gradtx.adamww(1e-3)  # reportAttributeAccessIssue | attr-defined
    gradtx.AdamW([torch.zeros(2)])  # reportAttributeAccessIssue | attr-defined


def chains() -> None:
    gradtx.chain([adamw(), gradtx.lookahead()])  # reportArgumentType | arg-type
    gradtx.clip_by_global_norm()  # reportCallIssue | call-arg
    gradtx.scale_by_adam(mask="*")  # reportCallIssue | call-arg
    gradtx.accumulate(adamw(), every=2.5)  # reportArgumentType | arg-type
    gradtx.masked("*.weight", adamw())  # reportArgumentType | arg-type
    adamw().step()  # reportAttributeAccessIssue | attr-defined


def pairs(params: dict[str, torch.Tensor]) -> None:
    pair = adamw().update(params, adamw().init(params), params)
    pair.values()  # reportAttributeAccessIssue | attr-defined
    updates, _ = pair
    updates.add_(1)  # reportAttributeAccessIssue | attr-defined
    gradtx.apply_updates(params, updates).add_(1)  # reportAttributeAccessIssue | attr-defined


def schedules() -> None:
    gradtx.cosine_schedule(1e-3)  # reportCallIssue | call-overload
    gradtx.cosine_schedule(1e-3, total_stepps=100)  # reportCallIssue | call-overload
    gradtx.step_schedule(1e-3, step_size=0.5)  # reportArgumentType | arg-type
    adamw(lr=lambda step: 0.1)  # reportArgumentType | arg-type


def optimizers() -> None:
    net = nn.Linear(2, 2)
    AdamW(net)  # reportArgumentType | arg-type
    AdamW(net.parameters(), lr="1e-3")  # reportArgumentType | arg-type
    AdamW(net.parameters(), weight_deccay=0.1)  # reportCallIssue | call-arg
    AdamW(net.parameters(), maximize=True, betas=0.9)  # reportArgumentType | arg-type
    gradtx.optim.AdamWW(net.parameters())  # reportAttributeAccessIssue | attr-defined
    gradtx.as_optimizer(net.parameters(), adamw())  # reportArgumentType | arg-type
    gradtx.as_optimizer(adamw(), net)  # reportArgumentType | arg-type
    gradtx.as_optimizer(adamw(), net.parameters(), compiled=True)  # reportCallIssue | call-arg


@gradtx.alias
def plain_sgd(lr: gradtx.Scalar = 1e-3, *, weight_decay: gradtx.Scalar = 0.0):
    return gradtx.chain(gradtx.add_decayed_weights(weight_decay), gradtx.scale_by_learning_rate(lr))


def rules_of_the_user() -> None:
    plain_sgd(lr="1e-3")  # reportArgumentType | call-overload
    plain_sgd(rate=1e-3)  # reportCallIssue | call-overload
