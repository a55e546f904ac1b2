"""The scheduled flow: `python -m pipelines.retrain` in a toy repository, where a file sets the promotion's outcome."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.retrain import check_publishable, imports_to_update
from refit.runtime.errors import UserError
from tests.flows.toy import Server, Toy, error_of
from tests.processes import eventually


def last_run(server: Server) -> dict[str, Any]:
    run: dict[str, Any]
    (run,) = server.post("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    return run


def commits(toy: Toy, branch: str = "HEAD") -> list[str]:
    return toy.run("git", "log", "--format=%s", branch).stdout.splitlines()


@pytest.fixture
def published(toy_with_server: Toy, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A toy that pushes each promoted model: its commits to a bare repository, its data to a folder."""
    toy, elsewhere = toy_with_server, tmp_path_factory.mktemp("elsewhere")
    toy.stage("only")
    toy.set_params(publish="push")
    toy.use_git()
    toy.run("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(elsewhere / "code"))
    toy.run("git", "remote", "add", "origin", str(elsewhere / "code"))
    toy.run("git", "push", "--quiet", "--set-upstream", "origin", "main")
    toy.run("dvc", "remote", "add", "--default", "store", str(elsewhere / "data"))
    toy.run("git", "commit", "--quiet", "--message", "remote", "--", ".dvc/config")
    return toy


def test_a_run_s_final_state_is_the_outcome_of_the_promotion_with_its_reason(
    toy_with_server: Toy, server: Server
) -> None:
    """The outcome `kept` is in the test of publishing below."""
    toy = toy_with_server
    toy.stage("only")
    (toy.root / "outcome").write_text("promoted")
    done = toy.flow("retrain")
    assert done.returncode == 0, done.stdout
    assert toy.note("only.ended")
    run = last_run(server)
    assert (run["state"]["type"], run["state"]["name"]) == ("COMPLETED", "Promoted")
    assert run["state"]["message"] == "models:/refit/2 was promoted"
    events = {"filter": {"event": {"name": ["prefect.flow-run.Promoted"]}}}
    eventually(lambda: server.post("/events/filter", events)["events"], "what an automation may wait for has happened")
    artifacts = server.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    assert {artifact["key"]: artifact["data"].strip() for artifact in artifacts} == {
        "refit-summary": "| accuracy | 0.5 |",
        "refit-promotion": "models:/refit/2 was promoted",
    }


def test_new_images_at_the_source_of_a_dvc_import_are_fetched_first(
    toy_with_server: Toy, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, bucket = toy_with_server, tmp_path_factory.mktemp("bucket")
    (bucket / "one.png").write_text("1")
    toy.run("dvc", "import-url", str(bucket), "out/photos")
    counts = "Path('log/counted').write_text(str(len(list(Path('out/photos').iterdir()))))"
    toy.stage("only", does=counts, after=("photos",))
    (toy.root / "outcome").write_text("kept")
    for images in (1, 2):
        done = toy.flow("retrain")
        assert done.returncode == 0, done.stdout
        assert toy.note("counted") == str(images)
        (bucket / "two.png").write_text("2")
    assert toy.note("only.tries") == "xx"
    assert toy.flow("retrain").returncode == 0
    assert toy.note("only.tries") == "xx", "no new image, therefore no stage runs"

    (toy.root / "out/photos/mine.png").write_text("3")
    monkeypatch.chdir(toy.root)
    with pytest.raises(UserError, match=r"^out/photos differs from out/photos\.dvc, and an update would undo the chan"):
        imports_to_update()
    assert (toy.root / "out/photos/mine.png").exists()
    (toy.root / "out/photos/mine.png").unlink()
    for image in bucket.iterdir():
        image.unlink()
    done = toy.flow("retrain")
    assert error_of(done) == "error: out/photos.dvc: its source is missing or empty"
    assert len(list((toy.root / "out/photos").iterdir())) == 2


def test_edited_images_that_dvc_tracks_are_recorded_as_by_dvc_repro(toy_with_server: Toy) -> None:
    toy = toy_with_server
    (toy.root / "out/photos").mkdir()
    (toy.root / "out/photos/one.png").write_text("1")
    toy.run("dvc", "add", "out/photos")
    toy.stage("only", after=("photos",))
    (toy.root / "outcome").write_text("kept")
    before = (toy.root / "out/photos.dvc").read_text()
    (toy.root / "out/photos/two.png").write_text("2")
    done = toy.flow("retrain")
    assert done.returncode == 0, done.stdout
    assert (toy.root / "out/photos.dvc").read_text() != before
    assert toy.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."


def test_only_a_promoted_model_is_committed_and_pushed(
    published: Toy, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    toy = published
    (toy.root / "outcome").write_text("kept")
    done = toy.flow("retrain")
    assert done.returncode == 0, done.stdout
    state = last_run(server)["state"]
    assert (state["type"], state["name"], state["message"]) == ("COMPLETED", "Kept", "models:/refit/2 was kept")
    assert commits(toy) == ["remote", "toy"]
    assert (toy.root / "dvc.lock").exists(), "it is committed with the next promoted model"

    (toy.root / "outcome").write_text("promoted")
    done = toy.flow("retrain")
    assert done.returncode == 0, done.stdout
    assert commits(toy) == commits(toy, "origin/main") == ["Model 0123456789ab", "remote", "toy"]
    assert toy.run("git", "log", "-1", "--format=%b").stdout.strip() == "models:/refit/2 was promoted"
    assert toy.run("git", "status", "--porcelain").stdout == ""
    there = tmp_path_factory.mktemp("clone") / "there"
    toy.run("git", "clone", "--quiet", toy.run("git", "remote", "get-url", "origin").stdout.strip(), str(there))
    toy.run("dvc", "--cd", str(there), "pull")
    assert (there / "out/only").read_text() == "done"

    (toy.root / "outcome").write_text("unchanged")
    assert toy.flow("retrain").returncode == 0
    assert len(commits(toy)) == 3, "there is nothing to commit"


def test_the_next_run_completes_a_failed_push_whatever_its_outcome(published: Toy) -> None:
    toy = published
    (toy.root / "outcome").write_text("promoted")
    code = Path(toy.run("git", "remote", "get-url", "origin").stdout.strip())
    toy.stage("only", does=f"Path({str(code)!r}).rename({str(code.with_name('away'))!r})")
    toy.run("git", "commit", "--quiet", "--all", "--message", "it goes away")
    done = toy.flow("retrain")
    assert done.returncode == 1
    assert error_of(done).startswith(f"error: push failed: '{code}' does not appear to be a git repository")
    done = toy.flow("retrain")
    assert error_of(done).endswith("needs git to be able to push; to see the error: git push --dry-run")
    code.with_name("away").rename(code)
    (toy.root / "outcome").write_text("kept")
    done = toy.flow("retrain")
    assert done.returncode == 0, done.stdout
    assert commits(toy, "origin/main") == ["Model 0123456789ab", "it goes away", "remote", "toy"]


def test_a_project_that_cannot_be_published_is_refused_before_any_work(
    published: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = published
    with (toy.root / "only.py").open("a") as script:
        script.write("# edited\n")
    done = toy.flow("retrain")
    assert done.returncode == 1
    assert error_of(done) == (
        "error: pipelines.publish = push: only.py is not committed, so no commit could reproduce the model; "
        "commit it, or set pipelines.publish to none"
    )
    assert not toy.note("only.began")

    monkeypatch.chdir(toy.root)
    toy.run("git", "commit", "--quiet", "--all", "--message", "edited")
    check_publishable("push")
    toy.run("dvc", "config", "--unset", "core.remote")
    toy.run("git", "commit", "--quiet", "--all", "--message", "no remote")
    with pytest.raises(UserError, match="push needs a remote for the data: dvc remote add --default NAME URL"):
        check_publishable("push")
    toy.run("git", "branch", "--unset-upstream")
    with pytest.raises(UserError, match="push needs a branch to push to: git push --set-upstream origin BRANCH"):
        check_publishable("push")
    check_publishable("commit")
    (toy.root / "refit/mine.py").touch()
    with pytest.raises(UserError, match=r"refit/mine\.py is not committed"):
        check_publishable("commit")
    (toy.root / "refit/mine.py").unlink()
    toy.run("git", "checkout", "--quiet", "--detach")
    with pytest.raises(UserError, match="commit needs a branch to commit to: git switch BRANCH"):
        check_publishable("commit")
    (toy.root / ".git").rename(toy.root / ".not_git")
    with pytest.raises(UserError, match="commit needs a git repository with a commit; make one, or set it to none"):
        check_publishable("commit")
    check_publishable("none")


def test_a_failed_stage_or_promotion_fails_the_run_with_its_own_error(toy_with_server: Toy) -> None:
    toy = toy_with_server
    toy.stage("only", does="Path('fails').exists() and sys.exit('error: no images')")
    done = toy.flow("retrain")
    assert done.returncode == 1
    assert error_of(done) == "error: promote failed: MLflow is away (exit code 1)"
    (toy.root / "outcome").write_text("promoted")
    (toy.root / "fails").touch()
    toy.stage("only", does="Path('fails').exists() and sys.exit('error: no images')  # edited")
    done = toy.flow("retrain")
    assert error_of(done) == "error: stage 'only' failed: no images (exit code 1)"
    assert not (toy.root / "data/promotion").exists(), "nothing was trained, therefore nothing may be promoted"


def test_without_the_mlflow_logger_it_fails_with_a_one_line_error(toy_with_server: Toy) -> None:
    toy = toy_with_server
    toy.stage("only")
    params = yaml.safe_load((toy.root / "params.yaml").read_text())
    params["tracking"]["loggers"] = ["csv"]
    (toy.root / "params.yaml").write_text(yaml.safe_dump(params))
    done = toy.flow("retrain")
    assert done.returncode == 1
    assert error_of(done) == ("error: params.yaml: tracking.loggers has no mlflow, which stores the champion; add it")
    assert not toy.note("only.began")
