"""Every failure prebake reports on purpose: one class per kind, with the exit code the command line uses.

A message names the thing, the place, what was expected and what to do, in one line.
"""

from __future__ import annotations


class PrebakeError(Exception):
    """Something prebake could not do; the message is written for the person who reads it."""

    exit_code = 1


class SettingsError(PrebakeError):
    """A setting is missing, unknown or of the wrong kind."""

    exit_code = 2


class InputError(PrebakeError):
    """A file or table given by the user cannot be used."""

    exit_code = 3


class RejectLimitError(InputError):
    """More rows of the input were rejected than the settings allow."""


class StorageError(PrebakeError):
    """The disk, the object store or the ledger refused or cannot be reached."""

    exit_code = 4


class ConflictError(StorageError):
    """Somebody else changed the object first: a conditional write was refused."""


class LeaseLostError(StorageError):
    """The shard's lease was taken over; what this worker holds can no longer be committed."""


class SnapshotError(StorageError):
    """A serving snapshot is damaged, incomplete or of a version this prebake does not read."""


class BusyError(PrebakeError):
    """Another night is running on this store."""

    exit_code = 5


class EngineError(PrebakeError):
    """The model cannot be loaded or its engine died."""

    exit_code = 6


class BudgetError(PrebakeError):
    """The budget does not allow what was asked."""

    exit_code = 7


class Interrupted(PrebakeError):
    """A signal asked to stop; what was finished is kept."""

    exit_code = 130
