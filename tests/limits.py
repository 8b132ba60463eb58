"What a call may cost: time by the clock, memory by a limit that the system enforces."

import resource
import time
from contextlib import contextmanager


@contextmanager
def small(seconds: float = 1.0, megabytes: float = 64.0):
    """The block must not need `megabytes` more address space than the process has, nor take longer
    than `seconds`.
    """
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + int(megabytes * 2**20), hard))
    began = time.perf_counter()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert (took := time.perf_counter() - began) < seconds, f"took {took:.2f} s"
