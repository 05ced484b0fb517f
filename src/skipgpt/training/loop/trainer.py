"""transformers' Trainer with the budget term in the loss; `resumable.py` saves its states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from skipgpt.config import TrainConfig
from skipgpt.errors import DivergedError
from skipgpt.model.state import execution, record_routing, routing_state, use_noise, use_rule
from skipgpt.model.trace import Step
from skipgpt.routing.budget import budget_loss, linear_between
from skipgpt.routing.decision import DecisionRule, GumbelSample, RuleAt
from skipgpt.routing.noise import RowNoise
from skipgpt.system.distributed import all_gather, layout, mean, rank, shard_on_cpu, world_size
from skipgpt.training.distillation import dense_logits, distilled_loss
from skipgpt.training.loop.arguments import counted_as_adapted
from skipgpt.training.loop.budget_threshold import BudgetThreshold
from skipgpt.training.loop.metric_accumulator import StepSums
from skipgpt.training.loop.resumable import ResumableTrainer
from skipgpt.training.loop.routing_metrics import keep_metrics, margin_metrics
from skipgpt.training.loop.sampler import ROWS, RunDataset, StepBatchSampler, StepPartition
from skipgpt.training.run_start import savings_of
from skipgpt.training.stages import StagePlan, optimizer_groups


class RoutingTrainer(ResumableTrainer):
    """Trains one stage; everything else is transformers' behaviour.

    While routers train, they decide by a rule; by Gumbel sampling if it is None.

    Raises:
        DivergedError: the loss is NaN or infinite; the step is not taken.
    """

    is_fsdp_enabled: bool

    def __init__(
        self, *, plan: StagePlan, config: TrainConfig, rule: RuleAt | None = None, **arguments: Any
    ) -> None:
        with counted_as_adapted(arguments["model"]):
            super().__init__(**arguments)
        self.plan, self.config, self._rule_at = plan, config, rule
        # The loss of a step is a sum over its tokens divided by their number, however it is split.
        self.model_accepts_loss_kwargs = True
        self._saved = savings_of(arguments["model"], config)
        self._whole_sparsity: Tensor | None = None
        self._parts = 1
        self._sums = StepSums()
        self._observed: list[Tensor] = []
        self._temperature: float | None = None
        self._dense: Tensor | None = None
        state, target = routing_state(self.model), config.target_sparsity
        self._threshold = BudgetThreshold(state, target, self._saved)
        if not plan.trains_routers:
            self.add_callback(self._threshold)
        if plan.distill:
            self.compute_loss_func = self._distilled

    def create_accelerator_and_postprocess(self) -> None:
        """Enable FSDP2 on CPU, where Accelerate would silently replicate the model."""
        super().create_accelerator_and_postprocess()
        if layout() == "fsdp" and not self.is_fsdp_enabled:
            shard_on_cpu(self.accelerator)
            self.is_fsdp_enabled = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return LM loss plus alpha times the budget term (paper; soft in `default`)."""
        with record_routing(model) as trace:
            lm_loss = self._lm_loss(model, inputs, num_items_in_batch)
        if not trace.steps:  # a dense step decides nothing
            return lm_loss
        stage, share = self.config.router_stage, 1 / self._parts
        (step,) = trace.steps
        sparsity = self._sparsity(step)
        self._sums.add(sparsity=share * sparsity)
        if not self.plan.trains_routers:
            self._threshold.observe(step.stacked("margin").float())
            if self._is_logged:
                self._observed.append(step.stacked("keep"))
            return lm_loss
        if self._is_logged:
            self._observed.append(step.stacked("margin").float())
        whole = self._whole_sparsity
        # With one micro-batch per process, global sparsity is known only here.
        if whole is None and world_size() > 1:
            whole = mean(share * sparsity)
        miss = budget_loss(sparsity, self.config.target_sparsity, whole, stage.budget_softness)
        return lm_loss + stage.alpha * share * miss

    def _lm_loss(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        if self.plan.distill:
            self._dense = dense_logits(self.model, inputs)
        try:
            loss: Tensor = super().compute_loss(
                model, inputs, num_items_in_batch=num_items_in_batch
            )
        finally:
            self._dense = None
        if not self.plan.distill:
            self._sums.add(lm_loss=loss)
        return loss

    def _distilled(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Mix KL to the dense model with the loss on text at the stage's share, per token."""
        assert self._dense is not None
        mixed, text, divergence = distilled_loss(
            self._dense, outputs.logits, labels, self.plan.distill, num_items_in_batch
        )
        # Scaled as transformers scales the loss: means over processes then cover all tokens.
        self._sums.add(lm_loss=text * world_size(), kl_to_dense=divergence * world_size())
        return mixed

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of all micro-batches of this process, in order."""
        share = StepPartition(
            self._train_batch_size, self.args.gradient_accumulation_steps, world_size()
        )
        count = self.plan.steps * share.rows * share.parts * share.processes
        return DataLoader(
            RunDataset(self.train_dataset, count, self.args.seed),
            batch_sampler=StepBatchSampler(share, self.plan.steps, rank()),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def rule(self) -> DecisionRule:
        """Return the decision rule at this point of the stage."""
        stage = self.config.router_stage
        if self._rule_at is not None:
            return self._rule_at(self.progress)
        ends = stage.temperature_start, stage.temperature_end
        return GumbelSample(linear_between(*ends, self.progress), scale=stage.noise)

    @property
    def _is_logged(self) -> bool:
        """Whether the current step ends with a line of metrics."""
        return bool((self.state.global_step + 1) % max(1, self.state.logging_steps) == 0)

    @property
    def progress(self) -> float:
        """Share of the stage's steps that are done."""
        return float(self.state.global_step / max(1, self.plan.steps))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Fetch the micro-batches of one step; if several, measure their sparsity first.

        The budget term of a micro-batch points in the direction that the whole step needs, so that
        four train exactly as one. That costs a forward without gradient per micro-batch, with the
        same noise as the training forward.
        """
        samples, items = super().get_batch_samples(*args, **kwargs)
        self._sums.end_step()
        self._parts = len(samples)  # of equal size: all rows have the same length
        self._whole_sparsity = None
        if self.plan.trains_routers and len(samples) > 1:
            self._whole_sparsity = self._measure(samples)
        return samples, items

    @torch.no_grad()
    def _measure(self, samples: list[dict[str, Tensor]]) -> Tensor:
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        sparsity = torch.zeros((), device=self.args.device)
        self.model.train()
        with torch.random.fork_rng(devices), self.compute_loss_context_manager():
            for sample in samples:
                inputs = self._prepare_inputs({k: v for k, v in sample.items() if k != ROWS})
                # Only routers matter here: hardly any logits are computed.
                given = {k: v for k, v in inputs.items() if k != "labels"} | {"logits_to_keep": 1}
                with self._in_training(sample), record_routing(self.model) as trace:
                    self.model_wrapped(**given)
                sparsity += self._sparsity(trace.steps[0]) / self._parts
        return mean(sparsity)

    @contextmanager
    def _in_training(self, sample: dict[str, Tensor]) -> Iterator[None]:
        """Set execution, rule and noise of this micro-batch inside the block."""
        with execution(self.model, self.plan.execution), ExitStack() as stack:
            if self.plan.trains_routers:
                rule = self.rule()
                self._temperature = getattr(rule, "temperature", None)
                stack.enter_context(use_rule(self.model, rule))
            if (rows := sample.get(ROWS)) is not None:
                noise = RowNoise(self.config.seed, rows.cpu())
                stack.enter_context(use_noise(self.model, noise))
            yield

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run one forward and backward; raise if the loss is NaN or infinite."""
        # Backward runs under the rule, too: activation checkpointing decides again there.
        with self._in_training(inputs):
            given = {name: value for name, value in inputs.items() if name != ROWS}
            loss: Tensor = super().training_step(model, given, num_items_in_batch)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"training stage {self.plan.stage}, step {self.state.global_step + 1}",
                got=f"a loss of {loss.item()}",
                expected="a finite number",
                todo="the last saved state is kept; start again with a lower learning rate "
                "(--lr) and --overwrite",
            )
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create AdamW over what the stage trains, routers and LoRA at their own rates."""
        if self.optimizer is None:
            groups = optimizer_groups(model or self.model, self.config)
            self.optimizer = torch.optim.AdamW(groups)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add means since the last line, and routing metrics, to what transformers logs."""
        if self.train_dataset is not None:  # the loader holds all epochs of the run as one
            done = self.state.global_step * self.config.batch_size * self.config.accumulation
            self.state.epoch = done / len(self.train_dataset)
        if "loss" in logs:
            steps = self._sums.take()
            logs |= {name: sums.mean().item() for name, sums in steps.items()}
            if len(steps.get("sparsity", ())) > 1:
                logs["sparsity_swing"] = steps["sparsity"].std().item()
            logs |= {} if self._temperature is None else {"temperature": self._temperature}
            logs |= self._routing_metrics()
        super().log(logs, start_time)

    def _routing_metrics(self) -> dict[str, float]:
        if not self._observed:
            return {}
        seen = all_gather(torch.cat(self._observed, dim=1))
        self._observed = []
        if seen.dtype == torch.bool:
            at = self._threshold.used
            known = {} if at is None or math.isinf(at) else {"threshold": at}
            return known | keep_metrics(seen)
        target = self.config.target_sparsity
        weights = torch.tensor([saved for _, saved in sorted(self._saved.by_site.items())])
        return margin_metrics(seen, target, weights, self._saved.overhead)

    def _sparsity(self, step: Step) -> Tensor:
        """Return what a step saves in the unit of the budget, with the gates' gradient.

        It is a sum over sites, so that micro-batches add up: in a budget in time, seconds count as
        proportional to tokens. Calibration counts the real seconds.
        """
        return step.saved(self._saved.by_site, self._saved.overhead)
