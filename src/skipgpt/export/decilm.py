"""The static export for serving engines: layers may lack their attention or their MLP.

vLLM and SGLang have a model class for networks from an architecture search, `DeciLMForCausalLM`.
It is a Llama whose config says for each layer whether attention and MLP are there. So any module
can be removed, where transformers needs pairs (`pairing.py`). transformers has no such class: the
folder carries the code of its config, which engines load with `--trust-remote-code`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from skipgpt.errors import UnsupportedModelError
from skipgpt.export.checks import head_is_tied
from skipgpt.export.rebuild import smaller_state
from skipgpt.routing.decision import Site
from skipgpt.system.atomic import to_json

Layer = tuple[int | None, int | None]
"""The layers that the attention and the MLP of a new layer come from; None where it has none."""

CONFIG_CODE = '''"""The config of a Llama whose layers may lack their attention or their MLP."""

from transformers import LlamaConfig


class Part(dict):
    """A part of a layer: `part.no_op` is `part["no_op"]`."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


class DeciLMConfig(LlamaConfig):
    """`block_configs` has an entry for each layer."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **values):
        super().__init__(**values)
        self.block_configs = [
            Part({name: Part(part) for name, part in block.items()}) for block in block_configs
        ]
'''
_ROUND = 256
"""The class rounds an MLP's width up to a multiple of this, where it is given relative to D."""


def check_servable(model: Any) -> None:
    """Raise UnsupportedModelError at a family, or windows, that the class does not know."""
    config, trouble = model.config, ""
    kinds = {*(getattr(config, "layer_types", None) or ())}
    if config.model_type not in ("llama", "mistral", "qwen2"):
        trouble = f"a model of type {config.model_type!r}"
    elif getattr(config, "sliding_window", None) or kinds - {"full_attention"}:
        trouble = "attention within a window"
    if trouble:
        raise UnsupportedModelError(
            "exporting for vLLM",
            got=trouble,
            expected="llama, mistral or qwen2 with full attention",
            todo="leave --format out: vLLM loads the smaller model of the base's own family, too",
        )


def choose_layers(
    sites: Sequence[Site], removable: Collection[Site], rates: Mapping[Site, float]
) -> list[Layer]:
    """Return the fewest layers that hold every module that is not removable, in order.

    The class starts with an attention. Where an MLP would be first, the attention before it that
    most tokens keep stays. Sites are every module, in the order the data moves.

    Example:
        >>> sites = [Site(layer, module) for layer in range(3) for module in ("attn", "mlp")]
        >>> rates = dict.fromkeys(sites, 1.0)
        >>> choose_layers(sites, [Site(1, "attn"), Site(2, "mlp")], rates)
        [(0, 0), (None, 1), (2, None)]
    """
    kept = [site for site in sites if site not in removable]
    if not kept or kept[0].module == "mlp":
        first = kept[0].layer if kept else sites[-1].layer
        before = [site for site in sites if site.module == "attn" and site.layer <= first]
        kept.insert(0, max(before, key=lambda site: rates[site]))
    layers: list[Layer] = []
    for layer, module in kept:
        if module == "attn":
            layers.append((layer, None))
        elif layers[-1][1] is None:
            layers[-1] = layers[-1][0], layer
        else:
            layers.append((None, layer))
    return layers


def write_for_engines(model: Any, layers: Sequence[Layer], folder: Path) -> int:
    """Write the model with these layers instead of its own; return its parameter count.

    LoRA has to be merged, and the family has to pass `check_servable`.
    """
    from huggingface_hub import save_torch_state_dict

    state = smaller_state(model, layers)
    if head_is_tied(model):
        state.pop("lm_head.weight", None)
    save_torch_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, folder)
    (folder / "config.json").write_text(to_json(_config(model, layers)), encoding="utf-8")
    (folder / "configuration_decilm.py").write_text(CONFIG_CODE, encoding="utf-8")
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    return sum(tensor.numel() for tensor in state.values())


def _config(model: Any, layers: Sequence[Layer]) -> dict[str, Any]:
    """The config as plain JSON types."""
    config = model.config
    values: dict[str, Any] = config.to_dict() | {
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        "model_type": "nemotron-nas",
        "num_hidden_layers": len(layers),
        "tie_word_embeddings": head_is_tied(model),
        "block_configs": [_block(config, *layer) for layer in layers],
    }
    if config.model_type == "qwen2":
        values |= {"attention_bias": False, "qkv_bias": True}
    for name in ("layer_types", "max_window_layers", "sliding_window", "use_sliding_window"):
        values.pop(name, None)
    return values


def _block(config: Any, attn: int | None, mlp: int | None) -> dict[str, Any]:
    width, inner = config.hidden_size, config.intermediate_size
    group = config.num_attention_heads // config.num_key_value_heads
    attention = {"no_op": attn is None, "n_heads_in_group": group}
    # Older versions of the class know only the relative width.
    size = {"intermediate_size": inner} if inner % _ROUND else {"ffn_mult": 1.5 * inner / width}
    return {"attention": attention, "ffn": {"no_op": mlp is None, **size}}
