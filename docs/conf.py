"""The site: `make docs`."""

import sys
from pathlib import Path

import gradtx

HERE = Path(__file__).parent
sys.path[:0] = [
    str(HERE),
    str(HERE.parent),
]  # for the modules in this folder, and the guide's results

project, author, copyright = (
    "gradtx",
    "the authors of gradtx",
    "2026, the authors of gradtx",
)
version = release = gradtx.__version__

extensions = ["myst_parser", "sphinx.ext.viewcode", "sphinx_copybutton", "extension"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

add_module_names = True
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
# Names of torch and type aliases. No inventory of another project is fetched.
KNOWN = (
    r"os\.PathLike|torch\..*|nn\..*|Tensor|Optimizer|LRScheduler|AliasOptimizer|StateDtype|Params|Shape|Where|Names|P|"
    "Entries|Factory|Leaf|Tree|Multipliers|Shapes|Clock|Coefficients|Explanation|ReleasedGradients|Row|Engine|"
    "Findings|Sample|Link|WatchedTransformation|Weights"
)
nitpick_ignore_regex = [("py:class", KNOWN)]

html_theme = "furo"
pygments_dark_style = "github-dark"  # does not underline anything except links
html_title = "gradtx"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["sort.js", "filter.js"]
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. "  # copied without prompts and results
copybutton_prompt_is_regexp = True
