"""Bring an import up to date: `python -m pipelines.tools.update data/raw/photos.dvc`.

The result is that of `dvc update`. But only what is new or changed at the source is downloaded, and nothing here
changes before all of it has arrived. `dvc update` first deletes the images, and then downloads all of them.
"""

import shutil
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.fs import localfs
from dvc.output import Output
from dvc.repo import Repo, lock_repo
from dvc.stage import Stage
from dvc_data.hashfile.tree import Tree
from dvc_objects.fs.generic import copy

from pipelines.tools.doctor import UPDATE, mend_records
from refit.runtime.command import command_parser, run_command
from refit.runtime.errors import UserError

Files = dict[tuple[str, ...], object]
"""Each file of a folder by the parts of its path, with what tells whether it has changed: an ETag or an MD5. For an
import of a single file, its parts are ()."""


def main(file: str) -> None:
    """Raises UserError if `file` is not an import. If the source cannot be read, exits with 1 and says so; the data
    here are then as before."""
    for line in mend_records(Path.cwd()):
        print(line)
    with Repo(".", _wait_for_lock=True) as repo, lock_repo(repo):
        try:
            stage = repo.stage.load_one(file)
        except DvcException as error:
            raise UserError(f"{file} cannot be read: {error}") from error
        if not stage.is_import:
            raise UserError(f"{file} is not an import; dvc import-url and dvc import make one")
        UPDATE.mkdir(parents=True, exist_ok=True)
        (UPDATE / "import").write_text(file, encoding="utf-8")  # for the doctor, if this process is killed
        try:
            done = bring_up_to_date(stage)
        except Exception as error:  # each kind of source has its own errors
            stage.reload().checkout(force=True)
            shutil.rmtree(UPDATE)
            why = str(error).partition("\n")[0] or type(error).__name__
            raise SystemExit(f"error: {stage.deps[0]} cannot be fetched, nothing has changed here: {why}") from error
        shutil.rmtree(UPDATE)
        print(f"{stage.outs[0]}: {done}")


def bring_up_to_date(stage: Stage) -> str:
    """Fetch what is new, and write the .dvc file; returns what was done."""
    (source,), (out,) = stage.deps, stage.outs
    if stage.is_repo_import or stage.is_db_import or stage.is_versioned_import:
        stage.update()
        stage.dump()
        return f"as of {source}"
    before = files_before(source)
    # The source is listed once, before the download: a file that changes later is fetched again by the next update.
    source.save()
    now = files_of(source)
    if not now:
        raise FileNotFoundError("it has no files")
    here = files_here(Path(out.fs_path))
    gone = here - now.keys()
    new = [parts for parts in now if parts not in here or now[parts] != before.get(parts)]
    if not new and not gone:
        return f"nothing is new, {len(now):,} files"
    arrived = UPDATE / "new"
    copy(
        source.fs, [source.fs.join(source.fs_path, *parts) for parts in new],
        localfs, [str(arrived.joinpath(*parts).absolute()) for parts in new], batch_size=source.fs.jobs,
    )  # fmt: skip
    put_in_place(Path(out.fs_path), arrived, new, gone)
    stage.save_outs()
    stage.md5 = stage.compute_md5()
    stage.commit()
    stage.dump()
    return f"{len(new):,} new or changed, {len(gone):,} removed, {len(now):,} files"


def files_before(source: Output) -> Files:
    """Those of the last update; none if DVC's cache has lost the list, as in a new clone."""
    if source.hash_info.isdir:
        try:
            return _files(Tree.load(source.repo.cache.local, source.hash_info, hash_name=source.hash_name))
        except FileNotFoundError:
            return {}
    return {(): source.hash_info}


def files_of(source: Output) -> Files:
    """Those that were found when it was saved."""
    return _files(source.obj) if isinstance(source.obj, Tree) else {(): source.hash_info}


def _files(tree: Tree) -> Files:
    return {parts: digest for parts, _, digest in tree if parts[-1]}  # without what S3's console makes for a folder


def files_here(path: Path) -> set[tuple[str, ...]]:
    if path.is_dir():
        return {one.relative_to(path).parts for one in path.rglob("*") if not one.is_dir()}
    return {()} if path.exists() else set()


def put_in_place(path: Path, arrived: Path, new: list[tuple[str, ...]], gone: set[tuple[str, ...]]) -> None:
    for parts in gone:
        path.joinpath(*parts).unlink()
    for folder in sorted(path.rglob("*/"), reverse=True):  # DVC tracks no empty folders
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    for parts in new:
        target = path.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # it may be a link to DVC's cache, which must not be written to
        shutil.move(arrived.joinpath(*parts), target)


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("file", metavar="FILE", help="the .dvc file of the import")
    run_command(main, parser)
