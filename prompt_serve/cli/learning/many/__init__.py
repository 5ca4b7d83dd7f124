"""``prompt-serve train-many``: train and measure the runs of one file."""
