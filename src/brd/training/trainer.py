"""Training an arm: plain causal LM loss over all tokens (paper, training), by the Hugging Face Trainer."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brd import hardware
from brd.composing.packing import TokenRows
from brd.errors import BrdError
from brd.recipe import Recipe
from brd.training import checkpoints, lora, processes
from brd.training.checks import check_reporter, check_window
from brd.training.documents import (
    Apart,
    check_tokenizer,
    check_vocabulary,
    row_inputs,
    trained_tokens,
    what_keeps_apart,
)
from brd.training.loss import can_be_chunked
from brd.training.memory import give_back_freed_memory, keep_freed_memory
from brd.training.objective import ChunkedLoss, Method, ModelLoss, Objective, put_inside, take_out
from brd.training.student import compile_layers, load_student

# Of the first row, to find out what the model's loss is.
_EXAMPLE_TOKENS = 16


def row_order(rows: int, total: int, seed: int) -> list[int]:
    """``total`` row numbers: as many shuffled passes over the rows as it takes."""
    order: list[int] = []
    for number in range(-(-total // rows)):
        order += np.random.default_rng([seed, number]).permutation(rows).tolist()
    return order[:total]


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(
        self,
        rows: TokenRows,
        order: list[int],
        apart: Apart | None = None,
        beside: Callable[[int, int], Mapping[str, torch.Tensor]] | None = None,
    ) -> None:
        self._rows, self._order, self._apart, self._beside = rows, order, apart, beside

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        number = self._order[index]
        beside = self._beside(number, index) if self._beside else {}
        return {**row_inputs(self._rows, number, self._apart), **beside}


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
    objective: Objective | None = None,
    held_out: Path | None = None,
    on_held_out: Callable[[int, float], None] | None = None,
    keep_checkpoints: bool = False,
    method: Method | None = None,
    rate_key: str = "training.learning_rate",
) -> dict[str, Any]:
    """Train the student on a token file for ``steps`` and save it as a Hugging Face folder.

    ``start`` is a model folder to train instead of the recipe's student. ``on_step`` is told (step, loss). ``watch`` is
    shown (model, step) every ``watch_steps`` steps, the model in eval mode without gradients; when it returns True,
    training ends with what is trained so far. Goes on from the last checkpoint when an earlier call of the same
    ``mark`` (of all that the result rests on) was interrupted; ``watch`` may then be shown a step again, but none after
    the one it ended at. ``objective`` is what is lowered: cross-entropy of the next token unless given, or made by
    a ``method``, which may also say what rows bring along. Of the token
    file ``held_out``, ``on_held_out`` is told (step, mean loss per token) every ``training.evaluate_steps``.
    With ``keep_checkpoints`` the caller throws them away, once it has noted that the training is done. ``rate_key`` is
    where the user has said what the learning rate is.

    Where several processes train, all call this; the main one writes, and is told.
    Returns the steps and tokens really trained, the losses by step, the dtype, the processes where there were several,
    and the objective's name (``chunked`` or ``model`` for the two ways of the plain one, see ``objective.py``). Raises
    BrdError when the loss diverges.
    """
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback

    from brd.training.callbacks import HeldOut, Interruption, Losses, Watch
    from brd.training.loop import Loop

    settings = recipe.training
    check_reporter(settings.report_to)
    keep_freed_memory()
    rows = TokenRows(tokens)
    processes.from_main(rows.check)
    check_tokenizer(rows, tokens, tokenizer)
    set_seed(recipe.seed)
    model = _model(recipe, tokenizer, start)
    check_window(model.config, rows.meta["row_tokens"])
    check_vocabulary(rows, tokens, model)
    apart = what_keeps_apart(model) if settings.attention == "document" else None
    # What is fast is measured, and must be one answer.
    dtype = processes.from_main(lambda: hardware.choose_dtype(settings.dtype))
    kept = folder.with_name(folder.name + ".checkpoints")
    last = processes.from_main(lambda: _claim(kept, mark, recipe, tokens, steps))
    # Where an earlier call was ended by ``watch`` but not saved, its end is ours: the checkpoint is then complete.
    steps = (_watched_end(last) if last else None) or steps
    arguments = _arguments(recipe, steps, kept, dtype)
    example = torch.from_numpy(rows[0])[None, :_EXAMPLE_TOKENS]
    # float16 needs gradients made from the scaled loss.
    chunked = dtype != torch.float16 and can_be_chunked(model, example)
    plain = ChunkedLoss() if chunked else ModelLoss()
    objective = objective or (method.objective(chunked) if method else plain)
    # Nothing is generated, and each layer's write to the cache would be compiled anew.
    use_cache, model.config.use_cache = model.config.use_cache, False
    if settings.compile:
        compile_layers(model)
    put_inside(model)
    interruption = Interruption()
    order = row_order(len(rows), steps * settings.rows_per_step, recipe.seed)
    trainer = Loop(
        objective,
        interruption,
        model=model,
        args=arguments,
        train_dataset=_Rows(rows, order, apart, method.beside if method else None),
        callbacks=[Losses(f"{rate_key} ({settings.learning_rate})", settings.divergence, on_step)],
    )
    # It prints every log line; progress is shown by the caller.
    trainer.remove_callback(PrinterCallback)
    if watch is not None and watch_steps > 0:
        trainer.add_callback(Watch(watch, watch_steps))
    if held_out is not None and settings.evaluate_steps:
        trainer.add_callback(HeldOut(TokenRows(held_out), settings.evaluate_steps, plain, on_held_out))
    if settings.report_to == "tensorboard" and processes.is_main():
        trainer.add_callback(_tensorboard(folder.parent.parent / "tensorboard" / folder.name))
    with interruption.listening():
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    trained = trainer.state.global_step
    if interruption.agreed and trained < steps:
        raise KeyboardInterrupt
    losses = [(e["step"], round(float(e["loss"]), 4)) for e in trainer.state.log_history if "loss" in e]
    take_out(model)
    model.config.use_cache = use_cache
    whole = checkpoints.whole_weights(model)
    if whole is not None and processes.is_main():
        # The wrapped model holds parts only.
        model = _model(recipe, tokenizer, start)
        checkpoints.fill(model, whole)
    processes.from_main(partial(save, model, tokenizer, folder))
    # Adapters are a part of the plain weights by now.
    parameters = model.num_parameters()
    if processes.is_main() and not keep_checkpoints:
        shutil.rmtree(kept, ignore_errors=True)
    del trainer, model
    give_back_freed_memory()
    total = trained * settings.rows_per_step
    return {
        "steps": trained,
        "trained_tokens": trained_tokens(rows, order[:total]),
        "passes": round(rows.meta["passes"] * total / len(rows), 4),
        "losses": losses,
        "dtype": hardware.dtype_name(dtype),
        "loss": objective.name,
        **({"apart": apart} if apart else {}),
        **({"processes": processes.count()} if processes.count() > 1 else {}),
        "parameters": parameters,
    }


def _model(recipe: Recipe, tokenizer: Any, start: Path | None) -> Any:
    """The student, with adapters where these are what is trained."""
    model = load_student(recipe, tokenizer, start)
    return model if recipe.student.lora is None else lora.adapt(model, recipe.student.lora)


def _claim(kept: Path, mark: str, recipe: Recipe, tokens: Path, steps: int) -> Path | None:
    """The checkpoint to go on from."""
    about = {f"training.{key}": value for key, value in recipe.training.deciding().items()}
    about |= {"student.model": recipe.student.model, "seed": recipe.seed, "steps": steps, "tokens": tokens.name}
    checkpoints.claim(kept, mark, about)
    return checkpoints.last(kept)


def _arguments(recipe: Recipe, steps: int, kept: Path, dtype: torch.dtype) -> Any:
    """What the Trainer is to do, by these processes."""
    from transformers import TrainingArguments

    settings, device = recipe.training, hardware.device()
    count = processes.count()
    if settings.rows_per_step % count:
        raise BrdError(
            f"training.rows_per_step: {settings.rows_per_step} rows cannot be dealt to {count} processes evenly; "
            f"set a multiple of {count}, or training.processes to a divisor of {settings.rows_per_step}"
        )
    share = settings.rows_per_step // count
    rows = next(n for n in range(min(share, settings.micro_rows), 0, -1) if share % n == 0)
    sharded = settings.parallel == "fsdp" and count > 1
    # Under FSDP2 layers are checkpointed by accelerate, before they are sharded.
    recomputed = settings.activation_checkpointing
    arguments = TrainingArguments(
        output_dir=str(kept),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=share // rows,
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
        use_cpu=device.type == "cpu",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        activation_checkpointing=recomputed and not sharded,
        activation_checkpointing_kwargs={"use_reentrant": False},
        fsdp=sharded or None,
        fsdp_config={"version": 2, "reshard_after_forward": True, "activation_checkpointing": recomputed}
        if sharded
        else None,
        ddp_find_unused_parameters=False,
        # TensorBoard's own would write into the folder of the checkpoints.
        report_to=settings.report_to if settings.report_to != "tensorboard" else "none",
        project=recipe.name,
        run_name=f"{recipe.name}-{kept.name.removesuffix('.checkpoints')}",
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        seed=recipe.seed,
    )
    if count == 1 and arguments.n_gpu > 1:
        # One process, one device: the Trainer would take them all, by threads.
        arguments._n_gpu = 1
    return arguments


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(folder)))  # type: ignore[no-untyped-call]


def _watched_end(checkpoint: Path) -> int | None:
    """The step at which ``watch`` ended the training that this checkpoint is of."""
    from brd.training.callbacks import WATCHED_END

    state = json.loads((checkpoint / checkpoints.TRAINER_STATE).read_text(encoding="utf-8"))
    return next((int(entry[WATCHED_END]) for entry in state["log_history"] if WATCHED_END in entry), None)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder that is whole or absent; a model with adapters as the plain one it stands for.

    Raises BrdError when the disk is full.
    """
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        lora.merged(model, scratch).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    except Exception as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if not checkpoints.no_room(error):
            raise
        raise BrdError(
            f"{folder}: the student could not be written (the disk is full); its checkpoint is kept: make room and run "
            f"the same command again"
        ) from None
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
