"""Plans: a chain, recorded for one leaf, over many leaves, for `gradtx.pure` and `gradtx.optim`.

- `function` is the step of one leaf as a function of flat arguments, which `phases` records.
- `hyperparameters` says which numbers of a chain are arguments of its programs.
- `families` sorts leaves by chain and kind; `planner` has the program of each leaf by the shapes it reads.
- `plan` has these in bundles; optimizers and pure updates say when one is valid. `bundle` has the leaves that one
  program processes together, on lists; `kernel_function` runs them as kernels.
"""
