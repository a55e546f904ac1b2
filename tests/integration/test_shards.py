"""Encoded images in a bucket, on a real server of the S3 protocol."""

import os
from pathlib import Path

import numpy as np
import pytest

from refit.artifacts.prepared import read_split
from refit.runtime.errors import UserError
from tests.fixtures import Changed
from tests.fixtures.s3 import Bucket, Downloads
from tests.fixtures.sources import packed
from tests.unit.data.test_pack import contents, photos

ADDRESS = f"s3://{Bucket.name}/shards"


@pytest.fixture(autouse=True)
def credentials(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "us")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 photos, which make several shards."""
    monkeypatch.setattr("refit.artifacts.encoded.SHARD_BYTES", 3000)
    return photos(tmp_path / "raw")


def test_images_in_a_bucket_are_those_in_the_folder_and_are_written_once(
    changed: Changed, raw: Path, tmp_path: Path, downloads: Downloads
) -> None:
    packed(changed, "folder", raw, tmp_path / "here", storage="encoded")
    packed(changed, "folder", raw, tmp_path / "there", storage="encoded", shards=ADDRESS)
    assert not [name for name in contents(tmp_path / "there") if name.endswith(".bin")]
    for split in ("train", "val", "test"):
        here, there = (read_split(split, tmp_path / folder).images for folder in ("here", "there"))
        np.testing.assert_array_equal(np.asarray(there), np.asarray(here))
        np.testing.assert_array_equal(there[np.array([2, 0])], here[np.array([2, 0])])
        np.testing.assert_array_equal(there[-1], here[-1])
    downloads.taken()
    packed(changed, "folder", raw, tmp_path / "again", storage="encoded", shards=ADDRESS)
    assert contents(tmp_path / "again") == contents(tmp_path / "there")


def test_a_forked_process_reads_too(changed: Changed, raw: Path, tmp_path: Path) -> None:
    """As the stages are, which the warm process forks."""
    packed(changed, "folder", raw, tmp_path / "there", storage="encoded", shards=ADDRESS)
    images = read_split("train", tmp_path / "there").images
    first = images[:4]
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(images[:4], first) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("address", "why"), [("s3://no-such-bucket/shards", "bucket does not exist"), ("nowhere://x", "not known")]
)
def test_an_address_that_cannot_be_written_is_one_line_before_anything_is_decoded(
    changed: Changed, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, why: str
) -> None:
    monkeypatch.setattr("refit.data.pack.decode_all", None)
    with pytest.raises(UserError, match=rf"^{address} \(data.shards\) cannot be read or written: .*{why}"):
        packed(changed, "folder", raw, tmp_path / "there", storage="encoded", shards=address)


def test_a_shard_that_is_gone_is_one_line(changed: Changed, raw: Path, tmp_path: Path, bucket: Bucket) -> None:
    packed(changed, "folder", raw, tmp_path / "there", storage="encoded", shards=ADDRESS)
    images = read_split("test", tmp_path / "there").images
    name = contents(tmp_path / "there")["test_shards.json"].decode().split('"')[1]
    bucket.delete(name.removeprefix(f"s3://{Bucket.name}/"))
    with pytest.raises(UserError, match=rf"^{name} \(data.shards\) cannot be read"):
        images[:]
