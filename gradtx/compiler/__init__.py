"""A compiler of functions of tensors: it records a graph and returns a callable. It knows no chain and no optimizer.

- `record` runs a function on stand-ins without values and records its operations.
- `graph` says what the nodes of a recording are.
- `fuse` joins operations for which torch has a single one, such as a product that is added.
- `in_place` decides which operation may write into the memory of an operand.
- `stacked` says where leaves of no dimension may be the entries of vectors.
- `lower` runs all passes: a recording becomes a `LoweredGraph`, from which every back end writes its code. `scalars`
  has the function of its scalars, in Python (`scalar_operations`).
- `write_lists` writes a Python function of lists; `write_kernels`, with a language each, writes C++ and Triton;
  `cpp` and `triton` compile them, and `tables` has the addresses of their arguments.

Lists need no compiler of C++ or Triton, and no rule has a second version. Operations that torch does not offer for
lists run leaf by leaf inside the same function.
"""

from gradtx.compiler.record import Recording, UnrecordableError, record
from gradtx.compiler.write_lists import ListFunction, list_function

__all__ = ["ListFunction", "Recording", "UnrecordableError", "list_function", "record"]
