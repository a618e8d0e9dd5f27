"""What chat templates are told: given, kept by an adapter, the same when a run goes on."""

import datetime
import json

import pytest

from config import GRPOSettings, InferenceSettings, ServeSettings
from rlm.cli.flags import read_flags
from rlm.cli.layers import build
from rlm.errors import InputError
from training.stage import same_day

TODAY = datetime.date.today().isoformat()


def given(cls, *argv):
    return build(cls, *read_flags(cls, list(argv), "x"))


def test_the_date_is_the_runs_unless_it_is_given():
    settings = GRPOSettings()
    assert settings.template() == {"options": {}, "date": settings.template_date}
    assert settings.template_date >= TODAY and "template_date" in settings.lasting()
    facts = {"settings": {"template_date": "2026-01-02"}}
    gone_on = same_day(settings, facts)
    assert gone_on.template_date == "2026-01-02" == gone_on.loading()["template"]["date"]
    assert gone_on.seed == settings.seed and same_day(settings, {}) is settings
    own = given(GRPOSettings, "--template-date", "2026-03-04")
    assert same_day(own, facts).template_date == "2026-03-04", "then the run is refused by name"


def test_what_an_adapter_was_trained_with_is_its_default(tmp_path):
    kept = {"template_date": "2026-01-02", "template_options": ["enable_thinking=true"]}
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    (tmp_path / "manifest.json").write_text(json.dumps({"base": "x", "settings": kept}))
    for cls in (ServeSettings, InferenceSettings):
        settings = cls(adapter=str(tmp_path))
        told = {"options": {"enable_thinking": True}, "date": "2026-01-02"}
        assert settings.template() == told
        own = cls(adapter=str(tmp_path), template_options=["a=1"], template_date="2026-05-06")
        assert own.template() == {"options": {"a": 1}, "date": "2026-05-06"}


def test_options_from_every_place():
    assert given(ServeSettings, "--template-options", "a=1", "b=[2, 3]").template()["options"] == {
        "a": 1,
        "b": [2, 3],
    }
    for value in ({"a": True, "b": "x"}, "a=true b=x"):
        assert ServeSettings(template_options=value).template()["options"] == {"a": True, "b": "x"}
    for wrong in (["x"], ["a b=1"]):
        with pytest.raises(InputError, match="is no option; write NAME=VALUE"):
            build(ServeSettings, {"template_options": wrong}, {})
    with pytest.raises(InputError, match="'tomorrow' is no date; write YYYY-MM-DD"):
        build(ServeSettings, {"template_date": "tomorrow"}, {})


def test_the_servers_own():
    settings = ServeSettings()
    assert settings.timeout is None and settings.reasoning_fields == ("reasoning_content",)
    assert ServeSettings(reasoning_field="both").reasoning_fields == (
        "reasoning_content",
        "reasoning",
    )
    assert not settings.unmerged and not InferenceSettings().unmerged


@pytest.mark.parametrize(
    "kept, kind",
    [
        ({"answers": "choice"}, "choice"),
        ({"task": "math500"}, "math"),
        ({"task": "gsm8k"}, "number"),
        ({}, None),
    ],
)
def test_a_server_asks_for_what_the_adapter_was_trained_for(tmp_path, kept, kind):
    (tmp_path / "manifest.json").write_text(json.dumps({"base": "x", "settings": kept}))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    assert ServeSettings(adapter=str(tmp_path)).answers == kind
    assert ServeSettings(adapter=str(tmp_path), answers="text").answers == "text"
