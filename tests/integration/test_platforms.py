"""The package under other systems: what POSIX alone has is guarded."""

import subprocess
import sys

# Run by itself: modules that are loaded already would not be imported again.
PROGRAM = """
import builtins, importlib, os, pkgutil, signal

absent = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
import torch, diffusers, accelerate.tracking, peft, transformers  # theirs are not our matter
for name in ("SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1"):
    delattr(signal, name)
for name in ("fork", "getpgid", "killpg", "sched_getaffinity", "setsid", "sysconf"):
    delattr(os, name)
real = builtins.__import__

def guarded(name, globals=None, *more, **options):
    ours = (globals or {}).get("__name__", "").startswith("mvczigal_ref")
    if ours and name.partition(".")[0] in absent:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real(name, globals, *more, **options)

builtins.__import__ = guarded
import mvczigal_ref

count = 0
for module in pkgutil.walk_packages(mvczigal_ref.__path__, "mvczigal_ref."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        count += 1
from mvczigal_ref.training.tracking import peak_memory

print(count, peak_memory(torch.device("cpu")))
"""


def test_every_module_is_imported_where_posix_is_not():
    """As under Windows, which also does not tell how much memory a process has held."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    count, peak = done.stdout.split()
    assert int(count) > 250
    assert peak == "None"
