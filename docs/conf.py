"""How Sphinx builds the site: `make docs`. Nothing is fetched from anywhere."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE)]
os.environ.setdefault("OMP_NUM_THREADS", "1")
logging.getLogger("senn").propagate = False  # the gallery's programs print what is to be seen

import reference  # noqa: E402

import senn  # noqa: E402

project = "senn"
author = "the authors of senn"
release = version = senn.__version__
html_title = "senn"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "reference",
    "drawings",
    "examples",
    "accessible",
]
exclude_patterns = [
    "_build",
    "_static",
    "gallery/*.ipynb",
    "gallery/*.py",
    "sg_execution_times.rst",
    "gallery/sg_*.rst",
]
nitpicky = True
nitpick_ignore = [("py:class", name) for name in reference.inner_classes()]
nitpick_ignore_regex = [
    # Single backticks in docstrings are code, linked where they name something public.
    (r"py:obj", r".*"),
    # Without a network there are no inventories of other projects: only names of senn's own can lead anywhere.
    (r"py:(class|data|exc|func|meth)", r"(?!senn\.).*"),
]
highlight_language = "none"  # what stands indented in docstrings is mathematics
default_role = "py:obj"

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/(?!ddp_)\w+\.py$",  # several processes aren't started from within a build
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "default_thumb_file": str(HERE / "growing.png"),
    "min_reported_time": 5,
    "plot_gallery": os.environ.get("SENN_GALLERY", "1") == "1",  # whether the programs are run
    "abort_on_example_error": False,
    "only_warn_on_example_error": False,
}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["senn.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#30506d", "color-brand-content": "#1f5f99"},
    "dark_css_variables": {"color-brand-primary": "#9cc3e6", "color-brand-content": "#9cc3e6"},
}
