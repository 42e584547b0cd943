import pytest
import torch

import gradtx


def test_bad_input_is_an_error():
    with pytest.raises(ValueError, match="scale_by_srmm owns the learning rate"):
        gradtx.chain(gradtx.scale_by_srmm(), gradtx.scale_by_learning_rate(0.1))
    with pytest.raises(ValueError, match=r"^scale_by_srmm: lr \* proximal must be in \[0, 1\], got 1.0 \* 1.5; lower"):
        gradtx.scale_by_srmm(lr=1.0, proximal=1.5)
    with pytest.raises(TypeError, match=r"memory_length must be an int, got 2\.5"):
        gradtx.scale_by_srmm(memory_length=2.5)
    params = {"w": torch.ones(1)}
    with pytest.raises(ValueError, match="scale_by_srmm needs params"):
        gradtx.scale_by_srmm().update(params, gradtx.scale_by_srmm().init(params))
