"""Everything that can go wrong here, as one tree.

    SkipGPTError
    ├── ConfigError(ValueError)         a setting is unknown, of the wrong type or out of range
    ├── UnsupportedModelError           the base model is not whole, or not of a family with a row
    ├── CheckpointError                 files are missing, damaged or of another base model
    ├── DataError                       text that cannot be read, or not enough of it
    ├── TrainingError                   training had to stop; the message says what was kept
    │   └── DivergedError               a value is NaN or infinite
    ├── StoppedError                    a signal stopped the work; the message says what is kept
    ├── ServingError                    an engine that serves a model ended by itself
    └── MissingExtraError(ImportError)  an optional package is absent; prints the install line

Every message says what was being done, what was got and, where it helps, what was expected and
what to do.
"""

from __future__ import annotations

from typing import Any, Self


class SkipGPTError(Exception):
    """Root of the tree; catch this to catch all that skipgpt raises on purpose.

    A message has the parts below, in their order.

    Args:
        doing: what was being done, as a participle ("loading the checkpoint out/").
        got: what was found.
        expected: what would have been right.
        todo: what the reader can do about it, as an imperative.

    Example:
        >>> raise ConfigError(doing="reading the run", got="sparsity 1.5", expected="0 to 0.95")
        Traceback (most recent call last):
        skipgpt.errors.ConfigError: reading the run: got sparsity 1.5; expected 0 to 0.95
    """

    def __init__(self, doing: str, *, got: str, expected: str = "", todo: str = "") -> None:
        self.doing, self.got, self.expected, self.todo = doing, got, expected, todo
        parts = (f"{doing}: got {got}", expected and f"expected {expected}", todo)
        super().__init__("; ".join(filter(None, parts)))

    def advising(self, todo: str) -> Self:
        """The same error with other advice, for a caller that has other options."""
        return type(self)(self.doing, got=self.got, expected=self.expected, todo=todo)

    def __reduce__(self) -> tuple[Any, ...]:
        """Support pickling, as between processes: arguments alone would not do."""
        return type(self).__new__, (type(self), *self.args), vars(self)


class ConfigError(SkipGPTError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class UnsupportedModelError(SkipGPTError):
    """The base model is not whole, or not of a family that routers fit into."""


class CheckpointError(SkipGPTError):
    """Files are missing, damaged, already there, or belong to another base model."""


class DataError(SkipGPTError):
    """Text that cannot be read, or not enough of it."""


class TrainingError(SkipGPTError):
    """Training had to stop; the message says what was kept."""


class DivergedError(TrainingError):
    """Training met a value that is NaN or infinite."""


class StoppedError(SkipGPTError):
    """A signal stopped the work; the message says what is kept and how to go on."""


class ServingError(SkipGPTError):
    """An engine that serves a model ended by itself."""


class MissingExtraError(SkipGPTError, ImportError):
    """An optional package is absent.

    Args:
        package: the module that could not be imported.
        extra: the extra of skipgpt that installs it.
        doing: what it was needed for.
    """

    def __init__(self, package: str, extra: str, doing: str) -> None:
        super().__init__(
            doing,
            got=f"no package {package!r}",
            expected=f"the extra [{extra}]",
            todo=f"run: pip install 'skipgpt[{extra}]'",
        )


def in_brief(error: BaseException) -> str:
    r"""Return the type of an error and the first line of its message, if it has one.

    Example:
        >>> in_brief(RuntimeError("no compiler\nand more")), in_brief(MemoryError())
        ('RuntimeError: no compiler', 'MemoryError')
    """
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
