"""The report as page, as text and as short form."""
