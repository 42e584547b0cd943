import pytest

import gradtx
from tests.references import first_update


def test_the_first_gradient_is_no_change():
    # m and n as Adam's at step 1: had g_0 been 0, n would be (1 + 0.92)^2 g^2
    assert first_update(gradtx.scale_by_adan(eps=0.0), [1e-3, -5.0]) == pytest.approx([1.0, -1.0])


def test_a_constant_gradient_has_no_change_to_extrapolate():
    assert first_update(gradtx.scale_by_adan(eps=0.0), [3.0], steps=7) == pytest.approx([1.0])
