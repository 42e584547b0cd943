"""Write docs/other-names.md from gradtx/base/other_names.py: `make docs-tables`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gradtx.base.other_names import ALL_LEAVES, MATRICES, OtherName

PAGE = Path(__file__).with_name("other-names.md")

INTRO = """# Names from papers and records

<!-- Written by docs/other_names.py from gradtx/base/other_names.py; `make docs-tables` rewrites it. -->

These methods are compositions of links, so gradtx has no function of their names. Write the chain, and change its
numbers: they are the authors' where they give any. `gradtx.<name>` and `gradtx.optim.<Name>` of a method on this page
raise an error that says the same.

- **=** A test compares every step with a plain loop of the paper's rule.
- **≈** A test runs the chain; the last column says what differs from the paper, if anything does.

`lr` is a learning rate. Names inside a call are from `gradtx`. Methods with functions of their own are in [the table
of all optimizers](algorithms.md).
"""
MATRICES_INTRO = """
## For matrices

Leaves of other shapes need an optimizer of their own, and embeddings and the head usually have one:
`partition({"matrices": tx, "rest": adamw(lr)}, {"matrices": where, "rest": "*"})`.
"""
ALL_LEAVES_INTRO = """
## For leaves of all shapes
"""


def _linked(source: str) -> str:
    """Return a source with links to arXiv."""
    return re.sub(
        r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source
    )


def table(names: Sequence[OtherName]) -> list[str]:
    rows = ["| name | here | |", "|---|---|---|"]
    for name in names:
        mark = "=" if name.equal else "≈"
        rows.append(
            f"| {name.title} | {mark} `{name.chain}` | {name.note}. {_linked(name.source)} |"
        )
    return rows


def page() -> str:
    """The whole page."""
    parts = [INTRO.rstrip(), MATRICES_INTRO.rstrip(), "", *table(MATRICES)]
    return "\n".join([*parts, ALL_LEAVES_INTRO.rstrip(), "", *table(ALL_LEAVES), ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
