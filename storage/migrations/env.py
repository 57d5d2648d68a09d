"""Alembic's way in: migrates the connection that ``storage/ledger_database.py`` hands over, in its transaction."""

from alembic import context

from storage.ledger_schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
context.run_migrations()
