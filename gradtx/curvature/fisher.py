"""Fisher matrices: of labels drawn from the model, and of the gradients of examples."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from gradtx.base.jacobian import MatrixJacobian
from gradtx.base.vectors import JointVector
from gradtx.curvature.problem import OutputProblem, ResidualProblem
from gradtx.curvature.terms import Terms
from gradtx.state.random import Stream

Likelihood: TypeAlias = Literal["categorical", "gaussian", "bernoulli"]


def drawn_slopes(outputs: Tensor, likelihood: Likelihood, stream: Stream) -> Tensor:
    """Return the gradient of -log p(y given z) by the outputs z, for labels y drawn from the model."""
    if likelihood == "gaussian":  # of variance 1 around z
        return -stream.normal(outputs)
    uniform = stream.uniform(outputs)
    if likelihood == "bernoulli":
        chance = outputs.sigmoid()
        return chance - (uniform < chance).to(outputs)
    # The largest of logits with Gumbel noise is a draw from their softmax.
    noise = -(-uniform.clamp(min=torch.finfo(uniform.dtype).tiny).log()).log()
    labels = (outputs + noise).argmax(-1)
    drawn = labels[..., None] == torch.arange(outputs.shape[-1], device=labels.device)
    return outputs.softmax(-1) - drawn.to(outputs)


class SampledProblem(OutputProblem):
    """The gradient of the loss of the data, and the Fisher matrix of drawn labels in place of its curvature.

    H is the mean over K draws and N examples of s s^T, block by block, so it may be singular.

    Attributes:
        slopes: The gradients s by outputs, of shape [K, N, C].
    """

    slopes: Tensor

    @classmethod
    def of(cls, problem: OutputProblem, slopes: Tensor) -> SampledProblem:
        """Return the problem with the same gradient."""
        shown = (problem.who, problem.names, problem.params, problem.jacobian)
        sampled = cls(*shown, problem.finish, problem.extra, problem.ctx)
        sampled.loss_of_outputs, sampled.shape = problem.loss_of_outputs, problem.shape
        sampled.slopes = slopes
        return sampled

    def hessian_times(self, vectors: Tensor) -> Tensor:
        draws, examples, _ = self.slopes.shape
        of_examples = vectors.reshape(examples, -1, vectors.shape[-1])
        along = torch.einsum("knc,ncv->knv", self.slopes, of_examples)
        back = torch.einsum("knc,knv->ncv", self.slopes, along)
        return back.reshape(vectors.shape) / (draws * examples)


class ExampleProblem(ResidualProblem):
    """Gradients g_i of N examples: the mean is the gradient, and the mean of g_i g_i^T the curvature.

    J has the rows g_i / sqrt(N), and h the entries 1 / sqrt(N).
    """

    @functools.cached_property
    def right(self) -> Tensor:
        ones = torch.ones_like(self.jacobian.value)
        return ones / len(ones) ** 0.5


def example_problem(
    who: str, ctx: Any, params: dict[str, Tensor], samples: Mapping[str, Tensor | None]
) -> ExampleProblem:
    """Return the problem of gradients of examples, by leaf name, each with a leading axis of examples."""
    params = dict(sorted(params.items()))  # in any order of the leaves the same bits
    joint = JointVector(list(params.values()))
    parts: list[Tensor] = []
    for name in params:
        sample = samples.get(name)
        if sample is None:
            raise ValueError(
                f"{who}: leaf {name!r} has no gradients of examples; pass grad_sample, or freeze the leaf"
            )
        parts.append(sample.reshape(len(sample), -1).to(joint.device, joint.dtype))
    rows = torch.cat(parts, dim=1)
    if not len(rows):
        raise ValueError(f"{who}: has no examples; skip the step")
    jacobian = MatrixJacobian(rows / len(rows) ** 0.5, joint)
    return ExampleProblem(
        who, list(params), params, jacobian, Terms(who), "grad_sample", ctx
    )
