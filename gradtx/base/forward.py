"""Names of types that higher rooms define, for annotations in lower rooms, which import nothing from above.

A type checker sees `Any`; the comment says where the type is.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Transformation: TypeAlias = Any  # gradtx.transform.GradientTransformation
Leaf: TypeAlias = Any  # gradtx.execution.execute.Leaf
Operation: TypeAlias = Any  # gradtx.execution.execute.Operation
Run: TypeAlias = Any  # gradtx.execution.runs.Run
Step: TypeAlias = Any  # gradtx.optim.step.Step
SpaceRun: TypeAlias = Any  # gradtx.combinators._spaces.SpaceRun
TreePlan: TypeAlias = Any  # gradtx.pure.tree_plan.TreePlan
