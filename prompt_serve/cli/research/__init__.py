"""Commands that run the papers' protocols, check their datasets and report the results."""
