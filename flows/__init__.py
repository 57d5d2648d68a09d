import storage  # noqa: F401 - chooses the allocator of Arrow
