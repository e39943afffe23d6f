"""The commands that the README files show exist, with these options and these keys of configurations."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from msfl_jax.cli import app
from msfl_jax.config_files import load_config
from msfl_jax.finetune_config import finetune_config
from msfl_jax.segmentation_config import segmentation_config

ROOT = Path(__file__).parents[1]
FOLDERS = ("configs", "input_pipeline", "launch", "msfl_jax")
MADE = {"classification": finetune_config, "sweep": finetune_config, "segmentation": segmentation_config}
FILES = [ROOT / "README.md", *(file for folder in FOLDERS for file in sorted((ROOT / folder).glob("**/README.md")))]


def commands(file):
    """Lines of code that begin with `msfl`, as lists of words up to a comment or another command."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", file.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("msfl ")]
    for line in lines:
        words = shlex.split(line, comments=True)
        end = next((number for number, word in enumerate(words) if word in ("&&", ";", "|", "&")), len(words))
        yield words[1:end]


def test_there_are_commands():
    assert sum(len(list(commands(file))) for file in FILES) > 20


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT).parent))
def test_commands_have_these_options(file):
    for words in commands(file):
        command, rest = typer.main.get_command(app), list(words)
        while hasattr(command, "commands"):
            assert rest[0] in command.commands, " ".join(words)
            command = command.commands[rest.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        known |= {"--help"}
        given = {word.partition("=")[0] for word in rest if word.startswith("--")}
        free = {
            option
            for option in given
            if option.startswith("--config.") and command.context_settings.get("ignore_unknown_options")
        }
        assert given - free <= known, " ".join(words)
        if "--config" in rest:
            options = {"make": MADE[words[1]]} if words[0] == "finetune" else {}
            overrides = [word for word in rest if word.startswith("--config.")]
            load_config(rest[rest.index("--config") + 1], overrides, **options)
        if "--finetune" in rest:
            load_config(rest[rest.index("--finetune") + 1], make=finetune_config)


def test_every_build_that_a_command_reads_is_made_by_another_under_the_same_name():
    """Whoever pastes the commands in their order needs no other."""
    text = "\n".join(file.read_text() for file in FILES)
    made = set(re.findall(r"--out (data/\w+)", text))
    read = set(re.findall(r"(?:--data|--labels|--phrases|directory=|data tokenizer|data leaks)[ =]?(data/\w+)", text))
    assert len(read) > 5
    assert read <= made
