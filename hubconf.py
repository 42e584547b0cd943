"""What torch.hub finds: the class of every optimizer, `torch.hub.load(".", "adamp", source="local")`."""

from gradtx.registry import get_supported_optimizers as _names
from gradtx.registry import load_optimizer as _load_optimizer

dependencies = ["torch"]


def _entry(_name):
    def entry():
        return _load_optimizer(_name)

    entry.__name__, entry.__doc__ = _name, _load_optimizer(_name).__doc__
    return entry


globals().update({_name: _entry(_name) for _name in _names()})
