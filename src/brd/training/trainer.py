"""Training an arm: plain causal LM loss over all tokens (paper, training), by the Hugging Face Trainer."""

import json
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
from brd.training import lora
from brd.training.documents import (
    Apart,
    check_tokenizer,
    check_vocabulary,
    row_inputs,
    trained_tokens,
    what_keeps_apart,
)
from brd.training.loss import can_be_chunked, chunked_causal_loss
from brd.training.memory import give_back_freed_memory, keep_freed_memory
from brd.training.student import compile_layers, load_student

# The key of the line that ``watch``'s ending leaves in the Trainer's log, which is a part of every checkpoint.
_WATCHED_END = "ended_by_watch"

# Of the first row, to find out what the model's loss is.
_EXAMPLE_TOKENS = 16


def row_order(rows: int, total: int, seed: int) -> list[int]:
    """``total`` row numbers: as many shuffled passes over the rows as it takes."""
    order: list[int] = []
    for number in range(-(-total // rows)):
        order += np.random.default_rng([seed, number]).permutation(rows).tolist()
    return order[:total]


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, rows: TokenRows, order: list[int], apart: Apart | None = None) -> None:
        self._rows, self._order, self._apart = rows, order, apart

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return row_inputs(self._rows, self._order[index], self._apart)


def train(
    recipe: Recipe,
    tokens: Path,
    steps: int,
    tokenizer: Any,
    folder: Path,
    on_step: Callable[[int, float], None] | None = None,
    start: Path | None = None,
    watch: Callable[[Any, int], bool] | None = None,
    watch_steps: int = 0,
    mark: str = "",
) -> dict[str, Any]:
    """Train the student on a token file for ``steps`` and save it as a Hugging Face folder.

    ``start`` is a model folder to train instead of the recipe's student. ``on_step`` is told (step, loss). ``watch`` is
    shown (model, step) every ``watch_steps`` steps, the model in eval mode without gradients; when it returns True,
    training ends with what is trained so far. Goes on from the last checkpoint when an earlier call of the same
    ``mark`` (of all that the result rests on) was interrupted; ``watch`` may then be shown a step again, but none after
    the one it ended at.
    Returns the steps and tokens really trained, the losses by step, the dtype, and whose loss it was: ``chunked`` (see
    ``loss.py``) or the ``model``'s own. Raises BrdError when the loss diverges.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
    from transformers.trainer_callback import PrinterCallback
    from transformers.trainer_utils import get_last_checkpoint

    keep_freed_memory()
    settings = recipe.training
    rows = TokenRows(tokens)
    check_tokenizer(rows, tokens, tokenizer)
    set_seed(recipe.seed)
    model = load_student(recipe, tokenizer, start)
    if recipe.student.lora is not None:
        model = lora.adapt(model, recipe.student.lora)
    _check_window(model, rows.meta["row_tokens"])
    check_vocabulary(rows, tokens, model)
    apart = what_keeps_apart(model) if settings.attention == "document" else None
    device, dtype = hardware.device(), hardware.choose_dtype(settings.dtype)
    checkpoints = folder.with_name(folder.name + ".checkpoints")
    _keep_only(checkpoints, mark)
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    # Where an earlier call was ended by ``watch`` but not saved, its end is ours: the checkpoint is then complete.
    steps = (_watched_end(Path(last)) if last else None) or steps

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
        # The library's own "constant" leaves out the warmup.
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=round(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        optim="adamw_torch_fused",
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
    # float16 needs gradients made from the scaled loss, and a model wrapped for several devices its own forward.
    one_device = arguments.n_gpu <= 1 and arguments.world_size == 1
    example = torch.from_numpy(rows[0])[None, :_EXAMPLE_TOKENS]
    chunked = dtype != torch.float16 and one_device and can_be_chunked(model, example)
    # Nothing is generated, and each layer's write to the cache would be compiled anew.
    use_cache, model.config.use_cache = model.config.use_cache, False
    if settings.compile:
        compile_layers(model)

    class ChunkedTrainer(Trainer):
        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if not chunked or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            # accelerate's autocast is in the forward of the whole model, which is not called here.
            with self.accelerator.autocast():
                rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "labels")}
                return chunked_causal_loss(model, inputs["input_ids"], inputs["labels"], num_items_in_batch, **rest)

    order = row_order(len(rows), steps * settings.rows_per_step, recipe.seed)
    trainer = ChunkedTrainer(
        model=model,
        args=arguments,
        train_dataset=_Rows(rows, order, apart),
        callbacks=[Log()],
    )
    # It prints every log line; progress is shown by the caller.
    trainer.remove_callback(PrinterCallback)
    if watch is not None and watch_steps > 0:
        trainer.add_callback(_watching(watch, watch_steps))
    with _interruptible() as interrupt:
        trainer.add_callback(interrupt.callback())
        trainer.train(resume_from_checkpoint=last)
    trained = trainer.state.global_step
    if interrupt.asked and trained < steps:
        raise KeyboardInterrupt
    losses = [(e["step"], round(float(e["loss"]), 4)) for e in trainer.state.log_history if "loss" in e]
    model.config.use_cache = use_cache
    save(model, tokenizer, folder)
    shutil.rmtree(checkpoints, ignore_errors=True)
    parameters = model.num_parameters()
    del trainer, model
    give_back_freed_memory()
    total = trained * settings.rows_per_step
    return {
        "steps": trained,
        "trained_tokens": trained_tokens(rows, order[:total]),
        "passes": round(rows.meta["passes"] * total / len(rows), 4),
        "losses": losses,
        "dtype": hardware.dtype_name(dtype),
        "loss": "chunked" if chunked else "model",
        **({"apart": apart} if apart else {}),
        "parameters": parameters,
    }


def _keep_only(checkpoints: Path, mark: str) -> None:
    """Throw away the checkpoints of a training that was another one."""
    file = checkpoints / "mark"
    if checkpoints.is_dir() and (not file.exists() or file.read_text(encoding="utf-8") != mark):
        shutil.rmtree(checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    file.write_text(mark, encoding="utf-8")


def _watching(watch: Callable[[Any, int], bool], every: int) -> Any:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step % every:
                return
            training = model.training
            model.eval()
            with torch.no_grad():
                end = watch(model, state.global_step)
            model.train(training)
            if end:
                state.log_history.append({_WATCHED_END: state.global_step})
                control.should_save = control.should_training_stop = True

    return Watch()


def _watched_end(checkpoint: Path) -> int | None:
    """The step at which ``watch`` ended the training that this checkpoint is of."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return next((int(entry[_WATCHED_END]) for entry in state["log_history"] if _WATCHED_END in entry), None)


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
    """Write a Hugging Face folder that is whole or absent; a model with adapters as the plain one it stands for."""
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    model = lora.merged(model, scratch)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def _check_window(model: Any, row_tokens: int) -> None:
    window = getattr(model.config, "max_position_embeddings", None)
    if window and row_tokens > window:
        raise BrdError(f"composing.row_tokens: {row_tokens} is more than the student's window of {window} tokens")
