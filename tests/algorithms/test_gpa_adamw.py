import pytest

import gradtx
from tests import references as ref

FALLING = gradtx.linear_schedule(0.3, start_factor=1.0, end_factor=0.1, total_iters=25)
CLOSE = 1e-12


def gpa_adamw(s, t, g, p, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, mu_x=0.9967, mu_y=0.7):
    if t == 1:
        s.z = s.x = p
    m, v = ref.adam_moments(s, t, g, betas)
    s.z = s.z - lr * (m / (v.sqrt() + eps) + weight_decay * p)
    s.x = mu_x * s.x + (1 - mu_x) * s.z
    return mu_y * s.x + (1 - mu_y) * s.z


OPTIONS = [
    (gradtx.gpa_adamw, gpa_adamw, {"lr": 0.1}),
    (gradtx.gpa_adamw, gpa_adamw, {"lr": 0.1, "betas": (0.6, 0.9), "eps": 0.05, "mu_x": 0.8, "mu_y": 0.4}),
    (gradtx.gpa_adamw, gpa_adamw, {"lr": FALLING, "weight_decay": FALLING, "mu_x": 0.9}),
]


@pytest.mark.parametrize(("make", "rule", "options"), OPTIONS, ids=ref.named)
def test_trained_and_evaluated_weights_follow_the_loop(make, rule, options):
    step, reference = ref.Transformed(make(**options)), ref.WeightsLoop(rule, **options)
    ref.weights_follow(step, reference, tolerance=CLOSE)
    weights = ref.run(ref.WeightsLoop(rule, **options), weights=True)[-1]
    found = step.tx.eval_params(step.state, weights)
    expected = {name: slots.x for name, slots in reference.slots.items()}
    ref.compare_trees(found, expected, CLOSE)
