"""The gateway's own page, for those with an admin key: answers, hits and savings over time, verdicts."""
