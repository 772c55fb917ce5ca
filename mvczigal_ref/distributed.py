"""The processes of a run: the only file that knows there may be several.

Processes share out whole slices of objects, in contiguous blocks, so that each
slice is computed exactly as one process alone would compute it. Every
reduction adds in the order of the processes, so that all of them hold the same
bits afterwards. An exception in one of them ends all of them.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from jaxtyping import Shaped
from torch import Tensor

from mvczigal_ref.errors import NonFiniteError, ProcessLostError, decode_error, encode_error

__all__ = ["World", "world"]

# Elements that one collective carries, which bounds the memory it needs.
_BUCKET = 2**24


class _ElsewhereError(Exception):
    """Another process has failed, with this exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among all processes of the run; made by `world`."""

    rank: int = 0
    """Index of this process."""
    size: int = 1
    """Number of processes."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this process computes."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    def slice_share(self, num_slices: int) -> range:
        """Give the slices that this process computes: one contiguous block of equal size.

        Args:
            num_slices: Slices of an iteration, over all processes.

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
        no process has one, so that the optimiser skips it as it would in one process.

        Args:
            parameters: The trained parameters, in the same order in every process.
        """
        if self.size == 1:
            return
        self._meet()
        trained = list(parameters)
        has = torch.tensor([p.grad is not None for p in trained], dtype=torch.uint8)
        anywhere = self._stacked(has).amax(0).tolist()
        wanted = [p for p, held in zip(trained, anywhere, strict=True) if held]
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in wanted if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            total = torch.zeros_like(flat)
            for part in self._stacked(flat):
                total += part
            total /= self.size
            for gradient, mean in zip(
                bucket, total.split([g.numel() for g in bucket]), strict=True
            ):
                gradient.copy_(mean.view_as(gradient))

    def anywhere(self, flag: bool) -> bool:
        """Say whether the flag is true in any process, so that all of them stop together.

        Args:
            flag: This process's answer.

        Returns:
            The answer of all.
        """
        if self.size == 1:
            return flag
        self._meet()
        return bool(self._stacked(torch.tensor([flag], dtype=torch.uint8)).any())

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            self._meet()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make an exception that one process meets everybody's.

        Without this the others would wait in their next collective for ever. Inside it, each
        collective of this class begins by asking whether all have come to it.

        Yields:
            Nothing.

        Raises:
            Exception: In every process the same: the first that names a place, else the first.

        Examples:
            >>> with World().together():
            ...     raise NonFiniteError("loss", object=3)
            Traceback (most recent call last):
            mvczigal_ref.errors.NonFiniteError: `loss` must be finite; got a non-finite value \
at object 3.
        """
        try:
            yield
        except _ElsewhereError as elsewhere:
            raise elsewhere.error from None
        except Exception as error:
            chosen = None
            if self.size > 1:
                with suppress(ProcessLostError):  # the others may be dead
                    chosen = self._failure(error)
            if chosen is None or chosen is error:
                raise
            raise chosen from error

    def close(self) -> None:
        """Take the processes apart; the last call of a run."""
        if self.size > 1:
            PartialState().destroy_process_group()

    def _meet(self) -> None:
        """Stop here if another process has failed on its way to this collective."""
        error = self._failure(None)
        if error is not None:
            raise _ElsewhereError(error)

    def _failure(self, own: Exception | None) -> Exception | None:
        """Choose one of the exceptions that processes have met since the last collective."""
        failed = torch.tensor([own is not None], dtype=torch.uint8)
        if not bool(self._stacked(failed).any()):
            return None
        texts = self._texts("" if own is None else encode_error(own))
        errors = [
            own if own is not None and rank == self.rank else decode_error(text)
            for rank, text in enumerate(texts)
            if text
        ]
        placed = [e for e in errors if isinstance(e, NonFiniteError) and e.object is not None]
        return (placed or errors)[0]

    def _texts(self, text: str) -> list[str]:
        """Give every process's text, in their order."""
        content = text.encode()
        lengths = self._stacked(torch.tensor([len(content)])).flatten().tolist()
        padded = content.ljust(max(lengths), b" ")
        rows = self._stacked(torch.tensor(list(padded), dtype=torch.uint8)).tolist()
        return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]

    def _stacked(self, value: Tensor) -> Tensor:
        """One row per process."""
        return self._concatenated(value[None])

    def _concatenated(self, share: Tensor) -> Tensor:
        """Every process's rows, one process after the other."""
        share = share.to(self.device).contiguous()
        whole = share.new_empty((self.size * share.shape[0], *share.shape[1:]))
        try:
            torch.distributed.all_gather_single(whole, share)
        except RuntimeError as error:
            if type(error) is RuntimeError or isinstance(error, torch.distributed.DistError):
                reason = str(error).partition("\n")[0]
                raise ProcessLostError(f"lost another process of the run: {reason}") from error
            raise
        return whole


def world(device: str = "auto") -> World:
    """Join the processes that a launcher started, or make a world of one.

    Args:
        device: "auto" for an accelerator where there is one, or a torch device.

    Returns:
        This process's place.

    Raises:
        RuntimeError: If the launcher started several processes that could not be joined.
    """
    # Otherwise accelerate would choose the number of threads, and with it the last bits.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    # Asked for an accelerator that is not there, accelerate makes each process a world of its own.
    state = PartialState(
        cpu=device == "cpu" or not torch.accelerator.is_available(), **_meeting_place()
    )
    wanted = int(os.environ.get("WORLD_SIZE", "1"))  # under MPI, set by the line above
    if state.num_processes != wanted:
        msg = (
            f"the launcher asked for {wanted} processes, but {state.num_processes} could be "
            f"joined on device {device!r}. Set `run.device` to a device that is there."
        )
        raise RuntimeError(msg)
    # Where no GPU is used, `accelerate launch` starts one process however many it is asked for.
    # Only if it was asked for several does it say where they are to meet.
    if wanted == 1 and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys():
        msg = (
            "`accelerate launch` was asked for several processes, but without GPUs it starts one. "
            "Start with `mvczigal train RECIPE --processes N`; for one process leave "
            "`--num_processes` out and MASTER_ADDR unset."
        )
        raise RuntimeError(msg)
    own = state.device if wanted > 1 or device == "auto" else torch.device(device)
    return World(rank=state.process_index, size=state.num_processes, device=own)


def _meeting_place() -> dict[str, Any]:
    """Say where the processes of `--processes` meet; those of another launcher ask its address."""
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
