"""One self-contained HTML page about the predictions of a task; it needs no torch."""
