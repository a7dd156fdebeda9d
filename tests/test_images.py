"""Image sets: what is decoded, where it is looked for, and crops that are what they say."""

import hashlib
import shutil
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import resid_theory as rt
from resid_theory.data import Data, Images, augment, cifar, datasets, draw_crops, whiten
from resid_theory.data.datasets import _fit
from resid_theory.data.download import search_folders

CROP = draw_crops(1, pad=8, generator=torch.Generator().manual_seed(0))
md5 = hashlib.md5
# SHA-256 of the images and targets of sklearn.datasets.load_digits(), one byte a number.
DIGITS = [
    "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
    "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
]
COUNT = 20  # images of a batch in the small CIFAR-10 below


def records(labels, pixels):
    return np.concatenate([labels[:, None], pixels.reshape(len(labels), -1)], 1)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A CIFAR-10 of 20 images a batch, unpacked and as an archive, with checksums to match."""
    rng = np.random.default_rng(0)
    folder = tmp_path / cifar._FOLDER
    folder.mkdir()
    sums, everything = {}, []
    with tarfile.open(tmp_path / cifar._ARCHIVE, "w:gz") as archive:
        for name in cifar._MD5:
            pixels = rng.integers(256, size=(COUNT, 3, 32, 32), dtype=np.uint8)
            labels = rng.integers(10, size=COUNT, dtype=np.uint8)
            content = records(labels, pixels).tobytes()
            (folder / name).write_bytes(content)
            archive.add(folder / name, f"{cifar._FOLDER}/{name}")
            sums[name] = md5(content).hexdigest()
            everything.append((pixels, labels))
    packed = hashlib.sha256((tmp_path / cifar._ARCHIVE).read_bytes()).hexdigest()
    # As where the rules of FIPS 140 hold.
    monkeypatch.setattr(hashlib, "md5", lambda data, *, usedforsecurity: md5(data))
    monkeypatch.setattr(cifar, "_MD5", sums)
    monkeypatch.setattr(cifar, "_ARCHIVE_SHA256", packed)
    monkeypatch.setattr(cifar, "_MIRRORS", ((tmp_path / "nowhere").as_uri() + "/",))
    monkeypatch.setenv("RESID_THEORY_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    return tmp_path, everything


def use(small, form):
    """Leave one form of the data only."""
    folder, everything = small
    if form == "archive":
        shutil.rmtree(folder / cifar._FOLDER)
    else:
        (folder / cifar._ARCHIVE).unlink()
    return folder, everything


forms = pytest.mark.parametrize("form", ["unpacked", "archive"])


@forms
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_form_gives_the_official_order(small, form, split):
    _, everything = use(small, form)
    parts = everything[:5] if split == "train" else everything[5:]
    pixels, labels = cifar.load_cifar10(split)
    np.testing.assert_array_equal(pixels, np.concatenate([p for p, _ in parts]))
    np.testing.assert_array_equal(labels, np.concatenate([y for _, y in parts]))
    assert (pixels.dtype, labels.dtype) == (torch.uint8, torch.int64)
    images = rt.load_images("cifar10", split, progress=False)
    assert torch.equal(images.pixels, pixels) and torch.equal(images.labels, labels)
    # Mean and deviation as they are published.
    assert [round(x, 4) for x in images.mean] == [0.4914, 0.4822, 0.4465]
    assert [round(x, 3) for x in images.std] == [0.247, 0.243, 0.262]
    assert (images.brightest, images.classes) == (255.0, cifar.CIFAR10_CLASSES)


def test_a_folder_that_lacks_a_batch_is_passed_over(small):
    folder, everything = small
    (folder / cifar._FOLDER / "data_batch_4.bin").unlink()
    pixels, _ = cifar.load_cifar10()
    np.testing.assert_array_equal(pixels, np.concatenate([p for p, _ in everything[:5]]))


@forms
def test_batches_are_read_once_and_never_shared(small, form):
    folder, everything = use(small, form)
    cifar.load_cifar10("test")[0].zero_()
    shutil.rmtree(folder)
    np.testing.assert_array_equal(cifar.load_cifar10("test")[0], everything[5][0])


@pytest.mark.parametrize(
    ("form", "file", "message"),
    [("unpacked", f"{cifar._FOLDER}/data_batch_3.bin", "md5 .*, expected .*"),
     ("archive", cifar._ARCHIVE, "sha256 .*, expected .*")],
    ids=["unpacked", "archive"],
)  # fmt: skip
def test_a_flipped_bit_names_the_file(small, form, file, message):
    folder, _ = use(small, form)
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{Path(file).name}.*{message}; {cifar._REMEDY}$"):
        cifar.load_cifar10()


def test_an_archive_of_other_images_is_refused(small, monkeypatch):
    use(small, "archive")
    monkeypatch.setitem(cifar._MD5, "data_batch_2.bin", "0" * 32)
    with pytest.raises(ValueError, match="data_batch_2.*md5 .* expected 0000"):
        cifar.load_cifar10()


def test_a_missing_archive_is_fetched_once(small, monkeypatch):
    folder, everything = use(small, "archive")
    mirror = folder / "mirror"
    mirror.mkdir()
    (folder / cifar._ARCHIVE).rename(mirror / cifar._ARCHIVE)
    monkeypatch.setattr(cifar, "_MIRRORS", (*cifar._MIRRORS, mirror.as_uri() + "/"))
    for _ in range(2):
        pixels, _ = cifar.load_cifar10("test", progress=False)
        np.testing.assert_array_equal(pixels, everything[5][0])
        (mirror / cifar._ARCHIVE).unlink(missing_ok=True)
        cifar._records.cache_clear()


@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_is_shown_where_it_is_asked_for(small, monkeypatch, capsys, progress):
    folder, _ = use(small, "archive")
    mirror = folder / "mirror"
    mirror.mkdir()
    (folder / cifar._ARCHIVE).rename(mirror / cifar._ARCHIVE)
    monkeypatch.setattr(cifar, "_MIRRORS", (mirror.as_uri() + "/",))
    rt.load_images("cifar10", "test", progress=progress)
    assert bool(capsys.readouterr().err) == progress


def test_without_any_source_folders_and_mirrors_are_named(small):
    folder, _ = use(small, "archive")
    (folder / cifar._ARCHIVE).unlink()
    with pytest.raises(FileNotFoundError, match="cifar10") as caught:
        cifar.load_cifar10("test", progress=False)
    for part in (str(folder / "cifar10" / cifar._ARCHIVE), "nowhere", "RESID_THEORY_DATA"):
        assert part in str(caught.value)


def test_few_images_need_one_batch_only(small):
    folder, everything = use(small, "unpacked")
    (folder / cifar._FOLDER / "data_batch_5.bin").unlink()
    images = rt.load_images("cifar10", samples=COUNT)
    np.testing.assert_array_equal(images.pixels, everything[0][0])


@pytest.mark.parametrize(
    ("samples", "count"), [(1, 1), (10_000, 1), (10_001, 2), (40_001, 5), (None, 5)]
)
def test_as_many_batches_are_read_as_hold_the_samples(monkeypatch, samples, count):
    asked = []

    def read(folders, batches, progress):
        asked.extend(batches)
        return np.zeros((1, 3073), np.uint8)

    monkeypatch.setattr(cifar, "_records", read)
    cifar.load_cifar10(samples=samples)
    assert asked == [f"data_batch_{number}.bin" for number in range(1, count + 1)]


def test_the_real_cifar_is_checked_against_the_official_sums():
    folders = search_folders("cifar10")
    if not any((folder / cifar._FOLDER / "test_batch.bin").is_file() for folder in folders):
        pytest.skip("RESID_THEORY_DATA has no CIFAR-10")
    images = rt.load_images("cifar10", "test", progress=False)
    assert images.pixels.shape == (10_000, 3, 32, 32)
    assert torch.bincount(images.labels).tolist() == [1000] * 10
    mean = images.inputs(images.pixels, torch.float64).mean((0, 2, 3))
    assert float(mean.abs().max()) < 0.03  # the constants are those of the training images


@pytest.mark.parametrize("moved", [False, True])
def test_digits_are_those_of_scikit_learn(monkeypatch, tmp_path, moved):
    if moved:  # its function is called, of which the import takes half a second
        x, y = datasets._all_digits()
        function = SimpleNamespace(load_digits=lambda return_X_y: (x.flatten(1).double(), y))
        monkeypatch.setitem(sys.modules, "sklearn.datasets", function)
        package = SimpleNamespace(submodule_search_locations=[tmp_path])
        monkeypatch.setattr(datasets, "find_spec", lambda name: package)
    datasets._all_digits.cache_clear()
    rt.load_images("digits", size=None, channels=None).pixels.zero_()  # a copy
    parts = [rt.load_images("digits", s, size=None, channels=None) for s in ("train", "test")]
    assert [part.pixels.shape for part in parts] == [(1437, 1, 8, 8), (360, 1, 8, 8)]
    assert {part.pixels.dtype for part in parts} == {torch.uint8}
    assert parts[0].classes == tuple("0123456789")
    pixels, labels = (torch.cat([getattr(part, name) for part in parts]).numpy()
                      for name in ("pixels", "labels"))  # fmt: skip
    numbers = (pixels[:, 0], labels.astype(np.uint8))
    assert [hashlib.sha256(part.tobytes()).hexdigest() for part in numbers] == DIGITS


def test_constants_of_the_digits_are_those_of_the_pixels():
    images = rt.load_images("digits", size=None, channels=None)
    x = images.inputs(images.pixels, torch.float64)
    # Four digits are written down.
    assert abs(float(x.mean())) < 2e-4
    assert abs(float(x.std(correction=0)) - 1) < 2e-4


@pytest.mark.parametrize(("old", "new", "border"), [(8, 32, 0), (28, 32, 2), (5, 12, 1)])
def test_small_images_are_enlarged_then_padded(generator, old, new, border):
    pixels = torch.randint(1, 256, (2, 1, old, old), generator=generator, dtype=torch.uint8)
    fitted = _fit(pixels, new, 3)
    factor = new // old
    inner = fitted[:, :, border : new - border, border : new - border]
    assert fitted.shape == (2, 3, new, new)
    assert_close(inner[:, 1, ::factor, ::factor], pixels[:, 0])
    assert int((fitted != 0).sum()) == 2 * 3 * (old * factor) ** 2


@pytest.mark.parametrize(("old", "new", "border"), [(32, 16, 0), (28, 16, 1), (9, 3, 0)])
def test_large_images_are_shrunk_then_padded(generator, old, new, border):
    pixels = torch.randint(1, 256, (2, 3, old, old), generator=generator, dtype=torch.uint8)
    factor = -(-old // new)
    means = torch.nn.functional.avg_pool2d(pixels.double(), factor)
    fitted = _fit(pixels, new, 3)
    assert fitted.shape == (2, 3, new, new) and fitted.dtype == torch.uint8
    inner = fitted[:, :, border : new - border, border : new - border]
    assert float((inner.double() - means).abs().max()) <= 0.5
    assert int((fitted != 0).sum()) == inner.numel()


@pytest.mark.parametrize(
    ("old", "new", "inner"), [((3, 5), 11, (6, 10)), ((5, 3), 11, (10, 6)), ((6, 12), 5, (2, 4))]
)
def test_oblong_images_keep_their_form(generator, old, new, inner):
    pixels = torch.randint(1, 256, (2, 1, *old), generator=generator, dtype=torch.uint8)
    fitted = _fit(pixels, new, None)
    top, left = ((new - side) // 2 for side in inner)
    kept = fitted[:, :, top : top + inner[0], left : left + inner[1]]
    assert fitted.shape == (2, 1, new, new)
    assert int((kept != 0).sum()) == int((fitted != 0).sum()) == 2 * inner[0] * inner[1]


def test_halves_are_rounded_up_when_images_shrink():
    pixels = torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8).view(1, 1, 2, 2)
    assert _fit(pixels, 1, 1).item() == 1
    assert _fit(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), 1, 1).item() == 255


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: rt.load_images("cifar"),
            "name: unknown name 'cifar'; did you mean 'cifar10'? choose from 'digits', 'mnist', "
            "'cifar10'",
        ),
        (
            lambda: rt.load_images("digits", "tset"),
            "split: unknown name 'tset'; did you mean 'test'? choose from 'train', 'test'",
        ),
        (
            lambda: rt.load_images("digits", samples=5000),
            "samples: got 5000, the set has 1437 images",
        ),
        (
            lambda: _fit(torch.zeros(1, 3, 9, 8), 4, None),
            "size: got 4 for images of 9 x 8 pixels, which would be shrunk by 3; needs a factor "
            "that divides both sides",
        ),
        (
            lambda: _fit(torch.zeros(1, 3, 8, 9), 4, None),
            "size: got 4 for images of 8 x 9 pixels, which would be shrunk by 3; needs a factor "
            "that divides both sides",
        ),
        (
            lambda: _fit(torch.zeros(2, 3, 4, 4), None, 1),
            "channels: got 1 for images of 3; only grey is repeated",
        ),
        (lambda: rt.load_images("digits", size=0), "size: got 0, needs at least 1"),
        (lambda: rt.load_images("digits", channels=0), "channels: got 0, needs at least 1"),
        (
            lambda: augment(torch.zeros(1, 3, 9, 8), CROP, padding="reflect", pad=8),
            "pad: got 8 for images of (9, 8); reflection needs less than the shorter side",
        ),
        (
            lambda: augment(torch.zeros(1, 3, 8, 8), CROP, padding="reflected"),
            "padding: unknown name 'reflected'; did you mean 'reflect'? choose from 'zeros', "
            "'reflect'",
        ),
        (
            lambda: Images(pixels=torch.zeros(3, 2), labels=torch.zeros(2)),
            "labels: got 2 for 3 images, needs the same number of samples",
        ),
        (
            lambda: whiten(torch.eye(4)[:, :3], 4),
            "components: got 4, but the 4 centred samples of 3 features have numerical rank 3 "
            "(eigenvalues of the covariance above max(m, p) * eps * largest); ask for at most 3, "
            'or pass rank="truncate"',
        ),
        (
            lambda: whiten(torch.zeros(2, 0), 1),
            "x: got shape (2, 0), needs a matrix (samples, features)",
        ),
    ],
    ids=range(13),
)
def test_what_there_is_not_is_refused(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


def test_data_are_shown_in_a_line():
    shown = repr(rt.load_images("digits", samples=5, size=8, channels=1))
    assert shown == "Images(5 of shape (1, 8, 8), torch.uint8, 10 classes)"
    data = rt.Regression(torch.zeros(5, 2), torch.zeros(5, 3))
    assert repr(data) == "Regression(x (5, 2), y (5, 3), torch.float64)"
    assert repr(data.moments) == "Moments(syx (3, 2), of 5 samples)"


def test_inputs_are_centred_and_scaled():
    pixels = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8).view(1, 2, 1, 2)
    images = Images(pixels=pixels, labels=torch.zeros(1).long(), mean=(0.5, 0.2), std=(0.5, 0.1))
    expected = torch.tensor([[-1.0, 1.0], [0.0, 2.0]]).view(1, 2, 1, 2)
    assert_close(images.inputs(pixels, torch.float64), expected, atol=1e-15, rtol=0)
    assert images.inputs(pixels, torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.zeros(0, 2), torch.zeros(0)), "without samples"),
        ((torch.full((2, 2), torch.nan), torch.zeros(2)), "not finite"),
    ],
    ids=["empty", "nan"],
)
def test_images_that_are_none_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Data.of(Images(pixels=data[0], labels=data[1])).whole()


def cut_by_hand(pixels, crops, pad, mode):
    out = np.empty_like(pixels)
    height, width = pixels.shape[2:]
    for i, image in enumerate(pixels):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode=mode)
        top, left = int(crops.top[i]), int(crops.left[i])
        window = padded[:, top : top + height, left : left + width]
        out[i] = window[:, :, ::-1] if crops.flip[i] else window
    return out


@pytest.mark.parametrize(("padding", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64], ids=str)
@pytest.mark.parametrize("pad", [3, 6])
def test_augmentation_is_pad_cut_and_mirror(generator, device, padding, mode, dtype, pad):
    pixels = torch.randint(256, (40, 3, 7, 9), generator=generator).to(dtype)
    crops = draw_crops(40, pad=pad, generator=generator)
    mine = augment(pixels.to(device), crops.to(device), pad=pad, padding=padding)
    np.testing.assert_array_equal(mine.cpu(), cut_by_hand(pixels.numpy(), crops, pad, mode))
    assert mine.dtype == dtype


def test_crops_are_uniform_and_every_other_image_is_mirrored(generator):
    count = 81_000
    crops = draw_crops(count, generator=generator)
    seen = torch.bincount(crops.top * 9 + crops.left, minlength=81)
    chi_square = float(((seen - count / 81) ** 2 / (count / 81)).sum())
    assert abs(chi_square - 80) < 4 * (2 * 80) ** 0.5  # four standard errors of its law
    assert abs(float(crops.flip.double().mean()) - 0.5) < 4 * 0.5 / count**0.5
    together = torch.stack([crops.top.double(), crops.left.double(), crops.flip.double()])
    assert float((torch.corrcoef(together) - torch.eye(3)).abs().max()) < 4 / count**0.5


@pytest.fixture
def tree(tmp_path, generator):
    """Two classes, one image deeper, three formats without loss."""
    image = pytest.importorskip("PIL.Image")
    names = ["b/1.png", "b/2.bmp", "a/deep/3.png", "a/note.txt"]
    pixels = torch.randint(256, (3, 6, 5, 3), generator=generator, dtype=torch.uint8).numpy()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(names, pixels, strict=False):
        image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "a/note.txt").write_text("not an image")
    return tmp_path, torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_a_folder_a_class(tree):
    folder, pixels = tree
    images = rt.load_image_folder(folder)
    assert images.classes == ("a", "b")
    assert images.labels.tolist() == [0, 1, 1]
    assert_close(images.pixels, pixels[[2, 0, 1]])
    x = images.inputs(images.pixels, torch.float64)
    assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-13, rtol=0)
    assert_close(x.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-12, rtol=0)


def test_a_folder_that_is_none_is_told_from_an_empty_one(tmp_path):
    for path, lacks in ((tmp_path / "no", "is no folder"), (tmp_path, "has no images in subf")):
        with pytest.raises(FileNotFoundError, match=f"^path: {path} {lacks}"):
            rt.load_image_folder(path)


def test_images_of_two_sizes_name_the_other_one(tree):
    from PIL import Image

    folder, _ = tree
    Image.new("L", (7, 9)).save(folder / "b" / "9.png")
    with pytest.raises(ValueError) as caught:
        rt.load_image_folder(folder)
    assert str(caught.value) == (
        f"{folder / 'b' / '9.png'}: has (9, 7) pixels, {folder / 'a' / 'deep' / '3.png'} has "
        "(6, 5); needs one size, or pass size="
    )
    assert rt.load_image_folder(folder, size=4).pixels.shape == (4, 3, 4, 4)


def test_one_picture_of_one_color_has_nothing_to_scale(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "a").mkdir()
    image.new("RGB", (6, 4), (51, 0, 255)).save(tmp_path / "a" / "1.png")
    found = rt.load_image_folder(tmp_path, size=4, shorter=4)
    assert found.pixels.shape == (1, 3, 4, 4) and found.labels.tolist() == [0]
    assert found.mean == (51 / 255, 0.0, 1.0) and found.std == (1.0, 1.0, 1.0)
    for size, shorter, named in ((0, None, "size: got 0"), (4, 3, "shorter: got 3 with size 4")):
        with pytest.raises(ValueError, match=f"^{named}, needs"):
            rt.load_image_folder(tmp_path, size=size, shorter=shorter)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("shorter", "wide", "high"),
    [(None, [64, 100, 136, 172], [24, 78, 132, 186]), (6, [82, 106, 130, 154], [51, 87, 123, 159])],
    ids=["whole", "part"],
)
def test_the_middle_square_is_cut_out_at_its_scale(tmp_path, shorter, wide, high, turned):
    """Of 60 x 36 pixels whose red grows by 4 to the right and whose green by 6 downwards.

    With ``shorter=6`` and ``size=4`` the square has 36 · 4 / 6 pixels of the file's, so four of the
    result are 6 apart; alone it has 36. The first lie at half their distance from its border.
    """
    image = pytest.importorskip("PIL.Image")
    red = 4 * torch.arange(60).expand(36, 60)
    green = 6 * torch.arange(36)[:, None].expand(36, 60)
    picture = torch.stack([red, green, 0 * red], 2).to(torch.uint8)
    picture = picture.transpose(0, 1) if turned else picture
    (tmp_path / "a").mkdir()
    image.fromarray(picture.contiguous().numpy()).save(tmp_path / "a" / "1.png")
    (found,) = rt.load_image_folder(tmp_path, size=4, shorter=shorter).pixels.long()
    found = found.mT if turned else found
    expected = torch.tensor([[wide] * 4, [[value] * 4 for value in high], [[0] * 4] * 4])
    assert int((found - expected).abs().max()) <= 3  # less behind the borders of the square


def test_a_file_that_is_no_image_is_named(tree):
    folder, _ = tree
    (folder / "a" / "0.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(ValueError, match=r"0\.png: not an image"):
        rt.load_image_folder(folder)


def test_without_pillow_it_is_asked_for(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="load_image_folder needs Pillow: pip install pillow"):
        rt.load_image_folder(tree[0])


@pytest.mark.parametrize("name", ["nothing", "."])
def test_a_folder_without_images_is_named(tmp_path, name):
    (tmp_path / "class").mkdir()
    with pytest.raises(FileNotFoundError, match="one folder per class"):
        rt.load_image_folder(tmp_path / name)
