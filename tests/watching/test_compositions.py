"""The measuring twin of every composition of the conformance suite, alone and nested, makes the same updates."""

import gradtx
from tests.conformance import SHAPES, assert_same, extras, field
from tests.fuzz.wide import LeafByLeaf
from tests.tiers import each_case

SGD = gradtx.sgd(lr=0.1)
AROUND = {
    "alone": lambda tx: tx,
    "accumulate": lambda tx: gradtx.accumulate(tx, 2),
    "blocks": lambda tx: gradtx.blocks(tx, "matrix", heads=3),
    "graft": lambda tx: gradtx.graft(tx, SGD),
    "low_rank": lambda tx: gradtx.low_rank(tx, 1, every=2),
    "low_rank of graft": lambda tx: gradtx.low_rank(gradtx.graft(SGD, tx), 1, every=2),
    "partition": lambda tx: gradtx.partition({"a": tx, "b": SGD}, {"a": "matrix", "b": "*"}),
    "restart of skip_nonfinite": lambda tx: gradtx.restart(gradtx.skip_nonfinite(tx), 2),
    "rotated": lambda tx: gradtx.rotated(tx, precondition_frequency=2),
    "rotated in blocks": lambda tx: gradtx.blocks(gradtx.rotated(tx), "matrix", sizes=(1, 2)),
}
assert SHAPES["matrix"][0] == 3  # rows of the blocks


def unwatched_step(tx, state, params):
    with LeafByLeaf():  # as a watched step runs
        return tx.update(field(params), state, params, **extras(tx, params))


@each_case
def test_the_measuring_twin_of_a_composition_has_its_updates_and_state_alone_and_in_combinators(case):
    for around in AROUND.values():
        params = case.noise()
        try:
            tx = around(case.make())
            state = tx.init(params)
            unwatched_step(tx, state, params)
        except (TypeError, ValueError):
            continue  # the combinator refuses the link
        for _ in range(2):
            expected = unwatched_step(tx, state, params)
            updates, new_state, figures = gradtx.watched(tx).update(field(params), state, params, **extras(tx, params))
            assert_same((updates, new_state), expected)
            assert all("step" in links for links in figures.values())
            params, state = gradtx.apply_updates(params, updates), new_state
