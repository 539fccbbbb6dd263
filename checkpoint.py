"""
Checkpoints: tensors and plain values only, so that loading one never runs code.

A checkpoint is a dict that torch.save wrote to ckpt.pt:

    config     Config.plain(): the sizes and the generations
    model      {slab: tensor}, and row_of where the model has rows for part of the vocabulary
    optimizer  {slab: {'step', 'exp_avg', 'exp_avg_sq'}}; slabs without an entry start fresh
    ledger     tokens, FLOPs and seconds of all stages so far, and which sequences were read
    lineage    how it grew: a dict for each growth
    step, settings, tokenizer, ...  of the run that wrote it

Where parameters are sharded, ckpt.pt is a folder: torch.distributed.checkpoint's files, and rest.pt with what
is not sharded.
"""

import fcntl
import io
import itertools
import math
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch
import torch.distributed as dist

from data import Tokenizer, file_sha256, one_line
from model import Config, Llama, is_shard, put, skeleton

OTHER = "use the one before, ckpt.prev.pt, or a copy"  # the remedy for a damaged checkpoint


def optimizer_state(model: Llama, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """Return {parameter name: {'step', 'exp_avg', 'exp_avg_sq'}}: by name, so that it survives growth."""
    return {name: dict(optimizer.state[p]) for name, p in model.named_parameters() if p in optimizer.state}


@torch.no_grad()
def load_state(model: Llama, optimizer: torch.optim.Optimizer, ckpt: dict) -> None:
    """Load a checkpoint's parameters and Adam state into a model, which may be sharded, and its optimizer.
    Parameters without a state start fresh. Raise ValueError where the tensors are not those of the model."""
    # make room for Adam's state, sharded as the parameters are
    params, state = model.state_dict(), {}
    for name, p in model.named_parameters():
        if name in ckpt["optimizer"]:
            s = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
            step_device = p.device if optimizer.defaults["fused"] else "cpu"
            state[name] = optimizer.state[p] = s | {"step": torch.zeros((), device=step_device)}

    # compare the tensors there with those here, before any is written
    there, here = shapes(ckpt["model"], ckpt["optimizer"]), shapes(params, state)
    if wrong := sorted(name for name, _ in there.items() ^ here.items()):
        raise ValueError(f"the checkpoint's tensors are not those of its config: {wrong[0]}")

    if "folder" in ckpt:
        read_folder(ckpt["folder"], {"model": params, "optimizer": state})
        return check_still_there(ckpt["folder"], ckpt["metadata_sha256"])
    for name, p in params.items():
        put(p, ckpt["model"][name])
    for name, s in state.items():
        for key, place in s.items():
            put(place, ckpt["optimizer"][name][key])


def shapes(tensors: dict, adam: dict[str, dict]) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of parameters and of their Adam state."""
    return {name: tuple(x.shape) for name, x in tensors.items()} | {
        f"{name}, {key}": tuple(x.shape) for name, state in adam.items() for key, x in state.items()
    }


def save_checkpoint(path: str, ckpt: dict, keep: str = "") -> None:
    """Write to a temporary file, sync, rename. A complete checkpoint, old or new, exists at every moment.
    With `keep`, the one that was at `path` moves there.

    Where parameters are sharded, all processes call it, and it makes a folder."""
    aside, master = f"{path}.tmp", processes()[0] == 0
    if master:
        remove(aside)  # left by a save that was killed
    if any(map(is_shard, ckpt["model"].values())):
        write_folder(aside, ckpt, master)
    elif master:
        write_checkpoint(aside, ckpt)
    if master:
        if keep and os.path.exists(path):
            remove(keep)
            os.replace(path, keep)
        os.replace(aside, path)


def write_folder(path: str, ckpt: dict, master: bool) -> None:
    """Write a checkpoint whose parameters are sharded into a folder: each process its tensors, the master
    rest.pt with all else."""
    import torch.distributed.checkpoint as dcp  # here, since it takes 1 s

    dist.barrier()
    try:
        dcp.save({key: ckpt[key] for key in ("model", "optimizer")}, checkpoint_id=path)
    except dcp.CheckpointException as e:
        raise unwritten(path, first(e)) from None
    if master:
        rest = {key: x for key, x in ckpt.items() if key not in ("model", "optimizer")}
        rest["metadata_sha256"] = file_sha256(f"{path}/.metadata")
        write_checkpoint(f"{path}/rest.pt", rest)


def write_checkpoint(path: str, ckpt: dict) -> None:
    """Write a checkpoint into a file, and sync it. Remove the file and raise OSError where that fails."""
    try:
        with open(path, "wb") as f:
            torch.save(ckpt, f)
            f.flush()
            os.fsync(f.fileno())
    except (RuntimeError, OSError) as e:  # torch's own when a write fails is a RuntimeError
        remove(path)
        raise unwritten(path, e) from None


def unwritten(path: str, e: BaseException) -> OSError:
    """Return the error to raise where writing to path raised e."""
    return OSError(f"{path}: can't be written ({one_line(e)}); is the disk full?")


def first(e: BaseException) -> BaseException:
    """Return the first of the errors that a CheckpointException has gathered from all processes."""
    error = next(iter(e.failures.values()))
    return error[0] if isinstance(error, tuple) else error


def processes() -> tuple[int, int]:
    """Return (this process's number, the number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def lock(path: str) -> BinaryIO:
    """Open the file at path, make it if need be, and lock it. The kernel unlocks it when this process ends,
    however it ends. Raise ValueError where another process holds the lock. A file system without locks locks
    nothing."""
    f = open(path, "ab")
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{path} is locked: another process writes there; wait for it, or write elsewhere"
        ) from None
    except OSError:
        pass
    return f


def remove(path: str) -> None:
    """Remove a file, or a folder with all that is in it, if there is one."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)


@dataclass
class Lazy:
    """A tensor of a checkpoint that is yet to be made: fill(out) writes it into `out`, which holds zeros."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: Callable[[torch.Tensor], None]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def made(self) -> torch.Tensor:
        """Make the tensor, in memory."""
        out = torch.zeros(self.shape, dtype=self.dtype)
        self.fill(out)
        return out


def materialise(ckpt: dict, scratch: str = "") -> dict:
    """Make the Lazy tensors of a checkpoint, in place and in the dicts' order, and return the checkpoint.

    scratch: a new file to map the tensors to. Memory then holds about one tensor, since the kernel may write
    mapped pages back. Raise OSError where the disk has no room."""
    found = list(lazy_tensors(ckpt))
    sizes = [-(-x.nbytes // 64) * 64 for _, _, x in found]  # bytes; each tensor begins at a multiple of 64
    *starts, whole = itertools.accumulate(sizes, initial=0)  # whole: bytes of all
    if scratch and whole:
        reserve(scratch, whole)
    for (tree, key, x), start in zip(found, starts):
        if scratch and x.nbytes:
            memory = torch.from_numpy(np.memmap(scratch, np.uint8, "r+", start, (x.nbytes,)))
            tree[key] = memory.view(x.dtype).view(x.shape)
            x.fill(tree[key])
        else:
            tree[key] = x.made()
    return ckpt


def lazy_tensors(tree: dict) -> Iterator[tuple[dict, str, Lazy]]:
    """Yield (dict, key in it, Lazy) of every Lazy in nested dicts."""
    for key, x in tree.items():
        if isinstance(x, dict):
            yield from lazy_tensors(x)
        elif isinstance(x, Lazy):
            yield tree, key, x


def reserve(path: str, n_bytes: int) -> None:
    """Make a file of n_bytes zeros. Raise OSError where the disk has no room for them: writing into a mapping
    of such a file would kill the process."""
    try:
        with open(path, "wb") as f:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(f.fileno(), 0, n_bytes)
            else:
                f.truncate(n_bytes)
    except OSError as e:
        raise unwritten(path, e) from None


def damaged(f: str | BinaryIO) -> str | None:
    """Return the first record of f, a file that torch.save wrote, whose CRC-32 is wrong; None if all are
    right. torch.load takes no notice of them."""
    with zipfile.ZipFile(f) as z:
        return z.testzip()


def load_checkpoint(path: str, whole: bool = True, verify: bool = True) -> dict:
    """Load a checkpoint, memory-mapped. Raise a one-line ValueError if the file is anything else.

    A sharded folder is first turned into one file in it, whole.pt. whole=False: its tensors stay without
    data, for load_state to read. verify: check every CRC-32, at up to 3 GB/s; of a folder, each process
    checks its share."""
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such checkpoint")
    if os.path.isdir(path):
        return load_folder(path, whole, verify)
    try:
        record = damaged(path) if verify and processes()[0] == 0 else None
        ckpt = None if record else torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path}: not loaded, since it holds more than tensors and plain values, and could run code"
        ) from None
    except Exception as e:
        raise ValueError(f"{path}: truncated, or not a checkpoint ({one_line(e)})") from None
    if record:
        raise ValueError(f"{path}: damaged: {record} is not what was saved; {OTHER}")
    return checked(path, ckpt)


def checked(path: str, ckpt: object) -> dict:
    """Return the checkpoint that was read at path, as this version has it. Raise ValueError where it is
    something else."""
    if not isinstance(ckpt, dict) or not {"config", "model", "optimizer", "ledger", "lineage"} <= ckpt.keys():
        raise ValueError(f"{path}: not a Babel checkpoint; train.py and grow.py write them")
    try:
        ckpt = {"settings": {}, "branch": None, "schedule": None} | ckpt
        ckpt["config"] = Config(**ckpt["config"]).plain()  # what it lacks has its default
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise ValueError(f"{path}: not a Babel checkpoint: its config is none ({e})") from None
    return ckpt


class Metadata(pickle.Unpickler):
    """A reader of what torch.distributed.checkpoint pickles beside the tensors. It comes before torch's own
    reader, since a pickle can run any code. It admits single names, not whole modules: some functions in
    those call any other."""

    PATHS = ("PosixPath", "WindowsPath")
    NAMES = {
        "torch": ("Size",),
        "torch.serialization": ("_get_layout",),
        "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
        "torch.distributed.checkpoint.metadata": (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "ChunkStorageMetadata"),
            *("TensorProperties", "_MEM_FORMAT_ENCODING"),
        ),
        "pathlib": PATHS,
        "pathlib._local": PATHS,  # as Python 3.13 calls it
    }

    def find_class(self, module: str, name: str) -> object:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or name in self.NAMES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def is_sharded(folder: str) -> bool:
    """Return whether a folder is a checkpoint, as sharded training writes them."""
    return os.path.exists(f"{folder}/.metadata") and os.path.exists(f"{folder}/rest.pt")


def load_folder(path: str, whole: bool, verify: bool) -> dict:
    """Do what load_checkpoint does, for a folder."""
    if whole and os.path.exists(f"{path}/whole.pt"):
        return load_checkpoint(f"{path}/whole.pt", verify=verify)

    # read all but the tensors
    if not is_sharded(path):
        inside = [f"{path}/{name}" for name in ("ckpt.pt", "grown.pt") if os.path.exists(f"{path}/{name}")]
        if inside:
            raise ValueError(f"{path} is a folder with a checkpoint in it: give {inside[0]}")
        raise ValueError(f"{path}: not a checkpoint, or an incomplete one: {OTHER}")
    try:
        with open(f"{path}/.metadata", "rb") as f:
            metadata = Metadata(f).load()
    except Exception as e:
        raise ValueError(f"{path}/.metadata: broken, or not what train.py wrote ({one_line(e)})") from None
    try:
        ckpt = torch.load(f"{path}/rest.pt", weights_only=True) | {"model": {}, "optimizer": {}}
        known = ckpt.pop("metadata_sha256", None)
        if verify:
            verify_folder(path, metadata, known)
    except Exception as e:
        raise ValueError(f"{path}: damaged ({one_line(e)}); {OTHER}") from None
    ckpt = checked(f"{path}/rest.pt", ckpt)

    # put tensors without data in their places: ("model", name) or ("optimizer", name, "step")
    for key, where in metadata.planner_data.items():
        stored = metadata.state_dict_metadata[key]
        tree = ckpt[where[0]]
        for part in where[1:-1]:
            tree = tree.setdefault(part, {})
        tree[where[-1]] = Lazy(tuple(stored.size), stored.properties.dtype, lambda out: None)
    if not whole:
        return ckpt | {"folder": path, "metadata_sha256": known}

    # read the tensors, mapped to a scratch file meanwhile, and write them to whole.pt
    aside, scratch = (f"{path}/whole.{os.getpid()}{end}" for end in ("", ".scratch"))
    try:
        materialise(ckpt, scratch)
        with warnings.catch_warnings(action="ignore"):  # that it is loaded by a single process
            read_folder(path, {key: ckpt[key] for key in ("model", "optimizer")}, no_dist=True)
        write_checkpoint(aside, ckpt)
        check_still_there(path, known)
        os.replace(aside, f"{path}/whole.pt")
    finally:
        remove(aside)
        remove(scratch)
    return load_checkpoint(f"{path}/whole.pt", verify=False)


def read_folder(path: str, into: dict, **options: bool) -> None:
    """Read a folder's tensors into those of the nested dicts `into`."""
    import torch.distributed.checkpoint as dcp

    try:
        dcp.load(into, checkpoint_id=path, **options)
    except dcp.CheckpointException as e:
        raise ValueError(f"{path}: damaged ({one_line(first(e))}); {OTHER}") from None


def has_metadata(path: str, sha256: str | None) -> bool:
    """Return whether a folder's .metadata is the one that rest.pt names; None: an older one, which names
    none."""
    return sha256 in (None, file_sha256(f"{path}/.metadata"))


def check_still_there(path: str, metadata_sha256: str | None) -> None:
    """Raise ValueError where a running train.py has put another checkpoint in the place of a folder."""
    if not has_metadata(path, metadata_sha256):
        raise ValueError(f"{path}: replaced by its run while it was read: try again")


def verify_folder(path: str, metadata: object, metadata_sha256: str | None) -> None:
    """Raise ValueError where a file of a folder is damaged. The files of torch.distributed.checkpoint hold
    what torch.save wrote, one shard of a tensor after another."""
    if not has_metadata(path, metadata_sha256):
        raise ValueError(".metadata is not what was saved")
    shards = {(s.relative_path, s.offset, s.length) for s in metadata.storage_data.values()}
    parts = sorted(shards | {("rest.pt", 0, -1)})
    rank, world = processes()
    for name, offset, length in parts[rank::world]:
        with open(f"{path}/{name}", "rb") as f:
            f.seek(offset)
            if damaged(io.BytesIO(f.read(length))):
                raise ValueError(f"{name} is not what was saved")


def build_model(ckpt: dict, assign: bool = False) -> Llama:
    """Return the model of a checkpoint, on the CPU. assign: make the checkpoint's tensors its parameters;
    they stay on the disk if they are there. Raise ValueError where they are not those of its config."""
    model = (skeleton if assign else Llama)(Config(**ckpt["config"]))
    try:
        model.load_state_dict(ckpt["model"], assign=assign)
    except RuntimeError as e:
        which = str(e).splitlines()[1].strip()
        raise ValueError(f"the checkpoint's tensors are not those of its config ({which})") from None
    return model


def stop_ids(ckpt: dict, tokenizer: Tokenizer) -> list[int]:
    """Return the ids at which a text ends, each once: those that an imported model came with, else the
    tokenizer's eos. In a model that was trained here, the bos of the next text ends it, too."""
    came_with = (ckpt.get("origin") or {}).get("stop")
    if came_with and not ckpt["ledger"]["tokens"]:
        return came_with
    ends = [*(came_with or [tokenizer.eos]), tokenizer.bos]
    return list(dict.fromkeys(i for i in ends if i >= 0))
