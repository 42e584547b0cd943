"""Write the table of docs/howto/less-memory.md: the bytes of weights, gradients and state in each mode."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import gradtx
from gradtx import GradientTransformation, chain, compensate_rounding, with_state_dtype

PAGE = Path(__file__).parent / "howto" / "less-memory.md"
BEGIN, END = "<!-- table: docs/less_memory.py -->\n", "<!-- end of the table -->\n"
WIDTH = 512
ALGORITHMS = {
    "AdamW": gradtx.adamw(lr=1e-3),
    "Lion": gradtx.lion(lr=1e-4),
    "Muon": gradtx.muon(lr=1e-2, fallback=gradtx.adamw(lr=1e-3)),
    "SOAP": gradtx.soap(lr=1e-3),
}
CODES = ["bfloat16+8", "bfloat16:stochastic", "int8", "int4"]


def block() -> nn.Module:
    """Build a transformer block, which has no buffers."""
    return nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH)


def measured(tx: GradientTransformation, dtype: torch.dtype) -> float:
    """Return the bytes of an optimizer's state per entry of the weights."""
    model = block().to(dtype)
    optimizer = gradtx.as_optimizer(tx, model.named_parameters())
    optimizer.state_dict()  # creates the slots, which otherwise come with gradients
    tensors = {
        tensor.data_ptr(): tensor
        for state in optimizer.state.values()
        for tensor in state.values()
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return size / sum(param.numel() for param in model.parameters())


def row(
    title: str, dtype: torch.dtype, code: str | torch.dtype | None, compensated: bool
) -> str:
    cells = [title, str(dtype.itemsize), str(dtype.itemsize)]
    for tx in ALGORITHMS.values():
        stored = tx if code is None else with_state_dtype(tx, code)
        size = measured(
            chain(stored, compensate_rounding(bits=8)) if compensated else stored, dtype
        )
        cells.append(f"{size:.1f}")
    return f"| {' | '.join(cells)} |"


def table() -> str:
    lines = [
        f"| mode | weights | gradients | {' | '.join(ALGORITHMS)} |",
        "|---|" + "---:|" * (2 + len(ALGORITHMS)),
    ]
    lines.append(row("float32", torch.float32, None, False))
    for code in CODES:
        lines.append(row(f'state "{code}"', torch.float32, code, False))
    lines.append(
        row("bfloat16 weights, state float32", torch.bfloat16, torch.float32, False)
    )
    for code in ("int8", "int4"):
        lines.append(
            row(
                f'bfloat16 weights, state "{code}", compensated',
                torch.bfloat16,
                code,
                True,
            )
        )
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page with a new table."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
