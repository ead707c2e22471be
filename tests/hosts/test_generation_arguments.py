import pytest

from mir_plugin.errors import MirError
from mir_plugin.tasks.generation_arguments import GenerationArguments

pytestmark = pytest.mark.slow


def test_defaults_are_greedy() -> None:
    assert GenerationArguments.of({}).as_keywords() == {
        "max_new_tokens": 1024,
        "temperature": 0.0,
        "top_p": None,
        "num_beams": 1,
        "until": (),
    }


def test_what_a_task_asks_for_is_honoured() -> None:
    asked = {"max_new_tokens": 8, "temperature": 0.5, "top_p": 0.9, "num_beams": 3, "until": "\n\n"}
    assert GenerationArguments.of(asked).as_keywords() == {
        "max_new_tokens": 8,
        "temperature": 0.5,
        "top_p": 0.9,
        "num_beams": 3,
        "until": ("\n\n",),
    }


@pytest.mark.parametrize(
    ("asked", "temperature"),
    [
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"do_sample": "false", "temperature": 0.7}, 0.0),  # as VLMEvalKit's command line gives it
        ({"do_sample": True}, 1.0),
        ({"do_sample": "True"}, 1.0),
        ({"do_sample": True, "temperature": 0.3}, 0.3),
        ({"do_sample": True, "temperature": 0}, 0.0),
    ],
)
def test_sampling_is_a_temperature(asked: dict[str, object], temperature: float) -> None:
    assert GenerationArguments.of(asked).temperature == temperature


def test_a_value_of_the_wrong_kind_is_a_user_error() -> None:
    with pytest.raises(MirError, match="max_new_tokens"):
        GenerationArguments.of({"max_new_tokens": "few"})
