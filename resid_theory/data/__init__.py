"""Data sets: regression problems, digits, MNIST, CIFAR-10, image folders, and their moments."""

from resid_theory.data.augmentation import Crops, augment, draw_crops
from resid_theory.data.batch import Batch
from resid_theory.data.cifar import load_cifar10
from resid_theory.data.data import Data
from resid_theory.data.datasets import IMAGE_SETS, load_images
from resid_theory.data.image_folders import load_image_folder
from resid_theory.data.image_set import Images
from resid_theory.data.mnist import load_mnist
from resid_theory.data.moments import Moments
from resid_theory.data.regression import Regression, gather, one_hot
from resid_theory.data.whitening import Whitening, load_whitened, whiten

__all__ = [
    "IMAGE_SETS",
    "Batch",
    "Crops",
    "Data",
    "Images",
    "Moments",
    "Regression",
    "Whitening",
    "augment",
    "draw_crops",
    "gather",
    "load_cifar10",
    "load_image_folder",
    "load_images",
    "load_mnist",
    "load_whitened",
    "one_hot",
    "whiten",
]
