"""`make versus`, `make compare` and `dvc exp show` compare experiments of the real project."""

import csv
import re
from pathlib import Path

from pipelines.tools import versus as tool
from tests.fixtures.project import Project, copy_of, make_photos

OUTCOMES = "data/evaluation/outcomes.csv"


def outcomes(project: Project) -> dict[str, dict[str, str]]:
    with (project.root / OUTCOMES).open(newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def versus(project: Project, *names: str, ok: bool = True) -> str:
    done = project.run("python", "-m", "pipelines.tools.versus", *names, ok=ok)
    return done.stdout or done.stderr


def right(rows: dict[str, dict[str, str]]) -> set[str]:
    return {file for file, row in rows.items() if row["predicted"] == row["actual"]}


def test_two_experiments_are_compared_on_their_common_test_images(project: Project) -> None:
    wide = outcomes(project)
    project.run("dvc", "exp", "run", "--name", "thin", "-S", "model.width=4", "-S", "fit.max_epochs=1", "test")
    thin = outcomes(project)
    project.restore()
    assert outcomes(project) == wide

    said = versus(project, "thin")
    alone, alone_here = len(right(thin) - right(wide)), len(right(wide) - right(thin))
    assert alone_here > 100, "otherwise the test proves nothing"
    assert f"A {len(right(thin)) / 359:.4f}, B {len(right(wide)) / 359:.4f} on 359 common images" in said
    assert re.search(rf"difference +{(alone - alone_here) / 359:+.4f} \(confidence interval -0\.\d+ to -0\.\d+\)", said)
    assert re.search(r"verdict +B is better", said)
    params = said.partition("Parameters that differ\n")[2].partition("\n\n")[0].splitlines()
    assert params == ["  fit.max_epochs  A 1, B 3", "  model.width     A 4, B None"]
    counts = re.findall(r"A is better: (\d+), B: (\d+)", said)
    assert [sum(map(int, column)) for column in zip(*counts, strict=True)] == [alone, alone_here]
    file, actual, a, b = re.findall(r"^  (\d+) +true (\d): A (\d), B (\d)$", said, re.MULTILINE)[0]
    assert (actual, a, b) == (wide[file]["actual"], thin[file]["predicted"], wide[file]["predicted"])
    assert re.search(r"verdict +A is better", versus(project, "HEAD", "thin"))
    same = versus(project, "HEAD", "workspace")
    assert re.search(r"verdict +they are the same model", same)
    assert "the code, the images or the packages may differ" in same


def test_images_tested_by_only_one_experiment_or_relabelled_are_not_compared(project: Project) -> None:
    path = project.root / OUTCOMES
    header, first, second, *rest = path.read_text().splitlines()
    file, actual, *others = second.split(",")
    anew = ",".join([file, str((int(actual) + 1) % 10), *others])
    path.unlink()  # may be a link into DVC's cache
    path.write_text("\n".join([header, f"x{first}", anew, *rest, ""]))
    assert "on 357 common images" in versus(project, "HEAD")
    path.write_text("\n".join([header, *(f"x{row}" for row in (first, second, *rest)), ""]))
    assert "HEAD and workspace have no test images in common" in versus(project, "HEAD", ok=False)
    project.restore()


def test_decisions_about_images_that_differ_are_shown_beside_the_parameters() -> None:
    a = tool.Tested("a", "1", "classification", 0.9, [], {"seed": "0"}, frozenset({"x.png,drop,,"}))
    b = a._replace(decisions=frozenset({"x.png,drop,,", "y.png,keep,,", "z.png,drop,,"}))
    assert tool.different_params(a, b) == [("data/audit.csv", "decisions about images: 0 only in A, 2 only in B")]
    assert tool.different_params(a, a)[0][0] == "none"


def test_an_impossible_comparison_fails_with_a_one_line_error(project: Project, tmp_path: Path) -> None:
    def line(*names: str) -> str:
        (said,) = versus(project, *names, ok=False).splitlines()
        return said

    assert (
        line("gone") == "error: gone is not an experiment, commit, branch or tag; to list the experiments: dvc exp list"
    )
    missing = (
        "error: A is missing: the experiment, commit, branch or tag to compare with the model in this folder, as in: "
    )
    assert line().startswith(f"{missing}make versus A=exp-name; ")
    for given in ((), ("B=HEAD",)):  # not B in place of A
        made = project.run("make", "--old-file=.venv/ready", "versus", *given, ok=False).stderr
        assert made.startswith(missing)
    assert "error: unrecognized arguments: c" in versus(project, "a", "b", "c", ok=False)
    (project.root / OUTCOMES).rename(tmp_path / "away")
    assert line("HEAD").startswith("error: workspace has no test results (")
    project.restore()
    (first,) = project.run("git", "rev-list", "--max-parents=0", "HEAD").stdout.split()
    assert line(first).startswith(f"error: {first} has no test results (")


def compare(project: Project, width: int) -> dict[str, dict[str, list[str]]]:
    """The cells of each row by data set and row name."""
    lines = project.run("python", "-m", "pipelines.tools.compare", COLUMNS=str(width)).stdout.splitlines()
    assert max(map(len, lines)) <= width
    tables: dict[str, dict[str, list[str]]] = {}
    data = ""
    for line in lines:
        if line.startswith("  "):
            name, *cells = re.split(r"  +", line.strip())
            tables[data][name] = cells
        elif line and not line.startswith("- :"):
            data = line
            tables[data] = {}
    return tables


def test_the_table_shows_a_dash_for_a_metric_of_another_model_or_other_data(project: Project, tmp_path: Path) -> None:
    """`dvc.lock` then still names the outputs of the last commit's model, and `dvc exp show` shows their metrics."""
    make_photos(tmp_path / "photos", 20, seed=0)
    photos = ["-S", "data.source=folder", "-S", f"data.root={tmp_path}/photos", "-S", "data.image_size=16"]
    project.run("dvc", "exp", "run", "--name", "fit-only", "-S", "fit.max_epochs=1", "-S", "model.width=4", "fit")
    project.restore()
    project.run("dvc", "exp", "run", "--name", "prepare-only", *photos, "prepare")
    project.restore()
    tables = compare(project, 140)
    assert list(tables) == ["digits", "photos"]
    names = [list(table) for table in tables.values()]
    assert tables["digits"]["experiment"] == ["val accuracy", "val loss", "test accuracy", "differs from main"]
    accuracy = len(right(outcomes(project))) / 359
    assert tables["digits"]["main"][2] == tables["digits"]["workspace"][2] == f"{accuracy:.4f}"
    fitted = tables["digits"]["fit-only"]
    assert all(re.fullmatch(r"\d\.\d{4}", cell) for cell in fitted[:2])
    assert fitted[2:] == ["-", "width=4 max_epochs=1"]
    assert tables["photos"]["prepare-only"] == ["-", "-", "-", "image_size=16"]
    assert [list(table) for table in compare(project, 70).values()] == names

    shown = project.run("dvc", "exp", "show", "--csv").stdout.splitlines()[0].split(",")
    first = shown.index("data")
    assert shown[first : shown.index("seed")] == ["data", "test_acc", "val_acc", "val_loss", "changed_params"]
    assert set(shown[:first]) <= {"Experiment", "rev", "typ", "Created", "parent", "State", "Executor"}


def test_an_earlier_commit_is_shown_if_it_has_experiments_or_was_run_on_this_folder_s_data(
    finished: Project, tmp_path: Path
) -> None:
    project = copy_of(finished, tmp_path / "project")
    first = project.run("git", "rev-parse", "--short=7", "HEAD").stdout.strip()
    project.set_param("data.source", "folder")
    project.set_param("data.root", tmp_path / "photos")
    project.commit()
    project.commit()
    assert {data: set(table) - {"experiment"} for data, table in compare(project, 140).items()} == {
        "photos": {"workspace", "main"}
    }
    project.set_param("data.source", "digits")
    assert set(compare(project, 140)["digits"]) == {"experiment", "workspace", first}
    project.run("git", "checkout", "--quiet", "--force", first)
    project.run("dvc", "exp", "save", "--name", "kept")
    project.run("git", "checkout", "--quiet", "main")
    assert set(compare(project, 140)["digits"]) == {"experiment", first, "kept"}
