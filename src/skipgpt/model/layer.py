"""The routed layer. Read this file first: the whole idea, in the order the data moves.

    hidden ──▶ routers ──▶ decision                 which tokens run attention, which the MLP
       │                     │
       ├──▶ attention, kept tokens ──▶ + ──▶ hidden     skipped tokens add their stand-in, if any
       └──▶ MLP, kept tokens ──────▶ + ──▶ hidden

A routed layer is the family's own decoder layer, re-classed in place: same parameters, same
names, same call. Shapes: B batch, T query tokens, S cached tokens, D hidden, N packed tokens.

Where the MLP reads what attention reads (parallel families), it still adds to the same stream.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from skipgpt.model.execution import decode
from skipgpt.model.execution.plan import Plan, plan
from skipgpt.model.execution.run import run
from skipgpt.model.routed import RoutedLayer
from skipgpt.routing.decision import Decision, Module, ModuleDecision, Site
from skipgpt.routing.router import input_scale, margins, mean_of_rows


class SkippingLayer(RoutedLayer):
    """Mixin in front of a family's decoder layer; `routed_class` combines the two."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the family's layer, except that each token runs only the modules it keeps.

        Args:
            hidden_states: [B, T, D], the residual stream.
            *args: as the family's own layer takes them.
            **kwargs: as the family's own layer takes them: mask, positions, cache.

        Returns:
            The residual stream after this layer, [B, T, D], as the family's own layer returns it.
        """
        if self.routing.execution == "dense":
            return super().forward(hidden_states, *args, **kwargs)
        if self.routing.keeps_all:
            if self.routing.recorders:
                both = ModuleDecision.all_kept(hidden_states.shape[:2], hidden_states.device)
                self._record(Decision(both, both))
            return super().forward(hidden_states, *args, **kwargs)
        arguments = kwargs if not args else dict(zip(self.positional, args, strict=False)) | kwargs
        for name in ("attention_mask", self.family.cache):
            arguments.setdefault(name, None)
        parallel = self.family.is_parallel(self)
        apart = parallel and self.family.sums_first
        entering = hidden_states

        attn, mlp = decode.decide(self, entering) or self._decide(entering)
        stream = torch.zeros_like(entering) if apart else entering
        chosen = self._plan("attn", attn, entering.dtype, arguments)
        stream = run(self, "attn", chosen, stream, entering, attn, arguments)
        read = entering if parallel else stream
        mlp = mlp or self._decide_mlp(read)
        chosen = self._plan("mlp", mlp, read.dtype, arguments)
        stream = run(self, "mlp", chosen, stream, read, mlp, arguments)
        stream = stream + entering if apart else stream

        self._record(Decision(attn, mlp))
        return (stream, None) if self.family.returns_tuple else stream

    def _plan(
        self,
        module: Module,
        decision: ModuleDecision,
        dtype: torch.dtype,
        arguments: dict[str, Any],
    ) -> Plan:
        """Choose the plan by which a module runs its kept tokens."""
        # Not in `plan`, which breaks a compiled graph.
        if self.routing.execution == "gated":
            return Plan.GATED
        chosen: Plan = plan(self, module, decision, dtype, arguments)
        return chosen

    def _decide(self, entering: Tensor) -> tuple[ModuleDecision, ModuleDecision | None]:
        """Both decisions from the stream that enters the layer, or attention's alone."""
        config = self.routing.config
        scale = input_scale(entering, config)
        if config.decides == "layer":
            both = self._rule(self.attn_router.margin(entering, scale), "attn")
            return both, both
        if config.input == "module_input":
            return self._rule(self.attn_router.margin(entering, scale), "attn"), None
        attn, mlp = margins(entering, self.attn_router, self.mlp_router, scale=scale)
        return self._rule(attn, "attn"), self._rule(mlp, "mlp")

    def _decide_mlp(self, read: Tensor) -> ModuleDecision:
        """The MLP's decision from the stream that enters the MLP."""
        margin = self.mlp_router.margin(read, input_scale(read, self.routing.config))
        return self._rule(margin, "mlp")

    def _rule(self, margin: Tensor, module: Module) -> ModuleDecision:
        """The decision of the rule in force, for each token or for each sequence."""
        site, rule = Site(self.index, module), self.routing.rule
        if self.routing.config.decides == "sequence":
            return rule(mean_of_rows(margin, self.routing.token_mask), site).expanded(margin.shape)
        return rule(margin, site)

    def _record(self, decision: Decision) -> None:
        """Pass a decision to the open recorders, if any."""
        for recorder in self.routing.recorders:
            recorder.record(self.index, decision, self.routing.token_mask)


@functools.cache
def routed_class(layer_class: type[nn.Module]) -> type[RoutedLayer]:
    """`RoutedLlamaDecoderLayer` from `LlamaDecoderLayer`; the same class every time."""
    name = f"Routed{layer_class.__name__}"
    positional = tuple(inspect.signature(layer_class.forward).parameters)[2:]
    made = {"__module__": __name__, "positional": positional}
    return type(name, (SkippingLayer, layer_class), made)
