"""The static export: modules that hardly any token keeps are removed for good."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from skipgpt.checkpoint.loading import load
from skipgpt.config import Budget, DataConfig, LoraStage, recipe
from skipgpt.data import Blocks, load_blocks
from skipgpt.errors import ConfigError, DivergedError, TrainingError, UnsupportedModelError
from skipgpt.evaluation.calibrate import subsample_rows
from skipgpt.evaluation.perplexity import total_loss
from skipgpt.export.checks import OF_ANOTHER_EXPORT, exportable, exporting
from skipgpt.export.choosing import Form, choose
from skipgpt.export.decilm import Layer, check_servable, write_for_engines
from skipgpt.export.pairing import Pair
from skipgpt.export.rebuild import check_movable, smaller_model
from skipgpt.export.static_result import StaticExport
from skipgpt.export.transformers4 import save_tokenizer, write_older_config
from skipgpt.model.families.parameter_names import is_routing
from skipgpt.model.loading.generation_settings import write_ends
from skipgpt.model.loading.limits import check_rows
from skipgpt.model.lora import check_targets, merge_lora
from skipgpt.model.state import count_routing, execution, use_rule
from skipgpt.model.surgery import drop_stand_ins
from skipgpt.removal.units import constant_routes
from skipgpt.routing.decision import Forced, Site
from skipgpt.system.atomic import staged, to_json
from skipgpt.training.run_stage import run_stage

RECORD = "static_export.json"


@exporting
def export_static(
    folder: str | Path,
    out: str | Path,
    *,
    data: Sequence[str],
    keep_rate: float = 0.05,
    sparsity: float | None = None,
    budget: Budget | None = None,
    cutting: DataConfig | None = None,
    heal: LoraStage | None = None,
    form: Form = "transformers",
    seed: int = 0,
    base: str | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    dtype: str = "auto",
) -> StaticExport:
    """Write a smaller model of the base's own family, without modules that are hardly ever kept.

    The result is loaded by transformers alone. LoRA is merged; no router is left, so every token
    runs every remaining module. It can be the base model of a further `skipgpt train`.

    An attention and an MLP go together, and remaining modules are paired into layers again, see
    `pairing.py`; in parallel families whole layers are removed. Keep rates are measured on
    calibration text, losses on other held-out text. In the end what is written for `transformers`
    is loaded with it, and its logits are compared with those of the routed model forced to skip the
    same modules, healed or not; where they differ nothing is written. What is written for `vllm` is
    not compared: transformers does not load it.

    Args:
        folder: a checkpoint, or a hub id of one.
        out: output folder, created if absent.
        data: sources of text, as for training; only held-out documents are used.
        keep_rate: an attention and an MLP go if tokens run a smaller share of their parameters.
        sparsity: that of the keep-rate measurement; the trained target where None.
        budget: what `sparsity` counts; as the checkpoint was trained where None.
        cutting: how to cut and split the text.
        heal: how LoRA is trained on the training split after removal, then merged; no healing
            where None.
        form: `transformers` writes whole layers, for any program. `vllm` writes layers that may
            lack a module, so that each site that fewer tokens keep is removed; transformers does
            not load it.
        seed: seed of healing.
        base: location of the base model, if it has moved.
        overwrite: replace a model that is already there.
        device: where to measure.
        dtype: of the written weights.

    Returns:
        What was removed, and the losses before and after.

    Raises:
        TrainingError: healing failed.
        CheckpointError: a model is there already, the base is quantised, or loading or writing
            fails.
        ConfigError: nothing can be removed, or the keep rate is no share.
        UnsupportedModelError: layers of this model depend on their index.
        DataError: the text cannot be read, or there is too little.

    Example:
        result = skipgpt.export_static("out/8b-25", "out/8b-small", data=["corpus.jsonl"])
        AutoModelForCausalLM.from_pretrained("out/8b-small")
    """
    out = Path(out)
    exportable(folder, out, overwrite)
    doing = f"exporting {folder} with modules removed"
    if not 0 < keep_rate <= 1:
        raise ConfigError(doing, got=f"keep_rate {keep_rate}", expected="above 0, at most 1")
    if form not in get_args(Form):
        raise ConfigError(doing, got=f"format {form!r}", expected="transformers or vllm")
    model, tokenizer = load(
        folder, sparsity=sparsity, budget=budget, base=base, merge=True, device=device, dtype=dtype
    )
    write_ends(model, tokenizer)
    check_movable(model)
    if form == "vllm":
        check_servable(model)
    if heal:
        check_targets(model, heal)
    cutting = cutting or DataConfig()
    healing = heal.steps * recipe("default").batch_size * cutting.block_size if heal else 0
    blocks = load_blocks(data, tokenizer, cutting, train_tokens=healing)
    check_rows("reading the text", model, tokenizer, blocks.train, blocks.held_out)
    with count_routing(model) as counts:
        total_loss(model, subsample_rows(blocks.calibration, cutting.calibration_tokens))
    rates = counts.keep_ratios()
    layers, removed, kept_anyway = choose(model, rates, keep_rate, form, doing)

    held_out = subsample_rows(blocks.held_out, cutting.evaluation_tokens)
    with execution(model, "dense"):
        losses = {"dense": _loss(model, held_out)}
    losses["routed"] = _loss(model, held_out)
    # An ordinary model has no stand-ins: healing has to make up for them.
    drop_stand_ins(model)
    with use_rule(model, Forced.without(list(removed))):
        losses["static"] = _loss(model, held_out)
    with staged(out, "config.json", OF_ANOTHER_EXPORT) as stage:
        parameters = _written(model, layers, removed, held_out[:2], form, stage)
        if heal:
            model = _healed(model, removed, blocks, heal, cutting, seed)
            parameters = _written(model, layers, removed, held_out[:2], form, stage)
            with use_rule(model, Forced.without(list(removed))):
                losses["healed"] = _loss(model, held_out)
        save_tokenizer(tokenizer, stage)
        result = StaticExport(
            out=str(out),
            keep_rate=keep_rate,
            keep_rates={str(site): rate for site, rate in rates.items()},
            removed=removed,
            kept_anyway=kept_anyway,
            layers=tuple(layers),
            layers_before=len(rates) // 2,
            layers_after=len(layers),
            parameters_before=sum(
                p.numel() for name, p in model.named_parameters() if not is_routing(name)
            ),
            parameters_after=parameters,
            losses=losses,
            heal=heal,
            tokens=held_out.shape[0] * (held_out.shape[1] - 1),
        )
        (stage / RECORD).write_text(to_json(result.to_dict()), encoding="utf-8")
    return result


def _written(
    model: Any, layers: list[Layer], removed: Sequence[Site], ids: Tensor, form: Form, folder: Path
) -> int:
    """Write the smaller model, and return its parameter count.

    Where transformers loads it, it is compared with the routed one.
    """
    from transformers import AutoModelForCausalLM

    if form == "vllm":
        parameters = write_for_engines(model, layers, folder)
        write_older_config(folder)
        return parameters
    pairs: list[Pair] = [
        (attn, mlp) for attn, mlp in layers if attn is not None and mlp is not None
    ]
    smaller_model(model, pairs).save_pretrained(folder)
    write_older_config(folder)
    # As any user of transformers would load it.
    static = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(model.device).eval()
    _check_same(static, model, removed, ids)
    return int(static.num_parameters())


def _healed(
    model: Any,
    removed: Sequence[Site],
    blocks: Blocks,
    heal: LoraStage,
    cutting: DataConfig,
    seed: int,
) -> Any:
    """Run stage `lora` with the sites removed; return the model with its adapter merged."""
    constant_routes(model, [(site,) for site in removed])
    config = recipe("default", stages=("lora",), lora_stage=heal, data=cutting, seed=seed)
    with tempfile.TemporaryDirectory() as folder:  # for files to resume from, not needed here
        try:
            return merge_lora(run_stage(model, "lora", config, blocks, Path(folder)))
        except TrainingError as error:
            todo = "nothing was written; the same command starts again"
            if isinstance(error, DivergedError):
                todo = "nothing was written; remove less (--keep-rate), or heal for fewer steps"
            raise type(error)(
                "healing the export", got=error.got, expected=error.expected, todo=todo
            ) from error


def _loss(model: nn.Module, blocks: Tensor) -> float:
    nll, tokens = total_loss(model, blocks)
    return nll / tokens


@torch.no_grad()
def _check_same(static: Any, model: Any, removed: Sequence[Site], ids: Tensor) -> None:
    """Raise if logits of the written model and of the routed one that skips the same differ."""
    ids = ids.to(model.device)
    with use_rule(model, Forced.without(list(removed))), execution(model, "sparse"):
        expected = model(input_ids=ids, use_cache=False).logits.float()
    difference = static(input_ids=ids, use_cache=False).logits.float() - expected
    error = float(difference.norm() / expected.norm())
    # The same sums in another order: some hundred roundings in float32. In 16-bit formats
    # roundings are larger, but a wrong layer differs more.
    allowed = min(256 * torch.finfo(model.dtype).eps, 0.1)
    if not error <= allowed:
        raise UnsupportedModelError(
            f"checking the exported model of type {model.config.model_type!r}",
            got=f"logits that differ by {error:.1e} of their size from those of the routed model "
            "that skips the same modules",
            expected=f"at most {allowed:.1e}",
            todo="use --merged; a layer of this model depends on its place in a way that "
            "export/rebuild.py does not know",
        )
