"""Training an arm: plain causal LM loss over all tokens (paper, training), by the Hugging Face Trainer."""

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brd import hardware
from brd.composing.packing import TokenRows
from brd.errors import BrdError
from brd.recipe import Recipe
from brd.training.student import load_student


def row_order(rows: int, total: int, seed: int) -> list[int]:
    """``total`` row numbers: as many shuffled passes over the rows as it takes."""
    order: list[int] = []
    for number in range(-(-total // rows)):
        order += np.random.default_rng([seed, number]).permutation(rows).tolist()
    return order[:total]


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, rows: TokenRows, order: list[int]) -> None:
        self._rows, self._order = rows, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self._rows[self._order[index]])
        return {"input_ids": ids, "labels": ids}


def train(
    recipe: Recipe,
    tokens: Path,
    steps: int,
    tokenizer: Any,
    folder: Path,
    on_step: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train the student on a token file for ``steps`` and save it as a Hugging Face folder.

    Goes on from the last checkpoint when an earlier call was interrupted. ``on_step`` is told (step, loss).
    Returns the trained tokens, the losses by step and the dtype. Raises BrdError when the loss diverges.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
    from transformers.trainer_callback import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint

    settings = recipe.training
    rows = TokenRows(tokens)
    total = steps * settings.rows_per_step
    set_seed(recipe.seed)
    model = load_student(recipe, tokenizer)
    _check_window(model, rows.meta["row_tokens"])
    device, dtype = hardware.device(), hardware.choose_dtype(settings.dtype)
    checkpoints = folder.with_name(folder.name + ".checkpoints")

    class Log(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                if not np.isfinite(logs["loss"]):
                    raise BrdError(
                        f"training: the loss is {logs['loss']} at step {state.global_step}; "
                        f"lower training.learning_rate ({settings.learning_rate}); checkpoints are kept"
                    )
                if on_step:
                    on_step(state.global_step, logs["loss"])

    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=settings.micro_rows,
        gradient_accumulation_steps=settings.rows_per_step // settings.micro_rows,
        max_steps=steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        train_sampling_strategy="sequential",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=1,
        use_cpu=device.type == "cpu",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        seed=recipe.seed,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_Rows(rows, row_order(len(rows), total, recipe.seed)),
        callbacks=[Log()],
    )
    # It prints every log line; progress is shown by the caller.
    trainer.remove_callback(PrinterCallback)
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    with _interruptible() as interrupt:
        trainer.add_callback(interrupt.callback())
        trainer.train(resume_from_checkpoint=last)
    if interrupt.asked and trainer.state.global_step < steps:
        raise KeyboardInterrupt
    losses = [(e["step"], round(float(e["loss"]), 4)) for e in trainer.state.log_history if "loss" in e]
    save(model, tokenizer, folder)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return {
        "steps": steps,
        "trained_tokens": total * rows.meta["row_tokens"],
        "passes": round(rows.meta["passes"] * total / len(rows), 4),
        "losses": losses,
        "dtype": hardware.dtype_name(dtype),
        "parameters": model.num_parameters(),
    }


class _Interrupt:
    """Ctrl-C during training: finish the step in hand, save a checkpoint, stop. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def callback(self) -> Any:
        from transformers import TrainerCallback

        interrupt = self

        class Stop(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if interrupt.asked:
                    control.should_save = control.should_training_stop = True

        return Stop()


@contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    interrupt = _Interrupt()
    # Only the main thread may set handlers; elsewhere whoever runs the thread decides.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, interrupt.ask) if main else None
    try:
        yield interrupt
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder that is whole or absent."""
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _check_window(model: Any, row_tokens: int) -> None:
    window = getattr(model.config, "max_position_embeddings", None)
    if window and row_tokens > window:
        raise BrdError(f"composing.row_tokens: {row_tokens} is more than the student's window of {window} tokens")
