"""Keys that wrappers write into `optimizer.state`, as timm's Lookahead does, are kept, as in torch.optim."""

import copy
from contextlib import nullcontext

import pytest
import torch

import gradtx
from tests.optim.problems import assert_close, descend, parameters, saved_and_loaded, unchanged


class Lookahead:
    """Stores its slow weights in the state of the optimizer that it wraps."""

    def __init__(self, base, every=3):
        self.base = base
        self._every = every

    def run(self, params, steps, start=0):
        for t in range(start, start + steps):
            descend(self.base, params, 1, start=t)
            if (t + 1) % self._every == 0:
                self._synchronize(params)

    @torch.no_grad()
    def _synchronize(self, params):
        for param in params.values():
            slow = self.base.state[param].setdefault("lookahead_slow_buff", param.detach().clone())
            slow.lerp_(param, 0.5)
            param.copy_(slow)


OPTIMIZERS = {"AdamW": {"lr": 0.1}, "SGD": {"lr": 0.1}, "RMSprop": {"lr": 0.01, "centered": True}}


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_wrapper_that_keeps_tensors_in_the_state_resumes_as_around_torchs_optimizer(name, restarted):
    def run(module):
        params = parameters()
        optimizer = getattr(module, name)(params.values(), **OPTIMIZERS[name])
        Lookahead(optimizer).run(params, 7)
        saved = copy.deepcopy(optimizer.state_dict())
        if restarted:
            optimizer = getattr(module, name)(params.values(), **OPTIMIZERS[name])
        is_new = restarted and module is gradtx.optim
        message = "the checkpoint's state has 'lookahead_slow_buff', which no link of gradtx keeps"
        # Warnings are errors in these tests.
        with pytest.warns(UserWarning, match=message) if is_new else nullcontext() as caught:
            optimizer.load_state_dict(saved)
        assert not is_new or len(caught) == 1
        Lookahead(optimizer).run(params, 7, start=7)
        assert saved["state"].keys() == optimizer.state_dict()["state"].keys()
        return params.values(), [optimizer.state[param]["lookahead_slow_buff"] for param in params.values()]

    weights, slow = run(gradtx.optim)
    expected_weights, expected_slow = run(torch.optim)
    assert_close(weights, expected_weights, 1e-12)
    assert_close(slow, expected_slow, 1e-12)


@pytest.mark.parametrize("options", [{}, {"compile": True}], ids=["lists", "compiled"])
@pytest.mark.filterwarnings("ignore:.*which no link of gradtx keeps")
def test_schedulefrees_wrapper_whose_keys_have_names_of_slots_resumes_as_around_torchs_sgd(options):
    wrapper = pytest.importorskip("schedulefree").ScheduleFreeWrapper

    def run(module, options):
        params = {name: param for name, param in parameters().items() if param.ndim}  # it views them as bytes

        def made():
            optimizer = wrapper(module.SGD(params.values(), lr=0.1, momentum=0.5, **options), momentum=0.9)
            optimizer.train()
            return optimizer

        def advance(optimizer, start):
            for t in range(start, start + 3):
                for param in params.values():
                    param.grad = torch.full_like(param, 0.1 * t)
                optimizer.step()

        optimizer = made()
        advance(optimizer, 0)
        saved = saved_and_loaded(optimizer.state_dict())
        optimizer = made()
        optimizer.load_state_dict(saved)
        advance(optimizer, 3)
        return params.values()

    assert_close(run(gradtx.optim, options), run(torch.optim, {}), 1e-6)


def test_extra_keys_are_loaded_in_the_dtype_of_the_parameter_as_by_torch():
    for module in (gradtx.optim, torch.optim):
        param = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        optimizer = module.Adam([param])
        param.grad = torch.ones_like(param)
        optimizer.step()
        optimizer.state[param].update(slow=1.5, fast_buffer=torch.ones(2))
        saved = optimizer.state_dict()
        optimizer.load_state_dict(copy.deepcopy(saved))
        assert optimizer.state[param]["fast_buffer"].dtype == torch.bfloat16


OTHERS = {
    "lion": gradtx.lion(),
    "prodigy": gradtx.prodigy(),
    "adan": gradtx.adan(),
    "schedule_free_adamw": gradtx.schedule_free_adamw(),
    "soap": gradtx.soap(),
    "average": gradtx.chain(gradtx.sgd(), gradtx.average(0.9)),
    "lookahead": gradtx.chain(gradtx.sgd(), gradtx.lookahead()),
    "ema": gradtx.chain(gradtx.ema(0.9), gradtx.sgd()),
    "int8": gradtx.chain(gradtx.ema(0.9, state_dtype="int8"), gradtx.sgd()),
    "accumulate": gradtx.accumulate(gradtx.sgd(), 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_state_of_links_that_are_not_in_the_chain_is_refused(name):
    params = parameters()
    saved = gradtx.as_optimizer(OTHERS[name], params.values()).state_dict()
    optimizer = gradtx.optim.SGD(params.values())
    saved["param_groups"] = optimizer.state_dict()["param_groups"]
    with unchanged(optimizer), pytest.raises(ValueError, match="which this chain does not use"):
        optimizer.load_state_dict(saved)
    optimizer.load_state_dict(saved, strict=False)
    descend(optimizer, params, 2)
    expected = parameters()
    descend(gradtx.optim.SGD(expected.values()), expected, 2)
    assert_close(params.values(), expected.values(), 0.0)


def test_the_state_of_links_that_only_16_bit_weights_need_is_refused():
    params = [torch.nn.Parameter(torch.ones(2, 3, dtype=torch.bfloat16))]
    compensated = gradtx.as_optimizer(gradtx.chain(gradtx.adam(), gradtx.compensate_rounding()), params)
    params[0].grad = torch.ones_like(params[0])
    compensated.step()
    optimizer = gradtx.optim.Adam(params)
    saved = {**compensated.state_dict(), "param_groups": optimizer.state_dict()["param_groups"]}
    with unchanged(optimizer), pytest.raises(ValueError, match="'compensation', which this chain does not use"):
        optimizer.load_state_dict(saved)


@pytest.mark.filterwarnings("ignore:.*which no link of gradtx keeps")
@pytest.mark.parametrize("key", [3, ("slow", 1)])
def test_a_key_that_is_no_text_is_loaded_too(key):
    params = parameters()
    optimizer = gradtx.optim.Adam(params.values())
    descend(optimizer, params, 1)
    optimizer.state[params["head.weight"]][key] = torch.ones(2)
    other = gradtx.optim.Adam(parameters().values())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert key in other.state[other.param_groups[0]["params"][list(params).index("head.weight")]]
