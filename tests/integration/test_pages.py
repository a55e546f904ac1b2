"""The page of `make decide` and that of the prepared data, in a real browser: after a real `prepare` and audit."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from playwright.sync_api import BrowserContext, expect

from refit.artifacts.decisions import read_decisions
from refit.artifacts.files import read_csv
from refit.commands import audit
from refit.params import check_params
from stages import prepare
from tests.fixtures.browser import Opened, chromium
from tests.fixtures.project import ROOT, user_environment
from tests.integration.test_audit import coloured
from tests.processes import PATIENCE
from tests.unit.data.test_duplicates import SIDE, cropped

HEADER = "file,decision,label,why\n"
BY_HAND = "green/06.png,keep,,I looked\nred/05.png,drop,,blurred\n"
WRONG = [f"red/wrong_{number}.png" for number in range(4)]
"""They are blue."""


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a project in which `prepare` obeyed BY_HAND, and an audit found three pairs and four labels or
    more."""
    root = tmp_path_factory.mktemp("audited")
    images = root / "data/raw"
    for number, name in enumerate(("red", "green", "blue")):
        (images / name).mkdir(parents=True)
        for i in range(25):
            coloured(100 * number + i, name).save(images / name / f"{i:02}.png")
    for i, wrong in enumerate(WRONG):
        coloured(1000 + i, "blue").save(images / wrong)
    for i in range(3):
        copy = cropped(coloured(200 + i, "blue"))
        copy.save(images / ("blue" if i else "green") / f"copy_{i:02}.png")
    values = {"data": {"source": "folder", "image_size": SIDE}}
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    (root / "data/audit.csv").write_text(HEADER + BY_HAND)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        params = check_params(values)
        prepare.main(params.only("seed", "data"))
        audit.main(params.only(*audit.READS))
        yield root


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    with chromium() as context:
        yield context


@pytest.fixture(scope="module")
def server(audited: Path) -> Iterator[str]:
    """The address of the page that `make decide` serves."""
    command = [sys.executable, "-m", "refit.commands.decide"]
    environment = user_environment(PYTHONPATH=str(ROOT))
    with subprocess.Popen(command, cwd=audited, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        said = process.stdout.readline()
        yield said.rsplit(" ", 1)[1].strip()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 0
    assert re.search(r"^\d+ of \d+ suspects decided; to obey data/audit.csv: dvc repro$", rest, re.MULTILINE)


@pytest.fixture
def suspects(audited: Path) -> dict[str, list[dict[str, str]]]:
    """The suspects by their kind; nothing is decided about them."""
    (audited / "data/audit.csv").write_text(HEADER + BY_HAND)
    rows = read_csv(audited / "data/audit/suspects.csv")
    return {kind: [row for row in rows if row["kind"] == kind] for kind in ("duplicate", "label")}


Suspects = dict[str, list[dict[str, str]]]


@pytest.fixture
def opened(browser: BrowserContext, server: str, suspects: Suspects) -> Iterator[Opened]:
    """The page, at its first suspect. At the end it must have complained of nothing and asked no other host."""
    opened = Opened(browser.new_page())
    opened.page.goto(server)
    expect(opened.page.locator("#count")).to_have_text(f"0 of {sum(map(len, suspects.values()))} decided")
    yield opened
    opened.page.close()
    assert opened.complaints == []
    assert len(opened.asked) > 2
    assert {address for address in opened.asked if not address.startswith((f"{server}/", "data:"))} == set()


def decided() -> dict[str, tuple[str, ...]]:
    """The decisions that were not there before."""
    return {one.file: one[1:4] for one in read_decisions() if one.file not in BY_HAND}


def press(opened: Opened, *keys: str, count: int) -> None:
    """Press keys one after the other, until so many suspects are decided."""
    for key in keys:
        opened.page.keyboard.press(key)
    expect(opened.page.locator("#count")).to_have_text(re.compile(f"^{count} of "))


def test_keys_decide_about_pairs_and_labels_and_the_table_has_the_rows_at_once(
    opened: Opened, suspects: Suspects, audited: Path
) -> None:
    first, second, third = suspects["duplicate"]
    pair = opened.page.locator("#pictures figure")
    expect(pair).to_have_count(2)
    assert opened.loaded_images() == [True, True]
    press(opened, "d", count=1)
    assert decided().keys() == {first["file"]}
    assert decided()[first["file"]][2].startswith(f"near-duplicate of {first['other']}")
    press(opened, "2", "d", count=2)
    assert decided()[second["other"]][2].startswith(f"near-duplicate of {second['file']}")
    press(opened, "k", count=3)
    assert decided()[third["file"]] == ("keep", "", "")

    worst, skipped, next_one, *_ = suspects["label"]
    expect(opened.page.locator("#title")).to_have_text(f"{worst['label']}, or {worst['suggested']}?")
    expect(opened.page.locator("#pictures img")).to_have_count(3)
    assert opened.loaded_images() == [True, True, True]
    press(opened, "r", "Enter", "d", count=5)
    assert decided()[worst["file"]] == ("relabel", worst["suggested"], f"it was {worst['label']}")
    assert decided()[next_one["file"]] == ("drop", "", "")
    assert skipped["file"] not in decided()
    rows = (audited / "data/audit.csv").read_text().splitlines()
    assert rows[1:] == sorted(rows[1:])
    assert set(BY_HAND.splitlines()) < set(rows)


def test_a_decision_can_be_taken_back_and_changed(opened: Opened, suspects: Suspects, audited: Path) -> None:
    before = (audited / "data/audit.csv").read_bytes()
    first, second, _ = suspects["duplicate"]
    press(opened, "d", "k", count=2)
    opened.page.keyboard.press("u")
    expect(opened.page.locator("#why")).to_contain_text("Near-duplicates 2 of 3")
    assert decided().keys() == {first["file"]}
    press(opened, "ArrowLeft", "2", "d", count=2)  # the other image of the first pair: its label is in doubt too
    assert decided().keys() == {first["file"], first["other"]}
    press(opened, "u", "u", count=0)
    assert (audited / "data/audit.csv").read_bytes() == before
    assert second["file"] not in before.decode()


def test_an_image_gets_any_other_class_by_keyboard(opened: Opened, suspects: Suspects) -> None:
    opened.page.get_by_role("button", name="labels: ").click()
    worst = suspects["label"][0]
    (other,) = {"red", "green", "blue"} - {worst["label"], worst["suggested"]}
    opened.page.keyboard.press("l")
    opened.page.keyboard.type(other[:2].upper())
    press(opened, "Enter", count=1)
    assert decided() == {worst["file"]: ("relabel", other, f"it was {worst['label']}")}


def test_a_new_class_alone_settles_no_pair_and_keep_does_not_undo_it(opened: Opened, suspects: Suspects) -> None:
    pair = suspects["duplicate"][0]
    assert (pair["label"], pair["other_label"]) != ("red", "red")
    opened.page.keyboard.press("l")
    opened.page.keyboard.type("red")
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator("#pictures .relabel")).to_have_text("relabel: red")
    press(opened, "k", count=2)  # the other one is also in doubt for its label
    assert decided()[pair["file"]][:2] == ("relabel", "red")
    assert decided()[pair["other"]][:2] == ("keep", "")


def test_the_page_works_with_a_mouse_and_its_end_says_what_to_run(opened: Opened, suspects: Suspects) -> None:
    page = opened.page
    page.locator("#pictures figure").nth(1).click()
    page.get_by_role("button", name="drop 2").click()
    expect(page.locator("#count")).to_have_text(re.compile("^2 of "))  # it is also in doubt for its label
    assert decided().keys() == {suspects["duplicate"][0]["other"]}
    while page.locator("#end").is_hidden():
        page.keyboard.press(" ")
    expect(page.locator("#end")).to_contain_text("dvc repro")
    expect(page.locator("#end")).to_contain_text("make versus A=HEAD")
    page.get_by_role("button", name="to the first undecided").click()
    expect(page.locator("#why")).to_contain_text("Near-duplicates 2 of 3")


def test_a_fault_in_the_table_is_shown_and_nothing_is_written(
    opened: Opened, audited: Path, suspects: Suspects
) -> None:
    faulty = HEADER + BY_HAND + "blue/01.png,delete,,\n"
    (audited / "data/audit.csv").write_text(faulty)
    opened.page.keyboard.press("d")
    expect(opened.page.locator("#said")).to_contain_text("line 4, blue/01.png: the decision 'delete' is unknown")
    assert (audited / "data/audit.csv").read_text() == faulty
    assert opened.complaints.pop().endswith("409 (Conflict)"), "the browser's own line about the answer"


def test_other_sites_and_other_names_of_the_server_are_refused(server: str, suspects: Suspects, audited: Path) -> None:
    own, worst = {"Origin": server}, suspects["label"][0]
    body = json.dumps({"suspect": 3, "file": worst["file"], "decision": "drop", "label": ""})
    before = (audited / "data/audit.csv").read_bytes()
    for foreign in ({"Origin": "https://example.org"}, {"Origin": "null"}, {}, own | {"Host": "example.org"}):
        assert httpx.post(f"{server}/decide", content=body, headers=foreign).status_code == 403
        assert httpx.post(f"{server}/undo", content="{}", headers=foreign).status_code == 403
    for foreign in ({"Host": "example.org"}, {"Host": "example.org:80"}, {"Origin": "https://example.org"}):
        assert httpx.get(f"{server}/", headers=foreign).status_code == 403
        assert httpx.get(f"{server}/suspects/0", headers=foreign).status_code == 403
    assert (audited / "data/audit.csv").read_bytes() == before
    assert httpx.post(f"{server}/decide", content=body, headers=own).status_code == 200
    assert worst["file"] in decided()


def test_only_the_page_and_the_suspects_are_served_and_only_their_choices_are_written(
    server: str, suspects: Suspects
) -> None:
    port = int(server.rsplit(":", 1)[1])
    for path in ("/data/audit.csv", "/../params.yaml", "/suspects/../../params.yaml", "/suspects/9999", "/suspects/-1"):
        with httpx.Client() as client:
            request = httpx.Request(
                "GET", httpx.URL(scheme="http", host="127.0.0.1", port=port, raw_path=path.encode())
            )
            assert client.send(request).status_code == 404, path
    file = suspects["duplicate"][0]["file"]
    right = {"suspect": 0, "file": file, "decision": "relabel", "label": "blue"}
    for wrong in ({"file": "red/05.png"}, {"suspect": 10**6}, {"suspect": "0"}, {"decision": "delete"},
                  {"label": "purple"}, {"label": ["blue"]}, {"decision": "drop"}):  # fmt: skip
        answer = httpx.post(f"{server}/decide", json=right | wrong, headers={"Origin": server})
        assert (answer.status_code, "there is no such" in answer.text) == (409, True), wrong
    for content in ("[]", "{", "\udce9".encode("utf-8", "surrogateescape"), "0" * 2**17):
        answer = httpx.post(f"{server}/decide", content=content, headers={"Origin": server})
        assert answer.status_code == 400
    assert decided() == {}


def start_decide(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "refit.commands.decide", *arguments], cwd=root, capture_output=True, text=True,
        env=user_environment(PYTHONPATH=str(ROOT)), check=False, timeout=PATIENCE,
    )  # fmt: skip


def test_without_an_audit_of_the_prepared_data_it_says_what_to_run(audited: Path) -> None:
    record = audited / "data/audit/audit.json"
    content = record.read_text()
    try:
        record.write_text(json.dumps({"data_sha256": "0" * 64}))
        other = start_decide(audited)
        record.unlink()
        missing = start_decide(audited)
    finally:
        record.write_text(content)
    assert (other.returncode, missing.returncode) == (2, 2)
    assert other.stderr == (
        "error: data/audit/suspects.csv is of other images than data/prepared has now; run: make audit\n"
    )
    assert missing.stderr == "error: data/audit/audit.json does not exist; run: make audit\n"


def test_a_port_in_use_is_a_one_line_error(audited: Path, server: str) -> None:
    port = server.rsplit(":", 1)[1]
    done = start_decide(audited, "--port", port)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: port {port} cannot be used: Address already in use; choose another one: make decide PORT=NUMBER\n"
    )


@pytest.mark.parametrize("name", ["data/prepared_report.html", "data/audit/audit.html"])
def test_the_pages_of_the_data_and_of_the_audit_need_no_other_file_and_no_script(
    name: str, audited: Path, browser: BrowserContext
) -> None:
    address = (audited / name).as_uri()
    opened = Opened(browser.new_page())
    opened.page.goto(address)
    images = opened.loaded_images()
    opened.page.close()
    assert len(images) > 6
    assert all(images)
    assert opened.complaints == []
    assert [asked for asked in opened.asked if not asked.startswith("data:")] == [address]


def test_the_counts_in_the_page_of_the_data_add_up(audited: Path, browser: BrowserContext) -> None:
    page = browser.new_page()
    page.goto((audited / "data/prepared_report.html").as_uri())
    cells = [row.locator("td").all_inner_texts() for row in page.locator("h2#classes + div tbody tr").all()]
    headline = dict(zip(page.locator(".headline dt").all_inner_texts(),
                        page.locator(".headline dd:not(.quiet)").all_inner_texts(), strict=True))  # fmt: skip
    decisions = page.locator("h2#decisions ~ div tbody tr").count()
    page.close()
    counts = [[int(cell) for cell in row] for row in cells]
    assert all(sum(row[:3]) == row[3] for row in counts)
    assert [str(sum(column)) for column in zip(*(row[:3] for row in counts), strict=True)] == [
        headline[split] for split in ("train", "val", "test")
    ]
    assert sum(row[3] for row in counts) == 75 + len(WRONG) + 3 - 1, "one was dropped"
    assert (headline["Left out"], headline["Decisions"], decisions) == ("1", "2", 2)
