"""Approvals that can have no effect any more. In: the answers table and the verdicts. Out: verdicts without them.

Any snapshot that is kept, and so any that a rollback can serve, holds answers of the answers table, and none is served
once it has expired. So an approval is dead when the table has no unexpired answer of its fingerprint in its words.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Final

import duckdb
import pyarrow as pa

from prebake.errors import ConflictError
from prebake.tables import FINGERPRINT
from storage.store import Store
from storage.verdicts import forget_approvals, read_verdicts

logger = logging.getLogger(__name__)


def forget_dead_approvals(store: Store, now: datetime) -> None:
    """Drop the approvals of answers that nobody can be given at ``now`` (UTC) or later.

    What people approve at the same time stays. Raises StorageError if the verdicts cannot be read or written.
    """
    approved = read_verdicts(store.objects).approved
    if not approved:
        return
    given = pa.table(
        {
            "fingerprint": pa.array(map(bytes.fromhex, approved), FINGERPRINT),
            "digest": [approval.answer for approval in approved.values()],
        }
    )
    with duckdb.connect() as connection:
        connection.register("given", given)
        connection.register("answers", store.answers.scan())
        living = connection.execute(_LIVING_SQL, {"now": now}).fetchall()
    alive = {fingerprint.hex() for (fingerprint,) in living}
    dead = {key: approval for key, approval in approved.items() if key not in alive}
    if dead:
        try:
            forget_approvals(store.objects, dead)
        except ConflictError as error:  # they do no harm: the next night drops them
            logger.warning("%s; %d dead approvals stay until the next publish", error, len(dead))


# As prebake.verdicts.answer_digest has it.
_LIVING_SQL: Final = """
    select distinct given.fingerprint from answers join given using (fingerprint)
    where expires_at > $now and sha256(message)[1:32] = digest
"""
