"""Write docs/conformance.md from the conformance tests and their exemptions: `make docs-tables`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests import test_conformance, test_conformance_func
from tests.conformance import CHECKS, EXEMPTIONS, Case, Exemption, plain_cases

PAGE = Path(__file__).with_suffix(".md")
ALL = test_conformance.ALL

INTRO = f"""# Conformance tests

<!-- Written by docs/conformance.py from the tests; `make docs-tables` rewrites it. -->

The tests run on every public factory created by a decorator (rules, aliases, combinators): {len(plain_cases())}
factories. Each is tested with the example arguments of its decorator, with all hyperparameters enabled that are off by
default, and with each switch flipped: {len(ALL)} cases, with {sum(len(case.floats()) for case in ALL)} float
hyperparameters. Combinators wrap Adam, whose hyperparameters are included in the count. Leaves have 0, 1, 2 and 4
dimensions, as far as the rule accepts them.

## The checks

The table lists each test with its number of cases. `make test` runs a subset: all rules and combinators, and fewer
aliases and switches. `make test-all`, which CI runs every night, runs all cases.
"""

DERIVATIVES = """
- **Derivatives** are compared in float64 with central differences over runs of five steps: one for every float
  hyperparameter (rates, betas, decays, eps), and one along a random direction of the initial weights. The tests use
  reverse mode (`torch.func.grad`) and forward mode (`torch.func.jvp`, batched over directions by `vmap`).
- At a kink or a jump (a sign at 0, a clip at its bound, a maximum of equal values) there is no derivative, and
  the differences would not agree. Random inputs do not hit these points. Zero gradients and zero weights do occur in
  training; there, derivatives must be finite, and the derivative of a root at 0 counts as 0.
- The derivative of a **sign** is 0, and so are the differences: no gradient flows through it.
- An alias is a chain of links that are cases themselves. Tests with fewer cases use either the default switches, or all
  rules and combinators and a selection of aliases: every fourth, and for each combinator the first alias that contains
  it.
- **Compiled steps** compute, transform and apply the gradient in one graph (`fullgraph=True`). Over twenty steps, every
  hyperparameter, the state and the loss change without recompilation. Most cases run the traced graph directly; some
  chains go through inductor. Separate tests cover `compile=True` for every optimizer.

## Exceptions

Each exception must fail its test, so it is removed once its reason no longer applies. The table lists the test, the
cases and the reason.
"""

FACTORIES = """
## The factories

The table lists the number of cases of each factory and its float hyperparameters, including those of inner
transformations.
"""


def sentence(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")


def table(titles: list[str], rows: Iterable[Iterable[str]]) -> list[str]:
    return [
        "",
        *(
            f"| {' | '.join(cells)} |"
            for cells in (titles, ["---"] * len(titles), *rows)
        ),
    ]


def checks() -> list[str]:
    modules = (test_conformance, test_conformance_func)
    names = [name for module in modules for name in vars(module) if name in CHECKS]
    return table(
        ["property", "cases"],
        ([sentence(name), str(len(CHECKS[name]))] for name in names),
    )


def exempt(entry: Exemption) -> str:
    """Return the test ids of the cases that an exemption covers."""
    return ", ".join(f"`{name}`" for name in CHECKS[entry.test] if entry.covers(name))


def exemptions() -> list[str]:
    rows = ([sentence(entry.test), exempt(entry), entry.reason] for entry in EXEMPTIONS)
    return table(["property", "does not hold for", "reason"], rows)


def factories() -> list[str]:
    counts = Counter(case.factory for case in ALL)
    kinds = {
        "rule": "rule",
        "tree": "rule of trees",
        "alias": "alias",
        "combinator": "combinator",
    }

    def row(case: Case) -> list[str]:
        floats = ", ".join(f"`{place}`" for place in case.floats())
        return [
            f"`{case}`",
            kinds[case.factory.spec.kind],
            str(counts[case.factory]),
            floats,
        ]

    return table(
        ["factory", "kind", "cases", "float hyperparameters"], map(row, plain_cases())
    )


def page() -> str:
    """The whole page."""
    return "\n".join(
        [
            INTRO.strip(),
            *checks(),
            DERIVATIVES.rstrip(),
            *exemptions(),
            FACTORIES.rstrip(),
            *factories(),
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
