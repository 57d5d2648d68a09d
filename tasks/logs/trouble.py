"""What can be wrong with one row, told apart from what is wrong with a file or a machine."""

from __future__ import annotations


class RowError(Exception):
    """The row cannot be read; the message is its reason in the table of rejects and never quotes the row."""


class NotARequestError(Exception):
    """The row is in order, but records no answered chat request; the message is the reason it is passed over."""
