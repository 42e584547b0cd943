"""What the pretended GPU does with each operation is what a real one has shown."""

import json
from pathlib import Path

import pytest

from tests.gpu.facts import FACTS

SEEN = json.loads((Path(__file__).parent / "seen.json").read_text())


def test_every_fact_was_seen_on_a_gpu():
    assert set(FACTS) == set(SEEN)


@pytest.mark.parametrize("name", SEEN)
def test_an_operation_does_what_it_did_on_a_gpu(name, gpu):
    seen = SEEN[name]
    call = FACTS[name](gpu.device())
    if seen["outcome"] == "refused":
        with pytest.raises(RuntimeError):
            call()
        return
    call()
    with gpu.counting() as counted:
        call()
    assert ("waits" if counted.waits else "runs") == seen["outcome"]
    if "launches" in seen:
        assert counted.launches == seen["launches"]
    # On a real GPU, a failed capture spoils later calls of some libraries.
    if seen["outcome"] == "waits" and not gpu.is_real:
        with gpu.capturing(), pytest.raises(RuntimeError, match="stream is capturing"):
            call()
