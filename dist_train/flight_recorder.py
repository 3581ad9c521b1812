"""The last collectives of this process on a GPU, in a file, for torchfrtrace to say which rank was missing in which.

NCCL writes that file when a collective of its own has timed out. Here none has: the watch in ranks.py ends a run that stands still
before that. So a rank that has to be ended asks for it, as far as this version of PyTorch can be asked.
"""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path

from torch._C import _distributed_c10d

from shards.whole_files import write_bytes

LIMIT = 20.0  # seconds that it may take: a GPU that hangs may hold up whoever asks what it is doing


def leave_collectives(rank: int) -> None:
    """Writes what NCCL remembers to the path in TORCH_FR_DUMP_TEMP_FILE with the rank behind it, if that is set.

    This process is about to end anyway: where the answer takes too long, it ends here. Raises OSError when the file cannot be written.
    """
    place, dump = os.environ.get("TORCH_FR_DUMP_TEMP_FILE"), getattr(_distributed_c10d, "_dump_nccl_trace", None)
    if place and dump is not None:
        with open(os.devnull, "w", encoding="ascii") as nowhere:
            faulthandler.dump_traceback_later(LIMIT, exit=True, file=nowhere)  # by a thread that needs nothing of Python's
            write_bytes(Path(f"{place}{rank}"), dump(includeStackTraces=False))
            faulthandler.cancel_dump_traceback_later()
