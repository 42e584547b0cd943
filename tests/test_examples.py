"""The examples run from start to end, in a tiny setting; what they show is in docs/examples.md."""

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = {
    "muon_chars": (["--steps", "2"], "held-out loss after 2 steps, nats per character: AdamW alone "),
    "sam_digits": (["--steps", "2", "--seeds", "1"], "test accuracy (sharpness): SGD "),
    "population": (["--members", "4", "--rounds", "2", "--length", "1", "--seeds", "1"], "judged loss: random search "),
    "functional_loop": (["--batches", "12"], "the resumed run ends bit for bit where the other one does"),
    "pcgrad_digits": (["--steps", "3", "--seeds", "2"], "; PCGrad gains "),
}


@pytest.fixture(autouse=True)
def _same_threads_after():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", TINY)
def test_the_example_runs_draws_its_plot_and_ends_with_its_figures(name, tmp_path, capsys):
    arguments, closing = TINY[name]
    plot = tmp_path / "new folder" / f"{name}.png"
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]([*arguments, "--plot", str(plot)])
    lines = capsys.readouterr().out.splitlines()
    assert closing in lines[-1]
    assert f"plot: {plot}" in lines
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_examples_md_shows_every_example_with_its_plot():
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"examples/{path.name}" in page
        assert f"]({path.stem}.png)" in page
        assert (EXAMPLES.parent / "docs" / f"{path.stem}.png").exists()
