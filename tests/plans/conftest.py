"""What several tests of plans share."""

import pytest

from gradtx.optim.engine.lists import MemberBundle
from gradtx.plans import bundle


@pytest.fixture
def parts_of(monkeypatch):
    """A function of the most entries of a part: larger leaves are divided from then on."""
    return lambda entries: monkeypatch.setattr(bundle, "CHUNK", entries)


@pytest.fixture
def bundled(monkeypatch):
    """The signature of each bundle of parameters that is made, and whether it divides leaves."""
    made, original = [], MemberBundle.__init__

    def noted(self, members, signature, phases, splits):
        made.append((signature, splits))
        original(self, members, signature, phases, splits)

    monkeypatch.setattr(MemberBundle, "__init__", noted)
    return made
