"""The two ways in which work ends early: a mistake only the user can put right, and a stop on request."""


class UserError(ValueError):
    """What is wrong, where, and what would be right, in one sentence.

    Args:
        argument: the Python argument that is wrong, where it is one; a script shows it as its option.
    """

    def __init__(self, message: str, argument: str | None = None) -> None:
        super().__init__(message if argument is None else f"{argument}: {message}")
        self.message, self.argument = message, argument


class Interrupted(Exception):
    """Work was stopped at a point from which it can go on. The message says where it stands."""


class ProcessLost(Interrupted):
    """Another of the processes that work together has ended."""
