"""Checkpoints of a training: each is whole or absent, and any number of processes goes on with any.

Weights and the optimizer's state are written by the parameters' names and as whole tensors, one after another, whatever
the devices hold of them. A checkpoint is written under a scratch name, brought to the disk and only then renamed; the
one before it stays until the next is begun. Every file's length and checksum are noted, so that what a failing disk or
a copy cut short has spoilt is passed over for the one before.
"""

import errno
import io
import json
import logging
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brd.errors import BrdError
from brd.run import read_json, write_json
from brd.training import processes

TENSORS = "tensors.safetensors"
STATE = "state.pt"
TRAINER_STATE = "trainer_state.json"
MANIFEST = "checkpoint.json"
# What the checkpoints of a folder are of.
TRAINING = "training.json"

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAFETENSORS = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a checkpoint holds. ``model`` is unwrapped; its tensors may be sharded."""

    model: torch.nn.Module
    optimizer: Any
    scheduler: Any
    scaler: Any = None


def save(checkpoints: Path, step: int, parts: Parts, save_state: Callable[[str], None]) -> Path:
    """Write ``checkpoint-<step>``; all processes call it, the main one writes. ``save_state`` writes the Trainer's.

    Raises BrdError, in all processes, when the disk has no room for it: the checkpoint before is then still there.
    """
    folder = checkpoints / f"checkpoint-{step}"
    scratch = folder.with_name(folder.name + ".tmp")
    random_states = processes.gathered(_random_state())

    def begin() -> dict[str, Any]:
        _prune(checkpoints, keep=1)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        return {}

    def finish() -> None:
        with _Summed(scratch / STATE) as file:
            buffer = io.BytesIO()
            scaler = parts.scaler.state_dict() if parts.scaler else None
            torch.save({"scheduler": parts.scheduler.state_dict(), "scaler": scaler, "random": random_states}, buffer)
            file.write(buffer.getbuffer())
        save_state(str(scratch / TRAINER_STATE))
        _sync(scratch / TRAINER_STATE)
        files = {TENSORS: written[0].about(), STATE: file.about(), TRAINER_STATE: _about(scratch / TRAINER_STATE)}
        manifest = {"step": step, "processes": processes.count(), "files": files}
        with _Summed(scratch / MANIFEST) as file:
            file.write(json.dumps(manifest, indent=2).encode())
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
        _sync(checkpoints)

    written: list[_Summed] = []
    try:
        processes.from_main(begin)
        failed: OSError | None = None
        tensors = list(_tensors(parts))
        left = iter(tensors)
        if processes.is_main():
            try:
                with _Summed(scratch / TENSORS) as file:
                    written.append(file)
                    file.write(_header(tensors))
                    for _, tensor in left:
                        file.write(_whole(tensor).contiguous().reshape(-1).view(torch.uint8).numpy())
            except OSError as error:
                failed = error
        # Gathering a sharded tensor takes all processes, also where the main one cannot write any more.
        for _, tensor in left:
            _whole(tensor)

        def settle() -> None:
            if failed is not None:
                raise failed
            finish()

        processes.from_main(settle)
    except OSError as error:
        if processes.is_main():
            shutil.rmtree(scratch, ignore_errors=True)
        raise _no_checkpoint(folder, error) from None
    return folder


def load(folder: Path, parts: Parts) -> None:
    """Put what ``save`` wrote into the model, the optimizer and the scheduler, as they are sharded now."""
    from safetensors import safe_open

    with safe_open(folder / TENSORS, framework="pt") as file, torch.no_grad():
        names = list(file.keys())
        if {name for name in names if name.startswith("model.")} != {name for name, _ in _own_tensors(parts.model)}:
            raise BrdError(f"{folder}: does not hold the tensors of this student; delete it to train anew")
        for name, tensor in _own_tensors(parts.model):
            tensor.copy_(_as_sharded(file.get_tensor(name), tensor))
        parameters = dict(_trained(parts.model))
        for name in names:
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                key, _, owner = rest.partition(".")
                parameter = parameters[owner]
                parts.optimizer.state[parameter][key] = _as_sharded(file.get_tensor(name), parameter)
    state = _state(folder)
    parts.scheduler.load_state_dict(state["scheduler"])
    for group, rate in zip(parts.optimizer.param_groups, parts.scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    if parts.scaler and state["scaler"]:
        parts.scaler.load_state_dict(state["scaler"])


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """What training changes of a model that is sharded, whole in the main process, which all help with; None where it
    is not sharded."""
    from torch.distributed.tensor import DTensor

    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    found: dict[str, torch.Tensor] = {}
    for name, tensor in _own_tensors(model):
        whole = _whole(tensor)
        if processes.is_main():
            found[name.removeprefix("model.")] = whole
    return found


def fill(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put ``whole_weights`` into a model that is not sharded."""
    own = {name.removeprefix("model."): tensor for name, tensor in _own_tensors(model)}
    assert own.keys() == weights.keys()
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def load_random_state(folder: Path) -> None:
    """The random numbers of this process where its like wrote the checkpoint; of more processes, the new ones' stay."""
    states = _state(folder)["random"]
    if processes.rank() < len(states):
        _set_random_state(states[processes.rank()])


def last(checkpoints: Path) -> Path | None:
    """The last checkpoint that is undamaged; it is told which ones are not."""
    for folder in reversed(_sorted(checkpoints)):
        if damage := _damage(folder):
            _log.warning("%s: passed over, %s", folder, damage)
        else:
            return folder
    return None


def claim(checkpoints: Path, mark: str, about: dict[str, Any]) -> None:
    """Make the folder that of the training ``mark``, which ``about`` describes; what is another one's is set aside."""
    record = checkpoints / TRAINING
    found = read_json(record) or {}
    if checkpoints.is_dir() and found.get("mark") != mark:
        if _sorted(checkpoints):
            aside = checkpoints.with_name(checkpoints.name + ".before")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoints.rename(aside)
            _log.warning("%s: not gone on with, %s; they lie in %s", checkpoints, _differs(found, about), aside.name)
        else:
            shutil.rmtree(checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    for scratch in checkpoints.glob("*.tmp"):
        shutil.rmtree(scratch)
    write_json(record, {"mark": mark, "about": about})


def _differs(found: dict[str, Any], about: dict[str, Any]) -> str:
    before, now = found.get("about", {}), about
    keys = [key for key in now if before.get(key) != now[key]]
    if not keys:
        return "the data or the start of the training are not those of the checkpoints"
    return "the checkpoints are of " + ", ".join(f"{key} {before.get(key)} (now {now[key]})" for key in keys)


def no_room(error: BaseException) -> bool:
    """Whether an error says that a disk is full, wherever in its chain and in whatever words."""
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "errno", None) in _NO_ROOM or any(f"os error {n}" in str(seen) for n in _NO_ROOM):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _no_checkpoint(folder: Path, error: OSError) -> BrdError:
    before = _sorted(folder.parent)
    kept = f"that of step {_step(before[-1])} is kept" if before else "there was none before"
    what = "the disk is full" if no_room(error) else f"{error.strerror or error}"
    return BrdError(
        f"{folder}: the checkpoint could not be written ({what}); {kept}: make room and run the same command again"
    )


# Files.


class _Summed:
    """A file that is written once, to the disk, with its length and checksum."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.size = self.crc = 0

    def write(self, data: Any) -> None:
        self._file.write(data)
        self.size += len(data)
        self.crc = zlib.crc32(data, self.crc)

    def about(self) -> list[int]:
        return [self.size, self.crc]

    def __enter__(self) -> "_Summed":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def _about(path: Path) -> list[int]:
    """Length and checksum of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
    return [size, crc]


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _sorted(checkpoints: Path) -> list[Path]:
    folders = [f for f in checkpoints.glob("checkpoint-*") if f.name.removeprefix("checkpoint-").isdigit()]
    return sorted(folders, key=_step)


def _prune(checkpoints: Path, keep: int) -> None:
    for folder in _sorted(checkpoints)[:-keep]:
        shutil.rmtree(folder)


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint; '' when it is as it was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, about in files.items():
            if (folder / name).stat().st_size != about[0] or _about(folder / name) != about:
                return f"{name} is not as it was written"
    except (OSError, ValueError, KeyError):
        return "not a whole checkpoint"
    return ""


# Tensors.


def _trained(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    # A layer whose activations are made anew is wrapped, which shows in its names.
    named = ((name.replace("_checkpoint_wrapped_module.", ""), each) for name, each in model.named_parameters())
    return ((name, parameter) for name, parameter in named if parameter.requires_grad)


def _own_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What training changes: frozen weights are loaded from where the training starts."""
    for name, parameter in _trained(model):
        yield f"model.{name}", parameter
    kept = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in kept:
            yield f"model.{name}", buffer


def _tensors(parts: Parts) -> Iterator[tuple[str, torch.Tensor]]:
    yield from _own_tensors(parts.model)
    for name, parameter in _trained(parts.model):
        for key, value in sorted(parts.optimizer.state.get(parameter, {}).items()):
            yield f"optimizer.{key}.{name}", value


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which each process may hold a part, on the CPU."""
    from torch.distributed.tensor import DTensor

    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def _as_sharded(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of another one, and dealt out as that is where it has its shape."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    tensor = tensor.to(like.device)
    if isinstance(like, DTensor) and tensor.shape == like.shape:
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor


def _header(tensors: list[tuple[str, torch.Tensor]]) -> bytes:
    """The beginning of a safetensors file, which the tensors' bytes follow in this order."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        about = {"dtype": _SAFETENSORS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        header[name], end = about, end + size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    return state


# Random numbers.


def _random_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.random.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.random.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.random.set_rng_state(state["cuda"])
