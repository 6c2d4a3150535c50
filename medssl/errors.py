"""The error family: each message says what was wrong, where, and what to do.

Every error also inherits the natural builtin, so callers who know nothing of medssl catch it as they would any other.
"""

RESUME = "--resume (in Python resume=True)"
"""How a run goes on, for messages."""
GO_ON = f"Then go on with {RESUME}."
"""What follows on what a person has to mend."""


class MedsslError(Exception):
    """Root of the family. The command line prints the message alone and exits with `exit_code`."""

    exit_code = 1


class UsageError(MedsslError, ValueError):
    """The call itself is wrong: a bad option, a missing argument, values that contradict each other."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration key or value that cannot be used; the message names its path."""


class MissingInput(UsageError, FileNotFoundError):
    """A file, folder, store, run or checkpoint that was named and is not there."""


class NetworkError(ConfigError):
    """A network that cannot be built, has no known encoder end, or cannot take the crop."""


class PluginError(MedsslError, RuntimeError):
    """A plugin that is missing, broken, doubled or misbehaves; the message names its package."""


class ArchiveError(MedsslError, RuntimeError):
    """An archive or index that cannot be read."""


class StoreError(MedsslError, RuntimeError):
    """A store that is damaged, of a newer version, or cannot be written."""


class DataError(MedsslError, ValueError):
    """Images or labels whose content cannot be used: mismatched grids, unknown label values, NaN."""


class CheckpointError(MedsslError, RuntimeError):
    """A checkpoint that is truncated, damaged or does not belong to this run."""


class TransferError(MedsslError, ValueError):
    """Weights that do not fit the network they were to be loaded into."""


class TrainingError(MedsslError, RuntimeError):
    """A run that cannot go on: a loss that is not finite, an output folder that holds another run."""


def printable(text: str) -> str:
    """The text as it may be shown: what a name or a header brought of control characters is escaped, line ends stay."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
