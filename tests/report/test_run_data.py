"""What is read of a run's folder, by hand; also of one that a crash cut off."""

import json
import math

from rlm.report.run_data import read, read_rows, stages

SUMMARY = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "questions": 100}


def folder(path, log="step,loss\n1,0.5\n", **others):
    path.mkdir(parents=True, exist_ok=True)
    (path / "log.csv").write_text(log)
    for name, text in others.items():
        (path / name.replace("_", ".", 1)).write_text(text)
    return path


def test_times_are_joined_by_step_and_a_step_that_stands_twice_is_one_row(tmp_path):
    run = folder(
        tmp_path,
        "step,loss,accuracy\n1,0.5,\n2,0.25,\n2,,0.75\n",
        times_csv="step,learn_seconds\n2,4.5\n1,3.5\n",
    )
    assert read_rows(run) == [
        {"step": 1, "loss": 0.5, "learn_seconds": 3.5},
        {"step": 2, "loss": 0.25, "accuracy": 0.75, "learn_seconds": 4.5},
    ]
    assert read(run).seconds() == {"learn": 8.0}


def test_times_in_log_csv_are_found_too(tmp_path):
    run = folder(tmp_path, "step,generate_seconds,learn_seconds\n1,1,2\n2,3,4\n")
    assert read(run).seconds() == {"generate": 4.0, "learn": 6.0}


def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path):
    run = folder(tmp_path, "step,loss,kl\n1,0.5,0.1\n2,0.2\n3,oops,\0\n\n,7,8\n")
    rows = read_rows(run)
    assert rows == [{"step": 1, "loss": 0.5, "kl": 0.1}, {"step": 2, "loss": 0.2}, {"step": 3}]
    assert read_rows(tmp_path / "nowhere") == []
    (tmp_path / "settings.json").write_text('{"run": "x"')
    assert read(run).settings == {} and read(run).name == tmp_path.name


def test_warnings_are_those_of_the_console_and_of_the_figures(tmp_path):
    lines = "probe: fine\nwarning: no group differs\nwarning: no group differs\nstep 1\n"
    log = "step,truncated_fraction,live_fraction,unreadable_fraction,kl\n"
    log += "".join(f"{step},0.1,0.5,0,0.1\n" for step in range(1, 7))
    log += "7,0.3,0.05,0.5,nan\n8,0.5,0.05,0.5,inf\n"
    settings = json.dumps({"max_steps": 10, "max_tokens": 48})
    run = folder(tmp_path, log, console_log=lines, settings_json=settings)
    # A quarter of eight steps is the last two: means 0.4, 0.5 and 0.05.
    assert read(run).warnings == [
        "no group differs",
        "it ended at step 8 of 10",
        "kl is not finite at 2 steps, first at 7",
        "at the end 40% of the completions were cut off at 48 tokens",
        "at the end no answer could be read in 50%",
        "at the end only 5% of the groups taught anything",
    ]


def test_a_healthy_run_has_no_warning_and_one_without_a_step_has(tmp_path):
    log = "step,truncated_fraction,live_fraction\n1,0.0,0.5\n2,0.1,0.5\n"
    assert read(folder(tmp_path / "a", log, settings_json='{"max_steps": 2}')).warnings == []
    assert read(folder(tmp_path / "b", "step\n")).warnings == ["no step was logged"]


def test_evaluations_of_the_parent_come_first_and_in_the_order_of_the_stages(tmp_path):
    run = folder(tmp_path / "demo" / "grpo", validation_json=json.dumps(SUMMARY))
    rows = [{**SUMMARY, "model": name} for name in ("base", "sft", "grpo")]
    for row in reversed(rows):
        (tmp_path / "demo" / f"test-{row['model']}.json").write_text(json.dumps(row))
    names = [name for name, _ in read(run).evaluations]
    assert names == ["base", "sft", "grpo", "validation"]
    # summary.json has the same once more; something else of the folder is no evaluation.
    (tmp_path / "demo" / "summary.json").write_text(json.dumps(rows))
    (tmp_path / "demo" / "endpoint.json").write_text('{"url": "x"}')
    (tmp_path / "demo" / "odd.json").write_text('{"accuracy": "high", "questions": 1}')
    assert [name for name, _ in read(run).evaluations] == names


def test_the_stages_of_a_run_are_its_own_steps_or_those_below(tmp_path):
    assert stages(tmp_path) == []
    grpo, sft = folder(tmp_path / "grpo"), folder(tmp_path / "sft")
    assert stages(tmp_path) == [sft, grpo]
    assert stages(grpo) == [grpo]


def test_nothing_that_is_not_finite_is_counted_as_time(tmp_path):
    run = folder(tmp_path, "step,learn_seconds\n1,nan\n2,3\n")
    assert read(run).seconds() == {"learn": 3.0}
    assert math.isnan(read(run).rows[0]["learn_seconds"])


def test_comparisons_with_samples_are_those_of_the_folder_and_of_its_parent(tmp_path):
    run = folder(tmp_path / "demo" / "grpo")
    first, own = ({"models": [name], "differences": []} for name in ("a", "b"))
    (tmp_path / "demo" / "pass_at_k.json").write_text(json.dumps({"pass_at_k": first}))
    (run / "comparison.json").write_text(json.dumps({"questions": 2, "pass_at_k": own}))
    # The same once more, one without samples, and what is no comparison.
    (run / "again.json").write_text(json.dumps({"pass_at_k": first}))
    (run / "greedy.json").write_text(json.dumps({"pass_at_k": None}))
    (run / "odd.json").write_text(json.dumps({"pass_at_k": {"models": 1}}))
    assert read(run).pass_at_k == [first, own]
    assert read(tmp_path / "demo").pass_at_k == [first]
