"""The report of a study: page, text, terminal tables, figures."""
