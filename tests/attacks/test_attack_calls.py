"""A part of the bad calls of `make attack`: all that are quick, and some of those that load checkpoints."""

import subprocess
import sys

import attack_calls
import bad_commands
import bad_folder_calls
import bad_python_calls
import pytest
from bad_calls_setup import Call, Setup

GROUPS = {
    "fields": bad_python_calls.FIELD_CALLS,
    "configurations": bad_python_calls.CONFIG_CALLS,
    "models": bad_python_calls.MODEL_CALLS,
    "processors": bad_python_calls.PROCESSOR_CALLS,
    "pipelines": bad_python_calls.PIPELINE_CALLS,
    "folders": bad_folder_calls.FOLDER_CALLS[::3],
    "checkpoints": bad_folder_calls.LOADING_CALLS[::3],
    "options": bad_commands.OPTION_CALLS,
    "prepare": bad_commands.PREPARE_CALLS[::2],
    "schemas": bad_commands.SCHEMA_CALLS[::3],
    "recipes": bad_commands.RECIPE_CALLS[::8],
    "predict": bad_commands.PREDICT_CALLS[::3],
}


@pytest.fixture(scope="module")
def setup(tmp_path_factory, dataset_dir, plm):
    setup = Setup(tmp_path_factory.mktemp("calls"))
    setup.data, setup.raw, setup.plm = dataset_dir, dataset_dir.parent / "ml-100k", plm
    return setup


@pytest.mark.parametrize("group", GROUPS)
def test_a_bad_call_ends_in_one_line_that_names_what_is_wrong(setup, group):
    found = attack_calls.run(GROUPS[group], setup)
    assert {what: wrong for what, wrong in found.items() if what not in attack_calls.KNOWN} == {}


def test_there_are_as_many_as_promised_and_each_is_another():
    names = [call.what for call in attack_calls.all_calls()]
    assert len(names) > 400 and len(set(names)) == len(names)
    assert set(attack_calls.KNOWN) <= set(names)


@pytest.mark.parametrize(
    "command", ["finetune --dataset_dir d --strategy ids --output_dir o", "prepare --dataset netflix"]
)
def test_a_process_ends_as_the_command_does(command):
    start = "import sys; from flip_ctr_command import main; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-c", start, *command.split()], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == "" and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"flip-ctr {command.split()[0]}: error: --")


def test_what_is_wrong_with_an_error_is_noticed(setup):
    """The check itself."""

    def raising(error):
        def makes(s):
            raise error

        return attack_calls.check_python(Call("x", makes, ("'age'",)), setup)

    assert raising(ValueError("column 'age'")) is None
    assert "KeyError" in raising(KeyError("'age'"))
    assert "does not name" in raising(ValueError("a column"))
    assert "several lines" in raising(ValueError("'age'\nx"))
    assert attack_calls.check_python(Call("x", lambda s: 0, ()), setup) == "no error"
    for code, stderr in ((0, ""), (1, "Traceback\nKeyError: a"), (2, "error: a"), (2, "flip-ctr x: error: b")):
        assert attack_calls.wrong_end(code, stderr, "x", ("a",)) is not None
    assert attack_calls.wrong_end(2, "flip-ctr x: error: a\n", "x", ("a",)) is None
