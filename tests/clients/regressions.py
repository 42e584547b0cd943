"""A small regression in Lightning's Trainer, and modules that watch its optimizer."""

import logging
import warnings

import pytest
import torch

import gradtx
from tests.clients.contests import CLIP, RATE, counting_steps, decaying
from tests.optim.problems import values

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its dependencies, when they are imported
    import lightning.pytorch as lightning
    from lightning.pytorch.loggers import CSVLogger as CSVLogger

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

EPOCHS, BATCHES = 3, 3
SCHEDULE = gradtx.warmup_cosine_schedule(EPOCHS * BATCHES, max_lr=RATE, warmup_steps=2)


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
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    options.setdefault("logger", False)
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


class Evaluated(Regression):
    def on_train_epoch_end(self):
        optimizer = self.optimizers()
        with optimizer.eval_params():
            self.evaluated, self.slow = weights(self), [optimizer.state[p]["slow"] for p in self.network.parameters()]


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


class SavedInEvaluation(Regression):
    """Stays in the weights to evaluate with while Lightning saves, as a user of its checkpoint callback sees it."""

    def on_train_epoch_start(self):
        self.optimizers().train()

    def on_train_epoch_end(self):
        self.optimizers().eval()


class Scheduled(Regression):
    def configure_optimizers(self):
        optimizer = self.make(self.network)
        scheduler = gradtx.as_lr_scheduler(optimizer, SCHEDULE)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Unscheduled(Regression):
    def configure_optimizers(self):
        return self.make(self.network)


class LoadedByWrapper(Unscheduled):
    def on_train_start(self):
        optimizer = self.optimizers()
        state_dict = optimizer.state_dict()
        state_dict["param_groups"][0]["lr"] = RATE / 2
        optimizer.load_state_dict(state_dict)


class Logged(Unscheduled):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.log("train_loss", loss)
        return loss


class Watched(Logged):
    """As the cookbook says."""

    def on_fit_start(self):
        self.seen = gradtx.watch(self.optimizers(), every=2, log=self.log_dict)

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.seen.note(loss)
        return loss

    def on_fit_end(self):
        self.seen.close()
        assert self.seen.diagnose(self) is not None
