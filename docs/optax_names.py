"""Write docs/optax-names.md, the counterpart of each public name of optax: `make docs-tables`.

The tests compare the table with the installed optax, evaluate its calls, and run those that it lists as equal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).with_name("optax-names.md")
MODULE = Path(__file__).parent.parent / "gradtx" / "_elsewhere.py"

INTRO = """# Names of optax

<!-- Written by docs/optax_names.py; `make docs-tables` rewrites it. -->

This page lists every public name of optax 0.2.8, by purpose. For general differences, see
[from optax](howto/from-optax.md).

- **=** Both calls return the same results; a test runs both. Defaults that differ are written out; other arguments were
  compared only at their defaults.
- **≈** The counterpart serves the same purpose; the last column describes the difference.
- **–** There is no counterpart; the last column gives an alternative or the reason.

Names inside a call are from the same library. `lr` is a learning rate and `tx` a transformation.
"""


class Row(NamedTuple):
    mark: str
    there: str  # a call if the mark is =, otherwise names separated by spaces
    here: str
    note: str
    names: tuple[str, ...]  # the names of optax that this row covers
    # The advice of the AttributeError for `gradtx.NAME`, by default "use" and `here`.
    hint: str = ""


def same(there: str, here: str, note: str = "", about: str = "") -> Row:
    """Two calls with the same results. The row covers the name `about`, by default the called function."""
    return Row("=", there, here, note, (about or there.split("(")[0],))


def alike(there: str, here: str, note: str = "", hint: str = "") -> Row:
    """Names, and code with the same purpose."""
    return Row("≈", there, here, note, tuple(there.split()), hint)


def instead(there: str, note: str) -> Row:
    """Names without a counterpart, and an alternative as an imperative."""
    return Row("–", there, "", note, tuple(there.split()), note)


def absent(there: str, note: str) -> Row:
    """Names without a counterpart, and the reason."""
    return Row("–", there, "", note, tuple(there.split()))


COSINE = "cosine_decay_schedule(lr, 10)"
PRIVATE = "clip `torch.vmap(torch.func.grad(...))`, then add a rule with `per_tensor(random=True)`"
STATE = "state is a plain dict of named tensors, `state[stage][slot][leaf]`"
CHUNKS = "use `torch.vmap` with `chunk_size`; across calls, use `accumulate`"
SECTIONS: dict[str, list[Row]] = {
    "Optimizers": [
        same(
            "adabelief(lr)",
            "adabelief(lr, rectify=False)",
            "rectified by default here, as in the authors' 0.2; `eps` is also their `eps_root`",
        ),
        same(
            "adadelta(lr)",
            "adadelta(lr)",
            "the rate is optional there; here it is torch's, 1.0",
        ),
        alike(
            "adafactor",
            "adafactor()",
            "the paper's; `adafactor_torch` is torch's. Defaults differ",
        ),
        same(
            "adagrad(lr, eps=0.0)",
            "adagrad(lr, initial_accumulator_value=0.1, eps=0.0)",
            "eps is inside the root there",
        ),
        same(
            "adam(lr)",
            "adam(lr)",
            "no `eps_root`; `mu_dtype` is `state_dtype`, which applies to all slots",
        ),
        same("adamax(lr)", "adamax(lr)"),
        same(
            "adamaxw(lr)",
            "chain(scale_by_adamax(), add_decayed_weights(1e-4), scale_by_learning_rate(lr))",
        ),
        same(
            "adamw(lr)",
            "adamw(lr, weight_decay=1e-4)",
            "the default decay here is torch's, 1e-2",
        ),
        alike(
            "adan",
            "adan(lr)",
            "the mean gradient change has weight 0.92 here, as in the paper, and 0.08 there",
        ),
        alike(
            "amsgrad",
            "adam(lr, amsgrad=True)",
            "torch's: the maximum is taken before the bias correction",
        ),
        same(
            "fromage(lr)",
            "fromage(lr)",
            "no `min_norm`: the ratio is 1 where a norm is 0",
        ),
        same("lamb(lr)", "lamb(lr)"),
        same(
            "lars(lr)",
            "lars(lr, eps=0.0)",
            "the norm of the decay is added to that of the gradient, and a changing rate applies after the momentum",
        ),
        alike(
            "lbfgs",
            "line_search(lbfgs(), conditions='strong_wolfe')",
            "the line search is a separate combinator",
        ),
        same("lion(lr)", "lion(lr, weight_decay=1e-3)", "no decay by default here"),
        alike("nadam", "nadam(lr)", "torch's, whose momentum increases over time"),
        alike(
            "nadamw",
            "nadam(lr, weight_decay=1e-4, decoupled_weight_decay=True)",
            "as `nadam`",
        ),
        alike(
            "noisy_sgd",
            "noisy_sgd(lr)",
            "random numbers differ; here they depend only on `seed`, leaf and step",
        ),
        same("novograd(lr)", "novograd(lr, betas=(0.9, 0.25), eps=1e-6)"),
        same("optimistic_gradient_descent(lr)", "optimistic_gradient_descent(lr)"),
        same(
            "optimistic_adam_v2(lr, nesterov=False)",
            "optimistic_adam(lr)",
            "no `nesterov` here, as in the paper",
        ),
        alike(
            "optimistic_adam", "optimistic_adam(lr)", "there, `alpha` includes the rate"
        ),
        same("polyak_sgd()", "alig(max_lr=1.0, eps=0.0)", "`f_min` is always 0 here"),
        same(
            "radam(lr, eps=0.0)",
            "radam(lr, eps=0.0)",
            "eps is added before the root is corrected here, as in torch",
        ),
        same(
            "rmsprop(lr)",
            "rmsprop(lr, alpha=0.9, eps_in_root=True)",
            "`decay` is `alpha`; no bias correction",
        ),
        same(
            "rmsprop(lr, eps_in_sqrt=False, momentum=0.9)",
            "rmsprop(lr, alpha=0.9, momentum=0.9)",
            "the default here is torch's",
        ),
        alike("rprop", "rprop(lr)", "torch's; the first update there is 0"),
        same("sgd(lr)", "sgd(lr)"),
        same(
            "sgd(lr, momentum=0.9, nesterov=True)",
            "sgd(lr, momentum=0.9, nesterov=True)",
        ),
        same("sign_sgd(lr)", "signsgd(lr)"),
        same("signum(lr)", "signum(lr)"),
        same("sm3(lr)", "sm3(lr, momentum=0.9, eps=1e-8)"),
        alike(
            "yogi",
            "yogi(lr)",
            "the authors': the mean starts at 0, eps is added before the root is corrected",
        ),
        alike(
            "contrib.acprop",
            "acprop(lr)",
            "deviations are measured from the new mean here, as in the paper",
        ),
        same(
            "contrib.ademamix(lr)",
            "ademamix(lr, alpha=5.0)",
            "the default alpha here is the authors', 2",
        ),
        same("contrib.simplified_ademamix(lr)", "simplified_ademamix(lr)"),
        same("contrib.adopt(lr)", "adopt(lr)"),
        same("contrib.cocob()", "cocob()", "no learning rate here"),
        same(
            "contrib.dog()",
            "dog()",
            "`reps_rel` is their heuristic's factor, `init_eta` their initial rate",
        ),
        same("contrib.dowg()", "dowg()"),
        alike(
            "contrib.mechanize",
            "mechanize(adamw(1.0))",
            "the initial scale and clipping are the authors'; `num_betas` is the length of `betas`",
        ),
        same(
            "contrib.dadapt_adamw()",
            "dadapt_adam(use_bias_correction=True)",
            "`estim_lr0` is `d0`; `decoupled_weight_decay=True`",
        ),
        instead("contrib.dpsgd", PRIVATE),
        alike(
            "contrib.galore",
            "galore(lr)",
            "`scale` is 0.25 here; theirs projects the other `side` of a square matrix",
        ),
        same("contrib.madgrad(lr)", "madgrad(lr)"),
        same(
            "contrib.momo()",
            "momo()",
            "`lower_bound` is `lb`; with decay, theirs divides only the weights by it",
        ),
        same("contrib.momo_adam()", "momo_adam()", "as `contrib.momo`"),
        alike(
            "contrib.muon",
            "muon(lr, fallback=adamw(lr))",
            "torch's; leaves other than matrices need a `fallback`",
        ),
        same(
            "contrib.prodigy()",
            "prodigy(use_bias_correction=True)",
            "`estim_lr0` is `d0`, `estim_lr_coef` `d_coef`",
        ),
        alike(
            "contrib.sam",
            "sam(sgd(lr), rho=0.05)",
            "any base; the second gradient comes from the closure or `grad_fn`",
        ),
        same(
            "contrib.schedule_free_adamw(lr)",
            "schedule_free_adamw(lr)",
            "the first rate of a warm-up is lr / warmup_steps here, as in the authors' code, and 0 there",
        ),
        same(
            "contrib.schedule_free_sgd(lr)",
            "schedule_free_sgd(lr)",
            "the first rate of a warm-up is lr / warmup_steps here, as in the authors' code, and 0 there",
        ),
        alike(
            "contrib.sophia",
            "sophia(lr)",
            "`hessian_diag` is passed to `update`, or estimated by the adapter",
        ),
    ],
    "Transformations": [
        alike(
            "adaptive_grad_clip",
            "clip_adaptive(0.01)",
            "a unit is an index of dimension 0, torch's order; there, of the last dimension",
        ),
        same(
            "add_decayed_weights(0.1)",
            "add_decayed_weights(0.1)",
            "`mask` is `masked` around it",
        ),
        alike("add_noise", "add_noise(0.01, 0.55, seed=0)", "as `noisy_sgd`"),
        alike(
            "apply_every",
            "accumulate(tx, every=2)",
            "there, updates are summed; here, they are averaged, and the inner transformation waits as well",
        ),
        same("centralize()", "centralize()"),
        same("clip(0.5)", "clip_by_value(0.5)"),
        same("clip_by_block_rms(0.5)", "clip_by_block_rms(0.5)"),
        same(
            "clip_by_global_norm(1.0)",
            "clip_by_global_norm(1.0, eps=0.0)",
            "the default eps here is torch's, 1e-6",
        ),
        same("ema(0.9)", "ema(0.9, debias=True)"),
        same("identity()", "chain()"),
        same(
            "chain(sgd(lr), keep_params_nonnegative())",
            "chain(sgd(lr), map_after_step(lambda param: param.clamp(min=0.0)))",
            "also for any other constraint",
            about="keep_params_nonnegative",
        ),
        same(
            "normalize_by_update_norm()",
            "normalize_by_global_norm()",
            "`scale_factor` is `scale`",
        ),
        same(
            "contrib.normalize()",
            "normalize_by_global_norm(eps=0.0)",
            "a tree of zeros is unchanged here",
        ),
        same("scale(-0.5)", "scale(-0.5)"),
        same("scale_by_adadelta()", "scale_by_adadelta()"),
        same(
            "scale_by_adam()",
            "scale_by_adam()",
            "`nesterov` uses one bias correction here, two there",
        ),
        same("scale_by_adamax()", "scale_by_adamax()"),
        alike("scale_by_adan", "scale_by_adan()", "as `adan`"),
        alike("scale_by_amsgrad", "scale_by_adam(amsgrad=True)", "as `amsgrad`"),
        alike(
            "scale_by_backtracking_linesearch",
            "line_search(tx)",
            "wraps the optimizer; `value_fn` is passed to `update`",
        ),
        alike(
            "scale_by_zoom_linesearch",
            "line_search(tx, conditions='strong_wolfe')",
            "as above",
        ),
        alike(
            "scale_by_lbfgs",
            "scale_by_lbfgs()",
            "the first step is divided by a different norm",
        ),
        same("scale_by_belief()", "scale_by_belief(rectify=False)"),
        alike(
            "scale_by_distance_over_gradients",
            "scale_by_ldog()",
            "eps is added at every step there",
        ),
        same(
            "scale_by_factored_rms(min_dim_size_to_factor=2)",
            "scale_by_factored_rms()",
            "all matrices are factored here",
        ),
        same(
            "scale_by_learning_rate(lr)",
            "scale_by_learning_rate(lr)",
            "`flip_sign=False` is `scale`",
        ),
        same("scale_by_lion()", "scale_by_lion()"),
        same("scale_by_novograd()", "chain(scale_by_layer_rms(0.25), trace(0.9))"),
        same("scale_by_optimistic_gradient()", "scale_by_optimistic_gradient()"),
        instead(
            "scale_by_param_block_norm",
            "use `scale_by_param_block_rms`, with the mean square in place of the norm",
        ),
        same("scale_by_param_block_rms()", "scale_by_param_block_rms()"),
        same(
            "scale_by_polyak()",
            "chain(scale_by_polyak(1.0, eps=0.0), scale(-1.0))",
            "returns the step here, sign included",
        ),
        same("scale_by_radam(eps=0.0)", "scale_by_radam(eps=0.0)", "as `radam`"),
        same("scale_by_rms()", "scale_by_rms(0.9, eps_in_root=True)"),
        alike(
            "scale_by_rprop",
            "scale_by_rprop(lr)",
            "as `rprop`; returns the step here, sign included",
        ),
        same(
            "scale_by_rss(eps=0.0)",
            "scale_by_rss(eps=0.0, initial_accumulator_value=0.1)",
            "as `adagrad`",
        ),
        same(
            f"scale_by_schedule({COSINE})",
            "scale(cosine_schedule(lr, 10))",
            "every hyperparameter may be a schedule",
        ),
        same("scale_by_sign()", "scale_by_sign()"),
        same("scale_by_sm3()", "chain(scale_by_sm3(eps=1e-8), ema(0.9))"),
        same("scale_by_stddev()", "scale_by_rms(0.9, eps_in_root=True, centered=True)"),
        same(
            "scale_by_trust_ratio()",
            "scale_by_trust_ratio()",
            "`trust_coefficient` is an option of `scale_by_lars`",
        ),
        alike("scale_by_yogi", "scale_by_yogi()", "as `yogi`"),
        same("set_to_zero()", "scale(0.0)", "to keep parameters unchanged: `freeze`"),
        alike(
            "stateless stateless_with_tree_map",
            "per_tensor",
            "a rule with only `update`",
        ),
        same("trace(0.9)", "trace(0.9)"),
        same("zero_nans()", "zero_nans()", "`skip_nonfinite` skips the whole update"),
        instead("contrib.differentially_private_aggregate", PRIVATE),
        alike("contrib.scale_by_acprop", "scale_by_acprop()", "as `contrib.acprop`"),
        alike(
            "contrib.scale_by_cocob",
            "scale_by_cocob()",
            "returns the step here, sign included",
        ),
        alike(
            "contrib.scale_by_galore",
            "low_rank(scale_by_adam(), rank=4)",
            "as `contrib.galore`",
        ),
        same("contrib.scale_by_ademamix(alpha=5.0)", "scale_by_ademamix(alpha=5.0)"),
        same(
            "contrib.scale_by_simplified_ademamix()", "scale_by_simplified_ademamix()"
        ),
        same("contrib.scale_by_adopt()", "scale_by_adopt()"),
        same("contrib.scale_by_madgrad(lr)", "scale_by_madgrad(lr)"),
        alike(
            "contrib.scale_by_muon",
            "chain(trace_ema(0.95, nesterov=True), orthogonalize(), scale_by_shape())",
        ),
    ],
    "Chains, combinators, measurements": [
        same("chain(clip(0.5), adam(lr))", "chain(clip_by_value(0.5), adam(lr))"),
        same(
            'named_chain(("first", clip(0.5)), ("second", adam(lr)))',
            "chain(clip_by_value(0.5), adam(lr))",
            "state is always named",
        ),
        same(
            'partition({"a": adam(lr), "z": sgd(lr)}, {"w": "a", "b": "z"})',
            'partition({"a": adam(lr), "z": sgd(lr)}, {"a": "w*", "z": "*"})',
            "labels are patterns of names, or a function",
        ),
        same(
            'multi_transform({"a": adam(lr), "z": sgd(lr)}, {"w": "a", "b": "z"})',
            'partition({"a": adam(lr), "z": sgd(lr)}, {"a": "w*", "z": "*"})',
        ),
        same('masked(sgd(lr), {"w": True, "b": False})', 'masked(sgd(lr), "w*")'),
        same(
            'chain(sgd(lr), freeze({"w": True, "b": False}))',
            'chain(sgd(lr), freeze("w*"))',
            "frozen leaves have no state here and are excluded from norms",
            about="freeze",
        ),
        same(
            'selective_transform(sgd(lr), freeze_mask={"w": True, "b": False})',
            'chain(sgd(lr), freeze("w*"))',
        ),
        same(
            "apply_if_finite(adam(lr), 5)", "skip_nonfinite(adam(lr))", "never gives up"
        ),
        same(
            "conditionally_mask(sgd(lr), lambda step: step >= 2)",
            "chain(sgd(lr), hold_until(3))",
            "for step counts only",
        ),
        instead("conditionally_transform", "use `torch.where` inside a rule"),
        same(
            f"inject_hyperparams(adam)(learning_rate={COSINE})",
            "adam(cosine_schedule(lr, 10))",
            "not needed: pass numbers, tensors and schedules directly",
        ),
        instead(
            "inject_stateful_hyperparams schedules.StatefulSchedule",
            "write the values to `param_groups`; a schedule depends only on the count",
        ),
        same(
            "MultiSteps(adam(lr), 3).gradient_transformation()",
            "accumulate(adam(lr), every=3)",
            "averages; the number of steps is fixed",
        ),
        alike(
            "lookahead",
            "chain(sgd(lr), lookahead(k=5, alpha=0.5))",
            "the last link; slow weights are state, which `eval_params` returns",
        ),
        alike("skip_not_finite", "skip_nonfinite(tx)"),
        instead("skip_large_updates", "use `clip_by_global_norm`, which shortens them"),
        absent(
            "flatten",
            "not needed: rules run leaf by leaf, and compiled engines bundle leaves",
        ),
        absent(
            "with_extra_args_support", "not needed: every transformation accepts extras"
        ),
        alike(
            "monitor snapshot",
            'record("norm")',
            "stores the norm at this place in the state",
        ),
        alike(
            "measure_with_ema",
            'chain(ema(0.9, debias=True), record("norm"))',
            "in a separate chain",
        ),
        alike(
            "contrib.reduce_on_plateau",
            "torch.optim.lr_scheduler.ReduceLROnPlateau",
            "on the adapter",
        ),
        alike(
            "contrib.schedule_free",
            "schedule_free(scale_by_adam(), lr, 0.9)",
            "the base has no learning rate",
        ),
        alike(
            "contrib.schedule_free_eval_params",
            "tx.eval_params",
            "works for every chain",
        ),
        alike(
            "contrib.hutchinson_estimator_diag_hessian",
            "hutchinson_hessian_diag",
            "takes the gradient function",
        ),
        absent(
            "contrib.split_real_and_imaginary",
            "not needed: real and imaginary parts are always separate entries",
        ),
    ],
    "Schedules": [
        same("constant_schedule(0.1)", "constant_schedule(0.1)", "or a plain number"),
        same(
            "cosine_decay_schedule(0.1, 10, alpha=0.2)",
            "warmup_cosine_schedule(10, 0.1, min_lr=0.02)",
            "`cosine_schedule` is torch's, which rises again",
        ),
        alike(
            "cosine_onecycle_schedule linear_onecycle_schedule",
            "one_cycle_schedule(0.1, 10)",
            "torch's: the peak is at step `pct_start * total_steps - 1`",
        ),
        same(
            "exponential_decay(0.1, 3, 0.5)",
            "exponential_schedule(0.1, 0.5 ** (1 / 3))",
            "the factor of one step",
        ),
        same(
            "exponential_decay(0.1, 3, 0.5, staircase=True)",
            "step_schedule(0.1, 3, 0.5)",
        ),
        same(
            "join_schedules([constant_schedule(0.1), linear_schedule(0.1, 0.0, 5)], [4])",
            "join_schedules([constant_schedule(0.1), polynomial_schedule(0.1, 5)], [4])",
        ),
        same(
            "linear_schedule(0.1, 0.02, 8)",
            "linear_schedule(0.1, 1.0, 0.2, 8)",
            "factors of `lr`, as in torch",
        ),
        same(
            "piecewise_constant_schedule(0.1, {3: 0.5, 6: 0.5})",
            "multistep_schedule(0.1, [3, 6], 0.5)",
            "one factor for all",
        ),
        instead(
            "piecewise_interpolate_schedule",
            "use `join_schedules` of `linear_schedule`s, or `Schedule` of a function",
        ),
        same(
            "polynomial_schedule(0.1, 0.0, 2.0, 8)",
            "polynomial_schedule(0.1, 8, 2.0)",
            "ends at 0, as in torch",
        ),
        same(
            "sgdr_schedule([dict(init_value=0.0, peak_value=0.1, warmup_steps=2, decay_steps=8)] * 2)",
            "cosine_warmup_restarts_schedule(8, 1.0, 0.1, 0.0, 2, gamma=1.0)",
            "restarts indefinitely",
        ),
        same(
            "warmup_constant_schedule(0.02, 0.1, 4)",
            "linear_schedule(0.1, 0.2, 1.0, 4)",
        ),
        same(
            "warmup_cosine_decay_schedule(0.01, 0.1, 3, 10, 0.02)",
            "warmup_cosine_schedule(10, 0.1, 0.02, 0.01, 3)",
        ),
        same(
            "warmup_exponential_decay_schedule(0.02, 0.1, 4, 1, 0.9)",
            "join_schedules([linear_schedule(0.1, 0.2, 1.0, 4), exponential_schedule(0.1, 0.9)], [4])",
        ),
        alike(
            "Schedule WrappedSchedule",
            "Schedule(lambda step: 0.1 * 0.5**step)",
            "an explicit type; plain functions are rejected",
        ),
    ],
    "Using them": [
        alike(
            "apply_updates",
            "apply_updates(params, updates)",
            "keeps the dtypes of the parameters; None leaves a parameter unchanged",
        ),
        alike(
            "GradientTransformation GradientTransformationExtraArgs",
            "GradientTransformation",
            "`init, update = tx` unpacks",
        ),
        alike(
            "incremental_update",
            "average",
            "the last link; averages the weights, which `eval_params` returns",
        ),
        instead("periodic_update", "use `torch.where(step % n == 0, new, old)`"),
        alike(
            "global_norm",
            "torch.nn.utils.get_total_norm",
            "inside a chain: `record`, or a rule with a `yield`",
        ),
        alike(
            "bias_correction",
            "per_tensor",
            "inside a rule: `ctx.bias_correction(beta)`",
            hint="call ctx.bias_correction(beta) inside a rule",
        ),
        instead(
            "update_moment update_moment_per_elem_norm update_infinity_moment",
            "write this line inside a rule",
        ),
        absent("safe_increment safe_int32_increment", "not needed: counts are int64"),
        absent(
            "safe_norm safe_root_mean_squares transforms.unitwise_clip transforms.unitwise_norm",
            "internal to the rules",
        ),
        absent("init_empty_state", "a rule without state returns only `update`"),
        alike(
            "per_example_global_norm_clip per_example_layer_norm_clip",
            "torch.vmap",
            "`torch.vmap` over `clip_by_global_norm(1.0).update`, or over `clip_by_norm`",
            hint="use torch.vmap over clip_by_global_norm(1.0).update, or over the update of clip_by_norm",
        ),
        instead("scale_gradient", "use `x.detach() + scale * (x - x.detach())`"),
        absent(
            "value_and_grad_from_state",
            "used by line searches, which receive `value_fn`",
        ),
        alike(
            "tree_map_params",
            "GradientTransformation",
            "state is a dict by slot and leaf name; use a comprehension",
            hint="use a comprehension over the state, a dict: state[stage][slot][leaf]",
        ),
        absent(
            "matrix_inverse_pth_root power_iteration", "internal to `scalable_shampoo`"
        ),
        absent("nnls", "it solves least squares and does not train networks"),
        alike("multi_normal", "torch.distributions.MultivariateNormal"),
        alike(
            "microbatch microbatching.micro_grad microbatching.micro_vmap",
            "torch.vmap",
            "with `chunk_size`; across calls: `accumulate`",
            hint=CHUNKS,
        ),
        instead(
            "microbatching.AccumulationType microbatching.Accumulator microbatching.reshape_batch_axis",
            CHUNKS,
        ),
        alike(
            "second_order.hvp",
            "torch.func.jvp",
            "of `torch.func.grad(loss_fn)`",
            hint="use torch.func.jvp of torch.func.grad(loss_fn)",
        ),
        alike("second_order.hessian_diag", "hutchinson_hessian_diag", "an estimate"),
        instead(
            "second_order.fisher_diag",
            "use the mean of `torch.vmap(torch.func.grad(...))`, squared",
        ),
        alike(
            "projections.projection_l2_ball",
            "chain(sgd(lr), map_after_step(lambda param: param / param.norm().clamp(min=1.0)))",
            "`map_after_step` of any function of one leaf",
        ),
        instead(
            "projections.projection_box projections.projection_halfspace projections.projection_hypercube "
            "projections.projection_hyperplane projections.projection_l1_ball projections.projection_l1_sphere "
            "projections.projection_l2_sphere projections.projection_linf_ball "
            "projections.projection_non_negative projections.projection_simplex projections.projection_vector",
            "pass your own function to `map_after_step`",
        ),
        instead(
            "assignment.hungarian_algorithm assignment.base_hungarian_algorithm",
            "use `scipy.optimize.linear_sum_assignment`",
        ),
        absent(
            "perturbations.Gumbel perturbations.Normal perturbations.make_perturbed_fun",
            "this library does not provide perturbations",
        ),
    ],
    "States and types": [
        absent(
            "AddNoiseState ApplyEvery ApplyIfFiniteState ConditionallyMaskState ConditionallyTransformState "
            "EmaState FactoredState InjectHyperparamsState InjectStatefulHyperparamsState LookaheadParams "
            "LookaheadState MaskedState MonitorState MultiStepsState MultiTransformState PartitionState "
            "ScaleByAdaDeltaState ScaleByAdamState ScaleByAdanState ScaleByAmsgradState "
            "ScaleByBacktrackingLinesearchState ScaleByBeliefState ScaleByLBFGSState ScaleByLionState "
            "ScaleByNovogradState ScaleByRStdDevState ScaleByRmsState ScaleByRpropState ScaleByRssState "
            "ScaleBySM3State ScaleByScheduleState ScaleByZoomLinesearchState SnapshotState TraceState "
            "ZeroNansState ZoomLinesearchInfo",
            STATE,
        ),
        absent(
            "contrib.COCOBState contrib.DAdaptAdamWState contrib.DifferentiallyPrivateAggregateState "
            "contrib.DoGState contrib.DoWGState contrib.GaLoreState contrib.HutchinsonState contrib.MadgradState "
            "contrib.MechanicState contrib.MomoAdamState contrib.MomoState contrib.MuonState contrib.ProdigyState "
            "contrib.ReduceLROnPlateauState contrib.SAMState contrib.ScaleByAdemamixState "
            "contrib.ScaleBySimplifiedAdEMAMixState contrib.ScheduleFreeState contrib.SophiaState "
            "contrib.SplitRealAndImaginaryState",
            STATE,
        ),
        absent(
            "AdaptiveGradClipState AddDecayedWeightsState ClipByGlobalNormState ClipState EmptyState "
            "NonNegativeParamsState ScaleByTrustRatioState ScaleState",
            "a link without state has no entry in the state, a plain dict",
        ),
        alike("ScalarOrSchedule", "Scalar", "a number, a 0-d tensor or a `Schedule`"),
        alike(
            "MaskOrFn MaskedNode",
            "masked",
            "patterns of names, or a predicate `(name, tensor) -> bool`; trees contain no nodes",
            hint="select leaves with patterns of names or a predicate (name, tensor) -> bool, as in masked",
        ),
        absent(
            "OptState Params Updates tree_utils.NamedTupleKey",
            "trees have the structure that you pass",
        ),
        absent(
            "TransformInitFn TransformUpdateExtraArgsFn TransformUpdateFn ShouldSkipUpdateFunction "
            "transforms.ConditionFn",
            "this library has no named types for functions",
        ),
        absent(
            "contrib.GaLoreDimensionNumbers contrib.MuonDimensionNumbers",
            "not needed: a weight is (out, in), as in torch",
        ),
    ],
    "Losses": [
        alike(
            "softmax_cross_entropy softmax_cross_entropy_with_integer_labels safe_softmax_cross_entropy",
            "torch.nn.functional.cross_entropy",
            'losses there are not averaged, as with `reduction="none"`',
        ),
        alike(
            "smooth_labels",
            "torch.nn.functional.cross_entropy",
            "the option `label_smoothing`",
            hint="use torch.nn.functional.cross_entropy with label_smoothing",
        ),
        alike(
            "sigmoid_binary_cross_entropy",
            "torch.nn.functional.binary_cross_entropy_with_logits",
        ),
        alike(
            "squared_error l2_loss",
            "torch.nn.functional.mse_loss",
            "`l2_loss` is half of it",
        ),
        alike("huber_loss", "torch.nn.functional.huber_loss"),
        alike(
            "cosine_similarity cosine_distance", "torch.nn.functional.cosine_similarity"
        ),
        alike("ctc_loss ctc_loss_with_forward_probs", "torch.nn.functional.ctc_loss"),
        alike(
            "kl_divergence convex_kl_divergence generalized_kl_divergence losses.kl_divergence_with_log_targets",
            "torch.nn.functional.kl_div",
            "with `log_target`",
        ),
        alike("losses.triplet_margin_loss", "torch.nn.functional.triplet_margin_loss"),
        alike("losses.multiclass_hinge_loss", "torch.nn.functional.multi_margin_loss"),
        absent(
            "hinge_loss log_cosh ntxent sigmoid_focal_loss losses.binary_dice_loss losses.dice_loss "
            "losses.make_fenchel_young_loss losses.multiclass_generalized_dice_loss "
            "losses.multiclass_perceptron_loss losses.multiclass_sparsemax_loss losses.perceptron_loss "
            "losses.poly_loss_cross_entropy losses.ranking_softmax_loss losses.sparsemax_loss",
            "this library does not provide losses",
        ),
    ],
    "Trees": [
        alike(
            "tree.get tree.get_all_with_path tree.set",
            "GradientTransformation",
            "state is a dict: `state[stage][slot]`",
            hint="index the state, a dict: state[stage][slot][leaf]",
        ),
        absent(
            "tree.add tree.add_scale tree.allclose tree.batch_shape tree.cast tree.cast_like tree.conj tree.div "
            "tree.dtype tree.full_like tree.max tree.min tree.mul tree.norm tree.ones_like tree.random_like "
            "tree.real tree.size tree.split_key_like tree.sub tree.sum tree.unwrap_random_key_data tree.vdot "
            "tree.where tree.zeros_like tree.clip tree.scale",
            "rules receive one tensor; for trees, which are mostly dicts, use a comprehension",
        ),
    ],
}


MODULES = {
    "contrib": "use the names themselves, such as gradtx.muon",
    "losses": "use torch.nn.functional",
    "projections": "use map_after_step(function)",
    "tree": "index the state, a dict: state[stage][slot][leaf]",
    "tree_utils": "index the state, a dict: state[stage][slot][leaf]",
}
PURE = "use tx.update and apply_updates; states are values"
CLASSES = "AdaDelta AdaGrad AdaMax Adadelta Adagrad Adam AdamW Adamax RAdam RMSProp RMSprop SGD"
RESPELLED = {
    "AdaDelta": "Adadelta",
    "AdaGrad": "Adagrad",
    "AdaMax": "Adamax",
    "RMSProp": "RMSprop",
}
TORCHOPT = {
    **{f"Func{name}": PURE for name in ("Optimizer", *CLASSES.split())},
    **{
        f"Meta{name}": "use torch.func.grad of a function of params"
        for name in ("Optimizer", *CLASSES.split())
    },
    **{
        name: f"use gradtx.optim.{RESPELLED.get(name, name)}"
        for name in CLASSES.split()
    },
    "Optimizer": "use as_optimizer(tx, params)",
    "extract_state_dict": "keep the state itself: states are values",
    "recover_state_dict": "pass the state that you kept: states are values",
    "clip_grad_norm": "use clip_by_global_norm(1.0)",
    "combine": "use chain",
    "module_detach_": "detach the tensors of a dict of parameters",
    "register_hook": "use tensor.register_hook",
    "accelerated_op_available": "pass compile=True to an optimizer, or use torch.compile on a pure step",
    "diff": "use torch.func",
    "linear_solve": "use torch.linalg.solve",
    "stop_gradient": "detach the tensors of a state",
    "module_clone": "use copy.deepcopy",
    "nan_to_num": "use zero_nans()",
}
"""Advice for modules of optax, and for names of TorchOpt that optax does not have."""


def rows() -> Iterator[Row]:
    """Yield all rows of the table."""
    for section in SECTIONS.values():
        yield from section


def _cells(row: Row) -> str:
    there = ", ".join(
        f"`optax.{name}`" for name in ([row.there] if row.mark == "=" else row.names)
    )
    here = (
        f"{row.mark} `{row.here}`" if row.here else row.mark
    )  # not a separate column, which would be wide on the site
    return f"| {there} | {here} | {row.note} |"


def page() -> str:
    """Return the whole page."""
    lines = [INTRO.rstrip()]
    for title, section in SECTIONS.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| there | here | |",
            "|---|---|---|",
            *map(_cells, section),
        ]
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    """Return a string literal as the formatter writes it: in single quotes if the text has only double quotes."""
    return repr(text) if '"' in text else json.dumps(text, ensure_ascii=False)


def module() -> str:
    """Return the module with the advice in the error for a name such as `gradtx.MultiSteps`, or the reason for none."""
    use: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for section in SECTIONS.values():
        for row in section:
            hint = row.hint or (f"use {row.here}" if row.here else "")
            for name in row.names:
                name = name.rpartition(".")[2]
                if name not in use and name not in reasons:
                    (use if hint else reasons)[name] = (hint or row.note).replace(
                        "`", ""
                    )
    use.update({**MODULES, **TORCHOPT})
    lines = [
        '"""Names of optax and TorchOpt, and what to use here. Written by docs/optax_names.py."""'
    ]
    for variable, texts in (("HERE", use), ("ABSENT", reasons)):
        lines += ["", f"{variable} = {{"]
        for name in sorted(texts):
            line = f"    {_quoted(name)}: {_quoted(texts[name])},"
            lines.append(line if len(line) <= 120 else f"{line}  # noqa: E501")
        lines.append("}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    for path, text in ((PAGE, page()), (MODULE, module())):
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote {path}\n")
