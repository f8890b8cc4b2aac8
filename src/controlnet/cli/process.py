"""How the process of a command behaves: how threads wait, what becomes of freed memory. Importing changes neither."""

import ctypes
import os

# how often a thread of torch looks whether the others are done before it sleeps (libgomp, which asks when it is loaded)
LOOKS, OWN_CHOICES = 5_000, {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}

# mallopt(3): how much that lies free at the end is kept, and from which size on pages go back to the system at once
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT, AT_ONCE = 2**31 - 1, 2**28  # bytes
OWN_THRESHOLDS = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"}


def let_threads_sleep() -> None:
    """Where others compute too, threads that wait awake for those that they keep from running take ten times as long.

    300,000 looks are libgomp's own choice. 1,500 convolutions and SiLUs of 64 channels at 16x16, two threads, two
    cores: 0.34 s with either on an idle machine, 9 to 37 s and 1.2 to 3 s on a busy one.
    """
    if not OWN_CHOICES & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(LOOKS)


def keep_freed_memory() -> bool:
    """Let glibc keep what torch frees for what torch wants next; whether it does: others have no such switch.

    Else tensors of 32 MB and more are pages that the system takes back and gives anew, filled with zeros: a training
    step at the true size of SD 1.5, which makes and frees 3 GB of them, takes a third longer. Who set a threshold by
    environment keeps it.
    """
    mallopt = None if os.name == "nt" else getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or OWN_THRESHOLDS & os.environ.keys():
        return False
    return bool(mallopt(TRIM_THRESHOLD, KEPT) and mallopt(MMAP_THRESHOLD, AT_ONCE))
