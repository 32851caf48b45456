"""What Alembic runs: the revisions, on the connection and in the transaction that the caller opened."""

from alembic import context

from backend.adapters.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
context.run_migrations()
