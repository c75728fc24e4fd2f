"""The Hugging Face Trainer with an objective for its loss, tokens counted over all processes, and our checkpoints.

Rows are dealt to the processes in turns of a batch each, so that a step holds the same rows however many there are.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from brd.errors import BrdError
from brd.training import checkpoints, processes
from brd.training.callbacks import Interruption
from brd.training.objective import Objective, label_count


class Loop(Trainer):
    is_fsdp_enabled: bool
    # The loss is by the tokens of the whole step.
    loss_is_scaled_for_ga = True

    def __init__(self, objective: Objective, interruption: Interruption, **options: Any) -> None:
        self._objective, self._interruption = objective, interruption
        super().__init__(**options)
        self.add_callback(interruption)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and not self.is_fsdp_enabled:
            # accelerate shards on accelerators only; on a CPU what it does there works as well.
            from accelerate.utils import (  # type: ignore[import-untyped]
                DistributedType,
                FullyShardedDataParallelPlugin,
            )

            state = self.accelerator.state
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            if self.accelerator.mixed_precision != "no":
                state.fsdp_plugin.set_mixed_precision(self.accelerator.mixed_precision)
            self.is_fsdp_enabled = True

    # The loss.

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> torch.Tensor:
        own = sum((label_count(batch["labels"]) for batch in batch_samples), torch.tensor(0))
        # In one sum with who has been asked to stop, since all have to stop at the same step.
        sums = processes.total(torch.stack([own.cpu(), torch.tensor(int(self._interruption.asked))]).to(device))
        if processes.count() > 1 and sums[1] > 0:
            self._interruption.agreed = True
        if not sums[0]:
            raise BrdError(f"training: step {self.state.global_step + 1} has no token to learn; all labels are ignored")
        return sums[0]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # The gradients of several processes are averaged, where theirs is the sum.
        loss = model(**inputs, objective=self._objective, label_count=num_items_in_batch)
        return loss * processes.count()

    # Checkpoints.

    def _parts(self) -> checkpoints.Parts:
        model = self.accelerator.unwrap_model(self.model_wrapped)
        return checkpoints.Parts(model, self.optimizer, self.lr_scheduler, getattr(self.accelerator, "scaler", None))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoints.save(
            Path(self.args.output_dir),
            self.state.global_step,
            self._parts(),
            lambda path: self.state.save_to_json(path),
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: weights come with the optimizer's state, when both are where they stay."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load(Path(checkpoint), self._parts())

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing: it has come with the optimizer's state."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_random_state(Path(checkpoint))
