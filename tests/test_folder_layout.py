"""The splits and classes that a folder of images gives, the files that are left out, and the message about them."""

import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gen.config import Config
from gen.core import Dataset, Family
from gen.data.images import Images, pixels
from gen.data.images.layout import lay_out
from gen.data.images.listing import list_images
from gen.data.images.slices import Slices, cut, suggest, translate
from gen.errors import UserError
from gen.runs.base import resolve_config
from tests.datasets import images_of, read_split, write_image

USUAL = {"train": "train[:80%]", "validation": "train[80%:90%]", "test": "train[90%:]"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def fill(root: Path, **counts: int) -> Path:
    """Writes images of 2 x 2: fill(root, train__cat=3) writes 3 into root/train/cat. Each image has its own colour."""
    for number, (name, n) in enumerate(counts.items()):
        for i in range(n):
            write_image(root.joinpath(*name.split("__")) / f"{i}.png", np.full((2, 2), 20 * number + i, np.uint8))
    return root


def automatic(root: Path) -> Images:
    return Images(name=f"folder:{root}", train=None, validation=None, test=None)


def usual(root: Path) -> Images:
    return images_of(root, **USUAL)


def levels(data: Dataset, split: str) -> list[int]:
    return sorted(read_split(data, split)["image"][:, 0, 0, 0].tolist())


def test_split_folders_are_the_splits(tmp_path, capsys):
    fill(tmp_path, train__cat=4, train__dog=3, val__cat=2, val__dog=1, test__cat=1, test__dog=2)
    data = automatic(tmp_path).build()
    assert data.sizes == {"train": 7, "validation": 3, "test": 3}
    assert data.spec["label"].names == ("cat", "dog")
    assert levels(data, "train") == [0, 1, 2, 3, 20, 21, 22]
    assert levels(data, "validation") == [40, 41, 60]
    assert levels(data, "test") == [80, 100, 101]
    found = read_split(data, "validation")
    np.testing.assert_array_equal(found["label"], found["image"][:, 0, 0, 0] >= 60)
    said = capsys.readouterr().err
    assert "13 images of 2x2, 2 classes, cat (7), dog (6)" in said
    assert "the sub-folders are splits: train (7), val (3), test (3)" in said
    # The options may also slice them, under their own names or the usual ones.
    for validation in ("val[:2]", "validation[:2]"):
        sliced = Images(name=f"folder:{tmp_path}", train="train", validation=validation, test="val[2:]+test").build()
        assert sliced.sizes == {"train": 7, "validation": 2, "test": 4}


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        ("Training Testing", {"train": 9, "validation": 1, "test": 5}),
        ("train valid", {"train": 10, "validation": 2, "test": 3}),
        ("train dev test", {"train": 10, "validation": 5, "test": 5}),
        ("dev test", {"train": 4, "validation": 1, "test": 5}),
    ],
)
def test_split_folders_have_many_names_and_some_may_be_missing(tmp_path, names, sizes):
    for i, name in enumerate(names.split()):
        fill(tmp_path, **{name: 5 if i else 10 if "tr" in name.lower() else 5})
    data = automatic(tmp_path).build()
    assert data.sizes == sizes
    assert "label" not in data.spec


def test_the_usual_slices_hold_no_test_folder(tmp_path, capsys):
    fill(tmp_path, train__cat=10, train__dog=10, val__cat=2, val__dog=2, test__cat=2, test__dog=2)
    data = usual(tmp_path).build()
    assert data.sizes == {"train": 16, "validation": 2, "test": 2}
    assert data.spec["label"].names == ("cat", "dog")
    said = capsys.readouterr().err
    assert "no option names the sub-folders val (4), test (4)" in said
    assert '--data.train "train" --data.validation "val" --data.test "test"' in said


def test_a_user_names_the_splits(tmp_path, capsys):
    fill(tmp_path, a__cat=3, a__dog=3, b__cat=2, b__dog=2, c__cat=1, c__dog=1)
    data = Images(name=f"folder:{tmp_path}", train="a", validation="b[:50%]", test="b[50%:]").build()
    assert data.sizes == {"train": 6, "validation": 2, "test": 2}
    assert data.spec["label"].names == ("cat", "dog")
    assert "no option names the sub-folders c (2)" in capsys.readouterr().err
    # Without these options the sub-folders are classes.
    assert images_of(tmp_path).build().spec["label"].names == ("a", "b", "c")
    with pytest.raises(UserError, match=r"(?s)no split 'd'.*a \(6\), b \(4\), c \(2\)"):
        Images(name=f"folder:{tmp_path}", train="a", validation="b", test="d").build()
    (tmp_path / "c").rename(tmp_path / "c c")
    with pytest.raises(UserError, match="rename 'c c'"):
        images_of(tmp_path, train="a", validation="b", test="c c").build()
    with pytest.raises(UserError, match=r"no split 'd'"):
        images_of(tmp_path, train="a", validation="b", test="d").build()
    with pytest.raises(UserError, match=r"(?s)no split 'train'.*splits a \(6\), b \(4\)"):
        Images(name=f"folder:{tmp_path}", train="a", validation=None, test=None).build()


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    fill(tmp_path, bus=3, car=3, train=4)
    data = automatic(tmp_path).build()
    assert data.spec["label"].names == ("bus", "car", "train")
    assert sum(data.sizes.values()) == 10


def test_folders_that_look_like_splits_and_like_classes_are_refused(tmp_path):
    fill(tmp_path, train=4, val=2, bus=2)
    with pytest.raises(UserError, match=r"(?s)train and val look like splits, and bus does not.*rename"):
        automatic(tmp_path).build()
    data = Images(name=f"folder:{tmp_path}", train="train", validation="val[:1]", test="val[1:]").build()
    assert data.sizes == {"train": 4, "validation": 1, "test": 1}


def test_a_split_without_classes_is_refused_only_if_it_is_used(tmp_path):
    fill(tmp_path, train__cat=5, train__dog=5, test=4)
    with pytest.raises(UserError, match=r'lies next to.*--data\.train "train\[:80%\]"'):
        automatic(tmp_path).build()
    data = usual(tmp_path).build()
    assert data.spec["label"].names == ("cat", "dog")
    assert sum(data.sizes.values()) == 10


def test_a_class_that_train_lacks_is_said(tmp_path, capsys):
    fill(tmp_path, train__cat=5, train__dog=5, test__cat=2, test__owl=2)
    assert automatic(tmp_path).build().spec["label"].names == ("cat", "dog", "owl")
    assert "train has no images of owl" in capsys.readouterr().err


@pytest.mark.parametrize("wrapper", ["all", "a__b__c", "train"])
def test_one_wrapping_folder_is_not_a_class(tmp_path, capsys, wrapper):
    fill(tmp_path, **{wrapper: 10})
    data = automatic(tmp_path).build()
    assert "label" not in data.spec
    assert data.sizes == {"train": 8, "validation": 1, "test": 1}
    line = f"all images lie in the sub-folder {wrapper.replace('__', '/')}, which is not a class"
    assert line in capsys.readouterr().err


def test_classes_and_splits_lie_below_a_wrapping_folder(tmp_path):
    assert images_of(fill(tmp_path / "a", all__cat=2, all__dog=2)).build().spec["label"].names == ("cat", "dog")
    data = automatic(fill(tmp_path / "b", all__train__x=4, all__val__x=2, all__test__x=1)).build()
    assert data.sizes == {"train": 4, "validation": 2, "test": 1}
    assert "label" not in data.spec
    # One sub-folder next to images of a wrapping folder is no class.
    assert "label" not in images_of(fill(tmp_path / "c", all=2, all__more=2)).build().spec


def test_a_picture_next_to_classes_below_a_wrapping_folder_is_refused(tmp_path):
    fill(tmp_path, data__cat=4, data__dog=4, data=1)
    with pytest.raises(UserError, match=r"data/\S+ lies next to the sub-folders such as cat"):
        automatic(tmp_path).build()


def test_the_order_of_classes_is_by_name_and_stays(tmp_path):
    fill(tmp_path, **{str(i): 1 for i in range(1, 13)})
    data = images_of(tmp_path).build()
    assert data.spec["label"].names == ("1", "10", "11", "12", *map(str, range(2, 10)))
    found = read_split(data, "train")
    # Folder i holds the level 20 * (i - 1).
    names = np.array(data.spec["label"].names).astype(int)[found["label"]]
    np.testing.assert_array_equal(20 * (names - 1), found["image"][:, 0, 0, 0])


@pytest.mark.parametrize("n", range(1, 12))
def test_few_images_are_split_as_well_as_possible(tmp_path, n, capsys):
    for i in range(n):
        write_image(tmp_path / f"{i}.png", np.full((2, 2), i, np.uint8))
    data = automatic(tmp_path).build()
    if n < 3:
        assert data.sizes == {"train": n, "validation": n, "test": n}
        assert f"{n} of the {n} test examples are trained on, too" in capsys.readouterr().err
    else:
        assert sum(data.sizes.values()) == n
        assert "trained on" not in capsys.readouterr().err


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7])
def test_the_advice_for_too_few_images_leads_to_a_run(n):
    splits = {"train": [n]}
    assert not all(len(cut(option, splits)) for option in USUAL.values())
    advice = suggest(splits)
    assert all(len(cut(option, splits)) for option in advice)
    assert advice != Slices(**USUAL)
    assert suggest({"train": [100]}) == Slices(**USUAL)


def test_options_that_are_given_stay(tmp_path, capsys):
    fill(tmp_path, cat=10, dog=10)
    data = Images(name=f"folder:{tmp_path}", train="train[:50%]", validation=None, test=None).build()
    assert data.sizes == {"train": 10, "validation": 2, "test": 2}
    assert "trained on" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"train": "train[:90%]"},
            "--data.train 'train[:90%]' shares examples with 'train[80%:90%]', which --data.validation",
        ),
        (
            {"test": "train[:20%]"},
            "--data.test 'train[:20%]' shares examples with 'train[:80%]', which --data.train would be",
        ),
        (
            {"validation": "train[95%:]"},
            "--data.validation 'train[95%:]' shares examples with 'train[90%:]', which --data.test",
        ),
    ],
)
def test_a_held_out_part_that_nobody_chose_is_never_trained_on(given, message, tmp_path):
    fill(tmp_path, cat=10, dog=10)
    options = {"train": None, "validation": None, "test": None} | given
    with pytest.raises(UserError, match=re.escape(message)) as found:
        Images(name=f"folder:{tmp_path}", **options).resolve()
    assert str(found.value).endswith(", too")


def test_the_config_of_a_run_holds_the_slices(tmp_path):
    """So a run that an older version began with these slices is the same run, and is resumed."""
    fill(tmp_path, cat=10, dog=10)
    config = Config(model=Family(), data=automatic(tmp_path), steps=1)
    assert resolve_config(config) == replace(config, data=usual(tmp_path))


def test_names_of_splits_are_translated():
    splits = {"training": [3], "val": [1], "dev": [1]}
    assert translate("train[:50%] + val", splits) == "training[:50%]+val"
    # Two splits of a kind are not mixed up.
    assert translate("validation", splits) == "validation"


def test_all_endings_are_read_or_said(tmp_path, capsys):
    fill(tmp_path, cat=2, dog=1)
    pixel = np.full((2, 2, 3), 200, np.uint8)
    for i, ending in enumerate((".jfif", ".jpe", ".JPG", ".jfi", ".Jif")):
        write_image(tmp_path / "cat" / f"picture{i}{ending}", pixel, "JPEG")
    if pixels.AVIF:
        write_image(tmp_path / "cat" / "a.avif", pixel)
    for name in ("a.heic", "b.HEIC", "README", "notes.txt", ".DS_Store", "Thumbs.db"):
        (tmp_path / "cat" / name).write_text("?")
    for hidden in ("@eaDir", ".thumbnails", "__MACOSX"):
        write_image(tmp_path / hidden / "thumbnail.png", pixel)
    write_image(tmp_path / "dog" / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_XL.jpg", pixel)
    data = images_of(tmp_path).build()
    assert data.sizes["train"] == 8 + pixels.AVIF
    assert data.spec["label"].names == ("cat", "dog")
    assert (
        "left out: 2 .heic, 2 @eaDir/, 2 hidden files, 1 .thumbnails/, 1 .txt, 1 __MACOSX/, 1 files without an ending"
    ) in capsys.readouterr().err


def test_a_folder_without_images_says_what_it_has(tmp_path):
    (tmp_path / "a.heic").write_text("?")
    with pytest.raises(UserError, match=r"no images in it .*; it has 1 \.heic"):
        images_of(tmp_path).build()


def test_a_large_folder_is_listed_quickly(tmp_path):
    n = 4_000
    for i in range(n):
        os.close(os.open(tmp_path / f"{i}.jpg", os.O_CREAT | os.O_WRONLY))
    begun = time.process_time()
    listing = list_images(tmp_path)
    layout = lay_out([file.path for file in listing.files], USUAL, "folder:x")
    # A folder of 100,000 files is to take at most 5 seconds: 0.2 seconds for these, and twice that if the machine is busy.
    assert time.process_time() - begun < 0.4
    assert len(layout.splits["train"]) == n
