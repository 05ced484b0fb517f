"""The Trainer: transformers' own, with the budget in the loss and only trained weights saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer

from skipgpt.config import TrainConfig
from skipgpt.errors import TrainingError
from skipgpt.model.trace import Trace, deciding, execution, record_routing
from skipgpt.routing.budget import budget_loss, linear_between
from skipgpt.routing.decision import DecisionRule, GumbelSample, RuleAt
from skipgpt.training.labelled import NO_LABEL, labelled_rows
from skipgpt.training.routing_metrics import keep_metrics, keeps_of, margin_metrics, margins_of
from skipgpt.training.stages import StagePlan, optimizer_groups
from skipgpt.training.step_sums import StepSums

WEIGHTS = "trained.safetensors"


class RoutingTrainer(Trainer):  # type: ignore[misc]
    """Trains one stage; everything that is not said here is transformers' behaviour.

    Args:
        plan: the stage.
        config: the run.
        rule: how decisions are made while routers train; Gumbel samples where None.
        arguments: passed to `transformers.Trainer`.

    Raises:
        TrainingError: the loss is NaN or infinite; the step is not taken.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *,
        plan: StagePlan,
        config: TrainConfig,
        rule: RuleAt | None = None,
        **arguments: Any,
    ) -> None:
        with _counted_as_adapted(arguments["model"]):
            super().__init__(**arguments)
        self.plan, self.config, self._rule_at = plan, config, rule
        # The loss of a step is a sum over its tokens divided by their number, however it is cut.
        self.model_accepts_loss_kwargs = True
        self._whole_sparsity: Tensor | None = None
        self._step_tokens = 0
        self._sums = StepSums()
        self._observed: list[Tensor] = []
        self._temperature: float | None = None

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Language-model loss plus alpha times the budget term (paper; soft in `default`)."""
        if not self.plan.trains_routers:
            watching: AbstractContextManager[Trace | None] = (
                record_routing(model) if self._is_logged else nullcontext()
            )
            with watching as seen:
                loss = self._lm_loss(model, inputs, num_items_in_batch)
            self._sums.add(lm_loss=loss)
            if seen is not None:
                self._observed.append(keeps_of(seen.steps[0]))
            return loss
        with record_routing(model) as trace:
            lm_loss = self._lm_loss(model, inputs, num_items_in_batch)
        stage, share = self.config.router_stage, self._share(inputs)
        sparsity = trace.steps[0].sparsity()
        self._sums.add(lm_loss=lm_loss, sparsity=share * sparsity)
        if self._is_logged:
            self._observed.append(margins_of(trace.steps[0]))
        miss = budget_loss(
            sparsity, self.config.target_sparsity, self._whole_sparsity, stage.budget_softness
        )
        return lm_loss + stage.alpha * share * miss

    def _lm_loss(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        with labelled_rows(self.model, inputs) as given:
            loss: Tensor = super().compute_loss(model, given, num_items_in_batch=num_items_in_batch)
        return loss

    def rule(self) -> DecisionRule:
        """How decisions are made at this point of the stage."""
        stage = self.config.router_stage
        if self._rule_at is not None:
            return self._rule_at(self.progress)
        return GumbelSample(
            linear_between(stage.temperature_start, stage.temperature_end, self.progress)
        )

    @property
    def _is_logged(self) -> bool:
        """Whether the step under way ends with a line of metrics."""
        return bool((self.state.global_step + 1) % max(1, self.state.logging_steps) == 0)

    @property
    def progress(self) -> float:
        """Share of the stage's steps that are done."""
        return float(self.state.global_step / max(1, self.plan.steps))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Fetch the parts of one step; where there are several, measure their sparsity first.

        The budget term of a part points in the direction that the whole step needs, so that four
        parts train exactly as one. That costs a forward without gradient a part; the random state
        is put back, so the training forwards see the same noise.
        """
        samples, items = super().get_batch_samples(*args, **kwargs)
        self._sums.end_step()
        self._step_tokens = sum(_real_tokens(sample) for sample in samples)
        self._whole_sparsity = None
        if self.plan.trains_routers and len(samples) > 1:
            self._whole_sparsity = self._measure(samples)
        return samples, items

    @torch.no_grad()
    def _measure(self, samples: list[dict[str, Tensor]]) -> Tensor:
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        sparsity = torch.zeros((), device=self.args.device)
        self.model.train()
        with (
            torch.random.fork_rng(devices),
            execution(self.model, self.plan.execution),
            deciding(self.model, self.rule()),
            self.compute_loss_context_manager(),
        ):
            for sample in samples:
                inputs = self._prepare_inputs(sample)
                # Routers are asked, logits are not: no token has a label here.
                unlabelled = inputs | {"labels": torch.full_like(inputs["input_ids"], NO_LABEL)}
                with (
                    labelled_rows(self.model, unlabelled) as given,
                    record_routing(self.model) as trace,
                ):
                    self.model(**given)
                sparsity += trace.steps[0].sparsity() * self._share(inputs)
        return sparsity

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward; refuses to go on from a loss that is no number."""
        # Backward, too, runs under the rule: activation checkpointing decides again in there.
        with execution(model, self.plan.execution), ExitStack() as stack:
            if self.plan.trains_routers:
                rule = self.rule()
                self._temperature = getattr(rule, "temperature", None)
                stack.enter_context(deciding(model, rule))
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"training stage {self.plan.stage}, step {self.state.global_step + 1}",
                got=f"a loss of {loss.item()}",
                expected="a finite number",
                todo="the last saved state is kept; start again with a lower learning rate "
                "and --overwrite",
            )
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over what the stage trains, routers and LoRA at their own rates."""
        if self.optimizer is None:
            groups = optimizer_groups(model or self.model, self.config)
            self.optimizer = torch.optim.AdamW(groups)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last line, and what routers do now, to what transformers logs."""
        if "loss" in logs:
            self._sums.end_step()
            logs |= self._sums.means()
            swing = self._sums.spread("sparsity")
            logs |= {} if swing is None else {"sparsity_swing": swing}
            self._sums.clear()
            logs |= {} if self._temperature is None else {"temperature": self._temperature}
            logs |= self._routing_metrics()
        super().log(logs, start_time)

    def _routing_metrics(self) -> dict[str, float]:
        if not self._observed:
            return {}
        seen = torch.cat(self._observed, dim=1)
        self._observed = []
        if seen.dtype == torch.bool:
            return keep_metrics(seen)
        return margin_metrics(seen, self.config.target_sparsity)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save what trains and nothing else; the base model is where it was."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        trained = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        if broken := [name for name, tensor in trained.items() if not tensor.isfinite().all()]:
            raise TrainingError(
                f"saving step {self.state.global_step} of stage {self.plan.stage}",
                got=f"values that are no numbers in {broken[0]} and {len(broken) - 1} more",
                expected="finite weights",
                todo="the state saved before is kept; start again with a lower learning rate "
                "and --overwrite",
            )
        save_file(trained, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_weights(Path(resume_from_checkpoint), model)

    def load_weights(self, state: Path, model: Any = None) -> None:
        """Put back what had been trained when a resume state was saved."""
        tensors = load_file(state / WEIGHTS)
        named = dict((model or self.model).named_parameters())
        with torch.no_grad():
            for name, tensor in tensors.items():
                named[name].copy_(tensor)

    def _share(self, inputs: dict[str, Tensor]) -> float:
        return _real_tokens(inputs) / max(1, self._step_tokens)


@contextmanager
def _counted_as_adapted(model: Any) -> Iterator[None]:
    """Within, transformers takes routers for what it asks of a quantised model: an adapter."""
    name = "_hf_peft_config_loaded"
    before = getattr(model, name, False)
    setattr(model, name, before or getattr(model, "is_quantized", False))
    try:
        yield
    finally:
        setattr(model, name, before)


def _real_tokens(inputs: dict[str, Tensor]) -> int:
    """How many tokens of a part are not padding."""
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None else int(mask.sum())
