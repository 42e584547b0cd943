"""Restores optimizers from pickles of this version and of version 0.1."""

from __future__ import annotations

from typing import Any

from gradtx.optim._members import Members
from gradtx.optim._state import States
from gradtx.optim._workings import Workings

# The attributes of a version 0.1 optimizer that `_workings` replaces.
REPLACED = (
    *("_tx", "_views", "_records", "_present", "_clock_paths", "_hessian", "_engine"),
    *("_takes_none", "_agrees", "_host_counts"),
)


def workings_of(state: dict[str, Any], owner: str) -> Workings:
    """Return the workings in the pickled state of an optimizer; attributes of version 0.1 are removed from it."""
    if "_workings" in state:
        return state["_workings"]
    old = {name: state.pop(name) for name in REPLACED}
    members = Members(owner, old["_tx"])
    members.restore(old["_views"], old["_records"], old["_clock_paths"])
    return Workings(members, States(members), old["_hessian"], old["_engine"])
