import base64
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from eqscale.cli import main
from eqscale.errors import InputError
from eqscale.report.analysis import analyse, seed_noise
from eqscale.report.caveats import caveats
from eqscale.report.controls import control_lines
from eqscale.report.exhibits import only_own_tags
from eqscale.report.figures import best_curves
from eqscale.report.parts import read_study
from eqscale.report.prediction import predict, predicted_optima
from eqscale.report.study import write_report
from tests.report import planted

FIGURES = (
    "loss_vs_compute", "loss_vs_compute_nominal", "loss_vs_compute_seconds",
    "loss_ratio", "loss_ratio_nominal", "loss_ratio_seconds",
    "loss_vs_data",
    "surface",
    "isoflop", "isoflop_nominal", "isoflop_seconds",
    "optimal_size_seconds", "optimal_cost_per_token", "optimal_cost_per_token_nominal",
    "optimal_tokens", "optimal_tokens_nominal", "optimal_tokens_seconds",
    "validation",
    "residuals",
)  # fmt: skip


PREDICTION = "prediction_3e13.json"
STEP_TIMES = "arm,width,depth,heads,batch_size,step_seconds\n"


def answer(folder):
    text = (folder / "report.md").read_text()
    return text[text.index("## Which arm") : text.index("## The paper's three")]


def verdicts(folder):
    return {(c["conclusion"], c["axis"]): c["verdict"] for c in json.loads((folder / "conclusions.json").read_text())}


def test_planted_conclusions_are_reproduced(like_the_paper):
    found = verdicts(like_the_paper)
    assert set(found.values()) == {"reproduced"}, found
    assert len(found) == 7


def test_the_answer_names_the_planted_winner_and_points_at_its_evidence(like_the_paper):
    first = (like_the_paper / "report.md").read_text().split("## Which arm")[0]
    assert first.index("**At equal compute, gatr has the lowest loss at every budget; at 1e13 FLOPs") < first.index(
        ".png"
    )
    assert "decidable" not in first
    told = re.search(r"loss of transformer is ([\d.]+) \[([\d.]+), ([\d.]+)\] times that of gatr\.\*\*", first)
    assert "| executed FLOPs | gatr | transformer |" in first
    assert f"best | × {told[1]} [{told[2]}, {told[3]}] |" in first
    assert "The lead over transformer lasts: " in first
    assert "All others are behind by their 95 % intervals at every budget." in first
    assert "At the largest compute that all arms were given, `gatr` is ahead on all three axes" in first
    lines = answer(like_the_paper).strip().splitlines()[2:]
    table = [line for line in lines if line.startswith("| **")]
    assert [line.split("**")[1] for line in table] == [
        "training FLOPs, executed", "training FLOPs, dense nominal", "training seconds",
    ]  # fmt: skip
    for line in table:
        assert line.split("|")[2].count(": `gatr`") == 3
    bullets = [line for line in lines if line.startswith("- ")]
    assert len(bullets) >= 3
    assert all("](#" in line for line in bullets)
    assert "executed: none shown; on training FLOPs, dense nominal: none shown" in answer(like_the_paper)
    factor = planted.optimal_loss(*planted.LIKE_THE_PAPER["transformer"][:2], 1e13)
    factor /= planted.optimal_loss(*planted.LIKE_THE_PAPER["gatr"][:2], 1e13)
    assert float(told[2]) < factor < float(told[3])
    losses, compute = table[0].split("|")[3:5]
    measured = pd.read_csv(like_the_paper / "minima.csv").query("axis == 'executed' and cost == 1e13")
    lowest = measured[measured["quantity"] == "loss"].set_index("arm")["estimate"]
    for arm, (law, kappa, *_) in planted.LIKE_THE_PAPER.items():
        assert lowest[arm] == pytest.approx(planted.optimal_loss(law, kappa, 1e13), rel=0.05)
    for times in re.findall(r"([\d.]+) \[", losses):
        assert float(times) == pytest.approx(factor, rel=0.05)  # similar at every budget
    assert len(re.findall(r"\[", losses)) == 2
    times, low, high = map(float, re.search(r"`transformer` ([\d.]+) \[([\d.]+), ([\d.]+)\]", compute).groups())
    assert low < factor**4 < high  # both losses fall as C^(1/4)
    assert times == pytest.approx(factor**4, rel=0.15)


def test_coefficients_and_exponents_come_back(like_the_paper):
    table = pd.read_csv(like_the_paper / "coefficients.csv").set_index(["arm", "coefficient"])
    for arm, (law, *_) in planted.LIKE_THE_PAPER.items():
        for name, value in (("alpha", law[3]), ("beta", law[4])):
            row = table.loc[(arm, name)]
            assert row["estimate"] == pytest.approx(value, abs=0.05)
            assert min(row["model_low"], row["robust_low"]) < value < max(row["model_high"], row["robust_high"])
    table = pd.read_csv(like_the_paper / "allocation.csv").set_index(["axis", "arm", "exponent"])
    for axis in ("executed", "nominal", "seconds"):
        assert table.loc[(axis, "gatr", "N"), "estimate"] == pytest.approx(0.6, abs=0.03)
        assert table.loc[(axis, "transformer", "N"), "estimate"] == pytest.approx(0.5, abs=0.03)
        assert table.loc[(axis, "gatr", "loss"), "estimate"] == pytest.approx(-0.25, abs=0.01)


def test_every_figure_and_reference_is_there(like_the_paper):
    text = (like_the_paper / "report.md").read_text()
    for name in FIGURES:
        assert f"({name}.png)" in text
        assert (like_the_paper / f"{name}.png").exists()
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= set(re.findall(r'<a id="([\w-]+)">', text))
    assert "<br>" in text
    assert "&lt;br" not in text
    assert "no table" not in text
    assert "no figure" not in text
    assert "equal within noise" in text
    assert "| 0.3 | 0.04 |" in text


def test_exhibits_are_numbered_as_they_appear(like_the_paper):
    text = (like_the_paper / "report.md").read_text()
    assert re.findall(r"\*\*Table (\d+)\. ", text) == [str(n) for n in range(1, 15)]
    assert re.findall(r"### <a id=\S+></a>Figure (\d+)\. ", text) == [str(n) for n in range(1, 11)]
    targets = dict(re.findall(r'<a id="((?:table|figure)-[\w-]+)"></a>\W*((?:Table|Figure) \d+)', text))
    links = re.findall(r"\[((?:Table|Figure) \d+)\]\(#([\w-]+)\)", text)
    assert len(links) >= 20
    assert all(targets[key] == shown for shown, key in links)


def test_lost_runs_are_listed_and_left_out(like_the_paper):
    text = (like_the_paper / "report.md").read_text()
    assert "`lost-run` diverged: its loss is NaN;" in text
    table = pd.read_csv(like_the_paper / "run_table.csv")
    assert "diverged: its loss is NaN" in set(table.loc[table["name"] == "lost-run", "fate"])
    assert "in no fit: 2 unplanned, 1 diverged (`lost-run` diverged" in text
    assert (table["fate"] == "unplanned: finished, not in the study's plan").sum() == 2
    assert json.loads((like_the_paper / "fits.json").read_text())["transformer"]["n"] == 71


def test_seed_noise_and_lack_of_fit_use_the_replicates(like_the_paper):
    text = (like_the_paper / "report.md").read_text()
    sd = float(re.search(r"\| `gatr` \|.*\*\*([\d.]+) %", text)[1])
    assert sd == pytest.approx(0.4, rel=0.25)
    assert "no replicates" not in text


def test_controls_are_quoted_at_their_largest_budget_whatever_the_order_of_rows(tmp_path):
    grid = planted.compute_grid(planted.LIKE_THE_PAPER)
    gatr = grid[(grid["arm"] == "gatr") & grid["budget"].isin([1e11, 1e12]) & (grid["seed"] == 0)]
    upright = gatr.groupby("budget").head(1).iloc[::-1].assign(frame="upright")
    planted.write_part(grid, tmp_path)
    planted.write_part(upright.assign(run_id=[f"up{k}" for k in range(len(upright))]), tmp_path / "controls")
    study = read_study(tmp_path)
    (line,) = control_lines(study, seed_noise(study.part("compute")))
    assert line.startswith("`gatr` in upright frames has this many times the loss")
    assert "at 1e12 executed FLOPs, the largest budget" in line


def test_seed_noise_is_stored_for_every_size_and_shown_for_every_budget(like_the_paper):
    table = pd.read_csv(like_the_paper / "seed_noise.csv")
    assert len(table) == 2 * len(planted.BUDGETS) * 6
    assert set(table["seeds"]) == {2, 3}  # one run was lost
    pooled = np.sqrt(np.average(table["sd"] ** 2, weights=table["seeds"] - 1))
    assert pooled == pytest.approx(0.004, rel=0.2)
    text = (like_the_paper / "report.md").read_text()
    at = table[(table["arm"] == "gatr") & (table["budget"] == table["budget"].min())]
    sd = 100 * np.sqrt(np.average(at["sd"] ** 2, weights=at["seeds"] - 1))
    shown = text[text.index("table-seed_noise") :]
    assert "| arm | 1e10 | " in shown
    assert f"| `gatr` | {sd:.2g} % | " in shown


def test_an_animation_is_shown_and_embedded(like_the_paper):
    assert "(evaluation/gatr.gif)" in (like_the_paper / "report.md").read_text()
    data = base64.b64encode((like_the_paper / "evaluation/gatr.gif").read_bytes()).decode()
    assert f'src="data:image/gif;base64,{data}"' in (like_the_paper / "report.html").read_text()


def test_the_answer_says_what_controls_and_averaging_give(like_the_paper):
    text = answer(like_the_paper)
    assert re.search(r"`gatr` in upright frames has .* \(equal within noise\) at 1e11 executed FLOPs", text)
    ratio = re.search(r"`gatr_turned` over `gatr` ([\d.]+) \[([\d.]+), ([\d.]+)\] at 1e11", text)
    value, low, high = map(float, ratio.groups())
    assert value == pytest.approx(1.3, rel=0.01)
    assert low < 1.3 < high
    assert "at 8 times the cost of a prediction, takes 5.0 % off the loss of the best `gatr` " in text
    assert 0.97 < float(re.search(r"\| `gatr` \| ([\d.]+) \[[\d.]+, [\d.]+\]: lasts \|", text)[1]) < 1.03


def test_validation_sizes_come_from_the_prediction(like_the_paper):
    law, kappa, *_ = planted.LIKE_THE_PAPER["gatr"]
    found = predicted_optima(like_the_paper, ["gatr"])
    assert found == {3e13: {"gatr": pytest.approx(planted.optimal_size(law, kappa, 3e13), rel=0.1)}}


def test_validation_sizes_lie_between_both_predictions(like_the_paper, tmp_path):
    prediction = json.loads((like_the_paper / PREDICTION).read_text())
    gatr, path = prediction["arms"]["gatr"], tmp_path / PREDICTION
    gatr["trend"]["N"] = 4 * gatr["N"]
    path.write_text(json.dumps(prediction))
    assert predicted_optima(tmp_path, ["gatr"]) == {3e13: {"gatr": pytest.approx(2 * gatr["N"])}}
    del gatr["trend"]
    path.write_text(json.dumps(prediction))
    assert predicted_optima(tmp_path, ["gatr"]) == {3e13: {"gatr": gatr["N"]}}


def test_an_arm_is_validated_at_the_budgets_that_it_is_predicted_for(like_the_paper, tmp_path, copy_inputs, capsys):
    copy_inputs(like_the_paper, tmp_path)
    assert main(["predict", str(tmp_path), "--compute", "1e14", "--arms", "gatr"]) == 0
    found = predicted_optima(tmp_path, ["transformer", "gatr"])
    assert {budget: set(optima) for budget, optima in found.items()} == {3e13: {"transformer", "gatr"}, 1e14: {"gatr"}}
    law = {"gatr": planted.LIKE_THE_PAPER["gatr"]}
    both = [planted.validation(planted.LIKE_THE_PAPER, 3e13), planted.validation(law, 1e14)]
    planted.write_part(pd.concat(both), tmp_path / "validation")
    planted.write_text(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.count("\nValidation: the loss at") == 2
    assert re.search(r"\| 1e14 FLOPs \| `gatr` \| .* \| 3 of 3 \|", text)
    assert "has changed since the prediction" not in text
    outcome = pd.read_csv(tmp_path / "validation.csv")
    assert dict(outcome.groupby("compute").size()) == {3e13: 6, 1e14: 3}
    (tmp_path / PREDICTION).rename(tmp_path / "prediction.json")  # under any name: a second one isn't a prediction
    assert main(["predict", str(tmp_path), "--compute", "3e13"]) == 2
    assert "has a prediction for 3e13 FLOPs (executed) already" in capsys.readouterr().err
    with pytest.raises(InputError, match="no arm 'egnn' in the compute grid, which has transformer, gatr"):
        predict(read_study(tmp_path), 1e15, names=["egnn"])


@pytest.mark.parametrize(
    ("damage", "arms", "message"),
    [
        (None, ["gatr"], "there is no prediction .*eqscale predict"),
        (lambda t: t[:100], ["gatr"], "not readable as JSON"),
        (lambda t: t.replace('"at_sizes"', '"at"').replace('"N"', '"M"'), ["gatr"], r"damaged \(KeyError: 'N'\)"),
        (lambda t: t.replace('"executed"', '"hours"'), ["gatr"], r"damaged \(ValueError: 'hours'\)"),
        (lambda t: re.sub(r'("compute": )[\d.e+]+', r"\1NaN", t), ["gatr"], r"damaged \(ValueError: nan\)"),
        (lambda t: re.sub(r'("compute": )[\d.e+]+', r"\1null", t), ["gatr"], r"damaged \(ValueError: None\)"),
        (lambda t: '{"arms": []}', ["gatr"], r"damaged \(KeyError: 'axis'"),
        (lambda t: t.replace('"executed"', '"seconds"'), ["gatr"], "is no prediction for executed FLOPs"),
        (lambda t: t, ["gatr", "gatr_turned"], "has an optimum for gatr_turned"),
    ],
)
def test_validation_without_its_prediction_is_refused(like_the_paper, tmp_path, damage, arms, message):
    if damage is not None:
        (tmp_path / PREDICTION).write_text(damage((like_the_paper / PREDICTION).read_text()))
    with pytest.raises(InputError, match=message):
        predicted_optima(tmp_path, arms)


def test_a_prediction_that_is_not_committed_is_refused(like_the_paper, tmp_path):
    shutil.copy(like_the_paper / PREDICTION, tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    with pytest.raises(InputError, match="is not committed"):
        predicted_optima(tmp_path, ["gatr"])
    (tmp_path / ".gitignore").write_text("*.json\n")
    with pytest.raises(InputError, match="is not committed, and git ignores it: git add -f it"):
        predicted_optima(tmp_path, ["gatr"])
    subprocess.run([*git, "add", "-f", PREDICTION], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a prediction"], check=True)
    assert predicted_optima(tmp_path, ["gatr"])


def test_prediction_and_outcome_stand_side_by_side(like_the_paper):
    prediction = json.loads((like_the_paper / PREDICTION).read_text())
    for arm, (law, kappa, *_) in planted.LIKE_THE_PAPER.items():
        found = prediction["arms"][arm]
        low, high = found["mean"]["model"]
        assert low < planted.optimal_loss(law, kappa, 3e13) < high
        low, high = found["N_interval"]["model"]
        assert low < planted.optimal_size(law, kappa, 3e13) < high
        trend = found["trend"]
        assert trend["loss"] == pytest.approx(planted.optimal_loss(law, kappa, 3e13), rel=0.03)
        assert trend["N"] == pytest.approx(
            planted.optimal_size(law, kappa, 3e13), rel=0.15
        )  # parabolas over 64-fold sizes err
        low, high = trend["new_run"]["model"]
        assert low < trend["mean"]["model"][0] < trend["loss"] < trend["mean"]["model"][1] < high
    line = next(line for line in answer(like_the_paper).splitlines() if "Validation" in line)
    off = r"of 2 arms\. The predicted lowest loss is off .* best run by (\S+) % without a law, (\S+) % by the law"
    best = pd.read_csv(like_the_paper / "validation.csv").groupby("arm")["observed"].min()
    by_law = [abs(prediction["arms"][arm]["loss"] / loss - 1) for arm, loss in best.items()]
    without = [abs(prediction["arms"][arm]["trend"]["loss"] / loss - 1) for arm, loss in best.items()]
    found = list(map(float, re.search(off, line).groups()))
    assert found == pytest.approx([100 * np.median(errors) for errors in (without, by_law)], abs=0.06)
    assert len(pd.read_csv(like_the_paper / "validation.csv")) == 6
    laws = {arm: planted.optimal_loss(*spec[:2], 3e13) for arm, spec in planted.LIKE_THE_PAPER.items()}
    said = r"`gatr` (\S+), `transformer` (\S+) \(× (\S+) \[(\S+), (\S+)\]; predicted (\S+) without a law, (\S+) by it\)"
    ahead, behind, ratio, low, high, *predicted = map(float, re.search("Best runs there: " + said, line).groups())
    assert low < ratio < high
    assert predicted == pytest.approx([laws["transformer"] / laws["gatr"]] * 2, rel=0.03)
    assert (ahead, behind) == pytest.approx((laws["gatr"], laws["transformer"]), rel=0.05)
    assert ratio == pytest.approx(behind / ahead, rel=0.01)
    inside = int(re.search(r"for (\d) of 6 runs", line)[1])
    assert inside >= 5
    assert "has changed since the prediction" not in (like_the_paper / "report.md").read_text()


def test_the_page_works_offline_and_knows_the_run_behind_every_dot(like_the_paper):
    page = (like_the_paper / "report.html").read_text()
    assert len(page) < 2_000_000
    assert not re.search(r'(src|href)="(?!#|data:)', page.replace('xlink:href="data:', ""))
    assert "@import" not in page
    runs = page.count("<tr>", page.index('id="table-runs"')) - 1
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    groups = 0
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        tree = ElementTree.fromstring(svg)
        for parent in tree.iter():
            for defs in [child for child in parent if child.tag.endswith("defs")]:
                parent.remove(defs)
        for group in tree.iter():
            if "data-runs" in group.attrib:
                rows = [int(row) for row in group.attrib["data-runs"].split(",")]
                dots = [e for e in group.iter() if e.tag.endswith(("}use", "}path"))]
                assert len(rows) == len(dots)
                assert 0 <= min(rows) <= max(rows) < runs
                groups += 1
    assert groups > 30


def test_wide_tables_and_figures_scroll_alone_and_anchors_keep_clear_of_the_bar(like_the_paper):
    """What the layout on a phone rests on; the next test measures it where there is a browser."""
    page = (like_the_paper / "report.html").read_text()
    style = page[page.index("<style>") : page.index("</style>")]
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    for selector in ("table", ".panel"):
        assert re.search(rf"^{re.escape(selector)} {{[^}}]*overflow-x: auto", style, re.MULTILINE), selector
    assert re.search(r"^img { max-width: 100%", style, re.MULTILINE)
    bar, padding = (
        re.search(pattern, style)[1] for pattern in (r"height: ([\d.]+)rem", r"scroll-padding-top: ([\d.]+)rem")
    )
    assert float(bar) < float(padding)
    svgs = re.findall(r'class="panel( wide)?"[^>]*><svg[^>]*>', page)
    assert "" in svgs
    assert " wide" in svgs
    assert not re.search(r"<svg[^>]* width=", page)  # so that they shrink


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
document.querySelector("[data-choose=seconds]").click();
document.getElementById("table-minima").scrollIntoView();
parent.postMessage(JSON.stringify({
  window: innerWidth, page: document.documentElement.scrollWidth,
  anchor: document.getElementById("table-minima").getBoundingClientRect().top,
  bar: document.querySelector(".bar").getBoundingClientRect().bottom,
  pressed: [...document.querySelectorAll("[aria-pressed=true]")].map(button => button.dataset.choose),
  shown: [...document.querySelectorAll(".lead .panel:not([hidden])")].map(panel => panel.dataset.axis),
  dots: document.querySelectorAll("[data-run]").length}), "*");
</script>"""


def on_a_phone(page, folder):
    """What a probe finds in a page that is shown 390 pixels wide; a window of Chromium is at least 500 wide."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page).replace("</body>", PROBE + "</body>")
    (folder / "page.html").write_text(page)
    listen = "<script>addEventListener('message', event => document.body.replaceChildren(event.data))</script>"
    frame = '<iframe src="page.html" width="390" height="844" style="border: 0"></iframe>'
    (folder / "phone.html").write_text(f"<!DOCTYPE html><html><head>{listen}</head><body>{frame}</body></html>")
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=5000", "--dump-dom", (folder / "phone.html").as_uri(),
    ]  # fmt: skip
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    return json.loads(re.search(r"<body[^>]*>({.*?})", dumped)[1])


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_phone_shows_the_page_without_scrolling_sideways(like_the_paper, tmp_path):
    found = on_a_phone((like_the_paper / "report.html").read_text(), tmp_path)
    assert found["window"] == 390
    assert found["page"] <= 390
    assert found["anchor"] >= found["bar"] > 0
    assert (found["pressed"], found["shown"]) == (["seconds"], ["seconds"])
    assert found["dots"] > 300


def test_the_command_rebuilds_the_same_files(like_the_paper, tmp_path, copy_inputs):
    copy_inputs(like_the_paper, tmp_path)
    assert main(["report", str(tmp_path / "data_grid")]) == 0  # a part stands for its study
    written = sorted(p.relative_to(like_the_paper) for p in like_the_paper.rglob("*") if p.is_file())
    assert written == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    for path in written:
        assert (tmp_path / path).read_bytes() == (like_the_paper / path).read_bytes(), path


def test_too_few_runs_is_one_clear_error(tmp_path):
    planted.write_part(planted.compute_grid(planted.LIKE_THE_PAPER, sizes=1, seeds=(0,)), tmp_path)
    with pytest.raises(InputError, match=r"no arm can be fitted: arm = transformer: .*too few"):
        write_report(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"runs.csv", "task.json"}


def test_runs_need_no_identity_of_this_project(tmp_path):
    planted.write_part(planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0,)).drop(columns="run_id"), tmp_path)
    planted.write_text(tmp_path)
    assert "**At equal compute, gatr has the lowest loss" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (PREDICTION, "{}", "not a prediction, or damaged (KeyError: 'axis'): eqscale predict writes it"),
        ("optimizers.csv", "", "runs.csv: no such file"),
    ],
)
def test_a_folder_that_lacks_something_is_one_clear_error(tmp_path, capsys, file, content, message):
    if file == PREDICTION:
        planted.write_part(planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0,)), tmp_path)
    (tmp_path / file).write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.drop(columns="N"), "the column 'N' is missing"),
        (lambda t: t.assign(D=t["D"].where(t.index != 3, -1.0)), "column 'D'"),
        (lambda t: t.assign(loss=t["loss"].where(t.index != 3, np.inf)), "column 'loss'"),
        (lambda t: t.assign(seconds=t["seconds"].where(t.index != 3)), "column 'seconds'"),
        (lambda t: t.assign(budget=t["budget"].where(t.index != 3)), "row 4, column 'budget': empty is not a finite"),
    ],
)
@pytest.mark.parametrize("part", [".", "validation"])
def test_the_command_names_what_is_wrong_with_a_table(tmp_path, capsys, damage, message, part):
    table = planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0,))
    planted.write_part(table, tmp_path)
    planted.write_part(damage(table), tmp_path / part)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_seconds_are_cpu_time_where_the_run_table_has_it(tmp_path):
    table = planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0,))
    cpu = (0.5 * table["seconds"]).where(table.index > 0)
    planted.write_part(table.assign(cpu_seconds=cpu), tmp_path)
    read = read_study(tmp_path).part("compute")
    assert read["seconds"].iloc[0] == table["seconds"].iloc[0]  # not recorded: wall time
    assert list(read["seconds"].iloc[1:]) == list(cpu.iloc[1:])


def test_seconds_come_from_step_times_that_cover_all_shapes(tmp_path):
    table = planted.compute_grid(planted.LIKE_THE_PAPER, budgets=planted.BUDGETS[:2], seeds=(0,))
    table = table.assign(width=table["N"], heads=1, hardware=[f"{n}, 1 thread" for n in table.index % 2])
    planted.write_part(table, tmp_path)
    times = table[["arm", "width", "depth", "heads", "batch_size"]].drop_duplicates().reset_index(drop=True)
    times = times.assign(step_seconds=0.001 * (1 + times.index), spread=0.17)
    times.sample(frac=1, random_state=0).to_csv(tmp_path / "step_times.csv", index=False)
    study = read_study(tmp_path)
    expected = table["steps"] * 0.001 * (1 + pd.factorize(table["arm"] + table["width"].astype(str))[0])
    assert study.runs["seconds"].to_numpy() == pytest.approx(expected.to_numpy())
    notes = " ".join(caveats(study, analyse(study)))
    assert "axis of seconds mixes it" not in notes
    assert "a shape's steps were timed span 17 % (median)" in notes

    times.iloc[1:].to_csv(tmp_path / "step_times.csv", index=False)
    study = read_study(tmp_path)
    assert list(study.runs["seconds"]) == list(table["seconds"])  # all or none
    notes = " ".join(caveats(study, analyse(study)))
    assert "steps were timed" not in notes
    assert "`step_times.csv` doesn't cover 1 of the runs" in notes
    assert "different hardware" in notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a readable table"),
        ("arm,width,depth,heads\ngatr,1,1,1\n", "no column 'batch_size'"),
        (f"{STEP_TIMES}gatr,1,1,1,1,0\n", "row 1, column 'step_seconds': 0 is not positive"),
        (f"{STEP_TIMES}gatr,1,1,1,1,nan\n", "row 1, column 'step_seconds': empty is not a finite number"),
        (f"{STEP_TIMES}gatr,1,1,1,1,inf\n", "row 1, column 'step_seconds': inf is not a finite number"),
        (f"{STEP_TIMES}gatr,1,1,1,1,fast\n", "row 1, column 'step_seconds': 'fast' is not a finite number"),
        (f"{STEP_TIMES}gatr,1,1,1,1,0.1\ngatr,1,1,1,1,0.2\n", "row 2 repeats a shape"),
    ],
)
def test_step_times_that_cannot_be_are_refused(tmp_path, content, message):
    planted.write_part(planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0,)), tmp_path)
    (tmp_path / "step_times.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        read_study(tmp_path)


def test_mixed_hardware_is_said(tmp_path):
    table = planted.compute_grid(planted.LIKE_THE_PAPER, budgets=planted.BUDGETS[:2], seeds=(0,))
    table["hardware"] = np.where(table.index % 2, "one, 1 thread", "another, 1 thread")
    planted.write_part(table, tmp_path)
    study = read_study(tmp_path)
    notes = caveats(study, analyse(study))
    note = next(note for note in notes if "different hardware (another, 1 thread; one, 1 thread), and the axis" in note)
    assert "a run's loss: between the instruction sets of CPUs by up to 0.9 %" in note


def test_what_one_seed_and_sizes_at_an_edge_leave_open_is_said(like_the_paper):
    study = read_study(like_the_paper)
    compute, validation = (study.runs["part"] == part for part in ("compute", "validation"))
    runs = study.runs[~compute | (study.runs["budget"] < 9e12) | (study.runs["seed"] == 0)].copy()
    runs.loc[validation, "loss"] = 0.1 / runs["N"]  # the largest is the best
    runs.loc[validation & (runs["arm"] == "transformer"), "loss"] = 1e-9 * runs["N"]
    again = runs[validation.reindex(runs.index)].assign(seed=1)  # a second seed, worse
    again["loss"] *= 1.1
    study = dataclasses.replace(study, runs=pd.concat([runs, again], ignore_index=True))
    notes = caveats(study, analyse(study))
    assert any("One seed at 1e13 executed FLOPs" in note for note in notes)
    edges = next(note for note in notes if note.startswith("Of the validation's sizes"))
    assert "the largest of `gatr`" in edges
    assert "the smallest of `transformer`" in edges


def test_an_empty_table_is_one_line(tmp_path, capsys):
    (tmp_path / "runs.csv").write_text("")
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "not a readable table" in error
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"runs.csv", "task.json"}


def test_a_folder_without_a_run_table_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert "absent' is neither a results folder nor a study in 'studies'" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no runs.csv, nor does its folder data_grid" in capsys.readouterr().err


def test_curves_of_the_best_runs_are_drawn_where_records_hold_them(tmp_path):
    rows = planted.compute_grid(planted.LIKE_THE_PAPER, sizes=4, seeds=(0,))
    runs = pd.DataFrame(rows)
    runs.to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "task.json").write_text(json.dumps(planted.TASK))
    lines = [
        {"run_id": run.run_id, "status": "finished", "spec": {"steps": 10},
         "curve": [{"step": 5, "test_nmse": 3 * run.loss}, {"step": 10, "test_nmse": run.loss}]}
        for run in runs.itertuples()
    ]  # fmt: skip
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, lines)))
    curves = best_curves(read_study(tmp_path))
    assert {arm: tuple(own) for arm, own in curves.items()} == {arm: planted.BUDGETS for arm in planted.LIKE_THE_PAPER}
    best = runs[(runs["arm"] == "gatr") & (runs["budget"] == 1e12)]["loss"].min()
    assert curves["gatr"][1e12].tolist() == [[0.5, 1.0], [3 * best, best]]
    (tmp_path / "records.jsonl").write_text(json.dumps(lines[0]) + '\n{"run_id": ')
    with pytest.raises(InputError, match=r"records\.jsonl:2: not the record of a run"):
        read_study(tmp_path)


def test_html_in_other_peoples_tables_is_text_and_the_page_runs_no_script_but_its_own(like_the_paper):
    page, text = ((like_the_paper / name).read_text() for name in ("report.html", "report.md"))
    assert "&lt;script>alert(1)" in page.replace("&gt;", ">")
    assert all("<script>alert(1)" not in document for document in (page, text))
    assert page.count("<script") == 1
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}';" in policy


@pytest.mark.parametrize("kept", ['<a id="table-runs"></a>', "<details><summary>1</summary>", "p < 0.05", "1<2"])
def test_the_reports_own_html_is_kept(kept):
    assert only_own_tags(kept) == kept


@pytest.mark.parametrize(
    "foreign", ["<img src=x onerror=y>", "<!-- x", "</script>", '<a id="x" onclick="y"></a>', "<a href=x>"]
)
def test_any_other_tag_is_escaped(foreign):
    assert only_own_tags(foreign) == "&lt;" + foreign[1:]


def test_a_part_of_which_no_run_has_ended_yet_is_left_out(tmp_path, capsys):
    table = planted.compute_grid(planted.LIKE_THE_PAPER, seeds=(0,))
    planted.write_part(table, tmp_path)
    planted.write_part(table.head(0), tmp_path / "data_grid")
    assert set(read_study(tmp_path).runs["part"]) == {"compute"}
    planted.write_part(table.head(0), tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "no run has ended yet" in capsys.readouterr().err
