"""Processes of a run: the only file that knows there may be several.

Whole slices of objects are shared out in contiguous blocks, so that each
slice is computed exactly as one process alone would compute it. Small sets of
gradients are added in the order of the processes, whatever the backend prefers.
An exception in one of them ends all of them.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from mvczigal_ref.errors import NonFiniteError, ProcessLostError, decode_error, encode_error

__all__ = ["World", "world"]

# Elements that one collective carries, which bounds the memory it needs.
_BUCKET = 2**24
# Elements of all gradients up to which "auto" adds them in order: 64 MiB of fp32 per process.
_SMALL = 2**24


class _ElsewhereError(Exception):
    """Another process has failed, with this exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Place of this process among all processes of the run; made by `world`."""

    rank: int = 0
    """Index of this process."""
    size: int = 1
    """Number of processes."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device on which this process computes."""
    reduction: Literal["auto", "ordered", "engine"] = "ordered"
    """Sum of gradients that every process holds whole: in the order of the processes, or as the
    backend prefers; "auto" is ordered up to 2^24 numbers."""
    sharded: bool = False
    """Whether weights are gathered in the middle of a network call, where no process can be asked
    whether it has failed: a process that fails there ends by itself, and the others lose it."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0

    def slice_share(self, num_slices: int) -> range:
        """Give this process's slices: one contiguous block, of the same size in every process.

        Args:
            num_slices: Slices of one iteration, over all processes.

        Returns:
            Indices of this process's slices.

        Raises:
            ValueError: If the processes cannot have equal shares.

        Examples:
            >>> World(rank=1, size=2).slice_share(6)
            range(3, 6)
        """
        share, left = divmod(num_slices, self.size)
        if left or share == 0:
            lower, upper = share * self.size, (share + 1) * self.size
            nearest = f"{upper}" if lower == 0 else f"{lower} and {upper}"
            msg = (
                f"`num_slices` must be a positive multiple of the {self.size} processes; got "
                f"{num_slices}. The nearest valid values are {nearest}: change "
                "`run.objects_per_iteration` or `run.objects_per_slice`."
            )
            raise ValueError(msg)
        return range(self.rank * share, (self.rank + 1) * share)

    def gather_objects(
        self, share: Shaped[Tensor, " object *rest"]
    ) -> Shaped[Tensor, " all_objects *rest"]:
        """Concatenate every process's objects, in the order that one process would have them.

        Args:
            share: Values of this process's objects, in the order of its slices; the same number
                of objects in every process. No gradient flows.

        Returns:
            Values of all objects, equal in every process.
        """
        share = share.detach()
        if self.size == 1:
            return share
        self._meet()
        return self._concatenated(share).to(share.device)

    def mean_gradients(self, parameters: Iterable[Tensor]) -> None:
        r"""Replace each gradient by its mean over the processes.

        .. math::

            g \leftarrow \tfrac{1}{N} (((g_0 + g_1) + g_2) + \dots)

        The order of the sum is fixed, whichever algorithm the backend prefers. A parameter
        without a gradient counts as zero where another process has one, and keeps none where
        no process has one, so that the optimiser skips it as it would in one process. With a
        ``reduction`` of "engine", or with "auto" and more than 2^24 numbers, the order is the
        backend's, and the last bits may differ. The gradients of sharded parameters are means
        already.

        Args:
            parameters: The trainable parameters, in the same order in every process.
        """
        if self.size == 1:
            return
        self._meet()
        trained = [p for p in parameters if not hasattr(p, "device_mesh")]
        if not trained:
            return
        present = self._stacked(self._flags([p.grad is not None for p in trained])).amax(0)
        used = [p for p, one in zip(trained, present.tolist(), strict=True) if one]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        ordered = self._in_order(sum(p.numel() for p in used))
        for bucket in _buckets([p.grad for p in used if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            total = self._summed(flat, ordered=ordered)
            total /= self.size
            for gradient, mean in zip(
                bucket, total.split([g.numel() for g in bucket]), strict=True
            ):
                gradient.copy_(mean.view_as(gradient))

    def _in_order(self, count: int) -> bool:
        """Tell whether so many numbers are added in the order of the processes."""
        return self.reduction == "ordered" or (self.reduction == "auto" and count <= _SMALL)

    def _summed(self, flat: Tensor, *, ordered: bool) -> Tensor:
        """Add every process's numbers; the engine in fp32 or wider."""
        if not ordered:
            wide = torch.promote_types(flat.dtype, torch.float32)
            total = flat.to(self.device, wide)
            with _naming_losses():
                torch.distributed.all_reduce(total)
            return total.to(flat.device)
        total = torch.zeros_like(flat)
        for part in self._stacked(flat):
            total += part
        return total

    def anywhere(self, flag: bool) -> bool:
        """Tell whether the flag is true in any process, so that all of them act alike.

        Args:
            flag: Value in this process.

        Returns:
            Whether it is true in at least one process.
        """
        if self.size == 1:
            return flag
        self._meet()
        return bool(self._stacked(self._flags([flag])).any())

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            self._meet()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise an exception of one process in all of them.

        Without this the others would wait in their next collective for ever. Inside it, each
        collective of this class first asks whether all processes have come to it. Where weights
        are sharded, nobody can be asked but in `agreed`: the exception stays this process's own,
        and the others raise that they have lost it.

        Yields:
            Nothing.

        Raises:
            Exception: The same in every process: the first that names an object, or else the first.

        Examples:
            >>> with World().together():
            ...     raise NonFiniteError("loss", object=3)
            Traceback (most recent call last):
            mvczigal_ref.errors.NonFiniteError: `loss` must be finite; got a non-finite value \
at object 3.
        """
        try:
            yield
        except _ElsewhereError as remote:
            raise remote.error from None
        except Exception as error:
            chosen: Exception | None = None
            if self.sharded:
                chosen = _as_loss(error)
            elif self.size > 1:
                with suppress(ProcessLostError):  # the others may be dead
                    chosen = self._failure(error)
            if chosen is None or chosen is error:
                raise
            raise chosen from error

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """End a piece of work in all processes alike, where weights are sharded too.

        All of them must enter it, and none may gather weights inside it: loading, scoring and
        writing. At its end they exchange what they have met. Does nothing where `together` can ask
        by itself, that is where no weights are sharded.

        Yields:
            Nothing.

        Raises:
            Exception: The same in every process, as `together` chooses it.

        Examples:
            >>> with World().agreed():
            ...     raise OSError("the disk is full")
            Traceback (most recent call last):
            OSError: the disk is full
        """
        if self.size == 1 or not self.sharded:
            yield
            return
        try:
            yield
        except _ElsewhereError as remote:
            raise remote.error from None
        except Exception as error:
            chosen: Exception | None = None
            with suppress(ProcessLostError):  # the others may be dead
                chosen = self._failure(error)
            if chosen is None or chosen is error:
                raise
            raise chosen from error
        else:
            elsewhere = self._failure(None)
            if elsewhere is not None:
                raise elsewhere

    def close(self) -> None:
        """Leave the process group; the last call of a run."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()

    def _meet(self) -> None:
        """Stop here if another process has failed on its way to this collective."""
        error = self._failure(None)
        if error is not None:
            raise _ElsewhereError(error)

    def _failure(self, local: Exception | None) -> Exception | None:
        """Choose one of the exceptions that processes have met since the last collective."""
        if not bool(self._stacked(self._flags([local is not None])).any()):
            return None
        texts = self._texts("" if local is None else encode_error(local))
        errors = [
            local if local is not None and rank == self.rank else decode_error(text)
            for rank, text in enumerate(texts)
            if text
        ]
        placed = [e for e in errors if isinstance(e, NonFiniteError) and e.object is not None]
        return (placed or errors)[0]

    def _texts(self, text: str) -> list[str]:
        """Gather every process's text, in their order."""
        content = text.encode()
        count = torch.tensor([len(content)], device=self.device)
        lengths = self._stacked(count).flatten().tolist()
        padded = content.ljust(max(lengths), b" ")
        rows = self._stacked(self._flags(list(padded))).tolist()
        return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]

    def _flags(self, values: Sequence[int]) -> Tensor:
        """Put small numbers on this process's device, whatever torch's default device is."""
        return torch.tensor(values, dtype=torch.uint8, device=self.device)

    def _stacked(self, value: Tensor) -> Tensor:
        """Gather one row per process."""
        return self._concatenated(value[None])

    def _concatenated(self, share: Tensor) -> Tensor:
        """Gather every process's rows, one process after the other."""
        share = share.to(self.device).contiguous()
        whole = share.new_empty((self.size * share.shape[0], *share.shape[1:]))
        with _naming_losses():
            torch.distributed.all_gather_single(whole, share)
        return whole


@contextmanager
def _naming_losses() -> Iterator[None]:
    """Name what a collective raises when another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if type(error) is RuntimeError or isinstance(error, torch.distributed.DistError):
            raise _lost(error) from error
        raise


def _lost(error: Exception) -> ProcessLostError:
    reason = str(error).partition("\n")[0]
    return ProcessLostError(f"lost another process of the run: {reason}")


def _as_loss(error: Exception) -> ProcessLostError | None:
    """Tell the engine's words for a lost process from other errors; None for those."""
    distributed = isinstance(error, torch.distributed.DistError)
    gloo = type(error) is RuntimeError and "gloo" in str(error).partition("\n")[0]
    return _lost(error) if distributed or gloo else None


def world(device: str = "auto") -> World:
    """Join the processes that a launcher started, or make a world of one.

    Args:
        device: "auto" for an accelerator where there is one, or a torch device.

    Returns:
        Place of this process.

    Raises:
        RuntimeError: If the launcher started several processes that could not be joined.
    """
    from accelerate import PartialState  # a fifth of a second, which an export is spared

    # Otherwise accelerate would choose the number of threads, on which the last bits depend.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    # Asked for an accelerator that is absent, accelerate would make each process a world of one.
    state = PartialState(
        cpu=device == "cpu" or not torch.accelerator.is_available(), **_meeting_place()
    )
    size = int(os.environ.get("WORLD_SIZE", "1"))  # under MPI, set by the line above
    if state.num_processes != size:
        msg = (
            f"the launcher asked for {size} processes, but {state.num_processes} could be "
            f"joined on device {device!r}. Set `run.device` to a device that is there."
        )
        raise RuntimeError(msg)
    # Without a GPU `accelerate launch` starts one process however many it is asked for; only if it
    # was asked for several does it set the address at which they are to meet.
    if size == 1 and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys():
        msg = (
            "`accelerate launch` was asked for several processes, but without GPUs it starts one. "
            "Start with `mvczigal train RECIPE --processes N`; for one process leave "
            "`--num_processes` out and MASTER_ADDR unset."
        )
        raise RuntimeError(msg)
    place = state.device if size > 1 or device == "auto" else torch.device(device)
    return World(rank=state.process_index, size=state.num_processes, device=place)


def _meeting_place() -> dict[str, Any]:
    """Name the file by which processes of `--processes` meet; other launchers set an address."""
    store = os.environ.get("MVCZIGAL_STORE")
    if store is None:
        return {}
    place = {name: int(os.environ[name.upper()]) for name in ("rank", "world_size")}
    return {"init_method": f"file://{store}", **place}


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Cut a list into runs of one dtype and bounded size, in order."""
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not buckets or tensor.numel() > room or tensor.dtype != buckets[-1][-1].dtype:
            buckets.append([])
            room = _BUCKET
        buckets[-1].append(tensor)
        room -= tensor.numel()
    return buckets
