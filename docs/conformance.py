"""Write docs/conformance.md from the conformance tests and their table of exemptions: `make docs-tables`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests import test_conformance, test_conformance_func
from tests.conformance import CHECKS, EXEMPTIONS, Case, Exemption, plain_cases

PAGE = Path(__file__).with_suffix(".md")
ALL = test_conformance.ALL

INTRO = f"""# What every transformation is tested for

<!-- Written by docs/conformance.py from the tests; `make docs-tables` rewrites it. -->

Every public factory that a decorator made (rules, aliases, combinators) joins these tests by itself, as soon as its
name is in `gradtx`: {len(plain_cases())} factories. Each is tested as its decorator says to call it, with all numbers
switched on that are off by default, and with each of its switches turned: {len(ALL)} cases, with
{sum(len(case.floats()) for case in ALL)} float hyperparameters. Combinators stand around Adam, whose hyperparameters
count among theirs. Leaves have 0, 1, 2 and 4 dimensions, where the rule takes them.

## The checks

The names of the tests, and how many cases each has.
"""

DERIVATIVES = """
- **Derivatives** are compared in float64 with central differences of runs of five steps: one for every float
  hyperparameter (rates, betas, decays, eps), and one along a random direction of the first weights. In reverse mode
  (`torch.func.grad`) and in forward mode (`torch.func.jvp`, batched over directions by `vmap`).
- Where a function has a kink or a jump (a sign at 0, a clip at its bound, a maximum of equal numbers), there is no
  derivative, and differences show it. Random numbers don't meet these points. At zero gradients and zero weights, where
  training does, derivatives have to be finite: those of a root at 0 are taken as 0.
- The derivative of a **sign** is 0, and so are the differences: no slope reaches the gradient through it.
- What is tested for fewer cases is tested with default switches, or for the rules and combinators that aliases are
  chains of.
- **Compiled steps** take the gradient, update and apply it in one graph (`fullgraph=True`); in twenty steps every
  number, the state and the loss change, and nothing is compiled anew. As a rule the graph is run as it was traced; some
  chains go through inductor. `compile=True` of the adapter has tests of its own, for every optimizer.

## What cannot be

A test has to fail for what stands here, so no line outlives its reason. The page names the test, then the cases.
"""

FACTORIES = """
## The factories

How many cases each is tested in, and its float hyperparameters, with those of the transformations inside it.
"""


def sentence(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


def table(titles: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows))]


def checks() -> list[str]:
    modules = (test_conformance, test_conformance_func)
    names = [name for module in modules for name in vars(module) if name in CHECKS]
    return table(["what is true", "cases"], ([sentence(name), str(len(CHECKS[name]))] for name in names))


def exempt(entry: Exemption) -> str:
    """The cases that an exemption is for, as the ids of the tests."""
    return ", ".join(f"`{name}`" for name in CHECKS[entry.test] if entry.covers(name))


def exemptions() -> list[str]:
    rows = ([sentence(entry.test), exempt(entry), entry.reason] for entry in EXEMPTIONS)
    return table(["what is not true", "of", "reason"], rows)


def factories() -> list[str]:
    counts = Counter(case.factory for case in ALL)
    kinds = {"rule": "rule", "tree": "rule of trees", "alias": "alias", "combinator": "combinator"}

    def row(case: Case) -> list[str]:
        floats = ", ".join(f"`{place}`" for place in case.floats())
        return [f"`{case}`", kinds[case.factory.spec.kind], str(counts[case.factory]), floats]

    return table(["factory", "kind", "cases", "float hyperparameters"], map(row, plain_cases()))


def page() -> str:
    """The whole page."""
    return "\n".join(
        [INTRO.strip(), *checks(), DERIVATIVES.rstrip(), *exemptions(), FACTORIES.rstrip(), *factories(), ""]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
