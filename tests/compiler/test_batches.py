"""Leaves of equal shapes as batches, as accelerators compute them: here on the processor, which otherwise loops."""

import collections

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import gradtx
from gradtx.compiler import batches, list_function, record
from gradtx.compiler.record import PhaseResult
from tests.tiers import by_day

SHAPES = {
    "a": (5, 9), "b": (12, 4), "c": (5, 9), "d": (6, 6), "e": (12, 4), "f": (5, 9), "bias": (7,), "other": (7,)
}  # fmt: skip
# First statistics of these have full rank. Others have eigenvalues that are rounding errors; KL methods divide by them.
SQUARE = {name: shape if len(shape) == 1 else (min(shape),) * 2 for name, shape in SHAPES.items()}
GROUPS = {(5, 9): 3, (12, 4): 2, (6, 6): 1}
ADAMW = gradtx.adamw(lr=0.02)


@gradtx.per_tensor(dims=(2, 2))
def whiten(power: gradtx.Scalar = 0.5):
    """Eigenvalues, a QR decomposition and a solution of a triangular system, of a momentum."""

    def init(param):
        return {"momentum_buffer": torch.zeros_like(param), "gram": torch.eye(param.shape[0], dtype=param.dtype)}

    def update(update, state, param, ctx):
        momentum = 0.9 * state["momentum_buffer"] + update
        gram = 0.5 * state["gram"] + momentum @ momentum.T / ctx.time
        values, vectors = torch.linalg.eigh(gram)
        root = vectors * values.clamp(min=1e-3) ** -power @ vectors.T
        q, r = torch.linalg.qr(gram)
        solved = torch.linalg.solve_triangular(r, q.T @ momentum, upper=True)
        halved = torch.where(ctx.step > 2, 0.5 * solved, solved)
        return root @ momentum + 0.1 * halved + 0.01 * param, {"momentum_buffer": momentum, "gram": gram}

    return init, update


CHAINS = {
    "muon": gradtx.muon(lr=0.02, ns_dtype=None, fallback=ADAMW),
    "muon, polar express": gradtx.muon(
        lr=0.02, ns_dtype=None, ns_coefficients="polar_express", adjust_lr_fn="match_rms_adamw", fallback=ADAMW
    ),
    "normuon": gradtx.normuon(lr=0.02, fallback=ADAMW),
    "adamuon": gradtx.adamuon(lr=0.02, fallback=ADAMW),
    "mano": gradtx.mano(lr=0.02, fallback=ADAMW),
    "namo_d": gradtx.namo_d(lr=0.02, fallback=ADAMW),
    "adago": gradtx.adago(lr=0.02, fallback=ADAMW),
    "aro": gradtx.aro(lr=0.02, fallback=ADAMW),
    "asgo": gradtx.asgo(lr=0.02, eps=1e-4, fallback=ADAMW),
    "mud": gradtx.mud(lr=0.02, passes=2, fallback=ADAMW),
    "sinkgd": gradtx.sinkgd(lr=0.02, momentum=0.5),
    "clipped singular values": gradtx.chain(
        gradtx.masked(gradtx.clip_singular_values(0.5), lambda name, p: p.ndim == 2), gradtx.scale(-0.02)
    ),
    "muon_eq": gradtx.muon_eq(lr=0.02, normalize="both", fallback=ADAMW),
    "namo": gradtx.namo(lr=0.02, correct_bias=True, fallback=ADAMW),
    "muown": gradtx.muown(lr=0.02, weight_decay=0.1, fallback=ADAMW),
    "polargrad": gradtx.polargrad(lr=0.02, fallback=ADAMW),
    "polargrad by eigenvalues": gradtx.polargrad(lr=0.02, method="exact", center_rows=True, fallback=ADAMW),
    "psgd_pro": gradtx.psgd_pro(lr=0.02, max_update_rms=1.0),
    "scion": gradtx.scion(lr=0.02, momentum=0.5),
    "scheduled and clipped": gradtx.chain(
        gradtx.clip_by_global_norm(1.0), gradtx.normuon(lr=gradtx.cosine_schedule(0.1, 10), fallback=ADAMW)
    ),
    "adam_atan2": gradtx.adam_atan2(lr=0.02),
    "lamb": gradtx.lamb(lr=0.02),
    "adamp": gradtx.adamp(lr=0.02),
    "adafactor": gradtx.adafactor(),
    "accumulate": gradtx.accumulate(gradtx.muon(lr=0.02, ns_dtype=None, fallback=ADAMW), every=2),
    "factorizations": gradtx.partition(
        {"matrices": gradtx.chain(whiten(), gradtx.scale(-0.02)), "rest": ADAMW},
        {"matrices": tuple(name for name, shape in SHAPES.items() if len(shape) == 2), "rest": "*"},
    ),
}  # fmt: skip

# Rules that compute bases or factors only when they are due.
BY_COUNT = {
    "soap": gradtx.soap(lr=0.02, precondition_frequency=2, merge_dims=True),
    "soap in skip_nonfinite": gradtx.skip_nonfinite(gradtx.soap(lr=0.02, precondition_frequency=2)),
    "soap in accumulate": gradtx.accumulate(gradtx.soap(lr=0.02, precondition_frequency=2), every=2),
    "kl_soap": gradtx.kl_soap(lr=0.02, precondition_frequency=2),
    "kl_shampoo": gradtx.kl_shampoo(lr=0.02, precondition_frequency=2),
    "shampoo": gradtx.shampoo(lr=0.02, preconditioning_compute_steps=2),
    "galore": gradtx.galore(lr=0.02, rank=2, update_proj_gap=2),
    "fira": gradtx.fira(lr=0.02, rank=2, update_proj_gap=3),
    "psgd_kron": gradtx.psgd_kron(lr=0.02, precondition_frequency=2),
    "dion": gradtx.dion(lr=0.02, rank=2, fallback=ADAMW),
    "cosmos": gradtx.cosmos(lr=0.02, rank=2, fallback=ADAMW),
    "mousse": gradtx.mousse(lr=0.02, eps=1e-2, precondition_frequency=2, fallback=ADAMW),
    "dion2": gradtx.dion2(lr=0.02, fallback=ADAMW),
}
CHAINS |= BY_COUNT


def tensors(seed, dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


@pytest.fixture
def as_batches(monkeypatch, forget_programs):
    """A function that has the programs written from now on compute batches, or loops."""

    def choose(together):
        monkeypatch.setattr(batches, "batches_on", lambda device: together)
        forget_programs()

    return choose


def stepped(tx, count=4, dtype=torch.float64, shapes=SHAPES):
    params = {name: torch.nn.Parameter(value) for name, value in tensors(0, dtype, shapes).items()}
    optimizer = gradtx.as_optimizer(tx, params.items())
    for step in range(1, count + 1):
        for name, gradient in tensors(step, dtype, shapes).items():
            params[name].grad = gradient
        optimizer.step()
    ways = {item.name: item.way for item in optimizer.explain()}
    assert set(ways.values()) == {"lists"}
    return {name: param.detach() for name, param in params.items()}, optimizer.state_dict()["state"]


@by_day(
    "muon", "normuon", "polargrad by eigenvalues", "psgd_pro", "scion", "scheduled and clipped", "accumulate",
    "adam_atan2", "lamb", "adafactor", "factorizations", "soap", "soap in accumulate", "kl_shampoo", "shampoo", "fira",
    "dion",
)  # fmt: skip
@pytest.mark.parametrize("name", CHAINS)
def test_batches_give_what_loops_over_leaves_give(name, as_batches):
    shapes = SQUARE if name.startswith("kl") else SHAPES
    as_batches(False)
    expected = stepped(CHAINS[name], shapes=shapes)
    as_batches(True)
    # Divisions by the smallest eigenvalues of statistics amplify rounding.
    tolerance = 1e-9 if name.startswith("kl") else 1e-12
    torch.testing.assert_close(stepped(CHAINS[name], shapes=shapes), expected, rtol=tolerance, atol=tolerance)


def test_batches_compute_bases_only_when_they_are_due(as_batches):
    as_batches(True)
    params = {name: torch.nn.Parameter(value) for name, value in tensors(0).items()}
    optimizer = gradtx.as_optimizer(gradtx.soap(lr=0.02, precondition_frequency=3), params.items())
    decompositions = []
    for step in range(1, 9):
        for name, gradient in tensors(step).items():
            params[name].grad = gradient
        with profile(activities=[ProfilerActivity.CPU]) as events:
            optimizer.step()
        decompositions.append(sum(event.name == "aten::linalg_qr" for event in events.events()))
    both_sides = 2 * len(GROUPS)
    assert decompositions == [0, 0, 0, both_sides, 0, 0, both_sides, 0]


def test_in_half_precision_state_and_iteration(as_batches):
    tx = gradtx.muon(lr=0.02, fallback=ADAMW, state_dtype=torch.bfloat16)
    as_batches(False)
    expected = stepped(tx, dtype=torch.bfloat16)
    as_batches(True)
    # A product in bfloat16 may be rounded otherwise in a batch, in its last bit.
    torch.testing.assert_close(stepped(tx, dtype=torch.bfloat16), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["muon", "psgd_pro", "factorizations"])
def test_pure_calls_use_batches(name, as_batches):
    def trained():
        tx = CHAINS[name]._replaced({}, checked=False)
        params = tensors(0)
        state = tx.init(params)
        for step in range(1, 5):
            updates, state = tx.update(tensors(step), state, params)
            params = gradtx.apply_updates(params, updates)
        return params, state

    as_batches(False)
    expected = trained()
    as_batches(True)
    torch.testing.assert_close(trained(), expected, rtol=1e-12, atol=1e-12)


def products(tx, together, as_batches):
    """How many products of matrices a step computes: of batches, and of single matrices."""
    as_batches(together)
    params = {name: torch.nn.Parameter(value) for name, value in tensors(0).items()}
    optimizer = gradtx.as_optimizer(tx, params.items())
    for name, gradient in tensors(1).items():
        params[name].grad = gradient
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU]) as events:
        optimizer.step()
    counts = collections.Counter(event.name for event in events.events())
    return counts["aten::bmm"] + counts["aten::baddbmm"], counts["aten::mm"]


def test_one_chain_of_products_for_each_shape(as_batches):
    tx = CHAINS["muon"]  # five iterations of three products
    matrices = sum(GROUPS.values())
    assert products(tx, False, as_batches)[0] == 0
    batched, _ = products(tx, True, as_batches)
    assert batched == 15 * sum(1 for count in GROUPS.values() if count > 1)
    assert batched < 15 * matrices


def test_entries_of_leaves_of_all_shapes_are_joined():
    """Except of large leaves, which are not copied, and of those whose arguments have several shapes."""
    calls = []

    def function(x, y):
        calls.append(x.shape)
        return torch.atan2(x, y), x > y

    xs = [torch.randn(shape) for shape in ((2, 3), (), (0,), (4,), (3, 5, 2, 2), (40,), (2, 3))]
    xs[4] = xs[4].to(memory_format=torch.channels_last)
    ys = [torch.randn_like(x) for x in xs[:-1]] + [torch.randn(3)]
    broadcast = [torch.randn(8, 4), torch.randn(8, 4)], [torch.randn(8, 1), torch.randn(8, 1)]
    found, _ = batches.batched(100, batches.ENTRIES, function, *broadcast)
    torch.testing.assert_close(found, list(map(torch.atan2, *broadcast)))
    calls.clear()
    results = batches.batched(30, batches.ENTRIES, function, xs[:4] + xs[5:], ys[:4] + ys[5:])
    assert calls == [(11,), (40,), (2, 3)]
    results += batches.batched(100, batches.ENTRIES, function, xs[3:5], ys[3:5])
    empty = [torch.ones(0), torch.ones(2, 0)]
    assert [list(map(torch.numel, each)) for each in batches.batched(100, batches.ENTRIES, function, empty, empty)] == [
        [0, 0],
        [0, 0],
    ]
    pairs = [*zip(xs[:4] + xs[5:], ys[:4] + ys[5:], strict=True)]
    for found, expected in zip(results[:2], (torch.atan2, torch.gt), strict=True):
        torch.testing.assert_close(found, [expected(*pair) for pair in pairs])
    for found, expected in zip(results[2:], (torch.atan2, torch.gt), strict=True):
        torch.testing.assert_close(found, list(map(expected, xs[3:5], ys[3:5])))


def test_blocks_of_vectors_of_all_lengths_are_joined():
    calls = []

    def function(scales, x):
        calls.append(len(x))
        blocks = x.view(1, -1, 4) / scales.view(1, -1, 1)
        largest = blocks.abs().amax(-1, keepdim=True)
        return largest.view(-1), blocks, blocks.view(-1)

    lengths = [8, 4, 40, 16]
    vectors, scales = [torch.randn(n) for n in lengths], [torch.randn(n // 4) for n in lengths]
    results = batches.batched(30, batches.BLOCKS, function, scales, vectors)
    assert calls == [28, 40]
    for found, expected in zip(zip(*results, strict=True), map(function, scales, vectors), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_vectors_whose_lengths_are_unrelated_are_not_joined():
    def function(x, y):
        return torch.atan2(x, x), torch.atan2(y, y)

    xs, ys = list(map(torch.randn, (5, 3, 10, 5))), list(map(torch.randn, (1, 1, 2, 4)))
    results = batches.batched(30, batches.BLOCKS, function, xs, ys)
    for found, expected in zip(zip(*results, strict=True), map(function, xs, ys), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def of_blocks(blocks, y):
    """An operation on blocks that has no form on lists."""
    return (blocks.amax(-1, keepdim=True) + y.view(1, -1, 1)).view(-1)


# Functions of two vectors, and the length of the second: the first has 16 entries.
UNITS = {
    "entries": (torch.atan2, 16),
    "blocks": (lambda x, y: of_blocks(x.view(1, -1, 4), y), 4),
    "entries and a number": (lambda x, y: torch.atan2(x, y.sum()), 16),
    "entries and a vector of one": (torch.atan2, 1),
    "a vector of one as a number": (lambda x, y: torch.atan2(x, y.view(())), 1),
    "a single block": (lambda x, y: of_blocks(x.view(1, 1, -1), y), 4),
    "blocks of rows": (lambda x, y: of_blocks(x.view(4, -1, 4), y), 4),
    "the last block": (lambda x, y: of_blocks(x.view(1, -1, 4)[:, -1:], y), 4),
    "other entries": (lambda x, y: torch.atan2(x.flip(0), y), 16),
}


@pytest.mark.parametrize("name", UNITS)
def test_only_what_depends_on_entries_or_blocks_joins_leaves(name, as_batches):
    as_batches(True)
    function, length = UNITS[name]
    recording = record(
        lambda arguments: PhaseResult([function(*arguments)], ("result",), None, lambda: None),
        [],
        [(torch.float32, (16,)), (torch.float32, (length,))],
    )
    source = list_function(recording, torch.device("cpu")).source
    expected = name if name in (batches.ENTRIES, batches.BLOCKS) else ""
    assert f", {expected!r}, batch," in source


def test_a_processor_loops_and_accelerators_do_not():
    assert not batches.batches_on(torch.device("cpu"))
    assert batches.batches_on(torch.device("cuda"))
    assert batches.batches_on(torch.device("mps"))


def program_of_leaf(on_host):
    """A program with a number, a selection, operations with and without a form on lists, and a new slot."""

    def run(arguments):
        number, x, gram = arguments
        y = x / (number + x.square().sum().sqrt())
        product = torch.addmm(y, y @ y.T, y, beta=2.0)
        new = torch.where(number > 2, gram + product @ product.T, gram)
        return PhaseResult([product.sum(), number * y], ("sum", "scaled"), None, lambda: gram.copy_(new))

    recording = record(run, [torch.float64], [(torch.float64, (5, 9)), (torch.float64, (5, 5))])
    return list_function(recording, torch.device("cpu"), () if on_host else (0,))


@pytest.mark.parametrize("on_host", [True, False])
def test_numbers_are_the_same_for_all_leaves_of_a_batch(on_host, as_batches):
    def results(together, number):
        as_batches(together)
        matrices = [value for value in tensors(0).values() if value.ndim == 2]
        grams = [torch.zeros(len(value), len(value), dtype=value.dtype) for value in matrices]
        program = program_of_leaf(on_host)
        assert ("batched" in program.source) == together
        prepared = program.prepare([number if on_host else torch.tensor(number, dtype=torch.float64)])
        return program.run(prepared, [matrices, grams]), grams

    for number in (1.0, 3.0):
        torch.testing.assert_close(results(True, number), results(False, number), rtol=1e-12, atol=1e-12)
