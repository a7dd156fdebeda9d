"""Image data sets held whole as bytes on the device; crops and flips that depend on nothing else.

One floor above ``data``: a set of pixels for a convolution trunk is more than the tensors that the
whitened components are made from.
"""

from resid_theory.images.augmentation import Crops, augment, draw_crops
from resid_theory.images.folders import load_image_folder
from resid_theory.images.named import load_images
from resid_theory.images.stored import Images

__all__ = ["Crops", "Images", "augment", "draw_crops", "load_image_folder", "load_images"]
