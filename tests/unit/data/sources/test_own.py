"""A function of the user's own as the source: what it may return, and one clear error for what it may not."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from refit.data.sources.source import LabelledImage
from refit.runtime.errors import UserError
from tests.fixtures import Changed
from tests.fixtures.sources import animals, listed, opened, packed, write_files


def grey(value: int) -> Image.Image:
    return Image.new("L", (4, 4), value)


def image(name: object = "a", label: object = "x", **fields: object) -> LabelledImage:
    return LabelledImage(**{"name": name, "label": label, "open": partial(grey, 1), **fields})  # type: ignore[arg-type]


def many(root: Path) -> Iterator[LabelledImage]:
    """The files of the root, in the user's own way."""
    for path in sorted(root.rglob("*.png")):
        yield LabelledImage(
            path.name, path.parent.name, partial(Image.open, path), "test" if "9" in path.name else "train"
        )


def number(root: Path) -> int:
    return 7


def nothing(root: Path) -> None:
    pass


Given = Callable[..., list[object]]
GIVEN: dict[str, list[object]] = {}


def given(root: Path) -> list[object]:
    return GIVEN[root.name]


@pytest.fixture
def own(changed: Changed, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """List, and with pack=True pack, what `given` returns."""

    def run(*images: object, pack: bool = False) -> None:
        GIVEN[tmp_path.name] = list(images)
        if pack:
            packed(changed, f"{__name__}.given", tmp_path, tmp_path / "packed")
        else:
            opened(changed, f"{__name__}.given", tmp_path).list_images()

    yield run
    GIVEN.clear()


def test_a_function_s_images_are_listed_in_its_order(changed: Changed, tmp_path: Path) -> None:
    names = [f"{label}/{label}{n}.png" for label in ("cat", "dog") for n in (1, 9)]
    write_files(tmp_path / "raw", dict(zip(names, animals().values(), strict=False)))
    source = opened(changed, f"{__name__}.many", tmp_path / "raw")
    assert listed(source) == [
        ("cat1.png", "cat", "train"), ("cat9.png", "cat", "test"), ("dog1.png", "dog", "train"),
        ("dog9.png", "dog", "test"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["a.png"], r"gave str; expected refit\.data\.sources\.source\.LabelledImage"),
        ([image("a"), image("a", "y")], "gave two images of the name 'a'; each needs a name of its own"),
        ([image(name=7)], "gave an image with name 7; expected a text"),
        ([image(label=7)], "gave an image with label 7; expected a text"),
        ([image(label=None)], "gave an image with label None; expected a text"),
        ([image(group=7)], "gave an image with group 7; expected a text"),
        ([image(split="valid")], "gave image a split 'valid'; expected None or one of train, val, test"),
        ([], "has no class; expected two or more"),
        ([image("a"), image("b")], "has one class, 'x'; expected two or more"),
        ([image("a"), image("b", "=x")], "class '=x' begins like a formula"),
        ([image("a", split="train", group="g"), image("b", "y", split="test", group="g")],
         "group 'g' is in train and test; give all its images the same split"),
        ([image("a", split="train", group="g"), image("b", "y", group="g")], "group 'g' is in train and no split"),
    ],
)  # fmt: skip
def test_what_a_function_may_not_give_is_one_line_that_names_it(
    images: list[object], message: str, own: Callable[..., None]
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        own(*images)
    assert str(raised.value).startswith(f"data.source = '{__name__}.given'")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(("name", "kind"), [("number", "int"), ("nothing", "NoneType")])
def test_a_function_has_to_return_images(name: str, kind: str, changed: Changed, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"returned {kind}; expected several"):
        opened(changed, f"{__name__}.{name}", tmp_path).list_images()


def missing() -> Image.Image:
    return Image.open("/nowhere/1.png")


@pytest.mark.parametrize(
    ("open_it", "message"),
    [
        (missing, r"^b: FileNotFoundError: .*; repair or remove it, or set data\.bad_images"),
        (lambda: "b.png", r"open\(\) of image b gave str; expected PIL\.Image\.Image"),
    ],
)
def test_an_image_that_cannot_be_opened_is_named(
    open_it: Callable[[], object], message: str, own: Callable[..., None]
) -> None:
    images = [image(f"{n}", "xy"[n % 2], open=partial(grey, n)) for n in range(12)]
    with pytest.raises(UserError, match=message):
        own(*images, image("b", open=open_it), pack=True)


@pytest.mark.parametrize("path", [".x", "x.", "..", "./photos", "data/photos.zip", "a..b"])
def test_a_path_of_a_file_is_no_dotted_path(path: str, changed: Changed, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source = .* is no dotted path, such as package\.module\.function"):
        opened(changed, path, tmp_path)


@pytest.mark.parametrize("path", [f"{__name__}.gone", "no_such_package.images", "refit.no_such_module.images"])
def test_a_function_that_is_not_there_is_named(path: str, changed: Changed, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source = .*(has no function 'gone'|there is no)"):
        opened(changed, path, tmp_path)
