"""The method, written twice without the library: what the library is held against.

`reference_logits` goes token by token in plain loops, for families like Llama: linear maps, norms,
MLP and rotary angles are those of the transformers model; attention, gates and residual adds are
written out as the paper has them.

`hooked_logits` has the authors' forward for any family: the untouched base model runs whole, and
forward hooks multiply what a module hands to the residual stream by the gate.

`closeness` compares two models token by token, in float64.

Nothing of skipgpt is imported here.
Shapes: B batch, T tokens of a row, V vocabulary, D hidden, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

Gate = Callable[[int, str, Tensor], Tensor]
"""The gate [...] of a layer's module (`attn`, `mlp`) for the states [..., D] that routers read."""

# Names of the layer's children whose outputs are gated: attention's, then the MLP's.
GATED = {
    "exaone4": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "olmo3": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gemma3_text": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
    "bloom": ("self_attention", "mlp"),
    "falcon": ("self_attention", "mlp"),
    "gpt_neox": ("attention", "mlp"),
    "gpt2": ("attn", "mlp"),
    "gpt_bigcode": ("attn", "mlp"),
}
USUALLY_GATED = ("self_attn", "mlp")
# Their modules take the residual stream as second argument and add to it themselves.
ADD_THE_RESIDUAL = {"bloom"}


def hooked_logits(model: nn.Module, given: dict[str, Tensor], gate: Gate) -> Tensor:
    """Logits [B, T, V] of a base model whose modules' outputs are gated.

    Args:
        model: a transformers model that nothing was done to.
        given: its arguments.
        gate: asked once for each module of each layer, with the layer's input [B, T, D].
    """
    with gating(model, gate):
        return model(**given).logits


@contextmanager
def gating(model: nn.Module, gate: Gate) -> Any:
    """Inside the block every forward of the base model is gated."""
    family = model.config.model_type
    with ExitStack() as hooks:
        for index, layer in enumerate(decoder_layers(model)):
            gates: dict[str, Tensor] = {}
            hooks.enter_context(_before(layer, _asking(gate, index, gates)))
            for module, name in zip(("attn", "mlp"), GATED.get(family, USUALLY_GATED), strict=True):
                change = _multiplying(gates, module, adds=family in ADD_THE_RESIDUAL)
                hooks.enter_context(_after(getattr(layer, name), change))
        yield


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers: the outermost list of modules."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def keeps(router: nn.Module, state: Tensor) -> Tensor:
    """The authors' deterministic decision for states [..., D]: argmax of (keep, skip), bool."""
    return router(state).argmax(-1) == 0


def _asking(gate: Gate, index: int, gates: dict[str, Tensor]) -> Callable[..., None]:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering = args[0] if args else kwargs["hidden_states"]
        gates.update({module: gate(index, module, entering) for module in ("attn", "mlp")})

    return hook


def _multiplying(gates: dict[str, Tensor], module: str, adds: bool) -> Callable[..., Any]:
    def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        update = output[0] if isinstance(output, tuple) else output
        base = (args[1] if len(args) > 1 else kwargs["residual"]) if adds else 0
        gated = base + (update - base) * gates[module].unsqueeze(-1)
        return (gated, *output[1:]) if isinstance(output, tuple) else gated

    return hook


def _before(module: nn.Module, hook: Callable[..., Any]) -> Any:
    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _after(module: nn.Module, hook: Callable[..., Any]) -> Any:
    return module.register_forward_hook(hook, with_kwargs=True)


def reference_logits(
    model: nn.Module, row: Tensor, gate: Gate, reads: str = "layer_input"
) -> Tensor:
    """Logits [T, V] of one row of token ids [T]."""
    stream = list(model.get_input_embeddings()(row))
    for index, layer in enumerate(model.model.layers):
        entering = stream
        updates = _attention(model, index, stream)
        gates = [gate(index, "attn", token) for token in stream]
        stream = [token + g * u for token, g, u in zip(stream, gates, updates, strict=True)]
        read = entering if reads == "layer_input" else stream
        gates = [gate(index, "mlp", token) for token in read]
        stream = [token + g * _mlp(layer, token) for token, g in zip(stream, gates, strict=True)]
    logits = model.lm_head(model.model.norm(torch.stack(stream)))
    return _soft_cap(logits, getattr(model.config, "final_logit_softcapping", None))


def margin(router: nn.Module, state: Tensor, normalize: bool) -> Tensor:
    """Keep logit minus skip logit of a router for one state [D]."""
    if normalize:
        state = state / (state.square().mean() + 1e-6).sqrt()
    keep, skip = router(state)
    return keep - skip


def _attention(model: nn.Module, index: int, stream: list[Tensor]) -> list[Tensor]:
    """What attention would add to each token; keys and values come from every token."""
    layer, window = model.model.layers[index], _window(model.config, index)
    attn = layer.self_attn
    normed = [layer.input_layernorm(token) for token in stream]
    angles = _angles(model, index, len(stream))
    queries = [_turn(_heads(attn, "q", token), *angles[t]) for t, token in enumerate(normed)]
    keys = [_turn(_heads(attn, "k", token), *angles[t]) for t, token in enumerate(normed)]
    values = [_heads(attn, "v", token) for token in normed]
    updates = []
    for t, query in enumerate(queries):
        seen = range(max(0, t + 1 - window), t + 1)
        mixed = []
        for head in range(len(query)):
            group = head // (len(query) // len(keys[0]))
            scores = torch.stack([query[head] @ keys[s][group] * attn.scaling for s in seen])
            weights = _soft_cap(scores, getattr(attn, "attn_logit_softcapping", None)).softmax(0)
            mixed.append(sum(w * values[s][group] for w, s in zip(weights, seen, strict=True)))
        update = attn.o_proj(torch.cat(mixed))
        updates.append(layer.post_attention_layernorm(update) if _sandwich(layer) else update)
    return updates


def _mlp(layer: nn.Module, token: Tensor) -> Tensor:
    """What the MLP would add to one token [D]."""
    if _sandwich(layer):
        update = layer.mlp(layer.pre_feedforward_layernorm(token))
        return layer.post_feedforward_layernorm(update)
    return layer.mlp(layer.post_attention_layernorm(token))


def _sandwich(layer: nn.Module) -> bool:
    return hasattr(layer, "pre_feedforward_layernorm")


def _heads(attn: nn.Module, kind: str, token: Tensor) -> Tensor:
    """Query, key or value of one token [D] as heads [H, d], normed where the family does."""
    heads = getattr(attn, f"{kind}_proj")(token).view(-1, attn.head_dim)
    norm = getattr(attn, f"{kind}_norm", None)
    return norm(heads) if norm else heads


def _angles(model: nn.Module, index: int, tokens: int) -> list[tuple[Tensor, Tensor]]:
    """Cosines and sines [d] of each position."""
    rotary, types = model.model.rotary_emb, getattr(model.config, "layer_types", None)
    by_type = (types[index],) if model.config.model_type == "gemma3_text" else ()
    positions = torch.arange(tokens)[None]
    cosines, sines = rotary(torch.zeros(1), positions, *by_type)
    return list(zip(cosines[0], sines[0], strict=True))


def _turn(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), dim=-1) * sine


def _window(config: object, index: int) -> int:
    """How many tokens a token sees, itself included."""
    types = getattr(config, "layer_types", None)
    slides = types[index] == "sliding_attention" if types else True
    return (slides and getattr(config, "sliding_window", None)) or 10**9


def _soft_cap(values: Tensor, cap: float | None) -> Tensor:
    return values if cap is None else torch.tanh(values / cap) * cap


@torch.no_grad()
def closeness(
    base: nn.Module, model: nn.Module, rows: Iterable[Tensor], firsts: Iterable[int] | None = None
) -> tuple[float, float, int]:
    """KL(base || model) in nats per token, top-1 agreement, and the number of predicted tokens.

    Rows are token ids [T], of which those from index `first` on are predicted; all but the first
    of a row where `firsts` is None.
    """
    divergences, agreed = [], 0
    each = [(row, 1) for row in rows] if firsts is None else zip(rows, firsts, strict=True)
    for row, first in each:
        dense, routed = (one(row[None]).logits[0].double() for one in (base, model))
        for place in range(first - 1, len(row) - 1):
            p, q = log_softmax(dense[place], -1), log_softmax(routed[place], -1)
            divergences.append(kl_div(q, p, reduction="sum", log_target=True).item())
            agreed += int(dense[place].argmax() == routed[place].argmax())
    return sum(divergences) / len(divergences), agreed / len(divergences), len(divergences)
