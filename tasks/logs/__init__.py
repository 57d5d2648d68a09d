"""Reading query logs: which files, in which format, in which layout, and how their rows become the query log's."""
