"""Options of a task on the command lines that take them."""

import dataclasses

import pytest

from eqscale.cli import main
from eqscale.cli.evaluate import _views
from eqscale.errors import InputError
from eqscale.study.options import parse_options
from eqscale.study.presets import COMPUTE_GRIDS
from eqscale.tasks import Option
from tests.training.test_loop import make_spec

SWITCH = Option("fine", True, "whether samples are looked at closely", of_data=False)


def test_a_switch_can_be_turned_off_in_every_command(toy, known, capsys):
    class Switched(type(toy)):
        words = dataclasses.replace(toy.words, name="switched")
        options = (*toy.options, SWITCH)

        def look(self, options, seed, index, out):
            return str(options)

    task = known(Switched)
    options = parse_options(
        "", COMPUTE_GRIDS, "grid", "", ["--preset", "quick", "--task", "switched", "--fine", "False"]
    )
    assert options.preset.task_options == (("fine", False),)
    assert main(["scenes", "--task", "switched", "--fine", "false", "--strength", "2"]) == 0
    assert capsys.readouterr().out == "{'strength': 2.0, 'walls': 'free', 'look': 'plain', 'fine': False}\n"
    assert _views(["fine=FALSE", "fine=true"], task, make_spec()) == [{"fine": False}, {"fine": True}]


@pytest.mark.parametrize(
    ("option", "word", "message"),
    [
        (SWITCH, "off", "fine 'off': must be true or false"),
        (Option("k", 4, ""), "4.5", "k '4.5': must be of type int"),
        (Option("k", None, ""), "4", "k '4': must be of type NoneType"),
    ],
)
def test_a_word_that_is_no_value_is_one_line(option, word, message):
    with pytest.raises(InputError) as caught:
        option.parse(word)
    assert str(caught.value) == message
