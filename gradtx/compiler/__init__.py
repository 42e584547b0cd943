"""The list back end: run a chain, recorded for one leaf, over lists of leaves, with one call per operation.

- `function` is the function of one leaf that is recorded; `bundle` has its phases, and the leaves that run them.
- `planner` chooses the program of each leaf, for trees (`trees`) and for optimizers (`gradtx.optim.engine.lists`).
- `record` runs a function on stand-ins without values and records its operations.
- `contract` fuses operations for which torch has a single one, such as a product that is added.
- `in_place` decides which operation may write into the memory of an operand.
- `lower` runs all passes: a recording becomes a `Program`, from which every back end writes its code. `scalars` has the
  function of its scalars, in Python (`scalar_operations`); `write_lists` writes a Python function of lists.

The back end needs no compiler, and no rule has a second version. Operations without a list form run leaf by leaf inside
the same function.
"""

from gradtx.compiler.record import Recording, UnrecordableError, record
from gradtx.compiler.write_lists import ListFunction, list_function

__all__ = ["ListFunction", "Recording", "UnrecordableError", "list_function", "record"]
