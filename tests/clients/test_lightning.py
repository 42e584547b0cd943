"""Lightning's Trainer, whose steps go through a closure."""

import logging
import warnings

import pytest
import torch

import gradtx
from tests.clients.contests import CLIP, CONTESTS, DECAY, RATE, TOLERANCE, counting_steps, decaying
from tests.optim.chains import gradient_ahead, scale_by_value
from tests.optim.problems import assert_close, assert_equal, values

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its dependencies, when they are imported
    import lightning.pytorch as lightning

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

EPOCHS, BATCHES = 3, 3


class Regression(lightning.LightningModule):
    def __init__(self, make, clip=None, automatic=True):
        super().__init__()
        torch.manual_seed(0)
        self.make, self.clip, self.losses = make, clip, []
        self.automatic_optimization = automatic
        sizes = torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
        self.network = torch.nn.Sequential(*sizes).double()

    def loss(self, batch):
        loss = (self.network(batch) - 1).square().mean()
        self.losses.append(loss.item())
        return loss

    def training_step(self, batch, index):
        if self.automatic_optimization:
            return self.loss(batch)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.clip_gradients(optimizer, self.clip, "norm")
        optimizer.step()
        self.lr_schedulers().step()
        return None

    def configure_optimizers(self):
        optimizer = counting_steps(self.make(self.network))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decaying(optimizer), "interval": "step"}}


def batches():
    rows = torch.randn(4 * BATCHES, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(rows, batch_size=4)


def trained(
    folder, make, clip=CLIP, epochs=EPOCHS, save=False, resume=None, automatic=True, kind=Regression, **options
):
    """The module after its run, and its optimizer."""
    module = kind(make, clip, automatic)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=clip if automatic else None,
        default_root_dir=folder,
        enable_checkpointing=False,
        **quiet,
        **options,
    )
    trainer.fit(module, batches(), ckpt_path=resume, weights_only=True)
    if save:
        trainer.save_checkpoint(folder / "run.ckpt")
    return module, trainer.optimizers[0]


def weights(module):
    return values(module.network.parameters())


@pytest.mark.parametrize("automatic", [True, False], ids=["automatic", "manual"])
@pytest.mark.parametrize("name", CONTESTS)
def test_a_lightning_run_equals_the_reference(name, automatic, tmp_path):
    contest = CONTESTS[name]
    ours, optimizer = trained(tmp_path, contest.ours, None if contest.clips else CLIP, automatic=automatic)
    theirs, reference = trained(tmp_path, contest.theirs, automatic=automatic)
    assert_close(weights(ours), weights(theirs), TOLERANCE)
    for group in (optimizer.param_groups[0], reference.param_groups[0]):
        assert group["lr"] == pytest.approx(RATE * DECAY ** (EPOCHS * BATCHES))
    assert ours.losses[0] > ours.losses[-1]


@pytest.mark.parametrize("name", CONTESTS)
def test_gradients_accumulated_by_lightning_equal_the_reference(name, tmp_path):
    contest = CONTESTS[name]
    options = {"accumulate_grad_batches": 2}
    ours, optimizer = trained(tmp_path, contest.ours, None if contest.clips else CLIP, **options)
    theirs, _ = trained(tmp_path, contest.theirs, **options)
    assert optimizer.steps_taken == 2 * EPOCHS  # two an epoch: the last batch of an epoch is a step too
    assert_close(weights(ours), weights(theirs), TOLERANCE)


@pytest.mark.parametrize("name", CONTESTS)
def test_lightning_resumes_bit_for_bit(name, tmp_path):
    make = CONTESTS[name].ours
    whole, first = trained(tmp_path, make)
    trained(tmp_path, make, epochs=1, save=True)
    resumed, second = trained(tmp_path, make, resume=tmp_path / "run.ckpt")
    assert (first.steps_taken, second.steps_taken) == (EPOCHS * BATCHES, (EPOCHS - 1) * BATCHES)
    assert_equal(weights(resumed), weights(whole))
    assert_equal(second.state_dict(), first.state_dict())


def test_lightning_resumes_torchs_run_with_our_adamw(tmp_path):
    contest = CONTESTS["AdamW"]
    whole, _ = trained(tmp_path, contest.theirs)
    trained(tmp_path, contest.theirs, epochs=1, save=True)
    resumed, _ = trained(tmp_path, contest.ours, resume=tmp_path / "run.ckpt")
    assert_close(weights(resumed), weights(whole), TOLERANCE)


@pytest.mark.parametrize("link", [scale_by_value(), gradient_ahead()], ids=["value", "grad_fn"])
def test_links_that_need_the_closure_get_lightnings(link, tmp_path):
    tx = gradtx.chain(link, gradtx.adamp(lr=RATE))
    module, _ = trained(tmp_path, lambda model: gradtx.as_optimizer(tx, model.named_parameters()), clip=None)
    plain = Regression(None)
    optimizer = gradtx.as_optimizer(tx, plain.network.named_parameters())
    scheduler = decaying(optimizer)
    for batch in [*batches()] * EPOCHS:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = plain.loss(batch)
            loss.backward()
            return loss

        optimizer.step(closure)
        scheduler.step()
    assert module.losses == plain.losses
    assert_equal(weights(module), weights(plain))


class Evaluated(Regression):
    def on_train_epoch_end(self):
        optimizer = self.optimizers()
        with optimizer.eval_params():
            self.evaluated, self.slow = weights(self), [optimizer.state[p]["slow"] for p in self.network.parameters()]


def test_lightnings_wrapper_passes_weights_to_evaluate_with_on(tmp_path):
    def make(model):
        tx = gradtx.chain(gradtx.adamp(lr=RATE), gradtx.lookahead(k=2))
        return gradtx.as_optimizer(tx, model.named_parameters())

    module, _ = trained(tmp_path, make, kind=Evaluated)
    plain, _ = trained(tmp_path, make)
    assert_equal(weights(module), weights(plain))
    assert_equal(module.evaluated, module.slow)
    assert not torch.equal(module.evaluated[0], weights(module)[0])


class EvaluatedByMode(Regression):
    """As the authors of schedule-free optimizers advise: the optimizer's mode follows the module's."""

    def on_train_epoch_end(self):
        optimizer = self.optimizers()
        optimizer.eval()
        optimizer.eval()
        self.evaluated = weights(self)
        with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) before step\(\)"):
            optimizer.optimizer.step()
        optimizer.train()


def schedule_free(network):
    return gradtx.optim.ScheduleFreeAdamW(network.parameters(), lr=RATE)


def test_lightnings_wrapper_switches_the_optimizer_to_the_weights_to_evaluate_with_and_back(tmp_path):
    module, optimizer = trained(tmp_path, schedule_free, kind=EvaluatedByMode)
    plain, _ = trained(tmp_path, schedule_free)
    assert_equal(weights(module), weights(plain))
    with optimizer.eval_params():
        assert_equal(module.evaluated, weights(module))
    assert not torch.equal(module.evaluated[0], weights(module)[0])


class SavedInEvaluation(Regression):
    """Stays in the weights to evaluate with while Lightning saves, as a user of its checkpoint callback sees it."""

    def on_train_epoch_start(self):
        self.optimizers().train()

    def on_train_epoch_end(self):
        self.optimizers().eval()


def test_lightning_resumes_what_it_saved_with_the_weights_to_evaluate_with(tmp_path):
    whole, _ = trained(tmp_path, schedule_free, kind=SavedInEvaluation)
    trained(tmp_path, schedule_free, epochs=1, save=True, kind=SavedInEvaluation)
    resumed, _ = trained(tmp_path, schedule_free, resume=tmp_path / "run.ckpt", kind=SavedInEvaluation)
    assert_equal(weights(resumed), weights(whole))


SCHEDULE = gradtx.warmup_cosine_schedule(EPOCHS * BATCHES, max_lr=RATE, warmup_steps=2)


def test_a_scheduler_of_lightning_on_a_scheduled_rate_is_warned_of_by_name(tmp_path):
    def make(network):
        return gradtx.optim.AdamW(network.parameters(), lr=SCHEDULE)

    with pytest.warns(UserWarning, match=r"lr of a group follows warmup_cosine_schedule.*as_lr_scheduler"):
        trained(tmp_path, make)


class Scheduled(Regression):
    def configure_optimizers(self):
        optimizer = self.make(self.network)
        scheduler = gradtx.as_lr_scheduler(optimizer, SCHEDULE)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Unscheduled(Regression):
    def configure_optimizers(self):
        return self.make(self.network)


def test_a_schedule_as_lightnings_scheduler_equals_the_schedule_in_the_chain(tmp_path):
    def constant(network):
        return gradtx.optim.AdamW(network.parameters(), lr=RATE)

    def scheduled(network):
        return gradtx.optim.AdamW(network.parameters(), lr=SCHEDULE)

    ours, optimizer = trained(tmp_path, constant, kind=Scheduled)
    inside, _ = trained(tmp_path, scheduled, kind=Unscheduled)
    assert_close(weights(ours), weights(inside), TOLERANCE)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(SCHEDULE(EPOCHS * BATCHES))


class LoadedByWrapper(Unscheduled):
    def on_train_start(self):
        optimizer = self.optimizers()
        state_dict = optimizer.state_dict()
        state_dict["param_groups"][0]["lr"] = RATE / 2
        optimizer.load_state_dict(state_dict)


def test_a_state_dict_loaded_by_lightnings_wrapper_reaches_the_optimizer(tmp_path):
    def at(rate):
        return lambda network: gradtx.optim.AdamW(network.parameters(), lr=rate)

    loaded, _ = trained(tmp_path, at(RATE), kind=LoadedByWrapper)
    expected, _ = trained(tmp_path, at(RATE / 2), kind=Unscheduled)
    assert_equal(weights(loaded), weights(expected))
