"""Binary batches of CIFAR-10 in three fifths of their bytes, without loss."""

import zlib

import numpy as np

_BYTES = 3073  # of a record: a label and 3 x 32 x 32 pixels


def pack_images(batch: bytes) -> bytes:
    """Compress a binary batch: labels, then differences between channels and between neighbors."""
    records = np.frombuffer(batch, np.uint8).reshape(-1, _BYTES)
    pixels = records[:, 1:].reshape(-1, 3, 32, 32)
    green = pixels[:, 1:2]
    # Neighbors differ little, and so do red and blue from green; bytes are modulo 256.
    planes = np.concatenate([green, pixels[:, ::2] - green], 1)
    for axis in (-1, -2):
        planes = np.diff(planes, axis=axis, prepend=np.uint8(0))
    # Not bz2 or xz, which take 4 and 8 % off and 10 times as long to unpack, on a rented machine.
    return zlib.compress(records[:, 0].tobytes() + planes.tobytes(), 9)


def unpack_images(packed: bytes) -> bytes:
    """The binary batch; a ValueError if the bytes are damaged."""
    try:
        flat = np.frombuffer(zlib.decompress(packed), np.uint8)
    except zlib.error as error:
        raise ValueError(f"packed: not a packed batch of images ({error})") from error
    count = len(flat) // _BYTES
    planes = flat[count:].reshape(count, 3, 32, 32)
    for axis in (-2, -1):
        planes = np.cumsum(planes, axis=axis, dtype=np.uint8)
    green, red, blue = planes[:, :1], planes[:, 1:2], planes[:, 2:]
    pixels = np.concatenate([red + green, green, blue + green], 1).reshape(count, -1)
    return np.concatenate([flat[:count, None], pixels], 1).tobytes()
