"""The errors a user meets, each one line that says what to do next, and the exit code each becomes."""

from __future__ import annotations

from sani_dist.messages import one_line


class SaniError(Exception):
    """A failure with a message written for the user. `exit_code`: 2 bad input, 3 a run that failed and can be resumed."""

    exit_code = 3

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


class InputError(SaniError):
    """Settings, a model or data that cannot work. Raised before any training rank starts where that is possible."""

    exit_code = 2


class RunError(SaniError):
    """A run that started and failed; what it had finished is whole, and `sani-dist resume` goes on from there."""

    exit_code = 3
