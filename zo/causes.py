"""Why an attempt at a run failed, and whether another attempt can help."""

import errno
import signal

from zo.errors import UserError

TRY_AGAIN = 75
"""Exit status of an attempt that the machine failed, not the code: EX_TEMPFAIL of sysexits.h."""
KILLED = tuple(128 + s for s in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM))
"""Exit statuses of a job that was told to stop."""
ABORTED = (1, 127, 128 + signal.SIGABRT)
"""Exit statuses of a job that OpenBLAS, the C library or C++ ended; only its last words say why. Python ends
with 1 too, but for want of memory the command line ends with TRY_AGAIN."""

MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "alloc_failed",
    "cublas_status_not_initialized",  # a full GPU, at the first product of matrices
    "bad_alloc",
    "failed to map segment",
    "memory allocation still failed",
)
"""How torch, its CPU allocator, CUDA's libraries and the system spell it; most raise a bare RuntimeError."""
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ENOLCK)
"""A full disk, a quota, a device or a file server that failed."""


class RankLost(Exception):
    """Another process of the run is gone: killed, hung, or ended by an error of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller step, or the same one on an emptier machine, could have passed."""
    if isinstance(error, UserError):
        return False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    reason = error.__cause__ or error.__context__  # numpy and llvmlite wrap what kept them from loading
    return _says_memory(str(error)) or (reason is not None and is_out_of_memory(reason))


def _says_memory(text: str) -> bool:
    return any(words in text.lower() for words in MEMORY_WORDS)


def is_machine_failure(error: BaseException) -> bool:
    """Whether the disk, the file server, the GPU or another rank failed the run: tomorrow it may not."""
    if isinstance(error, UserError):
        return False
    if isinstance(error, RankLost) or (isinstance(error, OSError) and error.errno in MACHINE_ERRORS):
        return True
    if type(error).__name__ == "AcceleratorError":  # CUDA's, e.g. a GPU that fell off the bus
        return True
    return error.__cause__ is not None and is_machine_failure(error.__cause__)  # `datasets` wraps it


def lies_with_machine(error: BaseException) -> bool:
    """Whether memory or the machine was short of something: then nothing is wrong with what was read."""
    return is_out_of_memory(error) or is_machine_failure(error)


def name_cause(error: BaseException) -> str:
    """One word or two for the record of an attempt."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted"
    if isinstance(error, UserError):
        return "refused"
    if is_out_of_memory(error):
        return "out of memory"
    return "machine failure" if is_machine_failure(error) else "bug"


def may_pass(exit_status: int, last_words: str = "") -> bool:
    """Whether a job that ended so should be tried again: killed, or failed by its machine. A bug is not."""
    short_of_memory = exit_status in ABORTED and _says_memory(last_words)
    return exit_status in KILLED or exit_status == TRY_AGAIN or short_of_memory
