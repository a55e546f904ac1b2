"""Class folders and split folders, told from paths alone."""

import pytest

from refit.data.sources.tree import Member, read_tree


def test_files_come_before_folders_and_each_in_alphabetical_order() -> None:
    tree = read_tree(["b/z/1.png", "b/2.png", "a/1.png", "b/10.png"], ["b", "b/z", "a"])
    assert [member.name for member in tree.members] == ["a/1.png", "b/10.png", "b/2.png", "b/z/1.png"]
    assert {member.label for member in tree.members} == {"a", "b"}


def test_with_a_folder_train_the_others_are_splits_too() -> None:
    tree = read_tree(["train/a/1.png", "valid/b/2.png"], ["train", "train/a", "valid", "valid/b"])
    assert tree.has_splits
    assert tree.members == [Member("train/a/1.png", "a", "train"), Member("valid/b/2.png", "b", "val")]


def test_without_a_folder_train_the_names_of_splits_are_classes() -> None:
    tree = read_tree(["test/1.png", "val/2.png"], ["test", "val"])
    assert (tree.has_splits, tree.classes) == (False, ("test", "val"))


@pytest.mark.parametrize("has_splits", [False, True])
def test_each_file_is_a_member_or_left_out_and_never_both(has_splits: bool) -> None:
    top = "train/" if has_splits else ""
    files = [f"{top}a/1.png", f"{top}a/1.txt", f"{top}.b/1.png", f"{top}1.png", "1.png", f"{top}a/.x.png", "LICENSE"]
    tree = read_tree(dict.fromkeys(files), [*(["train"] if top else []), f"{top}a", f"{top}.b"])
    names = [*(member.name for member in tree.members), *(gone.name for gone in tree.left_out)]
    assert sorted(names) == sorted(set(files))
    assert [member.name for member in tree.members] == [f"{top}a/1.png"]


def test_a_suffix_in_capitals_is_that_of_an_image() -> None:
    assert [member.name for member in read_tree(["a/1.JPG"], ["a"]).members] == ["a/1.JPG"]
