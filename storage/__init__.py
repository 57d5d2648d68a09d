"""All that stays: objects on disk or S3, tables, the ledger, snapshots."""

import os
from typing import Final

# Read when Arrow is imported, so every package of the night imports this one first. Arrow's own allocator keeps what
# each thread freed: a bake would grow with its plan.
ARROW_ALLOCATOR: Final = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
for _name, _value in ARROW_ALLOCATOR.items():
    os.environ.setdefault(_name, _value)
