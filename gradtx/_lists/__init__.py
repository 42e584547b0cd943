"""The list back end: a chain, recorded for one leaf, runs over lists of leaves, with one call for each operation.

- `record` runs a function on stand-ins without values and records its operations.
- `contract` joins operations that torch has as one, such as a product that is added.
- `plan` decides which operation may write into the memory of an operand.
- `code` writes a Python function of it, `numbers` the part of it that computes numbers.

It needs no compiler, and no rule has a second version. What has no form for lists runs leaf by leaf inside the same
function.
"""

from gradtx._lists.code import ListFunction, list_function
from gradtx._lists.record import Recording, UnrecordableError, record

__all__ = ["ListFunction", "Recording", "UnrecordableError", "list_function", "record"]
