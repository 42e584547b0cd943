"""DP-SGD: gradients of examples, each clipped, and noise that hides the contribution of any one of them."""

from __future__ import annotations

import torch

from gradtx.arguments import Count, Decay, NonNegative, Positive, Static, is_off
from gradtx.base.exact import exact_dtype
from gradtx.distributed.redistribution import distributed_like, gathered
from gradtx.links.clipping import shrink
from gradtx.links.momentum import trace
from gradtx.links.scaling import scale_by_learning_rate
from gradtx.maths.entries import safe_sqrt
from gradtx.rules import alias, per_tensor
from gradtx.transform import chain

__all__ = ["differentially_private_aggregate", "dpsgd"]


def _check(arguments, name, shape, extras):
    """Check that there is a number of examples to divide by."""
    samples = extras.get("grad_sample")
    if samples is None or len(samples) or arguments["expected_batch_size"]:
        return
    raise ValueError(
        f"differentially_private_aggregate: leaf {name!r} has no examples in its leading axis; skip the step, or pass "
        "expected_batch_size, by which a sum over none is divided too"
    )


@per_tensor(
    extras={"grad_sample": "examples"},
    check=_check,
    random=True,
    makes_gradient=True,
    agree=("l2_norm_clip", "noise_multiplier", "expected_batch_size"),
)
def differentially_private_aggregate(
    l2_norm_clip: Positive,
    noise_multiplier: NonNegative,
    seed: int = 0,
    expected_batch_size: Static[Count] | None = None,
):
    r"""Clip the gradient of each example, add Gaussian noise to their sum, and divide by their number.

    $u = \frac{1}{B} \left( \sum_i g_i \min(1, C / \lVert g_i \rVert) + N(0, \sigma^2 C^2) \right)$, where the norm of
    example $i$ is over all leaves. The noise of an entry of $u$ has standard deviation $\sigma C / B$. It depends only
    on the seed, the leaf's name and the step, not on torch's generator.

    The first link of a chain. Gradients of examples have a leading axis in every leaf, as from
    `torch.vmap(torch.func.grad(loss), (None, 0))(params, batch)`; `update` takes them in place of gradients, or as the
    extra `grad_sample` beside others, which have no effect. In an optimizer, `step` reads them from the attribute
    `grad_sample` of parameters, as Opacus' `GradSampleModule` sets it, or takes `step(grad_sample={name: tensor})`;
    `zero_grad` drops the attributes. Later links see only the result, also as `ctx.grad`. A how-to page says what is
    and is not guaranteed.

    Args:
        l2_norm_clip: $C > 0$, the largest norm of an example's gradient.
        noise_multiplier: $\sigma \ge 0$, the standard deviation of the noise relative to $C$.
        seed: Seed of the noise. Keep it secret: with it, the noise can be subtracted.
        expected_batch_size: $B \ge 1$; None for the number of examples in the call. With batches of random size
            (Poisson sampling), that number is itself private, so pass the expected one.

    Returns:
        A transformation whose updates have the shapes of the parameters. State: `seed` and `counter`, shared by the
        whole stage.

    Raises:
        TypeError: If the link is inside a combinator that processes gradients.
        ValueError: If leaves have leading axes of different sizes, or if there are no examples to divide by.

    Example:
        >>> tx = gradtx.differentially_private_aggregate(1.0, noise_multiplier=0.0)
        >>> params = {"w": torch.zeros(2)}
        >>> examples = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.5]])}
        >>> updates, _ = tx.update(examples, tx.init(params), params)
        >>> updates["w"]  # half of (0.6, 0.8), whose norm was 5, plus (0, 0.5)
        tensor([0.3000, 0.6500])

    Source: Abadi et al. 2016, arXiv:1607.00133. Departures: none; as in optax 0.2.8, apart from `expected_batch_size`.
    """

    def update(update, state, param, ctx):
        samples = ctx.grad_sample
        if samples is None:
            raise ValueError(
                "pass None as the gradient of a leaf that has no gradients of examples"
            )
        by_example = samples.reshape(len(samples), update.numel())
        # In float64 without a copy, as far as torch's reductions allow.
        norms = torch.linalg.vector_norm(by_example, dim=1, dtype=exact_dtype(samples))
        total = yield {"square": norms.square()}
        factors = shrink(safe_sqrt(total["square"]), l2_norm_clip).to(samples.dtype)
        clipped = (gathered(factors, by_example) @ by_example).reshape(update.shape)
        clipped = distributed_like(
            clipped, update
        )  # each entry of the noise is drawn once
        noise = 0.0
        if not is_off(noise_multiplier):
            noise = noise_multiplier * l2_norm_clip * ctx.rng.normal(clipped)
        yield (clipped + noise) / (expected_batch_size or len(samples)), state

    return update


@alias(class_name="DPSGD")
def dpsgd(
    lr,
    l2_norm_clip: Positive,
    noise_multiplier: NonNegative,
    seed: int = 0,
    momentum: Decay = 0.0,
    nesterov=False,
    expected_batch_size: Static[Count] | None = None,
):
    r"""DP-SGD: SGD on the noisy mean of clipped gradients of examples.

    $p \leftarrow p - \eta u$ with $u$ from `differentially_private_aggregate`, or with momentum
    $m \leftarrow \mu m + u$, $p \leftarrow p - \eta m$.

    When to use: training whose result must not reveal whether any one example was in the data. Any other optimizer can
    follow `differentially_private_aggregate` in a chain, at the same privacy.

    Args:
        lr: The learning rate, in [0, inf).
        l2_norm_clip: $C > 0$, the largest norm of an example's gradient.
        noise_multiplier: $\sigma \ge 0$, the standard deviation of the noise of the sum relative to $C$.
        seed: Seed of the noise, which depends only on the seed, the leaf's name and the step. Keep it secret.
        momentum: $\mu$ in [0, 1). With a literal 0.0, no buffer is kept.
        nesterov: Use Nesterov momentum; requires a nonzero momentum.
        expected_batch_size: The number by which the sum is divided; None for the number of examples in the call.

    Returns:
        A transformation whose updates are added to the parameters; `update` and `step` take gradients of examples, as
        in `differentially_private_aggregate`. State: `seed` and `counter`, shared by all leaves; `momentum_buffer`.

    Example:
        >>> loss = lambda params, x, y: (params["w"] @ x - y).square()
        >>> params = {"w": torch.zeros(2)}
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.1, 5.0])
        >>> examples = torch.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y)
        >>> tx = gradtx.dpsgd(lr=1.0, l2_norm_clip=1.0, noise_multiplier=0.0)
        >>> tx.update(examples, tx.init(params), params)[0]["w"]  # the second is clipped
        tensor([0.1000, 0.5000])

    Source: Abadi et al. 2016, arXiv:1607.00133. Departures: none; as in optax 0.2.8.
    """
    return chain(
        differentially_private_aggregate(
            l2_norm_clip, noise_multiplier, seed, expected_batch_size
        ),
        trace(momentum, nesterov=nesterov),
        scale_by_learning_rate(lr),
    )
