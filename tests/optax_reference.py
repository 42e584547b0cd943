"""What the installed optax returns, for tests/project/test_optax_names.py: a problem on stdin, answers on stdout.

A process of its own, since jax starts threads, and a process with threads must not be forked, as other tests do.
"""

import json
import sys
import types

import jax
import jax.numpy as jnp
import optax


def public(module):
    found = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    return {name: value for name, value in found.items() if not isinstance(value, types.ModuleType)}


def as_lists(tree):
    return {name: value.tolist() for name, value in tree.items()}


def updates(tx, problem, given):
    """The updates of all steps, and parameters that move by them."""
    tx = optax.with_extra_args_support(tx)
    params = {name: jnp.array(value) for name, value in problem["params"].items()}
    state, found = tx.init(params), []
    for grads, loss in zip(problem[given], problem["losses"], strict=True):
        grads = {name: jnp.array(value) for name, value in grads.items()}
        update, state = tx.update(grads, state, params, value=jnp.array(loss))
        params = optax.apply_updates(params, update)
        found.append({name: value.tolist() for name, value in update.items()})
    return found


def main():
    jax.config.update("jax_enable_x64", True)
    problem = json.load(sys.stdin)
    called = {**public(optax), "contrib": optax.contrib, "projections": optax.projections, "lr": problem["lr"]}
    made = {call: eval(call, dict(called)) for call in [*problem["steps"], *problem["schedules"]]}
    trees = {name: {leaf: jnp.array(x) for leaf, x in problem[name].items()} for name in ("tree", "other")}
    answers = {
        "steps": {call: updates(made[call], problem, given) for call, given in problem["steps"].items()},
        "functions": {call: as_lists(eval(call, {**called, **trees})) for call in problem["functions"]},
        "schedules": {call: [float(made[call](t)) for t in problem["times"]] for call in problem["schedules"]},
    }
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
