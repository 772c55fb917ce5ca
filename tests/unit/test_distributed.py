"""`distributed`: two processes give what one gives, and one needs no process group.

Run as a program, this file is one of the two processes.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mvczigal_ref import distributed
from mvczigal_ref.distributed import World, world
from mvczigal_ref.errors import NonFiniteError, ProcessLostError

OBJECTS = 8
SLICES = 4
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]


def values(dtype):
    """One row an object, each its own."""
    return (torch.arange(OBJECTS * 4).reshape(OBJECTS, 2, 2) % 5).to(dtype)


def gradients(rank):
    """Gradients on which the order of a sum shows in the last bits."""
    generator = torch.Generator().manual_seed(rank)
    shapes = [(7, 3), (5,), (2, 2), (4,), (3,)]
    made = [torch.randn(shape, generator=generator) * 10 ** (3 * rank) for shape in shapes]
    made[2] = made[2].double()
    made[3] = made[3] if rank == 1 else None
    made[4] = None
    return made


def parameters(rank):
    """Trained parameters with those gradients."""
    made = []
    for gradient, shape in zip(gradients(rank), [(7, 3), (5,), (2, 2), (4,), (3,)], strict=True):
        dtype = torch.float32 if gradient is None else gradient.dtype
        parameter = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
        parameter.grad = gradient
        made.append(parameter)
    return made


class UnsendableError(Exception):
    """A class that the other process need not have."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def faults(here):
    """What the processes meet, by case: an exception each, or None and then a collective."""
    nowhere, somewhere = NonFiniteError("gradient_norm"), NonFiniteError("gradient", object=3)
    waits = {
        "gather": lambda: here.gather_objects(torch.zeros(1)),
        "mean": lambda: here.mean_gradients(parameters(here.rank)),
        "flag": lambda: here.anywhere(False),
        "barrier": here.barrier,
    }
    cases = {name: (wait, [None, OSError(f"disk full at {name}")]) for name, wait in waits.items()}
    cases["first"] = here.barrier, [KeyError("absent"), None]
    cases["both, the second with a place"] = here.barrier, [nowhere, somewhere]
    cases["both, none with a place"] = here.barrier, [KeyError("one"), KeyError("other")]
    cases["words alone"] = here.barrier, [None, UnsendableError(1, 2)]
    return cases


def fail_or(wait, error):
    """Raise, or go to a collective."""
    if error is not None:
        raise error
    wait()


def fail_in_the_first(here):
    """Raise in one process what the other then meets at its barrier."""
    with here.together():
        if here.rank == 0:
            raise OSError("disk full")
        here.barrier()


def meet(here):
    """Meet the faults one after the other; say what each raised in this process."""
    said = {}
    for name, (wait, errors) in faults(here).items():
        try:
            with here.together():
                fail_or(wait, errors[here.rank])
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def reductions(here, limit):
    """Count the calls of the engine's sum where so many numbers are still added in order."""
    calls, right, small = [], torch.distributed.all_reduce, distributed._SMALL

    def counted(*given, **named):
        calls.append(given)
        return right(*given, **named)

    torch.distributed.all_reduce, distributed._SMALL = counted, limit
    replace(here, reduction="auto").mean_gradients(parameters(here.rank))
    torch.distributed.all_reduce, distributed._SMALL = right, small
    return len(calls)


def work(folder):
    """What each of the two processes does."""
    here = world("auto")
    share = here.slice_share(SLICES)
    size = OBJECTS // SLICES
    rows = [index * size + i for index in share for i in range(size)]
    found = {f"gathered.{dtype}": here.gather_objects(values(dtype)[rows]) for dtype in DTYPES}
    found["gathered.numbers"] = here.gather_objects(torch.arange(float(OBJECTS))[rows])
    for bucket in (2**24, 6):
        distributed._BUCKET = bucket
        trained = parameters(here.rank)
        here.mean_gradients(iter(trained))
        kept = {i: p.grad for i, p in enumerate(trained) if p.grad is not None}
        found |= {f"gradient.{bucket}.{i}": gradient for i, gradient in kept.items()}
    trained = parameters(here.rank)
    replace(here, reduction="engine").mean_gradients(trained)
    found |= {f"engine.{i}": p.grad for i, p in enumerate(trained) if p.grad is not None}
    for limit in (6, 1000):
        found[f"reductions.{limit}"] = torch.tensor(reductions(here, limit))
    with torch.device("meta"):  # whatever torch's default device is
        flags = [here.anywhere(here.rank == r) for r in (0, 1, 2)]
        with pytest.raises(OSError, match="disk full"):
            fail_in_the_first(here)
    found["place"] = torch.tensor([here.rank, here.size, here.is_main, share.start, *flags])
    with here.together():
        here.barrier()
    Path(f"{folder}/{here.rank}.json").write_text(json.dumps(meet(here)), "utf-8")
    save_file(found, f"{folder}/{here.rank}.safetensors")
    if here.rank == 0:
        with pytest.raises(ProcessLostError, match="lost another process"), here.together():
            here.barrier()  # to which the other does not come any more
        Path(f"{folder}/lost").touch()
    here.close()


def launch(folder):
    """Run two processes as a launcher would; give their exit codes and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-W", "error", "-m", __name__, str(folder)]
    processes = [
        subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], "\n".join(said)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Where two processes wrote, and how they ended."""
    folder = tmp_path_factory.mktemp("two")
    return folder, *launch(folder)


@pytest.fixture(scope="module")
def two(ended):
    """What two processes found."""
    return [load_file(f"{ended[0]}/{rank}.safetensors") for rank in range(2)]


# -- oracle: two processes against plain sums --------------------------------------------


def test_two_processes_join_and_end_well(ended):
    """On the CPU where there is no accelerator, not each in a world of its own."""
    _, codes, said = ended

    assert codes == [0, 0], said


def test_each_process_knows_its_place(two):
    """Rank, size, who writes files, and where its slices begin."""
    assert [found["place"].tolist()[:4] for found in two] == [[0, 2, 1, 0], [1, 2, 0, 2]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gathering_the_shares_gives_the_whole(two, dtype):
    """In the order that one process would have, in every process, in every dtype."""
    for found in two:
        assert found[f"gathered.{dtype}"].dtype == dtype
        assert torch.equal(found[f"gathered.{dtype}"], values(dtype))
        assert found["gathered.numbers"].tolist() == list(range(OBJECTS))


def test_the_engine_gives_the_mean_to_rounding(two):
    """Of the same gradients, in their dtypes; one that no process has stays absent."""
    names = {name for name in two[0] if name.startswith("gradient.16777216.")}
    assert {f"engine.{n.rpartition('.')[2]}" for n in names} == {
        name for name in two[0] if name.startswith("engine.")
    }
    for found in two:
        for name in names:
            ours = found[f"engine.{name.rpartition('.')[2]}"]
            torch.testing.assert_close(ours, found[name], rtol=1e-6, atol=0.0)


def test_few_gradients_are_added_in_order_and_many_by_the_engine(two):
    """By default: all of them together are counted."""
    for found in two:
        assert found["reductions.6"] > 0
        assert found["reductions.1000"] == 0


@pytest.mark.parametrize("bucket", [2**24, 6], ids=["one bucket a dtype", "small buckets"])
def test_gradients_are_the_mean_to_the_last_bit(two, bucket):
    """Added in the order of the processes, a missing one as zero, in buckets of any size."""
    zero = torch.zeros(4)
    for found in two:
        for i, (a, b) in enumerate(zip(gradients(0), gradients(1), strict=True)):
            name = f"gradient.{bucket}.{i}"
            if b is None:
                assert name not in found
            else:
                assert torch.equal(found[name], ((zero if a is None else a) + b) / 2)


def test_a_flag_raised_anywhere_is_seen_everywhere(two):
    """Raised by the first, by the second, by none."""
    assert [found["place"].tolist()[4:] for found in two] == [[1, 1, 0], [1, 1, 0]]


def test_an_exception_in_one_process_is_raised_in_all(ended):
    """Whichever collective the others wait in; the first that names a place, else the first."""
    one, other = (json.loads((ended[0] / f"{rank}.json").read_text()) for rank in range(2))

    assert one == {
        "gather": "OSError: disk full at gather",
        "mean": "OSError: disk full at mean",
        "flag": "OSError: disk full at flag",
        "barrier": "OSError: disk full at barrier",
        "first": "KeyError: 'absent'",
        "both, the second with a place": "NonFiniteError: `gradient` must be finite; got a "
        "non-finite value at object 3.",
        "both, none with a place": "KeyError: 'one'",
        "words alone": "RuntimeError: UnsendableError: 1 and 2",
    }
    # The process that met it has the exception itself.
    assert other == {**one, "words alone": "UnsendableError: 1 and 2"}


def test_a_process_that_is_gone_is_told_of_in_a_line(ended):
    """The other does not wait for ever, nor end in torch's own words."""
    assert (ended[0] / "lost").exists(), ended[2]


# -- laws --------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 8))
def test_the_shares_are_all_slices_once_in_order_and_equal(size, share):
    """So that gathered shares are in the order of one process."""
    shares = [World(rank=rank, size=size).slice_share(share * size) for rank in range(size)]

    assert [index for part in shares for index in part] == list(range(share * size))
    assert {len(part) for part in shares} == {share}


def test_a_world_of_one_needs_no_process_group():
    """Every call is the identity."""
    alone = World()
    trained = parameters(1)
    before = [p.grad for p in trained]
    alone.mean_gradients(trained)
    alone.barrier()
    alone.close()

    assert all(p.grad is g for p, g in zip(trained, before, strict=True))
    assert (alone.is_main, alone.anywhere(True), alone.anywhere(False)) == (True, True, False)
    assert alone.slice_share(3) == range(3)
    assert not torch.distributed.is_initialized()


def test_a_world_of_one_raises_what_it_meets():
    """The very exception."""
    error = KeyError("absent")
    with pytest.raises(KeyError) as caught, World().together():
        raise error
    assert caught.value is error


def test_gathered_values_carry_no_gradient():
    """In one process as in several."""
    assert not World().gather_objects(torch.ones(2, requires_grad=True)).requires_grad


def test_world_gives_the_device_that_was_asked_for(monkeypatch):
    """And leaves the number of threads alone."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = torch.get_num_threads()

    assert world("cpu") == World(device=torch.device("cpu"))
    assert world("meta").device == torch.device("meta")
    assert torch.get_num_threads() == threads
    assert os.environ["OMP_NUM_THREADS"] == str(threads)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slices", "size", "nearest"), [(3, 2, "2 and 4"), (7, 3, "6 and 9"), (1, 4, "4"), (0, 2, "2")]
)
def test_unequal_shares_are_refused_with_the_nearest_valid_setting(slices, size, nearest):
    """A process without work would wait for ever in the next collective."""
    with pytest.raises(
        ValueError, match=rf"got {slices}\. The nearest valid values are {nearest}:"
    ):
        World(size=size).slice_share(slices)


def test_processes_that_cannot_be_joined_are_refused(monkeypatch):
    """Rather than each running the whole run."""
    alone = SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu"))
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: alone)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RuntimeError, match="asked for 3 processes, but 1 could be joined"):
        world("cpu")


def test_a_launcher_that_starts_one_process_of_several_is_refused(monkeypatch):
    """`accelerate launch --cpu --num_processes 2` says where two would meet, and starts one."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert world("cpu").size == 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RuntimeError, match=r"starts one\. Start with `mvczigal train"):
        world("cpu")


if __name__ == "__main__":
    work(sys.argv[1])
