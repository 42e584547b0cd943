"""`python -m tests.fuzz --seconds 600 --seed 0`: random rules, chains, damaged states and edits for some time."""

from __future__ import annotations

import argparse
import collections
import sys
import time
import warnings

from tqdm import tqdm

from tests.fuzz import beside_torch, chains, edits, rules, sparse, states, watches, wide

KINDS = {
    "rules": rules.run,
    "vmap": chains.run,
    "narrow": lambda seed: wide.run(seed, chains.drawn_case),
    "poisoned narrow": lambda seed: wide.run_poisoned(seed, chains.drawn_case),
    "states": states.run,
    "edits": edits.run,
    "beside torch": beside_torch.run,
    "wide": wide.run,
    "poisoned wide": wide.run_poisoned,
    "watches": watches.run,
    "sparse": sparse.run,
}
CASES = {
    "vmap": chains.drawn_case,
    "narrow": chains.drawn_case,
    "poisoned narrow": chains.drawn_case,
    "wide": wide.drawn_case,
    "poisoned wide": wide.drawn_case,
    "watches": watches.drawn_case,
    "sparse": sparse.drawn_case,
}


def main() -> int:
    """Run and print; the exit status is 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: collections.Counter[str] = collections.Counter()
    end, seed = time.monotonic() + arguments.seconds, arguments.seed
    with tqdm(desc="seeds", unit="", mininterval=1.0) as bar:
        while time.monotonic() < end:
            for kind, run in KINDS.items():
                try:
                    outcome = run(seed)
                except Exception as error:
                    outcome = "failed"
                    tqdm.write(report(kind, seed, error))
                counts[f"{kind} {outcome}"] += 1
            seed += 1
            bar.update()
    print(f"seeds {arguments.seed} to {seed - 1}:", ", ".join(f"{kind} {n}" for kind, n in sorted(counts.items())))
    return int(any(key.endswith("failed") for key in counts))


def report(kind: str, seed: int, error: Exception) -> str:
    """What to know about a failure."""
    case = f"\n  {CASES[kind](seed)!r}" if kind in CASES else ""
    return f"{kind}, seed {seed}: {type(error).__name__}: {error}{case}"


if __name__ == "__main__":
    sys.exit(main())
