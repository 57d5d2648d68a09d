"""The ground floor: the words every other part shares (request, route, settings, tables), and the command line."""

__version__ = "0.1.0"
