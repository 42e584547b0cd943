"""Hugging Face accelerate."""

import pytest
import torch

import gradtx
from tests.clients.contests import CLIP, CONTESTS, DECAY, RATE, TOLERANCE, Lazily, counting_steps, decaying
from tests.optim.problems import assert_close, assert_equal, values

accelerate = Lazily("accelerate")

BATCHES, EVERY = 12, 2


@pytest.fixture(autouse=True)
def _alone():
    yield
    forget_accelerators()


def forget_accelerators():
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()


def prepared(make):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=EVERY)
    model = network()
    optimizer = counting_steps(make(model))
    rows = torch.randn(4 * BATCHES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batches = torch.utils.data.DataLoader(rows, batch_size=4)
    return accelerator, *accelerator.prepare(model, optimizer, batches, decaying(optimizer))


def trained(make, clip=CLIP, save=None, resume=None):
    """The model after its run, and its optimizer; `save` is written half-way, where `resume` starts."""
    accelerator, model, optimizer, batches, scheduler = prepared(make)
    if resume is not None:
        accelerator.load_state(str(resume))
        batches = accelerator.skip_first_batches(batches, BATCHES // 2)
    for done, batch in enumerate(batches, 1):
        with accelerator.accumulate(model):
            accelerator.backward((model(batch) - 1).square().mean())
            if accelerator.sync_gradients and clip:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if save is not None and done == BATCHES // 2:
            accelerator.save_state(str(save))
    return values(model.parameters()), optimizer.optimizer


@pytest.mark.parametrize("name", CONTESTS)
def test_an_accelerated_run_equals_the_reference(name):
    contest = CONTESTS[name]
    ours, optimizer = trained(contest.ours, None if contest.clips else CLIP)
    theirs, reference = trained(contest.theirs)
    assert_close(ours, theirs, TOLERANCE)
    for each in (optimizer, reference):
        assert each.steps_taken == BATCHES // EVERY
        assert each.param_groups[0]["lr"] == pytest.approx(RATE * DECAY ** (BATCHES // EVERY))


@pytest.mark.parametrize("name", CONTESTS)
def test_accelerate_resumes_bit_for_bit(name, tmp_path):
    make = CONTESTS[name].ours
    whole, first = trained(make, save=tmp_path)
    resumed, second = trained(make, resume=tmp_path)
    assert (first.steps_taken, second.steps_taken) == (BATCHES // EVERY, BATCHES // EVERY // 2)
    assert_equal(resumed, whole)
    assert_equal(second.state_dict(), first.state_dict())


def test_accelerate_resumes_torchs_run_with_our_adamw(tmp_path):
    contest = CONTESTS["AdamW"]
    whole, _ = trained(contest.theirs, save=tmp_path)
    resumed, _ = trained(contest.ours, resume=tmp_path)
    assert_close(resumed, whole, TOLERANCE)


@pytest.mark.parametrize("moved", [False, True])
def test_weights_loaded_after_prepare_count_for_first_states(moved):
    """`prepare` loads the optimizer's own state back into it; nothing has been trained by then."""
    tx = gradtx.chain(gradtx.adamp(lr=RATE), gradtx.lookahead(k=2))

    def make(model):
        optimizer = gradtx.as_optimizer(tx, model.named_parameters())
        if moved:
            model.float()
        return optimizer

    _, model, optimizer, *_ = prepared(make)
    for param in model.parameters():
        torch.nn.init.constant_(param, 3.0)
        param.grad = torch.ones_like(param)
    optimizer.step()
    for param in model.parameters():
        assert_equal(optimizer.state[param]["slow"], torch.full_like(param, 3.0).detach())


SCHEDULE = gradtx.warmup_cosine_schedule(BATCHES // EVERY, max_lr=RATE, warmup_steps=2)


def run(optimizer, batches, accelerator, model):
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward((model(batch) - 1).square().mean())
            optimizer.step()
            optimizer.zero_grad()


def schedule_free(model):
    return gradtx.optim.ScheduleFreeAdamW(model.parameters(), lr=RATE)


def test_a_scheduler_under_accelerate_on_a_warmup_is_an_error_that_names_the_schedule():
    with pytest.raises(ValueError, match=r"lr of a group follows warmup_cosine_schedule.*as_lr_scheduler"):
        trained(lambda model: gradtx.optim.AdamW(model.parameters(), lr=SCHEDULE))


def test_a_schedule_as_accelerates_scheduler_equals_the_schedule_in_the_chain(monkeypatch):
    inside = network()
    optimizer = gradtx.optim.AdamW(inside.parameters(), lr=SCHEDULE)
    accelerator, _, _, batches, _ = prepared(lambda model: gradtx.optim.AdamW(model.parameters(), lr=RATE))
    run(accelerator.prepare(optimizer), batches, accelerator, inside)
    forget_accelerators()
    monkeypatch.setitem(globals(), "decaying", lambda optimizer: gradtx.as_lr_scheduler(optimizer, SCHEDULE))
    ours, outside = trained(lambda model: gradtx.optim.AdamW(model.parameters(), lr=RATE), clip=None)
    assert_close(ours, values(inside.parameters()), TOLERANCE)
    assert outside.param_groups[0]["lr"] == pytest.approx(SCHEDULE(BATCHES // EVERY))


def test_accelerate_switches_to_the_weights_to_evaluate_with_and_back():
    accelerator, model, optimizer, batches, _ = prepared(schedule_free)
    run(optimizer, batches, accelerator, model)
    trained_on = values(model.parameters())
    optimizer.eval()
    evaluated = values(model.parameters())
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) before step\(\)"):
        optimizer.step()
    optimizer.train()
    assert_equal(values(model.parameters()), trained_on)
    with optimizer.optimizer.eval_params():
        assert_equal(evaluated, values(model.parameters()))
    assert not torch.equal(evaluated[0], trained_on[0])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_accelerate_resumes_in_the_mode_in_which_it_saved(mode, tmp_path):
    accelerator, model, optimizer, batches, _ = prepared(schedule_free)
    run(optimizer, batches, accelerator, model)
    getattr(optimizer, mode)()
    accelerator.save_state(str(tmp_path))
    optimizer.train()
    run(optimizer, batches, accelerator, model)
    forget_accelerators()
    accelerator, other, optimizer, batches, _ = prepared(schedule_free)
    accelerator.load_state(str(tmp_path))
    optimizer.train()
    run(optimizer, batches, accelerator, other)
    assert_equal(values(other.parameters()), values(model.parameters()))
