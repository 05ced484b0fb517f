from typing import Any

import torch
from torch import Tensor, nn

from cases import BATCHES, ONE_ROW, base, every_layout, routed
from reference import decoder_layers, hooked_logits
from skipgpt.model.state import execution, use_rule
from skipgpt.routing.decision import Forced


@every_layout
@torch.no_grad()
def test_all_skip_equals_the_base_model_with_layers_that_do_nothing(family: str) -> None:
    """So whatever a family does to embeddings and logits besides norm and head is done."""
    model, idle = routed(family), base(family)
    for layer in decoder_layers(idle):
        layer.register_forward_hook(_pass_on, with_kwargs=True)
    for name, inputs in BATCHES.items():
        expected = idle(**inputs.given, use_cache=False).logits[inputs.real]
        for kind in ("gated", "sparse"):
            with use_rule(model, Forced(default=False)), execution(model, kind):
                logits = model(**inputs.given).logits[inputs.real]
            assert torch.equal(logits, expected), (name, kind)


@torch.no_grad()
def test_all_skip_equals_embeddings_through_norm_and_head() -> None:
    model, plain = routed("llama"), base("llama")
    expected = plain.lm_head(plain.model.norm(plain.model.embed_tokens(ONE_ROW.ids)))
    with use_rule(model, Forced(default=False)):
        assert torch.equal(model(**ONE_ROW.given).logits, expected)


@every_layout
@torch.no_grad()
def test_all_skip_equals_the_authors_forward_with_closed_gates(family: str) -> None:
    model = routed(family)
    expected = hooked_logits(
        base(family), ONE_ROW.given, lambda layer, module, state: torch.zeros(state.shape[:-1])
    )
    with use_rule(model, Forced(default=False)):
        assert torch.equal(model(**ONE_ROW.given).logits, expected)


def _pass_on(layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    entered: Tensor = args[0] if args else kwargs["hidden_states"]
    return (entered, *output[1:]) if isinstance(output, tuple) else entered
