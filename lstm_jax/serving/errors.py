"""Why a request is refused: one class for each status of HTTP."""

from __future__ import annotations

from typing import Any, ClassVar


class ServingError(Exception):
    """What every refusal is.

    Attributes:
        status: the status of HTTP that says the same.
        retry_after: seconds after which it is worth trying again; None where it is not,
            or nothing is known.
    """

    status: ClassVar[int] = 500

    def __init__(self, message: str, retry_after: float | None = None):
        """Takes what is said, and when to come back."""
        super().__init__(message)
        self.retry_after = retry_after


class BadRequest(ServingError, ValueError):
    """What came has the wrong shape, dtype, length or values: 400."""

    status = 400


class UnknownStream(ServingError, LookupError):
    """There is no such stream, and it is not known that there was one: 404."""

    status = 404


class OutOfOrder(ServingError):
    """A chunk is not the next one of its stream, nor the last one again: 409.

    Attributes:
        expected: the number of the next chunk.
    """

    status = 409

    def __init__(self, message: str, expected: int):
        """Takes what is said, and the number that would be right."""
        super().__init__(message)
        self.expected = expected

    def __reduce__(self) -> tuple[Any, ...]:
        """How it is pickled, on its way from another process."""
        return type(self), (str(self), self.expected), self.__dict__


class Gone(ServingError):
    """The stream has been closed, dropped or evicted: 410."""

    status = 410


class Overloaded(ServingError):
    """Slots or queues are full: 429."""

    status = 429


class StepFailed(ServingError):
    """The step raised: 500. The stream is where it was before the chunk."""

    status = 500


class Unavailable(ServingError):
    """The server is not ready yet, is going down, or has broken: 503."""

    status = 503
