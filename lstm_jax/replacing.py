"""Files that are there whole, or as they were."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """A path to write to; what was written takes the place of ``path`` at the end.

    It is one of its own for whoever writes at the same time. After an error it is
    removed, and ``path`` left as it was.
    """
    partial = f"{os.fspath(path)}.{secrets.token_hex(4)}.partial"
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise
