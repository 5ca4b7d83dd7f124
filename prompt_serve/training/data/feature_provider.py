"""Features or pixels of image sets, computed once per set while prompts are trained."""

from collections.abc import Hashable

from prompt_serve.training.clip.backbone import Backbone
from prompt_serve.training.data.augment import Augmentation
from prompt_serve.training.data.dataset import ImageSet
from prompt_serve.training.data.features import FeatureCache, image_features
from prompt_serve.training.data.image_batches import ImageData
from prompt_serve.training.data.pixels import image_pixels
from prompt_serve.training.progress import SILENT, Advance, Progress, StageTimer, no_advance

PLAIN_VIEW = 0


def image_data(
    images: ImageSet,
    backbone: Backbone,
    *,
    as_pixels: bool = False,
    views: int = PLAIN_VIEW,
    seed: int = 0,
    augmentation: Augmentation = "crops",
    cache: FeatureCache | None = None,
    workers: int = 4,
    advance: Advance = no_advance,
) -> ImageData:
    """Return image features, or pixels where the image tower is prompted.

    Args:
        images: N readable images.
        backbone: frozen CLIP.
        as_pixels: return pixels; ``cache`` is ignored.
        views: augmented views per image; 0 for the plain view only.
        seed: random seed of the views.
        augmentation: kind of random crops.
        cache: feature cache; None keeps nothing on disk.
        workers: threads that decode images.
        advance: called with the number of images done, N in all.
    """
    if as_pixels:
        return image_pixels(
            images,
            backbone.preprocessing,
            views=views,
            seed=seed,
            augmentation=augmentation,
            workers=workers,
            advance=advance,
        )
    return image_features(
        images,
        backbone,
        views=views,
        seed=seed,
        augmentation=augmentation,
        cache=cache,
        workers=workers,
        advance=advance,
    )


class FeatureProvider:
    """Provides image sets for training and evaluation; a repeated request costs nothing.

    Args:
        backbone: frozen CLIP.
        timer: adds up the seconds, as stage "features".
        cache: feature cache; None keeps nothing on disk.
        workers: threads that decode images.
        progress: shows a bar per image set.
    """

    def __init__(
        self,
        backbone: Backbone,
        timer: StageTimer,
        *,
        cache: FeatureCache | None = None,
        workers: int = 4,
        progress: Progress = SILENT,
    ) -> None:
        self._backbone, self._timer, self._progress = backbone, timer, progress
        self._cache, self._workers = cache, workers
        self._provided: dict[Hashable, ImageData] = {}

    def __call__(
        self,
        part: str,
        images: ImageSet,
        *,
        as_pixels: bool,
        views: int = PLAIN_VIEW,
        seed: int = 0,
        augmentation: Augmentation = "crops",
    ) -> ImageData:
        """Return the images of a part in ``views`` augmented views, or in the plain view.

        Raises:
            BackboneUnsupported: pixels are requested, and the image tower cannot be prompted.
        """
        if as_pixels:
            _ = self._backbone.image_tower  # raises before any image is decoded
        key = (as_pixels, images.items, views, (seed, augmentation) if views else None)
        if key not in self._provided:
            doing = f"{'decoding' if as_pixels else 'encoding'} {part}"
            with self._timer("features"), self._progress.bar(doing, len(images), "img") as advance:
                self._provided[key] = image_data(
                    images,
                    self._backbone,
                    as_pixels=as_pixels,
                    views=views,
                    seed=seed,
                    augmentation=augmentation,
                    cache=self._cache,
                    workers=self._workers,
                    advance=advance,
                )
        return self._provided[key]
