"""Optimizers in the rest of the torch ecosystem."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import swa_utils

import gradtx
from tests.optim.problems import assert_close, assert_equal, values

TOLERANCE = 1e-12  # the same float64 sums in a different order


def train(model, optimizer, steps, after=lambda: None):
    for t in range(steps):
        optimizer.zero_grad()
        (model(torch.ones(4, 3) * (t + 1)) - 1).square().mean().backward()
        optimizer.step()
        after()


def model_of(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


def test_averaged_models_and_swalr_work_as_with_torch():
    results = []
    for module in (gradtx.optim, torch.optim):
        model = model_of()
        optimizer = module.SGD(model.parameters(), lr=0.1, momentum=0.9)
        averaged = swa_utils.AveragedModel(model)
        scheduler = swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=3)

        def after(averaged=averaged, model=model, scheduler=scheduler):
            averaged.update_parameters(model)
            scheduler.step()

        train(model, optimizer, 6, after)
        assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["swa_lr"] == 0.01
        results.append(list(averaged.parameters()))
    assert_close(*results, tolerance=1e-6)  # six float32 roundings


@pytest.mark.parametrize(
    ("average", "function"), [(gradtx.average(), None), (gradtx.average(0.9, start=1), swa_utils.get_ema_avg_fn(0.9))]
)
def test_an_average_of_weights_equals_torchs_averaged_model(average, function):
    model = model_of().double()
    optimizer = gradtx.as_optimizer(gradtx.chain(gradtx.sgd(lr=0.1), average), model.parameters())
    averaged = swa_utils.AveragedModel(model, avg_fn=function)
    for t in range(5):
        optimizer.zero_grad()
        model(torch.ones(4, 3, dtype=torch.float64) * (t + 1)).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(model)
    with optimizer.eval_params():
        assert_close(model.parameters(), averaged.module.parameters(), TOLERANCE)


def test_a_compiled_model_trains_as_a_plain_one():
    results = []
    for wrap in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
        model = model_of()
        train(wrap(model), gradtx.optim.AdamW(model.parameters(), lr=0.1), 4)
        results.append(values(model.parameters()))
    assert_equal(*results)


@pytest.mark.filterwarnings("ignore")  # from the compiler, about code that it cannot trace
def test_a_compiled_training_step_trains_as_a_plain_one():
    results = []
    for wrap in (lambda step: step, lambda step: torch.compile(step, backend="eager")):
        param = torch.nn.Parameter(torch.ones(2))
        optimizer = gradtx.optim.SGD([param], lr=0.1)

        def step(param=param, optimizer=optimizer):
            optimizer.zero_grad()
            param.sin().sum().backward()
            optimizer.step()

        run = wrap(step)
        for _ in range(3):
            run()
        results.append(param.detach())
    assert_equal(*results)


def test_one_optimizer_for_each_parameter_inside_backward():
    model, twin = model_of(), model_of()
    optimizers = {param: gradtx.optim.AdamW([param], lr=0.1) for param in model.parameters()}

    def step_and_free(param):
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(step_and_free)
    reference = gradtx.optim.AdamW(twin.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.ones(4, 3)).square().mean().backward()
        assert all(param.grad is None for param in model.parameters())
        reference.zero_grad()
        twin(torch.ones(4, 3)).square().mean().backward()
        reference.step()
    assert_equal(values(model.parameters()), values(twin.parameters()))


def test_a_model_moved_to_another_dtype_keeps_training():
    model = model_of()
    optimizer = gradtx.optim.AdamW(model.parameters(), lr=0.1)
    train(model, optimizer, 2)
    model.to(torch.bfloat16)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(4, 3, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()
    assert {param.dtype for param in model.parameters()} == {torch.bfloat16}
    assert {optimizer.state[param]["exp_avg"].dtype for param in model.parameters()} == {torch.float32}


def test_a_model_moved_before_the_first_step_makes_its_state_there():
    model = model_of()
    optimizer = gradtx.optim.AdamW(model.parameters(), lr=0.1)
    model.to(torch.float64)
    model(torch.ones(4, 3, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    assert {optimizer.state[param]["exp_avg"].dtype for param in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdamP"])
def test_make_fx_traces_a_step(name):
    traced, plain = (torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in range(2))
    gradients = torch.tensor([0.5, 1.0, -1.0]), torch.tensor([2.0, -1.0, 0.1])

    def stepping(param):
        optimizer = getattr(gradtx.optim, name)([param], lr=0.1)

        def step(gradient):
            param.grad = gradient
            optimizer.step()
            return param.detach().clone()

        step(gradients[0])  # creates the state
        return step

    by_graph, by_hand = stepping(traced), stepping(plain)
    kept = traced.detach().clone()
    graph = make_fx(by_graph)(gradients[1])
    assert any("aten" in str(node.target) for node in graph.graph.nodes)
    by_hand(gradients[1])
    assert torch.equal(traced, plain)  # tracing also takes the step
    assert not torch.equal(traced, kept)


def test_make_fx_over_the_state_of_an_optimizer_is_an_error_and_the_pure_update_is_traced():
    """torch's AdamW raises an error as well: it also reads the count."""
    param = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = gradtx.optim.AdamW([param])
    param.grad = torch.ones(2)
    optimizer.step()
    state = optimizer.state[param]

    def step(count):
        state["step"] = count
        optimizer.step()
        return param.detach()

    with pytest.raises(RuntimeError):
        make_fx(step)(torch.tensor(1.0))

    tx, params = gradtx.adamw(), {"w": torch.tensor([1.0, -2.0])}
    update = make_fx(lambda grad, state: tx.update({"w": grad}, state, params))
    graph = update(torch.ones(2), tx.init(params))
    expected, _ = tx.update({"w": torch.tensor([3.0, 0.1])}, tx.init(params), params)
    updates, _ = graph(torch.tensor([3.0, 0.1]), tx.init(params))
    assert_close(updates.values(), expected.values(), 1e-6)


@pytest.mark.filterwarnings("ignore")  # from the compiler, about code that it cannot trace
def test_compiled_autograd_does_not_trace_released_gradients():
    from torch._dynamo import config

    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph.forward

    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = gradtx.optim.AdamW(model.parameters(), lr=0.1)
        optimizer.release_gradients()

        def backward(model=model):
            model(torch.ones(1, 3)).square().sum().backward()

        run = torch.compile(backward, backend=backend) if compiled else backward
        with config.patch(compiled_autograd=compiled):
            for _ in range(2):
                run()
                optimizer.step()
        results.append([param.detach() for param in model.parameters()])
    assert_equal(*results)
    traces = [str(node.meta.get("stack_trace")) for graph in graphs for node in graph.graph.nodes]
    assert traces
    assert not any("gradtx/optim" in trace for trace in traces)
