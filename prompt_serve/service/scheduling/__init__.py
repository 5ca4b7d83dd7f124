"""Share threads and queues fairly between callers."""
