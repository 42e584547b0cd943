"""What the pages say of a watch and other packages, with these packages: each takes what a watch logs."""

import pytest
import torch

import gradtx

STEPS = 5

pytestmark = pytest.mark.filterwarnings("ignore")  # of other packages


def train(around=iter, **options):
    """Train and watch every second step; return what was seen."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = gradtx.optim.AdamW(model.named_parameters(), lr=0.01)
    x = torch.randn(8, 3)
    with gradtx.watch(optimizer, every=2, **options) as seen:
        for _ in (steps := around(range(STEPS))):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            seen.note(loss)
            if hasattr(steps, "set_postfix"):
                steps.set_postfix(seen.postfix())
    return seen


def test_wandb_logs_each_measurement(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=str(tmp_path), project="gradtx") as run:
        seen = train(log=wandb.log)
        summary = dict(run.summary)
    assert seen.steps == [1, 3, 5]
    assert summary["watch/step"] == 5
    assert summary["watch/loss"] == pytest.approx(seen.losses[-1])
    assert summary["watch/leaf/weight/norm_before"] == seen.samples[-1].of_leaves["weight"]["norm_before"]


def test_mlflow_logs_each_measurement(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    with mlflow.start_run() as run:
        seen = train(log=mlflow.log_metrics)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "watch/loss")
    assert sorted(metric.value for metric in history) == pytest.approx(sorted(seen.losses))


def test_tensorboard_shows_each_measurement_at_its_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        seen = train(log=writer)
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("watch/loss")
    assert [event.step for event in events] == seen.steps == [1, 3, 5]
    assert [event.value for event in events] == pytest.approx(seen.losses)


def test_a_tqdm_bar_shows_the_last_measurement(capsys):
    tqdm = pytest.importorskip("tqdm")
    seen = train(around=tqdm.tqdm)
    words = seen.postfix()
    assert words.keys() == {"loss", "grad", "update/weight"}
    assert f"loss={words['loss']}" in capsys.readouterr().err
