# SPDX-License-Identifier: Apache-2.0
"""How the documentation is built."""

from airflow_provider_voicegenie import __version__

project = "airflow-provider-voicegenie"
author = copyright = "The airflow-provider-voicegenie authors"  # noqa: A001
release = __version__
html_title = f"{project} {release}"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
html_static_path = ["static"]
html_logo = "images/logo.svg"
html_css_files = ["wide.css"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
