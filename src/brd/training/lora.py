"""LoRA (Hu et al. 2021, arXiv:2106.09685) by the package peft: trained matrices of low rank beside frozen weights."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from brd.errors import BrdError
from brd.sections.training import Lora

# Where the adapter lies in a student's folder, whose own weights have it merged in.
FOLDER = "adapter"


def check_installed() -> None:
    """BrdError without the package peft."""
    if importlib.util.find_spec("peft") is None:
        raise BrdError("student.lora needs the package peft: pip install 'brd[lora]'")


def adapt(model: Any, settings: Lora) -> Any:
    """The model with adapters, which alone are trained.

    It is changed in place, and can be used as before. Raises BrdError for targets that the model does not have.
    """
    check_installed()
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear" if settings.targets is None else settings.targets,
    )
    try:
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        line = " ".join(str(error).split())[:200]
        raise BrdError(f"student.lora.targets: {settings.targets or 'all linear layers'}: {line}") from None
    if any(isinstance(one, BaseTunerLayer) for one in (model.get_input_embeddings(), model.get_output_embeddings())):
        # They often share one weight, into which an adapter of either could not be merged.
        raise BrdError(
            f"student.lora.targets: {settings.targets}: the embeddings and the output layer can have no adapter here; "
            "name others"
        )
    # Not the folder or name that the weights were loaded from: the student may have been cut or healed since, and peft
    # would ask the Hub for a model of that name whenever a checkpoint is saved.
    adapted.peft_config["default"].base_model_name_or_path = ""
    return adapted


def merged(model: Any, folder: Path) -> Any:
    """The plain model that an adapted one stands for, the adapter saved in ``folder``/adapter; any other as it is."""
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(model, peft.PeftModel):
        return model
    # Embeddings are not trained.
    model.save_pretrained(str(folder / FOLDER), save_embedding_layers=False)
    # Its card would be of the whole student as peft sees it; ours stands in the folder above.
    (folder / FOLDER / "README.md").unlink(missing_ok=True)
    return model.merge_and_unload()
