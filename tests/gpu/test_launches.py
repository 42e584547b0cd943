"""How many kernels a warm step launches by default: one list operation is one, and a batch of equal shapes is one."""

import pytest
import torch

import gradtx
from gradtx.plans import bundle

OF_LISTS = {
    "adamw": (gradtx.adamw, 25),
    "clip and adamw": (lambda: gradtx.chain(gradtx.clip_by_global_norm(1.0), gradtx.adamw()), 60),
    "adam_atan2": (gradtx.adam_atan2, 40),
    "adamw in int8": (lambda: gradtx.adamw(state_dtype="int8"), 80),
    "lamb": (lambda: gradtx.lamb(lr=0.01), 80),
    "adamp": (gradtx.adamp, 100),
    "adafactor": (gradtx.adafactor, 100),
}
OF_MATRICES = {
    "muon": (lambda: gradtx.muon(lr=0.01), 90),
    "normuon": (lambda: gradtx.normuon(lr=0.01), 150),
    "soap": (lambda: gradtx.soap(lr=0.01), 250),
}


def warm_step(gpu, make, shapes):
    """Return what a warm step of parameters with these shapes launches."""
    params = [torch.nn.Parameter(gpu.to(torch.ones(shape))) for shape in shapes]
    optimizer = gradtx.as_optimizer(make(), params)
    for t in range(3):
        for param in params:
            param.grad = gpu.to(torch.linspace(-1.0 - t, 1.0, param.numel()).reshape(param.shape))
        with gpu.counting() as seen:
            optimizer.step()
    return seen


@pytest.mark.parametrize("name", OF_LISTS)
def test_a_warm_step_of_many_small_leaves_takes_few_launches(name, counted):
    make, most = OF_LISTS[name]
    seen = warm_step(counted, make, [(8, 8)] * 161)
    assert seen.launches <= most, seen.kernels
    assert not seen.slow


OF_ALL_SHAPES = {"adamw": 25, "clip and adamw": 60, "adam_atan2": 40, "lamb": 150}


@pytest.mark.parametrize("name", OF_ALL_SHAPES)
def test_leaves_of_many_shapes_take_few_launches_too(name, counted):
    shapes = [(8, i) for i in range(1, 20)] * 6 + [(8 * i,) for i in range(1, 9)] * 6  # as many as those of a ResNet-50
    make, _ = OF_LISTS[name]
    assert warm_step(counted, make, shapes).launches <= OF_ALL_SHAPES[name]


@pytest.mark.parametrize(("code", "most"), [("int8", 60), ("bfloat16+8", 80), ("float8", 180)])
def test_coded_leaves_of_many_shapes_take_few_launches_too(code, most, counted):
    shapes = [(64 * rows, 64 * columns) for rows in (1, 2, 3) for columns in (1, 2, 3)]
    assert warm_step(counted, lambda: gradtx.adamw(state_dtype=code), shapes * 3).launches <= most


@pytest.mark.parametrize("name", OF_MATRICES)
def test_matrices_of_one_shape_are_batched(name, counted):
    make, most = OF_MATRICES[name]
    seen = warm_step(counted, make, [(8, 8), (8, 16), (16, 8)] * 24)
    assert seen.launches <= most, seen.kernels


@pytest.mark.parametrize(
    ("make", "bytes_per_entry"),
    [
        (gradtx.adamw, 4),
        (gradtx.lamb, 13),
        (gradtx.adafactor, 25),
        (gradtx.adamp, 29),
        (lambda: gradtx.muon(lr=0.01), 19),
        (gradtx.soap, 49),
        (gradtx.psgd_kron, 51),
        (lambda: gradtx.adamw(state_dtype="int8"), 32),
        (lambda: gradtx.adamw(state_dtype="bfloat16+8"), 41),
    ],
    ids=["adamw", "lamb", "adafactor", "adamp", "muon", "soap", "psgd_kron", "int8", "bfloat16+8"],
)
def test_temporaries_are_bounded(make, bytes_per_entry, counted, monkeypatch):
    """By the lists of one call, however many leaves there are."""
    most = 2**15
    monkeypatch.setattr(bundle, "CHUNK_OF_ACCELERATOR", most)
    monkeypatch.setattr(bundle, "CHUNK_OF_CODES", most)
    seen = warm_step(counted, make, [(128, 128)] * 9)
    assert 0 < seen.peak <= bytes_per_entry * most


def test_large_leaves_are_not_copied_into_batches(counted):
    """A copy would take longer than its launches."""
    shapes = [(1024, 512)] * 2
    seen = warm_step(counted, gradtx.adam_atan2, shapes)
    assert "stack" not in seen.kernels
    assert seen.kernels["atan2"] == len(shapes)


def test_new_parameters_take_few_launches(counted):
    params = {f"w{i}": counted.to(torch.ones(8, 8)) for i in range(161)}
    with counted.counting() as seen:
        gradtx.apply_updates(params, params)
    assert seen.launches <= 4
