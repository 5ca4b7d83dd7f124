"""From a folder of images to batches: reading, sampling, augmentation, cached features."""
