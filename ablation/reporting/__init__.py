"""The report of a study: page, text, terminal tables, figures."""

from ablation.base.files import some_home

with some_home():
    import altair  # noqa: F401 - here first, because it needs the home folder while it is imported
