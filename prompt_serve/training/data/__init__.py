"""From a folder of images to batches: loading, sampling, augmentation, cached features."""
