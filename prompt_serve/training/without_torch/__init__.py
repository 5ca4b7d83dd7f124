"""The parts of training that need no torch: measurements, and class vectors from a bundle."""
