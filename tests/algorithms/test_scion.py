import pytest
import torch

import gradtx
from tests.links.test_lmo import lmo
from tests.references import BETA, RATE, WeightsLoop, named, weights_follow


def scion(s, t, g, p, lr=1e-3, momentum=0.1, scale=1.0, unconstrained=False, kinds=None, oracle=lmo):
    s.b = (1 - momentum) * s.b + momentum * g
    return p * (1 if unconstrained else 1 - lr) - lr * scale * oracle(s.b)


FASTER = gradtx.Schedule(lambda step: 0.02 + 0.001 * step)


@pytest.mark.parametrize(
    "options", [{}, {"lr": RATE, "momentum": BETA, "scale": 3.0}, {"unconstrained": True, "scale": FASTER}], ids=named
)
def test_scion_follows_the_loop(options):
    weights_follow(gradtx.scion(**options), WeightsLoop(scion, **options), tolerance=1e-10)


def test_scion_takes_kinds_by_name_and_a_literal_momentum_of_one_keeps_no_state():
    def oracle(x):
        if x.shape == (4, 3):
            return lmo(x, "row", normalized=False)
        return lmo(x, "sign", normalized=False) if x.ndim < 2 else lmo(x)

    kinds = {"matrix": gradtx.lmo("row", normalized=False), "bias": gradtx.lmo("sign", normalized=False)}
    kinds |= {"scalar": gradtx.lmo("sign", normalized=False), "*": "auto"}
    tx = gradtx.scion(0.02, 1.0, kinds=kinds)
    weights_follow(tx, WeightsLoop(scion, lr=0.02, momentum=1.0, oracle=oracle), tolerance=1e-10)
    assert "trace_ema" not in tx.init({"matrix": torch.ones(4, 3), "bias": torch.ones(1), "scalar": torch.ones(())})
    assert repr(gradtx.scion(kinds={"*": "sign"})) == "scion(kinds={'*': 'sign'})"
    assert gradtx.scion(kinds={"a": "sign", "*": gradtx.lmo("row")}).replace(eps=0.5).hyperparams["eps"] == 0.5


def test_a_kind_that_is_none():
    with pytest.raises(TypeError, match="scion: lmo: kind must be a str, got 3"):
        gradtx.scion(kinds={"*": 3})
    with pytest.raises(ValueError, match=r"lmo: leaf 'b' has shape \(2,\), needs at least 2 dimensions"):
        gradtx.scion(kinds={"*": "row"}).init({"b": torch.zeros(2)})
    with pytest.raises(ValueError, match="partition: leaf 'b' has no label"):
        gradtx.scion(kinds={"w": "row"}).init({"w": torch.zeros(2, 2), "b": torch.zeros(2)})
