"""The papers' protocols, datasets and benchmarks: built on training, unknown to the product."""
