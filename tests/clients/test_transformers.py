"""The Trainer of Hugging Face transformers."""

import pytest
import torch

import gradtx
from tests.clients.contests import CLIP, CONTESTS, DECAY, RATE, TOLERANCE, Lazily, counting_steps, decaying
from tests.optim.problems import assert_close, assert_equal, values
from tests.tiers import by_day

transformers = Lazily("transformers")

STEPS = 6


@pytest.fixture(autouse=True)
def _quiet():
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    transformers.logging.set_verbosity(before)


def language_model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "loss_type": "ForCausalLM"}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **tokens)).double()


def sentences():
    rows = torch.randint(11, (16, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in rows]


def trained(folder, make=None, clip=CLIP, resume=None, **options):
    """Parameters and optimizer after the Trainer's run; without `make`, the Trainer makes the optimizer itself."""
    model = language_model()
    if make is not None:
        optimizer = counting_steps(make(model))
        options["optimizers"] = (optimizer, decaying(optimizer))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=STEPS // 2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=clip,
        weight_decay=0.1,
        learning_rate=RATE,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=sentences(), **options)
    trainer.train(resume_from_checkpoint=resume)
    return values(model.parameters()), trainer.optimizer.optimizer  # inside accelerate's


@by_day("a chain that clips, with AdamP")
@pytest.mark.parametrize("name", CONTESTS)
def test_a_trainer_run_equals_the_reference(name, tmp_path):
    contest = CONTESTS[name]
    ours, optimizer = trained(tmp_path / "ours", contest.ours, 0.0 if contest.clips else CLIP)
    theirs, reference = trained(tmp_path / "theirs", contest.theirs)
    assert_close(ours, theirs, TOLERANCE)
    assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"] == pytest.approx(RATE * DECAY**STEPS)


@by_day("AdamW")
@pytest.mark.parametrize("name", CONTESTS)
def test_a_trainer_resumes_bit_for_bit(name, tmp_path):
    contest = CONTESTS[name]
    clip = 0.0 if contest.clips else CLIP
    whole, first = trained(tmp_path, contest.ours, clip)
    resumed, second = trained(tmp_path, contest.ours, clip, resume=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert_equal(resumed, whole)
    assert (first.steps_taken, second.steps_taken) == (STEPS, STEPS - STEPS // 2)
    assert_equal(second.state_dict(), first.state_dict())


def test_a_trainer_resumes_torchs_run_with_our_adamw(tmp_path):
    contest = CONTESTS["AdamW"]
    whole, _ = trained(tmp_path, contest.theirs)
    resumed, _ = trained(tmp_path, contest.ours, resume=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    assert_close(resumed, whole, TOLERANCE)


def test_a_trainer_makes_our_optimizer_from_class_and_arguments(tmp_path):
    """It then sorts parameters into groups with and without weight decay."""
    options = {"lr": RATE, "betas": (0.8, 0.9)}
    ours, optimizer = trained(tmp_path / "ours", optimizer_cls_and_kwargs=(gradtx.optim.AdamW, options))
    theirs, _ = trained(tmp_path / "theirs", optimizer_cls_and_kwargs=(torch.optim.AdamW, options))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert_close(ours, theirs, TOLERANCE)


@gradtx.alias
def clipped_lion(lr: gradtx.Scalar = 1e-4, *, weight_decay: gradtx.Scalar = 0.0):
    return gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.lion(lr, weight_decay=weight_decay))


def test_a_trainer_makes_the_optimizer_of_a_users_alias_and_that_of_a_whole_model(tmp_path):
    made = gradtx.optimizer_class(clipped_lion), {"lr": RATE}
    _, optimizer = trained(tmp_path / "alias", optimizer_cls_and_kwargs=made, clip=0.0)
    assert type(optimizer).__name__ == "ClippedLion"
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    _, optimizer = trained(tmp_path / "model", optimizer_cls_and_kwargs=(lambda: gradtx.muon_for, {"lr": RATE}))
    assert {group["label"] for group in optimizer.param_groups} == {"muon", "adamw_no_decay"}


def test_a_trainer_that_gives_the_class_in_a_method_reads_the_learning_rate_of_each_trial(tmp_path):
    class LionTrainer(transformers.Trainer):
        @staticmethod
        def get_optimizer_cls_and_kwargs(args, model=None):
            return gradtx.optimizer_class(clipped_lion), {"lr": args.learning_rate}

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), weight_decay=0.1, report_to="none", use_cpu=True
    )
    trainer = LionTrainer(language_model(), arguments)
    for rate in (0.5, 0.25):  # as a search does between trials
        trainer.args.learning_rate, trainer.optimizer = rate, None
        optimizer = trainer.create_optimizer()
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def evaluating_trainer(folder, optimizer, model):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        eval_strategy="steps",
        eval_steps=STEPS // 2,
        save_steps=STEPS // 2,
        per_device_train_batch_size=4,
        lr_scheduler_type="constant",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    data = sentences()
    return transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data, optimizers=(optimizer, None))


def test_a_trainer_evaluates_and_saves_the_weights_to_evaluate_with_and_trains_on_the_others(tmp_path):
    model = language_model()
    optimizer = gradtx.optim.ScheduleFreeAdamW(model.parameters(), lr=RATE)
    trainer = evaluating_trainer(tmp_path, optimizer, model)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    optimizer.train()
    with optimizer.eval_params():
        assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, abs=1e-12)
        averaged = values(model.parameters())
    trained_on = values(model.parameters())
    saved = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / f"checkpoint-{STEPS}", dtype=torch.float64)
    assert_close(values(saved.parameters()), averaged, TOLERANCE)
    assert not torch.equal(trained_on[0], averaged[0])


def test_a_trainer_resumes_in_the_mode_in_which_it_saved(tmp_path):
    whole = language_model()
    first = gradtx.optim.ScheduleFreeAdamW(whole.parameters(), lr=RATE)
    evaluating_trainer(tmp_path, first, whole).train()
    first.train()
    resumed = language_model()
    second = gradtx.optim.ScheduleFreeAdamW(resumed.parameters(), lr=RATE)
    trainer = evaluating_trainer(tmp_path, second, resumed)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    second.train()
    assert_equal(values(resumed.parameters()), values(whole.parameters()))


def test_a_trainer_that_makes_a_scheduler_for_a_warmup_is_an_error_that_names_the_schedule(tmp_path):
    model = language_model()
    schedule = gradtx.warmup_cosine_schedule(STEPS, max_lr=RATE, warmup_steps=2)
    optimizer = gradtx.optim.AdamW(model.parameters(), lr=schedule)
    trainer = evaluating_trainer(tmp_path, optimizer, model)
    with pytest.raises(ValueError, match=r"lr of a group follows warmup_cosine_schedule.*as_lr_scheduler"):
        trainer.train()


def test_a_trainer_follows_a_schedule_that_it_gets_as_a_scheduler(tmp_path):
    schedule = gradtx.warmup_cosine_schedule(STEPS, max_lr=RATE, warmup_steps=2)
    model, other = language_model(), language_model()
    optimizer = gradtx.optim.AdamW(model.parameters(), lr=RATE)
    trainer = evaluating_trainer(tmp_path, optimizer, model)
    trainer.lr_scheduler = gradtx.as_lr_scheduler(optimizer, schedule)
    trainer.train()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(schedule(STEPS))
    assert not torch.equal(values(model.parameters())[0], values(other.parameters())[0])


@pytest.mark.parametrize("every", [1, 4])
def test_a_trainer_that_notes_its_loss_as_the_cookbook_says_has_that_of_a_micro_batch(every, tmp_path):
    model = language_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = gradtx.optim.AdamW(model.named_parameters(), lr=RATE)
    losses = []

    class WatchedTrainer(transformers.Trainer):
        def training_step(self, model, inputs, *arguments):
            with torch.no_grad():  # without the number of all tokens
                losses.append(model(**inputs).loss.item())
            loss = super().training_step(model, inputs, *arguments)
            seen.note(loss * self.current_gradient_accumulation_steps)
            return loss

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=every,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    with gradtx.watch(optimizer, every=1) as seen:
        WatchedTrainer(model, arguments, train_dataset=sentences(), optimizers=(optimizer, None)).train()
    assert len(losses) == 2 * every
    predicted = 7 / 8  # of the tokens by whose number the Trainer divides
    assert seen.losses == pytest.approx([loss * predicted for loss in losses[every - 1 :: every]], rel=1e-6)
