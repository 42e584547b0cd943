"""README.md, pasted into a prompt block by block, prints what its comments say."""

import code
import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


class Prompt(code.InteractiveConsole):
    """A prompt that raises what a block raises."""

    def showtraceback(self):
        raise

    def showsyntaxerror(self, filename=None, **_):
        raise


@pytest.mark.filterwarnings("ignore:.*there is no C.. compiler:RuntimeWarning")  # steps run over lists then
def test_the_blocks_of_the_readme_paste_into_a_prompt_and_print_what_they_say(capsys):
    prompt = Prompt()
    for block in BLOCKS:
        for line in block.splitlines():
            is_unfinished = prompt.push(line)
        assert not is_unfinished, block
        # Comments at the ends of lines that print, or below them.
        said = re.findall(r"^(?:print\(.*\)  )?# (.*)$", block, re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == said
    assert len(BLOCKS) == 7
