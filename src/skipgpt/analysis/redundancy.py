"""Which modules change the residual stream least."""

from __future__ import annotations

from skipgpt.analysis.table import Table
from skipgpt.analysis.trace import DenseTrace


def redundancy(dense: DenseTrace) -> Table:
    """Tabulate the cosine of the stream before and after each module, and block influence.

    The paper's claim: attention changes the stream less than the MLP does, so more of it can be
    skipped. Block influence is 1 minus the mean cosine of a layer's input and output (ShortGPT).

    Example:
        print(redundancy(trace_dense(model, tokenizer, rows)).to_markdown())
    """
    attn, mlp = dense.cosine.mean(-1).unbind(1)
    influence = 1 - dense.layer_cosine.mean(-1)
    rows = tuple(
        (n + 1, attn[n].item(), mlp[n].item(), influence[n].item()) for n in range(len(attn))
    )
    facts = {"attn": attn.mean().item(), "mlp": mlp.mean().item()}
    more, less = (
        ("attention", "the MLP") if facts["attn"] > facts["mlp"] else ("the MLP", "attention")
    )
    nearer = (attn > mlp).sum().item()
    least, most = influence.argmin().item() + 1, influence.argmax().item() + 1
    return Table(
        "redundancy",
        "Which modules change the residual stream least, and is attention more redundant than the "
        "MLP (paper)?",
        ("layer", "attn cosine", "mlp cosine", "block influence"),
        rows,
        (
            f"Mean cosine {facts['attn']:.3f} of attention, {facts['mlp']:.3f} of the MLP: "
            f"{more} turns the stream less than {less}, attention less than its MLP in {nearer} "
            f"of {len(attn)} layers.",
            f"Layer {least} does least (block influence {influence.min():.3f}), layer {most} "
            f"most ({influence.max():.3f}).",
        ),
        facts,
    )
