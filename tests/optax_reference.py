"""What the installed optax has and does, for tests/test_optax_names.py: a problem on stdin, answers on stdout, as JSON.

A process of its own, since jax starts threads, and a process with threads must not be forked, as other tests do.
"""

import inspect
import json
import sys
import types

import jax
import jax.numpy as jnp
import optax

MODULES = [
    "contrib",
    "schedules",
    "transforms",
    "losses",
    "projections",
    "assignment",
    "perturbations",
    "second_order",
    "microbatching",
    "tree",
]


def public(module):
    found = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    return {name: value for name, value in found.items() if not isinstance(value, types.ModuleType)}


def names():
    """Public names, each once: a submodule adds only what optax itself, or one before, does not have."""
    found, seen = list(public(optax)), {id(value) for value in public(optax).values()}
    for module in [*MODULES, "tree_utils"]:
        for name, value in public(getattr(optax, module)).items():
            if id(value) not in seen:
                found.append(f"{module}.{name}")
                seen.add(id(value))
    return found


def options():
    """The names of all arguments of public functions."""
    found = set()
    for function in (*public(optax).values(), *public(optax.contrib).values()):
        if callable(function) and not hasattr(function, "__origin__"):
            found.update(inspect.signature(function).parameters)
    return sorted(found)


def updates(tx, problem):
    """The updates of all steps, and parameters that move by them."""
    tx = optax.with_extra_args_support(tx)
    params = {name: jnp.array(value) for name, value in problem["params"].items()}
    state, found = tx.init(params), []
    for grads, loss in zip(problem["grads"], problem["losses"], strict=True):
        grads = {name: jnp.array(value) for name, value in grads.items()}
        update, state = tx.update(grads, state, params, value=jnp.array(loss))
        params = optax.apply_updates(params, update)
        found.append({name: value.tolist() for name, value in update.items()})
    return found


def main():
    jax.config.update("jax_enable_x64", True)
    problem = json.load(sys.stdin)
    called = {**public(optax), "contrib": optax.contrib, "lr": problem["lr"]}
    made = {call: eval(call, dict(called)) for call in [*problem["steps"], *problem["schedules"]]}
    answers = {
        "version": optax.__version__,
        "names": names(),
        "options": options(),
        "steps": {call: updates(made[call], problem) for call in problem["steps"]},
        "schedules": {call: [float(made[call](t)) for t in problem["times"]] for call in problem["schedules"]},
    }
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
