"""How the site is built: `make docs` writes it to site/, offline, with every warning an error."""

import sys
from pathlib import Path

import autotimm

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "autotimm"
author = "the autotimm authors"
version = release = autotimm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "autotimm_site",
]
exclude_patterns = ["_ext"]
html_extra_path = ["llms.txt"]  # for programs, beside the first page
nitpicky = True

# Markdown
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # links to headings as GitHub has them

# Docstrings: the signature stays short, and types stand beside the arguments that they belong to.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = False  # it reads the source, and AutoTrainer has arguments that are added to its signature
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape", "Source", "Sources"]
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

# The look. Nothing is loaded from elsewhere: fonts, icons and search are part of the theme.
html_theme = "pydata_sphinx_theme"
html_title = f"autotimm {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {page: [] for page in ("start", "contributing", "changelog")}  # they have no pages below them
html_theme_options = {
    "logo": {"text": "autotimm"},
    "header_links_before_dropdown": 7,
    "navbar_persistent": ["search-button"],
    "navigation_with_keys": False,
    "show_nav_level": 1,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
}
html_context = {"default_mode": "auto"}  # light or dark as the reader's system has it
copyright = "the autotimm authors, Apache License 2.0"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

# `make docs-links`
linkcheck_timeout = 20
linkcheck_retries = 2
