"""Lightning's Trainer, whose steps go through a closure."""

import csv

import pytest
import torch

import gradtx
from tests.clients.contests import CLIP, CONTESTS, DECAY, RATE, TOLERANCE, Lazily, decaying
from tests.optim.chains import gradient_ahead, scale_by_value
from tests.optim.problems import assert_close, assert_equal

regressions = Lazily("tests.clients.regressions")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
@pytest.mark.parametrize("name", CONTESTS)
def test_a_lightning_run_equals_the_reference(name, automatic, tmp_path):
    contest = CONTESTS[name]
    ours, optimizer = regressions.trained(tmp_path, contest.ours, None if contest.clips else CLIP, automatic=automatic)
    theirs, reference = regressions.trained(tmp_path, contest.theirs, automatic=automatic)
    assert_close(regressions.weights(ours), regressions.weights(theirs), TOLERANCE)
    for group in (optimizer.param_groups[0], reference.param_groups[0]):
        assert group["lr"] == pytest.approx(RATE * DECAY ** (regressions.EPOCHS * regressions.BATCHES))
    assert ours.losses[0] > ours.losses[-1]


def test_lightning_clips_gradients_in_mixed_precision_as_with_torchs_class(tmp_path):
    contest = CONTESTS["AdamW"]
    options = {"precision": "bf16-mixed"}
    ours, _ = regressions.trained(tmp_path, contest.ours, CLIP, **options)
    theirs, _ = regressions.trained(tmp_path, contest.theirs, CLIP, **options)
    assert_close(regressions.weights(ours), regressions.weights(theirs), 1e-6)


@pytest.mark.parametrize("name", CONTESTS)
def test_gradients_accumulated_by_lightning_equal_the_reference(name, tmp_path):
    contest = CONTESTS[name]
    options = {"accumulate_grad_batches": 2}
    ours, optimizer = regressions.trained(tmp_path, contest.ours, None if contest.clips else CLIP, **options)
    theirs, _ = regressions.trained(tmp_path, contest.theirs, **options)
    assert optimizer.steps_taken == 2 * regressions.EPOCHS  # two an epoch: the last batch of an epoch is a step too
    assert_close(regressions.weights(ours), regressions.weights(theirs), TOLERANCE)


@pytest.mark.parametrize("name", CONTESTS)
def test_lightning_resumes_bit_for_bit(name, tmp_path):
    make = CONTESTS[name].ours
    whole, first = regressions.trained(tmp_path, make)
    regressions.trained(tmp_path, make, epochs=1, save=True)
    resumed, second = regressions.trained(tmp_path, make, resume=tmp_path / "run.ckpt")
    assert (first.steps_taken, second.steps_taken) == (
        regressions.EPOCHS * regressions.BATCHES,
        (regressions.EPOCHS - 1) * regressions.BATCHES,
    )
    assert_equal(regressions.weights(resumed), regressions.weights(whole))
    assert_equal(second.state_dict(), first.state_dict())


def test_lightning_resumes_torchs_run_with_our_adamw(tmp_path):
    contest = CONTESTS["AdamW"]
    whole, _ = regressions.trained(tmp_path, contest.theirs)
    regressions.trained(tmp_path, contest.theirs, epochs=1, save=True)
    resumed, _ = regressions.trained(tmp_path, contest.ours, resume=tmp_path / "run.ckpt")
    assert_close(regressions.weights(resumed), regressions.weights(whole), TOLERANCE)


@pytest.mark.parametrize("link", [scale_by_value(), gradient_ahead()], ids=["value", "grad_fn"])
def test_links_that_need_the_closure_get_lightnings(link, tmp_path):
    tx = gradtx.chain(link, gradtx.adamp(lr=RATE))
    module, _ = regressions.trained(
        tmp_path, lambda model: gradtx.as_optimizer(tx, model.named_parameters()), clip=None
    )
    plain = regressions.Regression(None)
    optimizer = gradtx.as_optimizer(tx, plain.network.named_parameters())
    scheduler = decaying(optimizer)
    for batch in [*regressions.batches()] * regressions.EPOCHS:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = plain.loss(batch)
            loss.backward()
            return loss

        optimizer.step(closure)
        scheduler.step()
    assert module.losses == plain.losses
    assert_equal(regressions.weights(module), regressions.weights(plain))


def test_lightnings_wrapper_passes_weights_to_evaluate_with_on(tmp_path):
    def make(model):
        tx = gradtx.chain(gradtx.adamp(lr=RATE), gradtx.lookahead(k=2))
        return gradtx.as_optimizer(tx, model.named_parameters())

    module, _ = regressions.trained(tmp_path, make, kind=regressions.Evaluated)
    plain, _ = regressions.trained(tmp_path, make)
    assert_equal(regressions.weights(module), regressions.weights(plain))
    assert_equal(module.evaluated, module.slow)
    assert not torch.equal(module.evaluated[0], regressions.weights(module)[0])


def schedule_free(network):
    return gradtx.optim.ScheduleFreeAdamW(network.parameters(), lr=RATE)


def test_lightnings_wrapper_switches_the_optimizer_to_the_weights_to_evaluate_with_and_back(tmp_path):
    module, optimizer = regressions.trained(tmp_path, schedule_free, kind=regressions.EvaluatedByMode)
    plain, _ = regressions.trained(tmp_path, schedule_free)
    assert_equal(regressions.weights(module), regressions.weights(plain))
    with optimizer.eval_params():
        assert_equal(module.evaluated, regressions.weights(module))
    assert not torch.equal(module.evaluated[0], regressions.weights(module)[0])


def test_lightning_resumes_what_it_saved_with_the_weights_to_evaluate_with(tmp_path):
    whole, _ = regressions.trained(tmp_path, schedule_free, kind=regressions.SavedInEvaluation)
    regressions.trained(tmp_path, schedule_free, epochs=1, save=True, kind=regressions.SavedInEvaluation)
    resumed, _ = regressions.trained(
        tmp_path, schedule_free, resume=tmp_path / "run.ckpt", kind=regressions.SavedInEvaluation
    )
    assert_equal(regressions.weights(resumed), regressions.weights(whole))


def test_a_scheduler_of_lightning_on_a_warmup_is_an_error_that_names_the_schedule(tmp_path):
    def make(network):
        return gradtx.optim.AdamW(network.parameters(), lr=regressions.SCHEDULE)

    with pytest.raises(ValueError, match=r"lr of a group follows warmup_cosine_schedule.*as_lr_scheduler"):
        regressions.trained(tmp_path, make)


def test_a_schedule_as_lightnings_scheduler_equals_the_schedule_in_the_chain(tmp_path):
    def constant(network):
        return gradtx.optim.AdamW(network.parameters(), lr=RATE)

    def scheduled(network):
        return gradtx.optim.AdamW(network.parameters(), lr=regressions.SCHEDULE)

    ours, optimizer = regressions.trained(tmp_path, constant, kind=regressions.Scheduled)
    inside, _ = regressions.trained(tmp_path, scheduled, kind=regressions.Unscheduled)
    assert_close(regressions.weights(ours), regressions.weights(inside), TOLERANCE)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(
        regressions.SCHEDULE(regressions.EPOCHS * regressions.BATCHES)
    )


def test_a_state_dict_loaded_by_lightnings_wrapper_reaches_the_optimizer(tmp_path):
    def at(rate):
        return lambda network: gradtx.optim.AdamW(network.parameters(), lr=rate)

    loaded, _ = regressions.trained(tmp_path, at(RATE), kind=regressions.LoadedByWrapper)
    expected, _ = regressions.trained(tmp_path, at(RATE / 2), kind=regressions.Unscheduled)
    assert_equal(regressions.weights(loaded), regressions.weights(expected))


@pytest.mark.parametrize("every", [1, 2], ids=["each batch a step", "accumulated"])
def test_a_watch_that_logs_by_lightning_moves_no_other_log_and_has_the_loss_of_a_batch(every, tmp_path):
    runs = {}
    for kind in (regressions.Logged, regressions.Watched):
        logger = regressions.CSVLogger(tmp_path / kind.__name__)
        options = {"accumulate_grad_batches": every, "logger": logger, "log_every_n_steps": 1}
        module, _ = regressions.trained(tmp_path, CONTESTS["AdamW"].ours, kind=kind, **options)
        with open(logger.experiment.metrics_file_path, newline="") as file:
            runs[kind] = module, [row for row in csv.DictReader(file) if row["train_loss"]]
    (plain, expected), (watched, rows) = runs.values()
    assert_equal(regressions.weights(watched), regressions.weights(plain))
    assert [(row["step"], row["train_loss"]) for row in rows] == [(row["step"], row["train_loss"]) for row in expected]
    assert len({row["step"] for row in rows}) == len(rows)
    steps = [batch for batch in range(len(plain.losses)) if batch % 3 == 2 or (batch % 3) % every == every - 1]
    assert watched.seen.losses == [plain.losses[i] for i in steps][::2]
    logged = {row["watch/step"]: float(row["watch/loss"]) for row in rows if row["watch/loss"]}
    assert list(logged.values()) == pytest.approx(watched.seen.losses)
